"""Regions: which states an expression takes, by hand and by another evaluation, and which texts are none."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rldistill.play.envs.watched import Watch
from rldistill.play.regions import parse_region
from rldistill.types import Task, UserError

VECTOR = Task("Own-v0", 2, (3,), "float32")
PONG = Task("PongNoFrameskip-v4", 6, (4, 84, 84), "uint8", frame_skip=4, frame_stack=4)
MINATAR = Task("MinAtar/Breakout-v1", 3, (4, 10, 10), "uint8")
NAMES = ("x0", "x1", "x2")
NAN = math.nan


def inside(text: str, *rows: tuple[float, ...]) -> list[bool]:
    """Of rows of x0, x1, x2."""
    region = parse_region(text, VECTOR)
    watched = Watch(VECTOR, region.names)(np.array(rows, dtype=np.float32), None)
    taken = region(watched)
    assert taken.dtype == np.bool_
    return list(map(bool, taken))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x0 < 1", [True, False, False]),
        ("x0 <= 1", [True, True, False]),
        ("x0 == 1", [False, True, False]),
        ("x0 != 1", [True, False, True]),
        ("1 > x0", [True, False, False]),
        ("0 < x0 <= 2", [False, True, True]),
        ("not x0 < 1", [False, True, True]),
        ("x0 < 1 or x1 > 7", [True, False, True]),
        ("x0 < 1 or x0 > 0 and x1 > 7", [True, False, True]),
        ("(x0 < 1 or x0 > 0) and x1 > 7", [False, False, True]),
        ("x0 + x1 == 8", [False, False, False]),
        ("x0 + 2 * x1 - x2 >= 8.5e0", [True, True, True]),
        ("2 * (x0 + 1) < 5", [True, True, False]),
        ("-x0 < -1.5", [False, False, True]),
        ("x0*x0 < x1", [True, True, True]),
        ("  x0\n<\t1 ", [True, False, False]),
    ],
)
def test_regions_by_hand(text: str, expected: list[bool]) -> None:
    assert inside(text, (0, 5, 1), (1, 6, 1), (2, 8, 1)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x0 < 1", False),
        ("not x0 < 1", False),
        ("x0 != 1", False),
        ("x0 == x0", False),
        ("x0 + x1 < 100", False),
        ("x0 < 1 or x1 > 0", True),
        ("x0 < 1 and x1 > 0", False),
        ("not (x0 < 1 and x1 < 0)", True),
        ("not (x0 < 1 or x1 < 0)", False),
        ("x1 > 0", True),
    ],
)
def test_what_is_absent_is_outside_of_what_compares_it(text: str, expected: bool) -> None:
    """x0 is absent, x1 is 5."""
    assert inside(text, (NAN, 5, 0)) == [expected]


def test_names_of_games() -> None:
    ball = parse_region("ball_y < 120 or ram:54 >= 130", PONG)
    assert ball.names == ("ball_y", "ram:54")
    assert ball(np.array([[119, 119], [120, 120], [130, 130]], dtype=np.float32)).tolist() == [True, False, True]
    grid = parse_region("ball.y<5 and paddle.x >= 3 and ball.y > 1", MINATAR)
    assert grid.names == ("ball.y", "paddle.x")
    assert grid(np.array([[4, 3], [4, 2], [1, 3], [NAN, 3]], dtype=np.float32)).tolist() == [True, False, False, False]
    levers = Task("Levers-v0", 2, (3,), observation_dtype="float32", observation_keys=(("age", 1), ("wind", 2)))
    parts = parse_region("wind[1] - wind[0] > age", levers)
    assert parts.names == ("wind[1]", "wind[0]", "age")
    assert parts(np.array([[3, 1, 1], [3, 1, 2]], dtype=np.float32)).tolist() == [True, False]


COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip
Tree = Any
numbers: st.SearchStrategy[Tree] = st.recursive(
    st.sampled_from(NAMES) | st.integers(-3, 3),
    lambda inner: st.tuples(st.sampled_from("+-*"), inner, inner) | st.tuples(st.just("negative"), inner),
    max_leaves=4,
)
statements: st.SearchStrategy[Tree] = st.recursive(
    st.tuples(st.sampled_from(sorted(COMPARISONS)), numbers, numbers),
    lambda inner: st.tuples(st.sampled_from(["and", "or"]), inner, inner) | st.tuples(st.just("not"), inner),
    max_leaves=5,
)


def written(tree: Tree) -> str:
    if not isinstance(tree, tuple):
        return str(tree)
    sign, *parts = tree
    if len(parts) == 1:
        return f"({'-' if sign == 'negative' else 'not'} {written(parts[0])})"
    return f"({written(parts[0])} {sign} {written(parts[1])})"


def value(tree: Tree, row: dict[str, float | None]) -> float | None:
    """A number, or None where one that it is made of is absent."""
    if isinstance(tree, str):
        return row[tree]
    if not isinstance(tree, tuple):
        return float(tree)
    parts = [value(part, row) for part in tree[1:]]
    if any(part is None for part in parts):
        return None
    known: list[float] = [part for part in parts if part is not None]
    if tree[0] == "negative":
        return -known[0]
    return {"+": known[0] + known[1], "-": known[0] - known[1], "*": known[0] * known[1]}[tree[0]]


def truth(tree: Tree, row: dict[str, float | None]) -> bool | None:
    """Kleene's three values: None is unknown."""
    sign, *parts = tree
    if sign in COMPARISONS:
        left, right = (value(part, row) for part in parts)
        return None if left is None or right is None else COMPARISONS[sign](left, right)
    truths = [truth(part, row) for part in parts]
    if sign == "not":
        return None if truths[0] is None else not truths[0]
    decides = sign == "or"
    if decides in truths:
        return decides
    return None if None in truths else not decides


def names_of(tree: Tree) -> set[str]:
    if isinstance(tree, tuple):
        return set().union(*map(names_of, tree[1:]))
    return {tree} & set(NAMES)


@given(statements, st.lists(st.tuples(*[st.integers(-4, 4) | st.none()] * 3), min_size=1, max_size=6))
def test_regions_are_those_of_another_evaluation(tree: Tree, rows: list[tuple[int | None, ...]]) -> None:
    if not names_of(tree):
        tree = ("or", tree, ("<", "x0", 0))
    expected = [truth(tree, dict(zip(NAMES, row, strict=True))) is True for row in rows]
    filled = [tuple(NAN if number is None else number for number in row) for row in rows]
    assert inside(written(tree), *filled) == expected


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "not ''"),
        ("   ", "not '   '"),
        ("x3 < 1", "Own-v0 has no 'x3' to watch.*x0 to x2$"),
        ("ball_y < 1", "no 'ball_y'"),
        ("x0 < y", "no 'y'"),
        ("x0 <", "is no expression"),
        ("x0 < 1)", "is no expression"),
        ("x0 = 1", "is no expression"),
        ("x0 x1", "is no expression"),
        ("x0", "'x0' is neither true nor false"),
        ("x0 and x1 < 1", "'x0' is neither true nor false"),
        ("x0 < 1 < (x1 < 2)", r"'x1 < 2' is no number"),
        ("x0 + (x1 < 2) > 1", r"'x1 < 2' is no number"),
        ("x0 ** 2 < 1", r"'x0 \*\* 2' is no number"),
        ("x0(1) < 1", r"'x0\(1\)' is no number"),
        ("x0 < 1j", "no 'j'"),
        ("x0 < 'a'", "character"),
        ("x0 / 2 < 1", "character '/'"),
        ("x0 < 1 # or x1 < 2", "character '#'"),
        ("x0, x1 < 1", "character ','"),
        ("x0 < 1; x1", "character ';'"),
        ("[x0 for x0 in x1] < 1", "character"),
        ("x0.__class__ < 1", "no 'x0.__class__'"),
        ("__import__ < 1", "no '__import__'"),
        ("x0 in x1", "no 'in'"),
        ("x0 if x1 < 0", "no 'if'"),
        ("True", "no 'True'"),
        ("1 < 2", "names nothing"),
        ("x0 < " + "9" * 400, "too large"),
        ("x0 < " + "9" * 2000, "characters"),
        ("x0 < " + "-" * 300 + "1", "nested"),
        ("not " * 200 + "x0 < 1", "nested"),
        ("(" * 400 + "x0 < 1" + ")" * 400, "is no expression"),
        ("x0 < 1" + " or x0 < 1" * 60, None),
    ],
)  # fmt: skip
def test_other_texts_are_refused_in_one_line(text: str, line: str | None) -> None:
    if line is None:
        assert inside(text, (0, 0, 0)) == [True]
        return
    with pytest.raises(UserError) as raised:
        parse_region(text, VECTOR)
    assert re.search(line, str(raised.value)), raised.value
    assert "\n" not in str(raised.value)


@given(st.text(max_size=30) | st.text(alphabet="x012 <>=!+-*()andortn.", max_size=30))
def test_any_text_is_a_region_or_one_line(text: str) -> None:
    try:
        region = parse_region(text, VECTOR)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        numbers_of_rows: npt.NDArray[np.float32] = np.ones((2, len(region.names)), dtype=np.float32)
        assert region(numbers_of_rows).shape == (2,)
