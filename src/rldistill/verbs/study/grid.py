"""From the file of a study to its grid: settings, teachers and games, each option checked before anything runs."""

from __future__ import annotations

import difflib
import itertools
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

from rldistill.arguments import check_value
from rldistill.configurations import flat, kinds_of
from rldistill.runs.studies.reading import StudyFile
from rldistill.types import UserError
from rldistill.verbs.study.games import Games, own_games, study_games

Keys = tuple[str, ...]
"""Where an entry stands in the file."""
_STUDY = ("name", "title", "verb", "compare", "reference", "axis", "seeds", "teachers", "envs")
_TOP = ("study", "settings", "axes", "games", "published", "tiers")
_TIER = ("teachers", "envs", "seeds", "settings", "axes", "games", "published")
_PUBLISHED = ("source", "measure", "figures")
_SEEDS = 5
"""Of a study that names no number; the least that its intervals mean something for."""
_FIGURES = ("parameters", "bytes", "control_steps", "teacher_steps", "student_steps", "updates")
"""What `axis` may name."""
_DATASETS = ("record", "visited")
"""Entries beside the options of distill: where its dataset comes from."""
_SET_BY_STUDY = {"seed": "--seeds", "dataset": "record = {steps = 20000}"}
"""Options that a study sets itself, and how it is asked for them."""


@dataclass(frozen=True)
class VerbOptions:
    """The options that a verb takes in a study."""

    kind: Any
    """The class of its configurations."""
    make: Callable[..., Any]
    """A configuration, by the names of flags."""
    check: Callable[[Any], object]
    """Raises UserError where a configuration is wrong."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Names that `make` takes beside the settings, and their types."""

    def departing(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """What of a configuration departs from the defaults, as plain JSON data."""
        defaults = flat(self.kind())
        return {name: value for name, value in flat(self.make(**options)).items() if value != defaults[name]}


Verbs: TypeAlias = Mapping[str, VerbOptions]
"""By name: `distill`, `train` and `record`."""


@dataclass(frozen=True)
class Setting:
    """One of the compared settings."""

    label: str
    options: Mapping[str, Any]
    """Of the verb, by the names of its flags."""
    record: Mapping[str, Any] | None
    """Options of a dataset of the teacher's play that is learnt from; None where there is none."""
    visited: bool
    """Whether the dataset is what the teacher visited while it learnt."""
    places: Mapping[str, Keys]
    """Where each option stands in the file."""
    games: Games | None = None
    """By which it is compared with its teachers, where they are not those of the study."""


class MadeTeacher(NamedTuple):
    """A teacher that the study makes itself."""

    verb: Literal["train", "distill"]
    source: str
    """The environment that it learns, or the teacher that it is a student of."""
    options: Mapping[str, Any]
    apart: str = ""
    """The options by which it differs from others of the same source."""

    def __str__(self) -> str:
        name = self.source if self.verb == "train" else f"student of {self.source}"
        return f"{name} ({self.apart})" if self.apart else name


@dataclass(frozen=True)
class Grid:
    """A study as its file has it, in one tier."""

    file: StudyFile
    name: str
    tier: str
    verb: str
    verbs: Verbs
    title: str
    compare: str
    reference: str | None
    axis: str | None
    settings: tuple[Setting, ...]
    teachers: tuple[str | MadeTeacher, ...]
    envs: tuple[str, ...]
    teachers_at: Keys
    """Where the teachers or environments stand in the file."""
    seeds: int
    games: Games
    published: Mapping[str, float]
    source: str
    measure: str


def read_grid(file: StudyFile, name: str, tier: str | None, verbs: Verbs) -> Grid:
    """The grid of a file, with every option compared with the verb's.

    Raises:
        UserError: something unknown or wrong, with its line, or a grid of nothing.
    """
    file.check_names(file.tables, _TOP)
    study = file.table("study")
    file.check_names(study, _STUDY, "study")
    verb = _text(file, study, "verb", "distill")
    if verb not in ("distill", "train"):
        raise file.wrong(f"the verb is distill or train, not {verb!r}", "study", "verb")
    tier = _chosen_tier(file, tier)
    own = ("tiers", tier) if tier else ("study",)
    games = study_games(file, tier)
    settings = tuple(_settings(file, verb, tier, verbs, games))
    labels = [setting.label for setting in settings]
    reference = study.get("reference")
    if reference is not None and reference not in labels:
        raise file.wrong(
            f"the reference {reference!r} is none of the settings {', '.join(labels)}", "study", "reference"
        )
    teachers, envs = _players(file, verb, own, reference, verbs)
    published = _published(file, tier, labels)
    return Grid(
        file=file,
        name=_text(file, study, "name", name),
        tier=tier,
        verb=verb,
        verbs=verbs,
        title=_text(file, study, "title", name),
        compare=_text(file, study, "compare", " and ".join(_axes(file, tier)) or "setting"),
        reference=reference,
        axis=_axis(file, study.get("axis")),
        settings=settings,
        teachers=teachers,
        envs=envs,
        teachers_at=(*own, "envs" if envs else "teachers"),
        seeds=_seeds(file, own),
        games=games,
        published=published["figures"],
        source=published["source"],
        measure=published["measure"],
    )


def _text(file: StudyFile, table: Mapping[str, Any], name: str, default: str) -> str:
    value = table.get(name, default)
    if not isinstance(value, str):
        raise file.wrong(f"{name} is a text, not {value!r}", "study", name)
    return value


def _axis(file: StudyFile, given: Any) -> str | None:
    if given is None:
        return None
    for name in _FIGURES:
        if given == name:
            return name
    raise file.wrong(f"axis is one of {', '.join(_FIGURES)}, not {given!r}", "study", "axis")


def _chosen_tier(file: StudyFile, tier: str | None) -> str:
    """The tier by name; empty where the study has none."""
    tiers = file.table("tiers")
    for name in tiers:
        file.check_names(file.table("tiers", name), _TIER, "tiers", name)
    if not tiers:
        if tier is not None:
            raise UserError(f"{file.path} has no tiers: leave out --tier")
        return ""
    if tier is None and len(tiers) == 1:
        return next(iter(tiers))
    if tier not in tiers:
        problem = "name one with --tier" if tier is None else f"not {tier!r}"
        raise UserError(f"the tiers of {file.path} are {', '.join(tiers)}: {problem}")
    return tier


def _axes(file: StudyFile, tier: str) -> dict[str, Keys]:
    """The axes and where each stands; one of a tier replaces the common one of its name."""
    axes: dict[str, Keys] = {name: ("axes", name) for name in file.table("axes")}
    if tier:
        axes |= {name: ("tiers", tier, "axes", name) for name in file.table("tiers", tier, "axes")}
    return axes


class _Point(NamedTuple):
    """A value of an axis."""

    label: str
    options: Mapping[str, Any]
    place: Keys


def _points(file: StudyFile, name: str, place: Keys) -> list[_Point]:
    axis: Any = file.tables
    for key in place:
        axis = axis[key]
    if isinstance(axis, list):
        return [_Point(_label(value), {name: value}, place) for value in axis]
    if not isinstance(axis, dict) or not all(isinstance(options, dict) for options in axis.values()):
        raise file.wrong(
            f"the axis {name} is a list of values, or a table with a table of options for each label", *place
        )
    return [_Point(label, options, (*place, label)) for label, options in axis.items()]


def _label(value: Any) -> str:
    return ",".join(map(_label, value)) if isinstance(value, list | tuple) else str(value)


def _settings(file: StudyFile, verb: str, tier: str, verbs: Verbs, games: Games) -> Iterator[Setting]:
    """All combinations of the axes' values, each with the common options and the tier's."""
    axes = _axes(file, tier)
    if not axes:
        raise file.wrong(
            'a study compares settings: name their values, such as loss = ["kl", "nll"], in [axes]', "axes"
        )
    common: list[tuple[Mapping[str, Any], Keys]] = [(file.table("settings"), ("settings",))]
    if tier:
        common.append((file.table("tiers", tier, "settings"), ("tiers", tier, "settings")))
    lists = [_points(file, name, place) for name, place in axes.items()]
    for (name, place), points in zip(axes.items(), lists, strict=True):
        if not points:
            raise file.wrong(f"the axis {name} has no values, so the grid is empty", *place)
    labels: set[str] = set()
    for combined in itertools.product(*lists):
        label = " / ".join(point.label for point in combined)
        if not all(point.label.strip() for point in combined) or not label.isprintable():
            raise file.wrong(f"a label is a text in one line, not {label!r}", *combined[-1].place)
        if label in labels:
            raise file.wrong(f"two settings are called {label}", *combined[-1].place)
        labels.add(label)
        parts = [*common, *((point.options, point.place) for point in combined)]
        yield _setting(file, verb, verbs, label, parts, games)


def _setting(
    file: StudyFile,
    verb: str,
    verbs: Verbs,
    label: str,
    parts: Sequence[tuple[Mapping[str, Any], Keys]],
    games: Games,
) -> Setting:
    options: dict[str, Any] = {}
    places: dict[str, Keys] = {}
    own: Games | None = None
    for given, place in parts:
        for name, value in given.items():
            at = (*place, name)
            places[name] = at
            if name == "games":
                own = _games_of_setting(file, verb, own or games, value, at)
            else:
                options[name] = value if name in _DATASETS else _option(file, verb, verbs, name, value, at)
    record = _record(file, verb, verbs, options.pop("record", None), places.get("record", ()))
    visited = options.pop("visited", False)
    if visited not in (True, False) or (visited and (verb != "distill" or record is not None)):
        raise file.wrong(
            "visited = true is of distill, without record: students learn from what their teachers visited while they learnt",
            *places["visited"],
        )
    if "dataset" in options and (record is not None or visited):
        raise file.wrong(
            f"{label} has a dataset, and {'visited' if visited else 'record'} makes another one: take one of them",
            *places["dataset"],
        )
    setting = Setting(label, options, record, visited, places, own)
    check_setting(file, verbs[verb], setting, verbs[verb].check)
    return setting


def _games_of_setting(file: StudyFile, verb: str, games: Games, given: Any, at: Keys) -> Games:
    if verb != "distill":
        raise file.wrong("a setting has games of its own in a study of distill", *at)
    return own_games(file, games, given, at)


def check_setting(file: StudyFile, verb: VerbOptions, setting: Setting, check: Callable[[Any], object]) -> None:
    """Has a setting's configuration checked, and gives an error the line of the option that it names.

    Raises:
        UserError: as `check` raises it, with the line.
    """
    try:
        extra = {"dataset": "recorded"} if setting.visited or setting.record is not None else {}
        check(verb.make(**setting.options, **extra))
    except UserError as error:
        flags = [flag.replace("-", "_") for flag in re.findall(r"--([a-z0-9-]+)", str(error))]
        names = [*flags, *(name for name, value in setting.options.items() if repr(value) in str(error))]
        at = next((setting.places[name] for name in names if name in setting.places), None)
        at = at or [*setting.places.values(), ("axes",)][0]
        raise file.wrong(f"{setting.label}: {error}", *at) from None


def _option(file: StudyFile, verb: str, verbs: Verbs, name: str, value: Any, at: Keys) -> Any:
    """The value of an option, of the type that the verb takes.

    Raises:
        UserError: the verb has no such option, or it is of another type.
    """
    kinds = {**kinds_of(verbs[verb].kind), **verbs[verb].more}
    if name in _SET_BY_STUDY and not (name == "dataset" and verb == "train"):
        if name == "dataset" and isinstance(value, str):
            place = file.beside(value)
            if place is None:
                raise file.wrong(f"there is no {value}", *at)
            return os.path.abspath(place)
        raise file.wrong(f"{name} is set by the study: take {_SET_BY_STUDY[name]}", *at)
    if name not in kinds:
        nearest = difflib.get_close_matches(name, kinds, 1)
        advice = f"; did you mean {nearest[0]}?" if nearest else ""
        raise file.wrong(f"{verb} has no option {name!r}{advice}", *at)
    if kinds[name] is str and isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)  # such as a temperature
    value = tuple(value) if isinstance(value, list) else value
    try:
        check_value(name, value, kinds[name])
    except UserError as error:
        raise file.wrong(str(error), *at) from None
    return value


def _record(file: StudyFile, verb: str, verbs: Verbs, given: Any, at: Keys) -> dict[str, Any] | None:
    if given is None:
        return None
    if verb != "distill" or not isinstance(given, dict):
        raise file.wrong("record is a table of options of `rldistill record`, in a study of distill", *at)
    options = {name: _option(file, "record", verbs, name, value, at) for name, value in given.items()}
    try:
        verbs["record"].check(verbs["record"].make(**options))
    except UserError as error:
        raise file.wrong(str(error), *at) from None
    return options


def _players(
    file: StudyFile, verb: str, own: Keys, reference: str | None, verbs: Verbs
) -> tuple[tuple[str | MadeTeacher, ...], tuple[str, ...]]:
    """The teachers, and of a study of `train` the environments."""
    table = file.table(*own)
    name, other = ("envs", "teachers") if verb == "train" else ("teachers", "envs")
    if other in table:
        raise file.wrong(f"a study of {verb} has {name}, not {other}", *own, other)
    given = table.get(name, [])
    if not isinstance(given, list) or not all(isinstance(one, str | dict) for one in given):
        raise file.wrong(f"{name} is a list", *own, name)
    if not given:
        raise file.wrong(f"there are no {name}, so the grid is empty: name some in [{'.'.join(own)}]", *own, name)
    if verb == "train":
        if len({str(one) for one in given}) < len(given):
            raise file.wrong(f"{name} names one twice", *own, name)
        if reference is None:
            raise file.wrong('a study of train compares with a setting: name it, reference = "..."', "study")
        if not all(isinstance(one, str) for one in given):
            raise file.wrong("envs is a list of environment ids", *own, name)
        return (), tuple(given)
    teachers = [one if isinstance(one, str) else _made(file, one, (*own, name), verbs) for one in given]
    teachers = [one if isinstance(one, str) else _apart(one, teachers) for one in teachers]
    if len({str(one) for one in teachers}) < len(teachers):
        raise file.wrong(f"{name} names one twice", *own, name)
    return tuple(teachers), ()


def _apart(made: MadeTeacher, teachers: Sequence[str | MadeTeacher]) -> MadeTeacher:
    """The teacher with the options in which others of its name differ, so that each has a name of its own."""
    others = [one for one in teachers if isinstance(one, MadeTeacher) and str(one) == str(made) and one != made]
    names = sorted({name for one in [made, *others] for name in one.options})
    differing = [name for name in names if any(one.options.get(name) != made.options.get(name) for one in others)]
    words = (f"{name} {_label(made.options[name])}" for name in differing if name in made.options)
    return made._replace(apart=", ".join(words))


def _made(file: StudyFile, given: Mapping[str, Any], at: Keys, verbs: Verbs) -> MadeTeacher:
    options = dict(given)
    verb: Literal["train", "distill"] = "distill" if "teacher" in options else "train"
    source = options.pop("teacher" if verb == "distill" else "env", None)
    if not isinstance(source, str):
        raise file.wrong(
            'a teacher to make is {env = "CartPole-v1", steps = 20000} with options of train, or {teacher = "policies/pong"} with '
            "options of distill",
            *at,
        )
    if "record" in options:
        raise file.wrong("record is set by the study: record_steps = 20000 keeps what the teacher visits", *at)
    seed = options.pop("seed", 0)
    options = {name: _option(file, verb, verbs, name, value, at) for name, value in options.items()}
    if "record_steps" in options:
        options["record"] = "visited"  # the cell has a place for it
    try:
        verbs[verb].check(verbs[verb].make(**options, seed=seed))
    except UserError as error:
        raise file.wrong(str(error), *at) from None
    return MadeTeacher(verb, source, {**options, "seed": seed})


def _seeds(file: StudyFile, own: Keys) -> int:
    for at in ((*own, "seeds"), ("study", "seeds")):
        value = file.table(*at[:-1]).get("seeds")
        if value is not None:
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise file.wrong(f"seeds is a whole number of at least 1, not {value!r}", *at)
            return value
    return _SEEDS


def _published(file: StudyFile, tier: str, labels: Sequence[str]) -> dict[str, Any]:
    """Published figures: the tier's own, or those of the study."""
    at: Keys = ("tiers", tier, "published") if tier and file.table("tiers", tier, "published") else ("published",)
    table = file.table(*at)
    file.check_names(table, _PUBLISHED, *at)
    figures = file.table(*at, "figures")
    for name, value in figures.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise file.wrong(f"a published figure is a number, not {value!r}", *at, "figures", name)
        if name not in labels:
            raise file.wrong(f"{name!r} is none of the settings {', '.join(labels)}", *at, "figures", name)
    for name in ("source", "measure"):
        if not isinstance(table.get(name, ""), str):
            raise file.wrong(f"{name} is a text, not {table[name]!r}", *at, name)
    defaults = {"source": "", "measure": "geometric mean of ratios"}
    return {**defaults, **table, "figures": {name: float(value) for name, value in figures.items()}}
