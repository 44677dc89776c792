"""Streams of labelled batches on real games: who drives, what is drawn, and that a saved stream goes on as it would have."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rldistill.datasets import load_replay
from rldistill.files import load_state, save_state
from rldistill.lessons.guides import OneGuide
from rldistill.lessons.labels import OneTeacher
from rldistill.lessons.streams import Composed, Driven, DrivingPlan, Offline, minibatches
from rldistill.play.actions import mix_in_random
from rldistill.play.envs import Environments, Step, make_task
from rldistill.play.replay import Replay
from rldistill.play.rollout import EpsilonGreedy
from rldistill.policies import SavedPolicy
from rldistill.schedules import Schedule, constant, linear
from rldistill.students.networks import Architecture, build
from rldistill.types import (
    Actions,
    ActionValues,
    Batch,
    Lesson,
    Observations,
    Policy,
    ScoreKind,
    Task,
    UserError,
    labelled,
)
from rldistill.verbs.record import RecordConfig, record

PONG = make_task("PongNoFrameskip-v4", max_frames=240)  # games of at most 60 control steps
CARTPOLE = make_task("CartPole-v1")


def policy_for(task: Task, seed: int = 0) -> SavedPolicy:
    name = "cnn:4,4,4:8" if len(task.observation_shape) == 3 else "mlp:8"
    network = build(Architecture(name, task.observation_shape, task.num_actions), seed)
    return SavedPolicy(network.eval().requires_grad_(False), task)


class Watched(Environments):
    """Environments that keep the actions taken in them."""

    def __init__(self, task: Task, num_envs: int, seed: int) -> None:
        super().__init__(task, num_envs, seed)
        self.observed: list[Observations] = []
        self.taken: list[Actions] = []
        self.games = 0

    def step(self, actions: Actions) -> Step:
        self.observed.append(self.observations)
        self.taken.append(actions.copy())
        step = super().step(actions)
        self.games += int((~np.isnan(step.returns)).sum())
        return step


class Always:
    """A driving policy that takes one action, and keeps how many rows it was asked for."""

    def __init__(self, action: int) -> None:
        self.action = action
        self.rows: list[int] = []

    def __call__(self, observations: Observations) -> Actions:
        self.rows.append(len(observations))
        return np.full(len(observations), self.action, dtype=np.int64)


def driven(
    task: Task,
    *,
    teacher: ActionValues | None = None,
    student: Policy | None = None,
    share: Schedule | float = 1.0,
    num_envs: int = 4,
    scratch: Path | None = None,
    capacity: int = 4000,
    slack: int = 0,
    seed: int = 0,
    generator: np.random.Generator | None = None,
    **options: Any,
) -> Driven:
    settings: dict[str, Any] = dict(teacher_epsilon=0.0, warmup=20, batch_size=8, samples_per_step=1.0) | options
    return Driven(
        Lesson.of(task),
        Watched(task, num_envs, seed),
        OneGuide(OneTeacher(teacher or policy_for(task)), task),
        student or Always(0),
        Replay(task, num_envs, capacity, {"values": ((task.num_actions,), np.float32)}, scratch=scratch, slack=slack),
        DrivingPlan(share if callable(share) else constant(share), **settings),
        generator or np.random.default_rng(seed),
    )


def watched(stream: Driven) -> Watched:
    (environments,) = stream.environments
    assert isinstance(environments, Watched)
    return environments


@pytest.mark.slow
def test_labels_are_the_teachers_own_scores_of_the_sampled_observations() -> None:
    teacher = policy_for(PONG)
    stream = driven(PONG, teacher=teacher, student=Always(2), share=0.5, teacher_epsilon=0.3)
    sampled = [next(stream)[Lesson.of(PONG)] for _ in range(30)]
    assert watched(stream).games > 0, "games must end on the way"
    for batch in sampled:
        assert batch.observations.shape == (8, 4, 84, 84)
        assert batch.observations.dtype == torch.uint8
        assert batch.values.shape == (8, 6)
        assert batch.values.dtype == torch.float32
        torch.testing.assert_close(teacher(batch.observations), batch.values, atol=1e-5, rtol=1e-4)
    assert torch.cat([batch.values for batch in sampled]).std(dim=0).min() > 1e-4, "labels must differ between states"
    stream.close()


@pytest.mark.parametrize(("share", "rows"), [(1.0, 4), (0.5, 2), (0.25, 1), (0.3, 1), (0.0, 0)])
def test_teacher_drives_its_share_of_the_rows_and_the_student_the_others(share: float, rows: int) -> None:
    teacher, student = policy_for(CARTPOLE), Always(1)
    stream = driven(CARTPOLE, teacher=teacher, student=student, share=share)
    for _ in range(20):
        next(stream)
    (watched,) = stream.environments
    assert isinstance(watched, Watched)
    for observations, actions in zip(watched.observed, watched.taken, strict=True):
        best = teacher(torch.from_numpy(observations)).argmax(dim=1).numpy()
        np.testing.assert_array_equal(actions[:rows], best[:rows])
        assert (actions[rows:] == 1).all()
    times = len(watched.taken)
    assert (stream.teacher_steps, stream.student_steps) == (rows * times, (4 - rows) * times)
    assert student.rows == ([] if rows == 4 else [4 - rows] * times), "nobody is asked for nothing"


def test_falling_share_hands_rows_over_one_by_one() -> None:
    student = Always(1)
    stream = driven(CARTPOLE, student=student, share=linear(1.0, 0.0, 160))
    while stream.control_steps < 200:
        next(stream)
    # Shares 1, 0.975, 0.95, ... of four rows: it counts control steps of both, four a time.
    expected = [4 - round(4 * max(1 - 4 * time / 160, 0)) for time in range(stream.control_steps // 4)]
    assert student.rows == [rows for rows in expected if rows]
    assert stream.student_steps == sum(expected)
    assert sorted(set(expected)) == [0, 1, 2, 3, 4]


def test_teachers_epsilon_is_the_share_of_its_random_actions() -> None:
    teacher = policy_for(CARTPOLE)
    stream = driven(CARTPOLE, teacher=teacher, teacher_epsilon=0.4, warmup=4000)
    stream.examples()
    (watched,) = stream.environments
    assert isinstance(watched, Watched)
    best = teacher(torch.from_numpy(np.concatenate(watched.observed))).argmax(dim=1).numpy()
    # Half of the random ones of two actions are the best one too; the standard error is 0.006.
    assert float((np.concatenate(watched.taken) != best).mean()) == pytest.approx(0.2, abs=0.025)


@pytest.mark.parametrize(
    ("num_envs", "samples_per_step", "batch_size"),
    [
        (4, 16.0, 128),
        (4, 16.0, 8),
        (4, 200.0, 8),
        (4, 200.0, 300),
        (3, 0.5, 7),
        (2, 32 / 5.4, 32),
        (1, 0.1, 1),
        (2, 0.05, 4),
        (5, 1.0, 1),
    ],
)
@pytest.mark.slow
def test_samples_drawn_keep_their_ratio_to_control_steps(
    num_envs: int, samples_per_step: float, batch_size: int
) -> None:
    stream = driven(CARTPOLE, num_envs=num_envs, samples_per_step=samples_per_step, batch_size=batch_size, warmup=10)
    stream.examples()
    warm = before = stream.control_steps
    each = num_envs * samples_per_step
    drawn = 0
    for _ in range(100):
        number = len(next(stream)[Lesson.of(CARTPOLE)].values)
        assert number % batch_size == 0
        assert batch_size <= number <= max(256, batch_size), "all that is due at once, within bounds"
        drawn += number
        earned = (stream.control_steps - warm) * samples_per_step
        assert drawn - 1e-6 <= earned < drawn + each + 1e-6
        played = (stream.control_steps - before) // num_envs
        assert played <= stream.plan.times_an_item(num_envs)
        before = stream.control_steps


def test_minibatches_hold_each_sample_once_and_their_share_of_its_beginning() -> None:
    """Twelve samples, the first half of them composites: three batches of four, two composites in each."""
    item = {Lesson.of(CARTPOLE): labelled(torch.arange(24.0).reshape(12, 2), torch.arange(12.0)[:, None])}
    parts = [part[Lesson.of(CARTPOLE)] for part in minibatches(item, 4)]
    assert [len(part.values) for part in parts] == [4, 4, 4]
    assert sorted(torch.cat([part.values for part in parts]).flatten().tolist()) == list(range(12))
    for part in parts:
        assert torch.equal(part.observations[:, :1], 2 * part.values), "observations and labels stay together"
        assert int((part.values < 6).sum()) == 2
    (whole,) = minibatches(item, 12)
    assert torch.equal(whole[Lesson.of(CARTPOLE)].values, item[Lesson.of(CARTPOLE)].values)


@pytest.mark.parametrize(("warmup", "played"), [(0, 4), (1, 4), (20, 20), (21, 24)])
def test_examples_come_from_the_warmup_which_is_played_once(warmup: int, played: int) -> None:
    stream = driven(CARTPOLE, warmup=warmup, batch_size=8, samples_per_step=1.0)
    (examples,) = stream.examples().values()
    assert stream.control_steps == played
    assert examples.observations.shape == (1024, 4)
    assert examples.values.shape == (1024, 2)
    next(stream)
    assert stream.control_steps == played + 8, "two times of four rows earn the eight samples"


def test_batches_come_from_all_that_is_kept_and_nothing_else() -> None:
    """A teacher whose label is the time: a ring of 10 times of 2 rows, 40 times played."""

    class Counting:
        score_kind: ScoreKind = "q_values"
        time = -1

        def __call__(self, observations: Tensor) -> Tensor:
            self.time += 1
            return torch.tensor([[float(self.time), float(row)] for row in range(len(observations))])

    teacher = Counting()
    stream = driven(
        CARTPOLE, teacher=teacher, num_envs=2, capacity=20, warmup=80, batch_size=1000, samples_per_step=500
    )
    batch = next(stream)[Lesson.of(CARTPOLE)]
    assert teacher.time == 40  # times 0 to 39 of the warm-up and one more
    times, rows = batch.values.T.numpy()
    assert set(times) == set(range(31, 41))
    assert set(rows) == {0, 1}


@pytest.mark.parametrize("capacity", [4000, 160])
@pytest.mark.slow
def test_saved_stream_goes_on_with_identical_batches(tmp_path: Path, capacity: int) -> None:
    """Pong with games that end, explorers that draw, and with 160 steps a ring that has gone round."""
    learner = policy_for(PONG, seed=7)

    def stream_of() -> Driven:
        generator = np.random.default_rng(3)

        def explore(observations: Observations) -> Actions:
            return mix_in_random(EpsilonGreedy(learner, PONG, 0.0, generator)(observations), PONG, 0.2, generator)

        return driven(
            PONG, student=explore, share=linear(1.0, 0.25, 300), teacher_epsilon=0.1, scratch=tmp_path,
            capacity=capacity, slack=200, samples_per_step=1.5, generator=generator,
        )  # fmt: skip

    def items(stream: Driven, number: int) -> list[Batch]:
        return [next(stream)[Lesson.of(PONG)] for _ in range(number)]

    stream = stream_of()
    stream.examples()
    items(stream, 40)
    save_state(tmp_path / "state", stream.state_dict())
    expected = items(stream, 20)
    counts = (stream.teacher_steps, stream.student_steps)
    assert watched(stream).games >= 4, "each row has begun another game"
    stream.close()

    again = stream_of()
    again.load_state_dict(load_state(tmp_path / "state"))
    for batch, as_before in zip(items(again, 20), expected, strict=True):
        assert torch.equal(batch.observations, as_before.observations)
        assert torch.equal(batch.values, as_before.values)
    assert (again.teacher_steps, again.student_steps) == counts
    again.close()


def test_a_stream_must_be_saved_before_its_replay_has_no_room(tmp_path: Path) -> None:
    # Four rows; an item plays two times, and may play a third. The ring has 10 times, and room for 10 more.
    stream = driven(CARTPOLE, scratch=tmp_path, capacity=40, slack=40, warmup=48)
    stream.examples()  # 12 times
    stream.state_dict()  # which needs times 2 to 11
    must = []
    for _ in range(4):
        next(stream)
        must.append(stream.must_save)
    assert must == [False, False, False, True]  # 20 are played, and 20 + 3 - 20 reaches beyond time 2
    stream.state_dict()
    assert not stream.must_save
    free = driven(CARTPOLE)
    for _ in range(50):
        next(free)
    assert not free.must_save, "what lies in memory cannot be saved"


@pytest.mark.parametrize("sick", [float("nan"), float("inf"), float("-inf")])
def test_teacher_that_says_nan_or_infinity_is_refused(sick: float) -> None:
    def teacher(observations: Tensor) -> Tensor:
        return torch.tensor([[1.0, 2.0]] * 3 + [[0.0, sick]])

    teacher.score_kind = "q_values"  # type: ignore[attr-defined]  # a function may have attributes
    with pytest.raises(UserError, match="NaN or infinity"):
        next(driven(CARTPOLE, teacher=teacher))  # type: ignore[arg-type]  # see above


def test_teacher_with_another_number_of_values_is_refused_with_both_numbers() -> None:
    with pytest.raises(UserError, match=r"shape \(4, 3\); 2 discrete actions need 2 \(q_values\)"):
        next(driven(CARTPOLE, teacher=_Giving(torch.zeros(4, 3))))
    with pytest.raises(UserError, match=r"shape \(4,\); 2 discrete actions need 2 \(q_values\)"):
        next(driven(CARTPOLE, teacher=_Giving(torch.zeros(4))))


class _Giving:
    score_kind: ScoreKind = "q_values"

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __call__(self, observations: Tensor) -> Tensor:
        return self.values


def test_labels_become_float32() -> None:
    stream = driven(CARTPOLE, teacher=_Giving(torch.tensor([[1.0, 2.0]] * 4, dtype=torch.float64)))
    assert next(stream)[Lesson.of(CARTPOLE)].values.dtype == torch.float32


@pytest.mark.slow
def test_offline_draws_allowed_times_alone_with_the_labels_recorded(tmp_path: Path) -> None:
    teacher = policy_for(PONG)
    dataset = record(teacher, tmp_path / "d", RecordConfig(steps=200, num_envs=2, epsilon=0.3))
    replay, times = load_replay(dataset)
    labels = replay.column("values", times, np.zeros(len(times), np.int64))
    allowed = times[3:140:2]
    stream = Offline(Lesson.of(PONG), replay, allowed, batch_size=64, updates=6, generator=np.random.default_rng(0))
    may = {label.tobytes() for label in replay.column("values", allowed, np.zeros(len(allowed), np.int64))}
    assert len(may) < len({label.tobytes() for label in labels}), "the test must be able to see a wrong one"
    items = [next(stream) for _ in range(4)]
    assert [len(item[Lesson.of(PONG)].values) for item in items] == [256, 128, 64, 64], (
        "four batches at once, and six in all"
    )
    drawn = [part[Lesson.of(PONG)] for item in items for part in minibatches(item, 64)]
    assert {label.tobytes() for batch in drawn for label in batch.values.numpy()} == may
    for batch in drawn[:2]:
        assert batch.observations.shape == (64, 4, 84, 84)
        torch.testing.assert_close(teacher(batch.observations), batch.values, atol=1e-5, rtol=1e-4)
    assert stream.examples()[Lesson.of(PONG)].values.shape == (1024, 6)
    assert (stream.teacher_steps, stream.student_steps, stream.must_save) == (0, 0, False)


def test_saved_offline_stream_goes_on_with_identical_batches(tmp_path: Path) -> None:
    replay, times = load_replay(record(policy_for(CARTPOLE), tmp_path / "d", RecordConfig(steps=300)))

    def stream_of(seed: int) -> Offline:
        return Offline(
            Lesson.of(CARTPOLE), replay, times, batch_size=16, updates=130, generator=np.random.default_rng(seed)
        )

    stream = stream_of(1)
    stream.examples()
    list(itertools.islice(stream, 5))
    save_state(tmp_path / "state", stream.state_dict())
    expected = [item[Lesson.of(CARTPOLE)] for item in itertools.islice(stream, 5)]
    again = stream_of(2)
    again.load_state_dict(load_state(tmp_path / "state"))
    for item, reference in zip(itertools.islice(again, 5), expected, strict=True):
        assert torch.equal(item[Lesson.of(CARTPOLE)].observations, reference.observations)
        assert torch.equal(item[Lesson.of(CARTPOLE)].values, reference.values)


def composed_of(scratch: Path | None = None, share: float = 0.5, teacher: ActionValues | None = None) -> Composed:
    teacher = teacher or policy_for(PONG)
    stream = driven(PONG, teacher=teacher, share=1.0, scratch=scratch)
    return Composed(stream, OneGuide(OneTeacher(teacher), PONG), share, np.random.default_rng(9))


@pytest.mark.slow
def test_composites_bear_the_teachers_labels_and_the_rest_of_a_batch_is_as_it_was() -> None:
    teacher = policy_for(PONG)
    stream, plain = composed_of(share=0.25, teacher=teacher), driven(PONG, teacher=teacher, share=1.0)
    changed = 0
    for _ in range(20):
        made, visited = next(stream)[Lesson.of(PONG)], next(plain)[Lesson.of(PONG)]
        assert torch.equal(made.observations[2:], visited.observations[2:])
        assert torch.equal(made.values[2:], visited.values[2:])
        changed += not torch.equal(made.observations[:2], visited.observations[:2])
        with torch.no_grad():
            assert torch.allclose(made.values, teacher(made.observations), atol=1e-5)
    assert changed > 10
    assert (stream.teacher_steps, stream.student_steps) == (plain.teacher_steps, plain.student_steps)


@pytest.mark.slow
def test_composites_cost_no_control_steps_and_examples_are_visited_states() -> None:
    stream, plain = composed_of(), driven(PONG, teacher=policy_for(PONG), share=1.0)
    (ours,), (theirs,) = stream.examples().values(), plain.examples().values()
    assert torch.equal(ours.observations, theirs.observations)


@pytest.mark.slow
def test_stream_with_composites_goes_on_where_it_was(tmp_path: Path) -> None:
    stream = composed_of(tmp_path)
    for _ in range(10):
        next(stream)
    save_state(tmp_path / "state", stream.state_dict())
    expected = [next(stream)[Lesson.of(PONG)] for _ in range(5)]
    stream.close()
    again = composed_of(tmp_path)
    again.load_state_dict(load_state(tmp_path / "state"))
    for batch in expected:
        now = next(again)[Lesson.of(PONG)]
        assert torch.equal(now.observations, batch.observations)
        assert torch.equal(now.values, batch.values)
    again.close()
