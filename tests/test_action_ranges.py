"""Students of continuous actions whose range is wide, or has its middle elsewhere than at 0."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rldistill.students.fitting import GradientFitting
from rldistill.students.losses import parse_loss
from rldistill.students.networks import Architecture, build
from rldistill.students.objectives import Match
from rldistill.types import Lesson, ScoreKind, Task, labelled
from rldistill.verbs.distill.config import DistillConfig

STATES = torch.randn(256, 3, generator=torch.Generator().manual_seed(0))
UPDATES = 300


def valve(low: float, high: float) -> Task:
    return Task("valve", 1, (3,), "float32", action_low=(low,), action_high=(high,))


def updated(
    task: Task, values: Tensor, kind: ScoreKind, initialize: str = "data"
) -> tuple[Tensor, Tensor, GradientFitting]:
    """A student's scores of the states at the beginning and after the updates."""
    loss = parse_loss("auto", kind)
    network = build(Architecture("mlp:16", (3,), values.shape[1]), 0, loss.score_kind)
    config = DistillConfig.of(initialize="data" if initialize == "data" else "torch", learning_rate=6e-3)
    lesson = Lesson.of(task)
    objective = Match(loss, task, kind, config.matching)
    update = GradientFitting(network, {lesson: objective}, config.optimization, UPDATES, 0)
    update.fit({lesson: labelled(STATES, values)})
    begins = network(STATES).detach()
    for _ in range(UPDATES):
        (figures,) = update({lesson: labelled(STATES, values)}).values()
    assert math.isfinite(figures.loss)
    return begins, network(STATES).detach(), update


@pytest.mark.parametrize("initialize", ["data", "torch"])
def test_a_student_of_a_range_from_0_to_100_begins_at_its_middle_and_learns_80_in_few_updates(initialize: str) -> None:
    begins, ends, _ = updated(valve(0, 100), torch.full((256, 1), 80.0), "actions", initialize)
    assert begins.mean().item() == pytest.approx(50, abs=1 if initialize == "data" else 30)
    assert 0 <= begins.min().item() <= begins.max().item() <= 100
    assert (ends - 80).abs().mean().item() < 3


def test_a_gaussian_student_of_a_range_from_0_to_100_learns_the_mean_and_the_deviation() -> None:
    begins, ends, _ = updated(valve(0, 100), torch.tensor([80.0, 1.0]).repeat(256, 1), "gaussian")
    assert begins[:, 0].mean().item() == pytest.approx(50, abs=1)
    assert begins[:, 1].mean().item() == pytest.approx(0, abs=0.1), "log deviations have no middle"
    torch.testing.assert_close(ends.mean(dim=0), torch.tensor([80.0, 1.0]), rtol=0.05, atol=0.1)


def test_a_student_of_a_moved_and_widened_range_learns_the_same_moved_and_widened() -> None:
    law = (STATES @ torch.tensor([[0.5], [-0.3], [0.1]])).clamp(-1, 1)
    begins, ends, plain = updated(valve(-1, 1), law, "actions")
    moved_begins, moved_ends, moved = updated(valve(0, 100), 50 + 50 * law, "actions")
    torch.testing.assert_close(moved_begins, 50 + 50 * begins, rtol=0, atol=1e-3)
    torch.testing.assert_close(moved_ends, 50 + 50 * ends, rtol=0, atol=0.1)
    torch.testing.assert_close(moved.average(STATES), 50 + 50 * plain.average(STATES), rtol=0, atol=0.1)
    assert (ends - law).abs().mean().item() < 0.1
