"""Contexts: what a contextual chooser reads of a state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F

from rldistill.lessons.selection import Doubles
from rldistill.students.networks import Network
from rldistill.types import Floats, Observations, Task, as_tensor


class Contexts(Protocol):
    """C numbers for each state."""

    @property
    def size(self) -> int:
        """C."""

    @property
    def kept(self) -> int:
        """How many of the C numbers, the last ones, cannot be computed from observations: they are kept with the visited states."""

    def of(self, observations: Observations, kept: Doubles | None = None) -> Doubles:
        """(N, C): of observations (N, *obs).

        Args:
            observations: of any states where nothing is kept or `kept` is given, else the present ones of the environments.
            kept: (N, K) of the same states, what was kept with them.
        """


class StudentFeatures:
    """The last hidden layer of the student as it is now.

    Args:
        network: the student.
    """

    kept = 0

    def __init__(self, network: Network) -> None:
        self.network = network
        head = network.layers[-1]
        assert isinstance(head, torch.nn.Linear)
        self.size = head.in_features

    def of(self, observations: Observations, kept: Doubles | None = None) -> Doubles:
        """(N, C): of observations (N, *obs)."""
        network = self.network
        with torch.no_grad(), network.acting(sampled=False):
            return np.asarray(network.hidden(as_tensor(observations)).double().cpu().numpy())


class Pixels:
    """The observation itself: of images the newest frame, averaged over at most 12 x 12 cells; of grids and vectors all numbers.

    Args:
        task: whose observations they are.
    """

    kept = 0

    def __init__(self, task: Task) -> None:
        shape = task.observation_shape
        image = len(shape) == 3
        self._channels = shape[0] // task.frame_stack if image else shape[0]
        self.cells = (min(shape[1], _CELLS), min(shape[2], _CELLS)) if image else None
        """Height and width of the small image; None of vectors."""
        self.size = self._channels * self.cells[0] * self.cells[1] if self.cells else int(np.prod(shape))

    def of(self, observations: Observations, kept: Doubles | None = None) -> Doubles:
        """(N, C): of observations (N, *obs)."""
        x = as_tensor(observations)
        if self.cells is not None:
            x = F.adaptive_avg_pool2d(x[:, -self._channels :].float(), self.cells)
        return np.asarray(x.flatten(1).double().numpy())


_CELLS = 12


class Watched:
    """Numbers that the environments give beside their observations.

    Args:
        watch: gives the numbers (N, W) of the present states.
        columns: by name, each makes a column (N,) of them.
    """

    def __init__(self, watch: Callable[[], Floats], columns: Mapping[str, Callable[[Floats], Doubles]]) -> None:
        self._watch, self._columns = watch, tuple(columns.values())
        self.size = self.kept = len(columns)
        self.names = tuple(columns)

    def of(self, observations: Observations, kept: Doubles | None = None) -> Doubles:
        """(N, C): what was kept, or without it the numbers of the present states."""
        if kept is not None:
            return kept
        watched = self._watch()
        return np.stack([column(watched) for column in self._columns], axis=1)


class Joined:
    """Several contexts side by side.

    Args:
        parts: two or more; the last one may be kept.
    """

    def __init__(self, parts: Sequence[Contexts]) -> None:
        self.parts = tuple(parts)
        self.size = sum(part.size for part in parts)
        self.kept = self.parts[-1].kept

    def of(self, observations: Observations, kept: Doubles | None = None) -> Doubles:
        """(N, C): of observations (N, *obs)."""
        return np.concatenate([part.of(observations, kept) for part in self.parts], axis=1)
