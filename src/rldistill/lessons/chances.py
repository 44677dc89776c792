"""Probabilities of the arms for the next choice, and the choices that are not paid yet: what all choosers share."""

from __future__ import annotations

import math

import numpy as np

from rldistill.lessons.selection import Doubles, Ints

_SAME = 1e-9
"""Units of the spread within which two arms are equally good, since rounding must not decide."""
_PATIENCE = 10
"""Choices fade by 1 / e while this many times as many payments of others come as choices are pending."""


class Pending:
    """Choices that are not paid yet, by arm. They fade while payments of others come, since some are never paid.

    Args:
        arms: M.
    """

    def __init__(self, arms: int) -> None:
        self.counts: Doubles = np.zeros(arms)

    def add(self, arm: int) -> None:
        """Counts a choice."""
        self.counts[arm] += 1

    def paid(self, arm: int) -> None:
        """Takes a choice of this arm out, and lets the others fade."""
        self.counts[arm] = max(self.counts[arm] - 1, 0.0)
        total = float(self.counts.sum())
        if total > 0:
            self.counts *= 1 - 1 / (_PATIENCE * max(total, 1.0))


def first_choices(counts: Doubles, pending: Doubles) -> Doubles | None:
    """Probabilities (M,) while some arm has no payment yet: uniform over the arms that wait for a first choice.

    None where every arm was chosen, and some were paid. Where none is paid yet, the arms that are pending least are chosen.

    Args:
        counts: (M,), the payments of each arm.
        pending: (M,), the unpaid choices of each arm.
    """
    waits = (counts == 0) & (pending < 0.5)
    if not waits.any():
        if counts.any():
            return None
        waits = pending <= pending.min() + 0.5
    return np.asarray(waits / waits.sum())


def greedy(values: Doubles) -> Doubles:
    """Probabilities (..., M): 1 for the largest value, shared by equal ones. NaN is no candidate."""
    values = np.where(np.isnan(values), -np.inf, values)
    best = values >= values.max(axis=-1, keepdims=True) - _SAME
    return np.asarray(best / best.sum(axis=-1, keepdims=True))


def explored(chances: Doubles, epsilon: float) -> Doubles:
    """Probabilities (..., M) of a choice that is uniformly random with probability epsilon."""
    return np.asarray(epsilon / chances.shape[-1] + (1 - epsilon) * chances)


def falling(start: float, end: float, pulls: float, done: float, power: float = 1.0) -> float:
    """The exploration after `done` payments: `start` for the first `pulls`, then falling as `done ** -power`, at least `end`."""
    return max(end, start * math.pow(min(1.0, pulls / max(done, 1.0)), power))


def drawn(chances: Doubles, generator: np.random.Generator) -> tuple[int, float]:
    """An arm that is drawn with these probabilities (M,), and its probability. A certain one costs no random number."""
    arm = int(chances.argmax())
    if chances[arm] < 1:
        up_to = chances.cumsum()
        arm = int(np.searchsorted(up_to, generator.random() * up_to[-1], side="right"))
    return arm, float(chances[arm])


def drawn_rows(chances: Doubles, generator: np.random.Generator) -> tuple[Ints, Doubles]:
    """An arm for each row, that is drawn with the row's probabilities (R, M), and the probabilities of these arms (R,)."""
    up_to = chances.cumsum(axis=1)
    draws = generator.random(len(chances)) * up_to[:, -1]
    arms = (up_to <= draws[:, None]).sum(axis=1)
    return arms, chances[np.arange(len(arms)), arms]
