"""One network that learns several tasks from reward: real games, small ones."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from rldistill import configurations
from rldistill.lessons.dqn import DQN
from rldistill.lessons.joint import Joint
from rldistill.play.games import play_scored
from rldistill.policies import MultiTaskPolicy
from rldistill.progress import Silent
from rldistill.runs.folder import RunFolder
from rldistill.runs.records import FinalScore, Train, curve_csv
from rldistill.types import UserError
from rldistill.verbs.evaluate import EvaluateConfig, evaluate
from rldistill.verbs.split import split
from rldistill.verbs.train import TrainConfig, make_learner, train


class Doors(gymnasium.Env[npt.NDArray[np.float32], np.int64]):
    """Ten steps, and a point for each in which the open one of three doors is taken."""

    observation_space = spaces.Box(0, 1, (3,), np.float32)
    action_space = spaces.Discrete(3)

    def _observed(self) -> npt.NDArray[np.float32]:
        self.open = int(self.np_random.integers(3))
        return np.eye(3, dtype=np.float32)[self.open]

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self.age = 0
        return self._observed(), {}

    def step(self, action: np.int64) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        points = float(action == self.open)
        self.age += 1
        return self._observed(), points, self.age == 10, False, {}


class Grid(gymnasium.Env[npt.NDArray[np.uint8], np.int64]):
    """A grid on which nothing happens."""

    action_space = spaces.Discrete(2)

    def __init__(self, size: int = 10, channels: int = 2) -> None:
        self.observation_space = spaces.Box(0, 255, (size, size, channels), np.uint8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[npt.NDArray[np.uint8], dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(self.observation_space.shape or (), np.uint8), {}

    def step(self, action: np.int64) -> tuple[npt.NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        return np.zeros(self.observation_space.shape or (), np.uint8), 0.0, False, False, {}


@pytest.fixture(scope="module", autouse=True)
def environments() -> Iterator[None]:
    ids = ("Doors-v0", "Grid-v0", "LargerGrid-v0")
    gymnasium.register(ids[0], Doors)
    gymnasium.register(ids[1], Grid)
    gymnasium.register(ids[2], lambda: Grid(size=12))
    yield
    for name in ids:
        del gymnasium.registry[name]


BOTH = ("CartPole-v1", "Doors-v0")
QUICK = {
    # The replays go round, and checkpoints come when the room in their files is used up, not by the clock.
    "dqn": TrainConfig.of(
        steps=1_200, network="mlp:16+8", num_envs=4, warmup=100, replay=200, minibatch=32, replay_ratio=2, target_every=10,
        checkpoint_seconds=1e9, final_episodes=1,
    ),
    "pqn": TrainConfig.of(
        steps=1_200, algo="pqn", network="mlp:16+8", num_envs=4, averaging=20, steady=True, checkpoint_seconds=0,
        final_episodes=1,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("algo", "steps"), [("dqn", 2_000), ("pqn", 6_000)])
@pytest.mark.slow
def test_one_network_learns_two_tasks(tmp_path: Path, algo: Any, steps: int) -> None:
    """Random play has some 22 on CartPole and 3.3 of 10 at the doors."""
    config = TrainConfig.of(steps=steps, algo=algo, num_envs=8, final_episodes=10, learning_rate=3e-3)
    policy = train(BOTH, tmp_path / "run", config)
    scores = policy.provenance["scores"]
    assert scores["CartPole-v1"]["mean"] > 45
    assert scores["Doors-v0"]["mean"] > 9


@pytest.mark.slow
def test_the_result_is_a_policy_of_several_heads_which_the_verbs_understand(tmp_path: Path) -> None:
    policy = train(
        BOTH, tmp_path / "run", configurations.changed(QUICK["dqn"], snapshots=(0.5,), weights_dtype="float16")
    )
    assert isinstance(policy, MultiTaskPolicy)
    assert [(name, head.num_scores) for name, head in policy.heads.items()] == [("CartPole-v1", 2), ("Doors-v0", 3)]
    # 4 features (of the doors 3 and a zero), 16 units, then a layer of 8 and the actions for each.
    assert sum(tensor.numel() for tensor in policy.network.parameters()) == 80 + (136 + 18) + (136 + 27)
    scores = evaluate([tmp_path / "run"], EvaluateConfig(episodes=2, epsilon=0.0))
    assert [score.task["env"] for score in scores] == list(BOTH)
    one = split(tmp_path / "run", "Doors-v0", tmp_path / "doors")
    again = play_scored(one.task, one, 1, 0.01, QUICK["dqn"].seed, num_envs=10)
    assert again["returns"] == policy.provenance["scores"]["Doors-v0"]["returns"]
    assert list(RunFolder(tmp_path / "run").snapshots) == [0.5]


@pytest.mark.slow
def test_the_run_folder_says_what_came_of_each_task(tmp_path: Path) -> None:
    policy = train(list(BOTH), tmp_path / "run", QUICK["pqn"])
    run = RunFolder(tmp_path / "run")
    config = run.config()
    assert [task["env"] for task in config["task"]] == list(BOTH)
    records, _ = run.records()
    assert [record.lesson for record in records if isinstance(record, FinalScore)] == list(BOTH)
    assert run.status == "scored"
    assert not (tmp_path / "run" / "checkpoint").exists()
    rounds = [record for record in records if isinstance(record, Train)]
    for task in BOTH:
        steps = [record.control_steps for record in rounds if record.lesson == task]
        # Rollouts of 32 steps of 4 environments; the tenth is the first that ends beyond 1,200.
        assert steps == [128 * number for number in range(1, 11)]
        rates = [record.learning_rate for record in rounds if record.lesson == task]
        assert rates[-1] == pytest.approx(1e-4)  # a tenth of the first one: by the task's own steps
    assert policy.provenance["control_steps"] == 2 * 1_280
    header, *rows = (tmp_path / "run" / "policy" / "curve.csv").read_text().splitlines()
    assert header == "task,control_steps,mean_return"
    assert {row.split(",")[0] for row in rows} == set(BOTH)


def test_learning_curves_of_several_tasks_have_means_of_their_own() -> None:
    records = [
        Train(lesson="a", control_steps=4, returns=[1.0]),
        Train(lesson="b,c", control_steps=4, returns=[5.0]),
        Train(lesson="a", control_steps=8, returns=[3.0]),
        Train(lesson="b,c", control_steps=8, returns=[]),
    ]
    assert curve_csv(records).decode().splitlines() == [
        "task,control_steps,mean_return",
        "a,4,1.000",
        "a,8,2.000",
        '"b,c",4,5.000',
        '"b,c",8,5.000',
    ]


def weights(out: Path) -> bytes:
    return (out / "policy" / "weights.safetensors").read_bytes()


class CtrlC(Silent):
    """Presses Ctrl-C when so many control steps are done."""

    def __init__(self, at: int) -> None:
        self.at = at

    def update(self, done: int, **figures: float) -> None:
        if self.at <= done:
            os.kill(os.getpid(), signal.SIGINT)
            self.at = 10**9


class Crash(CtrlC):
    """Fails then, so that nothing more is saved."""

    def update(self, done: int, **figures: float) -> None:
        if self.at <= done:
            raise RuntimeError


@pytest.mark.parametrize("algo", ["dqn", "pqn"])
@pytest.mark.slow
def test_a_run_that_is_stopped_and_fails_ends_in_the_weights_of_one_that_was_not(tmp_path: Path, algo: str) -> None:
    config, out = QUICK[algo], tmp_path / "stopped"
    train(BOTH, tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        train(BOTH, out, config, progress=CtrlC(700))
    assert not (out / "policy").exists()
    assert (out / "checkpoint" / "lesson-1").is_dir() == (algo == "dqn")  # the second replay
    for moment in (1_300, 1_900):
        with pytest.raises(RuntimeError):
            train(BOTH, out, config, resume=True, progress=Crash(moment))
    train(BOTH, out, config, resume=True)
    assert weights(out) == weights(tmp_path / "whole")
    lines = [
        [(getattr(record, "lesson", None), getattr(record, "control_steps", None)) for record in run.records()[0]]
        for run in (RunFolder(out), RunFolder(tmp_path / "whole"))
    ]
    assert lines[0] == lines[1]  # no line is missing or there twice
    assert not (out / "checkpoint").exists()


def joint(tmp_path: Path, **changed: Any) -> Joint:
    learner = make_learner(BOTH, configurations.changed(QUICK[changed.get("algo", "dqn")], **changed), tmp_path)
    assert isinstance(learner, Joint)
    return learner


def close(learner: Joint) -> None:
    for own in learner.learners.values():
        own.environments.close()


def copied(learner: Joint) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in learner.network.arrays().items()}


def test_the_head_of_a_task_rests_while_another_is_learnt(tmp_path: Path) -> None:
    learner = joint(tmp_path, algo="pqn", averaging=1)
    items = learner.learn()
    for task, place in (("CartPole-v1", 0), ("Doors-v0", 1), ("CartPole-v1", 0)):
        before = copied(learner)
        assert list(next(items)) == [task]
        moved = {name for name, tensor in copied(learner).items() if not torch.equal(tensor, before[name])}
        assert {name for name in moved if name.startswith("heads")} <= {
            name for name in before if name.startswith(f"heads.{place}.")
        }
        assert any(name.startswith("torso") for name in moved)
        assert any(name.startswith("heads") for name in moved)
    close(learner)


def test_games_change_by_episodes_and_updates_from_one_task_to_the_next(tmp_path: Path) -> None:
    learner = joint(tmp_path)
    cartpole, doors = learner.learners.values()
    assert isinstance(cartpole, DQN)
    assert isinstance(doors, DQN)
    may_change = [learner.advance("Doors-v0").ends_turn for _ in range(60)]
    assert may_change == [*[False] * 9, True] * 6  # games at the doors have ten steps
    assert (doors.control_steps, cartpole.updates) == (240, 0)
    assert doors.updates == doors.due > 0
    for _ in learner.learn():
        if learner.finished:
            break
    assert cartpole.due + doors.due == learner.updates
    assert abs(cartpole.updates - doors.updates) <= 1
    close(learner)


@pytest.mark.slow
def test_tasks_are_learnt_alike_however_long_their_games_are(tmp_path: Path) -> None:
    learner = joint(tmp_path, steps=3_000, replay_ratio=0.2)
    cartpole, doors = learner.learners.values()
    for _ in learner.learn():
        # A game of CartPole has at most 500 steps of 4 rows; untrained ones have some tens.
        assert abs(cartpole.control_steps - doors.control_steps) <= 400
        if learner.finished:
            break
    assert 3_000 <= min(cartpole.control_steps, doors.control_steps) <= 3_004
    close(learner)


def test_the_average_of_the_torso_is_that_of_the_weights_after_every_update(tmp_path: Path) -> None:
    learner = joint(tmp_path, algo="pqn", averaging=1_000, steady=False)
    weights: list[Tensor] = []
    learner.optimizer.register_step_post_hook(
        lambda *_: weights.append(learner.network.arrays()["torso.1.weight"].clone())
    )
    items = learner.learn()
    for _ in range(3):
        next(items)
    assert len(weights) == learner.updates > 3
    average = learner.policy.arrays()["torso.1.weight"]
    torch.testing.assert_close(average, torch.stack(weights).mean(0))
    close(learner)


def test_random_numbers_of_tasks_are_their_own(tmp_path: Path) -> None:
    learner = joint(tmp_path)
    one, other = learner.learners.values()
    assert one.generator.bit_generator.state != other.generator.bit_generator.state
    close(learner)


@pytest.mark.slow
def test_a_single_environment_is_learnt_alike_whether_it_is_named_alone_or_in_a_list(tmp_path: Path) -> None:
    config = configurations.changed(QUICK["dqn"], network="mlp:8")
    train("CartPole-v1", tmp_path / "one", config)
    train(["CartPole-v1"], tmp_path / "list", config)
    assert weights(tmp_path / "one") == weights(tmp_path / "list")
    assert (tmp_path / "one" / "config.json").read_bytes() == (tmp_path / "list" / "config.json").read_bytes()


@pytest.mark.parametrize(
    ("env", "fields", "message"),
    [
        ((), {}, "there is no environment"),
        (("CartPole-v1", "Doors-v0", "CartPole-v1"), {}, "CartPole-v1 is named twice"),
        (("CartPole-v1", "Pendulum-v1"), {}, "Pendulum-v1 has continuous actions"),
        (("CartPole-v1", "Grid-v0"), {}, "reads images or vectors, not both"),
        (("Grid-v0", "LargerGrid-v0"), {}, "reads images of one size"),
        (BOTH, {"network": "multi3"}, "'multi3' reads images"),
        (BOTH, {"network": "mlp:16+"}, "unknown network"),
        (BOTH, {"replay": 10}, "--replay is at least 16"),
        (("CartPole-v1", "CartPoel-v1"), {}, "did you mean CartPole-v1"),
    ],
)
def test_a_wrong_input_is_reported_in_one_line_and_leaves_nothing(
    tmp_path: Path, env: tuple[str, ...], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        train(env, tmp_path / "run", configurations.changed(QUICK["dqn"], **fields))
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_resumed_with_other_tasks(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(BOTH, tmp_path / "run", QUICK["dqn"], progress=CtrlC(700))
    for other in ("CartPole-v1", BOTH[::-1]):
        with pytest.raises(UserError, match="begun with task"):
            train(other, tmp_path / "run", QUICK["dqn"], resume=True)
