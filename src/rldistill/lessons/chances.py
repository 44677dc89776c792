"""Probabilities of the arms for the next choice, and the choices that are not paid yet: what all choosers share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rldistill.lessons.selection import Choice, Doubles, Ints
from rldistill.types import UserError

_SAME = 1e-9
"""Units of the spread within which two arms are equally good, since rounding must not decide."""
_ROUNDED = 1e-13
"""Shares of the largest value, likewise, where all payments are equal and have no spread."""
_PATIENCE = 10
"""Choices fade by 1 / e while this many times as many payments of others come as choices are pending."""


def check_finite(values: Doubles, what: str) -> None:
    """Raises UserError where a value is NaN or infinite: a chooser would choose at random from there on."""
    if not np.isfinite(values).all():
        wrong = values[~np.isfinite(values)][0]
        raise UserError(f"{what} of a teacher's choice is {wrong}: choosers take finite numbers alone")


class Pending:
    """Choices that are not paid yet, by arm. They fade while payments of others come, since some are never paid.

    Args:
        arms: M.
    """

    def __init__(self, arms: int) -> None:
        self.counts: Doubles = np.zeros(arms)

    def paid(self, arm: int) -> None:
        """Takes a choice of this arm out, and lets the others fade."""
        self.counts[arm] = max(self.counts[arm] - 1, 0.0)
        total = float(self.counts.sum())
        if total > 0:
            self.counts *= 1 - 1 / (_PATIENCE * max(total, 1.0))


def choose_rows(
    rows: int,
    counts: Doubles,
    pending: Pending,
    generator: np.random.Generator,
    rest: Callable[[int], Doubles],
    begin: bool = True,
) -> Choice:
    """The choices of a call: first the arms that have no payment yet, then by a rule.

    Arms that wait for a first choice are chosen in random order. Where all were chosen and none is paid, the arms that are pending
    least are chosen.

    Args:
        rows: R.
        counts: (M,), the payments of each arm.
        pending: the unpaid choices; takes these.
        generator: of the draws.
        rest: the rule: from the number of a row to the probabilities (K, M) of that row and the K - 1 after it.
        begin: whether every arm is chosen before the rule is asked.
    """
    choice = Choice(np.zeros(rows, dtype=np.int64), np.ones(rows))
    beginning, row = begin and not counts.all(), 0
    while row < rows:
        chances = _first(counts, pending.counts) if beginning else None
        if chances is None:
            chances, beginning = rest(row), False
        end = row + len(chances)
        choice.arms[row:end], choice.probabilities[row:end] = drawn(chances, generator)
        for arm in choice.arms[row:end].tolist():
            pending.counts[arm] += 1
        row = end
    return choice


def _first(counts: Doubles, pending: Doubles) -> Doubles | None:
    """Probabilities (1, M) of the arms that wait; None where every arm was chosen and some are paid."""
    waits = (counts == 0) & (pending < 0.5)
    if not waits.any():
        if counts.any():
            return None
        waits = pending <= pending.min() + 0.5
    return np.asarray(waits / waits.sum())[None]


def drawn(chances: Doubles, generator: np.random.Generator) -> tuple[Ints, Doubles]:
    """An arm for each row, that is drawn with the row's probabilities (K, M), and the probabilities of these arms (K,).

    Rows whose arm is certain cost no random number.
    """
    rows = np.arange(len(chances))
    arms = chances.argmax(axis=1)
    (open_rows,) = np.nonzero(chances[rows, arms] < 1)
    if len(open_rows):
        up_to = chances[open_rows].cumsum(axis=1)
        arms[open_rows] = (up_to <= (generator.random(len(open_rows)) * up_to[:, -1])[:, None]).sum(axis=1)
    return arms, chances[rows, arms]


def greedy(values: Doubles, unit: float = 1.0) -> Doubles:
    """Probabilities (..., M): 1 for the largest value, shared by equal ones; NaN has none, unless all are.

    Args:
        values: (..., M).
        unit: the spread that they are measured by.
    """
    top = np.fmax.reduce(values, axis=-1, keepdims=True)
    best = (values >= top - _SAME * unit - _ROUNDED * np.abs(top)) | np.isnan(top)
    return np.asarray(best / best.sum(axis=-1, keepdims=True))


def explored(chances: Doubles, epsilon: float) -> Doubles:
    """Probabilities (..., M) of a choice that is uniformly random with probability epsilon."""
    return np.asarray(epsilon / chances.shape[-1] + (1 - epsilon) * chances)


def falling(start: float, end: float, pulls: float, done: float) -> float:
    """The exploration after `done` payments: `start` for the first `pulls`, then falling as `1 / done`, at least `end`."""
    return max(end, start * min(1.0, pulls / max(done, 1.0)))
