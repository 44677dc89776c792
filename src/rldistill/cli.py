"""The command `rldistill`: each verb is one function of the library."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import tyro

from rldistill.progress import Talking
from rldistill.training import TrainConfig, train
from rldistill.types import UserError


def _train(env: tyro.conf.Positional[str], out: Path, config: Annotated[TrainConfig, tyro.conf.arg(name="")] = TrainConfig(), resume: bool = False) -> None:
    """Train a teacher."""
    with Talking() as progress:
        train(env, out, config, resume=resume, progress=progress)


def main() -> None:
    try:
        tyro.extras.subcommand_cli_from_dict({"train": _train, "x": lambda: None})
    except UserError as error:
        print(f"rldistill: error: {error}", file=sys.stderr)
        sys.exit(2)
