"""The RAM of Atari games, which the ALE's vector environment does not give."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from rldistill.types import Actions, Bools, Observations, Task, UserError

RAM_SIZE = 128
Ram: TypeAlias = npt.NDArray[np.uint8]
"""(N, RAM_SIZE): the RAM of the emulator of each row."""
_Grey: TypeAlias = npt.NDArray[np.uint8]
_NOOP = 0


class RamDeparted(UserError):
    """The emulators of the RAM play another game than the vector environment."""


class _Start(NamedTuple):
    """A game before its no-ops."""

    state: Any
    screen: _Grey


class RamTwin:
    """Emulators, one a row, that repeat the games of the vector environment: same seeds, same no-ops, same actions.

    An emulator with the same seed repeats sticky actions too. At each step rewards, lives, ends and numbers of frames are
    compared in all rows, and the screen in one row, in turn. At a reset the screens of all its rows are compared.

    Args:
        task: what is played.
        game: the ROM's name.
        num_envs: rows.
    """

    def __init__(self, task: Task, game: str, num_envs: int) -> None:
        from ale_py import ALEInterface, roms

        self._task = task
        self._rom = cast(Path, roms.get_rom_path(game))  # the game is one that there is
        self._emulators = [ALEInterface() for _ in range(num_envs)]
        for emulator in self._emulators:
            emulator.setFloat("repeat_action_probability", task.sticky_actions)
            emulator.loadROM(self._rom)
        self._actions = self._emulators[0].getMinimalActionSet()
        height, width = self._emulators[0].getScreenDims()
        self._down, self._across = _area_weights(height, 84), _area_weights(width, 84)
        self._starts: list[_Start | None] = [None] * num_envs
        """The start of each row's games. Without sticky actions it does not depend on the seed, and to load a ROM takes 0.1 s."""
        self._frames = np.zeros(num_envs, dtype=np.int64)
        """Frames since the first observation of the game."""
        self._steps = 0
        self.ram: Ram = np.zeros((num_envs, RAM_SIZE), dtype=np.uint8)

    def reset(
        self, rows: Bools, seeds: npt.NDArray[np.int64], observations: Observations, info: Mapping[str, Any]
    ) -> None:
        """Begins the games of the rows in the mask, which the vector environment has begun.

        Args:
            rows: (N,).
            seeds: one for each of them.
            observations: (N, *obs) after the reset.
            info: of the reset.

        Raises:
            RamDeparted: a game begins otherwise.
        """
        self.ram = self.ram.copy()
        for row, seed in zip(np.flatnonzero(rows).tolist(), seeds.tolist(), strict=True):
            emulator, screen = self._emulators[row], self._begin(row, seed)
            while emulator.getFrameNumber() < info["frame_number"][row]:  # the no-ops, whose number is drawn
                emulator.act(_NOOP)
                if emulator.game_over():
                    emulator.reset_game()
                screen = emulator.getScreenGrayscale()
            self._frames[row] = 0
            self.ram[row] = emulator.getRAM()
            self._check_state(row, info)
            self._check_screen(row, screen, observations)

    def _begin(self, row: int, seed: int) -> _Grey:
        """Begins a game of a row, before the no-ops; its screen."""
        emulator, start = self._emulators[row], self._starts[row]
        if start is not None:
            emulator.restoreSystemState(start.state)
            return start.screen  # the emulator draws its own with the next frame
        emulator.setInt("random_seed", seed)
        emulator.loadROM(self._rom)
        emulator.reset_game()
        screen = emulator.getScreenGrayscale()
        if not self._task.sticky_actions:
            self._starts[row] = _Start(emulator.cloneSystemState(), screen)
        return screen

    def step(
        self, actions: Actions, rewards: npt.NDArray[Any], terminated: Bools, observations: Observations, info: Any
    ) -> None:
        """Takes one action in each row, as the vector environment has.

        Args:
            actions: (N,).
            rewards: (N,) of the vector environment.
            terminated: (N,), whether its games are over.
            observations: (N, *obs) after the step.
            info: of the step.

        Raises:
            RamDeparted: something differs.
        """
        ram = np.empty_like(self.ram)
        turn = self._steps % len(self._emulators)
        self._steps += 1
        for row, emulator in enumerate(self._emulators):
            reward, screens = self._play(row, actions[row], keep_screens=row == turn)
            if reward != rewards[row] or emulator.game_over() != terminated[row]:
                raise self._departed(row, "a reward or the end differs")
            self._check_state(row, info)
            if len(screens) == min(2, self._task.frame_skip):  # fewer where the game ended before
                self._check_screen(row, np.maximum.reduce(screens), observations)
            ram[row] = emulator.getRAM()
        self.ram = ram

    def _play(self, row: int, action: int, *, keep_screens: bool) -> tuple[int, list[_Grey]]:
        """The reward of one control step, and the screens of its last two frames if they are to be kept."""
        emulator, reward = self._emulators[row], 0
        screens: list[_Grey] = []
        code = self._actions[action]
        for left in range(self._task.frame_skip - 1, -1, -1):
            reward += emulator.act(code)
            self._frames[row] += 1
            if emulator.game_over() or 0 < self._task.max_frames <= self._frames[row]:
                break
            if keep_screens and left < 2:
                screens.append(emulator.getScreenGrayscale())
        return reward, screens

    def _check_state(self, row: int, info: Mapping[str, Any]) -> None:
        emulator = self._emulators[row]
        now = emulator.lives(), emulator.getFrameNumber(), emulator.getEpisodeFrameNumber()
        if now != (info["lives"][row], info["frame_number"][row], info["episode_frame_number"][row]):
            raise self._departed(row, "lives or frames differ")

    def _check_screen(self, row: int, screen: _Grey, observations: Observations) -> None:
        """Compares a grey screen (height, width) with the newest frame of the observation of a row."""
        small = self._down @ screen.astype(np.float32) @ self._across.T
        if np.abs(small - observations[row, -1]).max() > 1.0:  # the observation is rounded
            raise self._departed(row, "the screen differs")

    def _departed(self, row: int, how: str) -> RamDeparted:
        return RamDeparted(
            f"{self._task.env}: the emulator that gives the RAM departs from the game of environment {row} at frame "
            f"{self._emulators[row].getFrameNumber()} ({how}): install ale-py 0.12.1, or name nothing of the RAM"
        )


def _area_weights(size: int, smaller: int) -> npt.NDArray[np.float32]:
    """(smaller, size): how much of each pixel lies in each larger one, as a mean."""
    edges = np.arange(smaller + 1) * size / smaller
    places = np.arange(size)
    overlap = np.minimum(edges[1:, None], places + 1) - np.maximum(edges[:-1, None], places)
    weights: npt.NDArray[np.float32] = (np.clip(overlap, 0.0, None) * smaller / size).astype(np.float32)
    return weights
