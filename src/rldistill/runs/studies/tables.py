"""The files that a study ends with: tables for people and for programs, a plot, and a page."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from rldistill.files import replace_file
from rldistill.runs.studies.analysis import Analysis, analyse
from rldistill.runs.studies.outcomes import Outcome, StudyCard
from rldistill.runs.studies.pages import CANDIDATES, page, plot
from rldistill.runs.studies.remarks import remarks
from rldistill.runs.studies.rows import (
    candidate_rows,
    comparison_rows,
    game_rows,
    improvement_rows,
    numbers,
    runs_rows,
    setting_rows,
)
from rldistill.runs.studies.steady import STEADY, steady_rows

Rows = Sequence[Mapping[str, str]]
"""Rows of equal keys, all text."""


def write_outputs(folder: Path, study: StudyCard, outcomes: Sequence[Outcome]) -> None:
    """Writes `table.md`, `table.csv`, `comparisons.csv`, `runs.csv`, `plot.svg` and `index.html`.

    The same outcomes in any order give the same bytes.

    Args:
        folder: of the study.
        study: what it is about.
        outcomes: of the finished cells; there may be none.

    Raises:
        UserError: outcomes that contradict each other or the study, or a file that cannot be written.
    """
    analysis = analyse(study, outcomes)
    drawn = plot(analysis)
    replace_file(folder / "plot.svg", drawn)
    for name, text in (
        ("runs.csv", _as_csv(runs_rows(analysis))),
        ("comparisons.csv", _as_csv(comparison_rows(analysis))),
        ("table.csv", _as_csv(numbers(analysis))),
        ("table.md", markdown(analysis)),
        ("index.html", page(folder, analysis, drawn)),
    ):
        replace_file(folder / name, text.encode(errors="backslashreplace"))


def markdown(analysis: Analysis) -> str:
    """The tables and notes of a study as Markdown."""
    study = analysis.study
    parts = [f"# {study.title}", study.conditions, _as_markdown(setting_rows(analysis))]
    parts += [f"* {note}" for note in remarks(analysis)]
    improvements = improvement_rows(analysis)
    if improvements:
        parts += [
            "## Probability of improvement",
            "How probable it is that a run of the row's setting scores above one of the column's, with its 95 % interval.",
            _as_markdown(improvements),
        ]
    if analysis.outcomes:
        parts += [
            "## Mean returns",
            "Mean raw return of each setting's students over seeds and games.",
            _as_markdown(game_rows(analysis)),
        ]
    steady = steady_rows(analysis)
    if steady:
        parts += ["## Steadiness", STEADY, _as_markdown(steady)]
    if study.candidates:
        parts += ["## Panels of teachers", CANDIDATES, _as_markdown(candidate_rows(analysis))]
    if study.published:
        parts.append(f"Published: {study.published_measure}, {study.published_source}.")
    return "\n\n".join(filter(None, parts)).replace("\n\n* ", "\n* ") + "\n"


def _as_csv(rows: Rows) -> str:
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()


def _as_markdown(rows: Rows) -> str:
    if not rows:
        return ""
    names = list(rows[0])
    lines = [names, ["---", *["---:"] * (len(names) - 1)], *([row[name] for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
