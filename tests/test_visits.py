"""`train --record`: a dataset of what a learner visited, with the labels of the policy that it became."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rldistill.configurations import changed
from rldistill.datasets import load_replay, open_dataset
from rldistill.datasets.episodes import find_episodes
from rldistill.play.envs import Environments
from rldistill.play.envs.world import Step
from rldistill.policies import SavedPolicy, load_policy
from rldistill.progress import Silent
from rldistill.types import Actions, Observations, UserError
from rldistill.verbs.distill import DistillConfig, distill
from rldistill.verbs.train import TrainConfig, make_learner, train
from rldistill.verbs.train.recording import spread_evenly

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["rldistill.verbs.train"])

CARTPOLE = {
    "pqn": TrainConfig.of(
        algo="pqn", steps=4_096, seed=3, num_envs=4, network="mlp:8", checkpoint_seconds=0, final_episodes=1
    ),
    "dqn": TrainConfig.of(
        algo="dqn", steps=4_096, seed=3, num_envs=4, network="mlp:8", warmup=600, checkpoint_seconds=0, final_episodes=1
    ),
}
PONG = TrainConfig.of(
    algo="dqn",
    steps=2_048,
    seed=3,
    num_envs=4,
    network="cnn:4,4,4:16",
    warmup=600,
    replay=1_024,
    replay_ratio=1,
    minibatch=32,
    final_episodes=0,
)


def observations_of(folder: Path) -> tuple[Observations, torch.Tensor]:
    """All states of a dataset in the order of its rows, and their labels."""
    replay, times = load_replay(open_dataset(folder))
    rows = np.zeros_like(times)
    return replay.observations(times, rows), torch.from_numpy(replay.column("values", times, rows))


def visited(env: str, config: TrainConfig, scratch: Path) -> list[Observations]:
    """What the learner of a run sees before each control step, (N, *obs)."""
    scratch.mkdir()
    learner = make_learner(env, config, scratch)
    observed: list[Observations] = []
    environments = learner.environments  # type: ignore[union-attr]  # of one task
    assert isinstance(environments, Environments)
    step = environments.step

    def watched(actions: Actions) -> Step:
        observed.append(environments.observations)
        return step(actions)

    environments.step = watched  # type: ignore[method-assign]
    for _ in learner.learn():
        if learner.control_steps >= config.steps:
            break
    environments.close()
    return observed


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 100_000), st.integers(1, 100_000))
def test_stretches_are_as_many_as_fit_and_lie_evenly(times: int, rows: int, steps: int, most: int) -> None:
    stretches = spread_evenly(times, rows, steps, most)
    places = [place for place in range(stretches.number) if stretches.has(place)]
    assert len(places) == stretches.kept >= 1
    assert len(places) * times * rows <= max(most, times * rows)
    assert stretches.number * times * rows >= steps
    gaps = np.diff(places)
    assert not len(gaps) or gaps.max() - gaps.min() <= 1
    if most >= steps + times * rows:
        assert len(places) == stretches.number


@pytest.mark.parametrize("algo", ["pqn", "dqn"])
@pytest.mark.slow
def test_every_visited_state_is_there_with_the_label_of_the_final_policy(tmp_path: Path, algo: str) -> None:
    config = CARTPOLE[algo]
    policy = train("CartPole-v1", tmp_path / "run", changed(config, record=str(tmp_path / "data")))
    observations, values = observations_of(tmp_path / "data")
    observed = visited("CartPole-v1", config, tmp_path / "scratch")
    # Rows of a shard lie environment after environment; a shard is an item of the learner.
    times = 32 if algo == "pqn" else 128
    parts = [np.stack(observed[at : at + times]) for at in range(0, len(observed), times)]
    expected = np.concatenate([part.swapaxes(0, 1).reshape(-1, 4) for part in parts])
    np.testing.assert_array_equal(observations, expected)
    with torch.no_grad():
        torch.testing.assert_close(values, policy.network(torch.from_numpy(observations)), rtol=1e-5, atol=1e-5)
    assert not (tmp_path / "data" / "unlabelled").exists()
    # Games of the training are whole in it, and a student learns from it as from any dataset of this teacher.
    episodes, damaged = find_episodes(open_dataset(tmp_path / "data"))
    assert not damaged
    assert sum(episode.whole for episode in episodes) > 20
    student = distill(
        tmp_path / "run",
        tmp_path / "student",
        DistillConfig.of(student="mlp:4", dataset=str(tmp_path / "data"), updates=20, evaluate_episodes=0),
    )
    assert isinstance(student, SavedPolicy)


@pytest.mark.slow
def test_stacks_of_frames_are_whole_in_every_stretch(tmp_path: Path) -> None:
    """Of 4 stretches of 512 control steps those that are kept; each but the first begins in the middle of games."""
    config = changed(PONG, record=str(tmp_path / "data"), record_steps=1_024)
    train("PongNoFrameskip-v4", tmp_path / "run", config)
    observations, values = observations_of(tmp_path / "data")
    observed = visited("PongNoFrameskip-v4", PONG, tmp_path / "scratch")
    parts = [np.stack(observed[at * 128 : (at + 1) * 128]).swapaxes(0, 1) for at in (0, 2)]
    expected = np.concatenate([part.reshape(-1, 4, 84, 84) for part in parts])
    np.testing.assert_array_equal(observations, expected)
    with torch.no_grad():
        labels = load_policy(tmp_path / "run").network(torch.from_numpy(observations[::7]))
    torch.testing.assert_close(values[::7], labels, rtol=1e-4, atol=1e-5)


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("shard-*"))}


@pytest.mark.slow
def test_recording_changes_nothing_of_what_is_learnt(tmp_path: Path) -> None:
    for name, changes in (("plain", {}), ("recorded", {"record": str(tmp_path / "data")})):
        train("CartPole-v1", tmp_path / name, changed(CARTPOLE["pqn"], **changes))
    plain, recorded = (load_policy(tmp_path / name).sha256 for name in ("plain", "recorded"))
    assert plain == recorded


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["pqn", "dqn"])
def test_a_run_killed_at_random_moments_leaves_the_same_recording(tmp_path: Path, algo: str) -> None:
    config = changed(CARTPOLE[algo], checkpoint_seconds=0.05, record_steps=2_048)
    train("CartPole-v1", tmp_path / "whole", changed(config, record=str(tmp_path / "whole-data")))
    config = changed(config, record=str(tmp_path / "data"))
    draw = np.random.default_rng(7)
    kills = 0
    for _ in range(6):
        arguments = ("CartPole-v1", tmp_path / "run", config)
        process = PROCESSES.Process(target=train, args=arguments, kwargs={"resume": True})
        process.start()
        deadline = time.monotonic() + draw.uniform(0.2, 1.2)
        while process.is_alive() and (time.monotonic() < deadline or not (tmp_path / "run" / "config.json").exists()):
            time.sleep(0.002)
        process.kill()
        process.join()
        if process.exitcode == 0:
            break
        kills += 1
    assert kills
    train("CartPole-v1", tmp_path / "run", config, resume=True)
    assert shards(tmp_path / "data") == shards(tmp_path / "whole-data")
    assert open_dataset(tmp_path / "data").shards == open_dataset(tmp_path / "whole-data").shards
    assert len(open_dataset(tmp_path / "data").shards) == 2_048 // (128 if algo == "pqn" else 512)
    assert not (tmp_path / "data" / "unlabelled").exists()


class Stops(Silent):
    """Ctrl-C in one kind of work, after some updates of the progress."""

    def __init__(self, what: str, after: int) -> None:
        self.what, self.after, self.now = what, after, ""

    def start(self, what: str, total: int, unit: str, *, done: int = 0) -> None:
        self.now = what

    def update(self, done: int, **figures: float) -> None:
        if self.now.startswith(self.what):
            self.after -= 1
            if self.after == 0:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)


@pytest.fixture
def stopped(tmp_path: Path) -> TrainConfig:
    """The configuration of a run that was stopped in the middle of its training."""
    config = changed(CARTPOLE["pqn"], record=str(tmp_path / "data"))
    with pytest.raises(KeyboardInterrupt):
        train("CartPole-v1", tmp_path / "run", config, progress=Stops("train", 12))
    return config


@pytest.mark.slow
def test_states_that_were_recorded_after_the_checkpoint_are_recorded_again(
    tmp_path: Path, stopped: TrainConfig
) -> None:
    shutil.copytree(tmp_path / "run", tmp_path / "earlier")
    with pytest.raises(KeyboardInterrupt):
        train("CartPole-v1", tmp_path / "run", stopped, resume=True, progress=Stops("train", 5))
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "earlier").rename(tmp_path / "run")
    train("CartPole-v1", tmp_path / "run", stopped, resume=True)
    train("CartPole-v1", tmp_path / "whole", changed(stopped, record=str(tmp_path / "whole-data")))
    assert shards(tmp_path / "data") == shards(tmp_path / "whole-data")


@pytest.mark.slow
def test_until_it_is_labelled_it_is_no_dataset_and_labelling_goes_on_where_it_was(
    tmp_path: Path, stopped: TrainConfig
) -> None:
    with pytest.raises(UserError, match="no labels yet") as refused:
        open_dataset(tmp_path / "data")
    assert len(str(refused.value).splitlines()) == 1
    with pytest.raises(KeyboardInterrupt):
        train("CartPole-v1", tmp_path / "run", stopped, resume=True, progress=Stops("label", 3))
    assert 0 < len(shards(tmp_path / "data")) < 32
    with pytest.raises(UserError, match="no labels yet"):
        open_dataset(tmp_path / "data")
    train("CartPole-v1", tmp_path / "run", stopped, resume=True)
    assert open_dataset(tmp_path / "data").control_steps == 4_096
    assert load_policy(tmp_path / "run").provenance["score"]["episodes"] == 1
    train("CartPole-v1", tmp_path / "run", stopped, resume=True)  # which finds nothing to do
    assert open_dataset(tmp_path / "data").problems() == {}


@pytest.mark.slow
def test_a_recording_that_went_missing_is_one_line(tmp_path: Path, stopped: TrainConfig) -> None:
    lost = next((tmp_path / "data" / "unlabelled").glob("shard-*"))
    shutil.move(tmp_path / "data", tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is missing from") as refused:
        train("CartPole-v1", tmp_path / "run", stopped, resume=True)
    assert len(str(refused.value).splitlines()) == 1
    shutil.move(tmp_path / "elsewhere", tmp_path / "data")
    (tmp_path / "data" / "notes.txt").write_text("of mine")
    with pytest.raises(UserError, match=r"notes\.txt, which is of no recording"):
        train("CartPole-v1", tmp_path / "run", stopped, resume=True)
    (tmp_path / "data" / "notes.txt").unlink()
    lost.unlink()
    with pytest.raises(UserError, match=f"{lost.name} is missing"):
        train("CartPole-v1", tmp_path / "run", stopped, resume=True)
    assert (tmp_path / "run" / "policy").is_dir(), "the policy is safe"


def test_a_run_is_resumed_with_the_recording_that_it_began_with(tmp_path: Path, stopped: TrainConfig) -> None:
    for changes in ({"record": None}, {"record": str(tmp_path / "other")}, {"record_steps": 1_000}):
        with pytest.raises(UserError, match="was begun with record"):
            train("CartPole-v1", tmp_path / "run", changed(stopped, **changes), resume=True)
    assert not (tmp_path / "other").exists()


WRONG: list[tuple[list[str], dict[str, Any], str]] = [
    (["CartPole-v1"], {"record_steps": 0, "record": "data"}, "--record-steps is at least 1, not 0"),
    (["CartPole-v1"], {"record_steps": 10}, "--record-steps is for --record"),
    (["CartPole-v1", "Acrobot-v1"], {"record": "data"}, "--record is for one environment"),
    (["CartPole-v1"], {"record": "taken"}, "taken exists: choose another --record"),
    (["CartPole-v1"], {"record": "taken/file/data"}, "cannot make"),
]


@pytest.mark.parametrize(("env", "changes", "words"), WRONG, ids=[words for _, _, words in WRONG])
def test_what_cannot_be_recorded_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: list[str], changes: dict[str, Any], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("here")
    with pytest.raises(UserError, match=words) as refused:
        train(env, tmp_path / "run", TrainConfig.of(algo="pqn", steps=600, network="mlp:4", **changes))
    assert len(str(refused.value).splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken"]


def test_a_run_that_fails_at_once_leaves_neither_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> Step:
        raise UserError("broken")

    monkeypatch.setattr(Environments, "step", fails)
    with pytest.raises(UserError, match="broken"):
        train("CartPole-v1", tmp_path / "run", changed(CARTPOLE["pqn"], record=str(tmp_path / "deep" / "data")))
    assert not list(tmp_path.iterdir())
