"""A policy of another tool: a network in plain PyTorch, and all that its file says of itself."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rldistill.types import ScoreKind, UserError, is_large_image

ForeignScores: TypeAlias = Literal["q_values", "logits", "gaussian", "deterministic"]
"""What the network gives for each observation, (B, K) float32:

* `q_values`: K values, one an action (quantiles are averaged already);
* `logits`: K logits, one an action; of a MultiDiscrete space the dimensions' logits one after the other;
* `gaussian`: K = 2 D, the D means in the environment's units (or before the tanh, see `squashed`), then D log standard deviations;
* `deterministic`: K = D actions in the environment's units.
"""

FOREIGN_SCORES: Mapping[ScoreKind, ForeignScores] = {
    "q_values": "q_values",
    "logits": "logits",
    "gaussian": "gaussian",
    "squashed_gaussian": "gaussian",
    "actions": "deterministic",
}
"""Kinds of scores of rldistill's own policies, as files of other tools name them; `squashed` tells the two Gaussians apart."""

Pixels: TypeAlias = Literal["bytes", "unit"]
"""What a network of images takes: numbers from 0 to 255, or from 0 to 1."""
Numbers: TypeAlias = Literal["bytes", "binary", "floats"]
"""What an environment's observations are made of: bytes from 0 to 255, bytes that are 0 or 1 (MinAtar's planes), or floats."""

# Words in the names of layers and of outputs, which people choose alike.
_ACTION_VALUES = {"q", "qf", "qs", "qnet", "qnetwork", "qvalue", "qvalues", "qhead", "dqn"}
_POLICIES = {"pi", "actor", "policy", "logit", "logits", "dist", "action", "actions"}

ALL_OF_MINATAR = "; MinAtar's ids that end in -v0 have all six actions"


def scores_named(names: Iterable[str]) -> ForeignScores | None:
    """`q_values` or `logits` where such names of layers or outputs say so, else None."""
    words = words_of(names)
    if words & _ACTION_VALUES or {"action", "value"} <= words or {"action", "values"} <= words:
        return "q_values"
    return "logits" if words & _POLICIES else None


def words_of(names: Iterable[str]) -> set[str]:
    """The words in names such as `policy_net.fc1` or `valueHead`, in small letters."""
    return {word for name in names for word in re.split(r"[^a-z]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower())}


def unknown_range(path: Path) -> UserError:
    """To be raised where nothing says how pixels are scaled."""
    return UserError(
        f"{path} takes images but does not say of which range: say --pixels bytes (0 to 255) or --pixels unit (0 to 1)"
    )


class BoxSpace(NamedTuple):
    """Gymnasium's Box."""

    shape: tuple[int, ...]
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    dtype: str
    keys: tuple[tuple[str, int], ...] = ()
    """Of a Dict that was flattened to this vector: names and sizes of its parts, in their order."""


def observations_of(shape: tuple[int, ...], numbers: Numbers | None = None) -> BoxSpace:
    """What a network of this input shape reads.

    Args:
        shape: of an observation.
        numbers: what it is made of; None supposes bytes where it is a large image, floats elsewhere.
    """
    if numbers == "floats" or (numbers is None and not is_large_image(shape)):
        return BoxSpace(shape, np.full(shape, -np.inf), np.full(shape, np.inf), "float32")
    return BoxSpace(shape, np.zeros(shape), np.full(shape, 1.0 if numbers == "binary" else 255.0), "uint8")


def holds_bytes(space: BoxSpace) -> bool:
    """Whether it reads bytes from 0 to 255, which a network may want divided."""
    return space.dtype == "uint8" and bool((space.high > 1).any())


class DiscreteSpace(NamedTuple):
    """Gymnasium's Discrete (one dimension) and MultiDiscrete (several)."""

    sizes: tuple[int, ...]
    divided: bool = True
    """False where the file says how many scores there are in all, and not how many actions at once they are for."""


class Statistics(NamedTuple):
    """Of `VecNormalize`: an observation becomes clip((x - mean) / sqrt(variance + epsilon), -limit, limit)."""

    mean: npt.NDArray[np.float64]
    variance: npt.NDArray[np.float64]
    epsilon: float
    limit: float
    source: str
    """The file that they come from."""
    keys: tuple[tuple[str, int], ...] = ()
    """Of observations with named parts: names and sizes of the parts that are normalized, in the order of these numbers."""
    untouched: npt.NDArray[np.bool_] | None = None
    """Where True, a number of the observation is left as it is."""
    rule: str = ""
    """Whose statistics they are and how they are applied, for a reader; empty for `VecNormalize`."""

    def __call__(self, observations: Tensor) -> Tensor:
        """The same shape, float32."""
        # In double precision, as VecNormalize does: of an observation that hardly varies, float32 leaves only noise.
        mean = torch.from_numpy(self.mean)
        scale = torch.from_numpy(np.sqrt(self.variance + self.epsilon))
        normalized = ((observations.double() - mean) / scale).clamp(-self.limit, self.limit).float()
        if self.untouched is None:
            return normalized
        return torch.where(torch.from_numpy(self.untouched), observations.float(), normalized)

    def arranged(self, shape: tuple[int, ...], keys: tuple[tuple[str, int], ...] = ()) -> Statistics | None:
        """These statistics for observations of a shape, flattened from these named parts; None where they do not fit.

        Args:
            shape: of an observation.
            keys: names and sizes of its parts, in their order. A part without statistics is left as it is.
        """
        if not self.keys:
            return self if self.mean.shape == shape else None
        sizes = dict(keys)
        if any(sizes.get(name) != size for name, size in self.keys):
            return None
        mean, variance = np.zeros(shape), np.ones(shape)
        untouched = np.ones(shape, dtype=np.bool_)
        ends = np.cumsum([size for _, size in keys])
        places = {name: slice(end - size, end) for (name, size), end in zip(keys, ends, strict=True)}
        start = 0
        for name, size in self.keys:
            mean[places[name]] = self.mean[start : start + size]
            variance[places[name]] = self.variance[start : start + size]
            untouched[places[name]] = False
            start += size
        return self._replace(mean=mean, variance=variance, untouched=untouched if untouched.any() else None)

    def misfit(self, shape: tuple[int, ...], keys: tuple[tuple[str, int], ...] = ()) -> str:
        """The reason why `arranged` gave None, as a clause that follows the name of the file."""
        if not self.keys:
            return f"is for observations of shape {self.mean.shape}, not {shape}"
        own, given = (", ".join(f"{name} ({size})" for name, size in parts[:8]) for parts in (self.keys, keys))
        return f"is for observations with the parts {own}, not {given or f'of shape {shape} without parts'}"


def checked_statistics(
    mean: npt.NDArray[np.float64], variance: npt.NDArray[np.float64], epsilon: float, limit: float, source: str
) -> Statistics:
    """Statistics after a check: mean and variance have one shape and are finite, and nothing is divided by zero.

    Raises:
        UserError: they are not.
    """
    if mean.shape != variance.shape:
        raise UserError(f"the mean has shape {mean.shape}, the variance {variance.shape}")
    if not (np.isfinite(mean).all() and np.isfinite(variance).all() and (variance >= 0).all()):
        raise UserError("a mean is not finite, or a variance not finite or negative")
    if not (0 <= epsilon < math.inf and limit > 0) or not ((variance + epsilon) > 0).all():
        raise UserError(f"epsilon {epsilon} and limit {limit} are no such numbers")
    return Statistics(mean, variance, epsilon, limit, source)


def acted(**options: object) -> frozenset[str]:
    """For `ForeignPolicy.used`: the names of those that are neither None nor False."""
    return frozenset(name for name, value in options.items() if value is not None and value is not False)


@dataclass(frozen=True)
class ForeignPolicy:
    """A policy that another tool trained."""

    network: nn.Module
    """Raw observations (B, *shape), uint8 or float32, to (B, K): scaling of pixels is inside, normalization is not."""
    scores: ForeignScores
    algorithm: str
    """As its tool calls it: DQN, QR-DQN, PPO, ..."""
    format: str
    """Such as `Stable-Baselines3 zip`."""
    observation_space: BoxSpace | None
    """None where the file does not say."""
    action_space: BoxSpace | DiscreteSpace | None
    squashed: bool = False
    """Gaussian: whether actions are tanh of the sample, rescaled to the action range (SAC, TQC)."""
    masked: bool = False
    """Whether it was trained with action masks."""
    normalization: Statistics | None = None
    """Statistics to apply before the network, where there are some."""
    normalization_expected: bool = False
    """Whether the file says, or lets suppose, that observations were normalized in training."""
    unknown_statistics: tuple[str, ...] = ()
    """Names of statistics in the file that seem to be of its observations, where it is not known how they are applied."""
    env: str | None = None
    """Environment id, where the file, its folder or its name says one."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Versions, control steps and whatever else the file says; plain JSON data."""
    mismatches: tuple[str, ...] = ()
    """What does not fit by its reader's account, a line each."""
    units_supposed: bool = False
    """Of continuous actions: whether nothing says that they are in the environment's units."""
    used: frozenset[str] = frozenset()
    """Names of the fields of `TeacherOptions` that had an effect while it was read. The loader refuses the others."""
    decided: Mapping[str, str] = field(default_factory=dict)
    """Names of the options that contradict the file, each with what the file says."""

    @property
    def score_kind(self) -> ScoreKind:
        """What its scores are, as policies of rldistill name it."""
        if self.scores == "deterministic":
            return "actions"
        if self.scores == "gaussian":
            return "squashed_gaussian" if self.squashed else "gaussian"
        return self.scores
