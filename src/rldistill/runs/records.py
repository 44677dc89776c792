"""Records of a run: one JSON object a line in `metrics.jsonl`, each of a kind that its `event` names."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from rldistill.documents import parse_json
from rldistill.files import open_regular
from rldistill.stats import figure
from rldistill.types import UserError


@dataclass(frozen=True, kw_only=True)
class _Line:
    """What every record has. A field that is None has no place in the line."""

    event: ClassVar[str]
    lesson: str | None = None
    """Name of the lesson that the record is about, where a run has several."""

    def as_json(self) -> dict[str, Any]:
        """The line as JSON data."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"event": self.event} | {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class _Position(_Line):
    """Where the run stood."""

    control_steps: int | None = None
    """Control steps of teacher and student together."""
    teacher_steps: int | None = None
    """Control steps that the teacher drove."""
    student_steps: int | None = None
    """Control steps that the student drove."""
    updates: int | None = None
    """Gradient updates."""
    seconds: float | None = None
    """Seconds of training; those of `train` are by the clock, those of `distill` are without evaluations."""


@dataclass(frozen=True, kw_only=True)
class _Played(_Line):
    """Full games and their scores."""

    episodes: int | None = None
    """How many games were played."""
    epsilon: float | None = None
    """Probability of a random action."""
    mean: float | None = None
    """Mean episode return."""
    iqm: float | None = None
    """Mean of the middle half of the returns."""
    ci_low: float | None = None
    """Lower bound of the mean's 95 % interval; None where there is none."""
    ci_high: float | None = None
    """Upper bound."""
    distinct: int | None = None
    """How many of the games differ."""
    returns: list[float] | None = None
    """Return of each game."""


@dataclass(frozen=True, kw_only=True)
class Fit(_Line):
    """What `distill` derives from its first examples."""

    event: ClassVar[str] = "fit"
    temperature: float | None = None
    """Divides the teacher's values."""
    spread: float | None = None
    """Standard deviation of the teacher's advantages."""
    mean_gap: float | None = None
    """Mean of the teacher's largest value less its smallest, where `--weights gap` divides by it."""
    shift: list[float] | None = None
    """Mean of the observations, a number a channel or feature."""
    scale: list[float] | None = None
    """What observations less their mean are multiplied with."""
    temperatures: list[float] | None = None
    """Of several teachers of one task: what divides each one's values."""


@dataclass(frozen=True, kw_only=True)
class TeacherScore(_Played):
    """How the teacher plays."""

    event: ClassVar[str] = "teacher"
    teacher: str | None = None
    """Of several teachers of one task: which one."""


@dataclass(frozen=True, kw_only=True)
class Train(_Position):
    """Some updates: what they cost and how well they fit."""

    event: ClassVar[str] = "train"
    loss: float | None = None
    """Mean over samples, in nats where it is a divergence; None before the first update."""
    learning_rate: float | None = None
    agreement: float | None = None
    """`distill`: share of the samples in which student and teacher choose the same action."""
    epsilon: float | None = None
    """`train`: probability of a random action."""
    mean_value: float | None = None
    """`train`: mean of the values that are learnt."""
    inside: float | None = None
    """`train --only`: share of the states that lie in the region."""
    returns: list[float] | None = None
    """`train`: return of each game that ended, exploration included."""


@dataclass(frozen=True, kw_only=True)
class Choices(_Position):
    """What a chooser has learnt so far of several teachers of one task, a number for each in the order in which they were named."""

    event: ClassVar[str] = "choices"
    pulls: list[float] | None = None
    """Payments."""
    payments: list[float | None] | None = None
    """Mean payment as the chooser estimates it; null before the first."""
    samples: list[float] | None = None
    """Samples for updates with the teacher's label; one that several share counts in parts."""


@dataclass(frozen=True, kw_only=True)
class Trust(_Line):
    """Where each of several teachers is trusted at the end of a run, along one number of a state, or as pictures."""

    event: ClassVar[str] = "trust"
    name: str | None = None
    """Of the number; `picture` for the mean picture of the states of each teacher."""
    places: list[float] | None = None
    """The mean of the number in each bin; of pictures channels, height and width."""
    shares: list[float | None] | None = None
    """The share of each teacher in each bin, bin after bin; of pictures their pixels, teacher after teacher, null where there is
    none."""


@dataclass(frozen=True, kw_only=True)
class Evaluation(_Position, _Played):
    """Games of the student at some point of the run."""

    event: ClassVar[str] = "evaluation"


@dataclass(frozen=True, kw_only=True)
class LearnerEvaluation(_Position, _Played):
    """Games of the learner that a student follows, at some point of the run; others than those that chose the version."""

    event: ClassVar[str] = "learner"
    version: int | None = None
    """Number of the version that teaches from here on."""
    choosing: float | None = None
    """Mean return of the games that decide whether the learner becomes the next version; None where no games decide it, or
    where the weights are those of the evaluation before."""
    random: float | None = None
    """Mean return of random play; it stands in the first record alone."""


@dataclass(frozen=True, kw_only=True)
class FinalScore(_Played):
    """Games of the policy that `train` keeps."""

    event: ClassVar[str] = "final_score"


@dataclass(frozen=True)
class Other:
    """A line of a kind that this version does not have."""

    event: str
    figures: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """The line as it was."""
        return {"event": self.event, **self.figures}


Kind: TypeAlias = Fit | TeacherScore | Train | Choices | Trust | Evaluation | LearnerEvaluation | FinalScore
Record: TypeAlias = Kind | Other
_KINDS: dict[str, type[Kind]] = {
    kind.event: kind for kind in (Fit, TeacherScore, Train, Choices, Trust, Evaluation, LearnerEvaluation, FinalScore)
}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_IS: dict[str, Callable[[Any], bool]] = {
    "int | None": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "float | None": _is_number,
    "str | None": lambda value: isinstance(value, str),
    "list[float] | None": lambda value: isinstance(value, list) and all(map(_is_number, value)),
    "list[float | None] | None": lambda value: (
        isinstance(value, list) and all(item is None or _is_number(item) for item in value)
    ),
}
"""Whether a value from a file, which may be anybody's, is of the kind that a field's annotation names."""


def parse(data: Mapping[str, Any]) -> Record:
    """The record of a line. One without an `event` is of `train`, whose lines had none; a value of another kind is left out."""
    event = data.get("event", Train.event)
    kind = _KINDS.get(event) if isinstance(event, str) else None
    if kind is None:
        figures = {name: value for name, value in data.items() if _is_number(value) or _IS["list[float] | None"](value)}
        return Other(str(event), figures)
    given = {field.name: data[field.name] for field in fields(kind) if field.name in data}
    types = {field.name: str(field.type) for field in fields(kind)}
    return kind(**{name: value for name, value in given.items() if _IS[types[name]](value)})


def written(record: Record) -> bytes:
    """The record as a line."""
    return json.dumps(record.as_json()).encode() + b"\n"


def read_records(path: Path, since: int = 0) -> tuple[list[Record], int]:
    """The records of a file from a byte offset on, and the offset to go on from. A last line cut off by a kill is left out.

    A run that goes back to its checkpoint shortens the file. Where it is shorter than `since`, all records are read, and the
    offset is less than `since`.

    Raises:
        UserError, OSError: the file cannot be read.
    """
    with open_regular(path) as file:
        if since > file.seek(0, 2):
            since = 0
        file.seek(since)
        data = file.read()
    records: list[Record] = []
    for line in data.splitlines(keepends=True):
        if line.strip():
            try:
                item = parse_json(line, path)
            except UserError:  # cut off, or of a stranger
                break
            if isinstance(item, dict):  # the file may be a stranger's
                records.append(parse(item))
        since += len(line)
    return records, since


def curve_csv(records: Iterable[Record], *, points: int = 200, games: int = 100) -> bytes:
    """A learning curve: the columns `control_steps` and `mean_return`, the mean of the last `games` games ended by then.

    Of several tasks, one after the other, there is a column `task` before them.

    Args:
        records: of a run; those without control steps and returns are passed over.
        points: at most so many rows a task, evenly spaced; the last record is always there.
        games: how many, with exploration as it was then.
    """
    recent: dict[str | None, deque[float]] = {}
    curves: dict[str | None, list[str]] = {}
    for record in records:
        if isinstance(record, Train | Evaluation) and record.control_steps is not None and record.returns is not None:
            own = recent.setdefault(record.lesson, deque(maxlen=games))
            own.extend(record.returns)
            if own:
                task = "" if record.lesson is None else f"{_quoted(record.lesson)},"
                row = f"{task}{record.control_steps},{figure(sum(own) / len(own), least=3)}"
                curves.setdefault(record.lesson, []).append(row)
    lines = ["control_steps,mean_return" if set(curves) <= {None} else "task,control_steps,mean_return"]
    for curve in curves.values():
        every = max(-(-len(curve) // points), 1)
        lines += curve[::-1][::every][::-1]
    return "\n".join([*lines, ""]).encode()


def _quoted(name: str) -> str:
    """A name as CSV holds it."""
    return '"' + name.replace('"', '""') + '"' if set(name) & set(',"\n\r') else name
