"""Writing of datasets: control steps of vectorized environments are collected until they fill a shard."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rldistill.datasets.rows import Shard, frame_shape, joined, label_width
from rldistill.datasets.shards import Dataset, append_shard
from rldistill.play.actions import action_layout
from rldistill.play.replay import mask_column
from rldistill.types import Actions, Bools, Floats, Masks, Observations, UserError


class DatasetWriter:
    """Collects the control steps of vectorized environments, and appends a shard whenever one is full.

    Args:
        dataset: to append to; the attribute `dataset` is always the state on disk.
        num_envs: rows that are added together.
        shard_steps: the most control steps of a shard, of all rows together; at least one of each row.

    Raises:
        UserError: no memory for a shard.
    """

    def __init__(self, dataset: Dataset, num_envs: int, shard_steps: int) -> None:
        self.dataset = dataset
        self.num_envs = num_envs
        self._task = dataset.task
        self._length = max(shard_steps // num_envs, 1)
        self._stack = dataset.task.frame_stack
        self._depth = frame_shape(dataset.task)[0]
        self._heads: list[Shard] = []
        """The context rows of each row's part."""
        # Time is the second axis, so that the part of each row is contiguous.
        shape = (num_envs, self._length)
        kinds: dict[str, tuple[tuple[int, ...], npt.DTypeLike]] = {
            "frames": (frame_shape(dataset.task), dataset.task.observation_dtype),
            "starts": ((), np.bool_),
            "actions": action_layout(dataset.task),
            "rewards": ((), np.float32),
            "terminated": ((), np.bool_),
            "truncated": ((), np.bool_),
            "values": ((label_width(dataset),), np.float32),
            **mask_column(dataset.task),
        }
        try:
            self._columns = {name: np.zeros((*shape, *item), dtype) for name, (item, dtype) in kinds.items()}
        except (MemoryError, ValueError):  # ValueError where the size is beyond all memory
            raise UserError(f"no memory for a shard of {shard_steps} control steps: lower --shard-steps") from None
        self._lengths = np.zeros(num_envs, dtype=np.int64)
        # A row that begins in the middle of an episode has a full stack, all of it context.
        self._ages = np.full(num_envs, self._stack, dtype=np.int64)
        self._number: int | None = None
        """Of the next shard; None for the one after the last."""

    def begin(self, number: int, ages: npt.NDArray[np.int64]) -> None:
        """Begins the shard of a number, which need not follow the last one in time. What was collected is a shard before it.

        Args:
            number: above those of all shards so far.
            ages: (N,) control steps since the episode of each row began.

        Raises:
            UserError: as `append_shard`.
        """
        self.flush()
        self._number, self._ages = number, ages.copy()

    def add(
        self,
        observations: Observations,
        starts: Bools,
        actions: Actions,
        rewards: Floats,
        terminated: Bools,
        truncated: Bools,
        values: Floats,
        masks: Masks | None = None,
        *,
        keep: int | None = None,
    ) -> None:
        """Adds one control step of all rows, (N, ...) each; `keep` takes only the first rows, and ends the shard.

        Raises:
            UserError: as `append_shard`, when the shard is full.
        """
        rows = self.num_envs if keep is None else keep
        at = int(self._lengths[0])
        self._ages = np.where(starts, 0, self._ages)
        if at == 0:
            self._heads = [self._head(row, observations[row]) for row in range(self.num_envs)]
        newest = observations[:, -self._depth :] if self._stack > 1 else observations
        columns = dict(frames=newest, starts=starts, actions=actions, rewards=rewards)
        columns |= dict(terminated=terminated, truncated=truncated, values=values)
        if masks is not None:
            columns["masks"] = masks
        for name, column in columns.items():
            self._columns[name][:rows, at] = column[:rows]
        self._ages += 1
        self._lengths[:rows] += 1
        if at + 1 == self._length or rows < self.num_envs:
            self.flush()

    def flush(self) -> None:
        """Appends the collected control steps as a shard, which may be short.

        Raises:
            UserError: as `append_shard`.
        """
        if not self._lengths.any():
            return
        parts = []
        for row in np.flatnonzero(self._lengths):
            taken = {name: column[row, : self._lengths[row]] for name, column in self._columns.items()}
            length = int(self._lengths[row])
            body = Shard(context=np.zeros(length, np.bool_), environments=np.full(length, row, np.int32), **taken)
            head = self._heads[row]
            parts.append(joined([head, body]) if len(head.frames) else body)
        self.dataset = append_shard(self.dataset, parts, number=self._number)
        self._lengths[:], self._number = 0, None

    def _head(self, row: int, observation: npt.NDArray[Any]) -> Shard:
        """Context rows with the older frames of a stack, as far as they are of the same episode."""
        length = int(min(self._ages[row], self._stack - 1))
        shape = frame_shape(self._task)
        older = observation.reshape(self._stack, *shape)[-1 - length : -1] if length else np.empty((0, *shape))
        starts = np.zeros(length, np.bool_)
        starts[:1] = length == self._ages[row] and length > 0
        return Shard(
            frames=older.astype(self._task.observation_dtype),
            starts=starts,
            context=np.ones(length, np.bool_),
            environments=np.full(length, row, np.int32),
            actions=np.zeros((length, *action_layout(self._task)[0]), action_layout(self._task)[1]),
            rewards=np.zeros(length, np.float32),
            terminated=np.zeros(length, np.bool_),
            truncated=np.zeros(length, np.bool_),
            values=np.zeros((length, label_width(self.dataset)), np.float32),
            masks=np.zeros((length, self._task.mask_size), np.bool_) if self._task.action_masks else None,
        )
