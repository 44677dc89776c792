"""The command `rldistill`, also `python -m rldistill`.

Importing the verbs takes a second or two, so this file imports little itself and handles Ctrl-C before it imports them.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from contextlib import suppress
from types import FrameType

import rldistill
from rldistill.terminal import open_standard_streams, print_any_text, settle

_NOTHING_WRITTEN = "interrupted; nothing was written"
_is_importing = False


def main() -> None:
    """Imports the command and runs it. Exit status 130 for Ctrl-C, however often and whenever; the rest as `cli.main` has it."""
    open_standard_streams()
    print_any_text()
    # Jobs that a script leaves in the background ignore it.
    can_interrupt = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    if can_interrupt:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        if sys.argv[1:] == ["--version"]:
            print(f"rldistill {rldistill.__version__}")
        else:
            _run()
    except SystemExit as ended:
        status = ended.code
    except OSError as error:  # of --version: `cli` has its own
        _say(f"error: {error.strerror or error}")
        status = 2
    except KeyboardInterrupt:  # once more while the command ends
        status = 130
    else:
        status = 0
    # Python takes its time to end, and a Ctrl-C in it would be another exit status.
    if can_interrupt:
        signal.signal(signal.SIGINT, _leave if status == 130 else signal.SIG_IGN)
    settle()
    if status == 130:
        atexit._run_exitfuncs()
        settle()
        os._exit(130)
    sys.exit(status)


def _run() -> None:
    global _is_importing
    _is_importing = True
    try:
        # Python 3.11 keeps its frames in chunks of 16 KiB and maps a new one each time a call crosses the end of one. Torch's
        # imports below those of the command cross it ten thousand times, which takes a tenth of a second; from here they do not.
        import torch  # noqa: F401

        from rldistill import cli
    except KeyboardInterrupt:
        _say(_NOTHING_WRITTEN)
        raise
    _is_importing = False
    cli.main()


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raises KeyboardInterrupt, but not in an import: modules written in C++ end the process where they meet it."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            _say(_NOTHING_WRITTEN if _is_importing else "interrupted")
            _leave(number, frame)
        frame = frame.f_back
    raise KeyboardInterrupt


def _say(line: str) -> None:
    with suppress(OSError):
        os.write(2, f"rldistill: {line}\n".encode())


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(130)


if __name__ == "__main__":
    main()
