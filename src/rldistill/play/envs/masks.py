"""Action masks: which of its actions an environment allows now.

An environment says so in `info["action_mask"]` of `reset` and `step`, or by a method `action_masks()` as sb3-contrib calls it.
A mask has one truth value (or 0 and 1) for each discrete action. Of several actions at once (MultiDiscrete) it is theirs one
after the other, or one mask for each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from rldistill.play.actions import describe, some_allowed
from rldistill.play.envs.boundary import EnvironmentFailed, remark
from rldistill.types import Bools, Masks, Task


@cache  # once, however many environments there are
def remark_masks_are_gone(env: str) -> None:
    """Warns that an environment gives no masks, though its policy was made with masks."""
    remark(f"warning: {env} gave action masks when the policy was made, and gives none here: all actions are allowed")


class MaskReader:
    """The masks of one task's environments, from what these say. The first reset shows whether there are any.

    Args:
        task: whose actions they mask.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._given: bool | None = None
        """Whether the environment gives masks; None before the first reset."""
        self.masks: Masks | None = None
        """(N, A): the allowed actions; None where the environment gives no masks. A new array each time."""

    def reset(self, number: int, given: Mapping[int, Any]) -> None:
        """Takes the masks of the rows that were reset.

        Args:
            number: N, of all rows.
            given: row to what its environment says of its allowed actions; None is nothing.

        Raises:
            EnvironmentFailed: as `step`.
        """
        masks = None if self.masks is None else self.masks.copy()
        for row, answer in given.items():
            mask = self._mask(answer, ended=False)
            if mask is not None:
                masks = np.ones((number, len(mask)), dtype=np.bool_) if masks is None else masks
                masks[row] = mask
        self.masks = masks

    def step(self, given: Sequence[Any], ended: Bools) -> None:
        """Takes the masks after a step of all rows, from what their environments say and whether their episodes ended (N).

        Raises:
            EnvironmentFailed: one is no mask of the task's actions, it allows none, or the first reset gave none.
        """
        masks = None if self.masks is None else np.empty_like(self.masks)
        for row, answer in enumerate(given):
            mask = self._mask(answer, ended=bool(ended[row]))
            if masks is not None and mask is not None:
                masks[row] = mask
        self.masks = masks

    def _mask(self, given: Any, *, ended: bool) -> Bools | None:
        """The allowed actions (A,), all of them where the environment says nothing; None where it never gives masks."""
        if self._given is None:
            self._given = given is not None
        if given is None:
            return np.ones(self._task.mask_size, dtype=np.bool_) if self._given else None
        if not self._given:
            raise EnvironmentFailed(
                f"{self._task.env} gives an action mask now and gave none at its first reset: give one with every reset"
            )
        mask = self._read(given)
        if some_allowed(mask[None], self._task)[0]:
            return mask
        if not ended:  # else no action follows
            raise EnvironmentFailed(
                f"an action mask of {self._task.env} allows no action although the episode goes on: "
                "end the episode there, or allow one"
            )
        return np.ones(self._task.mask_size, dtype=np.bool_)

    def _read(self, mask: Any) -> Bools:
        task = self._task
        if task.continuous:
            raise EnvironmentFailed(
                f"{task.env} gives an action mask and has {describe(task)}, which cannot be masked: "
                "wrap it so that it gives none"
            )
        sizes = task.choices
        try:
            numbers = np.asarray(mask) if len(mask) != len(sizes) or len(sizes) == 1 else _joined(mask, sizes)
        except (TypeError, ValueError):
            numbers = np.empty(0, dtype=np.object_)
        fits = numbers.shape == (task.mask_size,) and numbers.dtype.kind in "biuf"
        if not fits or not bool(((numbers == 0) | (numbers == 1)).all()):
            raise EnvironmentFailed(
                f"an action mask of {task.env} is {_described(mask, numbers)}; it has one 0 or 1 for each of "
                f"{task.mask_size} actions ({describe(task)})"
            )
        return numbers.astype(np.bool_)


def _joined(masks: Any, sizes: tuple[int, ...]) -> Any:
    """The masks of several actions at once, one after the other; as they are where they are one already."""
    parts = [np.asarray(mask) for mask in masks]
    if all(part.shape == (size,) for part, size in zip(parts, sizes, strict=True)):
        return np.concatenate(parts)
    return np.asarray(masks)


def _described(mask: Any, numbers: Any) -> str:
    """In a message: the shape, or the type of what is no array of numbers, or the values that are neither 0 nor 1."""
    if numbers.dtype.kind not in "biuf":
        return f"of type {type(mask).__name__}"
    other = numbers[(numbers != 0) & (numbers != 1)]
    return f"of shape {numbers.shape}" + (f" and holds {other.flat[0]!s}" if other.size else "")
