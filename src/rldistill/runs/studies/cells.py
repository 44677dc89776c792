"""The folder of a cell: its claim, its result, its failure, and how far it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rldistill.documents import read_json
from rldistill.files import replace_file
from rldistill.holding import held_file, is_held
from rldistill.runs.records import Evaluation, Train, read_records
from rldistill.runs.studies.plan import Cell
from rldistill.types import UserError, is_number

CELLS = "cells"


def problem_of_result(result: Mapping[str, Any]) -> str | None:
    """What tables cannot be made of in the result of a cell; None where there is nothing."""
    figures, returns = result.get("figures"), result.get("returns")
    if not isinstance(figures, dict) or not isinstance(returns, list):
        return "it lacks figures or returns"
    numbers = [*figures.values(), *returns, result.get("seconds", 0.0), result.get("random_score", 0.0)]
    return None if all(map(is_number, numbers)) else "it holds a figure or a return that is no finite number"


class CellFolder:
    """A cell's folder in a study.

    Args:
        study: folder of the study.
        cell: or the name of one that plays no games.
    """

    def __init__(self, study: Path, cell: Cell | str) -> None:
        name, result = (cell, "result") if isinstance(cell, str) else (cell.name, cell.result_name)
        self.path = study / CELLS / name
        self.run_path, self.data_path = self.path / "run", self.path / "data"
        self.result_path, self.failure_path = self.path / f"{result}.json", self.path / "failure.json"
        self._lock_path = self.path / "lock"

    @property
    def finished(self) -> bool:
        """Whether its result is there."""
        return self.result_path.is_file()

    @property
    def settled(self) -> bool:
        """Whether it is finished or has failed."""
        return self.finished or self.failure is not None

    @property
    def running(self) -> bool:
        """Whether a process works on it now."""
        return is_held(self._lock_path)

    @property
    def failure(self) -> str | None:
        """In one line why it failed; None where it did not."""
        if not self.failure_path.is_file():
            return None
        try:
            return str(read_json(self.failure_path).get("error"))
        except UserError as error:
            return str(error)

    def result(self) -> dict[str, Any]:
        """What `finish` was given.

        Raises:
            UserError: it is damaged.
        """
        try:
            result = read_json(self.result_path)
            problem = problem_of_result(result)
            if problem is not None:
                raise UserError(f"{self.result_path} is damaged: {problem}")
        except UserError as error:
            raise UserError(f"{error}; remove it, and `rldistill study` makes it anew") from None
        return result

    def claim(self) -> ExitStack | None:
        """Takes the cell for this process until the returned stack is closed; None where another process has it.

        The kernel releases the claim of a process that dies.

        Raises:
            UserError: the folder's file system has no locks.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        held = ExitStack()
        try:
            locked = held.enter_context(held_file(self._lock_path, self.path))
        except UserError:
            return None
        if not locked:
            held.close()
            raise UserError(
                f"{self.path}: this file system has no locks, by which workers share cells; choose another --out"
            )
        return held

    def finish(self, result: dict[str, Any]) -> None:
        """Keeps the result, in one step."""
        replace_file(self.result_path, json.dumps(result, indent=1).encode() + b"\n")
        self.failure_path.unlink(missing_ok=True)

    def fail(self, line: str, trace: str = "") -> None:
        """Keeps why the cell failed."""
        replace_file(self.failure_path, json.dumps({"error": line, "traceback": trace}, indent=1).encode() + b"\n")

    def last_figure(self) -> tuple[str, float] | None:
        """The last score of the run, before the first one its agreement with the teacher or its mean return."""
        try:
            records, _ = read_records(self.run_path / "metrics.jsonl")
        except (OSError, UserError):
            return None
        for record in reversed(records):
            if isinstance(record, Evaluation) and record.mean is not None:
                return "score", record.mean
        for record in reversed(records):
            if isinstance(record, Train) and record.agreement is not None:
                return "agreement", record.agreement
            if isinstance(record, Train) and record.returns:
                return "return", sum(record.returns) / len(record.returns)
        return None
