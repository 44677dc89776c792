"""Ids of environments: how they are written, whose module may be imported, and with which arguments they are made.

`module:Id` imports the module, which registers the id. That runs its code, so a module is only imported where the user has named it
in this process, or where it is imported already: a policy folder or a dataset may be a stranger's. The same holds for arguments
that could name a file or a module.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from rldistill.types import EnvArgument, UserError, did_you_mean, first_line

_named_modules: set[str] = set()
_named_texts: set[str] = set()
_MODULE = r"[^\W\d]\w*(\.[^\W\d]\w*)*"
_PLAIN = r"[\w\- ]{0,64}"
_OLD_ATARI = r"(?:(?:ale_py|gym|gymnasium):)?([A-Z]\w*?)(-ram)?(-?[Dd]eterministic)?-v[045]"
_MOST_TEXT = 1000
_LARGEST = 2**63
"""Whole numbers lie below it: larger ones cannot be read back from a policy's files."""


def is_atari(env: str) -> bool:
    """Whether the id is written as an Atari game's, known or not."""
    return env.startswith("ALE/") or ("NoFrameskip-v" in env and ":" not in env)


def is_minatar(env: str) -> bool:
    """Whether the id is written as a MinAtar game's, known or not."""
    return env.startswith("MinAtar/")


def canonical(env: str) -> str:
    """The id without a module before an Atari or MinAtar game's, which rldistill plays itself.

    Raises:
        UserError: an Atari id of Gym's, which stands for other frames or another frame skip; the message has those that are played.
    """
    bare = env.rpartition(":")[2]
    if bare.startswith(("ALE/", "MinAtar/")) or "NoFrameskip-v" in bare:
        return bare
    old = re.fullmatch(_OLD_ATARI, env)
    if old is not None and not _registered_by_user(bare):
        _answer_old_atari(env, old[1], ram=old[2] is not None)
    return env


def _registered_by_user(name: str) -> bool:
    import gymnasium

    spec = gymnasium.registry.get(name)
    return spec is not None and not str(spec.entry_point).startswith("ale_py")


def _answer_old_atari(env: str, game: str, *, ram: bool) -> None:
    try:
        from ale_py import roms
    except ImportError:
        return
    if game.lower() not in {str(rom).replace("_", "") for rom in roms.get_all_rom_ids()}:
        return
    games = {str(rom).replace("_", ""): str(rom).title().replace("_", "") for rom in roms.get_all_rom_ids()}
    name = games[game.lower()]
    what = "observations of the RAM are not played; of its pictures" if ram else "an older or incomplete name;"
    raise UserError(
        f"unknown environment {env!r}: {what} write ALE/{name}-v5 (sticky actions) or {name}NoFrameskip-v4 (none), both with frame "
        "skip 4 and stacks of 4 grey frames"
    )


def name_environment(env: str | None, arguments: Iterable[tuple[str, EnvArgument]] = ()) -> None:
    """Records that the user has named this environment. From now on its module may be imported.

    Args:
        env: an id from the command line or from a caller in Python, never one that a file says; None names none.
        arguments: that it is to be made with, from the same place.
    """
    if env is not None and env.count(":") == 1:
        _named_modules.add(env.partition(":")[0])
    _named_texts.update(value for _, value in arguments if isinstance(value, str))


def arguments_of(given: Any) -> tuple[tuple[str, EnvArgument], ...]:
    """Arguments of an environment's constructor, sorted by name.

    Args:
        given: a mapping, or texts `name=value` whose values are JSON scalars or else text.

    Raises:
        UserError: one is no such text, is named twice, is none of JSON's scalars, or belongs to `gymnasium.make` itself.
    """
    if isinstance(given, Mapping):
        pairs = list(given.items())
    elif isinstance(given, str) or not isinstance(given, Iterable):
        raise UserError(f"--env-kwargs are texts name=value, not {given!r}"[:200])
    else:
        pairs = [_pair(item) for item in given]
    for name, value in pairs:
        _check_argument(name, value)
    if len({name for name, _ in pairs}) < len(pairs):
        raise UserError("--env-kwargs name an argument twice")
    return tuple(sorted(pairs, key=lambda pair: pair[0]))


def _pair(item: Any) -> tuple[str, EnvArgument]:
    if isinstance(item, tuple) and len(item) == 2:
        return item
    name, equals, text = item.partition("=") if isinstance(item, str) else ("", "", "")
    if not equals:
        raise UserError(f"--env-kwargs are texts name=value, not {item!r}"[:200])
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    scalar = isinstance(value, str | bool | int | None) or (isinstance(value, float) and math.isfinite(value))
    return name, value if scalar else text


def _check_argument(name: Any, value: Any) -> None:
    import gymnasium

    if not isinstance(name, str) or not name.isidentifier():
        raise UserError(f"--env-kwargs: {str(name)[:60]!r} is no name of an argument")
    own = {*inspect.signature(gymnasium.make).parameters, "render_mode", "autoreset", "apply_api_compatibility"}
    if name in own:
        raise UserError(f"--env-kwargs: {name} is an argument of gymnasium.make, not of the environment")
    if isinstance(value, int) and abs(value) >= _LARGEST:
        raise UserError(f"--env-kwargs: {name} is a whole number of more than 63 bits")
    number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    if not number and not (isinstance(value, str) and len(value) <= _MOST_TEXT) and value is not None:
        raise UserError(f"--env-kwargs: {name} is text, a number, true, false or null, not {value!r}"[:200])


def make(env: str, arguments: Iterable[tuple[str, EnvArgument]], render_mode: str | None) -> Any:
    """Gymnasium's environment.

    Raises:
        UserError: there is none, its package is missing, or its module or arguments come from a file and may do harm.
        Exception: whatever its constructor raises.
    """
    import gymnasium

    name = env.rpartition(":")[2]
    if name != env:
        _import(env, env[: -len(name) - 1])
    for argument, value in arguments:
        _check_argument(argument, value)
        if isinstance(value, str) and value not in _named_texts and not re.fullmatch(_PLAIN, value):
            raise UserError(
                f"{env} is to be made with {argument}={value[:100]!r}, which could name a file or a module: "
                f"confirm it with --env-kwargs {argument}=..."
            )
    if render_mode:  # pygame greets on stdout, where verbs print what can be piped
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    # Not every environment takes a render mode, so it is given only where one is wanted.
    options: dict[str, Any] = dict(arguments) | ({"render_mode": render_mode} if render_mode else {})
    is_registered = name in gymnasium.registry
    try:
        return gymnasium.make(name, **options)
    except (gymnasium.error.Error, ImportError) as error:
        words = first_line(error)
        if isinstance(error, gymnasium.error.DependencyNotInstalled) or (
            is_registered and isinstance(error, ModuleNotFoundError)
        ):
            raise UserError(f"{env} needs a package that is not installed: {words}") from None
        moved = isinstance(error, ImportError)  # MuJoCo's v2 and v3
        if is_registered and not moved and not isinstance(error, gymnasium.error.UnregisteredEnv):
            raise
        raise UserError(_unknown(env, words)) from None


def _unknown(env: str, words: str) -> str:
    import gymnasium

    name = env.rpartition(":")[2]
    own = "" if ":" in env else "; your own is written module:Id, after the module that registers it"
    return f"unknown environment {env!r}{did_you_mean(name, gymnasium.registry)} ({words}{own})"


def _import(env: str, module: str) -> None:
    """Imports a module that the user has named, from the current folder too.

    Raises:
        UserError: it was not named, or there is none.
        Exception: whatever its code raises.
    """
    if not re.fullmatch(_MODULE, module):
        raise UserError(_unknown(env, f"{module[:60]!r} is no name of a module"))
    if module in sys.modules:
        return
    if module not in _named_modules:
        raise UserError(
            f"the file names the environment {env}, and its module {module!r} would be imported, which runs its code: if you trust "
            f"it, confirm it with --env {env} (in Python: make_task({env!r}))"
        )
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise UserError(f"{env} needs a package that is not installed: {error}") from None
        _import_from_here(env, module)


def _import_from_here(env: str, module: str) -> None:
    here = os.getcwd()
    if here not in sys.path:  # the command's own folder is there instead; last, so that it hides nothing
        sys.path.append(here)
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise UserError(
                _unknown(
                    env,
                    f"there is no module {module!r} among the installed ones, on PYTHONPATH or in the current folder",
                )
            ) from None
        raise UserError(f"{env} needs a package that is not installed: {error}") from None
