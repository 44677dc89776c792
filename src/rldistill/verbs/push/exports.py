"""Exports that go with a policy: made now, or made before and looked at again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rldistill.files import read_regular, replace_file
from rldistill.formats.c import render
from rldistill.policies import SavedPolicy
from rldistill.progress import Progress
from rldistill.teachers import ForeignTeacher, load_policy
from rldistill.teachers.detect import kind_of
from rldistill.teachers.exported import Exported, exported_in
from rldistill.types import UserError
from rldistill.verbs.export import ExportConfig, Format, export
from rldistill.verbs.export.checks import ROWS, Bound, compare, played_states, refuse_beyond

STATES = 1_000
"""On which an export made before is compared with the policy."""
LEAST = Bound(agreement=0.95)
"""Of the coarsest format: a file does not say whether it is an int8 one."""
NAMES: dict[Format, str] = {
    "onnx": "policy.onnx",
    "onnx-int8": "policy-int8.onnx",
    "c": "policy.c",
    "c-int8": "policy-int8.c",
    "torchscript": "policy.pt",
    "sb3": "policy-sb3.zip",
}


@dataclass(frozen=True)
class Shipped:
    """An export in the folder."""

    file: str
    format: str
    bytes: int
    agreement: float
    """Share of the compared states in which it chooses the policy's action."""
    states: int
    """How many were compared."""


def make_exports(
    policy: SavedPolicy, formats: Sequence[Format], folder: Path, seed: int, progress: Progress, *, alone: bool = False
) -> list[Shipped]:
    """Exports a policy to each format, as `export` does with its own defaults; `alone` plays in one environment at a time.

    Raises:
        UserError: as `export`.
    """
    shipped, config = [], ExportConfig(seed=seed, teacher="none")
    for format in dict.fromkeys(formats):
        # Not a default of `NAMES`: what an unknown format is, `export` says.
        done = export(
            policy,
            folder / NAMES.get(format, "policy"),
            format,
            replace(config, num_envs=1) if alone else config,
            progress=progress,
        )
        file = done.files[0]
        shipped.append(Shipped(file.name, format, file.stat().st_size, done.compared.agreement, done.compared.states))
    return shipped


def check_exports(policy: SavedPolicy, files: Sequence[Path]) -> list[tuple[Path, str, Exported]]:
    """Each file's kind and what it says of itself, told before anything is played.

    Raises:
        UserError: one is not there, no export, an export of another policy, or of the name of another one.
    """
    found: list[tuple[Path, str, Exported]] = []
    names: set[str] = set()
    for file in files:
        if file.suffix == ".h":
            raise UserError(f"{file} is a header: name the C file, its header comes along")
        if not file.is_file():
            raise UserError(f"no file at {file}")
        kind = kind_of(file)
        exported = exported_in(kind, file)
        if exported is None:
            raise UserError(f"{file} was not written by rldistill export: --with takes exports of the policy")
        if exported.known.get("policy_sha256") != policy.sha256:
            raise UserError(f"{file} is an export of another policy: export this one (or leave the file out)")
        if exported.c is not None:
            header = file.with_name(str(exported.c.description["header"]))
            if header.name != file.with_suffix(".h").name or _text(header) != render(exported.c)[1]:
                raise UserError(
                    f"{file} is without its header {header.name} as export wrote it: export the policy to C anew"
                )
            names.add(header.name)
        if file.name in names:
            raise UserError(f"two exports are called {file.name}: rename one")
        names.add(file.name)
        found.append((file, kind, exported))
    return found


def is_export(file: Path) -> bool:
    """Whether `export` wrote a file, a C file's header among them."""
    if file.is_symlink() or not file.is_file():
        return False
    if file.suffix == ".h":
        file = file.with_suffix(".c")
    try:
        return exported_in(kind_of(file), file) is not None
    except UserError:
        return False


def copy_exports(
    policy: SavedPolicy,
    checked: Sequence[tuple[Path, str, Exported]],
    folder: Path,
    seed: int,
    progress: Progress,
    *,
    alone: bool = False,
) -> list[Shipped]:
    """Copies what `check_exports` gave, and compares the copies with the policy.

    What a file says of itself can be wrong, so that each is asked for its actions on `STATES` states too; `alone`
    plays for them in one environment.

    Raises:
        UserError: a file that cannot be loaded, that plays otherwise, or whose name is taken by an export made now.
    """
    shipped = []
    for file, kind, exported in checked:
        target = folder / file.name
        if target.exists():
            raise UserError(f"--exports makes a {file.name} already: rename {file}, or leave one out")
        replace_file(target, read_regular(file))
        if exported.c is not None:
            replace_file(target.with_suffix(".h"), read_regular(file.with_suffix(".h")))
        made = load_policy(target)
        assert isinstance(made, ForeignTeacher)
        found = compare(
            policy, made, played_states(policy, STATES, seed, num_envs=1 if alone else ROWS), STATES, progress
        )
        refuse_beyond(LEAST, found, file.name)
        shipped.append(Shipped(file.name, kind, target.stat().st_size, found.agreement, found.states))
    return shipped


def _text(path: Path) -> str | None:
    return read_regular(path).decode("ascii", "replace") if path.is_file() else None
