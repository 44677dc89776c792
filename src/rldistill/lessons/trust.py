"""Where each of several teachers is trusted: what a contextual chooser has learnt, by places that can be drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rldistill.lessons.payments import restored
from rldistill.lessons.selection import Doubles

ROWS = 2_000
"""Recent states that the shares are taken over."""
MOST_BINS = 10


class Shares(NamedTuple):
    """Shares of M teachers along one number of a state."""

    name: str
    places: list[float]
    """(B,): the mean of the number in each bin."""
    shares: list[list[float]]
    """(B, M): the share of each teacher; each bin sums to 1."""


class TrustMap:
    """Keeps where the recent samples lay, and how much each teacher counted there.

    Args:
        names: of the numbers that say where a state lies.
        arms: M.
    """

    def __init__(self, names: Sequence[str], arms: int) -> None:
        self.names = tuple(names)
        self._where, self._weights = np.zeros((ROWS, len(names))), np.zeros((ROWS, arms))
        self._added = 0

    def add(self, where: Doubles, weights: Doubles) -> None:
        """Takes samples at places (B, D) with the weights (B, M) of their teachers."""
        at = (self._added + np.arange(len(where))) % ROWS
        self._where[at], self._weights[at] = where, weights
        self._added += len(where)

    def shares(self) -> list[Shares]:
        """The shares along each number, in bins of about equally many samples; none before any sample."""
        number = min(self._added, ROWS)
        weights = self._weights[:number]
        return (
            []
            if not number
            else [_along(name, self._where[:number, place], weights) for place, name in enumerate(self.names)]
        )

    def state_dict(self) -> dict[str, Any]:
        """The recent samples."""
        return {"where": self._where.copy(), "weights": self._weights.copy(), "added": self._added}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._where, self._weights = restored(state["where"]), restored(state["weights"])
        self._added = int(state["added"])

    def pictures(self) -> Doubles:
        """(M, D): the mean place of the samples of each teacher, which is a picture where places are pixels; NaN of a teacher that
        is not trusted anywhere."""
        number = min(self._added, ROWS)
        weights = self._weights[:number]
        with np.errstate(invalid="ignore"):
            return np.asarray((weights.T @ self._where[:number]) / weights.sum(axis=0)[:, None])


def _along(name: str, where: Doubles, weights: Doubles) -> Shares:
    inner = np.unique(np.quantile(where, np.linspace(0, 1, MOST_BINS + 1)[1:-1]))
    bins = np.searchsorted(inner, where, side="left")
    places, shares = [], []
    for bin_ in np.unique(bins).tolist():
        own = bins == bin_
        places.append(float(where[own].mean()))
        shares.append(weights[own].mean(axis=0).tolist())
    return Shares(name, places, shares)
