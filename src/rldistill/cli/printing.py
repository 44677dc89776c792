"""What several verbs print."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rldistill.files import is_standard_output
from rldistill.progress import table
from rldistill.runs.scores import Score, remarks, score_table


def print_scores(scores: Sequence[Score], *, stderr: bool = False) -> None:
    """Prints a table of scores, and below it what a reader of them must know."""
    table(score_table(scores), stderr=stderr)
    for line in remarks(scores):
        print(line, file=sys.stderr if stderr else sys.stdout)


def print_facts(lines: Sequence[tuple[str, str]], *, stderr: bool = False) -> None:
    """Prints names and what stands behind them."""
    for name, line in lines:
        print(f"{name:>14}  {line}", file=sys.stderr if stderr else sys.stdout)


def is_output(path: Path | None) -> bool:
    """Whether a file goes to standard output, where nothing else may be printed then."""
    return path is not None and is_standard_output(path)
