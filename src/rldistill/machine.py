"""What this process asks of the machine."""

from __future__ import annotations

import ctypes
import importlib
import os
import platform
import sys

import torch

from rldistill.types import UserError


def machine_in_words() -> str:
    """What this process computes on, for provenance: cores that it may use, threads that it uses, kind of processor."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    kind = platform.machine().replace("_", "-")
    return f"{cores} core{'s' * (cores > 1)}, {threads} thread{'s' * (threads > 1)}, {kind}, no GPU"


def keep_freed_memory() -> None:
    """Lets glibc keep large freed blocks for the next allocation instead of handing them back to the kernel.

    A training step allocates and frees some tens of megabytes of activations; taken anew from the kernel each time,
    every page of them faults. On 2 cores this alone doubles a Nature CNN's training rate. Elsewhere than on glibc it
    does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, 1 << 30)


def check_packages(*names: str, extra: str = "onnx", what: str = "this format") -> None:
    """Raises UserError, naming the extra, where one that `what` needs is not installed."""
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            raise UserError(f"{what} needs {name}: pip install 'rldistill[{extra}]'") from None
