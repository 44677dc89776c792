"""CleanRL's checkpoints: `<experiment>.cleanrl_model`, written by `torch.save` in its single-file scripts.

The names of a file's tensors show which script wrote it:

| names | script | activation there | gives |
|---|---|---|---|
| `network.N` | dqn, dqn_atari, pqn and the like | ReLU | Q-values |
| `network.N`, `atoms` | c51, c51_atari (a dict with `model_weights` and `args`) | ReLU | atoms; here their mean |
| `actor.N`, `critic.N` | ppo | tanh | logits |
| `network.N`, `actor`, `critic` | ppo_atari | ReLU | logits |
| `actor_mean.N`, `actor_logstd`, `critic.N` | ppo_continuous_action, rpo_continuous_action | tanh | Gaussian |
| `fc1`, `fc2`, `fc_mu`, `action_scale`, `action_bias` | ddpg_, td3_continuous_action (a tuple, the actor first) | ReLU | actions |
| `fc1`, `fc2`, `fc_mean`, `fc_logstd`, `action_scale`, ... | sac_continuous_action | ReLU | squashed Gaussian |
| `conv.N`, `fc1`, `fc_logits` | sac_atari | ReLU | logits |

The scripts are made to be edited, and an edited one writes the same names and often the same sizes. So the activation of an MLP
comes from the script itself, which CleanRL puts beside the policies that it uploads, or from the user; convolutions have ReLUs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rldistill.formats.archives import read_policy
from rldistill.formats.chain import (
    Activation,
    Chain,
    FixedDeviation,
    Rescale,
    Spec,
    build_chain,
    check_spec,
    in_order,
    layers_of,
    parse_architecture,
    sizes_of,
    spell,
)
from rldistill.formats.cleanrl.scripts import activation_in
from rldistill.formats.embedded import choose_statistics, take_statistics
from rldistill.formats.foreign import BoxSpace, DiscreteSpace, ForeignPolicy, Numbers, acted, observations_of
from rldistill.formats.hub.download import read_card
from rldistill.formats.tensors.weights import is_msgpack, read_tensor_file, state_dict_of
from rldistill.types import UserError

FORMAT = "CleanRL checkpoint"
# sac_continuous_action squeezes its log standard deviations into this range.
_LOG_STD_MIN, _LOG_STD_MAX = -5.0, 2.0


class _Source(NamedTuple):
    """A file, and what a user states about its network."""

    path: Path
    shape: tuple[int, ...] | None
    """Of its observations."""
    spec: Spec | None
    """As a user names it."""
    numbers: Numbers | None
    """What its observations are made of."""
    decided: dict[str, str]
    """What the script beside it says, where the user's word contradicts it."""


class MeanOfAtoms(nn.Module):
    """Expected values under C51's distributions: (B, actions * atoms) logits to (B, actions)."""

    def __init__(self, atoms: Tensor) -> None:
        super().__init__()
        self.register_buffer("atoms", atoms)

    def forward(self, logits: Tensor) -> Tensor:
        """(B, actions * atoms) to (B, actions) float32."""
        atoms = self.get_buffer("atoms")
        return (logits.view(len(logits), -1, len(atoms)).softmax(dim=2) * atoms).sum(dim=2)


class TwoHeads(nn.Module):
    """SAC's means and log standard deviations from one layer of features."""

    def __init__(self, mean: nn.Linear, log_std: nn.Linear) -> None:
        super().__init__()
        self.mean, self.log_std = mean, log_std

    def forward(self, features: Tensor) -> Tensor:
        """(B, features) to (B, 2 D)."""
        squeezed = _LOG_STD_MIN + 0.5 * (_LOG_STD_MAX - _LOG_STD_MIN) * (torch.tanh(self.log_std(features)) + 1)
        return torch.cat([self.mean(features), squeezed], dim=1)


def read_cleanrl(
    path: Path,
    *,
    observation_shape: tuple[int, ...] | None = None,
    architecture: str | None = None,
    numbers: Numbers | None = None,
) -> ForeignPolicy:
    """A policy that one of CleanRL's PyTorch scripts saved.

    ppo_continuous_action trains on normalized observations and does not save the statistics: its policies come with
    `normalization_expected` and without `normalization`.

    Args:
        path: the `.cleanrl_model` file.
        observation_shape: where it is known; else it follows from the file's own layers (images are supposed to be 84 x 84).
        architecture: such as `mlp:64,64:tanh`; needed where there are no convolutions and the script does not lie beside the file.
        numbers: what the observations are made of, where it is known.

    Raises:
        UserError: the file is damaged, of a JAX script, of a network that is not understood, or its activation is not known.
    """
    spec = None if architecture is None else parse_architecture(architecture)
    source = _Source(path, observation_shape, spec, numbers, {})
    if source.spec is not None and source.spec.squashed:
        raise UserError(
            f"{path} says itself what follows its last layer: leave the second activation out of --teacher-network"
        )
    data = read_policy(path)
    if data[:2] != b"PK" and is_msgpack(data[:1]):
        raise UserError(
            f"{path} is of one of CleanRL's JAX scripts (*_jax.py), which are not understood; "
            "take the PyTorch variant or export it to ONNX"
        )
    taken = take_statistics(read_tensor_file(path))
    args = _arguments(taken.rest)
    tensors = state_dict_of(_actor_of(taken.rest, path), path)
    policy = _by_names(tensors, source)
    env, script = _run(path)
    assert policy.observation_space is not None
    chosen = choose_statistics(taken, policy.observation_space.shape, path)
    return replace(
        policy,
        network=policy.network.eval().requires_grad_(False),
        normalization=chosen.statistics,
        unknown_statistics=chosen.unknown,
        env=args["env_id"] if isinstance(args.get("env_id"), str) else env,
        provenance={
            "script": args.get("exp_name", script),
            "args": args,
            "supposed": policy.provenance.get("supposed", []),
            "notes": list(chosen.notes),
        },
        used=acted(teacher_network=None if source.decided else architecture),
        decided=source.decided,
    )


def _arguments(value: Any) -> dict[str, Any]:
    """The script's arguments, where the file has them; plain JSON data."""
    args = value.get("args") if isinstance(value, Mapping) else None
    return {str(name): item for name, item in args.items() if _is_plain(item)} if isinstance(args, Mapping) else {}


def _actor_of(value: Any, path: Path) -> Any:
    """The actor of a list or tuple, whose first it is, before its critics; anything else as it is."""
    if not isinstance(value, list | tuple):
        return value
    if not value:
        raise UserError(f"{path} is an empty {type(value).__name__}; get the file anew")
    return value[0]


def _by_names(tensors: Mapping[str, Tensor], source: _Source) -> ForeignPolicy:
    """The policy of the script that names its tensors so.

    Raises:
        UserError: no script that is understood does, or the tensors do not fit.
    """
    if any("res_block" in name for name in tensors):
        raise UserError(f"{source.path} is of IMPALA's residual network, which is not understood; export it to ONNX")
    roots = {name.partition(".")[0] for name in tensors}
    if "actor_mean" in roots:
        return _gaussian(tensors, source)
    if {"fc_mu", "action_scale", "action_bias"} <= roots:
        return _deterministic(tensors, source)
    if {"fc_mean", "fc_logstd"} <= roots:
        return _squashed(tensors, source)
    if "fc_logits" in roots:
        return _discrete(tensors, "SAC", "relu", source)
    if {"network", "actor"} <= roots:
        return _discrete(tensors, "PPO", "relu", source)
    if roots == {"actor", "critic"}:
        return _discrete(tensors, "PPO", "tanh", source)
    if "network" in roots:
        return _values(tensors, source)
    named = ", ".join(repr(name) for name in list(tensors)[:3])
    raise UserError(f"{source.path} is of no CleanRL script that is understood: it holds {named}; export it to ONNX")


def _values(tensors: Mapping[str, Tensor], source: _Source) -> ForeignPolicy:
    path, atoms = source.path, tensors.get("atoms")
    chain = _chain({name: tensor for name, tensor in tensors.items() if name != "atoms"}, "relu", source)
    if atoms is None:
        return _as_policy(chain, chain.network, "DQN", chain.outputs, source.numbers)
    if atoms.ndim != 1 or len(atoms) < 2 or chain.outputs % len(atoms):
        raise UserError(
            f"{path}: its head gives {chain.outputs} numbers, which are no multiple of {atoms.numel()} atoms"
        )
    network = nn.Sequential(*chain.network, MeanOfAtoms(atoms))
    return _as_policy(chain, network, "C51", chain.outputs // len(atoms), source.numbers)


def _discrete(tensors: Mapping[str, Tensor], algorithm: str, activation: Activation, source: _Source) -> ForeignPolicy:
    actor = {name: tensor for name, tensor in tensors.items() if name.partition(".")[0] != "critic"}
    chain = _chain(actor, activation, source)
    return ForeignPolicy(
        network=chain.network,
        scores="logits",
        algorithm=algorithm,
        format=FORMAT,
        observation_space=observations_of(chain.observation_shape, source.numbers),
        action_space=DiscreteSpace((chain.outputs,), divided=False),
        provenance={"supposed": chain.supposed},
    )


def _gaussian(tensors: Mapping[str, Tensor], source: _Source) -> ForeignPolicy:
    path = source.path
    roots = {"actor_mean", "actor_logstd", "critic"}
    _refuse_others(tensors, roots, path)
    chain = _chain({name: t for name, t in tensors.items() if name.startswith("actor_mean.")}, "tanh", source)
    log_std = tensors.get("actor_logstd", torch.zeros(0)).reshape(-1)
    if len(log_std) != chain.outputs:
        raise UserError(f"{path}: it gives {chain.outputs} means, but has {len(log_std)} log standard deviations")
    return ForeignPolicy(
        network=nn.Sequential(*chain.network, FixedDeviation(log_std)),
        scores="gaussian",
        algorithm="PPO",
        format=FORMAT,
        observation_space=observations_of(chain.observation_shape, source.numbers),
        action_space=None,  # the range is clipped by a wrapper, and not in the file
        normalization_expected=True,
        provenance={"supposed": chain.supposed},
    )


def _deterministic(tensors: Mapping[str, Tensor], source: _Source) -> ForeignPolicy:
    path = source.path
    _refuse_others(tensors, {"fc1", "fc2", "fc_mu", "action_scale", "action_bias"}, path)
    layers = {name: tensor for name, tensor in tensors.items() if not name.startswith("action_")}
    chain = _chain(layers, "relu", source)
    scale, bias = _range(tensors, chain.outputs, path)
    return ForeignPolicy(
        network=nn.Sequential(*chain.network, Rescale(scale, bias)),
        scores="deterministic",
        algorithm="TD3 or DDPG",
        format=FORMAT,
        observation_space=observations_of(chain.observation_shape, source.numbers),
        action_space=_actions(scale, bias),
        provenance={"supposed": chain.supposed},
    )


def _squashed(tensors: Mapping[str, Tensor], source: _Source) -> ForeignPolicy:
    path = source.path
    _refuse_others(tensors, {"fc1", "fc2", "fc_mean", "fc_logstd", "action_scale", "action_bias"}, path)
    heads = ("action_scale", "action_bias", "fc_logstd.")
    chain = _chain({name: t for name, t in tensors.items() if not name.startswith(heads)}, "relu", source)
    *torso, mean = chain.network
    weight, shift = tensors.get("fc_logstd.weight"), tensors.get("fc_logstd.bias")
    if not isinstance(mean, nn.Linear) or weight is None or shift is None or weight.shape != mean.weight.shape:
        raise UserError(f"{path}: its heads of means and log standard deviations differ in shape")
    log_std = nn.Linear(mean.in_features, mean.out_features)
    if shift.shape != log_std.bias.shape:
        raise UserError(f"{path}: its heads of means and log standard deviations differ in shape")
    log_std.load_state_dict({"weight": weight, "bias": shift})
    scale, bias = _range(tensors, chain.outputs, path)
    return ForeignPolicy(
        network=nn.Sequential(*torso, TwoHeads(mean, log_std)),
        scores="gaussian",
        algorithm="SAC",
        format=FORMAT,
        observation_space=observations_of(chain.observation_shape, source.numbers),
        action_space=_actions(scale, bias),
        squashed=True,
        provenance={"supposed": chain.supposed},
    )


def _as_policy(
    chain: Chain, network: nn.Module, algorithm: str, actions: int, numbers: Numbers | None
) -> ForeignPolicy:
    normalized = any(isinstance(module, nn.LayerNorm) for module in chain.network)
    return ForeignPolicy(
        network=network,
        scores="q_values",
        algorithm="PQN" if normalized and algorithm == "DQN" else algorithm,
        format=FORMAT,
        observation_space=observations_of(chain.observation_shape, numbers),
        action_space=DiscreteSpace((actions,)),
        provenance={"supposed": chain.supposed},
    )


def _chain(tensors: Mapping[str, Tensor], published: Activation, source: _Source) -> Chain:
    """The network of these tensors, its last layer the head.

    Args:
        tensors: of the part that acts.
        published: the activation in CleanRL's own script.
        source: the file, and what a user states about it.
    """
    path, spec = source.path, source.spec
    layers = in_order(layers_of(tensors, path), path)
    sizes = sizes_of(layers)
    hidden = list(dict.fromkeys(layer.name.partition(".")[0] for layer in layers[:-1]))
    script = path.with_suffix(".py")
    written = activation_in(script, hidden) if hidden and script.is_file() else None
    if spec is not None and written is None:
        check_spec(spec, sizes, path)
    elif spec is not None and ((spec.channels, spec.hidden) != sizes or spec.activation != written):
        source.decided["teacher_network"] = f"{script}, which lies beside it, says {spell(*sizes)} with {written}"
    activation = written or (published if spec is None else spec.activation)
    supposed = []
    if spec is None and written is None and hidden:
        if not sizes[0]:
            other: Activation = "relu" if published == "tanh" else "tanh"
            raise UserError(
                f"{path} does not say which activation stands between its layers, and no {script.name} lies beside it: name the "
                f"network, --teacher-network {spell(*sizes, published)} as in CleanRL's own script, or another such as "
                f"{spell(*sizes, other)} where the script was edited"
            )
        supposed.append(f"{published} after each hidden layer (--teacher-network {spell(*sizes)}:tanh names another)")
    chain = build_chain(
        layers,
        path,
        activation=activation,
        observation_shape=source.shape,
        pixels="unit" if sizes[0] else "bytes",  # its scripts divide pictures by 255, and nothing else
        numbers=source.numbers,
    )
    return chain._replace(supposed=[*chain.supposed, *supposed])


def _range(tensors: Mapping[str, Tensor], size: int, path: Path) -> tuple[Tensor, Tensor]:
    """Scale and bias of the actions, (D,) each; older scripts kept a row for each environment."""
    rows = []
    for name in ("action_scale", "action_bias"):
        tensor = tensors.get(name, torch.zeros(0))
        row = tensor.reshape(-1, size)[0] if tensor.numel() and tensor.numel() % size == 0 else tensor.reshape(-1)
        if tensor.numel() == 1:
            row = tensor.reshape(1).expand(size).clone()
        if row.shape != (size,):
            raise UserError(f"{path}: {name!r} has {tensor.numel()} numbers for {size} dimensions of the actions")
        rows.append(row)
    return rows[0], rows[1]


def _actions(scale: Tensor, bias: Tensor) -> BoxSpace:
    low, high = (bias - scale).double().numpy(), (bias + scale).double().numpy()
    return BoxSpace((len(scale),), np.asarray(low), np.asarray(high), "float32")


def _refuse_others(tensors: Mapping[str, Tensor], roots: set[str], path: Path) -> None:
    for name in tensors:
        if name.partition(".")[0] not in roots:
            raise UserError(f"{path}: {name!r} is left over: no CleanRL script that is understood has it")


def _run(path: Path) -> tuple[str | None, str]:
    """Environment and script, as the folder of the run (`runs/<env>__<script>__<seed>__<time>`) or of the hub tells."""
    script = path.name.removesuffix(".cleanrl_model")
    for pattern in (r"(.+?)__.+__\d+__\d+", rf"(.+)-{re.escape(script)}-seed\d+"):
        match = re.fullmatch(pattern, path.resolve().parent.name)
        if match:
            return match.group(1), script
    return read_card(path.parent).env, script


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)
