"""Policies trained elsewhere: `load_teacher` makes a teacher of any of them, and says what does not fit."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn

from rldistill.arguments import checked_arguments
from rldistill.formats.beside import with_statistics
from rldistill.formats.foreign import ForeignPolicy
from rldistill.formats.hub.download import PREFIX, fetch, find_policy_file, read_card
from rldistill.formats.matching import mismatches_of, with_masks
from rldistill.formats.options import TeacherOptions, check_acting
from rldistill.formats.outputs import unit_mismatch, unit_tool, with_units
from rldistill.formats.programs import last_line
from rldistill.formats.recognised import refuse_recognised
from rldistill.formats.sb3.files import PARAMETERS, content_of, is_unpacked
from rldistill.machine import usual_torch
from rldistill.play.actions import describe, score_width
from rldistill.play.envs import arguments_of, chosen_task, name_environment, newest_task, same_game, unlike
from rldistill.play.envs.own import Predicting
from rldistill.policies import MultiTaskPolicy, NamedPolicy, SavedPolicy, load_heads, name_of, named_heads
from rldistill.policies import load_policy as load_folder
from rldistill.progress import Progress
from rldistill.teachers.detect import kind_of
from rldistill.teachers.exported import Exported, exported_in, read_exported
from rldistill.teachers.python import PythonTeacher
from rldistill.teachers.reading import read_kind
from rldistill.types import ScoreKind, Task, Teacher, UserError, first_line

__all__ = [
    "ForeignTeacher",
    "PythonTeacher",
    "TeacherOptions",
    "as_policy",
    "check_all_act",
    "known_of",
    "load_all",
    "load_fitting",
    "load_own",
    "load_policy",
    "load_several",
    "load_teacher",
    "teacher_beside",
]

Ref: TypeAlias = str | os.PathLike[str]


@dataclass(frozen=True)
class ForeignTeacher(Predicting):
    """A policy of another tool, with the task that it plays; called like a policy of our own."""

    foreign: ForeignPolicy
    task: Task
    score_kind: ScoreKind
    path: Path
    mismatches: tuple[str, ...] = ()
    """What does not fit, a line each: a teacher that plays badly because of it, plays badly for the student too."""
    notes: tuple[str, ...] = ()
    """What was supposed, since the file does not say."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    said: Mapping[str, str] = field(default_factory=dict)
    """What a user said of its network, pixels and scores."""

    @property
    def used(self) -> frozenset[str]:
        """Names of the options that acted when it was loaded."""
        return self.foreign.used

    @property
    def sha256(self) -> str:
        """Tells whether two teachers are the same: of the file, and where its scores depend on more, of that too."""
        told = [self.provenance["sha256"], *self._beside]
        return told[0] if len(told) == 1 else hashlib.sha256("\n".join(told).encode()).hexdigest()

    @property
    def _beside(self) -> list[str]:
        """What changes the scores and is not in the file: statistics of observations, and what a user has said."""
        statistics = self.foreign.normalization
        found = [f"{name} = {value}" for name, value in sorted(self.said.items())]
        if statistics is not None:
            parts = [statistics.mean, statistics.variance]
            parts += [] if statistics.untouched is None else [statistics.untouched.astype(np.float64)]
            numbers = np.concatenate([part.ravel() for part in parts])
            limits = np.array([statistics.epsilon, statistics.limit])
            found.append(hashlib.sha256(np.concatenate([numbers, limits]).tobytes()).hexdigest())
        return found

    @property
    def network(self) -> nn.Module:
        """With its parameters."""
        return self.foreign.network

    @property
    def name(self) -> str:
        """What a table calls its network: the algorithm, or the format where the file tells none."""
        return self.foreign.algorithm if self.foreign.algorithm != "unknown" else self.foreign.format

    def weights(self) -> bytes:
        """The file."""
        return content_of(self.path)

    def __call__(self, observations: Tensor) -> Tensor:
        """Scores (B, K) float32 of observations (B, *obs), normalized as in training.

        Raises:
            UserError: it cannot be played at all: observations of another shape, or another number of scores.
        """
        space, shape = self.foreign.observation_space, tuple(observations.shape[1:])
        if space is not None and space.shape != shape:
            observations = self._as_declared(observations, space.shape)
        if self.foreign.normalization is not None:
            observations = self.foreign.normalization(observations)
        with torch.no_grad():
            try:
                scores = cast(Tensor, self.foreign.network(observations)).to(torch.float32)
            except Exception as error:  # of the runtimes, which have kinds of their own
                if isinstance(error, UserError) or self.foreign.format not in ("ONNX", "TorchScript"):
                    raise
                reason = (first_line if self.foreign.format == "ONNX" else last_line)(error)
                raise UserError(f"{self.path} fails on an observation of {self.task.env}: {reason}") from None
        width = score_width(self.task, self.score_kind)
        if scores.shape[1:] != (width,):
            raise UserError(
                f"{self.path} cannot play {self.task.env}: it gives {tuple(scores.shape[1:])} scores, "
                f"{describe(self.task)} need {width} ({self.score_kind})"
            )
        return scores

    def _as_declared(self, observations: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Observations (B, *obs) as the environment declares them, channels last or as a table, for a teacher that reads that."""
        given = tuple(observations.shape[1:])
        if len(shape) == 3 and given == shape[2:] + shape[:2]:
            return observations.permute(0, 2, 3, 1).contiguous()
        if len(shape) in (0, 2) and given in ((math.prod(shape),), (1, *shape)):
            return observations.reshape(len(observations), *shape)
        raise UserError(f"{self.path} cannot play {self.task.env}: it reads {shape}, and is given {given}")


@usual_torch()
@checked_arguments
def load_teacher(
    ref: Ref, *, env: str | None = None, env_kwargs: Sequence[str] = (), options: TeacherOptions | None = None
) -> SavedPolicy | ForeignTeacher:
    """A teacher out of a policy folder, a file of another tool, a folder of the hub's layout, or `hf://owner/name`.

    Nothing in a file is executed (but by `trust_pickle`, and TorchScript and ONNX in their own runtimes).

    Args:
        ref: where it is.
        env: environment id; needed where the file does not name one. Where it is written `module:Id`, the module is imported.
        env_kwargs: arguments name=value that a Gymnasium environment is made with.
        options: what the file does not say.

    Raises:
        UserError: nothing there, a file that is damaged, hostile or not understood, or something that it does not say is
            not given, or an option is given that does not act on it.
    """
    name_environment(env, arguments_of(env_kwargs))
    teacher = _load(ref, env, options or TeacherOptions(), env_kwargs)
    check_all_act(options, [teacher], [os.fspath(ref)])
    return teacher


def _load(
    ref: Ref, env: str | None, options: TeacherOptions, env_kwargs: Sequence[str] = (), like: Task | None = None
) -> SavedPolicy | ForeignTeacher:
    """As `load_teacher`, whether or not the options act; where no `env` is given, it plays what `like` is."""
    given = options
    path, head = _located(ref)
    if path.name == PARAMETERS and is_unpacked(path.parent):  # a part of a policy, which says less than the whole
        path = path.parent
    kind = kind_of(path)
    if not path.exists() and path.suffix:
        raise UserError(f"no file at {path}")
    if kind in ("policy folder", "run folder") or (path.is_dir() and kind == "unknown") or not path.exists():
        if kind == "unknown" and path.is_dir():
            refuse_recognised(path)
        return load_folder(path, head)
    _refuse_head(path, head)
    exported = exported_in(kind, path)
    if exported is not None:
        made = _exported(kind, path, exported, _asked(env, env_kwargs, like, exported.task), env_kwargs)
        return replace(made, notes=tuple(_renamed(env, made.task)))
    asked = _asked(env, env_kwargs, like)
    named = asked.env if env is None and asked is not None else env
    folder = None
    if kind == "hub folder":
        folder = path
        named = named or read_card(path).env
        path = find_policy_file(path)
        kind = kind_of(path)
    task = asked if asked is not None or named is None else newest_task(named, env_kwargs)
    foreign = read_kind(kind, path, task, options, folder)
    if given.teacher_scores == foreign.scores:  # what agrees with the file is checked by it, and acts so
        foreign = replace(foreign, used=foreign.used | {"teacher_scores"})
    if task is None:
        if foreign.env is None:
            raise UserError(f"{path} does not say which environment it plays: name it with --env")
        try:
            task = newest_task(foreign.env, env_kwargs)
        except UserError as error:
            raise UserError(
                f"{error} ({path} or what lies beside it is named so; --env names the environment itself)"
            ) from None
    foreign = with_units(foreign, options.teacher_actions, task, path)
    notes = [str(note) for note in (*foreign.provenance.get("notes", ()), *_supposed(foreign))]
    if kind != "sb3":
        foreign, of_statistics = with_statistics(foreign, path, folder, task, options)
        notes += of_statistics
    task, of_masks = with_masks(foreign, task)
    notes += of_masks
    notes += _renamed(named or foreign.env, task)
    score_kind = _score_kind(foreign)
    mismatches = [*mismatches_of(foreign, task, score_kind), *foreign.mismatches]
    provenance = {"format": foreign.format, "algorithm": foreign.algorithm, "sha256": _sha256(path)}
    known = provenance | dict(foreign.provenance)
    # Statistics count by their contents, wherever they lie.
    said = {name: str(value) for name, value in given.given().items() if name in foreign.used - {"normalization"}}
    teacher = ForeignTeacher(foreign, task, score_kind, path, tuple(mismatches), tuple(notes), known, said)
    if not foreign.units_supposed or mismatches or not task.continuous:
        return teacher
    wrong = unit_tool(foreign, task) or unit_mismatch(teacher)
    return teacher if wrong is None else replace(teacher, mismatches=(wrong,))


@usual_torch()
@checked_arguments
def load_policy(path: Ref) -> SavedPolicy | ForeignTeacher:
    """A policy of rldistill: a policy folder, the student of a run folder, or any file that `export` wrote.

    Nothing in a file is executed, but TorchScript and ONNX in their own runtimes; a C file is compiled if it is, character
    by character, what `export` writes.

    Raises:
        UserError: nothing there, a file that is damaged, or one that another tool made (`load_teacher` reads those).
    """
    place, head = _located(path)
    kind = kind_of(place)
    if place.is_dir() or not place.exists():
        return load_folder(place, head)
    _refuse_head(place, head)
    exported = exported_in(kind, place)
    if exported is None:
        raise UserError(f"{place} was not exported by rldistill; load_teacher reads the files of other tools")
    return _exported(kind, place, exported, None, ())


def load_own(policy: Ref | SavedPolicy, *, verb: str) -> SavedPolicy:
    """A policy of rldistill's own for a verb that takes no other: a policy folder, a run folder, `hf://owner/name`.

    Raises:
        UserError: nothing there, a damaged folder, or a policy of another tool.
    """
    if isinstance(policy, SavedPolicy):
        return policy
    place = os.fspath(policy)
    path, head = _located(policy)
    if path.is_file() or kind_of(path) in ("hub folder", "sb3"):
        raise UserError(
            f"{place} is no policy folder: {verb} takes policies of rldistill; distil this one into a student first"
        )
    return load_folder(path, head)


def load_several(policy: object) -> MultiTaskPolicy | None:
    """A policy of several tasks by its place, or loaded; None where it is anything else.

    Raises:
        UserError: its folder is damaged.
    """
    if not isinstance(policy, str | os.PathLike):
        return policy if isinstance(policy, MultiTaskPolicy) else None
    path, head = _located(policy)
    if head is not None or kind_of(path) not in ("policy folder", "run folder"):
        return None
    loaded = load_heads(path)
    return loaded if isinstance(loaded, MultiTaskPolicy) else None


def _located(ref: Ref) -> tuple[Path, str | None]:
    """The path of a reference, fetched where it is on the hub, and the task that it names after a `#`."""
    place, head = os.fspath(ref), None
    if "#" in place and not Path(place).exists():
        place, _, head = place.rpartition("#")
    return (fetch(place) if place.startswith(PREFIX) else Path(place)), head


def _refuse_head(path: Path, head: str | None) -> None:
    if head is not None:
        raise UserError(f"{path} is no policy folder of several tasks: name it without #{head}")


def teacher_beside(
    named: object,
    *,
    like: Task | None,
    chosen: str | None,
    options: TeacherOptions | None = None,
    say: Callable[[str], None],
) -> SavedPolicy | ForeignTeacher | None:
    """The teacher that a policy is shown beside, None where there is none; why one cannot be loaded is told.

    Args:
        named: the teacher's place, as the student's run or provenance has it.
        like: what the student plays, which the teacher is to play too.
        chosen: another place, or `none`, as a user has it.
        options: what the teacher's file does not say, as a run's configuration has it; what does not act is passed over.
        say: given a line about a named teacher that cannot be loaded, and one for each thing about it that does not fit.

    Raises:
        UserError: the chosen one cannot be loaded.
    """
    if chosen == "none":
        return None
    if chosen is None and not isinstance(named, str):
        return None
    place = chosen if chosen is not None else str(named)
    try:
        teacher = _load(place, None, options or TeacherOptions(), like=like)
    except UserError as error:
        if chosen is not None:
            raise
        say(f"the teacher {named} is left out: {error} (--teacher names another)")
        return None
    for mismatch in teacher.mismatches if isinstance(teacher, ForeignTeacher) else ():
        say(f"warning: the teacher {place}: {mismatch}")
    return teacher


def load_fitting(
    ref: Ref,
    *,
    env: str | None = None,
    env_kwargs: Sequence[str] = (),
    like: Task | None = None,
    options: TeacherOptions | None = None,
    alone: bool = True,
    progress: Progress,
) -> SavedPolicy | ForeignTeacher:
    """As `load_teacher`, for a verb that goes on with it: what was supposed is said, and what does not fit stops it.

    Args:
        ref: where it is.
        env: environment id, as the user names it; needed where the file does not name one.
        env_kwargs: arguments name=value that a Gymnasium environment is made with.
        like: what it is to play where `env` is None.
        options: what the file does not say.
        alone: whether the options are for this file only; where they are for several, `check_all_act` looks at them.
        progress: given a line for each thing that was supposed.

    Raises:
        UserError: also where something does not fit and `accept_mismatch` is not set.
    """
    name_environment(env, arguments_of(env_kwargs))
    teacher = _load(ref, env, options or TeacherOptions(), env_kwargs, like)
    if alone:
        check_all_act(options, [teacher], [os.fspath(ref)])
    if not isinstance(teacher, ForeignTeacher):
        for note in _renamed(env, chosen_task(teacher.task, env, env_kwargs)) if env is not None else ():
            progress.say(f"{os.fspath(ref)}: {note}")
        return teacher
    if teacher.mismatches and not (options and options.accept_mismatch):
        raise UserError(f"{teacher.path}: {'; '.join(teacher.mismatches)} (--accept-mismatch goes on all the same)")
    for note in teacher.notes:
        progress.say(f"{teacher.path.name}: {note}")
    for mismatch in teacher.mismatches:
        progress.say(f"warning: {teacher.path.name}: {mismatch}")
    return teacher


def load_all(
    policies: Sequence[Ref | Teacher | MultiTaskPolicy],
    *,
    env: str | None = None,
    env_kwargs: Sequence[str] = (),
    options: TeacherOptions | None = None,
    progress: Progress,
) -> list[NamedPolicy]:
    """Several policies that a verb compares; of a policy of several tasks each head.

    What a file does not say of its task, the first policy says, or the one among several tasks that has its environment.

    Args:
        policies: places, loaded policies, or anything that is a `Teacher`.
        env: environment id that all are to play, where it is not the first one's.
        env_kwargs: arguments name=value that a Gymnasium environment is made with.
        options: what files of other tools do not say.
        progress: given a line for each thing that was supposed.

    Raises:
        UserError: one cannot be loaded or does not fit, an option acts on none of them, or `env` is given beside a policy of
            several tasks.
    """
    several = [load_several(given) for given in policies]
    tasks = [task for one in several if one is not None for task in one.tasks.values()]
    if tasks and (env is not None or env_kwargs):
        raise UserError(
            f"--env and --env-kwargs name one environment, and a policy here plays {len(tasks)}: take one head, REF#{tasks[0].env}"
        )
    loaded: list[NamedPolicy] = []
    files: list[NamedPolicy] = []
    for given, whole in zip(policies, several, strict=True):
        if whole is not None or isinstance(given, MultiTaskPolicy):
            assert whole is not None
            loaded += named_heads(whole, given if isinstance(given, str | os.PathLike) else whole)
        elif not isinstance(given, str | os.PathLike):
            policy = as_policy(given)
            loaded.append(NamedPolicy(name_of(policy), policy, policy.task.env))
        else:
            like = None if tasks or not loaded else loaded[0].policy.task
            read = load_fitting(
                given, env=env, env_kwargs=env_kwargs, like=like, options=options, alone=False, progress=progress
            )
            own = (read.foreign.env if isinstance(read, ForeignTeacher) else None) or read.task.env
            alike = [task for task in tasks if same_game(task.env, own) and unlike(task, read.task) is None]
            if alike and isinstance(read, ForeignTeacher):
                read = replace(read, task=alike[0])
            files.append(NamedPolicy(name_of(given), read, own))
            loaded.append(files[-1])
    check_all_act(options, [one.policy for one in files], [one.name for one in files])
    return loaded


def check_all_act(options: TeacherOptions | None, policies: Sequence[object], names: Sequence[str]) -> None:
    """Refuses options that act on none of one or several policies.

    Args:
        options: as a user gave them.
        policies: those that were loaded with them.
        names: what the message calls them.

    Raises:
        UserError: an option is given that acted on none.
    """
    used = frozenset[str]().union(*map(_used, policies))
    alone = policies[0] if len(policies) == 1 else None
    decided = alone.foreign.decided if isinstance(alone, ForeignTeacher) else {}
    check_acting(options, used, " and ".join(names) or "policies that are loaded already", decided)


def _used(policy: object) -> frozenset[str]:
    return policy.used if isinstance(policy, ForeignTeacher) else frozenset()


def as_policy(teacher: Teacher) -> SavedPolicy | ForeignTeacher | PythonTeacher:
    """A teacher as what every verb works on. Objects of users get observations of their own, ours do not change theirs.

    Raises:
        UserError: it lacks a task or a kind of scores.
    """
    return teacher if isinstance(teacher, SavedPolicy | ForeignTeacher | PythonTeacher) else PythonTeacher(teacher)


def known_of(teacher: Teacher, path: str | None) -> dict[str, Any]:
    """For the card of a dataset: which teacher it was, and where it came from.

    Args:
        teacher: any.
        path: as the user named it, None where it was handed over in Python.
    """
    if not isinstance(teacher, SavedPolicy | ForeignTeacher):
        kind = teacher.teacher if isinstance(teacher, PythonTeacher) else teacher
        return {"path": path, "sha256": None, "kind": type(kind).__name__}
    known = {
        "path": path if path is not None or teacher.path is None else str(teacher.path),
        "sha256": teacher.sha256,
        "provenance": dict(teacher.provenance),
    }
    return known | (
        {"architecture": teacher.network.architecture.as_dict()} if isinstance(teacher, SavedPolicy) else {}
    )


def _asked(env: str | None, env_kwargs: Sequence[str], like: Task | None, own: Task | None = None) -> Task | None:
    """What a file is to play by the user's word or like another policy; None where its own word counts."""
    if env is not None:
        return chosen_task(own, env, env_kwargs) if own is not None and own.env == env else newest_task(env, env_kwargs)
    return None if like is None else chosen_task(like, None, env_kwargs)


def _exported(
    kind: str, path: Path, exported: Exported, asked: Task | None, env_kwargs: Sequence[str]
) -> ForeignTeacher:
    """A file of `export`, which says all that there is to know."""
    foreign = read_exported(kind, path, exported)
    task = chosen_task(exported.task, None, env_kwargs) if asked is None else asked
    # Stable-Baselines3 keeps deterministic actions as the means of a Gaussian.
    score_kind = _score_kind(foreign) if kind == "sb3" else exported.score_kind
    own = {"format": foreign.format, "algorithm": foreign.algorithm, "sha256": _sha256(path)}
    provenance: dict[str, Any] = {**foreign.provenance, **exported.known, **own, "supposed": [], "notes": []}
    mismatches = () if asked is None else tuple(mismatches_of(foreign, task, score_kind))
    return ForeignTeacher(replace(foreign, used=frozenset()), task, score_kind, path, mismatches, (), provenance)


def _renamed(named: str | None, task: Task) -> list[str]:
    """What to say where another id is played than was named, since that version is gone."""
    return [] if named is None or task.env == named else [f"{named} is no longer there: played as {task.env}"]


def _supposed(foreign: ForeignPolicy) -> list[str]:
    supposed = foreign.provenance.get("supposed", ())
    return [f"supposed, since the file does not say: {', '.join(map(str, supposed))}"] if supposed else []


def _score_kind(foreign: ForeignPolicy) -> ScoreKind:
    if foreign.scores == "deterministic":
        return "actions"
    if foreign.scores == "gaussian":
        return "squashed_gaussian" if foreign.squashed else "gaussian"
    return foreign.scores


def _sha256(path: Path) -> str:
    return hashlib.sha256(content_of(path)).hexdigest()
