"""Arguments of the library's functions, compared with the types that they are declared with."""

from __future__ import annotations

import collections.abc
import inspect
import os
import types
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from functools import cache, wraps
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from rldistill.types import UserError, as_flag, printable

Given = ParamSpec("Given")
Result = TypeVar("Result")


def checked_arguments(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """The function with its arguments, and the fields of configurations among them, compared with their types first.

    Raises:
        UserError: one is of another type; the message names it and says what is expected.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def checked(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise UserError(f"{function.__name__}: {error}") from None
        hints = _hints(function)
        for name, value in given.items():
            kind = signature.parameters[name].kind
            if kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
                place = as_flag(name) if hints[name] is bool else f"{function.__name__}: {name}"
                check_value(place, value, hints[name])
        return function(*args, **kwargs)

    return checked


def check_fields(given: Mapping[str, Any], owner: type) -> None:
    """Compares options with the fields of a class that have their names.

    Raises:
        UserError: one is of another type; the message names it and says what is expected.
    """
    hints = _hints(owner)
    for name, value in given.items():
        if name in hints:
            check_value(as_flag(name), value, hints[name])


@cache
def _hints(owner: Any) -> dict[str, Any]:
    return get_type_hints(owner)


def check_value(name: str, value: Any, hint: Any) -> None:
    """Raises UserError, under this name, where a value is not of a declared type."""
    if not _fits(value, hint):
        raise UserError(f"{name} is {_in_words(hint)}, not {printable(_repr(value))}")
    if isinstance(value, str | os.PathLike) and "\0" in os.fspath(value):
        raise UserError(f"{name} holds a zero byte, which no path has")
    kind: Any = type(value)
    if kind.__module__.startswith("rldistill.") and kind.__name__.endswith(("Config", "Options")):
        _check_settings(value)


def _check_settings(config: Any) -> None:
    """Compares the fields of a configuration with their types, and those of its parts."""
    kind: Any = type(config)
    for field, inner in _hints(kind).items():
        given = getattr(config, field)
        # Ranges of numbers are the business of each configuration.
        if not (_is_number(given) and {int, float} & {inner, *get_args(inner)}):
            check_value(as_flag(field), given, inner)
        if is_dataclass(given) and is_dataclass(inner):
            _check_settings(given)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any or hint is inspect.Parameter.empty or isinstance(hint, TypeVar):
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if hint in (None, type(None)):
        return value is None
    if hint in (int, float):
        kinds = int | np.integer if hint is int else int | float | np.integer | np.floating
        return isinstance(value, kinds) and not isinstance(value, bool)
    if hint is bool:
        return isinstance(value, bool | np.bool_)
    if hint is os.PathLike or origin is os.PathLike:
        return isinstance(value, os.PathLike) and isinstance(os.fspath(value), str)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return False
        if len(inner) == 2 and inner[1] is ...:
            return all(_fits(one, inner[0]) for one in value)
        return len(value) == len(inner) and all(_fits(one, kind) for one, kind in zip(value, inner, strict=True))
    if origin in (collections.abc.Sequence, list):
        return (
            isinstance(value, collections.abc.Sequence)
            and not isinstance(value, bytes)
            and (isinstance(value, str) or all(_fits(one, inner[0]) for one in value))
        )
    if origin in (collections.abc.Mapping, dict):
        return isinstance(value, collections.abc.Mapping)
    if origin is collections.abc.Callable:
        return callable(value)
    if getattr(hint, "_is_protocol", False):
        return not isinstance(value, type) and all(_has(value, name) for name in _members(hint))
    return isinstance(value, origin or hint) if isinstance(origin or hint, type) else True


def _has(value: Any, name: str) -> bool:
    """Whether there is an attribute, or may be; a property that fails has its own error."""
    names = dir(type(value))
    return name in names or "__getattr__" in names or name in getattr(value, "__dict__", {})


def _members(protocol: Any) -> set[str]:
    """The attributes that an object must have. Of a policy these are a task, a kind of scores and a call, and no others."""
    names = {
        name
        for kind in protocol.__mro__
        if getattr(kind, "_is_protocol", False)
        for name in vars(kind)
        if not name.startswith("_") or name == "__call__"
    }
    return {"task", "score_kind", "__call__"} if {"task", "score_kind", "__call__"} <= names else names


def _in_words(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_in_words(one) for one in inner))
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if hint in (None, type(None)):
        return "None"
    plain = {str: "a text", int: "a whole number", float: "a number", bool: "True or False"}
    if hint in plain:
        return plain[hint]
    if hint is os.PathLike or origin is os.PathLike:
        return "a path"
    if origin in (collections.abc.Sequence, list, tuple):
        kinds = " or ".join(dict.fromkeys(_in_words(one) for one in inner if one is not ...))
        return f"a sequence ({kinds})"
    if origin in (collections.abc.Mapping, dict):
        return "a mapping"
    if getattr(hint, "_is_protocol", False):
        names = ", ".join(sorted(_members(hint) - {"__call__"}))
        return f"an object that can be called and has {names}" if "__call__" in _members(hint) else f"a {hint.__name__}"
    return f"a {getattr(hint, '__name__', hint)}"


def _repr(value: Any) -> str:
    try:
        return f"a {value.__name__} class" if isinstance(value, type) else repr(value)
    except Exception:  # of a stranger's class
        return f"a {type(value).__name__}"
