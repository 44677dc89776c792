"""`predict` in an environment's own terms: what its `reset` and `step` give goes in, what its `step` takes comes out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from rldistill.play.actions import predicted
from rldistill.play.envs.gymnasium import declared_spaces
from rldistill.play.envs.ids import is_atari, is_minatar
from rldistill.play.envs.spaces import ActionWriter, ObservationReader
from rldistill.types import Actions, ActionValues, Observations, Task, Teacher, UserError


class _Own(NamedTuple):
    """An environment's spaces, and how they are read and written."""

    space: Any
    read: ObservationReader
    write: ActionWriter


_made: dict[Task, tuple[object, _Own | UserError]] = {}
"""By task: the specification that was registered under the environment's id, and the spaces or the error."""


def predict_own(
    values: ActionValues,
    task: Task,
    observation: Any,
    *,
    deterministic: bool,
    generator: np.random.Generator,
    action_masks: npt.ArrayLike | None = None,
) -> Any:
    """The action of one observation, or of each of several, as Stable-Baselines3's `predict` gives it.

    Args:
        values: the policy.
        task: that it plays.
        observation: as the policy reads it, (*obs) or (B, *obs); or as the environment gives it, and of a batch as
            Stable-Baselines3's `DummyVecEnv` does: a mapping or a tuple of arrays, whole numbers of a Discrete space, images with
            channels last.
        deterministic: take the chosen action; else draw from what the scores stand for.
        generator: of the draw.
        action_masks: (A,) or (B, A) the allowed actions; None allows all.

    Returns:
        What the environment takes: of one observation an action of its space, of several their array (B, ...).

    Raises:
        UserError: observations of another shape or type, or an environment that is needed for them and not here; masks of another
            shape, or one that allows nothing.
    """
    if not _is_of_task(observation, task):
        observation = _rows(observation, task)
    actions = predicted(
        values, task, observation, deterministic=deterministic, generator=generator, action_masks=action_masks
    )
    return _written(actions, task, one=np.ndim(observation) == len(task.observation_shape))


class Predicting:
    """The method `predict`, for classes that are a `Teacher`."""

    @cached_property
    def _generator(self) -> np.random.Generator:
        return np.random.default_rng(0)

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
        action_masks: npt.ArrayLike | None = None,
    ) -> tuple[Any, None]:
        """The action of one observation or of several, called as Stable-Baselines3's policies are.

        Observations are (*obs) or (B, *obs), or as the environment itself gives them: named parts, tuples, whole numbers of a
        Discrete space, images with channels last; of a batch as Stable-Baselines3's `DummyVecEnv` stacks them. Actions are what the
        environment's `step` takes.

        Draws, where not `deterministic`, come from a generator of the policy's own. `state` and `episode_start` are of
        policies with a memory; this has none. `action_masks`, (A,) or (B, A), rule actions out, as in sb3-contrib; without
        them all actions are allowed.

        Raises:
            UserError: observations of another shape or type, masks of another shape, or one that allows nothing.
        """
        teacher = cast(Teacher, self)
        actions = predict_own(
            teacher,
            teacher.task,
            observation,
            deterministic=deterministic,
            generator=self._generator,
            action_masks=action_masks,
        )
        return actions, None


def _is_of_task(observation: Any, task: Task) -> bool:
    """Whether it is laid out as the policy reads it.

    Whole numbers where the environment gives one are a batch of these, but for a single one-hot vector.
    """
    if isinstance(observation, Mapping):
        return False
    array = _array(observation)
    if array is None or task.observation_shape not in (array.shape, array.shape[1:]):
        return False
    counted = array.ndim == 1 and array.dtype.kind in "iu" and task.observation_dtype == "float32"
    is_one_hot = counted and bool(((array == 0) | (array == 1)).all()) and int(array.sum()) == 1
    if not counted or is_one_hot or is_atari(task.env) or is_minatar(task.env):
        return True
    own = _own(task)
    return isinstance(own, UserError) or not own.read.counts


def _rows(observation: Any, task: Task) -> Observations:
    """The environment's own observations, one or several, as the policy reads them."""
    array = None if isinstance(observation, Mapping) else _array(observation)
    if is_atari(task.env) or is_minatar(task.env):
        channels, height, width = task.observation_shape
        if array is not None and array.shape[-3:] == (height, width, channels):
            return cast(Observations, np.moveaxis(array, -1, -3))
        return cast(Observations, observation)  # is refused with its shape
    own = _own(task)
    if isinstance(own, UserError):
        raise own
    if own.read.own_shape and isinstance(observation, Mapping):
        raise UserError(f"the policy of {task.env} reads observations of {own.read.own_shape}, not named parts")
    leaf, shape = _leaf(observation, own.space)
    batch = np.ndim(leaf) > len(shape)
    if batch and np.ndim(leaf) > len(shape) + 1:
        raise UserError(
            f"the policy of {task.env} reads observations of {task.observation_shape}, not {np.shape(leaf)}"
        )
    parts = [_row(observation, row) for row in range(len(leaf))] if batch else [observation]
    read = np.empty((len(parts), *task.observation_shape), dtype=task.observation_dtype)
    for row, part in enumerate(parts):
        read[row] = own.read(part, "the caller")
    return cast(Observations, read if batch else read[0])


def _leaf(observation: Any, space: Any) -> tuple[Any, tuple[int, ...]]:
    """An array in the first part of an observation, and the shape that its space gives it."""
    from gymnasium.spaces import Dict, Tuple

    while isinstance(space, Dict | Tuple):
        try:
            key = next(iter(space.spaces)) if isinstance(space, Dict) else 0
            observation, space = observation[key], space.spaces[key]  # type: ignore[index]  # each has keys of its kind
        except (KeyError, IndexError, TypeError, StopIteration):
            return (), (0,)  # of no such parts: the reader says which there are
    return observation, tuple(space.shape or ())


def _row(observation: Any, row: int) -> Any:
    if isinstance(observation, Mapping):
        return {key: _row(part, row) for key, part in observation.items()}
    if isinstance(observation, tuple):
        return tuple(_row(part, row) for part in observation)
    try:
        return observation[row]
    except (IndexError, TypeError):
        raise UserError(f"the parts of a batch of observations have different lengths: one has no row {row}") from None


def _written(actions: Actions, task: Task, *, one: bool) -> Any:
    """Actions as the environment takes them; as they are where it is not here to say how."""
    if is_atari(task.env) or is_minatar(task.env):
        return actions
    own = _own(task)
    if isinstance(own, UserError) or own.write.as_counted:
        return actions
    if one:
        written = own.write(actions)
        return written if isinstance(written, tuple) else np.asarray(written)
    return np.array([own.write(action) for action in actions])


def _array(observation: Any) -> npt.NDArray[Any] | None:
    try:
        return np.asarray(observation)
    except ValueError:  # of parts that differ in length
        return None


def _own(task: Task) -> _Own | UserError:
    """The spaces of the task's environment, or why it is not here. It is made once, and closed again."""
    import gymnasium

    registered = gymnasium.registry.get(task.env.rpartition(":")[2])
    before = _made.get(task)
    if before is not None and before[0] is registered:
        return before[1]
    result: _Own | UserError
    try:
        observations, actions = declared_spaces(task)
        read = ObservationReader(task.env, observations, task.observation_shape)
        if read.shape != task.observation_shape:
            raise UserError(
                f"{task.env} has observations of {read.shape} here, the policy reads {task.observation_shape}"
            )
        result = _Own(observations, read, ActionWriter(task.env, actions))
    except UserError as error:
        result = error
        # Once a task: a shifted action space cannot be known without its environment.
        logging.getLogger("rldistill").warning(
            "warning: predict does without %s, which cannot be made here (%s): observations are expected as the policy reads "
            "them, and discrete actions count from 0",
            task.env,
            error,
        )
    _made[task] = gymnasium.registry.get(task.env.rpartition(":")[2]), result
    return result
