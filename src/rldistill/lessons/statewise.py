"""State-wise choosers of the literature: they say for each state whose labels count there.

Each function and class here makes the chooser of its name in `selecting`; its keyword parameters are the options of that name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rldistill.lessons.bandits import uniform
from rldistill.lessons.contextual import Contextual, upper_bounds
from rldistill.lessons.regression import Network
from rldistill.lessons.selection import Choice, Doubles, Ints
from rldistill.types import UserError


def mamba(
    arms: int,
    contexts: int,
    generator: np.random.Generator,
    *,
    hidden: int = 32,
    rate: float = 0.003,
    memory: int = 4096,
) -> Contextual:
    """The teacher with the largest value here; Cheng et al. 2020, arXiv 2007.00795, algorithm 1 and its max-aggregated baseline.

    Values are fitted to what the teachers are paid while they drive. Who drives is uniformly random.

    Args:
        arms: M.
        contexts: C.
        generator: of the draws and first weights.
        hidden: units of the network that predicts the values.
        rate: the learning rate, of Adam.
        memory: payments that the network is fitted to, the last ones.
    """
    model = Network(arms, contexts, generator, hidden, 1, rate, memory)

    def drive(inputs: Doubles, counts: Doubles, pending: Doubles) -> Doubles:
        return np.full((len(inputs), arms), 1 / arms)

    return Contextual(model, drive, arms, generator, begin=False)


def maps(
    arms: int,
    contexts: int,
    generator: np.random.Generator,
    *,
    c: float = 2.0,
    ensemble: int = 5,
    hidden: int = 32,
    rate: float = 0.003,
    memory: int = 4096,
) -> Contextual:
    """The teacher with the largest value here, driven by its upper bound; Liu et al. 2023, arXiv 2306.10259, algorithm 1.

    Values are those of an ensemble of networks, which are fitted to what the teachers are paid while they drive.

    Args:
        arms: M.
        contexts: C.
        generator: of the draws and first weights.
        c: the bound is the mean of the ensemble plus c times its standard deviation.
        ensemble: networks, each fitted to a bootstrap of the payments.
        hidden: units of each.
        rate: the learning rate, of Adam.
        memory: payments that the networks are fitted to, the last ones.
    """
    model = Network(arms, contexts, generator, hidden, ensemble, rate, memory)
    return Contextual(model, upper_bounds(model, c), arms, generator)


class Mean:
    """All teachers count the same everywhere: students learn from the mean of their distributions. Drivers are uniformly random.

    Args:
        arms: M.
        generator: of the drivers.
    """

    needs_policies = False

    def __init__(self, arms: int, generator: np.random.Generator) -> None:
        self._drivers = uniform(arms, generator)

    @property
    def arms(self) -> int:
        """How many teachers there are."""
        return self._drivers.arms

    @property
    def pulls(self) -> Ints:
        """(M,): the payments taken so far, by arm."""
        return self._drivers.pulls

    @property
    def estimates(self) -> Doubles:
        """(M,): the mean payment of each arm, NaN where there is none."""
        return self._drivers.estimates

    def choose(self, rows: int, contexts: Doubles | None = None) -> Choice:
        """A uniformly random arm for each row."""
        return self._drivers.choose(rows)

    def pay(self, choice: Choice, payments: Doubles, contexts: Doubles | None = None) -> None:
        """Counts payments; nothing depends on them."""
        self._drivers.pay(choice, payments)

    def trust(self, rows: int, contexts: Doubles | None, policies: Doubles | None) -> Doubles:
        """Weights (B, M), all 1 / M."""
        return np.full((rows, self.arms), 1 / self.arms)

    def state_dict(self) -> dict[str, Any]:
        """The state of the drivers."""
        return self._drivers.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._drivers.load_state_dict(state)


class Agreement(Mean):
    """A teacher counts at a state as much as it agrees there with the mean of the others. Drivers are uniformly random.

    Agreement is the overlap of both distributions, 1 less their total variation distance. Of two teachers both agree equally.

    Args:
        arms: M.
        generator: of the drivers.
        sharpness: the power of the overlap that a teacher counts; 0 is `mean`.
    """

    needs_policies = True

    def __init__(self, arms: int, generator: np.random.Generator, *, sharpness: float = 1.0) -> None:
        super().__init__(arms, generator)
        self._sharpness = sharpness

    def trust(self, rows: int, contexts: Doubles | None, policies: Doubles | None) -> Doubles:
        """Weights (B, M) from probabilities of actions (B, M, A)."""
        if policies is None:
            raise ValueError("agreement needs the teachers' probabilities of actions")
        others = (policies.sum(axis=1, keepdims=True) - policies) / max(self.arms - 1, 1)
        overlaps = np.minimum(policies, others).sum(axis=2)
        weights = overlaps / np.maximum(overlaps.max(axis=1, keepdims=True), 1e-300)
        weights = np.where(overlaps.max(axis=1, keepdims=True) > 0, weights, 1.0) ** self._sharpness
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))


class Oracle(Mean):
    """Chooses and trusts the teacher whose number is the context: what a contextual chooser could be at best.

    Args:
        arms: M.
        contexts: columns, 1.
        generator: unused; oracles have no chance.

    Raises:
        UserError: contexts have more columns.
    """

    def __init__(self, arms: int, contexts: int, generator: np.random.Generator) -> None:
        super().__init__(arms, generator)
        if contexts != 1:
            raise UserError(f"oracle takes a context of one column, the number of the teacher, not of {contexts}")

    def choose(self, rows: int, contexts: Doubles | None = None) -> Choice:
        """The arms that the contexts name."""
        return Choice(self._named(contexts, rows), np.ones(rows))

    def trust(self, rows: int, contexts: Doubles | None, policies: Doubles | None) -> Doubles:
        """Weights (B, M), 1 for the arm that the context names."""
        return np.asarray(np.eye(self.arms)[self._named(contexts, rows)])

    def _named(self, contexts: Doubles | None, rows: int) -> Ints:
        if contexts is None or contexts.shape != (rows, 1):
            raise ValueError("oracle takes a context of one column for each row")
        numbers = contexts[:, 0]
        wrong = ~((numbers >= 0) & (numbers < self.arms) & (numbers == np.floor(numbers)))
        if wrong.any():
            place = f"{numbers[wrong][0]:g}"
            raise UserError(f"oracle's context is the number of a teacher, 0 to {self.arms - 1}, not {place}")
        return numbers.astype(np.int64)
