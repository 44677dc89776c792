"""Statistics of observations that stand in the policy's own file: taken out of its tensors, and applied.

The formulas of these tools are known from their sources. Statistics of other tools are named, and not applied.

| tool | names | formula |
|---|---|---|
| skrl, `RunningStandardScaler` | `running_mean`, `running_variance`, `current_count` | clip((x - mean) / (std + 1e-8), 5) |
| rsl_rl, `EmpiricalNormalization` | `_mean`, `_var`, `_std`, `count` | (x - mean) / (std + 1e-2) |
| rl_games, `RunningMeanStd` | `running_mean_std.running_mean`, `.running_var`, `.count` | clip((x - mean) / sqrt(var + 1e-5), 5) |
| tianshou, an object `RunningMeanStd` | `mean`, `var`, `eps`, `clip_max` | clip((x - mean) / sqrt(var + eps), clip_max) |
| Gymnasium, Baselines, SB3 | `obs_rms` of `mean` and `var`, or a `RunningMeanStd` | clip((x - mean) / sqrt(var + 1e-8), 10) |
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import inf, prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from rldistill.formats.arrays import plain_array
from rldistill.formats.foreign import Statistics, checked_statistics
from rldistill.formats.pickles import Inert, attributes
from rldistill.types import UserError, printable

_DEPTH = 8
# `running_mean`, `_std`, `obs_var`, `variance`: what stands before the word belongs together.
_ROLE = re.compile(r"(?:(.*?)_)?(mean|var|variance|std|stddev)")
_COUNT = re.compile(r"(?:.*_)?(count|num_samples|steps|n|eps|epsilon|clip)")
_MOMENTS = re.compile(r"(gym|gymnasium|baselines|stable_baselines3?)\.[\w.]*RunningMeanStd")
_OWN_NUMBERS = frozenset({"eps", "epsilon", "clip", "clip_obs", "clip_threshold"})
# Names that no weights have: of what may well act on observations, in a form that is not understood here.
_SUSPECT = re.compile(
    r"norm|normali[sz]\w*|preprocessors?|scalers?|rms|standardi[sz]\w*|zfilter|whiten\w*|mean|var|std|min|max"
)
# Of a dotted name: what normalizes something else than the observations of the part that acts.
_OTHERS = frozenset(
    [
        "value",
        "values",
        "vf",
        "reward",
        "rewards",
        "rew",
        "ret",
        "return",
        "returns",
        "critic",
        "privileged",
        "target",
        "action",
        "actions",
        "adv",
        "advantage",
        "advantages",
        "cost",
        "costs",
    ]
)
_OBSERVATIONS = frozenset({"obs", "ob", "observation", "observations", "state", "states", "input", "inputs"})


class Group(NamedTuple):
    """A mean and a variance that stand side by side."""

    name: str
    """Where they stand, such as `observation_preprocessor`."""
    leaves: frozenset[str]
    """Names of what stands there."""
    mean: npt.NDArray[np.float64]
    deviation: npt.NDArray[np.float64]
    """Standard deviations."""
    kind: str = ""
    """The class of an object, empty for a dictionary."""
    own: tuple[float, float] | None = None
    """Epsilon and limit, where an object has them."""


class Taken(NamedTuple):
    """What a file holds, statistics apart."""

    rest: Any
    """The file's contents without the statistics."""
    groups: tuple[Group, ...]
    suspects: tuple[str, ...]
    """Names of what else may normalize observations."""


def take_statistics(value: Any) -> Taken:
    """Takes every pair of a mean and a variance out of a file's contents.

    Args:
        value: nested dictionaries of tensors, and of arrays and objects as `tensors.files.load_tensors` leaves them.
    """
    groups: list[Group] = []
    rest = _without(value, "", groups, 0)
    return Taken(rest, tuple(groups), tuple(_suspects(rest, "", 0)))


def _without(value: Any, name: str, groups: list[Group], depth: int) -> Any:
    """A copy of nested contents without the statistics, which are added to the groups."""
    if isinstance(value, list | tuple) and type(value) in (list, tuple) and depth < _DEPTH:
        return type(value)(_without(item, name, groups, depth + 1) for item in value)
    if not isinstance(value, Mapping) or depth >= _DEPTH or "optim" in name.lower():
        return value
    kept = {key: item for key, item in value.items() if not _is_object(item, _join(name, key), groups)}
    pairs: dict[tuple[str, str], dict[str, str]] = {}
    leaves_of: dict[str, set[str]] = {}
    for key in kept:
        owner, _, leaf = key.rpartition(".") if isinstance(key, str) else ("", "", "")
        if isinstance(key, str):
            leaves_of.setdefault(owner, set()).add(leaf)
        role = _ROLE.fullmatch(leaf)
        if role:
            pairs.setdefault((owner, role[1] or ""), {})[role[2][:3]] = key
    taken: set[str] = set()
    for (owner, stem), roles in pairs.items():
        before, beside = f"{owner}." if owner else "", leaves_of[owner]
        if {"weight", "bias", "num_batches_tracked"} & beside:  # a layer's own, such as BatchNorm
            continue
        mean = _numbers(kept.get(roles.get("mea")))
        variance, deviation = (_numbers(kept.get(roles.get(role))) for role in ("var", "std"))
        if deviation is None and variance is not None and (variance >= 0).all():
            deviation = np.sqrt(variance)
        if mean is None or deviation is None or mean.shape != deviation.shape or (deviation < 0).any():
            continue
        stem = "" if stem == "running" else stem
        label = f"{owner}.{stem}" if owner and stem else owner or stem
        groups.append(Group(_join(name, label) if label else name, frozenset(beside), mean, deviation))
        own = {*roles.values(), *(f"{before}{leaf}" for leaf in beside if _COUNT.fullmatch(leaf))}
        beside -= {key[len(before) :] for key in own}
        taken |= own
    inner = {key: _without(item, _join(name, key), groups, depth + 1) for key, item in kept.items() if key not in taken}
    emptied = {key for key, item in inner.items() if isinstance(item, Mapping) and not item and value[key]}
    return {key: item for key, item in inner.items() if key not in emptied}


def _is_object(item: Any, name: str, groups: list[Group]) -> bool:
    """Whether it is an object with a mean and a variance. If so, it is added to the groups."""
    if not isinstance(item, Inert):
        return False
    state = attributes(item.state)
    mean, variance = _numbers(state.get("mean")), _numbers(state.get("var"))
    if mean is None or variance is None or mean.shape != variance.shape or not (variance >= 0).all():
        return False
    epsilon, limit = _numbers(state.get("eps")), _numbers(state.get("clip_max"))
    own = (float(epsilon.max()), float(limit.max())) if epsilon is not None and limit is not None else None
    groups.append(Group(name, frozenset(state), mean, np.sqrt(variance), item.name, own))
    return True


def _suspects(value: Any, name: str, depth: int) -> Iterator[str]:
    """What stands beside state dicts, is no weight, and is named like something that normalizes observations."""
    if not isinstance(value, Mapping) or depth >= _DEPTH or "optim" in name.lower():
        return
    if any(isinstance(key, str) and key.endswith(".weight") for key in value):
        return  # every tensor of a state dict acts, or is refused as left over
    for key, item in value.items():
        inner = _join(name, key)
        words = _words(str(key)) if isinstance(key, str) else set()
        numeric = isinstance(item, Mapping | list | tuple | Inert | Tensor) and _holds_numbers(item, 0)
        if numeric and any(map(_SUSPECT.fullmatch, words)) and not _words(inner) & _OTHERS:
            if isinstance(item, Mapping) or words & _OBSERVATIONS:
                yield inner
        else:
            yield from _suspects(item, inner, depth + 1)


def _holds_numbers(value: Any, depth: int) -> bool:
    if isinstance(value, Mapping):
        if any(isinstance(key, str) and key.rpartition(".")[2] == "weight" for key in value):
            return False
        value = list(value.values())
    if isinstance(value, list | tuple):
        plain = len(value) > 1 and all(type(item) in (int, float) for item in value)
        return plain or (depth < _DEPTH and any(_holds_numbers(item, depth + 1) for item in value))
    return isinstance(value, Tensor | Inert)


def _numbers(value: Any) -> npt.NDArray[np.float64] | None:
    if isinstance(value, Tensor):
        return value.detach().double().numpy() if value.is_floating_point() and value.numel() else None
    try:
        array = np.asarray(value if isinstance(value, list) else plain_array(value), dtype=np.float64)
    except (UserError, ValueError, TypeError, OverflowError):
        return None
    return array.copy() if array.size else None  # of the file's bytes, which PyTorch may not share


def _join(name: str, key: object) -> str:
    return f"{name}.{printable(key, 60)}" if name else printable(key, 60)


# --- which of them are the observations'


class Chosen(NamedTuple):
    """What becomes of the statistics in a file."""

    statistics: Statistics | None = None
    """To be applied."""
    unknown: tuple[str, ...] = ()
    """Names of those that look like the observations', and whose formula is not known."""
    notes: tuple[str, ...] = ()


def choose_statistics(taken: Taken, shape: tuple[int, ...], path: Path) -> Chosen:
    """The statistics of the observations of the part that acts.

    Args:
        taken: of `take_statistics`.
        shape: of an observation.
        path: of the file.
    """
    mine = [group for group in taken.groups if not _words(group.name) & _OTHERS]
    if any("observation" in _words(group.name) for group in mine):  # skrl's `state_preprocessor` is the critic's then
        mine = [group for group in mine if _words(group.name) & _OBSERVATIONS <= {"obs", "ob", "observation"}]
    fitting: list[Group] = []
    for group in mine:
        same = any(
            np.array_equal(group.mean.ravel(), other.mean.ravel())
            and np.array_equal(group.deviation.ravel(), other.deviation.ravel())
            for other in fitting
        )
        if group.mean.size == prod(shape) and not same:
            fitting.append(group)
    notes = [
        f"its statistics {printable(group.name or 'mean', 80)} of {group.mean.size} numbers are not of its observations"
        for group in mine
        if group.mean.size != prod(shape) and not _words(group.name) & _OBSERVATIONS
    ]
    odd = [group for group in mine if group.mean.size != prod(shape) and _words(group.name) & _OBSERVATIONS]
    # Which axis of an image comes first is known only where the shape is the same.
    clear = len(fitting) == 1 and (len(shape) == 1 or fitting[0].mean.squeeze().shape == shape)
    formula = _rule(fitting[0]) if clear else None
    if formula is None or taken.suspects:
        return Chosen(None, (*(_title(group) for group in (*fitting, *odd)), *taken.suspects), tuple(notes))
    group = fitting[0]
    tool, outside, inside, limit = formula
    variance = (group.deviation + outside) ** 2
    try:
        checked = checked_statistics(group.mean.reshape(shape), variance.reshape(shape), inside, limit, str(path))
    except UserError as error:
        raise UserError(f"{path}: its statistics {_title(group)} cannot be used: {error}") from None
    bounds = "" if limit == inf else f", clipped at {limit:g}"
    rule = f"its own {_title(group)} (epsilon {outside or inside:g}{bounds}, as {tool} does)"
    return Chosen(checked._replace(rule=rule), (), tuple(notes))


def _title(group: Group) -> str:
    return printable(group.name or "mean and variance", 80)


def _rule(group: Group) -> tuple[str, float, float, float] | None:
    """Tool, the epsilon that is added to the deviation, the one that is added to the variance, and the limit."""
    last = group.name.rpartition(".")[2]
    if group.kind.startswith("tianshou.") and group.own is not None:
        return "tianshou", 0.0, *group.own
    if group.leaves & _OWN_NUMBERS:
        return None  # others than the defaults of any tool
    if {"running_mean", "running_variance", "current_count"} <= group.leaves:
        return "skrl", 1e-8, 0.0, 5.0
    if {"_mean", "_std", "count"} <= group.leaves:
        return "rsl_rl", 1e-2, 0.0, inf
    if last == "running_mean_std" and {"running_mean", "running_var", "count"} <= group.leaves:
        return "rl_games", 0.0, 1e-5, 5.0
    if _MOMENTS.fullmatch(group.kind) or (
        not group.kind
        and re.fullmatch(r"(obs?|observation|state)_(rms|running_mean_std)", last)
        and {"mean", "var"} <= group.leaves
    ):
        return "VecNormalize", 0.0, 1e-8, 10.0
    return None


def _words(name: str) -> set[str]:
    plain = re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
    plain = plain.replace("actor_critic", "").replace("state_dict", "")
    return {word for word in re.split(r"[^a-z]+", plain) if word}
