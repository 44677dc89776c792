"""The statistics of `VecNormalize` or of Gymnasium's `NormalizeObservation`, out of the pickle that their owner wrote."""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rldistill.teachers.archives import PATH_LENGTH, read_file, shown
from rldistill.teachers.foreign import Statistics
from rldistill.teachers.pickles import MOST_BYTES, STATE_MODULES, Inert, admits_statistics, array, interpret, number
from rldistill.types import UserError

TRUST_HINT = (
    "; what a pickle calls may do anything on this machine. Get the file from somebody you trust, "
    "or run it with --trust-pickle"
)


def read_statistics(path: Path, *, trust_pickle: bool = False) -> Statistics:
    """The observation statistics in a file that `VecNormalize.save` wrote, or in a pickle of `NormalizeObservation`'s `obs_rms`.

    Args:
        path: such as `vecnormalize.pkl`.
        trust_pickle: unpickle it as Python does, running whatever it asks for.

    Raises:
        UserError: the file is missing, damaged, wants to call something, or holds no statistics of observations.
    """
    statistics = read_normalization(path, trust_pickle=trust_pickle)
    if statistics is None:
        raise UserError(
            f"{shown(path, PATH_LENGTH)} says that observations were not normalized (norm_obs=False); leave it out"
        )
    return statistics


def read_normalization(path: Path, *, trust_pickle: bool = False) -> Statistics | None:
    """As `read_statistics`, but None where the file says that only rewards were normalized."""
    data = read_file(path, MOST_BYTES, what="statistics file")
    if trust_pickle:
        root = _unpickled(data, path)
    else:
        root, _ = interpret(data, admits_statistics, source=str(path), hint=TRUST_HINT)
    try:
        return _normalization(root, str(path))
    except UserError as error:
        raise UserError(f"{shown(path, PATH_LENGTH)} holds no statistics that can be used: {error}") from None


def _unpickled(data: bytes, path: Path) -> Any:
    try:
        return _Trusting(io.BytesIO(data)).load()
    except Exception as error:  # it has run a stranger's code, which may raise anything
        raise UserError(
            f"{shown(path, PATH_LENGTH)} cannot be unpickled: {shown(error) or type(error).__name__}"
        ) from None


class _Trusting(pickle.Unpickler):
    """Python's own, except that the classes of Gym and SB3 need not be installed."""

    def find_class(self, module: str, name: str) -> Any:
        if STATE_MODULES.fullmatch(module) and not module.startswith("numpy"):
            return type(name, (_StandIn,), {"origin": f"{module}.{name}"})
        return super().find_class(module, name)


class _StandIn:
    origin = ""
    state: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Whatever is called for."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _normalization(root: Any, source: str) -> Statistics | None:
    name, state = _class_and_state(root)
    if name.endswith("VecNormalize"):
        if state.get("norm_obs", True) is False:
            return None
        moments = state.get("obs_rms")
        if isinstance(moments, dict):
            raise UserError("they are of a dictionary of observations, which is not supported")
        name, inner = _class_and_state(moments)
        epsilon, limit = number(state.get("epsilon", 1e-8)), number(state.get("clip_obs", 10.0))
    else:  # the moments alone: of Stable-Baselines 2, or Gymnasium's; CleanRL clips after these at 10 as VecNormalize does
        inner, epsilon, limit = state, 1e-8, 10.0
    if not name.endswith("RunningMeanStd"):
        raise UserError(f"it holds {shown(name or type(root).__name__, 60)}, no VecNormalize")
    mean, variance = array(inner.get("mean")), array(inner.get("var"))
    if mean.shape != variance.shape:
        raise UserError(f"the mean has shape {mean.shape}, the variance {variance.shape}")
    if not (np.isfinite(mean).all() and np.isfinite(variance).all() and (variance >= 0).all()):
        raise UserError("a mean is not finite, or a variance not finite or negative")
    if not (0 <= epsilon < math.inf and limit > 0) or not ((variance + epsilon) > 0).all():
        raise UserError(f"epsilon {epsilon} and limit {limit} are no such numbers")
    return Statistics(mean, variance, epsilon, limit, source)


def _class_and_state(value: Any) -> tuple[str, Mapping[Any, Any]]:
    if isinstance(value, Inert):
        name, state = value.name, value.state
    elif isinstance(value, _StandIn):
        name, state = value.origin, value.state
    else:
        return "", {}
    if isinstance(state, tuple) and len(state) == 2 and isinstance(state[0], dict):  # with slots
        state = state[0]
    return name, state if isinstance(state, dict) else {}


def attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """Name and value of everything that an object of a pickle has, nothing where it is no object."""
    for name, item in _class_and_state(value)[1].items():
        if isinstance(name, str):
            yield name, item
