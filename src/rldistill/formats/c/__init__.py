"""A policy as one C99 file: rendered from numbers, read back as numbers, compiled and called.

Reading is strict: a file is compiled only if it is, character by character, what `render` writes of the numbers and the
description found in it. So the file of a stranger is data here like any other, and no line of its own is ever run.
"""

from __future__ import annotations

import re

import numpy as np

from rldistill.documents import parse_json
from rldistill.formats.c.compiling import CNetwork, compiled, compiler
from rldistill.formats.c.numbers import Arrays, CPolicy, c_policy, check_names
from rldistill.formats.c.rendering import FIRST_LINE, render
from rldistill.types import UserError, first_line

__all__ = ["FIRST_LINE", "CNetwork", "CPolicy", "c_policy", "compiled", "compiler", "read_c", "render"]

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
        found = CPolicy(description, arrays)
        same = render(found)[0] == text
    except (LookupError, TypeError, ValueError, OverflowError, RuntimeError, RecursionError, MemoryError) as error:
        raise UserError(f"{name} is damaged: {first_line(error)}; export it anew") from None
    if not same:
        raise UserError(f"{name} was changed since rldistill wrote it, so it is not compiled here: export it anew")
    return found
