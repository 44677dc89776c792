"""Statistics of observations that lie beside a policy: pickles that are recognized by their first bytes, not their names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rldistill.files import open_regular
from rldistill.formats.foreign import ForeignPolicy, Statistics
from rldistill.formats.options import TeacherOptions
from rldistill.formats.statistics import read_normalization, read_statistics
from rldistill.types import Task, UserError, printable

_START = 512
"""Bytes at the beginning of a pickle that hold the name of its class."""
_MOST_FILES = 4096
_POLICY_ENDINGS = (".zip", ".cleanrl_model", ".onnx", ".safetensors", ".pth", ".pt", ".bin")
# Words of file names that say what a file holds, not whose it is.
_WORDS = frozenset(
    [
        "vec",
        "normalize",
        "normalized",
        "vecnormalize",
        "vecnorm",
        "norm",
        "normalization",
        "normalizer",
        "stats",
        "obs",
        "statistics",
        "rms",
        "env",
        "envs",
        "running",
        "mean",
        "std",
        "pkl",
        "model",
        "policy",
        "agent",
        "zip",
        "weights",
        "checkpoint",
        "ckpt",
        "data",
    ]
)


class Shape(NamedTuple):
    """Of the observations that statistics are to fit."""

    shape: tuple[int, ...]
    keys: tuple[tuple[str, int], ...] = ()


class Beside(NamedTuple):
    """Statistics that lie beside a policy."""

    statistics: Statistics | None = None
    normalized: bool | None = None
    """False where a file says that observations were not normalized, None where nothing says anything."""
    notes: tuple[str, ...] = ()


def statistics_files(folders: Iterable[Path]) -> Iterator[Path]:
    """Pickles of `VecNormalize`, or of the moments of `NormalizeObservation`, by their first bytes; nothing is unpickled."""
    for folder in folders:
        try:
            files = sorted(folder.iterdir())[:_MOST_FILES] if folder.is_dir() else []
        except OSError:
            continue
        yield from (file for file in files if _holds_statistics(file))


def find_beside(
    path: Path,
    observations: Shape,
    *,
    folders: Sequence[Path] = (),
    normalized: bool | None = None,
    refutes: Callable[[Statistics], bool] = lambda _: False,
    trust_pickle: bool = False,
) -> Beside:
    """The statistics that belong to a policy, by their places, names and shapes.

    Args:
        path: of the policy. Its folder is searched; a file there may be another policy's.
        observations: that the statistics are to fit.
        folders: of the policy alone, searched as well.
        normalized: whether the policy itself says that its observations were normalized; None where it does not say.
        refutes: whether the policy's own last observations show that it was not trained with these statistics.
        trust_pickle: as of `read_normalization`.

    Raises:
        UserError: the policy's own statistics cannot be used or contradict it, or several files may be its own.
    """
    notes: list[str] = []
    owners = {file: _owner(file, path) for file in statistics_files([path.parent]) if file != path}
    own = [*statistics_files(folders), *(file for file, owner in owners.items() if owner == path.name)]
    choices = []
    for file in own:
        statistics = read_normalization(file, trust_pickle=trust_pickle)
        arranged = None if statistics is None else statistics.arranged(*observations)
        if statistics is not None and arranged is None:
            raise UserError(
                f"{file} lies beside the teacher, but {statistics.misfit(*observations)} "
                "(--normalization names the right one)"
            )
        choices.append((file, arranged))
    for file, owner in owners.items():
        if own or owner == path.name:
            continue
        title = f"{printable(file.name)} beside it"
        if owner is not None or normalized is False:
            why = (
                "says of itself that its observations were not normalized"
                if owner is None
                else f"is not {printable(owner)}"
            )
            if fits(file, observations):
                notes.append(f"{title} is not used, for this policy {why} (--normalization uses it)")
            continue
        statistics = read_normalization(file, trust_pickle=trust_pickle)
        arranged = None if statistics is None else statistics.arranged(*observations)
        if statistics is not None and arranged is None:
            notes.append(f"{title} {statistics.misfit(*observations)}; it is another policy's")
        elif arranged is not None and refutes(arranged):
            notes.append(f"{title} is not used, for the policy's last observations were not normalized with it")
        else:
            choices.append((file, arranged))
    return _chosen(path, _distinct(choices), normalized, notes)


def fits(file: Path, observations: Shape) -> bool:
    """Whether a file holds statistics for such observations; False too where it cannot be read. Nothing in it is trusted."""
    try:
        statistics = read_normalization(file)
    except UserError:
        return False
    return statistics is not None and statistics.arranged(*observations) is not None


def statistics_above(path: Path, observations: Shape, *, refutes: Callable[[Statistics], bool]) -> list[str]:
    """A line for each file of statistics one folder up, as where `EvalCallback` keeps its best model in a folder by itself.

    Args:
        path: of a policy that has no statistics.
        observations: that the statistics are to fit.
        refutes: as of `find_beside`.
    """
    lines = []
    for file in statistics_files([path.parent / ".."]):
        if not fits(file, observations):
            continue
        statistics = read_normalization(file)
        arranged = None if statistics is None else statistics.arranged(*observations)
        if arranged is not None and not refutes(arranged):
            lines.append(
                f"{file}, one folder up, holds statistics of such observations: name it with "
                "--normalization where it is this policy's"
            )
    return lines


def folders_in(folder: Path | None) -> list[Path]:
    """The folders inside a model's folder, where the zoo keeps statistics."""
    return [] if folder is None else sorted(inner for inner in folder.iterdir() if inner.is_dir())


def with_statistics(
    foreign: ForeignPolicy, path: Path, folder: Path | None, task: Task, options: TeacherOptions
) -> tuple[ForeignPolicy, list[str]]:
    """A policy with the statistics that are named or lie beside it, and notes on them.

    Args:
        foreign: of another format than Stable-Baselines3's, whose reader finds statistics itself.
        path: of its file.
        folder: the model's folder, where that was named. All that lies there is the policy's; what lies beside a file is
            only mentioned.
        task: that it plays.
        options: may name statistics, which go before those of the file itself.

    Raises:
        UserError: as of `read_statistics` and `find_beside`.
    """
    wanted = Shape(task.observation_shape, task.observation_keys)
    if options.normalization is not None:
        statistics = read_statistics(options.normalization, trust_pickle=options.trust_pickle)
        own = None if foreign.normalization is None else foreign.normalization.rule
        notes = [] if own is None else [f"{printable(options.normalization.name)} takes the place of {own}"]
        return replace(
            foreign,
            normalization=statistics.arranged(*wanted) or statistics,
            used=foreign.used | {"normalization"},
        ), notes
    if foreign.normalization is not None:
        return foreign, [f"observations are normalized with {foreign.normalization.rule}"]
    if folder is not None:
        beside = find_beside(path, wanted, folders=folders_in(folder), trust_pickle=options.trust_pickle)
        return replace(foreign, normalization=beside.statistics), list(beside.notes)
    return foreign, [
        f"{printable(file.name)} beside it holds statistics of observations; --normalization uses them"
        for file in statistics_files([path.parent])
        if fits(file, wanted)
    ]


def _distinct(choices: Sequence[tuple[Path, Statistics | None]]) -> list[tuple[Path, Statistics | None]]:
    """The choices without those whose contents occur twice."""
    kept: list[tuple[Path, Statistics | None]] = []
    for file, statistics in choices:
        if not any(_same(statistics, other) for _, other in kept):
            kept.append((file, statistics))
    return kept


def _chosen(
    path: Path, choices: Sequence[tuple[Path, Statistics | None]], normalized: bool | None, notes: list[str]
) -> Beside:
    if not choices:
        return Beside(None, None, tuple(notes))
    if len(choices) > 1:
        names = ", ".join(printable(file.name) for file, _ in choices[:5])
        raise UserError(
            f"several statistics of observations lie beside {path} ({names}): name its own with --normalization"
        )
    file, statistics = choices[0]
    if statistics is None:
        notes.append(f"{printable(file.name)} says that observations were not normalized")
        return Beside(None, False, tuple(notes))
    if normalized is False:
        raise UserError(
            f"{path} says that its observations were not normalized, and {printable(file.name)} lies "
            "beside it: name the statistics with --normalization, or move them elsewhere"
        )
    notes.append(f"observations are normalized with {printable(file.name)}, which lies beside it")
    return Beside(statistics, True, tuple(notes))


def _same(one: Statistics | None, other: Statistics | None) -> bool:
    if one is None or other is None:
        return one is other
    return (
        one.epsilon == other.epsilon
        and one.limit == other.limit
        and np.array_equal(one.mean, other.mean)
        and np.array_equal(one.variance, other.variance)
    )


def _holds_statistics(file: Path) -> bool:
    try:
        if not file.is_file() or file.name.startswith("."):
            return False
        with open_regular(file) as opened:
            start = opened.read(_START)
    except OSError:
        return False
    if re.search(r"vec_?norm", file.name, re.IGNORECASE) and file.suffix in (".pkl", ".pickle"):
        return True  # a damaged one is one still: its reader says so
    return start[:1] == b"\x80" and re.search(rb"VecNorm|NormalizeObservation|RunningMeanStd", start) is not None


def _owner(file: Path, path: Path) -> str | None:
    """The name of the policy in the same folder to which a file of statistics belongs by its name; None where it may be any's."""
    try:
        policies = sorted(other.name for other in path.parent.iterdir() if other.name.endswith(_POLICY_ENDINGS))
    except OSError:
        policies = []
    policies = sorted({path.name, *policies}, key=lambda name: -len(name))
    for name in policies:  # the longest first: ppo-big.zip before ppo.zip
        if re.match(rf"{re.escape(_stem(name))}[^A-Za-z0-9]", file.name):
            return name
    words = _own_words(file.name)
    same = [name for name in policies if words and _own_words(name) == words]
    return path.name if path.name in same else same[0] if same else None


def _stem(name: str) -> str:
    return name[: name.rindex(".")] if "." in name[1:] else name


def _own_words(name: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9]+", _stem(name).lower())) - _WORDS
