"""What `export` wrote says of itself: the task and the kind of its scores stand in the file, so nothing must be told again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from rldistill.documents import parse_json
from rldistill.formats.archives import MIB, PATH_LENGTH, printable, read_file, read_members
from rldistill.formats.c import CPolicy, compiled, read_c
from rldistill.formats.foreign import BoxSpace, ForeignPolicy, ForeignScores
from rldistill.formats.interface import FORMAT, MEMBER, VERSION
from rldistill.formats.onnx.contents import metadata_of
from rldistill.formats.sb3.reading import read_sb3
from rldistill.formats.tensors.weights import read_bytes
from rldistill.play.actions import score_width
from rldistill.teachers.trial import read_program
from rldistill.types import ScoreKind, Task, UserError

_KNOWN: dict[str, type] = {"network": str, "parameters": int, "policy_sha256": str, "made_by": str}
_MOST_TEXT = 256 * 1024
_MOST_SOURCE = 256 * MIB
_SCORES: dict[ScoreKind, ForeignScores] = {
    "q_values": "q_values", "logits": "logits", "gaussian": "gaussian", "squashed_gaussian": "gaussian",
    "actions": "deterministic",
}  # fmt: skip


class Exported(NamedTuple):
    """What an exported file says of itself."""

    task: Task
    score_kind: ScoreKind
    known: Mapping[str, Any]
    """Network, parameters, checksum of the policy, version; plain JSON data."""
    c: CPolicy | None = None


def exported_in(kind: str, path: Path) -> Exported | None:
    """What a file says of itself, None where `export` did not write it.

    Args:
        kind: as `detect.kind_of` has it.
        path: the file.

    Raises:
        UserError: the file, or what it says, is damaged.
    """
    if kind == "c":
        name = printable(path, PATH_LENGTH)
        try:
            policy = read_c(read_file(path, _MOST_SOURCE, what="C file").decode("ascii"), name)
        except UnicodeDecodeError:
            raise UserError(f"{name} was changed since rldistill wrote it: export it anew") from None
        return _checked(policy.description, path)._replace(c=policy)
    text: str | bytes | None = None
    if kind == "onnx":
        text = metadata_of(read_bytes(path), path).get(Path(MEMBER).stem)
    elif path.is_dir():  # a zip that was unpacked
        if (path / MEMBER).is_file():
            text = read_file(path / MEMBER, _MOST_TEXT, what="description of a policy")
    elif kind in ("sb3", "torchscript"):

        def wanted(name: str) -> int | None:
            return _MOST_TEXT if name == MEMBER or name.endswith(f"/extra/{MEMBER}") else None

        text = next(iter(read_members(path, wanted).values()), None)
    if text is None:
        return None
    try:
        said = parse_json(text, path)
    except UserError:
        said = None
    if not isinstance(said, dict) or said.get("format") != FORMAT or said.get("format_version") != VERSION:
        raise UserError(
            f"{printable(path, PATH_LENGTH)}: what it says of itself is damaged or of another version; export it anew"
        )
    return _checked(said, path)


def _checked(said: Mapping[str, Any], path: Path) -> Exported:
    try:
        task = Task.from_dict(said["task"])
        kind: ScoreKind = said["score_kind"]
        if kind not in get_args(ScoreKind):
            raise ValueError(f"score_kind is {kind!r}")
        score_width(task, kind)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{printable(path, PATH_LENGTH)}: what it says of itself is damaged ({printable(error)}); export it anew"
        ) from None
    return Exported(task, kind, {name: said[name] for name, type_ in _KNOWN.items() if type(said.get(name)) is type_})


def read_exported(kind: str, path: Path, exported: Exported) -> ForeignPolicy:
    """The policy in the file, ready to be called.

    Raises:
        UserError: the file is damaged, or what runs it is missing (the message names the extra, or the compiler).
    """
    task, score_kind = exported.task, exported.score_kind
    shape, scores = task.observation_shape, _SCORES[score_kind]
    if exported.c is not None:
        foreign = ForeignPolicy(compiled(exported.c, str(path)), scores, "unknown", "C99", None, None)
    elif kind in ("onnx", "torchscript"):
        # Anybody can write that a file is of this kind, so it is tried as any other.
        output = {"output": "scores"} if kind == "onnx" else {}
        foreign = read_program(
            kind, path, observation_shape=shape, num_actions=task.num_actions, scores=scores, pixels="bytes", **output
        )
    else:
        # What lies beside it may be another policy's: this one has its normalization inside.
        return read_sb3(path, folders=None)
    top = np.full(shape, 255.0 if task.observation_dtype == "uint8" else np.inf)
    low = np.zeros(shape) if task.observation_dtype == "uint8" else -top
    return replace(
        foreign,
        observation_space=BoxSpace(shape, low, top, task.observation_dtype),
        action_space=None,
        squashed=score_kind == "squashed_gaussian",
    )
