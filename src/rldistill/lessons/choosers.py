"""Choice of the lesson that the next minibatches come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

from rldistill.files import generator_state, load_generator_state
from rldistill.types import Lesson

LessonScheduleName: TypeAlias = Literal["uniform", "progress"]


class LessonSchedule(Protocol):
    """Chooses the lesson of the next minibatches."""

    def choose(self) -> Lesson:
        """The next lesson."""

    def scored(self, scores: Mapping[Lesson, float]) -> None:
        """Takes the student's normalized scores of the last evaluation: 0 is random play, 1 the teacher."""

    def state_dict(self) -> dict[str, Any]:
        """The state that the next choice depends on."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""


class Uniform:
    """Chooses every lesson equally often: once in each round, in random order.

    Multi-task distillation as in Rusu et al. 2015, arXiv 1511.06295, section 3, which takes the games' data in turn.

    Args:
        lessons: to choose from.
        generator: of the order.
    """

    def __init__(self, lessons: Sequence[Lesson], generator: np.random.Generator) -> None:
        self._lessons, self._generator = list(lessons), generator
        self._left: list[int] = []

    def choose(self) -> Lesson:
        """The next lesson of the round."""
        if not self._left:
            self._left = self._generator.permutation(len(self._lessons)).tolist()
        return self._lessons[self._left.pop()]

    def scored(self, scores: Mapping[Lesson, float]) -> None:
        """Ignores the scores."""

    def state_dict(self) -> dict[str, Any]:
        """The rest of the round, and the generator."""
        return {"left": list(self._left), "generator": generator_state(self._generator)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._left = [int(place) for place in state["left"]]
        load_generator_state(self._generator, state["generator"])


LEAST_SHARE = 0.3
"""The part of its uniform share that every lesson keeps under `ByProgress`."""


class ByProgress:
    """Chooses a lesson more often, the further the student is behind its teacher on the normalized scale.

    Every lesson has `LEAST_SHARE` of its uniform share. The rest is divided in proportion to the lessons' distances from a
    normalized score of 1. Before the first evaluation all shares are equal.

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
        """A lesson that is drawn with the probabilities `shares`."""
        return self._lessons[int(self._generator.choice(len(self._lessons), p=list(self.shares.values())))]

    def scored(self, scores: Mapping[Lesson, float]) -> None:
        """Sets the scores that the shares depend on until the next evaluation."""
        self._scores = np.array([scores[lesson] for lesson in self._lessons])

    def state_dict(self) -> dict[str, Any]:
        """The scores, and the generator."""
        return {"scores": self._scores.tolist(), "generator": generator_state(self._generator)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._scores = np.array(state["scores"], dtype=np.float64)
        load_generator_state(self._generator, state["generator"])


SCHEDULES: dict[LessonScheduleName, type[Uniform | ByProgress]] = {"uniform": Uniform, "progress": ByProgress}
