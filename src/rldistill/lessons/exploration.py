"""Exploration: from scores to actions, of a student that drives and of a learner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import torch

from rldistill.play.actions import are_allowed, chosen, drawn, mix_in_random, uniform_actions
from rldistill.students.networks import Network
from rldistill.types import Actions, Masks, Observations, Policy, Task, as_tensor

Explore: TypeAlias = Literal["greedy", "epsilon", "boltzmann", "dropout"]


def explorer(
    network: Network, task: Task, explore: Explore, epsilon: Callable[[], float], generator: np.random.Generator
) -> Policy:
    """A driving policy that follows the current weights of a network.

    Args:
        network: the student.
        task: whose actions it takes.
        explore: `greedy`; `epsilon`: uniformly random with probability epsilon; `boltzmann`: drawn from the softmax of
            the scores, or from the Gaussian; `dropout`: greedy on a network with units dropped,
            drawn anew each control step (Bronstein & Zheng).
        epsilon: called at each control step; for `epsilon` alone.
        generator: of the draws; dropout draws from the network's own.
    """

    def act(observations: Observations, masks: Masks | None = None) -> Actions:
        with torch.no_grad(), network.acting(sampled=explore == "dropout"):
            scores = network(as_tensor(observations))
        if explore == "boltzmann":
            return drawn(scores, network.score_kind, task, generator, masks)
        actions = cast(Actions, chosen(scores, network.score_kind, task, masks).numpy())
        return mix_in_random(actions, task, epsilon(), generator, masks) if explore == "epsilon" else actions

    return act


class EZGreedy:
    """Epsilon-greedy with random actions that last; Dabney et al. 2021, arXiv 2006.01782, algorithm 1 with its zeta durations.

    A random action is taken n times, n drawn with a probability proportional to 1 / n^2 up to a longest (the paper's mu = 2).
    In Freeway a random walk does not cross the road, and some tens of steps in one direction do. With a longest of 1 it is
    epsilon-greedy. A random action that is no longer allowed is drawn anew, for the control steps that it has left.

    Args:
        task: whose actions these are.
        num_envs: rows, each with its own random action.
        longest: control steps that a random action lasts at most.
        generator: of the draws.
    """

    def __init__(self, task: Task, num_envs: int, longest: int, generator: np.random.Generator) -> None:
        self._task, self._generator = task, generator
        chances = 1 / np.arange(1, longest + 1) ** 2
        self._up_to = np.cumsum(chances / chances.sum())[:-1]
        self._left = np.zeros(num_envs, dtype=np.int64)
        self._held: Actions = uniform_actions(task, num_envs, np.random.default_rng(0))

    def __call__(self, greedy: Actions, epsilon: float, masks: Masks | None = None) -> Actions:
        """The actions to take (N, ...), from the greedy ones and the probability that a random one begins.

        Args:
            greedy: (N, ...), allowed ones.
            epsilon: the probability.
            masks: (N, A) the allowed actions; None allows all.
        """
        number = len(greedy)
        begins = (self._generator.random(number) < epsilon) & (self._left == 0)
        drawn = uniform_actions(self._task, number, self._generator, masks)
        lasts = np.ones(number, dtype=np.int64)
        if len(self._up_to):
            lasts += np.searchsorted(self._up_to, self._generator.random(number), side="right")
        self._held[begins], self._left[begins] = drawn[begins], lasts[begins]
        random = self._left > 0
        if masks is not None:
            gone = random & ~are_allowed(self._held, self._task, masks)
            self._held[gone] = drawn[gone]
        self._left -= random
        return cast(Actions, np.where(random.reshape(-1, *[1] * (greedy.ndim - 1)), self._held, greedy))

    def state_dict(self) -> dict[str, Any]:
        """The random actions that continue."""
        return {"held": self._held.copy(), "left": self._left.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._held = cast(Actions, np.asarray(state["held"]).astype(self._held.dtype))
        self._left = np.array(np.asarray(state["left"]), dtype=np.int64)
