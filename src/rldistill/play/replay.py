"""A replay of recent control steps: each frame is kept once, and stacks are rebuilt when they are sampled."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from rldistill.types import Bools, Observations, Task, UserError

Rows = npt.NDArray[np.int64]

_COLUMNS = (
    "frames",
    "starts",
    "checksums",
    "values",
    "actions",
    "rewards",
    "terminated",
    "truncated",
    "masks",
    "owners",
    "inside",
    "labelled",
    "contexts",
)
FILES = rf"replay-(?:{'|'.join(_COLUMNS)})"
"""The names of all files in a scratch folder."""


Columns: TypeAlias = Mapping[str, tuple[tuple[int, ...], npt.DTypeLike]]
"""Names to shape and type of one control step."""


def mask_column(task: Task) -> Columns:
    """The column of a task with action masks; none of one without."""
    return {"masks": ((task.mask_size,), np.bool_)} if task.action_masks else {}


def _all_columns(task: Task, columns: Columns) -> Columns:
    """The columns, and before them the newest frame of a stack and whether it begins an episode."""
    shape, stack = task.observation_shape, task.frame_stack
    frame = (shape[0] // stack, *shape[1:]) if stack > 1 else shape
    return {"frames": (frame, task.observation_dtype), "starts": ((), np.bool_), **columns}


def _times(task: Task, num_envs: int, capacity: int) -> int:
    """How often all rows are added until `capacity` control steps are there, at least until a stack is."""
    return max(-(-capacity // num_envs), task.frame_stack + 1)


def ring_bytes(task: Task, num_envs: int, capacity: int, columns: Columns, *, slack: int) -> int:
    """Bytes of the scratch files of a `Replay` with these arguments."""
    times = _times(task, num_envs, capacity) + -(-slack // num_envs)
    each = (
        int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        for shape, dtype in _all_columns(task, columns).values()
    )
    return times * (num_envs * sum(each) + np.dtype(np.uint32).itemsize)


def own_scratch(scratch: Path, place: int) -> Path:
    """Where the replay of the lesson in a place lies: of the first in the folder itself, of the others in folders of their own.

    Raises:
        UserError: the folder cannot be made.
    """
    if not place:
        return scratch
    own = scratch / f"lesson-{place}"
    try:
        own.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {own}: {error.strerror}") from None
    return own


class Replay:
    """A ring of the last control steps of `num_envs` environments.

    An Atari observation is four frames of which three were there before, so only the newest is kept: 540,000 control steps
    are 3.6 GiB instead of 14.2. Named columns of any shape (actions, teacher's values, ...) are kept beside the frames.

    With a `scratch` folder the ring lies in files mapped into memory, with some room beyond `capacity`. A checkpoint is then
    no more than the position: a process killed at any moment finds its frames again, as long as it saves whenever
    `must_save` says so. A checksum is kept of each time, and looked at when going back.

    Args:
        task: gives the shape of observations and the stack.
        num_envs: rows added together.
        capacity: control steps (of all rows together) to sample from.
        columns: name to (shape, dtype) of one control step.
        scratch: folder for the files; None keeps the ring in the process.
        slack: control steps of room beyond `capacity`, with `scratch` alone.
        advice: how to mend a lack of room.

    Raises:
        UserError: no memory or disk for it.
    """

    def __init__(
        self,
        task: Task,
        num_envs: int,
        capacity: int,
        columns: Columns,
        *,
        scratch: Path | None = None,
        slack: int = 0,
        advice: str = "lower --replay",
    ) -> None:
        self.num_envs = num_envs
        self.stack = task.frame_stack
        self.capacity = _times(task, num_envs, capacity)
        self._length = self.capacity + (-(-slack // num_envs) if scratch else 0)
        self._scratch, self._advice = scratch, advice
        self.added = 0
        """Times that all rows were added, since the beginning."""
        self._saved_at = 0
        """What was added at the last checkpoint."""
        kinds = _all_columns(task, columns)
        self._mapped: list[np.memmap[Any, Any]] = []
        self._arrays = {
            name: self._allocate(name, (self._length, num_envs, *item), dtype) for name, (item, dtype) in kinds.items()
        }
        self._checksums = self._allocate("checksums", (self._length,), np.uint32) if scratch else None

    def _allocate(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        try:
            if self._scratch is None:
                return np.empty(shape, dtype=dtype)
            path = self._scratch / f"replay-{name}"
            assert re.fullmatch(FILES, path.name)
            fresh = not path.exists()
            if not fresh and not path.is_file():
                raise UserError(f"{path} is no file: remove it")
            try:
                with open(path, "ab") as file:
                    os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error now, not a bus error later
            except OSError:
                if fresh:
                    path.unlink(missing_ok=True)
                raise
            self._mapped.append(np.memmap(path, dtype=dtype, mode="r+", shape=shape))
            return np.asarray(self._mapped[-1])  # a plain view: what indexes a memmap goes through Python each time
        except (MemoryError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else "out of memory"
            raise UserError(f"no room for a replay of {size / 2**30:.3g} GiB ({reason}): {self._advice}") from None

    def __contains__(self, column: str) -> bool:
        """Whether there is a column of this name."""
        return column in self._arrays

    def __len__(self) -> int:
        """Control steps to sample from."""
        return min(self.added, self.capacity) * self.num_envs

    @property
    def nbytes(self) -> int:
        """Bytes of the whole ring, in memory or mapped."""
        return sum(array.nbytes for array in self._arrays.values())

    def add(self, observations: Observations, starts: Bools, **columns: npt.NDArray[Any]) -> None:
        """One control step of all rows: observations (N, *obs), whether they begin an episode (N,), the columns (N, ...)."""
        at = self.added % self._length
        newest = observations[:, -self._arrays["frames"].shape[2] :] if self.stack > 1 else observations
        self._arrays["frames"][at] = newest
        self._arrays["starts"][at] = starts
        for name, values in columns.items():
            self._arrays[name][at] = values
        if self._checksums is not None:
            self._checksums[at] = self._checksum(self.added)
        self.added += 1

    def _checksum(self, time: int) -> int:
        checksum = zlib.crc32(time.to_bytes(8, "little"))  # so that a later time in this place has another checksum
        own = ("owners", "labelled")
        written_again = ("values", *own) if any(name in self._arrays for name in own) else ()
        for name, array in self._arrays.items():
            if name not in written_again:
                checksum = zlib.crc32(array[time % self._length], checksum)
        return checksum

    def add_frames(self, frames: npt.NDArray[Any], starts: Bools, **columns: npt.NDArray[Any]) -> None:
        """Many control steps of a single row, already as frames: (T, *frame), (T,) and (T, ...); at most `capacity`.
        Not with scratch."""
        assert self.num_envs == 1
        assert self._checksums is None
        rows = (self.added + np.arange(len(frames))) % self._length
        for name, values in {"frames": frames, "starts": starts, **columns}.items():
            self._arrays[name][rows, 0] = values
        self.added += len(frames)

    def sample(
        self, generator: np.random.Generator, size: int, *, ahead: int = 0, among: str | None = None
    ) -> tuple[Rows, Rows]:
        """Times and rows, drawn uniformly, of which `ahead` later times are there too.

        Observations whose stack reaches back beyond the oldest kept frame are not drawn. With `among`, a column of truth values,
        only places where it is true are drawn, and none if there are none.
        """
        oldest = max(self.added - self.capacity, 0) + (self.stack - 1 if self.added > self.capacity else 0)
        if among is not None:
            every = np.arange(oldest, self.added - ahead)
            places = np.flatnonzero(self._arrays[among][every % self._length])
            chosen = places[generator.integers(len(places), size=size)] if len(places) else places
            return oldest + chosen // self.num_envs, chosen % self.num_envs
        times = generator.integers(oldest, self.added - ahead, size=size)
        return times, generator.integers(self.num_envs, size=size)

    def observations(self, times: Rows, rows: Rows) -> Observations:
        """(B, *obs): stacks rebuilt, zeros where they would reach into the episode before."""
        frames, starts = self._arrays["frames"], self._arrays["starts"]
        places = (times % self._length) * self.num_envs + rows
        if self.stack == 1:
            return self._gathered(places)
        back = np.arange(self.stack - 1, -1, -1)
        at = np.maximum(times[:, None] - back, 0) % self._length  # (B, stack), the newest last
        out = self._gathered((at * self.num_envs + rows[:, None]).ravel())
        out = out.reshape(len(times), self.stack * frames.shape[2], *frames.shape[3:])
        # A frame belongs to the episode if none of the later ones up to the newest begins it.
        begun = starts[at[:, 1:], rows[:, None]]
        if begun.any():
            gone = np.logical_or.accumulate(begun[:, ::-1], axis=1)[:, ::-1]
            out.reshape(len(times), self.stack, -1)[:, :-1][gone] = 0
        return out

    def _gathered(self, places: Rows) -> Observations:
        """Frames by their place in the whole ring: torch copies them in several threads."""
        frames = torch.from_numpy(self._arrays["frames"])
        return np.asarray(torch.index_select(frames.flatten(0, 1), 0, torch.from_numpy(places)))

    def column(self, name: str, times: Rows, rows: Rows) -> npt.NDArray[Any]:
        """(B, ...) of a column, or of `starts`."""
        return np.asarray(self._arrays[name][times % self._length, rows])

    def relabel(self, times: Rows, rows: Rows, values: npt.NDArray[Any], owner: int) -> None:
        """Writes other labels (B, K), and their owner, at times and rows. No checksum covers what can be written again."""
        self._arrays["owners"][times % self._length, rows] = -1  # a process killed in between leaves labels of nobody
        self._arrays["values"][times % self._length, rows] = values
        self._arrays["owners"][times % self._length, rows] = owner

    def add_label(self, times: Rows, rows: Rows, arm: int, values: npt.NDArray[Any]) -> None:
        """Writes one teacher's labels (B, K) at times and rows, where the columns `values` and `labelled` have those of several."""
        self._arrays["values"][times % self._length, rows, arm] = values
        # After the values: a process killed in between leaves states that count as not labelled.
        self._arrays["labelled"][times % self._length, rows, arm] = True

    def must_save(self, ahead: int) -> bool:
        """Whether `state_dict` is due now, because adding all rows `ahead` more times may overwrite what the last one needs."""
        oldest_needed = max(self._saved_at - self.capacity, 0)
        return self._checksums is not None and self.added + ahead - self._length > oldest_needed

    def state_dict(self) -> dict[str, Any]:
        """The position, after what was added so far is safe on disk.

        Raises:
            ValueError: the ring lies in memory.
        """
        if self._checksums is None:
            raise ValueError("a replay without scratch files cannot be saved")
        for array in self._mapped:
            array.flush()
        self._saved_at = self.added
        return {"added": self.added}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back to the position; the frames before it must still lie in the files.

        Raises:
            UserError: they do not, or were altered.
        """
        if self._checksums is None:
            raise ValueError("a replay without scratch files cannot be loaded")
        self.added = self._saved_at = int(state["added"])
        for time in range(max(self.added - self.capacity, 0), self.added):
            if self._checksums[time % self._length] != self._checksum(time):
                raise UserError(
                    f"the replay in {self._scratch} is damaged (a checksum does not fit); start anew with another --out"
                )
