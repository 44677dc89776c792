"""The statistics of `VecNormalize` or of Gymnasium's `NormalizeObservation`, out of the pickle that their owner wrote.

Those of other tools go into a JSON file of `mean`, `std` and `clip`: an observation becomes clip((x - mean) / std).
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rldistill.documents import parse_json
from rldistill.formats.archives import read_file
from rldistill.formats.arrays import MOST_PICKLE_BYTES, STATE_MODULES, admits_statistics, array, number
from rldistill.formats.foreign import Statistics, checked_statistics
from rldistill.formats.pickles import Inert, attributes, interpret
from rldistill.types import UserError, printable

_MOST_PARTS = 1024
TRUST_HINT = (
    "; what a pickle calls may do anything on this machine. Get the file from somebody you trust, "
    "or run it with --trust-pickle"
)


def read_statistics(path: Path, *, trust_pickle: bool = False) -> Statistics:
    """The observation statistics in a file that `VecNormalize.save` wrote, or in a pickle of `NormalizeObservation`'s `obs_rms`.

    Args:
        path: such as `vecnormalize.pkl`, or a JSON file of `mean`, `std` and `clip`.
        trust_pickle: unpickle it as Python does, running whatever it asks for.

    Raises:
        UserError: the file is missing, damaged, wants to call something, or holds no statistics of observations.
    """
    statistics = read_normalization(path, trust_pickle=trust_pickle)
    if statistics is None:
        raise UserError(f"{path} says that observations were not normalized (norm_obs=False); leave it out")
    return statistics


def read_normalization(path: Path, *, trust_pickle: bool = False) -> Statistics | None:
    """As `read_statistics`, but None where the file says that only rewards were normalized."""
    data = read_file(path, MOST_PICKLE_BYTES, what="statistics file")
    if data[:1] == b"{":
        return _of_json(data, path)
    if trust_pickle:
        root = _unpickled(data, path)
    else:
        root, _ = interpret(data, admits_statistics, source=str(path), hint=TRUST_HINT)
    try:
        return _normalization(root, str(path))
    except UserError as error:
        raise UserError(f"{path} holds no statistics that can be used: {error}") from None


def _unpickled(data: bytes, path: Path) -> Any:
    try:
        return _Trusting(io.BytesIO(data)).load()
    except Exception as error:  # it has run a stranger's code, which may raise anything
        raise UserError(f"{path} cannot be unpickled: {printable(error) or type(error).__name__}") from None


class _Trusting(pickle.Unpickler):
    """Python's unpickler, for which the classes of Gym and SB3 need not be installed."""

    def find_class(self, module: str, name: str) -> Any:
        if STATE_MODULES.fullmatch(module) and not module.startswith("numpy"):
            return type(name, (_StandIn,), {"origin": f"{module}.{name}"})
        return super().find_class(module, name)


class _StandIn:
    origin = ""
    state: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes whatever arguments the pickle gives."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _normalization(root: Any, source: str) -> Statistics | None:
    name, state = _class_and_state(root)
    if name.endswith("VecNormalize"):
        if state.get("norm_obs", True) is False:
            return None
        moments = state.get("obs_rms")
        epsilon, limit = number(state.get("epsilon", 1e-8)), number(state.get("clip_obs", 10.0))
        if isinstance(moments, dict):
            return _of_parts(moments, state.get("norm_obs_keys"), epsilon, limit, source)
    else:  # the moments alone: of Stable-Baselines 2, or Gymnasium's; CleanRL clips after these at 10 as VecNormalize does
        moments, epsilon, limit = root, 1e-8, 10.0
    mean, variance = _moments(moments)
    return checked_statistics(mean, variance, epsilon, limit, source)


def _of_parts(parts: Mapping[Any, Any], names: Any, epsilon: float, limit: float, source: str) -> Statistics:
    """The statistics of a dictionary of observations: the parts' numbers one after the other."""
    wanted = list(parts) if names is None else names
    if not isinstance(wanted, list | tuple) or not 1 <= len(wanted) <= _MOST_PARTS:
        raise UserError("they are of a dictionary of observations without parts")
    means, variances, keys = [], [], []
    for name in wanted:
        if not isinstance(name, str) or name not in parts:
            raise UserError(f"they lack the moments of the part {printable(name, 40)!r}")
        mean, variance = _moments(parts[name])
        checked_statistics(mean, variance, epsilon, limit, source)
        means.append(mean.ravel())
        variances.append(variance.ravel())
        keys.append((name, mean.size))
    return Statistics(np.concatenate(means), np.concatenate(variances), epsilon, limit, source, tuple(keys))


def _moments(value: Any) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and variance of a RunningMeanStd."""
    name, state = _class_and_state(value)
    if not name.endswith("RunningMeanStd"):
        raise UserError(f"it holds {printable(name or type(value).__name__, 60)}, no VecNormalize")
    return array(state.get("mean")), array(state.get("var"))


def _of_json(data: bytes, path: Path) -> Statistics:
    """Statistics that a user wrote down: `{"mean": [...], "std": [...], "clip": 10}`, `clip` null or absent for none."""
    title = str(path)
    try:
        content = parse_json(data, "it")
        if not isinstance(content, dict) or not {"mean", "std"} <= set(content) <= {"mean", "std", "clip"}:
            raise UserError("it should have mean, std and clip (null for none)")
        mean, deviation = (np.asarray(content[name], dtype=np.float64) for name in ("mean", "std"))
        limit = math.inf if content.get("clip") is None else float(content["clip"])
        return checked_statistics(mean, np.where(deviation > 0, deviation**2, np.nan), 0.0, limit, str(path))
    except UserError as error:
        raise UserError(f"{title} holds no statistics that can be used: {error}") from None
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"{title} holds no statistics that can be used: {printable(error, 120)}") from None


def _class_and_state(value: Any) -> tuple[str, Mapping[str, Any]]:
    if isinstance(value, Inert):
        return value.name, attributes(value.state)
    return (value.origin, attributes(value.state)) if isinstance(value, _StandIn) else ("", {})
