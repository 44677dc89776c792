"""How steady scores are: figures of a curve, and the differences between a student and its learner."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rldistill.stats import normalized_score


class Steadiness(NamedTuple):
    """Figures of one curve, on the scale on which random play is 0 and the learner's best evaluation is 1."""

    mean: float
    """Mean of the last half."""
    deviation: float
    """Standard deviation of the last half; NaN of fewer than two evaluations."""
    change: float
    """Root mean square change between neighbouring evaluations of the last half. Unlike the deviation it hardly grows with a curve
    that rises steadily."""
    worst_drop: float
    """The most by which an evaluation of the last half is below the best one before it, of the whole run; 0 where none is."""
    below: float
    """Share of the evaluations of the last half that are below 90 % of the best one before them."""


def steadiness(scores: Sequence[float], random: float, top: float) -> Steadiness:
    """Figures of a curve of mean returns.

    Args:
        scores: at evenly spaced places of a run.
        random: the return that becomes 0.
        top: the return that becomes 1, above `random`.
    """
    if not scores:
        return Steadiness(*[math.nan] * len(Steadiness._fields))
    values = np.array([normalized_score(score, random, top) for score in scores])
    best = np.maximum.accumulate(values)
    # Learning itself moves the first half.
    last = slice(len(values) // 2, None)
    deviation = float(values[last].std(ddof=1)) if len(values[last]) > 1 else math.nan
    change = float(np.sqrt(np.square(np.diff(values[last])).mean())) if len(values[last]) > 1 else math.nan
    below = (values < 0.9 * best)[last]
    worst_drop = float((best - values)[last].max())
    return Steadiness(float(values[last].mean()), deviation, change, worst_drop, float(below.mean()))


class Difference(NamedTuple):
    """A figure of the student less that of its learner, the mean over runs, with its 95 % interval."""

    mean: float
    low: float
    high: float


def differences_over_runs(
    runs: Sequence[Mapping[str, Steadiness]],
    games: Sequence[str] | None = None,
    *,
    seed: int = 0,
    resamples: int = 10_000,
) -> dict[str, Difference]:
    """Student less learner in each figure, the mean over games of the means over runs.

    Runs are resampled with both their curves together, within each game. A game with a single run has no interval.

    Args:
        runs: the figures of `student` and `learner` of each.
        games: of the runs, in the same order; None takes all runs for one game's.
        seed: of the resampling.
        resamples: how many.
    """
    names = np.array(["" for _ in runs] if games is None else list(games))
    groups = [np.flatnonzero(names == name) for name in np.unique(names)]
    generator = np.random.default_rng(seed)
    chosen = [group[generator.integers(len(group), size=(resamples, len(group)))] for group in groups]
    differences = {}
    for name in Steadiness._fields:
        own = np.array([getattr(run["student"], name) - getattr(run["learner"], name) for run in runs])
        mean = float(np.mean([own[group].mean() for group in groups]))
        resampled = np.mean([own[places].mean(axis=1) for places in chosen], axis=0)
        alone = min(map(len, groups)) < 2
        low, high = (math.nan, math.nan) if alone else np.quantile(resampled, [0.025, 0.975])
        differences[name] = Difference(mean, float(low), float(high))
    return differences
