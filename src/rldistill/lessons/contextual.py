"""Contextual bandits: choosers of a teacher that look at the context of each choice.

Each function here makes the chooser of its name in `selecting`; its keyword parameters are the options of that name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from rldistill.files import generator_state, load_generator_state
from rldistill.lessons.chances import Pending, check_finite, choose_rows, explored, falling, greedy
from rldistill.lessons.regression import Layers, Model, Network, Ridge, Rows, Scaling
from rldistill.lessons.selection import Choice, Doubles, Ints
from rldistill.lessons.tallies import Weighted

Drive: TypeAlias = Callable[[Doubles, Doubles, Doubles], Doubles]
"""Probabilities (R, M) from contexts (R, C), the payments of each arm (M,) and its unpaid choices (M,)."""


class Contextual:
    """A chooser by a model of the payments and a rule that drives. Its trust is the model's largest prediction.

    Args:
        model: of the payments.
        drive: the rule.
        arms: M.
        generator: of the draws.
        begin: whether every arm is chosen before the rule is asked.
    """

    needs_policies = False

    def __init__(
        self, model: Model, drive: Drive, arms: int, generator: np.random.Generator, *, begin: bool = True
    ) -> None:
        self._model, self._drive, self._generator, self._begin = model, drive, generator, begin
        self._pulls: Ints = np.zeros(arms, dtype=np.int64)
        self._pending = Pending(arms)
        self._least, self._most = np.inf, -np.inf
        """Of the payments so far."""

    @property
    def arms(self) -> int:
        """How many teachers there are."""
        return len(self._pulls)

    @property
    def pulls(self) -> Ints:
        """(M,): the payments taken so far, by arm."""
        return self._pulls.copy()

    @property
    def estimates(self) -> Doubles:
        """(M,): the mean prediction over recent contexts, NaN where an arm was never paid."""
        return self._model.estimates

    def choose(self, rows: int, contexts: Doubles | None = None) -> Choice:
        """An arm for each row: first those that wait for their first choice, then by the rule."""
        inputs = _checked(contexts, rows)
        counts = self._pulls.astype(np.float64)

        def rest(row: int) -> Doubles:
            return self._drive(inputs[row:], counts, self._pending.counts)

        return choose_rows(rows, counts, self._pending, self._generator, rest, self._begin)

    def pay(self, choice: Choice, payments: Doubles, contexts: Doubles | None = None) -> None:
        """Takes the payments of earlier choices, with the contexts that they were made in.

        Raises:
            UserError: a payment, or a number of a context, is NaN or infinite.
        """
        check_finite(payments, "the payment")
        inputs = _checked(contexts, len(payments))
        if len(payments):
            self._model.learn(choice, payments, inputs)
            self._least, self._most = min(self._least, payments.min()), max(self._most, payments.max())
        for arm in choice.arms.tolist():
            self._pulls[arm] += 1
            self._pending.paid(arm)

    def predict(self, contexts: Doubles) -> Doubles | None:
        """The payment (R, M) that each arm would get at contexts (R, C), NaN for arms that were never paid; None where the model
        does not predict payments.

        Predictions lie within the payments so far. Payments that are made of predictions would else grow without end where the
        model extrapolates.
        """
        if not self._model.of_payments:
            return None
        predictions = self._model.predict(contexts)
        return np.clip(predictions, self._least, self._most) if self._pulls.any() else predictions

    def trust(self, rows: int, contexts: Doubles | None, policies: Doubles | None) -> Doubles:
        """Weights (B, M): 1 for the largest prediction. They are equal before any payment."""
        return greedy(self._model.predict(_checked(contexts, rows)), self._model.unit)

    def state_dict(self) -> dict[str, Any]:
        """The model, the counts and the generator."""
        return {
            "model": self._model.state_dict(),
            "range": [float(self._least), float(self._most)],
            "pulls": self._pulls.tolist(),
            "pending": self._pending.counts.tolist(),
            "generator": generator_state(self._generator),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._model.load_state_dict(state["model"])
        self._least, self._most = map(float, state["range"])
        self._pulls = np.array(state["pulls"], dtype=np.int64)
        self._pending.counts = np.array(state["pending"], dtype=np.float64)
        load_generator_state(self._generator, state["generator"])


def _checked(contexts: Doubles | None, rows: int) -> Doubles:
    if contexts is None or len(contexts) != rows:
        raise ValueError("a contextual chooser takes a context for each row")
    check_finite(contexts, "a number in the context")
    return contexts


def exploring(model: Model, start: float, end: float, pulls: int) -> Drive:
    """The largest prediction, or with probability epsilon any arm.

    Args:
        model: that predicts.
        start: epsilon during the first `pulls` payments; it falls in inverse proportion to their number from there on.
        end: epsilon is at least this.
        pulls: payments.
    """

    def drive(contexts: Doubles, counts: Doubles, pending: Doubles) -> Doubles:
        return explored(greedy(model.predict(contexts), model.unit), falling(start, end, pulls, counts.sum()))

    return drive


def upper_bounds(model: Model, c: float) -> Drive:
    """The largest prediction plus c standard deviations, which shrink as choices of the arm are pending."""

    def drive(contexts: Doubles, counts: Doubles, pending: Doubles) -> Doubles:
        means, deviations, pending = model.predict(contexts), c * model.deviations(contexts), pending.copy()
        chances = np.zeros_like(means)
        for row in range(len(means)):
            chances[row] = greedy(means[row] + deviations[row] * np.sqrt(counts / (counts + pending)), model.unit)
            pending += chances[row]
        return chances

    return drive


def ridge(
    arms: int,
    contexts: int,
    generator: np.random.Generator,
    *,
    start: float = 1.0,
    end: float = 0.0,
    pulls: int | None = None,
    penalty: float = 0.5,
    forget: float = 0.0,
) -> Contextual:
    """A ridge regression of the payment on the context for each arm; with probability epsilon any arm is chosen.

    Args:
        arms: M.
        contexts: C.
        generator: of the draws.
        start: epsilon during the first `pulls` payments; it falls in inverse proportion to their number from there on.
        end: epsilon is at least this.
        pulls: payments; None is 5 an arm.
        penalty: of the squared weights of standardized contexts, times C.
        forget: the share of all earlier payments that is forgotten with each payment.
    """
    model = Ridge(arms, contexts, penalty, forget)
    return Contextual(model, exploring(model, start, end, 5 * arms if pulls is None else pulls), arms, generator)


def network(
    arms: int,
    contexts: int,
    generator: np.random.Generator,
    *,
    start: float = 1.0,
    end: float = 0.0,
    pulls: int | None = None,
    hidden: int = 32,
    rate: float = 0.003,
    memory: int = 4096,
) -> Contextual:
    """A small network that predicts the payment of each arm; with probability epsilon any arm is chosen.

    Args:
        arms: M.
        contexts: C.
        generator: of first weights and draws.
        start: epsilon during the first `pulls` payments; it falls in inverse proportion to their number from there on.
        end: epsilon is at least this.
        pulls: payments; None is 5 an arm.
        hidden: units.
        rate: the learning rate, of Adam.
        memory: payments that the network is fitted to, the last ones.
    """
    model = Network(arms, contexts, generator, hidden, 1, rate, memory)
    return Contextual(model, exploring(model, start, end, 5 * arms if pulls is None else pulls), arms, generator)


def linucb(
    arms: int,
    contexts: int,
    generator: np.random.Generator,
    *,
    alpha: float = 2.0,
    penalty: float = 0.5,
    forget: float = 0.0,
) -> Contextual:
    """The largest upper bound of a ridge regression for each arm; Li et al. 2010, arXiv 1003.0146, algorithm 1.

    Args:
        arms: M.
        contexts: C.
        generator: of ties.
        alpha: standard deviations of the prediction above it, the noise being estimated.
        penalty: as of `ridge`.
        forget: as of `ridge`.
    """
    model = Ridge(arms, contexts, penalty, forget)
    return Contextual(model, upper_bounds(model, alpha), arms, generator)


def policy_values(
    choice: Choice, payments: Doubles, chances: Doubles, *, predictions: Doubles | None = None, clip: float = np.inf
) -> Doubles:
    """Terms (N,) whose mean estimates what another policy would have been paid; Dudik et al. 2011, arXiv 1103.4601, equation 1.

    Args:
        choice: of the policy that was paid, with its probabilities.
        payments: (N,).
        chances: (N, M), the probabilities of the other policy.
        predictions: (N, M), of the payments, made without them: the doubly robust estimate. None is importance weighting.
        clip: the largest weight 1 / p; a finite one trades bias for variance.
    """
    rows = np.arange(len(payments))
    model = np.zeros_like(chances) if predictions is None else predictions
    weights = chances[rows, choice.arms] * np.minimum(1 / choice.probabilities, clip)
    return np.asarray((chances * model).sum(axis=1) + weights * (payments - model[rows, choice.arms]))


_BATCH = 64
_PER_STEP = 8
"""Payments of one call for each step of Adam; a call makes one step at least."""


class Classifier:
    """A linear classifier of contexts, whose classes are the arms: importance-weighted classification.

    An arm that was paid z (in units of the spread, from the mean) with probability p counts z / p, and the others count 0. Doubly
    robust, each counts its predicted payment, and this arm adds the prediction's error / p. These counts, less the least of them,
    weight the classes in a softmax regression, which so tends to the arm with the largest expectation.

    Args:
        arms: M.
        contexts: C.
        generator: of the draws.
        clip: the largest weight 1 / p.
        doubly_robust: whether a ridge regression predicts the payments.
        rate: of Adam.
    """

    of_payments = False
    unit = 1.0

    def __init__(
        self, arms: int, contexts: int, generator: np.random.Generator, clip: float, doubly_robust: bool, rate: float
    ) -> None:
        self._generator, self._clip = generator, clip
        self._layers = Layers((contexts, 0, arms), 1, rate, generator)
        self._rows, self._scaling, self._paid = Rows(contexts, 4096), Scaling(contexts), Weighted(arms)
        self._regression = Ridge(arms, contexts) if doubly_robust else None

    @property
    def estimates(self) -> Doubles:
        """(M,): what each arm is paid, by its payments weighted with 1 / their probabilities."""
        return self._paid.weighted_means

    def predict(self, contexts: Doubles) -> Doubles:
        """Scores (R, M) of the classes, NaN for arms that were never paid."""
        return np.where(self._paid.counts > 0, self._layers(self._scaling(contexts))[0], np.nan)

    def deviations(self, contexts: Doubles) -> Doubles:
        """The classifier has none."""
        return np.zeros((len(contexts), len(self._paid.counts)))

    def learn(self, choice: Choice, payments: Doubles, contexts: Doubles) -> None:
        """Takes payments, and makes some steps."""
        self._scaling.add(contexts)
        self._rows.add(choice, payments, contexts, self._generator)
        for arm, probability, payment in zip(*(part.tolist() for part in (*choice, payments)), strict=True):
            self._paid.add(arm, payment, probability)
        if self._regression is not None:
            self._regression.learn(choice, payments, contexts)
        for _ in range(max(1, len(payments) // _PER_STEP)):
            self._step()

    def _step(self) -> None:
        choice, payments, contexts, _ = self._rows[self._rows.drawn(_BATCH, self._generator)]
        weights = self._worth(choice, payments, contexts)
        weights -= weights.min(axis=1, keepdims=True)

        def slopes(outputs: Doubles) -> Doubles:
            classes = np.exp(outputs - outputs.max(axis=2, keepdims=True))
            classes /= classes.sum(axis=2, keepdims=True)
            return np.asarray((classes * weights.sum(axis=1, keepdims=True) - weights) / len(weights))

        self._layers.step(self._scaling(contexts), slopes)

    def _worth(self, choice: Choice, payments: Doubles, contexts: Doubles) -> Doubles:
        """(N, M): unbiased estimates of what each arm would have been paid, in units of the spread."""
        centre, spread = self._paid.moments.centre, max(self._paid.moments.spread, 1e-300)
        rows = np.arange(len(payments))
        worth = np.zeros((len(payments), len(self._paid.counts)))
        if self._regression is not None:
            worth = np.nan_to_num((self._regression.predict(contexts) - centre) / spread)
        errors = (payments - centre) / spread - worth[rows, choice.arms]
        worth[rows, choice.arms] += errors * np.minimum(1 / choice.probabilities, self._clip)
        return worth

    def state_dict(self) -> dict[str, Any]:
        """Weights, rows, running figures, the regression and the generator."""
        return {
            "layers": self._layers.state_dict(),
            "rows": self._rows.state_dict(),
            "scaling": self._scaling.state_dict(),
            "paid": self._paid.state_dict(),
            "regression": None if self._regression is None else self._regression.state_dict(),
            "generator": generator_state(self._generator),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._layers.load_state_dict(state["layers"])
        self._rows.load_state_dict(state["rows"])
        self._scaling.load_state_dict(state["scaling"])
        self._paid.load_state_dict(state["paid"])
        if self._regression is not None:
            self._regression.load_state_dict(state["regression"])
        load_generator_state(self._generator, state["generator"])


def iwc(
    arms: int,
    contexts: int,
    generator: np.random.Generator,
    *,
    start: float = 1.0,
    end: float = 0.0,
    pulls: int | None = None,
    clip: float = 20.0,
    doubly_robust: bool = False,
    rate: float = 0.003,
) -> Contextual:
    """Importance-weighted classification of contexts, weights r / p; Dudik et al. 2011, arXiv 1103.4601, sections 2 and 3.

    Args:
        arms: M.
        contexts: C.
        generator: of the draws.
        start: epsilon during the first `pulls` payments; it falls in inverse proportion to their number from there on.
        end: epsilon is at least this.
        pulls: payments; None is 20 an arm.
        clip: the largest weight 1 / p.
        doubly_robust: whether a ridge regression of the payments takes the variance out of the weights.
        rate: the learning rate, of Adam.
    """
    model = Classifier(arms, contexts, generator, clip, doubly_robust, rate)
    drive = exploring(model, start, end, 20 * arms if pulls is None else pulls)
    # No arm comes first: its probability would be 0 or 1 whatever the context, and no weight makes up for that.
    return Contextual(model, drive, arms, generator, begin=False)
