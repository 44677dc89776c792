"""Distillation as work for the loop: an item is some minibatches, and evaluations come between two items."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from rldistill.lessons.streams import Stream, minibatches
from rldistill.play.envs import Environments
from rldistill.play.games import play_scored
from rldistill.progress import Progress
from rldistill.runs.loop import Stop
from rldistill.runs.records import Evaluation, Fit, Record, Train
from rldistill.types import ActionValues, Task, UserError
from rldistill.verbs.distill.config import DistillConfig
from rldistill.verbs.distill.update import Update


class Distilling:
    """A student that is fitted to a stream of labelled batches.

    Args:
        stream: of items, each for some updates.
        update: fits the student.
        config: gives the minibatches' size and the run's length: control steps, or updates where nothing is played.
    """

    def __init__(self, stream: Stream, update: Update, config: DistillConfig) -> None:
        self.stream, self.update = stream, update
        self.batch_size = config.batches.batch_size
        self._offline = config.dataset is not None
        self.total, self.unit = (config.updates or 0, "updates") if self._offline else (config.steps, "steps")
        self.seconds = {"training": 0.0, "evaluation": 0.0}
        self.score = math.nan
        """Mean return of the last evaluation; NaN before the first one."""
        self._next_log = 0
        self._last: Callable[[], dict[str, float]] = dict

    @property
    def done(self) -> int:
        """Updates, or control steps of teacher and student."""
        return self.update.updates if self._offline else self.stream.teacher_steps + self.stream.student_steps

    @property
    def must_save(self) -> bool:
        """As the stream says."""
        return self.stream.must_save

    def fit(self) -> Fit:
        """Derives what the student needs from the first examples."""
        began = time.monotonic()
        self.update.fit(self.stream.examples())
        self.seconds["training"] += time.monotonic() - began
        network = self.update.network
        return Fit(
            temperature=self.update.temperature,
            spread=self.update.spread,
            shift=network.shift.tolist(),
            scale=network.scale.tolist(),
        )

    def advance(self) -> Sequence[Record]:
        """The updates of one item; every 200th part of the run makes a record.

        Raises:
            UserError: the loss is no finite number.
        """
        began = time.monotonic()
        for batches in minibatches(next(self.stream), self.batch_size):
            figures = self.update(batches)
        self.seconds["training"] += time.monotonic() - began
        self._last = lambda: {"loss": figures.loss, "agreement": figures.agreement}
        if self.done < self._next_log:
            return ()
        self._next_log = self.done + max(self.total // 200, 1)
        if not math.isfinite(figures.loss):
            raise UserError(f"the loss became {figures.loss}: lower --learning-rate, with another --out")
        rate = self.update.rate(self.update.updates)
        return [Train(**self.position(), loss=figures.loss, agreement=figures.agreement, learning_rate=rate)]

    def figures(self) -> dict[str, float]:
        """Loss and agreement of the last minibatch, and the last evaluation's score."""
        return self._last() | ({"score": self.score} if math.isfinite(self.score) else {})

    def position(self) -> dict[str, Any]:
        """Where the run stands, by the names of the records' fields."""
        return {
            "control_steps": self.stream.teacher_steps + self.stream.student_steps,
            "teacher_steps": self.stream.teacher_steps,
            "student_steps": self.stream.student_steps,
            "updates": self.update.updates,
            "seconds": round(self.seconds["training"], 2),
        }

    def state_dict(self) -> dict[str, Any]:
        """All that the next item depends on."""
        return {
            "stream": self.stream.state_dict(),
            "update": self.update.state_dict(),
            "seconds": dict(self.seconds),
            "score": self.score,
            "next_log": self._next_log,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
        self.stream.load_state_dict(state["stream"])
        self.update.load_state_dict(state["update"])
        self.seconds, self.score = dict(state["seconds"]), float(state["score"])
        self._next_log = int(state["next_log"])

    def close(self) -> None:
        """Frees the stream."""
        self.stream.close()


@dataclass(frozen=True)
class Games:
    """Full games for a score, as the configuration has them."""

    task: Task
    config: DistillConfig
    progress: Progress
    say: Callable[[str], object]
    environments: Environments | None = None
    """Those of the run. Where there may be only one, it is closed while the games are played."""

    def play(self, values: ActionValues | None, title: str, stop_if_asked: Stop = lambda: None) -> dict[str, Any]:
        """The record of the games; None plays at random."""
        evaluating, num_envs = self.config.evaluating, self.config.driving.num_envs
        self.progress.start(title, evaluating.evaluate_episodes, "games")
        own = self.environments if num_envs == 1 else None
        with own.released() if own is not None else nullcontext():
            return play_scored(
                self.task,
                values,
                evaluating.evaluate_episodes,
                evaluating.evaluate_epsilon,
                self.config.seed,
                num_envs=1 if num_envs == 1 else 10,
                on_progress=self.progress.update,
                on_step=lambda transition: stop_if_asked(),
                on_line=self.say,
            )


class Evaluations:
    """A hook that plays the student's games every so many units of the work.

    Args:
        work: whose student plays.
        games: how it plays.
        log: takes the records.
    """

    def __init__(self, work: Distilling, games: Games, log: Callable[[Record], None]) -> None:
        self.work, self.games, self.log = work, games, log
        every = games.config.evaluating.evaluate_every
        every = work.total // 5 if every is None else every
        self.every = every if games.config.evaluating.evaluate_episodes and every else work.total
        self.next = self.every

    def __call__(self, stop_if_asked: Stop) -> bool:
        """Plays if games are due. The last games of a run are played elsewhere, when its policy is safe."""
        work = self.work
        if not self.next <= work.done < work.total:
            return False
        began = time.monotonic()
        scores = self.games.play(work.update.average, "score of the student", stop_if_asked)
        work.seconds["evaluation"] += time.monotonic() - began
        work.score = float(scores["mean"])
        self.log(Evaluation(**work.position(), **scores))
        self.next += self.every
        return True

    def state_dict(self) -> dict[str, Any]:
        """When the next games are due."""
        return {"next_evaluation": self.next}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave. Another --evaluate-every than the run was begun with counts from here on."""
        self.next = min(int(state["next_evaluation"]), (self.work.done // self.every + 1) * self.every)
