"""From the results of cells to the outcomes that tables are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rldistill.runs.studies.cells import CELLS, CellFolder
from rldistill.runs.studies.outcomes import Candidate, Outcome, StudyCard
from rldistill.runs.studies.plan import Cell, Plan

_NO_FIGURES = ("seconds",)
"""What differs from one computation of a cell to the next."""


def card_of_study(folder: Path, plan: Plan) -> StudyCard:
    """What the study compares.

    Raises:
        UserError: the result of a choice cannot be read.
    """
    return StudyCard(
        title=plan.title,
        compare=plan.compare,
        settings=plan.settings,
        reference=plan.reference,
        published=plan.published,
        published_source=plan.source,
        published_measure=plan.measure,
        conditions=plan.conditions,
        planned=Counter(cell.setting for cell in plan.cells if cell.setting),
        panels=any(cell.panel for cell in plan.cells),
        candidates=[one for cell in plan.cells if cell.verb == "choose" for one in _candidates(folder, cell)],
        axis=plan.axis,
    )


def _candidates(folder: Path, cell: Cell) -> Iterator[Candidate]:
    """The teachers among which a cell has chosen; none before it is finished."""
    place = CellFolder(folder, cell)
    if place.finished:
        result = place.result()
        for number, (name, mean) in enumerate(zip((cell.options or {})["teachers"], result["means"], strict=True)):
            yield Candidate(cell.teacher, name, mean, number == result["chosen"])


def outcomes_of(folder: Path, plan: Plan) -> list[Outcome]:
    """The outcomes of the finished cells whose teachers' games are finished too, in the order of the plan.

    Where students have no teacher, they are compared with all games of the reference setting in their game.

    Raises:
        UserError: a result cannot be read.
    """
    results = {cell.name: place.result() for cell in plan.cells if (place := CellFolder(folder, cell)).finished}
    pooled = _reference_games(plan, results)
    outcomes = []
    for cell in plan.cells:
        level = results.get(cell.level_cell)
        if not cell.setting or cell.name not in results or level is None:
            continue
        result = results[cell.name]
        teacher_returns = tuple(level["returns"]) or pooled.get(cell.env, ())
        if teacher_returns:
            own = cell.teacher_cell if cell.verb == "play" else cell.name  # the student that plays is another cell's
            figures = {name: value for name, value in results[own]["figures"].items() if name not in _NO_FIGURES}
            outcomes.append(
                Outcome(
                    setting=cell.setting,
                    game=level["env"],
                    teacher=cell.teacher,
                    seed=cell.seed,
                    returns=tuple(result["returns"]),
                    teacher_returns=teacher_returns,
                    random_score=level["random_score"],
                    figures=figures,
                    run=f"{CELLS}/{own}/run",
                )
            )
    return outcomes


def _reference_games(plan: Plan, results: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[float, ...]]:
    """All games of the reference setting, by environment, for students without a teacher."""
    games: dict[str, tuple[float, ...]] = {}
    for cell in plan.cells:
        if _is_reference(cell, plan) and cell.name in results:
            games[cell.env] = games.get(cell.env, ()) + tuple(results[cell.name]["returns"])
    return games


def _is_reference(cell: Cell, plan: Plan) -> bool:
    return bool(cell.env) and cell.setting == plan.reference
