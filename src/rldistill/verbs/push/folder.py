"""The folder that `push` writes: where it may lie, and what of a run goes into it."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from rldistill.files import read_regular
from rldistill.formats.hub.download import PREFIX, read_card
from rldistill.policies import MultiTaskPolicy, SavedPolicy
from rldistill.progress import Progress
from rldistill.runs.folder import RunFolder
from rldistill.runs.records import Evaluation, curve_csv
from rldistill.types import UserError

POLICY_FILES = ("policy.json", "weights.safetensors")
_FOLDER = {"README.md", *POLICY_FILES, "config.json", "scores.json", "curve.csv", "replay.gif", "replay.mp4", "exports"}
"""All that push writes. A folder with anything else in it is not replaced."""


IsExport: TypeAlias = Callable[[Path], bool]


def target_folder(path: Path, is_export: IsExport, *, force: bool) -> Path:
    """The folder, checked before anything is played.

    Raises:
        UserError: it cannot be written, or exists and push did not write it, or `force` is not set.
    """
    if path.name in ("", ".."):  # has no name to write beside
        path = path.resolve()
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: there is no folder {path.parent}")
    if not path.exists():
        return path
    if not path.is_dir():
        raise UserError(f"{path} is a file: name a folder with --out")
    if not force:
        raise UserError(f"{path} exists: replace it with --force, or choose another --out")
    check_own(path, path, is_export)
    return path


def check_own(folder: Path, path: Path, is_export: IsExport) -> None:
    """Raises UserError where a folder, which the user knows as `path`, holds anything that push did not write."""
    alien = sorted(entry.name for entry in folder.iterdir() if entry.name not in _FOLDER or _is_alien(entry))
    exports = folder / "exports"
    if not alien and exports.is_dir():
        alien = [f"exports/{entry.name}" for entry in sorted(exports.iterdir()) if not is_export(entry)]
    if alien or read_card(folder).tool != "rldistill":
        raise UserError(
            f"{path} is no folder that push wrote ({f'it holds {alien[0]}' if alien else 'it has no card of rldistill'}): "
            "choose another --out"
        )


def _is_alien(entry: Path) -> bool:
    """Whether it is no plain file or folder, as push writes it."""
    return entry.is_symlink() or not (entry.is_dir() if entry.name == "exports" else entry.is_file())


def temporary_folder() -> Path:
    """A folder for one push, which is removed when the hub has it."""
    try:
        return Path(tempfile.mkdtemp(prefix="rldistill-push-"))
    except OSError as error:
        raise UserError(f"no place for a temporary folder ({error.strerror}): name one with --out") from None


def run_files(
    policy: str | os.PathLike[str] | SavedPolicy | MultiTaskPolicy, source: SavedPolicy | MultiTaskPolicy
) -> tuple[dict[str, Any], bytes]:
    """The configuration of the run that a policy lies in, and its learning curve; empty where there is none.

    Several tasks have a curve each, and no one file for them.
    """
    if source.path is None:
        return {}, b""
    beside = source.path / "curve.csv"
    curve = read_regular(beside) if beside.is_file() else b""
    if isinstance(policy, SavedPolicy | MultiTaskPolicy):
        return {}, curve
    named = os.fspath(policy)
    run = RunFolder(source.path if named.startswith(PREFIX) else Path(named))
    if not curve and isinstance(source, SavedPolicy):
        played = [record for record in run.records()[0] if isinstance(record, Evaluation) and record.returns]
        if len({record.control_steps for record in played}) > 1:  # a dataset is read without a step
            curve = curve_csv(played, games=len(played[0].returns or ()))
    return run.config(), curve


def policy_bytes(source: SavedPolicy | MultiTaskPolicy, name: str) -> bytes:
    """One file of a policy folder."""
    if source.path is None:
        raise UserError("this policy was never saved: write it with save_policy, and push its folder")
    return read_regular(source.path / name)


def warn_of_paths(folder: Path, progress: Progress) -> None:
    """Warns of paths of this machine in the files: a home folder names a person."""
    paths: set[str] = set()
    where = []
    for name in ("policy.json", "config.json", "scores.json"):
        text = read_regular(folder / name).decode(errors="replace") if (folder / name).is_file() else ""
        here = set(re.findall(r"(?<![\w.:/~-])(?:~/|/)(?:[\w.+-]+/)+[\w.+-]*", text))
        where += [name] if here else []
        paths |= here
    if paths:
        few = ", ".join(sorted(paths)[:3]) + (" ..." if len(paths) > 3 else "")
        progress.say(f"note: folders of this machine stand in {' and '.join(where)}, for all who see the model: {few}")
