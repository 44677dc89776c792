"""The bootstrap of a study: runs, the games of runs, and the teachers' games are drawn anew."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from rldistill.runs.studies.outcomes import Outcome
from rldistill.stats import Array

Choice: TypeAlias = npt.NDArray[np.intp]
"""(B, S): for each of B resamples which of S runs is drawn."""


class Scores(NamedTuple):
    """Of S runs that share a game and a teacher, in B resamples; each field is (B, S)."""

    means: Array
    """Mean returns of the students."""
    levels: Array
    """Mean returns of their teachers."""
    random: Array
    """Mean returns of random play."""

    @property
    def normalized(self) -> Array:
        """0 is random play, 1 is the teacher's play."""
        return (self.means - self.random) / (self.levels - self.random)

    @property
    def ratios(self) -> Array:
        """To the teacher's mean return."""
        return self.means / self.levels

    @property
    def above_random(self) -> bool:
        """Whether the teacher is above random play in each resample, so that a normalized score exists."""
        return bool((self.levels > self.random).all())

    @property
    def above_zero(self) -> bool:
        """Whether the teacher is above 0 in each resample, so that a ratio exists."""
        return bool((self.levels > 0).all())


def measured(runs: Sequence[Outcome]) -> Scores:
    """The scores as they are: one row, nothing drawn."""
    # Sorted, so that equal games in another order have the same mean to the last bit, and are a tie.
    columns = [
        [np.mean(np.sort(run.returns)) for run in runs],
        [np.mean(np.sort(run.teacher_returns)) for run in runs],
        [run.random_score for run in runs],
    ]
    return Scores(*(np.array([column], dtype=np.float64) for column in columns))


class Bootstrap:
    """Draws resamples. The same outcomes give the same ones, whatever else is asked for and in whatever order.

    Args:
        resamples: how many.
    """

    def __init__(self, resamples: int) -> None:
        self.resamples = resamples
        self._levels: dict[Hashable, Array] = {}
        self._drawn: dict[Hashable, Scores] = {}

    def draw(self, runs: Sequence[Outcome], *, games: bool = True, paired: bool = True) -> Scores:
        """Runs of one setting, game and teacher: as many are drawn as there are, then games within each.

        Args:
            runs: what to draw from.
            games: whether games are drawn within runs. A single run always has its games drawn.
            paired: whether settings with the same seeds get the same draws of seeds, as differences seed by seed need them.
                Where all runs of one setting are compared with all of another, the draws are independent. Equal ones would
                compare runs of one seed too often, and make intervals too narrow.
        """
        games = games or len(runs) == 1
        seeds = tuple(run.seed for run in runs)
        key = (runs[0].setting, *runs[0].pair, seeds)
        if (key, games, paired) not in self._drawn:
            choice = _generator("seeds", *runs[0].pair, seeds) if paired else _generator("own seeds", *key)
            chosen = choice.integers(len(runs), size=(self.resamples, len(runs)))
            if games:
                returns = [np.array(run.returns, dtype=np.float64) for run in runs]
                means = _resampled_games(returns, chosen, _generator("games", *key))
            else:
                means = measured(runs).means[0][chosen]
            levels = np.stack([self._level(run) for run in runs], axis=-1)
            random = np.array([run.random_score for run in runs])
            drawn = Scores(means, np.take_along_axis(levels, chosen, axis=-1), random[chosen])
            self._drawn[key, games, paired] = drawn
        return self._drawn[key, games, paired]

    def _level(self, run: Outcome) -> Array:
        """(B,): means of the teacher's resampled games, the same for all runs with the same games of a teacher."""
        key = (*run.pair, run.teacher_returns)
        if key not in self._levels:
            chosen = np.zeros((self.resamples, 1), dtype=np.intp)
            games = [np.array(run.teacher_returns, dtype=np.float64)]
            self._levels[key] = _resampled_games(games, chosen, _generator("teacher", *key))[:, 0]
        return self._levels[key]


def _resampled_games(returns: Sequence[Array], chosen: Choice, generator: np.random.Generator) -> Array:
    """Means of resampled games of the chosen runs, (B, S)."""
    lengths = np.array([len(games) for games in returns])
    longest = int(lengths.max())
    padded = np.stack([np.pad(games, (0, longest - len(games))) for games in returns])
    size = (*chosen.shape, longest)
    if (lengths == longest).all():  # much faster than limits for each game
        return np.asarray(padded[chosen[..., None], generator.integers(longest, size=size)].mean(axis=-1))
    own = lengths[chosen][..., None]
    drawn = generator.integers(own, size=size)
    values = np.where(np.arange(longest) < own, padded[chosen[..., None], drawn], 0.0)
    return np.asarray(values.sum(axis=-1) / own[..., 0])


def _generator(*key: object) -> np.random.Generator:
    """A generator whose seed follows from what is drawn."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(repr(key).encode(errors="backslashreplace")).digest()))


Statistic: TypeAlias = Callable[[Sequence[Scores]], Array]
"""Scores of all pairs of game and teacher to one figure a resample, (B,)."""
