"""What a run learns from: what teachers and student play, or a dataset; with composites, and of several tasks in turn."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from rldistill.configurations import changed
from rldistill.datasets.shards import Dataset, load_replay
from rldistill.lessons.choosers import SCHEDULES
from rldistill.lessons.exploration import explorer
from rldistill.lessons.following import Beside, FollowingStream, Learner, RunningMean, VersionGuide, Versions, Visited
from rldistill.lessons.guides import Guide, OneGuide
from rldistill.lessons.joint import Joint
from rldistill.lessons.labels import OneTeacher
from rldistill.lessons.streams import Composed, Driven, DrivingPlan, Interleaved, Offline, Stream
from rldistill.lessons.teaching import Panel, Teaching
from rldistill.play.actions import score_width
from rldistill.play.envs import Environments
from rldistill.play.replay import Columns, Replay, mask_column, own_scratch, ring_bytes
from rldistill.play.rollout import Resumable
from rldistill.progress import Progress
from rldistill.schedules import Schedule, constant, linear
from rldistill.students.fitting import answering
from rldistill.students.heads import MultiTaskNetwork
from rldistill.students.networks import Network
from rldistill.types import Lesson, Task, UserError
from rldistill.verbs.distill.config import DistillConfig
from rldistill.verbs.distill.replaying import ROUND_TIMES, Replayed, Snapshots
from rldistill.verbs.train.learners import Plan, make_learner_of


class Selector(Protocol):
    """Makes the guides of panels."""

    def watched(self, task: Task) -> tuple[str, ...]:
        """What the environments must give beside their observations."""

    def guide(
        self, panel: Panel, network: Network, environments: Environments, generator: np.random.Generator
    ) -> Guide:
        """The guide of a panel whose student is `network`."""


def make_stream(
    teachings: Sequence[Teaching],
    student: Network | MultiTaskNetwork,
    config: DistillConfig,
    scratch: Path,
    progress: Progress,
    dataset: Dataset | None = None,
    selector: Selector | None = None,
) -> Stream:
    """The stream of a run; of several lessons each has a replay, environments and random numbers of its own.

    Raises:
        UserError: no room for the replays, or an environment cannot be made.
    """
    if len(teachings) == 1:
        return _of_one(teachings[0], student, config, scratch, progress, selector, dataset, 0)
    streams: list[Stream] = []
    try:
        for place, teaching in enumerate(teachings):
            streams.append(_of_one(teaching, student, config, scratch, progress, selector, None, place, len(teachings)))
    except BaseException:
        for stream in streams:
            stream.close()
        raise
    lessons = [lesson for stream in streams for lesson in stream.lessons]
    schedule = SCHEDULES[config.schedule_lessons](lessons, np.random.default_rng([config.seed, 5]))
    return Interleaved(streams, schedule)


def _of_one(
    teaching: Teaching,
    student: Network | MultiTaskNetwork,
    config: DistillConfig,
    scratch: Path,
    progress: Progress,
    selector: Selector | None,
    dataset: Dataset | None,
    place: int,
    number: int = 1,
) -> Stream:
    """The stream of the lesson in a place among so many."""

    def generator(purpose: int) -> np.random.Generator:
        return np.random.default_rng([config.seed, purpose, place] if place else [config.seed, purpose])

    stream: Stream
    if dataset is not None:
        stream = _recorded(teaching, config, dataset, progress, generator(3))
        guide: Guide = OneGuide(OneTeacher(teaching.teacher), stream.lessons[0].task)
    else:
        watched = selector.watched(teaching.task) if selector and teaching.panel else ()
        environments = Environments(teaching.task, config.driving.num_envs, config.seed, watched=watched)
        network, own = answering(student, teaching.lesson), own_scratch(scratch, place)
        try:
            if teaching.panel is None:
                guide = OneGuide(OneTeacher(teaching.teacher), environments.task)
            else:
                assert selector is not None
                guide = selector.guide(teaching.panel, network, environments, generator(6))
            stream = played(teaching.lesson, guide, environments, network, config, own, generator(3), number)
        except BaseException:
            environments.close()
            raise
    if not config.batches.augment:
        return stream
    return Composed(stream, guide, config.batches.augment, generator(4))


def _recorded(
    teaching: Teaching, config: DistillConfig, dataset: Dataset, progress: Progress, generator: np.random.Generator
) -> Offline:
    replay, times = load_replay(dataset, progress=progress)
    task = replace(teaching.task, action_masks=teaching.task.action_masks or dataset.task.action_masks)
    lesson = replace(teaching.lesson, task=task)
    updates = cast(int, config.updates)
    return Offline(lesson, replay, times, batch_size=config.batches.batch_size, updates=updates, generator=generator)


def played(
    lesson: Lesson,
    guide: Guide,
    environments: Environments,
    network: Network,
    config: DistillConfig,
    scratch: Path,
    generator: np.random.Generator,
    number: int,
) -> Driven:
    """The played stream of one of so many lessons."""
    task, num_envs = environments.task, config.driving.num_envs
    exploring = linear(config.driving.epsilon, 0.0, config.steps)
    driven = Driven(
        replace(lesson, task=task),
        environments,
        guide,
        explorer(network, task, config.driving.explore, lambda: exploring(driven.control_steps), generator),
        Replay(
            task,
            num_envs,
            config.batches.replay,
            {**guide.columns, **mask_column(task)},
            scratch=scratch,
            slack=slack_of(config, number),
        ),
        plan_of(config),
        generator,
    )
    return driven


_ROUNDS_OF_ROOM = 16
"""Rounds of the learner between two checkpoints, as far as the replay of its states decides."""


def make_online_stream(
    source: Plan | Snapshots,
    learning: Network,
    teaching: Teaching,
    student: Network,
    config: DistillConfig,
    scratch: Path,
    say: Callable[[str], object],
) -> tuple[Stream, FollowingStream]:
    """The stream of a run beside a learner, and the same without composites.

    Args:
        source: what the learner learns, or the snapshots that it takes up.
        learning: its network.
        teaching: the lesson, whose teacher is its present version.
        student: drives its own environments.
        config: of the run.
        scratch: folder for the replays' files.
        say: takes a line when a snapshot is waited for.

    Raises:
        UserError: no room for the replays, or an environment cannot be made.
    """
    versions = teaching.teacher
    assert isinstance(versions, Versions)
    with ExitStack() as failed:
        learner, visited, times = _learner_of(source, learning, versions, config, scratch, say)
        failed.callback(visited.close)
        environments = Environments(teaching.task, config.driving.num_envs, config.seed + 500_000)
        failed.callback(environments.close)
        guide = VersionGuide(versions, environments.task)
        beside = Beside(
            learner_steps=config.following.learner_steps,
            steps=config.steps,
            share=share_of(config),
            drives=config.driving.driver != "teacher",
            round_times=times,
            clock_of_step=1.0 if isinstance(source, Snapshots) else config.steps / config.following.learner_steps,
        )
        mean = None
        if config.following.teacher_snapshot == "ema":
            mean = RunningMean(learner.policy, beside.learner_steps / 20)
        alone, generator = changed(config, driver="student"), np.random.default_rng([config.seed, 3])
        own = played(teaching.lesson, guide, environments, student, alone, scratch, generator, 1)
        failed.pop_all()
    stream = FollowingStream(learner, visited, own, guide, mean, beside)
    if not config.batches.augment:
        return stream, stream
    return Composed(stream, guide, config.batches.augment, np.random.default_rng([config.seed, 4])), stream


def _learner_of(
    source: Plan | Snapshots,
    learning: Network,
    versions: Versions,
    config: DistillConfig,
    scratch: Path,
    say: Callable[[str], object],
) -> tuple[Learner, Visited, int]:
    """The learner, its environments, and the control steps of each of them in one of its rounds."""
    if isinstance(source, Snapshots):
        environments = Environments(versions.task, config.driving.num_envs, config.seed + 600_000)
        try:
            visited = _visited(environments, versions, config, scratch, ROUND_TIMES)
        except BaseException:
            environments.close()
            raise
        generator, epsilon = np.random.default_rng([config.seed, 7]), config.driving.teacher_epsilon
        return Replayed(source, visited, config.steps, epsilon, generator, say), visited, ROUND_TIMES
    watched: list[Visited] = []

    def watch(environments: Environments, plan: Plan) -> Resumable:
        times = plan.own.item_times(environments.num_envs)
        watched.append(_visited(environments, versions, config, scratch, times))
        return watched[0]

    learner = make_learner_of([source], learning, own_scratch(scratch, 2), watch)
    assert not isinstance(learner, Joint)
    return learner, watched[0], source.own.item_times(watched[0].num_envs)


def _visited(
    environments: Environments, versions: Versions, config: DistillConfig, scratch: Path, times: int
) -> Visited:
    """Environments of a learner, with the replay of what it visits."""
    task, rows = environments.task, environments.num_envs
    columns = {**VersionGuide(versions, task).columns, **mask_column(task)}
    slack = _ROUNDS_OF_ROOM * rows * times
    replay = Replay(task, rows, config.batches.replay, columns, scratch=own_scratch(scratch, 1), slack=slack)
    return Visited(environments, replay)


def plan_of(config: DistillConfig) -> DrivingPlan:
    """Who drives, and how much is drawn."""
    batches, epsilon = config.batches, config.driving.teacher_epsilon
    return DrivingPlan(share_of(config), epsilon, batches.warmup, batches.batch_size, batches.samples_per_step)


def slack_of(config: DistillConfig, number: int) -> int:
    """Control steps of room that the replay of each of so many lessons has beyond its capacity, between two checkpoints."""
    replay, num_envs = config.batches.replay, config.driving.num_envs
    # Of several lessons one may be chosen more often than the others, so its replay may overwrite what the run began with.
    longest = config.steps if number == 1 else config.steps * number
    # A run whose steps all fit never overwrites a thing. The last item ends beyond its steps.
    room = min(max(replay // 20, 100 * num_envs), longest - replay)
    return room + num_envs * plan_of(config).times_an_item(num_envs)


def columns_of(teaching: Teaching, config: DistillConfig) -> Columns:
    """The columns of a lesson's replay."""
    width = score_width(teaching.task, teaching.teacher.score_kind)
    if teaching.panel is None:
        return {"values": ((width,), np.float32), **mask_column(teaching.task)}
    number, named = len(teaching.teachers), config.selecting.named
    return {
        "values": ((number, width), np.float32),
        "labelled": ((number,), np.bool_),
        **({"contexts": ((len(named),), np.float64)} if named else {}),
        **mask_column(teaching.task),
    }


def share_of(config: DistillConfig) -> Schedule:
    """The teacher's share of the environments, by the control steps of its lesson."""
    falling = linear(1.0, config.driving.teacher_share, config.driving.share_steps or 0)
    # Until the first update the student knows nothing.
    mixture: Callable[[int], float] = lambda step: falling(max(step - config.batches.warmup, 0))  # noqa: E731
    return {"teacher": constant(1.0), "student": constant(0.0), "mixture": mixture}[config.driving.driver]


def within_memory(config: DistillConfig, teachings: Sequence[Teaching]) -> DistillConfig:
    """The configuration with replays that fit together into the memory asked for.

    Raises:
        UserError: they would be shorter than the warm-up.
    """
    if config.batches.replay_memory is None or config.dataset is not None:
        return config
    room, replay = bytes_in(config.batches.replay_memory), config.batches.replay
    num_envs = config.driving.num_envs

    def taken(steps: int) -> int:
        """By replays of so many control steps."""
        slack = slack_of(changed(config, replay=steps), len(teachings))
        columns = {teaching.task: columns_of(teaching, config) for teaching in teachings}
        return sum(ring_bytes(task, num_envs, steps, own, slack=slack) for task, own in columns.items())

    stack = max(teaching.task.frame_stack for teaching in teachings)
    least = max(config.batches.warmup, num_envs * (stack + 1))
    fits = bisect_right(range(1, max(replay, least) + 1), room, key=taken)
    if fits < least:
        raise UserError(
            f"--replay-memory {config.batches.replay_memory} holds {fits} control steps of each task, and {least} are needed: "
            f"take {math.ceil(taken(least) / 2**20)}MiB or more, or a shorter --warmup"
        )
    return changed(config, replay=min(replay, fits))


_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def bytes_in(text: str) -> float:
    """The bytes that a text such as 4GiB or 500MB stands for.

    Raises:
        UserError: it stands for none.
    """
    number = text.strip().lower().rstrip("abcdefghijklmnopqrstuvwxyz ")
    unit = text.strip().lower()[len(number) :].strip() or "b"
    try:
        size = float(number) * _UNITS[unit]
    except (KeyError, ValueError):
        size = 0.0
    if not 0 < size < float("inf"):
        raise UserError(f"--replay-memory is a size such as 4GiB or 500MB, not {text!r}")
    return size
