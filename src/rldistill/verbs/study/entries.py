"""Entries of a study's file: options, each compared with those that its verb takes, and who teaches."""

from __future__ import annotations

import difflib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias, get_args, get_origin

from rldistill.arguments import check_value
from rldistill.configurations import flat, kinds_of
from rldistill.runs.studies.reading import StudyFile
from rldistill.teachers.noise import noise_in
from rldistill.types import UserError

Keys = tuple[str, ...]
"""Where an entry stands in the file."""
_PANEL = ("name", "teachers", "best")
_SEVERAL = ("snapshot", "noise")
"""Entries of a teacher to make that are no options of its verb."""
SET_BY_STUDY = {
    "seed": "--seeds",
    "dataset": "record = {steps = 20000}",
    "learner": 'verb = "follow" in [study], with envs',
}
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
"""By name: `distill`, `follow` (`distill` beside a learner), `train` and `record`."""


def label_of(value: Any) -> str:
    return ",".join(map(label_of, value)) if isinstance(value, list | tuple) else str(value)


def option_of(file: StudyFile, verb: str, verbs: Verbs, name: str, value: Any, at: Keys) -> Any:
    """The value of an option, of the type that the verb takes.

    Raises:
        UserError: the verb has no such option, or it is of another type.
    """
    kinds = {**kinds_of(verbs[verb].kind), **verbs[verb].more}
    if name in SET_BY_STUDY and not (name == "dataset" and verb == "train"):
        if name == "dataset" and isinstance(value, str):
            place = file.beside(value)
            if place is None:
                raise file.wrong(f"there is no {value}", *at)
            return os.path.abspath(place)
        raise file.wrong(f"{name} is set by the study: take {SET_BY_STUDY[name]}", *at)
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


class MadeTeacher(NamedTuple):
    """A teacher that the study makes itself."""

    verb: Literal["train", "distill"]
    source: str
    """The environment that it learns, or the teacher that it is a student of."""
    options: Mapping[str, Any]
    snapshot: float | None = None
    """The share of its training after which it teaches; None is its end."""
    noise: str = ""
    """SIGMA of `noisy:SIGMA:REF`; empty without noise."""
    apart: str = ""
    """What it differs in from others of the same source."""

    @property
    def described(self) -> dict[str, Any]:
        """Its options, with snapshot and noise where it has any."""
        more = {"snapshot": self.snapshot, "noise": self.noise}
        return {**self.options, **{name: value for name, value in more.items() if value}}

    def __str__(self) -> str:
        name = self.source if self.verb == "train" else f"student of {self.source}"
        return f"{name} ({self.apart})" if self.apart else name


Player: TypeAlias = str | MadeTeacher


class Panel(NamedTuple):
    """Several teachers of one task, among which a student chooses."""

    name: str
    teachers: tuple[Player, ...]
    best: int | None
    """The number of the best one, where the file names it; else games decide."""
    place: Keys
    """Where it stands in the file."""


class Players(NamedTuple):
    """All who teach, or the environments that are learnt."""

    teachers: tuple[Player, ...] = ()
    panels: tuple[Panel, ...] = ()
    envs: tuple[str, ...] = ()


def read_players(file: StudyFile, verb: str, own: Keys, reference: str | None, verbs: Verbs) -> Players:
    """The teachers and panels of a tier, and of a study of `train` the environments.

    Raises:
        UserError: something unknown or wrong, with its line, or nobody is named.
    """
    table = file.table(*own)
    name, others = ("teachers", ("envs",)) if verb == "distill" else ("envs", ("teachers", "panels"))
    for other in others:
        if other in table:
            raise file.wrong(f"a study of {verb} has {name}, not {other}", *own, other)
    given = table.get(name, [])
    if not isinstance(given, list) or not all(isinstance(one, str | dict) for one in given):
        raise file.wrong(f"{name} is a list", *own, name)
    panels = tuple(_panels(file, own, verbs))
    if not given and not panels:
        raise file.wrong(f"there are no {name}, so the grid is empty: name some in [{'.'.join(own)}]", *own, name)
    if verb == "distill":
        return Players(teachers=_teachers(file, given, (*own, name), verbs), panels=panels)
    if len({str(one) for one in given}) < len(given):
        raise file.wrong(f"{name} names one twice", *own, name)
    if reference is None:
        raise file.wrong(f'a study of {verb} compares with a setting: name it, reference = "..."', "study")
    if not all(isinstance(one, str) for one in given):
        raise file.wrong("envs is a list of environment ids", *own, name)
    return Players(envs=tuple(given))


def _panels(file: StudyFile, own: Keys, verbs: Verbs) -> Iterator[Panel]:
    given = file.table(*own).get("panels", [])
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise file.wrong('panels is a list of tables such as {name = "pong", teachers = [...]}', *own, "panels")
    names = set()
    for number, one in enumerate(given):
        place = (*own, "panels", str(number))
        file.check_names(one, _PANEL, *place)
        name, listed = one.get("name"), one.get("teachers")
        if not isinstance(name, str) or not name.strip() or not name.isprintable() or name in names:
            raise file.wrong(f"each panel has a name of its own, a text in one line, not {name!r}", *place, "name")
        names.add(name)
        if not isinstance(listed, list) or not all(isinstance(teacher, str | dict) for teacher in listed):
            raise file.wrong(f"the panel {name} has no list of teachers", *place, "teachers")
        teachers = _teachers(file, listed, (*place, "teachers"), verbs)
        if len(teachers) < 2:
            raise file.wrong(f"the panel {name} has {len(teachers)} teachers: name two or more", *place, "teachers")
        best = one.get("best")
        called = [str(teacher) for teacher in teachers]
        if best is not None and best not in called:
            raise file.wrong(
                f"best names one of the panel's teachers ({', '.join(called)}), not {best!r}", *place, "best"
            )
        yield Panel(name, teachers, None if best is None else called.index(best), place)


def _teachers(file: StudyFile, given: Sequence[Any], at: Keys, verbs: Verbs) -> tuple[Player, ...]:
    teachers: list[Player] = []
    for one in given:
        teachers += (
            [one] if isinstance(one, str) else [_made(file, each, at, verbs) for each in _each(file, one, at, verbs)]
        )
    teachers = [one if isinstance(one, str) else _apart(one, teachers) for one in teachers]
    if len({str(one) for one in teachers}) < len(teachers):
        twice = next(str(one) for one in teachers if [str(each) for each in teachers].count(str(one)) > 1)
        raise file.wrong(f"{at[-1]} names one twice: {twice}", *at)
    return tuple(teachers)


def _each(file: StudyFile, given: Mapping[str, Any], at: Keys, verbs: Verbs) -> Iterator[dict[str, Any]]:
    """The teachers that an entry stands for: one for each value of a list, where an option takes one value."""
    kinds = kinds_of(verbs["distill" if "teacher" in given else "train"].kind)
    single = {*_SEVERAL, *(name for name, kind in kinds.items() if not _takes_list(kind))}
    lists = {name: value for name, value in given.items() if name in single and isinstance(value, list)}
    if [] in lists.values():
        raise file.wrong(f"{next(name for name in lists if not lists[name])} has no values", *at)
    snapshots = given.get("snapshot", [])
    kept = [share for share in (snapshots if isinstance(snapshots, list) else [snapshots]) if share != 1]
    more = {"snapshots": kept} if kept else {}
    for values in itertools.product(*lists.values()):
        yield {**more, **given, **dict(zip(lists, values, strict=True))}


def _takes_list(kind: Any) -> bool:
    return any(get_origin(one) is tuple for one in (kind, *get_args(kind)))


def _apart(made: MadeTeacher, teachers: Sequence[Player]) -> MadeTeacher:
    """The teacher with what others of its name differ in, so that each has a name of its own."""
    others = [one for one in teachers if isinstance(one, MadeTeacher) and str(one) == str(made) and one != made]
    names = sorted({name for one in [made, *others] for name in one.options})
    differing = [
        name
        for name in (*names, "snapshot", "noise")
        if any(one.described.get(name) != made.described.get(name) for one in others)
    ]
    words = (f"{name} {label_of(made.described[name])}" for name in differing if name in made.described)
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
    noise, share = _noise(file, options.pop("noise", 0), at), options.pop("snapshot", 1)
    if share != 1 and verb != "train":
        raise file.wrong("snapshot is of a teacher that the study trains: {env = ..., snapshot = 0.5}", *at)
    seed = options.pop("seed", 0)
    options = {name: option_of(file, verb, verbs, name, value, at) for name, value in options.items()}
    if "record_steps" in options:
        options["record"] = "visited"  # the cell has a place for it
    try:
        verbs[verb].check(verbs[verb].make(**options, seed=seed))
    except UserError as error:
        raise file.wrong(str(error), *at) from None
    if share != 1 and share not in options["snapshots"]:
        raise file.wrong(f"snapshot = {share} is none of the snapshots {label_of(options['snapshots'])}", *at)
    return MadeTeacher(verb, source, {**options, "seed": seed}, None if share == 1 else float(share), noise)


def _noise(file: StudyFile, given: Any, at: Keys) -> str:
    """SIGMA, as a reference spells it; empty where it is 0."""
    if given == 0:
        return ""
    try:
        return str(noise_in(f"noisy:{given}:REF")[0])
    except UserError as error:
        raise file.wrong(str(error), *at) from None
