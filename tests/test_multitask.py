"""One student of several tasks: real games, teachers made by hand."""

from __future__ import annotations

import json
import math
import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rldistill import TeacherOptions
from rldistill.configurations import changed
from rldistill.lessons.choosers import LEAST_SHARE, ByProgress, Uniform
from rldistill.lessons.guides import OneGuide
from rldistill.lessons.streams import Driven, DrivingPlan, Interleaved
from rldistill.play.envs import Environments, make_task
from rldistill.play.games import play_scored
from rldistill.play.replay import Replay
from rldistill.policies import MultiTaskPolicy, SavedPolicy, load_heads, load_policy, save_policy
from rldistill.progress import Silent
from rldistill.runs.folder import RunFolder
from rldistill.runs.records import Evaluation, Fit, TeacherScore, Train
from rldistill.schedules import constant
from rldistill.students.heads import MultiTaskNetwork
from rldistill.students.networks import Architecture, build
from rldistill.teachers import load_teacher
from rldistill.types import Lesson, ScoreKind, Task, UserError
from rldistill.verbs.distill import DistillConfig, distill
from rldistill.verbs.distill.streams import bytes_in, make_stream, within_memory
from rldistill.verbs.distill.teaching import Teaching, make_student, teaching_of
from rldistill.verbs.distill.work import Scale
from rldistill.verbs.evaluate import EvaluateConfig, evaluate
from rldistill.verbs.inspect import inspect
from rldistill.verbs.split import split

CARTPOLE, PENDULUM, ACROBOT = (make_task(name) for name in ("CartPole-v1", "Pendulum-v1", "Acrobot-v1"))
QUICK = DistillConfig.of(
    student="mlp:24,24+8",
    steps=400,
    num_envs=4,
    warmup=80,
    samples_per_step=8,
    evaluate_every=0,
    evaluate_episodes=2,
    evaluate_epsilon=1.0,  # random play, whose games end soon
)


def linear_policy(task: Task, law: list[float], sides: Tensor, kind: ScoreKind) -> SavedPolicy:
    """Scores that are linear in one linear feature of the observation."""
    network = build(Architecture("mlp:2", task.observation_shape, len(sides)), 0, kind)
    hidden, head = network.layers[1], network.layers[3]
    assert isinstance(hidden, torch.nn.Linear)
    assert isinstance(head, torch.nn.Linear)
    with torch.no_grad():
        hidden.weight.copy_(torch.stack([-torch.tensor(law), torch.tensor(law)]))
        hidden.bias.zero_()
        head.weight.copy_(sides)
        head.bias.zero_()
    return SavedPolicy(network.eval().requires_grad_(False), task)


def balancing() -> SavedPolicy:
    """Pushes the cart to the side to which the pole leans and turns."""
    return linear_policy(CARTPOLE, [0.0, 0.0, 1.0, 0.5], torch.eye(2), "q_values")


def braking() -> SavedPolicy:
    """A torque that is linear in (cos, sin, speed)."""
    return linear_policy(PENDULUM, [0.3, -1.0, -0.3], torch.tensor([[-1.0, 1.0]]), "actions")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("teachers")
    for name, policy in (("cartpole", balancing()), ("pendulum", braking())):
        save_policy(root / name, policy.network, policy.task, {"score": {"mean": 10.0, "ci_low": 9.0, "ci_high": 11.0}})
    return root


def both(root: Path) -> list[str]:
    return [str(root / "cartpole"), str(root / "pendulum")]


def teachings(config: DistillConfig = QUICK) -> list[Teaching]:
    return [teaching_of(policy, policy.task.env, policy.task, config) for policy in (balancing(), braking())]


@pytest.mark.slow
def test_one_student_plays_both_games_as_their_teachers_do(tmp_path: Path) -> None:
    """Discrete actions by Q-values and continuous ones of other observations, in one network."""
    config = changed(QUICK, steps=4_000, samples_per_step=16)
    student = distill([balancing(), braking()], tmp_path / "run", config)
    assert isinstance(student, MultiTaskPolicy)
    assert [(head.num_scores, head.score_kind) for head in student.heads.values()] == [(2, "logits"), (1, "actions")]
    for teacher in (balancing(), braking()):
        scores = evaluate([teacher, student.view(teacher.task.env)], EvaluateConfig(episodes=5, epsilon=0.0, seed=3))
        assert scores[1].agreement > 0.88
        random = play_scored(teacher.task, None, 10, 0.0, 0)["mean"]
        assert (scores[1].mean - random) / (scores[0].mean - random) > 0.85


@pytest.mark.slow
def test_a_normalized_student_of_several_tasks_is_kept_split_and_described(tmp_path: Path, root: Path) -> None:
    distill(both(root), tmp_path / "run", changed(QUICK, student_normalization="layer"))
    kept = load_heads(tmp_path / "run")
    assert isinstance(kept, MultiTaskPolicy)
    for task in (CARTPOLE, PENDULUM):
        view = kept.network.view(task.env)
        # Two layers of the torso, and one of the head's own.
        assert sum(isinstance(layer, torch.nn.LayerNorm) for layer in view.layers) == 3
        split(tmp_path / "run", task.env, tmp_path / task.env)
        alone = load_policy(tmp_path / task.env)
        observations = torch.randn((16, *task.observation_shape), generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(alone.network(observations), view(observations))
    assert inspect(tmp_path / "run")["network"] == "mlp:24,24+8, 2 heads, layer normalization"


@pytest.mark.slow
def test_run_folder_says_what_came_of_each_task(tmp_path: Path, root: Path) -> None:
    student = distill(both(root), tmp_path / "run", changed(QUICK, evaluate_every=200))
    run = RunFolder(tmp_path / "run")
    config = run.config()
    assert config["teacher"] == both(root)
    assert [task["env"] for task in config["task"]] == ["CartPole-v1", "Pendulum-v1"]
    records, _ = run.records()
    names = {kind: [r.lesson for r in records if isinstance(r, kind)] for kind in (Fit, TeacherScore, Evaluation)}
    assert names[Fit] == names[TeacherScore] == ["CartPole-v1", "Pendulum-v1"]
    # 800 control steps in all, games after 400 and at the end.
    assert names[Evaluation] == ["CartPole-v1", "Pendulum-v1"] * 2
    assert {r.lesson for r in records if isinstance(r, Train)} == {"CartPole-v1", "Pendulum-v1"}
    assert isinstance(student, MultiTaskPolicy)
    assert set(student.provenance["scores"]) == {"CartPole-v1", "Pendulum-v1"}
    assert student.provenance["control_steps"] >= 800
    assert run.status == "scored"
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_every_task_is_played_alike_with_a_uniform_schedule(tmp_path: Path) -> None:
    config = changed(QUICK, warmup=0, augment=0.0)
    student, config = make_student(teachings(), config)
    stream = make_stream(teachings(), student, config, tmp_path, Silent())
    assert isinstance(stream, Interleaved)
    counts: dict[str, int] = {}
    for _ in range(60):
        for lesson, batch in next(stream).items():
            counts[lesson.name] = counts.get(lesson.name, 0) + len(batch.observations)
            assert batch.observations.shape[1:] == lesson.task.observation_shape
    stream.close()
    assert counts["CartPole-v1"] == counts["Pendulum-v1"]


LESSONS = [Lesson.of(task) for task in (CARTPOLE, PENDULUM, ACROBOT)]


def test_a_round_of_the_uniform_schedule_has_every_lesson_once() -> None:
    schedule = Uniform(LESSONS, np.random.default_rng(0))
    rounds = [[schedule.choose().name for _ in LESSONS] for _ in range(20)]
    assert all(sorted(names) == sorted(lesson.name for lesson in LESSONS) for names in rounds)
    assert len({tuple(names) for names in rounds}) > 2, "in another order now and then"


def test_the_further_a_lesson_is_behind_the_more_often_it_is_chosen() -> None:
    """0.25 and 0.75 behind, the third ahead: 0.3 / 3 each, and 0.7 in parts of 1/4, 3/4 and 0."""
    schedule = ByProgress(LESSONS, np.random.default_rng(0))
    assert list(schedule.shares.values()) == pytest.approx([1 / 3] * 3)
    schedule.scored(dict(zip(LESSONS, (0.75, 0.25, 1.2), strict=True)))
    assert LEAST_SHARE == 0.3
    expected = [0.1 + 0.7 / 4, 0.1 + 0.7 * 3 / 4, 0.1]
    assert list(schedule.shares.values()) == pytest.approx(expected)
    drawn = [schedule.choose() for _ in range(4_000)]
    assert [drawn.count(lesson) / 4_000 for lesson in LESSONS] == pytest.approx(expected, abs=0.03)
    schedule.scored(dict.fromkeys(LESSONS, 1.1))
    assert list(schedule.shares.values()) == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("kind", [Uniform, ByProgress])
def test_a_saved_schedule_goes_on_with_the_same_choices(kind: Any) -> None:
    schedule, again = kind(LESSONS, np.random.default_rng(0)), kind(LESSONS, np.random.default_rng(1))
    schedule.scored(dict(zip(LESSONS, (0.5, 0.9, 0.1), strict=True)))
    for _ in range(4):
        schedule.choose()
    again.load_state_dict(json.loads(json.dumps(schedule.state_dict())))
    assert [again.choose() for _ in range(20)] == [schedule.choose() for _ in range(20)]


@pytest.mark.slow
def test_evaluations_steer_the_schedule_by_progress(tmp_path: Path, root: Path) -> None:
    """A student that learns nothing is far behind in CartPole, and as good as a teacher that lets the pendulum hang."""
    idle = linear_policy(PENDULUM, [0.0, 0.0, 0.0], torch.zeros(1, 2), "actions")
    config = changed(
        QUICK, schedule_lessons="progress", evaluate_every=50, steps=1_000, learning_rate=1e-9, evaluate_epsilon=0.0
    )
    distill([balancing(), idle], tmp_path / "run", config)
    records, _ = RunFolder(tmp_path / "run").records()
    drawn = [record.lesson for record in records if isinstance(record, Train)][40:]
    assert drawn.count("CartPole-v1") > 1.5 * drawn.count("Pendulum-v1")


def test_students_of_several_tasks_are_divided_by_their_teachers_in_the_same_games(tmp_path: Path, root: Path) -> None:
    """The folders state other scores."""
    config = changed(QUICK, evaluate_every=200)
    distill(both(root), tmp_path / "run", config)
    records, _ = RunFolder(tmp_path / "run").records()
    levels = {record.lesson: record.mean for record in records if isinstance(record, TeacherScore)}
    for teacher in (balancing(), braking()):
        played = play_scored(teacher.task, teacher, 2, 1.0, config.seed, num_envs=10)
        assert levels[teacher.task.env] == played["mean"]
        assert played["mean"] != 10.0


@pytest.mark.parametrize(
    ("epsilon", "arguments", "is_taken"),
    [(1.0, (), True), (0.01, (), False), (1.0, ("sutton_barto_reward=true",), False)],
    ids=["the same games", "another epsilon", "other rewards"],
)
def test_a_stated_score_is_taken_where_it_is_of_the_runs_games(
    tmp_path: Path, epsilon: float, arguments: tuple[str, ...], is_taken: bool
) -> None:
    score = {"mean": 123.0, "ci_low": 120.0, "ci_high": 130.0, "episodes": 30, "epsilon": epsilon}
    save_policy(tmp_path / "teacher", balancing().network, CARTPOLE, {"score": score})
    distill(str(tmp_path / "teacher"), tmp_path / "run", changed(QUICK, env_kwargs=arguments))
    records, _ = RunFolder(tmp_path / "run").records()
    level = next(record for record in records if isinstance(record, TeacherScore))
    assert (level.mean == 123.0) == is_taken


@pytest.mark.slow
def test_evaluations_that_choose_lessons_stay_as_they_are_when_a_run_is_resumed(tmp_path: Path, root: Path) -> None:
    config = changed(QUICK, schedule_lessons="progress", evaluate_every=100)
    with pytest.raises(KeyboardInterrupt):
        distill(both(root), tmp_path / "run", config, progress=StopsAfter(4))
    with pytest.raises(UserError, match="evaluate_every = 100, not 200"):
        distill(both(root), tmp_path / "run", changed(config, evaluate_every=200), resume=True)
    distill(both(root), tmp_path / "run", config, resume=True)
    distill(
        both(root), tmp_path / "run", changed(config, evaluate_episodes=0), resume=True
    )  # finished: nothing is chosen


@pytest.mark.slow
def test_games_that_choose_lessons_count_for_no_score(tmp_path: Path, root: Path) -> None:
    """Greedy games depend on their starts alone; the evaluations of a run begin as `play_scored` does with its seed."""
    config = changed(QUICK, steps=200, evaluate_every=150, evaluate_epsilon=0.0, evaluate_episodes=5)
    alike = {}
    for schedule in ("uniform", "progress"):
        student = distill(both(root), tmp_path / schedule, changed(config, schedule_lessons=schedule))
        evaluated = play_scored(CARTPOLE, student.view("CartPole-v1"), 5, 0.0, QUICK.seed)
        alike[schedule] = student.provenance["scores"]["CartPole-v1"]["returns"] == evaluated["returns"]
    assert alike == {"uniform": True, "progress": False}


@pytest.mark.parametrize("score", [{"iqm": 1.0}, 5, {"mean": math.nan}])
@pytest.mark.slow
def test_a_score_that_a_teachers_card_does_not_really_state_is_measured(tmp_path: Path, score: Any) -> None:
    config = changed(QUICK, schedule_lessons="progress", steps=200, evaluate_every=150)
    distill([replace(balancing(), provenance={"score": score}), braking()], tmp_path / "run", config)
    levels = [r for r in RunFolder(tmp_path / "run").records()[0] if isinstance(r, TeacherScore)]
    assert [level.episodes for level in levels] == [QUICK.evaluating.evaluate_episodes] * 2


def test_a_teacher_that_plays_no_better_than_chance_is_nothing_to_be_behind() -> None:
    assert Scale(random=10.0, teacher=20.0).normalized(12.5) == 0.25
    assert [Scale(random=10.0, teacher=teacher).normalized(30.0) for teacher in (10.0, 5.0)] == [1.0, 1.0]


def test_settings_may_be_numbers_of_numpy(tmp_path: Path) -> None:
    config = changed(QUICK, num_envs=np.int64(4), learning_rate=np.float32(0.003), evaluate_episodes=np.int32(0))
    distill([balancing(), braking()], tmp_path / "run", config)
    assert RunFolder(tmp_path / "run").config()["num_envs"] == 4


def test_a_run_may_play_no_games_at_all(tmp_path: Path, root: Path) -> None:
    student = distill(both(root), tmp_path / "run", changed(QUICK, evaluate_episodes=0))
    records, _ = RunFolder(tmp_path / "run").records()
    assert "scores" not in student.provenance
    assert not any(isinstance(record, Evaluation) for record in records)


@pytest.mark.parametrize("schedule", ["uniform", "progress"])
@pytest.mark.parametrize(("memory", "num_envs", "steps"), [(42_000, 4, 10_000), (300_000, 8, 5_000), (90_000, 3, 900)])
def test_replays_of_all_tasks_fit_into_the_memory_asked_for(
    tmp_path: Path, memory: int, num_envs: int, steps: int, schedule: str
) -> None:
    """The files together are at most as large, and one more control step of each task would not fit unless all do."""
    asked = changed(QUICK, replay_memory=str(memory), steps=steps, replay=steps, num_envs=num_envs)
    config = within_memory(changed(asked, schedule_lessons=schedule), teachings())
    student, config = make_student(teachings(), config)
    make_stream(teachings(), student, config, tmp_path, Silent()).close()
    size = sum(path.stat().st_size for path in tmp_path.rglob("replay-*"))
    # CartPole: 4 floats, a flag, 2 values are 25 bytes a step; Pendulum: 3 floats, a flag, 1 value are 17; both have checksums.
    assert size <= memory
    assert config.batches.replay == steps or size > memory - 2 * (num_envs * (25 + 17) + 8)


def test_memory_that_the_replays_do_not_fill_changes_nothing() -> None:
    assert within_memory(changed(QUICK, replay=500, replay_memory="1GiB"), teachings()).batches.replay == 500


def test_the_memory_that_a_refusal_names_is_enough() -> None:
    config = changed(QUICK, warmup=50_000, steps=100_000, replay=100_000)
    with pytest.raises(UserError, match="replay-memory 1kB holds 0 control steps") as refusal:
        within_memory(changed(config, replay_memory="1kB"), teachings())
    (enough,) = re.findall(r"take (\w+)", str(refusal.value))
    assert within_memory(changed(config, replay_memory=enough), teachings()).batches.replay >= 50_000


@pytest.mark.parametrize(("text", "size"), [("4GiB", 2**32), ("500MB", 5e8), ("1.5kb", 1500), ("12", 12)])
def test_sizes_of_memory_are_read(text: str, size: float) -> None:
    assert bytes_in(text) == size


@pytest.mark.parametrize("text", ["", "4 elephants", "-1GB", "GiB", "infGB", "0MB"])
def test_what_is_no_size_of_memory_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="4GiB"):
        bytes_in(text)


def other_cartpole() -> SavedPolicy:
    return replace(balancing(), provenance={"made": "elsewhere"})


def rewarded_otherwise() -> SavedPolicy:
    return replace(balancing(), task=replace(CARTPOLE, env_kwargs=(("sutton_barto_reward", True),)))


def frames() -> SavedPolicy:
    task = make_task("PongNoFrameskip-v4")
    return SavedPolicy(build(Architecture("cnn:4:8", task.observation_shape, 6), 0), task)


@pytest.mark.parametrize(
    ("policies", "changes", "words"),
    [
        ([balancing, other_cartpole], {}, "both teach CartPole-v1"),
        ([balancing, rewarded_otherwise], {}, "with other options"),
        ([balancing, lambda: None], {}, "a sequence"),
        ([balancing, lambda: [braking()]], {}, "a sequence"),
        ([balancing, frames], {}, "images or vectors, not both"),
        ([balancing, braking], {"env": "CartPole-v1"}, "--env is for one teacher"),
        ([balancing, braking], {"dataset": "data"}, "--dataset is for one teacher"),
        ([balancing, braking], {"student_observation": ("pole",)}, "--student-observation is for one teacher"),
        ([balancing, braking], {"student": "multi3"}, "reads images"),
        ([balancing, braking], {"student": "mlp:4+"}, "unknown network"),
        ([balancing, braking], {"replay_memory": "1kB"}, "--replay-memory"),
        ([balancing, braking], {"loss": "kl"}, "does not suit a teacher of actions"),
        ([balancing, braking], {"schedule_lessons": "backwards"}, "--schedule-lessons is one of"),
        ([balancing, braking], {"schedule_lessons": "progress"}, "--evaluate-every"),
        (
            [balancing, braking],
            {"schedule_lessons": "progress", "evaluate_every": 50, "evaluate_episodes": 0},
            "--evaluate-episodes",
        ),
        ([balancing], {"schedule_lessons": "progress", "evaluate_every": 50}, "several teachers"),
        ([], {}, "there is no teacher"),
    ],
)
def test_what_no_student_of_several_tasks_can_be_made_of_is_refused(
    tmp_path: Path, policies: list[Any], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words) as refusal:
        distill([policy() for policy in policies], tmp_path / "run", changed(QUICK, **changes))
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_options_that_act_on_none_of_the_teachers_are_refused(tmp_path: Path, root: Path) -> None:
    with pytest.raises(UserError, match="--pixels"):
        distill(both(root), tmp_path / "run", QUICK, options=TeacherOptions(pixels="unit"))


class StopsAfter(Silent):
    """Ctrl-C in the middle of the work."""

    def __init__(self, updates: int) -> None:
        self.left = updates

    def update(self, done: int, **figures: float) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("schedule", ["uniform", "progress"])
@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_weights(
    tmp_path: Path,
    root: Path,
    schedule: str,
) -> None:
    """Replays that have gone round, dropout, normalized layers, a schedule with a memory."""
    config = changed(
        QUICK,
        steps=900,
        replay=200,
        dropout=0.1,
        student_normalization="layer",
        explore="dropout",
        schedule_lessons=schedule,
        evaluate_every=300,
        evaluate_episodes=1,
        checkpoint_seconds=0.0,
    )
    whole = distill(both(root), tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        distill(both(root), tmp_path / "run", config, progress=StopsAfter(6))
    assert (tmp_path / "run" / "checkpoint" / "lesson-1").is_dir()
    again = distill(both(root), tmp_path / "run", config, resume=True)
    assert again.sha256 == whole.sha256
    assert not (tmp_path / "run" / "checkpoint").exists()


@pytest.mark.slow
def test_a_head_can_be_the_next_teacher(tmp_path: Path, root: Path) -> None:
    distill(both(root), tmp_path / "run", QUICK)
    place = f"{tmp_path / 'run'}#Pendulum-v1"
    assert load_teacher(place).task.env == "Pendulum-v1"
    second = distill(place, tmp_path / "second", changed(QUICK, student="mlp:8"))
    assert isinstance(second, SavedPolicy)
    assert second.task.env == "Pendulum-v1"
    with pytest.raises(UserError, match="plays 2 tasks"):
        load_teacher(tmp_path / "run")
    with pytest.raises(UserError, match="no head for 'Acrobot-v1'"):
        load_teacher(f"{tmp_path / 'run'}#Acrobot-v1")
    assert isinstance(load_heads(tmp_path / "run").network, MultiTaskNetwork)
    assert load_policy(tmp_path / "run", "CartPole-v1").task == CARTPOLE


class Learner:
    """A teacher whose answers change with its version, and count what they are asked."""

    score_kind: ScoreKind = "q_values"
    changes = True

    def __init__(self) -> None:
        self.owner, self.labelled = 0, 0

    def __call__(self, observations: Tensor) -> Tensor:
        # A block of labels may be filled up with states that it has already.
        self.labelled += len(observations.unique(dim=0))
        return observations[:, :2] * (self.owner + 1)


def test_no_label_that_is_drawn_is_stale_and_none_is_made_twice(tmp_path: Path) -> None:
    learner = Learner()
    columns = {"values": ((2,), np.float32), "owners": ((), np.int64)}
    replay = Replay(CARTPOLE, 4, 400, columns, scratch=tmp_path, slack=400)
    stream = Driven(
        Lesson.of(CARTPOLE),
        Environments(CARTPOLE, 4, 0),
        OneGuide(learner, CARTPOLE),
        lambda observations, masks=None: np.zeros(len(observations), dtype=np.int64),
        replay,
        DrivingPlan(constant(0.0), 0.0, 40, 16, 4.0),
        np.random.default_rng(0),
    )
    for version in range(4):
        learner.owner = version
        for _ in range(30):
            for batch in next(stream).values():
                torch.testing.assert_close(batch.values, batch.observations[:, :2] * (version + 1))
    visited = stream.control_steps
    assert visited < learner.labelled <= visited * 4, "each state at most once a version"
    saved = stream.state_dict()
    again = Replay(CARTPOLE, 4, 400, columns, scratch=tmp_path, slack=400)
    again.load_state_dict(saved["replay"])  # labels that were written again are no damage
    stream.close()
