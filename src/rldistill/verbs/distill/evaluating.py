"""The games of a run of `distill`: the student's, now and then and at the end, and those that they are compared with."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rldistill.lessons.interleaved import Interleaved
from rldistill.play.games import play_scored
from rldistill.progress import Progress
from rldistill.runs.loop import Stop
from rldistill.runs.records import Evaluation, Record, TeacherScore
from rldistill.stats import figure, with_interval
from rldistill.types import ActionValues, Lesson, Task, Teacher
from rldistill.verbs.distill.config import DistillConfig
from rldistill.verbs.distill.teaching import Teaching

if TYPE_CHECKING:
    from rldistill.verbs.distill.work import Distillation


class Level(NamedTuple):
    """The two ends of the normalized scale of a task."""

    random: float
    """Mean return of random play."""
    teacher: float
    """Mean return of the teacher."""

    def normalized(self, score: float) -> float:
        """0 for random play, 1 for the teacher; 1 where they are alike."""
        return (score - self.random) / (self.teacher - self.random) if self.teacher != self.random else 1.0


class Games:
    """Plays the games of a run, with its settings.

    Args:
        config: how many games, and how.
        progress: shows how far they are.
    """

    def __init__(self, config: DistillConfig, progress: Progress) -> None:
        self.config, self.progress = config, progress
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
            self.config.seed,
            num_envs=1 if self.config.driving.num_envs == 1 else 10,
            on_progress=self.progress.update,
            on_step=lambda transition: stop_if_asked(),
            on_line=self._say,
        )


def alone(work: Distillation) -> ExitStack:
    """Within it games may be played: where there may be only one environment, the run's own are closed meanwhile."""
    closed = ExitStack()
    for environments in work.stream.environments:
        if environments.num_envs == 1:
            closed.enter_context(environments.released())
    return closed


def teachers_level(teaching: Teaching, task: Task, games: Games, check: Callable[[str], None]) -> dict[str, Any]:
    """The teacher's score, as its folder states it or as it is measured here; empty where no games are played.

    Args:
        teaching: whose teacher it is.
        task: that is played.
        games: of the run.
        check: is given a doubt, of a teacher of another tool that plays no better than chance.
    """
    teacher, playing = teaching.teacher, games.config.playing
    own = playing.env is None and teacher.task.max_episode_steps == task.max_episode_steps
    stated = getattr(teacher, "provenance", {}).get("score") if own else None
    if stated:
        kept = ("mean", "ci_low", "ci_high", "episodes", "distinct", "epsilon")
        return {name: stated[name] for name in kept if name in stated}
    if not games.config.evaluating.evaluate_episodes:
        return {}
    level = games.play(task, teacher, "score of the teacher")
    if is_foreign(teacher):
        _check_level(level, games.play(task, None, "score of random play"), check)
    return level


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

    def __init__(self, work: Distillation, games: Games, log: Callable[[Record], None]) -> None:
        self.work, self.games, self.log = work, games, log
        settings = games.config.evaluating
        every = work.total // 5 if settings.evaluate_every is None else settings.evaluate_every * len(work.lessons)
        self.every = every if settings.evaluate_episodes and every else work.total
        self.next = self.every
        self.levels: dict[Lesson, Level] = {}
        """Of several lessons, the ends of their normalized scales; empty where no games are played."""

    def measure_levels(self, teachings: Sequence[Teaching], check: Callable[[str], None]) -> list[Record]:
        """The teachers' scores as records; of several lessons the ends of their normalized scales too.

        Args:
            teachings: in the order of the lessons.
            check: is given a doubt, of a teacher of another tool that plays no better than chance.
        """
        records: list[Record] = []
        several = len(teachings) > 1
        with alone(self.work):
            for lesson, teaching in zip(self.work.lessons, teachings, strict=True):
                level = teachers_level(teaching, lesson.task, self.games, check)
                if level:
                    records.append(TeacherScore(lesson=self.work.name_of(lesson), **level))
                if level and several:
                    self.levels[lesson] = Level(self._random(lesson.task), float(level["mean"]))
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
        with alone(self.work):
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
        if self.levels:
            means = {lesson: self.levels[lesson].normalized(mean) for lesson, mean in means.items()}
        self.work.score = float(np.mean(list(means.values())))
        if isinstance(self.work.stream, Interleaved) and self.levels:
            self.work.stream.schedule.scored(means)

    def state_dict(self) -> dict[str, Any]:
        """When the next games are due, and the ends of the scales."""
        return {
            "next_evaluation": self.next,
            "levels": {lesson.name: list(level) for lesson, level in self.levels.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave. Another --evaluate-every than the run was begun with counts from here on."""
        self.next = min(int(state["next_evaluation"]), (self.work.done // self.every + 1) * self.every)
        ends = state.get("levels", {})  # runs from before there were several lessons have none
        self.levels = {lesson: Level(*ends[lesson.name]) for lesson in self.work.lessons if lesson.name in ends}
