"""Progress over all cells of a study."""

from __future__ import annotations

import math
import time

from rldistill.progress import Progress
from rldistill.runs.studies.cells import CellFolder
from rldistill.runs.studies.work import State

_SECONDS = 1.0
"""Between two looks at all cells."""


class Overview:
    """Shows how far a study is: cells done, running with their last scores, and failed.

    Args:
        state: of the study.
        progress: that shows it.
    """

    def __init__(self, state: State, progress: Progress) -> None:
        self.state, self.progress = state, progress
        self._last, self._reported = -math.inf, set(state.failed)
        self._names: set[str] = set()
        progress.start(f"study {state.plan}", state.total, "cells", done=len(state.done))

    def show(self) -> None:
        """Looks again and shows it, at most once a second."""
        if time.monotonic() - self._last < _SECONDS:
            return
        state = self.state.look()
        for name in state.failed.keys() - self._reported:
            self.progress.say(f"failed: {name}: {state.failed[name]}")
            self._reported.add(name)
        figures = dict.fromkeys(self._names, math.nan)
        self._names = {"running", *({"failed"} if state.failed else ())}
        figures |= {"running": len(state.running)} | ({"failed": len(state.failed)} if state.failed else {})
        for name in state.running:
            last = CellFolder(state.folder, name).last_figure()
            if last is not None:
                figures[f"{name.rpartition('-')[0]} {last[0]}"] = last[1]
        self._names |= figures.keys()
        self.progress.update(len(state.done), **figures)
        self._last = time.monotonic()
