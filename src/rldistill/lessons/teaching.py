"""A lesson with its teacher, or with its teachers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from rldistill.students.losses import WeightedLoss
from rldistill.types import Lesson, ScoreKind, Task, Teacher


@dataclass(frozen=True)
class Panel:
    """Several teachers of one task. Their labels are of one kind.

    Of discrete actions it is logits: each teacher's values divided by its own temperature. So teachers of values and of logits,
    in any units, can be mixed. Of continuous actions it is the kind that all of them have.
    """

    teachers: tuple[Teacher, ...]
    sources: tuple[str, ...]
    """What the user calls them."""
    task: Task

    @property
    def score_kind(self) -> ScoreKind:
        """The kind of the labels."""
        return self.teachers[0].score_kind if self.task.continuous else "logits"


class Teaching(NamedTuple):
    """A lesson with its teacher and its loss."""

    lesson: Lesson
    teacher: Teacher
    """Of several the first."""
    source: str
    """What the user calls the teacher."""
    loss: WeightedLoss
    panel: Panel | None = None
    """All teachers, where there are several."""
    scaled: bool = False
    """Whether the labels have been divided by a temperature already."""

    @property
    def task(self) -> Task:
        """What is played."""
        return self.lesson.task

    @property
    def score_kind(self) -> ScoreKind:
        """The kind of the labels."""
        return self.teacher.score_kind if self.panel is None else self.panel.score_kind

    @property
    def teachers(self) -> tuple[Teacher, ...]:
        """One or several."""
        return (self.teacher,) if self.panel is None else self.panel.teachers

    @property
    def sources(self) -> tuple[str, ...]:
        """What the user calls them."""
        return (self.source,) if self.panel is None else self.panel.sources
