"""What this process asks of the machine."""

from __future__ import annotations

import ctypes
import sys


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
