"""What environments declare of themselves."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rldistill.play.envs.gymnasium import declared_shape, render_rate, vector_bounds
from rldistill.play.envs.ids import is_atari, is_minatar
from rldistill.types import Task


def decisions_per_second(task: Task) -> float:
    """The speed at which people play or watch it: 60 frames on Atari; what a Gymnasium environment declares, or 30; of
    MinAtar, which declares none, 15."""
    if is_atari(task.env):
        return 60 / task.frame_skip
    if is_minatar(task.env):
        return 15.0
    return render_rate(task) or 30.0


def observation_bounds(task: Task) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None:
    """Least and largest number of each feature, (features,) each, as the environment declares them; None of images."""
    if is_atari(task.env) or is_minatar(task.env) or len(task.observation_shape) != 1:
        return None
    return vector_bounds(task)


def own_shape(task: Task) -> tuple[int, ...]:
    """The shape of the environment's own observations: another than the task's where images have their channels last there, or
    tables are flattened; () of spaces that are no Box."""
    if is_minatar(task.env):
        return task.observation_shape[1:] + task.observation_shape[:1]
    return task.observation_shape if is_atari(task.env) else declared_shape(task)
