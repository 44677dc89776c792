"""How steady the scores of a run are: of a student beside the learner that it follows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from rldistill.runs.records import Evaluation, LearnerEvaluation, Record
from rldistill.stats import normalized_score


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


class Steadiness(NamedTuple):
    """Figures of one curve, on the scale on which random play is 0 and the learner's best evaluation is 1."""

    mean: float
    """Mean of the last half."""
    deviation: float
    """Standard deviation of the last half; NaN of fewer than two evaluations."""
    worst_drop: float
    """The most by which an evaluation of the last half is below the best one before it, of the whole run; 0 where none is."""
    below: float
    """Share of the evaluations of the last half that are below 90 % of the best one before them."""


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


def steadiness(scores: Sequence[float], random: float, top: float) -> Steadiness:
    """Figures of a curve of mean returns.

    Args:
        scores: at evenly spaced places of a run.
        random: the return that becomes 0.
        top: the return that becomes 1, above `random`.
    """
    if not scores:
        return Steadiness(math.nan, math.nan, math.nan, math.nan)
    values = np.array([normalized_score(score, random, top) for score in scores])
    best = np.maximum.accumulate(values)
    # Learning itself moves the first half.
    last = slice(len(values) // 2, None)
    deviation = float(values[last].std(ddof=1)) if len(values[last]) > 1 else math.nan
    below = (values < 0.9 * best)[last]
    return Steadiness(float(values[last].mean()), deviation, float((best - values)[last].max()), float(below.mean()))


def steadiness_of(curves: Curves) -> dict[str, Steadiness]:
    """The figures of learner and student."""
    return {
        "learner": steadiness(curves.learner, curves.random, curves.top),
        "student": steadiness(curves.student, curves.random, curves.top),
    }


class Difference(NamedTuple):
    """A figure of the student less that of its learner, the mean over runs, with its 95 % interval."""

    mean: float
    low: float
    high: float


def differences_over_runs(
    runs: Sequence[dict[str, Steadiness]], *, seed: int = 0, resamples: int = 10_000
) -> dict[str, Difference]:
    """Student less learner in each figure. Runs are resampled with both their curves together; one run has no interval."""
    generator = np.random.default_rng(seed)
    chosen = generator.integers(len(runs), size=(resamples, len(runs)))
    differences = {}
    for name in Steadiness._fields:
        own = np.array([getattr(run["student"], name) - getattr(run["learner"], name) for run in runs])
        low, high = np.quantile(own[chosen].mean(axis=1), [0.025, 0.975]) if len(runs) > 1 else (math.nan, math.nan)
        differences[name] = Difference(float(own.mean()), float(low), float(high))
    return differences
