"""The verb `record`, with real environments: what is on the disk is what was played and what the teacher's scores were."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from rldistill.datasets import load_replay, open_dataset
from rldistill.holding import alone
from rldistill.play.actions import chosen, score_width
from rldistill.play.envs import Environments, make_task
from rldistill.policies import SavedPolicy, save_policy
from rldistill.progress import Silent
from rldistill.students.networks import Architecture, build
from rldistill.types import ScoreKind, Task, UserError
from rldistill.verbs.record import RecordConfig, record


def policy_for(task: Task, name: str, seed: int = 0, score_kind: ScoreKind = "q_values") -> SavedPolicy:
    network = build(Architecture(name, task.observation_shape, score_width(task, score_kind)), seed, score_kind)
    return SavedPolicy(network.eval().requires_grad_(False), task)


@pytest.fixture(scope="module")
def cartpole() -> SavedPolicy:
    return policy_for(make_task("CartPole-v1"), "mlp:8")


@pytest.fixture(scope="module")
def pong() -> SavedPolicy:
    return policy_for(make_task("PongNoFrameskip-v4", max_frames=240), "cnn:4,4,4:8")


class Remembering:
    """A teacher that keeps its observations and its scores."""

    def __init__(self, policy: SavedPolicy) -> None:
        self.policy, self.task, self.score_kind = policy, policy.task, policy.score_kind
        self.calls: list[tuple[Tensor, Tensor]] = []

    def __call__(self, observations: Tensor) -> Tensor:
        values = self.policy(observations)
        self.calls.append((observations.clone(), values.clone()))
        return values


@pytest.mark.slow
def test_dataset_of_pong_holds_observations_scores_and_play(tmp_path: Path, pong: SavedPolicy) -> None:
    """Three environments, shards of 37 times, episodes of some 55 control steps, and a last step of two rows."""
    num_envs, steps, each = 3, 3 * 130 + 2, 37
    teacher = Remembering(pong)
    config = RecordConfig(steps=steps, num_envs=num_envs, seed=5, epsilon=0.3, shard_steps=num_envs * each + 1)
    dataset = record(teacher, tmp_path / "d", config)
    calls = teacher.calls[1:]  # the first only asks whether the teacher is of use
    assert len(calls) == 131, "the teacher is asked once a step"
    assert [shard.control_steps for shard in dataset.shards] == [111, 111, 111, 59]
    assert dataset.control_steps == steps

    replay, times = load_replay(dataset)
    rows_of = np.zeros(len(times), np.int64)
    stacks = replay.observations(times, rows_of)
    values = replay.column("values", times, rows_of)
    shards = [dataset.read(index) for index in range(4)]
    columns = [{n: c[~shard.context] for n, c in shard._asdict().items() if c is not None} for shard in shards]
    labelled = [shard._replace(**rows) for shard, rows in zip(shards, columns, strict=True)]
    at = {}  # (time, row) to the place among all labelled rows
    for number, shard in enumerate(labelled):
        first = sum(len(before.frames) for before in labelled[:number])
        for row in range(num_envs):
            for offset, place in enumerate(np.flatnonzero(shard.environments == row)):
                at[number * each + offset, row] = first + place
    assert len(at) == steps == len(times)

    fresh = Environments(pong.task, num_envs, 5)
    actions = np.concatenate([shard.actions for shard in labelled])
    rewards = np.concatenate([shard.rewards for shard in labelled])
    terminated = np.concatenate([shard.terminated for shard in labelled])
    truncated = np.concatenate([shard.truncated for shard in labelled])
    starts = np.concatenate([shard.starts for shard in labelled])
    for now in range(131):
        places = [at[now, row] for row in range(num_envs) if (now, row) in at]
        rows = len(places)
        assert rows == (2 if now == 130 else 3)
        np.testing.assert_array_equal(stacks[places], calls[now][0][:rows])
        np.testing.assert_array_equal(values[places], calls[now][1][:rows])
        np.testing.assert_array_equal(stacks[places], fresh.observations[:rows])
        np.testing.assert_array_equal(starts[places], fresh.starts[:rows])
        taken = np.zeros(num_envs, np.int64)
        taken[:rows] = actions[places]
        step = fresh.step(taken)
        np.testing.assert_array_equal(rewards[places], step.rewards[:rows])
        np.testing.assert_array_equal(terminated[places], step.terminated[:rows])
        np.testing.assert_array_equal(truncated[places], step.truncated[:rows])
    fresh.close()
    assert starts.sum() > num_envs, "the test must see episodes end"
    assert any(shard.context.any() for shard in shards)
    assert (rewards != 0).any()

    # Labels again, from the frames on the disk.
    np.testing.assert_allclose(pong(torch.from_numpy(stacks)).numpy(), values, atol=1e-5)

    # Without its neighbours a shard says the same.
    (tmp_path / "d" / "shard-00000.arrow").unlink()
    (tmp_path / "d" / "shard-00002.arrow").write_bytes(b"")
    rest, rest_times = load_replay(open_dataset(tmp_path / "d").intact())
    again = rest.observations(rest_times, np.zeros(len(rest_times), np.int64))
    np.testing.assert_array_equal(again, np.concatenate([stacks[111:222], stacks[333:]]))


@pytest.mark.slow
def test_pong_takes_fewer_bytes_than_the_ten_hours_are_allowed(tmp_path: Path) -> None:
    """100 MB for 540,000 control steps are 185 bytes each; short shards pay for their first frames more often."""
    task = make_task("PongNoFrameskip-v4")
    dataset = record(policy_for(task, "cnn:4,4,4:8"), tmp_path / "d", RecordConfig(steps=4096, epsilon=0.5))
    on_disk = sum(file.stat().st_size for file in (tmp_path / "d").iterdir())
    assert dataset.control_steps == 4096
    assert on_disk / 4096 < 70


@pytest.mark.parametrize(("steps", "num_envs", "shard_steps"), [(1, 16, 100), (17, 16, 16), (50, 7, 3), (48, 16, 1000)])
def test_exactly_so_many_steps_are_recorded(
    tmp_path: Path, cartpole: SavedPolicy, steps: int, num_envs: int, shard_steps: int
) -> None:
    config = RecordConfig(steps=steps, num_envs=num_envs, shard_steps=shard_steps)
    assert record(cartpole, tmp_path / "d", config).control_steps == steps
    dataset = open_dataset(tmp_path / "d")
    assert sum(int((~dataset.read(index).context).sum()) for index in range(len(dataset.shards))) == steps
    assert load_replay(dataset)[1].shape == (steps,)
    assert json.loads((tmp_path / "d" / "dataset.json").read_text())["control_steps"] == steps


def test_same_seed_records_the_same_bytes_and_another_seed_others(tmp_path: Path, cartpole: SavedPolicy) -> None:
    sums = [
        [shard.sha256 for shard in record(cartpole, tmp_path / name, RecordConfig(steps=200, seed=seed)).shards]
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert sums[0] == sums[1]
    assert sums[0] != sums[2]


def test_driver_is_greedy_but_for_epsilon(tmp_path: Path, cartpole: SavedPolicy) -> None:
    for epsilon, low, high in ((0.0, 1.0, 1.0), (0.4, 0.75, 0.85), (1.0, 0.45, 0.55)):
        dataset = record(cartpole, tmp_path / f"{epsilon}", RecordConfig(steps=3000, epsilon=epsilon))
        shard = dataset.read(0)
        # Of two actions half of the random ones are the best one too: 1 - epsilon / 2.
        assert low <= float((shard.actions == shard.values.argmax(axis=1)).mean()) <= high


def test_appending_adds_fresh_episodes(tmp_path: Path, cartpole: SavedPolicy) -> None:
    config = RecordConfig(steps=100, num_envs=2, seed=3)
    first = record(cartpole, tmp_path / "d", config)
    both = record(cartpole, tmp_path / "d", dataclasses.replace(config, steps=61, epsilon=0.2), append=True)
    thrice = record(cartpole, tmp_path / "d", config, append=True)
    assert (first.control_steps, both.control_steps, thrice.control_steps) == (100, 161, 261)
    assert thrice.shards[:1] == first.shards
    assert open_dataset(tmp_path / "d") == thrice
    shards = [thrice.read(index) for index in range(3)]
    firsts = [frame.tobytes() for shard in shards for frame in shard.frames[shard.starts]]
    assert len(set(firsts)) == len(firsts), "an episode was played twice"
    recordings = thrice.card["recordings"]
    assert [recording["first_shard"] for recording in recordings] == [0, 1, 2]
    assert [recording["epsilon"] for recording in recordings] == [0.05, 0.2, 0.05]


def test_append_begins_a_dataset_where_there_is_none(tmp_path: Path, cartpole: SavedPolicy) -> None:
    assert record(cartpole, tmp_path / "d", RecordConfig(steps=10), append=True).control_steps == 10
    (tmp_path / "empty").mkdir()
    assert record(cartpole, tmp_path / "empty", RecordConfig(steps=10), append=True).control_steps == 10


def test_existing_out_is_refused_and_untouched(tmp_path: Path, cartpole: SavedPolicy) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="exists: add to it with --append"):
        record(cartpole, tmp_path / "d", RecordConfig(steps=10))
    with pytest.raises(UserError, match="no dataset folder"):
        record(cartpole, tmp_path / "d", RecordConfig(steps=10), append=True)
    assert [file.name for file in (tmp_path / "d").iterdir()] == ["thesis.txt"]


def test_appending_another_task_teacher_or_kind_of_scores_is_refused(tmp_path: Path, cartpole: SavedPolicy) -> None:
    config = RecordConfig(steps=10)
    record(cartpole, tmp_path / "d", config)
    before = (tmp_path / "d" / "dataset.json").read_bytes()
    task = cartpole.task
    others = {
        "teacher": policy_for(task, "mlp:8", seed=1),
        "score_kind": policy_for(task, "mlp:8", score_kind="logits"),
        "task.max_frames": SavedPolicy(cartpole.network, dataclasses.replace(task, max_frames=7)),
        "task.env": policy_for(make_task("Acrobot-v1"), "mlp:8"),
    }
    for field, other in others.items():
        with pytest.raises(UserError, match=rf"recorded with {re.escape(field)} = "):
            record(other, tmp_path / "d", config, append=True)
    assert (tmp_path / "d" / "dataset.json").read_bytes() == before


def test_a_teacher_of_a_task_with_fewer_fields_is_refused_in_one_line(tmp_path: Path, cartpole: SavedPolicy) -> None:
    pendulum = make_task("Pendulum-v1")
    swinger = SavedPolicy(build(Architecture("mlp:4", (3,), 2), 0, "gaussian"), pendulum)
    record(swinger, tmp_path / "d", RecordConfig(steps=10))
    with pytest.raises(UserError, match=r"recorded with task\.env = Pendulum-v1, not CartPole-v1"):
        record(cartpole, tmp_path / "d", RecordConfig(steps=10), append=True)


def test_two_teachers_without_a_checksum_are_distinguished_by_their_kind(tmp_path: Path, cartpole: SavedPolicy) -> None:
    class One:
        task, score_kind = cartpole.task, cartpole.score_kind

        def __call__(self, observations: Tensor) -> Tensor:
            return cartpole(observations)

    class Other(One):
        pass

    record(One(), tmp_path / "d", RecordConfig(steps=10))
    with pytest.raises(UserError, match="recorded with teacher = One, not Other"):
        record(Other(), tmp_path / "d", RecordConfig(steps=10), append=True)
    assert record(One(), tmp_path / "d", RecordConfig(steps=10), append=True).control_steps == 20


def test_while_a_process_records_no_other_one_appends(tmp_path: Path, cartpole: SavedPolicy) -> None:
    record(cartpole, tmp_path / "d", RecordConfig(steps=10))
    with alone(tmp_path / "d"), pytest.raises(UserError, match="another process works on"):
        record(cartpole, tmp_path / "d", RecordConfig(steps=10), append=True)
    assert record(cartpole, tmp_path / "d", RecordConfig(steps=10), append=True).control_steps == 20


def test_half_files_of_a_killed_process_do_not_stay_or_hinder(tmp_path: Path, cartpole: SavedPolicy) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / ".dataset.json.1234.tmp").write_text("{")
    record(cartpole, tmp_path / "d", RecordConfig(steps=10), append=True)
    (tmp_path / "d" / ".shard-00001.arrow.1234.tmp").write_text("half")
    record(cartpole, tmp_path / "d", RecordConfig(steps=10), append=True)
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == [
        "dataset.json",
        "shard-00000.arrow",
        "shard-00001.arrow",
    ]


def test_a_link_to_an_empty_folder_is_filled(tmp_path: Path, cartpole: SavedPolicy) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "d")
    assert record(cartpole, tmp_path / "link", RecordConfig(steps=10), append=True).control_steps == 10
    assert open_dataset(tmp_path / "d").control_steps == 10


@pytest.mark.parametrize("size", [10**12, 10**20])
def test_a_shard_without_memory_for_it_leaves_no_folder(tmp_path: Path, cartpole: SavedPolicy, size: int) -> None:
    with pytest.raises(UserError, match="lower --shard-steps"):
        record(cartpole, tmp_path / "d", RecordConfig(steps=size, shard_steps=size))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "--steps is at least 1, not 0"),
        ({"steps": -5}, "--steps is at least 1, not -5"),
        ({"num_envs": 0}, "--num-envs"),
        ({"shard_steps": 0}, "--shard-steps"),
        ({"epsilon": 1.5}, "--epsilon"),
        ({"epsilon": float("nan")}, "--epsilon"),
        ({"seed": -1}, "--seed"),
        ({"env": "Acrobot-v1"}, "3 discrete actions, the teacher 2 discrete actions"),
        ({"env": "NoSuch-v0"}, "NoSuch-v0"),
    ],
)
def test_wrong_configuration_is_refused_before_anything_is_made(
    tmp_path: Path, cartpole: SavedPolicy, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        record(cartpole, tmp_path / "d", dataclasses.replace(RecordConfig(steps=10), **changes))  # type: ignore[arg-type]  # on purpose
    assert not (tmp_path / "d").exists()


def test_teacher_that_says_nan_is_refused_and_leaves_no_folder(tmp_path: Path, cartpole: SavedPolicy) -> None:
    sick = policy_for(cartpole.task, "mlp:8")
    next(sick.network.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match="NaN or infinity"):
        record(sick, tmp_path / "d", RecordConfig(steps=10))
    assert not (tmp_path / "d").exists()


def test_another_environment_of_the_same_shape_can_be_played(tmp_path: Path, cartpole: SavedPolicy) -> None:
    entry = "gymnasium.envs.classic_control:CartPoleEnv"
    gymnasium.register("ShortCartPole-v0", entry_point=entry, max_episode_steps=3)
    dataset = record(cartpole, tmp_path / "d", RecordConfig(steps=10, num_envs=1, env="ShortCartPole-v0"))
    assert dataset.task.env == "ShortCartPole-v0"
    assert np.flatnonzero(dataset.read(0).truncated).tolist() == [2, 5, 8]


def test_card_tells_where_the_labels_come_from(tmp_path: Path, cartpole: SavedPolicy) -> None:
    save_policy(tmp_path / "policy", cartpole.network, cartpole.task, {"command": "by hand"})
    dataset = record(tmp_path / "policy", tmp_path / "d", RecordConfig(steps=10, epsilon=0.1, seed=4))
    card = open_dataset(tmp_path / "d").card
    assert card["teacher"]["provenance"] == {"command": "by hand"}
    assert card["teacher"]["path"] == str(tmp_path / "policy")
    assert card["teacher"]["sha256"] == cartpole.sha256, "saving and loading does not change a teacher"
    assert (card["score_kind"], card["task"]["env"]) == ("q_values", "CartPole-v1")
    assert {name: card["recordings"][0][name] for name in ("driver", "epsilon", "seed")} == {
        "driver": "teacher",
        "epsilon": 0.1,
        "seed": 4,
    }
    assert dataset.card["shards"] == [shard._asdict() for shard in dataset.shards]


class PressesCtrlC(Silent):
    def __init__(self, after: int) -> None:
        self.after = after
        self.lines: list[str] = []

    def update(self, done: int, **figures: float) -> None:
        if done == self.after:
            os.kill(os.getpid(), signal.SIGINT)

    def say(self, line: str) -> None:
        self.lines.append(line)


def test_ctrl_c_keeps_what_was_played_and_says_how_to_go_on(tmp_path: Path, cartpole: SavedPolicy) -> None:
    config, progress = RecordConfig(steps=100, num_envs=4, shard_steps=16), PressesCtrlC(after=40)
    with pytest.raises(KeyboardInterrupt):
        record(cartpole, tmp_path / "d", config, progress=progress)
    dataset = open_dataset(tmp_path / "d")
    assert dataset.problems() == {}
    assert [shard.control_steps for shard in dataset.shards] == [16, 16, 8]
    assert "--append --steps 60" in progress.lines[-1]
    assert record(cartpole, tmp_path / "d", dataclasses.replace(config, steps=60), append=True).control_steps == 100


@pytest.mark.slow
def test_killed_recording_leaves_a_whole_dataset(tmp_path: Path, cartpole: SavedPolicy) -> None:
    save_policy(tmp_path / "policy", cartpole.network, cartpole.task, {})
    code = (
        "from rldistill.verbs.record import RecordConfig, record\n"
        f"record({str(tmp_path / 'policy')!r}, {str(tmp_path / 'd')!r}, RecordConfig(steps=10**7, shard_steps=64))"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 300
        while len(list((tmp_path / "d").glob("shard-*"))) < 5 and time.monotonic() < deadline:
            time.sleep(0.001)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    dataset = open_dataset(tmp_path / "d")
    assert len(dataset.shards) >= 4
    assert dataset.problems() == {}
    there = dataset.control_steps
    assert record(tmp_path / "policy", tmp_path / "d", RecordConfig(steps=30), append=True).control_steps == there + 30


def test_lines_of_the_page_read_a_dataset_with_pyarrow_alone(
    tmp_path: Path, cartpole: SavedPolicy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record(cartpole, tmp_path / "data" / "pong", RecordConfig(steps=20, num_envs=2))
    page = (Path(__file__).parents[1] / "docs" / "record.md").read_text()
    lines = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "import pyarrow" in block)
    assert "rldistill" not in lines
    monkeypatch.chdir(tmp_path)
    exec(lines, {})
    assert "(10, 4)" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["gaussian", "squashed_gaussian", "actions"])
@pytest.mark.slow
def test_dataset_of_pendulum_holds_observations_scores_and_play(tmp_path: Path, kind: ScoreKind) -> None:
    task = make_task("Pendulum-v1")
    teacher = Remembering(policy_for(task, "mlp:8", score_kind=kind))
    config = RecordConfig(steps=450, num_envs=2, seed=5, epsilon=0.3, shard_steps=100)
    dataset = record(teacher, tmp_path / "d", config)
    assert dataset.score_kind == kind
    calls, fresh = teacher.calls[1:], Environments(task, 2, 5)
    shards = [dataset.read(index) for index in range(len(dataset.shards))]
    names = [name for name in shards[0]._fields if name != "masks"]
    columns = {name: np.concatenate([getattr(shard, name) for shard in shards]) for name in names}
    assert columns["actions"].shape == (450, 1)
    rows = [np.flatnonzero(columns["environments"] == row) for row in range(2)]
    greedy = 0
    for now, (observations, scores) in enumerate(calls):
        places = [rows[row][now] for row in range(2)]
        np.testing.assert_array_equal(columns["frames"][places], observations)
        np.testing.assert_array_equal(columns["values"][places], scores)
        np.testing.assert_array_equal(columns["frames"][places], fresh.observations)
        step = fresh.step(columns["actions"][places])
        np.testing.assert_array_equal(columns["rewards"][places], step.rewards)
        np.testing.assert_array_equal(columns["truncated"][places], step.truncated)
        greedy += int((columns["actions"][places] == chosen(scores, kind, task).numpy()).sum())
    fresh.close()
    # 450 steps, of which 0.7 are greedy; four standard deviations are 39.
    assert abs(greedy - 315) < 39
    assert columns["truncated"].sum() == 2, "the games of 200 steps end"


def test_pendulum_is_appended_to_only_by_the_same_teacher_and_kind(tmp_path: Path) -> None:
    task, config = make_task("Pendulum-v1"), RecordConfig(steps=20, num_envs=2)
    gaussian = policy_for(task, "mlp:8", score_kind="gaussian")
    record(gaussian, tmp_path / "d", config)
    assert record(gaussian, tmp_path / "d", config, append=True).control_steps == 40
    assert load_replay(open_dataset(tmp_path / "d"))[1].shape == (40,)
    squashed = policy_for(task, "mlp:8", score_kind="squashed_gaussian")
    with pytest.raises(UserError, match="recorded with score_kind = "):
        record(squashed, tmp_path / "d", config, append=True)
    stronger = SavedPolicy(gaussian.network, dataclasses.replace(task, action_high=(3.0,)))
    with pytest.raises(UserError, match="action"):
        record(stronger, tmp_path / "d", config, append=True)


def test_several_actions_at_once_are_recorded(tmp_path: Path, levers: str) -> None:
    task = make_task(levers)
    teacher = policy_for(task, "mlp:8", score_kind="logits")
    dataset = record(teacher, tmp_path / "d", RecordConfig(steps=60, num_envs=2, epsilon=0.0))
    shard = open_dataset(tmp_path / "d").read(0)
    assert dataset.task == task
    assert shard.actions.dtype == np.int64
    np.testing.assert_array_equal(shard.actions[:, 0], shard.values[:, :2].argmax(axis=1))
    np.testing.assert_array_equal(shard.actions[:, 1], shard.values[:, 2:].argmax(axis=1))


def test_teacher_whose_scores_do_not_suit_the_actions_is_refused(tmp_path: Path) -> None:
    task = make_task("Pendulum-v1")
    with pytest.raises(
        UserError, match=r"continuous actions of 1 dimension \(-2 to 2\), which q_values scores do not suit"
    ):
        record(SavedPolicy(build(Architecture("mlp:4", (3,), 1), 0), task), tmp_path / "d", RecordConfig(steps=10))
    assert not (tmp_path / "d").exists()
