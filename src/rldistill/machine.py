"""Devices, memory and packages of this machine."""

from __future__ import annotations

import ctypes
import importlib
import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from rldistill.types import UserError


def torch_device(name: str) -> torch.device:
    """Where networks are, from `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:1`.

    Raises:
        UserError: no such device here.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise UserError(f"--device is auto, cpu, cuda or cuda:1 (any number), not {name!r}")
    number = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if number else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= number:
        has = (
            "PyTorch sees no GPU here"
            if not number
            else f"PyTorch sees {number} GPU{'s' * (number > 1)}, from cuda:0 on"
        )
        raise UserError(f"--device {name}: {has} (torch {torch.__version__}); take --device cpu")
    return device


@contextmanager
def device_failures(advice: str) -> Iterator[None]:
    """Turns a GPU that runs out of memory or fails into a UserError.

    Args:
        advice: what is safe, and how to go on.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(f"the GPU has no memory left: {advice}") from None
    except torch.AcceleratorError as error:
        raise UserError(f"the GPU failed ({str(error).splitlines()[0]}): {advice}") from None


@contextmanager
def usual_torch() -> Iterator[None]:
    """Sets PyTorch's defaults, whatever the caller has set: with gradients, in float32, on the processor.

    A context manager and a decorator: `torch.no_grad()`, `torch.inference_mode()`, `torch.autocast()` or another default dtype or
    device around a call would change its result, or end it in PyTorch's own words.
    """
    dtype = torch.get_default_dtype()
    with ExitStack() as usual:
        usual.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        usual.enter_context(torch.inference_mode(False))
        usual.enter_context(torch.enable_grad())
        if torch.get_default_device().type != "cpu":
            usual.enter_context(torch.device("cpu"))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                usual.enter_context(torch.autocast(kind, enabled=False))
        yield


def machine_in_words(device: torch.device | None = None) -> str:
    """What this process computes on, for provenance: cores that it may use, threads that it uses, kind of processor, GPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    kind = platform.machine().replace("_", "-")
    gpu = torch.cuda.get_device_name(device) if device is not None and device.type == "cuda" else "no GPU"
    return f"{cores} core{'s' * (cores > 1)}, {threads} thread{'s' * (threads > 1)}, {kind}, {gpu}"


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
