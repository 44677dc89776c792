"""Tests of the interval and mean functions, against numbers worked out by hand and SciPy's bootstrap."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from rldistill.stats import (
    bootstrap_interval,
    bootstrap_ratio_interval,
    interquartile_mean,
    normalized_score,
    summarize,
    with_interval,
)
from rldistill.types import UserError

RETURNS = np.array([18.0, 21.0, 15.0, 20.0, 17.0, 21.0, 12.0, 19.0])
finite = st.lists(st.floats(-1000, 1000), min_size=1, max_size=20)


def test_interquartile_mean_leaves_out_two_of_eight_at_each_end() -> None:
    assert interquartile_mean([100, 1, 2, 3, 4, 5, 6, -100]) == (2 + 3 + 4 + 5) / 4


def test_interquartile_mean_of_three_values_leaves_none_out() -> None:
    assert interquartile_mean([0, 3, 9]) == 4


@given(finite)
def test_interquartile_mean_is_scipys_trimmed_mean(values: list[float]) -> None:
    assert interquartile_mean(values) == pytest.approx(float(scipy_stats.trim_mean(values, 0.25)), abs=1e-9)


def test_bootstrap_interval_agrees_with_scipys() -> None:
    expected = scipy_stats.bootstrap(
        (RETURNS,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    low, high = bootstrap_interval([RETURNS], seed=0, resamples=20_000)
    assert low == pytest.approx(expected.low, abs=0.1)
    assert high == pytest.approx(expected.high, abs=0.1)


def test_strata_are_resampled_within_themselves() -> None:
    # Mixed, the mean would vary between 0 and 1; kept apart, it cannot.
    assert bootstrap_interval([[0.0, 0.0, 0.0], [1.0]], seed=0) == (0.5, 0.5)


def test_ratio_interval_by_a_constant_is_the_interval_of_the_mean_scaled() -> None:
    low, high = bootstrap_interval([RETURNS], seed=3)
    ratio_low, ratio_high = bootstrap_ratio_interval(RETURNS, [20.0], zero=-20.0, seed=3)
    assert ratio_low == pytest.approx((low + 20) / 40)
    assert ratio_high == pytest.approx((high + 20) / 40)


def test_ratio_interval_covers_the_uncertainty_of_the_reference() -> None:
    low, high = bootstrap_ratio_interval([10.0], [8.0, 12.0], seed=0)
    assert low == pytest.approx(10 / 12)
    assert high == pytest.approx(10 / 8)


def test_ratio_interval_has_no_bounds_where_the_reference_may_be_zero() -> None:
    assert all(math.isnan(bound) for bound in bootstrap_ratio_interval([1.0], [-1.0, 1.0], seed=0))


@pytest.mark.parametrize("empty", [([], [1.0]), ([1.0], [])])
def test_ratio_interval_of_nothing_is_refused(empty: tuple[list[float], list[float]]) -> None:
    with pytest.raises(UserError, match="at least one value"):
        bootstrap_ratio_interval(*empty, seed=0)


@pytest.mark.parametrize("strata", [[], [[1.0], []]])
def test_interval_of_nothing_is_refused(strata: list[list[float]]) -> None:
    with pytest.raises(UserError, match="at least one value"):
        bootstrap_interval(strata, seed=0)


@given(finite)
def test_interval_lies_within_the_values_and_follows_from_the_seed(values: list[float]) -> None:
    low, high = bootstrap_interval([values], seed=5, resamples=200)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    assert (low, high) == bootstrap_interval([values], seed=5, resamples=200)


def test_summary_holds_mean_and_interval_of_the_same_values() -> None:
    summary = summarize(RETURNS, seed=0)
    assert summary.mean == 143 / 8
    assert summary.iqm == (17 + 18 + 19 + 20) / 4
    assert summary.ci_low < summary.mean < summary.ci_high


def test_normalized_score_is_0_at_random_and_1_at_the_reference() -> None:
    assert normalized_score(-20.7, -20.7, 19.3) == 0
    assert normalized_score(19.3, -20.7, 19.3) == 1
    assert normalized_score(-0.7, -20.7, 19.3) == pytest.approx(0.5)
    assert math.isnan(normalized_score(1, 2, 2))


@pytest.mark.parametrize(
    ("mean", "low", "high", "text"),
    [
        (12.34, 11.0, 13.6, "12.3 [11.0, 13.6]"),
        (1234.5, 900.0, 1500.0, "1234.5 [900.0, 1500.0]"),
        (19.93, 19.61, 20.24, "19.9 [19.6, 20.2]"),
        (0.00421, 0.00312, 0.00513, "0.0042 [0.0031, 0.0051]"),
        (-0.5, -0.512, -0.488, "-0.500 [-0.512, -0.488]"),
        (500.0, 500.0, 500.0, "500.0 [500.0, 500.0]"),
        (0.0042, math.nan, math.nan, "0.0042"),
        (0.25, None, None, "0.25"),
        (0.0, None, None, "0.0"),
    ],
)
def test_a_mean_keeps_the_digits_that_its_interval_gives_a_meaning(
    mean: float, low: float | None, high: float | None, text: str
) -> None:
    """Rewards of thousandths are no zeros."""
    assert with_interval(mean, low, high) == text
