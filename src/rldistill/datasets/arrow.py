"""Shards as Arrow files: columns and record batches."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rldistill.datasets.layout import check_layout
from rldistill.datasets.rows import ADVICE, FORMAT, VERSION, Labels, Shard, check_rows, frame_shape, label_width
from rldistill.play.actions import action_layout
from rldistill.types import UserError, first_line

# With level 6 a frame of Pong has 30 bytes, and packing is some thirty times as fast as the emulator. With level 9 it has
# 27 bytes, at two thirds of that speed. Differences between frames take more, because zstd finds repeated pixels by itself.
LEVEL = 6


@contextmanager
def readable_shard(path: Path) -> Iterator[None]:
    """Turns errors of unpacking a shard into a UserError of one line."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"the shard {path} is missing{ADVICE}") from None
    except (pa.ArrowException, KeyError, OSError, ValueError) as error:  # UserError is a ValueError
        raise UserError(f"the shard {path} is of no use: {first_line(error)}{ADVICE}") from None


def row_schema(labels: Labels) -> Any:
    """The columns of a shard."""
    task = labels.task
    (*dimensions,), _ = action_layout(task)
    action = pa.float32() if task.continuous else pa.int32()
    frame = pa.uint8() if task.observation_dtype == "uint8" else pa.float32()
    fields = {
        "frame": pa.list_(frame, int(np.prod(frame_shape(task)))),
        "start": pa.bool_(),
        "context": pa.bool_(),
        "environment": pa.int32(),
        "action": pa.list_(action, dimensions[0]) if dimensions else action,
        "reward": pa.float32(),
        "terminated": pa.bool_(),
        "truncated": pa.bool_(),
        "values": pa.list_(pa.float32(), label_width(labels)),
    }
    if task.action_masks:
        fields["action_mask"] = pa.list_(pa.bool_(), task.mask_size)
    about = {"format": f"{FORMAT} {VERSION}", "frame_shape": json.dumps(frame_shape(task))}
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields.items()], metadata=about)


def batch_of(part: Shard, labels: Labels) -> Any:
    """A record batch of the rows."""
    schema = row_schema(labels)
    action = np.float32 if labels.task.continuous else np.int32
    columns = []
    ordered: list[npt.NDArray[Any]] = [
        part.frames,
        part.starts,
        part.context,
        part.environments,
        part.actions.astype(action),
        part.rewards,
        part.terminated,
        part.truncated,
        part.values,
    ]
    ordered += [] if part.masks is None else [part.masks]
    for column, field in zip(ordered, schema, strict=True):
        if pa.types.is_fixed_size_list(field.type):
            flat = pa.array(np.ascontiguousarray(column).reshape(-1), field.type.value_type)
            columns.append(pa.FixedSizeListArray.from_arrays(flat, field.type.list_size))
        else:
            columns.append(pa.array(column, field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def shard_from(batch: Any, labels: Labels) -> Shard:
    """The rows of a record batch: the inverse of `batch_of`.

    Raises:
        ValueError: the rows do not suit the task, or a number is NaN or infinite.
    """
    task = labels.task
    shape, kind = action_layout(task)
    listed = [field.name for field in batch.schema if pa.types.is_fixed_size_list(field.type)]
    lists = {name: batch.column(name).flatten().to_numpy(zero_copy_only=False) for name in listed}
    names = (name for name in batch.schema.names if name not in lists)
    flat = {name: batch.column(name).to_numpy(zero_copy_only=False) for name in names}
    part = Shard(
        frames=lists["frame"].reshape(batch.num_rows, *frame_shape(task)),
        starts=flat["start"],
        context=flat["context"],
        environments=flat["environment"],
        actions=(lists | flat)["action"].reshape(batch.num_rows, *shape).astype(kind),
        rewards=flat["reward"],
        terminated=flat["terminated"],
        truncated=flat["truncated"],
        values=lists["values"].reshape(batch.num_rows, label_width(labels)),
        masks=lists["action_mask"].reshape(batch.num_rows, task.mask_size) if task.action_masks else None,
    )
    check_rows(part, labels)
    return part


def encoded(parts: Sequence[Shard], labels: Labels) -> bytes:
    """An Arrow IPC file with a record batch for each part."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", compression_level=LEVEL))
    with pa.ipc.new_file(sink, row_schema(labels), options=options) as writer:
        for part in parts:
            writer.write_batch(batch_of(part, labels))
    return bytes(sink.getvalue().to_pybytes())


def batches(
    data: bytes | Path, labels: Labels, rows: int, *, first: int = 0, names: Sequence[str] | None = None
) -> Iterator[Any]:
    """The record batches of a shard, one after the other. Memory holds one unpacked batch at a time.

    Args:
        data: the shard, or its path.
        labels: of the dataset whose card lists it.
        rows: of the shard, as the card states them.
        first: the first batch that is read.
        names: columns to unpack, by default all.

    Raises:
        ValueError: lengths or offsets in the file do not fit the file, the card or the columns. A checksum in the card does
            not rule that out, because the author of a malicious file also writes the card.
    """
    source = pa.py_buffer(data) if isinstance(data, bytes) else pa.memory_map(str(data))
    schema = row_schema(labels)
    with pa.ipc.open_file(source) as reader:
        if not reader.schema.equals(schema):
            raise ValueError("its columns are not those of the task in the card")
    check_layout(source if isinstance(data, bytes) else source.read_buffer(), schema, rows)
    wanted = None if names is None else [schema.get_field_index(name) for name in names]
    with pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(included_fields=wanted)) as reader:
        for index in range(first, reader.num_record_batches):
            batch = reader.get_batch(index)
            batch.validate(full=True)
            if any(column.null_count for column in batch.columns):
                raise ValueError("a column has missing values")
            yield batch
