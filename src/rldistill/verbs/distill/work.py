"""A run of `distill` as work that can be saved between two items, and the games that are played between them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

from rldistill.lessons.several import SeveralGuides
from rldistill.lessons.streams import Interleaved, Stream, minibatches
from rldistill.lessons.teaching import Teaching
from rldistill.play.games import play_scored
from rldistill.progress import Progress
from rldistill.runs.loop import Stop
from rldistill.runs.records import Choices, Evaluation, Fit, Record, TeacherScore, Train, Trust
from rldistill.stats import figure, with_interval
from rldistill.students.fitting import Figures, GradientFitting, answering
from rldistill.students.heads import MultiTaskNetwork
from rldistill.students.networks import Network
from rldistill.students.objectives import Match, Matching
from rldistill.types import ActionValues, Lesson, Task, Teacher, UserError, is_number
from rldistill.verbs.distill.config import DistillConfig


class Paced(Protocol):
    """A stream whose learner sets the length of the run."""

    @property
    def total(self) -> int:
        """Control steps of the learner in the whole run."""

    @property
    def done(self) -> int:
        """Those so far."""


class Distillation:
    """A student that is fitted to a stream of lessons: an item is an item of the stream, with its updates.

    Args:
        teachings: who teaches what.
        student: is trained.
        stream: what is learnt from.
        config: how.
        following: the learner's part of the stream, where the student follows one.
    """

    def __init__(
        self,
        teachings: Sequence[Teaching],
        student: Network | MultiTaskNetwork,
        stream: Stream,
        config: DistillConfig,
        following: Paced | None = None,
    ) -> None:
        self.stream, self.config, self.following = stream, config, following
        self.offline = config.dataset is not None
        self.unit = "updates" if self.offline else "steps"
        self.total = cast(int, config.updates) if self.offline else config.steps * len(teachings)
        if following is not None:
            self.total = following.total
        self.objectives = {
            lesson: Match(teaching.loss, lesson.task, teaching.score_kind, _matching(teaching, config.matching))
            for lesson, teaching in zip(stream.lessons, teachings, strict=True)
        }
        self.choices = {lesson: guide for lesson, guide in stream.guides.items() if isinstance(guide, SeveralGuides)}
        """Of the lessons with several teachers."""
        updates = self.total if self.offline else _updates(config) * len(teachings)
        self.fitted = False
        """Whether `begin` is behind it."""
        self.fitting = GradientFitting(student, self.objectives, config.optimization, updates, config.seed)
        self.seconds = {"training": 0.0, "evaluation": 0.0}
        self.score = math.nan
        """Mean return of the last evaluation, of several tasks the mean of the normalized ones; NaN before the first one."""
        self._next_log = 0
        self._last: Mapping[Lesson, Figures] = {}

    @property
    def lessons(self) -> Sequence[Lesson]:
        """All lessons, with what the environments say of action masks."""
        return self.stream.lessons

    @property
    def done(self) -> int:
        """Of `total`."""
        if self.following is not None:
            return self.following.done
        return self.fitting.updates if self.offline else self.stream.teacher_steps + self.stream.student_steps

    @property
    def must_save(self) -> bool:
        """As the stream says."""
        return self.stream.must_save

    def begin(self) -> Sequence[Record]:
        """Fits what is fitted once, and returns what it is."""
        began = time.monotonic()
        self.fitting.fit(self.stream.examples())
        self.fitted = True
        self.seconds["training"] += time.monotonic() - began
        return [
            Fit(
                lesson=self.name_of(lesson),
                temperature=objective.temperature,
                spread=objective.spread,
                mean_gap=objective.mean_gap,
                shift=self.fitting.networks[lesson].shift.tolist(),
                scale=self.fitting.networks[lesson].scale.tolist(),
                temperatures=self.choices[lesson].temperatures.tolist() if lesson in self.choices else None,
            )
            for lesson, objective in self.objectives.items()
        ]

    def advance(self) -> Sequence[Record]:
        """Learns from an item of the stream. Beside a learner the first item with batches begins the student's learning.

        Raises:
            UserError: the loss is no finite number.
        """
        began = time.monotonic()
        item = next(self.stream)
        fits = self.begin() if item and not self.fitted else []
        for batches in minibatches(item, self.config.batches.batch_size):
            self._last = self.fitting(batches)
            if self.choices:
                self.stream.learnt({lesson: figures.loss for lesson, figures in self._last.items()})
        self.seconds["training"] += time.monotonic() - began
        if self.done < self._next_log:
            return fits
        self._next_log = self.done + max(self.total // 200, 1)
        records = [self._record(lesson, figures) for lesson, figures in self._last.items()]
        return [*fits, *records, *(self._choices(lesson) for lesson in self._last if lesson in self.choices)]

    def _choices(self, lesson: Lesson) -> Record:
        guide = self.choices[lesson]
        chooser = guide.selection.chooser
        return Choices(
            lesson=self.name_of(lesson),
            **self.position(),
            pulls=[float(pulls) for pulls in chooser.pulls],
            payments=[float(mean) if math.isfinite(mean) else None for mean in chooser.estimates],
            samples=[float(samples) for samples in guide.asked],
        )

    def _record(self, lesson: Lesson, figures: Figures) -> Record:
        loss = figures.loss
        if not math.isfinite(loss):
            raise UserError(f"the loss became {loss}: lower --learning-rate, with another --out")
        return Train(
            lesson=self.name_of(lesson),
            **self.position(),
            loss=loss,
            agreement=figures.agreement,
            learning_rate=self.fitting.rate(self.fitting.updates),
        )

    def trust(self) -> list[Record]:
        """Where each of several teachers is trusted now, of choosers that go state by state."""
        records: list[Record] = []
        for lesson, guide in self.choices.items():
            trusted, name = guide.selection.map, self.name_of(lesson)
            if trusted is None:
                continue
            if guide.picture is None:
                for own in trusted.shares():
                    flat = [share for shares in own.shares for share in shares]
                    records.append(Trust(lesson=name, name=own.name, places=own.places, shares=list(flat)))
            else:
                pixels = [float(pixel) if math.isfinite(pixel) else None for pixel in trusted.pictures().ravel()]
                records.append(
                    Trust(lesson=name, name="picture", places=list(map(float, guide.picture)), shares=pixels)
                )
        return records

    def figures(self) -> dict[str, float]:
        """Loss and agreement of the last minibatch, and the last score."""
        last = {
            name: value
            for figures in self._last.values()
            for name, value in (("loss", figures.loss), ("agreement", figures.agreement))
        }
        return last | ({"score": self.score} if math.isfinite(self.score) else {})

    def position(self) -> dict[str, Any]:
        """Where the run stands."""
        return {
            "control_steps": self.stream.teacher_steps + self.stream.student_steps,
            "teacher_steps": self.stream.teacher_steps,
            "student_steps": self.stream.student_steps,
            "updates": self.fitting.updates,
            "seconds": round(self.seconds["training"], 2),
        }

    def average_of(self, lesson: Lesson) -> Network:
        """The average of the weights as the network that answers a lesson."""
        return answering(self.fitting.average, lesson)

    def name_of(self, lesson: Lesson) -> str | None:
        """What records call a lesson; nothing where there is only one."""
        return lesson.name if len(self.lessons) > 1 else None

    def state_dict(self) -> dict[str, Any]:
        """All that the next item depends on."""
        return {
            "stream": self.stream.state_dict(),
            "fitting": self.fitting.state_dict(),
            "seconds": dict(self.seconds),
            "score": self.score,
            "next_log": self._next_log,
            "fitted": self.fitted,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
        self.stream.load_state_dict(state["stream"])
        older = state.get("update")  # of runs from before there were several lessons
        self.fitting.load_state_dict(state["fitting"] if older is None else _of_one_lesson(older, self.lessons[0]))
        self.seconds, self.score = dict(state["seconds"]), float(state["score"])
        self._next_log = int(state["next_log"])
        self.fitted = bool(state.get("fitted", True))

    def released(self) -> ExitStack:
        """Within it games may be played: where there may be only one environment, the run's own are closed meanwhile."""
        closed = ExitStack()
        for environments in self.stream.environments:
            if environments.num_envs == 1:
                closed.enter_context(environments.released())
        return closed

    def close(self) -> None:
        """Frees the environments."""
        self.stream.close()


def _matching(teaching: Teaching, matching: Matching) -> Matching:
    """How a lesson is matched: each of several teachers, or of several versions, has had its own temperature already."""
    return replace(matching, temperature="auto") if teaching.panel is not None or teaching.scaled else matching


def _of_one_lesson(update: Mapping[str, Any], lesson: Lesson) -> dict[str, Any]:
    """The state of the fitting, from that of the update of a single lesson."""
    return {
        "student": update["network"],
        "average": update["average"],
        "parts": [{name: update[name] for name in ("optimizer", "means", "updates")}],
        "dropout": [] if update["dropout"] is None else [update["dropout"]],
        "objectives": {lesson.name: {name: update[name] for name in ("temperature", "spread")}},
        "updates": update["updates"],
    }


def _updates(config: DistillConfig) -> int:
    """Updates of one lesson that is learnt from play."""
    warm = min(config.batches.warmup, config.steps)
    drawn = (config.steps - warm) * config.batches.samples_per_step
    return max(int(drawn / config.batches.batch_size), 1)


class Scale(NamedTuple):
    """The two ends of the normalized scale of a task."""

    random: float
    """Mean return of random play."""
    teacher: float
    """Mean return of the teacher."""

    def normalized(self, score: float) -> float:
        """0 for random play, 1 for the teacher; 1 where the teacher plays no better than chance, and there is no scale."""
        return (score - self.random) / (self.teacher - self.random) if self.teacher > self.random else 1.0


class GamesOfRun:
    """Plays the games of a run, with its settings.

    Args:
        config: how many games, and how.
        progress: shows how far they are.
        others: above 0 it plays other games, of this number, than those that may have chosen something.
    """

    def __init__(self, config: DistillConfig, progress: Progress, *, others: int = 0) -> None:
        self.config, self.progress = config, progress
        self._seed = config.seed + 1_000_000 * others
        self._say = cache(progress.say)  # each evaluation has the same lines again

    def play(
        self, task: Task, values: ActionValues | None, title: str, stop_if_asked: Stop = lambda: None
    ) -> dict[str, Any]:
        """The scores of full games; of None those of random play."""
        settings = self.config.evaluating
        self.progress.start(title, settings.evaluate_episodes, "games")
        return play_scored(
            task,
            values,
            settings.evaluate_episodes,
            settings.evaluate_epsilon,
            self._seed,
            num_envs=1 if self.config.driving.num_envs == 1 else 10,
            on_progress=self.progress.update,
            on_step=lambda transition: stop_if_asked(),
            on_line=self._say,
        )


def teachers_level(
    teacher: Teacher, task: Task, games: GamesOfRun, check: Callable[[str], None], *, measured: bool = False
) -> dict[str, Any]:
    """The teacher's score, as its folder states it or as it is measured here; empty where no games are played.

    Args:
        teacher: who plays.
        task: that is played.
        games: of the run.
        check: is given a doubt, of a teacher of another tool that plays no better than chance.
        measured: in the very games that the student will play, whatever the folder states: students are divided by it.
    """
    stated = None if measured else _stated(teacher, task, games.config)
    if stated is not None:
        return stated
    if not games.config.evaluating.evaluate_episodes:
        return {}
    level = games.play(task, teacher, "score of the teacher")
    if is_foreign(teacher):
        _check_level(level, games.play(task, None, "score of random play"), check)
    return level


def _stated(teacher: Teacher, task: Task, config: DistillConfig) -> dict[str, Any] | None:
    """The score in a teacher's folder; None where there is none, or where it is of another task or epsilon than the run's."""
    score = getattr(teacher, "provenance", {}).get("score")
    if not isinstance(score, dict) or not is_number(score.get("mean")):
        return None
    epsilon = config.evaluating.evaluate_epsilon
    if replace(teacher.task, random_score=task.random_score) != task or score.get("epsilon", epsilon) != epsilon:
        return None
    kept = ("mean", "ci_low", "ci_high", "episodes", "distinct", "epsilon")
    return {name: score[name] for name in kept if name in score}


def is_foreign(teacher: Teacher) -> bool:
    """Whether it was read from a file of another tool."""
    return hasattr(teacher, "foreign")


def _check_level(level: Mapping[str, Any], random: Mapping[str, Any], check: Callable[[str], None]) -> None:
    best = random["mean"] if random["ci_high"] is None else random["ci_high"]
    if level["mean"] <= best:
        chance = with_interval(random["mean"], random["ci_low"], random["ci_high"])
        mean = figure(level["mean"], level["ci_low"], level["ci_high"])
        check(
            f"the teacher's mean return in {level['episodes']} games is {mean}, that of random play {chance}: are its "
            "observations normalized, scaled, stacked and ordered as in its training?"
        )


class Evaluations:
    """A hook that plays the student's games every so many units of the work.

    Args:
        work: whose student plays.
        games: how it plays.
        log: takes the records.
    """

    def __init__(self, work: Distillation, games: GamesOfRun, log: Callable[[Record], None]) -> None:
        self.work, self.games, self.log = work, games, log
        settings = games.config.evaluating
        every = work.total // 5 if settings.evaluate_every is None else settings.evaluate_every * len(work.lessons)
        self.every = every if settings.evaluate_episodes and every else work.total
        self.next = self.every
        self.scales: dict[Lesson, Scale] = {}
        """Of several lessons, the ends of their normalized scales; empty where no games are played."""

    def measure_levels(self, teachings: Sequence[Teaching], check: Callable[[str], None]) -> list[Record]:
        """The teachers' scores as records; of several lessons the ends of their normalized scales too.

        Args:
            teachings: in the order of the lessons.
            check: is given a doubt, of a teacher of another tool that plays no better than chance.
        """
        records: list[Record] = []
        several, episodes = len(teachings) > 1, self.games.config.evaluating.evaluate_episodes
        normalized = several and episodes > 0 and self.every < self.work.total
        with self.work.released():
            for lesson, teaching in zip(self.work.lessons, teachings, strict=True):
                levels = [
                    teachers_level(teacher, lesson.task, self.games, check, measured=normalized or bool(teaching.panel))
                    for teacher in teaching.teachers
                ]
                for source, level in zip(teaching.sources, levels, strict=True):
                    if level:
                        name = source if teaching.panel else None
                        records.append(TeacherScore(lesson=self.work.name_of(lesson), teacher=name, **level))
                if levels[0] and normalized:
                    best = max(float(level["mean"]) for level in levels)
                    self.scales[lesson] = Scale(self._random(lesson.task), best)
        return records

    def _random(self, task: Task) -> float:
        """Mean return of random play, as the task states it or as it is measured here."""
        if task.random_score is not None:
            return task.random_score
        return float(self.games.play(task, None, f"score of random play in {task.env}")["mean"])

    def __call__(self, stop_if_asked: Stop) -> bool:
        """Plays if games are due. The last games of a run are played elsewhere, when its policy is safe."""
        if not self.next <= self.work.done < self.work.total:
            return False
        began = time.monotonic()
        records: list[Record] = []
        means: dict[Lesson, float] = {}
        with self.work.released():
            for lesson in self.work.lessons:
                name = self.work.name_of(lesson)
                title = "score of the student" + (f" in {name}" if name else "")
                scores = self.games.play(lesson.task, self.work.average_of(lesson), title, stop_if_asked)
                means[lesson] = float(scores["mean"])
                records.append(Evaluation(lesson=name, **self.work.position(), **scores))
        self.work.seconds["evaluation"] += time.monotonic() - began
        for record in records:
            self.log(record)
        self._take(means)
        self.next += self.every
        return True

    def _take(self, means: Mapping[Lesson, float]) -> None:
        """Shows the scores, and hands them to the schedule of lessons."""
        if self.scales:
            means = {lesson: self.scales[lesson].normalized(mean) for lesson, mean in means.items()}
        self.work.score = float(np.mean(list(means.values())))
        if isinstance(self.work.stream, Interleaved) and self.scales:
            self.work.stream.schedule.scored(means)

    def state_dict(self) -> dict[str, Any]:
        """When the next games are due, and the ends of the scales."""
        return {
            "next_evaluation": self.next,
            "levels": {lesson.name: list(level) for lesson, level in self.scales.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave. Another --evaluate-every than the run was begun with counts from here on."""
        self.next = min(int(state["next_evaluation"]), (self.work.done // self.every + 1) * self.every)
        ends = state.get("levels", {})  # runs from before there were several lessons have none
        self.scales = {lesson: Scale(*ends[lesson.name]) for lesson in self.work.lessons if lesson.name in ends}
