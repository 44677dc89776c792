"""Reads a C file that `render` wrote.

Reading is strict: a file is compiled only if it is, character by character, what `render` writes of the numbers and the
description in it. So the file of a stranger is data here like any other, and no line of its own is ever run.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from rldistill.documents import parse_json
from rldistill.formats.archives import MIB, read_file
from rldistill.formats.c.numbers import Arrays, CPolicy, check_names
from rldistill.formats.c.rendering import FIRST_LINE, render
from rldistill.formats.note import Note, checked_note
from rldistill.types import UserError, first_line

_MOST_SOURCE = 256 * MIB
_ARRAY = re.compile(r"^static const (float|int8_t) (\w+)\[(\d+)\] = \{\n([^}]*)\};$", re.MULTILINE)


def read_c(text: str, name: str) -> CPolicy:
    """The numbers and the description of a file that `render` wrote.

    Raises:
        UserError: it is none, or was changed since.
    """
    lines = text.split("\n", 2)
    if lines[0] != FIRST_LINE or len(lines) < 3 or not (lines[1].startswith("/* {") and lines[1].endswith("} */")):
        raise UserError(f"{name} is no C file of rldistill export")
    arrays: Arrays = {}
    try:
        description = parse_json(lines[1][3:-3], name)
        if not isinstance(description, dict):
            raise ValueError("its description is none")
        check_names(description)
        for kind, array, length, numbers in _ARRAY.findall(text):
            if array in ("low", "high"):  # of the task
                continue
            words = numbers.replace("f", "").replace("\n", "").rstrip(",").split(",")
            arrays[array] = np.array(words, dtype=np.float32 if kind == "float" else np.int8)
            if len(words) != int(length):
                raise ValueError(f"its array {array} is cut short")
        policy = CPolicy(description, arrays)
        same = render(policy)[0] == text
    except (LookupError, TypeError, ValueError, OverflowError, RuntimeError, RecursionError, MemoryError) as error:
        raise UserError(f"{name} is damaged: {first_line(error)}; export it anew") from None
    if not same:
        raise UserError(f"{name} was changed since rldistill wrote it, so it is not compiled here: export it anew")
    return policy


def read_note(path: Path) -> Note:
    """What a C file says of itself, and all of its numbers.

    Raises:
        UserError: it is damaged, or was changed since `export` wrote it.
    """
    try:
        policy = read_c(read_file(path, _MOST_SOURCE, what="C file").decode("ascii"), str(path))
    except UnicodeDecodeError:
        raise UserError(f"{path} was changed since rldistill wrote it: export it anew") from None
    return checked_note(policy.description, path)._replace(contents=policy)
