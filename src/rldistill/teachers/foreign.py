"""A policy of another tool as a teacher."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from rldistill.formats.foreign import ForeignPolicy
from rldistill.formats.programs import last_line
from rldistill.formats.sb3 import content_of
from rldistill.play.actions import describe, score_width
from rldistill.play.envs.own import Predicting
from rldistill.types import ScoreKind, Task, UserError, first_line


@dataclass(frozen=True)
class ForeignTeacher(Predicting):
    """A policy of another tool, with the task that it plays; called like a policy of our own."""

    foreign: ForeignPolicy
    task: Task
    path: Path
    mismatches: tuple[str, ...] = ()
    """What does not fit, a line each: a teacher that plays badly because of it, plays badly for the student too."""
    notes: tuple[str, ...] = ()
    """What was supposed, since the file does not say."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    """What a user stated about its network, pixels and scores."""

    @property
    def score_kind(self) -> ScoreKind:
        """What its scores are."""
        return self.foreign.score_kind

    @property
    def used(self) -> frozenset[str]:
        """Names of the options that acted when it was loaded."""
        return self.foreign.used

    @property
    def decided(self) -> Mapping[str, Any]:
        """Options that its file decides, and how."""
        return self.foreign.decided

    @property
    def sha256(self) -> str:
        """Equal for two teachers that are the same: a checksum of the file, and of everything else that the scores depend on."""
        checksums = [self.provenance["sha256"], *self._beside_the_file]
        return checksums[0] if len(checksums) == 1 else hashlib.sha256("\n".join(checksums).encode()).hexdigest()

    @property
    def _beside_the_file(self) -> list[str]:
        """What changes the scores and is not in the file: statistics of observations, and what a user stated."""
        statistics = self.foreign.normalization
        lines = [f"{name} = {value}" for name, value in sorted(self.options.items())]
        if statistics is not None:
            parts = [statistics.mean, statistics.variance]
            parts += [] if statistics.untouched is None else [statistics.untouched.astype(np.float64)]
            numbers = np.concatenate([part.ravel() for part in parts])
            limits = np.array([statistics.epsilon, statistics.limit])
            lines.append(hashlib.sha256(np.concatenate([numbers, limits]).tobytes()).hexdigest())
        return lines

    @property
    def network(self) -> nn.Module:
        """With its parameters."""
        return self.foreign.network

    @property
    def name(self) -> str:
        """What a table calls its network: the algorithm, or the format where the file does not name one."""
        return self.foreign.algorithm if self.foreign.algorithm != "unknown" else self.foreign.format

    def weights(self) -> bytes:
        """The file."""
        return content_of(self.path)

    def __call__(self, observations: Tensor) -> Tensor:
        """Scores (B, K) float32 of observations (B, *obs), normalized as in training.

        Raises:
            UserError: it cannot be played at all: observations of another shape, or another number of scores.
        """
        space, shape = self.foreign.observation_space, tuple(observations.shape[1:])
        if space is not None and space.shape != shape:
            observations = self._as_declared(observations, space.shape)
        if self.foreign.normalization is not None:
            observations = self.foreign.normalization(observations)
        with torch.no_grad():
            try:
                scores = cast(Tensor, self.foreign.network(observations)).to(torch.float32)
            except Exception as error:  # of the runtimes, which have kinds of their own
                if isinstance(error, UserError) or self.foreign.format not in ("ONNX", "TorchScript"):
                    raise
                reason = (first_line if self.foreign.format == "ONNX" else last_line)(error)
                raise UserError(f"{self.path} fails on an observation of {self.task.env}: {reason}") from None
        width = score_width(self.task, self.score_kind)
        if scores.shape[1:] != (width,):
            raise UserError(
                f"{self.path} cannot play {self.task.env}: it gives {tuple(scores.shape[1:])} scores, "
                f"{describe(self.task)} need {width} ({self.score_kind})"
            )
        return scores

    def _as_declared(self, observations: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Observations (B, *obs) as the environment declares them, channels last or as a table, for a teacher that reads that."""
        given = tuple(observations.shape[1:])
        if len(shape) == 3 and given == shape[2:] + shape[:2]:
            return observations.permute(0, 2, 3, 1).contiguous()
        if len(shape) in (0, 2) and given in ((math.prod(shape),), (1, *shape)):
            return observations.reshape(len(observations), *shape)
        raise UserError(f"{self.path} cannot play {self.task.env}: it reads {shape}, and is given {given}")


def origin_of(foreign: ForeignPolicy, path: Path) -> dict[str, Any]:
    """Where a teacher comes from: format, algorithm and checksum of its file."""
    checksum = hashlib.sha256(content_of(path)).hexdigest()
    return {"format": foreign.format, "algorithm": foreign.algorithm, "sha256": checksum}


def supposed_notes(foreign: ForeignPolicy) -> list[str]:
    """A line about what was supposed, if anything was."""
    supposed = foreign.provenance.get("supposed", ())
    return [f"supposed, since the file does not say: {', '.join(map(str, supposed))}"] if supposed else []
