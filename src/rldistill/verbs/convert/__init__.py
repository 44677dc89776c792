"""The verb `dataset convert`: to and from Parquet and Minari."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from rldistill.arguments import checked_arguments
from rldistill.datasets.episodes import find_episodes
from rldistill.datasets.shards import CARD, open_dataset
from rldistill.files import free_path
from rldistill.formats.minari.episodes import check_target, minari_folder
from rldistill.formats.minari.reading import MinariData, open_minari
from rldistill.holding import new_folder
from rldistill.machine import usual_torch
from rldistill.play.envs import fitting_task
from rldistill.progress import Progress, Silent
from rldistill.runs.provenance import command_line, made_by
from rldistill.teachers import TeacherOptions, card_of, load_fitting
from rldistill.types import UserError
from rldistill.verbs.convert.minari import from_others, from_own, to_minari

Target: TypeAlias = Literal["rldistill", "parquet", "minari"]


@dataclass(frozen=True)
class Conversion:
    """What `convert` wrote."""

    path: Path
    format: Target
    source_format: Target
    notes: tuple[str, ...]
    """What the format holds in another way, or cannot hold."""


@usual_torch()
@checked_arguments
def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    to: Target,
    *,
    teacher: str | os.PathLike[str] | None = None,
    env: str | None = None,
    options: TeacherOptions | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Writes a dataset in another format. Frames, actions, rewards, ends and values are the same there and back.

    Args:
        source: a dataset folder, a folder of Parquet files that this wrote, or a folder of Minari's. Its contents say which.
        out: folder to make. Of Minari its name ends in a version, `pong-v0`.
        to: the format. One of the two is `rldistill`.
        teacher: who labels a Minari dataset that has no teacher's values, as `load_teacher` takes it.
        env: what that teacher plays, where its file does not say or it is another id.
        options: what the teacher's file does not say.
        progress: shows how far it is.

    Raises:
        UserError: there is no dataset, it is damaged, the format cannot hold it, `out` exists, or `env` or `options` are
            given without a teacher. Nothing is left of `out`.
    """
    progress, place, target = progress or Silent(), Path(source), Path(out)
    if to not in get_args(Target):
        raise UserError(f"unknown format {to!r}: take one of {', '.join(get_args(Target))}")
    free_path(target)
    if to == "minari":
        check_target(target)
    source_format = _format_of(place)
    if source_format == to:
        raise UserError(f"{place} is in the format {to} already")
    if "rldistill" not in (source_format, to):
        raise UserError(f"{place} is in the format {source_format}: convert it to rldistill first, then to {to}")
    if teacher is not None and source_format != "minari":
        raise UserError(f"{place} has its teacher's values: --teacher is for Minari datasets that have none")
    if teacher is None and (env is not None or options not in (None, TeacherOptions())):
        raise UserError("--env and the teacher's options say how --teacher is loaded: name one, or leave them out")
    if source_format == "rldistill":
        notes = _write(place, target, to, progress)
    else:
        notes = _read(place, target, source_format, teacher, env, options, progress)
    return Conversion(target, to, source_format, tuple(notes))


def _format_of(source: Path) -> Target:
    """What lies there."""
    if not source.exists():
        raise UserError(f"there is nothing at {source}")
    if (source / CARD).is_file():
        return "rldistill"
    from rldistill.datasets import parquet  # here: with it comes pyarrow, see `shards`

    if parquet.parquet_files(source):
        return "parquet"
    if source.is_dir() and minari_folder(source) is not None:
        return "minari"
    raise UserError(
        f"{source} is no dataset: it has neither {CARD}, nor Parquet files that rldistill wrote, nor Minari's data/metadata.json"
    )


def _write(source: Path, target: Path, to: Target, progress: Progress) -> list[str]:
    dataset = open_dataset(source)
    if not dataset.control_steps:
        raise UserError(f"the dataset {source} holds no control steps")
    episodes, damaged = find_episodes(dataset, progress=progress)
    if damaged:
        raise UserError(next(iter(damaged.values())))
    with new_folder(target) as aside:
        if to == "parquet":
            from rldistill.datasets import parquet

            return parquet.write_parquet(dataset, episodes, aside, progress)
        return to_minari(dataset, episodes, aside, target.name, progress)


def _read(
    source: Path,
    target: Path,
    source_format: Target,
    teacher: str | os.PathLike[str] | None,
    env: str | None,
    options: TeacherOptions | None,
    progress: Progress,
) -> list[str]:
    if source_format == "parquet":
        from rldistill.datasets import parquet

        with new_folder(target) as aside:
            parquet.read_parquet(parquet.parquet_files(source), aside, progress)
        return []
    folder = minari_folder(source)
    assert folder is not None
    labeller = None if teacher is None else load_fitting(teacher, env=env, options=options, progress=progress)
    task = None if labeller is None else fitting_task(labeller.task, env)
    with new_folder(target) as aside:
        data = open_minari(folder)
        if data.is_own:
            if labeller is not None:
                raise UserError(f"{folder} has its teacher's values: leave --teacher out")
            return from_own(data, aside, progress)
        if labeller is None or task is None:
            raise UserError(
                f"{folder} has no teacher's values, and a dataset of rldistill needs them: name who labels it with "
                "--teacher REF"
            )
        return from_others(
            data,
            aside,
            labeller,
            task,
            teacher_card=card_of(labeller, None),
            recording=_recording_of(data),
            progress=progress,
        )


def _recording_of(data: MinariData) -> dict[str, Any]:
    """What a dataset's card says of rows that were played elsewhere."""
    return {
        "driver": "unknown",
        "first_shard": 0,
        "made_by": made_by(),
        "command": command_line(),
        "converted_from": {
            "format": "minari",
            "dataset_id": data.metadata.get("dataset_id"),
            "author": data.metadata.get("author"),
        },
    }
