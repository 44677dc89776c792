"""Choosers by name: what a text means, and what is refused."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest

from rldistill.lessons.selecting import (
    RANGES,
    WITH_CONTEXT,
    WITHOUT_CONTEXT,
    contextual,
    make_chooser,
    options_of,
    parse,
)
from rldistill.types import UserError

MAKERS = {**WITHOUT_CONTEXT, **WITH_CONTEXT}


def test_a_text_is_a_name_and_options() -> None:
    assert parse("ucb1") == ("ucb1", {})
    assert parse("epsilon-greedy:start=0.5,end=0.01,pulls=40") == (
        "epsilon-greedy",
        {"start": 0.5, "end": 0.01, "pulls": 40},
    )
    assert parse("iwc:doubly-robust=true,clip=8") == ("iwc", {"doubly_robust": True, "clip": 8.0})
    assert parse("thompson:posterior=normal-inverse-gamma")[1] == {"posterior": "normal-inverse-gamma"}


@pytest.mark.parametrize("name", MAKERS)
def test_every_option_is_documented_and_numbers_have_a_range(name: str) -> None:
    maker = MAKERS[name]
    text = inspect.getdoc(maker) or ""
    for option, hint in options_of(maker).items():
        assert f"{option}:" in text
        assert option in RANGES or hint is bool or "Literal" in str(hint)


@pytest.mark.parametrize("name", MAKERS)
def test_defaults_and_bounds_are_in_range_and_beyond_is_refused(name: str) -> None:
    """Each option at both ends of its range makes a chooser that chooses; just outside it does not."""
    columns = 1 if name == "oracle" else 3
    for option in options_of(MAKERS[name]):
        low, high = RANGES.get(option, (math.nan, math.nan))
        whole = "int" in str(options_of(MAKERS[name])[option])
        spelt = option.replace("_", "-")
        for value in (low, high):
            if math.isfinite(value) and value < 5000:
                text = str(int(value)) if whole else repr(float(value))
                start = "start=1," if option == "end" else ""
                one = make_chooser(f"{name}:{start}{spelt}={text}", 3, np.random.default_rng(0), columns)
                choice = one.choose(3, np.zeros((3, columns)))
                one.pay(choice, np.arange(3.0), np.zeros((3, columns)))
                assert one.choose(2, np.zeros((2, columns))).arms.shape == (2,)
        if math.isfinite(low):
            with pytest.raises(UserError, match=spelt):
                make_chooser(f"{name}:{spelt}={int(low) - 1}", 3, np.random.default_rng(0), columns)


def test_contextual_choosers_are_those_that_take_a_context() -> None:
    assert {name for name in MAKERS if contextual(name)} == set(WITH_CONTEXT)
    assert contextual("linucb:alpha=2")


@pytest.mark.parametrize(
    ("spec", "arms", "contexts", "words"),
    [
        ("ucb", 2, None, "ucb1"),
        ("", 2, None, "uniform"),
        ("UCB1", 2, None, "ucb1"),
        ("ucb1:d=2", 2, None, "it has c"),
        ("uniform:c=2", 2, None, "none"),
        ("ucb1:", 2, None, "c=value"),
        ("ucb1:c", 2, None, "c=value"),
        ("ucb1:c=", 2, None, "number"),
        ("ucb1:c=1,c=2", 2, None, "one value"),
        ("ucb1:c=one", 2, None, "'one'"),
        ("ucb1:c=nan", 2, None, "nan"),
        ("ucb1:c=-1", 2, None, "-1"),
        ("best-first:games=2.5", 2, None, "whole"),
        ("thompson:posterior=beta", 2, None, "gaussian"),
        ("iwc:doubly-robust=maybe", 2, 3, "true, false"),
        ("ridge:start=0.1,end=0.5", 2, 3, "start"),
        ("linucb", 2, None, "--context"),
        ("oracle", 2, 4, "one column"),
        ("ucb1", 1, None, "two or more"),
        ("thompson\x1b[31m", 2, None, "thompson"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(spec: str, arms: int, contexts: int | None, words: str) -> None:
    with pytest.raises(UserError) as raised:
        make_chooser(spec, arms, np.random.default_rng(0), contexts)
    assert words in str(raised.value)
    assert str(raised.value).isprintable()
