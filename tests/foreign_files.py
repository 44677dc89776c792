"""Stable-Baselines3 zips of environments that are played, made by hand."""

from __future__ import annotations

import base64
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from test_teachers_sb3 import Arrays, Draw, actor_critic, make_zip, write_statistics

SIDE = np.array([0.0, 0.0, 1.0, 0.5], np.float32)
"""How far CartPole's pole leans and turns."""


def space_of(env: str) -> spaces.Box:
    """Of its observations."""
    made = gymnasium.make(env)
    space = made.observation_space
    made.close()
    assert isinstance(space, spaces.Box)
    return space


def balancing_zip(path: Path, *, sign: float = 1.0, scale: float = 20.0, **options: Any) -> Path:
    """A PPO policy that pushes to the side to which the pole leans and turns, or to the other (`sign` -1).

    Its logits are scale * tanh(-side) and scale * tanh(side): 2 * 4 + 2 and 2 * 2 + 2 parameters act, 4 + 1 and 1 + 1 are of
    the critic.
    """
    tensors: Arrays = {
        "mlp_extractor.policy_net.0.weight": np.stack([-sign * SIDE, sign * SIDE]),
        "mlp_extractor.policy_net.0.bias": np.zeros(2, np.float32),
        "mlp_extractor.value_net.0.weight": np.zeros((1, 4), np.float32),
        "mlp_extractor.value_net.0.bias": np.zeros(1, np.float32),
        "action_net.weight": scale * np.eye(2, dtype=np.float32),
        "action_net.bias": np.zeros(2, np.float32),
        "value_net.weight": np.zeros((1, 1), np.float32),
        "value_net.bias": np.zeros(1, np.float32),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    return make_zip(path, "PPO", tensors, space_of("CartPole-v1"), spaces.Discrete(2), **options)


def acting_zip(path: Path, observations: spaces.Box, actions: spaces.Space[Any], sizes: Sequence[int] = (8,)) -> Path:
    """A PPO policy with random weights, for discrete or continuous actions."""
    inputs = int(np.prod(observations.shape))
    if isinstance(actions, spaces.Discrete):
        draw: Draw = actor_critic(inputs, *sizes, outputs=int(actions.n))
    else:
        assert isinstance(actions, spaces.Box)
        draw = actor_critic(inputs, *sizes, outputs=actions.shape[0])
        draw.array("log_std", actions.shape[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    return make_zip(path, "PPO", draw.tensors, observations, actions)


def named_parts_zip(path: Path) -> Path:
    """A PPO policy with random weights for two actions, of observations with two parts that have four numbers together."""
    parts = spaces.Dict(cart=spaces.Box(-9, 9, (2,), np.float32), pole=spaces.Discrete(2))
    entry = {
        ":type:": "<class 'gymnasium.spaces.dict.Dict'>",
        ":serialized:": base64.b64encode(pickle.dumps(parts)).decode(),
    }
    draw = actor_critic(4, 8, outputs=2)
    changes = {"observation_space": entry}
    return make_zip(path, "PPO", draw.tensors, space_of("CartPole-v1"), spaces.Discrete(2), changes=changes)


def good_cartpoles(folder: Path) -> list[Path]:
    """A small policy for CartPole as every kind of file that is accepted, and statistics of its observations."""
    import safetensors.torch
    import torch

    from rldistill.play.envs import make_task
    from rldistill.policies import save_policy
    from rldistill.students.networks import Architecture, build
    from test_teachers import MLP, of_kind

    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "hub"
    model.mkdir()
    card = "---\nlibrary_name: stable-baselines3\ntags:\n- CartPole-v1\n- deep-reinforcement-learning\n---\n"
    (model / "README.md").write_text(card)
    balancing_zip(model / "ppo-CartPole-v1.zip")
    with pytest.MonkeyPatch.context() as patch:
        write_statistics(folder / "statistics.pkl", 4, patch)
    torch.save(MLP, folder / "net.pth")
    torch.save(MLP, folder / "old.pth", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(MLP, folder / "net.safetensors")
    network = build(Architecture("mlp:8", (4,), 2), 0)
    save_policy(folder / "policy", network, make_task("CartPole-v1"), {})
    return [
        balancing_zip(folder / "ppo.zip"),
        of_kind("Stable-Baselines3 zip", folder),
        folder / "statistics.pkl",
        folder / "net.pth",
        folder / "old.pth",
        folder / "net.safetensors",
        of_kind("CleanRL", folder),
        of_kind("ONNX", folder),
        of_kind("TorchScript", folder),
        folder / "policy",
        model,
        named_parts_zip(folder / "parts.zip"),
    ]
