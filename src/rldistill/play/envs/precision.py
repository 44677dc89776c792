"""Detects features whose changes are lost when observations become float32, the type that policies compute in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from rldistill.play.envs.boundary import EnvironmentFailed

_CHANGES = 2_000  # of a feature, before anything is concluded
_CHANGES_OF_LARGE = 4
_STEPS = 4_000  # that are looked at
_SHARE = 0.25
_NOISE = 1e-11  # of its magnitude: what float64 itself rounds
_LEVELS = 16  # that float32 tells apart in its range: more are enough for a thing that hardly moves
_LARGE = 2.0**20  # float32 numbers are an eighth apart here


def is_finer(dtype: np.dtype[Any]) -> bool:
    """Whether a type holds numbers that float32 rounds."""
    return dtype.itemsize > 4 or (dtype.kind in "iu" and dtype.itemsize == 4)


class Precision:
    """Watches the first observations of an environment for features whose changes are lost in float32, such as timestamps.

    A feature is lost where a quarter of its changes from one observation to the next disappear, unless they are what float64
    itself rounds, or of a thing that hardly moves but whose range float32 divides. Numbers above a million count in any case.

    Args:
        env: id, for messages.
        first: observations (N, features) float64 after the first reset.
        feature: a feature in words.
    """

    def __init__(self, env: str, first: npt.NDArray[np.float64], feature: Callable[[tuple[int, ...]], str]) -> None:
        self._env, self._last, self._feature = env, first.copy(), feature
        self._low, self._high = first.min(axis=0), first.max(axis=0)
        self._changed, self._lost, self._by = (np.zeros(first.shape[1]) for _ in range(3))
        self._steps = 0

    def add(self, observations: npt.NDArray[np.float64]) -> bool:
        """Adds the next observations, (N, features) float64. Returns whether more are needed.

        Raises:
            EnvironmentFailed: a feature is lost in float32.
        """
        difference = np.abs(observations - self._last)
        lost = (difference > 0) & (observations.astype(np.float32) == self._last.astype(np.float32))
        self._changed += (difference > 0).sum(axis=0)
        self._lost += lost.sum(axis=0)
        self._by += np.where(lost, difference, 0).sum(axis=0)
        np.minimum(self._low, observations.min(axis=0), out=self._low)
        np.maximum(self._high, observations.max(axis=0), out=self._high)
        self._last = observations.copy()
        self._steps += 1
        if lost.any():
            self._check()
        return self._steps < _STEPS

    def _check(self) -> None:
        spread, magnitude = self._high - self._low, np.maximum(np.abs(self._low), np.abs(self._high))
        large = magnitude >= _LARGE
        often = (self._changed >= np.where(large, _CHANGES_OF_LARGE, _CHANGES)) & (self._lost >= _SHARE * self._changed)
        by = self._by / np.maximum(self._lost, 1)
        counts = large | (spread < _LEVELS * magnitude * np.finfo(np.float32).eps)
        lost_features = np.flatnonzero(often & (spread > _NOISE * magnitude) & counts)
        if len(lost_features):
            worst = int(lost_features[0])
            raise EnvironmentFailed(
                f"{self._env} gives observations that float32, in which policies compute, cannot tell apart: "
                f"{self._feature((worst,))} (from 0) is about {magnitude[worst]:.6g} and changes by {by[worst]:.3g}. Subtract its "
                "usual value from it in a wrapper, such as gymnasium.wrappers.TransformObservation"
            )
