"""The verb `export`: a policy as a file for where there is no rldistill, checked before it is there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rldistill.arguments import checked_arguments
from rldistill.machine import usual_torch
from rldistill.play.envs import confirm
from rldistill.policies import KeptPolicy, MultiTaskPolicy, SavedPolicy
from rldistill.progress import Progress, Silent
from rldistill.runs.scores import Score
from rldistill.teachers import load_own, load_policy, load_several, teacher_beside
from rldistill.types import check_boolean
from rldistill.verbs.export.checks import Export, ExportConfig, Format
from rldistill.verbs.export.heads import make_heads_export
from rldistill.verbs.export.making import BOUNDS, Checks, export_table, make_export, output_files, report_file
from rldistill.verbs.scoring import Conditions, score_loaded

__all__ = ["BOUNDS", "Export", "ExportConfig", "Format", "export", "export_table"]


@usual_torch()
@checked_arguments
def export(
    policy: str | os.PathLike[str] | SavedPolicy | MultiTaskPolicy,
    out: str | os.PathLike[str],
    format: Format,
    config: ExportConfig | None = None,
    *,
    force: bool = False,
    json: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Export:
    """Writes a policy in another format, reads it back, compares it and plays with it; only then is the file there.

    Args:
        policy: a policy or run folder, or a loaded one. Of a policy of several tasks ONNX and C hold all heads, with the task
            as an input; `FOLDER#TASK` is one head.
        out: the file; of C it ends in `.c`, and the header stands beside it; of Stable-Baselines3 it ends in `.zip`.
        format: `onnx`, `onnx-int8`, `c`, `c-int8`, `torchscript` or `sb3`.
        config: see `ExportConfig`.
        force: replace files that exist.
        json: file for `Export.as_dict`.
        progress: notified of each step.

    Raises:
        UserError: a wrong configuration or format, a file that exists, a policy that the format cannot hold, a dataset of another
            task, or a missing package (the message names the extra). Also an export that differs from the policy by more than
            the bound of its format, or a disk that is full. Nothing is written then.
    """
    check_boolean("force", force)
    config, progress = config or ExportConfig(), progress or Silent()
    files = output_files(Path(out), format, config, force=force)
    report = None if json is None else report_file(Path(json), files, force=force)
    games = Conditions(config.episodes, config.epsilon, config.seed, config.num_envs)

    def play(players: Sequence[KeptPolicy]) -> list[Score]:
        return score_loaded(players, games, progress)

    whole = load_several(policy)
    if whole is not None:
        return make_heads_export(whole, files, format, config, play, force=force, report=report, progress=progress)
    assert not isinstance(policy, MultiTaskPolicy)
    source = load_own(policy, verb="export")
    confirm(config.env, source.task)
    named = source.provenance.get("teacher")
    teacher = teacher_beside(named, like=source.task, chosen=config.teacher, say=progress.say)
    checks = Checks(load_policy, play, teacher)
    return make_export(source, files, format, config, checks, force=force, report=report, progress=progress)
