"""The plan of the house: who may import whom, file by file."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from statistics import median
from types import ModuleType

import pytest

import rldistill

ROOMS = (
    "types schedules stats plots pages files documents arguments configurations holding machine progress interrupts terminal",
    "play",
    "students",
    "lessons",
    "datasets",
    "policies",
    "formats",
    "teachers",
    "runs",
    "verbs",
    "cli __main__ __init__",
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms.split()}
NOT_SEEN = {("datasets", "formats")}
"""Pairs of rooms of which neither imports the other."""
SOURCE = Path(rldistill.__file__).parent
FILES = {
    file.relative_to(SOURCE).with_suffix("").as_posix().removesuffix("/__init__"): file for file in SOURCE.rglob("*.py")
}


def imported(node: ast.AST) -> Iterator[str]:
    """Names of the house that are imported below a node, inside functions too; not those that only types need."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.ImportFrom):
            assert child.level == 0, "an import is relative"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        yield from imported(child)


def file_of(name: str) -> str:
    """The file that a dotted name of the house lies in."""
    place = name.removeprefix("rldistill").replace(".", "/").strip("/")
    while place and place not in FILES:
        place = place.rpartition("/")[0]
    return place or "__init__"


def room_of(file: str) -> str:
    return file.split("/")[0]


IMPORTS = {
    file: {file_of(name) for name in imported(ast.parse(path.read_text())) if name.split(".")[0] == "rldistill"}
    - {file}
    for file, path in FILES.items()
}


@pytest.mark.parametrize("file", sorted(IMPORTS))
def test_a_file_is_in_a_room_and_imports_from_no_later_one(file: str) -> None:
    assert room_of(file) in FLOOR_OF, f"{file} is in no room: add it to one here"
    for other in IMPORTS[file] - {"__init__"}:
        assert FLOOR_OF[room_of(other)] <= FLOOR_OF[room_of(file)], f"{file} imports from a later room: {other}"
        assert (room_of(file), room_of(other)) not in NOT_SEEN | {pair[::-1] for pair in NOT_SEEN}, f"{file}: {other}"


def test_no_files_import_each_other_in_a_circle() -> None:
    TopologicalSorter(IMPORTS).prepare()


def test_the_longest_chain_of_imports_has_at_most_10_files() -> None:
    @cache
    def chain(file: str) -> tuple[str, ...]:
        return (file, *max((chain(other) for other in IMPORTS[file]), key=len, default=()))

    longest = max(map(chain, IMPORTS), key=len)
    assert len(longest) <= 10, " -> ".join(longest)


def test_rooms_exist() -> None:
    assert set(FLOOR_OF) == set(map(room_of, FILES)) - {""} | {"__init__"}


def test_no_module_is_a_drawer_for_odds_and_ends() -> None:
    assert not {"utils", "util", "helpers", "common", "misc"} & {part for file in FILES for part in file.split("/")}


@pytest.mark.parametrize("name", sorted(rldistill.__all__))
def test_a_public_name_is_no_module_however_often_it_is_asked_for(name: str) -> None:
    """A module of the name of its function hides it from the second use on."""
    first, again = getattr(rldistill, name), getattr(rldistill, name)
    assert first is again
    assert not isinstance(again, ModuleType)


FUNCTIONS = {
    (file, node.name): node
    for file, path in FILES.items()
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.FunctionDef)
}


def lines(function: ast.FunctionDef) -> int:
    """From the first line of the signature to the last one of the body."""
    return (function.end_lineno or 0) - function.lineno + 1


def test_functions_are_short() -> None:
    """Half of them have at most ten lines, none has more than 80."""
    assert median(map(lines, FUNCTIONS.values())) <= 10
    assert {name: lines(function) for name, function in FUNCTIONS.items() if lines(function) > 80} == {}


def test_modules_have_at_most_500_lines() -> None:
    lengths = {file: len(path.read_text().splitlines()) for file, path in FILES.items()}
    assert {file: length for file, length in lengths.items() if length > 500} == {}


def test_constructors_take_at_most_seven_arguments() -> None:
    """Data of one kind goes together into a configuration."""
    arguments = {
        name: len(function.args.posonlyargs + function.args.args + function.args.kwonlyargs) - 1
        for name, function in FUNCTIONS.items()
        if name[1] == "__init__"
    }
    assert {name: number for name, number in arguments.items() if number > 7} == {}


DIALECT = re.compile(r"\b(told|seen|heard|shown|found|known|said)\b")


@pytest.mark.slow
def test_names_are_the_fields_words_and_no_private_dialect() -> None:
    """Of functions, arguments and variables; `found` says nothing of what was found."""
    used = {
        (file, name)
        for file, path in FILES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        for name in names_in(node)
        if DIALECT.search(name.replace("_", " "))
    }
    assert used == set()


def names_in(node: ast.AST) -> list[str]:
    """Names that a node gives."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.arg):
        return [node.arg]
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return [node.id]
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        return [node.attr]
    return []


def test_no_line_escapes_the_formatter() -> None:
    assert [file for file, path in FILES.items() if "fmt: skip" in path.read_text()] == []
