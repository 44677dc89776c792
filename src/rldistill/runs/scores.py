"""Scores of policies: what they say, their file, and their table."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from json import dumps
from pathlib import Path
from typing import Any

from rldistill.documents import read_any_json
from rldistill.files import place_at, replace_file
from rldistill.stats import above, figure, games_in_words, with_interval
from rldistill.types import Task, UserError

_KINDS: dict[str, Any] = {
    "str": str, "int": int, "float": int | float, "bool": bool, "list[float]": list, "dict[str, Any]": dict,
    "int | None": int | None,
}  # fmt: skip
"""Of a score's fields, as JSON has them."""


@dataclass(frozen=True)
class Score:
    """What one policy did. The first policy of a table is the reference of ratio, normalized score and agreement."""

    policy: str
    """The folder as it was given."""
    network: str
    parameters: int
    parameter_share: float
    """Of the first policy's."""
    bytes: int
    """Of `weights.safetensors`, or of the file of another tool."""
    weights_sha256: str
    task: dict[str, Any]
    """What was played, with every option."""
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

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON data, None for NaN."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Score:
        """The inverse of `as_dict`.

        Raises:
            UserError: a field is missing, unknown, or none of its kind.
        """
        given: dict[str, Any] = {
            name: math.nan if value is None and name != "distinct" else value for name, value in data.items()
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
        try:
            Task.from_dict(score.task)
        except UserError as error:
            raise UserError(f"a score's task is damaged: {error}; evaluate again") from None
        return score


def write_scores(path: Path, scores: Sequence[Score]) -> None:
    """The scores as a JSON list, replaced in one step.

    Raises:
        UserError: it cannot be written.
    """
    replace_file(path, dumps([score.as_dict() for score in scores], indent=2, allow_nan=False).encode() + b"\n")


def read_scores(path: Path) -> list[Score]:
    """The inverse of `write_scores`.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    data = read_any_json(path)
    if not isinstance(data, list) or not data or not all(isinstance(item, dict) for item in data):
        raise UserError(f"{path} holds no list of scores")
    return [Score.from_dict(item) for item in data]


def remarks(scores: Sequence[Score]) -> list[str]:
    """What a reader of the scores must know, a line each: what random play scores, who is not above it, and whose games are the
    same ones."""
    first = scores[0]
    how = f"measured over {first.episodes:,} games" if first.random_measured else "as published"
    lines = [f"random play scores {figure(first.random_score)} ({how})"]
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


def score_table(scores: Sequence[Score]) -> list[dict[str, str]]:
    """Rows for `progress.table`: one a policy, all figures as short text, `-` where a figure means nothing."""
    rows = []
    for score in scores:
        # A ratio to a mean that is not positive turns better into worse.
        ratio = score.ratio if scores[0].mean > 0 else math.nan
        normalized = _figure(score.normalized) + _interval(score.normalized_low, score.normalized_high)
        rows.append(
            {
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
        )
    return rows


def scores_file(path: Path) -> Path:
    """The path, if scores may be written there: told before the games are played, not after.

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
