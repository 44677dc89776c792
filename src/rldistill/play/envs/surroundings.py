"""What a call into an environment changes of its process, for itself alone: everything else is as it was afterwards."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch


class Surroundings:
    """A context manager around each call into one environment.

    Within it the environment finds the settings that it made in earlier calls; outside of it they are those of everybody else: a
    simulator that changes the folder does not take the run with it. What it prints goes to stderr, since stdout is for what a verb
    gives out, and neither of the two can be closed or replaced for others.
    """

    def __init__(self) -> None:
        self._own: dict[int, Any] = {}
        self._lent: _Lent | None = None

    def __enter__(self) -> None:
        self._before = _settings()
        self._streams = sys.stdout, sys.stderr
        if sys.stderr is not None:
            if self._lent is None or self._lent.stream is not sys.stderr:
                self._lent = _Lent(sys.stderr)
            sys.stdout = sys.stderr = self._lent
        for number, value in self._own.items():
            _CHANGE[number](value)

    def __exit__(self, *_: object) -> None:
        sys.stdout, sys.stderr = self._streams
        now = _settings()
        if now == self._before:  # of every call but those of a few environments
            self._own.clear()
            return
        for number, (value, before) in enumerate(zip(now, self._before, strict=True)):
            if value == before:
                self._own.pop(number, None)
            else:
                self._own[number] = value
                _CHANGE[number](before)


class _Lent:
    """A stream that who borrows it cannot close."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def close(self) -> None:
        """Only writes what it holds."""
        with suppress(OSError):
            self.stream.flush()


def _settings() -> tuple[Any, ...]:
    """The current folder (None where it was removed), PyTorch's default type and its gradients, NumPy's errors."""
    try:
        folder = os.getcwd()
    except OSError:
        folder = None
    return folder, torch.get_default_dtype(), torch.is_grad_enabled(), np.geterr()


def _enter(folder: str | None) -> None:
    if folder is not None:
        with suppress(OSError):
            os.chdir(folder)


_CHANGE: tuple[Callable[[Any], Any], ...] = (
    _enter,
    torch.set_default_dtype,
    torch.set_grad_enabled,
    lambda kinds: np.seterr(**kinds),
)
"""Sets what `_settings` reads, in its order."""
