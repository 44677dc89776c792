"""A loaded policy written in another format, read back, compared and played."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

import numpy as np

import rldistill
from rldistill.files import check_new_file, place_at
from rldistill.formats.c.compiling import compiler
from rldistill.formats.c.numbers import c_policy
from rldistill.formats.c.rendering import render
from rldistill.formats.interface import interface_of
from rldistill.formats.note import note_of
from rldistill.formats.onnx.int8 import to_onnx_int8
from rldistill.formats.onnx.writing import to_onnx
from rldistill.formats.sb3.writing import sb3_actions, to_sb3
from rldistill.formats.torchscript.writing import to_torchscript
from rldistill.machine import check_packages
from rldistill.play.actions import MASKED, greedy
from rldistill.play.timing import decision_microseconds
from rldistill.policies import KeptPolicy, SavedPolicy
from rldistill.progress import Progress
from rldistill.runs.scores import Score
from rldistill.stats import games_in_words, with_interval
from rldistill.students.networks import parameter_count
from rldistill.types import MOST_ENVIRONMENTS, Observations, UserError, check_numbers
from rldistill.verbs.export.checks import (
    BATCH,
    EXACT,
    ROWS,
    Bound,
    Compared,
    Export,
    ExportConfig,
    Format,
    compare,
    dataset_states,
    place_checked,
    played_states,
    refuse_beyond,
)

BOUNDS: dict[Format, Bound] = {
    "onnx": EXACT,
    "onnx-int8": Bound(agreement=0.95),
    "c": EXACT,
    "c-int8": Bound(agreement=0.99),
    "torchscript": EXACT,
    "sb3": EXACT,
}
_ENDINGS: dict[Format, str] = {"c": ".c", "c-int8": ".c", "sb3": ".zip"}
_PACKAGES: dict[Format, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "onnx-int8": ("onnx", "onnxruntime"),
    "sb3": ("stable_baselines3",),
}
_CALIBRATION_EVERY = 8  # control steps: states in a row are nearly the same
_SB3_STATES = 256
_SCORE = ("episodes", "distinct", "mean", "ci_low", "ci_high")


class Checks(NamedTuple):
    """How an export is tried: what reads it back, and what plays it beside its policy."""

    read: Callable[[Path], KeptPolicy]
    score: Callable[[Sequence[KeptPolicy]], list[Score]]
    """Full games of several policies under the conditions of the configuration."""
    teacher: KeptPolicy | None = None
    """For a row of its own in the table."""


def make_export(
    source: SavedPolicy,
    files: Sequence[Path],
    format: Format,
    config: ExportConfig,
    checks: Checks,
    *,
    force: bool = False,
    report: Path | None = None,
    progress: Progress,
) -> Export:
    """Writes the files of one export. They are in their place only when the export passed all checks.

    Args:
        source: the policy.
        files: as `output_files` gives them.
        format: one of `Format`.
        config: see `ExportConfig`.
        checks: how the export is tried.
        force: replace files that exist.
        report: file for `Export.as_dict`.
        progress: notified of each step.

    Raises:
        UserError: as the verb `export`. Nothing is written then.
    """
    target = files[0]
    calibration, states = _states(source, config, progress)
    progress.say(f"writing {format}")
    written, notes = _written(source, target, format, config, calibration)
    notes += [f"{MASKED}, not the action that the file gives"] if source.task.action_masks else []

    def tried(file: Path) -> Export:
        made = checks.read(file)
        compared = compare(source, made, states, config.states, progress)
        refuse_beyond(BOUNDS[format], compared, format)
        if format == "sb3":
            _check_in_sb3(file, source, made, calibration)
        rows = _rows(source, made, compared, format, config, checks)
        return Export(tuple(files), format, _size(made), compared, tuple(notes), tuple(rows))

    return place_checked(files, written, tried, force=force, report=report)


def output_files(target: Path, format: Format, config: ExportConfig, *, force: bool) -> list[Path]:
    """The files that an export writes, checked before anything is played.

    Raises:
        UserError: a wrong configuration, an unknown format, a missing package or compiler, or a file that exists.
    """
    if format not in get_args(Format):
        raise UserError(f"unknown format {format!r}: take one of {', '.join(get_args(Format))}")
    least = {"states": 1, "calibration": 1, "episodes": 0, "seed": 0}
    check_numbers(config, least=least, shares=["epsilon"], within={"num_envs": (1, MOST_ENVIRONMENTS)})
    ending = _ENDINGS.get(format)
    if ending is not None and target.suffix != ending:
        raise UserError(f"a file of the format {format} ends in {ending}, and {target} does not")
    if ending == ".c" and compiler() is None:
        raise UserError(
            "C is compiled and compared before it is written, and there is no compiler here: name one in $CC"
        )
    check_packages(*_PACKAGES.get(format, ()), extra="sb3" if format == "sb3" else "onnx")
    files = [target, target.with_suffix(".h")] if ending == ".c" else [target]
    for file in files:
        check_new_file(file, force=force)
        if place_at(file) == "stream":
            raise UserError(f"{file} is a pipe or a device, and an export is read back: name a file with --out")
    return files


def report_file(path: Path, files: Sequence[Path], *, force: bool) -> Path:
    """Where `Export.as_dict` goes.

    Raises:
        UserError: it is one of the export's own files, or exists.
    """
    if path in files:
        raise UserError(f"--json and --out are both {path}")
    check_new_file(path, force=force, flag="--json")
    return path


def export_table(done: Export) -> list[dict[str, str]]:
    """Rows for `progress.table`, all figures as short text."""
    rows = []
    for row in done.rows:
        score = "-"
        if row["mean"] is not None:
            alike = "" if row["distinct"] == row["episodes"] else f" ({row['distinct']} distinct games)"
            score = with_interval(row["mean"], row["ci_low"], row["ci_high"]) + alike
        rows.append(
            {
                "policy": row["policy"],
                "format": row["format"],
                "bytes": f"{row['bytes']:,}",
                "µs": f"{row['microseconds']:,.0f}",
                "agreement": "-" if row["agreement"] is None else f"{row['agreement']:.4f}",
                "score [95 % CI]": score,
            }
        )
    return rows


def _states(
    policy: SavedPolicy, config: ExportConfig, progress: Progress
) -> tuple[Observations, Iterator[Observations]]:
    """Observations to calibrate on, (B, *obs), and batches to compare on."""
    if config.dataset is None:
        progress.start("calibrate", config.calibration, "states")
        parts, done = [], 0
        rows = 1 if config.num_envs == 1 else ROWS
        for part in played_states(policy, config.calibration, config.seed + 1, every=_CALIBRATION_EVERY, num_envs=rows):
            parts.append(part)
            done += len(part)
            progress.update(done)
        return cast(Observations, np.concatenate(parts)), played_states(
            policy, config.states, config.seed, num_envs=rows
        )
    every = list(dataset_states(config.dataset, policy.task, config.calibration + config.states, config.seed, progress))
    drawn = cast(Observations, np.concatenate(every))
    # A small dataset serves for both.
    rest: Observations = drawn[config.calibration :] if len(drawn) > config.calibration else drawn
    batches = (rest[at : at + BATCH] for at in range(0, len(rest), BATCH))
    return drawn[: config.calibration], batches


def _written(
    policy: SavedPolicy, target: Path, format: Format, config: ExportConfig, calibration: Observations
) -> tuple[dict[str, bytes], list[str]]:
    """The files by name, and notes on what the format does not hold."""
    facts: Mapping[str, Any] = {
        "interface": interface_of(policy.task, policy.network.architecture.reads),
        "made_by": f"rldistill {rldistill.__version__}",
        "network": policy.name,
        "parameters": parameter_count(policy.network),
        "policy_sha256": policy.sha256,
    }
    note = note_of(policy.task, policy.score_kind, facts)
    single: dict[Format, Callable[[], bytes]] = {
        "onnx": lambda: to_onnx(policy, note),
        "onnx-int8": lambda: to_onnx_int8(policy, note, calibration),
        "torchscript": lambda: to_torchscript(policy, note),
    }
    if format in single:
        return {target.name: single[format]()}, []
    if format == "sb3":
        zipped, notes = to_sb3(policy, note, calibration)
        return {target.name: zipped}, notes
    header = target.with_suffix(".h").name
    rendered = c_policy(
        policy.network,
        policy.task,
        prefix=config.prefix,
        header=header,
        calibration=calibration if format == "c-int8" else None,
        facts=facts,
    )
    source, declared = render(rendered)
    return {target.name: source.encode(), header: declared.encode()}, []


def _check_in_sb3(path: Path, policy: SavedPolicy, made: KeptPolicy, observations: Observations) -> None:
    """Raises UserError where Stable-Baselines3 itself plays otherwise than its file read by rldistill."""
    few = observations[:_SB3_STATES]
    theirs, ours = sb3_actions(path, policy, few), greedy(made, few, policy.task)
    if policy.task.continuous:
        same = bool(np.allclose(theirs, ours, atol=1e-4))
    else:
        same = float(np.mean(theirs == ours)) >= EXACT.agreement
    if not same:
        raise UserError("Stable-Baselines3 plays the exported zip otherwise than the policy: nothing was written")


def _rows(
    policy: SavedPolicy, made: KeptPolicy, compared: Compared, format: Format, config: ExportConfig, checks: Checks
) -> list[dict[str, Any]]:
    """One row a policy; raises UserError where the export plays worse."""
    players: list[KeptPolicy] = [policy, made, *([checks.teacher] if checks.teacher is not None else [])]
    scores: list[Score] = []
    if config.episodes:
        scores = checks.score(players)
        if scores[1].ci_high < scores[0].ci_low:
            raise UserError(
                f"the {format} export scores {_score(scores[1])} in {games_in_words(config.episodes, scores[1].distinct)}, "
                f"the policy {_score(scores[0])}: "
                "nothing was written"
            )
    times = [score.microseconds for score in scores] or decision_microseconds(players, compared.last)
    called = [
        (policy.name, "eager torch", len(policy.weights()), 1.0),
        (policy.name, format, _size(made), compared.agreement),
    ]
    rows: list[dict[str, Any]] = []
    for number, microseconds in enumerate(times):
        name, kind, size, agreed = (
            called[number] if number < 2 else ("teacher", players[2].name, len(players[2].weights()), None)
        )
        score = scores[number].as_dict() if scores else dict.fromkeys(_SCORE)
        rows.append(
            {
                "policy": name,
                "format": kind,
                "bytes": size,
                "microseconds": microseconds,
                "agreement": agreed,
                **{name: score[name] for name in _SCORE},
            }
        )
    return rows


def _score(score: Score) -> str:
    return with_interval(score.mean, score.ci_low, score.ci_high)


def _size(made: KeptPolicy) -> int:
    bytes_ = getattr(made.network, "weight_bytes", None)
    return int(bytes_) if bytes_ is not None else len(made.weights())
