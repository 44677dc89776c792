"""A worker process of `rldistill study`, which ends when that does. Users start theirs with `rldistill study work`.

`compute` is for engines that hand out cells by themselves.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from rldistill.progress import Silent
from rldistill.runs.studies.plan import Cell, read_plan
from rldistill.runs.studies.work import try_cell, work_on
from rldistill.types import UserError
from rldistill.verbs.study.running import runner, torch_threads


def main(folder: Path) -> int:
    """Computes cells until none is left. Returns the exit status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ctrl-C is ignored in the background of a script
    threading.Thread(target=_interrupt_at_end_of_input, daemon=True).start()
    try:
        with torch_threads(read_plan(folder).threads):
            work_on(folder, runner(Silent()))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def compute(folder: Path, cell: Cell, threads: int) -> None:
    """Computes one cell of a study, unless another worker has it."""
    with torch_threads(threads):
        try_cell(folder, cell, runner(Silent()))


def _interrupt_at_end_of_input() -> None:
    """Waits for whoever started this process, and interrupts it as Ctrl-C does."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
