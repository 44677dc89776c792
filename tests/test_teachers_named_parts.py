"""Stable-Baselines3 policies of observations with named parts, compared with Stable-Baselines3 itself where it is installed."""

from __future__ import annotations

import base64
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from conftest import Levers
from rldistill.formats.sb3.reading import read_sb3
from rldistill.teachers import ForeignTeacher, TeacherOptions, load_teacher
from rldistill.types import UserError
from rldistill.verbs.distill import distill
from rldistill.verbs.distill.config import DistillConfig
from test_teachers_sb3 import ACTIONS, VECTOR, act, actor_critic, make_zip

PARTS = spaces.Dict(
    {
        "zone": spaces.MultiDiscrete([2, 3]),
        "wind": spaces.Box(-1, 1, (2, 2), np.float32),
        "door": spaces.Discrete(3),
        "lamps": spaces.MultiBinary(2),
        "dial": spaces.Box(0, 255, (2,), np.uint8),
    }
)
IMAGE = spaces.Box(0, 255, (36, 36, 1), np.uint8)


class Parts(gymnasium.Env[dict[str, Any], Any]):
    """Observations that are drawn, and end at nothing."""

    observation_space = PARTS

    def __init__(self, actions: spaces.Space[Any]) -> None:
        self.action_space = actions

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, False, False, {}


def json_of(space: spaces.Space[Any]) -> dict[str, Any]:
    """What a zip's JSON says of an observation space with parts, where only the pickle tells of these."""
    kind = f"{type(space).__module__}.{type(space).__qualname__}"
    pickled = base64.b64encode(pickle.dumps(space)).decode()
    return {"observation_space": {":type:": f"<class '{kind}'>", ":serialized:": pickled, "_shape": None}}


def zip_of(path: Path, space: spaces.Space[Any], inputs: int = 6) -> Path:
    """A PPO policy for two levers."""
    draw = actor_critic(inputs, 8, outputs=5)
    return make_zip(path, "PPO", draw.tensors, VECTOR, spaces.MultiDiscrete([2, 3]), changes=json_of(space))


@pytest.mark.parametrize("name", ["PPO", "DQN", "SAC"])
def test_scores_of_named_parts_are_those_of_stable_baselines3(tmp_path: Path, name: str) -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    env = Parts(spaces.Discrete(3) if name == "DQN" else ACTIONS)
    options = {} if name == "PPO" else {"buffer_size": 10}
    model = getattr(sb3, name)(
        "MultiInputPolicy", env, seed=1, device="cpu", policy_kwargs={"net_arch": [16]}, **options
    )
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    model.save(tmp_path / "x.zip")
    policy = read_sb3(tmp_path / "x.zip")
    assert policy.observation_space is not None
    assert policy.observation_space.keys == (("dial", 2), ("door", 3), ("lamps", 2), ("wind", 4), ("zone", 5))
    PARTS.seed(0)
    samples = [PARTS.sample() for _ in range(20)]
    together = {key: np.stack([one[key] for one in samples]) for key in PARTS}
    flat = torch.from_numpy(np.stack([spaces.flatten(PARTS, one) for one in samples]).astype(np.float32))
    scores = policy.network(flat)
    if name == "PPO":
        wanted = model.policy.get_distribution(model.policy.obs_to_tensor(together)[0]).distribution
        torch.testing.assert_close(scores, torch.cat([wanted.mean, wanted.stddev.log()], dim=1))
    elif name == "DQN":
        torch.testing.assert_close(scores, model.policy.q_net(model.policy.obs_to_tensor(together)[0]))
    else:
        wanted_actions, _ = model.predict(together, deterministic=True)
        np.testing.assert_allclose(np.stack([act(policy, row) for row in scores]), wanted_actions, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_teacher_of_named_parts_plays_and_teaches(tmp_path: Path, levers: str) -> None:
    path = zip_of(tmp_path / "levers.zip", Levers.observation_space)
    teacher = load_teacher(path, env=levers)
    assert isinstance(teacher, ForeignTeacher)
    assert teacher.mismatches == ()
    config = DistillConfig.of(
        student="mlp:8", steps=200, num_envs=2, warmup=50, evaluate_every=0, evaluate_episodes=1, env=levers,
        student_observation=("door", "wind"),
    )  # fmt: skip
    student = distill(path, tmp_path / "run", config, options=TeacherOptions(accept_mismatch=True))
    assert student.network.architecture.reads == (1, 2, 3, 4, 5)


def test_parts_in_another_order_or_of_other_sizes_are_said(tmp_path: Path, levers: str) -> None:
    of = Levers.observation_space
    moved = spaces.Dict(OrderedDict((name, of[name]) for name in ("wind", "door", "age")))
    teacher = load_teacher(zip_of(tmp_path / "levers.zip", moved), env=levers)
    assert isinstance(teacher, ForeignTeacher)
    assert "reads the parts wind, door, age of observations, Levers-v0 gives age, door, wind" in teacher.mismatches[-1]


@pytest.mark.parametrize(
    ("space", "text"),
    [
        (spaces.Dict(camera=IMAGE, speed=VECTOR), "the part 'camera' of its observations is an image"),
        (spaces.Dict(inner=spaces.Dict(speed=VECTOR)), "the part 'inner' of its observations is of the kind Dict"),
        (spaces.Dict(note=spaces.Text(5)), "the part 'note' of its observations is of the kind Text"),
        (spaces.Dict({}), "absurd parts, or none"),
        (spaces.Dict(a=spaces.Discrete(10**9)), "the part 'a' of its observations is damaged"),
    ],
)
def test_parts_that_are_no_vectors_are_refused_by_name(tmp_path: Path, space: spaces.Space[Any], text: str) -> None:
    with pytest.raises(UserError, match=text) as refusal:
        read_sb3(zip_of(tmp_path / "x.zip", space))
    assert len(str(refusal.value).splitlines()) == 1
