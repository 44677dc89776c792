"""The curves of a student and of the learner that it follows."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from rldistill.runs.records import Evaluation, LearnerEvaluation, Record
from rldistill.runs.steadiness import Steadiness, steadiness


class Curves(NamedTuple):
    """Mean returns of learner and student at the same places of a run, in games that chose nothing."""

    control_steps: list[int]
    """Of the learner."""
    learner: list[float]
    student: list[float]
    random: float
    """Mean return of random play."""
    top: float
    """The learner's best evaluation, with those at which there was no student yet."""

    @property
    def has_scale(self) -> bool:
        """Whether the learner ever played better than chance."""
        return self.top > self.random


def curves_of(records: Iterable[Record]) -> Curves | None:
    """The curves of a run; None where no learner was followed."""
    learner: dict[int, float] = {}
    student: dict[int, float] = {}
    random = math.nan
    for record in records:
        if isinstance(record, LearnerEvaluation | Evaluation) and record.mean is not None:
            curve = learner if isinstance(record, LearnerEvaluation) else student
            curve[record.teacher_steps or 0] = record.mean
            if isinstance(record, LearnerEvaluation) and record.random is not None:
                random = record.random
    if not learner:
        return None
    both = [steps for steps in sorted(learner) if steps in student]
    top = max(learner.values())
    return Curves(both, [learner[at] for at in both], [student[at] for at in both], random, top)


def steadiness_of(curves: Curves) -> dict[str, Steadiness]:
    """The figures of learner and student."""
    return {
        "learner": steadiness(curves.learner, curves.random, curves.top),
        "student": steadiness(curves.student, curves.random, curves.top),
    }
