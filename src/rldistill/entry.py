"""What the command starts with: importing the verbs takes a second or two, and Ctrl-C is heard in it too."""

from __future__ import annotations

import sys

import rldistill


def main() -> None:
    """Imports the command and runs it. Exit status 130 for Ctrl-C before it is there; the rest as `cli.main` has it."""
    if sys.argv[1:] == ["--version"]:
        print(f"rldistill {rldistill.__version__}")
        return
    try:
        from rldistill import cli
    except KeyboardInterrupt:
        print("rldistill: interrupted; nothing was written", file=sys.stderr)
        sys.exit(130)
    cli.main()
