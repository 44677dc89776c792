"""The games of the package MinAtar."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from types import ModuleType
from typing import Any

from rldistill.types import UserError

MINATAR_GAMES = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")


def made_game(env: str, sticky_actions: float = 0.0, ramping: bool = False) -> Any:
    """The package's environment of `MinAtar/<Game>-v0` or `-v1`.

    Raises:
        UserError: no such game, or the package is not installed.
    """
    game = _game(env)
    root = logging.getLogger()
    level = root.level
    try:
        root.setLevel(logging.ERROR)  # MinAtar warns at import that it could not draw, which nobody asks of it
        with _imported_when_used("seaborn", "matplotlib.pyplot"):
            from minatar import Environment
    except ImportError:
        raise UserError("MinAtar is not installed: pip install 'rldistill[minatar]'") from None
    finally:
        root.setLevel(level)
    return Environment(game, sticky_action_prob=sticky_actions, difficulty_ramping=ramping)


@cache
def channel_names(env: str) -> tuple[str, ...]:
    """The names of the channels of a game's observations, in their order.

    Raises:
        UserError: no such game.
    """
    channels: dict[str, int] = made_game(env).env.channels
    return tuple(sorted(channels, key=channels.__getitem__))


def _game(env: str) -> str:
    """The package's name of a game."""
    games = {game.title().replace("_", ""): game for game in MINATAR_GAMES}
    name, _, version = env.removeprefix("MinAtar/").rpartition("-")
    if name not in games or version not in ("v0", "v1"):
        raise UserError(
            f"unknown MinAtar id {env!r}: the games are {', '.join(games)}, with -v0 or -v1 (minimal actions)"
        )
    return games[name]


@contextmanager
def _imported_when_used(*names: str) -> Iterator[None]:
    """Within it, imports of these modules give stand-ins, which import the modules when one of their attributes is read.

    MinAtar imports seaborn and pyplot for a window of its own. That takes as long as torch's import, and hardly anyone opens it.
    """
    missing = [name for name in names if name not in sys.modules]
    for name in missing:
        stand_in = ModuleType(name)
        stand_in.__getattr__ = partial(_attribute, name)  # type: ignore[method-assign]
        sys.modules[name] = stand_in
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]


def _attribute(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)
