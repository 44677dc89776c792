"""How a process of `peers.py` is told what to do, and how it answers.

Standard library alone: each peer has an environment of its own. A worker is called with one argument, a job as JSON: `work` names a
function of the worker, `answer` the file for its result, the rest is for the function.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Job = Mapping[str, Any]
Work = Callable[[Job], dict[str, Any]]


def peak_bytes() -> int:
    """The most memory that this process had resident so far.

    From /proc where there is one: what `getrusage` says begins, on Linux, with the peak of the process that started this one.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def rate(work: Callable[[], int], seconds: float) -> float:
    """Units a second of repeated `work`, which returns the units it did, after a sixth of the time for warming up."""
    for limit in (seconds / 6, seconds):
        done, began = 0, time.perf_counter()
        while (spent := time.perf_counter() - began) < limit:
            done += work()
    return done / spent


def answer(works: Mapping[str, Work]) -> None:
    """Does the job of the command line and writes its result as a whole or not at all, with peak memory and processor time."""
    job: Job = json.loads(sys.argv[1])
    if job.get("cores"):  # before any thread is there
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: job["cores"]]))
    imports = time.process_time()
    result = works[job["work"]](job)
    result.setdefault("peak_bytes", peak_bytes())
    result["processor_seconds"] = time.process_time()
    result["import_processor_seconds"] = imports
    aside = Path(f"{job['answer']}.tmp")
    aside.write_text(json.dumps(result))
    aside.replace(job["answer"])
