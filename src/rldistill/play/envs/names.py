"""Names of games, of actions and of the parts of observations."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from rldistill.play.envs.ids import is_atari, is_minatar
from rldistill.play.envs.minatar_games import made_game
from rldistill.types import Task, UserError

MINATAR_ACTIONS = ("NOOP", "LEFT", "UP", "RIGHT", "DOWN", "FIRE")


def same_game(one: str, other: str) -> bool:
    """Whether two ids are of one game: PongNoFrameskip-v4 and ALE/Pong-v5 are, LunarLander-v2 and v3, `module:Id` and `Id` too.

    Two Atari games may have as many actions, and a policy of the one plays the other badly.
    """
    first, second = (re.sub(r"^[\w.]+:|^ALE/|NoFrameskip|-v\d+$", "", env) for env in (one, other))
    return first == second


def nearest_game(env: str, tasks: Iterable[Task]) -> Task | None:
    """The task of an environment id; where there is none, the first one of the same game."""
    alike = [task for task in tasks if same_game(task.env, env)]
    return next((task for task in alike if task.env == env), alike[0] if alike else None)


def action_names(task: Task) -> list[str]:
    """The names of a task's actions: NOOP, FIRE, RIGHT, ... on Atari and MinAtar, numbers elsewhere; of continuous actions those of
    their dimensions."""
    names: list[str] = []
    if is_minatar(task.env):
        minimal = range(6)
        if task.choices != (6,):
            minimal = made_game(task.env).minimal_action_set()
        names = [MINATAR_ACTIONS[int(action)] for action in minimal]
    elif is_atari(task.env):
        import ale_py
        import gymnasium

        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        gymnasium.register_envs(ale_py)
        made: Any = gymnasium.make(task.env)
        names = list(made.unwrapped.get_action_meanings())
        made.close()
    if task.action_sizes:
        return [f"{number}: {choice}" for number, size in enumerate(task.choices) for choice in range(size)]
    number = task.action_dimensions if task.continuous else task.choices[0]
    return names if len(names) == number else [str(action) for action in range(number)]


def features_of(task: Task, parts: Sequence[str]) -> tuple[int, ...]:
    """The places of the named parts in the flattened observation, in the order of the names; none for none.

    Raises:
        UserError: there is no such part, or one is named twice.
    """
    places, at = {}, 0
    for name, size in task.observation_keys:
        places[name] = range(at, at + size)
        at += size
    for name in parts:
        if name not in places:
            has = f"they have {', '.join(places)}" if places else "they have no named parts"
            raise UserError(f"the observations of {task.env} have no part {name!r}: {has}")
    if len(set(parts)) < len(parts):
        raise UserError(f"a part of the observation is named twice: {', '.join(parts)}")
    return tuple(feature for name in parts for feature in places[name])
