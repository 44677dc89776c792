"""Distillation losses: pure functions from scores to one number per sample, never a sum over the batch.

All of them take the student's scores (B, A) and the teacher's values (B, A), both float32, and return (B,). The temperature
acts on the teacher alone, as in Rusu et al. 2015, arXiv 1511.06295, section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from rldistill.types import ScoreKind, UserError

Loss: TypeAlias = Callable[[Tensor, Tensor, float], Tensor]


def _check(student: Tensor, teacher: Tensor) -> None:
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ValueError(
            f"scores of student and teacher are both (B, A), got {tuple(student.shape)}, {tuple(teacher.shape)}"
        )


def kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(softmax(teacher / temperature) || softmax(student)) in nats; arXiv 1511.06295, equation 3."""
    _check(student, teacher)
    log_p = F.log_softmax(teacher / temperature, dim=1)
    return (log_p.exp() * (log_p - F.log_softmax(student, dim=1))).sum(dim=1)


def kl_hinton(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Both sides softened, times the temperature's square, in nats; Hinton et al. 2015, arXiv 1503.02531, section 2.1."""
    _check(student, teacher)
    return kl(student / temperature, teacher, temperature) * temperature**2


def nll(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """-log softmax(student) at the teacher's best action, in nats; arXiv 1511.06295, equation 1. No temperature in it."""
    _check(student, teacher)
    return F.cross_entropy(student, teacher.argmax(dim=1), reduction="none")


def mse(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Squared distance of the values, summed over actions; arXiv 1511.06295, equation 2. No temperature in it."""
    _check(student, teacher)
    return (student - teacher).square().sum(dim=1)


def mse_prob(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Squared distance of softmax(student) and softmax(teacher / temperature), summed over actions (Bronstein & Zheng)."""
    _check(student, teacher)
    return (student.softmax(dim=1) - (teacher / temperature).softmax(dim=1)).square().sum(dim=1)


LOSSES: dict[str, Loss] = {"kl": kl, "kl_hinton": kl_hinton, "nll": nll, "mse": mse, "mse_prob": mse_prob}


class WeightedLoss(NamedTuple):
    """A sum of losses with weights; itself a `Loss`."""

    parts: tuple[tuple[str, float], ...]

    def __call__(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """The weighted sum, (B,)."""
        terms = [weight * LOSSES[name](student, teacher, temperature) for name, weight in self.parts]
        return torch.stack(terms).sum(dim=0)

    @property
    def score_kind(self) -> ScoreKind:
        """What the student's scores become: values where `mse` alone matches them, else logits."""
        return "q_values" if all(name == "mse" for name, _ in self.parts) else "logits"


def parse_loss(text: str) -> WeightedLoss:
    """`kl`, or a weighted sum such as `nll:1,mse_prob:0.5`.

    Raises:
        UserError: no such loss, or a weight that is not positive.
    """
    parts = []
    for part in text.split(","):
        name, _, weight = part.strip().partition(":")
        if name not in LOSSES:
            raise UserError(
                f"unknown loss {name!r}: take {', '.join(LOSSES)}, or a weighted sum such as nll:1,mse_prob:1"
            )
        try:
            number = float(weight) if weight else 1.0
        except ValueError:
            number = float("nan")
        if not 0 < number < float("inf"):
            raise UserError(f"the weight of the loss {name} is a positive number, not {weight!r}")
        parts.append((name, number))
    if len({name for name, _ in parts}) < len(parts):
        raise UserError(f"a loss is named twice in {text!r}: give it one weight")
    return WeightedLoss(tuple(parts))
