"""Whether a policy of another tool fits the environment that it is to play: observations, actions, statistics, stacks."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from rldistill.formats.foreign import BoxSpace, DiscreteSpace, ForeignPolicy, Statistics
from rldistill.play.actions import describe, score_width
from rldistill.play.envs import gives_action_masks, is_minatar, observed_range
from rldistill.play.envs.declared import observation_bounds, own_shape
from rldistill.types import Task, UserError, printable, unbounded

_INFINITE = 1e30  # some environments declare the largest float32
_ANOTHER_SCALE = 10.0
_RANDOM_STEPS = 200


def mismatches_of(foreign: ForeignPolicy, task: Task) -> list[str]:
    """Everything about a policy that does not fit a task, a line each."""
    lines = []
    try:
        score_width(task, foreign.score_kind)
    except UserError as error:
        lines.append(str(error))
    if foreign.observation_space is not None:
        lines += _unlike(foreign.observation_space, task)
        keys = foreign.observation_space.keys
        if keys and keys != task.observation_keys:
            parts = ", ".join(name for name, _ in task.observation_keys) or "none"
            lines.append(
                f"it reads the parts {', '.join(printable(name, 40) for name, _ in keys[:20])} of observations, "
                f"{task.env} gives {parts}, in this order"
            )
    actions = foreign.action_space
    if isinstance(actions, DiscreteSpace):
        sizes = task.choices
        if actions.sizes != (sizes if actions.divided or not sizes else (task.mask_size,)):
            lines.append(
                f"it chooses among {' x '.join(map(str, actions.sizes))} actions, {task.env} has {describe(task)}"
            )
    elif isinstance(actions, BoxSpace) and task.continuous:
        low, high = np.asarray(task.action_low), np.asarray(task.action_high)
        ends = [np.array([unbounded(float(n)) for n in side.ravel()]) for side in (actions.low, actions.high)]
        if actions.low.size != low.size:
            lines.append(f"its actions have {actions.low.size} dimensions, {task.env} has {describe(task)}")
        elif not (np.allclose(ends[0], low) and np.allclose(ends[1], high)):
            lines.append(
                f"its actions lie in {_range(actions.low, actions.high)}, those of {task.env} in {_range(low, high)}"
            )
    if foreign.unknown_statistics and foreign.normalization is None:
        names = ", ".join(foreign.unknown_statistics[:5])
        lines.append(
            f"it holds statistics of observations ({names}), and how they are applied is not known: write them to a JSON file, "
            '{"mean": [...], "std": [...], "clip": null}, and name it with --normalization'
        )
    elif foreign.normalization_expected and foreign.normalization is None:
        lines.append(
            "it was trained on normalized observations, and their statistics are not here: name them with --normalization "
            "(a VecNormalize of rewards alone needs none)"
        )
    statistics: Statistics | None = foreign.normalization
    read = foreign.observation_space.shape if foreign.observation_space is not None else task.observation_shape
    if statistics is not None and statistics.mean.shape not in ((), task.observation_shape, read):
        lines.append(f"its statistics are of shape {statistics.mean.shape}, observations of {task.observation_shape}")
    stack = foreign.provenance.get("frame_stack")
    if isinstance(stack, int) and stack != task.frame_stack:
        lines.append(f"it was trained on a stack of {stack} observations, {task.env} gives {task.frame_stack}")
    return lines


def with_masks(foreign: ForeignPolicy, task: Task) -> tuple[Task, list[str]]:
    """The task of a policy that was trained with action masks, as one reset shows it, and a note where there are none.

    Raises:
        UserError: the environment fails.
    """
    if not foreign.masked:
        return task, []
    task = replace(task, action_masks=gives_action_masks(task))
    without = f"it was trained with action masks, and {task.env} gives none: all actions are allowed to it"
    return task, [] if task.action_masks else [without]


def _unlike(space: BoxSpace, task: Task) -> list[str]:
    fits = space.shape == task.observation_shape
    # Otherwise it is given what the environment declares, unturned.
    declared = (
        not fits and math.prod(space.shape) == math.prod(task.observation_shape) and space.shape == own_shape(task)
    )
    bytes_alike = (space.dtype == "uint8") == (task.observation_dtype == "uint8")
    if (fits or (declared and not is_minatar(task.env))) and len(space.shape) == 3 and not bytes_alike:
        return [f"it reads {space.dtype} observations, {task.env} gives {task.observation_dtype}: another scaling"]
    if fits or declared:
        return _scaled_otherwise(space, task) if fits else []
    if sorted(space.shape) == sorted(task.observation_shape):
        return [
            f"it reads observations of shape {space.shape}, {task.env} gives {task.observation_shape}: another channel order"
        ]
    return [f"it reads observations of shape {space.shape}, {task.env} gives {task.observation_shape}"]


def _scaled_otherwise(space: BoxSpace, task: Task) -> list[str]:
    """Whether the file's bounds of vectors are of another scale than the environment's, or are left in random play.

    Versions of an environment differ a little in what they declare, and in what they call infinite, so that only what
    both bound counts, and a small difference only where observations show it.
    """
    bounds = observation_bounds(task) if len(space.shape) == 1 else None
    if bounds is None:
        return []
    sides = np.stack([space.low, space.high, *bounds])
    bounded = (np.abs(sides) < _INFINITE).all(axis=0) & (sides[1] > sides[0]) & (sides[3] > sides[2])
    low, high, own_low, own_high = sides[:, bounded]
    if not bounded.any() or (np.allclose(low, own_low, rtol=1e-3) and np.allclose(high, own_high, rtol=1e-3)):
        return []
    text = f"it reads observations of {_range(low, high)}, {task.env} declares {_range(own_low, own_high)}: another scaling"
    factor = (high - low) / (own_high - own_low)
    if (factor > _ANOTHER_SCALE).any() or (factor < 1 / _ANOTHER_SCALE).any():
        return [text]
    least, largest = (side[bounded] for side in observed_range(task, _RANDOM_STEPS))
    slack = 0.1 * (high - low)
    return [text] if (least < low - slack).any() or (largest > high + slack).any() else []


def _range(low: Any, high: Any) -> str:
    return f"{np.round(low, 3).tolist()} to {np.round(high, 3).tolist()}"
