"""Choosers of a teacher by name: `NAME` or `NAME:option=value,option=value`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import numpy as np

from rldistill.lessons import bandits, statewise
from rldistill.lessons.contextual import iwc, linucb, network, ridge
from rldistill.lessons.selection import Chooser
from rldistill.types import UserError, did_you_mean, printable

WITHOUT_CONTEXT: Mapping[str, Callable[..., Chooser]] = {
    "uniform": bandits.uniform,
    "epsilon-greedy": bandits.epsilon_greedy,
    "vdbe": bandits.vdbe,
    "ucb1": bandits.ucb1,
    "bayes-ucb": bandits.bayes_ucb,
    "thompson": bandits.thompson,
    "discounted-ucb": bandits.discounted_ucb,
    "sliding-ucb": bandits.sliding_ucb,
    "exp3": bandits.exp3,
    "best-first": bandits.best_first,
    "mean": statewise.Mean,
    "agreement": statewise.Agreement,
}
"""Called with the number of arms, a generator, and options."""

WITH_CONTEXT: Mapping[str, Callable[..., Chooser]] = {
    "ridge": ridge,
    "network": network,
    "linucb": linucb,
    "iwc": iwc,
    "mamba": statewise.mamba,
    "maps": statewise.maps,
    "oracle": statewise.Oracle,
}
"""Called with the number of arms, the columns of the context, a generator, and options."""

RANGES: Mapping[str, tuple[float, float]] = {
    "start": (0, 1),
    "end": (0, 1),
    "pulls": (0, math.inf),
    "sensitivity": (1e-6, 1e6),
    "step": (0, 1),
    "c": (0, 1e6),
    "alpha": (0, 1e6),
    "discount": (0.5, 1),
    "window": (2, 1_000_000),
    "explore": (0, 100),
    "games": (1, 1_000_000),
    "penalty": (1e-6, 1e6),
    "forget": (0, 0.5),
    "hidden": (1, 4096),
    "rate": (1e-6, 1),
    "memory": (64, 1_000_000),
    "clip": (1, 1e6),
    "ensemble": (2, 100),
    "sharpness": (0, 100),
}
"""Options that are numbers: the least and the most."""


def make_chooser(spec: str, arms: int, generator: np.random.Generator, contexts: int | None) -> Chooser:
    """The chooser that a text names.

    Args:
        spec: `NAME` or `NAME:option=value,option=value`.
        arms: how many teachers there are.
        generator: of its draws.
        contexts: columns of the context; None where there is none.

    Raises:
        UserError: an unknown name or option, a value out of its range, fewer than two teachers, or a context that is missing or of
            another shape.
    """
    name, options = parse(spec)
    if arms < 2:
        raise UserError(f"{name} chooses among several teachers; name two or more, not {arms}")
    if name in WITHOUT_CONTEXT:
        return WITHOUT_CONTEXT[name](arms, generator, **options)
    if contexts is None:
        raise UserError(f"{name} needs a context: add --context, or take one of {', '.join(WITHOUT_CONTEXT)}")
    return WITH_CONTEXT[name](arms, contexts, generator, **options)


def contextual(spec: str) -> bool:
    """Whether the chooser that a text names takes a context.

    Raises:
        UserError: as `make_chooser`.
    """
    return parse(spec)[0] in WITH_CONTEXT


def parse(spec: str) -> tuple[str, dict[str, Any]]:
    """The name of a chooser, and its options by the names of its parameters.

    Raises:
        UserError: an unknown name or option, or a value that is out of its range, of another type, or given twice.
    """
    name, colon, text = spec.partition(":")
    makers = {**WITHOUT_CONTEXT, **WITH_CONTEXT}
    if name not in makers:
        end = did_you_mean(name, makers) or f"; there are {', '.join(makers)}"
        raise UserError(f"unknown chooser {printable(name)!r}{end}")
    hints = options_of(makers[name])
    options: dict[str, Any] = {}
    for part in text.split(",") if colon else ():
        option, equals, value = part.partition("=")
        parameter = option.replace("-", "_")
        if parameter not in hints:
            names = ", ".join(hint.replace("_", "-") for hint in hints)
            there_are = f"it has {names}, as {name}:{names.split(',')[0]}=value" if hints else "it takes none"
            raise UserError(f"{name} has no option {printable(option)!r}; {there_are}")
        if not equals or parameter in options:
            raise UserError(f"option {option} of {name} takes one value: {name}:{option}=value")
        options[parameter] = _value(f"option {option} of {name}", value, hints[parameter], RANGES.get(parameter))
    if options.get("start", 1) < options.get("end", 0):
        raise UserError(f"{name} explores less over time: start={options['start']} is at least end={options['end']}")
    return name, options


def options_of(maker: Callable[..., Any]) -> dict[str, Any]:
    """The options of a chooser with their types: its keyword parameters."""
    parameters = inspect.signature(maker, eval_str=True).parameters.values()
    return {one.name: one.annotation for one in parameters if one.kind is one.KEYWORD_ONLY}


def _value(what: str, text: str, hint: Any, limits: tuple[float, float] | None) -> Any:
    """A value of an option's type, within its limits.

    Raises:
        UserError: it is not.
    """
    kind = next(one for one in get_args(hint) if one is not NoneType) if NoneType in get_args(hint) else hint
    if get_origin(kind) is Literal or kind is bool:
        names = {"true": True, "false": False} if kind is bool else {one: one for one in get_args(kind)}
        if text not in names:
            raise UserError(f"{what} is one of {', '.join(names)}, not {printable(text)!r}")
        return names[text]
    try:
        value = kind(text)
    except ValueError:
        word = "a whole number" if kind is int else "a number"
        raise UserError(f"{what} is {word}, not {printable(text)!r}") from None
    low, high = limits or (-math.inf, math.inf)
    if not low <= value <= high:
        rule = f"at least {low:g}" if math.isinf(high) else f"from {low:g} to {high:.9g}"
        raise UserError(f"{what} is {rule}, not {printable(text)}")
    return value
