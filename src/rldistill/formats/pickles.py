"""Pickles as data: a reader that builds plain containers and imports nothing.

Python's own unpickler calls whatever a file names, and even with its imports restricted it can be led to allocate
gigabytes (a huge memo index) or to hash for years (tuples in tuples as keys). The reader here knows three kinds of things:
plain values, plain containers, and `Inert`: the *name* of a class or function with the arguments it was to be called
with. What is needed of those (numpy's arrays and scalars, the state of a few classes) is then read out by hand, see `arrays`.
"""

from __future__ import annotations

import io
import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from rldistill.types import UserError, printable

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
        return _Reader(admits, persistent, budget=4 * len(data) + 2**20).read(data, start)
    except UserError:  # of `persistent`
        raise
    except _Refused as refused:
        raise UserError(f"{source} is refused: its pickle {refused}") from None
    except _Unknown as unknown:
        raise UserError(f"{source} is refused: its pickle wants to call {printable(unknown, 60)}{hint}") from None
    except _DAMAGE as error:
        reason = printable(error) or type(error).__name__
        raise UserError(f"{source} is damaged or no pickle ({reason}); get it anew") from None


_PLAIN = {
    "INT",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG",
    "LONG1",
    "LONG4",
    "FLOAT",
    "BINFLOAT",
    "STRING",
    "BINSTRING",
    "SHORT_BINSTRING",
    "UNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE",
    "BINUNICODE8",
    "BINBYTES",
    "BINBYTES8",
    "SHORT_BINBYTES",
}
"""Operations whose argument is the value."""
_MADE: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
}


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
        if name in ("PROTO", "FRAME"):
            return
        if name in _PLAIN:
            self._stack.append(argument)
        elif name in _MADE:
            self._stack.append(_MADE[name]())
        elif not (
            self._moves(name) or self._fills(name) or self._remembers(name, argument) or self._names(name, argument)
        ):  # EXT1, EXT2, EXT4, NEXT_BUFFER, READONLY_BUFFER
            raise _Refused(f"uses {name}, which no statistics or weights need")

    def _moves(self, name: str) -> bool:
        """Takes an operation on the stack and its marks; False where the operation is another."""
        match name:
            case "MARK":
                self._marks.append(len(self._stack))
            case "POP":
                if self._marks and self._marks[-1] == len(self._stack):
                    self._marks.pop()
                else:
                    self._pop()
            case "POP_MARK":
                self._to_mark()
            case "DUP":
                self._stack.append(self._top())
            case _:
                return False
        return True

    def _fills(self, name: str) -> bool:
        """Takes an operation that makes or fills a container; False where the operation is another."""
        match name:
            case "TUPLE":
                self._stack.append(tuple(self._to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [self._pop() for _ in range(int(name[-1]))]
                self._stack.append(tuple(reversed(items)))
            case "LIST" | "FROZENSET":
                self._stack.append(self._to_mark())
            case "DICT":
                self._stack.append(self._pairs({}, self._to_mark()))
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
            case _:
                return False
        return True

    def _remembers(self, name: str, argument: Any) -> bool:
        """Takes an operation on the memo, or one that asks for an object elsewhere; False where the operation is another."""
        match name:
            case "BYTEARRAY8":
                self._stack.append(bytes(argument))
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = self._top()
            case "MEMOIZE":
                self._memo[len(self._memo)] = self._top()
            case "GET" | "BINGET" | "LONG_BINGET":
                self._stack.append(self._memo[argument])
            case "PERSID" | "BINPERSID":
                if self._persistent is None:
                    raise _Refused("asks for objects outside of the file")
                self._stack.append(self._persistent(argument if name == "PERSID" else self._pop()))
            case _:
                return False
        return True

    def _names(self, name: str, argument: Any) -> bool:
        """Takes an operation that names or calls something; False where the operation is another."""
        match name:
            case "GLOBAL":
                module, _, attribute = argument.partition(" ")
                self._stack.append(self._named(module, attribute))
            case "STACK_GLOBAL":
                attribute, module = self._pop(), self._pop()
                self._stack.append(self._named(module, attribute))
            case "REDUCE" | "NEWOBJ":
                arguments, function = self._pop(), self._pop()
                self._stack.append(self._call(function, arguments, made=name == "NEWOBJ"))
            case "NEWOBJ_EX":
                _, arguments, function = self._pop(), self._pop(), self._pop()
                self._stack.append(self._call(function, arguments, made=True))
            case "INST":
                module, _, attribute = argument.partition(" ")
                arguments = tuple(self._to_mark())
                self._stack.append(self._call(self._named(module, attribute), arguments, made=True))
            case "OBJ":
                function, *rest = self._to_mark()
                self._stack.append(self._call(function, tuple(rest), made=True))
            case "BUILD":
                state, made = self._pop(), self._top()
                if isinstance(made, Inert):
                    made.state = state
                elif not isinstance(made, dict):  # an OrderedDict of PyTorch has attributes, which nobody needs
                    raise _Damaged("it gives a state to a plain value")
            case _:
                return False
        return True

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
UNDERSTOOD = frozenset(_BUILDERS) | _RECONSTRUCTORS
"""Names whose calls the reader carries out itself."""


def attributes(state: Any) -> dict[str, Any]:
    """What an object has by name, out of the state that its pickle gives it; empty where it has none."""
    if isinstance(state, tuple) and len(state) == 2 and isinstance(state[0], dict):  # of a class with slots
        state = state[0]
    return {name: value for name, value in state.items() if isinstance(name, str)} if isinstance(state, dict) else {}
