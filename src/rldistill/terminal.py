"""Standard input, output and error, whatever the command is started with: closed, full, or of another encoding."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import TextIO


def open_standard_streams() -> None:
    """Opens descriptors 0, 1 and 2 to nowhere where they are closed.

    Otherwise the next files that are opened would get these numbers, and what PyTorch, a simulator or a signal's handler writes to
    standard error would lie in them.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this one
        if getattr(sys, name) is None:  # as Python leaves it where the descriptor was closed
            setattr(sys, name, open(os.devnull, "w" if number else "r"))  # noqa: SIM115 (as long as the process)


def print_any_text() -> None:
    """Has standard output and error print what their encoding lacks as `\\xb5` and the like, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def settle() -> None:
    """Flushes standard output and error. What cannot be written is dropped without a message."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            _give_up(stream)


def _give_up(stream: TextIO) -> None:
    """Python flushes once more when it ends, and a failure then is a traceback and another exit status."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        stream.flush()
