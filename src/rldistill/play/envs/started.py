"""Games that begin at given starts instead of at resets."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from rldistill.play.actions import are_allowed
from rldistill.play.envs.boundary import EnvironmentFailed
from rldistill.play.envs.ram import Ram
from rldistill.play.envs.world import Backend, Pixels
from rldistill.play.starts import Starts, screen_of
from rldistill.types import Actions, Bools, Floats, Masks, Task, UserError


class StartDeparted(UserError):
    """The actions of a start lead elsewhere than they did."""


class StartedBackend:
    """A world for each row, so that a row plays the actions of its start while the others wait.

    Row i's k-th game begins at start `k * num_envs + i`, counted around, whatever seeds a reset is given.

    Args:
        task: what is played.
        starts: where games begin.
        num_envs: rows.
        make_world: makes the world of one row.
    """

    def __init__(self, task: Task, starts: Starts, num_envs: int, make_world: Callable[[], Backend]) -> None:
        self._task, self._starts = task, starts
        self._games = np.zeros(num_envs, dtype=np.int64)
        self._worlds: list[Backend] = []
        try:
            for row in range(num_envs):
                try:
                    self._worlds.append(make_world())
                except EnvironmentFailed as error:
                    error.add_number(row, num_envs)
                    raise
        except BaseException:
            self.close()
            raise
        self.life_lost = np.zeros(num_envs, dtype=np.bool_)
        self._join()

    @property
    def time_limit(self) -> int | None:
        """Of the worlds; the actions of a start count."""
        return self._worlds[0].time_limit

    @property
    def masks(self) -> Masks | None:
        """(N, A): the actions allowed in `observations`; None where the worlds give no masks."""
        masks = [world.masks for world in self._worlds]
        given = [mask for mask in masks if mask is not None]
        return np.concatenate(given) if len(given) == len(masks) else None

    @property
    def ram(self) -> Ram | None:
        """(N, 128); None where the worlds give none."""
        given = [world.ram for world in self._worlds]
        return None if any(ram is None for ram in given) else np.concatenate([ram for ram in given if ram is not None])

    def reset(self, rows: Bools, seeds: npt.NDArray[np.int64]) -> None:
        """Begins the next game of each row in the mask.

        Raises:
            StartDeparted: the actions of a start lead elsewhere than they did.
        """
        for row in np.flatnonzero(rows).tolist():
            number = int(self._games[row] * len(self._worlds) + row) % len(self._starts.starts)
            self._games[row] += 1
            self._begin(self._worlds[row], number)
        self._join()

    def step(self, actions: Actions) -> tuple[Floats, Bools, Bools]:
        outcomes = [world.step(actions[row : row + 1]) for row, world in enumerate(self._worlds)]
        rewards, terminated, truncated = (np.concatenate(part) for part in zip(*outcomes, strict=True))
        self.life_lost = np.concatenate([world.life_lost for world in self._worlds])
        self._join()
        return rewards, terminated, truncated

    def pixels(self) -> Pixels:
        return np.concatenate([world.pixels() for world in self._worlds])

    def close(self) -> None:
        for world in self._worlds:
            world.close()

    def _join(self) -> None:
        self.observations = np.concatenate([world.observations for world in self._worlds])

    def _begin(self, world: Backend, number: int) -> None:
        """Resets a world of one row and plays the actions of a start."""
        start = self._starts.starts[number]
        world.reset(np.ones(1, dtype=np.bool_), np.array([start.seed], dtype=np.int64))
        for done in range(len(start.actions)):
            action = start.actions[done : done + 1]
            if world.masks is not None and not are_allowed(action, self._task, world.masks).all():
                raise self._departed(number, f"action {done} is not allowed there")
            _, terminated, truncated = world.step(action)
            if terminated.any() or truncated.any():
                raise self._departed(number, f"the game ends after {done + 1} of its {len(start.actions)} actions")
        if screen_of(world.observations[0]) != start.screen:
            raise self._departed(number, f"its {len(start.actions)} actions lead to another screen than they did")

    def _departed(self, number: int, how: str) -> StartDeparted:
        return StartDeparted(
            f"{self._starts.path}: start {number} departs: {how}; the environment is another version, or it draws from a "
            "generator that its seed does not set: make the starts anew with `rldistill starts`"
        )
