"""Which lesson the next minibatches come from, where a student has several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

from rldistill.files import generator_state, load_generator_state
from rldistill.types import Lesson

Schedule: TypeAlias = Literal["uniform", "progress"]


class LessonSchedule(Protocol):
    """Chooses the lesson that the next minibatches come from."""

    def choose(self) -> Lesson:
        """The next one."""

    def scored(self, scores: Mapping[Lesson, float]) -> None:
        """Takes the student's normalized scores of the last evaluation: 0 is random play, 1 the teacher."""

    def state_dict(self) -> dict[str, Any]:
        """All that the next choice depends on."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state_dict` gave."""


class Uniform:
    """Every lesson equally often: once a round, in random order.

    Multi-task distillation as in Rusu et al. 2015, arXiv 1511.06295, section 3, which takes the games' data in turn.

    Args:
        lessons: to choose from.
        generator: of the order.
    """

    def __init__(self, lessons: Sequence[Lesson], generator: np.random.Generator) -> None:
        self._lessons, self._generator = list(lessons), generator
        self._left: list[int] = []

    def choose(self) -> Lesson:
        """The next of the round."""
        if not self._left:
            self._left = self._generator.permutation(len(self._lessons)).tolist()
        return self._lessons[self._left.pop()]

    def scored(self, scores: Mapping[Lesson, float]) -> None:
        """Scores change nothing."""

    def state_dict(self) -> dict[str, Any]:
        """The rest of the round, and the generator."""
        return {"left": list(self._left), "generator": generator_state(self._generator)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
        self._left = [int(place) for place in state["left"]]
        load_generator_state(self._generator, state["generator"])


LEAST_SHARE = 0.3
"""Of the share that a lesson has under `Uniform`: what it keeps under `ByProgress` however good it is."""


class ByProgress:
    """The further a lesson is behind its teacher on the normalized scale, the more often it is chosen.

    A lesson's share is `LEAST_SHARE` of the uniform one, and of the rest what its distance from 1 is of all distances. Before
    the first evaluation all are alike.

    Args:
        lessons: to choose from.
        generator: of the choices.
    """

    def __init__(self, lessons: Sequence[Lesson], generator: np.random.Generator) -> None:
        self._lessons, self._generator = list(lessons), generator
        self._scores = np.zeros(len(self._lessons))

    @property
    def shares(self) -> dict[Lesson, float]:
        """The probability of each lesson now."""
        behind = np.clip(1 - self._scores, 0, 1)
        number = len(self._lessons)
        part = behind / behind.sum() if behind.sum() > 0 else np.full(number, 1 / number)
        return dict(zip(self._lessons, (LEAST_SHARE / number + (1 - LEAST_SHARE) * part).tolist(), strict=True))

    def choose(self) -> Lesson:
        """One drawn by the shares."""
        return self._lessons[int(self._generator.choice(len(self._lessons), p=list(self.shares.values())))]

    def scored(self, scores: Mapping[Lesson, float]) -> None:
        """The scores that shares follow from until the next evaluation."""
        self._scores = np.array([scores[lesson] for lesson in self._lessons])

    def state_dict(self) -> dict[str, Any]:
        """The scores, and the generator."""
        return {"scores": self._scores.tolist(), "generator": generator_state(self._generator)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
        self._scores = np.array(state["scores"], dtype=np.float64)
        load_generator_state(self._generator, state["generator"])


SCHEDULES: dict[Schedule, type[Uniform | ByProgress]] = {"uniform": Uniform, "progress": ByProgress}
