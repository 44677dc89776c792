"""What a call into an environment changes of its process, for itself alone: everything else is as it was afterwards."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch

_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (lambda: _folder(), lambda folder: _enter(folder)),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (np.geterr, lambda kinds: np.seterr(**kinds)),
)
"""Reads and sets: the current folder, PyTorch's default type and its gradients, NumPy's errors."""


class Surroundings:
    """A context manager around each call into one environment.

    Within it the environment finds the settings that it made in earlier calls; outside of it they are those of everybody else: a
    simulator that changes the folder does not take the run with it. What it prints goes to stderr, since stdout is for what a verb
    gives out, and neither of the two can be closed or replaced for others.
    """

    def __init__(self) -> None:
        self._own: dict[int, Any] = {}

    def __enter__(self) -> None:
        self._before = [read() for read, _ in _SETTINGS]
        self._streams = sys.stdout, sys.stderr
        if sys.stderr is not None:
            sys.stdout = sys.stderr = _Lent(sys.stderr)
        for number, value in self._own.items():
            _SETTINGS[number][1](value)

    def __exit__(self, *_: object) -> None:
        sys.stdout, sys.stderr = self._streams
        for number, ((read, change), before) in enumerate(zip(_SETTINGS, self._before, strict=True)):
            now = read()
            if now == before:
                self._own.pop(number, None)
            else:
                self._own[number] = now
                change(before)


class _Lent:
    """A stream that who borrows it cannot close."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def close(self) -> None:
        """Only writes what it holds."""
        with suppress(OSError):
            self._stream.flush()


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


def _enter(folder: str | None) -> None:
    if folder is not None:
        with suppress(OSError):
            os.chdir(folder)
