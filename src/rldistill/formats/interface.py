"""What an exported policy reads and gives, in words: where it runs there is no environment to ask."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rldistill.play.envs import action_names, declared_spaces, features_text, is_atari, is_minatar
from rldistill.types import Task, UserError

_MOST_LINES = 60


def interface_of(task: Task, reads: Sequence[int] = ()) -> list[str]:
    """Lines for a header, or for the properties of a file: the layout of an observation, and what an action means.

    Args:
        task: what the policy plays.
        reads: of vectors, the features that its network reads; all of them where it is empty.
    """
    try:
        spaces = None if is_atari(task.env) or is_minatar(task.env) else declared_spaces(task)
    except UserError:  # not here: the task alone tells less
        spaces = None
    lines = [f"environment: {task.env}", *_observation(task, spaces and spaces[0])]
    if reads:
        left_out = [place for place in range(task.observation_shape[0]) if place not in set(reads)]
        if left_out:
            lines.append(f"it ignores observation{_runs(left_out)}: any finite number will do there")
    return lines + _action(task, spaces and spaces[1])


def _observation(task: Task, space: Any) -> list[str]:
    shape = " x ".join(map(str, task.observation_shape))
    kind = "bytes, 0 to 255, not scaled" if task.observation_dtype == "uint8" else "floats"
    if len(task.observation_shape) != 3:
        parts = list(_parts(task, space))
        few = (
            [*parts[:_MOST_LINES], f"and {len(parts) - _MOST_LINES} parts more"] if len(parts) > _MOST_LINES else parts
        )
        return [f"observation: {shape} {kind}, as the environment gives them, not normalized", *few]
    first = "channels first"
    if task.frame_stack > 1:
        first = f"{task.frame_stack} frames, the oldest first"
    lines = [f"observation: {shape} {kind}: {first}, then rows, then columns"]
    own = tuple(space.shape or ()) if space is not None else ()
    channels, height, width = task.observation_shape
    if is_minatar(task.env):
        own = (height, width, channels)
    if own == (height, width, channels) and own != task.observation_shape:
        text = " x ".join(map(str, own))
        lines.append(f"the environment gives {text}, channels last: move the last axis to the front")
    elif own and own != task.observation_shape:
        lines.append(f"the environment gives {' x '.join(map(str, own))}")
    return lines


def _parts(task: Task, space: Any) -> Iterator[str]:
    """A line for each part of a vector: its places, its name, what it is."""
    if space is None:
        at = 0
        for name, size in task.observation_keys:
            yield f"observation{_places(at, size)}: {name}"
            at += size
        return
    for name, at, size, what in features_text(space):
        yield f"observation{_places(at, size)}: {f'{name}, ' if name else ''}{what}"


def _action(task: Task, space: Any) -> list[str]:
    if task.continuous:
        pairs = list(zip(task.action_low, task.action_high, strict=True))
        lines = [f"action: {len(pairs)} float{'s'[: len(pairs) - 1]} in the environment's units, held to their range"]
        if len(set(pairs)) == 1:
            return [f"{lines[0]}, each {_range(*pairs[0])}"]
        return lines + [
            f"action[{place}]: {_range(low, high)}" for place, (low, high) in enumerate(pairs[:_MOST_LINES])
        ]
    if task.action_sizes:
        sizes = ", ".join(map(str, task.action_sizes))
        lines = [f"action: {len(task.action_sizes)} choices at once, of {sizes}, each counted from 0"]
    else:
        names = _names(task)
        meaning = ", ".join(f"{number} {name}" for number, name in enumerate(names)) if names else ""
        lines = [f"action: one of {task.choices[0]}, counted from 0{f': {meaning}' if meaning else ''}"]
    start = np.ravel(getattr(space, "start", 0))
    if start.any():
        lines.append(f"the environment counts from {', '.join(map(str, start))}: add that")
    return lines


def _names(task: Task) -> list[str]:
    try:
        names = action_names(task)
    except (UserError, ImportError):
        return []
    return (
        []
        if names == [str(number) for number in range(task.action_dimensions if task.continuous else task.mask_size)]
        else names
    )


def _places(at: int, size: int) -> str:
    return f"[{at}]" if size == 1 else f"[{at}..{at + size - 1}]"


def _runs(places: Sequence[int]) -> str:
    """`[0..2], [5]` of 0, 1, 2, 5."""
    breaks = np.flatnonzero(np.diff(places) > 1) + 1
    return ", ".join(_places(int(run[0]), len(run)) for run in np.split(np.asarray(places), breaks))


def _range(low: float, high: float) -> str:
    if not math.isfinite(low) and not math.isfinite(high):
        return "without bounds"
    return f"{low + 0:g} to {high + 0:g}"
