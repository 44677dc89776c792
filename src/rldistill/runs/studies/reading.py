"""The file of a study: its tables, and the line of each entry for messages."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rldistill.files import read_regular
from rldistill.types import UserError, printable

_HEADER = re.compile(r"\s*\[\s*([^\[\]]+?)\s*\]\s*(#.*)?$")
_KEY = re.compile(r"""\s*("[^"]*"|'[^']*'|[A-Za-z0-9_-]+)\s*[=.]""")
_PART = re.compile(r""""([^"]*)"|'([^']*)'|([A-Za-z0-9_-]+)""")


class StudyFile:
    """A TOML file and where its entries stand.

    Args:
        path: of the file.

    Raises:
        UserError: it cannot be read, or is no TOML.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.text = read_regular(path).decode()
            self.tables: dict[str, Any] = tomllib.loads(self.text)
        except OSError as error:
            raise UserError(f"cannot read the study {path}: {error.strerror}") from None
        except ValueError as error:  # of tomllib and of a wrong encoding
            raise UserError(f"{path} is no TOML file: {printable(error, 200)}") from None
        self._lines = _lines_of(self.text)

    def line(self, *keys: str) -> int | None:
        """The line of an entry, or of the nearest one that it stands in; None where the file has none of them."""
        for end in range(len(keys), 0, -1):
            if keys[:end] in self._lines:
                return self._lines[keys[:end]]
        return None

    def wrong(self, message: str, *keys: str) -> UserError:
        """The error of an entry, with its line."""
        line = self.line(*keys)
        return UserError(f"{self.path}{'' if line is None else f', line {line}'}: {message}")

    def beside(self, name: str) -> Path | None:
        """A path as it is named from the working folder, or from the file's folder; None where there is nothing."""
        return next((place for place in (Path(name), self.path.parent / name) if place.exists()), None)

    def table(self, *keys: str) -> dict[str, Any]:
        """A table, empty where the file has none.

        Raises:
            UserError: something else stands there.
        """
        value: Any = self.tables
        for number, key in enumerate(keys):
            value = value.get(key, {})
            if not isinstance(value, dict):
                raise self.wrong(f"{'.'.join(keys[: number + 1])} is a table", *keys[: number + 1])
        return dict(value)

    def check_names(self, given: Mapping[str, Any], names: tuple[str, ...], *keys: str) -> None:
        """Raises UserError where a table has an entry of another name."""
        for name in given:
            if name not in names:
                raise self.wrong(f"{name} is none of {', '.join(names)}", *keys, name)


def _lines_of(text: str) -> dict[tuple[str, ...], int]:
    """Lines by the keys of tables and entries. Entries of tables within one line have the line of those."""
    lines: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        header, key = _HEADER.match(line), _KEY.match(line)
        if header:
            table = tuple("".join(part) for part in _PART.findall(header[1]))
            for end in range(1, len(table) + 1):
                lines.setdefault(table[:end], number)
        elif key:
            lines.setdefault((*table, key[1].strip("\"'")), number)
    return lines
