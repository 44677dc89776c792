"""Any registered Gymnasium environment whose spaces are understood."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from rldistill.play.envs.boundary import Boundary, EnvironmentFailed, StepInfo
from rldistill.play.envs.ids import arguments_of, make
from rldistill.play.envs.masks import MaskReader
from rldistill.play.envs.precision import Precision, is_finer
from rldistill.play.envs.ram import Ram
from rldistill.play.envs.spaces import ActionWriter, ObservationReader
from rldistill.play.envs.surroundings import Surroundings
from rldistill.play.envs.world import Pixels, understood, unlike
from rldistill.types import (
    Actions,
    Bools,
    EnvArgument,
    Floats,
    Masks,
    Observations,
    Task,
    UserError,
    unbounded,
)

Arguments = tuple[tuple[str, EnvArgument], ...]


def gymnasium_task(env: str, options: Mapping[str, Any]) -> Task:
    """The task of an id that `gymnasium.make` knows.

    Raises:
        UserError: no such environment, spaces that are not understood, or an option that it does not take.
    """
    arguments = arguments_of(options.get("env_kwargs", ()))
    understood(env, {name: value for name, value in options.items() if name != "env_kwargs"}, {})
    made = _opened(env, arguments)
    try:
        return _task(
            env, arguments, ObservationReader(env, made.observation_space), ActionWriter(env, made.action_space)
        )
    finally:
        made.close()


def _task(env: str, arguments: Arguments, reader: ObservationReader, writer: ActionWriter) -> Task:
    return Task(
        env,
        observation_shape=reader.shape,
        observation_dtype=reader.dtype,
        observation_keys=reader.keys,
        env_kwargs=arguments,
        **writer.fields,
    )


def vector_bounds(task: Task) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None:
    """Least and largest number of each feature, (features,) each, as the environment declares them; None of images.

    Raises:
        UserError: no such environment.
    """
    from gymnasium.spaces import Box, flatten_space

    space = declared_spaces(task)[0]
    box = space if isinstance(space, Box) else flatten_space(space)
    if not isinstance(box, Box) or (box.low.size,) != task.observation_shape:
        return None
    low, high = (np.array([unbounded(float(n)) for n in side.ravel()]) for side in (box.low, box.high))
    return low, high


def declared_spaces(task: Task) -> tuple[Any, Any]:
    """The environment's own spaces of observations and actions.

    Raises:
        UserError: no such environment.
    """
    made = _opened(task.env, task.env_kwargs)
    made.close()
    return made.observation_space, made.action_space


def declared_shape(task: Task) -> tuple[int, ...]:
    """The shape of the environment's own observations, which differs from the task's where these are turned or flattened; () of
    spaces that are no Box.

    Raises:
        UserError: no such environment.
    """
    return ObservationReader(task.env, declared_spaces(task)[0]).own_shape


def is_as_declared(task: Task) -> bool:
    """Whether observations and actions of the task are the environment's own, neither turned, flattened, shifted nor put into
    another form.

    Raises:
        UserError: no such environment.
    """
    from gymnasium.spaces import Box, Discrete, MultiDiscrete

    observations, actions = declared_spaces(task)
    if not isinstance(observations, Box) or observations.shape != task.observation_shape:
        return False
    if isinstance(actions, Discrete | MultiDiscrete):
        return np.ndim(actions.start) < 2 and not np.any(actions.start)
    return isinstance(actions, Box) and len(actions.shape) == 1


def render_rate(task: Task) -> float | None:
    """Pictures a second at which the environment says that it is shown, None if it does not.

    Raises:
        UserError: no such environment.
    """
    made = _opened(task.env, task.env_kwargs)
    rate = made.metadata.get("render_fps")
    made.close()
    return float(rate) if isinstance(rate, int | float) and rate > 0 else None


class GymnasiumBackend:
    """Any registered Gymnasium environment, one after the other.

    Raises:
        UserError: no such environment, or it has other actions or observations than the task.
        EnvironmentFailed: an environment fails; so do all methods where it fails in them.
    """

    ram: Ram | None = None

    def __init__(self, task: Task, num_envs: int, *, pixels: bool) -> None:
        self._task = task
        self._surroundings = Surroundings()
        self._envs: list[Boundary] = []
        try:
            for row in range(num_envs):
                try:
                    mode = "rgb_array" if pixels else None
                    self._envs.append(_opened(task.env, task.env_kwargs, mode, self._surroundings))
                except EnvironmentFailed as error:
                    error.add_number(row, num_envs)
                    raise
            first = self._envs[0]
            self._read = ObservationReader(task.env, first.observation_space, task.observation_shape)
            self._write = ActionWriter(task.env, first.action_space)
            differ = unlike(_task(task.env, task.env_kwargs, self._read, self._write), task)
            if differ is not None:
                raise UserError(f"{task.env} has {differ[0]} here, the policy's task says {differ[1]}")
        except BaseException:
            self.close()
            raise
        self.life_lost = np.zeros(num_envs, dtype=np.bool_)
        self.infos: list[StepInfo] = [{}] * num_envs
        """Each row's info of its last reset or step."""
        self._masks = MaskReader(task)
        shape = (num_envs, *task.observation_shape)
        self.observations: Observations = (
            np.zeros(shape, dtype=np.uint8) if task.observation_dtype == "uint8" else np.zeros(shape, dtype=np.float32)
        )
        # As the environment gives them, where that may be finer than float32; None once enough is known.
        vectors = task.observation_dtype == "float32" and len(task.observation_shape) == 1
        self._fine: npt.NDArray[np.float64] | None = np.zeros(shape) if vectors else None
        self._precision: Precision | None = None

    @property
    def time_limit(self) -> int | None:
        """Control steps after which the environment was registered to truncate an episode."""
        return self._envs[0].time_limit

    @property
    def masks(self) -> Masks | None:
        """(N, A): the allowed actions; None where the environment gives no masks."""
        return self._masks.masks

    def reset(self, rows: Bools, seeds: npt.NDArray[np.int64]) -> None:
        self.observations = self.observations.copy()
        for row, seed in zip(np.flatnonzero(rows), seeds, strict=True):
            observation, self.infos[row] = self._envs[row].reset(int(seed))
            self._take(row, observation, "reset")
        self._check_numbers("reset")
        self._masks.reset(len(rows), {row: self._mask(row) for row in np.flatnonzero(rows).tolist()})

    def step(self, actions: Actions) -> tuple[Floats, Bools, Bools]:
        number = len(self._envs)
        rewards = np.zeros(number, dtype=np.float32)
        terminated, truncated = np.zeros(number, dtype=np.bool_), np.zeros(number, dtype=np.bool_)
        self.observations = np.empty_like(self.observations)
        with self._surroundings:  # once for all rows, which costs less than once for each
            for row, env in enumerate(self._envs):
                answer = env.step(self._write(actions[row]))
                observation, rewards[row], terminated[row], truncated[row], self.infos[row] = answer
                self._take(row, observation, "step")
        self._check_numbers("step")
        self._masks.step([self._mask(row) for row in range(number)], terminated | truncated)
        return rewards, terminated, truncated & ~terminated

    def _mask(self, row: int) -> Any:
        return self._envs[row].action_mask(self.infos[row])

    def _take(self, row: int | np.integer[Any], observation: Any, call: str) -> None:
        array = self._read(observation, call)
        if array.dtype == self.observations.dtype:
            self.observations[row] = array
        else:
            with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, which is refused below
                self.observations[row] = array
        if self._fine is not None:
            self._fine[row] = array
            if not is_finer(array.dtype):
                self._fine = None

    def _check_numbers(self, call: str) -> None:
        if self._task.observation_dtype == "uint8":
            return
        if np.isfinite(self.observations).all():
            self._check_precision()
            return
        row, *place = (int(n) for n in np.argwhere(~np.isfinite(self.observations))[0])
        raise EnvironmentFailed(
            f"{call} of {self._task.env} gives {self.observations[(row, *place)]} in an observation "
            f"({self._read.feature(tuple(place))}, from 0): observations must be finite numbers within float32"
        )

    def _check_precision(self) -> None:
        if self._fine is None:
            return
        if self._precision is None:
            self._precision = Precision(self._task.env, self._fine, self._read.feature)
        elif not self._precision.add(self._fine):
            self._fine = self._precision = None

    def pixels(self) -> Pixels:
        with _no_display_needed():
            return np.stack([env.render() for env in self._envs])

    def close(self) -> None:
        for env in self._envs:
            env.close()


@contextmanager
def _no_display_needed() -> Iterator[None]:
    """Pictures need no display, but SDL, which pygame starts, looks for one and complains on stderr where there is none."""
    has_display = any(name in os.environ for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"))
    if has_display or not sys.platform.startswith("linux"):
        yield
        return
    os.environ["SDL_VIDEODRIVER"] = "dummy"
    try:
        yield
    finally:
        os.environ.pop("SDL_VIDEODRIVER", None)


def _opened(
    env: str, arguments: Arguments, render_mode: str | None = None, surroundings: Surroundings | None = None
) -> Boundary:
    return Boundary(env, lambda: make(env, arguments, render_mode), surroundings)
