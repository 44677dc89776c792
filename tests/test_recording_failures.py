"""What `record` keeps when something fails on the way, and of several that record into one folder."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import pytest
from gymnasium import spaces
from torch import Tensor

import rldistill
from rldistill.datasets import Dataset, open_dataset
from rldistill.play.envs import make_task
from rldistill.policies import save_policy
from rldistill.progress import Silent
from rldistill.types import UserError
from rldistill.verbs.record import RecordConfig, record
from test_recording import policy_for

CONFIG = RecordConfig(steps=1000, num_envs=2, shard_steps=100)


class Counting(gymnasium.Env[npt.NDArray[np.float32], int]):
    """Shows its step; raises what it is given at a step."""

    observation_space = spaces.Box(0, 1e6, (1,), np.float32)
    action_space = spaces.Discrete(2)
    failure: BaseException | None = None
    at = 73

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self.now = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self.now += 1
        if self.failure is not None and self.now == self.at:
            raise self.failure
        return np.full(1, self.now, np.float32), 1.0, False, self.now == 500, {}


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    gymnasium.register("Counting-v0", Counting)
    yield "Counting-v0"
    del gymnasium.registry["Counting-v0"]


class Lines(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def check_kept(dataset: Dataset, steps: int, lines: list[str]) -> None:
    """Whole shards, of exactly the steps that the last line speaks of, which itself says what is missing."""
    assert dataset.problems() == {}
    assert dataset.control_steps == steps
    frames = np.concatenate([dataset.read(number).frames[:, 0] for number in range(len(dataset.shards))])
    assert sorted(frames.tolist()) == sorted([*range(steps // 2)] * 2)
    matches = [re.search(r"([\d,]+) steps are safe .*--append --steps (\d+)$", line) for line in lines]
    assert [(match[1], match[2]) for match in matches if match] == [(f"{steps:,}", str(1000 - steps))]


@pytest.mark.parametrize(
    "failure", [ValueError("broken"), UserError("unplugged"), SystemExit(0), MemoryError()], ids=repr
)
@pytest.mark.slow
def test_an_environment_that_fails_costs_no_step_that_was_played(
    tmp_path: Path, counting: str, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    teacher = policy_for(make_task(counting), "mlp:4")
    progress = Lines()
    with monkeypatch.context() as patch:
        patch.setattr(Counting, "failure", failure)
        with pytest.raises(UserError):
            record(teacher, tmp_path / "data", CONFIG, progress=progress)
    # 72 steps of two environments in shards of 100.
    check_kept(open_dataset(tmp_path / "data"), 144, progress.lines)
    rest = RecordConfig(steps=1000 - 144, num_envs=2, shard_steps=100)
    assert record(teacher, tmp_path / "data", rest, append=True).control_steps == 1000


def test_a_teacher_that_fails_costs_no_step_that_was_played(tmp_path: Path, counting: str) -> None:
    policy = policy_for(make_task(counting), "mlp:4")

    class Failing:
        task, score_kind = policy.task, policy.score_kind
        calls = 0

        def __call__(self, observations: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == 60:
                raise ArithmeticError("the teacher's own")
            values = policy(observations)
            return values * float("nan") if self.kind == "NaN" and self.calls == 50 else values

        def __init__(self, kind: str) -> None:
            self.kind = kind

    for kind, error, steps in (("error", ArithmeticError, 2 * 58), ("NaN", UserError, 2 * 48)):
        progress = Lines()
        with pytest.raises(error):
            record(Failing(kind), tmp_path / kind, CONFIG, progress=progress)
        check_kept(open_dataset(tmp_path / kind), steps, progress.lines)


def test_one_that_fails_at_its_first_step_leaves_nothing(
    tmp_path: Path, counting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = policy_for(make_task(counting), "mlp:4")
    monkeypatch.setattr(Counting, "failure", ValueError("broken"))
    monkeypatch.setattr(Counting, "at", 1)
    with pytest.raises(UserError):
        record(teacher, tmp_path / "deep" / "data", CONFIG)
    assert not list(tmp_path.iterdir())


def test_the_second_ctrl_c_keeps_what_was_played_too(
    tmp_path: Path, counting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = policy_for(make_task(counting), "mlp:4")

    class Impatient(Counting):
        def step(self, action: int) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
            if self.now == 72:  # an environment that does not notice the first one
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1)
            return super().step(action)

    monkeypatch.setitem(gymnasium.registry, counting, gymnasium.envs.registration.EnvSpec(counting, Impatient))
    progress = Lines()
    with pytest.raises(KeyboardInterrupt):
        record(teacher, tmp_path / "data", CONFIG, progress=progress)
    check_kept(open_dataset(tmp_path / "data"), 144, progress.lines)


SOURCE = Path(rldistill.__file__).parents[1]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shelf")
    task = make_task("CartPole-v1")
    save_policy(folder / "policy", policy_for(task, "mlp:4").network, task, {})
    return folder


@pytest.fixture
def start(shelf: Path) -> Callable[..., subprocess.Popen[str]]:
    def started(out: Path, *words: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "rldistill", "record", "--teacher", shelf / "policy", "--out", out, *words]
        environment = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.PIPE, text=True)

    return started


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["--append"]], ids=["new", "append"])
def test_of_three_that_record_into_one_folder_at_once_one_does(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]], words: list[str]
) -> None:
    out = tmp_path / "data"
    for _ in range(2):
        there = open_dataset(out).control_steps if out.exists() else 0
        if not words:
            out = tmp_path / f"data{len(list(tmp_path.iterdir()))}"
            there = 0
        running = [start(out, "--steps", 10_000, "--shard-steps", 1000, "--seed", seed, *words) for seed in range(3)]
        outputs = [process.communicate(timeout=300)[1] for process in running]
        won = [process.returncode for process in running].count(0)
        assert sorted(process.returncode for process in running)[won:] == [2] * (3 - won)
        assert won >= 1  # with --append one may begin when another has ended
        assert won == 1 or words
        for process, text in zip(running, outputs, strict=True):
            assert process.returncode == 0 or re.search("exists|another process works on", text.splitlines()[-1])
        dataset = open_dataset(out)
        assert dataset.problems() == {}
        assert dataset.control_steps == there + 10_000 * won
        assert {path.name for path in out.iterdir()} == {"dataset.json", *(shard.file for shard in dataset.shards)}


@pytest.mark.slow
def test_kills_at_any_moment_leave_whole_shards_and_no_half_files(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    generator = np.random.default_rng(0)
    out, before = tmp_path / "data", 0
    for _ in range(3):
        running = start(out, "--steps", 1_000_000, "--shard-steps", 500, "--append")
        until = time.monotonic() + 120
        while time.monotonic() < until and not (out / "dataset.json").exists():
            time.sleep(0.05)
        time.sleep(float(generator.uniform(0, 5)))
        running.kill()
        running.communicate()
        if (out / "dataset.json").exists():
            dataset = open_dataset(out)
            assert dataset.problems() == {}
            assert dataset.control_steps >= before
            before = dataset.control_steps
    ended = start(out, "--steps", 10, "--append")
    assert ended.wait(120) == 0, ended.communicate()[1]
    assert open_dataset(out).control_steps == before + 10
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    assert os.listdir(tmp_path) == ["data"]
