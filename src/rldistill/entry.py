"""What the command starts with: importing the verbs takes a second or two, and Ctrl-C is heard in it too."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from types import FrameType

import rldistill
from rldistill.terminal import open_standard_streams, print_any_text, settle


def main() -> None:
    """Imports the command and runs it. Exit status 130 for Ctrl-C, however often and whenever; the rest as `cli.main` has it."""
    open_standard_streams()
    print_any_text()
    try:
        if sys.argv[1:] == ["--version"]:
            print(f"rldistill {rldistill.__version__}")
        else:
            _run()
    except SystemExit as ended:
        status = ended.code
    except KeyboardInterrupt:  # before the command is there, or once more while it ends
        status = 130
        with suppress(OSError):
            print("rldistill: interrupted", file=sys.stderr)
    else:
        status = 0
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(
            signal.SIGINT, _leave
        )  # Python joins threads and calls what is registered: Ctrl-C ends that at once
    settle()
    sys.exit(status)


def _run() -> None:
    try:
        from rldistill import cli
    except KeyboardInterrupt:
        with suppress(OSError):
            print("rldistill: interrupted; nothing was written", file=sys.stderr)
        sys.exit(130)
    cli.main()


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(130)
