"""The one place that steps environments: a generator of transitions, and full games played for their scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from rldistill.actions import greedy, mix_in_random, uniform_actions
from rldistill.envs import Environments
from rldistill.stats import summarize
from rldistill.types import Actions, ActionValues, Bools, Floats, Masks, Observations, Policy, Task


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


def rollout(environments: Environments, policy: Policy) -> Iterator[Transition]:
    """Plays for ever, N control steps an item."""
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
    """What value-based learners make of them, as Mnih et al. 2015: `returns` stay raw and episodes whole.

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


MakePolicy: TypeAlias = Callable[[np.random.Generator], Policy]


def play(
    task: Task,
    make_policy: MakePolicy,
    episodes: int,
    seed: int,
    *,
    num_envs: int = 10,
    heard: Callable[[int], None] = lambda finished: None,
    seen: Callable[[Transition], None] = lambda transition: None,
) -> npt.NDArray[np.float64]:
    """Returns of `episodes` full games.

    Each row plays the same number of games (the last round may be shared by fewer), so that short games, which end
    earlier, are not counted more often than long ones.

    Args:
        task: what is played.
        make_policy: given the generator that its exploration draws from, the policy.
        episodes: how many games.
        seed: of environments and exploration.
        num_envs: rows; no more than `episodes` are used.
        heard: called with the number of finished games whenever it grows.
        seen: called with each transition.
    """
    rows = min(num_envs, episodes)
    quota = np.full(rows, episodes // rows) + (np.arange(rows) < episodes % rows)
    environments = Environments(task, rows, seed)
    finished: list[list[float]] = [[] for _ in range(rows)]
    policy = make_policy(np.random.default_rng([seed, 1]))
    try:
        for transition in rollout(environments, policy):
            seen(transition)
            ended = np.flatnonzero(~np.isnan(transition.returns))
            for row in ended:
                if len(finished[row]) < quota[row]:
                    finished[row].append(float(transition.returns[row]))
            if len(ended):
                heard(sum(map(len, finished)))
                if all(len(games) == wanted for games, wanted in zip(finished, quota, strict=True)):
                    break
    finally:
        environments.close()
    return np.array([score for games in finished for score in games])


def play_scored(
    task: Task,
    values: ActionValues,
    episodes: int,
    epsilon: float,
    seed: int,
    *,
    heard: Callable[[int], None] = lambda finished: None,
    seen: Callable[[Transition], None] = lambda transition: None,
) -> dict[str, Any]:
    """The record of `episodes` full games, epsilon-greedy in `values`: returns, mean, IQM, 95 % interval, as JSON data.

    The games are seeded by `seed + 1_000_000`: others than those that a run with this seed trains on.
    """
    returns = play(
        task,
        lambda generator: EpsilonGreedy(values, task, epsilon, generator),
        episodes,
        seed + 1_000_000,
        heard=heard,
        seen=seen,
    )
    summary = summarize(returns, seed=seed)
    return {"episodes": len(returns), "epsilon": epsilon, **summary._asdict(), "returns": returns.tolist()}
