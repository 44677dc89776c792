"""Settings and records that all learners from reward share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from rldistill.types import Bools, Floats

Inside: TypeAlias = Callable[[Floats], Bools]
"""Which of the states whose watched numbers (N, W) are given lie in the region that is learnt from, (N,)."""


@dataclass(frozen=True)
class Learning:
    """Settings of learning from reward, for every algorithm."""

    steps: int
    """Control steps of the whole run, for the schedules."""
    learning_rate: float
    """First value of the learning rate."""
    discount: float
    """Gamma, the discount of one control step."""
    epsilon_end: float
    """Last probability of a random action."""
    epsilon_steps: int
    """Control steps over which the probability falls from 1; `dqn` counts from the end of its warm-up."""
    epsilon_repeats: int
    """Control steps that a random action lasts at most; see `EZGreedy`."""
    clip_rewards: bool
    """Learn from the sign of the rewards; see `as_learnt`."""
    lives_as_episodes: bool
    """Learn as if a lost life ended the episode; see `as_learnt`."""
    seed: int
    """Seed of exploration and minibatches."""
    place: int = 0
    """Index of the task among several that are learnt together. Each has its own random numbers."""

    def generator(self) -> np.random.Generator:
        """A fresh generator for exploration and minibatches."""
        return np.random.default_rng([self.seed, 2, self.place] if self.place else [self.seed, 2])


class Learnt(NamedTuple):
    """Losses, targets and returns of a stretch of learning."""

    losses: Sequence[Tensor] = ()
    """Mean loss of each update."""
    targets: Sequence[Tensor] = ()
    """Mean target of each update."""
    returns: Sequence[float] = ()
    """Returns of the games that ended."""


def as_figures(stretches: Sequence[Learnt]) -> dict[str, Any]:
    """Mean loss and mean value over all updates, None where there was none, and the returns."""
    losses = [loss for learnt in stretches for loss in learnt.losses]
    targets = [target for learnt in stretches for target in learnt.targets]
    return {
        "loss": float(torch.stack(losses).mean()) if losses else None,
        "mean_value": float(torch.stack(targets).mean()) if targets else None,
        "returns": [score for learnt in stretches for score in learnt.returns],
    }
