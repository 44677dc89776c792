"""Regions: sets of states that an expression over watched numbers describes, such as `ball_y < 120 and player_y >= 60`."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from rldistill.play.envs.watched import Watch
from rldistill.types import Bools, Floats, Task, UserError, printable

Doubles: TypeAlias = npt.NDArray[np.float64]


class _Truth(NamedTuple):
    """Where a statement holds and where it does not, (N,) each. A row where it does neither compares an absent number."""

    holds: Bools
    fails: Bools


_Number: TypeAlias = Callable[[Doubles], Doubles]
_Statement: TypeAlias = Callable[[Doubles], _Truth]

_MOST_TEXT = 1_000
_DEEPEST = 50
_TOKEN = re.compile(
    r"(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)|(?P<name>[^\W\d]\w*(?:[.:]\w+|\[[0-9]+\])*)|(?P<mark>.)"
)
_MARKS = " ()<>=!+-*"
_COMPARISONS: Final[dict[type[ast.cmpop], Callable[[Any, Any], Any]]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_ARITHMETIC: Final[dict[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}
_ALLOWED = "names, numbers, + - *, < <= > >= == !=, and, or, not, parentheses"


class Region:
    """A set of states. Made by `parse_region`.

    A number that is absent (NaN) makes a comparison neither true nor false, and `not` leaves that as it is. A state of which the
    whole expression is neither is outside. So a state may be outside both `ball.y < 5` and `not ball.y < 5`.
    """

    def __init__(self, text: str, names: tuple[str, ...], statement: _Statement) -> None:
        self.text = text
        """As it was given."""
        self.names = names
        """What must be watched, in this order."""
        self._statement = statement

    def __call__(self, watched: Floats) -> Bools:
        """(N,): which states are inside.

        Args:
            watched: (N, W), the numbers of `names`.
        """
        with np.errstate(invalid="ignore", over="ignore"):  # infinity less infinity is NaN, and outside
            return self._statement(watched.astype(np.float64)).holds


def parse_region(text: str, task: Task) -> Region:
    """The region of an expression. It is parsed, and never run as code.

    Args:
        text: comparisons (`<`, `<=`, `>`, `>=`, `==`, `!=`, also chained) of names and numbers, with `+`, `-`, `*`, joined by
            `and`, `or`, `not`. Names are those of `play.envs.watched.Watch`.
        task: whose environments give the numbers.

    Raises:
        UserError: no such expression, or a name that the environment does not give; the message has those that it gives.
    """
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"a region is an expression such as 'x0 < 0.5', not {printable(repr(text))}")
    if len(text) > _MOST_TEXT:
        raise UserError(f"the region {text[:20]!r}... has {len(text):,} characters; {_MOST_TEXT:,} are the most")
    names: list[str] = []
    tokens = list(_TOKEN.finditer(" ".join(text.split())))
    strange = next((token[0] for token in tokens if token["mark"] and token[0] not in _MARKS), None)
    if strange is not None:
        raise _wrong(text, f"it has the character {printable(repr(strange))}")
    python = "".join(_as_python(token, names) for token in tokens)
    if not names:
        raise _wrong(text, "it names nothing of the state")
    Watch(task, names)
    try:
        body = ast.parse(python, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise _wrong(text, "it is no expression") from None
    return Region(text, tuple(names), _Compiler(text, python, names).statement(body, 0))


def _as_python(token: re.Match[str], names: list[str]) -> str:
    """A token of the expression, with `n0`, `n1`, ... for the names, which are collected."""
    name = token["name"]
    if name is None or name in ("and", "or", "not"):
        return token[0]
    if name not in names:
        names.append(name)
    return f"n{names.index(name)}"


def _wrong(text: str, how: str) -> UserError:
    return UserError(f"the region {printable(text)!r} cannot be read: {how}; a region has {_ALLOWED}")


class _Compiler:
    """Makes functions of the syntax tree, of which only what a region may have is taken.

    Args:
        text: of the region.
        python: the text that was parsed.
        names: that `n0`, `n1`, ... stand for.
    """

    def __init__(self, text: str, python: str, names: list[str]) -> None:
        self._text, self._python, self._names = text, python, names

    def statement(self, node: ast.expr, depth: int) -> _Statement:
        """What is true or false."""
        self._check_depth(depth)
        if isinstance(node, ast.BoolOp):
            join = _both if isinstance(node.op, ast.And) else _either
            return partial(_joined, join, [self.statement(part, depth + 1) for part in node.values])
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return partial(_negated, self.statement(node.operand, depth + 1))
        if not isinstance(node, ast.Compare):
            raise self._wrong(f"{self._words(node)} is neither true nor false (compare it with a number)")
        sides = [self.number(side, depth + 1) for side in (node.left, *node.comparators)]
        links: list[_Statement] = []
        for kind, left, right in zip(node.ops, sides, sides[1:], strict=False):
            if type(kind) not in _COMPARISONS:
                raise self._wrong("it has another comparison")
            links.append(partial(_compared, _COMPARISONS[type(kind)], left, right))
        return partial(_joined, _both, links)

    def number(self, node: ast.expr, depth: int) -> _Number:
        """What is a number."""
        self._check_depth(depth)
        if isinstance(node, ast.Name):
            return partial(_column, int(node.id[1:]))
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            return partial(_constant, self._float(node.value))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            sign = 1.0 if isinstance(node.op, ast.UAdd) else -1.0
            return partial(_calculated, operator.mul, partial(_constant, sign), self.number(node.operand, depth + 1))
        if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            sides = self.number(node.left, depth + 1), self.number(node.right, depth + 1)
            return partial(_calculated, _ARITHMETIC[type(node.op)], *sides)
        raise self._wrong(f"{self._words(node)} is no number")

    def _float(self, value: Any) -> float:
        try:
            return float(value)
        except OverflowError:
            raise self._wrong("a number is too large") from None

    def _words(self, node: ast.expr) -> str:
        """A part of the expression as it was given."""
        part = self._python[node.col_offset : node.end_col_offset]
        return printable(repr(re.sub(r"n([0-9]+)", lambda match: self._names[int(match[1])], part)))

    def _check_depth(self, depth: int) -> None:
        if depth > _DEEPEST:
            raise self._wrong(f"it is nested more than {_DEEPEST} deep")

    def _wrong(self, how: str) -> UserError:
        return _wrong(self._text, how)


def _column(place: int, watched: Doubles) -> Doubles:
    return watched[:, place]


def _constant(value: float, watched: Doubles) -> Doubles:
    return np.full(len(watched), value)


def _calculated(operation: Callable[[Any, Any], Any], left: _Number, right: _Number, watched: Doubles) -> Doubles:
    result: Doubles = operation(left(watched), right(watched))
    return result


def _compared(comparison: Callable[[Any, Any], Any], left: _Number, right: _Number, watched: Doubles) -> _Truth:
    one, other = left(watched), right(watched)
    present = ~(np.isnan(one) | np.isnan(other))
    holds = comparison(one, other)
    return _Truth(holds & present, ~holds & present)


def _negated(statement: _Statement, watched: Doubles) -> _Truth:
    truth = statement(watched)
    return _Truth(truth.fails, truth.holds)


def _joined(join: Callable[[_Truth, _Truth], _Truth], parts: list[_Statement], watched: Doubles) -> _Truth:
    truth = parts[0](watched)
    for part in parts[1:]:
        truth = join(truth, part(watched))
    return truth


def _both(one: _Truth, other: _Truth) -> _Truth:
    return _Truth(one.holds & other.holds, one.fails | other.fails)


def _either(one: _Truth, other: _Truth) -> _Truth:
    return _Truth(one.holds | other.holds, one.fails & other.fails)
