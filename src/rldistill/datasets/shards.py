"""The dataset folder: observations with a teacher's scores, in shards that can be read independently.

`dataset.json`, the card, says what was recorded and lists the shards with their checksums. A shard is an Arrow IPC file
compressed with zstd, one record batch for each environment: its control steps in order, each with its newest frame
alone. Before them stand the up to `frame_stack - 1` frames that the first observation's stack needs (`context` rows),
so that a shard never needs another one. A shard is there as a whole before the card names it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self, get_args

import numpy as np
import numpy.typing as npt

from rldistill.arguments import checked_arguments
from rldistill.datasets.rows import ADVICE, FORMAT, VERSION, Shard, check_rows, frame_shape, joined, label_width
from rldistill.documents import read_json
from rldistill.files import read_regular, replace_file, sweep
from rldistill.play.actions import action_layout
from rldistill.play.replay import Replay, mask_column
from rldistill.progress import Progress, Silent
from rldistill.types import ScoreKind, Task, UserError, printable

CARD = "dataset.json"
SHARD = r"shard-[0-9]{5,18}\.arrow"
"""Names of shards."""
UNLABELLED = "unlabelled"
"""A dataset folder in a dataset folder: its states wait for the labels of a policy that is still learning."""

_MOST_ROWS = 2**53


class ShardEntry(NamedTuple):
    """The entry of a shard in the card."""

    file: str
    rows: int
    """Context rows among the rows."""
    control_steps: int
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Dataset:
    """A dataset folder as its card describes it. Shards are read and checked when they are needed."""

    path: Path
    task: Task
    score_kind: ScoreKind
    """The kind of the teacher's values."""
    card: Mapping[str, Any]
    """The contents of `dataset.json`."""
    shards: tuple[ShardEntry, ...]

    @property
    def control_steps(self) -> int:
        """Labelled control steps in the shards."""
        return sum(shard.control_steps for shard in self.shards)

    @property
    def sha256(self) -> str:
        """Of the shards."""
        return hashlib.sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()

    def read(self, index: int) -> Shard:
        """All rows of a shard, environment after environment.

        Raises:
            UserError: the shard is missing, truncated or altered, or holds NaN or infinity. The others can be read.
        """
        return joined(list(self.parts(self.shards[index])))

    def problems(self) -> dict[str, str]:
        """The problems of unreadable shards, by file name. Reads every shard."""
        problems = {}
        for shard in self.shards:
            try:
                for _ in self.parts(shard):
                    pass
            except UserError as error:
                problems[shard.file] = str(error)
        return problems

    def intact(self) -> Self:
        """The dataset without its unreadable shards. Its recordings begin at the same shards, which are renumbered."""
        damaged = self.problems()
        dropped = [place for place, shard in enumerate(self.shards) if shard.file in damaged]
        recordings = [dict(item) for item in self.card["recordings"]]
        for item in recordings:
            if "first_shard" in item:
                item["first_shard"] -= bisect_left(dropped, item["first_shard"])
        shards = tuple(shard for shard in self.shards if shard.file not in damaged)
        return replace(self, shards=shards, card={**self.card, "recordings": recordings})

    def with_recording(self, settings: Mapping[str, Any]) -> Self:
        """The dataset with an entry for the recording that follows. The entry is written to disk with the first shard."""
        return replace(self, card={**self.card, "recordings": [*self.card["recordings"], dict(settings)]})

    def parts(self, shard: ShardEntry) -> Iterator[Shard]:
        """The rows of a shard, one record batch at a time.

        Raises:
            UserError: as `read`.
        """
        from rldistill.datasets import arrow  # imported here, because it takes a fifth of a second and 25 MB

        path = self.path / shard.file
        data = self.checked_bytes(shard)
        with arrow.readable_shard(path):
            rows = labelled = 0
            for batch in arrow.batches(data, self, shard.rows):
                part = arrow.shard_from(batch, self)
                rows += len(part.frames)
                labelled += int((~part.context).sum())
                yield part
            _check_counts(shard, rows, labelled)

    def part(self, shard: ShardEntry, batch: int) -> Shard:
        """The rows of one record batch of a shard.

        Raises:
            UserError: as `read`.
        """
        from rldistill.datasets import arrow

        data = self.checked_bytes(shard)
        with arrow.readable_shard(self.path / shard.file):
            return arrow.shard_from(next(arrow.batches(data, self, shard.rows, first=batch)), self)

    def columns(
        self, shard: ShardEntry, names: Sequence[str], *, verify: bool
    ) -> Iterator[dict[str, npt.NDArray[Any]]]:
        """Some plain columns, one record batch at a time, without unpacking the others.

        Args:
            shard: one of `shards`.
            names: columns that hold one value a row; `context` must be among them.
            verify: whether the checksum is looked at, for which the whole shard is read.

        Raises:
            UserError: the shard is missing, truncated or, with `verify`, altered.
        """
        from rldistill.datasets import arrow

        path = self.path / shard.file
        data = self.checked_bytes(shard) if verify else None
        with arrow.readable_shard(path):
            if data is None and (size := path.stat().st_size) != shard.bytes:
                raise ValueError(f"it has {size} bytes of {shard.bytes}")
            rows = labelled = 0
            for batch in arrow.batches(path if data is None else data, self, shard.rows, names=names):
                unpacked = {name: batch.column(name).to_numpy(zero_copy_only=False) for name in names}
                rows += batch.num_rows
                labelled += int((~unpacked["context"]).sum())
                yield unpacked
            _check_counts(shard, rows, labelled)

    def checked_bytes(self, shard: ShardEntry) -> bytes:
        """The file of a shard.

        Raises:
            UserError: it is missing, truncated or altered.
        """
        path = self.path / shard.file
        try:
            data = read_regular(path)
        except FileNotFoundError:
            raise UserError(f"the shard {path} is missing{ADVICE}") from None
        except OSError as error:
            raise UserError(f"cannot read the shard {path}: {error.strerror}{ADVICE}") from None
        if len(data) != shard.bytes:
            raise UserError(f"the shard {path} is damaged: it has {len(data)} bytes of {shard.bytes}{ADVICE}")
        if hashlib.sha256(data).hexdigest() != shard.sha256:
            raise UserError(f"the shard {path} is damaged: its checksum is not the one in {CARD}{ADVICE}")
        return data


def _check_counts(shard: ShardEntry, rows: int, labelled: int) -> None:
    """Raises ValueError where a shard has other numbers of rows than the card states."""
    if (rows, labelled) != (shard.rows, shard.control_steps):
        wanted = f"{CARD} says {shard.rows} and {shard.control_steps}"
        raise ValueError(f"it has {rows} rows and {labelled} labels, {wanted}")


def create_dataset(path: Path, task: Task, score_kind: ScoreKind, teacher: Mapping[str, Any]) -> Dataset:
    """A new folder with a card and no shard yet.

    Args:
        path: made here; must not exist.
        task: what is played.
        score_kind: of the teacher's values.
        teacher: facts about it, plain JSON data; `sha256` tells whether two are the same.

    Raises:
        UserError: the folder exists or cannot be made.
    """
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        raise UserError(f"{path} exists: add to it with --append, or choose another --out") from None
    except OSError as error:
        raise UserError(f"cannot make {path}: {error.strerror}") from None
    return write_card(empty_dataset(path, task, score_kind, teacher))


def empty_dataset(path: Path, task: Task, score_kind: ScoreKind, teacher: Mapping[str, Any]) -> Dataset:
    """As `create_dataset`, but writes nothing; the card is written with the first shard."""
    card = {
        "format": FORMAT,
        "format_version": VERSION,
        "task": task.as_dict(),
        "score_kind": score_kind,
        "frame_shape": list(frame_shape(task)),
        "frame_dtype": task.observation_dtype,
        "frames_encoding": "plain",
        "teacher": dict(teacher),
        "recordings": [],
        "control_steps": 0,
        "shards": [],
    }
    return Dataset(path, task, score_kind, card, ())


@checked_arguments
def open_dataset(path: str | os.PathLike[str]) -> Dataset:
    """Reads the card of a dataset folder; the shards are read later.

    Raises:
        UserError: no such folder, a card that is damaged or of another format, or states without labels.
    """
    folder = Path(path)
    if (folder / UNLABELLED / CARD).is_file():
        raise UserError(
            f"the states in {folder} have no labels yet, which a finished training gives them: go on with it (train --resume)"
        )
    return read_dataset(folder)


def read_dataset(folder: Path) -> Dataset:
    """As `open_dataset`, also where some states have no labels yet."""
    card_path = folder / CARD
    if not folder.is_dir():
        raise UserError(f"no dataset folder at {folder}")
    if not card_path.is_file():
        raise UserError(f"{folder} is no dataset folder: it has no {CARD}")
    card = read_json(card_path)
    task, score_kind, shards = parse_card(card, str(card_path))
    _check_apart(folder, shards)
    return Dataset(folder, task, score_kind, card, shards)


def sweep_halves(folder: Path) -> None:
    """Removes the half files that killed processes have left in a dataset folder that this process holds."""
    halves = (re.fullmatch(rf"\.({CARD}|{SHARD})\.\w+\.tmp", entry.name) for entry in folder.glob(".*.tmp"))
    for name in {half[1] for half in halves if half}:
        sweep(folder / name, held=True)


def parse_card(card: Mapping[str, Any], place: str) -> tuple[Task, ScoreKind, tuple[ShardEntry, ...]]:
    """Task, kind of scores and shards of a card.

    Args:
        card: as it was read.
        place: where, for the message.

    Raises:
        UserError: it is of another version, or damaged.
    """
    if card.get("format") != FORMAT:
        raise UserError(f"{place} is not of the format {FORMAT}")
    if card.get("format_version") != VERSION:
        raise UserError(
            f"{place} is of format version {card.get('format_version')}, this rldistill reads version {VERSION}: "
            "use the rldistill that wrote it, or record it anew"
        )
    try:
        task = Task.from_dict(card["task"])
        score_kind = card["score_kind"]
        shards = tuple(ShardEntry(**{name: item[name] for name in ShardEntry._fields}) for item in card["shards"])
        if score_kind not in get_args(ScoreKind):
            raise ValueError(f"score_kind is {score_kind!r}")
        if not isinstance(card["teacher"], dict) or not isinstance(card["recordings"], list):
            raise TypeError("teacher or recordings of a wrong kind")
        teachers = card["teacher"].get("teachers", [])
        if not isinstance(teachers, list) or not all(
            isinstance(item, dict) for item in [*teachers, *card["recordings"]]
        ):
            raise TypeError("a teacher or a recording of a wrong kind")
        if not all(isinstance(item.get("first_shard", 0), int) for item in card["recordings"]):
            raise TypeError("a recording whose first shard is no number")
        for shard in shards:
            _check_entry(shard)
        twice = [file for file, times in Counter(shard.file for shard in shards).items() if times > 1]
        if twice:
            raise ValueError(f"it lists {twice[0]} twice")
    except (KeyError, TypeError, ValueError) as error:  # UserError is a ValueError
        raise UserError(f"{place} is damaged: it lacks something or holds something wrong ({error})") from None
    return task, score_kind, shards


def _check_entry(shard: ShardEntry) -> None:
    """Raises ValueError or TypeError where a card's entry for a shard is impossible."""
    # Only the standard name is accepted: a path or another spelling could list a shard a second time.
    if not isinstance(shard.file, str) or not re.fullmatch(SHARD, shard.file):
        raise ValueError(f"{printable(shard.file)!r} is no name of a shard")
    if shard.file != shard_file(shard_number(shard.file)):
        raise ValueError(f"{shard.file} is no name of a shard: {shard_file(shard_number(shard.file))} is")
    counts = (shard.rows, shard.control_steps, shard.bytes)
    if not all(type(number) is int and 0 <= number <= _MOST_ROWS for number in counts):
        raise TypeError(f"{shard.file} has a count that is no number")
    if shard.control_steps > shard.rows:
        raise ValueError(f"{shard.file} has more control steps than rows")
    if not isinstance(shard.sha256, str):
        raise TypeError(f"{shard.file} has a checksum that is no text")


def _check_apart(folder: Path, shards: Sequence[ShardEntry]) -> None:
    """Raises UserError where two shards are one file, whose rows would count twice."""
    places: dict[tuple[int, int], str] = {}
    for shard in shards:
        with suppress(OSError):  # a missing file is reported when it is read
            there = (folder / shard.file).stat()
            first = places.setdefault((there.st_dev, there.st_ino), shard.file)
            if first != shard.file:
                raise UserError(f"{folder / CARD} lists one file twice: {shard.file} is a link to {first}; get it anew")


def unlike_fields(task: Task, score_kind: ScoreKind, dataset: Dataset) -> Iterator[tuple[str, Any, Any]]:
    """Fields in which a task and its labels differ from those of the dataset: name, the dataset's value, the other value."""
    ours, theirs = dataset.task.as_dict(), task.as_dict()
    pairs = [(f"task.{name}", ours.get(name), theirs.get(name)) for name in {**ours, **theirs}]
    pairs.append(("score_kind", dataset.score_kind, score_kind))
    yield from ((name, before, now) for name, before, now in pairs if before != now)


def same_teacher(one: Mapping[str, Any], two: Mapping[str, Any]) -> bool:
    """Whether two entries of a card are of one teacher. Checksums decide, where there are any."""
    one_sum, two_sum = one.get("sha256"), two.get("sha256")
    if one_sum is None or two_sum is None:
        return one_sum is two_sum and one.get("kind") == two.get("kind")
    return bool(one_sum == two_sum)


def append_shard(dataset: Dataset, parts: Sequence[Shard], *, number: int | None = None) -> Dataset:
    """Writes a shard, then the card that names it, each in one step; returns the dataset that has it.

    Args:
        dataset: with all its shards, as opened.
        parts: one for each environment, in the order of time, with the context rows that its first stack needs.
        number: in its name, by default the next one. Shards with a gap in their numbers do not follow each other in time.

    Raises:
        UserError: a frame, an action or a label does not suit the task, a label is NaN or infinite, or the disk is
            full. The dataset is what it was.
    """
    from rldistill.datasets import arrow

    for part in parts:
        try:
            check_rows(part, dataset)
        except ValueError as error:
            raise UserError(f"nothing was written to {dataset.path}: {error}") from None
    data = arrow.encoded(parts, dataset)
    rows = sum(len(part.frames) for part in parts)
    labelled = sum(int((~part.context).sum()) for part in parts)
    file = shard_file(_next_number(dataset) if number is None else number)
    # A file of this name that is not in the card is left from a process that was killed before it wrote the card.
    replace_file(dataset.path / file, data)
    entry = ShardEntry(file, rows, labelled, hashlib.sha256(data).hexdigest(), len(data))
    return write_card(replace(dataset, shards=(*dataset.shards, entry)))


def load_replay(dataset: Dataset, *, progress: Progress | None = None) -> tuple[Replay, npt.NDArray[np.int64]]:
    """Loads all frames into memory, once each, to draw batches from.

    Args:
        dataset: with the shards to load.
        progress: notified of the steps read.

    Returns:
        A replay of one row with the columns `values` (A,) and `actions` (), of a task with action masks also `masks` (A,),
        and the times (S,) that may be drawn from it: all but the context rows.

    Raises:
        UserError: a shard is damaged, there is nothing in the dataset, or not enough memory.
    """
    progress = progress or Silent()
    if not dataset.control_steps:
        raise UserError(f"the dataset {dataset.path} holds no control steps: record some with --append")
    kinds: dict[str, tuple[tuple[int, ...], npt.DTypeLike]] = {
        "values": ((label_width(dataset),), np.float32),
        "actions": action_layout(dataset.task),
        **mask_column(dataset.task),
    }
    too_many = f"fewer control steps than the {dataset.control_steps:,} of {dataset.path} have room"
    replay = Replay(dataset.task, 1, sum(shard.rows for shard in dataset.shards), kinds, advice=too_many)
    sampleable, done = [], 0
    parts = (part for shard in dataset.shards for part in dataset.parts(shard))
    progress.start(f"read {dataset.path}", dataset.control_steps, "steps")
    # A thread decompresses the next part while this one is copied; both release the interpreter's lock.
    with ThreadPoolExecutor(max_workers=1) as ahead:
        following = ahead.submit(next, parts, None)
        while (part := following.result()) is not None:
            following = ahead.submit(next, parts, None)
            sampleable.append(~part.context)
            masks = {} if part.masks is None else {"masks": part.masks}
            replay.add_frames(part.frames, part.starts, values=part.values, actions=part.actions, **masks)
            done += int(sampleable[-1].sum())
            progress.update(done)
    return replay, np.flatnonzero(np.concatenate(sampleable)).astype(np.int64)


def shard_file(number: int) -> str:
    """The name of a shard."""
    return f"shard-{number:05d}.arrow"


def shard_number(file: str) -> int:
    """The number in the name of a shard."""
    return int(file.removeprefix("shard-").removesuffix(".arrow"))


def _next_number(dataset: Dataset) -> int:
    """The number after the card's last shard, so that a damaged shard that was left out keeps its name."""
    files = [item["file"] for item in dataset.card["shards"]] + [shard.file for shard in dataset.shards]
    return max(map(shard_number, files), default=-1) + 1


def write_card(dataset: Dataset) -> Dataset:
    """Replaces the card by one that lists the dataset's shards, and returns the dataset on disk."""
    shards = [shard._asdict() for shard in dataset.shards]
    card = {**dataset.card, "control_steps": dataset.control_steps, "shards": shards}
    data = json.dumps(card, indent=2).encode() + b"\n"
    replace_file(dataset.path / CARD, data)
    return replace(dataset, card=json.loads(data))
