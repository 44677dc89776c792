"""The verb `record`: a teacher plays, and what it sees and says becomes a dataset folder."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rldistill.arguments import checked_arguments
from rldistill.datasets.shards import (
    CARD,
    Dataset,
    empty_dataset,
    open_dataset,
    same_teacher,
    sweep_halves,
    unlike_fields,
    write_card,
)
from rldistill.datasets.writing import DatasetWriter
from rldistill.holding import held_folder
from rldistill.lessons.labels import checked_labels
from rldistill.machine import keep_freed_memory, usual_torch
from rldistill.play.actions import score_width
from rldistill.play.envs import Environments, cut_in_words, fitting_task, with_longest_game
from rldistill.play.rollout import EpsilonGreedy, rollout
from rldistill.progress import Progress, Silent
from rldistill.runs.loop import Pace, work_through
from rldistill.runs.provenance import command_line, made_by
from rldistill.runs.records import Record
from rldistill.teachers import TeacherOptions, as_policy, card_of, check_all_act, load_fitting
from rldistill.types import (
    ScoreKind,
    Task,
    Teacher,
    UserError,
    as_tensor,
    check_boolean,
    plain_numbers,
)
from rldistill.verbs.record.config import RecordConfig, check_config

__all__ = ["RecordConfig", "record"]


@usual_torch()
@checked_arguments
def record(
    teacher: str | os.PathLike[str] | Teacher,
    out: str | os.PathLike[str],
    config: RecordConfig | None = None,
    *,
    append: bool = False,
    options: TeacherOptions | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Lets the teacher play, epsilon-greedily, and writes what it saw and its scores; returns the dataset.

    Ctrl-C keeps what was played, and so does an environment or a teacher that fails. A killed process loses the shard in the
    making, no more.

    Args:
        teacher: whatever `load_teacher` takes, or in Python anything that is a `Teacher`.
        out: dataset folder, made here.
        config: see `RecordConfig`.
        append: add to the dataset in `out`, if there is one.
        options: what a file of another tool does not say.
        progress: shows how it goes.

    Raises:
        UserError: a wrong configuration, `out` exists and `append` is not set, the dataset there has another task,
            teacher or kind of scores (the message names the field), or the teacher's values hold NaN or infinity.
        KeyboardInterrupt: Ctrl-C, after what was played is safe.
    """
    check_boolean("append", append)
    config, progress = plain_numbers(config or RecordConfig()), progress or Silent()
    check_config(config)
    path = Path(out)
    taken = f"{path} exists: add to it with --append, or choose another --out"
    if not append and (path.exists() or path.is_symlink()):
        raise UserError(taken)
    keep_freed_memory()
    name = None
    if isinstance(teacher, str | os.PathLike):
        name = os.fspath(teacher)
        teacher = load_fitting(
            teacher, env=config.env, env_kwargs=config.env_kwargs, options=options, progress=progress
        )
    else:
        check_all_act(options, (), ())
        teacher = as_policy(teacher)
    with held_folder(path, taken=None if append else taken):
        dataset = _written(path, teacher, card_of(teacher, name), config, progress)
    size = sum(shard.bytes for shard in dataset.shards)
    progress.say(f"{dataset.control_steps:,} control steps, {size / 1e6:.1f} MB: {path}")
    return dataset


def _written(
    path: Path, teacher: Teacher, teacher_card: dict[str, Any], config: RecordConfig, progress: Progress
) -> Dataset:
    """The dataset, with what is recorded now; this process holds its folder."""
    before = _dataset_in(path)
    there = before.control_steps if before else 0
    # Episodes follow from the seed, so what is appended needs another one; it follows from how much is there.
    seed = config.seed if there == 0 else int(np.random.SeedSequence([config.seed, there]).generate_state(1)[0])
    num_envs = min(config.num_envs, config.steps)
    task = with_longest_game(fitting_task(teacher.task, config.env, config.env_kwargs), config.max_episode_steps)
    environments = Environments(task, num_envs, seed)
    try:
        labels = _Remembered(teacher, environments)
        task = environments.task
        if before is not None:
            _check_same(before, task, teacher.score_kind, teacher_card)
        labels(as_tensor(environments.observations))  # a teacher that is of no use leaves nothing behind
        dataset = before or empty_dataset(path, task, teacher.score_kind, teacher_card)
        shard_steps = min(config.shard_steps, config.steps + num_envs)  # the last step of all rows may go beyond
        recording = _card(config, seed, num_envs, len(dataset.shards))
        writer = DatasetWriter(dataset.with_recording(recording), num_envs, shard_steps)
        if before is None:
            write_card(dataset)
        driver = EpsilonGreedy(labels, task, config.epsilon, np.random.default_rng([seed, 1]))
        try:
            _play(Recording(environments, driver, labels, writer, config.steps), progress)
        except BaseException:
            if before is None and not writer.dataset.shards:  # nothing was played: the name can be given again
                (path / CARD).unlink(missing_ok=True)
            raise
        finally:
            if environments.cut:
                progress.say(cut_in_words(task))
        return writer.dataset
    finally:
        environments.close()


def _card(config: RecordConfig, environments_seed: int, num_envs: int, first_shard: int) -> dict[str, Any]:
    """How the steps of this call are made, for the dataset's card."""
    return {
        "driver": "teacher",
        "epsilon": config.epsilon,
        "seed": config.seed,
        "environments_seed": environments_seed,
        "num_envs": num_envs,
        "first_shard": first_shard,
        "made_by": made_by(),
        "command": command_line(),
    }


def _dataset_in(path: Path) -> Dataset | None:
    """The dataset in a folder that this process holds, without half files of killed ones; None in an empty folder."""
    sweep_halves(path)
    return open_dataset(path) if any(path.iterdir()) else None


class _Remembered:
    """A teacher whose last values are kept: it is asked once a step, for the action and for the label."""

    def __init__(self, teacher: Teacher, environments: Environments) -> None:
        self.teacher, self.environments = teacher, environments
        self.values = np.empty((0, score_width(environments.task, teacher.score_kind)), dtype=np.float32)

    @property
    def score_kind(self) -> ScoreKind:
        return self.teacher.score_kind

    def __call__(self, observations: Tensor) -> Tensor:
        with torch.no_grad():
            task, masks = self.environments.task, self.environments.masks
            values = checked_labels(self.teacher(observations), self.score_kind, task, masks)
        self.values = values.numpy()
        return values


class Recording:
    """Play that is written down: an item is one control step of all environments.

    Args:
        environments: stepped here.
        driver: acts.
        labels: have the teacher's values of the step.
        writer: takes each step.
        steps: control steps to record.
    """

    unit = "steps"
    must_save = False

    def __init__(
        self, environments: Environments, driver: EpsilonGreedy, labels: _Remembered, writer: DatasetWriter, steps: int
    ) -> None:
        self.environments, self.labels, self.writer = environments, labels, writer
        self.total, self.done = steps, 0
        self.between_steps = True
        """Whether the writer has the last step as a whole."""
        self._before = writer.dataset.control_steps
        self._recent: deque[float] = deque(maxlen=100)
        self._steps = rollout(environments, driver)

    @property
    def kept(self) -> int:
        """Control steps that are safe in the dataset."""
        return self.writer.dataset.control_steps - self._before

    def advance(self) -> Sequence[Record]:
        """One control step; nothing is logged."""
        step = next(self._steps)
        keep = min(self.total - self.done, self.environments.num_envs)
        self.between_steps = False
        self.writer.add(
            step.observations,
            step.starts,
            step.actions,
            step.rewards,
            step.terminated,
            step.truncated,
            self.labels.values,
            step.masks,
            keep=keep,
        )
        self.between_steps = True
        self.done += keep
        self._recent.extend(step.returns[~np.isnan(step.returns)].tolist())
        return ()

    def figures(self) -> dict[str, float]:
        """Mean return of the last 100 games."""
        return {"score": float(np.mean(self._recent))} if self._recent else {}


def _play(work: Recording, progress: Progress) -> None:
    """Records to the end. Whatever ends it earlier, what was played is kept."""
    try:
        title = f"record {work.environments.task.env}"
        work_through(work, title, progress, save=work.writer.flush, pace=Pace(showing=0.0))
    except BaseException as error:  # of the environment, of the teacher, or Ctrl-C
        if isinstance(error, KeyboardInterrupt) and work.done == work.total:
            work.writer.flush()
            return
        if work.between_steps:
            with suppress(UserError):  # a full disk: the first error is the one to report
                work.writer.flush()
        if work.kept:
            rest = f"go on with --append --steps {work.total - work.kept}"
            progress.say(f"stopped: {work.kept:,} steps are safe in {work.writer.dataset.path}; {rest}")
        raise


def _check_same(dataset: Dataset, task: Task, score_kind: ScoreKind, teacher: dict[str, Any]) -> None:
    """Raises UserError where appending would mix two datasets."""
    differing = list(unlike_fields(task, score_kind, dataset))
    if not same_teacher(dataset.card["teacher"], teacher):
        before, now = (item.get("sha256") or item.get("kind") for item in (dataset.card["teacher"], teacher))
        differing.append(("teacher", before, now))
    for name, before, now in differing:
        advice = "append the same, or choose another --out"
        raise UserError(f"{dataset.path} was recorded with {name} = {before}, not {now}: {advice}")
