"""What is in an ONNX file, read byte by byte before onnxruntime gets to see it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rldistill.types import UserError

# Of onnx.proto, which never changes a number: message -> field -> the message in it.
_MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {},
}
_ATTRIBUTE_FLOAT = 2
_METADATA = 14
_MAX_DEPTH = 32
_MAX_FIELDS = 1_000_000


class Node(NamedTuple):
    """One operation, of the main graph, of a graph within, or of a function."""

    operator: str
    domain: str
    inputs: list[str]
    outputs: list[str]
    scope: int
    """Whose names these are: 0 for the graph, n for the n-th function."""


class Function(NamedTuple):
    """One of the model's own functions, whose nodes are among the model's."""

    name: str
    domain: str
    inputs: list[str]
    outputs: list[str]


class Contents(NamedTuple):
    """What a model file says that onnxruntime does not tell."""

    external: list[str]
    """Files that hold weights, as the model names them."""
    nodes: list[Node]
    given: set[str]
    """Names of the graph's inputs, some of which weights give a value."""
    weights: set[str]
    """Names of the weights."""
    functions: list[Function]
    """The model's own; the first has scope 1."""
    divides: bool
    """Whether 255, or one over it, is among its constants."""
    parameters: int
    """Numbers in its tensors."""
    largest: int
    """Numbers that one of its tensors declares."""
    nan: bool
    """Whether one of them is NaN. (Infinities are bounds of clips and masks.)"""


def contents_of(data: bytes, path: Path) -> Contents:
    """What is in a model, nodes within nodes and functions included.

    Raises:
        UserError: it is no ONNX model.
    """
    contents = Contents([], [], set(), set(), [], False, 0, 0, False)
    budget = iter(range(_MAX_FIELDS))
    try:
        if not any(number == 7 for number, _ in _fields(memoryview(data), budget)):
            raise ValueError("it has no graph")
        return _walk(memoryview(data), "model", contents, 0, budget, 0)
    except (ValueError, IndexError, struct.error) as error:
        raise UserError(f"{path} is damaged or no ONNX model ({error}); get the file anew") from None


def metadata_of(data: bytes, path: Path) -> dict[str, str]:
    """A model's own properties, names and texts.

    Raises:
        UserError: it is no ONNX model.
    """
    texts = {}
    budget = iter(range(_MAX_FIELDS))
    try:
        for number, value in _fields(memoryview(data), budget):
            if number == _METADATA and isinstance(value, memoryview):
                entry = {key: bytes(part) for key, part in _fields(value, budget) if isinstance(part, memoryview)}
                texts[entry.get(1, b"").decode("utf-8", "replace")] = entry.get(2, b"").decode("utf-8", "replace")
    except (ValueError, IndexError, struct.error) as error:
        raise UserError(f"{path} is damaged or no ONNX model ({error}); get the file anew") from None
    return texts


def _walk(
    data: memoryview, message: str, contents: Contents, depth: int, budget: Iterator[int], scope: int
) -> Contents:
    if depth > _MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    inside = _MESSAGES[message]
    node = Node("", "", [], [], scope)
    for number, value in _fields(data, budget):
        if message == "node" and number in (1, 2) and isinstance(value, memoryview):
            (node.inputs if number == 1 else node.outputs).append(_text(value))
        elif message == "node" and number in (4, 7) and isinstance(value, memoryview):
            node = node._replace(operator=_text(value)) if number == 4 else node._replace(domain=_text(value))
        elif message == "function" and number in (1, 4, 5, 10) and isinstance(value, memoryview):
            function, text = contents.functions[scope - 1], _text(value)
            if number in (4, 5):
                (function.inputs if number == 4 else function.outputs).append(text)
            else:
                named = function._replace(name=text) if number == 1 else function._replace(domain=text)
                contents.functions[scope - 1] = named
        elif message == "graph" and number == 11 and isinstance(value, memoryview):
            contents.given.update(
                _text(part) for key, part in _fields(value, budget) if key == 1 and not isinstance(part, int)
            )
        elif message == "attribute" and number == _ATTRIBUTE_FLOAT and isinstance(value, int):
            contents = contents._replace(divides=contents.divides or _is_scale(value.to_bytes(8, "little")[:4]))
        elif number in inside and isinstance(value, memoryview):
            if inside[number] == "tensor":
                # Of the outermost graph alone: a constant elsewhere that bears an input's name gives it no value.
                contents = _tensor(value, contents, budget, is_weight=message in ("graph", "sparse") and depth <= 2)
            elif inside[number] == "sparse":
                contents = contents._replace(largest=max(contents.largest, _dense_size(value, budget)))
            within = scope
            if inside[number] == "function":
                contents.functions.append(Function("", "", [], []))
                within = len(contents.functions)
            contents = _walk(value, inside[number], contents, depth + 1, budget, within)
    if message == "node":
        contents.nodes.append(node)
    return contents


def _text(data: memoryview) -> str:
    return bytes(data).decode("utf-8", "replace")


def _dense_size(data: memoryview, budget: Iterator[int]) -> int:
    """Of a sparse tensor, which onnxruntime fills up with zeros: values 1, indices 2, dims 3."""
    count = 1
    for number, value in _fields(data, budget):
        if number == 3:
            for size in [value] if isinstance(value, int) else _varints(value):
                count *= size
    return count


def _tensor(data: memoryview, contents: Contents, budget: Iterator[int], *, is_weight: bool) -> Contents:
    """Dims 1, element type 2, floats 4, raw data 9, external data 13 (entries of key 1 and value 2)."""
    count, kind, raw = 1, 0, memoryview(b"")
    for number, value in _fields(data, budget):
        if number == 1:
            for size in [value] if isinstance(value, int) else _varints(value):
                count *= size
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number in (4, 9) and isinstance(value, memoryview):
            raw = value
        elif number == 4 and isinstance(value, int):  # one float that is not packed
            raw = memoryview(struct.pack("<I", value & 0xFFFFFFFF))
        elif number == 8 and isinstance(value, memoryview) and is_weight:
            contents.weights.add(_text(value))
        elif number == 13 and isinstance(value, memoryview):
            entry = {key: bytes(part) for key, part in _fields(value, budget) if isinstance(part, memoryview)}
            if entry.get(1) == b"location":
                contents.external.append(entry.get(2, b"").decode("utf-8", "replace"))
    dtype = {1: "<f4", 11: "<f8"}.get(kind)
    floats = np.frombuffer(raw, dtype) if dtype and len(raw) % int(dtype[-1]) == 0 else np.zeros(0)
    return contents._replace(
        parameters=contents.parameters + count,
        largest=max(contents.largest, count),
        divides=contents.divides or (count == 1 and len(raw) in (4, 8) and _is_scale(bytes(raw))),
        nan=contents.nan or bool(np.isnan(floats).any()),
    )


def _is_scale(raw: bytes) -> bool:
    value = float(struct.unpack("<f" if len(raw) == 4 else "<d", raw)[0])
    return abs(value - 255.0) < 1e-3 or abs(value * 255.0 - 1.0) < 1e-3


def _fields(data: memoryview, budget: Iterator[int]) -> Iterator[tuple[int, int | memoryview]]:
    """Field numbers and values of one protobuf message, as many as the budget has.

    Raises:
        ValueError: it is none.
    """
    position = 0
    while position < len(data):
        if next(budget, None) is None:
            raise ValueError("it has too many parts")
        tag, position = _varint(data, position)
        number, kind = tag >> 3, tag & 7
        value: int | memoryview
        if kind == 0:
            value, position = _varint(data, position)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, position = int.from_bytes(data[position : position + size], "little"), position + size
        elif kind == 2:
            size, position = _varint(data, position)
            value, position = data[position : position + size], position + size
        else:
            raise ValueError("it is no protobuf")
        if position > len(data) or number == 0:
            raise ValueError("it is cut short")
        yield number, value


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("it has a number without an end")


def _varints(data: memoryview) -> Iterator[int]:
    position = 0
    while position < len(data):
        value, position = _varint(data, position)
        yield value
