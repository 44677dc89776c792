"""Settings and records that all learners from reward share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from rldistill.types import Actions, Bools, Floats, Masks, Observations

if TYPE_CHECKING:
    from rldistill.play.rollout import Transition

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


class Rollout(NamedTuple):
    """T control steps of N rows."""

    observations: Observations
    """(T * N, *obs), before the actions."""
    actions: Actions
    """(T, N) or (T, N, D)."""
    rewards: Floats
    """(T, N), after the actions, as the discounts and the truncations are."""
    discounts: Floats
    """(T, N), gamma, or 0 where the episode terminated."""
    truncated: Bools
    """(T, N)."""
    finals: Mapping[int, tuple[Observations, Masks | None]]
    """Final observations (N, *obs) and their masks of the control steps at which a row was truncated."""
    returns: Sequence[float]
    """Returns of the games that ended."""
    masks: Masks | None
    """(T * N, A): the actions allowed in `observations`."""


def collected(transitions: Iterator[Transition], length: int, discount: float) -> Rollout:
    """Plays `length` control steps of all rows."""
    steps = [next(transitions) for _ in range(length)]
    return Rollout(
        np.concatenate([step.observations for step in steps]),
        cast(Actions, np.stack([step.actions for step in steps])),
        np.stack([step.rewards for step in steps]).astype(np.float32, copy=False),
        np.stack([np.where(step.terminated, 0.0, discount) for step in steps]).astype(np.float32),
        np.stack([step.truncated for step in steps]),
        {t: (step.final_observations, step.final_masks) for t, step in enumerate(steps) if step.truncated.any()},
        [float(score) for step in steps for score in step.returns[~np.isnan(step.returns)]],
        None if steps[0].masks is None else np.concatenate([step.masks for step in steps if step.masks is not None]),
    )


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
