"""The rows of a dataset: their columns, and the checks against a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from rldistill.play.actions import are_allowed, check_actions, score_width, some_allowed
from rldistill.types import Actions, Bools, Floats, Masks, ScoreKind, Task

FORMAT = "rldistill-dataset"
VERSION = 1

ADVICE = "; get it anew, or go on without it (Dataset.intact)"


class Labels(Protocol):
    """The task and the kind of scores, which determine the columns; a `Dataset` has both."""

    @property
    def task(self) -> Task:
        """The task that was played."""

    @property
    def score_kind(self) -> ScoreKind:
        """The kind of the teacher's values."""


class Shard(NamedTuple):
    """Rows of one shard, or of one environment's part of it. Time runs within an environment; T rows in all."""

    frames: npt.NDArray[Any]
    """(T, *frame): the newest frame of the stack, or the whole observation where nothing is stacked."""
    starts: Bools
    """(T,): whether the frame is the first of its episode."""
    context: Bools
    """(T,): whether the row only completes the stacks of later rows. Only its frame and its start have a meaning."""
    environments: npt.NDArray[np.int32]
    """(T,): the row of the vectorized environment. Rows with different numbers do not follow each other in time."""
    actions: Actions
    """(T,) or (T, D): the action that the driver chose at this frame."""
    rewards: Floats
    """(T,): raw, for that action."""
    terminated: Bools
    """(T,): whether the action ended the episode."""
    truncated: Bools
    """(T,): whether the episode was cut off after the action."""
    values: Floats
    """(T, K): the teacher's scores."""
    masks: Masks | None = None
    """(T, A): the actions that were allowed; None where the task has no masks."""

    def rows(self, low: int, high: int) -> Shard:
        """The rows from `low` up to before `high`."""
        return Shard._make(None if column is None else column[low:high] for column in self)


def frame_shape(task: Task) -> tuple[int, ...]:
    """The newest frame of a stack, (channels, height, width), or the whole observation where nothing is stacked."""
    shape = task.observation_shape
    return (shape[0] // task.frame_stack, *shape[1:]) if task.frame_stack > 1 else shape


def label_width(labels: Labels) -> int:
    """K, the number of scores of a control step."""
    return score_width(labels.task, labels.score_kind)


def check_rows(part: Shard, labels: Labels) -> None:
    """Raises ValueError where rows do not suit the task, or a number is NaN or infinite."""
    length, task, width = len(part.frames), labels.task, label_width(labels)
    if part.frames.shape != (length, *frame_shape(task)) or part.frames.dtype != task.observation_dtype:
        raise ValueError(f"frames of shape {part.frames.shape[1:]}, the task's are {frame_shape(task)}")
    if part.values.shape != (length, width):
        raise ValueError(f"labels of shape {part.values.shape}, expected {(length, width)}")
    if not np.isfinite(part.values).all():
        raise ValueError("labels hold NaN or infinity")
    if not np.isfinite(part.rewards).all():
        raise ValueError("rewards hold NaN or infinity")
    if part.frames.dtype != np.uint8 and not np.isfinite(part.frames).all():
        raise ValueError("frames hold NaN or infinity")
    check_actions(part.actions, length, task)
    masks = part.masks
    if (masks is not None) != task.action_masks:
        raise ValueError("action masks, which the task has not" if masks is not None else "no action masks")
    if masks is not None:
        if masks.shape != (length, task.mask_size) or masks.dtype != np.bool_:
            raise ValueError(f"masks of shape {masks.shape}, expected {(length, task.mask_size)}")
        # Only the frames of context rows have a meaning.
        if not (are_allowed(part.actions, task, masks) & some_allowed(masks, task) | part.context).all():
            raise ValueError("an action that its mask does not allow, or a mask that allows none")


def joined(parts: Sequence[Shard]) -> Shard:
    """The rows of all parts, one part after the other."""
    columns = zip(*parts, strict=True)
    return Shard._make(None if column[0] is None else np.concatenate(column) for column in columns)
