"""Statistics of observations beside a Stable-Baselines3 zip: which file is used, which is not, and what the zip itself tells."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rldistill.formats.foreign import ForeignPolicy, Statistics
from rldistill.formats.sb3.reading import read_sb3
from rldistill.formats.statistics import read_statistics
from rldistill.progress import Silent
from rldistill.teachers import ForeignTeacher, TeacherOptions, load_fitting, load_teacher
from rldistill.types import UserError
from test_teachers_sb3 import ppo, write_statistics

NULL: dict[str, Any] = {"_last_obs": {":type:": "<class 'numpy.ndarray'>"}, "_last_original_obs": None}
SET: dict[str, Any] = {**NULL, "_last_original_obs": {":type:": "<class 'numpy.ndarray'>"}}


def notes(policy: ForeignPolicy) -> str:
    return "; ".join(policy.provenance.get("notes", ()))


@pytest.mark.parametrize(
    ("zip_name", "name"),
    [
        ("best_model.zip", "best_vecnorm.pkl"),
        ("best_model.zip", "env_stats"),
        ("model.zip", "normalizer.pickle"),
        ("ppo.zip", "ppo_stats.pk"),
    ],
)
@pytest.mark.parametrize("changes", [SET, {}], ids=["said", "unknown"])
def test_the_only_fitting_pickle_is_used_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zip_name: str, name: str, changes: dict[str, Any]
) -> None:
    path = ppo(tmp_path / zip_name, **changes)
    written = write_statistics(tmp_path / name, 5, monkeypatch)
    (tmp_path / "replay_buffer.pkl").write_bytes(b"\x80\x04N.")
    policy = read_sb3(path)
    assert policy.normalization is not None
    assert policy.normalization.source == str(written)
    assert name in notes(policy)


def test_of_several_the_one_with_the_name_of_the_zip_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best, final = ppo(tmp_path / "best_model.zip", **SET), ppo(tmp_path / "final.zip", **SET)
    other = ppo(tmp_path / "other.zip", **SET)
    write_statistics(tmp_path / "vecnormalize_best.pkl", 5, monkeypatch)
    changed(write_statistics(tmp_path / "final_stats.pkl", 5, monkeypatch), 7.0)
    for path, name in ((best, "vecnormalize_best.pkl"), (final, "final_stats.pkl")):
        statistics = read_sb3(path).normalization
        assert statistics is not None
        assert Path(statistics.source).name == name
    left = read_sb3(other)
    assert left.normalization is None
    assert left.normalization_expected
    assert "final.zip" in notes(left)
    changed(write_statistics(tmp_path / "one.pkl", 5, monkeypatch), 8.0)
    changed(write_statistics(tmp_path / "two.pkl", 5, monkeypatch), 9.0)
    with pytest.raises(UserError, match=r"one\.pkl, two\.pkl.*--normalization"):
        read_sb3(other)
    shutil.copy(tmp_path / "one.pkl", tmp_path / "two.pkl")  # the same content twice is no doubt
    assert read_sb3(other).normalization is not None


def changed(path: Path, mean: float) -> Path:
    """The statistics with another mean."""
    old = np.full(5, 0.5).tobytes()
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, np.full(5, mean).tobytes()))
    return path


def test_what_the_zip_tells_goes_before_a_neighbours_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = ppo(tmp_path / "plain.zip", **NULL)
    statistics = write_statistics(tmp_path / "vecnormalize.pkl", 5, monkeypatch)
    policy = read_sb3(plain)
    assert policy.normalization is None
    assert not policy.normalization_expected
    assert "not used" in notes(policy)
    assert read_sb3(plain, normalization=statistics).normalization is not None
    statistics.rename(tmp_path / "plain_vecnormalize.pkl")
    with pytest.raises(UserError, match="not normalized"):
        read_sb3(plain)


def test_a_zip_that_was_normalized_and_has_no_statistics_is_stopped(tmp_path: Path) -> None:
    lost = ppo(tmp_path / "lost.zip", **SET)
    assert read_sb3(lost).normalization_expected
    assert not read_sb3(ppo(tmp_path / "plain.zip", **NULL)).normalization_expected
    unknown = read_sb3(ppo(tmp_path / "old.zip"))
    assert not unknown.normalization_expected
    assert "does not tell" in notes(unknown)


@pytest.mark.parametrize(("changes", "asked"), [(SET, True), ({}, True), (NULL, False)])
def test_statistics_one_folder_up_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], asked: bool
) -> None:
    path = tmp_path / "best_model" / "best_model.zip"  # as EvalCallback writes it
    path.parent.mkdir()
    ppo(path, **changes)
    write_statistics(tmp_path / "vecnormalize.pkl", 5, monkeypatch)
    policy = read_sb3(path)
    assert policy.normalization is None
    assert ["vecnormalize.pkl" in line and "--normalization" in line for line in policy.mismatches] == [True] * asked
    named = read_sb3(path, normalization=tmp_path / "vecnormalize.pkl")
    assert named.normalization is not None
    assert named.mismatches == ()
    write_statistics(tmp_path / "vecnormalize.pkl", 6, monkeypatch)  # of another environment
    assert read_sb3(path).mismatches == ()


def test_a_damaged_file_with_the_usual_name_is_not_passed_over(tmp_path: Path) -> None:
    path = ppo(tmp_path / "model.zip", **SET)
    (tmp_path / "vecnormalize.pkl").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match=r"vecnormalize\.pkl.* is damaged"):
        read_sb3(path)


def test_statistics_may_be_written_down_as_json(tmp_path: Path) -> None:
    path = tmp_path / "statistics.json"
    path.write_text(json.dumps({"mean": [1, 2], "std": [2, 0.5], "clip": 3}))
    rows = torch.tensor([[1.0, 2.5], [9.0, -9.0]])
    assert read_statistics(path)(rows).tolist() == [[0.0, 1.0], [3.0, -3.0]]
    path.write_text(json.dumps({"mean": [1, 2], "std": [2, 0.5]}))
    assert read_statistics(path)(rows).tolist() == [[0.0, 1.0], [4.0, -22.0]]
    for text in (
        '{"mean": [1], "std": [0]}',
        '{"mean": [1], "std": [1, 2]}',
        '{"mean": [], "std": null}',
        '{"mean": [1e999], "std": [1]}',
        '{"mean": [1], "std": [1], "clip": 0}',
        '{"mean": [1], "std": [NaN]}',
        '{"mean": [[1], 2], "std": [1]}',
        '{"mean": [1], "variance": [1]}',
        '{"mean": ' + "[" * 100_000,
        '{"mean": [1' + "0" * 500 + '], "std": [1]}',
    ):
        path.write_text(text)
        with pytest.raises(UserError, match="no statistics"):
            read_statistics(path)


def test_statistics_of_named_parts_find_their_places() -> None:
    statistics = Statistics(
        np.array([1.0, 2.0, 5.0]), np.array([4.0, 4.0, 1.0]), 0.0, 10.0, "x", keys=(("wind", 2), ("age", 1))
    )
    arranged = statistics.arranged((5,), (("age", 1), ("door", 2), ("wind", 2)))
    assert arranged is not None
    row = torch.tensor([[6.0, 77.0, 1.0, 3.0, 2.0]])
    assert arranged(row).tolist() == [[1.0, 77.0, 1.0, 1.0, 0.0]]  # a part without statistics is not clipped either
    assert statistics.arranged((3,), ()) is None
    assert statistics.arranged((3,), (("age", 1), ("wind", 1), ("door", 1))) is None


# --- against Stable-Baselines3 itself


class Noise(gymnasium.Env[Any, Any]):
    """Observations that are drawn away from 0."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._observation(), 1.0, False, False, {}

    def _observation(self) -> Any:
        drawn = self.observation_space.sample()
        boxes = [drawn] if isinstance(drawn, np.ndarray) else [drawn[name] for name in ("near", "far")]
        for box in boxes:
            box *= 3.0
            box += 4.0
        return drawn


VECTOR = spaces.Box(-1, 1, (3,), np.float32)
PARTS = spaces.Dict({"near": spaces.Box(-1, 1, (2,), np.float32), "door": spaces.Discrete(3), "far": VECTOR})
CONTINUOUS = spaces.Box(-1, 1, (1,), np.float32)
PLAIN = {
    "PPO": spaces.Discrete(4),
    "A2C": spaces.Discrete(4),
    "DQN": spaces.Discrete(4),
    "SAC": CONTINUOUS,
    "TD3": CONTINUOUS,
}


def trained(
    folder: Path, algorithm: str, space: spaces.Space[Any], wrap: Callable[[Any], Any] | None
) -> tuple[Path, Any, Any]:
    """Zip, model and its vector environment after a few steps; the statistics lie beside it as `sidecar.pkl`."""
    sb3 = pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.vec_env import DummyVecEnv

    venv = DummyVecEnv([lambda: Noise(space, PLAIN[algorithm])])
    wrapped = venv if wrap is None else wrap(venv)
    short = {"n_steps": 8} if algorithm in ("PPO", "A2C") else {"buffer_size": 100, "learning_starts": 20}
    short |= {"batch_size": 8, "n_epochs": 1} if algorithm == "PPO" else {}
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    model = getattr(sb3, algorithm)(policy, wrapped, device="cpu", seed=0, policy_kwargs={"net_arch": [16]}, **short)
    model.learn(16)
    folder.mkdir(exist_ok=True)
    model.save(folder / "model.zip")
    if wrap is not None:
        wrapped.save(folder / "sidecar.pkl")
    return folder / "model.zip", model, wrapped


@pytest.mark.parametrize("algorithm", ["PPO", "A2C", "DQN", "SAC", "TD3"])
def test_stable_baselines3_tells_what_is_read_out_of_it(tmp_path: Path, algorithm: str) -> None:
    pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.vec_env import VecNormalize

    wild = spaces.Box(-200, 200, (3,), np.float32)
    path, model, wrapped = trained(tmp_path / "normalized", algorithm, wild, VecNormalize)
    policy = read_sb3(path)
    assert policy.normalization is not None
    observations = np.stack([wild.sample() for _ in range(200)])
    wanted, _ = model.predict(wrapped.normalize_obs(observations), deterministic=True)
    assert_acts(policy, observations, wanted)
    plain, _, _ = trained(tmp_path / "plain", algorithm, wild, None)
    shutil.copy(path.with_name("sidecar.pkl"), plain.with_name("other.pkl"))
    without = read_sb3(plain)
    assert without.normalization is None or algorithm not in ("PPO", "A2C")
    path.with_name("sidecar.pkl").unlink()
    lost = read_sb3(path)
    assert lost.normalization_expected == (algorithm in ("PPO", "A2C"))
    assert lost.normalization_expected or "does not tell" in notes(lost)


def test_rewards_alone_are_no_normalized_observations(tmp_path: Path) -> None:
    pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.vec_env import VecNormalize

    path, _, _ = trained(tmp_path, "PPO", VECTOR, lambda venv: VecNormalize(venv, norm_obs=False))
    policy = read_sb3(path)
    assert policy.normalization is None
    assert not policy.normalization_expected


@pytest.mark.parametrize("some", [False, True])
def test_statistics_of_named_parts_act_as_in_stable_baselines3(tmp_path: Path, some: bool) -> None:
    pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.vec_env import VecNormalize

    keys = ["far"] if some else ["near", "far"]
    path, model, wrapped = trained(
        tmp_path, "PPO", PARTS, lambda venv: VecNormalize(venv, norm_obs_keys=keys, clip_obs=2.0)
    )
    policy = read_sb3(path)
    assert policy.normalization is not None
    env = Noise(PARTS, PLAIN["PPO"])
    drawn = [env._observation() for _ in range(200)]
    stacked = {name: np.stack([row[name] for row in drawn]) for name in PARTS.spaces}
    wanted, _ = model.predict(wrapped.normalize_obs(stacked), deterministic=True)
    assert_acts(policy, np.stack([spaces.flatten(PARTS, row) for row in drawn]).astype(np.float32), wanted)


def assert_acts(policy: ForeignPolicy, observations: Any, wanted: Any) -> None:
    """The policy's best actions are the wanted ones."""
    assert policy.normalization is not None
    scores = policy.network(policy.normalization(torch.from_numpy(observations)))
    if policy.scores in ("logits", "q_values"):
        assert scores.argmax(dim=1).tolist() == wanted.tolist()
        assert len(set(wanted.tolist())) > 1 or len(wanted) < 100
        return
    means = scores[:, : wanted.shape[1]].numpy()
    np.testing.assert_allclose(np.tanh(means) if policy.squashed else means, wanted, atol=1e-5)


# --- the cases


def test_the_statistics_of_another_name_make_the_teacher_whole(cases: Path) -> None:
    path = cases / "policies" / "vecnormalize-elsewhere" / "best_model.zip"
    teacher = load_fitting(path, env="CartPole-v1", progress=Silent())
    assert isinstance(teacher, ForeignTeacher)
    assert teacher.foreign.normalization is not None
    assert any("best_vecnorm.pkl" in note for note in teacher.notes)
    assert played(teacher) == 500.0


def test_without_them_it_is_stopped(cases: Path, tmp_path: Path) -> None:
    path = shutil.copy(cases / "policies" / "vecnormalize-elsewhere" / "best_model.zip", tmp_path)
    with pytest.raises(UserError, match="--normalization"):
        load_fitting(path, env="CartPole-v1", progress=Silent())
    accepted = TeacherOptions(accept_mismatch=True)
    assert played(load_teacher(path, env="CartPole-v1", options=accepted)) < 400.0


def played(teacher: Any, episodes: int = 3) -> float:
    """Mean return in CartPole."""
    env = gymnasium.make("CartPole-v1")
    returns = []
    for seed in range(episodes):
        observation, over, total = env.reset(seed=seed)[0], False, 0.0
        while not over:
            action, _ = teacher.predict(observation[None])
            observation, reward, terminated, truncated, _ = env.step(int(action[0]))
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    env.close()
    return float(np.mean(returns))
