"""What bandits remember of the payments of each arm.

All of them measure payments from their mean and in units of their spread, so that payments of any sign and scale give the same
choices: `a * r + b` with a > 0 counts as `r`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from rldistill.lessons.selection import Doubles


class Memory(Protocol):
    """What a bandit's rule reads."""

    @property
    def counts(self) -> Doubles:
        """(M,): how many payments of each arm count."""

    @property
    def means(self) -> Doubles:
        """(M,): their mean, NaN where there is none."""

    def add(self, arm: int, payment: float, probability: float) -> None:
        """Takes a payment of an arm that was chosen with this probability."""

    def state_dict(self) -> dict[str, Any]:
        """The statistics."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""


class Moments(NamedTuple):
    """What is left of payments, by arm: each (M,)."""

    counts: Doubles
    means: Doubles
    """0 where there is no payment."""
    deviations: Doubles
    """Sums of squared deviations from the mean."""

    @property
    def centre(self) -> float:
        """The mean of all payments, 0 where there is none."""
        total = float(self.counts.sum())
        return float(self.counts @ self.means) / total if total > 0 else 0.0

    @property
    def spread(self) -> float:
        """The standard deviation of payments about the means of their arms, 0 where all payments are equal."""
        return self._spread(self.means - self.centre)

    def _spread(self, about: Doubles) -> float:
        """The spread, from the arms' means less the mean of all.

        It is pooled over arms, so that an arm that is far worse than the others does not widen it. The squared spread of all
        payments counts as one payment of each arm beside it, since few payments of an arm say little of their deviation.
        """
        total = float(self.counts.sum())
        if total <= 0:
            return 0.0
        within = float(self.deviations.sum())
        overall = (within + float(self.counts @ (about * about))) / total
        return math.sqrt((within + len(self.counts) * overall) / total)

    @property
    def standings(self) -> Doubles:
        """(M,): means of the arms from the mean of all payments, in units of their spread; 0 where an arm has none."""
        about = self.means - self.centre
        spread = self._spread(about)
        if spread == 0:
            return np.zeros(len(self.counts))
        return about / spread if self.counts.all() else np.where(self.counts > 0, about / spread, 0.0)


class Tally(Memory, Protocol):
    """A memory with the moments of the payments."""

    @property
    def moments(self) -> Moments:
        """Counts, means and deviations as they are now."""

    @property
    def standings(self) -> Doubles:
        """Those of the moments."""


class Statistics:
    """Counts, means and squared deviations of all payments, the older ones discounted if wanted.

    Args:
        arms: M.
        discount: the factor of all earlier payments with each payment; 1 keeps them. None lets the memory grow with the number
            of payments t: the factor is 1 - 1 / (2 sqrt(M t)). The root of t is that of Garivier & Moulines 2011.
    """

    def __init__(self, arms: int, discount: float | None = 1.0) -> None:
        self._discount = discount
        self._total = 0
        self.moments = Moments(np.zeros(arms), np.zeros(arms), np.zeros(arms))
        self._standings: Doubles | None = None

    @property
    def counts(self) -> Doubles:
        """(M,): the payments of each arm, as far as they are not discounted."""
        return self.moments.counts

    @property
    def means(self) -> Doubles:
        """(M,): the mean payment of each arm, NaN where there is none."""
        return np.where(self.moments.counts > 0, self.moments.means, np.nan)

    @property
    def standings(self) -> Doubles:
        """Those of the moments, kept until the next payment."""
        if self._standings is None:
            self._standings = self.moments.standings
        return self._standings

    def add(self, arm: int, payment: float, probability: float = 1.0) -> None:
        """Takes a payment; the probability is not needed."""
        self._total += 1
        counts, means, deviations = self.moments
        discount = 1 - 1 / (2 * math.sqrt(len(counts) * self._total)) if self._discount is None else self._discount
        if discount < 1:
            counts *= discount
            deviations *= discount
        before, number = payment - float(means[arm]), float(counts[arm]) + 1
        counts[arm] = number
        means[arm] += before / number
        deviations[arm] += before * (payment - float(means[arm]))
        self._standings = None

    def state_dict(self) -> dict[str, Any]:
        """The statistics."""
        return {"total": self._total} | {name: array.tolist() for name, array in self.moments._asdict().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._total = int(state["total"])
        self.moments = Moments(*(np.array(state[name], dtype=np.float64) for name in Moments._fields))
        self._standings = None


class Window:
    """The last payments, whatever their arms.

    Args:
        arms: M.
        window: how many payments; None lets the window grow with the number of payments t, as 2 sqrt(M t). The root of t is that of
            Garivier & Moulines 2011.
    """

    def __init__(self, arms: int, window: int | None = None) -> None:
        self._size, self._window = arms, window
        self._total = 0
        self._arms: list[int] = []
        self._payments: list[float] = []
        self._moments: Moments | None = None
        self._standings: Doubles | None = None

    @property
    def counts(self) -> Doubles:
        """(M,): the payments of each arm in the window."""
        return self.moments.counts

    @property
    def means(self) -> Doubles:
        """(M,): their mean, NaN where there is none."""
        return np.where(self.moments.counts > 0, self.moments.means, np.nan)

    @property
    def standings(self) -> Doubles:
        """Those of the moments, kept until the next payment."""
        if self._standings is None:
            self._standings = self.moments.standings
        return self._standings

    @property
    def moments(self) -> Moments:
        """Those of the window, kept until the next payment."""
        if self._moments is None:
            arms, payments = np.array(self._arms, dtype=np.int64), np.array(self._payments)
            counts = np.bincount(arms, minlength=self._size).astype(np.float64)
            means = np.bincount(arms, payments, self._size) / np.maximum(counts, 1)
            deviations = np.bincount(arms, (payments - means[arms]) ** 2, self._size).astype(np.float64)
            self._moments = Moments(counts, means, deviations)
        return self._moments

    def add(self, arm: int, payment: float, probability: float = 1.0) -> None:
        """Takes a payment, and drops those that leave the window; the probability is not needed."""
        self._total += 1
        self._arms.append(arm)
        self._payments.append(payment)
        grown = max(2 * self._size, math.ceil(2 * math.sqrt(self._size * self._total)))
        over = len(self._arms) - (grown if self._window is None else self._window)
        if over > 0:
            del self._arms[:over], self._payments[:over]
        self._moments = self._standings = None

    def state_dict(self) -> dict[str, Any]:
        """The payments in the window."""
        return {"total": self._total, "arms": list(self._arms), "payments": list(self._payments)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._total = int(state["total"])
        self._arms = [int(arm) for arm in state["arms"]]
        self._payments = [float(payment) for payment in state["payments"]]
        self._moments = self._standings = None


class Surprises(Statistics):
    """Statistics of all payments, and an exploration that follows how much they still change the means.

    Tokic 2010: with each payment the exploration moves by `step` towards tanh(change / (2 sensitivity)), where the change is that
    of the arm's mean, in units of the spread. It begins at 1.

    Args:
        arms: M.
        sensitivity: sigma of the paper; the smaller, the longer it explores.
        step: delta of the paper; None is 1 / (4 M).
    """

    def __init__(self, arms: int, sensitivity: float, step: float | None = None) -> None:
        super().__init__(arms)
        self._sensitivity, self._step = sensitivity, 1 / (4 * arms) if step is None else step
        self.exploration = 1.0

    def add(self, arm: int, payment: float, probability: float = 1.0) -> None:
        """Takes a payment. The first of an arm is as surprising as any can be."""
        first, before = self.moments.counts[arm] == 0, self.moments.means[arm]
        super().add(arm, payment)
        change, spread = abs(self.moments.means[arm] - before), self.moments.spread
        scaled = change / spread if spread > 0 else 0.0
        surprise = 1.0 if first else math.tanh(scaled / (2 * self._sensitivity))
        self.exploration += self._step * (surprise - self.exploration)

    def state_dict(self) -> dict[str, Any]:
        """The statistics and the exploration."""
        return super().state_dict() | {"exploration": self.exploration}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        super().load_state_dict(state)
        self.exploration = float(state["exploration"])


class Trials(Statistics):
    """Statistics of all payments, and the arm that was best when each had its number of them.

    Args:
        arms: M.
        games: payments of each arm before one is taken for good.
    """

    def __init__(self, arms: int, games: int) -> None:
        super().__init__(arms)
        self._games = games
        self.best: int | None = None

    def add(self, arm: int, payment: float, probability: float = 1.0) -> None:
        """Takes a payment; the one that completes the trials decides."""
        super().add(arm, payment)
        if self.best is None and self.counts.min() >= self._games:
            self.best = int(np.argmax(self.standings >= self.standings.max() - 1e-9))

    def state_dict(self) -> dict[str, Any]:
        """The statistics and the best arm."""
        return super().state_dict() | {"best": self.best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        super().load_state_dict(state)
        self.best = None if state["best"] is None else int(state["best"])


class Weighted(Statistics):
    """Statistics of all payments, and the sums of Exp3, in which a payment counts 1 / the probability of its choice.

    The sums are kept of payments and of ones, so that the gains can be measured from a centre and in units that change.

    Args:
        arms: M.
    """

    def __init__(self, arms: int) -> None:
        super().__init__(arms)
        self._ones: Doubles = np.zeros(arms)
        self._excess: Doubles = np.zeros(arms)
        self._origin = 0.0

    @property
    def gains(self) -> Doubles:
        """(M,): the estimated sum of what each arm would have been paid at every choice, in units of the spread."""
        spread = self.moments.spread
        gains = self._excess - (self.moments.centre - self._origin) * self._ones
        return gains / spread if spread > 0 else gains * 0

    @property
    def weighted_means(self) -> Doubles:
        """(M,): the weighted mean payment of each arm, NaN where there is none."""
        with np.errstate(invalid="ignore"):
            return self._origin + self._excess / self._ones

    def add(self, arm: int, payment: float, probability: float = 1.0) -> None:
        """Takes a payment of an arm that was chosen with this probability."""
        if self.counts.sum() == 0:
            self._origin = payment  # sums of large equal numbers would cancel
        super().add(arm, payment)
        self._ones[arm] += 1 / probability
        self._excess[arm] += (payment - self._origin) / probability

    def state_dict(self) -> dict[str, Any]:
        """The statistics and the sums."""
        sums = {"ones": self._ones.tolist(), "excess": self._excess.tolist(), "origin": self._origin}
        return super().state_dict() | sums

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        super().load_state_dict(state)
        self._origin = float(state["origin"])
        self._ones, self._excess = (np.array(state[name], dtype=np.float64) for name in ("ones", "excess"))
