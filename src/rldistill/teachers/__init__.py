"""Policies trained elsewhere: `load_teacher` makes a teacher of any of them, and reports what does not fit."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from rldistill.arguments import checked_arguments
from rldistill.formats.beside import folders_in, with_statistics
from rldistill.formats.c.compiling import compiled
from rldistill.formats.c.reading import read_note as read_c_note
from rldistill.formats.cleanrl.reading import read_cleanrl
from rldistill.formats.foreign import FOREIGN_SCORES, ForeignPolicy, Numbers, observations_of
from rldistill.formats.hub.download import find_policy_file, read_card
from rldistill.formats.matching import mismatches_of, with_masks
from rldistill.formats.note import Note, read_zipped_note
from rldistill.formats.onnx.reading import read_note as read_onnx_note
from rldistill.formats.options import TeacherOptions
from rldistill.formats.recognised import refuse_recognised
from rldistill.formats.sb3 import PARAMETERS, is_unpacked
from rldistill.formats.sb3.files import read_note as read_sb3_note
from rldistill.formats.sb3.reading import read_sb3
from rldistill.formats.tensors.state_dict import read_state_dict
from rldistill.formats.units import unit_mismatch, unit_tool, with_units
from rldistill.machine import usual_torch
from rldistill.play.envs import arguments_of, chosen_task, name_environment, nearest_game, newest_task, unlike
from rldistill.policies import MultiTaskPolicy, NamedPolicy, SavedPolicy, load_heads, name_of, named_heads
from rldistill.policies import load_policy as load_folder
from rldistill.progress import Progress
from rldistill.teachers.detect import check_readable, kind_of
from rldistill.teachers.foreign import ForeignTeacher, origin_of, supposed_notes
from rldistill.teachers.noise import noise_in
from rldistill.teachers.noisy import NoisyTeacher, without_noise
from rldistill.teachers.python import PythonTeacher
from rldistill.teachers.request import Request, asked_task, check_all_act, located, own_task, refuse_head, renamed
from rldistill.teachers.trial import read_program
from rldistill.types import Task, Teacher, UserError

__all__ = [
    "ForeignTeacher",
    "NoisyTeacher",
    "PythonTeacher",
    "TeacherOptions",
    "as_policy",
    "card_of",
    "check_all_act",
    "load_all",
    "load_fitting",
    "load_own",
    "load_policy",
    "load_several",
    "load_teacher",
    "note_in",
    "read_exported",
    "teacher_beside",
    "without_noise",
]

Ref: TypeAlias = str | os.PathLike[str]
Loaded: TypeAlias = SavedPolicy | ForeignTeacher | NoisyTeacher


@usual_torch()
@checked_arguments
def load_teacher(
    ref: Ref, *, env: str | None = None, env_kwargs: Sequence[str] = (), options: TeacherOptions | None = None
) -> Loaded:
    """A teacher out of a policy folder, a file of another tool, a folder of the hub's layout, or `hf://owner/name`.

    `noisy:SIGMA:REF` is any of them with noise on its values; see `NoisyTeacher`.

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
) -> Loaded:
    """As `load_teacher`, whether or not the options act; where no `env` is given, it plays what `like` is."""
    noise, place = noise_in(ref)
    teacher = _read(place, env, options, env_kwargs, like)
    return teacher if noise is None else NoisyTeacher.of(teacher, noise)


def _read(
    ref: Ref, env: str | None, options: TeacherOptions, env_kwargs: Sequence[str], like: Task | None
) -> SavedPolicy | ForeignTeacher:
    path, head = located(ref)
    if path.name == PARAMETERS and is_unpacked(path.parent):  # a part of a policy, which says less than the whole
        path = path.parent
    kind = kind_of(path)
    if not path.exists() and path.suffix:
        raise UserError(f"no file at {path}")
    if kind in ("policy folder", "run folder") or (path.is_dir() and kind == "unknown") or not path.exists():
        if kind == "unknown" and path.is_dir():
            refuse_recognised(path)
        return load_folder(path, head)
    refuse_head(path, head)
    note = note_in(kind, path)
    if note is not None:
        exported = _exported(kind, path, note, asked_task(env, env_kwargs, like, note.task), env_kwargs)
        return replace(exported, notes=tuple(renamed(env, exported.task)))
    asked = asked_task(env, env_kwargs, like)
    named = asked.env if env is None and asked is not None else env
    folder = None
    if kind == "hub folder":
        folder = path
        named = named or read_card(path).env
        path = find_policy_file(path)
        kind = kind_of(path)
    task = asked if asked is not None or named is None else newest_task(named, env_kwargs)
    foreign = _READERS.get(kind, _refuse)(path, Request(task, options, folder))
    if options.teacher_scores == foreign.scores:  # what agrees with the file is checked by it, and acts so
        foreign = replace(foreign, used=foreign.used | {"teacher_scores"})
    task = own_task(foreign, path, env_kwargs) if task is None else task
    return _fitted(foreign, path, task, Request(task, options, folder), named, finds_statistics=kind != "sb3")


def _fitted(
    foreign: ForeignPolicy, path: Path, task: Task, request: Request, named: str | None, *, finds_statistics: bool
) -> ForeignTeacher:
    """The teacher of a policy and a task, with everything that lies beside its file and all that does not fit.

    Args:
        foreign: the policy as it was read.
        path: of its file.
        task: that it plays.
        request: what it was read for.
        named: the environment id that was asked for, if one was.
        finds_statistics: whether statistics of observations are still to be looked for.
    """
    options = request.options
    foreign = with_units(foreign, options.teacher_actions, task, path)
    notes = [str(note) for note in (*foreign.provenance.get("notes", ()), *supposed_notes(foreign))]
    if finds_statistics:
        foreign, of_statistics = with_statistics(foreign, path, request.folder, task, options)
        notes += of_statistics
    task, of_masks = with_masks(foreign, task)
    notes += [*of_masks, *renamed(named or foreign.env, task)]
    mismatches = [*mismatches_of(foreign, task), *foreign.mismatches]
    # Statistics count by their contents, wherever they lie.
    acting = foreign.used - {"normalization"}
    teacher = ForeignTeacher(
        foreign,
        task,
        path,
        tuple(mismatches),
        tuple(notes),
        origin_of(foreign, path) | dict(foreign.provenance),
        {name: str(value) for name, value in options.given().items() if name in acting},
    )
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
    place, head = located(path)
    kind = kind_of(place)
    if place.is_dir() or not place.exists():
        return load_folder(place, head)
    refuse_head(place, head)
    note = note_in(kind, place)
    if note is None:
        raise UserError(f"{place} was not exported by rldistill; load_teacher reads the files of other tools")
    return _exported(kind, place, note, None, ())


def load_own(policy: Ref | SavedPolicy, *, verb: str) -> SavedPolicy:
    """A policy of rldistill's own for a verb that takes no other: a policy folder, a run folder, `hf://owner/name`.

    Raises:
        UserError: nothing there, a damaged folder, or a policy of another tool.
    """
    if isinstance(policy, SavedPolicy):
        return policy
    place = os.fspath(policy)
    path, head = located(policy)
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
    if noise_in(policy)[0] is not None:
        return None
    path, head = located(policy)
    if head is not None or kind_of(path) not in ("policy folder", "run folder"):
        return None
    loaded = load_heads(path)
    return loaded if isinstance(loaded, MultiTaskPolicy) else None


def teacher_beside(
    named: object,
    *,
    like: Task | None,
    chosen: str | None,
    options: TeacherOptions | None = None,
    say: Callable[[str], None],
) -> Loaded | None:
    """The teacher that a policy is compared with; None where there is none, or where it cannot be loaded.

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
    for mismatch in getattr(without_noise(teacher), "mismatches", ()):
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
) -> Loaded:
    """As `load_teacher`, for a verb that goes on with it: suppositions are reported, and what does not fit stops it.

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
    plain = without_noise(teacher)
    if not isinstance(plain, ForeignTeacher):
        for note in renamed(env, chosen_task(teacher.task, env, env_kwargs)) if env is not None else ():
            progress.say(f"{os.fspath(ref)}: {note}")
        return teacher
    if plain.mismatches and not (options and options.accept_mismatch):
        raise UserError(f"{plain.path}: {'; '.join(plain.mismatches)} (--accept-mismatch goes on all the same)")
    for note in plain.notes:
        progress.say(f"{plain.path.name}: {note}")
    for mismatch in plain.mismatches:
        progress.say(f"warning: {plain.path.name}: {mismatch}")
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
            plain = without_noise(read)
            own = (plain.foreign.env if isinstance(plain, ForeignTeacher) else None) or read.task.env
            nearest = nearest_game(own, (task for task in tasks if unlike(task, read.task) is None))
            if nearest is not None and isinstance(plain, ForeignTeacher):
                read = replace(read, task=nearest)
            files.append(NamedPolicy(name_of(given), read, own))
            loaded.append(files[-1])
    check_all_act(options, [one.policy for one in files], [one.name for one in files])
    return loaded


def as_policy(teacher: Teacher) -> Loaded | PythonTeacher:
    """A teacher as every verb takes it. Objects of users are given copies of observations, since they may change them.

    Raises:
        UserError: it lacks a task or a kind of scores.
    """
    return teacher if isinstance(teacher, Loaded | PythonTeacher) else PythonTeacher(teacher)


def card_of(teacher: Teacher, path: str | None) -> dict[str, Any]:
    """What a dataset's card says of its teacher: which one it was, and where it came from.

    Args:
        teacher: any.
        path: as the user named it, None where it was handed over in Python.
    """
    if not isinstance(teacher, Loaded):
        kind = teacher.teacher if isinstance(teacher, PythonTeacher) else teacher
        return {"path": path, "sha256": None, "kind": type(kind).__name__}
    card = {
        "path": path if path is not None or teacher.path is None else str(teacher.path),
        "sha256": teacher.sha256,
        "provenance": dict(teacher.provenance),
    }
    plain = without_noise(teacher)
    return card | ({"architecture": plain.network.architecture.as_dict()} if isinstance(plain, SavedPolicy) else {})


def _exported(kind: str, path: Path, note: Note, asked: Task | None, env_kwargs: Sequence[str]) -> ForeignTeacher:
    """A file of `export`, which says all that there is to know."""
    foreign = read_exported(kind, path, note)
    task = chosen_task(note.task, None, env_kwargs) if asked is None else asked
    provenance = {**foreign.provenance, **note.facts, **origin_of(foreign, path), "supposed": [], "notes": []}
    mismatches = () if asked is None else tuple(mismatches_of(foreign, task))
    return ForeignTeacher(replace(foreign, used=frozenset()), task, path, mismatches, (), provenance)


# --- files that export wrote

_NOTES: Mapping[str, Callable[[Path], Note | None]] = {
    "c": read_c_note,
    "onnx": read_onnx_note,
    "sb3": read_sb3_note,
    "torchscript": read_zipped_note,
}


def note_in(kind: str, path: Path) -> Note | None:
    """What `export` wrote into a file; None where `export` did not make it.

    Args:
        kind: as of `detect.kind_of`.
        path: the file.

    Raises:
        UserError: the file or the note is damaged.
    """
    read = _NOTES.get(kind)
    return None if read is None else read(path)


def read_exported(kind: str, path: Path, note: Note) -> ForeignPolicy:
    """The policy in a file that `export` wrote, ready to be called.

    Raises:
        UserError: the file is damaged, or what runs it is missing (the message names the extra, or the compiler).
    """
    task = note.task
    shape, scores = task.observation_shape, FOREIGN_SCORES[note.score_kind]
    if kind == "sb3":
        # What lies beside it may be another policy's: this one has its normalization inside.
        return read_sb3(path, folders=None)
    if kind == "c":
        foreign = ForeignPolicy(compiled(note.contents, str(path)), scores, "unknown", "C99", None, None)
    else:
        # Anybody can write that a file is of this kind, so it is tried as any other.
        output = {"output": "scores"} if kind == "onnx" else {}
        foreign = read_program(
            kind, path, observation_shape=shape, num_actions=task.num_actions, scores=scores, pixels="bytes", **output
        )
    numbers: Numbers = "bytes" if task.observation_dtype == "uint8" else "floats"
    return replace(
        foreign,
        observation_space=observations_of(shape, numbers),
        action_space=None,
        squashed=note.score_kind == "squashed_gaussian",
    )


# --- one reader for each kind of file


def _read_sb3(path: Path, request: Request) -> ForeignPolicy:
    return read_sb3(
        path,
        architecture=request.options.teacher_network,
        normalization=request.options.normalization,
        folders=folders_in(request.folder),
        trust_pickle=request.options.trust_pickle,
    )


def _read_cleanrl(path: Path, request: Request) -> ForeignPolicy:
    architecture = request.options.teacher_network
    return read_cleanrl(path, observation_shape=request.shape, architecture=architecture, numbers=request.numbers)


def _read_program(kind: str, path: Path, request: Request) -> ForeignPolicy:
    output, inputs = request.options.teacher_output, request.options.teacher_input
    return read_program(kind, path, output=output, inputs=inputs, **request.outputs)


def _read_state_dict(path: Path, request: Request) -> ForeignPolicy:
    refuse_recognised(path)
    return read_state_dict(path, architecture=request.options.teacher_network, **request.outputs)


def _refuse(path: Path, request: Request) -> ForeignPolicy:
    check_readable(path)
    refuse_recognised(path)
    raise UserError(
        f"{path} is no policy that rldistill knows: it reads policy folders, Stable-Baselines3 zips, CleanRL "
        "checkpoints, ONNX, TorchScript, plain state dicts and what its own export wrote"
    )


_READERS: Mapping[str, Callable[[Path, Request], ForeignPolicy]] = {
    "sb3": _read_sb3,
    "cleanrl": _read_cleanrl,
    "onnx": partial(_read_program, "onnx"),
    "torchscript": partial(_read_program, "torchscript"),
    "state dict": _read_state_dict,
}
