"""The places of the columns in an Arrow file, checked before anything is unpacked or read.

Arrow's reader takes lengths from the file: a length that is too large makes it read memory behind a column, and a column that
is packed to almost nothing may unpack to any size. So the tables of lengths and offsets are read here, from the flatbuffers of
the file (https://arrow.apache.org/docs/format/Columnar.html), and must say what the schema and the number of rows say.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

_MAGIC = b"ARROW1"
_PADDING = 64
"""Bytes by which a writer may round up the length of a column."""
_RECORD_BATCH = 3
"""The kind of message that is a record batch."""


def check_layout(data: Any, schema: Any, rows: int) -> None:
    """Checks all record batches of an Arrow file with columns of plain numbers and lists of fixed size, none of them nullable.

    Args:
        data: a `pyarrow.Buffer` over the whole file.
        schema: the columns.
        rows: that all record batches have together.

    Raises:
        ValueError: a length or an offset does not fit.
    """
    view = memoryview(data).cast("B")
    try:
        counted = sum(_rows_of(view, block, schema, rows) for block in _blocks(view))
    except (struct.error, IndexError, OverflowError):
        raise ValueError("its table of columns is damaged") from None
    if counted != rows:
        raise ValueError(f"it has {counted:,} rows of {rows:,}")


def _blocks(view: memoryview) -> Iterator[tuple[int, ...]]:
    """The offset, length of metadata and length of columns of each record batch."""
    (length,) = struct.unpack_from("<i", view, len(view) - 10)
    if view[-6:].tobytes() != _MAGIC or not 0 < length <= len(view) - 10:
        raise ValueError("it is no Arrow file, or was cut")
    footer = _Table.root(view[len(view) - 10 - length : len(view) - 10])
    if any(True for _ in footer.structs(2, "<qi4xq")):
        raise ValueError("it has dictionaries, which no shard has")
    yield from footer.structs(3, "<qi4xq")


def _rows_of(view: memoryview, block: tuple[int, ...], schema: Any, most: int) -> int:
    """Checks a record batch and gives the number of its rows."""
    offset, meta, body = block
    if min(block) < 0 or meta < 8 or offset + meta + body > len(view):
        raise ValueError("a record batch lies outside of the file")
    head = (
        8 if view[offset : offset + 4].tobytes() == b"\xff\xff\xff\xff" else 4
    )  # files of Arrow before 0.15 have no mark
    message = _Table.root(view[offset + head : offset + meta])
    if message.number(1, "<B") != _RECORD_BATCH or message.number(3, "<q") != body:
        raise ValueError("a record batch is damaged")
    batch = message.table(2)
    rows = batch.number(0, "<q")
    if not 0 <= rows <= most:
        raise ValueError(f"a record batch has {rows:,} rows of {most:,}")
    packed = batch.offset(3) != 0
    nodes, buffers = list(batch.structs(1, "<qq")), list(batch.structs(2, "<qq"))
    wanted = [column for field in schema for column in _columns(field.type, rows)]
    if any(missing for _, missing in nodes):
        raise ValueError("a column has missing values")
    if [length for length, _ in nodes] != [length for length, _ in wanted]:
        raise ValueError("the lengths of its columns do not fit its rows")
    if len(buffers) != sum(1 if size is None else 2 for _, size in wanted):
        raise ValueError("a record batch has another number of columns")
    columns = view[offset + meta : offset + meta + body]
    place = iter(buffers)
    for _, size in wanted:
        _, marks = next(place)
        if marks:  # validity marks are optional where nothing is missing
            raise ValueError("a column has missing values")
        if size is not None:
            start, length = next(place)
            _check_column(columns, start, length, size, packed=packed)
    return int(rows)


def _columns(kind: Any, rows: int) -> Iterator[tuple[int, int | None]]:
    """Number of values and bytes of a column and, for lists, of its values; a list has no bytes of its own."""
    if pa.types.is_fixed_size_list(kind):
        yield rows, None
        yield from _columns(kind.value_type, rows * kind.list_size)
    else:
        yield rows, -(-rows * kind.bit_width // 8)


def _check_column(columns: memoryview, offset: int, length: int, size: int, *, packed: bool) -> None:
    if offset < 0 or length < 0 or offset + length > len(columns):
        raise ValueError("a column lies outside of its record batch")
    unpacked = length
    if packed and length:
        (unpacked,) = struct.unpack_from("<q", columns[offset : offset + length])
        if unpacked == -1:  # not compressed
            unpacked = length - 8
    if not size <= unpacked <= size + _PADDING:
        raise ValueError(f"a column has {unpacked:,} bytes, its rows need {size:,}")


class _Table:
    """A table of a flatbuffer: an offset for each field that it has."""

    def __init__(self, view: memoryview, at: int) -> None:
        self._view, self._at = view, at
        (back,) = struct.unpack_from("<i", view, at)
        self._fields = at - back
        if not 0 <= self._fields < len(view):
            raise IndexError
        (self._size,) = struct.unpack_from("<H", view, self._fields)

    @staticmethod
    def root(view: memoryview) -> _Table:
        return _Table(view, struct.unpack_from("<I", view)[0])

    def offset(self, field: int) -> int:
        """The offset of a field in the buffer, 0 where the field has its default."""
        place = 4 + 2 * field
        if place + 2 > self._size:
            return 0
        (offset,) = struct.unpack_from("<H", self._view, self._fields + place)
        return self._at + offset if offset else 0

    def number(self, field: int, form: str) -> int:
        at = self.offset(field)
        return int(struct.unpack_from(form, self._view, at)[0]) if at else 0

    def _target(self, field: int) -> int:
        at = self.offset(field)
        return at + int(struct.unpack_from("<I", self._view, at)[0]) if at else 0

    def table(self, field: int) -> _Table:
        at = self._target(field)
        if not at:
            raise IndexError
        return _Table(self._view, at)

    def structs(self, field: int, form: str) -> Iterator[tuple[int, ...]]:
        """A vector of structs; empty where the field is missing."""
        at = self._target(field)
        if at:
            (count,) = struct.unpack_from("<I", self._view, at)
            size = struct.calcsize(form)
            if at + 4 + count * size > len(self._view):
                raise IndexError
            yield from struct.iter_unpack(form, self._view[at + 4 : at + 4 + count * size])
