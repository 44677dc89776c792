"""The format `torchscript`: a program of PyTorch operators that loads without rldistill."""

from __future__ import annotations

import copy
import io
import json
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rldistill.formats.interface import MEMBER
from rldistill.play.actions import chosen
from rldistill.policies import SavedPolicy
from rldistill.students.lowering import lower
from rldistill.students.networks import Dropout


class Deployed(nn.Module):
    """A policy as it acts, in plain PyTorch: observations as the environment gives them, scores and actions out.

    The standardization of images is folded into the first layer: a pass over all pixels less.
    """

    shift: Tensor
    scale: Tensor
    reads: Tensor

    def __init__(self, policy: SavedPolicy) -> None:
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


def example(policy: SavedPolicy) -> Tensor:
    """Two observations of zeros, of the task's type."""
    dtype = torch.uint8 if policy.task.observation_dtype == "uint8" else torch.float32
    return torch.zeros((2, *policy.task.observation_shape), dtype=dtype)


def to_torchscript(policy: SavedPolicy, told: Mapping[str, Any]) -> bytes:
    """`torch.jit.load(file)(observations)` gives scores (B, K), `.act(observations)` actions; both of any batch size."""
    buffer = io.BytesIO()
    given = example(policy)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is old; that constants are constant
        traced = torch.jit.trace_module(  # type: ignore[no-untyped-call]  # torch leaves it untyped
            Deployed(policy), {"forward": (given,), "act": (given,)}
        )
        torch.jit.save(traced, buffer, _extra_files={MEMBER: json.dumps(told)})
    return buffer.getvalue()
