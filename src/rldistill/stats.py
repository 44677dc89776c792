"""Means and comparisons with their uncertainty: interquartile means, bootstrap intervals, probabilities of improvement and
performance profiles (Agarwal et al. 2021, arXiv 2108.13264)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from rldistill.types import UserError

Array: TypeAlias = npt.NDArray[np.float64]

_MOST_DECIMALS = 12


class Summary(NamedTuple):
    """Of a policy's episode returns."""

    mean: float
    iqm: float
    """Mean of the middle half."""
    ci_low: float
    ci_high: float
    """95 % percentile bootstrap interval of the mean; NaN both where there is only one value, or one distinct game."""


def interquartile_mean(values: npt.ArrayLike) -> float:
    """Mean of the middle half: the lowest and the highest quarter (rounded down to whole values) are left out."""
    return float(interquartile_means(np.asarray(values, dtype=np.float64)))


def interquartile_means(values: Array) -> Array:
    """Interquartile means over the last axis: (..., N) to (...)."""
    ordered = np.sort(values, axis=-1)
    left_out = ordered.shape[-1] // 4
    return np.asarray(ordered[..., left_out : ordered.shape[-1] - left_out].mean(axis=-1))


def probability_of_improvement(first: Sequence[Array], second: Sequence[Array]) -> Array:
    """How probable it is that a run of the first kind scores above one of the second: the mean over groups of runs.

    In each group all runs of one kind are compared with all of the other; a tie counts one half.

    Args:
        first: for each group (..., N), a score a run.
        second: the same groups, (..., M).

    Returns:
        (...).
    """
    shares = []
    for own, other in zip(first, second, strict=True):
        mine, yours = own[..., :, None], other[..., None, :]
        shares.append(((mine > yours) + 0.5 * (mine == yours)).mean(axis=(-2, -1)))
    return np.asarray(np.mean(shares, axis=0))


def performance_profile(scores: Array, thresholds: Array) -> Array:
    """Which share of the scores is above each threshold: (..., N) and (T,) to (..., T)."""
    return np.stack([(scores > threshold).mean(axis=-1) for threshold in thresholds], axis=-1)


def bootstrap_interval(
    strata: Sequence[npt.ArrayLike], *, seed: int, resamples: int = 10_000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of the strata's means, each stratum resampled within itself.

    Args:
        strata: one array of values for each game (or seed): what must not be mixed while resampling.
        seed: of the resampling.
        resamples: how many.
        level: of confidence.

    Raises:
        UserError: there is no value.
    """
    if not strata or any(np.size(values) == 0 for values in strata):
        raise UserError("an interval needs at least one value in each group")
    generator = np.random.default_rng(seed)
    total = np.zeros(resamples)
    for stratum in strata:
        total += _resampled_means(_sample(stratum, None), generator, resamples)
    low, high = np.quantile(total / len(strata), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def summarize(returns: npt.ArrayLike, *, seed: int, games: Sequence[Hashable] | None = None) -> Summary:
    """Mean, interquartile mean and 95 % bootstrap interval of the mean.

    Mean and interquartile mean are of all games. The interval resamples distinct games, each with as much weight as it has
    occurrences (a cluster bootstrap): a game that is played twice, from the same start by the same actions, adds no information.

    Args:
        returns: one value a game.
        seed: of the resampling.
        games: what tells the games apart, one item a game; None takes all of them for distinct.
    """
    values = np.asarray(returns, dtype=np.float64)
    low, high = math.nan, math.nan
    sample = _sample(values, games)
    if len(sample.values) > 1:
        means = _resampled_means(sample, np.random.default_rng(seed), 10_000)
        low, high = (float(bound) for bound in np.quantile(means, [0.025, 0.975]))
    return Summary(float(values.mean()), interquartile_mean(values), low, high)


class _Sample(NamedTuple):
    """What is resampled, each (D,)."""

    values: Array
    weights: Array


def _sample(values: npt.ArrayLike, games: Sequence[Hashable] | None) -> _Sample:
    """The distinct games' values in the order of their first occurrence, and how often each occurs."""
    every = np.asarray(values, dtype=np.float64)
    if games is None:
        return _Sample(every, np.ones(len(every)))
    places: dict[Hashable, list[int]] = {}
    for place, game in enumerate(games):
        places.setdefault(game, []).append(place)
    first = [same[0] for same in places.values()]
    return _Sample(every[first], np.array([len(same) for same in places.values()], dtype=np.float64))


def _resampled_means(sample: _Sample, generator: np.random.Generator, resamples: int) -> Array:
    """Weighted means of so many bootstrap samples, (resamples,)."""
    values, weights = sample
    drawn = generator.integers(len(values), size=(resamples, len(values)))
    if (weights == 1).all():
        means: Array = values[drawn].mean(axis=1)
        return means
    heavy = weights[drawn]
    weighted: Array = (values[drawn] * heavy).sum(axis=1) / heavy.sum(axis=1)
    return weighted


def normalized_score(score: float, random: float, reference: float) -> float:
    """0 is random play, 1 the reference's play: (score - random) / (reference - random); NaN if those are equal."""
    return (score - random) / (reference - random) if reference != random else math.nan


def bootstrap_ratio_interval(
    values: npt.ArrayLike,
    reference: npt.ArrayLike,
    *,
    zero: float = 0.0,
    seed: int,
    games: Sequence[Hashable] | None = None,
    reference_games: Sequence[Hashable] | None = None,
    resamples: int = 10_000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of `(mean(values) - zero) / (mean(reference) - zero)`, each resampled by itself.

    With `zero` the score of random play it is the interval of a normalized score; that score itself counts as exact. `games` and
    `reference_games` tell the games apart, as in `summarize`.

    Returns:
        Low and high; NaN both where a resampled reference is not above `zero`, because the ratio then has no bounds, and where
        all of several games are the same one.

    Raises:
        UserError: there is no value.
    """
    if not np.size(values) or not np.size(reference):
        raise UserError("an interval needs at least one value in each group")
    samples = _sample(values, games), _sample(reference, reference_games)
    if any(len(sample.values) == 1 < sample.weights[0] for sample in samples):
        return math.nan, math.nan
    generator = np.random.default_rng(seed)
    numerators, denominators = (_resampled_means(sample, generator, resamples) - zero for sample in samples)
    if denominators.min() <= 0:
        return math.nan, math.nan
    low, high = np.quantile(numerators / denominators, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


class GameReturns(NamedTuple):
    """Returns of full games, and what tells the games apart (see `summarize`)."""

    returns: Array
    games: Sequence[Hashable] | None = None


class Estimate(NamedTuple):
    """A figure with its 95 % bootstrap interval; NaN where there is none."""

    value: float
    low: float
    high: float


def geometric_mean_of_ratios(
    played: Sequence[GameReturns],
    references: Sequence[GameReturns],
    zeros: Sequence[float],
    *,
    seed: int,
    resamples: int = 10_000,
) -> Estimate:
    """The geometric mean over tasks of `(mean - zero) / (reference's mean - zero)`.

    Each task's games and each reference's games are resampled by themselves, so the interval is that of new games on the same
    tasks. A task that is not above its zero makes the geometric mean 0.

    Args:
        played: one item a task.
        references: one item a task, in the same order.
        zeros: the score that counts as 0 in each task: 0 for plain ratios, that of random play for normalized scores.
        seed: of the resampling.
        resamples: how many.

    Returns:
        NaN for all three where a reference is not above its zero; for the bounds also where a resampled reference is not, and
        where all of several games are the same one.
    """
    ratios = [
        normalized_score(float(np.mean(own.returns)), zero, level) if level > zero else math.nan
        for own, zero, level in zip(played, zeros, (float(np.mean(one.returns)) for one in references), strict=True)
    ]
    value = float(geometric_means(np.array(ratios)))
    generator = np.random.default_rng(seed)
    resampled = np.zeros((len(played), resamples))
    for place, (own, reference, zero) in enumerate(zip(played, references, zeros, strict=True)):
        samples = _sample(*own), _sample(*reference)
        if any(len(sample.values) == 1 < sample.weights[0] for sample in samples):
            return Estimate(value, math.nan, math.nan)
        above_zero, level_above = (_resampled_means(sample, generator, resamples) - zero for sample in samples)
        if level_above.min() <= 0:
            return Estimate(value, math.nan, math.nan)
        resampled[place] = above_zero / level_above
    low, high = np.quantile(geometric_means(resampled), [0.025, 0.975])
    return Estimate(value, float(low), float(high))


def geometric_means(ratios: Array) -> Array:
    """Over the first axis; 0 where one is not positive."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.exp(np.log(np.maximum(ratios, 0.0)).mean(axis=0)))


def decimals(mean: float, low: float | None = None, high: float | None = None, *, least: int = 1) -> int:
    """How many decimals a mean is written with, so that rewards of thousandths keep their digits.

    Five steps of the last decimal or more lie in its interval. Without an interval (NaN, None, or no width) a number below 1
    has two significant digits.
    """
    width = 0.0 if low is None or high is None else high - low
    if math.isfinite(width) and width > 0:
        return min(max(least, math.ceil(-math.log10(width / 5))), _MOST_DECIMALS)
    if not math.isfinite(mean) or mean == 0:
        return least
    return min(max(least, 1 - math.floor(math.log10(abs(mean)))), _MOST_DECIMALS)


def figure(value: float, low: float | None = None, high: float | None = None, *, least: int = 1) -> str:
    """`12.3`: a mean, or another number beside it, with the decimals of an interval (see `decimals`)."""
    return f"{value:.{decimals(value, low, high, least=least)}f}"


def interval(low: float | None, high: float | None, *, least: int = 1) -> str:
    """`[11.0, 13.6]`; nothing where there is no interval (NaN or None)."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return ""
    digits = decimals(low, low, high, least=least)
    return f"[{low:.{digits}f}, {high:.{digits}f}]"


def with_interval(mean: float, low: float | None, high: float | None) -> str:
    """`12.3 [11.0, 13.6]`; the mean alone where there is no interval."""
    return f"{figure(mean, low, high)} {interval(low, high)}".rstrip()


def games_in_words(games: int, distinct: int | None) -> str:
    """`30 games`, and how many of them are distinct where they are fewer; `distinct` is None where it is not known."""
    number = f"{games:,} game" + "s" * (games != 1)
    return number if distinct is None or distinct == games else f"{number}, {distinct:,} of them distinct"


def above(mean: float, low: float | None, zero: float) -> bool:
    """Whether a mean lies above a level as far as its interval shows; without an interval (NaN or None) the mean decides."""
    return (mean if low is None or math.isnan(low) else low) > zero
