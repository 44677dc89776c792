"""Distillation losses: pure functions from scores to one number per sample, never a sum over the batch.

All of them take the student's scores (B, K) and the teacher's (B, K), both float32, and return (B,). The temperature
acts on the teacher alone, as in Rusu et al. 2015, arXiv 1511.06295, section 3; those of continuous actions have none.

Those of discrete actions also take masks (B, A), where the environment allows only some of them. Both policies are then
those over the allowed actions: the scores of the others have no influence on a loss or its gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from rldistill.play.actions import allowed, split_gaussian
from rldistill.types import ScoreKind, UserError

Loss: TypeAlias = Callable[[Tensor, Tensor, float], Tensor]


class DiscreteLoss(Protocol):
    """A loss of discrete actions: a `Loss` that also takes masks."""

    def __call__(self, student: Tensor, teacher: Tensor, temperature: float, masks: Tensor | None = None) -> Tensor:
        """The loss (B,), over the actions that the masks (B, A) allow."""


def _check(student: Tensor, teacher: Tensor) -> None:
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ValueError(
            f"scores of student and teacher are both (B, A), got {tuple(student.shape)}, {tuple(teacher.shape)}"
        )


def _log_policies(student: Tensor, teacher: Tensor, temperature: float, masks: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logarithms (B, A) of softmax(student) and softmax(teacher / temperature); 0 in both where an action is not allowed.

    Two logarithms of 0 have no difference. Two of 1 differ by 0, so the action adds nothing to a divergence.
    """
    _check(student, teacher)
    log_q = F.log_softmax(allowed(student, masks), dim=1)
    log_p = F.log_softmax(allowed(teacher / temperature, masks), dim=1)
    if masks is not None:
        log_q, log_p = log_q.masked_fill(~masks, 0), log_p.masked_fill(~masks, 0)
    return log_q, log_p


def kl(student: Tensor, teacher: Tensor, temperature: float, masks: Tensor | None = None) -> Tensor:
    """KL(softmax(teacher / temperature) || softmax(student)) in nats; arXiv 1511.06295, equation 3.

    The forward divergence covers modes: it is large where the student leaves out an action that the teacher takes.
    """
    log_q, log_p = _log_policies(student, teacher, temperature, masks)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)


def kl_reverse(student: Tensor, teacher: Tensor, temperature: float, masks: Tensor | None = None) -> Tensor:
    """KL(softmax(student) || softmax(teacher / temperature)) in nats; Gu et al. 2023 (MiniLLM), arXiv 2306.08543.

    The reverse divergence seeks modes: it is large where the student takes an action that the teacher leaves out, and one of
    several good actions is enough. It has no bound, and grows as 1 / temperature for a sharp teacher.
    """
    log_q, log_p = _log_policies(student, teacher, temperature, masks)
    return F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(dim=1)


def js(student: Tensor, teacher: Tensor, temperature: float, masks: Tensor | None = None) -> Tensor:
    """Jensen-Shannon divergence of softmax(student) and softmax(teacher / temperature) in nats; Lin 1991 (IEEE Transactions on
    Information Theory 37).

    The mean of the divergences of both from their mean, which is symmetric and at most log 2. It is between covering and seeking
    modes: to leave out an action of the teacher costs little where its probability is small.
    """
    log_q, log_p = _log_policies(student, teacher, temperature, masks)
    log_m = torch.logaddexp(log_q, log_p) - math.log(2)
    terms = log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)
    return 0.5 * (terms if masks is None else terms.masked_fill(~masks, 0)).sum(dim=1)


def kl_hinton(student: Tensor, teacher: Tensor, temperature: float, masks: Tensor | None = None) -> Tensor:
    """KL with both sides softened, times the squared temperature, in nats; Hinton et al. 2015, arXiv 1503.02531, section 2.1."""
    _check(student, teacher)
    return kl(student / temperature, teacher, temperature, masks) * temperature**2


def nll(student: Tensor, teacher: Tensor, temperature: float = 1.0, masks: Tensor | None = None) -> Tensor:
    """-log softmax(student) at the teacher's best action, in nats; arXiv 1511.06295, equation 1. No temperature in it."""
    _check(student, teacher)
    return F.cross_entropy(allowed(student, masks), allowed(teacher, masks).argmax(dim=1), reduction="none")


def mse(student: Tensor, teacher: Tensor, temperature: float = 1.0, masks: Tensor | None = None) -> Tensor:
    """Squared distance of the values, summed over actions; arXiv 1511.06295, equation 2. No temperature in it."""
    _check(student, teacher)
    distance = student - teacher
    return (distance if masks is None else distance.masked_fill(~masks, 0)).square().sum(dim=1)


def mse_prob(student: Tensor, teacher: Tensor, temperature: float, masks: Tensor | None = None) -> Tensor:
    """Squared distance of softmax(student) and softmax(teacher / temperature), summed over actions (Bronstein & Zheng)."""
    _check(student, teacher)
    ours, theirs = allowed(student, masks), allowed(teacher / temperature, masks)
    return (ours.softmax(dim=1) - theirs.softmax(dim=1)).square().sum(dim=1)


def kl_gaussian(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of diagonal Gaussians, (B, 2 D) means and log standard deviations, in nats.

    A tanh after both changes nothing in it, so it serves squashed Gaussians as they stand before the tanh. Log standard
    deviations are held to `actions.LOG_STD_RANGE`.
    """
    _check(student, teacher)
    (mean_s, log_s), (mean_t, log_t) = split_gaussian(student), split_gaussian(teacher)
    ratio = (2 * (log_t - log_s)).exp() + ((mean_t - mean_s) / log_s.exp()).square()
    return (0.5 * (ratio - 1) + log_s - log_t).sum(dim=1)


def kl_gaussian_reverse(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(student || teacher) of diagonal Gaussians, as `kl_gaussian` with both sides exchanged.

    Distances of the means count in units of the teacher's standard deviation, where `kl_gaussian` has the student's. A student
    that is wider than its teacher is punished more, one that is narrower less.
    """
    return kl_gaussian(teacher, student)


def mse_mean(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Squared distance of the actions (B, D), summed over dimensions."""
    _check(student, teacher)
    return (student - teacher).square().sum(dim=1)


def huber(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Huber's loss of the actions (B, D), quadratic up to a distance of 1, summed over dimensions (Huber 1964)."""
    _check(student, teacher)
    return F.huber_loss(student, teacher, reduction="none").sum(dim=1)


DISCRETE: dict[str, DiscreteLoss] = {
    "kl": kl,
    "kl_hinton": kl_hinton,
    "kl_reverse": kl_reverse,
    "js": js,
    "nll": nll,
    "mse": mse,
    "mse_prob": mse_prob,
}
OF_GAUSSIANS: dict[str, Loss] = {"kl_gaussian": kl_gaussian, "kl_gaussian_reverse": kl_gaussian_reverse}
OF_ACTIONS: dict[str, Loss] = {"mse_mean": mse_mean, "huber": huber}
CONTINUOUS: dict[str, Loss] = {**OF_GAUSSIANS, **OF_ACTIONS}
LOSSES: dict[str, Loss] = {**DISCRETE, **CONTINUOUS}
DEFAULT_LOSS: dict[ScoreKind, str] = {
    "q_values": "kl",
    "logits": "kl",
    "gaussian": "kl_gaussian",
    "squashed_gaussian": "kl_gaussian",
    "actions": "mse_mean",
}
"""What `--loss auto` stands for, by the kind of the teacher's scores."""


class WeightedLoss(NamedTuple):
    """A weighted sum of losses, which is a `Loss` too."""

    parts: tuple[tuple[str, float], ...]
    score_kind: ScoreKind
    """The kind of the student's scores: the teacher's own where `mse` alone matches them, logits, the teacher's kind of
    Gaussian, or actions."""
    sizes: tuple[int, ...] = ()
    """Choices of each of several discrete actions at once. The loss of each dimension is computed by itself, and they are added."""

    def __call__(self, student: Tensor, teacher: Tensor, temperature: float, masks: Tensor | None = None) -> Tensor:
        """The weighted sum, (B,)."""
        if self.sizes:
            sizes = list(self.sizes)
            ours, theirs = torch.split(student, sizes, dim=1), torch.split(teacher, sizes, dim=1)
            sides = [None] * len(sizes) if masks is None else torch.split(masks, sizes, dim=1)
            triples = zip(ours, theirs, sides, strict=True)
            return torch.stack([self._sum(one, two, temperature, mask) for one, two, mask in triples]).sum(dim=0)
        return self._sum(student, teacher, temperature, masks)

    def _sum(self, student: Tensor, teacher: Tensor, temperature: float, masks: Tensor | None) -> Tensor:
        losses = (
            (
                weight,
                DISCRETE[name](student, teacher, temperature, masks)
                if name in DISCRETE
                else CONTINUOUS[name](student, teacher, temperature),
            )
            for name, weight in self.parts
        )
        # Nearly all weights are 1. A multiplication by 1 would slow the update of a small student.
        first, *others = (loss if weight == 1 else weight * loss for weight, loss in losses)
        return sum(others, start=first)


def parse_loss(text: str, teacher: ScoreKind = "q_values", sizes: tuple[int, ...] = ()) -> WeightedLoss:
    """Reads the name of a loss, or a weighted sum such as `nll:1,mse_prob:0.5`; `auto` is the default for the teacher's scores.

    Args:
        text: as the user wrote it.
        teacher: kind of the teacher's scores.
        sizes: of several discrete actions at once.

    Raises:
        UserError: no such loss, one that does not suit the teacher, or a weight that is not positive.
    """
    if teacher not in DEFAULT_LOSS:
        raise UserError(f"a teacher's scores are {', '.join(DEFAULT_LOSS)}, not {teacher!r}")
    if text == "auto":
        text = DEFAULT_LOSS[teacher]
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
    names = [name for name, _ in parts]
    suiting = DISCRETE if teacher in ("q_values", "logits") else OF_ACTIONS if teacher == "actions" else CONTINUOUS
    for name in names:
        if name not in suiting:
            raise UserError(f"the loss {name} does not suit a teacher of {teacher}: take {', '.join(suiting)}")
    if suiting is DISCRETE:
        return WeightedLoss(tuple(parts), teacher if set(names) == {"mse"} else "logits", sizes)
    gaussian = [name for name in names if name in OF_GAUSSIANS]
    if 0 < len(gaussian) < len(names):
        raise UserError(f"{gaussian[0]} matches means and deviations, the others actions: they cannot be added")
    return WeightedLoss(tuple(parts), teacher if gaussian else "actions")
