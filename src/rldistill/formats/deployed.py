"""A policy as it acts where there is no rldistill, in plain PyTorch: what ONNX and TorchScript are made of."""

from __future__ import annotations

import copy
from typing import Protocol

import torch
from torch import Tensor, nn

from rldistill.play.actions import chosen
from rldistill.students.lowering import lower
from rldistill.students.networks import Dropout, Network
from rldistill.types import ScoreKind, Task


class NetworkPolicy(Protocol):
    """A policy with one of the house's own networks, which can be exported."""

    @property
    def network(self) -> Network:
        """With its parameters."""

    @property
    def task(self) -> Task:
        """What it plays."""

    @property
    def score_kind(self) -> ScoreKind:
        """What its scores are."""

    def __call__(self, observations: Tensor) -> Tensor:
        """Scores (B, K) float32 of observations (B, *obs)."""


class Deployed(nn.Module):
    """A policy as it acts, in plain PyTorch: observations as the environment gives them, scores and actions out.

    The standardization of images is folded into the first layer: a pass over all pixels less.
    """

    shift: Tensor
    scale: Tensor
    reads: Tensor

    def __init__(self, policy: NetworkPolicy) -> None:
        super().__init__()
        network = policy.network
        self.task, self.kind = policy.task, policy.score_kind
        layers = copy.deepcopy([layer for layer in network.layers if not isinstance(layer, Dropout)])
        lowered = lower(network)
        self.folded = lowered.shift is None
        if self.folded:
            first = next(layer for layer in layers if isinstance(layer, nn.Conv2d | nn.Linear))
            folded = lowered.layers[0]
            first.weight, first.bias = (nn.Parameter(torch.from_numpy(side)) for side in (folded.weight, folded.bias))
        self.register_buffer("shift", network.shift.clone())
        self.register_buffer("scale", network.scale.clone())
        self.register_buffer("reads", torch.tensor(network.architecture.reads, dtype=torch.int64))
        self.layers = nn.Sequential(*layers)
        self.eval().requires_grad_(False)

    def forward(self, observation: Tensor) -> Tensor:
        """Scores (B, K) float32 of observations (B, *obs)."""
        x = observation.to(torch.float32)
        if self.reads.numel():
            x = x.index_select(1, self.reads)
        scores: Tensor = self.layers(x if self.folded else (x - self.shift) * self.scale)
        return scores

    def act(self, observation: Tensor) -> Tensor:
        """The chosen actions."""
        return self.choose(self(observation))

    def choose(self, scores: Tensor) -> Tensor:
        """The actions of scores (B, K)."""
        return chosen(scores, self.kind, self.task)


def example(policy: NetworkPolicy) -> Tensor:
    """Two observations of zeros, of the task's type."""
    dtype = torch.uint8 if policy.task.observation_dtype == "uint8" else torch.float32
    return torch.zeros((2, *policy.task.observation_shape), dtype=dtype)
