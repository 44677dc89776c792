"""The verb `dataset merge`: one dataset of several. Shards are linked or copied without being unpacked."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rldistill.arguments import checked_arguments
from rldistill.datasets.shards import (
    Dataset,
    ShardEntry,
    empty_dataset,
    open_dataset,
    same_teacher,
    shard_file,
    shard_number,
    unlike_fields,
    write_card,
)
from rldistill.files import free_path
from rldistill.holding import new_folder
from rldistill.progress import Progress, Silent
from rldistill.types import UserError, check_boolean


@checked_arguments
def merge(
    datasets: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    mixed_teachers: bool = False,
    progress: Progress | None = None,
) -> Dataset:
    """One dataset of several, in the order given. Their shards are hard links where the file system allows, else copies.

    Args:
        datasets: two folders or more, of the same task and kind of values.
        out: folder to make.
        mixed_teachers: whether several teachers may have labelled them; the card lists them, and each of its recordings says
            which one was its.
        progress: notified of the steps merged.

    Raises:
        UserError: something differs (the message names both values), a shard is damaged or in two of the datasets, or `out`
            exists. Nothing is left of `out` then.
    """
    check_boolean("mixed_teachers", mixed_teachers)
    progress, target = progress or Silent(), Path(out)
    if len(datasets) < 2:
        raise UserError("merge takes two datasets or more")
    free_path(target)
    sources = [open_dataset(path) for path in datasets]
    for source in sources[1:]:
        _check_same(sources[0], source, mixed_teachers=mixed_teachers)
    _check_apart(sources)
    teacher, places = _together(sources)
    with new_folder(target) as aside:
        merged = empty_dataset(aside, sources[0].task, sources[0].score_kind, teacher)
        shards: list[ShardEntry] = []
        recordings: list[dict[str, Any]] = []
        number = done = 0
        progress.start(f"merge into {target}", sum(source.control_steps for source in sources), "steps")
        for source, own in zip(sources, places, strict=True):
            recordings += _recordings(source, len(shards), own if "teachers" in teacher else None)
            # Gaps stay gaps: over a number that is left out time does not go on.
            shift = number - shard_number(source.shards[0].file) if source.shards else 0
            for shard in source.shards:
                source.checked_bytes(shard)
                number = shard_number(shard.file) + shift
                file = shard_file(number)
                _link(source.path / shard.file, aside / file)
                shards.append(shard._replace(file=file))
                done += shard.control_steps
                progress.update(done)
            number += 1
        write_card(replace(merged, shards=tuple(shards), card={**merged.card, "recordings": recordings}))
    return open_dataset(target)


def teachers_of(dataset: Dataset) -> list[dict[str, Any]]:
    """Those who labelled it: one, or those that an earlier merge brought together."""
    teacher = dataset.card["teacher"]
    return list(teacher.get("teachers", [teacher]))


def _check_same(first: Dataset, other: Dataset, *, mixed_teachers: bool) -> None:
    for name, before, now in unlike_fields(other.task, other.score_kind, first):
        raise UserError(
            f"{first.path} and {other.path} do not go together: {name} is {before} in the one and {now} in the other"
        )
    one, two = teachers_of(first), teachers_of(other)
    if not mixed_teachers and not (len(one) == len(two) == 1 and same_teacher(one[0], two[0])):
        raise UserError(
            f"{first.path} and {other.path} were labelled by {_named(one)} and {_named(two)}: "
            "--mixed-teachers merges them all the same"
        )


def _named(teachers: Sequence[Mapping[str, Any]]) -> str:
    """Path and checksum of each teacher, because different teachers may have had the same path."""
    return ", ".join(
        f"{item.get('path') or item.get('kind')} (sha256 {str(item.get('sha256'))[:12]})" for item in teachers
    )


def _check_apart(sources: Sequence[Dataset]) -> None:
    """Raises UserError where two datasets have the same shard, which would count twice."""
    places: dict[str, Path] = {}
    for source in sources:
        for shard in source.shards:
            path = source.path / shard.file
            if shard.sha256 in places:
                raise UserError(f"{places[shard.sha256]} and {path} are the same play: name each dataset once")
            places[shard.sha256] = path


def _together(sources: Sequence[Dataset]) -> tuple[dict[str, Any], list[list[int]]]:
    """The card's entry for the teacher, and for each dataset the indices of its teachers in the list."""
    teachers: list[dict[str, Any]] = []
    places = []
    for source in sources:
        own = []
        for teacher in teachers_of(source):
            at = next((place for place, one in enumerate(teachers) if same_teacher(one, teacher)), len(teachers))
            if at == len(teachers):
                teachers.append(teacher)
            own.append(at)
        places.append(own)
    if len(teachers) == 1:
        return teachers[0], places
    # A checksum that no teacher has, so that none of them counts as the teacher of all labels.
    several = hashlib.sha256(repr([item.get("sha256") for item in teachers]).encode()).hexdigest()
    return {"path": None, "sha256": several, "kind": "several", "teachers": teachers}, places


def _recordings(source: Dataset, shards: int, teachers: list[int] | None) -> list[dict[str, Any]]:
    """The recordings of a dataset whose shards follow so many others; `teacher` is an index into the list of teachers."""
    recordings = [dict(item) for item in source.card["recordings"]]
    if not recordings or recordings[0].get("first_shard") != 0:
        recordings.insert(0, {"driver": "unknown", "first_shard": 0})
    for item in recordings:
        item["first_shard"] = item.get("first_shard", 0) + shards
        if teachers is not None:
            item["teacher"] = teachers[item.get("teacher", 0)]
    return recordings


def _link(source: Path, target: Path) -> None:
    """Links a shard, or copies it. A link is safe, because shards are replaced as a whole and never written to."""
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)
