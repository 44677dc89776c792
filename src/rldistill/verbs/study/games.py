"""The games by which a study compares students with their teachers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rldistill.arguments import check_value
from rldistill.configurations import kinds_of
from rldistill.runs.studies.reading import StudyFile
from rldistill.types import MOST_ENVIRONMENTS, UserError, check_numbers

_CHOICE = 1_000_000
"""What is added to the seed of games by which a teacher is chosen, so that no student of the table plays them."""


@dataclass(frozen=True)
class Games:
    """Full games by which the students of a setting and their teachers are compared."""

    episodes: int | None = None
    """Of each student; by default 30, and with `starts` one from each start."""
    teacher_episodes: int | None = None
    """Of each teacher; by default as many. All its students are compared with them, so that more of them narrow all intervals."""
    epsilon: float = 0.05
    seed: int = 0
    """Of the students with seed 0; those with seed 1 play other games."""
    num_envs: int = 15
    starts: tuple[str, ...] = ()
    """Files of `rldistill starts`, one a game."""
    starts_sha256: tuple[str, ...] = ()
    """Of these files, which the planner reads."""

    def of_student(self, seed: int) -> dict[str, Any]:
        """The games of a student with this seed, as JSON data."""
        episodes = self.episodes or (0 if self.starts else 30)
        games = {"episodes": episodes, "epsilon": self.epsilon, "seed": self.seed + seed, "num_envs": self.num_envs}
        starts = {"starts": list(self.starts), "starts_sha256": list(self.starts_sha256)}
        return games | (starts if self.starts else {})

    def of_teacher(self) -> dict[str, Any]:
        """The games of a teacher, as JSON data."""
        games = self.of_student(0)
        return games | {"episodes": self.teacher_episodes or games["episodes"]}

    def of_choice(self) -> dict[str, Any]:
        """The games by which the best of several teachers is chosen: as many as a teacher's, and others than those of tables."""
        games = {name: value for name, value in self.of_teacher().items() if not name.startswith("starts")}
        return games | {"episodes": games["episodes"] or 30, "seed": self.seed + _CHOICE}

    def __str__(self) -> str:
        student, teacher = self.of_student(0)["episodes"], self.of_teacher()["episodes"]
        start = "one from each start" if not student else f"{student} of each student"
        more = f", {teacher} of each teacher" if teacher != student else ", as many of each teacher"
        begin = f", from the starts in {' '.join(Path(path).name for path in self.starts)}" if self.starts else ""
        return f"Full games, {start}{more}{begin}; random actions with probability {self.epsilon:g}; other seeds than in training."


def study_games(file: StudyFile, tier: str) -> Games:
    """How many games are played for the table, and how.

    Raises:
        UserError: something unknown or wrong, with its line.
    """
    games = Games()
    for at in [("games",), *([("tiers", tier, "games")] if tier else [])]:
        games = _changed_games(file, games, file.table(*at), at)
    return games


def own_games(file: StudyFile, games: Games, given: Any, at: tuple[str, ...]) -> Games:
    """The study's games with a setting's changes.

    Raises:
        UserError: something unknown or wrong, with its line.
    """
    if not isinstance(given, dict):
        raise file.wrong("games is a table such as {epsilon = 0.01}", *at)
    if "starts" in given:  # as many games as it has starts, unless it says otherwise
        games = replace(games, episodes=None, teacher_episodes=None)
    return _changed_games(file, games, given, at)


def _changed_games(file: StudyFile, games: Games, given: Mapping[str, Any], at: tuple[str, ...]) -> Games:
    names = tuple(one.name for one in fields(Games) if one.name != "starts_sha256")
    file.check_names(given, names, *at)
    for name, value in given.items():
        try:
            value = tuple(value) if isinstance(value, list) else value
            check_value(name, value, kinds_of(Games)[name])
            changed: dict[str, Any] = {name: value}
            games = replace(games, **changed)
            _check_games(games)
        except UserError as error:
            raise file.wrong(str(error), *at, name) from None
    return games


def _check_games(games: Games) -> None:
    within = {"num_envs": (1, MOST_ENVIRONMENTS)}
    check_numbers(games, least={"episodes": 1, "teacher_episodes": 1, "seed": 0}, shares=["epsilon"], within=within)
