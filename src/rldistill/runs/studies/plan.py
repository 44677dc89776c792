"""The plan of a study: its cells, in the order in which they are computed, kept as `study.json` in the study's folder."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

from rldistill.documents import read_json
from rldistill.files import replace_file
from rldistill.types import UserError

PLAN, FORMAT = "study.json", 1
CellVerb: TypeAlias = Literal["play", "choose", "record", "train", "distill", "follow"]


@dataclass(frozen=True)
class Cell:
    """One run of one verb with one configuration, and the games of its result.

    `play` is games alone, of a teacher or of the student of another cell. `choose` finds the best teacher of a panel by games.
    """

    name: str
    """Of its folder in `cells/`."""
    verb: CellVerb
    policy: str = ""
    """Where its teacher is; empty where it has none or several, or where it is the policy of another cell's run."""
    panel: Sequence[str] = ()
    """Where its teachers are, of a cell with several."""
    env: str = ""
    """What `train` learns, and what is played where there is no teacher."""
    checksums: Mapping[str, str] | None = None
    """Of `policy`, of each of the panel by its number, and of the dataset that `options` name, when the study was planned."""
    options: Mapping[str, Any] | None = None
    """Of the verb, by the names of its flags."""
    games: Mapping[str, Any] | None = None
    """Games of the result: episodes, epsilon, seed, num_envs, starts. None plays none."""
    teacher_cell: str = ""
    """The cell that makes its teacher; of `play`, the cell that makes the policy that plays."""
    panel_cells: Sequence[str] = ()
    """The cells that make teachers of the panel."""
    choice_cell: str = ""
    """The cell that chooses the one teacher of the panel that counts here."""
    data_cell: str = ""
    """The cell that records its dataset."""
    level_cell: str = ""
    """The cell whose games its own are compared with."""
    setting: str = ""
    """Label of the compared setting; empty for cells that others need."""
    teacher: str = ""
    """The teacher as the study's file names it."""
    seed: int = 0

    @property
    def result_name(self) -> str:
        """The name of its result's file. The games are in it, so that other games need no other run."""
        if self.games is None:
            return "result"
        return f"result-{_digest(named_games(self.games))[:6]}"

    @property
    def needs(self) -> tuple[str, ...]:
        """Cells that must be finished before this one begins."""
        return tuple(filter(None, (self.teacher_cell, *self.panel_cells, self.choice_cell, self.data_cell)))


@dataclass(frozen=True)
class Plan:
    """A study as it is computed."""

    name: str
    tier: str
    """Of the teachers; empty where the study has no tiers."""
    title: str
    compare: str
    """What the settings differ in."""
    settings: tuple[str, ...]
    reference: str | None
    """The setting that others are compared with."""
    conditions: str
    """How the games are played, in words."""
    published: Mapping[str, float]
    """Published figures by setting."""
    source: str
    """Where they are published."""
    measure: str
    """What the published figures are."""
    axis: str | None
    """The figure of the outcomes that places settings on the plot's axis."""
    threads: int
    """Of each cell. Sums over another number of threads round differently."""
    cells: tuple[Cell, ...]

    def check_same(self, other: Plan, folder: Path) -> None:
        """Raises UserError where the folder of the other plan is that of another study."""
        if (self.name, self.tier) != (other.name, other.tier):
            raise UserError(f"{folder} is of the study {other}, not of {self}: choose another --out")

    def __str__(self) -> str:
        return f"{self.name} ({self.tier})" if self.tier else self.name


def named_games(games: Mapping[str, Any]) -> dict[str, Any]:
    """What of games is in names: of starts their checksums, not their places."""
    return {name: value for name, value in games.items() if name != "starts"}


def cell_name(words: Iterable[str], configuration: Mapping[str, Any]) -> str:
    """A readable name with a short hash of the whole configuration of the run."""
    readable = "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", word).strip("_.") for word in words)
    return f"{readable[:80]}-{_digest(configuration)[:10]}"


def _digest(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=list).encode()).hexdigest()


def write_plan(folder: Path, plan: Plan) -> None:
    """Replaces the plan in a study's folder in one step."""
    data = {"format": FORMAT, **asdict(plan)}
    replace_file(folder / PLAN, json.dumps(data, indent=1).encode() + b"\n")


def read_plan(folder: Path) -> Plan:
    """The inverse of `write_plan`.

    Raises:
        UserError: there is none, or it is damaged or of another version.
    """
    path = folder / PLAN
    if not path.is_file():
        raise UserError(f"{folder} is no folder of a study (it has no {PLAN}): name the --out of `rldistill study`")
    data = read_json(path)
    if data.pop("format", None) != FORMAT:
        raise UserError(f"{path} was written by another version of rldistill: run the study again with this one")
    try:
        cells = tuple(Cell(**cell) for cell in data.pop("cells"))
        if set(data) | {"cells"} != {field.name for field in fields(Plan)}:
            raise TypeError("fields")
        data["settings"] = tuple(data["settings"])
        return Plan(**data, cells=cells)
    except (KeyError, TypeError):
        raise UserError(f"{path} is damaged: run the study again, which writes it anew") from None
