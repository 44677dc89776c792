"""Pickles as data: a reader that builds plain containers and imports nothing.

Python's own unpickler calls whatever a file names, and even with its imports restricted it can be led to allocate
gigabytes (a huge memo index) or to hash for years (tuples in tuples as keys). The reader here knows three kinds of things:
plain values, plain containers, and `Inert`: the *name* of a class or function with the arguments it was to be called
with. What is needed of those (numpy's arrays and scalars, the state of a few classes) is then read out by hand.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rldistill.formats.archives import MIB, PATH_LENGTH, printable
from rldistill.types import UserError

MOST_BYTES = 64 * MIB
"""Of a statistics file. Those of eight stacks of 84 x 84 frames are some 2 MiB."""
MOST_OPERATIONS = 300_000
"""Of a pickle. The statistics of an environment are some 500, a network's tensors 20 each."""
_MOST_KEY_BITS = 4096

Admits = Callable[[str, str], bool]
"""Whether a module's name may be mentioned in a pickle."""


class Named(NamedTuple):
    """A class or function that a pickle mentions. It is never imported."""

    module: str
    name: str

    @property
    def dotted(self) -> str:
        """Module and name."""
        return f"{self.module}.{self.name}"


@dataclass(eq=False, slots=True)  # hashed by identity, so that no stranger can make hashing slow
class Inert:
    """What a pickle wanted to call or to make, and was not."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = None


class _Refused(Exception):
    """Its text says what the pickle wants."""


class _Unknown(Exception):
    """Its text is a name that is not admitted."""


class _Damaged(Exception):
    """The pickle is no pickle."""


# The errors of `pickletools.genops` and of the reader below at nonsense.
_DAMAGE = (
    _Damaged,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    AssertionError,
    AttributeError,
    struct.error,
    MemoryError,
)


def interpret(
    data: bytes,
    admits: Admits,
    *,
    source: str,
    hint: str = "",
    start: int = 0,
    persistent: Callable[[Any], Any] | None = None,
) -> tuple[Any, int]:
    """Reads one pickle without importing or calling anything.

    Args:
        data: holds the pickle.
        admits: names that it may mention; they become `Named`, calls of them `Inert`.
        source: the file, for messages.
        hint: the end of the message where a name is refused.
        start: where the pickle begins.
        persistent: takes the persistent ids (PyTorch's storages); without it they are refused.

    Returns:
        The value (sets and deques as lists) and where the pickle ends.

    Raises:
        UserError: a name is not admitted, or the pickle is damaged, too long, or made to exhaust memory or time.
    """
    try:
        return _Reader(admits, persistent, budget=4 * len(data) + MIB).read(data, start)
    except UserError:  # of `persistent`
        raise
    except _Refused as refused:
        raise UserError(f"{printable(source, PATH_LENGTH)} is refused: its pickle {refused}") from None
    except _Unknown as unknown:
        raise UserError(
            f"{printable(source, PATH_LENGTH)} is refused: its pickle wants to call {printable(unknown, 60)}{hint}"
        ) from None
    except _DAMAGE as error:
        reason = printable(error) or type(error).__name__
        raise UserError(f"{printable(source, PATH_LENGTH)} is damaged or no pickle ({reason}); get it anew") from None


class _Reader:
    """The pickle machine: a stack, marks in it, a memo."""

    def __init__(self, admits: Admits, persistent: Callable[[Any], Any] | None, budget: int) -> None:
        self._admits = admits
        self._persistent = persistent
        self._budget = budget
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def read(self, data: bytes, start: int) -> tuple[Any, int]:
        file = io.BytesIO(data)
        file.seek(start)
        for count, (operation, argument, _) in enumerate(pickletools.genops(file)):
            if count > MOST_OPERATIONS:
                raise _Refused(f"has more than {MOST_OPERATIONS:,} operations")
            if operation.name == "STOP":
                return self._pop(), file.tell()
            self._step(operation.name, argument)
        raise _Damaged("it has no end")

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "NONE":
                stack.append(None)
            case "NEWTRUE":
                stack.append(True)
            case "NEWFALSE":
                stack.append(False)
            case (
                "INT" | "BININT" | "BININT1" | "BININT2" | "LONG" | "LONG1" | "LONG4" | "FLOAT" | "BINFLOAT"
                | "STRING" | "BINSTRING" | "SHORT_BINSTRING" | "UNICODE" | "SHORT_BINUNICODE" | "BINUNICODE"
                | "BINUNICODE8" | "BINBYTES" | "BINBYTES8" | "SHORT_BINBYTES"
            ):  # fmt: skip
                stack.append(argument)
            case "BYTEARRAY8":
                stack.append(bytes(argument))
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_DICT":
                stack.append({})
            case "MARK":
                self._marks.append(len(stack))
            case "POP":
                if self._marks and self._marks[-1] == len(stack):
                    self._marks.pop()
                else:
                    self._pop()
            case "POP_MARK":
                self._to_mark()
            case "DUP":
                stack.append(self._top())
            case "TUPLE":
                stack.append(tuple(self._to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [self._pop() for _ in range(int(name[-1]))]
                stack.append(tuple(reversed(items)))
            case "LIST" | "FROZENSET":
                stack.append(self._to_mark())
            case "DICT":
                stack.append(self._pairs({}, self._to_mark()))
            case "APPEND":
                item = self._pop()
                self._list().append(item)
            case "APPENDS" | "ADDITEMS":
                added = self._to_mark()
                self._list().extend(added)
            case "SETITEM":
                value, key = self._pop(), self._pop()
                self._pairs(self._top(), [key, value])
            case "SETITEMS":
                pairs = self._to_mark()
                self._pairs(self._top(), pairs)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = self._top()
            case "MEMOIZE":
                self._memo[len(self._memo)] = self._top()
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "GLOBAL":
                module, _, attribute = argument.partition(" ")
                stack.append(self._named(module, attribute))
            case "STACK_GLOBAL":
                attribute, module = self._pop(), self._pop()
                stack.append(self._named(module, attribute))
            case "REDUCE" | "NEWOBJ":
                arguments, function = self._pop(), self._pop()
                stack.append(self._call(function, arguments, made=name == "NEWOBJ"))
            case "NEWOBJ_EX":
                _, arguments, function = self._pop(), self._pop(), self._pop()
                stack.append(self._call(function, arguments, made=True))
            case "INST":
                module, _, attribute = argument.partition(" ")
                arguments = tuple(self._to_mark())
                stack.append(self._call(self._named(module, attribute), arguments, made=True))
            case "OBJ":
                function, *rest = self._to_mark()
                stack.append(self._call(function, tuple(rest), made=True))
            case "BUILD":
                state, made = self._pop(), self._top()
                if isinstance(made, Inert):
                    made.state = state
                elif not isinstance(made, dict):  # an OrderedDict of PyTorch has attributes, which nobody needs
                    raise _Damaged("it gives a state to a plain value")
            case "PERSID" | "BINPERSID":
                if self._persistent is None:
                    raise _Refused("asks for objects outside of the file")
                stack.append(self._persistent(argument if name == "PERSID" else self._pop()))
            case _:  # EXT1, EXT2, EXT4, NEXT_BUFFER, READONLY_BUFFER
                raise _Refused(f"uses {name}, which no statistics or weights need")

    def _pop(self) -> Any:
        if not self._stack or (self._marks and self._marks[-1] >= len(self._stack)):
            raise _Damaged("it takes from an empty stack")
        return self._stack.pop()

    def _top(self) -> Any:
        if not self._stack:
            raise _Damaged("it reads an empty stack")
        return self._stack[-1]

    def _to_mark(self) -> list[Any]:
        if not self._marks:
            raise _Damaged("it lacks a mark")
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def _list(self) -> list[Any]:
        target = self._top()
        if not isinstance(target, list):
            raise _Damaged("it appends to what is no list")
        return target

    def _pairs(self, target: Any, items: list[Any]) -> dict[Any, Any]:
        if not isinstance(target, dict) or len(items) % 2:
            raise _Damaged("it sets items of what is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_checked_key(key)] = value
        return target

    def _named(self, module: Any, name: Any) -> Named:
        if not isinstance(module, str) or not isinstance(name, str):
            raise _Damaged("it names something by what is no text")
        named = Named(_TODAY.get(module, module), name)
        if not self._admits(*named):
            raise _Unknown(named.dotted)
        return named

    def _call(self, function: Any, arguments: Any, *, made: bool) -> Any:
        if not isinstance(function, Named) or not isinstance(arguments, tuple):
            raise _Damaged("it calls what is no function")
        if function.dotted in _RECONSTRUCTORS:  # how protocols 0 and 1 make an object: class, base, initial value
            if not arguments or not isinstance(arguments[0], Named):
                raise _Damaged("it makes an object of what is no class")
            return Inert(arguments[0].dotted, arguments[1:])
        builder = None if made else _BUILDERS.get(function.dotted)
        if builder is None:
            return Inert(function.dotted, arguments)
        # Each copy costs, and a pickle can ask for the same one a hundred thousand times.
        self._budget -= 1 + sum(len(item) for item in arguments if isinstance(item, str | bytes | list | tuple | dict))
        if self._budget < 0:
            raise _Refused("is made to exhaust memory")
        return builder(*arguments)


def _checked_key(key: Any) -> Any:
    if isinstance(key, tuple) and _is_plain(key, 2):
        return key
    if isinstance(key, int) and key.bit_length() > _MOST_KEY_BITS:
        raise _Damaged("a key is absurdly long")
    if key is None or isinstance(key, str | bytes | int | float | Inert):
        return key
    raise _Refused("has a dictionary with keys that are no plain values")


def _is_plain(item: Any, depth: int) -> bool:
    """Whether a part of a key is quickly hashed: a plain value, or a few of them, in tuples of so many levels."""
    if isinstance(item, tuple):
        return depth > 0 and len(item) <= 8 and all(_is_plain(inner, depth - 1) for inner in item)
    return isinstance(item, str | float | bool | None) or (isinstance(item, int) and item.bit_length() <= 64)


def _ordered(items: Any = ()) -> dict[Any, Any]:
    return {_checked_key(key): value for key, value in (items.items() if isinstance(items, dict) else items)}


def _listed(items: Any = (), length: int | None = None) -> list[Any]:
    if not isinstance(items, list | tuple):
        raise _Damaged("a container is made of what is none")
    return list(items)


def _encoded(text: Any, encoding: Any = "latin1") -> bytes:
    """Bytes in protocol 2 are text that is to be encoded."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "ascii", "utf-8", "utf8"):
        raise _Damaged("it encodes what is no text")
    return text.encode(encoding)


def _bytes(data: Any = b"", encoding: Any = None) -> bytes:
    if isinstance(data, str):
        return _encoded(data, encoding)
    if not isinstance(data, bytes):  # bytearray(10**12) is a bomb
        raise _Damaged("it makes bytes of what is none")
    return data


_TODAY = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # protocols up to 2 name modules as Python 2 did
_RECONSTRUCTORS = {"copyreg._reconstructor", "copyreg.__newobj__"}
_BUILDERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "builtins.dict": _ordered,
    "collections.defaultdict": lambda *_: {},
    "collections.deque": _listed,
    "builtins.list": _listed,
    "builtins.set": _listed,
    "builtins.frozenset": _listed,
    "_codecs.encode": _encoded,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytes,
}
_ARRAY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_BUFFER_MODULES = ("numpy.core.numeric", "numpy._core.numeric")
_SCALARS = {
    name: np.dtype(name)
    for name in (
        "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
    )
}  # fmt: skip
_NAMES = (
    {f"{module}.{name}" for module in _ARRAY_MODULES for name in ("_reconstruct", "scalar")}
    | {f"{module}._frombuffer" for module in _BUFFER_MODULES}
    | {f"numpy.{name}" for name in (*_SCALARS, "bool_", "ndarray", "dtype")}
    | {"builtins.object", "builtins.tuple", "builtins.float", "builtins.int", "builtins.bool"}
    | _RECONSTRUCTORS
    | set(_BUILDERS)
)
STATE_MODULES = re.compile(
    r"(gym|gymnasium)\.spaces(\.\w+)?"
    r"|(gym|gymnasium)\.wrappers\.(normalize|utils)"
    r"|stable_baselines3?\.common\.(vec_env(\.\w+)*|running_mean_std)"
    r"|numpy\.random(\.\w+)?|numpy\.dtypes"
)
"""Whose classes are only state to us. Functions of these modules may be named too; nothing calls them."""


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
            raise _Damaged("no numbers")
        return made
    if not isinstance(value, Inert):
        raise _Damaged("no array")
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
    raise _Damaged(f"{printable(value.name, 60)} is no array")


def _from_bytes(raw: Any, kind: np.dtype[Any], shape: Any, order: Any) -> npt.NDArray[Any]:
    if not isinstance(raw, bytes) or not isinstance(shape, tuple) or len(shape) > 16:
        raise _Damaged("no bytes or no shape")
    if not all(isinstance(length, int) and 0 <= length <= MOST_BYTES for length in shape):
        raise _Damaged("absurd shape")
    if math.prod(shape) * kind.itemsize != len(raw):
        raise _Damaged("its shape does not fit its bytes")
    return np.frombuffer(raw, dtype=kind).reshape(shape, order=order)


def _dtype(value: Any) -> np.dtype[Any]:
    if isinstance(value, Named) and value.module == "numpy" and value.name in _SCALARS:
        return _SCALARS[value.name]
    if not isinstance(value, Inert) or value.name != "numpy.dtype" or not value.arguments:
        raise _Damaged("no type of numbers")
    code = value.arguments[0]
    if not isinstance(code, str) or not re.fullmatch(r"[<>=|]?(\?|b1|[iu][1248]|f[248])", code):
        raise _Damaged("its elements are no plain numbers")
    order = value.state[1] if isinstance(value.state, tuple) and len(value.state) > 1 else "="
    if order not in ("<", ">", "=", "|"):
        raise _Damaged("its byte order is unknown")
    return np.dtype(f"{order}{code.lstrip('<>=|')}")
