"""Who teaches what: a lesson for each teacher, and a student with a head for each task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from rldistill.configurations import changed, flat
from rldistill.lessons.teaching import Teaching
from rldistill.play.actions import describe, score_width
from rldistill.play.envs import features_of
from rldistill.students.heads import Head, MultiTaskNetwork, build_heads
from rldistill.students.losses import parse_loss
from rldistill.students.networks import Architecture, Network, build, parameter_count
from rldistill.types import Lesson, ScoreKind, Task, Teacher, UserError, is_large_image
from rldistill.verbs.distill.config import DistillConfig


def teaching_of(teacher: Teacher, source: str, task: Task, config: DistillConfig) -> Teaching:
    """The lesson that a teacher of one task gives.

    Raises:
        UserError: the loss, the targets or the exploration do not suit the teacher or the task.
    """
    if task.continuous:
        _check_continuous(config, task)
    loss = parse_loss(config.matching.loss, teacher.score_kind, task.action_sizes)
    if config.driving.explore == "boltzmann" and loss.score_kind == "actions":
        raise UserError(
            "--explore boltzmann draws from a Gaussian, and this student gives actions alone: take --explore epsilon, or a teacher "
            "and a loss (kl_gaussian) with deviations"
        )
    return Teaching(Lesson.of(task), teacher, source, loss)


def check_tasks(teachings: Sequence[Teaching]) -> None:
    """Raises UserError where two teachers are of one task, or of one environment id with other options."""
    by_task: dict[str, Teaching] = {}
    for teaching in teachings:
        before = by_task.setdefault(teaching.task.env, teaching)
        if before is not teaching:
            both = f"{before.source} and {teaching.source} both"
            if replace(before.task, random_score=None) != replace(teaching.task, random_score=None):
                raise UserError(
                    f"{both} play {teaching.task.env}, with other options: heads are named by environment ids, so a student has "
                    "one for each; name one of them"
                )
            raise UserError(
                f"{both} teach {teaching.task.env}: say how to choose among them, such as --select ucb1, or name one of them"
            )


def _check_continuous(config: DistillConfig, task: Task) -> None:
    """Refuses what is for scores of discrete actions, and would do nothing."""
    matching = config.matching
    given = {
        f"--targets {matching.targets}": matching.targets != "raw",
        f"--temperature {matching.temperature}": matching.temperature != "auto",
        f"--weights {matching.weights}": matching.weights != "none",
    }
    for option, is_given in given.items():
        if is_given:
            raise UserError(f"{option} is for scores of discrete actions, not for {describe(task)}")


def make_student(
    teachings: Sequence[Teaching], config: DistillConfig
) -> tuple[Network | MultiTaskNetwork, DistillConfig]:
    """A fresh student, and the configuration with what suits it where the user leaves it open.

    Raises:
        UserError: no such network, or one that the observations do not suit.
    """
    student: Network | MultiTaskNetwork
    if len(teachings) == 1:
        (teaching,) = teachings
        architecture = _architecture(teaching, config)
        if config.student == "auto":
            architecture = suited_architecture(architecture, teaching.teacher)
        config = replace(config, student=architecture.name)
        student = build(architecture, config.seed, teaching.loss.score_kind)
        views = [student]
    else:
        if config.student == "auto":
            config = replace(config, student=_suited_to_several(teachings))
        heads = {teaching.lesson.head: _head(teaching, config) for teaching in teachings}
        student = build_heads(
            config.student, heads, config.seed, normalization=config.student_normalization, dropout=config.dropout
        )
        views = [view for _, view in student.views()]
    config = suited(config, student, {teaching.score_kind for teaching in teachings})
    asked = config.optimization.bfloat16
    for view in views:
        view.bfloat16 = view.trains_faster_in_bfloat16 if asked is None else asked
    return student, config


def _head(teaching: Teaching, config: DistillConfig) -> Head:
    own = _architecture(teaching, config)
    return Head(own.observation_shape, own.num_scores, teaching.loss.score_kind, own.reads)


def _architecture(teaching: Teaching, config: DistillConfig) -> Architecture:
    task, kind = teaching.task, teaching.loss.score_kind
    reads = features_of(task, config.student_observation)
    return Architecture(
        config.student,
        task.observation_shape,
        score_width(task, kind),
        config.student_normalization,
        config.dropout,
        reads,
    )


def suited_architecture(architecture: Architecture, teacher: Teacher) -> Architecture:
    """What `--student auto` stands for: `net2` for images; for vectors the widest of four that has at most a tenth of the teacher's
    parameters. It may have 2,000 where the teacher is small, or a function without parameters."""
    if len(architecture.observation_shape) == 3:
        return architecture._replace(name="net2")
    network = getattr(teacher, "network", None)
    size = parameter_count(network) if isinstance(network, torch.nn.Module) else 0
    room = max(size // 10, 2_000)
    students = [architecture._replace(name=f"mlp:{width},{width}") for width in (64, 32, 24, 16)]
    return next((student for student in students if parameter_count(build(student, 0)) <= room), students[-1])


def _suited_to_several(teachings: Sequence[Teaching]) -> str:
    """What `--student auto` stands for with several tasks."""
    shape = teachings[0].task.observation_shape
    if len(shape) == 1:
        return "mlp:64,64+32"
    return "multi3" if is_large_image(shape) else "cnn:16:128+32"


def suited(config: DistillConfig, student: Network | MultiTaskNetwork, teacher_kinds: set[ScoreKind]) -> DistillConfig:
    """The configuration with composites, weight decay and the optimizer that suit student and teachers, where they are left open.

    Students of images visit few of all states. Weight decay helps them in the others, and composites do if the student is large
    enough. Students of vectors visit enough, and both would keep them from following their teacher closely. Muon fits the logits
    of all actions in fewer updates than Adam; of Q-values mostly the best action counts.
    """
    if isinstance(student, MultiTaskNetwork):
        image = all(len(head.observation_shape) == 3 for head in student.heads.values())
    else:
        image = len(student.architecture.observation_shape) == 3
    if config.optimization.optimizer == "auto":
        config = changed(config, optimizer="muon" if image and teacher_kinds == {"logits"} else "adam")
    suiting: dict[str, Any] = {
        "augment": 0.5 if image and parameter_count(student) >= 30_000 else 0.0,
        "weight_decay": 0.1 if image else 0.0,
    }
    now = flat(config)
    return changed(config, **{name: value for name, value in suiting.items() if now[name] is None})
