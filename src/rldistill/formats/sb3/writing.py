"""The format `sb3`: a zip that Stable-Baselines3 loads, with its standard classes alone.

Its networks are a Nature CNN (Mnih et al. 2015: 32, 64 and 64 channels) or nothing, then a ReLU MLP. A narrower CNN is the
same function with channels of zeros added. Anything else, such as normalized layers, would need a features extractor of its
own, which Stable-Baselines3 takes only as code.
"""

from __future__ import annotations

import io
import json
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rldistill.formats.deployed import NetworkPolicy
from rldistill.formats.note import MEMBER
from rldistill.machine import check_packages
from rldistill.play.actions import LOG_STD_RANGE, split_gaussian
from rldistill.play.envs import declared_spaces
from rldistill.students.lowering import Affine, lower
from rldistill.types import Floats, Observations, Task, UserError, as_tensor

_NATURE = ((32, 8, 4), (64, 4, 2), (64, 3, 1))  # channels, kernel, stride


class _Spaces(gymnasium.Env[Any, Any]):
    """Nothing but the spaces, which is all that Stable-Baselines3 asks of an environment until it plays."""

    def __init__(self, task: Task) -> None:
        self.observation_space = _observation_space(task)
        self.action_space = _action_space(task)


def to_sb3(policy: NetworkPolicy, note: Mapping[str, Any], calibration: Observations) -> tuple[bytes, list[str]]:
    """The zip, and what it does not hold of the policy, a line each.

    Q-values become a DQN; logits, Gaussians and deterministic actions a PPO; squashed Gaussians a SAC.

    Args:
        policy: the student.
        note: what the file says of itself, as `note_of` has it.
        calibration: observations (B, *obs), whose mean log standard deviation a PPO gets.

    Raises:
        UserError: Stable-Baselines3 is not installed, or its standard classes cannot hold the network.
    """
    check_packages("stable_baselines3", extra="sb3")
    import stable_baselines3 as sb3

    layers = list(lower(policy.network, fold_vectors=True).layers)
    convolutions = [layer for layer in layers if layer.stride]
    _check(policy, layers, convolutions)
    notes: list[str] = []
    image = policy.task.observation_dtype == "uint8" and len(policy.task.observation_shape) == 3
    if image:  # it divides pixels by 255 before they reach the network
        layers[0] = layers[0]._replace(weight=(layers[0].weight.astype(np.float64) * 255).astype(np.float32))
    if convolutions:
        layers, wider = _widened(layers)
        if wider:
            own_channels = ", ".join(str(layer.outputs[0]) for layer in convolutions)
            notes.append(f"its {own_channels} channels are among 32, 64, 64: the others are zeros")
    dense = layers[3:] if convolutions else layers
    hidden = [layer.outputs[0] for layer in dense[:-1]]
    kwargs: dict[str, Any] = {}
    if convolutions:
        kwargs["features_extractor_kwargs"] = {"features_dim": hidden[0]}
        hidden = hidden[1:]
    name = "CnnPolicy" if convolutions else "MlpPolicy"
    environment = _Spaces(policy.task)
    kind = policy.score_kind
    model: Any
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "q_values":
            kwargs["net_arch"] = hidden
            model = sb3.DQN(name, environment, buffer_size=1, policy_kwargs=kwargs, device="cpu")
        elif kind == "squashed_gaussian":
            kwargs["net_arch"] = {"pi": hidden, "qf": [1]}
            model = sb3.SAC(name, environment, buffer_size=1, policy_kwargs=kwargs, device="cpu")
        else:
            kwargs |= {"net_arch": {"pi": hidden, "vf": []}, "activation_fn": torch.nn.ReLU}
            model = sb3.PPO(name, environment, n_steps=2, batch_size=2, policy_kwargs=kwargs, device="cpu")
            notes.append("its critic is all zeros")
    tensors = model.policy.state_dict()
    ours = _named(kind, dense, layers[:3] if convolutions else [])
    if kind in ("gaussian", "actions"):
        ours["log_std"], more = _log_std(policy, calibration)
        notes += more
    for key, tensor in tensors.items():
        if key in ours:
            tensor.copy_(torch.as_tensor(ours[key]).reshape(tensor.shape))
        else:
            twin = key.replace("q_net_target.", "q_net.").replace("pi_features_extractor.", "features_extractor.")
            twin = twin.replace("vf_features_extractor.", "features_extractor.")
            tensor.copy_(torch.as_tensor(ours[twin]) if twin in ours else torch.zeros_like(tensor))
    missing = set(ours) - set(tensors)
    assert not missing, f"Stable-Baselines3 names its tensors otherwise: {sorted(missing)}"
    model.policy.load_state_dict(tensors)
    buffer = io.BytesIO()
    if not 1980 <= time.localtime().tm_year <= 2107:
        raise UserError(
            "the clock of this machine is wrong: zip files hold years from 1980 to 2107; set it, then export"
        )
    model.save(buffer)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(zipfile.ZipInfo(MEMBER), json.dumps(note))
    return buffer.getvalue(), notes


def sb3_actions(path: Path, policy: NetworkPolicy, observations: Observations) -> Any:
    """What Stable-Baselines3 itself plays with the zip, (B,) or (B, dimensions)."""
    import stable_baselines3 as sb3

    algorithm: Any = {"q_values": sb3.DQN, "squashed_gaussian": sb3.SAC}.get(policy.score_kind, sb3.PPO)
    return algorithm.load(path, device="cpu").predict(observations, deterministic=True)[0]


def _check(policy: NetworkPolicy, layers: list[Affine], convolutions: list[Affine]) -> None:
    """Raises UserError where the standard classes cannot hold the network."""
    own = "which Stable-Baselines3 takes only as code; export to onnx, torchscript or c"
    if any(layer.norm is not None for layer in layers):
        raise UserError(f"the format sb3 cannot hold this network: its layers are normalized, {own}")
    if convolutions:
        fits = len(convolutions) == 3 and all(
            layer.outputs[0] <= channels and (layer.weight.shape[2], layer.stride) == (kernel, stride)
            for layer, (channels, kernel, stride) in zip(convolutions, _NATURE, strict=True)
        )
        if not fits or policy.task.observation_dtype != "uint8":
            raise UserError(
                "the format sb3 cannot hold this network: its convolutions are none of a Nature CNN (up to 32, 64 and 64 "
                f"channels, kernels 8, 4, 3 and strides 4, 2, 1, of uint8 images), {own}"
            )
    if (
        policy.score_kind == "squashed_gaussian"
        and not np.isfinite([policy.task.action_low, policy.task.action_high]).all()
    ):
        raise UserError("the format sb3 cannot hold this policy: its squashed actions have no finite range")


def _widened(layers: list[Affine]) -> tuple[list[Affine], bool]:
    """The three convolutions with the channels of a Nature CNN, those added being zeros, and whether any was."""
    out, wider, before = [], False, layers[0].inputs[0]
    for layer, (channels, _, _) in zip(layers[:3], _NATURE, strict=True):
        weight = np.zeros((channels, before, *layer.weight.shape[2:]), np.float32)
        weight[: len(layer.weight), : layer.weight.shape[1]] = layer.weight
        bias = np.zeros(channels, np.float32)
        bias[: len(layer.bias)] = layer.bias
        wider |= channels > len(layer.bias)
        out.append(layer._replace(weight=weight, bias=bias, outputs=(channels, *layer.outputs[1:])))
        before = channels
    first = layers[3]
    channels_read, cells = len(layers[2].bias), layers[2].outputs[1:]
    weight = np.zeros((len(first.weight), before, *cells), np.float32)
    weight[:, :channels_read] = first.weight.reshape(len(first.weight), channels_read, *cells)
    linear = first._replace(weight=weight.reshape(len(weight), -1), inputs=(weight[0].size,))
    return [*out, linear, *layers[4:]], wider


def _named(kind: str, dense: list[Affine], convolutions: list[Affine]) -> dict[str, Floats | Tensor]:
    """Tensors by the names that Stable-Baselines3 gives them."""
    extractor = {"q_values": "q_net.", "squashed_gaussian": "actor."}.get(kind, "") + "features_extractor."
    body = {"q_values": "q_net.q_net.", "squashed_gaussian": "actor.latent_pi."}.get(kind, "mlp_extractor.policy_net.")
    *hidden, head = dense
    named: dict[str, Affine] = {f"{extractor}cnn.{2 * n}": layer for n, layer in enumerate(convolutions)}
    if convolutions:
        named[f"{extractor}linear.0"] = hidden.pop(0)
    named |= {f"{body}{2 * n}": layer for n, layer in enumerate(hidden)}
    if kind == "q_values":
        named[f"{body}{2 * len(hidden)}"] = head
    elif kind == "squashed_gaussian":
        half = len(head.bias) // 2
        named["actor.mu"] = head._replace(weight=head.weight[:half], bias=head.bias[:half])
        named["actor.log_std"] = head._replace(weight=head.weight[half:], bias=head.bias[half:])
    else:
        width = len(head.bias) // 2 if kind == "gaussian" else len(head.bias)
        named["action_net"] = head._replace(weight=head.weight[:width], bias=head.bias[:width])
    tensors: dict[str, Floats | Tensor] = {}
    for name, layer in named.items():
        tensors |= {f"{name}.weight": layer.weight, f"{name}.bias": layer.bias}
    return tensors


def _log_std(policy: NetworkPolicy, calibration: Observations) -> tuple[Tensor, list[str]]:
    """One log standard deviation a dimension, all that a PPO has."""
    if policy.score_kind == "actions":
        return torch.full((policy.task.action_dimensions,), LOG_STD_RANGE[0]), [
            "it had no deviation; a PPO has exp(-5)"
        ]
    log_std = split_gaussian(policy(as_tensor(calibration)))[1]
    varies = float(log_std.std(dim=0).max()) if len(log_std) > 1 else 0.0
    note = (
        "its standard deviations varied with the state, a PPO's do not: their means are kept, greedy play is the same"
    )
    return log_std.mean(dim=0), [note] if varies > 0.01 else []


def _observation_space(task: Task) -> spaces.Box:
    shape = task.observation_shape
    if task.observation_dtype == "uint8":
        return spaces.Box(0, 255, shape, np.uint8)
    if task.frame_stack == 1 and not task.observation_keys and task.env.rpartition(":")[2] in gymnasium.registry:
        # Its own bounds, so that Stable-Baselines3 takes the policy to its environment.
        space, _ = declared_spaces(task)
        if isinstance(space, spaces.Box) and space.shape == shape and space.dtype == np.float32:
            return space
    return spaces.Box(-np.inf, np.inf, shape, np.float32)


def _action_space(task: Task) -> spaces.Space[Any]:
    if task.continuous:
        low, high = np.array(task.action_low, np.float32), np.array(task.action_high, np.float32)
        return spaces.Box(low, high, dtype=np.float32)
    return spaces.MultiDiscrete(list(task.action_sizes)) if task.action_sizes else spaces.Discrete(task.choices[0])
