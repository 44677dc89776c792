"""Ctrl-C that waits until the work in progress is done and can be saved."""

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
    """Defers the first Ctrl-C, or SIGTERM, within the block; a second one interrupts at once.

    The first one prints a line on stderr, and from then on the yielded function returns True. In threads other than the main
    thread nothing changes, since signals do not reach them. A signal that the process ignores stays ignored: a job that a script
    leaves in the background does not end by a Ctrl-C that is meant for another.
    """
    pressed = threading.Event()
    before: dict[signal.Signals, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
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
    handled = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]
    before.update({number: signal.getsignal(number) for number in handled})
    for number in handled:
        signal.signal(number, handle)
    try:
        yield pressed.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
