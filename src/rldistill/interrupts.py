"""Ctrl-C at a moment that suits: between two items of work, where what was done can be saved."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Within it, the first Ctrl-C (or SIGTERM, of those who stop a service or a job) only makes the yielded function say True,
    and one line on stderr; a second one interrupts at once.

    Only the main thread hears of signals, so elsewhere nothing changes. A signal that the process was told to ignore stays so:
    jobs that a script leaves in the background do not die of a Ctrl-C that is meant for another.
    """
    pressed = threading.Event()
    before: dict[signal.Signals, Any] = {}

    def hear(number: int, frame: FrameType | None) -> None:
        if pressed.is_set():
            earlier = before.get(signal.SIGINT)
            if callable(earlier):  # the command's own, which knows where it must not be raised
                earlier(number, frame)
            raise KeyboardInterrupt
        pressed.set()
        # Not print: a handler may come while another one writes. And not 2, which is a file's where standard error is closed.
        with suppress(OSError, ValueError, AttributeError):
            os.write(sys.stderr.fileno(), b"\nstopping where it can be resumed; once more stops at once\n")

    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return
    heard = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]
    before.update({number: signal.getsignal(number) for number in heard})
    for number in heard:
        signal.signal(number, hear)
    try:
        yield pressed.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
