"""A policy of several tasks written as one file, read back, compared and played head by head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

import rldistill
from rldistill.files import read_regular
from rldistill.formats.c.compiling import CHeads
from rldistill.formats.c.heads import FIRST_LINE, render_heads
from rldistill.formats.heads import heads_note, observation_shape
from rldistill.formats.note import MEMBER, TASKS_FORMAT
from rldistill.formats.onnx.contents import metadata_of
from rldistill.formats.onnx.heads import heads_to_onnx
from rldistill.play.timing import decision_microseconds
from rldistill.policies import KeptPolicy, MultiTaskPolicy, SavedPolicy
from rldistill.progress import Progress
from rldistill.runs.scores import Score
from rldistill.stats import with_interval
from rldistill.students.networks import parameter_count
from rldistill.types import ScoreKind, Task, UserError
from rldistill.verbs.export.checks import (
    EXACT,
    ROWS,
    Compared,
    Export,
    ExportConfig,
    Format,
    compare,
    place_checked,
    played_states,
    refuse_beyond,
)

_SCORE = ("episodes", "distinct", "mean", "ci_low", "ci_high")
CallHeads: TypeAlias = Callable[[Tensor, int], Tensor]
"""Observations (B, *obs) of one task and its index to scores (B, K), with what stands behind the task's own."""


@dataclass(frozen=True)
class _ExportedHead:
    """One task of a file that was read back. It is a `KeptPolicy`."""

    call: CallHeads
    index: int
    own: SavedPolicy
    """The head that it was made of."""
    file: bytes
    path: Path | None = None
    sha256: str = ""

    @property
    def task(self) -> Task:
        return self.own.task

    @property
    def score_kind(self) -> ScoreKind:
        return self.own.score_kind

    @property
    def network(self) -> nn.Module:
        return nn.Module()

    @property
    def name(self) -> str:
        return f"{self.own.name}, exported"

    @property
    def provenance(self) -> Mapping[str, Any]:
        return {"parameters": parameter_count(self.own.network)}

    def weights(self) -> bytes:
        return self.file

    def __call__(self, observations: Tensor) -> Tensor:
        return self.call(observations, self.index)[:, : self.own.network.architecture.num_scores]


def make_heads_export(
    source: MultiTaskPolicy,
    files: Sequence[Path],
    format: Format,
    config: ExportConfig,
    play: Callable[[Sequence[KeptPolicy]], list[Score]],
    *,
    force: bool,
    report: Path | None,
    progress: Progress,
) -> Export:
    """Writes all heads as one file. It is in its place only when every head passed the checks.

    Args:
        source: the policy.
        files: as `output_files` gives them.
        format: `onnx` or `c`.
        config: see `ExportConfig`.
        play: full games of several policies, for their scores.
        force: replace files that exist.
        report: file for `Export.as_dict`.
        progress: notified of each step.

    Raises:
        UserError: as the verb `export`. Nothing is written then.
    """
    place = source.path or "REF"
    if format not in ("onnx", "c"):
        raise UserError(
            f"{format} holds one task: export a head, {place}#{next(iter(source.tasks))}, or all of them to onnx or c"
        )
    if config.dataset is not None:
        raise UserError("--dataset is of one task: leave it out, and every head plays for its states")
    facts = {
        "made_by": f"rldistill {rldistill.__version__}",
        "network": source.name,
        "parameters": parameter_count(source.network),
        "policy_sha256": source.sha256,
    }
    progress.say(f"writing {format}")
    note, target = heads_note(source, facts), files[0]
    if format == "onnx":
        written = {target.name: heads_to_onnx(source, note)}
    else:
        texts = render_heads(source, note, prefix=config.prefix, header=files[1].name)
        written = {file.name: text.encode() for file, text in zip(files, texts, strict=True)}

    def tried(file: Path) -> Export:
        call = _onnx_heads(file, source) if format == "onnx" else _c_heads(file, config.prefix, source)
        size = sum(map(len, written.values())) if format == "onnx" else 4 * parameter_count(source.network)
        compared, rows = [], []
        for index, task in enumerate(source.tasks):
            made = _ExportedHead(call, index, source.view(task), written[target.name])
            differences, own = _try_head(task, made, format, size, config, play, progress)
            compared.append(differences)
            rows += own
        return Export(tuple(files), format, size, _together(compared), tuple(_notes(source)), tuple(rows))

    return place_checked(files, written, tried, force=force, report=report)


def _try_head(
    name: str,
    made: _ExportedHead,
    format: Format,
    size: int,
    config: ExportConfig,
    play: Callable[[Sequence[KeptPolicy]], list[Score]],
    progress: Progress,
) -> tuple[Compared, list[dict[str, Any]]]:
    """How one head of the file differs from the policy's, and the rows of both; raises UserError beyond the bounds."""
    rows = 1 if config.num_envs == 1 else ROWS
    states = played_states(made.own, config.states, config.seed, num_envs=rows)
    compared = compare(made.own, made, states, config.states, progress)
    refuse_beyond(EXACT, compared, f"{name} in the {format}")
    scores = play([made.own, made]) if config.episodes else []
    if scores and scores[1].ci_high < scores[0].ci_low:
        own, other = (with_interval(score.mean, score.ci_low, score.ci_high) for score in scores)
        raise UserError(f"{name} in the {format} export scores {other}, the policy {own}: nothing was written")
    times = [score.microseconds for score in scores] or decision_microseconds([made.own, made], compared.last)
    figures = [score.as_dict() for score in scores] or [dict.fromkeys(_SCORE)] * 2
    described = [("eager torch", len(made.own.weights()), 1.0), (format, size, compared.agreement)]
    return compared, [
        {
            "policy": f"{made.own.name}#{name}",
            "format": kind,
            "bytes": length,
            "microseconds": microseconds,
            "agreement": agreement,
            **{field: own[field] for field in _SCORE},
        }
        for (kind, length, agreement), microseconds, own in zip(described, times, figures, strict=True)
    ]


def _together(heads: Sequence[Compared]) -> Compared:
    """The worst of all heads."""
    worst = max(heads, key=lambda head: head.difference / head.range if head.range else 0.0)
    return Compared(
        sum(head.states for head in heads),
        worst.difference,
        worst.range,
        min(head.agreement for head in heads),
        heads[-1].last,
    )


def _notes(source: MultiTaskPolicy) -> list[str]:
    table = ", ".join(f"{index} {name}" for index, name in enumerate(source.tasks))
    return [f"the input task is an index: {table}"]


def _onnx_heads(file: Path, source: MultiTaskPolicy) -> CallHeads:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(read_regular(file), options, providers=["CPUExecutionProvider"])
    shape = observation_shape(source)

    def call(observations: Tensor, index: int) -> Tensor:
        x = observations.numpy()
        padded = np.zeros((len(x), *shape), dtype=x.dtype)
        padded[:, : x.shape[1]] = x
        given = {"observation": padded, "task": np.full(len(x), index, dtype=np.int64)}
        return torch.from_numpy(session.run(["scores"], given)[0])

    return call


def _c_heads(file: Path, prefix: str, source: MultiTaskPolicy) -> CallHeads:
    header = file.with_suffix(".h")
    source_text, header_text = (read_regular(path).decode() for path in (file, header))
    return CHeads(source_text, header_text, header.name, prefix, source, str(file))


def holds_heads(file: Path) -> bool:
    """Whether a file is one that `make_heads_export` wrote."""
    start = read_regular(file, 1 << 16)
    if start.startswith(FIRST_LINE.encode()):
        return True
    if file.suffix != ".onnx":
        return False
    text = metadata_of(read_regular(file), file).get(Path(MEMBER).stem)
    return text is not None and f'"{TASKS_FORMAT}"' in text
