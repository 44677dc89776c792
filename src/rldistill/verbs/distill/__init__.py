"""The verb `distill`: teachers become a student, which is fitted to a stream of their lessons."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, overload

from rldistill.arguments import checked_arguments
from rldistill.configurations import flat
from rldistill.datasets.shards import Dataset
from rldistill.lessons.following import FollowingStream
from rldistill.lessons.labels import labels_of
from rldistill.lessons.teaching import Teaching
from rldistill.machine import keep_freed_memory, machine_in_words, usual_torch
from rldistill.play.envs import Environments, cut_in_words, fitting_task, with_longest_game
from rldistill.policies import MultiTaskPolicy, SavedPolicy, add_provenance, check_finite, load_heads, save_policy
from rldistill.progress import Progress, Silent
from rldistill.runs.curves import curves_of
from rldistill.runs.folder import RunFolder
from rldistill.runs.loop import Hook, Pace, say_once, work_through
from rldistill.runs.provenance import command_line, made_by
from rldistill.runs.records import Evaluation
from rldistill.runs.writing import Run, older_defaults
from rldistill.stats import games_in_words, with_interval
from rldistill.students.fitting import answering
from rldistill.students.heads import MultiTaskNetwork
from rldistill.students.networks import Network, parameter_count
from rldistill.teachers import (
    ForeignTeacher,
    TeacherOptions,
    as_policy,
    card_of,
    check_all_act,
    load_fitting,
    without_noise,
)
from rldistill.types import Task, Teacher, UserError, check_boolean, plain_numbers
from rldistill.verbs.distill.config import DistillConfig, checked
from rldistill.verbs.distill.dataset import fitting_dataset
from rldistill.verbs.distill.online import (
    LearnerEvaluations,
    Online,
    check_learnt,
    make_online,
    steadiness_card,
    steadiness_in_words,
)
from rldistill.verbs.distill.selection import PanelSelector, check_selecting, seated
from rldistill.verbs.distill.streams import make_online_stream, make_stream, within_memory
from rldistill.verbs.distill.teaching import check_tasks, make_student, teaching_of
from rldistill.verbs.distill.work import Distillation, Evaluations, GamesOfRun

__all__ = ["DistillConfig", "checked", "distill"]

Reference = str | os.PathLike[str] | Teacher


@overload
def distill(
    teacher: Reference,
    out: str | os.PathLike[str],
    config: DistillConfig | None = None,
    *,
    resume: bool = False,
    options: TeacherOptions | None = None,
    progress: Progress | None = None,
) -> SavedPolicy: ...


@overload
def distill(
    teacher: Sequence[Reference],
    out: str | os.PathLike[str],
    config: DistillConfig | None = None,
    *,
    resume: bool = False,
    options: TeacherOptions | None = None,
    progress: Progress | None = None,
) -> SavedPolicy | MultiTaskPolicy: ...


@usual_torch()
@checked_arguments
def distill(
    teacher: Reference | Sequence[Reference],
    out: str | os.PathLike[str],
    config: DistillConfig | None = None,
    *,
    resume: bool = False,
    options: TeacherOptions | None = None,
    progress: Progress | None = None,
) -> SavedPolicy | MultiTaskPolicy:
    """Makes a student of a teacher, or of the teachers of several tasks, and returns it as it stands in `out/policy`.

    Args:
        teacher: whatever `load_teacher` takes, or in Python anything that is a `Teacher`; or a sequence of such, of different
            tasks: the student then has a head for each (Rusu et al. 2015, arXiv 1511.06295, section 3). With `learner` in the
            configuration it is empty.
        out: run folder, made here.
        config: see `DistillConfig`.
        resume: go on with the run in `out`; the result is the same as without the interruption.
        options: what files of other tools do not say.
        progress: shows how it goes.

    Raises:
        UserError: a wrong configuration or input; one line says which and how to mend it.
    """
    check_boolean("resume", resume)
    progress = progress or Silent()
    config = plain_numbers(config or DistillConfig())
    given, config = flat(config), checked(config)
    config = check_selecting(config)
    keep_freed_memory()
    online, config = _online(teacher, config, progress)
    teachings = _load_teachings(teacher, config, options, progress) if online is None else [online.teaching]
    _check_schedule(config, len(teachings), RunFolder(Path(out)))
    student, config = make_student(teachings, within_memory(config, teachings))
    resolved = _resolved(teachings, config, options, out)
    dataset = None
    if config.dataset is not None:
        dataset = _dataset(teachings, config, options, progress, begun=resume and Path(out).exists())
        resolved["dataset_sha256"] = dataset.sha256
    if not Path(out).exists():
        for teaching in teachings:
            _check_teacher(teaching)
    with _run(out, config, given, resolved, resume=resume) as run:
        made_before = run.result(load_heads, progress.say, games=config.evaluating.evaluate_episodes)
        if made_before is not None:
            scored = run.folder.scored or not config.evaluating.evaluate_episodes
            if not scored:
                return _finished(run, config, progress)
            check_learnt(curves_of(run.folder.records()[0]), run.policy_path)
            return made_before
        following: FollowingStream | None = None
        if online is None:
            stream = make_stream(teachings, student, config, run.scratch, progress, dataset, PanelSelector(config))
        else:
            own = answering(student, teachings[0].lesson)
            stream, following = make_online_stream(*online, own, config, run.scratch, progress.say)
        work = Distillation(teachings, student, stream, config, following)
        try:
            _learn(work, following, teachings, run, options, progress)
        finally:
            work.close()
        for record in work.trust():
            run.log(record)
        tasks = {lesson.head: lesson.task for lesson in work.lessons}
        _keep(work, teachings, tasks, run)
        return _finished(run, config, progress)


def _online(teacher: Any, config: DistillConfig, progress: Progress) -> tuple[Online | None, DistillConfig]:
    """The learner that is followed, None where there are teachers, and the configuration with the length of its run."""
    if config.following.learner is None:
        return None, config
    if not isinstance(teacher, Sequence) or len(teacher) > 0:
        raise UserError("--learner stands in the place of --teacher: name one of the two")
    return make_online(config, progress.say)


def _load_teachings(
    teacher: Any, config: DistillConfig, options: TeacherOptions | None, progress: Progress
) -> list[Teaching]:
    """The lesson of each teacher."""
    references = list(teacher) if isinstance(teacher, Sequence) and not isinstance(teacher, str) else [teacher]
    if not references:
        raise UserError(
            "there is no teacher: name one with --teacher, or one for each of several tasks, or follow a --learner"
        )
    several = len(references) > 1
    if several and config.selecting.select is None:
        _check_for_several(config)
    teachings = [_load_teaching(reference, config, options, progress, alone=not several) for reference in references]
    check_all_act(options, [teaching.teacher for teaching in teachings], [teaching.source for teaching in teachings])
    teachings = seated(teachings, config)
    if len(teachings) > 1:
        _check_for_several(config)
    check_tasks(teachings)
    return teachings


def _check_for_several(config: DistillConfig) -> None:
    """Refuses what is about a single task."""
    of_one = {
        "--env": config.playing.env,
        "--dataset": config.dataset,
        "--student-observation": config.student_observation,
    }
    of_one["--env-kwargs"] = config.playing.env_kwargs
    for flag, value in of_one.items():
        if value:
            raise UserError(f"{flag} is for one teacher; each of several plays its own task, as its file says")


def _check_schedule(config: DistillConfig, number: int, folder: RunFolder) -> None:
    """Refuses a schedule by progress where nothing measures progress, or where a resumed run would measure otherwise what chooses
    its lessons or its teacher.

    Args:
        config: of the run.
        number: of teachers.
        folder: of the run. Once it has a policy, only the final games are left, and they choose no lesson.
    """
    if folder.policy_path.exists():
        return
    if config.following.learner is not None:
        return _check_measured_alike(config, folder, "its teacher")
    if config.schedule_lessons != "progress":
        return
    if number == 1:
        raise UserError("--schedule-lessons progress is for several teachers: with one there is nothing to choose")
    evaluating = config.evaluating
    every = config.steps // 5 if evaluating.evaluate_every is None else evaluating.evaluate_every
    if not evaluating.evaluate_episodes or not 0 < every < config.steps:
        raise UserError(
            "--schedule-lessons progress follows the run's own evaluations: take --evaluate-episodes 1 or more, and "
            f"--evaluate-every from 1 to {config.steps - 1}"
        )
    _check_measured_alike(config, folder, "the lessons")


def _check_measured_alike(config: DistillConfig, folder: RunFolder, chosen: str) -> None:
    """Refuses other evaluations than those that a run was begun with, where they choose something."""
    before = folder.config()
    for name, now in asdict(config.evaluating).items():
        if before.get(name, now) != now:
            raise UserError(
                f"{folder.path} was begun with {name} = {json.dumps(before[name])}, not {json.dumps(now)}: its evaluations choose "
                f"{chosen}, so resume with the same configuration, or choose another --out"
            )


def _load_teaching(
    reference: Any, config: DistillConfig, options: TeacherOptions | None, progress: Progress, *, alone: bool
) -> Teaching:
    playing, source = config.playing, "a policy in memory"
    if isinstance(reference, str | os.PathLike):
        source = os.fspath(reference)
        teacher: Teacher = load_fitting(
            reference,
            env=playing.env,
            env_kwargs=playing.env_kwargs,
            options=options,
            alone=alone,
            progress=progress,
        )
    else:
        teacher = as_policy(reference)
    task = with_longest_game(fitting_task(teacher.task, playing.env, playing.env_kwargs), playing.max_episode_steps)
    return teaching_of(teacher, source, task, config)


def _resolved(
    teachings: Sequence[Teaching],
    config: DistillConfig,
    options: TeacherOptions | None,
    out: str | os.PathLike[str],
) -> dict[str, Any]:
    """The configuration as it stands in the run folder; of several teachers a list of each."""
    teachers = [teacher for teaching in teachings for teacher in teaching.teachers]
    tasks = [teaching.task.as_dict() for teaching in teachings]
    # Of what lies under a name now: a resumed run learns from the same, or says so.
    checksums = [[getattr(teacher, "sha256", None) for teacher in teaching.teachers] for teaching in teachings]
    several = len(teachers) > 1
    resolved = {
        "verb": "distill",
        "teacher": _by_task([teaching.sources for teaching in teachings]),
        "task": _by_task([[task] for task in tasks]),
        **flat(config),
    }
    for setting in ("checkpoint_seconds", "tensorboard", "env_kwargs"):  # the last are in the task
        del resolved[setting]
    if not several:
        own = teachers[0].task.env
        if config.playing.env == own and RunFolder(Path(out)).config().get("env") is None:
            resolved["env"] = None  # it only confirms the teacher's own, which older runs did not have to name
    if any(isinstance(without_noise(teaching.teacher), ForeignTeacher) for teaching in teachings):
        resolved["teacher_options"] = (options or TeacherOptions()).as_dict()
    if several or checksums[0][0] is not None:
        resolved["teacher_sha256"] = _by_task(checksums)
    return resolved


def _by_task(values: Sequence[Sequence[Any]]) -> Any:
    """What is written down of values of teachers, by task: the value of a single one, a list of several; of several tasks a list
    of that."""
    each = [own[0] if len(own) == 1 else list(own) for own in values]
    return each[0] if len(each) == 1 else each


def _dataset(
    teachings: Sequence[Teaching],
    config: DistillConfig,
    options: TeacherOptions | None,
    progress: Progress,
    *,
    begun: bool,
) -> Dataset:
    """The dataset of a run of one teacher; a run that was begun with it goes on in spite of doubts."""
    (teaching,) = teachings
    card = card_of(teaching.teacher, None)
    dataset, doubts = fitting_dataset(str(config.dataset), teaching, card, augment=bool(config.batches.augment))
    for doubt in doubts:
        _stop_or_say(doubt, options, progress, begun=begun)
    return dataset


def _stop_or_say(doubt: str, options: TeacherOptions | None, progress: Progress, *, begun: bool = False) -> None:
    """Raises UserError, or where mismatches are accepted, or the run was begun with this one, says it and goes on."""
    if not begun and (options is None or not options.accept_mismatch):
        raise UserError(f"{doubt} (--accept-mismatch goes on all the same)")
    progress.say(f"warning: {doubt}")


_REMOVED = {"preset": ("none", "rusu2015")}
"""Settings of older runs: what a preset stood for is in the others."""


def _run(
    out: str | os.PathLike[str],
    config: DistillConfig,
    given: Mapping[str, Any],
    resolved: Mapping[str, Any],
    *,
    resume: bool,
) -> Run:
    defaults = older_defaults(flat(DistillConfig()), given, resolved)
    defaults |= {"teacher_options": TeacherOptions().as_dict()}
    tensorboard = config.keeping.tensorboard
    return Run(Path(out), resolved, resume=resume, defaults=defaults, removed=_REMOVED, tensorboard=tensorboard)


def _learn(
    work: Distillation,
    following: FollowingStream | None,
    teachings: Sequence[Teaching],
    run: Run,
    options: TeacherOptions | None,
    progress: Progress,
) -> None:
    """From where the run stands to its last update."""
    evaluations = _evaluations(work, following, run, progress)
    if run.state is not None:
        progress.say(f"resuming {run.path}")
        work.load_state_dict(run.state)
        evaluations.load_state_dict(run.state)
    else:
        # Before anything is logged: a run that is refused leaves no folder.
        if isinstance(evaluations, Evaluations):
            records = evaluations.measure_levels(teachings, lambda doubt: _stop_or_say(doubt, options, progress))
            records = [*work.begin(), *records]
        else:
            records = evaluations.measure_levels()
        for record in records:
            run.log(record)
    names = ", ".join(lesson.task.env for lesson in work.lessons)
    work_through(
        work,
        f"distill {names} to {work.config.student}",
        progress,
        save=lambda: run.checkpoint(work.state_dict() | evaluations.state_dict()),
        log=run.log,
        hooks=[*_cut_remarks(work, progress.say), evaluations],
        pace=Pace(saving=work.config.keeping.checkpoint_seconds),
    )


def _evaluations(
    work: Distillation, following: FollowingStream | None, run: Run, progress: Progress
) -> Evaluations | LearnerEvaluations:
    """The hook that plays games during the run."""
    if following is None:
        return Evaluations(work, GamesOfRun(work.config, progress), run.log)
    folder = run.path / "teachers" if work.config.following.keep_snapshots else None
    return LearnerEvaluations(
        work, following, lambda number: GamesOfRun(work.config, progress, others=number), run.log, folder
    )


def _cut_remarks(work: Distillation, say: Callable[[str], object]) -> list[Hook]:
    """For each task a hook that says once when endless games are cut."""
    return [_cut_remark(environments, say) for environments in work.stream.environments]


def _cut_remark(environments: Environments, say: Callable[[str], object]) -> Hook:
    return say_once(lambda: environments.cut > 0, lambda: cut_in_words(environments.task), say)


def _keep(work: Distillation, teachings: Sequence[Teaching], tasks: Mapping[str, Task], run: Run) -> None:
    """Writes the policy: the average of the weights."""
    average = work.fitting.average
    task: Task | Mapping[str, Task] = tasks if isinstance(average, MultiTaskNetwork) else next(iter(tasks.values()))
    save_policy(run.policy_path, average, task, _provenance(work, teachings))


def _provenance(work: Distillation, teachings: Sequence[Teaching]) -> dict[str, Any]:
    makers = [
        [getattr(teacher, "provenance", {}).get("command") for teacher in teaching.teachers] for teaching in teachings
    ]
    temperatures = [
        work.choices[lesson].temperatures.tolist() if lesson in work.choices else [objective.temperature]
        for lesson, objective in work.objectives.items()
    ]
    network: Network = next(iter(work.fitting.networks.values()))
    return {
        "made_by": made_by(),
        "command": command_line(),
        "teacher": _by_task([teaching.sources for teaching in teachings]),
        "teacher_made_by": _by_task(makers),
        "configuration": flat(work.config),
        "temperature": _by_task(temperatures),
        **work.position(),
        "evaluation_seconds": round(work.seconds["evaluation"], 2),
        "machine": machine_in_words(),
        "arithmetic": network.arithmetic,
    }


_POSITION = ("control_steps", "teacher_steps", "student_steps", "updates", "seconds")
"""Names of provenance that are a position in the run too."""


def _check_teacher(teaching: Teaching) -> None:
    """Raises UserError where a teacher is of no use, which is asked before there is a run folder."""
    task = teaching.task
    environments = Environments(task, 1, seed=0)
    try:
        for teacher in teaching.teachers:
            if isinstance(teacher, SavedPolicy):
                check_finite(teacher.network.state_dict(), teacher.path)
            labels_of(teacher, environments.observations, task, environments.masks)
    finally:
        environments.close()


def _finished(run: Run, config: DistillConfig, progress: Progress) -> SavedPolicy | MultiTaskPolicy:
    """Plays the final games and adds their scores to the policy, which is safe by now. Nothing else holds an environment."""
    policy = load_heads(run.policy_path)
    made = policy.provenance
    lines = ["no games were played, so there is no score"]
    if config.evaluating.evaluate_episodes:
        games, began = GamesOfRun(config, progress, others=int(config.schedule_lessons == "progress")), time.monotonic()
        scores: dict[str, dict[str, Any]] = {}
        for name, view in _heads(policy).items():
            title = "score of the student" + (f" in {name}" if name else "")
            scores[name] = games.play(view.task, view, title)
            position = {field: made[field] for field in _POSITION}
            run.log(Evaluation(lesson=name or None, **position, **scores[name]))
        seconds = round(made["evaluation_seconds"] + time.monotonic() - began, 2)
        own = {"score": scores[""]} if "" in scores else {"scores": scores}
        add_provenance(run.policy_path, {"evaluation_seconds": seconds} | own)
        lines = [_in_words(name, score) for name, score in scores.items()]
    size = f"{policy.name}: {parameter_count(policy.network):,} parameters"
    progress.say(f"{size}, {', '.join(lines)}, {made['seconds']:.0f} s: {run.policy_path}")
    curves = curves_of(run.folder.records()[0])
    if curves is not None and curves.has_scale:
        add_provenance(run.policy_path, {"steadiness": steadiness_card(curves)})
        progress.say(steadiness_in_words(curves))
    run.clean()
    check_learnt(curves, run.policy_path)
    return load_heads(run.policy_path)


def _heads(policy: SavedPolicy | MultiTaskPolicy) -> dict[str, SavedPolicy]:
    """Each head by its task; a policy of one has no name for it."""
    return {"": policy} if isinstance(policy, SavedPolicy) else {name: policy.view(name) for name in policy.tasks}


def _in_words(name: str, score: Mapping[str, Any]) -> str:
    mean = with_interval(score["mean"], score["ci_low"], score["ci_high"])
    of_task = f" in {name}" if name else ""
    return f"mean return {mean}{of_task} over {games_in_words(score['episodes'], score['distinct'])}"
