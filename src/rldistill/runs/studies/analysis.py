"""The statistics of a study: figures of each setting, and comparisons of any two."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import NamedTuple

import numpy as np

from rldistill.runs.studies.outcomes import Outcome, Pair, StudyCard, checked_outcomes
from rldistill.runs.studies.resampling import Bootstrap, Scores, Statistic, measured
from rldistill.stats import (
    Array,
    Estimate,
    geometric_means,
    interquartile_means,
    performance_profile,
    probability_of_improvement,
)

RESAMPLES = 2000
NOTHING = Estimate(math.nan, math.nan, math.nan)
_THRESHOLDS = 101


class Profile(NamedTuple):
    """Share of runs above each threshold of the normalized score, with its pointwise 95 % band; each (T,)."""

    thresholds: Array
    shares: Array
    lows: Array
    highs: Array


@dataclass(frozen=True)
class Setting:
    """Figures of one setting over all its finished cells."""

    label: str
    outcomes: Sequence[Outcome]
    planned: int
    """How many cells the study has of it."""
    normalized: Estimate
    """Interquartile mean of the runs' normalized scores."""
    ratio: Estimate
    """Interquartile mean of the runs' ratios to the teacher."""
    geometric: Estimate
    """Geometric mean of the ratios of games and teachers."""
    profile: Profile | None


class Comparison(NamedTuple):
    """Of two settings, on the cells that both have."""

    cells: int
    improvement: Estimate
    """How probable it is that a run of the first scores above one of the second."""
    difference: Estimate
    """Interquartile mean of the differences of normalized scores, cell by cell."""


@dataclass(frozen=True)
class Analysis:
    """All that tables, plots and pages of a study show."""

    study: StudyCard
    outcomes: Sequence[Outcome]
    settings: Sequence[Setting]
    comparisons: Mapping[tuple[str, str], Comparison]
    """By the labels of two different settings, both ways round."""
    without_scale: frozenset[Pair]
    """Games whose teacher is not above random play: they count in no normalized score and in no comparison."""
    without_ratio: frozenset[Pair]
    """Games whose teacher's mean return is not above 0: they count in no ratio."""

    @property
    def pairs(self) -> list[Pair]:
        """Games and their teachers."""
        return sorted({outcome.pair for outcome in self.outcomes})

    @property
    def level(self) -> str:
        """What has the score 1."""
        if self.study.panels:
            return "the best teacher"
        taught = not self.outcomes or any(outcome.teacher for outcome in self.outcomes)
        return "the teacher" if taught else f"the mean of {self.study.reference}"


class _Basis(NamedTuple):
    """What all figures of a study have in common."""

    bootstrap: Bootstrap
    without_scale: frozenset[Pair]
    without_ratio: frozenset[Pair]
    thresholds: Array


def analyse(study: StudyCard, outcomes: Sequence[Outcome], *, resamples: int = RESAMPLES) -> Analysis:
    """The statistics of a study. The same outcomes in any order give the same figures.

    Raises:
        UserError: outcomes that contradict each other or the study.
    """
    checked = checked_outcomes(study, outcomes)
    pairs = by_pair(checked)
    without_scale = frozenset(pair for pair, runs in pairs.items() if not measured(runs).above_random)
    without_ratio = frozenset(pair for pair, runs in pairs.items() if not measured(runs).above_zero)
    thresholds = _thresholds([runs for pair, runs in pairs.items() if pair not in without_scale])
    basis = _Basis(Bootstrap(resamples), without_scale, without_ratio, thresholds)
    groups = {label: [outcome for outcome in checked if outcome.setting == label] for label in study.settings}
    settings = [_setting(study, label, own, basis) for label, own in groups.items()]
    comparisons = {}
    for first, second in combinations(study.settings, 2):
        comparisons[first, second] = comparison = _compare(groups[first], groups[second], basis)
        comparisons[second, first] = _turned(comparison)
    return Analysis(study, checked, settings, comparisons, without_scale, without_ratio)


def by_pair(outcomes: Sequence[Outcome]) -> dict[Pair, list[Outcome]]:
    """The runs of each game and teacher, in the order of the outcomes."""
    pairs: dict[Pair, list[Outcome]] = {}
    for outcome in outcomes:
        pairs.setdefault(outcome.pair, []).append(outcome)
    return pairs


def by_games(outcomes: Sequence[Outcome]) -> list[tuple[Pair, list[Outcome]]]:
    """The runs of each game and teacher that are compared with the same games of that teacher, sorted by game and teacher."""
    groups: dict[tuple[Pair, tuple[float, ...], float], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.pair, outcome.teacher_returns, outcome.random_score), []).append(outcome)
    return sorted(((pair, runs) for (pair, *_), runs in groups.items()), key=lambda group: group[0])


def _setting(study: StudyCard, label: str, outcomes: Sequence[Outcome], basis: _Basis) -> Setting:
    groups = by_pair(outcomes)
    scaled = [runs for pair, runs in groups.items() if pair not in basis.without_scale]
    divided = [runs for pair, runs in groups.items() if pair not in basis.without_ratio]
    return Setting(
        label,
        outcomes,
        max(study.planned.get(label, 0), len(outcomes)),
        _estimate(scaled, basis.bootstrap, lambda scores: scores.above_random, _iqm_of_normalized),
        _estimate(divided, basis.bootstrap, lambda scores: scores.above_zero, _iqm_of_ratios),
        _estimate(divided, basis.bootstrap, lambda scores: scores.above_zero, _geometric_mean),
        _profile(scaled, basis) if scaled else None,
    )


def _estimate(
    groups: Sequence[Sequence[Outcome]], bootstrap: Bootstrap, valid: Callable[[Scores], bool], statistic: Statistic
) -> Estimate:
    """A figure over groups of runs that each share a game and a teacher; `valid` says whether scores can be divided."""
    if not groups:
        return NOTHING
    value = float(statistic(list(map(measured, groups)))[0])
    drawn = list(map(bootstrap.draw, groups))
    if not _vary(groups) or not all(map(valid, drawn)):
        return Estimate(value, math.nan, math.nan)
    return Estimate(value, *_bounds(statistic(drawn)))


def _vary(groups: Sequence[Sequence[Outcome]]) -> bool:
    """Whether there is more than one run or game of some group, so that resamples say something."""
    return any(len(runs) > 1 or len(runs[0].returns) > 1 for runs in groups)


def _bounds(resampled: Array) -> tuple[float, float]:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(low), float(high)


def _iqm_of_normalized(groups: Sequence[Scores]) -> Array:
    return interquartile_means(np.concatenate([scores.normalized for scores in groups], axis=-1))


def _iqm_of_ratios(groups: Sequence[Scores]) -> Array:
    return interquartile_means(np.concatenate([scores.ratios for scores in groups], axis=-1))


def _geometric_mean(groups: Sequence[Scores]) -> Array:
    """Of each group's mean over runs, so that one run with a score of 0 does not make the whole mean 0."""
    return geometric_means(np.stack([scores.means.mean(axis=-1) / scores.levels.mean(axis=-1) for scores in groups]))


def _thresholds(groups: Sequence[Sequence[Outcome]]) -> Array:
    """From 0, or the lowest score below it, to the highest score or 1."""
    scores = [float(score) for runs in groups for score in measured(runs).normalized[0]]
    return np.linspace(min([0.0, *scores]), max([1.0, *scores]), _THRESHOLDS)


def _profile(groups: Sequence[Sequence[Outcome]], basis: _Basis) -> Profile:
    def statistic(scores: Sequence[Scores]) -> Array:
        return performance_profile(np.concatenate([one.normalized for one in scores], axis=-1), basis.thresholds)

    shares = statistic(list(map(measured, groups)))[0]
    drawn = [basis.bootstrap.draw(runs, games=False) for runs in groups]
    lows = highs = np.full_like(shares, math.nan)
    if _vary(groups) and all(scores.above_random for scores in drawn):
        lows, highs = np.quantile(statistic(drawn), [0.025, 0.975], axis=0)
    return Profile(basis.thresholds, shares, lows, highs)


def _compare(first: Sequence[Outcome], second: Sequence[Outcome], basis: _Basis) -> Comparison:
    kept = [[one for one in runs if one.pair not in basis.without_scale] for runs in common(first, second)]
    groups = list(zip(*(by_pair(runs).values() for runs in kept), strict=True))
    if not groups:
        return Comparison(0, NOTHING, NOTHING)

    def draw(together: bool) -> list[tuple[Scores, Scores]]:
        one = partial(basis.bootstrap.draw, games=together, paired=together)
        return [(one(own), one(other)) for own, other in groups]

    values, drawn = [(measured(own), measured(other)) for own, other in groups], draw(True)
    exists = any(map(_vary, groups)) and all(scores.above_random for both in drawn for scores in both)
    # Games are a part of a run's score: drawn once more they would move every probability towards one half.
    improvement = _bounds(_improvement(draw(False))) if exists else (math.nan, math.nan)
    difference = _bounds(_difference(drawn)) if exists else (math.nan, math.nan)
    return Comparison(
        len(kept[0]),
        Estimate(float(_improvement(values)[0]), *improvement),
        Estimate(float(_difference(values)[0]), *difference),
    )


def common(first: Sequence[Outcome], second: Sequence[Outcome]) -> tuple[list[Outcome], list[Outcome]]:
    """The outcomes of two settings whose cells both have."""
    cells = {outcome.cell for outcome in first} & {outcome.cell for outcome in second}
    own, other = ([outcome for outcome in outcomes if outcome.cell in cells] for outcomes in (first, second))
    return own, other


def _improvement(groups: Sequence[tuple[Scores, Scores]]) -> Array:
    first, second = zip(*((own.normalized, other.normalized) for own, other in groups), strict=True)
    return probability_of_improvement(first, second)


def _difference(groups: Sequence[tuple[Scores, Scores]]) -> Array:
    return interquartile_means(np.concatenate([own.normalized - other.normalized for own, other in groups], axis=-1))


def _turned(comparison: Comparison) -> Comparison:
    """The second setting against the first."""
    cells, improvement, difference = comparison
    return Comparison(
        cells,
        Estimate(1 - improvement.value, 1 - improvement.high, 1 - improvement.low),
        Estimate(-difference.value, -difference.high, -difference.low),
    )
