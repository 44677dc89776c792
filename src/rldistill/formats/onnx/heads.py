"""All heads of a network as one ONNX model, with the task as an input."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rldistill.formats.heads import HeadsPolicy, filler, has_actions, most_scores, observation_dtype, observation_shape
from rldistill.formats.note import MEMBER
from rldistill.formats.onnx.writing import exported_model
from rldistill.students.networks import Dropout


class _DeployedHeads(nn.Module):
    """The torso once, then all heads; of each row the head of its task is kept."""

    shift: Tensor
    scale: Tensor
    reads: Tensor

    def __init__(self, policy: HeadsPolicy) -> None:
        super().__init__()
        network = policy.network
        views = dict(network.views())
        width = max(head.features for head in network.heads.values())
        ones = [1] * (len(observation_shape(policy)) - 1)
        # A scale of 0 silences what a task does not have.
        shift, scale = torch.zeros(len(views), width), torch.zeros(len(views), width)
        reads = torch.zeros(len(views), width, dtype=torch.int64)
        for index, (name, view) in enumerate(views.items()):
            head = network.heads[name]
            shift[index, : head.features], scale[index, : head.features] = view.shift, view.scale
            reads[index, : head.features] = torch.tensor(head.reads or tuple(range(head.features)))
        self.register_buffer("shift", shift.reshape(len(views), width, *ones))
        self.register_buffer("scale", scale.reshape(len(views), width, *ones))
        self.register_buffer("reads", reads)
        self.selects = any(head.reads for head in network.heads.values())
        self.torso = copy.deepcopy(network.torso)
        shared = len(network.torso)
        self.heads = nn.ModuleList(
            nn.Sequential(
                *(copy.deepcopy(layer) for layer in list(view.layers)[shared:] if not isinstance(layer, Dropout))
            )
            for view in views.values()
        )
        self.padding = [
            (most_scores(policy) - head.num_scores, filler(policy.tasks[name])) for name, head in network.heads.items()
        ]
        self.has_actions = has_actions(list(policy.tasks.values()))
        self.eval().requires_grad_(False)

    def forward(self, observation: Tensor, task: Tensor) -> tuple[Tensor, ...]:
        x = observation.to(torch.float32)
        if self.selects:
            x = torch.gather(x, 1, self.reads[task])
        x = self.torso((x - self.shift[task]) * self.scale[task])
        scores = torch.stack(
            [
                nn.functional.pad(head(x), (0, missing), value=value)
                for head, (missing, value) in zip(self.heads, self.padding, strict=True)
            ],
            dim=1,
        )
        own = torch.gather(scores, 1, task.reshape(-1, 1, 1).expand(-1, 1, scores.shape[2])).squeeze(1)
        return (own.argmax(dim=1), own) if self.has_actions else (own,)


def heads_to_onnx(policy: HeadsPolicy, note: Mapping[str, Any]) -> bytes:
    """A model with the inputs `observation` (B, *obs) and `task` (B,) int64, an index in the note's table of tasks.

    Observations with fewer channels or features than the widest task's are padded behind with zeros. The outputs are `scores`
    (B, K), behind a head's own minus infinity (of continuous actions 0), and `action` (B,) where every task has one
    discrete action.

    Raises:
        UserError: the packages of the extra are missing, or the tasks' observations are of different types.
    """
    dtype = torch.uint8 if observation_dtype(policy) == "uint8" else torch.float32
    module = _DeployedHeads(policy)
    inputs = {
        "observation": torch.zeros((2, *observation_shape(policy)), dtype=dtype),
        "task": torch.zeros(2, dtype=torch.int64),
    }
    model = exported_model(module, inputs, [*(["action"] if module.has_actions else []), "scores"])
    entry = model.metadata_props.add()
    entry.key, entry.value = Path(MEMBER).stem, json.dumps(note)
    return bytes(model.SerializeToString())
