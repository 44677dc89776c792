"""Teachers with noise: `noisy:SIGMA:REF` adds Gaussian noise to the values of any teacher of discrete actions.

The noise is a function of the observation, so a state has the same values whenever and in whatever batch it is labelled. A resumed
run, a second evaluation and a report meet the same teacher.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rldistill.play.actions import describe
from rldistill.play.envs import Environments
from rldistill.play.envs.own import Predicting
from rldistill.play.rollout import EpsilonGreedy, rollout
from rldistill.students.targets import advantage_spread
from rldistill.teachers.noise import PREFIX, Noise
from rldistill.types import ScoreKind, Task, UserError, as_tensor

if TYPE_CHECKING:
    from rldistill.policies import SavedPolicy
    from rldistill.teachers.foreign import ForeignTeacher

_ROWS, _STEPS, _EVERY, _EPSILON = 8, 256, 2, 0.05
"""Of the play that measures the spread: games side by side, control steps of each, which of them count, random actions."""

_AT_ONCE = 256
"""Observations that are hashed in one go, which takes twice their memory."""

Words: TypeAlias = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class NoisyTeacher(Predicting):
    """A teacher with Gaussian noise on its values. Its network, size and origin are those of the teacher without noise.

    Two of them differ in their noise where they differ in teacher, sigma or seed.
    """

    teacher: SavedPolicy | ForeignTeacher
    """Without noise."""
    noise: Noise
    task: Task

    @staticmethod
    def of(teacher: SavedPolicy | ForeignTeacher, noise: Noise) -> NoisyTeacher:
        """A loaded teacher with noise.

        Raises:
            UserError: it has continuous actions.
        """
        task = teacher.task
        if task.continuous:
            raise UserError(
                f"noise is for values of discrete actions, and {task.env} has {describe(task)}: name {teacher.path} without it"
            )
        return NoisyTeacher(teacher, noise, task)

    @property
    def score_kind(self) -> ScoreKind:
        """What its scores are."""
        return self.teacher.score_kind

    @property
    def network(self) -> nn.Module:
        """With its parameters."""
        return self.teacher.network

    @property
    def name(self) -> str:
        """What a table calls it."""
        return f"{self.teacher.name} with noise {self.noise}"

    @property
    def path(self) -> Path | None:
        """Where the teacher without noise was read."""
        return self.teacher.path

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Of the teacher without noise, less its scores, which are not those of this one."""
        made = {name: value for name, value in self.teacher.provenance.items() if name not in _WITHOUT_NOISE}
        return made | {"noise": str(self.noise)}

    @cached_property
    def sha256(self) -> str:
        """Equal for equal teachers with the same noise."""
        return hashlib.sha256(f"{self.teacher.sha256} {PREFIX}{self.noise}".encode()).hexdigest()

    def weights(self) -> bytes:
        """The bytes of the teacher without noise, and the words that describe the noise: no checksum takes one for the other."""
        return self.teacher.weights() + f"{PREFIX}{self.noise}".encode()

    @property
    def used(self) -> frozenset[str]:
        """Names of the options that acted when the teacher without noise was loaded."""
        return getattr(self.teacher, "used", frozenset())

    @property
    def decided(self) -> Mapping[str, Any]:
        """Of the teacher without noise: options that its file decides, and how."""
        return getattr(self.teacher, "decided", {})

    @cached_property
    def sigma(self) -> float:
        """The standard deviation of the noise in units of the values, measured once where it is given in spreads."""
        noise = self.noise
        return noise.sigma * measured_spread(self.teacher) if noise.in_spreads and noise.sigma else noise.sigma

    @cached_property
    def _words(self) -> Words:
        """Random numbers of 64 bits, one for each 4 bytes of an observation and one more."""
        size = math.prod(self.task.observation_shape) * np.dtype(self.task.observation_dtype).itemsize
        # The raw numbers: NumPy promises that they stay the same in later versions.
        return np.random.PCG64(int(self.sha256, 16)).random_raw(-(-size // 4) + 1)

    def __call__(self, observations: Tensor) -> Tensor:
        """Scores (B, K) float32 of observations (B, *obs)."""
        scores = self.teacher(observations)
        if not self.noise.sigma:
            return scores
        normals = normal_numbers(hashed_rows(observations, self._words), scores.shape[1])
        return scores + torch.from_numpy((self.sigma * normals).astype(np.float32))


def without_noise(teacher: object) -> object:
    """The teacher itself, or the one that noise was added to."""
    return teacher.teacher if isinstance(teacher, NoisyTeacher) else teacher


_WITHOUT_NOISE = ("score", "scores", "returns")
"""Provenance that is about how the teacher without noise plays."""


def hashed_rows(observations: Tensor, words: Words) -> Words:
    """(B,): a number of 64 bits for each observation of (B, *obs), equal for equal bytes.

    The bytes, four at a time, are the coefficients of a sum of random numbers (Carter and Wegman 1979), so the numbers of two
    different observations are equal with a probability of at most 2^-33.
    """
    rows = np.ascontiguousarray(observations.detach().cpu().numpy()).reshape(len(observations), -1).view(np.uint8)
    missing = -rows.shape[1] % 4
    if missing:
        rows = np.pad(rows, ((0, 0), (0, missing)))
    hashed = np.empty(len(rows), dtype=np.uint64)
    for first in range(0, len(rows), _AT_ONCE):
        fours = rows[first : first + _AT_ONCE].view(np.uint32).astype(np.uint64)
        hashed[first : first + _AT_ONCE] = fours @ words[: fours.shape[1]] + words[-1]
    return hashed


def normal_numbers(rows: Words, columns: int) -> npt.NDArray[np.float64]:
    """(B, columns): independent standard normal numbers that follow from a number of 64 bits for each row."""
    steps = np.arange(1, 2 * columns + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    uniform = ((_mixed(rows[:, None] + steps) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    radius, angle = np.sqrt(-2 * np.log(uniform[:, :columns])), 2 * np.pi * uniform[:, columns:]
    return np.asarray(radius * np.cos(angle))


def _mixed(words: Words) -> Words:
    """The finalizer of SplitMix64 (Steele et al. 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


_spreads: dict[tuple[str, Task], float] = {}
"""Measured in this process, by teacher and task."""


def measured_spread(teacher: SavedPolicy | ForeignTeacher) -> float:
    """The root mean square of a teacher's advantages over 1,024 states of its own play, to three digits.

    It plays 8 games side by side for 256 control steps with fixed seeds and epsilon 0.05; every second step counts.

    Raises:
        UserError: its environment cannot be made.
    """
    key = teacher.sha256, teacher.task
    if key not in _spreads:
        # Three digits do not depend on the last bit of a sum.
        _spreads[key] = float(f"{_spread(teacher):.3g}")
    return _spreads[key]


def _spread(teacher: SavedPolicy | ForeignTeacher) -> float:
    environments = Environments(teacher.task, _ROWS, seed=0)
    try:
        task = environments.task
        driver = EpsilonGreedy(teacher, task, _EPSILON, np.random.default_rng(0))
        steps = list(islice(rollout(environments, driver), 0, _STEPS, _EVERY))
    finally:
        environments.close()
    values = torch.cat([teacher(as_tensor(step.observations)) for step in steps])
    masks = [torch.from_numpy(step.masks) for step in steps if step.masks is not None]
    return advantage_spread(values, task.action_sizes, torch.cat(masks) if masks else None)
