"""Labellers: the scores that a student is matched with, and their owners."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from rldistill.play.actions import describe, score_width, without_masked_infinity
from rldistill.types import ActionValues, Masks, Observations, ScoreKind, Task, UserError, as_tensor


class Labeller(ActionValues, Protocol):
    """A teacher, one of several chosen anew, or the best version so far of a teacher that still learns."""

    @property
    def owner(self) -> int:
        """The owner of the labels that it gives now. The number changes whenever the same observations get other labels."""

    @property
    def changes(self) -> bool:
        """Whether `owner` may change. If not, labels are stored without their owner."""


class OneTeacher:
    """The labels of one fixed teacher."""

    owner = 0
    changes = False

    def __init__(self, teacher: ActionValues) -> None:
        self.teacher = teacher
        self.score_kind: ScoreKind = teacher.score_kind

    def __call__(self, observations: Tensor) -> Tensor:
        """The teacher's scores (B, K) of observations (B, *obs)."""
        return self.teacher(observations)


def checked_labels(values: Tensor, kind: ScoreKind, task: Task, masks: Masks | Tensor | None = None) -> Tensor:
    """The teacher's values (B, K) as float32, without the infinities of actions that the masks rule out.

    Raises:
        UserError: K is not what the task's actions need, or a value is NaN or infinite.
    """
    width = score_width(task, kind)
    if values.ndim != 2 or values.shape[1] != width:
        raise UserError(
            f"the teacher gives values of shape {tuple(values.shape)}; {describe(task)} need {width} ({kind})"
        )
    values = without_masked_infinity(values, masks)
    if not bool(torch.isfinite(values).all()):
        raise UserError("the teacher's values hold NaN or infinity: this teacher cannot be distilled")
    return values.to(torch.float32)


def labels_of(labeller: ActionValues, observations: Observations, task: Task, masks: Masks | None = None) -> Tensor:
    """Checked labels (N, K) of observations (N, *obs), without gradients.

    Raises:
        UserError: as `checked_labels`.
    """
    with torch.no_grad():
        return checked_labels(labeller(as_tensor(observations)), labeller.score_kind, task, masks)
