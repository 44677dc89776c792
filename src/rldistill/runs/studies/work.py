"""Workers: each pulls cells of a study until none is left."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from rldistill.runs.studies.cells import CellFolder, problem_of_result
from rldistill.runs.studies.plan import PLAN, Cell, Plan, read_plan
from rldistill.types import UserError, printable

RunCell: TypeAlias = Callable[[Cell, Path], Mapping[str, Any]]
"""Computes a cell of the study in a folder, or goes on with it, and returns its result as JSON data."""
_WAITING_SECONDS = 0.5
"""Between two looks at cells that other workers have."""


@dataclass
class State:
    """How far a study is. `look` brings it up to date."""

    folder: Path
    plan: Plan
    done: dict[str, float] = field(default_factory=dict)
    """Finished cells and their seconds."""
    failed: dict[str, str] = field(default_factory=dict)
    """Failed cells and why, in one line."""
    running: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Number of cells."""
        return len(self.plan.cells)

    @property
    def left(self) -> int:
        """Cells that are neither finished nor failed."""
        return self.total - len(self.done) - len(self.failed)

    def look(self) -> State:
        """Looks at the cells that were not finished at the last look."""
        self.failed, self.running = {}, []
        for cell in self.plan.cells:
            if cell.name in self.done:
                continue
            place = CellFolder(self.folder, cell)
            if place.finished:
                self.done[cell.name] = float(place.result().get("seconds", 0.0))
            elif (failure := place.failure) is not None:
                self.failed[cell.name] = failure
            elif place.running:
                self.running.append(cell.name)
        return self


def forget_failures(folder: Path, plan: Plan) -> None:
    """Has failed cells tried again."""
    for cell in plan.cells:
        place = CellFolder(folder, cell)
        if place.failure_path.exists():
            held = place.claim()
            if held is not None:
                with held:
                    place.failure_path.unlink(missing_ok=True)


def work_on(folder: Path, run: RunCell, on_change: Callable[[], None] = lambda: None) -> None:
    """Computes cells of a study, each unless another worker has it, until all are finished or failed.

    A cell of a worker that was killed is taken up where it stands. Where the plan changes meanwhile, the new one counts.

    Args:
        folder: of the study.
        run: computes a cell.
        on_change: called when a cell is finished or fails, and while the worker waits for others.

    Raises:
        UserError: there is no study.
        KeyboardInterrupt: as a cell raises it; its folder can be taken up again.
    """
    settled: set[str] = set()
    version, plan = _version(folder), read_plan(folder)
    while True:
        waiting = computed = False
        for cell in plan.cells:
            if cell.name in settled:
                continue
            outcome = try_cell(folder, cell, run)
            if outcome in ("finished", "computed"):
                settled.add(cell.name)
            waiting |= outcome == "waiting"
            if outcome == "computed":
                computed = True
                on_change()
            if _version(folder) != version:
                break
        if _version(folder) != version:
            version, plan = _version(folder), read_plan(folder)
        elif not waiting and not computed:
            return
        elif not computed:
            on_change()
            time.sleep(_WAITING_SECONDS)


def _version(folder: Path) -> int:
    try:
        return (folder / PLAN).stat().st_mtime_ns
    except OSError:
        return 0


def try_cell(folder: Path, cell: Cell, run: RunCell) -> str:
    """Computes a cell, unless it is settled, needs others, or another worker has it.

    Returns:
        What became of a cell: `finished` before or failed, `computed` here, or `waiting` for another worker.
    """
    place = CellFolder(folder, cell)
    if place.settled:
        return "finished"
    for name in cell.needs:
        needed = CellFolder(folder, name)
        if not needed.finished:
            if needed.failure is None:
                return "waiting"
            place.path.mkdir(parents=True, exist_ok=True)
            place.fail(f"it needs {name}, which failed")
            return "computed"
    held = place.claim()
    if held is None:
        return "waiting"
    with held:
        if not place.settled:  # by another worker, between the two looks
            _compute(place, cell, folder, run)
    return "computed"


def _compute(place: CellFolder, cell: Cell, folder: Path, run: RunCell) -> None:
    began = time.monotonic()
    try:
        result = dict(run(cell, folder))
        problem = problem_of_result(result)
        if problem is not None:
            raise UserError(f"the result cannot be kept: {problem}")
    except UserError as error:
        place.fail(str(error))
    except Exception as error:  # whatever it is, the other cells go on
        line = str(error).strip().splitlines()
        place.fail(f"{type(error).__name__}: {printable(line[0] if line else '', 200)}", traceback.format_exc())
    else:
        place.finish(result | {"seconds": round(time.monotonic() - began, 3)})
