"""Objectives of lessons: losses of the student's scores, one number a sample, with parameters that are fitted once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from rldistill.play.actions import agreement, chosen, middle_and_half
from rldistill.students.losses import WeightedLoss
from rldistill.students.targets import Targets, Weights, advantage_spread, fitted_temperature, gaps, transform
from rldistill.types import Batch, ScoreKind, Task, UserError


class Objective(Protocol):
    """The loss of one lesson."""

    def fit(self, examples: Batch) -> None:
        """Fits temperature and the like to the first observations of the lesson, once."""

    def __call__(self, scores: Tensor, batch: Batch, step: int) -> Tensor:
        """The loss (B,), one number a sample, of the student's scores (B, K) after `step` updates."""

    def agreement(self, scores: Tensor, batch: Batch) -> Tensor:
        """(B,): 1 where the student chooses the action that the lesson asks for, 0 elsewhere."""

    def state_dict(self) -> dict[str, Any]:
        """The fitted parameters."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""


@dataclass(frozen=True)
class Matching:
    """How the student is matched with its teacher."""

    loss: str = "auto"
    """`kl` (temperature on the teacher alone), `nll` (teacher's best action), `mse` (values), `mse_prob` (probabilities),
    `kl_reverse` (student and teacher exchanged), `js` (Jensen-Shannon), `kl_hinton`, or a weighted sum such as nll:1,mse_prob:1.
    For continuous actions `kl_gaussian`, `kl_gaussian_reverse`, `mse_mean` or `huber`. `auto`: kl; kl_gaussian for Gaussian
    teachers, mse_mean for deterministic ones."""
    temperature: str = "auto"
    """A number, or `auto`: 1 for logits; for Q-values so that the softened teacher's mean entropy is 0.35 of log A. `auto:0.6` aims
    at another share."""
    targets: Targets = "raw"
    """Teacher's values as they are, as advantages (less their mean over actions), or those in units of their spread."""
    weights: Weights = "none"
    """Of the states in the loss: `none`, all alike; `gap`, in proportion to the teacher's largest value less its smallest, so that
    states count in which the action matters (VIPER). Their mean over the warm-up is 1."""


class Match:
    """Matches the student's scores with the teacher's values.

    Args:
        loss: of student's scores and teacher's transformed values.
        task: whose actions the scores are for.
        teacher_kind: of the teacher's values.
        matching: temperature, targets and weights.
    """

    def __init__(self, loss: WeightedLoss, task: Task, teacher_kind: ScoreKind, matching: Matching) -> None:
        self.loss, self.task, self.teacher_kind, self.matching = loss, task, teacher_kind, matching
        self.temperature, self.spread = 1.0, 1.0
        self.mean_gap: float | None = None
        """Mean of the teacher's `gaps` over the examples; None where all states weigh the same."""

    def fit(self, examples: Batch) -> None:
        """Fits the temperature, the spread of the advantages, and the mean gap where states are weighted by it.

        Raises:
            UserError: states are weighted by gaps, and there are none.
        """
        sizes, values = self.task.action_sizes, examples.values
        if self.matching.weights == "gap":
            self.mean_gap = float(gaps(values, sizes, examples.masks).double().mean())
            if not self.mean_gap:
                raise UserError(
                    "--weights gap: the teacher gives all actions the same value in every state of the warm-up, so no state has a "
                    "weight; leave it out"
                )
        self.spread = advantage_spread(values, sizes, examples.masks)
        values = transform(values, self.matching.targets, self.spread, sizes, examples.masks)
        self.temperature = fitted_temperature(self.matching.temperature, values, self.teacher_kind, examples.masks)

    def __call__(self, scores: Tensor, batch: Batch, step: int = 0) -> Tensor:
        """The loss (B,) between student and teacher, weighted."""
        losses = self._losses(scores, batch)
        if self.mean_gap is None:
            return losses
        return losses * (gaps(batch.values, self.task.action_sizes, batch.masks) / self.mean_gap)

    def _losses(self, scores: Tensor, batch: Batch) -> Tensor:
        values, masks = batch.values, batch.masks
        if self.loss.score_kind != "actions":
            targets = transform(values, self.matching.targets, self.spread, self.task.action_sizes, masks)
            return self.loss(scores, targets, self.temperature, masks)
        middle, half = middle_and_half(self.task)
        # In halves of the range, less its middle: distances are the same, and small ones lose no digits.
        targets = (chosen(values, self.teacher_kind, self.task) - middle) / half
        return self.loss((scores - middle) / half, targets, self.temperature, masks)

    def agreement(self, scores: Tensor, batch: Batch) -> Tensor:
        """(B,): 1 where student and teacher choose the same action, else 0; for continuous actions 1 less their distance."""
        masks = batch.masks
        ours = chosen(scores, self.loss.score_kind, self.task, masks)
        return agreement(ours, chosen(batch.values, self.teacher_kind, self.task, masks), self.task)

    def state_dict(self) -> dict[str, Any]:
        """Temperature, spread and mean gap."""
        gap = {} if self.mean_gap is None else {"mean_gap": self.mean_gap}
        return {"temperature": self.temperature, "spread": self.spread} | gap

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.temperature, self.spread = float(state["temperature"]), float(state["spread"])
        self.mean_gap = float(state["mean_gap"]) if "mean_gap" in state else None
