"""Worker processes of a study on this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import rldistill
from rldistill.files import read_regular

_LOOKS_SECONDS = 0.2
_PATIENCE_SECONDS = 60.0
"""For which workers may take to come to a place where their cells can be resumed."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_workers(folder: Path, jobs: int, threads: int, on_look: Callable[[], None]) -> str | None:
    """Starts workers and waits until all have ended. Cells of one that dies are taken up by the others.

    Workers end by themselves when this process does: their standard input is a pipe from it.

    Args:
        folder: of the study.
        jobs: number of workers.
        threads: of each.
        on_look: called several times a second.

    Returns:
        Why workers ended early, in one line; None where none did.

    Raises:
        KeyboardInterrupt: Ctrl-C. The workers' cells can be resumed by then, and after a second one they are ended at once.
    """
    source = str(Path(rldistill.__file__).parents[1])
    sources = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": sources}
    (folder / "workers").mkdir(exist_ok=True)
    workers: list[subprocess.Popen[bytes]] = []
    name = f"{socket.gethostname()}-{os.getpid()}"
    logs = [folder / "workers" / f"{name}-{number}.log" for number in range(jobs)]
    with ExitStack() as opened:
        try:
            for path in logs:
                log = opened.enter_context(open(path, "wb"))
                workers.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "rldistill.verbs.study.worker", str(folder)],
                        stdin=subprocess.PIPE,
                        stdout=log,
                        stderr=log,
                        env=environment,
                        start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on once
                    )
                )
            _wait(workers, on_look)
        except BaseException:
            _stop(workers)
            raise
        finally:
            for path in logs:
                with suppress(OSError):
                    if not path.stat().st_size:
                        path.unlink()
    return _ended_early(workers, logs)


def _wait(workers: Sequence[subprocess.Popen[bytes]], on_look: Callable[[], None]) -> None:
    while any(worker.poll() is None for worker in workers):
        on_look()
        time.sleep(_LOOKS_SECONDS)
    on_look()


def _stop(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    """Interrupts workers, waits for them, and ends those that do not come to an end."""
    for worker in workers:
        with suppress(OSError):
            worker.send_signal(signal.SIGTERM)
    try:
        until = time.monotonic() + _PATIENCE_SECONDS
        for worker in workers:
            with suppress(subprocess.TimeoutExpired):
                worker.wait(max(until - time.monotonic(), 0.0))
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
            worker.wait()


def _ended_early(workers: Sequence[subprocess.Popen[bytes]], logs: Sequence[Path]) -> str | None:
    bad = [(worker, log) for worker, log in zip(workers, logs, strict=True) if worker.returncode]
    if not bad:
        return None
    worker, log = bad[0]
    lines = read_regular(log).decode(errors="replace").strip().splitlines() if log.exists() else []
    why = f"{lines[-1]}; see {log}" if lines else f"exit status {worker.returncode}"
    return f"{len(bad)} of {len(workers)} workers stopped ({why})"
