"""The table of a study of students that follow a learner: how steady they are beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rldistill.runs.steadiness import Difference, Steadiness, differences_over_runs

if TYPE_CHECKING:
    from rldistill.runs.studies.analysis import Analysis
    from rldistill.runs.studies.outcomes import Outcome

STEADY = (
    "Student less learner in the last half of each run, with 95 % intervals over seeds, on the scale on which random play is 0 and "
    "the learner's best evaluation is 1. Below 0 the student deviates less, drops less, and is less often below 90 % of its best."
)


def steady_rows(analysis: Analysis) -> list[dict[str, str]]:
    """A row for each setting over all games, then one for each of its games; empty where no learner is followed."""
    rows = []
    for setting in analysis.study.settings:
        own = [one for one in analysis.outcomes if one.setting == setting and "learner_mean" in one.figures]
        games = sorted({one.game for one in own})
        groups = [(game, [one for one in own if one.game == game]) for game in games]
        for game, runs in [("all games", own), *groups] if len(games) > 1 else groups:
            rows.append({"setting": setting, "game": game, "runs": str(len(runs)), **_differences(runs)})
    return rows


def _differences(runs: Sequence[Outcome]) -> dict[str, str]:
    figures = [{who: _figures(run.figures, who) for who in ("student", "learner")} for run in runs]
    differences = differences_over_runs(figures, [run.game for run in runs])
    return {name.replace("_", " "): _in_words(value) for name, value in differences.items()}


def _figures(figures: Mapping[str, float], who: str) -> Steadiness:
    return Steadiness(*(float(figures.get(f"{who}_{name}", math.nan)) for name in Steadiness._fields))


def _in_words(value: Difference) -> str:
    if math.isnan(value.mean):
        return "-"
    bounds = "" if math.isnan(value.low) else f" [{value.low:+.3f}, {value.high:+.3f}]"
    return f"{value.mean:+.3f}{bounds}"
