"""How a driving student explores: from its scores to actions, with a generator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias, cast

import numpy as np
import torch

from rldistill.actions import chosen, drawn, mix_in_random
from rldistill.networks import Network
from rldistill.types import Actions, Observations, Policy, Task, as_tensor

Explore: TypeAlias = Literal["greedy", "epsilon", "boltzmann", "dropout"]


def explorer(
    network: Network, task: Task, explore: Explore, epsilon: Callable[[], float], generator: np.random.Generator
) -> Policy:
    """A driving policy on the network as it stands at each call.

    Args:
        network: the student.
        task: whose actions it takes.
        explore: `greedy`; `epsilon`: uniformly random with probability epsilon; `boltzmann`: drawn from the softmax of
            the scores, or from the Gaussian; `dropout`: greedy on a network with units dropped,
            drawn anew each control step (Bronstein & Zheng).
        epsilon: for `epsilon` alone: asked at each call.
        generator: of the draws; dropout draws from the network's own.
    """

    def act(observations: Observations) -> Actions:
        with torch.no_grad(), network.acting(sampled=explore == "dropout"):
            scores = network(as_tensor(observations))
        if explore == "boltzmann":
            return drawn(scores, network.score_kind, task, generator)
        actions = cast(Actions, chosen(scores, network.score_kind, task).numpy())
        return mix_in_random(actions, task, epsilon(), generator) if explore == "epsilon" else actions

    return act
