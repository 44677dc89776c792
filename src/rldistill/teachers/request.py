"""What a teacher's file is to be read for: the task that it is to play, and what its user says of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rldistill.formats.foreign import ForeignPolicy, Numbers
from rldistill.formats.hub.download import PREFIX, fetch
from rldistill.formats.options import TeacherOptions, check_acting
from rldistill.play.envs import chosen_task, is_minatar, newest_task
from rldistill.teachers.noise import noise_in
from rldistill.types import Task, UserError


def located(ref: str | os.PathLike[str]) -> tuple[Path, str | None]:
    """The path of a reference, fetched where it is on the hub, and the task that it names after a `#`.

    Raises:
        UserError: it names noise, so there is no file of it.
    """
    place, head = os.fspath(ref), None
    noise, plain = noise_in(place)
    if noise is not None:
        raise UserError(f"{place} is a teacher with noise, which no file holds: name {plain} itself")
    if "#" in place and not Path(place).exists():
        place, _, head = place.rpartition("#")
    return (fetch(place) if place.startswith(PREFIX) else Path(place)), head


def refuse_head(path: Path, head: str | None) -> None:
    """Raises UserError where a task is named after `#` and the path is no folder of policies of several tasks."""
    if head is not None:
        raise UserError(f"{path} is no policy folder of several tasks: name it without #{head}")


class Request(NamedTuple):
    """What a reader is given beside the file."""

    task: Task | None
    """What the policy is to play, where that is known."""
    options: TeacherOptions
    """What the file does not say."""
    folder: Path | None
    """Of a model, where the file lies in one; statistics are looked for in its folders too."""

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of an observation."""
        return None if self.task is None else self.task.observation_shape

    @property
    def numbers(self) -> Numbers | None:
        """What observations are made of."""
        if self.task is None:
            return None
        if self.task.observation_dtype != "uint8":
            return "floats"
        return "binary" if is_minatar(self.task.env) else "bytes"

    @property
    def outputs(self) -> dict[str, Any]:
        """What ONNX, TorchScript and plain state dicts have in common."""
        task = self.task
        return {
            "observation_shape": self.shape,
            "num_actions": None if task is None else task.num_actions,
            "action_range": (task.action_low, task.action_high) if task is not None and task.continuous else None,
            "scores": self.options.teacher_scores,
            "pixels": self.options.pixels,
            "numbers": self.numbers,
        }


def asked_task(env: str | None, env_kwargs: Sequence[str], like: Task | None, own: Task | None = None) -> Task | None:
    """What a file is to play by the user's choice or like another policy; None where the file decides."""
    if env is not None:
        return chosen_task(own, env, env_kwargs) if own is not None and own.env == env else newest_task(env, env_kwargs)
    return None if like is None else chosen_task(like, None, env_kwargs)


def renamed(named: str | None, task: Task) -> list[str]:
    """A line where another id is played than was named, since the named version is gone."""
    return [] if named is None or task.env == named else [f"{named} is no longer there: played as {task.env}"]


def own_task(foreign: ForeignPolicy, path: Path, env_kwargs: Sequence[str]) -> Task:
    """What a policy plays by its file or its file's name.

    Raises:
        UserError: neither names an environment, or that environment is not there.
    """
    if foreign.env is None:
        raise UserError(f"{path} does not say which environment it plays: name it with --env")
    try:
        return newest_task(foreign.env, env_kwargs)
    except UserError as error:
        raise UserError(
            f"{error} ({path} or what lies beside it is named so; --env names the environment itself)"
        ) from None


def check_all_act(options: TeacherOptions | None, policies: Sequence[object], names: Sequence[str]) -> None:
    """Refuses options that have an effect on none of one or several policies.

    Args:
        options: as a user gave them.
        policies: those that were loaded with them.
        names: what the message calls them.

    Raises:
        UserError: an option is given that acted on none.
    """
    used = frozenset[str]().union(*(getattr(policy, "used", ()) for policy in policies))
    decided = getattr(policies[0], "decided", {}) if len(policies) == 1 else {}
    check_acting(options, used, " and ".join(names) or "policies that are loaded already", decided)
