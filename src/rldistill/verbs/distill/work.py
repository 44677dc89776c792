"""A run of `distill` as work that can be saved between two items."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

from rldistill.lessons.streams import Stream, minibatches
from rldistill.runs.records import Fit, Record, Train
from rldistill.students.fitting import Figures, GradientFitting
from rldistill.students.heads import MultiTaskNetwork
from rldistill.students.networks import Network
from rldistill.students.objectives import Match
from rldistill.types import Lesson, UserError
from rldistill.verbs.distill.config import DistillConfig
from rldistill.verbs.distill.teaching import Teaching


class Distillation:
    """A student that is fitted to a stream of lessons: an item is an item of the stream, with its updates.

    Args:
        teachings: who teaches what.
        student: is trained.
        stream: what is learnt from.
        config: how.
    """

    def __init__(
        self,
        teachings: Sequence[Teaching],
        student: Network | MultiTaskNetwork,
        stream: Stream,
        config: DistillConfig,
    ) -> None:
        self.stream, self.config = stream, config
        self.offline = config.dataset is not None
        self.unit = "updates" if self.offline else "steps"
        self.total = cast(int, config.updates) if self.offline else config.steps * len(teachings)
        self.objectives = {
            lesson: Match(teaching.loss, lesson.task, teaching.teacher.score_kind, config.matching)
            for lesson, teaching in zip(stream.lessons, teachings, strict=True)
        }
        updates = self.total if self.offline else _updates(config) * len(teachings)
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
        return self.fitting.updates if self.offline else self.stream.teacher_steps + self.stream.student_steps

    @property
    def must_save(self) -> bool:
        """As the stream says."""
        return self.stream.must_save

    def begin(self) -> Sequence[Record]:
        """Fits what is fitted once, and returns what it is."""
        began = time.monotonic()
        self.fitting.fit(self.stream.examples())
        self.seconds["training"] += time.monotonic() - began
        return [
            Fit(
                lesson=self.name_of(lesson),
                temperature=objective.temperature,
                spread=objective.spread,
                shift=self.fitting.networks[lesson].shift.tolist(),
                scale=self.fitting.networks[lesson].scale.tolist(),
            )
            for lesson, objective in self.objectives.items()
        ]

    def advance(self) -> Sequence[Record]:
        """Learns from an item of the stream.

        Raises:
            UserError: the loss is no finite number.
        """
        began = time.monotonic()
        for batches in minibatches(next(self.stream), self.config.batches.batch_size):
            self._last = self.fitting(batches)
        self.seconds["training"] += time.monotonic() - began
        if self.done < self._next_log:
            return []
        self._next_log = self.done + max(self.total // 200, 1)
        return [self._record(lesson, figures) for lesson, figures in self._last.items()]

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
        average = self.fitting.average
        return average.view(lesson.head) if isinstance(average, MultiTaskNetwork) else average

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
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
        self.stream.load_state_dict(state["stream"])
        older = state.get("update")  # of runs from before there were several lessons
        self.fitting.load_state_dict(state["fitting"] if older is None else _of_one_lesson(older, self.lessons[0]))
        self.seconds, self.score = dict(state["seconds"]), float(state["score"])
        self._next_log = int(state["next_log"])

    def close(self) -> None:
        """Frees the environments."""
        self.stream.close()


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
