"""Flags and references that several verbs share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, TypeAlias

from tyro.conf import OmitArgPrefixes, Positional, arg

from rldistill.formats.options import TeacherOptions
from rldistill.types import UserError
from rldistill.verbs.distill.config import PRESETS, Preset

Out: TypeAlias = Annotated[Path, arg(help="Folder to make; an existing one is never overwritten.")]
Resume: TypeAlias = Annotated[
    bool, arg(help="Go on with the run in --out; it ends as if it had never been interrupted.")
]
REF = (
    "a policy or run folder, a file of export, a Stable-Baselines3 zip, a CleanRL, ONNX, TorchScript or state dict file, "
    "hf://owner/name"
)
PRESET = (
    "`rusu2015`: the defaults are the paper's settings: teacher drives, temperature 0.01, RMSProp, constant rate, "
    "10,000 minibatches for each 54,000 control steps, no standardization, no average."
)
ForeignFile: TypeAlias = OmitArgPrefixes[Annotated[TeacherOptions, arg(name="foreign-file")]]
Data: TypeAlias = Annotated[Positional[Path], arg(metavar="DATA", help="Dataset folder.")]
TeacherRef: TypeAlias = Annotated[str, arg(metavar="REF", help=f"The teacher: {REF}.")]
Refs: TypeAlias = Annotated[
    tuple[str, ...],
    arg(metavar="REF [REF ...]", help=f"Policies, the first is what others are compared with; each {REF}."),
]


def preset_in(words: Sequence[str]) -> Preset:
    """The preset that a command line names last; `none` where it names no known one, which the parser then refuses."""
    named: Preset = "none"
    for word, following in pairwise([*words, ""]):
        name, _, value = word.partition("=")
        value = value or following
        if name == "--preset" and value in PRESETS:
            named = value
    return named


_LISTS = (
    "--teacher",
    "--env-kwargs",
    "--student-observation",
    "--snapshots",
    "--exports",
    "--with",
    "--starts",
    "--slurm-options",
)
"""Flags that several values may follow."""


def check_lists(words: Sequence[str]) -> None:
    """Refuses a flag of several values that is given twice, because the parser would drop the first values without a word."""
    names = [word.partition("=")[0].replace("_", "-") for word in words]
    for name in _LISTS:
        if names.count(name) > 1:
            raise UserError(f"{name} is given twice: name it once, with all its values behind it")
