"""Numbers with their uncertainty: interquartile means and bootstrap intervals (Agarwal et al., arXiv 2108.13264)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rldistill.types import UserError


class Summary(NamedTuple):
    """Of a policy's episode returns."""

    mean: float
    iqm: float
    """Mean of the middle half."""
    ci_low: float
    ci_high: float
    """95 % percentile bootstrap interval of the mean."""


def interquartile_mean(values: npt.ArrayLike) -> float:
    """Mean of the middle half: the lowest and the highest quarter (rounded down to whole values) are left out."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    left_out = len(ordered) // 4
    return float(ordered[left_out : len(ordered) - left_out].mean())


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
        values = np.asarray(stratum, dtype=np.float64)
        total += values[generator.integers(len(values), size=(resamples, len(values)))].mean(axis=1)
    low, high = np.quantile(total / len(strata), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def summarize(returns: npt.ArrayLike, *, seed: int) -> Summary:
    """Mean, interquartile mean and 95 % bootstrap interval of the mean."""
    values = np.asarray(returns, dtype=np.float64)
    low, high = bootstrap_interval([values], seed=seed)
    return Summary(float(values.mean()), interquartile_mean(values), low, high)


def normalized_score(score: float, random: float, reference: float) -> float:
    """0 is random play, 1 the reference's play: (score - random) / (reference - random); NaN if those are equal."""
    return (score - random) / (reference - random) if reference != random else float("nan")


def bootstrap_ratio_interval(
    values: npt.ArrayLike,
    reference: npt.ArrayLike,
    *,
    zero: float = 0.0,
    seed: int,
    resamples: int = 10_000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of `(mean(values) - zero) / (mean(reference) - zero)`, each resampled by itself.

    With `zero` the score of random play it is the interval of a normalized score; that score itself counts as exact.

    Returns:
        Low and high; NaN both where a resampled reference is not above `zero`, because the ratio then has no bounds.

    Raises:
        UserError: there is no value.
    """
    above, below = np.asarray(values, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if not above.size or not below.size:
        raise UserError("an interval needs at least one value in each group")
    generator = np.random.default_rng(seed)
    numerators = above[generator.integers(len(above), size=(resamples, len(above)))].mean(axis=1) - zero
    denominators = below[generator.integers(len(below), size=(resamples, len(below)))].mean(axis=1) - zero
    if denominators.min() <= 0:
        return float("nan"), float("nan")
    low, high = np.quantile(numerators / denominators, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
