"""What a student is asked for in a lesson: a loss of its scores, one number a sample, with what is fitted to the lesson once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from rldistill.play.actions import agreement, bounds, chosen
from rldistill.students.losses import WeightedLoss
from rldistill.students.targets import Targets, advantage_spread, auto_temperature, transform
from rldistill.types import Batch, ScoreKind, Task


class Objective(Protocol):
    """The loss of one lesson."""

    def fit(self, examples: Batch) -> None:
        """What is fitted once, to the first observations of the lesson."""

    def __call__(self, scores: Tensor, batch: Batch, step: int) -> Tensor:
        """(B,), one number a sample, of the student's scores (B, K) after `step` updates."""

    def agreement(self, scores: Tensor, batch: Batch) -> Tensor:
        """(B,): 1 where the student chooses what the lesson asks for, 0 where it does not."""

    def state_dict(self) -> dict[str, Any]:
        """What was fitted."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state_dict` gave."""


@dataclass(frozen=True)
class Matching:
    """How the student is matched with its teacher."""

    loss: str = "auto"
    """`kl` (temperature on the teacher alone), `nll` (teacher's best action), `mse` (values), `mse_prob` (probabilities),
    `kl_hinton`, or a weighted sum such as nll:1,mse_prob:1. For continuous actions `kl_gaussian`, `mse_mean` or `huber`.
    `auto`: kl; kl_gaussian for Gaussian teachers, mse_mean for deterministic ones."""
    temperature: str = "auto"
    """A number, or `auto`: 1 for logits; for Q-values so that the softened teacher's entropy is a set share of log A."""
    targets: Targets = "raw"
    """Teacher's values as they are, as advantages (less their mean over actions), or those in units of their spread."""


class Match:
    """The student's scores are matched with the teacher's values.

    Args:
        loss: of student's scores and teacher's transformed values.
        task: whose actions the scores are for.
        teacher_kind: of the teacher's values.
        matching: temperature and targets.
    """

    def __init__(self, loss: WeightedLoss, task: Task, teacher_kind: ScoreKind, matching: Matching) -> None:
        self.loss, self.task, self.teacher_kind, self.matching = loss, task, teacher_kind, matching
        self.temperature, self.spread = 1.0, 1.0

    def fit(self, examples: Batch) -> None:
        """Temperature and spread of the advantages."""
        sizes, values = self.task.action_sizes, examples.values
        self.spread = advantage_spread(values, sizes, examples.masks)
        values = transform(values, self.matching.targets, self.spread, sizes, examples.masks)
        auto = self.matching.temperature == "auto"
        self.temperature = (
            auto_temperature(values, self.teacher_kind, examples.masks) if auto else float(self.matching.temperature)
        )

    def __call__(self, scores: Tensor, batch: Batch, step: int = 0) -> Tensor:
        """The loss of student and teacher, (B,)."""
        values, masks = batch.values, batch.masks
        if self.loss.score_kind != "actions":
            targets = transform(values, self.matching.targets, self.spread, self.task.action_sizes, masks)
            return self.loss(scores, targets, self.temperature, masks)
        low, high = bounds(self.task)
        middle, half = (low + high) / 2, (high - low) / 2
        # In halves of the range, less its middle, which changes no distance but keeps small ones from being rounded away.
        targets = (chosen(values, self.teacher_kind, self.task) - middle) / half
        return self.loss((scores - middle) / half, targets, self.temperature, masks)

    def agreement(self, scores: Tensor, batch: Batch) -> Tensor:
        """(B,): whether student and teacher choose the same action; of continuous ones how near they are."""
        masks = batch.masks
        ours = chosen(scores, self.loss.score_kind, self.task, masks)
        return agreement(ours, chosen(batch.values, self.teacher_kind, self.task, masks), self.task)

    def state_dict(self) -> dict[str, Any]:
        """Temperature and spread."""
        return {"temperature": self.temperature, "spread": self.spread}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
        self.temperature, self.spread = float(state["temperature"]), float(state["spread"])
