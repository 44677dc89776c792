"""Actor-critics: a policy's network with a value of the state beside it, for learners that follow the policy's gradient."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from rldistill.play.actions import middle_and_half
from rldistill.students.networks import Network, build
from rldistill.types import Task


class ActorCritic(nn.Module):
    """A network of logits or Gaussians, and a critic.

    For images the critic is one more unit on the policy's last hidden layer (Mnih et al. 2016, arXiv 1602.01783). For vectors and
    small grids it has a network of its own, of the same architecture. The weights are orthogonal with a gain of sqrt(2); the
    policy's last layer has 0.01, the critic's 1 (Huang et al. 2022, "The 37 implementation details of PPO").

    A Gaussian acts in units of the action range: -1 and 1 are its ends. Its log standard deviations are the biases of the last
    layer's second half, whose weights are and stay 0, so they do not depend on the state.

    Args:
        actor: trained in place; `logits` or `gaussian`.
        seed: of the weights.
    """

    def __init__(self, actor: Network, seed: int) -> None:
        super().__init__()
        self.actor = actor
        head = actor.layers[-1]
        assert isinstance(head, nn.Linear)
        own = actor.architecture._replace(num_scores=1)
        self.critic = nn.Linear(head.in_features, 1) if actor.large_images else build(own, seed).layers
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                _orthogonal(module, math.sqrt(2), generator)
        _orthogonal(head, 0.01, generator)
        last = self.critic if isinstance(self.critic, nn.Linear) else self.critic[-1]
        assert isinstance(last, nn.Linear)
        _orthogonal(last, 1.0, generator)
        self.dimensions = head.out_features // 2 if actor.score_kind == "gaussian" else 0
        if self.dimensions:
            with torch.no_grad():
                head.weight[self.dimensions :].zero_()

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (B, K) and values (B,) of observations (B, *obs)."""
        features = self.actor.hidden(observations)
        scores: Tensor = self.actor.layers[-1](features)
        if self.actor.large_images:
            return scores, self.critic(features).squeeze(1)
        actor = self.actor
        x = actor.standardized(actor.selected(observations).to(actor.device))
        return scores, self.critic(x).squeeze(1)

    def keep_deviations_apart(self) -> None:
        """Takes the gradients of those weights away that would make the deviations depend on the state."""
        gradient = self.actor.layers[-1].weight.grad
        if self.dimensions and isinstance(gradient, Tensor):
            gradient[self.dimensions :].zero_()


def in_action_units(actor: Network, task: Task) -> Network:
    """A copy of a Gaussian actor whose means and deviations are in the environment's units; other actors themselves."""
    if actor.score_kind != "gaussian":
        return actor
    made = copy.deepcopy(actor)
    middle, half = (part.to(made.device) for part in middle_and_half(task))
    head, number = made.layers[-1], len(half)
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.weight[:number].mul_(half[:, None])
        head.bias[:number].mul_(half).add_(middle)
        head.bias[number:].add_(half.log())
    return made


def _orthogonal(layer: nn.Conv2d | nn.Linear, gain: float, generator: torch.Generator) -> None:
    with torch.no_grad():
        nn.init.orthogonal_(layer.weight, gain, generator=generator)
        if layer.bias is not None:
            layer.bias.zero_()
