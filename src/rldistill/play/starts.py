"""Starts: states inside games of another policy, from which games for a score begin.

A start is the seed of an episode, the actions since its beginning, and a digest of the observation after them. Played again, the
actions lead to the same state, and the digest shows whether they did.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rldistill.documents import parse_json
from rldistill.files import read_regular
from rldistill.play.actions import action_layout, check_actions
from rldistill.types import Actions, Observations, Task, UserError, is_number, printable

_FORMAT, _VERSION = "rldistill-starts", 1
_LARGEST_SEED = 2**31 - 1
_NOT_OF_THE_WORLD = {"random_score", "max_frames", "max_episode_steps", "action_masks"}
"""Fields of a task that change neither the first steps of a game nor what is observed in them."""


class Start(NamedTuple):
    """One state."""

    seed: int
    """Of the episode's reset."""
    actions: Actions
    """(T,) or (T, dimensions): those since the reset."""
    screen: str
    """The digest of the observation after them, see `screen_of`."""


@dataclass(frozen=True, eq=False)
class Starts:
    """A file of starts."""

    path: str
    """As the user named it."""
    task: Task
    made: Mapping[str, Any]
    """By which policy and how, as plain JSON data."""
    starts: tuple[Start, ...]
    sha256: str
    """Of the file."""

    @property
    def card(self) -> dict[str, Any]:
        """What a score says of them, as plain JSON data."""
        return {"file": self.path, "number": len(self.starts), "sha256": self.sha256}


def screen_of(observation: Observations) -> str:
    """The digest of one observation (*obs)."""
    return hashlib.blake2b(np.ascontiguousarray(observation).tobytes(), digest_size=16).hexdigest()


def starts_text(task: Task, made: Mapping[str, Any], starts: Sequence[Start]) -> bytes:
    """The contents of a file of starts: JSON with a line for each start, and a checksum of all the rest."""
    rows = [{"seed": one.seed, "screen": one.screen, "actions": one.actions.tolist()} for one in starts]
    head = {"format": _FORMAT, "format_version": _VERSION, "task": task.as_dict(), "made": dict(made)}
    head["checksum"] = _checksum({**head, "starts": rows})
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    return f'{json.dumps(head, indent=2)[:-2]},\n  "starts": [\n{lines}\n  ]\n}}\n'.encode()


def read_starts(path: str | Path) -> Starts:
    """The inverse of `starts_text`.

    Raises:
        UserError: it cannot be read, is damaged, or is something else.
    """
    try:
        data = read_regular(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    content = parse_json(data, path)
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise UserError(f"{path} holds no starts: make such a file with `rldistill starts`")
    if content.get("format_version") != _VERSION:
        version = printable(content.get("format_version"), 20)
        raise UserError(f"{path} has format version {version}, and this rldistill reads {_VERSION}: update rldistill")
    if content.pop("checksum", None) != _checksum(content):
        raise UserError(f"{path} is damaged: its checksum does not fit; make it anew with `rldistill starts`")
    try:
        task = Task.from_dict(_mapping(content.get("task")))
        starts = tuple(_start(row, task, number) for number, row in enumerate(_rows(content.get("starts"))))
        made = _mapping(content.get("made"))
    except UserError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    return Starts(str(path), task, made, starts, hashlib.sha256(data).hexdigest())


def chosen_starts(files: Sequence[Starts], task: Task) -> Starts:
    """The file with starts of a task.

    Raises:
        UserError: there is none, or there are several.
    """
    fitting = [one for one in files if _differing(one.task, task) is None]
    if len(fitting) > 1:
        raise UserError(f"{fitting[0].path} and {fitting[1].path} both have starts of {task.env}: name one of them")
    if fitting:
        return fitting[0]
    for one in files:
        name = _differing(one.task, task)
        if one.task.env == task.env and name is not None:
            raise UserError(
                f"{one.path} has starts of {task.env} with {name} {getattr(one.task, name)}, and here it is "
                f"{getattr(task, name)}: make others with `rldistill starts`"
            )
    have = " and ".join(f"{one.path} has starts of {one.task.env}" for one in files)
    raise UserError(f"{have}, and what is played is {task.env}: make others with `rldistill starts`")


def check_starts(files: Sequence[Starts], tasks: Sequence[Task], episodes: int) -> None:
    """Whether each task has a file of its own, and each file a task.

    Args:
        files: of starts.
        tasks: that are played.
        episodes: games of each policy; 0 is one from each start.

    Raises:
        UserError: not so, or the games are no multiple of the starts.
    """
    used = [chosen_starts(files, task) for task in tasks]
    for one in files:
        if one not in used:
            raise UserError(f"{one.path} has starts of {one.task.env}, and no policy here plays that: leave it out")
        if episodes % len(one.starts):
            raise UserError(
                f"--episodes {episodes} is no multiple of the {len(one.starts)} starts in {one.path}: leave it out, and each "
                "start is played once"
            )


def _differing(one: Task, other: Task) -> str | None:
    """The first field in which two tasks differ, of those that change the beginning of a game."""
    names = (field.name for field in fields(Task) if field.name not in _NOT_OF_THE_WORLD)
    return next((name for name in names if getattr(one, name) != getattr(other, name)), None)


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError("it lacks its task or how it was made")
    return value


def _rows(value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise UserError("it has no starts")
    return value


def _start(row: Any, task: Task, number: int) -> Start:
    """One start of a file. Raises UserError where it is none of the task."""
    if not isinstance(row, dict) or set(row) != {"seed", "screen", "actions"}:
        raise UserError(f"start {number} has other fields than seed, screen and actions")
    seed, screen, listed = row["seed"], row["screen"], row["actions"]
    if not is_number(seed, int) or not 0 <= seed <= _LARGEST_SEED:
        raise UserError(f"start {number} has the seed {printable(seed, 20)}")
    if not isinstance(screen, str) or not re.fullmatch("[0-9a-f]{32}", screen):
        raise UserError(f"start {number} has no digest of its screen")
    shape, dtype = action_layout(task)
    try:
        given = np.asarray(listed) if isinstance(listed, list) and listed else np.zeros((0, *shape), dtype=dtype)
        with np.errstate(all="ignore"):  # a number that the type cannot hold is refused below
            actions = given.astype(dtype)
        if given.dtype.kind not in "iuf" or not np.array_equal(actions, given):
            raise ValueError("no numbers of the type")
        check_actions(actions, len(actions), task)
    except (TypeError, ValueError):
        raise UserError(f"start {number} has actions that {task.env} does not take") from None
    return Start(seed, actions, screen)
