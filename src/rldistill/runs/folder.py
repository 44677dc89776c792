"""The folder that a run leaves, for all who read it: its configuration, records, scores, policies and status."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from rldistill.documents import read_json
from rldistill.holding import is_held
from rldistill.runs.records import Record, read_records
from rldistill.runs.scores import Score, read_scores
from rldistill.types import UserError

Status: TypeAlias = Literal["fresh", "running", "interrupted", "finished", "scored"]


class RunFolder:
    """A run as it stands in its folder. It may be read while a process works on it, and reading changes nothing.

    Args:
        path: of the folder, which need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_path = path / "config.json"
        self.metrics_path = path / "metrics.jsonl"
        self.state_path = path / "checkpoint" / "state"
        self.lock_path = path / "checkpoint" / "lock"
        self.policy_path = path / "policy"
        self.scores_path = path / "scores.json"

    @property
    def exists(self) -> bool:
        """Whether a run has begun here."""
        return self.config_path.is_file()

    def config(self, defaults: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The configuration as it was written, empty where there is none.

        Args:
            defaults: of options that an older configuration lacks.

        Raises:
            UserError: the file is damaged.
        """
        return with_defaults(read_json(self.config_path), defaults or {}) if self.exists else {}

    def records(self, since: int = 0) -> tuple[list[Record], int]:
        """The records from a byte offset on, and the offset to go on from; see `read_records`."""
        return read_records(self.metrics_path, since) if self.metrics_path.is_file() else ([], 0)

    def scores(self) -> list[Score]:
        """What `evaluate` or `report` has put into `scores.json`; empty where there is no such file.

        Raises:
            UserError: the file is damaged.
        """
        return read_scores(self.scores_path) if self.scores_path.exists() else []

    @property
    def snapshots(self) -> dict[float, Path]:
        """Policy folders on the way, by their share of the training."""
        snapshots = {}
        for card in self.path.glob("snapshots/*/policy.json"):
            try:
                snapshots[float(card.parent.name)] = card.parent
            except ValueError:  # put there by somebody
                continue
        return dict(sorted(snapshots.items()))

    @property
    def finished(self) -> bool:
        """Whether the policy is there."""
        return (self.policy_path / "policy.json").is_file()

    @property
    def scored(self) -> bool:
        """Whether the policy's card has its score, the last thing that a run writes."""
        if not self.finished:
            return False
        try:
            provenance = read_json(self.policy_path / "policy.json").get("provenance")
        except UserError:
            return False  # damaged: whoever loads it says so
        return isinstance(provenance, dict) and not {"score", "scores"}.isdisjoint(provenance)

    @property
    def status(self) -> Status:
        """What is going on: `running` while a process holds the folder, `fresh` before the first checkpoint."""
        if is_held(self.lock_path):
            return "running"
        if self.finished:
            return "scored" if self.scored else "finished"
        return "interrupted" if self.state_path.exists() else "fresh"


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """The records of a run as JSON data."""
    return [record.as_json() for record in read_records(out / "metrics.jsonl")[0]]


def with_defaults(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the defaults of what it lacks, inside groups of options too."""
    filled = {**defaults, **config}
    for name, inner in defaults.items():
        if isinstance(inner, Mapping) and isinstance(config.get(name), Mapping):
            filled[name] = with_defaults(config[name], inner)
    return filled
