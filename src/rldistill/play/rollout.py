"""The one place that steps environments: a generator of transitions, and the policies that act in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from rldistill.play.actions import greedy, mix_in_random, uniform_actions
from rldistill.types import Actions, ActionValues, Bools, Floats, Masks, Observations, Policy, Task

if TYPE_CHECKING:
    from rldistill.play.envs.world import Step


class Steppable(Protocol):
    """What `rollout` steps: N rows that restart themselves, as `Environments` are."""

    @property
    def observations(self) -> Observations:
        """(N, *obs)."""

    @property
    def starts(self) -> Bools:
        """(N,): whether each is the first of its episode."""

    @property
    def masks(self) -> Masks | None:
        """(N, A): the actions allowed in `observations`."""

    @property
    def final_masks(self) -> Masks | None:
        """(N, A): those allowed in the final observations of the last step."""

    def step(self, actions: Actions) -> Step:
        """One control step of all rows."""


class Resumable(Steppable, Protocol):
    """Rows of one task that can be saved and put back, as `Environments` are."""

    @property
    def task(self) -> Task:
        """What is played."""

    @property
    def num_envs(self) -> int:
        """N."""

    @property
    def watched(self) -> Floats:
        """(N, W): the named numbers that were asked for, of the present observations."""

    @property
    def cut(self) -> int:
        """Games that were truncated by the task's longest game so far."""

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state_dict` gave."""

    def close(self) -> None:
        """Frees what they hold."""


class Transition(NamedTuple):
    """One control step of all N rows. Observations belong to the time before the action, the rest to its outcome."""

    observations: Observations
    starts: Bools
    """Whether the observation is the first of its episode."""
    actions: Actions
    rewards: Floats
    terminated: Bools
    truncated: Bools
    life_lost: Bools
    final_observations: Observations
    returns: Floats
    """Raw episode return in rows that ended one, NaN elsewhere."""
    masks: Masks | None = None
    """(N, A): the actions allowed in `observations`; None where the environment gives no masks."""
    final_masks: Masks | None = None
    """(N, A): those allowed in `final_observations`."""


def rollout(environments: Steppable, policy: Policy) -> Iterator[Transition]:
    """Plays without end. Each item is one control step of all N rows."""
    while True:
        observations, masks, starts = environments.observations, environments.masks, environments.starts
        actions = policy(observations) if masks is None else policy(observations, masks)
        step = environments.step(actions)
        yield Transition(
            observations,
            starts,
            actions,
            step.rewards,
            step.terminated,
            step.truncated,
            step.life_lost,
            step.final_observations,
            step.returns,
            masks,
            environments.final_masks,
        )


def as_learnt(
    transitions: Iterator[Transition], *, clip_rewards: bool, lives_as_episodes: bool
) -> Iterator[Transition]:
    """The transitions that value-based learners train on (Mnih et al. 2015); `returns` stay raw, and of whole episodes.

    Args:
        transitions: of `rollout`.
        clip_rewards: rewards become -1, 0, 1 by their sign.
        lives_as_episodes: a lost life terminates, and the game goes on.
    """
    for step in transitions:
        yield step._replace(
            rewards=np.sign(step.rewards) if clip_rewards else step.rewards,
            terminated=step.terminated | step.life_lost if lives_as_episodes else step.terminated,
        )


class EpsilonGreedy:
    """The greedy action, and with probability epsilon a uniformly random one instead, of the allowed ones."""

    def __init__(self, values: ActionValues, task: Task, epsilon: float, generator: np.random.Generator) -> None:
        self.values, self.task, self.epsilon, self.generator = values, task, epsilon, generator

    def __call__(self, observations: Observations, masks: Masks | None = None) -> Actions:
        best = greedy(self.values, observations, self.task, masks)
        return mix_in_random(best, self.task, self.epsilon, self.generator, masks)


def uniform(task: Task, generator: np.random.Generator) -> Policy:
    """Uniformly random play, of the allowed actions."""
    return lambda observations, masks=None: uniform_actions(task, len(observations), generator, masks)
