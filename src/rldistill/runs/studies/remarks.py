"""What a reader of a study's figures must know: gaps, and figures that cannot be."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from rldistill.runs.studies.analysis import Analysis, by_games, by_pair
from rldistill.runs.studies.outcomes import Outcome, Pair
from rldistill.runs.studies.resampling import measured
from rldistill.stats import figure

_MOST_NAMES = 6


def remarks(analysis: Analysis) -> list[str]:
    """Sentences, in plain text."""
    if not analysis.outcomes:
        return ["No cell is finished yet."]
    return [
        *_without_teacher(analysis),
        *_gaps(analysis),
        *_seeds(analysis),
        *_left_out(analysis),
        *_zeros(analysis),
        *_without_interval(analysis),
    ]


def _without_teacher(analysis: Analysis) -> Iterator[str]:
    if not all(outcome.teacher for outcome in analysis.outcomes):
        yield (
            f"Runs without a teacher are compared with all games of {analysis.study.reference} in their game: where a figure "
            f"is of the teacher, that is the mean of {analysis.study.reference}."
        )


def _gaps(analysis: Analysis) -> Iterator[str]:
    lacking = [one for one in analysis.settings if len(one.outcomes) < one.planned]
    if lacking:
        counts = (f"{one.label} has {len(one.outcomes)} of {one.planned}" for one in lacking)
        yield f"Cells are missing: {', '.join(counts)}."
    cells = {frozenset(outcome.cell for outcome in one.outcomes) for one in analysis.settings}
    if len(cells) > 1:
        shared = len(frozenset.intersection(*cells))
        yield (
            f"The settings do not have the same cells, and {shared} cells are finished in all of them. The figures of one "
            "setting are over its own finished cells. Comparisons of two settings are over the cells that both have."
        )


def _seeds(analysis: Analysis) -> Iterator[str]:
    single = [one.label for one in analysis.settings if one.outcomes and _has_single_seed(one.outcomes)]
    several = [one.label for one in analysis.settings if one.outcomes and one.label not in single]
    if single:
        where = f" ({_names(single)})" if several else ""
        yield (
            f"There is one seed for each game and teacher{where}. Such an interval covers other games, and not other "
            "trainings of the same student."
        )
    few = {len(runs) for one in analysis.settings for runs in by_pair(one.outcomes).values()} & {2, 3, 4}
    if few:
        yield (
            f"There are {' or '.join(map(str, sorted(few)))} seeds for a game and teacher. With fewer than five, intervals of "
            "probabilities of improvement and of profiles are too narrow."
        )


def _has_single_seed(outcomes: Sequence[Outcome]) -> bool:
    return all(len(runs) == 1 for runs in by_pair(outcomes).values())


def _left_out(analysis: Analysis) -> Iterator[str]:
    groups = by_pair(analysis.outcomes)
    for pair in sorted(analysis.without_ratio):
        worst = min(groups[pair], key=_level)
        yield (
            f"{_pair(pair)}: at {figure(_level(worst))} {analysis.level} is not above 0{_where(worst, groups[pair])}. This game "
            "counts in no ratio."
        )
    for pair in sorted(analysis.without_scale):
        worst = min(groups[pair], key=lambda run: _level(run) - run.random_score)
        yield (
            f"{_pair(pair)}: at {figure(_level(worst))} {analysis.level} is not above random play "
            f"({figure(worst.random_score)}){_where(worst, groups[pair])}. This game counts in no normalized score and in no "
            "comparison."
        )


def _level(run: Outcome) -> float:
    return float(measured([run]).levels.min())


def _where(run: Outcome, runs: Sequence[Outcome]) -> str:
    """Whose games they are, where settings play different ones."""
    return f" in the games of {run.setting}" if len(by_games(runs)) > 1 else ""


def _zeros(analysis: Analysis) -> Iterator[str]:
    for setting in analysis.settings:
        if setting.geometric.value == 0:
            means = {pair: measured(runs).means.mean() for pair, runs in by_pair(setting.outcomes).items()}
            lost = [
                f"{_pair(pair)} at {figure(float(mean))}"
                for pair, mean in means.items()
                if mean <= 0 and pair not in analysis.without_ratio
            ]
            yield (
                f"{setting.label}: the geometric mean is 0, because a mean return is not above 0: {_names(lost)}. "
                "The normalized scores compare such students."
            )


def _without_interval(analysis: Analysis) -> Iterator[str]:
    missing = [
        f"{name} of {setting.label}"
        for setting in analysis.settings
        for name, estimate in (("normalized score", setting.normalized), ("ratios", setting.ratio))
        if math.isfinite(estimate.value) and not math.isfinite(estimate.low)
    ]
    if missing:
        yield (
            f"No interval: {_names(missing)}. An interval needs more than one game or seed, and a teacher whose resampled "
            "games stay above random play (for ratios: above 0)."
        )


def _pair(pair: Pair) -> str:
    game, teacher = pair
    return f"{game} ({teacher})" if teacher else game


def _names(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - _MOST_NAMES} more" if len(every) > _MOST_NAMES else ""
    return ", ".join(every[:_MOST_NAMES]) + more
