"""Any registered Gymnasium environment whose spaces are understood."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rldistill.envs.world import Pixels, nearest, understood
from rldistill.types import Actions, Bools, Floats, Observations, Task, UserError


def gymnasium_task(env: str, options: Mapping[str, Any]) -> Task:
    """The task of an id that `gymnasium.make` knows.

    Raises:
        UserError: no such environment, spaces that are not understood, or an option.
    """
    understood(env, options, {})
    made = _gymnasium(env, None)
    observations, actions = made.observation_space, made.action_space
    made.close()
    shape, dtype, keys = _observations(env, observations)
    return Task(env, observation_shape=shape, observation_dtype=dtype, observation_keys=keys, **_actions(env, actions))


def vector_bounds(env: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None:
    """Least and largest number of each feature, (features,) each, as the environment declares them; None of images.

    Raises:
        UserError: no such environment.
    """
    from gymnasium.spaces import Box, flatten_space

    made = _gymnasium(env, None)
    space = made.observation_space
    made.close()
    box = space if isinstance(space, Box) else flatten_space(space)
    if not isinstance(box, Box) or len(box.shape) != 1:
        return None
    return box.low.astype(np.float64), box.high.astype(np.float64)


def render_rate(env: str) -> float | None:
    """Pictures a second at which the environment says that it is shown, None if it does not.

    Raises:
        UserError: no such environment.
    """
    made = _gymnasium(env, None)
    rate = made.metadata.get("render_fps")
    made.close()
    return float(rate) if isinstance(rate, int | float) and rate > 0 else None


def _observations(
    env: str, space: Any
) -> tuple[tuple[int, ...], Literal["uint8", "float32"], tuple[tuple[str, int], ...]]:
    """Shape, type and named parts of what policies see."""
    from gymnasium.spaces import Box, Dict, flatdim

    if not isinstance(space, Box):
        if not space.is_np_flattenable:
            raise UserError(f"{env} has {type(space).__name__} observations that cannot be flattened to a vector")
        keys = tuple((str(key), flatdim(part)) for key, part in space.items()) if isinstance(space, Dict) else ()
        return (flatdim(space),), "float32", keys
    shape = tuple(int(n) for n in space.shape)
    if len(shape) not in (1, 3):
        raise UserError(f"{env} has observations of shape {shape}; vectors and images (three axes) are understood")
    if _channels_last(space):
        shape = (shape[2], shape[0], shape[1])
    return shape, "uint8" if space.dtype == np.uint8 else "float32", ()


def _channels_last(space: Any) -> bool:
    """Of images in bytes: whether their last axis is the channels, which are the shortest axis, of equals the last.

    As Stable-Baselines3 tells it, which leaves arrays of floats as they are too.
    """
    return space.dtype == np.uint8 and len(space.shape) == 3 and space.shape[2] == min(space.shape)


def _actions(env: str, space: Any) -> dict[str, Any]:
    """What `Task` says of the actions."""
    from gymnasium.spaces import Box, Discrete, MultiDiscrete

    if isinstance(space, Discrete | MultiDiscrete) and np.any(space.start):
        raise UserError(f"{env} numbers its actions from {space.start}; rldistill expects them from 0")
    if isinstance(space, Discrete):
        return {"num_actions": int(space.n)}
    if isinstance(space, MultiDiscrete) and space.nvec.ndim == 1:
        return {"num_actions": int(space.nvec.sum()), "action_sizes": tuple(int(n) for n in space.nvec)}
    if isinstance(space, Box) and len(space.shape) == 1 and np.issubdtype(space.dtype, np.floating):
        low, high = (tuple(float(n) for n in side) for side in (space.low, space.high))
        return {"num_actions": len(low), "action_low": low, "action_high": high}
    raise UserError(
        f"{env} has {type(space).__name__} actions of shape {space.shape}; "
        "rldistill plays Discrete, MultiDiscrete and vectors of continuous actions"
    )


class GymnasiumBackend:
    """Any registered Gymnasium environment, one after the other; observations that are no Box are flattened."""

    def __init__(self, task: Task, num_envs: int, *, pixels: bool) -> None:
        from gymnasium.spaces import Box

        self._envs = [_gymnasium(task.env, "rgb_array" if pixels else None) for _ in range(num_envs)]
        self._space = self._envs[0].observation_space
        self._flattened = not isinstance(self._space, Box)
        self._channels_last = not self._flattened and _channels_last(self._space)
        self._discrete = not task.continuous and not task.action_sizes
        self.life_lost = np.zeros(num_envs, dtype=np.bool_)
        shape = (num_envs, *task.observation_shape)
        self.observations: Observations = (
            np.zeros(shape, dtype=np.uint8) if task.observation_dtype == "uint8" else np.zeros(shape, dtype=np.float32)
        )

    def _seen(self, observation: Any) -> Any:
        if self._flattened:
            from gymnasium.spaces import flatten

            return flatten(self._space, observation)
        return observation.transpose(2, 0, 1) if self._channels_last else observation

    def reset(self, rows: Bools, seeds: npt.NDArray[np.int64]) -> None:
        self.observations = self.observations.copy()
        for row, seed in zip(np.flatnonzero(rows), seeds, strict=True):
            self.observations[row] = self._seen(self._envs[row].reset(seed=int(seed))[0])

    def step(self, actions: Actions) -> tuple[Floats, Bools, Bools]:
        number = len(self._envs)
        rewards = np.zeros(number, dtype=np.float32)
        terminated, truncated = np.zeros(number, dtype=np.bool_), np.zeros(number, dtype=np.bool_)
        observations = np.empty_like(self.observations)
        for row, env in enumerate(self._envs):
            observation, reward, terminated[row], truncated[row], _ = env.step(
                # A copy, for some environments scale or cut what they are given in place.
                int(actions[row]) if self._discrete else actions[row].copy()
            )
            observations[row], rewards[row] = self._seen(observation), float(reward)
        self.observations = observations
        return rewards, terminated, truncated & ~terminated

    def pixels(self) -> Pixels:
        with _no_display_needed():
            return np.stack([np.asarray(env.render(), dtype=np.uint8) for env in self._envs])

    def close(self) -> None:
        for env in self._envs:
            env.close()


@contextmanager
def _no_display_needed() -> Iterator[None]:
    """Pictures need no display, but SDL, which pygame starts, looks for one and complains on stderr where there is none."""
    shown = any(name in os.environ for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"))
    if shown or not sys.platform.startswith("linux"):
        yield
        return
    os.environ["SDL_VIDEODRIVER"] = "dummy"
    try:
        yield
    finally:
        os.environ.pop("SDL_VIDEODRIVER", None)


def _gymnasium(env: str, render_mode: str | None) -> Any:
    import gymnasium

    if render_mode:  # it greets on stdout, where verbs print what can be piped
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        # Not every environment takes a render mode, so it is given only where one is wanted.
        return gymnasium.make(env, render_mode=render_mode) if render_mode else gymnasium.make(env)
    except (gymnasium.error.Error, ImportError) as error:  # a plain ImportError is that of MuJoCo's v2 and v3
        said = str(error).splitlines()[0]
        names = [str(name) for name in gymnasium.registry]
        without_its_package = env in names and isinstance(error, ModuleNotFoundError)
        if without_its_package or isinstance(error, gymnasium.error.DependencyNotInstalled):
            raise UserError(f"{env} needs a package that is not installed: {said}") from None
        raise UserError(f"unknown environment {env!r}{nearest(env, names)} ({said})") from None
