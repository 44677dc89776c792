import subprocess
import sys

import pytest

FAULTS = """
import ctypes, resource, sys
from rldistill.machine import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def fresh():
    block = libc.malloc(ctypes.c_size_t(64 << 20))
    ctypes.memset(block, 1, 64 << 20)
    libc.free(ctypes.c_void_p(block))
fresh()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    fresh()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    """Of writing 64 MiB three times, each time freed, after a first time."""
    return int(subprocess.check_output([sys.executable, "-c", FAULTS, how], text=True))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="speaks of glibc")
def test_memory_once_freed_is_used_again_without_page_faults() -> None:
    # Huge pages make few faults of many pages, so the two are compared instead of counted.
    left, kept = page_faults("leave"), page_faults("keep")
    if left < 50:
        pytest.skip("this C library keeps freed memory by itself")
    assert kept < left / 10
