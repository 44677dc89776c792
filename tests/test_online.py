"""A student that follows a learner: whose labels it learns, how steady it is, and that killed runs go on unchanged."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rldistill.configurations import changed
from rldistill.holding import held_file
from rldistill.lessons.following import RunningMean, VersionGuide, Versions, Visited
from rldistill.play.envs import Environments, make_task
from rldistill.play.replay import Replay
from rldistill.policies import SavedPolicy, load_policy
from rldistill.progress import Silent
from rldistill.runs.curves import curves_of
from rldistill.runs.folder import RunFolder
from rldistill.runs.records import Evaluation, LearnerEvaluation, Record
from rldistill.runs.steadiness import Steadiness, differences_over_runs, steadiness
from rldistill.runs.writing import Run
from rldistill.students.networks import Architecture, build
from rldistill.types import UserError
from rldistill.verbs.distill import DistillConfig, distill
from rldistill.verbs.report import ReportConfig, report
from rldistill.verbs.study import study
from rldistill.verbs.train import TrainConfig, train

CARTPOLE = make_task("CartPole-v1")
OF_RUN = DistillConfig.of(
    student="mlp:8",
    steps=600,
    warmup=100,
    samples_per_step=8,
    batch_size=32,
    num_envs=4,
    evaluate_episodes=1,
    evaluate_every=500,
    checkpoint_seconds=1e6,
)
QUICK = changed(OF_RUN, learner="CartPole-v1", algo="dqn", learner_steps=4_000, max_episode_steps=150)


def network_of(seed: int) -> Any:
    return build(Architecture("mlp:8", (4,), 2), seed)


class Killed(BaseException):
    """A process that dies: nothing is saved."""


def die_after(monkeypatch: pytest.MonkeyPatch, records: int) -> None:
    """The run dies when it logs so many records."""
    log, logged = Run.log, 0

    def dying(self: Run, record: Record) -> None:
        nonlocal logged
        logged += 1
        if logged > records:
            raise Killed
        log(self, record)

    monkeypatch.setattr(Run, "log", dying)


def die(out: Path, config: DistillConfig, records: int, *, resume: bool = False) -> None:
    """A run that dies when it logs so many records."""
    with pytest.MonkeyPatch.context() as patched:
        die_after(patched, records)
        with pytest.raises(Killed):
            distill((), out, config, resume=resume)


def outcome(run: Path) -> tuple[bytes, list[dict[str, Any]]]:
    """Weights and records, without what the clock says."""
    records = [record.as_json() for record in RunFolder(run).records()[0]]
    return (run / "policy" / "weights.safetensors").read_bytes(), [
        {name: value for name, value in record.items() if name != "seconds"} for record in records
    ]


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"algo": "pqn", "evaluate_every": 600}, id="pqn-best"),
        pytest.param(
            {"algo": "ppo", "learner_steps": 6_000, "evaluate_every": 1_000}, id="ppo", marks=pytest.mark.slow
        ),
        pytest.param({"teacher_snapshot": "ema"}, id="dqn-ema", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_ends_as_if_it_had_never_been_interrupted(tmp_path: Path, settings: dict[str, Any]) -> None:
    config = changed(QUICK, **settings)
    distill((), tmp_path / "whole", config)
    for at, records in enumerate((4, 6, 3)):
        die(tmp_path / "killed", config, records, resume=at > 0)
    distill((), tmp_path / "killed", config, resume=True)
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    assert not (tmp_path / "killed" / "checkpoint").exists()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that keeps its versions."""
    out = tmp_path_factory.mktemp("online") / "run"
    distill((), out, changed(QUICK, keep_snapshots=True))
    return out


def test_versions_are_the_best_evaluations_so_far_and_are_scored_on_other_games(kept: Path) -> None:
    learner = [record for record in RunFolder(kept).records()[0] if isinstance(record, LearnerEvaluation)]
    best, version = -math.inf, -1
    for record in learner:
        if record.choosing is not None and record.choosing > best:
            best, version = record.choosing, version + 1
        assert record.version == version
    assert learner[0].control_steps == 0
    assert version >= 1, "the learner never improved: the test says nothing"
    assert any(record.choosing != record.mean for record in learner)
    assert learner[0].random is not None
    assert all(record.random is None for record in learner[1:])


def test_kept_versions_are_teachers_with_their_scores(kept: Path, tmp_path: Path) -> None:
    learner = [record for record in RunFolder(kept).records()[0] if isinstance(record, LearnerEvaluation)]
    folders = sorted((kept / "teachers").iterdir(), key=lambda path: int(path.name))
    assert [path.name for path in folders] == [str(number) for number in range(1, (learner[-1].version or 0) + 1)]
    for number, folder in enumerate(folders, 1):
        first = next(record for record in learner if record.version == number)
        made = load_policy(folder).provenance
        assert made["score"]["mean"] == first.mean
        assert made["control_steps"] == first.teacher_steps
    again = DistillConfig.of(student="mlp:8", steps=300, warmup=50, evaluate_episodes=0)
    assert isinstance(distill(folders[-1], tmp_path / "again", again), SavedPolicy)


def test_both_curves_and_the_steadiness_are_in_the_run(kept: Path) -> None:
    records = RunFolder(kept).records()[0]
    curves = curves_of(records)
    assert curves is not None
    students = [record for record in records if isinstance(record, Evaluation)]
    assert curves.student == [record.mean for record in students]
    assert curves.control_steps == [record.teacher_steps for record in students]
    assert curves.control_steps[-1] >= 4_000
    card = load_policy(kept / "policy").provenance["steadiness"]
    assert card["student"]["deviation"] == steadiness(curves.student, curves.random, curves.top).deviation


def test_the_report_has_both_curves_and_compares_with_the_last_version(kept: Path, tmp_path: Path) -> None:
    page = report(kept, tmp_path / "page.html", config=ReportConfig(episodes=2, seconds=0)).read_text()
    curves = curves_of(RunFolder(kept).records()[0])
    assert curves is not None
    figures = steadiness(curves.student, curves.random, curves.top)
    assert f"{figures.deviation:.3f}" in page
    assert f"{figures.worst_drop:.3f}" in page
    last = max((kept / "teachers").iterdir(), key=lambda path: int(path.name))
    assert str(last) in page
    assert "left out" not in page


@pytest.mark.slow
def test_a_study_compares_students_with_their_learners(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(
        """
        [study]
        verb = "follow"
        reference = "best"
        envs = ["CartPole-v1"]
        seeds = 1

        [axes.following]
        best = {}
        "own states" = { driver = "student" }

        [settings]
        algo = "dqn"
        learner_steps = 3000
        student = "mlp:8"
        steps = 600
        warmup = 100
        samples_per_step = 8
        evaluate_episodes = 2
        evaluate_every = 500

        [games]
        episodes = 2
        """
    )
    state = study(tmp_path / "tiny.toml", tmp_path / "study")
    assert not state.failed
    rows = {row["setting"]: row for row in csv.DictReader((tmp_path / "study" / "runs.csv").open())}
    table = (tmp_path / "study" / "table.md").read_text().partition("## Steadiness")[2]
    for setting, row in rows.items():
        difference = float(row["student_mean"]) - float(row["learner_mean"])
        cell = re.search(rf"\| {setting} \| CartPole-v1 \| 1 \| (\S+) \|", table)
        assert cell is not None
        assert float(cell[1]) == pytest.approx(difference, abs=6e-4)
    (tmp_path / "wrong.toml").write_text(
        '[study]\nteachers = ["x"]\n[axes]\nloss = ["kl"]\n[settings]\nlearner = "CartPole-v1"\n'
    )
    with pytest.raises(UserError, match="learner is set by the study"):
        study(tmp_path / "wrong.toml", tmp_path / "wrong")


def test_steadiness_by_hand() -> None:
    # On the scale from 10 to 110: 0.2, 1.0, 0.5, 0.95, 0.8; the last half is the last three.
    figures = steadiness([30, 110, 60, 105, 90], 10, 110)
    assert figures.mean == pytest.approx(0.75)
    assert figures.deviation == pytest.approx(math.sqrt((0.25**2 + 0.2**2 + 0.05**2) / 2))
    assert figures.change == pytest.approx(math.sqrt((0.45**2 + 0.15**2) / 2))
    assert figures.worst_drop == pytest.approx(0.5)
    assert figures.below == pytest.approx(2 / 3)
    # Negative returns: 0.9 of the best on the normalized scale, not of the return.
    assert steadiness([-21, -1, -2, -2, -4], -21, -1).below == pytest.approx(1 / 3)


def test_differences_over_runs_resample_runs_with_both_curves() -> None:
    def run(student: float, learner: float) -> dict[str, Steadiness]:
        return {"student": Steadiness(1, student, 0, 0, 0), "learner": Steadiness(1, learner, 0, 0, 0)}

    alike = differences_over_runs([run(0.1, 0.3), run(0.5, 0.7), run(0.2, 0.4)])["deviation"]
    assert alike == pytest.approx((-0.2, -0.2, -0.2)), "levels differ between runs and differences do not"
    mixed = differences_over_runs([run(0.1, 0.3), run(0.6, 0.5)])["deviation"]
    assert mixed == pytest.approx((-0.05, -0.2, 0.1))
    # Two games, of which one has twice as many runs: games count alike.
    three = [run(0.1, 0.3), run(0.1, 0.3), run(0.5, 0.4), run(0.6, 0.5), run(0.7, 0.6), run(0.8, 0.7)]
    assert differences_over_runs(three, ["a", "a", "b", "b", "b", "b"])["deviation"] == pytest.approx((-0.05,) * 3)
    assert all(map(math.isnan, differences_over_runs([run(0.1, 0.3)])["deviation"][1:]))


def test_labels_of_an_older_version_are_made_anew() -> None:
    environments = Environments(CARTPOLE, 4, 0)
    versions = Versions(network_of(0), CARTPOLE, "2.0")
    guide = VersionGuide(versions, CARTPOLE)
    replay = Replay(CARTPOLE, 4, 400, guide.columns)
    visited = Visited(environments, replay)
    draw = np.random.default_rng(0)
    for _ in range(40):
        visited.step(draw.integers(2, size=4))
    environments.close()
    for seed in (1, 2):
        places = replay.sample(draw, 50)
        guide.fit(replay, *places)
        batch = guide.labelled(replay, *places)
        with torch.no_grad():
            expected = network_of(seed - 1)(batch.observations) / 2
        torch.testing.assert_close(batch.values, expected)
        versions.take(network_of(seed))


def test_each_version_has_a_temperature_of_its_own() -> None:
    """Values that grow as a learner learns give labels that are as certain as before."""
    large = network_of(1)
    with torch.no_grad():
        for parameter in large.layers[-1].parameters():
            parameter.mul_(100)
    observations = torch.from_numpy(np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32))
    versions = Versions(network_of(1), CARTPOLE, "auto")
    versions.fit(observations, None)
    before = versions(observations)
    versions.take(large)
    versions.fit(observations, None)
    torch.testing.assert_close(versions(observations), before, rtol=0.02, atol=0.02)


def test_a_version_is_not_changed_by_a_learner_that_goes_on() -> None:
    network = network_of(0)
    versions = Versions(network, CARTPOLE, "1")
    x = torch.ones(1, 4)
    before = versions(x)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    torch.testing.assert_close(versions(x), before)


def test_the_running_mean_forgets_exponentially() -> None:
    network = network_of(0)
    mean = RunningMean(network, 100.0)
    with torch.no_grad():
        network.layers[-1].bias.fill_(1.0)
        mean.network.layers[-1].bias.fill_(0.0)
    for _ in range(4):
        mean.follow(network, 25)
    torch.testing.assert_close(mean.network.layers[-1].bias, torch.full((2,), 1 - math.exp(-1)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"learner": "NoSuchGame-v0"}, "NoSuchGame-v0"),
        ({"learner": "Pendulum-v1"}, "one discrete action"),
        ({"learner": "Pendulum-v1", "algo": "ppo"}, "one discrete action"),
        ({"dataset": "data"}, "--dataset"),
        ({"select": "ucb1"}, "--select"),
        ({"env": "CartPole-v1"}, "--env"),
        ({"replay_memory": "1GiB"}, "--replay-memory"),
        ({"evaluate_episodes": 0}, "--evaluate-episodes"),
        ({"evaluate_every": 0}, "--evaluate-every"),
        ({"learner_steps": 0}, "--learner-steps"),
        ({"learner_averaging": 5}, "pqn"),
        ({"learner": None}, "--learner"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_no_folder(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)) as error:
        distill((), tmp_path / "run", changed(QUICK, **settings))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_learner_and_a_teacher_are_not_named_together(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--teacher"):
        distill("policies/pong", tmp_path / "run", QUICK)


def test_a_resumed_run_chooses_by_the_same_games(tmp_path: Path) -> None:
    die(tmp_path / "run", QUICK, 6)
    for settings in ({"evaluate_episodes": 3}, {"learner_steps": 9_000}):
        with pytest.raises(UserError, match=r"was begun with"):
            distill((), tmp_path / "run", changed(QUICK, **settings), resume=True)


def test_a_learner_that_never_scores_is_an_error_that_keeps_the_run(tmp_path: Path) -> None:
    """MountainCar's return is minus its length until its car climbs the hill."""
    hopeless = changed(QUICK, learner="MountainCar-v0", learner_steps=2_000, steps=300, warmup=20, evaluate_every=1_000)
    with pytest.raises(UserError, match="never scored above random play"):
        distill((), tmp_path / "run", hopeless)
    with pytest.raises(UserError, match="never scored above random play"):
        distill((), tmp_path / "run", hopeless, resume=True)
    assert load_policy(tmp_path / "run" / "policy").provenance["score"]["mean"] == -150
    assert len(RunFolder(tmp_path / "run").records()[0]) > 3


def test_a_folder_of_versions_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    config = changed(QUICK, keep_snapshots=True)
    die(tmp_path / "run", config, 1)
    teachers = tmp_path / "run" / "teachers"
    if teachers.exists():
        for folder in teachers.iterdir():
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
        teachers.rmdir()
    teachers.write_text("in the way")
    with pytest.raises(UserError, match="cannot make the policy folder"):
        distill((), tmp_path / "run", config, resume=True)
    teachers.unlink()
    distill((), tmp_path / "run", config, resume=True)
    assert (teachers / "1" / "policy.json").is_file()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with two snapshots."""
    out = tmp_path_factory.mktemp("trained") / "run"
    train("CartPole-v1", out, TrainConfig.of(steps=4_000, snapshots=(0.25, 0.5), final_episodes=2, seed=1))
    return out


def test_the_snapshots_of_a_finished_run_teach_in_their_order(trained: Path, tmp_path: Path) -> None:
    distill((), tmp_path / "run", changed(OF_RUN, learner=str(trained), keep_snapshots=True, evaluate_every=250))
    records = RunFolder(tmp_path / "run").records()[0]
    learner = [record for record in records if isinstance(record, LearnerEvaluation)]
    # A snapshot teaches in the stretch before it: the first at once, the final policy in the last half.
    first, middle, last = (
        load_policy(place) for place in (trained / "snapshots/0.25", trained / "snapshots/0.5", trained / "policy")
    )
    compared = [record.teacher_steps or 0 for record in learner if record.choosing is not None]
    assert len(compared) == 3, "each snapshot is compared once"
    assert compared[0] == 0
    assert 1_000 < compared[1] <= 1_500
    assert 2_000 < compared[2] <= 2_500
    kept = sorted(path.name for path in (tmp_path / "run" / "teachers").iterdir())
    weights = {name: load_policy(tmp_path / "run" / "teachers" / name).sha256 for name in kept}
    assert set(weights.values()) <= {middle.sha256, last.sha256}
    assert first.sha256 not in weights.values()
    assert kept, "no snapshot was better than the first: the test says nothing"


def test_a_run_under_way_is_waited_for_and_gives_the_same_student(trained: Path, tmp_path: Path) -> None:
    """It has one snapshot at first, and another process holds it."""
    growing = tmp_path / "growing"
    shutil.copytree(trained, growing, ignore=shutil.ignore_patterns("policy", "0.5"))
    (growing / "checkpoint").mkdir(exist_ok=True)
    said: list[str] = []

    class Listening(Silent):
        def say(self, line: str) -> None:
            said.append(line)
            if "waiting" in line and "50%" in line:
                shutil.copytree(trained / "snapshots" / "0.5", growing / "snapshots" / "0.5")
            if "waiting" in line and "final" in line:
                shutil.copytree(trained / "policy", growing / "policy")

    with held_file(growing / "checkpoint" / "lock", growing):
        distill((), tmp_path / "live", changed(OF_RUN, learner=str(growing)), progress=Listening())
    distill((), tmp_path / "later", changed(OF_RUN, learner=str(trained)))
    assert sum("waiting" in line for line in said) == 2
    weights = [(tmp_path / name / "policy" / "weights.safetensors").read_bytes() for name in ("live", "later")]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_a_killed_run_of_snapshots_ends_as_if_it_had_never_been_interrupted(trained: Path, tmp_path: Path) -> None:
    config = changed(OF_RUN, learner=str(trained))
    distill((), tmp_path / "whole", config)
    for at, records in enumerate((4, 6)):
        die(tmp_path / "killed", config, records, resume=at > 0)
    distill((), tmp_path / "killed", config, resume=True)
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


def test_a_run_that_cannot_be_followed_is_refused_in_one_line(trained: Path, tmp_path: Path) -> None:
    stopped = tmp_path / "stopped"
    shutil.copytree(trained, stopped, ignore=shutil.ignore_patterns("policy", "snapshots"))
    bare = tmp_path / "bare"
    shutil.copytree(trained, bare)
    config = json.loads((bare / "config.json").read_text())
    (bare / "config.json").write_text(json.dumps(config | {"snapshots": []}))
    (tmp_path / "empty").mkdir()
    for settings, words in (
        ({"learner": str(stopped)}, "stopped before its snapshot at 25%"),
        ({"learner": str(bare)}, "--snapshots"),
        ({"learner": str(tmp_path / "empty")}, "no run of `rldistill train`"),
        ({"learner": str(trained), "learner_steps": 5_000}, "--learner-steps"),
        ({"learner": str(trained), "teacher_snapshot": "ema"}, "--teacher-snapshot"),
    ):
        with pytest.raises(UserError, match=re.escape(words)) as error:
            distill((), tmp_path / "run", changed(OF_RUN, **settings))
        assert "\n" not in str(error.value)
        assert not (tmp_path / "run").exists()


_MINATAR = {
    "learner": "MinAtar/Breakout-v1",
    "algo": "pqn",
    "learner-steps": 60_000,
    "learner-network": "cnn:8:32",
    "student": "cnn:8:16",
    "steps": 3_000,
    "warmup": 200,
    "samples-per-step": 16,
    "evaluate-episodes": 2,
    "evaluate-every": 10_000,
    "checkpoint-seconds": 0.2,
}


def lines(out: Path) -> int:
    """Records that a run has written."""
    metrics = out / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_in_the_same_weights(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rldistill", "distill"]
    command += [word for name, value in _MINATAR.items() for word in (f"--{name}", str(value))]
    subprocess.run([*command, "--out", tmp_path / "whole"], check=True, capture_output=True)
    draw, killed = np.random.default_rng(0), 0
    third = lines(tmp_path / "whole") // 3
    for attempt in range(4):
        resume = ["--resume"] if attempt else []
        # By what the run has written: the machine's speed does not move a kill out of it.
        goal = lines(tmp_path / "killed") + draw.integers(1, third)
        process = subprocess.Popen([*command, "--out", tmp_path / "killed", *resume], stderr=subprocess.DEVNULL)
        saved = tmp_path / "killed" / "checkpoint" / "state"
        while process.poll() is None and (lines(tmp_path / "killed") < goal or not saved.exists()):
            time.sleep(0.005)
        process.kill()
        killed += process.wait() == -signal.SIGKILL
    assert killed >= 2
    subprocess.run([*command, "--out", tmp_path / "killed", "--resume"], check=True, capture_output=True)
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["learner"] == "MinAtar/Breakout-v1"
