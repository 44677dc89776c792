"""The rows of a study's tables, in short text for people and in numbers for programs."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rldistill.runs.studies.analysis import NOTHING, Analysis, Setting, by_games
from rldistill.runs.studies.outcomes import Outcome
from rldistill.runs.studies.resampling import measured
from rldistill.stats import Estimate, decimals, figure


def setting_rows(analysis: Analysis) -> list[dict[str, str]]:
    """One row a setting, in short text, `-` where a figure does not exist."""
    study = analysis.study
    rows = []
    for setting in analysis.settings:
        row = {
            "cells": _count(setting),
            "IQM of normalized scores [95 %]": estimate(setting.normalized),
            "IQM of ratios [95 %]": estimate(setting.ratio),
            "geometric mean of ratios [95 %]": estimate(setting.geometric),
        }
        if study.published:
            row["published"] = _number(study.published.get(setting.label, math.nan))
        if study.reference is not None:
            compared = analysis.comparisons.get((setting.label, study.reference))
            row[f"difference from {study.reference} [95 %]"] = estimate(compared.difference) if compared else "-"
        row |= {name: _range(setting, name) for name in figure_names(analysis)}
        rows.append(_beside({study.compare: setting.label}, row, "of the runs"))
    return rows


def _beside(row: dict[str, str], more: dict[str, str], word: str) -> dict[str, str]:
    """The row with more columns. A word is added to the name of one that the row has, so that none replaces another."""
    return row | {f"{name} ({word})" if name in row else name: value for name, value in more.items()}


def improvement_rows(analysis: Analysis) -> list[dict[str, str]]:
    """The probability of improvement of each setting over each other one; nothing where there is one setting."""
    labels = analysis.study.settings
    if len(labels) < 2:
        return []
    return [
        {analysis.study.compare: first}
        | {
            f"over {second}": estimate(analysis.comparisons[first, second].improvement) if first != second else ""
            for second in labels
        }
        for first in labels
    ]


def game_rows(analysis: Analysis) -> list[dict[str, str]]:
    """Mean returns of random play, of the teacher, and of each setting's students: a row for each game and teacher.

    Settings that play other games have rows of their own, because their teachers play those games too.
    """
    words = analysis.level.removeprefix("the ")
    level = f"{words}'s mean" if words.endswith("teacher") else words
    rows = []
    for pair, runs in by_games(analysis.outcomes):
        scores = measured(runs)
        groups = {label: [run for run in runs if run.setting == label] for label in analysis.study.settings}
        row = {"game": pair[0], "teacher": pair[1] or "-", "random play": figure(float(scores.random.mean()))}
        row[level] = figure(float(scores.levels.mean()))
        students = {label: figure(float(measured(own).means.mean())) if own else "-" for label, own in groups.items()}
        rows.append(_beside(row, students, "setting"))
    return rows


def candidate_rows(analysis: Analysis) -> list[dict[str, str]]:
    """The teachers of each panel, in the games by which the best of them was chosen."""
    return [
        {"panel": one.panel, "teacher": one.teacher, "mean return": figure(one.mean), "best": "yes" if one.best else ""}
        for one in analysis.study.candidates
    ]


def numbers(analysis: Analysis) -> list[dict[str, str]]:
    """The figures of each setting for programs, empty where a figure does not exist."""
    study = analysis.study
    rows = []
    for setting in analysis.settings:
        compared = analysis.comparisons.get((setting.label, study.reference or ""))
        row = {"setting": setting.label, "cells": str(len(setting.outcomes)), "planned": str(setting.planned)}
        row |= _columns("iqm_normalized", setting.normalized) | _columns("iqm_ratio", setting.ratio)
        row |= _columns("geometric_mean_ratio", setting.geometric)
        row["published"] = _plain(study.published.get(setting.label, math.nan))
        if study.reference is not None:
            row |= _columns("improvement", compared.improvement if compared else NOTHING)
            row |= _columns("difference", compared.difference if compared else NOTHING)
        for name in figure_names(analysis):
            values = _values(setting.outcomes, name)
            row[name] = _plain(math.fsum(values) / len(values) if values else math.nan)
        rows.append(row)
    return rows


def comparison_rows(analysis: Analysis) -> list[dict[str, str]]:
    """The comparison of any two settings for programs."""
    return [
        {"setting": first, "other": second, "cells": str(compared.cells)}
        | _columns("improvement", compared.improvement)
        | _columns("difference", compared.difference)
        for (first, second), compared in analysis.comparisons.items()
    ]


def runs_rows(analysis: Analysis) -> list[dict[str, str]]:
    """One row a run, with all its returns, from which every figure can be computed again."""
    rows = []
    for outcome in analysis.outcomes:
        scores = measured([outcome])
        row = {"setting": outcome.setting, "game": outcome.game, "teacher": outcome.teacher, "seed": str(outcome.seed)}
        row |= {"mean": _plain(float(scores.means[0, 0])), "teacher_mean": _plain(float(scores.levels[0, 0]))}
        row["random_score"] = _plain(outcome.random_score)
        row["ratio"] = _plain(float(scores.ratios[0, 0])) if scores.above_zero else ""
        row["normalized"] = _plain(float(scores.normalized[0, 0])) if scores.above_random else ""
        row |= {name: _plain(outcome.figures.get(name, math.nan)) for name in figure_names(analysis)}
        row |= {"run": outcome.run, "returns": " ".join(map(repr, map(float, outcome.returns)))}
        rows.append(row | {"teacher_returns": " ".join(map(repr, map(float, outcome.teacher_returns)))})
    return rows


def figure_names(analysis: Analysis) -> list[str]:
    """Names of the outcomes' figures, in the order of the first outcome that has them, sizes first."""
    first = [name for outcome in analysis.outcomes for name in outcome.figures]
    return list(dict.fromkeys(first))


def estimate(value: Estimate) -> str:
    """`0.987 [0.951, 1.020]`; `-` where there is none, and the figure alone where it has no interval."""
    if not math.isfinite(value.value):
        return "-"
    digits = decimals(value.value, value.low, value.high, least=3)
    bounds = f" [{value.low:.{digits}f}, {value.high:.{digits}f}]" if math.isfinite(value.low) else ""
    return f"{value.value:.{digits}f}{bounds}"


def _count(setting: Setting) -> str:
    finished = len(setting.outcomes)
    return str(finished) if finished == setting.planned else f"{finished} of {setting.planned}"


def _values(outcomes: Iterable[Outcome], name: str) -> list[float]:
    return [outcome.figures[name] for outcome in outcomes if math.isfinite(outcome.figures.get(name, math.nan))]


def _range(setting: Setting, name: str) -> str:
    """`1,200`, or `1,200 to 1,300` where the cells differ."""
    values = _values(setting.outcomes, name)
    if not values:
        return "-"
    low, high = (f"{value:,.6g}" if value != int(value) else f"{value:,.0f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"


def _plain(value: float) -> str:
    """With 9 digits: sums may differ in the last bits between processors."""
    return f"{value:.9g}" if math.isfinite(value) else ""


def _columns(name: str, value: Estimate) -> dict[str, str]:
    return {name: _plain(value.value), f"{name}_low": _plain(value.low), f"{name}_high": _plain(value.high)}
