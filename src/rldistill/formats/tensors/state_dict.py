"""Plain state dicts, whose architecture is named by a user or follows from the shapes in the file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn

from rldistill.files import open_regular
from rldistill.formats.chain import (
    Activation,
    Chain,
    FixedDeviation,
    Layer,
    Rescale,
    Spec,
    Standardize,
    build_chain,
    check_spec,
    in_order,
    layers_of,
    natural_order,
    parse_architecture,
    sizes_of,
    spell,
)
from rldistill.formats.embedded import Taken, choose_statistics, take_statistics
from rldistill.formats.foreign import (
    ALL_OF_MINATAR,
    DiscreteSpace,
    ForeignPolicy,
    ForeignScores,
    Numbers,
    Pixels,
    acted,
    holds_bytes,
    observations_of,
    scores_named,
    words_of,
)
from rldistill.formats.tensors.weights import Part, is_safetensors, part_of, read_tensor_file, state_dict_of
from rldistill.types import UserError, printable

# Words in the names of layers, which people choose alike.
_STATE_VALUES = {"v", "value", "values", "vf", "critic", "baseline", "target"}
# Words in the names of files: the algorithm says what its network gives.
_VALUE_ALGORITHMS = {"dqn", "ddqn", "pqn", "doubledqn"}
_DEVIATION = re.compile(r"(\w*_)?(log)?(std|sigma)(_param(eter)?)?")
_POLICY_ALGORITHMS = {"a2c", "a3c", "ppo", "acktr", "trpo", "reinforce", "impala"}
_SUPPOSED_UNITS = (
    "actions are in the environment's units as the last layer gives them (--teacher-network mlp:256,256:relu:tanh "
    "names a tanh behind it)"
)


def read_state_dict(
    path: Path,
    *,
    architecture: str | None = None,
    observation_shape: tuple[int, ...] | None = None,
    num_actions: int | None = None,
    action_range: tuple[Sequence[float], Sequence[float]] | None = None,
    scores: ForeignScores | None = None,
    pixels: Pixels | None = None,
    numbers: Numbers | None = None,
) -> ForeignPolicy:
    """A policy out of `.pth`, `.pt`, `.bin` (read with `weights_only`) or `.safetensors`.

    Convolutions, linear layers and LayerNorms follow one another in the order of the file; a head for state values
    (`v`, `critic`, `value`) is left out. Strides are those of Mnih et al. 2015 for their kernels, or the only ones with
    which the sizes fit. Pixels are divided by 255 inside the network, where `pixels` is not `bytes`.

    Args:
        path: the file.
        architecture: `dqn`, `net2`, `cnn:32,64,64:512`, `mlp:64,64`, `mlp:64,64:tanh`, `mlp:64,64:relu:tanh`; needed
            where there are no convolutions, since no file of weights says which activation stands between them.
        observation_shape: (channels, height, width) or (features,), where it is known.
        num_actions: where it is known.
        action_range: the least and the largest of each dimension, where actions are continuous.
        scores: what the head gives; needed where neither its name nor the file's says so.
        pixels: whether bytes go in as 0 to 255 or as 0 to 1; needed where they are no large images.
        numbers: what the observations are made of, where it is known; None supposes bytes of large images, floats elsewhere.

    Raises:
        UserError: the file is damaged or something else, does not fit what is stated about it, or does not say enough.
    """
    spec = None if architecture is None else parse_architecture(architecture)
    activation = "relu" if spec is None else spec.activation
    file = _open(path, scores)
    _check_activation(spec, file.layers, path)
    chain = build_chain(
        file.layers,
        path,
        activation=activation,
        observation_shape=observation_shape,
        standardization=file.standardization,
        pixels=pixels,
        numbers=numbers,
    )
    space = observations_of(chain.observation_shape, numbers)
    _check_standardization(file.standardization, chain.observation_shape, path)
    hint = ALL_OF_MINATAR if numbers == "binary" and chain.outputs == 6 else ""
    _check_outputs(chain.outputs, num_actions, file.layers[-1].name, hint, path)
    squash = _squash(spec, action_range, chain.outputs, scores, path)
    kind, reason = ("deterministic", "the caller") if squash is not None else (scores, "the caller")
    if kind is None:
        kind, reason = _scores(file, path, action_range is not None, activation)
    in_units = kind in ("deterministic", "gaussian") and squash is None
    chosen = choose_statistics(file.taken, chain.observation_shape, path)
    supposed = _supposed(file, chain, reason, names_activation=spec is not None)
    return ForeignPolicy(
        network=_network(chain, squash, file.deviation if kind == "gaussian" else None, path),
        scores=kind,
        algorithm="unknown",
        format="safetensors" if _forgets_order(path) else "state dict",
        observation_space=space,
        action_space=None if kind in ("deterministic", "gaussian") else DiscreteSpace((chain.outputs,), divided=False),
        normalization=chosen.statistics,
        unknown_statistics=chosen.unknown,
        provenance={
            "architecture": chain.architecture if squash is None or architecture is None else architecture,
            "layers": [layer.name for layer in file.layers],
            "left_out": file.left_out,
            "scores_told_by": reason,
            "supposed": [*supposed, _SUPPOSED_UNITS] if in_units else supposed,
            "notes": list(chosen.notes),
        },
        units_supposed=in_units,
        used=acted(
            teacher_network=architecture,
            teacher_scores=scores,
            pixels=holds_bytes(space) and file.standardization is None and pixels,
        ),
    )


class _Deviation(NamedTuple):
    """Of a Gaussian whose means the head gives."""

    name: str
    log_std: Tensor | None
    """(1,) or (D,); None where it is not known whether the file has the deviation or its logarithm."""


class _File(NamedTuple):
    """What a file holds."""

    layers: list[Layer]
    """From observations to scores, in their order."""
    left_out: list[str]
    """Names of the layers that give state values."""
    part: Part
    """Of the checkpoint."""
    deviation: _Deviation | None
    standardization: nn.Module | None
    """Of one of the house's own networks."""
    taken: Taken
    """Statistics of observations."""


def _open(path: Path, scores: ForeignScores | None) -> _File:
    if scores is not None and scores not in get_args(ForeignScores):
        raise UserError(f"unknown kind of scores {scores!r}: take one of {', '.join(get_args(ForeignScores))}")
    taken = take_statistics(read_tensor_file(path))
    part = part_of(taken.rest)
    tensors = state_dict_of(taken.rest, path)
    deviation = None if scores in ("q_values", "logits") else _take_deviation(tensors)
    if scores == "gaussian" and (deviation is None or deviation.log_std is None):
        raise UserError(f"{path}: a plain state dict does not say where its log standard deviations are; use ONNX")
    standardization: nn.Module | None = None
    if {"shift", "scale"} <= set(tensors):
        standardization = Standardize(tensors.pop("shift"), tensors.pop("scale"))
    layers, left_out = _acting_layers(tensors, path)
    _refuse_dueling(layers, left_out, scores, path)
    return _File(layers, left_out, part, deviation, standardization, taken)


def _acting_layers(tensors: Mapping[str, Tensor], path: Path) -> tuple[list[Layer], list[str]]:
    """The layers from observations to scores in their order, and names of those that give state values."""
    layers = layers_of({name: tensor for name, tensor in tensors.items() if not _is_state_value(name)}, path)
    left_out = sorted({name.rpartition(".")[0] for name in tensors if _is_state_value(name)})
    if not layers:  # everything is named `critic`: then that is the policy
        layers, left_out = layers_of(tensors, path), []
    layers = in_order(natural_order(layers) if _forgets_order(path) else layers, path)
    if not layers:
        raise UserError(f"{path} holds no layers")
    return layers, left_out


def _refuse_dueling(layers: list[Layer], left_out: list[str], scores: ForeignScores | None, path: Path) -> None:
    """Raises UserError where the names of layers are, or may be, those of a dueling network."""
    if words_of([layer.name for layer in layers]) & {"advantage", "advantages", "adv"}:
        raise UserError(f"{path}: {layers[-1].name!r} is of a dueling network, which is no chain; export it to ONNX")
    if scores is None and "a" in words_of([layers[-1].name]) and "v" in words_of(left_out):
        raise UserError(
            f"{path} has heads {layers[-1].name!r} and {left_out[0]!r}: of a dueling network, which is no chain (export it to "
            "ONNX), or an actor and a critic (say --teacher-scores logits)"
        )


def _check_activation(spec: Spec | None, layers: list[Layer], path: Path) -> None:
    """Raises UserError where the named network has other sizes, or none is named and the activation is not known."""
    if spec is not None:
        check_spec(spec, sizes_of(layers), path)
    elif [layer.name for layer in layers] == ["conv", "fc_hidden", "policy"]:
        raise UserError(
            f"{path} has the layers of MinAtar's actor-critic example, with SiLU and its derivative between them: export it to "
            f"ONNX or TorchScript, or name its network if it is another, --teacher-network {spell(*sizes_of(layers))} for ReLU"
        )
    elif not any(layer.kind == "convolution" for layer in layers) and len(layers) > 1:
        sizes = ",".join(str(int(layer.weight.shape[0])) for layer in layers[:-1] if layer.kind == "linear")
        raise UserError(
            f"{path} does not say which activation stands between its layers: "
            f"name the architecture with --teacher-network mlp:{sizes} for ReLU or mlp:{sizes}:tanh (elu and others likewise)"
        )


def _network(chain: Chain, squash: Rescale | None, deviation: _Deviation | None, path: Path) -> nn.Sequential:
    """The chain with what follows its last layer: a tanh, or the deviations of a Gaussian."""
    modules: list[nn.Module] = [*chain.network] if squash is None else [*chain.network, squash]
    if deviation is not None and deviation.log_std is not None:
        if deviation.log_std.numel() not in (1, chain.outputs):
            raise UserError(
                f"{path}: {deviation.name!r} has {deviation.log_std.numel()} numbers for {chain.outputs} actions"
            )
        modules.append(FixedDeviation(deviation.log_std.reshape(-1)))
    return nn.Sequential(*modules).eval()


def _supposed(file: _File, chain: Chain, reason: str, *, names_activation: bool) -> list[str]:
    """What the file does not say of its network and its scores."""
    supposed = [f"the part {printable(file.part.name)!r} of the file acts"] if file.part.others else []
    supposed += chain.supposed
    if not names_activation and len(file.layers) > 1:
        supposed.append(f"ReLU after each hidden layer (--teacher-network {chain.architecture}:tanh names another)")
    if reason.startswith("the value head"):
        supposed.append(f"its head {file.layers[-1].name!r} gives logits, as {reason} suggests")
    return supposed


def _squash(
    spec: Spec | None,
    action_range: tuple[Sequence[float], Sequence[float]] | None,
    outputs: int,
    scores: ForeignScores | None,
    path: Path,
) -> Rescale | None:
    """What follows the last layer of an actor with a tanh at its end; None where none was named."""
    if spec is None or not spec.squashed:
        return None
    if scores not in (None, "deterministic"):
        raise UserError(
            f"{path}: a tanh after the last layer gives actions, not {scores}: --teacher-scores deterministic"
        )
    if action_range is None or not np.isfinite(action_range).all():
        raise UserError(
            f"{path}: a tanh after the last layer is spread over the range of the actions; they have none here"
        )
    low, high = (torch.tensor(side, dtype=torch.float32) for side in action_range)
    if low.shape != (outputs,):
        raise UserError(f"{path} gives {outputs} actions, the environment takes {len(low)}")
    return Rescale((high - low) / 2, (high + low) / 2)


def _scores(file: _File, path: Path, continuous: bool, activation: Activation) -> tuple[ForeignScores, str]:
    """What the head gives, and what says so.

    Raises:
        UserError: nothing says so, or what does speaks of logits where actions are continuous.
    """
    layers = file.layers
    if file.deviation is not None:
        return _scores_beside(file.deviation, path), "the caller"
    kind, reason = _scores_by_names(layers, [*file.left_out, *file.part.others], file.part, path)
    if kind is None or (kind == "logits" and continuous):
        if continuous:
            raise UserError(
                f"{path} does not say what its head {layers[-1].name!r} gives: --teacher-scores deterministic where it gives the "
                f"actions as they are, {_with_tanh(layers, activation)} where a tanh follows it, as in TD3 and DDPG"
            )
        raise UserError(
            f"{path} does not say whether its head {layers[-1].name!r} gives Q-values, logits or continuous actions: name it with "
            "--teacher-scores q_values, logits or deterministic"
        )
    return kind, reason


def _with_tanh(layers: list[Layer], activation: Activation) -> str:
    """What a user says where a tanh follows the last of these layers."""
    channels, hidden = sizes_of(layers)
    if not hidden:
        return "exported to ONNX"
    return f"--teacher-network {spell(channels, hidden)}:{activation}:tanh"


def _scores_by_names(
    layers: list[Layer], beside: list[str], part: Part, path: Path
) -> tuple[ForeignScores | None, str]:
    named = scores_named([layers[-1].name])
    # PyTorch's own tutorial calls DQN's online network `policy_net`, beside a `target_net`.
    if named is not None and not (named == "logits" and any("target" in words_of([name]) for name in beside)):
        return named, f"the head's name {layers[-1].name!r}"
    if named is None and scores_named([part.name]) == "q_values":
        return "q_values", f"the name {printable(part.name)!r} of its part"
    words = words_of([path.stem.lower()])
    if bool(words & _VALUE_ALGORITHMS) != bool(words & _POLICY_ALGORITHMS):
        return ("q_values" if words & _VALUE_ALGORITHMS else "logits"), f"the file's name {path.name!r}"
    values = [name for name in beside if {"v", "value", "critic", "vf"} & words_of([name])]
    return ("logits", f"the value head {printable(values[0])!r} beside it") if values else (None, "")


def _take_deviation(tensors: dict[str, Tensor]) -> _Deviation | None:
    """Takes the deviations of continuous actions, which stand beside the layers, out of the tensors."""
    for name in list(tensors):
        match = _DEVIATION.fullmatch(name.rpartition(".")[2])
        if match is None or tensors[name].squeeze().ndim > 1:
            continue
        given = tensors.pop(name)
        positive = bool((given > 0).all())
        log_std = given if "log" in match[0] else given.log() if match[3] == "std" and positive else None
        return _Deviation(name, log_std)
    return None


def _scores_beside(deviation: _Deviation, path: Path) -> ForeignScores:
    """What a head gives that has deviations beside it."""
    if "distribution" in deviation.name.split("."):  # rsl_rl's, whose environments take the means as they are
        return "gaussian"
    choices = "deterministic" if deviation.log_std is None else "gaussian or deterministic"
    raise UserError(
        f"{path}: {deviation.name!r} says that its head gives the means of continuous actions: name --teacher-scores {choices}"
    )


def _is_state_value(name: str) -> bool:
    words = words_of([name.rpartition(".")[0]])
    return bool(words & {"target", "targ", "old"}) or (
        bool(words & _STATE_VALUES) and scores_named([name]) != "q_values"
    )


def _forgets_order(path: Path) -> bool:
    with open_regular(path) as file:
        start = file.read(16)
    return is_safetensors(start, path.stat().st_size)


def _check_outputs(outputs: int, num_actions: int | None, head: str, hint: str, path: Path) -> None:
    if num_actions is not None and outputs != num_actions:
        several = outputs % num_actions == 0
        why = hint or ("; quantiles or atoms are not understood in a plain state dict" if several else "")
        raise UserError(f"{path}: its head {head!r} gives {outputs} numbers, but there are {num_actions} actions{why}")
    if outputs < 1 or outputs > 65_536:
        raise UserError(f"{path}: its head {head!r} gives {outputs} numbers, which are no scores of actions")


def _check_standardization(standardization: nn.Module | None, shape: tuple[int, ...], path: Path) -> None:
    if standardization is None:
        return
    for name, buffer in standardization.named_buffers():
        if tuple(buffer.shape) not in ((1,), shape):
            raise UserError(f"{path}: {name!r} has shape {tuple(buffer.shape)}, the observations {shape}")
