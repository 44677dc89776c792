"""The spaces in a Stable-Baselines3 zip: readable copies in its JSON, and pickles that are read as data."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from rldistill.formats.arrays import admits_statistics, array, number
from rldistill.formats.foreign import BoxSpace, DiscreteSpace
from rldistill.formats.pickles import Inert, attributes, interpret
from rldistill.types import UserError, printable

MOST_ACTIONS = 65_536
_MOST_NUMBERS = 2**23  # of an observation
_MOST_PARTS = 1024


def entry_of(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    """An object of the JSON, empty where the file holds anything else."""
    entry = data.get(key)
    return entry if isinstance(entry, dict) else {}


def text_of(entry: Mapping[str, Any], key: str) -> str:
    """Text, empty where the file holds anything else. (A list nested a thousand times has no text.)"""
    value = entry.get(key)
    return value if isinstance(value, str) else ""


def integer(value: Any) -> int | None:
    """A whole number, which may be written as text; None for anything else."""
    if isinstance(value, str) and re.fullmatch(r"\s*-?\d{1,18}\s*", value):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**62 else None


def _space_kind(entry: Mapping[str, Any], what: str, source: str) -> str:
    kind = text_of(entry, ":type:")
    match = re.fullmatch(r"<class '(?:gym|gymnasium)\.spaces\.(?:\w+\.)?(\w+)'>", kind)
    if not match:
        raise UserError(f"{source} does not say its {what}, or in an unknown way ({printable(kind) or 'missing'})")
    return match[1]


def observation_space(data: Mapping[str, Any], source: str) -> BoxSpace:
    """What the policy sees: of observations with named parts, and of discrete ones, the vector that they are flattened to.

    Discrete numbers become one-hot vectors and binary ones floats, as Stable-Baselines3 preprocesses them.

    Args:
        data: the zip's JSON.
        source: the file, for messages.

    Raises:
        UserError: the file does not say it, it is damaged, or of a kind that is not supported.
    """
    entry = entry_of(data, "observation_space")
    kind = _space_kind(entry, "observation space", source)
    if kind == "Dict":
        return _named_parts(entry, source)
    if kind in ("Discrete", "MultiDiscrete", "MultiBinary"):
        low, high = _flat_bounds(_pickled(entry, source), f"{source}: its observation space")
        return BoxSpace(low.shape, low, high, "float32")
    if kind != "Box":
        raise UserError(
            f"{source} has observations of the kind {printable(kind)}; "
            "Box, Discrete, MultiDiscrete, MultiBinary and Dict are supported"
        )
    return _box(entry, "observation space", source)


def _named_parts(entry: Mapping[str, Any], source: str) -> BoxSpace:
    """A Dict of vectors and numbers as one vector: its parts one after the other, discrete ones as one-hot vectors.

    So Stable-Baselines3's CombinedExtractor puts them together, and so Gymnasium flattens them.
    """
    parts = _attribute(entry, "spaces", source)
    absurd = UserError(f"{source} is damaged: its observation space has absurd parts, or none")
    if not isinstance(parts, dict) or not 1 <= len(parts) <= _MOST_PARTS:
        raise absurd
    bounds, keys = [], []
    for key, part in parts.items():
        bounds.append(_flat_bounds(part, f"{source}: the part {printable(key, 40)!r} of its observations"))
        keys.append((key, bounds[-1][0].size))
        if not isinstance(key, str) or sum(size for _, size in keys) > _MOST_NUMBERS:
            raise absurd
    low, high = (np.concatenate(sides) for sides in zip(*bounds, strict=True))
    return BoxSpace(low.shape, low, high, "float32", tuple(keys))


def _flat_bounds(part: Any, what: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Least and largest number of each place of a part's vector.

    Raises:
        UserError: the part is an image, of another kind, or damaged.
    """
    kind = part.name.rpartition(".")[2] if isinstance(part, Inert) else ""
    if kind not in ("Box", "Discrete", "MultiDiscrete", "MultiBinary"):
        raise UserError(
            f"{what} is of the kind {printable(kind) or 'unknown'}; vectors and discrete numbers are supported"
        )
    values = attributes(part.state)
    try:
        if kind == "Box":
            low, high = array(values.get("low")), array(values.get("high"))
        else:
            numbers = values.get("nvec" if kind == "MultiDiscrete" else "n")
            # Of several axes `MultiBinary.n` is a tuple.
            sizes = (
                np.concatenate([array(number).flatten() for number in numbers])
                if isinstance(numbers, tuple | list) and (0 < len(numbers) <= 16)
                else array(numbers).flatten()
            )
    except UserError as error:
        raise UserError(f"{what} is damaged: {error}") from None
    if kind == "Box":
        if low.shape != high.shape or not low.size or not (low <= high).all():  # NaN is not
            raise UserError(f"{what} is damaged: it has no lowest and highest values")
        if low.ndim >= 3:
            raise UserError(f"{what} is an image; of observations with named parts only vectors are supported")
        return low.flatten(), high.flatten()
    whole = [int(size) for size in sizes if 1 <= size <= MOST_ACTIONS]
    length = math.prod(whole[:16]) if kind == "MultiBinary" else sum(whole)
    if len(whole) != sizes.size or not 1 <= length <= MOST_ACTIONS:
        raise UserError(f"{what} is damaged: it has an absurd number of values")
    return np.zeros(length), np.ones(length)


def action_space(data: Mapping[str, Any], source: str) -> BoxSpace | DiscreteSpace:
    """The actions; arguments and errors as of `observation_space`."""
    entry = entry_of(data, "action_space")
    kind = _space_kind(entry, "action space", source)
    if kind == "Box":
        return _box(entry, "action space", source)
    if kind == "Discrete":
        count = integer(entry.get("n"))
        sizes = [float(count)] if count is not None else _stored(entry, "n", source).flatten().tolist()
    elif kind == "MultiDiscrete":
        texts = _numbers(entry.get("nvec"))
        sizes = texts if texts is not None else _stored(entry, "nvec", source).flatten().tolist()
    else:
        raise UserError(
            f"{source} has actions of the kind {printable(kind)}; Discrete, MultiDiscrete and Box are supported"
        )
    if not sizes or not all(1 <= size <= MOST_ACTIONS for size in sizes) or sum(sizes) > MOST_ACTIONS:
        raise UserError(f"{source} is damaged: its action space has an absurd number of actions")
    return DiscreteSpace(tuple(int(size) for size in sizes))


def _box(entry: Mapping[str, Any], what: str, source: str) -> BoxSpace:
    shape = entry.get("_shape", entry.get("shape"))
    if isinstance(shape, str):
        shape = [integer(length) for length in re.findall(r"\d{1,9}", shape)]
    if not isinstance(shape, list) or not all(isinstance(length, int) and length >= 1 for length in shape):
        raise UserError(f"{source} does not say the shape of its {what}")
    if len(shape) > 8 or not 1 <= math.prod(shape) <= _MOST_NUMBERS:
        raise UserError(f"{source} is damaged: its {what} has an absurd shape")
    match = re.search(r"(u?int|float)(8|16|32|64)", text_of(entry, "dtype"))
    dtype = match[0] if match else "float32"
    low, high = (_bound(entry, key, tuple(shape), dtype, what, source) for key in ("low", "high"))
    if np.isnan(low).any() or np.isnan(high).any() or (low > high).any():
        raise UserError(f"{source} is damaged: its {what} has a lowest value above the highest")
    return BoxSpace(tuple(shape), low, high, dtype)


def _bound(
    entry: Mapping[str, Any], key: str, shape: tuple[int, ...], dtype: str, what: str, source: str
) -> npt.NDArray[np.float64]:
    """Lowest or highest values, from their text if it is complete, else from the pickle, else by what is left of them."""
    for text in (entry.get(key), entry.get(f"{key}_repr")):
        numbers = _numbers(text)
        if numbers is not None and len(numbers) in (1, math.prod(shape)):
            return np.broadcast_to(np.array(numbers).reshape(shape if len(numbers) > 1 else ()), shape).copy()
    try:
        values = _stored(entry, key, source)
        if values.shape == shape:
            return values
        refusal = UserError(f"{source} does not say the {key}est values of its {what}")
    except UserError as error:
        refusal = error  # unless the texts will do
    left = _numbers(text_of(entry, key).replace("...", " "))
    if left and len(set(left)) == 1:
        return np.full(shape, left[0])
    if dtype == "uint8":
        return np.full(shape, 0.0 if key == "low" else 255.0)
    raise refusal


def _numbers(text: Any) -> list[float] | None:
    """The numbers in the text of an array; None where it is abbreviated or holds anything else."""
    words: list[Any] | None = text if isinstance(text, list) else [text] if isinstance(text, int | float) else None
    if isinstance(text, str):
        words = re.sub(r"[\[\](),]", " ", text).split()
    try:
        return None if words is None else [float(word) for word in words]
    except (ValueError, TypeError, OverflowError):
        return None


def _stored(entry: Mapping[str, Any], key: str, source: str) -> npt.NDArray[np.float64]:
    """An attribute of the pickled space that is numbers."""
    value = _attribute(entry, key, source)
    return array(value) if key != "n" else np.array(number(value))


def _attribute(entry: Mapping[str, Any], key: str, source: str) -> Any:
    """An attribute of the pickled space, read as data."""
    pickled = _pickled(entry, source)
    values = attributes(pickled.state) if isinstance(pickled, Inert) else {}
    if key not in values:
        raise UserError(f"{source} does not say the {printable(key)!r} of a space")
    return values[key]


def _pickled(entry: Mapping[str, Any], source: str) -> Any:
    """The pickled space itself, read as data."""
    text = entry.get(":serialized:")
    if isinstance(text, Inert):  # of a file that is one pickle
        return text
    try:
        raw = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except ValueError:
        raw = b""
    return interpret(raw, admits_statistics, source=f"{source}: a space of its data")[0]
