"""From the file of a study to its grid: settings, teachers and games, each option checked before anything runs."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rldistill.runs.studies.reading import StudyFile
from rldistill.types import UserError
from rldistill.verbs.study.entries import Keys, Players, VerbOptions, Verbs, label_of, option_of, read_players
from rldistill.verbs.study.games import Games, own_games, study_games

_STUDY = ("name", "title", "verb", "compare", "reference", "axis", "seeds", "teachers", "panels", "envs")
_TOP = ("study", "settings", "axes", "games", "published", "tiers")
_TIER = ("teachers", "panels", "envs", "seeds", "settings", "axes", "games", "published")
_PUBLISHED = ("source", "measure", "figures")
_SEEDS = 5
"""Of a study that names no number; the least that its intervals mean something for."""
_FIGURES = ("parameters", "bytes", "control_steps", "teacher_steps", "student_steps", "updates")
"""What `axis` may name."""
_BESIDE = ("record", "visited", "teacher")
"""Entries beside the options of distill: where its dataset comes from, and which teacher of a panel it takes."""


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
    best: bool = False
    """Whether it learns from the best teacher of each panel."""

    @property
    def takes_panels(self) -> bool:
        """Whether its students are of panels, and not of single teachers."""
        return self.best or bool(self.options.get("select"))


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
    players: Players
    players_at: Keys
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
    if verb not in ("distill", "follow", "train"):
        raise file.wrong(f"the verb is distill, follow or train, not {verb!r}", "study", "verb")
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
    players = read_players(file, verb, own, reference, verbs)
    _check_suited(file, settings, players, own)
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
        players=players,
        players_at=(*own, "envs" if players.envs else "teachers"),
        seeds=_seeds(file, own),
        games=games,
        published=published["figures"],
        source=published["source"],
        measure=published["measure"],
    )


def _check_suited(file: StudyFile, settings: Sequence[Setting], players: Players, own: Keys) -> None:
    """Raises UserError where a setting has nobody to learn from, or nobody learns from some."""
    of_panels = [one for one in settings if one.takes_panels]
    if of_panels and not players.panels:
        name = "teacher" if of_panels[0].best else "select"
        raise file.wrong(
            f"{of_panels[0].label} learns from panels of teachers, and there are none: panels = [...] in [{'.'.join(own)}]",
            *of_panels[0].places[name],
        )
    if players.panels and not of_panels:
        raise file.wrong('no setting learns from the panels: give one select, or teacher = "best"', *own, "panels")
    alone = [one for one in settings if not one.takes_panels]
    if alone and not players.teachers and not players.envs:
        raise file.wrong(
            f'{alone[0].label} learns from single teachers, and there are none: give it select or teacher = "best"',
            *[*alone[0].places.values(), ("axes",)][0],
        )
    if players.teachers and not alone:
        raise file.wrong("no setting learns from single teachers, so only panels are needed", *own, "teachers")


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
        return [_Point(label_of(value), {name: value}, place) for value in axis]
    if not isinstance(axis, dict) or not all(isinstance(options, dict) for options in axis.values()):
        raise file.wrong(
            f"the axis {name} is a list of values, or a table with a table of options for each label", *place
        )
    return [_Point(label, options, (*place, label)) for label, options in axis.items()]


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
                options[name] = value if name in _BESIDE else option_of(file, verb, verbs, name, value, at)
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
    best = options.pop("teacher", "")
    if best not in ("", "best") or (best and (verb != "distill" or "select" in options)):
        raise file.wrong(
            'teacher = "best" takes the best of each panel, in a study of distill without select', *places["teacher"]
        )
    setting = Setting(label, options, record, visited, places, own, bool(best))
    if setting.takes_panels and (record is not None or visited):
        name = "visited" if visited else "record"
        raise file.wrong(f"{name} is of one teacher, and {label} learns from panels", *places[name])
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
        names = [*flags, *(name for name, value in setting.options.items() if _is_named(value, str(error)))]
        at = next((setting.places[name] for name in names if name in setting.places), None)
        at = at or [*setting.places.values(), ("axes",)][0]
        raise file.wrong(f"{setting.label}: {error}", *at) from None


def _is_named(value: Any, message: str) -> bool:
    """Whether a message is about the value of an option, or about one of several: it has the value, or begins with its name."""
    for one in (value, *value) if isinstance(value, tuple) else (value,):
        begins = isinstance(one, str) and message.startswith(f"{one.partition(':')[0]} ")
        if begins or re.search(rf"(?<![\w.]){re.escape(repr(one))}(?![\w.])", message):
            return True
    return False


def _record(file: StudyFile, verb: str, verbs: Verbs, given: Any, at: Keys) -> dict[str, Any] | None:
    if given is None:
        return None
    if verb != "distill" or not isinstance(given, dict):
        raise file.wrong("record is a table of options of `rldistill record`, in a study of distill", *at)
    options = {name: option_of(file, "record", verbs, name, value, at) for name, value in given.items()}
    try:
        verbs["record"].check(verbs["record"].make(**options))
    except UserError as error:
        raise file.wrong(str(error), *at) from None
    return options


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
