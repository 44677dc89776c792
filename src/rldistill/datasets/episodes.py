"""The episodes in a dataset's shards.

The rows of an environment are in one record batch of each shard. They are joined, environment after environment, and cut
where an episode begins.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rldistill.datasets.rows import Shard, joined
from rldistill.datasets.shards import Dataset, ShardEntry, shard_number
from rldistill.play.replay import Replay
from rldistill.progress import Progress, Silent
from rldistill.types import Observations, Task, UserError

_COLUMNS = ("start", "context", "environment", "reward", "terminated", "truncated")


class Piece(NamedTuple):
    """Rows of one record batch that follow each other in time."""

    shard: int
    """Its place in the card."""
    batch: int
    low: int
    high: int


class Episode(NamedTuple):
    """Control steps of one environment from a start to the next, or to the end of its rows."""

    number: int
    """From 0: recording after recording, environment after environment, in the order of time."""
    recording: int
    """Place in the card's `recordings`."""
    environment: int
    steps: int
    score: float
    """Sum of the rewards."""
    begun: bool
    """Whether its first control step is the first of the episode."""
    ended: bool
    """Whether it was terminated or truncated, and not only cut off where the recording ends."""
    pieces: tuple[Piece, ...]
    lead: Piece | None
    """The context rows of the first stack, where the beginning of the episode is missing."""

    @property
    def whole(self) -> bool:
        """Whether the score is that of a full episode."""
        return self.begun and self.ended


@dataclass
class _Track:
    """An unfinished episode."""

    recording: int
    environment: int
    begun: bool
    lead: Piece | None = None
    pieces: list[Piece] = field(default_factory=list)
    score: float = 0.0
    ended: bool = False


def find_episodes(
    dataset: Dataset, *, verify: bool = True, progress: Progress | None = None
) -> tuple[list[Episode], dict[str, str]]:
    """All episodes, and the problems of unreadable shards (file name to text).

    Args:
        dataset: whose shards are read; frames are not unpacked.
        verify: whether checksums are compared.
        progress: notified of the steps read.
    """
    progress = progress or Silent()
    beginnings = sorted(item.get("first_shard", 0) for item in dataset.card["recordings"])
    tracks: dict[int, _Track] = {}
    closed: list[_Track] = []
    damaged: dict[str, str] = {}
    before: ShardEntry | None = None
    done = 0
    progress.start(f"{'check' if verify else 'read'} {dataset.path}", dataset.control_steps, "steps")
    for place, shard in enumerate(dataset.shards):
        if place in beginnings or (before is not None and shard_number(shard.file) != shard_number(before.file) + 1):
            _close(tracks, closed)  # another recording, or a missing shard: the rows do not follow in time
        recording = max(bisect_right(beginnings, place) - 1, 0)
        try:
            for batch, columns in enumerate(list(dataset.columns(shard, _COLUMNS, verify=verify))):
                for low, high in _runs(columns):
                    _follow(columns, Piece(place, batch, low, high), recording, tracks, closed)
        except UserError as error:
            damaged[shard.file] = str(error)
            _close(tracks, closed)
        before = shard
        done += shard.control_steps
        progress.update(done)
    _close(tracks, closed)
    closed.sort(key=lambda track: (track.recording, track.environment))  # stable, so in the order of time
    return [_episode(number, track) for number, track in enumerate(closed)], damaged


def _runs(columns: dict[str, npt.NDArray[Any]]) -> Iterable[tuple[int, int]]:
    """Ranges of rows of one environment each, context rows first."""
    environment, context = columns["environment"], columns["context"]
    if not len(environment):
        return []
    cuts = np.flatnonzero((np.diff(environment) != 0) | (context[1:] & ~context[:-1])) + 1
    return zip([0, *cuts.tolist()], [*cuts.tolist(), len(environment)], strict=True)


def _follow(
    columns: dict[str, npt.NDArray[Any]],
    rows: Piece,
    recording: int,
    tracks: dict[int, _Track],
    closed: list[_Track],
) -> None:
    """Adds an environment's rows to its episode, and begins new ones where they start."""
    low, high = rows.low, rows.high
    first = low + int(columns["context"][low:high].sum())
    if first == high:
        return
    environment = int(columns["environment"][low])
    starts = (np.flatnonzero(columns["start"][first:high]) + first).tolist()
    if starts[:1] != [first]:
        if environment not in tracks:
            begins = np.flatnonzero(columns["start"][low:first])
            at = low + (int(begins[-1]) if len(begins) else 0)
            lead = rows._replace(low=at, high=first) if at < first else None
            tracks[environment] = _Track(recording, environment, begun=False, lead=lead)
        starts.insert(0, first)
    for at, end in zip(starts, [*starts[1:], high], strict=True):
        if columns["start"][at]:
            if environment in tracks:
                closed.append(tracks[environment])
            tracks[environment] = _Track(recording, environment, begun=True)
        track = tracks[environment]
        track.pieces.append(rows._replace(low=at, high=end))
        track.score += float(columns["reward"][at:end].sum(dtype=np.float64))
        track.ended = bool(columns["terminated"][end - 1] or columns["truncated"][end - 1])


def _close(tracks: dict[int, _Track], closed: list[_Track]) -> None:
    closed.extend(tracks[environment] for environment in sorted(tracks))
    tracks.clear()


def _episode(number: int, track: _Track) -> Episode:
    steps = sum(piece.high - piece.low for piece in track.pieces)
    pieces, lead = tuple(track.pieces), track.lead
    return Episode(
        number, track.recording, track.environment, steps, track.score, track.begun, track.ended, pieces, lead
    )


def read_episodes(dataset: Dataset, episodes: Sequence[Episode]) -> Iterator[tuple[Episode, Shard]]:
    """Each episode with its rows, those of `lead` first. Memory holds one episode and one record batch at a time.

    Raises:
        UserError: a shard is damaged.
    """
    at: tuple[int, int] | None = None
    part: Shard | None = None
    for episode in episodes:
        rows = []
        for piece in [*([episode.lead] if episode.lead else []), *episode.pieces]:
            if part is None or (piece.shard, piece.batch) != at:
                part, at = dataset.part(dataset.shards[piece.shard], piece.batch), (piece.shard, piece.batch)
            rows.append(part.rows(piece.low, piece.high))
        yield episode, joined(rows)


def stacked_observations(rows: Shard, task: Task, at: npt.NDArray[np.int64]) -> Observations:
    """The observations (N, *obs) at some rows of an episode, with their stacks."""
    replay = Replay(task, 1, len(rows.frames), {})
    replay.add_frames(rows.frames, rows.starts)
    return replay.observations(at, np.zeros(len(at), np.int64))
