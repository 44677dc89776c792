"""From the grid of a study to its plan: cells with their names, in the order in which results become useful."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from rldistill.datasets.shards import open_dataset
from rldistill.play.envs import fitting_task, make_task, with_longest_game
from rldistill.play.starts import check_starts, read_starts
from rldistill.policies import SavedPolicy
from rldistill.runs.studies.plan import Cell, Plan, cell_name, named_games
from rldistill.runs.studies.reading import StudyFile
from rldistill.students.networks import Network
from rldistill.teachers.noise import noise_in, with_noise
from rldistill.types import Task, Teacher, UserError
from rldistill.verbs.demo import shipped, shipped_policy
from rldistill.verbs.distill.teaching import make_student, teaching_of
from rldistill.verbs.study.games import Games
from rldistill.verbs.study.grid import Grid, Keys, MadeTeacher, Setting, check_setting

_PLAYING = ("env", "env_kwargs", "max_episode_steps")
"""Options of `distill` by which student and teacher play something else than the teacher's own task."""
_PLAYING_OF_TRAIN = ("env_kwargs", "max_episode_steps", "sticky_actions")


class Loaders(NamedTuple):
    """How teachers are loaded."""

    load: Callable[[str], Teacher]
    """From where a teacher is."""
    untrained: Callable[[str, Any], Teacher]
    """From an environment id and a configuration of `train` a policy with the spaces of the one that will be trained."""


class _Placed(NamedTuple):
    """A teacher of the study."""

    reference: str
    """As the file names it, or its environment."""
    path: str
    """Where it is; empty where a cell makes it."""
    making: Cell | None
    """The cell that makes it."""
    identity: Mapping[str, Any]
    """What decides who it is."""
    teacher: Teacher
    """The policy, or an untrained one with its spaces."""


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
    for cell in _train_cells(grid, seeds, loaders) if grid.verb == "train" else _distill_cells(grid, seeds, loaders):
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


def _check_starts(grid: Grid, tasks: Iterable[Task], games: Games, place: Keys = ("games",)) -> None:
    """Raises UserError where a game has no starts, or the number of games is no multiple of them."""
    if games.starts:
        files = [read_starts(path) for path in games.starts]
        for played in (games.of_student(0), games.of_teacher()):
            try:
                check_starts(files, list(tasks), played["episodes"])
            except UserError as error:
                raise grid.file.wrong(str(error), *place, "starts") from None


def _distill_cells(grid: Grid, seeds: int, loaders: Loaders) -> Iterator[Cell]:
    """Teachers' training and games first, then the students, seeds outermost."""
    placed = [_placed(grid, teacher, loaders) for teacher in grid.teachers]
    _check_students(grid, placed)
    for setting in grid.settings:
        tasks = [_task(one, setting.options) for one in placed]
        _check_starts(grid, tasks, setting.games or grid.games, _place_of_starts(grid, setting))
    yield from (one.making for one in placed if one.making is not None)
    levels: dict[tuple[str, str], Cell] = {}
    for one in placed:
        for setting in grid.settings:
            cell = _level(grid, one, setting)
            levels[one.reference, setting.label] = cell
            yield cell
    for seed in range(seeds):
        for one in placed:
            for setting in grid.settings:
                data = _visited(grid, one, setting) or _recorded(grid, one, setting, seed)
                if data is not None:
                    yield data
                student = _student(grid, one, setting, seed, levels[one.reference, setting.label], data)
                if len(_alike(grid, setting)) > 1:
                    yield replace(student, games=None, level_cell="", setting="")
                    student = _played(student)
                yield student


def _train_cells(grid: Grid, seeds: int, loaders: Loaders) -> Iterator[Cell]:
    """Random play first, then the policies that are learnt from reward."""
    playing = _same_playing(grid)
    for env in grid.envs:
        for setting in grid.settings:
            check_setting(grid.file, grid.verbs["train"], setting, partial(loaders.untrained, env))
    _check_starts(grid, [make_task(env, **playing) for env in grid.envs], grid.games)
    levels = {env: _random_level(grid, env, playing) for env in grid.envs}
    yield from levels.values()
    for seed in range(seeds):
        for env in grid.envs:
            for setting in grid.settings:
                options = grid.verbs["train"].departing({**setting.options, "seed": seed})
                games = grid.games.of_student(seed)
                words = (setting.label, env, f"s{seed}")
                yield Cell(
                    name=cell_name(words, {"verb": "train", "env": env, "options": options}),
                    verb="train",
                    env=env,
                    options=options,
                    games=games,
                    level_cell=levels[env].name,
                    setting=setting.label,
                    seed=seed,
                )


def _same_playing(grid: Grid) -> dict[str, Any]:
    """The options of `train` that change the games, which all settings have in common.

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


def _placed(grid: Grid, teacher: str | MadeTeacher, loaders: Loaders) -> _Placed:
    if isinstance(teacher, MadeTeacher):
        return _to_make(grid, teacher, loaders)
    path = _located(teacher, grid.file, grid.teachers_at)
    try:
        policy = loaders.load(path)
    except UserError as error:
        raise grid.file.wrong(str(error), *grid.teachers_at) from None
    identity = {"teacher": teacher, "sha256": getattr(policy, "sha256", None)}
    return _Placed(teacher, path, None, identity, policy)


def _to_make(grid: Grid, made: MadeTeacher, loaders: Loaders) -> _Placed:
    """A teacher that a cell of the study makes, with an unfinished one of its kind."""
    verb = grid.verbs[made.verb]
    options, config = verb.departing(made.options), verb.make(**made.options)
    own = _placed(grid, made.source, loaders) if made.verb == "distill" else None
    path, identity = ("", made.source) if own is None else (own.path, own.identity)
    identity = {made.verb: identity, "options": options}
    try:
        teacher = loaders.untrained(made.source, config) if own is None else _make_student(own, config)
    except UserError as error:
        raise grid.file.wrong(str(error), *grid.teachers_at) from None
    env = made.source if made.verb == "train" else ""
    name = cell_name(("teacher", *_short(made.source)), identity)
    making = Cell(
        name=name,
        verb=made.verb,
        policy=path,
        env=env,
        options=options,
        teacher=str(made),
        checksums=(_checksums(own) if own else {}) | _checksum_of_dataset(options),
    )
    return _Placed(str(made), "", making, identity, teacher)


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


def _check_students(grid: Grid, placed: list[_Placed]) -> None:
    """Builds the student of each setting and kind of teacher once."""
    checked = set()
    for one in placed:
        for setting in grid.settings:
            kind = (one.teacher.task, one.teacher.score_kind, setting.label)
            if kind not in checked:
                checked.add(kind)
                check_setting(grid.file, grid.verbs["distill"], setting, partial(_make_student, one))


def _task(one: _Placed, options: Mapping[str, Any]) -> Task:
    """What a teacher's students play, with options of `distill`."""
    task = fitting_task(one.teacher.task, options.get("env"), options.get("env_kwargs", ()))
    return with_longest_game(task, options.get("max_episode_steps"))


def _make_student(one: _Placed, config: Any) -> SavedPolicy:
    """A student without any training."""
    task = _task(one, asdict(config.playing))
    student, _ = make_student([teaching_of(one.teacher, one.reference, task, config)], config)
    assert isinstance(student, Network)
    return SavedPolicy(student, task)


def _level(grid: Grid, one: _Placed, setting: Setting) -> Cell:
    """The teacher's games in what the setting's students play."""
    playing = {name: setting.options[name] for name in _PLAYING if name in setting.options}
    own = setting.games or grid.games
    games = own.of_teacher()
    full = {"verb": "play", "teacher": one.identity, "options": playing}
    full |= {} if own == grid.games else {"games": named_games(games)}
    return Cell(
        name=cell_name(("teacher_games", *_short(one.reference)), full),
        verb="play",
        policy=one.path,
        checksums=_checksums(one),
        options=playing,
        games=games,
        teacher_cell=one.making.name if one.making else "",
        teacher=one.reference,
    )


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
    playing = {name: setting.options[name] for name in _PLAYING if name in setting.options}
    options = grid.verbs["record"].departing({**playing, **setting.record, "seed": seed})
    full = {"verb": "record", "teacher": one.identity, "options": options}
    return Cell(
        name=cell_name(("recorded", *_short(one.reference), f"s{seed}"), full),
        verb="record",
        policy=one.path,
        checksums=_checksums(one),
        options=options,
        teacher_cell=one.making.name if one.making else "",
        teacher=one.reference,
        seed=seed,
    )


def _student(grid: Grid, one: _Placed, setting: Setting, seed: int, level: Cell, data: Cell | None) -> Cell:
    more = {} if data is None else {"dataset": data.name}
    options = grid.verbs["distill"].departing({**setting.options, **more, "seed": seed})
    games = (setting.games or grid.games).of_student(seed)
    own_data = _checksum_of_dataset(options) if data is None else {}
    full = {"verb": "distill", "teacher": one.identity, "options": options | own_data}
    return Cell(
        name=cell_name((_alike(grid, setting)[0], *_short(one.reference), f"s{seed}"), full),
        verb="distill",
        policy=one.path,
        checksums=_checksums(one) | own_data,
        options=options,
        games=games,
        teacher_cell=one.making.name if one.making else "",
        data_cell="" if data is None else data.name,
        level_cell=level.name,
        setting=setting.label,
        teacher=one.reference,
        seed=seed,
    )


def _alike(grid: Grid, setting: Setting) -> list[str]:
    """The labels of all settings with these options. They differ in games, and share their students."""

    def own(one: Setting) -> tuple[Any, ...]:
        return one.options, one.record, one.visited

    return [one.label for one in grid.settings if own(one) == own(setting)]


def _played(student: Cell) -> Cell:
    """The games of a student, for one of the settings that share it."""
    words = (student.setting, *_short(student.teacher), f"s{student.seed}")
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
