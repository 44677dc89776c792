"""MinAtar's five games."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from rldistill.play.envs.minatar_games import made_game
from rldistill.play.envs.ram import Ram
from rldistill.play.envs.world import Pixels, understood
from rldistill.types import Actions, Bools, Floats, Masks, Observations, Task


def minatar_task(env: str, options: Mapping[str, Any]) -> Task:
    """The task of `MinAtar/<Game>-v0` (all six actions) or `-v1` (the minimal set).

    Raises:
        UserError: no such game, or an option that it does not take.
    """
    probe = made_game(env, 0.1, True)
    height, width, channels = probe.state_shape()
    number = 6 if env.endswith("-v0") else len(probe.minimal_action_set())
    defaults: dict[str, Any] = dict(sticky_actions=0.1, difficulty_ramping=True, max_frames=27_000)
    chosen = defaults | understood(env, options, defaults)
    return Task(env, number, (channels, height, width), "uint8", **chosen)


class MinAtarBackend:
    """MinAtar's games (Young & Tian 2019, arXiv 1903.03176), channels first, one after the other."""

    masks: Masks | None = None
    time_limit: int | None = None
    ram: Ram | None = None

    # Black, and a colour for each of up to ten channels; only spectators see them.
    PALETTE = np.array(
        [
            [0, 0, 0],
            [102, 194, 165],
            [252, 141, 98],
            [141, 160, 203],
            [231, 138, 195],
            [166, 216, 84],
            [255, 217, 47],
            [229, 196, 148],
            [179, 179, 179],
            [228, 26, 28],
            [55, 126, 184],
        ],
        dtype=np.uint8,
    )

    def __init__(self, task: Task, num_envs: int) -> None:
        self._envs = [made_game(task.env, task.sticky_actions, task.difficulty_ramping) for _ in range(num_envs)]
        minimal = self._envs[0].minimal_action_set()
        self._actions = list(range(6)) if task.env.endswith("-v0") else [int(action) for action in minimal]
        self._limit = task.max_frames
        self._ages = np.zeros(num_envs, dtype=np.int64)
        self.life_lost = np.zeros(num_envs, dtype=np.bool_)
        self.observations: Observations = np.zeros((num_envs, *task.observation_shape), dtype=np.uint8)

    def reset(self, rows: Bools, seeds: npt.NDArray[np.int64]) -> None:
        self.observations = self.observations.copy()
        for row, seed in zip(np.flatnonzero(rows), seeds, strict=True):
            env = self._envs[row]
            env.seed(int(seed))
            env.last_action = 0  # else a sticky first action would come from the episode before
            env.reset()
            self.observations[row] = env.state().transpose(2, 0, 1)
        self._ages[rows] = 0

    def step(self, actions: Actions) -> tuple[Floats, Bools, Bools]:
        number = len(self._envs)
        rewards, terminated = np.zeros(number, dtype=np.float32), np.zeros(number, dtype=np.bool_)
        observations = np.empty_like(self.observations)
        for row, env in enumerate(self._envs):
            rewards[row], terminated[row] = env.act(self._actions[actions[row]])
            observations[row] = env.state().transpose(2, 0, 1)
        self.observations = observations
        self._ages += 1
        over = self._ages >= self._limit if self._limit else np.zeros(number, dtype=np.bool_)
        return rewards, terminated, over & ~terminated

    def pixels(self) -> Pixels:
        channels = self.observations.shape[1]
        top = (self.observations * np.arange(1, channels + 1)[None, :, None, None]).max(axis=1)
        small = self.PALETTE[top.astype(np.int64)]
        return cast(Pixels, small.repeat(16, axis=1).repeat(16, axis=2))

    def close(self) -> None:
        pass
