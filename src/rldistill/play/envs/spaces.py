"""Gymnasium's spaces as a task has them: observations become one array, actions count from 0."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from rldistill.play.envs.boundary import EnvironmentFailed
from rldistill.types import UserError, unbounded

Array: TypeAlias = npt.NDArray[Any]
Part: TypeAlias = Callable[[Any, str], Array]
"""Reads one part of an observation to a vector (features,); the text begins a message."""
_MOST_ACTIONS = 65_536
_MOST_FEATURES = 1_000_000
_LEAST_IMAGE = 8


class ObservationReader:
    """Turns what an environment gives into an array of the task's shape.

    | space | what policies see |
    |---|---|
    | Box of one axis | the vector |
    | Box of three axes | an image, channels first; see `channels_last` |
    | Box of two axes in bytes, 8 or more each | an image of one channel |
    | Box of no axis or of two | the numbers as a vector |
    | Discrete, MultiDiscrete, MultiBinary, Text, Dict, Tuple | a vector, as `gymnasium.spaces.flatten` makes it |

    Args:
        env: its id, for messages.
        space: the observation space.
        shape: of a task that was written before images of floats were turned: where it is the space's own shape, images stay as
            they are.

    Raises:
        UserError: the space is not understood.
    """

    def __init__(self, env: str, space: Any, shape: tuple[int, ...] | None = None) -> None:
        from gymnasium.spaces import Box, Dict, Discrete, flatdim

        self.env = env
        self.own_shape: tuple[int, ...] = ()
        """Of a Box, as the environment declares it."""
        self.keys: tuple[tuple[str, int], ...] = ()
        """Names and sizes of a Dict's parts, in their order."""
        self.dtype: Literal["uint8", "float32"] = "float32"
        self.counts = isinstance(space, Discrete)
        """Whether an observation is one whole number."""
        self._parts: Part | None = None
        self._turned = False
        if not isinstance(space, Box):
            self._parts = _part(env, space, "")
            self.keys = (
                tuple((str(key), flatdim(part)) for key, part in space.items()) if isinstance(space, Dict) else ()
            )
            self.shape: tuple[int, ...] = (int(flatdim(space)),)
            if self.shape[0] > _MOST_FEATURES:
                raise UserError(
                    f"{env} has observations that are a vector of {self.shape[0]:,} numbers; {_MOST_FEATURES:,} are the most: wrap "
                    "it so that they are fewer, such as a Box of the numbers themselves in place of a large Discrete"
                )
            return
        own = self.own_shape = tuple(int(n) for n in space.shape)
        self.dtype = "uint8" if space.dtype == np.uint8 else "float32"
        if len(own) > 3:
            raise UserError(
                f"{env} has observations of shape {own}; vectors, tables of two axes and images (three axes) are understood: "
                "wrap it, such as in gymnasium.wrappers.ReshapeObservation"
            )
        turned = own[2:] + own[:2]
        self._turned = len(own) == 3 and channels_last(own, self.dtype) and (shape != own or turned == own)
        if self._turned:
            self.shape = turned
        elif len(own) in (1, 3):
            self.shape = own
        elif len(own) == 2 and self.dtype == "uint8" and min(own) >= _LEAST_IMAGE:
            self.shape = (1, *own)
        else:
            self.shape = (math.prod(own),)

    def __call__(self, observation: Any, call: str) -> Array:
        """An array of `shape`, in the precision that the environment gives.

        Args:
            observation: as the environment gives it.
            call: `reset` or `step`, for messages.

        Raises:
            EnvironmentFailed: it is none of the space.
        """
        what = f"{call} of {self.env} gives an observation"
        if self._parts is not None:
            return self._parts(observation, what)
        array = _array(observation, self.own_shape, what)
        if self.dtype == "uint8":
            array = _exactly(array, np.dtype(np.uint8), what)
        return array.transpose(2, 0, 1) if self._turned else array.reshape(self.shape)

    def feature(self, index: tuple[int, ...]) -> str:
        """A place of the observation in words."""
        at = index[0]
        for name, size in self.keys:
            if at < size:
                return f"number {at} of its part {name!r}"
            at -= size
        return f"number {', '.join(map(str, index))}"


def channels_last(shape: tuple[int, ...], dtype: str) -> bool:
    """Whether the last axis of an image (three axes) is the channels.

    The channels are the axis beside two equal ones, otherwise the shortest axis. Of a cube in bytes they are the last, as
    Stable-Baselines3 decides; a cube of floats is left as it is.
    """
    first, middle, last = shape
    if first == middle == last:
        return dtype == "uint8"
    if first == middle or middle == last:
        return first == middle
    return last == min(shape)


def _part(env: str, space: Any, name: str) -> Part:
    """Reads a space of parts to one vector.

    Raises:
        UserError: a space that no vector stands for.
    """
    from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple

    if isinstance(space, Dict):
        readers = {key: _part(env, part, f"{name}{key!r}, ") for key, part in space.items()}
        return lambda value, what: _named(value, readers, f"{what}{_of(name)}")
    if isinstance(space, Tuple):
        several = [_part(env, part, f"{name}{number}, ") for number, part in enumerate(space)]
        return lambda value, what: _several(value, several, f"{what}{_of(name)}")
    if isinstance(space, Discrete):
        count, start = int(space.n), int(space.start)
        return lambda value, what: _one_hot(value, np.array([count]), np.array([start]), (), f"{what}{_of(name)}")
    if isinstance(space, MultiDiscrete):
        counts, starts, shape = space.nvec.ravel(), np.ravel(space.start), tuple(space.nvec.shape)
        return lambda value, what: _one_hot(value, counts, starts, shape, f"{what}{_of(name)}")
    if isinstance(space, Box | MultiBinary):
        own, dtype = tuple(int(n) for n in space.shape), np.dtype(space.dtype)
        return lambda value, what: _exactly(_array(value, own, f"{what}{_of(name)}"), dtype, what).ravel()
    if isinstance(space, Text):
        return lambda value, what: _letters(value, space, f"{what}{_of(name)}")
    where = f" (in the part {name[:-2]})" if name else ""
    raise UserError(
        f"{env} has {type(space).__name__} observations{where} that cannot be flattened to a vector: wrap it so that its space is "
        "a Box, Discrete, MultiDiscrete, MultiBinary, Text, or a Dict or Tuple of these"
    )


def features_text(space: Any, name: str = "", at: int = 0) -> list[tuple[str, int, int, str]]:
    """What stands where in the vector of a space: names of parts (`in.door`), first places, numbers of places, and words."""
    from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple, flatdim

    if isinstance(space, Dict | Tuple):
        parts: Any = space.items() if isinstance(space, Dict) else enumerate(space)
        rows: list[tuple[str, int, int, str]] = []
        for key, part in parts:
            inner = f"{name}.{key}" if name else str(key) if isinstance(space, Dict) else f"part {key}"
            rows += features_text(part, inner, at)
            at += int(flatdim(part))
        return rows
    if isinstance(space, Discrete):
        first = int(space.start)
        ones = f"one-hot of a whole number from {first} to {first + int(space.n) - 1}"
        return [(name, at, int(space.n), ones)]
    if isinstance(space, MultiDiscrete):
        rows = []
        for number, (count, first) in enumerate(zip(space.nvec.ravel(), np.ravel(space.start), strict=True)):
            ones = f"one-hot of a whole number from {first} to {first + count - 1}"
            rows.append((f"{name}[{number}]" if name else f"number {number}", at, int(count), ones))
            at += int(count)
        return rows
    size = int(flatdim(space))
    if isinstance(space, MultiBinary) or not isinstance(space, Box):
        return [(name, at, size, "0 or 1 each")]
    low, high = (np.array([unbounded(float(n)) for n in side.ravel()]) for side in (space.low, space.high))
    rows, start = [], 0
    for place in range(1, size + 1):  # neighbours of one range are one line
        if place == size or (low[place], high[place]) != (low[start], high[start]):
            bounded = math.isfinite(low[start]) or math.isfinite(high[start])
            words = f"{low[start] + 0:g} to {high[start] + 0:g}" if bounded else "without bounds"
            rows.append((name, at + start, place - start, words))
            start = place
    return rows


def _of(name: str) -> str:
    return f", in its part {name[:-2]}," if name else ""


def _named(value: Any, readers: Mapping[str, Part], what: str) -> Array:
    if not isinstance(value, Mapping) or set(value) != set(readers):
        has = ", ".join(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
        raise EnvironmentFailed(
            f"{what} with {has[:100] or 'no parts'}; its space declares {', '.join(map(str, readers))}"
        )
    return _joined([read(value[key], what) for key, read in readers.items()])


def _several(value: Any, readers: list[Part], what: str) -> Array:
    if not isinstance(value, tuple | list | np.ndarray) or len(value) != len(readers):
        has = f"{len(value)} parts" if isinstance(value, tuple | list | np.ndarray) else f"a {type(value).__name__}"
        raise EnvironmentFailed(f"{what} of {has}; its space declares a tuple of {len(readers)}")
    return _joined([read(part, what) for part, read in zip(value, readers, strict=True)])


def _joined(parts: list[Array]) -> Array:
    return np.concatenate([part.astype(np.float64, copy=False) for part in parts]) if parts else np.empty(0)


def _letters(value: Any, space: Any, what: str) -> Array:
    from gymnasium.spaces import flatten

    if not isinstance(value, str) or not space.contains(value):
        raise EnvironmentFailed(f"{what} that is no text of its space {space}"[:300])
    return np.asarray(flatten(space, value))


def _one_hot(value: Any, counts: Array, starts: Array, shape: tuple[int, ...], what: str) -> Array:
    numbers = _exactly(_array(value, shape, what), np.dtype(np.int64), what).ravel() - starts
    if ((numbers < 0) | (numbers >= counts)).any():
        given = np.array2string(np.asarray(value), threshold=8)
        raise EnvironmentFailed(
            f"{what} of {given}, which its space of {counts.tolist()} values from {starts.tolist()} lacks"
        )
    vector = np.zeros(int(counts.sum()))
    vector[np.concatenate([[0], np.cumsum(counts)[:-1]]) + numbers] = 1
    return vector


def _array(value: Any, shape: tuple[int, ...], what: str) -> Array:
    """The numbers of a value, in the shape; axes of length 1 may be there or not."""
    try:
        array = np.asarray(value)
    except Exception:  # a stranger's object may fail in any way
        array = np.empty(0, dtype=object)
    if array.dtype.kind not in "biuf":
        raise EnvironmentFailed(f"{what} that is no array of numbers but {type(value).__name__}")
    if array.shape == shape:
        return array
    if [n for n in array.shape if n != 1] != [n for n in shape if n != 1]:
        raise EnvironmentFailed(f"{what} of shape {array.shape}; its space declares {shape}")
    return array.reshape(shape)


def _exactly(array: Array, dtype: np.dtype[Any], what: str) -> Array:
    """The array as another type, which must hold its numbers (floats may be rounded)."""
    if array.dtype == dtype:
        return array
    with np.errstate(all="ignore"):
        cast = array.astype(dtype)
    if dtype.kind != "f" and not np.array_equal(cast, array):
        raise EnvironmentFailed(f"{what} of {array.dtype} numbers that the type of its space, {dtype}, cannot hold")
    return cast


class ActionWriter:
    """Turns an action of the task, which counts from 0, into what the environment takes.

    | space | a task's actions |
    |---|---|
    | Discrete | one number |
    | MultiDiscrete, MultiBinary, Tuple of Discrete | several numbers at once |
    | Box of floats, of any shape | a vector in the environment's units |

    Args:
        env: its id, for messages.
        space: the action space.

    Raises:
        UserError: the space is not understood.
    """

    def __init__(self, env: str, space: Any) -> None:
        from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete, Tuple

        self._write: Callable[[Any], Any]
        self.fields: dict[str, Any]
        """What a `Task` says of the actions."""
        self.as_counted = False
        """Whether it takes a task's actions as they are."""
        shape = tuple(space.shape) if isinstance(getattr(space, "shape", None), tuple) else ()
        if isinstance(space, Discrete):
            first = int(space.start)
            self.as_counted = first == 0
            self.fields = {"num_actions": int(space.n)}
            self._write = lambda action: int(action) + first
        elif isinstance(space, MultiDiscrete):
            starts = np.asarray(space.start)
            self.as_counted = len(shape) == 1 and not starts.any()
            self.fields = _sizes(space.nvec.ravel())
            # A copy, for some environments scale or cut what they are given in place.
            self._write = lambda action: action.reshape(shape) + starts
        elif isinstance(space, MultiBinary):
            self.fields = _sizes([2] * math.prod(shape))
            self._write = lambda action: action.reshape(shape).astype(space.dtype)
        elif isinstance(space, Tuple) and len(space) and all(isinstance(part, Discrete) for part in space):
            several = [int(part.start) for part in space]
            self.fields = _sizes([part.n for part in space])
            self._write = lambda action: tuple(int(n) + start for n, start in zip(action, several, strict=True))
        elif isinstance(space, Box) and np.issubdtype(space.dtype, np.floating) and math.prod(shape):
            low, high = (tuple(unbounded(float(n)) for n in side.ravel()) for side in (space.low, space.high))
            self.fields = {"num_actions": len(low), "action_low": low, "action_high": high}
            self.as_counted = len(shape) == 1
            self._write = lambda action: action.reshape(shape).copy()
        else:
            kind = f"{type(space).__name__} actions" + (f" of {space.dtype}" if isinstance(space, Box) else "")
            kind += "" if math.prod(shape) else f" without any number (shape {shape})"
            raise UserError(
                f"{env} has {kind}; rldistill plays Discrete, MultiDiscrete, MultiBinary, Tuple of Discrete, and Box of floats"
            )
        if self.fields["num_actions"] > _MOST_ACTIONS:
            raise UserError(f"{env} has {self.fields['num_actions']:,} actions; {_MOST_ACTIONS:,} are the most")

    def __call__(self, action: Any) -> Any:
        """What `step` of the environment is given for an action () or (dimensions,)."""
        return self._write(action)


def _sizes(sizes: Any) -> dict[str, Any]:
    counts = tuple(int(n) for n in sizes)
    return {"num_actions": sum(counts), "action_sizes": counts}
