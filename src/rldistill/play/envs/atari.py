"""Atari games: the ALE's own C++ vector environment."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from rldistill.play.envs.ram import Ram, RamTwin
from rldistill.play.envs.world import Pixels, understood
from rldistill.types import Actions, Bools, Floats, Masks, Observations, Task, UserError, did_you_mean

# Mean return of uniformly random play from no-op starts: dqn_zoo's atari_data (Mnih et al. 2015, extended table 2).
ATARI_RANDOM_SCORES = {
    "beam_rider": 363.9,
    "breakout": 1.7,
    "enduro": 0.0,
    "freeway": 0.0,
    "ms_pacman": 307.3,
    "pong": -20.7,
    "qbert": 163.9,
    "riverraid": 1338.5,
    "seaquest": 68.4,
    "space_invaders": 148.0,
}


def atari_task(env: str, options: Mapping[str, Any]) -> Task:
    """The task of `ALE/<Game>-v5` or `<Game>NoFrameskip-v4`.

    Raises:
        UserError: no such game, or an option that it does not take.
    """
    game = _game(env)
    defaults: dict[str, Any] = dict(
        frame_skip=4,
        frame_stack=4,
        sticky_actions=0.25 if env.startswith("ALE/") else 0.0,
        noop_max=30,
        max_frames=108_000,
        fire_when_idle=200,
        random_score=ATARI_RANDOM_SCORES.get(game),
    )
    chosen = defaults | understood(env, options, defaults)
    return Task(env, _actions(game), (int(chosen["frame_stack"]), 84, 84), "uint8", **chosen)


class AtariBackend:
    """The ALE's vector environment, which has threads of its own; rows are reset by seeded masks."""

    masks: Masks | None = None
    time_limit: int | None = None

    def __init__(self, task: Task, num_envs: int, *, pixels: bool = False, ram: bool = False) -> None:
        game = _game(task.env)
        options = task.as_dict()
        self._task = task
        self._ale = _ale(game, num_envs, options, pixels=False)
        # The spectator's picture comes from a twin that gets the same seeds and actions.
        self._twin = _ale(game, num_envs, options, pixels=True) if pixels else None
        self._ram = RamTwin(task, game, num_envs) if ram else None
        meanings = [action.name for action in self._ale.ale.get_action_set()]
        self._fires = np.array(["FIRE" in meaning for meaning in meanings])
        self._fire = meanings.index("FIRE") if "FIRE" in meanings else -1
        self._idle = np.zeros(num_envs, dtype=np.int64)
        self._lives = np.zeros(num_envs, dtype=np.int32)
        self.life_lost = np.zeros(num_envs, dtype=np.bool_)
        self.observations: Observations = np.zeros((num_envs, *task.observation_shape), dtype=np.uint8)

    @property
    def ram(self) -> Ram | None:
        """(N, 128); None unless it was asked for."""
        return None if self._ram is None else self._ram.ram

    def reset(self, rows: Bools, seeds: npt.NDArray[np.int64]) -> None:
        self.observations, info = self._ale.reset(seed=seeds, options={"reset_mask": rows})
        self._lives = info["lives"]
        if self._twin is not None:
            self._colours, _ = self._twin.reset(seed=seeds, options={"reset_mask": rows})
        if self._ram is not None:
            self._ram.reset(rows, seeds, self.observations, info)
        self._idle[rows] = 0

    def step(self, actions: Actions) -> tuple[Floats, Bools, Bools]:
        if self._task.fire_when_idle and self._fire >= 0:
            actions = np.where(self._idle >= self._task.fire_when_idle, self._fire, actions)
        self.observations, rewards, terminated, truncated, info = self._ale.step(actions)
        if self._twin is not None:
            self._colours = self._twin.step(actions)[0]
        if self._ram is not None:
            self._ram.step(actions, rewards, terminated, self.observations, info)
        self._idle = np.where((rewards != 0) | self._fires[actions], 0, self._idle + 1)
        self.life_lost = (info["lives"] < self._lives) & ~terminated & ~truncated
        self._lives = info["lives"]
        return rewards.astype(np.float32), terminated, truncated & ~terminated

    def pixels(self) -> Pixels:
        return np.ascontiguousarray(self._colours[:, -1])

    def close(self) -> None:
        self._ale.close()
        if self._twin is not None:
            self._twin.close()


def _game(env: str) -> str:
    """The ROM's name."""
    name, ending = (env.removeprefix("ALE/"), "-v5") if env.startswith("ALE/") else (env, "NoFrameskip-v4")
    if not name.endswith(ending):
        raise UserError(f"unknown Atari id {env!r}: write ALE/<Game>-v5 or <Game>NoFrameskip-v4")
    from ale_py import roms

    games = {rom.title().replace("_", ""): str(rom) for rom in roms.get_all_rom_ids()}
    pascal = name.removesuffix(ending)
    if pascal not in games:
        raise UserError(f"unknown Atari game {pascal!r}{did_you_mean(pascal, games)}")
    return games[pascal]


@cache
def _actions(game: str) -> int:
    options = dict(frame_skip=4, frame_stack=4, sticky_actions=0.0, noop_max=0, max_frames=0)
    return int(_ale(game, 1, options, pixels=False).single_action_space.n)


def _ale(game: str, num_envs: int, options: Mapping[str, Any], *, pixels: bool) -> Any:
    import ale_py
    from ale_py.vector_env import AtariVectorEnv

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    look: dict[str, Any] = dict(grayscale=True, img_height=84, img_width=84, stack_num=int(options["frame_stack"]))
    if pixels:
        look = dict(grayscale=False, img_height=210, img_width=160, stack_num=1)
    return AtariVectorEnv(
        game,
        num_envs,
        frameskip=int(options["frame_skip"]),
        repeat_action_probability=float(options["sticky_actions"]),
        noop_max=int(options["noop_max"]),
        max_num_frames_per_episode=int(options["max_frames"]) or 2**31 - 1,  # 0 would end episodes after one step
        use_fire_reset=False,
        reward_clipping=False,  # on by default, and then the raw score is nowhere
        episodic_life=False,
        autoreset_mode="NextStep",  # never takes place: ended rows are reset by their mask first
        **look,
    )
