"""Datasets as Parquet: a file for each shard, a row group for each of its record batches, the card in every file.

A frame of bytes is one fixed-size binary value. Context rows stay, so each file can be read without the others; they have
neither `episode` nor `step`, two columns that the shards themselves lack.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from rldistill.datasets.arrow import batch_of, row_schema, shard_from
from rldistill.datasets.episodes import Episode
from rldistill.datasets.shards import Dataset, append_shard, empty_dataset, parse_card, shard_number, write_card
from rldistill.documents import parse_json
from rldistill.files import check_regular, open_regular
from rldistill.progress import Progress
from rldistill.types import UserError, first_line

KEY = b"rldistill"
# zstd searches one page: in 8 MB it finds repetitions over a thousand control steps.
PAGE_BYTES = 8 << 20
LEVEL = 6
_PAGE_HEADS = 1 << 20
"""Bytes of a column beside its values: statistics, page headers, a dictionary."""


def write_parquet(dataset: Dataset, episodes: Sequence[Episode], folder: Path, progress: Progress) -> list[str]:
    """Writes the files into an existing folder; returns notes about them.

    Raises:
        UserError: a shard is damaged.
        OSError: the disk is full.
    """
    places: dict[tuple[int, int], list[tuple[int, int, int, int]]] = {}
    for episode in episodes:
        step = 0
        for piece in episode.pieces:
            places.setdefault((piece.shard, piece.batch), []).append((piece.low, piece.high, episode.number, step))
            step += piece.high - piece.low
    card = {name: value for name, value in dataset.card.items() if name not in ("shards", "control_steps")}
    done = 0
    progress.start("write Parquet", dataset.control_steps, "steps")
    for index, shard in enumerate(dataset.shards):
        about = {"card": card, "shard": shard._asdict(), "index": index, "of": len(dataset.shards)}
        schema = _schema(dataset).with_metadata({KEY: json.dumps(about).encode()})
        columns = [name for name in schema.names if name != "frame"]
        with pq.ParquetWriter(
            folder / f"shard-{shard_number(shard.file):05d}.parquet",
            schema,
            compression="zstd",
            compression_level=LEVEL,
            use_dictionary=columns,
            data_page_size=PAGE_BYTES,
            write_page_checksum=True,
            write_statistics=columns,
        ) as writer:
            for batch, part in enumerate(dataset.parts(shard)):
                numbers = np.zeros((2, len(part.frames)), np.int32)
                for low, high, number, step in places.get((index, batch), ()):
                    numbers[0, low:high], numbers[1, low:high] = number, np.arange(step, step + high - low)
                rows = batch_of(part, dataset)
                listed = [_packed(rows.column(name), schema.field(name).type) for name in rows.schema.names]
                listed += [pa.array(column, pa.int32(), mask=part.context) for column in numbers]
                table = pa.Table.from_arrays(listed, schema=schema)
                writer.write_table(table, row_group_size=max(len(part.frames), 1))
                done += int((~part.context).sum())
                progress.update(done)
    stack = dataset.task.frame_stack
    stacked = f"; an observation is the last {stack} of its episode, zeros before the first" if stack > 1 else ""
    return [
        f"a row holds its newest frame alone{stacked}",
        "rows with context = true are there for their frames alone: filter them out to count control steps",
    ]


def parquet_files(source: Path) -> list[Path]:
    """The files in rldistill's layout at a path, which is a folder or one file; empty where there are none."""
    files = sorted(source.glob("*.parquet")) if source.is_dir() else [source]
    if not files or not files[0].is_file():
        return []
    with open_regular(files[0]) as opened:
        if opened.read(4) != b"PAR1":
            return []
    with _readable(files[0]):
        return files if KEY in (pq.read_metadata(files[0]).metadata or {}) else []


def read_parquet(files: Sequence[Path], folder: Path, progress: Progress) -> None:
    """Writes the shards and the card into an existing folder.

    Raises:
        UserError: a file is missing, truncated, altered, or of another dataset.
    """
    described = sorted(((_description(file), file) for file in files), key=lambda item: item[0]["index"])
    first, place = described[0][0], described[0][1]
    if any(item["card"] != first["card"] or item["of"] != first["of"] for item, _ in described):
        raise UserError(f"{place.parent} holds files of several datasets: convert each by itself")
    if len(described) != first["of"] or [item["index"] for item, _ in described] != list(range(len(described))):
        raise UserError(
            f"{place.parent} holds {len(described)} of the dataset's {first['of']} files: name the folder that has them all"
        )
    card = {**first["card"], "shards": [item["shard"] for item, _ in described]}
    task, score_kind, shards = parse_card(card, str(place))
    empty = empty_dataset(folder, task, score_kind, card["teacher"])
    dataset = replace(empty, card={**empty.card, **card, "shards": []})
    done = 0
    progress.start("read Parquet", sum(shard.control_steps for shard in shards), "steps")
    for (_, file), shard in zip(described, shards, strict=True):
        with _readable(file):
            check_regular(file)
            schema, parts = _schema(dataset), []
            with pq.ParquetFile(file, page_checksum_verification=True) as reader:
                if not reader.schema_arrow.equals(schema):
                    raise ValueError("its columns are not those of the task in its card")
                _check_sizes(reader.metadata, schema, shard.rows)
                for group in range(reader.num_row_groups):
                    table = reader.read_row_group(group, use_threads=False)
                    table.validate(full=True)
                    parts.append(_part(table, dataset))
                    done += int((~parts[-1].context).sum())
                    progress.update(done)
            rows, labelled = sum(len(part.frames) for part in parts), sum(int((~part.context).sum()) for part in parts)
            if (rows, labelled) != (shard.rows, shard.control_steps):
                raise ValueError(f"it has {rows} rows and {labelled} labels of {shard.rows} and {shard.control_steps}")
        dataset = append_shard(dataset, parts, number=shard_number(shard.file))
    write_card(dataset)


def _description(file: Path) -> dict[str, Any]:
    """Card, shard and index of a file, from its metadata."""
    with _readable(file):
        check_regular(file)
        described = parse_json((pq.read_metadata(file).metadata or {})[KEY], file)
        kinds = {"card": dict, "shard": dict, "index": int, "of": int}
        if not isinstance(described, dict) or not all(
            isinstance(described.get(name), kind) for name, kind in kinds.items()
        ):
            raise ValueError("its metadata lack something")
        return described


def _schema(dataset: Dataset) -> Any:
    fields = list(row_schema(dataset))
    if dataset.task.observation_dtype == "uint8":
        fields[0] = pa.field("frame", pa.binary(fields[0].type.list_size), nullable=False)
    return pa.schema([*fields, pa.field("episode", pa.int32()), pa.field("step", pa.int32())])


def _check_sizes(metadata: Any, schema: Any, rows: int) -> None:
    """Raises ValueError where a row group declares more rows or bytes than the card's rows need.

    A column that is packed to almost nothing would unpack to any size.
    """
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    if any(group.num_rows < 0 for group in groups) or sum(group.num_rows for group in groups) != rows:
        raise ValueError(f"it has not the {rows:,} rows of its card")
    for group in groups:
        for number in range(group.num_columns):
            column = group.column(number)
            width = _bytes_of(schema.field(column.path_in_schema.split(".")[0]).type)
            # Values, validity marks and page headers; a list has a mark for each of its values.
            if not 0 <= column.total_uncompressed_size <= group.num_rows * (2 * width + 16) + _PAGE_HEADS:
                raise ValueError(f"its column {column.path_in_schema} is larger than its rows")


def _bytes_of(kind: Any) -> int:
    """Bytes of one value of a column, at least one."""
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size) * _bytes_of(kind.value_type)
    return int(kind.byte_width) if pa.types.is_fixed_size_binary(kind) else max(int(kind.bit_width) // 8, 1)


def _packed(column: Any, kind: Any) -> Any:
    """Lists of bytes as one binary value each, over the same memory."""
    if not pa.types.is_fixed_size_binary(kind):
        return column
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(column), [None, column.flatten().buffers()[1]])


def _part(table: Any, dataset: Dataset) -> Any:
    """The rows of a row group as rows of a shard."""
    schema = row_schema(dataset)
    columns = []
    for field in schema:
        column = table.column(field.name).combine_chunks()
        column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
        if column.null_count:
            raise ValueError(f"its column {field.name} has missing values")
        if pa.types.is_fixed_size_binary(column.type):
            width = field.type.list_size
            data: npt.NDArray[np.uint8] = np.frombuffer(column.buffers()[1], np.uint8)
            data = data[column.offset * width : (column.offset + len(column)) * width]
            column = pa.FixedSizeListArray.from_arrays(pa.array(data), width)
        columns.append(column)
    return shard_from(pa.RecordBatch.from_arrays(columns, schema=schema), dataset)


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Turns errors of reading a file into a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except (pa.ArrowException, KeyError, OSError, TypeError, ValueError) as error:
        raise UserError(f"{file} is damaged, or was not written by rldistill: {first_line(error)}") from None
