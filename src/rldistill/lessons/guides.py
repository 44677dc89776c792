"""Guides: who drives the teacher's rows, and who labels the visited states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch

from rldistill.lessons.labels import Labeller, checked_labels, labels_of
from rldistill.lessons.payments import Outcome
from rldistill.play.actions import chosen, score_width
from rldistill.play.replay import Columns, Replay
from rldistill.types import Actions, Batch, Bools, Masks, Observations, ScoreKind, Task, as_tensor, labelled

Rows = npt.NDArray[np.int64]
Stored = Mapping[str, npt.NDArray[Any]]
"""Columns (N, ...) that are kept with the states of a control step."""


class Guide(Protocol):
    """One teacher, or several of one task among whom a chooser chooses."""

    @property
    def score_kind(self) -> ScoreKind:
        """The kind of the labels."""

    @property
    def columns(self) -> Columns:
        """What it keeps with each state."""

    def drive(
        self, observations: Observations, masks: Masks | None, starts: Bools, driven: int
    ) -> tuple[Actions, Stored]:
        """Actions (N, ...) for all rows, of which those of the first `driven` rows count, and the columns to keep.

        Args:
            observations: (N, *obs).
            masks: (N, A) the allowed actions; None allows all.
            starts: (N,): whether each row begins a game.
            driven: rows that a teacher drives.
        """

    def followed(self, step: Outcome, driven: int) -> None:
        """Takes what came of the last actions."""

    def fit(self, replay: Replay, times: Rows, rows: Rows) -> None:
        """Fits what is fitted once to states of the warm-up."""

    def labelled(self, replay: Replay, times: Rows, rows: Rows) -> Batch:
        """The states at these times and rows, (B,) each, with their labels of now."""

    def label(self, observations: torch.Tensor, masks: torch.Tensor | None) -> torch.Tensor:
        """Labels (B, K) of now, of states (B, *obs) that nobody visited."""

    def learnt(self, loss: float) -> None:
        """Takes the mean loss of an update."""

    def state_dict(self) -> dict[str, Any]:
        """What the next control steps and labels depend on."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""


_BLOCK = 32
"""States that are labelled anew at once."""


class OneGuide:
    """One labeller drives, and labels every state when it is visited.

    Where the labeller's answers may change, each label is stored with its owner. A drawn state whose label has another owner than
    the labeller has now is labelled anew, and the label is written back.

    Args:
        labeller: whose labels they are.
        task: that is played.
    """

    def __init__(self, labeller: Labeller, task: Task) -> None:
        self.labeller, self.task = labeller, task
        self.score_kind: ScoreKind = labeller.score_kind
        owners: Columns = {"owners": ((), np.int64)} if labeller.changes else {}
        self.columns: Columns = {"values": ((score_width(task, labeller.score_kind),), np.float32), **owners}

    def drive(
        self, observations: Observations, masks: Masks | None, starts: Bools, driven: int
    ) -> tuple[Actions, Stored]:
        """The labeller's choices, and its labels of all rows."""
        values = labels_of(self.labeller, observations, self.task, masks)
        stored: dict[str, npt.NDArray[Any]] = {"values": values.numpy()}
        if self.labeller.changes:
            stored["owners"] = np.full(len(starts), self.labeller.owner, dtype=np.int64)
        return cast(Actions, chosen(values, self.score_kind, self.task, masks).numpy()), stored

    def followed(self, step: Outcome, driven: int) -> None:
        """Nothing depends on it."""

    def fit(self, replay: Replay, times: Rows, rows: Rows) -> None:
        """Nothing is fitted."""

    def labelled(self, replay: Replay, times: Rows, rows: Rows) -> Batch:
        """The states with their stored labels, made anew where these have another owner."""
        if self.labeller.changes:
            self._label_anew(replay, times, rows)
        return batch_of(replay, times, rows)

    def _label_anew(self, replay: Replay, times: Rows, rows: Rows) -> None:
        others = np.flatnonzero(replay.column("owners", times, rows) != self.labeller.owner)
        if not len(others):
            return
        times, rows = times[others], rows[others]
        for first in range(0, len(times), _BLOCK):
            # Blocks of one size: a label's last digits may depend on how many are made at once, and a resumed run, whose files
            # hold labels from after its checkpoint, makes fewer at once.
            some = np.resize(times[first : first + _BLOCK], _BLOCK), np.resize(rows[first : first + _BLOCK], _BLOCK)
            masks = replay.column("masks", *some) if "masks" in replay else None
            values = labels_of(self.labeller, replay.observations(*some), self.task, masks)
            replay.relabel(*some, values.numpy(), self.labeller.owner)

    def label(self, observations: torch.Tensor, masks: torch.Tensor | None) -> torch.Tensor:
        """The labeller's labels."""
        with torch.no_grad():
            return checked_labels(self.labeller(observations), self.score_kind, self.task, masks)

    def learnt(self, loss: float) -> None:
        """Nothing depends on it."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing changes."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""


def batch_of(replay: Replay, times: Rows, rows: Rows) -> Batch:
    """The states at these times and rows with the column `values` as their labels."""
    values = torch.from_numpy(replay.column("values", times, rows))
    masks = torch.from_numpy(replay.column("masks", times, rows)) if "masks" in replay else None
    return labelled(as_tensor(replay.observations(times, rows)), values, masks)
