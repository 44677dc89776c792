"""NumPy's arrays and numbers out of a pickle that was read as data, and which names such a pickle may mention."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import numpy.typing as npt

from rldistill.formats.pickles import UNDERSTOOD, Inert, Named
from rldistill.types import UserError, printable

MOST_PICKLE_BYTES = 64 * 2**20
"""Of a statistics file. Those of eight stacks of 84 x 84 frames are some 2 MiB."""


class _NoArray(Exception):
    """Its text says why something is no array."""


_DAMAGE = (_NoArray, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError, MemoryError)
_ARRAY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_BUFFER_MODULES = ("numpy.core.numeric", "numpy._core.numeric")
_SCALARS = {
    name: np.dtype(name)
    for name in (
        "bool",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "float16",
        "float32",
        "float64",
    )
}
_NAMES = (
    {f"{module}.{name}" for module in _ARRAY_MODULES for name in ("_reconstruct", "scalar")}
    | {f"{module}._frombuffer" for module in _BUFFER_MODULES}
    | {f"numpy.{name}" for name in (*_SCALARS, "bool_", "ndarray", "dtype")}
    | {"builtins.object", "builtins.tuple", "builtins.float", "builtins.int", "builtins.bool"}
    | UNDERSTOOD
)
STATE_MODULES = re.compile(
    r"(gym|gymnasium)\.spaces(\.\w+)?"
    r"|(gym|gymnasium)\.wrappers\.(normalize|utils)"
    r"|stable_baselines3?\.common\.(vec_env(\.\w+)*|running_mean_std)"
    r"|numpy\.random(\.\w+)?|numpy\.dtypes"
)
"""Modules whose classes are read for their state alone. Their functions may be named too; nothing calls them."""


def admits_statistics(module: str, name: str) -> bool:
    """Names that a `VecNormalize` and its spaces need, from 2020 to today."""
    return f"{module}.{name}" in _NAMES or (STATE_MODULES.fullmatch(module) is not None and name.isidentifier())


def number(value: Any) -> float:
    """A Python or NumPy number.

    Raises:
        UserError: it is something else.
    """
    values = array(value)
    if values.size != 1:
        raise UserError("a number is missing")
    return float(values.reshape(()))


def array(value: Any) -> npt.NDArray[np.float64]:
    """An array or number of a pickle, its bytes counted before anything is made of them.

    Raises:
        UserError: it is no array of numbers, or its shape does not fit its bytes.
    """
    return plain_array(value).astype(np.float64)


def plain_array(value: Any) -> npt.NDArray[Any]:
    """As `array`, in the type of its own elements.

    Raises:
        UserError: as there.
    """
    try:
        return _array(value)
    except _DAMAGE as error:
        raise UserError(f"an array is missing or damaged ({printable(error)})") from None


def _array(value: Any) -> npt.NDArray[Any]:
    if isinstance(value, bool | int | float | np.ndarray | np.generic):  # arrays come from a trusted pickle
        made = np.asarray(value)
        if made.dtype.kind not in "biuf":
            raise _NoArray("no numbers")
        return made
    if not isinstance(value, Inert):
        raise _NoArray("no array")
    module, _, function = value.name.rpartition(".")
    if module in _ARRAY_MODULES and function == "_reconstruct":
        _, shape, kind, fortran, raw = value.state
        return _from_bytes(raw, _dtype(kind), shape, "F" if fortran else "C")
    if module in _ARRAY_MODULES and function == "scalar":
        kind, raw = value.arguments
        return _from_bytes(raw, _dtype(kind), (), "C")
    if module in _BUFFER_MODULES and function == "_frombuffer":
        raw, kind, shape, order = value.arguments
        return _from_bytes(raw, _dtype(kind), shape, "F" if order == "F" else "C")
    if module == "numpy" and function in _SCALARS and len(value.arguments) == 1:  # numpy.float64(3.0)
        return _array(value.arguments[0])
    raise _NoArray(f"{printable(value.name, 60)} is no array")


def _from_bytes(raw: Any, kind: np.dtype[Any], shape: Any, order: Any) -> npt.NDArray[Any]:
    if not isinstance(raw, bytes) or not isinstance(shape, tuple) or len(shape) > 16:
        raise _NoArray("no bytes or no shape")
    if not all(isinstance(length, int) and 0 <= length <= MOST_PICKLE_BYTES for length in shape):
        raise _NoArray("absurd shape")
    if math.prod(shape) * kind.itemsize != len(raw):
        raise _NoArray("its shape does not fit its bytes")
    return np.frombuffer(raw, dtype=kind).reshape(shape, order=order)


def _dtype(value: Any) -> np.dtype[Any]:
    if isinstance(value, Named) and value.module == "numpy" and value.name in _SCALARS:
        return _SCALARS[value.name]
    if not isinstance(value, Inert) or value.name != "numpy.dtype" or not value.arguments:
        raise _NoArray("no type of numbers")
    code = value.arguments[0]
    if not isinstance(code, str) or not re.fullmatch(r"[<>=|]?(\?|b1|[iu][1248]|f[248])", code):
        raise _NoArray("its elements are no plain numbers")
    order = value.state[1] if isinstance(value.state, tuple) and len(value.state) > 1 else "="
    if order not in ("<", ">", "=", "|"):
        raise _NoArray("its byte order is unknown")
    return np.dtype(f"{order}{code.lstrip('<>=|')}")
