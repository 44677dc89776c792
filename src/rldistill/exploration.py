"""How a driving student explores: from its scores to actions, with a generator."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
import torch

from rldistill.networks import Network
from rldistill.rollout import mix_in_random
from rldistill.types import Actions, Observations, Policy, as_tensor

Explore: TypeAlias = Literal["greedy", "epsilon", "boltzmann", "dropout"]


def explorer(network: Network, explore: Explore, epsilon: float, generator: np.random.Generator) -> Policy:
    """A driving policy on the network as it stands at each call.

    Args:
        network: the student.
        explore: `greedy`; `epsilon`: uniformly random with probability epsilon; `boltzmann`: drawn from the softmax of the
            scores; `dropout`: greedy on a network with units dropped, drawn anew each control step (Bronstein & Zheng).
        epsilon: for `epsilon` alone.
        generator: of the draws; dropout draws from the network's own.
    """

    def act(observations: Observations) -> Actions:
        was_training, was_exploring = network.training, network.exploring
        network.eval()
        network.exploring = explore == "dropout"
        with torch.no_grad():
            scores = network(as_tensor(observations))
        network.exploring = was_exploring
        network.train(was_training)
        if explore == "boltzmann":
            return boltzmann(np.asarray(scores.numpy()), generator)
        actions = np.asarray(scores.argmax(dim=1).numpy())
        return mix_in_random(actions, scores.shape[1], epsilon, generator) if explore == "epsilon" else actions

    return act


def boltzmann(scores: np.ndarray[tuple[int, int], np.dtype[np.float32]], generator: np.random.Generator) -> Actions:
    """Actions (N,) drawn from softmax(scores) (N, A), by the largest of scores with Gumbel noise."""
    return np.asarray((scores + generator.gumbel(size=scores.shape)).argmax(axis=1), dtype=np.int64)
