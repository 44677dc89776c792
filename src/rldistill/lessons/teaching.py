"""A lesson with its teacher."""

from __future__ import annotations

from typing import NamedTuple

from rldistill.students.losses import WeightedLoss
from rldistill.types import Lesson, Task, Teacher


class Teaching(NamedTuple):
    """A lesson with its teacher and its loss."""

    lesson: Lesson
    teacher: Teacher
    source: str
    """What the user calls the teacher."""
    loss: WeightedLoss

    @property
    def task(self) -> Task:
        """What is played."""
        return self.lesson.task
