"""What all learners from reward share: their schedules, their exploration and what they make of rewards and lives."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Learning:
    """How an agent learns from reward, whatever its algorithm."""

    steps: int
    """Control steps of the whole run, for the schedules."""
    learning_rate: float
    """Its first value."""
    discount: float
    """Gamma."""
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
    """Of exploration and minibatches."""
