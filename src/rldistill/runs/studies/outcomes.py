"""What a study compares: its card, and one outcome for each finished cell."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from rldistill.types import UserError

Pair: TypeAlias = tuple[str, str]
"""A game and a teacher of it: students of one pair are compared with each other."""


GEOMETRIC_MEAN = "geometric mean of ratios"


@dataclass(frozen=True)
class Outcome:
    """One finished cell: the games of a student."""

    setting: str
    """Label of the compared setting, such as `kl`."""
    game: str
    """Id of the environment."""
    teacher: str
    """Reference of the teacher; empty where there is none, and `teacher_returns` are games of the study's reference setting."""
    seed: int
    returns: tuple[float, ...]
    """Raw episode returns of the student's games."""
    teacher_returns: tuple[float, ...]
    """Of the teacher's games under the same conditions. Outcomes with equal ones share the teacher's games."""
    random_score: float
    """Mean return of uniformly random play."""
    figures: Mapping[str, float]
    """What the student is and took, such as `parameters`, `bytes`, `control_steps`, `updates`; no times."""
    run: str
    """The run folder, relative to the study's folder."""

    @property
    def pair(self) -> Pair:
        """The game and the teacher."""
        return self.game, self.teacher

    @property
    def cell(self) -> tuple[str, str, int]:
        """What it has in common with the outcomes of other settings that it is compared with."""
        return self.game, self.teacher, self.seed


class Candidate(NamedTuple):
    """A teacher of a panel, in the games by which the best of them was chosen."""

    panel: str
    teacher: str
    mean: float
    best: bool


@dataclass(frozen=True)
class StudyCard:
    """What a study is about."""

    title: str
    compare: str
    """Name of the compared option, such as `loss`."""
    settings: tuple[str, ...]
    """The labels, in the order of the tables."""
    reference: str | None = None
    """The setting that all others are compared with."""
    published: Mapping[str, float] = field(default_factory=dict)
    """Figures of a paper by setting; 1.113 is 111.3 %."""
    published_source: str = ""
    """Where they are from."""
    published_measure: str = GEOMETRIC_MEAN
    """What they are. The plot shows geometric means of ratios; other figures stand in the tables alone."""
    conditions: str = ""
    """How the games were played, in words."""
    planned: Mapping[str, int] = field(default_factory=dict)
    """Cells of each setting; a setting without a number has as many as are finished."""
    panels: bool = False
    """Whether students choose among several teachers. Their returns are divided by those of the best one."""
    candidates: Sequence[Candidate] = ()
    """The teachers of those panels whose best one was chosen by games."""
    axis: str | None = None
    """A figure of the outcomes, such as `parameters`, that places the settings on the plot's axis. None takes the numbers
    among the labels."""


def checked_outcomes(study: StudyCard, outcomes: Iterable[Outcome]) -> list[Outcome]:
    """The outcomes in the order of settings, games, teachers and seeds. One that is given twice counts once.

    Raises:
        UserError: a setting that the study lacks, two outcomes of one cell, or returns that are no numbers.
    """
    if study.reference is not None and study.reference not in study.settings:
        raise UserError(f"the reference {study.reference!r} is no setting: they are {', '.join(study.settings)}")
    place = {setting: number for number, setting in enumerate(study.settings)}
    chosen: dict[tuple[object, ...], Outcome] = {}
    for outcome in outcomes:
        if outcome.setting not in place:
            raise UserError(f"{outcome.run} is of the setting {outcome.setting!r}, which this study does not have")
        _check_returns(outcome)
        first = chosen.setdefault((outcome.setting, *outcome.cell), outcome)
        if first != outcome:
            raise UserError(
                f"{first.run} and {outcome.run} are both {outcome.setting}, {outcome.game}, {outcome.teacher}, seed "
                f"{outcome.seed}: move one of them out of the study's folder"
            )
    return sorted(chosen.values(), key=lambda outcome: (place[outcome.setting], *outcome.cell))


def _check_returns(outcome: Outcome) -> None:
    for whose, returns in (("the student", outcome.returns), ("its teacher", outcome.teacher_returns)):
        if not returns or not all(map(math.isfinite, returns)):
            raise UserError(f"{outcome.run} has no returns of {whose}, or one that is no number: evaluate it again")
    if not math.isfinite(outcome.random_score):
        raise UserError(f"{outcome.run} has no score of random play: evaluate it again")
