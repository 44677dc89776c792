import subprocess
import sys

import pytest
import torch

from rldistill.machine import device_failures, torch_device
from rldistill.types import UserError

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
@pytest.mark.slow
def test_memory_once_freed_is_used_again_without_page_faults() -> None:
    # Huge pages make few faults of many pages, so the two are compared instead of counted.
    left, kept = page_faults("leave"), page_faults("keep")
    if left < 50:
        pytest.skip("this C library keeps freed memory by itself")
    assert kept < left / 10


def test_a_device_that_is_not_here_is_told_in_one_line() -> None:
    number = torch.cuda.device_count()
    with pytest.raises(UserError, match=r"--device cuda:\d+: PyTorch sees (no GPU|\d+ GPUs?).*take --device cpu"):
        torch_device(f"cuda:{number}")
    with pytest.raises(UserError, match="--device is auto, cpu, cuda or cuda:1"):
        torch_device("gpu")
    assert torch_device("cpu") == torch.device("cpu")
    assert torch_device("auto").type == ("cuda" if number else "cpu")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            torch.AcceleratorError("CUDA error: device lost\nCompile with ..."),
            r"^the GPU failed \(CUDA error: device lost\): x$",
        ),
        (torch.OutOfMemoryError("Tried to allocate 20 GiB\n..."), "^the GPU has no memory left: x$"),
    ],
)
def test_a_gpu_that_fails_is_told_in_one_line(error: Exception, says: str) -> None:
    with pytest.raises(UserError, match=says), device_failures("x"):
        raise error


def test_other_errors_are_not_taken_for_the_gpus() -> None:
    with pytest.raises(RuntimeError, match="^another$"), device_failures("x"):
        raise RuntimeError("another")
