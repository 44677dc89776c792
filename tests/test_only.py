"""`train --only`: what is learnt follows from the states in the region alone, and wrong regions are one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import pytest
import torch
from gymnasium import spaces

from rldistill.cli import main
from rldistill.configurations import changed
from rldistill.datasets.shards import read_dataset
from rldistill.play.envs import make_task
from rldistill.play.replay import Replay
from rldistill.policies import SavedPolicy
from rldistill.progress import Silent
from rldistill.runs.folder import RunFolder
from rldistill.runs.records import Train
from rldistill.types import UserError
from rldistill.verbs.train import TrainConfig, train

Observation = npt.NDArray[np.float32]


class Sides(gymnasium.Env[Observation, np.int64]):
    """Games of eight steps on one of two sides, that the seed decides. A point for the action that is the bit on the one side, and
    for the other action on the other side.

    Args:
        points: on the other side.
        noise: what is seen beside it on the other side.
    """

    observation_space = spaces.Box(-100, 100, (5,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, points: float = 1.0, noise: float = 0.0) -> None:
        self.points, self.noise = points, noise

    def _observed(self) -> Observation:
        self.bit = int(self.np_random.integers(2))
        observation = np.zeros(5, dtype=np.float32)
        observation[2 * self.other + self.bit] = 1
        observation[4] = self.noise * self.other
        return observation

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        self.age, self.other = 0, int(self.np_random.integers(2))
        return self._observed(), {}

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        right = (action == self.bit) != bool(self.other)
        self.age += 1
        return (
            self._observed(),
            float(right) * (self.points if self.other else 1.0),
            self.age == 8,
            False,
            {},
        )


@pytest.fixture(scope="module", autouse=True)
def environments() -> Iterator[None]:
    gymnasium.register("Sides-v0", Sides)
    yield
    del gymnasium.registry["Sides-v0"]


THIS_SIDE = "x0 + x1 == 1"
CONFIGS = {
    "dqn": TrainConfig.of(
        steps=700, network="mlp:32", num_envs=4, warmup=100, replay=300, minibatch=32, replay_ratio=4, target_every=10,
        checkpoint_seconds=1e9, final_episodes=0, only=THIS_SIDE,
    ),
    "pqn": TrainConfig.of(
        steps=2_000, algo="pqn", network="mlp:32", num_envs=4, checkpoint_seconds=1e9, final_episodes=0, only=THIS_SIDE
    ),
}  # fmt: skip
BOTH = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def trained(out: Path, config: TrainConfig, *kwargs: str) -> SavedPolicy:
    return train("Sides-v0", out, changed(config, env_kwargs=kwargs))


def weights(policy: SavedPolicy) -> list[bytes]:
    return [tensor.numpy().tobytes() for tensor in policy.network.state_dict().values()]


@BOTH
def test_nothing_that_happens_outside_changes_what_is_learnt(tmp_path: Path, config: TrainConfig) -> None:
    """Games do not leave the side on which they begin, so no target reaches over."""
    plain = weights(trained(tmp_path / "plain", config))
    assert weights(trained(tmp_path / "points", config, "points=-50.0", "noise=7.0")) == plain
    everywhere = changed(config, only=None)
    all_states = weights(trained(tmp_path / "all", everywhere))
    assert all_states != plain
    assert weights(trained(tmp_path / "all-points", everywhere, "points=-50.0", "noise=7.0")) != all_states


@BOTH
def test_the_policy_is_right_inside(tmp_path: Path, config: TrainConfig) -> None:
    policy = trained(
        tmp_path / "run",
        changed(config, discount=0.0, learning_rate=3e-3, epsilon_end=1.0, steps=3 * config.steps),
        "points=-50.0",
    )
    assert policy(torch.eye(5)[:2]).argmax(dim=1).tolist() == [0, 1]


class Stop(Silent):
    def update(self, done: int, **figures: float) -> None:
        if done >= 400:
            raise KeyboardInterrupt


@BOTH
def test_a_run_goes_on_to_the_same_weights_and_says_its_region(tmp_path: Path, config: TrainConfig) -> None:
    config = changed(config, checkpoint_seconds=0.0)
    whole = train("Sides-v0", tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        train("Sides-v0", tmp_path / "run", config, progress=Stop())
    with pytest.raises(UserError, match=r"only"):
        train("Sides-v0", tmp_path / "run", changed(config, only="x0 == 1"), resume=True)
    resumed = train("Sides-v0", tmp_path / "run", config, resume=True)
    assert weights(resumed) == weights(whole)
    assert resumed.provenance["configuration"]["only"] == THIS_SIDE
    assert json.loads((tmp_path / "run" / "config.json").read_text())["only"] == THIS_SIDE
    shares = [record.inside for record in RunFolder(tmp_path / "run").records()[0] if isinstance(record, Train)]
    assert 0.3 < np.mean(shares) < 0.7


@pytest.mark.slow
def test_what_is_visited_is_recorded_everywhere(tmp_path: Path) -> None:
    config = changed(CONFIGS["pqn"], record=str(tmp_path / "data"))
    train("Sides-v0", tmp_path / "run", config)
    assert read_dataset(tmp_path / "data").control_steps >= 2_000


def test_places_are_drawn_evenly_among_those_of_a_column() -> None:
    """A ring that has gone around, with a window of two beyond each place."""
    task = make_task("CartPole-v1")
    replay = Replay(task, 3, 30, {"marked": ((), np.bool_)})
    marked = np.random.default_rng(0).random((14, 3)) < 0.4
    for time in range(14):
        replay.add(np.full((3, 4), time, dtype=np.float32), np.zeros(3, dtype=np.bool_), marked=marked[time])
    times, rows = replay.sample(np.random.default_rng(1), 20_000, ahead=2, among="marked")
    counts = np.zeros((14, 3))
    np.add.at(counts, (times, rows), 1)
    may = marked.copy()
    may[:4] = may[12:] = False
    assert (counts[~may] == 0).all()
    expected = 20_000 / may.sum()
    assert np.abs(counts[may] - expected).max() < 5 * np.sqrt(expected)
    nowhere = Replay(task, 3, 30, {"marked": ((), np.bool_)})
    nowhere.add(np.zeros((3, 4), dtype=np.float32), np.zeros(3, dtype=np.bool_), marked=np.zeros(3, dtype=np.bool_))
    assert len(nowhere.sample(np.random.default_rng(1), 8, among="marked")[0]) == 0


@BOTH
def test_a_region_that_no_state_lies_in_is_an_error_soon(tmp_path: Path, config: TrainConfig) -> None:
    with pytest.raises(UserError, match="none of the .* control steps.* lies in the region of --only"):
        train("Sides-v0", tmp_path / "run", changed(config, only="x4 > 50", steps=30_000))
    records = [record for record in RunFolder(tmp_path / "run").records()[0] if isinstance(record, Train)]
    assert max((record.control_steps or 0 for record in records), default=0) <= 3_100


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["CartPole-v1", "--only", "x4 < 1"], "CartPole-v1 has no 'x4' to watch"),
        (["CartPole-v1", "--only", "x0"], "neither true nor false"),
        (["CartPole-v1", "--only", ""], "a region is an expression"),
        (["PongNoFrameskip-v4", "--only", "ball.y < 1"], "did you mean ball_"),
        (["CartPole-v1", "Sides-v0", "--only", "x0 < 1"], "--only is for one environment"),
    ],
)
def test_wrong_regions_are_one_line_and_leave_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    line: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["rldistill", "train", *words, "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    (only_line,) = capsys.readouterr().err.splitlines()
    assert line in only_line
    assert not (tmp_path / "run").exists()
