"""Streams of labelled batches, which students learn from.

A stream takes policies and a teacher, and does not depend on the kind of student. It iterates for ever. Its state can be saved
between two items and restored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rldistill.files import generator_state, load_generator_state
from rldistill.lessons.augmentation import compose_
from rldistill.lessons.choosers import LessonSchedule
from rldistill.lessons.guides import Guide, batch_of
from rldistill.play.actions import mix_in_random
from rldistill.play.envs import Environments
from rldistill.play.replay import Replay
from rldistill.play.rollout import rollout
from rldistill.schedules import Schedule
from rldistill.types import Actions, Batch, Lesson, Masks, Observations, Policy


class Stream(Protocol):
    """Iterates over minibatches by lesson for ever, can be saved, and counts control steps."""

    @property
    def lessons(self) -> Sequence[Lesson]:
        """The lessons that batches may be of."""

    @property
    def teacher_steps(self) -> int:
        """Control steps that a teacher drove so far."""

    @property
    def student_steps(self) -> int:
        """Control steps that the student drove so far."""

    @property
    def environments(self) -> Sequence[Environments]:
        """The environments that it steps."""

    @property
    def guides(self) -> Mapping[Lesson, Guide]:
        """Who drives and labels, for the lessons that are played."""

    def __iter__(self) -> Stream: ...

    def __next__(self) -> Mapping[Lesson, Batch]:
        """One batch or several batches of one lesson or of several, or none; `minibatches` splits them."""

    def examples(self) -> Mapping[Lesson, Batch]:
        """Observations of every lesson, to which temperature and standardization are fitted before the first item."""

    def learnt(self, losses: Mapping[Lesson, float]) -> None:
        """Takes the mean loss of an update, by lesson."""

    @property
    def must_save(self) -> bool:
        """Whether the next item may overwrite what the last `state_dict` needs."""

    def state_dict(self) -> dict[str, Any]:
        """The state that the next item depends on."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""

    def close(self) -> None:
        """Closes its environments."""


_TOGETHER = 256
"""Samples that are drawn, composed and labelled at once where more than a batch is due. Four passes over 32 states take a sixth
longer than one over 128, because each update empties the processor's caches."""


def minibatches(item: Mapping[Lesson, Batch], size: int) -> list[Mapping[Lesson, Batch]]:
    """The batches of `size` samples in a stream's item, none in an empty one. They take samples in turn, and so equal shares of
    composites."""
    parts = max(max(len(batch.observations) for batch in item.values()) // size, 1) if item else 0
    return [{lesson: batch.part(slice(first, None, parts)) for lesson, batch in item.items()} for first in range(parts)]


@dataclass(frozen=True)
class DrivingPlan:
    """Who drives, and how many samples are drawn from the visited states."""

    share: Schedule
    """The teacher's share of the rows, by control steps."""
    teacher_epsilon: float
    """Probability of a random action in the teacher's rows (0.05 in Rusu et al. 2015)."""
    warmup: int
    """Control steps before the first batch; `examples` are taken from them."""
    batch_size: int
    """Samples for each update. An item has one batch, or as many as are due, up to 256 samples in all."""
    samples_per_step: float
    """Samples drawn for each control step."""

    def due(self, credit: float) -> int:
        """The samples to draw at once where `credit` are due: whole batches, up to 256 samples or one batch."""
        size = self.batch_size
        return min(int(credit / size), max(_TOGETHER // size, 1)) * size

    def times_an_item(self, num_envs: int) -> int:
        """The most steps of all rows for one item: one more than the quotient, because sums are rounded."""
        return math.ceil(self.batch_size / (num_envs * self.samples_per_step)) + 1


class Driven:
    """Steps environments, keeps the visited states with their labels, and draws batches from the recent ones.

    The teacher drives the first `share(control steps)` of the rows, rounded, and the student the others. With a share of 1 the
    teacher drives alone, which is the paper's setting. With 0 the student drives alone. A share that falls is DAgger (Ross et
    al. 2011, arXiv 1011.0686) with a decaying mixture.

    Args:
        lesson: whose batches these are.
        environments: stepped here.
        guide: drives the teacher's rows, and labels the states.
        student: the driving policy of the student's rows, its exploration included.
        replay: frames with the columns of the guide, and of a task with action masks a column `masks`.
        plan: who drives when, and how much is drawn.
        generator: of everything random here.
    """

    def __init__(
        self,
        lesson: Lesson,
        environments: Environments,
        guide: Guide,
        student: Policy,
        replay: Replay,
        plan: DrivingPlan,
        generator: np.random.Generator,
    ) -> None:
        self.lesson, self.guide, self.student = lesson, guide, student
        self.environments = (environments,)
        self._played = environments
        self.replay, self.plan, self.generator = replay, plan, generator
        self.teacher_steps = self.student_steps = 0
        self._credit = 0.0
        self._rollout = rollout(environments, self._act)

    def __iter__(self) -> Driven:
        return self

    def __next__(self) -> Mapping[Lesson, Batch]:
        size = self.plan.batch_size
        while self.control_steps < self.plan.warmup:
            self.step()
        while self._credit < size:
            self.step()
            self._credit += self._played.num_envs * self.plan.samples_per_step
        due = self.plan.due(self._credit)
        self._credit -= due
        return {self.lesson: self.draw(due)}

    @property
    def lessons(self) -> Sequence[Lesson]:
        """The only lesson."""
        return (self.lesson,)

    @property
    def guides(self) -> Mapping[Lesson, Guide]:
        """That of the only lesson."""
        return {self.lesson: self.guide}

    @property
    def control_steps(self) -> int:
        """Control steps that teacher and student drove."""
        return self.teacher_steps + self.student_steps

    def examples(self) -> Mapping[Lesson, Batch]:
        """1,024 states of the warm-up, which is played first; the guide is fitted to them."""
        while self.control_steps < max(self.plan.warmup, 1):
            self.step()
        places = self.replay.sample(self.generator, 1024)
        self.guide.fit(self.replay, *places)
        return {self.lesson: self.guide.labelled(self.replay, *places)}

    def draw(self, number: int) -> Batch:
        """Samples of the kept states, with their labels of now."""
        return self.guide.labelled(self.replay, *self.replay.sample(self.generator, number))

    def learnt(self, losses: Mapping[Lesson, float]) -> None:
        """Hands the loss to the guide."""
        if self.lesson in losses:
            self.guide.learnt(losses[self.lesson])

    def step(self) -> None:
        """Makes one control step of all rows, and keeps it."""
        step = next(self._rollout)
        columns = {} if step.masks is None else {"masks": step.masks}
        self.replay.add(step.observations, step.starts, **self._stored, **columns)
        self.guide.followed(step, self._driven)

    def _act(self, observations: Observations, masks: Masks | None = None) -> Actions:
        number = self._played.num_envs
        driven = self._driven = round(self.plan.share(self.control_steps) * number)
        best, self._stored = self.guide.drive(observations, masks, self._played.starts, driven)
        actions = mix_in_random(best, self._played.task, self.plan.teacher_epsilon, self.generator, masks)
        if driven < number and masks is not None:
            actions[driven:] = self.student(observations[driven:], masks[driven:])
        elif driven < number:
            actions[driven:] = self.student(observations[driven:])
        self.teacher_steps += driven
        self.student_steps += number - driven
        return actions

    @property
    def must_save(self) -> bool:
        """Whether the next item may overwrite states that the last saved state needs."""
        return self.replay.must_save(self.plan.times_an_item(self._played.num_envs))

    def state_dict(self) -> dict[str, Any]:
        """Environments, replay position, guide, generator and counters."""
        return {
            "guide": self.guide.state_dict(),
            "environments": self._played.state_dict(),
            "replay": self.replay.state_dict(),
            "generator": generator_state(self.generator),
            "credit": self._credit,
            "teacher_steps": self.teacher_steps,
            "student_steps": self.student_steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._played.load_state_dict(state["environments"])
        self.replay.load_state_dict(state["replay"])
        self.guide.load_state_dict(state.get("guide", {}))  # runs from before there were guides have none
        load_generator_state(self.generator, state["generator"])
        self._credit = float(state["credit"])
        self.teacher_steps, self.student_steps = int(state["teacher_steps"]), int(state["student_steps"])

    def close(self) -> None:
        """Closes the environments."""
        self._played.close()


class Offline:
    """Draws batches uniformly from a recorded dataset, without playing.

    Args:
        lesson: whose batches these are.
        replay: all its frames in one row, with a column `values`, and of a task with action masks a column `masks`.
        times: of the states that may be drawn.
        batch_size: samples an update; an item has them up to 256 in all, as `Driven` has.
        updates: in the whole run; items are no larger than these need, and beyond them an item has one batch.
        generator: of the draws.
    """

    def __init__(
        self,
        lesson: Lesson,
        replay: Replay,
        times: npt.NDArray[np.int64],
        *,
        batch_size: int,
        updates: int,
        generator: np.random.Generator,
    ) -> None:
        self.lessons, self.replay, self.times, self.generator = (lesson,), replay, times, generator
        self.batch_size, self.updates = batch_size, updates
        self.teacher_steps = self.student_steps = 0
        self.environments: tuple[Environments, ...] = ()
        self.guides: Mapping[Lesson, Guide] = {}
        self._drawn = 0

    def __iter__(self) -> Offline:
        return self

    def __next__(self) -> Mapping[Lesson, Batch]:
        batches = max(min(_TOGETHER // self.batch_size, self.updates - self._drawn), 1)
        self._drawn += batches
        return {self.lessons[0]: self._draw(batches * self.batch_size)}

    def examples(self) -> Mapping[Lesson, Batch]:
        """1,024 states."""
        return {self.lessons[0]: self._draw(1024)}

    def _draw(self, size: int) -> Batch:
        times = self.times[self.generator.integers(len(self.times), size=size)]
        return batch_of(self.replay, times, np.zeros(size, dtype=np.int64))

    def learnt(self, losses: Mapping[Lesson, float]) -> None:
        """Nothing depends on it."""

    @property
    def must_save(self) -> bool:
        """False, because nothing is overwritten."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """The generator, and the number of updates that it has drawn for."""
        return {"generator": generator_state(self.generator), "drawn": self._drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        load_generator_state(self.generator, state["generator"])
        self._drawn = int(state["drawn"])

    def close(self) -> None:
        """Nothing to free."""


class Composed:
    """Replaces a share of each batch of another stream by composites, which the teacher labels.

    The student is matched with its teacher as a function, also between the states that were visited (Beyer et al. 2022,
    arXiv 2106.05237, section 3, "function matching"). Composites cost labels and no control steps.

    Args:
        stream: of visited states, of one lesson.
        guide: labels the composites.
        share: of each batch, above 0.
        generator: of the composites.
    """

    def __init__(self, stream: Stream, guide: Guide, share: float, generator: np.random.Generator) -> None:
        self.stream, self.guide, self.share, self.generator = stream, guide, share, generator

    @property
    def lessons(self) -> Sequence[Lesson]:
        """Those of the inner stream."""
        return self.stream.lessons

    @property
    def teacher_steps(self) -> int:
        return self.stream.teacher_steps

    @property
    def student_steps(self) -> int:
        return self.stream.student_steps

    @property
    def environments(self) -> Sequence[Environments]:
        return self.stream.environments

    @property
    def guides(self) -> Mapping[Lesson, Guide]:
        return self.stream.guides

    def __iter__(self) -> Composed:
        return self

    def __next__(self) -> Mapping[Lesson, Batch]:
        return {lesson: self._composed(batch) for lesson, batch in next(self.stream).items()}

    def _composed(self, batch: Batch) -> Batch:
        observations, values, masks = batch.observations, batch.values, batch.masks
        number = round(self.share * len(observations))
        made, half = observations[:number], len(observations) // 2
        # Each was drawn apart from the others, so any other one is as good a partner as one drawn again.
        partners = observations[half : half + number] if number <= half else observations.roll(-half, 0)[:number]
        if masks is not None:  # what is allowed in one of the two
            masks[:number] |= masks[half : half + number] if number <= half else masks.roll(-half, 0)[:number]
        compose_(made, partners, self.generator)  # the batch is this stream's own: it is drawn into fresh memory
        values[:number] = self.guide.label(made, None if masks is None else masks[:number])
        return batch

    def examples(self) -> Mapping[Lesson, Batch]:
        """The inner stream's, without composites."""
        return self.stream.examples()

    def learnt(self, losses: Mapping[Lesson, float]) -> None:
        """Hands the losses to the inner stream."""
        self.stream.learnt(losses)

    @property
    def must_save(self) -> bool:
        """That of the inner stream."""
        return self.stream.must_save

    def state_dict(self) -> dict[str, Any]:
        """The state of the inner stream, and the generator."""
        return {"stream": self.stream.state_dict(), "generator": generator_state(self.generator)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.stream.load_state_dict(state["stream"])
        load_generator_state(self.generator, state["generator"])

    def close(self) -> None:
        """Closes the inner stream."""
        self.stream.close()


class Interleaved:
    """Takes each item from one of several streams.

    Args:
        streams: of one lesson each.
        schedule: chooses the lesson of the next item.
    """

    def __init__(self, streams: Sequence[Stream], schedule: LessonSchedule) -> None:
        self.schedule = schedule
        self._streams = {lesson: stream for stream in streams for lesson in stream.lessons}

    @property
    def lessons(self) -> Sequence[Lesson]:
        """Those of all streams."""
        return tuple(self._streams)

    @property
    def teacher_steps(self) -> int:
        """The sum over all streams."""
        return sum(stream.teacher_steps for stream in self._streams.values())

    @property
    def student_steps(self) -> int:
        """The sum over all streams."""
        return sum(stream.student_steps for stream in self._streams.values())

    @property
    def environments(self) -> Sequence[Environments]:
        """Those of all streams."""
        return tuple(environments for stream in self._streams.values() for environments in stream.environments)

    @property
    def guides(self) -> Mapping[Lesson, Guide]:
        """Those of all streams."""
        return {lesson: guide for stream in self._streams.values() for lesson, guide in stream.guides.items()}

    def __iter__(self) -> Interleaved:
        return self

    def __next__(self) -> Mapping[Lesson, Batch]:
        return next(self._streams[self.schedule.choose()])

    def examples(self) -> Mapping[Lesson, Batch]:
        """Those of every lesson."""
        return {lesson: batch for stream in self._streams.values() for lesson, batch in stream.examples().items()}

    def learnt(self, losses: Mapping[Lesson, float]) -> None:
        """Hands each loss to the stream of its lesson."""
        for lesson in losses:
            self._streams[lesson].learnt(losses)

    @property
    def must_save(self) -> bool:
        """Whether any stream must be saved, because any may be the next."""
        return any(stream.must_save for stream in self._streams.values())

    def state_dict(self) -> dict[str, Any]:
        """The states of all streams, by the names of their lessons, and that of the schedule."""
        streams = {lesson.name: stream.state_dict() for lesson, stream in self._streams.items()}
        return {"streams": streams, "schedule": self.schedule.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        for lesson, stream in self._streams.items():
            stream.load_state_dict(state["streams"][lesson.name])
        self.schedule.load_state_dict(state["schedule"])

    def close(self) -> None:
        """Closes all streams."""
        for stream in self._streams.values():
            stream.close()
