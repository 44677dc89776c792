"""What a C file is rendered from: a description, and a network's numbers in the file's order."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy.typing as npt
import torch

from rldistill.play.actions import score_width
from rldistill.students.lowering import Affine, Lowered, int8_layers, lower
from rldistill.students.networks import Architecture, Network, build
from rldistill.types import Observations, ScoreKind, Task, UserError, as_tensor

Arrays: TypeAlias = dict[str, npt.NDArray[Any]]


class CPolicy(NamedTuple):
    """What a C file is rendered from."""

    description: Mapping[str, Any]
    """Plain JSON data: `architecture`, `task`, `score_kind`, `prefix` of the functions, name of the `header`, `weights`
    (float32 or int8), and further facts."""
    arrays: Arrays
    """The numbers by name, each flat."""

    @property
    def task(self) -> Task:
        """What it plays."""
        return Task.from_dict(self.description["task"])

    @property
    def score_kind(self) -> ScoreKind:
        """What its scores are."""
        kind: ScoreKind = self.description["score_kind"]
        return kind

    @property
    def weight_bytes(self) -> int:
        """Of its numbers when compiled."""
        return sum(array.nbytes for array in self.arrays.values())


def c_policy(
    network: Network,
    task: Task,
    *,
    prefix: str,
    header: str,
    calibration: Observations | None = None,
    facts: Mapping[str, Any],
) -> CPolicy:
    """A network's numbers, ready to be rendered.

    Args:
        network: of any architecture of the house.
        task: what it plays.
        prefix: of the names of functions and macros.
        header: file name of the header that the C file includes.
        calibration: observations (B, *obs), some hundreds; with them the weights are rounded to -127 to 127 with one scale an
            output (`lowering.int8_layers`), and biases and everything else stay float32.
        facts: go into the description too.

    Raises:
        UserError: the prefix is no C name, or the header has no plain file name.
    """
    description = {
        **facts,
        "architecture": network.architecture.as_dict(),
        "score_kind": network.score_kind,
        "task": task.as_dict(),
        "prefix": prefix,
        "header": header,
        "weights": "float32" if calibration is None else "int8",
    }
    check_names(description)
    lowered = lower(network)
    rounded = [] if calibration is None else int8_layers(lowered, as_tensor(calibration))
    arrays: Arrays = {}
    if lowered.shift is not None and lowered.scale is not None:
        arrays |= {"shift": lowered.shift, "scale": lowered.scale}
    before: Affine | None = None
    for number, layer in enumerate(lowered.layers, 1):
        weight, bias = laid_out(layer, before, first=number == 1), layer.bias
        if rounded:
            numbers, arrays[f"scales_{number}"], bias = rounded[number - 1]
            weight = laid_out(layer._replace(weight=numbers), before, first=number == 1)  # type: ignore[arg-type]  # int8 now
        arrays[f"weights_{number}"] = weight
        arrays[f"biases_{number}"] = bias
        if layer.norm is not None:
            arrays |= {f"norm_weights_{number}": layer.norm.weight, f"norm_biases_{number}": layer.norm.bias}
        before = layer
    return CPolicy(json.loads(json.dumps(description)), {name: array.reshape(-1) for name, array in arrays.items()})


def laid_out(layer: Affine, before: Affine | None, *, first: bool) -> npt.NDArray[Any]:
    """Outputs last, so that the innermost loop runs over them; what is read pixel by pixel has its channels last."""
    weight = layer.weight
    if layer.stride:  # observations have channels first, what layers give each other has them last
        return weight.transpose(1, 2, 3, 0) if first else weight.transpose(2, 3, 1, 0)
    if before is not None and before.stride:
        return weight.reshape(len(weight), *before.outputs).transpose(2, 3, 1, 0)
    return weight.T


def check_names(description: Mapping[str, Any]) -> None:
    """Raises UserError where a name could not stand in the file."""
    prefix, header = str(description.get("prefix")), str(description.get("header"))
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,60}", prefix):
        raise UserError(f"{prefix!r} is no prefix of C names: letters, digits and _, a letter first")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*\.h", header):
        raise UserError(f"the C file cannot include {header!r}: take letters, digits, '_', '-' and '.' in --out")


def skeleton(policy: CPolicy) -> Lowered:
    """The layers with their shapes alone, whose arrays the policy has.

    Raises:
        ValueError: it has others.
    """
    architecture = Architecture.from_dict(policy.description["architecture"])
    shape = architecture.observation_shape
    if shape != policy.task.observation_shape or policy.description["weights"] not in ("float32", "int8"):
        raise ValueError("its description does not fit itself")
    with torch.device("meta"):  # what a file claims takes no memory before its arrays bear it out
        network = build(architecture, 0, policy.score_kind)
    total = sum(parameter.numel() for parameter in network.parameters())
    there = sum(array.size for array in policy.arrays.values())
    if total > there or (len(shape) == 1 and policy.arrays["shift"].size != shape[0]):
        raise ValueError("its arrays are not those of its network")
    if network.architecture.num_scores != score_width(policy.task, policy.score_kind):
        raise ValueError("its network does not fit its task")
    lowered = lower(network)
    sizes: dict[str, int] = {}
    if lowered.shift is not None:
        sizes |= {"shift": lowered.shift.size, "scale": lowered.shift.size}
    for number, layer in enumerate(lowered.layers, 1):
        sizes |= {f"weights_{number}": layer.weight.size, f"biases_{number}": layer.bias.size}
        if policy.description["weights"] == "int8":
            sizes[f"scales_{number}"] = layer.bias.size
        if layer.norm is not None:
            sizes |= {f"norm_weights_{number}": layer.bias.size, f"norm_biases_{number}": layer.bias.size}
    if sizes != {name: array.size for name, array in policy.arrays.items()}:
        raise ValueError("its arrays are not those of its network")
    return lowered
