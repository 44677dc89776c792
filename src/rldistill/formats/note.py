"""The note that `export` writes into a file: what the policy plays, what its scores are, and facts about it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

from rldistill.documents import parse_json
from rldistill.formats.archives import read_members
from rldistill.play.actions import score_width
from rldistill.types import ScoreKind, Task, UserError, printable

MEMBER = "rldistill.json"
"""Where the note stands: a member of zips and TorchScript archives; in ONNX a property, without the ending."""
FORMAT = "rldistill-export"
TASKS_FORMAT = "rldistill-export-tasks"
"""Of a file with all heads of a policy of several tasks."""
VERSION = 1
MOST_TEXT = 256 * 1024
"""Bytes of a note."""
_FACTS: dict[str, type] = {"network": str, "parameters": int, "policy_sha256": str, "made_by": str}


class Note(NamedTuple):
    """What an exported file says of itself."""

    task: Task
    score_kind: ScoreKind
    facts: Mapping[str, Any]
    """Network, parameters, checksum of the policy, version; plain JSON data."""
    contents: Any = None
    """What the file holds, where the note is read with all of it, as in C."""


def note_of(task: Task, score_kind: ScoreKind, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The note as an exporter writes it, plain JSON data."""
    return {
        "format": FORMAT,
        "format_version": VERSION,
        "task": task.as_dict(),
        "score_kind": score_kind,
        **facts,
    }


def parse_note(text: str | bytes | None, path: Path) -> Note | None:
    """The note in a file's text; None where there is none.

    Raises:
        UserError: it is damaged, or of another version.
    """
    if text is None:
        return None
    try:
        data = parse_json(text, path)
    except UserError:
        data = None
    if isinstance(data, dict) and data.get("format") == TASKS_FORMAT:
        raise UserError(
            f"{path} holds all heads of a policy of several tasks: name the policy's folder, or export one head"
        )
    if not isinstance(data, dict) or data.get("format") != FORMAT or data.get("format_version") != VERSION:
        raise UserError(f"{path}: what it says of itself is damaged or of another version; export it anew")
    return checked_note(data, path)


def checked_note(data: Mapping[str, Any], path: Path) -> Note:
    """A note out of its JSON data.

    Raises:
        UserError: something in it is missing or wrong.
    """
    try:
        task = Task.from_dict(data["task"])
        kind: ScoreKind = data["score_kind"]
        if kind not in get_args(ScoreKind):
            raise ValueError(f"score_kind is {kind!r}")
        score_width(task, kind)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: what it says of itself is damaged ({printable(error)}); export it anew") from None
    return Note(task, kind, {name: data[name] for name, type_ in _FACTS.items() if type(data.get(name)) is type_})


def read_zipped_note(path: Path) -> Note | None:
    """The note in a zip file or a TorchScript archive; None where there is none.

    Raises:
        UserError: the archive or the note is damaged.
    """

    def wanted(name: str) -> int | None:
        return MOST_TEXT if name == MEMBER or name.endswith(f"/extra/{MEMBER}") else None

    return parse_note(next(iter(read_members(path, wanted).values()), None), path)
