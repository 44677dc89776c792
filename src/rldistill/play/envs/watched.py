"""Named numbers beside the observation: bytes of an Atari game's RAM, positions on MinAtar's grid, single features of a vector."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from importlib.resources import files
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from rldistill.play.envs.ids import is_atari, is_minatar
from rldistill.play.envs.minatar_games import channel_names
from rldistill.play.envs.ram import RAM_SIZE, Ram
from rldistill.types import Floats, Observations, Task, UserError, did_you_mean, printable

Read: TypeAlias = Callable[[Observations, Ram | None], npt.NDArray[np.generic]]
"""Reads one number of each row, (N,)."""

FEATURES: Final = {
    "Acrobot": "cos_theta1 sin_theta1 cos_theta2 sin_theta2 angular_velocity1 angular_velocity2",
    "CartPole": "cart_position cart_velocity pole_angle pole_angular_velocity",
    "LunarLander": "x y velocity_x velocity_y angle angular_velocity left_leg right_leg",
    "LunarLanderContinuous": "x y velocity_x velocity_y angle angular_velocity left_leg right_leg",
    "MountainCar": "position velocity",
    "MountainCarContinuous": "position velocity",
    "Pendulum": "cos_theta sin_theta angular_velocity",
}
"""The names of Gymnasium's features, in their order, by its ids without the version."""
_MEASURES = ("x", "y", "count")
"""Of a channel of MinAtar."""


class Watch:
    """Reads the numbers of some names from observations, and from the RAM where one is a byte of it.

    | environment | names |
    |---|---|
    | Atari | `ram:0` to `ram:127`; the game's own names of addresses (`ball_y`), where the table has any |
    | MinAtar | `CHANNEL.x`, `CHANNEL.y`: mean column and row of the channel's cells, NaN where it has none; `CHANNEL.count` |
    | vectors | `x0`, `x1`, ...; Gymnasium's features (`pole_angle`); parts of a Dict: `PART`, or `PART[0]`, `PART[1]`, ... |

    Args:
        task: what is played.
        names: what is read, in this order.

    Raises:
        UserError: the task has no such name; the message has those that it has.
    """

    def __init__(self, task: Task, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.needs_ram = bool(names) and is_atari(task.env)
        """Whether reading needs the RAM."""
        self._reads = [_reader(task, name) for name in names]

    def __call__(self, observations: Observations, ram: Ram | None) -> Floats:
        """(N, W) float32: a number for each row and name.

        Args:
            observations: (N, *obs).
            ram: of the same time; None where `needs_ram` is False.
        """
        numbers = np.zeros((len(observations), len(self._reads)), dtype=np.float32)
        for place, read in enumerate(self._reads):
            numbers[:, place] = read(observations, ram)
        return numbers


def names_in_words(task: Task) -> str:
    """What can be watched of a task, for a message."""
    if is_minatar(task.env):
        channels = channel_names(task.env)
        return f"{', '.join(channels)}, each with .x, .y and .count, such as {channels[0]}.x"
    if is_atari(task.env):
        numbered = _range("ram:0", f"ram:{RAM_SIZE - 1}")
    elif _features(task):
        numbered = _range("x0", f"x{_features(task) - 1}")
    else:
        return "nothing, because its observations are images"
    return ", ".join([*_runs(_own_names(task)), numbered])


def _reader(task: Task, name: str) -> Read:
    """What reads a name.

    Raises:
        UserError: the task has no such name.
    """
    if is_atari(task.env):
        address = _numbered("ram:", name, RAM_SIZE)
        address = _addresses(task).get(name) if address is None else address
        if address is not None:
            return partial(_byte, address)
    elif is_minatar(task.env):
        channel, _, measure = name.rpartition(".")
        if channel in channel_names(task.env) and measure in _MEASURES:
            return partial(_on_grid, channel_names(task.env).index(channel), measure)
    else:
        place = _places(task).get(name)
        place = _numbered("x", name, _features(task)) if place is None else place
        if place is not None:
            return partial(_feature, place)
    near = did_you_mean(name, _own_names(task))
    raise UserError(f"{task.env} has no {printable(name)!r} to watch{near}: it has {names_in_words(task)}")


def _byte(address: int, observations: Observations, ram: Ram | None) -> npt.NDArray[np.generic]:
    assert ram is not None, "the RAM was not asked for"
    return ram[:, address]


def _feature(place: int, observations: Observations, ram: Ram | None) -> npt.NDArray[np.generic]:
    return np.asarray(observations[:, place])


def _on_grid(channel: int, measure: str, observations: Observations, ram: Ram | None) -> npt.NDArray[np.generic]:
    grids = observations[:, channel].astype(np.float64)  # (N, rows, columns)
    count = grids.sum(axis=(1, 2))
    if measure == "count":
        return np.asarray(count)
    cells = grids.sum(axis=1 if measure == "x" else 2)
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN that is meant
        return np.asarray(cells @ np.arange(cells.shape[1]) / count)


def _own_names(task: Task) -> list[str]:
    """All names of a task but the numbered ones."""
    if is_minatar(task.env):
        return [f"{channel}.{measure}" for channel in channel_names(task.env) for measure in _MEASURES]
    return list(_addresses(task) if is_atari(task.env) else _places(task))


def _addresses(task: Task) -> dict[str, int]:
    """Named addresses of a game's RAM; none of a game that the table lacks."""
    name = re.sub(r"^ALE/|NoFrameskip|-v\d+$", "", task.env)
    return _ram_table().get(name.lower(), {})


@cache
def _ram_table() -> dict[str, dict[str, int]]:
    table: dict[str, dict[str, int]] = {}
    with (files("rldistill.play.envs") / "atari_ram.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            table.setdefault(row["game"], {})[row["name"]] = int(row["address"])
    return table


def _features(task: Task) -> int:
    """The size of a vector; 0 of images."""
    return task.observation_shape[0] if len(task.observation_shape) == 1 else 0


def _places(task: Task) -> dict[str, int]:
    """Places of the named features of a vector."""
    names = FEATURES.get(re.sub(r"-v\d+$", "", task.env), "").split()
    places = {name: place for place, name in enumerate(names)} if len(names) == _features(task) else {}
    at = 0
    for part, size in task.observation_keys:
        places |= {part: at} if size == 1 else {f"{part}[{place}]": at + place for place in range(size)}
        at += size
    return places


def _numbered(start: str, name: str, size: int) -> int | None:
    """The number of a name that is `start` and a whole number below `size`; None of any other."""
    match = re.fullmatch(rf"{start}(0|[1-9]\d{{0,8}})", name, re.ASCII)
    return int(match[1]) if match and int(match[1]) < size else None


def _runs(names: Iterable[str]) -> list[str]:
    """The names, neighbours that count up as one: `cube_0 to cube_20`."""
    runs: list[list[str]] = []
    for name in names:
        if runs and _follows(runs[-1][-1], name):
            runs[-1].append(name)
        else:
            runs.append([name])
    return [_range(run[0], run[-1]) for run in runs]


def _follows(one: str, other: str) -> bool:
    first, second = (re.fullmatch(r"(.*?)(\d+)(\]?)", name) for name in (one, other))
    return bool(first and second and first[1] == second[1] and int(first[2]) + 1 == int(second[2]))


def _range(first: str, last: str) -> str:
    return first if first == last else f"{first} to {last}"
