"""The cells of studies of learning from reward, with or without a student beside it, and the check of games of all studies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from rldistill.play.envs import make_task
from rldistill.play.starts import check_starts, read_starts
from rldistill.runs.studies.plan import Cell, cell_name
from rldistill.types import Task, UserError
from rldistill.verbs.study.entries import Keys
from rldistill.verbs.study.games import Games
from rldistill.verbs.study.grid import Grid, check_setting

_PLAYING_OF_TRAIN = ("env_kwargs", "max_episode_steps", "sticky_actions")


def check_games(grid: Grid, tasks: Iterable[Task], games: Games, place: Keys = ("games",)) -> None:
    """Raises UserError where a game has no starts, or the number of games is no multiple of them."""
    if games.starts:
        files = [read_starts(path) for path in games.starts]
        for played in (games.of_student(0), games.of_teacher()):
            try:
                check_starts(files, list(tasks), played["episodes"])
            except UserError as error:
                raise grid.file.wrong(str(error), *place, "starts") from None


def learning_cells(grid: Grid, seeds: int, untrained: Callable[[str, Any], object]) -> Iterator[Cell]:
    """Random play first, then the policies that are learnt from reward, or that follow a learner.

    Args:
        grid: of the study.
        seeds: policies of each setting and environment.
        untrained: makes a policy of an environment and a configuration, or raises UserError where they do not fit.

    Raises:
        UserError: an environment that a setting or the starts do not suit, with the line in the file.
    """
    playing = _same_playing(grid)
    for env in grid.players.envs:
        for setting in grid.settings:
            check_setting(grid.file, grid.verbs[grid.verb], setting, partial(untrained, env))
    check_games(grid, [make_task(env, **playing) for env in grid.players.envs], grid.games)
    levels = {env: _random_level(grid, env, playing) for env in grid.players.envs}
    yield from levels.values()
    for seed in range(seeds):
        for env in grid.players.envs:
            learner = {"learner": env} if grid.verb == "follow" else {}
            for setting in grid.settings:
                options = grid.verbs[grid.verb].departing({**setting.options, **learner, "seed": seed})
                games = grid.games.of_student(seed)
                words = (setting.label, env, f"s{seed}")
                yield Cell(
                    name=cell_name(words, {"verb": grid.verb, "env": env, "options": options}),
                    verb="follow" if grid.verb == "follow" else "train",
                    env=env,
                    options=options,
                    games=games,
                    level_cell=levels[env].name,
                    setting=setting.label,
                    seed=seed,
                )


def _same_playing(grid: Grid) -> dict[str, Any]:
    """The options that change the games, which all settings have in common.

    Raises:
        UserError: settings differ in them, so that their returns cannot be compared.
    """
    playing = [{name: one.options[name] for name in _PLAYING_OF_TRAIN if name in one.options} for one in grid.settings]
    for own, setting in zip(playing, grid.settings, strict=True):
        if own != playing[0]:
            name = next(name for name in _PLAYING_OF_TRAIN if own.get(name) != playing[0].get(name))
            raise grid.file.wrong(
                f"{setting.label} and {grid.settings[0].label} differ in {name}, so they play other games: give it in [settings]",
                *setting.places.get(name, grid.settings[0].places.get(name, ())),
            )
    return playing[0]


def _random_level(grid: Grid, env: str, playing: Mapping[str, Any]) -> Cell:
    games = grid.games.of_teacher()
    full = {"verb": "play", "env": env} | ({"options": playing} if playing else {})
    return Cell(name=cell_name(("random", env), full), verb="play", env=env, options=playing, games=games)
