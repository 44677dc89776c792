"""JSON read from files of any origin: what is nested too deeply, too large a number or no valid text is refused."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from rldistill.files import read_regular
from rldistill.types import UserError, printable

MOST_DEPTH = 64
"""Lists in lists. What is read may be written again, and Python's writer gives up at some hundreds."""
_LARGEST = 2**64
"""Whole numbers lie below it: what is larger fits no array and no number of floating point."""
# Bytes of a path that are no UTF-8 stand in a text as U+DC80 to U+DCFF, and our own files may name such paths.
_HALF_CHARACTERS = re.compile("[\ud800-\udc7f\udd00-\udfff]")


def parse_json(data: bytes | str, place: object) -> Any:
    """The value of a JSON text. NaN and infinity are numbers by their names, as Python writes them.

    Args:
        data: the text.
        place: where it was read, for the message.

    Raises:
        UserError: it is no JSON, holds lists nested without end, numbers that are too large, or half characters.
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        value = json.loads(text, parse_int=_whole, parse_float=_real)
        if text.count("[") + text.count("{") > MOST_DEPTH or "\\u" in text or isinstance(data, str):
            _check(value)
    except RecursionError:
        raise UserError(f"{place} is damaged: it is nested too deeply") from None
    except ValueError as error:
        raise UserError(f"{place} is damaged: {printable(error, 200)}") from None
    return value


def read_json(path: Path) -> dict[str, Any]:
    """A file with a JSON object.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    data = read_any_json(path)
    if not isinstance(data, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object")
    return data


def read_any_json(path: Path) -> Any:
    """A file with JSON.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    try:
        data = read_regular(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    return parse_json(data, path)


def _whole(digits: str) -> int:
    number = int(digits) if len(digits) <= 21 else _LARGEST
    if abs(number) >= _LARGEST:
        raise ValueError(f"the number {printable(digits, 24)} is too large")
    return number


def _real(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {printable(digits, 24)} is too large")
    return number


def _check(value: Any) -> None:
    """Raises ValueError where something is nested too deeply or a text holds half characters."""
    level, depth = [value], 0
    while level:
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += [*item, *item.values()]
            elif isinstance(item, list):
                below += item
            elif isinstance(item, str) and _HALF_CHARACTERS.search(item):
                raise ValueError(f"the text {printable(item)!r} holds half characters")
        level, depth = below, depth + 1
        if depth > MOST_DEPTH + 1:
            raise ValueError("it is nested too deeply")
