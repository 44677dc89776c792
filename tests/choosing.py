"""Choosers at play with made-up payments, for the tests of the modules that they are in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rldistill.files import load_state, save_state
from rldistill.lessons.selecting import make_chooser
from rldistill.lessons.selection import Choice, Chooser, Doubles, Ints

COLUMNS = 3


def chooser(spec: str, arms: int, seed: int = 0, columns: int = COLUMNS) -> Chooser:
    """A chooser by name."""
    return make_chooser(spec, arms, np.random.default_rng(seed), columns)


def played(
    chooser: Chooser,
    pay: Callable[[int, Doubles, np.random.Generator], float],
    rounds: int,
    *,
    rows: int = 1,
    seed: int = 1,
    columns: int = COLUMNS,
) -> list[Choice]:
    """Its choices, each paid before the next call.

    Args:
        chooser: that plays.
        pay: from an arm and a context (C,) to a payment.
        rounds: calls.
        rows: of each call.
        seed: of contexts and payments, which do not depend on the choices' draws.
        columns: C.
    """
    choices = []
    for number in range(rounds):
        generator = np.random.default_rng((seed, number))
        contexts = generator.normal(size=(rows, columns))
        choices.append(chooser.choose(rows, contexts))
        payments = np.array([pay(int(arm), x, generator) for arm, x in zip(choices[-1].arms, contexts, strict=True)])
        chooser.pay(choices[-1], payments, contexts)
    return choices


def gaussian(means: Sequence[float], scale: float = 1.0) -> Callable[[int, Doubles, np.random.Generator], float]:
    """Normal payments about a mean of each arm."""
    return lambda arm, context, generator: float(generator.normal(means[arm], scale))


def bernoulli(chances: Sequence[float]) -> Callable[[int, Doubles, np.random.Generator], float]:
    """Payments of 0 or 1."""
    return lambda arm, context, generator: float(generator.random() < chances[arm])


def arms_of(choices: Sequence[Choice]) -> Ints:
    """All arms in order."""
    return np.concatenate([choice.arms for choice in choices])


def saved(chooser: Chooser, path: Path) -> dict[str, Any]:
    """Its state, through a checkpoint's file."""
    save_state(path / "state", chooser.state_dict())
    return load_state(path / "state")
