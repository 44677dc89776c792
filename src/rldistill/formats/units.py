"""The units of a policy's continuous actions: how they are converted, and whether they look like those of the environment."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from rldistill.formats.foreign import ForeignPolicy
from rldistill.formats.programs import UNITS
from rldistill.play.actions import chosen, describe, mix_in_random
from rldistill.play.envs import Environments
from rldistill.types import Task, Teacher, UserError, as_tensor

Units: TypeAlias = Literal["unit", "environment"]
"""What continuous actions are in: -1 to 1 over the range of each dimension, or the environment's units."""

_STEPS = 1_000
_SECONDS = 20.0
"""Seconds after which a slow environment is not stepped any further."""
_RANDOM_SHARE = 0.5
_SLACK = 1e-3


class Spread(nn.Module):
    """Spreads actions of -1..1 over their range: (B, D), or means and log standard deviations (B, 2 D)."""

    reach: Tensor
    middle: Tensor

    def __init__(self, network: nn.Module, low: Sequence[float], high: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        least, most = (torch.tensor(side, dtype=torch.float64) for side in (low, high))
        self.register_buffer("reach", ((most - least) / 2).float())
        self.register_buffer("middle", ((most + least) / 2).float())

    def forward(self, observations: Tensor) -> Tensor:
        """The same shape, in the environment's units."""
        x = self.network(observations)
        means = x[:, : len(self.reach)] * self.reach + self.middle
        return (
            torch.cat([means, x[:, len(self.reach) :] + self.reach.log()], dim=1)
            if x.shape[1] > means.shape[1]
            else means
        )


def with_units(foreign: ForeignPolicy, units: Units | None, task: Task, path: Path) -> ForeignPolicy:
    """A policy with continuous actions in the environment's units, where its file leaves open what they are in.

    Args:
        foreign: as it was read.
        units: what a user says that they are in.
        task: what it plays.
        path: the file, for messages.

    Raises:
        UserError: actions are to be spread over a range that has no ends.
    """
    if units is None or not foreign.units_supposed or not task.continuous:
        return foreign
    provenance = dict(foreign.provenance)
    provenance["supposed"] = [line for line in provenance.get("supposed", ()) if not str(line).startswith(UNITS)]
    network = foreign.network
    if units == "unit":
        if not np.isfinite([task.action_low, task.action_high]).all():
            raise UserError(
                f"{path}: actions of -1 to 1 cannot be spread over the range of {describe(task)}: leave --teacher-actions out"
            )
        network = Spread(network, task.action_low, task.action_high)
    used = foreign.used | {"teacher_actions"}
    return replace(foreign, network=network, units_supposed=False, provenance=provenance, used=used)


def unit_tool(foreign: ForeignPolicy, task: Task) -> str | None:
    """A line where the tool that wrote a policy spreads -1..1 over a wider range by default: then means beyond 1 prove nothing.

    rl_games is recognized by the names of its layers; its option `clip_actions: False` gives actions in the environment's units.
    """
    low, high = np.asarray(task.action_low), np.asarray(task.action_high)
    named = any("a2c_network" in str(name).split(".") for name in foreign.provenance.get("layers", ()))
    if not named or not np.isfinite([low, high]).all() or (np.allclose(low, -1) and np.allclose(high, 1)):
        return None
    return (
        f"it is of rl_games, which spreads actions of -1 to 1 over {_range(low, high)} unless its configuration has clip_actions: "
        "False: say --teacher-actions unit, or --teacher-actions environment where it has"
    )


def unit_mismatch(teacher: Teacher) -> str | None:
    """Whether a policy's continuous actions, whose units nobody has named, look like shares of their range.

    It plays a thousand steps, half of them at random, until an action leaves -1..1. One that never does, where the range
    is wider, or which leaves a range that is narrower, may be of either kind, and nothing but its maker knows.

    Returns:
        What does not fit; None where actions can only be in the environment's units.
    """
    task = teacher.task
    low, high = np.asarray(task.action_low), np.asarray(task.action_high)
    ends = np.isfinite(low) & np.isfinite(high)
    wide = ends & ((low < -1 - _SLACK) | (high > 1 + _SLACK))
    if not ends.any() or (np.allclose(low[ends], -1) and np.allclose(high[ends], 1)):
        return None
    least, most = np.full(len(low), np.inf), np.full(len(low), -np.inf)
    environments = Environments(task, 1, 0)
    generator = np.random.default_rng(0)
    began, steps = time.monotonic(), 0
    try:
        while steps < _STEPS and (steps == 0 or time.monotonic() - began < _SECONDS):
            steps += 1
            scores = teacher(as_tensor(environments.observations))
            actions = scores[:, : task.action_dimensions].double().numpy()
            if not (np.abs(actions) <= 1 + _SLACK).all():
                return None
            least, most = np.minimum(least, actions[0]), np.maximum(most, actions[0])
            greedy = chosen(scores, teacher.score_kind, task).numpy()
            environments.step(mix_in_random(greedy, task, _RANDOM_SHARE, generator))
    finally:
        environments.close()
    left = ends & ((least < low - _SLACK) | (most > high + _SLACK))
    if not (wide | left).any():
        return None
    return (
        f"its actions lie in {_range(least, most)} in {steps:,} observations, those of {task.env} in {_range(low, high)}: say "
        "--teacher-actions unit where -1 to 1 stands for that range, --teacher-actions environment where they are in its units"
    )


def _range(low: Any, high: Any) -> str:
    one = low.min(), high.max()
    return (
        f"{one[0]:.3g} to {one[1]:.3g}"
        if len(low) > 4
        else f"{np.round(low, 3).tolist()} to {np.round(high, 3).tolist()}"
    )
