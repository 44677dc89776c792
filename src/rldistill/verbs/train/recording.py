"""What a learner visits: written down while it learns, and labelled by the policy that it becomes.

While the training lasts, the states are in `unlabelled` in the recording's folder, a dataset without labels. A shard is one item of
the learner, and a checkpoint is taken between two items, so a shard is never half full at a checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rldistill.datasets.rows import Shard
from rldistill.datasets.shards import (
    CARD,
    SHARD,
    UNLABELLED,
    Dataset,
    append_shard,
    empty_dataset,
    read_dataset,
    same_teacher,
    shard_number,
    sweep_halves,
    write_card,
)
from rldistill.datasets.writing import DatasetWriter
from rldistill.holding import held_folder
from rldistill.lessons.labels import labels_of
from rldistill.play.actions import score_width
from rldistill.play.envs import Environments
from rldistill.play.envs.world import Step
from rldistill.play.replay import Replay
from rldistill.progress import Progress
from rldistill.runs.provenance import command_line, made_by
from rldistill.runs.writing import remove_own
from rldistill.types import Actions, Bools, Floats, Masks, Observations, Task, Teacher, UserError

_OWN = re.compile(rf"{CARD}|{SHARD}|{UNLABELLED}|\.({CARD}|{SHARD})\.\w+\.tmp")
"""All that a recording puts into its folder."""
_BATCH = 512
"""States that are labelled together."""


class Stretches(NamedTuple):
    """Which control steps of a training are recorded: whole items of the learner."""

    times: int
    """Control steps of each row in an item."""
    number: int
    """Items of the training."""
    kept: int
    """Items that are recorded."""

    def has(self, place: int) -> bool:
        """Whether an item is recorded; those that are lie evenly among all."""
        before, after = ((2 * at * self.kept + self.number) // (2 * self.number) for at in (place, place + 1))
        return after > before


def spread_evenly(times: int, rows: int, steps: int, most: int) -> Stretches:
    """The items to record of a training of `steps` control steps, with at most `most` of them in all, and at least one item."""
    number = -(-steps // (times * rows))
    return Stretches(times, number, min(max(most // (times * rows), 1), number))


@contextmanager
def held_recording(folder: str | None, *, resume: bool) -> Iterator[Path | None]:
    """The folder of a recording, held by this process alone while the block runs; one that stays empty is removed.

    Raises:
        UserError: it exists and the run is not resumed, something else is in it, or another process works on it.
    """
    if folder is None:
        yield None
        return
    path = Path(folder)
    taken = f"{path} exists: choose another --record"
    with held_folder(path, taken=None if resume else taken):
        alien = sorted(entry.name for entry in path.iterdir() if not _OWN.fullmatch(entry.name))
        if alien:
            raise UserError(f"{path} holds {alien[0]}, which is of no recording: move it away")
        for place in (path, path / UNLABELLED):
            sweep_halves(place)
        yield path


class Recorded:
    """Environments whose control steps are written down while a learner plays them.

    Args:
        environments: stepped here.
        folder: of the recording, held by this process.
        stretches: what is recorded.
        settings: of the training, for the card.
    """

    def __init__(
        self, environments: Environments, folder: Path, stretches: Stretches, settings: Mapping[str, Any]
    ) -> None:
        self._environments, self._stretches = environments, stretches
        self._folder = folder / UNLABELLED
        rows, task = environments.num_envs, environments.task
        nobody = {"path": None, "sha256": None, "kind": "nobody"}
        dataset = empty_dataset(self._folder, task, "q_values", nobody).with_recording(_entry(settings))
        self._writer = DatasetWriter(dataset, rows, stretches.times * rows)
        self._no_labels = np.zeros((rows, score_width(task, "q_values")), dtype=np.float32)
        self._times = 0
        """Control steps of each row so far."""
        self._ages = np.zeros(rows, dtype=np.int64)
        """Control steps since the episode of each row began."""

    @property
    def task(self) -> Task:
        """What is played."""
        return self._environments.task

    @property
    def num_envs(self) -> int:
        """The number of rows."""
        return self._environments.num_envs

    @property
    def watched(self) -> Floats:
        """(N, W): the named numbers that were asked for, of the present observations."""
        return self._environments.watched

    @property
    def cut(self) -> int:
        """Games that were truncated by the task's longest game so far."""
        return self._environments.cut

    @property
    def observations(self) -> Observations:
        """(N, *obs)."""
        return self._environments.observations

    @property
    def starts(self) -> Bools:
        """(N,): whether each is the first of its episode."""
        return self._environments.starts

    @property
    def masks(self) -> Masks | None:
        """(N, A): the actions allowed in `observations`."""
        return self._environments.masks

    @property
    def final_masks(self) -> Masks | None:
        """(N, A): those allowed in the final observations of the last step."""
        return self._environments.final_masks

    def step(self, actions: Actions) -> Step:
        """One control step of all rows, which is written down if its item is recorded.

        Raises:
            UserError: the disk is full.
        """
        observations, starts, masks = self.observations, self.starts, self.masks
        step = self._environments.step(actions)
        place, at = divmod(self._times, self._stretches.times)
        if self._stretches.has(place):
            if at == 0:
                self._folder.mkdir(exist_ok=True)
                self._writer.begin(place, self._ages)
            ends = (step.terminated, step.truncated)
            self._writer.add(observations, starts, actions, step.rewards, *ends, self._no_labels, masks)
        self._times += 1
        self._ages = np.where(step.terminated | step.truncated, 0, self._ages + 1)
        return step

    def state_dict(self) -> dict[str, Any]:
        """The state of the environments, and how far the recording is; between two items nothing waits to be written."""
        return self._environments.state_dict() | {"recorded_times": self._times}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned, and drops what was recorded after it.

        Raises:
            UserError: something that was recorded before it is missing.
        """
        self._environments.load_state_dict(state)
        self._times, self._ages = int(state["recorded_times"]), np.array(np.asarray(state["ages"]))
        items = self._times // self._stretches.times
        expected = [place for place in range(items) if self._stretches.has(place)]
        if not expected:
            return
        missing = UserError(
            f"what was recorded is missing from {self._folder}: begin anew with another --out and --record"
        )
        if not (self._folder / CARD).is_file():
            raise missing
        dataset = read_dataset(self._folder)
        kept = tuple(shard for shard in dataset.shards if shard_number(shard.file) < items)
        if [shard_number(shard.file) for shard in kept] != expected:
            raise missing
        self._writer.dataset = write_card(replace(dataset, shards=kept))

    def close(self) -> None:
        """Frees the environments."""
        self._environments.close()


def _entry(settings: Mapping[str, Any]) -> dict[str, Any]:
    """How the steps are made, for the card."""
    return {
        "driver": "learner",
        "algorithm": settings["algo"],
        "seed": settings["seed"],
        "environments_seed": settings["seed"],
        "num_envs": settings["num_envs"],
        "first_shard": 0,
        "made_by": made_by(),
        "command": command_line(),
    }


def label_recording(folder: Path, policy: Teacher, card: Mapping[str, Any], progress: Progress) -> None:
    """Makes the recording in a folder a dataset with the labels of a policy.

    Each shard is labelled as a whole, and a killed process goes on after the last one.

    Args:
        folder: of the recording.
        policy: that labels.
        card: what the dataset's card says of it.
        progress: shows how far it is.

    Raises:
        UserError: the folder holds the dataset of another teacher, a shard is damaged, or the disk is full.
    """
    visited = read_dataset(folder / UNLABELLED)
    if (folder / CARD).is_file():
        labelled = read_dataset(folder)
        if not same_teacher(labelled.card["teacher"], card):
            raise UserError(
                f"{folder} holds a dataset of another teacher: move its {CARD} and shards away, then --resume"
            )
    else:
        empty = empty_dataset(folder, visited.task, policy.score_kind, card)
        labelled = write_card(replace(empty, card={**empty.card, "recordings": visited.card["recordings"]}))
    progress.start(f"label {folder}", visited.control_steps, "steps", done=labelled.control_steps)
    for shard in visited.shards[len(labelled.shards) :]:
        parts = [part._replace(values=_labels(part, visited, policy)) for part in visited.parts(shard)]
        labelled = append_shard(labelled, parts, number=shard_number(shard.file))
        progress.update(labelled.control_steps)
    remove_own(folder / UNLABELLED, lambda path: _OWN.fullmatch(path.name) is not None)
    progress.say(f"{labelled.control_steps:,} states of the training, with the policy's labels: {folder}")


def _labels(part: Shard, dataset: Dataset, policy: Teacher) -> Floats:
    """The policy's values (T, A) of the rows of one environment; 0 in context rows."""
    replay = Replay(dataset.task, 1, len(part.frames), {})
    replay.add_frames(part.frames, part.starts)
    values = np.zeros_like(part.values)
    times = np.flatnonzero(~part.context).astype(np.int64)
    for some in (times[at : at + _BATCH] for at in range(0, len(times), _BATCH)):
        observations = replay.observations(some, np.zeros_like(some))
        masks = None if part.masks is None else part.masks[some]
        values[some] = labels_of(policy, observations, dataset.task, masks).numpy()
    return values
