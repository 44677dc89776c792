"""One reader for each kind of file, and what each is given."""

from __future__ import annotations

from pathlib import Path

from rldistill.formats.beside import folders_in
from rldistill.formats.cleanrl.reading import read_cleanrl
from rldistill.formats.foreign import ForeignPolicy, ForeignScores, Numbers
from rldistill.formats.options import TeacherOptions
from rldistill.formats.recognised import refuse_recognised
from rldistill.formats.sb3.reading import read_sb3
from rldistill.formats.tensors.state_dict import read_state_dict
from rldistill.play.envs import is_minatar
from rldistill.teachers.detect import check_readable
from rldistill.teachers.trial import read_program
from rldistill.types import Task, UserError


def read_kind(
    kind: str, path: Path, task: Task | None, options: TeacherOptions, folder: Path | None = None
) -> ForeignPolicy:
    """Reads a file by its kind, with what the environment and the user say of it.

    Args:
        kind: as `detect.kind_of` has it.
        path: the file.
        task: what it is to play, where that is known.
        options: what the file does not say.
        folder: of a model, where the file lies in one; statistics are looked for in its folders too.

    Raises:
        UserError: as the readers, or no reader takes it.
    """
    shape = task.observation_shape if task is not None else None
    numbers = _numbers_of(task) if task is not None else None
    actions = task.num_actions if task is not None else None
    bounds = (task.action_low, task.action_high) if task is not None and task.continuous else None
    scores: ForeignScores | None = options.teacher_scores
    if kind == "sb3":
        return read_sb3(
            path,
            architecture=options.teacher_network,
            normalization=options.normalization,
            folders=folders_in(folder),
            trust_pickle=options.trust_pickle,
        )
    if kind == "cleanrl":
        foreign = read_cleanrl(path, observation_shape=shape, architecture=options.teacher_network, numbers=numbers)
    elif kind in ("onnx", "torchscript"):
        foreign = read_program(
            kind,
            path,
            observation_shape=shape,
            num_actions=actions,
            action_range=bounds,
            scores=scores,
            output=options.teacher_output,
            inputs=options.teacher_input,
            pixels=options.pixels,
            numbers=numbers,
        )
    elif kind == "state dict":
        refuse_recognised(path)
        foreign = read_state_dict(
            path,
            architecture=options.teacher_network,
            observation_shape=shape,
            num_actions=actions,
            action_range=bounds,
            scores=scores,
            pixels=options.pixels,
            numbers=numbers,
        )
    else:
        check_readable(path)
        refuse_recognised(path)
        raise UserError(
            f"{path} is no policy that rldistill knows: it reads policy folders, Stable-Baselines3 zips, CleanRL "
            "checkpoints, ONNX, TorchScript, plain state dicts and what its own export wrote"
        )
    return foreign


def _numbers_of(task: Task) -> Numbers:
    if task.observation_dtype != "uint8":
        return "floats"
    return "binary" if is_minatar(task.env) else "bytes"
