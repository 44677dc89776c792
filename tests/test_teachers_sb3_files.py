"""Files that Stable-Baselines3 writes, compared with its own `predict`: spaces, compiled and unpacked policies, `policy.save`."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rldistill.formats.foreign import ForeignPolicy
from rldistill.formats.sb3.reading import read_sb3
from rldistill.progress import Silent
from rldistill.teachers import ForeignTeacher, TeacherOptions, load_fitting, load_teacher
from rldistill.teachers.detect import kind_of
from rldistill.types import UserError
from test_teachers_sb3 import actor_critic, make_zip, saved

VECTOR = spaces.Box(-3, 3, (5,), np.float32)
ACTIONS = spaces.Box(np.array([-2, -1], np.float32), np.array([2, 3], np.float32))
CHOICE = spaces.Discrete(4)
SPACES: dict[str, spaces.Space[Any]] = {
    "Discrete": spaces.Discrete(7),
    "MultiDiscrete": spaces.MultiDiscrete([3, 2, 4]),
    "MultiBinary": spaces.MultiBinary(6),
    "MultiBinary of axes": spaces.MultiBinary([2, 3]),
}


class Blank(gymnasium.Env[Any, Any]):
    """Two spaces, and nothing happens."""

    def __init__(self, observations: spaces.Space[Any], actions: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observations, actions

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, False, False, {}


def model_of(algorithm: str, observations: spaces.Space[Any], actions: spaces.Space[Any]) -> Any:
    """An untrained model whose actions vary with the observations."""
    sb3 = pytest.importorskip("stable_baselines3")
    options = {"n_steps": 8} if algorithm in ("PPO", "A2C") else {"buffer_size": 10}
    options |= {"batch_size": 8} if algorithm == "PPO" else {}
    env = Blank(observations, actions)
    model = getattr(sb3, algorithm)("MlpPolicy", env, device="cpu", seed=1, policy_kwargs={"net_arch": [16]}, **options)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.normal_(0, 1)
    return model


def assert_same_actions(policy: ForeignPolicy, model: Any, space: spaces.Space[Any]) -> None:
    """Of 200 observations."""
    space.seed(3)
    drawn = [space.sample() for _ in range(200)]
    wanted, _ = model.predict(np.stack(drawn), deterministic=True)
    rows = drawn if isinstance(space, spaces.Box) else [spaces.flatten(space, row) for row in drawn]
    scores = policy.network(torch.from_numpy(np.stack(rows).astype(np.float32))).numpy()
    if policy.scores in ("logits", "q_values"):
        assert scores.argmax(axis=1).tolist() == wanted.tolist()
        assert len(set(wanted.tolist())) > 1
        return
    means = scores[:, : wanted.shape[1]]
    if policy.squashed:
        means = ACTIONS.low + (np.tanh(means) + 1) / 2 * (ACTIONS.high - ACTIONS.low)
    np.testing.assert_allclose(np.clip(means, ACTIONS.low, ACTIONS.high), wanted, atol=1e-4)


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("algorithm", ["PPO", "DQN", "SAC"])
@pytest.mark.slow
def test_discrete_observations_are_preprocessed_as_in_stable_baselines3(
    tmp_path: Path, kind: str, algorithm: str
) -> None:
    model = model_of(algorithm, SPACES[kind], ACTIONS if algorithm == "SAC" else CHOICE)
    model.save(tmp_path / "model.zip")
    policy = read_sb3(tmp_path / "model.zip")
    assert policy.observation_space is not None
    assert policy.observation_space.shape == (spaces.flatdim(SPACES[kind]),)
    assert_same_actions(policy, model, SPACES[kind])


@pytest.mark.parametrize("env", ["FrozenLake-v1", "Taxi-v4", "Blackjack-v1"])
def test_toy_texts_discrete_observations_are_played(tmp_path: Path, env: str) -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    if env not in gymnasium.registry:
        pytest.skip(f"no {env} here")
    made = gymnasium.make(env)
    if isinstance(made.observation_space, spaces.Tuple):  # no Stable-Baselines3 policy has those
        return
    model = sb3.DQN("MlpPolicy", made, device="cpu", seed=0, buffer_size=10, policy_kwargs={"net_arch": [8]})
    model.save(tmp_path / f"dqn-{env}.zip")
    teacher = load_fitting(tmp_path / f"dqn-{env}.zip", progress=Silent())
    assert isinstance(teacher, ForeignTeacher)
    numbers = np.arange(made.observation_space.n)
    wanted, _ = model.predict(numbers, deterministic=True)
    rows = torch.eye(len(numbers))
    assert teacher(rows).argmax(dim=1).tolist() == wanted.tolist()


@pytest.mark.parametrize(("algorithm", "part"), [("PPO", ""), ("SAC", ""), ("SAC", "actor"), ("DQN", "q_net")])
@pytest.mark.slow
def test_compiled_policies_are_those_that_were_compiled(tmp_path: Path, algorithm: str, part: str) -> None:
    model = model_of(algorithm, VECTOR, ACTIONS if algorithm == "SAC" else CHOICE)
    model.save(tmp_path / "plain.zip")
    if part:
        setattr(model.policy, part, torch.compile(getattr(model.policy, part)))
        model.save(tmp_path / "model.zip")
    else:  # newer PyTorch takes the prefix off where the whole policy is compiled
        prefixed = {f"_orig_mod.{name}": tensor for name, tensor in model.policy.state_dict().items()}
        with zipfile.ZipFile(tmp_path / "plain.zip") as old, zipfile.ZipFile(tmp_path / "model.zip", "w") as new:
            for name in old.namelist():
                new.writestr(name, saved(prefixed) if name == "policy.pth" else old.read(name))
    with zipfile.ZipFile(tmp_path / "model.zip") as archive, archive.open("policy.pth") as file:
        assert any("_orig_mod." in name for name in torch.load(file, weights_only=True))
    observations = torch.randn(9, 5)
    plain, compiled = (read_sb3(tmp_path / name).network for name in ("plain.zip", "model.zip"))
    assert torch.equal(plain(observations), compiled(observations))


def test_a_tensor_that_is_there_twice_and_differs_is_refused(tmp_path: Path) -> None:
    draw = actor_critic(5, 8, outputs=3)
    twice = draw.tensors | {f"_orig_mod.{name}": array for name, array in draw.tensors.items()}
    path = make_zip(tmp_path / "a.zip", "PPO", twice, VECTOR, spaces.Discrete(3))
    assert read_sb3(path).scores == "logits"
    twice["_orig_mod.action_net.bias"] = twice["action_net.bias"] + 1
    with pytest.raises(UserError, match="two tensors"):
        read_sb3(make_zip(tmp_path / "b.zip", "PPO", twice, VECTOR, spaces.Discrete(3)))


def test_an_unpacked_zip_is_read_as_the_zip(tmp_path: Path) -> None:
    model = model_of("PPO", spaces.Box(-3, 3, (4,), np.float32), spaces.Discrete(2))
    model.save(tmp_path / "model.zip")
    folder = tmp_path / "hub" / "ppo-CartPole-v1"
    shutil.unpack_archive(tmp_path / "model.zip", folder)
    observations = torch.randn(9, 4)
    wanted = read_sb3(tmp_path / "model.zip").network(observations)
    assert kind_of(folder) == "sb3"
    # Itself, the only policy of a model's folder, and the file of its tensors, which says less than the folder.
    for ref in (folder, folder.parent, folder / "policy.pth"):
        teacher = load_teacher(ref)
        assert isinstance(teacher, ForeignTeacher)
        assert teacher.task.env == "CartPole-v1"
        assert teacher.path == folder
        assert torch.equal(teacher(observations), wanted)
        assert len(teacher.sha256) == 64
        assert len(teacher.weights()) > 1000
    (folder / "policy.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match="damaged"):
        load_teacher(folder)
    shutil.copytree(folder, folder.with_name("ppo-Acrobot-v1"))
    (folder.parent / "README.md").write_text("---\nlibrary_name: stable-baselines3\n---\n")
    with pytest.raises(UserError, match="several policies"):
        load_teacher(folder.parent)


@pytest.mark.parametrize("algorithm", ["PPO", "DQN", "SAC", "TD3"])
@pytest.mark.parametrize("space", [VECTOR, spaces.Discrete(7)], ids=["vector", "discrete"])
def test_policy_save_is_read_and_its_activation_asked_for(
    tmp_path: Path, algorithm: str, space: spaces.Space[Any]
) -> None:
    model = model_of(algorithm, space, ACTIONS if algorithm in ("SAC", "TD3") else CHOICE)
    path = tmp_path / "policy.pkl"
    model.policy.save(path)
    assert kind_of(path) == "sb3"
    with pytest.raises(UserError, match=r"policy\.save.*--teacher-network mlp:16"):
        read_sb3(path)
    policy = read_sb3(path, architecture="mlp:16:tanh" if algorithm == "PPO" else "mlp:16")
    assert_same_actions(policy, model, space)


def test_policy_save_of_images_keeps_their_scale(tmp_path: Path) -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    space = spaces.Box(0, 255, (36, 36, 1), np.uint8)
    model = sb3.DQN("CnnPolicy", Blank(space, CHOICE), device="cpu", seed=0, buffer_size=10)
    model.policy.save(tmp_path / "policy.pth")
    model.save(tmp_path / "model.zip")
    observations = torch.randint(0, 256, (5, 1, 36, 36), dtype=torch.uint8)
    wanted = read_sb3(tmp_path / "model.zip").network(observations)
    assert torch.equal(read_sb3(tmp_path / "policy.pth", architecture="cnn:32,64,64:512").network(observations), wanted)


def test_a_call_in_a_file_of_policy_save_is_refused_by_name(tmp_path: Path) -> None:
    import os

    class Evil:
        def __reduce__(self) -> Any:
            return os.system, ("true",)

    tensors = {name: torch.from_numpy(array) for name, array in actor_critic(5, 8, outputs=3).tensors.items()}
    data = {"observation_space": VECTOR, "action_space": spaces.Discrete(3), "activation_fn": torch.nn.Tanh}
    path = tmp_path / "policy.pkl"
    path.write_bytes(saved({"state_dict": tensors, "data": data | {"evil": Evil()}}))
    with pytest.raises(UserError, match="wants to call posix.system"):
        read_sb3(path, architecture="mlp:8:tanh")
    path.write_bytes(saved({"state_dict": tensors, "data": data | {"evil": getattr}}))
    assert read_sb3(path, architecture="mlp:8:tanh").scores == "logits"  # a name is no call
    path.write_bytes(saved({"state_dict": tensors, "data": {**data, "observation_space": 3}}))
    with pytest.raises(UserError, match="observation space"):
        read_sb3(path, architecture="mlp:8:tanh")


# --- the cases


@pytest.mark.parametrize(
    ("name", "env", "options", "wanted"),
    [
        ("compiled/sac-Pendulum-v1.zip", None, TeacherOptions(), -150.0),
        ("unzipped", None, TeacherOptions(), 500.0),
        ("unzipped/ppo-CartPole-v1", None, TeacherOptions(), 500.0),
        ("sb3-policy-save.pkl", "CartPole-v1", TeacherOptions(teacher_network="mlp:64,64:tanh"), 500.0),
    ],
)
@pytest.mark.slow
def test_cases_play_as_they_should(
    cases: Path, name: str, env: str | None, options: TeacherOptions, wanted: float
) -> None:
    from rldistill.verbs.evaluate import EvaluateConfig, evaluate

    config = EvaluateConfig(env=env, episodes=5, epsilon=0.0)
    score, *_ = evaluate([cases / "policies" / name], config, options=options, progress=Silent())
    assert abs(score.mean - wanted) <= 0.5 * abs(wanted)
