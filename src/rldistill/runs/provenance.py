"""How something was made, for those who find it: the version and the command."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import rldistill


def made_by() -> str:
    """Name and version of the program."""
    return f"rldistill {rldistill.__version__}"


def command_line() -> str:
    """The command as it was typed; `python -m rldistill` is `rldistill`."""
    program = Path(sys.argv[0])
    return shlex.join([program.parent.name if program.name == "__main__.py" else program.name, *sys.argv[1:]])
