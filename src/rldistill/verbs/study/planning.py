"""From the grid of a study to its plan: cells with their names, in the order in which results become useful."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from rldistill.datasets.shards import open_dataset
from rldistill.play.envs import fitting_task, with_longest_game
from rldistill.play.starts import read_starts
from rldistill.runs.studies.cells import CELLS
from rldistill.runs.studies.plan import Cell, Plan, cell_name, named_games
from rldistill.runs.studies.reading import StudyFile
from rldistill.teachers.noise import noise_in, with_noise
from rldistill.types import Task, Teacher, UserError
from rldistill.verbs.demo import shipped, shipped_policy
from rldistill.verbs.study.entries import Keys, MadeTeacher, Panel, Player
from rldistill.verbs.study.games import Games
from rldistill.verbs.study.grid import Grid, Setting, check_setting
from rldistill.verbs.study.training import check_games, learning_cells

_PLAYING = ("env", "env_kwargs", "max_episode_steps")
"""Options of `distill` by which student and teacher play something else than the teacher's own task."""


class Loaders(NamedTuple):
    """How policies are loaded and begun."""

    load: Callable[[str], Teacher]
    """From where a teacher is."""
    untrained: Callable[[str, Any], Teacher]
    """From an environment id and a configuration of `train` a policy with the spaces of the one that will be trained."""
    student: Callable[[Mapping[str, Teacher], Task, Any], Teacher]
    """From teachers by their names, what is played, and a configuration of `distill` a student without any training."""


class _Placed(NamedTuple):
    """A teacher of the study."""

    reference: str
    """As the file names it, or its environment."""
    path: str
    """Where it is; where a cell makes it, in the study's folder."""
    making: Cell | None
    """The cell that makes it."""
    identity: Mapping[str, Any]
    """What decides who it is."""
    teacher: Teacher
    """The policy, or an untrained one with its spaces."""


class _Taught(NamedTuple):
    """Who teaches a cell, or plays its games: a teacher, all of a panel, or its best one."""

    fields: Mapping[str, Any]
    """Of the cell."""
    identity: Mapping[str, Any]
    """What of the cell's name follows from them."""
    words: tuple[str, ...]
    """For the cell's name."""
    members: tuple[_Placed, ...]
    """All who may teach."""


def make_plan(grid: Grid, seeds: int, threads: int, loaders: Loaders) -> Plan:
    """The cells of a grid.

    Args:
        grid: of the study.
        seeds: students of each setting and teacher.
        threads: of each cell.
        loaders: of its teachers.

    Raises:
        UserError: a teacher that is missing, or that a setting does not suit, with the line in the file.
    """
    settings = tuple(_with_own_starts(grid, one) for one in grid.settings)
    grid = replace(grid, games=_with_starts(grid, grid.games, ("games",)), settings=settings)
    _check_apart(grid)
    cells: dict[str, Cell] = {}
    for cell in (
        _distill_cells(grid, seeds, loaders)
        if grid.verb == "distill"
        else learning_cells(grid, seeds, loaders.untrained)
    ):
        before = cells.setdefault(cell.name, cell)
        if before != cell:
            raise grid.file.wrong(f"{before.setting} and {cell.setting} are the same setting", "axes")
    return Plan(
        name=grid.name,
        tier=grid.tier,
        title=grid.title,
        compare=grid.compare,
        settings=tuple(setting.label for setting in grid.settings),
        reference=grid.reference,
        conditions=_conditions(grid),
        published=grid.published,
        source=grid.source,
        measure=grid.measure,
        axis=grid.axis,
        threads=threads,
        cells=tuple(cells.values()),
    )


def _check_apart(grid: Grid) -> None:
    """Raises UserError where two settings have the same options and the same games."""
    for one, other in combinations(grid.settings, 2):
        if other.label in _alike(grid, one) and (one.games or grid.games) == (other.games or grid.games):
            raise grid.file.wrong(f"{one.label} and {other.label} are the same setting", "axes")


def _conditions(grid: Grid) -> str:
    """How the games are played; for each group of settings, where they differ."""
    groups: dict[str, list[str]] = {}
    for setting in grid.settings:
        groups.setdefault(str(setting.games or grid.games), []).append(setting.label)
    if len(groups) == 1:
        return next(iter(groups))
    return " ".join(f"{', '.join(labels)}: {games}" for games, labels in groups.items())


def _with_own_starts(grid: Grid, setting: Setting) -> Setting:
    own = setting.games
    return setting if own is None else replace(setting, games=_with_starts(grid, own, _place_of_starts(grid, setting)))


def _place_of_starts(grid: Grid, setting: Setting) -> Keys:
    """Where the file names the starts of a setting's games."""
    own = setting.games is not None and setting.games.starts != grid.games.starts
    return setting.places["games"] if own else ("games",)


def _with_starts(grid: Grid, games: Games, place: Keys) -> Games:
    """The games with the places and checksums of their starts, which the file names at `place`."""
    files = []
    for path in games.starts:
        try:
            files.append(read_starts(_located_starts(path, grid.file)))
        except UserError as error:
            raise grid.file.wrong(str(error), *place, "starts") from None
    return replace(games, starts=tuple(one.path for one in files), starts_sha256=tuple(one.sha256 for one in files))


def _located_starts(path: str, file: StudyFile) -> str:
    """As it is named from the working folder, from the file's folder, or in the checkout."""
    beside = file.beside(path)
    if beside is None and path.startswith("starts/"):
        beside = shipped(path)
    return os.path.abspath(beside or path)


def _distill_cells(grid: Grid, seeds: int, loaders: Loaders) -> Iterator[Cell]:
    """Teachers' training and games first, then the students, seeds outermost."""
    placed = [_placed(grid, teacher, loaders, grid.players_at) for teacher in grid.players.teachers]
    panels = [_placed_panel(grid, panel, loaders) for panel in grid.players.panels]
    members = [*placed, *(one for panel in panels for one in panel)]
    _check_students(grid, placed, panels, loaders)
    for setting in grid.settings:
        tasks = [_task(one, setting.options) for one in members]
        check_games(grid, tasks, setting.games or grid.games, _place_of_starts(grid, setting))
    yield from (one.making for one in members if one.making is not None)
    lessons: list[tuple[Setting, _Taught, Cell]] = []
    for one in placed:
        for setting in grid.settings:
            if not setting.takes_panels:
                level = _level(grid, _alone(one), setting)
                lessons.append((setting, _alone(one), level))
                yield level
    for panel, own in zip(grid.players.panels, panels, strict=True):
        for setting in grid.settings:
            if setting.takes_panels:
                choice = _choice(grid, panel, own, setting)
                best = _best(panel, own, choice)
                yield from () if choice is None else (choice,)
                level = _level(grid, best, setting)
                lessons.append((setting, best if setting.best else _together(panel, own), level))
                yield level
    for seed in range(seeds):
        for setting, taught, level in lessons:
            yield from _students(grid, taught, setting, seed, level)


def _students(grid: Grid, taught: _Taught, setting: Setting, seed: int, level: Cell) -> Iterator[Cell]:
    """A student of a setting, after what it needs."""
    data = None
    if not setting.takes_panels:
        (one,) = taught.members
        data = _visited(grid, one, setting) or _recorded(grid, one, setting, seed)
    if data is not None:
        yield data
    student = _student(grid, taught, setting, seed, level, data)
    if len(_alike(grid, setting)) > 1:
        yield replace(student, games=None, level_cell="", setting="")
        student = _played(student, taught)
    yield student


def _alone(one: _Placed) -> _Taught:
    """A teacher that teaches alone."""
    fields = {
        "policy": one.path,
        "checksums": _checksums(one),
        "teacher_cell": one.making.name if one.making else "",
        "teacher": one.reference,
    }
    return _Taught(fields, {"teacher": one.identity}, _short(one.reference), (one,))


def _together(panel: Panel, own: Sequence[_Placed]) -> _Taught:
    """All teachers of a panel."""
    fields = {
        "panel": tuple(one.path for one in own),
        "panel_cells": tuple(dict.fromkeys(one.making.name for one in own if one.making)),
        "checksums": {
            f"policy {number}": checksum for number, one in enumerate(own) for checksum in _checksums(one).values()
        },
        "teacher": panel.name,
    }
    return _Taught(fields, {"panel": [one.identity for one in own]}, (panel.name,), tuple(own))


def _choice(grid: Grid, panel: Panel, own: Sequence[_Placed], setting: Setting) -> Cell | None:
    """The cell that finds a panel's best teacher by games of its own; None where the file names it."""
    if panel.best is not None:
        return None
    taught, playing = _together(panel, own), _playing(setting)
    options = {**playing, "games": grid.games.of_choice(), "teachers": [one.reference for one in own]}
    full = {"verb": "choose", **taught.identity, "options": {**playing, "games": options["games"]}}
    return Cell(name=cell_name(("choice", *taught.words), full), verb="choose", options=options, **taught.fields)


def _best(panel: Panel, own: Sequence[_Placed], choice: Cell | None) -> _Taught:
    """The best teacher of a panel, which the file names or a cell finds."""
    if choice is None:
        one = _alone(own[panel.best or 0])
        return one._replace(fields={**one.fields, "teacher": panel.name}, words=(panel.name,))
    whole = _together(panel, own)
    return whole._replace(
        fields={**whole.fields, "choice_cell": choice.name},
        identity={"best_of": whole.identity["panel"], "choice": choice.name},
    )


def _placed_panel(grid: Grid, panel: Panel, loaders: Loaders) -> list[_Placed]:
    """The teachers of a panel, which play one task.

    Raises:
        UserError: one is missing, or plays another task than the first, with the line in the file.
    """
    first, *others = placed = [_placed(grid, teacher, loaders, panel.place) for teacher in panel.teachers]
    for one in others:
        if _same_scale(one.teacher.task) != _same_scale(first.teacher.task):
            played = f"{first.reference} ({first.teacher.task.env}) and {one.reference} ({one.teacher.task.env})"
            raise grid.file.wrong(f"teachers of the panel {panel.name} play different tasks: {played}", *panel.place)
    return placed


def _same_scale(task: Task) -> Task:
    return replace(task, random_score=None)


def _placed(grid: Grid, teacher: Player, loaders: Loaders, at: Keys) -> _Placed:
    if isinstance(teacher, MadeTeacher):
        return _to_make(grid, teacher, loaders, at)
    path = _located(teacher, grid.file, at)
    try:
        policy = loaders.load(path)
    except UserError as error:
        raise grid.file.wrong(str(error), *at) from None
    identity = {"teacher": teacher, "sha256": getattr(policy, "sha256", None)}
    return _Placed(teacher, path, None, identity, policy)


def _to_make(grid: Grid, made: MadeTeacher, loaders: Loaders, at: Keys) -> _Placed:
    """A teacher that a cell of the study makes, with an unfinished one of its kind."""
    verb = grid.verbs[made.verb]
    options, config = verb.departing(made.options), verb.make(**made.options)
    own = _placed(grid, made.source, loaders, at) if made.verb == "distill" else None
    path, identity = ("", made.source) if own is None else (own.path, own.identity)
    identity = {made.verb: identity, "options": options}
    try:
        teacher = loaders.untrained(made.source, config) if own is None else _draft(loaders, [own], config)
    except UserError as error:
        raise grid.file.wrong(str(error), *at) from None
    env = made.source if made.verb == "train" else ""
    name = cell_name(("teacher", *_short(made.source)), identity)
    making = Cell(
        name=name,
        verb=made.verb,
        policy=path,
        env=env,
        options=options,
        teacher=made.source,
        checksums=(_checksums(own) if own else {}) | _checksum_of_dataset(options),
    )
    place = f"{CELLS}/{name}/run" + (f"/snapshots/{made.snapshot:g}" if made.snapshot else "")
    noise = noise_in(f"noisy:{made.noise}:{place}")[0] if made.noise else None
    own_identity = {name: value for name, value in (("snapshot", made.snapshot), ("noise", made.noise)) if value}
    return _Placed(str(made), with_noise(noise, place), making, identity | own_identity, teacher)


def _located(reference: str, file: StudyFile, at: Keys) -> str:
    """The place of a teacher: as it is named from the working folder, from the file's folder, or in the checkout.

    Raises:
        UserError: it is in none of them.
    """
    try:
        noise, plain = noise_in(reference)
        return with_noise(noise, plain if plain.startswith("hf://") else os.path.abspath(_place(plain, file)))
    except UserError as error:
        raise file.wrong(str(error), *at) from None


def _place(reference: str, file: StudyFile) -> str | Path:
    beside = file.beside(reference)
    if beside is None and reference.startswith("policies/"):
        return shipped_policy(reference.removeprefix("policies/"))
    if beside is None:
        raise UserError(f"there is no {reference}")
    return beside


def _check_students(
    grid: Grid, placed: Sequence[_Placed], panels: Sequence[Sequence[_Placed]], loaders: Loaders
) -> None:
    """Builds the student of each setting and kind of teacher once, or of each panel."""
    checked = set()
    for setting in grid.settings:
        alone = [*(one for panel in panels for one in panel)] if setting.best else placed
        for members in panels if setting.takes_panels and not setting.best else [[one] for one in alone]:
            kind = (tuple((one.teacher.task, one.teacher.score_kind) for one in members), setting.label)
            if kind not in checked:
                checked.add(kind)
                check_setting(grid.file, grid.verbs["distill"], setting, partial(_draft, loaders, members))


def _task(one: _Placed, options: Mapping[str, Any]) -> Task:
    """What a teacher's students play, with options of `distill`."""
    task = fitting_task(one.teacher.task, options.get("env"), options.get("env_kwargs", ()))
    return with_longest_game(task, options.get("max_episode_steps"))


def _draft(loaders: Loaders, members: Sequence[_Placed], config: Any) -> Teacher:
    """A student without any training."""
    teachers = {one.reference: one.teacher for one in members}
    return loaders.student(teachers, _task(members[0], asdict(config.playing)), config)


def _playing(setting: Setting) -> dict[str, Any]:
    return {name: setting.options[name] for name in _PLAYING if name in setting.options}


def _level(grid: Grid, taught: _Taught, setting: Setting) -> Cell:
    """The teacher's games in what the setting's students play."""
    playing = _playing(setting)
    own = setting.games or grid.games
    games = own.of_teacher()
    full = {"verb": "play", **taught.identity, "options": playing}
    full |= {} if own == grid.games else {"games": named_games(games)}
    name = cell_name(("teacher_games", *taught.words), full)
    return Cell(name=name, verb="play", options=playing, games=games, **taught.fields)


def _visited(grid: Grid, one: _Placed, setting: Setting) -> Cell | None:
    """The cell of the teacher's own training, where students learn from what it visited."""
    if not setting.visited:
        return None
    if one.making is None or "record" not in (one.making.options or {}):
        raise grid.file.wrong(
            f"{setting.label} learns from what {one.reference} visited while it learnt: let the study train the teacher, with "
            "record_steps",
            *setting.places["visited"],
        )
    return one.making


def _recorded(grid: Grid, one: _Placed, setting: Setting, seed: int) -> Cell | None:
    if setting.record is None:
        return None
    taught = _alone(one)
    options = grid.verbs["record"].departing({**_playing(setting), **setting.record, "seed": seed})
    full = {"verb": "record", **taught.identity, "options": options}
    name = cell_name(("recorded", *taught.words, f"s{seed}"), full)
    return Cell(name=name, verb="record", options=options, seed=seed, **taught.fields)


def _student(grid: Grid, taught: _Taught, setting: Setting, seed: int, level: Cell, data: Cell | None) -> Cell:
    more = {} if data is None else {"dataset": data.name}
    options = grid.verbs["distill"].departing({**setting.options, **more, "seed": seed})
    own_data = _checksum_of_dataset(options) if data is None else {}
    full = {"verb": "distill", **taught.identity, "options": options | own_data}
    return Cell(
        name=cell_name((_alike(grid, setting)[0], *taught.words, f"s{seed}"), full),
        verb="distill",
        options=options,
        games=(setting.games or grid.games).of_student(seed),
        data_cell="" if data is None else data.name,
        level_cell=level.name,
        setting=setting.label,
        seed=seed,
        **{**taught.fields, "checksums": {**taught.fields["checksums"], **own_data}},
    )


def _alike(grid: Grid, setting: Setting) -> list[str]:
    """The labels of all settings with these options. They differ in games, and share their students."""

    def own(one: Setting) -> tuple[Any, ...]:
        return one.options, one.record, one.visited, one.best

    return [one.label for one in grid.settings if own(one) == own(setting)]


def _played(student: Cell, taught: _Taught) -> Cell:
    """The games of a student, for one of the settings that share it."""
    words = (student.setting, *taught.words, f"s{student.seed}")
    full = {
        "verb": "play",
        "student": student.name,
        "setting": student.setting,
        "level": student.level_cell,
        "games": named_games(student.games or {}),
    }
    return Cell(
        name=cell_name(words, full),
        verb="play",
        games=student.games,
        teacher_cell=student.name,
        level_cell=student.level_cell,
        setting=student.setting,
        teacher=student.teacher,
        seed=student.seed,
    )


def _checksums(one: _Placed) -> dict[str, str]:
    """By which a worker notices that the teacher has changed since."""
    return {"policy": str(one.identity["sha256"])} if one.making is None else {}


def _checksum_of_dataset(options: Mapping[str, Any]) -> dict[str, str]:
    """The same of a dataset that the study's file names."""
    path = options.get("dataset")
    return {} if path is None else {"dataset": open_dataset(path).sha256}


def _short(reference: str) -> tuple[str, ...]:
    """The end of a reference, for names of folders."""
    noise, plain = noise_in(reference)
    return (*Path(plain).parts[-2:], *([] if noise is None else [f"noisy {noise}"]))
