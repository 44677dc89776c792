"""Workers as jobs of Slurm, through submitit. They share the study's folder, so the cluster needs a disk that all nodes have."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rldistill.machine import check_packages
from rldistill.types import UserError

_LOOKS_SECONDS = 1.0


def run_on_slurm(
    folder: Path, cluster: str, jobs: int, threads: int, options: Sequence[str], on_look: Callable[[], None]
) -> str | None:
    """Submits workers as an array of jobs, and waits until all have ended. A job that Slurm ends leaves its cell to the others.

    Args:
        folder: of the study.
        cluster: `slurm`, or `local` for processes on this machine that submitit starts in the same way.
        jobs: number of workers.
        threads: of each.
        options: name=value of submitit, such as `slurm_partition=long` and `timeout_min=600`.
        on_look: called once a second.

    Returns:
        Why workers ended early, in one line; None where none did.

    Raises:
        UserError: submitit or Slurm is missing, or an option is unknown.
        KeyboardInterrupt: Ctrl-C; the jobs are cancelled.
    """
    import submitit

    executor = submitit.AutoExecutor(folder=folder / "workers" / "%j", cluster=cluster)
    given = {"timeout_min": 24 * 60, "cpus_per_task": threads, "name": "rldistill-study", **_parameters(options)}
    try:
        executor.update_parameters(**given)
    except (NameError, TypeError, ValueError) as error:
        raise UserError(f"--slurm-options: {str(error).splitlines()[0]}") from None
    words = [sys.executable, "-m", "rldistill", "study", "work", str(folder.resolve())]
    with executor.batch():
        submitted = [executor.submit(submitit.helpers.CommandFunction(words, verbose=False)) for _ in range(jobs)]
    try:
        while not all(job.done() for job in submitted):
            on_look()
            time.sleep(_LOOKS_SECONDS)
    except BaseException:
        for job in submitted:
            job.cancel()
        raise
    on_look()
    failures = [job.exception() for job in submitted if job.exception() is not None]
    if not failures:
        return None
    lines = [*str(failures[0]).strip().splitlines(), type(failures[0]).__name__]
    return f"{len(failures)} of {jobs} jobs stopped ({lines[0]}; see {folder / 'workers'})"


def check_slurm(cluster: str, options: Sequence[str]) -> None:
    """Raises UserError where submitit or Slurm is missing, or an option has another form than name=value."""
    check_packages("submitit", extra="slurm", what="--on slurm")
    if cluster not in ("slurm", "local"):
        raise UserError(f"--on takes slurm or slurm:local, not slurm:{cluster}")
    if cluster == "slurm" and shutil.which("srun") is None:
        raise UserError(
            "--on slurm: there is no Slurm on this machine (srun is missing): start it where jobs are submitted"
        )
    _parameters(options)


def _parameters(options: Sequence[str]) -> dict[str, Any]:
    """Options of submitit; whole numbers as such.

    Raises:
        UserError: one has another form.
    """
    parameters: dict[str, Any] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals:
            raise UserError(f"--slurm-options are name=value, such as slurm_partition=long, not {option!r}")
        parameters[name] = int(value) if value.isdigit() else value
    return parameters
