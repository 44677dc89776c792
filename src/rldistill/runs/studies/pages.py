"""The plot and the page of a study."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from urllib.parse import quote

from rldistill.pages import cards_html, fill_page, inline_svg, meanings_html, note_lines, section, table_html
from rldistill.plots import Curve, Point, Series, comparison_plot
from rldistill.runs.studies.analysis import Analysis, Setting
from rldistill.runs.studies.outcomes import GEOMETRIC_MEAN, Outcome, StudyCard
from rldistill.runs.studies.remarks import remarks
from rldistill.runs.studies.rows import candidate_rows, estimate, game_rows, improvement_rows, setting_rows
from rldistill.runs.studies.steady import STEADY, steady_rows
from rldistill.stats import Estimate, figure

GENERATOR = "rldistill study"
"""Every page says so in its head."""


CANDIDATES = (
    "Mean returns of the teachers in the games by which the best of each panel is chosen. They count for nothing else."
)


def plot(analysis: Analysis) -> bytes:
    """Figures of the settings and their performance profiles, as SVG."""
    study = analysis.study
    places = _places(analysis)
    series = [
        Series("IQM of normalized scores", [_point(one, one.normalized, places) for one in analysis.settings]),
        Series("geometric mean of ratios", [_point(one, one.geometric, places) for one in analysis.settings]),
    ]
    if study.published and study.published_measure == GEOMETRIC_MEAN:
        points = [
            Point(label, study.published.get(label, math.nan), place=places.get(label)) for label in study.settings
        ]
        series.append(Series("published geometric mean", points))
    profiles = [
        Curve(
            one.label,
            list(one.profile.thresholds),
            list(one.profile.shares),
            list(one.profile.lows),
            list(one.profile.highs),
        )
        for one in analysis.settings
        if one.profile is not None
    ]
    return comparison_plot(series, profiles, axis=study.axis or study.compare, measure=f"1 is {analysis.level}")


def page(folder: Path, analysis: Analysis, drawn: bytes) -> str:
    """The whole page as HTML.

    Args:
        folder: of the study, where the pages of its runs are looked for.
        analysis: what to show.
        drawn: the plot.
    """
    study = analysis.study
    best = _best(analysis)
    label = f"Figures of {len(study.settings)} settings of {study.compare}, with 95 % intervals"
    sections = [
        section("Settings", f'<div class="wide">{inline_svg(drawn, label, "plot")}</div>' if analysis.outcomes else ""),
        section(
            "Figures",
            table_html(setting_rows(analysis)) + note_lines(remarks(analysis)) + meanings_html(_meanings(study)),
        ),
        section("Probability of improvement", _improvements(analysis)),
        section("Mean returns", table_html(game_rows(analysis))),
        *([section("Panels of teachers", _candidates(analysis))] if study.candidates else []),
        section("Steadiness", _steadiness(analysis)),
        section("Runs", _runs(folder, analysis.outcomes)),
    ]
    return fill_page(
        GENERATOR,
        title=study.title,
        about=f"rldistill study · {study.compare}",
        headline=study.title,
        lead=" ".join(filter(None, [study.conditions, best])),
        cards=cards_html(_cards(analysis)),
        sections=sections,
    )


def _steadiness(analysis: Analysis) -> str:
    rows = steady_rows(analysis)
    return table_html(rows) + note_lines([STEADY]) if rows else ""


def _candidates(analysis: Analysis) -> str:
    return table_html(candidate_rows(analysis)) + note_lines([CANDIDATES])


def _places(analysis: Analysis) -> dict[str, float]:
    """Where settings stand on a numeric axis; nothing where fewer than two have a place."""
    axis = analysis.study.axis
    places: dict[str, float] = {}
    for setting in analysis.settings:
        values = [one.figures[axis] for one in setting.outcomes if axis in one.figures] if axis else []
        place = math.fsum(values) / len(values) if values else math.nan if axis else _number(setting.label)
        if math.isfinite(place):
            places[setting.label] = place
    return places if len(places) > 1 else {}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _point(setting: Setting, value: Estimate, places: dict[str, float]) -> Point:
    return Point(setting.label, *value, place=places.get(setting.label))


def _best(analysis: Analysis) -> str:
    """The setting with the highest interquartile mean, with its interval."""
    scored = [one for one in analysis.settings if math.isfinite(one.normalized.value)]
    if len(scored) < 2:
        return ""
    best = max(scored, key=lambda one: one.normalized.value)
    return f"The highest interquartile mean of normalized scores is that of {best.label}: {estimate(best.normalized)}."


def _cards(analysis: Analysis) -> list[tuple[str, str, str]]:
    outcomes, planned = analysis.outcomes, sum(one.planned for one in analysis.settings)
    games, teachers = {outcome.game for outcome in outcomes}, {pair for pair in analysis.pairs if pair[1]}
    played = [len(outcome.returns) for outcome in outcomes]
    lengths = (
        f"{min(played)}"
        if played and min(played) == max(played)
        else f"{min(played, default=0)} to {max(played, default=0)}"
    )
    return [
        ("Finished cells", f"{len(outcomes):,}", f"of {planned:,}"),
        ("Games", str(len(games)), f"with {len(teachers)} teachers" if teachers else "without teachers"),
        ("Seeds", str(len({outcome.seed for outcome in outcomes})), "trainings of each student"),
        ("Evaluation", lengths, "full games a student"),
    ]


def _meanings(study: StudyCard) -> dict[str, str]:
    meanings = {
        "cells": "finished runs, one for each game, teacher and seed",
        "IQM of normalized scores": "interquartile mean, of the middle half of all runs, of (score - random) / (teacher - random)",
        "IQM of ratios": "interquartile mean of score / teacher's score",
        "geometric mean of ratios": "over games and teachers; the ratio of each is that of the mean over its runs",
        "[95 %]": (
            "stratified bootstrap intervals: runs within each game and teacher, games within a run, and the teacher's games "
            "are resampled"
        ),
    }
    if study.published:
        meanings["published"] = f"{study.published_measure}, {study.published_source}"
    if study.reference is not None:
        meanings[f"difference from {study.reference}"] = (
            "interquartile mean of the differences of normalized scores between runs of the same game, teacher and seed"
        )
    return meanings


def _improvements(analysis: Analysis) -> str:
    rows = improvement_rows(analysis)
    if not rows:
        return ""
    lead = "How probable it is that a run of the row's setting scores above one of the column's: 0.5 is no difference."
    places = {label: number for number, label in enumerate(analysis.study.settings)}
    tints = {
        (places[first], f"over {second}"): 2 * compared.improvement.value - 1
        for (first, second), compared in analysis.comparisons.items()
        if compared.cells
    }
    return note_lines([lead]) + table_html(rows, tints)


def _runs(folder: Path, outcomes: Sequence[Outcome]) -> str:
    """A list of links for each setting, folded."""
    parts = []
    for setting, own in groupby(outcomes, key=lambda outcome: outcome.setting):
        runs = list(own)
        items = "".join(f"<li>{_link(folder, outcome)}</li>" for outcome in runs)
        parts.append(f"<details><summary>{escape(setting)}: {len(runs)} runs</summary><ul>{items}</ul></details>")
    return "".join(parts)


def _link(folder: Path, outcome: Outcome) -> str:
    report = folder / outcome.run / "report.html"
    target = f"{outcome.run}/report.html" if report.is_file() else f"{outcome.run}/"
    place = quote(target, errors="surrogateescape")
    mean = figure(math.fsum(outcome.returns) / len(outcome.returns))
    return (
        f'<a href="{escape(place, quote=True)}">{escape(", ".join(filter(None, outcome.pair)))}, seed {outcome.seed}</a>: '
        f"mean return {mean}"
    )
