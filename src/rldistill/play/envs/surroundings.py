"""What calls into environments change of their process: it is put back after each call, and set again before the next."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias

import numpy as np
import torch

Own: TypeAlias = dict[int, Any]
"""Settings that one environment made in earlier calls: a place in `_settings` to a value. Empty of nearly all environments."""


class Surroundings:
    """A context manager around calls into environments, and the calls themselves.

    Within a call an environment has the settings that it made in earlier calls; before and after it they are those of everybody
    else. A simulator that changes the folder does not take the run with it, and not the rows beside it either. What environments
    print goes to stderr, since stdout is for what a verb prints. None of them can close or replace the two streams for others.

    Everybody else's settings are read when the outermost block is entered, so a block around the calls of many rows is cheaper
    than a block around each.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._lent: _Lent | None = None

    def __enter__(self) -> None:
        if self._depth == 0:
            self._everybodys = _settings()
            self._streams = sys.stdout, sys.stderr
            if sys.stderr is None:
                self._lent = None
            elif self._lent is None or self._lent.stream is not sys.stderr:
                self._lent = _Lent(sys.stderr)
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1

    def call(self, own: Own, function: Callable[[], Any]) -> Any:
        """What the function returns. Outside of a block the call is a block of its own.

        Args:
            own: the environment's settings; they are updated.
            function: calls into the environment.
        """
        if self._depth == 0:
            with self:
                return self.call(own, function)
        if self._lent is not None:
            sys.stdout = sys.stderr = self._lent
        for number, value in own.items():
            _CHANGE[number](value)
        try:
            return function()
        finally:
            sys.stdout, sys.stderr = self._streams
            now = _settings()
            if now == self._everybodys:  # after nearly all calls
                own.clear()
            else:
                self._put_back(own, now)

    def _put_back(self, own: Own, now: tuple[Any, ...]) -> None:
        for number, (value, before) in enumerate(zip(now, self._everybodys, strict=True)):
            if value == before:
                own.pop(number, None)
            else:
                own[number] = value
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
