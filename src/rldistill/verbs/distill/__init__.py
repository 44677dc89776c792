"""The verb `distill`: a teacher becomes a student. One update, fed by any stream of labelled batches."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from rldistill.arguments import checked_arguments
from rldistill.configurations import changed, flat
from rldistill.datasets.shards import Dataset, load_replay
from rldistill.lessons.exploration import explorer
from rldistill.lessons.streams import Composed, Driven, Driving, Offline, Stream, checked_labels
from rldistill.machine import keep_freed_memory, machine_in_words, usual_torch
from rldistill.play.actions import describe, score_width
from rldistill.play.envs import Environments, cut_in_words, features_of, fitting_task, with_longest_game
from rldistill.play.replay import Replay, mask_column
from rldistill.policies import SavedPolicy, add_provenance, check_finite, load_policy, save_policy
from rldistill.progress import Progress, Silent
from rldistill.runs.folder import RunFolder
from rldistill.runs.loop import Hook, Pace, say_once, work_through
from rldistill.runs.provenance import command_line, made_by
from rldistill.runs.records import Evaluation, TeacherScore
from rldistill.runs.writing import Run, older_defaults
from rldistill.schedules import constant, linear
from rldistill.stats import figure, games_in_words, with_interval
from rldistill.students.losses import WeightedLoss, parse_loss
from rldistill.students.networks import Architecture, Network, build, parameter_count
from rldistill.teachers import ForeignTeacher, TeacherOptions, as_policy, check_all_act, load_fitting
from rldistill.types import ScoreKind, Task, Teacher, UserError, as_tensor, check_boolean, plain_numbers
from rldistill.verbs.distill.config import DistillConfig, checked
from rldistill.verbs.distill.labels import fitting_dataset, stop_or_say
from rldistill.verbs.distill.update import Update
from rldistill.verbs.distill.work import Distilling, Evaluations, Games

__all__ = ["DistillConfig", "Update", "checked", "distill", "make_stream", "suited", "suited_architecture"]


@usual_torch()
@checked_arguments
def distill(
    teacher: str | os.PathLike[str] | Teacher,
    out: str | os.PathLike[str],
    config: DistillConfig | None = None,
    *,
    resume: bool = False,
    options: TeacherOptions | None = None,
    progress: Progress | None = None,
) -> SavedPolicy:
    """Makes a student of a teacher and returns it as it stands in `out/policy`.

    Args:
        teacher: whatever `load_teacher` takes, or in Python anything that is a `Teacher`.
        out: run folder, made here.
        config: see `DistillConfig`.
        resume: go on with the run in `out`; the result is the same as without the interruption.
        options: what a file of another tool does not say.
        progress: shows how it goes.

    Raises:
        UserError: a wrong configuration or input; one line says which and how to mend it.
    """
    check_boolean("resume", resume)
    progress = progress or Silent()
    given = flat(config or DistillConfig())
    config = checked(plain_numbers(config or DistillConfig()))
    keep_freed_memory()
    name = "a policy in memory"
    if isinstance(teacher, str | os.PathLike):
        name = os.fspath(teacher)
        teacher = load_fitting(
            teacher, env=config.playing.env, env_kwargs=config.playing.env_kwargs, options=options, progress=progress
        )
    else:
        check_all_act(options, (), ())
        teacher = as_policy(teacher)
    task = with_longest_game(
        fitting_task(teacher.task, config.playing.env, config.playing.env_kwargs), config.playing.max_episode_steps
    )
    if task.continuous:
        _check_continuous(config, task)
    loss = parse_loss(config.matching.loss, teacher.score_kind, task.action_sizes)
    if config.driving.explore == "boltzmann" and loss.score_kind == "actions":
        raise UserError(
            "--explore boltzmann draws from a Gaussian, and this student gives actions alone: take --explore epsilon, or a teacher "
            "and a loss (kl_gaussian) with deviations"
        )
    architecture = Architecture(
        config.student,
        task.observation_shape,
        score_width(task, loss.score_kind),
        dropout=config.dropout,
        reads=features_of(task, config.student_observation),
    )
    if config.student == "auto":
        architecture = suited_architecture(architecture, teacher)
        config = replace(config, student=architecture.name)
    network = build(architecture, config.seed, loss.score_kind)
    config = suited(config, network, teacher.score_kind)
    network.bfloat16 = (
        network.trains_faster_in_bfloat16 if config.optimization.bfloat16 is None else config.optimization.bfloat16
    )
    resolved = {"verb": "distill", "teacher": name, "task": task.as_dict()} | flat(config)
    for setting in ("checkpoint_seconds", "tensorboard", "env_kwargs"):  # the last are in the task
        del resolved[setting]
    if config.playing.env == teacher.task.env and RunFolder(Path(out)).config().get("env") is None:
        resolved["env"] = None  # it only confirms the teacher's own, which older runs did not have to name
    if isinstance(teacher, ForeignTeacher):
        resolved["teacher_options"] = (options or TeacherOptions()).as_dict()
    # Of what lies under a name now: a resumed run learns from the same, or says so.
    if isinstance(teacher, SavedPolicy | ForeignTeacher):
        resolved["teacher_sha256"] = teacher.sha256
    dataset = None
    if config.dataset is not None:
        dataset, doubts = fitting_dataset(config.dataset, teacher, task, augment=bool(config.batches.augment))
        for doubt in doubts:
            # A run that was begun with it goes on: what is refused today must not end it.
            stop_or_say(doubt, options, progress, begun=resume and Path(out).exists())
        shards = "".join(shard.sha256 for shard in dataset.shards)
        resolved["dataset_sha256"] = hashlib.sha256(shards.encode()).hexdigest()
    if not Path(out).exists():
        _check_teacher(teacher, task)
    defaults = older_defaults(flat(DistillConfig()), given, resolved) | {"teacher_options": TeacherOptions().as_dict()}
    with Run(
        Path(out), resolved, resume=resume, defaults=defaults, removed=_REMOVED, tensorboard=config.keeping.tensorboard
    ) as run:
        made_before = run.result(load_policy, progress.say, games=config.evaluating.evaluate_episodes)
        if made_before is not None:
            scored = run.folder.scored or not config.evaluating.evaluate_episodes
            return made_before if scored else _finished(run, config, progress)
        stream = make_stream(teacher, network, task, config, run.scratch, progress, dataset)
        work = Distilling(stream, _update(network, loss, config, stream.task, teacher.score_kind), config)
        try:
            games = Games(stream.task, config, progress, cache(progress.say), stream.environments)
            evaluations = Evaluations(work, games, run.log)
            if run.state is None:
                _begin(work, teacher, games, run, options)
            else:
                progress.say(f"resuming {run.path}")
                work.load_state_dict(run.state)
                evaluations.load_state_dict(run.state)
            work_through(
                work,
                f"distill {stream.task.env} to {config.student}",
                progress,
                save=lambda: run.checkpoint(work.state_dict() | evaluations.state_dict()),
                log=run.log,
                hooks=[_cut_remark(stream, games.say), evaluations],
                pace=Pace(saving=config.keeping.checkpoint_seconds),
            )
            save_policy(run.policy_path, work.update.average, stream.task, _provenance(work, config, name, teacher))
        finally:
            work.close()
        return _finished(run, config, progress)


_REMOVED = {"preset": ("none", "rusu2015")}
"""Settings of older runs: what a preset stood for is in the others."""


def _update(network: Network, loss: WeightedLoss, config: DistillConfig, task: Task, teacher_kind: ScoreKind) -> Update:
    played = config.steps - min(config.batches.warmup, config.steps)
    updates = max(int(played * config.batches.samples_per_step / config.batches.batch_size), 1)
    return Update(network, loss, config, config.updates or updates, task, teacher_kind)


def _cut_remark(stream: Stream, say: Callable[[str], object]) -> Hook:
    environments = stream.environments
    return say_once(lambda: environments is not None and environments.cut > 0, lambda: cut_in_words(stream.task), say)


def _begin(work: Distilling, teacher: Teacher, games: Games, run: Run, options: TeacherOptions | None) -> None:
    """Logs how the teacher plays, and what is derived from the first examples."""
    level = _level(teacher, games, options)  # before anything is logged: a run that is refused leaves no folder
    run.log(work.fit())
    if level:
        run.log(TeacherScore(**level))


def _level(teacher: Teacher, games: Games, options: TeacherOptions | None) -> dict[str, Any]:
    """The teacher's score, as its folder states it or as it is measured here."""
    own = games.config.playing.env is None and teacher.task.max_episode_steps == games.task.max_episode_steps
    stated = getattr(teacher, "provenance", {}).get("score") if own else None
    if stated:
        names = ("mean", "ci_low", "ci_high", "episodes", "distinct", "epsilon")
        return {name: stated[name] for name in names if name in stated}
    if not games.config.evaluating.evaluate_episodes:
        return {}
    level = games.play(teacher, "score of the teacher")
    if isinstance(teacher, ForeignTeacher):
        _check_level(level, games, options)
    return level


def _check_level(level: dict[str, Any], games: Games, options: TeacherOptions | None) -> None:
    """Stops at a teacher of another tool that plays no better than chance: something of its making is not as it was."""
    random = games.play(None, "score of random play")
    best = random["mean"] if random["ci_high"] is None else random["ci_high"]
    if level["mean"] <= best:
        chance = with_interval(random["mean"], random["ci_low"], random["ci_high"])
        mean = figure(level["mean"], level["ci_low"], level["ci_high"])
        stop_or_say(
            f"the teacher's mean return in {level['episodes']} games is {mean}, that of random play {chance}: are its observations "
            "normalized, scaled, stacked and ordered as in its training?",
            options,
            games.progress,
        )


def _provenance(work: Distilling, config: DistillConfig, name: str, teacher: Teacher) -> dict[str, Any]:
    return {
        "made_by": made_by(),
        "command": command_line(),
        "teacher": name,
        "teacher_made_by": getattr(teacher, "provenance", {}).get("command"),
        "configuration": flat(config),
        "temperature": work.update.temperature,
        **work.position(),
        "evaluation_seconds": round(work.seconds["evaluation"], 2),
        "machine": machine_in_words(),
        "arithmetic": work.update.network.arithmetic,
    }


_POSITION = ("control_steps", "teacher_steps", "student_steps", "updates", "seconds")
"""Names of provenance that are a position in the run too."""


def _finished(run: Run, config: DistillConfig, progress: Progress) -> SavedPolicy:
    """Plays the final games and adds their score to the policy, which is safe by now. Nothing else holds an environment."""
    policy = load_policy(run.policy_path)
    made, score = policy.provenance, "no games were played, so there is no score"
    if config.evaluating.evaluate_episodes:
        began = time.monotonic()
        scores = Games(policy.task, config, progress, progress.say).play(policy, "score of the student")
        seconds = round(made["evaluation_seconds"] + time.monotonic() - began, 2)
        run.log(Evaluation(**{name: made[name] for name in _POSITION}, **scores))
        add_provenance(run.policy_path, {"evaluation_seconds": seconds, "score": scores})
        mean = with_interval(scores["mean"], scores["ci_low"], scores["ci_high"])
        score = f"mean return {mean} over {games_in_words(scores['episodes'], scores['distinct'])}"
    progress.say(
        f"{policy.name}: {parameter_count(policy.network):,} parameters, {score}, {made['seconds']:.0f} s: {run.policy_path}"
    )
    run.clean()
    return load_policy(run.policy_path)


def _check_teacher(teacher: Teacher, task: Task) -> None:
    """Refuses a teacher that is of no use before there is a run folder."""
    if isinstance(teacher, SavedPolicy):
        check_finite(teacher.network.state_dict(), teacher.path)
    environments = Environments(task, 1, seed=0)
    try:
        with torch.no_grad():
            values = teacher(as_tensor(environments.observations))
            checked_labels(values, teacher.score_kind, task, environments.masks)
    finally:
        environments.close()


def _check_continuous(config: DistillConfig, task: Task) -> None:
    """Refuses what is for scores of discrete actions, and would do nothing."""
    given = {
        f"--targets {config.matching.targets}": config.matching.targets != "raw",
        f"--temperature {config.matching.temperature}": config.matching.temperature != "auto",
    }
    for option, is_given in given.items():
        if is_given:
            raise UserError(f"{option} is for scores of discrete actions, not for {describe(task)}")


def suited_architecture(architecture: Architecture, teacher: Teacher) -> Architecture:
    """What `--student auto` stands for: `net2` for images; for vectors the widest of four that has at most a tenth of the teacher's
    parameters, or 2,000 where the teacher is small (or a function, whose size nobody knows)."""
    if len(architecture.observation_shape) == 3:
        return architecture._replace(name="net2")
    size = parameter_count(teacher.network) if isinstance(teacher, SavedPolicy | ForeignTeacher) else 0
    room = max(size // 10, 2_000)
    students = [architecture._replace(name=f"mlp:{width},{width}") for width in (64, 32, 24, 16)]
    return next((student for student in students if parameter_count(build(student, 0)) <= room), students[-1])


def suited(config: DistillConfig, network: Network, teacher_kind: ScoreKind) -> DistillConfig:
    """Where the user says nothing, what suits student and teacher: composites, weight decay and the optimizer.

    Students of images see few of the states there are and are helped where they have not been by composites and decay; one of
    10,062 parameters learnt to lose with composites on Pong. Students of vectors see enough, and both keep them from following
    their teacher closely. Logits are matched as they are, every action's, and what limits a student of images is then how soon it
    fits them; of Q-values little but the best action counts.
    """
    image = len(network.architecture.observation_shape) == 3
    if config.optimization.optimizer == "auto":
        config = changed(config, optimizer="muon" if image and teacher_kind == "logits" else "adam")
    suiting: dict[str, Any] = {
        "augment": 0.5 if image and parameter_count(network) >= 30_000 else 0.0,
        "weight_decay": 0.1 if image else 0.0,
    }
    now = flat(config)
    return changed(config, **{name: value for name, value in suiting.items() if now[name] is None})


def make_stream(
    teacher: Teacher,
    network: Network,
    task: Task,
    config: DistillConfig,
    scratch: Path,
    progress: Progress,
    dataset: Dataset | None = None,
) -> Stream:
    """What a run learns from: the dataset, if there is one, else what teacher and student play; with composites."""
    stream = _visited(teacher, network, task, config, scratch, progress, dataset)
    if not config.batches.augment:
        return stream
    return Composed(stream, teacher, config.batches.augment, np.random.default_rng([config.seed, 4]))


def _visited(
    teacher: Teacher,
    network: Network,
    task: Task,
    config: DistillConfig,
    scratch: Path,
    progress: Progress,
    dataset: Dataset | None,
) -> Stream:
    generator = np.random.default_rng([config.seed, 3])
    if dataset is not None:
        replay, times = load_replay(dataset, progress=progress)
        updates = cast(int, config.updates)
        task = replace(task, action_masks=task.action_masks or dataset.task.action_masks)
        return Offline(task, replay, times, batch_size=config.batches.batch_size, updates=updates, generator=generator)
    share = {
        "teacher": constant(1.0),
        "student": constant(0.0),
        "mixture": _falling_share(config),
    }[config.driving.driver]
    batches, num_envs = config.batches, config.driving.num_envs
    driving = Driving(
        share, config.driving.teacher_epsilon, batches.warmup, batches.batch_size, batches.samples_per_step
    )
    # Room between two checkpoints: a run whose steps all fit never overwrites a thing. The last item ends beyond its steps.
    room = min(max(batches.replay // 20, 100 * num_envs), config.steps - batches.replay)
    item = num_envs * driving.times_an_item(num_envs)
    exploring = linear(config.driving.epsilon, 0.0, config.steps)
    environments = Environments(task, num_envs, config.seed)
    driven = Driven(
        environments,
        teacher,
        explorer(network, task, config.driving.explore, lambda: exploring(driven.control_steps), generator),
        Replay(
            task,
            config.driving.num_envs,
            config.batches.replay,
            {"values": ((score_width(task, teacher.score_kind),), np.float32), **mask_column(environments.task)},
            scratch=scratch,
            slack=room + item,
        ),
        driving,
        generator,
    )
    return driven


def _falling_share(config: DistillConfig) -> Callable[[int], float]:
    falling = linear(1.0, config.driving.teacher_share, config.driving.share_steps or 0)
    # Until the first update the student knows nothing.
    return lambda step: falling(max(step - config.batches.warmup, 0))
