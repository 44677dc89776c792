"""Scores of policies: what they say, their file, and their table."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from json import dumps
from pathlib import Path
from typing import Any, NamedTuple

from rldistill.documents import read_any_json
from rldistill.files import place_at, replace_file
from rldistill.stats import above, figure, games_in_words, with_interval
from rldistill.types import Task, UserError

_KINDS: dict[str, Any] = {
    "str": str,
    "int": int,
    "float": int | float,
    "bool": bool,
    "list[float]": list,
    "dict[str, Any]": dict,
    "int | None": int | None,
    "dict[str, Any] | None": dict | None,
}
"""Of a score's fields, as JSON has them."""


@dataclass(frozen=True)
class Score:
    """The games of one policy. The first policy of a table is the reference of ratio, normalized score and agreement."""

    policy: str
    """Its place as it was given."""
    network: str
    parameters: int
    parameter_share: float
    """Of the first policy's."""
    bytes: int
    """Of `weights.safetensors`, or of the file of another tool."""
    weights_sha256: str
    task: dict[str, Any]
    """The task of the games, with every option."""
    epsilon: float
    seed: int
    episodes: int
    returns: list[float]
    """Raw return of each game, (episodes,)."""
    mean: float
    iqm: float
    """Mean of the middle half of the returns."""
    ci_low: float
    ci_high: float
    """95 % bootstrap interval of the mean over distinct games; NaN both where all games are the same one."""
    random_score: float
    """Mean return of uniformly random play: the task's, or measured here over as many games."""
    random_measured: bool
    ratio: float
    """Mean by the first policy's mean, the paper's measure. It means something for positive scores; NaN by zero."""
    ratio_low: float
    ratio_high: float
    """95 % bootstrap interval, both policies' games resampled; NaN where it has no bounds."""
    normalized: float
    """(mean - random) / (first mean - random); NaN where the first policy plays exactly as random play does."""
    normalized_low: float
    normalized_high: float
    agreement: float
    """Share of the states met while this policy plays at which its best action is the first policy's best action; of
    continuous actions 1 less their mean distance, as a share of the range."""
    microseconds: float
    """Median time of a decision, observation to action, at batch 1 on one thread."""
    distinct: int | None = None
    """How many of the games differ in their observations, actions or rewards; None in files of before it was counted."""
    starts: dict[str, Any] | None = None
    """The file that holds where the games began (`file`, `number`, `sha256`), the returns counted from there; None where they
    began at resets of the environment."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON data, None for NaN. Without starts it has no field for them, as in older files."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
            if name != "starts" or value is not None
        }

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Score:
        """The inverse of `as_dict`.

        Raises:
            UserError: a field is missing, unknown, or none of its kind.
        """
        given: dict[str, Any] = {
            name: math.nan if value is None and name not in ("distinct", "starts") else value
            for name, value in data.items()
        }
        try:
            score = Score(**given)
        except TypeError as error:
            raise UserError(f"a score lacks a field or has an unknown one ({error}); evaluate again") from None
        for field in fields(Score):
            if not isinstance(given.get(field.name), _KINDS[str(field.type)]):
                raise UserError(f"a score's {field.name} is {str(given.get(field.name))[:40]!r}; evaluate again")
        if not score.returns or not all(
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            for value in score.returns
        ):
            raise UserError("a score's returns are no list of numbers; evaluate again")
        if score.starts is not None and not _are_starts(score.starts):
            raise UserError("a score's starts lack a file, a number or a checksum; evaluate again")
        try:
            Task.from_dict(score.task)
        except UserError as error:
            raise UserError(f"a score's task is damaged: {error}; evaluate again") from None
        return score


def _are_starts(card: Mapping[str, Any]) -> bool:
    kinds = {"file": str, "number": int, "sha256": str}
    return set(card) == set(kinds) and all(isinstance(card[name], kind) for name, kind in kinds.items())


class MultiTaskScore(NamedTuple):
    """A student of several tasks against a teacher of each: geometric means over the tasks, with 95 % bootstrap intervals.

    In an interval the games of the teachers are resampled too. NaN where a mean has no value, see
    `stats.geometric_mean_of_ratios`.
    """

    policy: str
    parameters: int
    """Of all heads and what they share."""
    bytes: int
    tasks: int
    """How many tasks have a teacher in the table, and count."""
    ratio: float
    """Of the student's means by the teachers' means, the paper's measure."""
    ratio_low: float
    ratio_high: float
    normalized: float
    """Of the normalized scores."""
    normalized_low: float
    normalized_high: float

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON data, None for NaN."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in self._asdict().items()
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> MultiTaskScore:
        """The inverse of `as_dict`.

        Raises:
            UserError: a field is missing, unknown, or none of its kind.
        """
        kinds: dict[str, Any] = {"policy": str, "parameters": int, "bytes": int, "tasks": int}
        given: dict[str, Any] = {name: math.nan if value is None else value for name, value in data.items()}
        if set(data) != set(MultiTaskScore._fields) or not all(
            isinstance(value, kinds.get(name, int | float)) for name, value in given.items()
        ):
            raise UserError("a geometric mean lacks a field, or has one that is unknown or wrong; evaluate again")
        return MultiTaskScore(**given)


class Scores(list[Score]):
    """The scores of a table, task after task, and those of its students of several tasks over all tasks."""

    def __init__(self, scores: Iterable[Score], across_tasks: Iterable[MultiTaskScore] = ()) -> None:
        super().__init__(scores)
        self.across_tasks = tuple(across_tasks)


def by_task(scores: Sequence[Score]) -> list[list[Score]]:
    """The scores of each task and its starts, in their order; the first score is what the others are compared with."""
    return [list(group) for _, group in groupby(scores, key=lambda score: (score.task, score.starts))]


def write_scores(path: Path, scores: Sequence[Score]) -> None:
    """The scores as a JSON list, replaced in one step; with geometric means over tasks an object that holds both.

    Raises:
        UserError: it cannot be written.
    """
    data: Any = [score.as_dict() for score in scores]
    if isinstance(scores, Scores) and scores.across_tasks:
        data = {"scores": data, "across_tasks": [mean.as_dict() for mean in scores.across_tasks]}
    replace_file(path, dumps(data, indent=2, allow_nan=False).encode() + b"\n")


def read_scores(path: Path) -> Scores:
    """The inverse of `write_scores`.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    data, means = read_any_json(path), []
    if isinstance(data, dict) and set(data) == {"scores", "across_tasks"}:
        data, means = data["scores"], data["across_tasks"]
    if not _is_table(data) or not data or not _is_table(means):
        raise UserError(f"{path} holds no list of scores")
    return Scores(map(Score.from_dict, data), map(MultiTaskScore.from_dict, means))


def _is_table(data: Any) -> bool:
    return isinstance(data, list) and all(isinstance(item, dict) for item in data)


def remarks(scores: Sequence[Score]) -> list[str]:
    """What a reader of the scores must know, one line each.

    Of each task: the score of random play, who is not above it, and whose games are the same ones. Of students of several tasks:
    the geometric means.
    """
    tasks = by_task(scores)
    lines = []
    for group in tasks:
        start = f"{_label(group[0], scores)}: " if len(tasks) > 1 else ""
        lines += [start + line for line in _remarks(group)]
    return lines + [in_words(mean) for mean in (scores.across_tasks if isinstance(scores, Scores) else ())]


def sentences(scores: Sequence[Score]) -> list[str]:
    """The remarks as sentences for a page. Names at their beginning are not changed."""
    ours = ("random play ", "games begin ")
    return [f"{line[0].upper() + line[1:] if line.startswith(ours) else line}." for line in remarks(scores)]


def _remarks(scores: Sequence[Score]) -> list[str]:
    first = scores[0]
    how = f"measured over {first.episodes:,} games" if first.random_measured else "as published"
    lines = []
    if first.starts is not None:
        file, number, checksum = (first.starts[name] for name in ("file", "number", "sha256"))
        lines.append(
            f"games begin at the {number} starts of {file} (sha256 {checksum[:12]}), and returns count from there"
        )
    lines += [f"random play scores {figure(first.random_score)} ({how})"]
    for score in scores:
        if not above(score.mean, score.ci_low, score.random_score):
            lines.append(
                f"{score.policy} is not above random play: {with_interval(score.mean, score.ci_low, score.ci_high)} against "
                f"{figure(score.random_score, score.ci_low, score.ci_high)}"
            )
        if score.distinct is not None and score.distinct < score.episodes:
            counts = "its interval counts those alone" if score.distinct > 1 else "so there is no interval"
            lines.append(
                f"{score.policy} played {games_in_words(score.episodes, score.distinct)}, {counts}: --epsilon 0.05, sticky "
                "actions or an environment with more starts make games differ"
            )
    return lines


def in_words(mean: MultiTaskScore) -> str:
    """The score of a student of several tasks as a sentence."""
    ratio = f"{_figure(mean.ratio)}{_interval(mean.ratio_low, mean.ratio_high)}"
    normalized = f"{_figure(mean.normalized)}{_interval(mean.normalized_low, mean.normalized_high)}"
    tasks = f"{mean.tasks} task" + "s" * (mean.tasks != 1)
    return (
        f"{mean.policy} ({mean.parameters:,} parameters): over {tasks} the geometric mean of the ratios to the teachers "
        f"is {ratio}, that of the normalized scores {normalized}"
    )


def score_table(scores: Sequence[Score]) -> list[dict[str, str]]:
    """Rows for `progress.table`: one a policy and task, all figures as short text, `-` where a figure means nothing."""
    tasks = len({str(score.task) for score in scores})
    started = any(score.starts is not None for score in scores)
    return [
        {"policy": score.policy}
        | ({"task": str(score.task["env"])} if tasks > 1 else {})
        | ({"starts": _starts_in_words(score)} if started else {})
        | _row(score, group[0])
        for group in by_task(scores)
        for score in group
    ]


def _starts_in_words(score: Score) -> str:
    return "its own" if score.starts is None else f"{score.starts['number']} of {Path(score.starts['file']).name}"


def _label(score: Score, scores: Sequence[Score]) -> str:
    """What tells a score's table from the others: its task, and where one task is played from several starts, those."""
    env = str(score.task["env"])
    alike = {str(other.starts) for other in scores if other.task == score.task}
    return f"{env} from {_starts_in_words(score).replace('its own', 'its own starts')}" if len(alike) > 1 else env


def _row(score: Score, first: Score) -> dict[str, str]:
    # A ratio to a mean that is not positive turns better into worse.
    ratio = score.ratio if first.mean > 0 else math.nan
    normalized = _figure(score.normalized) + _interval(score.normalized_low, score.normalized_high)
    return {
        "policy": score.policy,
        "network": score.network,
        "parameters": f"{score.parameters:,}" if score.parameters else "-",
        "share": f"{100 * score.parameter_share:.3g} %" if math.isfinite(score.parameter_share) else "-",
        "KiB": f"{score.bytes / 1024:,.0f}" if score.bytes else "-",
        "games": str(score.episodes)
        if score.distinct in (None, score.episodes)
        else f"{score.episodes} ({score.distinct} distinct)",
        "mean [95 % CI]": with_interval(score.mean, score.ci_low, score.ci_high),
        "IQM": figure(score.iqm, score.ci_low, score.ci_high),
        "ratio": _figure(ratio),
        "normalized [95 % CI]": normalized,
        "agreement": f"{score.agreement:.3f}",
        "µs": f"{score.microseconds:,.0f}",
    }


def scores_file(path: Path) -> Path:
    """The path of a file for scores, checked before games are played.

    Raises:
        UserError: there is no such folder, it cannot be written to, or the file holds something else.
    """
    place, folder = place_at(path), Path(os.path.realpath(path)).parent
    if place == "stream":
        return path
    if not folder.is_dir():
        raise UserError(f"cannot write {path}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise UserError(f"cannot write {path}: nothing may be written to {folder}")
    if place == "folder":
        raise UserError(f"{path} is a folder: name a file with --json")
    if place == "file":
        try:
            read_scores(path)
        except UserError:
            raise UserError(f"{path} exists and holds no scores: choose another --json") from None
    return path


def _figure(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"


def _interval(low: float, high: float) -> str:
    return f" [{low:.2f}, {high:.2f}]" if math.isfinite(low) else ""
