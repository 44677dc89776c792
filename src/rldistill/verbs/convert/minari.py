"""Shards to Minari's episodes and back: rows are put together anew, and a dataset of others gets a teacher's labels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rldistill.datasets.episodes import Episode, read_episodes, stacked_observations
from rldistill.datasets.rows import Shard, frame_shape, joined, label_width
from rldistill.datasets.shards import Dataset, append_shard, empty_dataset, parse_card, shard_number, write_card
from rldistill.formats.minari.episodes import KEY, MASKS, VALUES, MinariEpisode, Origin, readable
from rldistill.formats.minari.reading import MinariData, check_spaces, read_episode, read_own_episode
from rldistill.formats.minari.writing import LONGEST, write_minari
from rldistill.policies import KeptPolicy
from rldistill.progress import Progress
from rldistill.types import Task, UserError, as_tensor

SHARD_STEPS = 16_384
"""Least control steps of a shard that is made from episodes; the last one may have fewer."""
_LABEL_ROWS = 256


def to_minari(dataset: Dataset, episodes: Sequence[Episode], folder: Path, name: str, progress: Progress) -> list[str]:
    """Writes Minari's data into a folder that exists; returns what a user should know of it.

    Args:
        dataset: to write.
        episodes: all of its episodes.
        folder: the data lie in `data` below it.
        name: by which `minari.load_dataset` will find it.
        progress: shows how far it is.

    Raises:
        UserError: minari is not installed, a shard is damaged, or an episode is too long.
        OSError: the disk is full.
    """
    task = dataset.task
    if any(episode.steps + task.frame_stack > LONGEST for episode in episodes):
        raise UserError(f"an episode of {dataset.path} has more than the {LONGEST:,} steps that Minari can read")
    card = {key: value for key, value in dataset.card.items() if key not in ("shards", "control_steps")}
    text = f"{task.env}, recorded by rldistill with a teacher's values of each step ({dataset.score_kind})"
    write_minari(
        _played(dataset, episodes),
        folder,
        {"dataset_id": name, KEY: card, "description": text},
        task,
        frame_shape=frame_shape(task),
        control_steps=dataset.control_steps,
        progress=progress,
    )
    return _notes(dataset, episodes)


def _played(dataset: Dataset, episodes: Sequence[Episode]) -> Iterator[MinariEpisode]:
    for episode, rows in read_episodes(dataset, episodes):
        origin = Origin(
            recording=episode.recording,
            environment=episode.environment,
            begun=bool(rows.starts[0]),
            ended=episode.ended,
            context=len(rows.frames) - episode.steps,
            sha256=_checksum(rows),
        )
        columns = (rows.frames, rows.actions, rows.rewards, rows.terminated, rows.truncated, rows.values, rows.masks)
        yield MinariEpisode(*columns, origin)


def from_own(data: MinariData, folder: Path, progress: Progress) -> list[str]:
    """Writes shards and card of a dataset that was written by `to_minari`; returns what a user should know of them.

    Raises:
        UserError: the dataset is damaged.
    """
    card = data.card
    if not isinstance(card, dict):
        raise UserError(f"{data.path} is damaged: what it holds of rldistill is no card")
    task, score_kind, _ = parse_card({**card, "shards": []}, str(data.path))
    empty = empty_dataset(folder, task, score_kind, card["teacher"])
    collected = _Collected(replace(empty, card={**empty.card, **card}))
    recordings = [dict(item) for item in card["recordings"]]
    at, environments, done = -1, set[int](), 0
    progress.start("read Minari", data.steps, "steps")
    for number in range(data.episodes):
        episode = read_own_episode(data, number, task)
        origin = episode.origin
        assert origin is not None
        with readable(data.path, number):
            rows = _rows_of(episode, begun=origin.begun, environment=origin.environment, context=origin.context)
            if _checksum(rows) != origin.sha256:
                raise ValueError("its checksum does not fit")
        if origin.recording != at:
            collected.flush()
            for item in recordings[at + 1 : origin.recording + 1]:
                item["first_shard"] = len(collected.dataset.shards)
            at, environments = origin.recording, set()
        # The rows before those of an episode without a beginning are missing: time must not go on from the rows that are there.
        # Where context rows stand in front, the episode's start may be among them.
        if (origin.context or not origin.begun) and origin.environment in environments:
            collected.flush(gap=True)
            environments = set()
        environments.add(origin.environment)
        collected.add(rows)
        done += len(rows.frames) - origin.context
        progress.update(done)
    collected.flush()
    for item in recordings[at + 1 :]:
        item["first_shard"] = len(collected.dataset.shards)
    context = sum(shard.rows - shard.control_steps for shard in collected.dataset.shards)
    _check_count(data.path, done, data.steps - context)
    write_card(replace(collected.dataset, card={**collected.dataset.card, "recordings": recordings}))
    return ["rows stand episode after episode, in new shards"]


def from_others(
    data: MinariData,
    folder: Path,
    teacher: KeptPolicy,
    task: Task,
    *,
    teacher_card: Mapping[str, Any],
    recording: Mapping[str, Any],
    progress: Progress,
) -> list[str]:
    """Writes shards and card of a dataset that has no teacher's values; returns what a user should know of them.

    Args:
        data: the dataset.
        folder: of the new dataset.
        teacher: labels it.
        task: that the teacher plays there.
        teacher_card: for the dataset's card, what is known of the teacher.
        recording: for the dataset's card, how the dataset came about.
        progress: shows how far it is.

    Raises:
        UserError: the dataset is damaged or does not suit the teacher's task, or a label is no number.
    """
    task = replace(task, action_masks=False)  # infos are left out
    channels_last = check_spaces(data, task, frame_shape(task))
    collected = _Collected(empty_dataset(folder, task, teacher.score_kind, teacher_card).with_recording(recording))
    rounded, infos, done = set[str](), set[str](), 0
    progress.start("read Minari and label it", data.steps, "steps")
    for number in range(data.episodes):
        episode = read_episode(data, number, task, channels_last=channels_last)
        infos |= episode.infos
        rounded |= episode.rounded
        if not len(episode.rewards):
            continue
        width = label_width(collected.dataset)
        unlabelled = episode._replace(values=np.zeros((len(episode.rewards), width), np.float32))
        rows = _rows_of(unlabelled, begun=True, environment=0, context=0)
        for at in _batches(len(rows.frames)):
            with torch.no_grad():
                rows.values[at] = teacher(as_tensor(stacked_observations(rows, task, at))).numpy()
            if not np.isfinite(rows.values[at]).all():
                raise UserError(
                    f"{teacher.name} gives NaN or infinity in episode {number} of {data.path}: it cannot label it"
                )
            progress.update(done + int(at[-1]) + 1)
        collected.add(rows)
        done += len(rows.frames)
    collected.flush()
    _check_count(data.path, done, data.steps)
    write_card(collected.dataset)
    notes = ["the last observation of each episode, after its last step, is left out"]
    notes += [f"{', '.join(sorted(rounded))} were rounded to float32"] if rounded else []
    notes += [f"infos are left out: {', '.join(sorted(infos))}"] if infos else []
    return [*notes, f"the values are those of {teacher.name}, who need not have played"]


def _batches(length: int) -> Iterator[Any]:
    for low in range(0, length, _LABEL_ROWS):
        yield np.arange(low, min(low + _LABEL_ROWS, length))


def _rows_of(episode: MinariEpisode, *, begun: bool, environment: int, context: int) -> Shard:
    length = len(episode.rewards)
    assert episode.values is not None
    return Shard(
        frames=episode.frames,
        starts=(np.arange(length) == 0) & begun,
        context=np.arange(length) < context,
        environments=np.full(length, environment, np.int32),
        actions=episode.actions,
        rewards=episode.rewards,
        terminated=episode.terminated,
        truncated=episode.truncated,
        values=episode.values,
        masks=episode.masks,
    )


class _Collected:
    """Episodes that become a shard when there are enough of them."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._parts: list[Shard] = []
        self._rows = self._number = 0

    def add(self, rows: Shard) -> None:
        self._parts.append(rows)
        self._rows += len(rows.frames)
        if self._rows >= SHARD_STEPS:
            self.flush()

    def flush(self, *, gap: bool = False) -> None:
        """Writes what there is, a record batch an environment; with a `gap` a number is left out before the next shard.

        Context rows come first in their batch: what has some is the first of its environment since the last gap.
        """
        if self._parts:
            grouped = groupby(self._parts, key=lambda part: int(part.environments[0]))
            parts = [joined(list(group)) for _, group in grouped]
            self.dataset = append_shard(self.dataset, parts, number=self._number)
            self._number = shard_number(self.dataset.shards[-1].file) + 1
        self._parts, self._rows = [], 0
        self._number += gap


def _checksum(rows: Shard) -> str:
    """Of all columns. Minari's files have none."""
    digest = hashlib.sha256()
    for column in rows:
        if column is not None:
            digest.update(np.ascontiguousarray(column).data)
    return digest.hexdigest()


def _check_count(source: Path, counted: int, expected: int) -> None:
    if counted != expected:
        raise UserError(f"{source} is damaged: it has {counted} steps, its metadata say {expected}")


def _notes(dataset: Dataset, episodes: Sequence[Episode]) -> list[str]:
    stack = dataset.task.frame_stack
    cut = sum(not episode.ended for episode in episodes)
    led = sum(episode.lead is not None for episode in episodes)
    notes = []
    if stack > 1:
        notes.append(
            f"observations are single frames: the policy saw the last {stack}, zeros before an episode's first"
        )
    notes.append(f"the teacher's values are infos[{VALUES!r}], NaN at an episode's last observation")
    if dataset.task.action_masks:
        notes.append(f"the allowed actions are infos[{MASKS!r}], none at an episode's last observation")
    notes.append("what an episode ended with was not recorded: its last observation stands twice")
    if cut:
        notes.append(f"{cut} episodes that the recording cut off are marked as truncated")
    if led:
        notes.append(f"{led} episodes lack their beginning: up to {stack - 1} first steps only hold frames, no actions")
    return notes
