"""Files of Stable-Baselines3: `model.save` writes a zip, which may be unpacked to a folder, `policy.save` a file of PyTorch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rldistill.documents import parse_json
from rldistill.formats.archives import MIB, MOST_BYTES, read_file, read_members
from rldistill.formats.arrays import admits_statistics
from rldistill.formats.note import MEMBER, MOST_TEXT, Note, parse_note, read_zipped_note
from rldistill.formats.pickles import Inert, Named, attributes
from rldistill.formats.sb3 import NEEDED, PARAMETERS
from rldistill.formats.tensors.files import load_state_dict, load_tensors, plain_state_dict
from rldistill.types import UserError, printable

_MEMBERS = {
    "data": 32 * MIB,
    PARAMETERS: 256 * MIB,
    "_stable_baselines3_version": 1024,
    "system_info.txt": 64 * 1024,
}
_CLASSES = re.compile(r"torch\.(nn|optim)(\.\w+)*|stable_baselines3(\.\w+)*|sb3_contrib(\.\w+)*")
_COMPILED = re.compile(r"(^|\.)_orig_mod\.")


class Sb3File(NamedTuple):
    """A policy as Stable-Baselines3 saved it."""

    data: dict[str, Any]
    """As the member `data` of a zip: spaces and settings."""
    tensors: dict[str, Tensor]
    version: str
    system: list[str]
    keeps_class: bool
    """Whether it names the class of the policy."""
    format: str


def open_sb3(path: Path) -> Sb3File:
    """Reads a zip, the folder that one was unpacked to, or a file of `policy.save`, without running anything of it.

    Raises:
        UserError: something is missing, damaged or hostile, or it is another tool's.
    """
    source = str(path)
    if path.is_dir():
        members = {
            name: read_file(path / name, most, what="part of a Stable-Baselines3 policy")
            for name, most in _MEMBERS.items()
            if (path / name).exists()
        }
    else:
        members = read_members(path, _MEMBERS.get)
        if not set(NEEDED) & set(members):
            saved = _saved_policy(path, source)
            if saved is not None:
                return saved
    if "policy.pth" not in members and b'"sbx.' in members.get("data", b""):
        raise UserError(
            f"{source} is of SBX, whose networks are JAX's: write its arrays (model.policy.actor_state.params) to a state "
            "dict, as docs/inspect.md shows under 'Arrays without a network'"
        )
    for name in NEEDED:
        if name not in members:
            raise UserError(
                f"{source} is no Stable-Baselines3 zip: it has no member {name!r} (files of Stable-Baselines 2 are not supported)"
            )
    version = members.get("_stable_baselines3_version", b"").decode(errors="replace").strip()
    system = members.get("system_info.txt", b"").decode(errors="replace")[:2000].splitlines()
    return Sb3File(
        _json(members["data"], source),
        _uncompiled(load_state_dict(members[PARAMETERS], f"{source}: {PARAMETERS}"), source),
        printable(version, 40) or "before 1.0",
        [printable(line, 120) for line in system[:12]],
        keeps_class=True,
        format="Stable-Baselines3 folder" if path.is_dir() else "Stable-Baselines3 zip",
    )


def read_note(path: Path) -> Note | None:
    """What `export` wrote into a zip or the folder that it was unpacked to; None where `export` did not make it.

    Raises:
        UserError: the zip or the note is damaged.
    """
    if not path.is_dir():
        return read_zipped_note(path)
    note = path / MEMBER
    return parse_note(read_file(note, MOST_TEXT, what="description of a policy") if note.is_file() else None, path)


def _json(raw: bytes, source: str) -> dict[str, Any]:
    try:
        data = parse_json(raw, "it")
    except UserError as error:
        raise UserError(
            f"{source} is damaged: its member 'data' is no JSON ({printable(error)}); get it anew"
        ) from None
    if not isinstance(data, dict):
        raise UserError(f"{source} is damaged: its member 'data' is no JSON object; get it anew")
    return data


def _uncompiled(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The tensors under the names that they had before `torch.compile`."""
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        short = _COMPILED.sub(r"\1", name)
        if short in plain and not torch.equal(plain[short], tensor):
            raise UserError(
                f"{source} holds two tensors {printable(short, 60)!r}, compiled and not; save the model anew"
            )
        plain[short] = tensor
    return plain


# --- policy.save


def _saved_policy(path: Path, source: str) -> Sb3File | None:
    """What `policy.save` wrote; None where the file is something else."""
    loaded = load_tensors(read_file(path, MOST_BYTES, what="policy file"), source, admits=_admits)
    if not isinstance(loaded, dict) or not isinstance(loaded.get("data"), dict):
        return None
    data: dict[str, Any] = loaded["data"]
    spaces = {name: _space(data.get(name)) for name in ("observation_space", "action_space")}
    kwargs = {name: _text(value) for name, value in data.items() if isinstance(name, str) and name not in spaces}
    return Sb3File(
        {**spaces, "policy_kwargs": kwargs},
        _uncompiled(plain_state_dict(loaded.get("state_dict"), source), source),
        "unknown",
        [],
        keeps_class=False,
        format="Stable-Baselines3 policy",
    )


def _admits(module: str, name: str) -> bool:
    admitted = admits_statistics(module, name) or _CLASSES.fullmatch(module) is not None
    return admitted or (module, name) == ("builtins", "getattr")  # of a schedule; it is named, and never called


def _text(value: Any) -> Any:
    """A class as the JSON of a zip writes it."""
    if isinstance(value, Named):
        return f"<class '{value.dotted}'>"
    return value if isinstance(value, bool | int | float | str | list) or value is None else {}


def _space(value: Any) -> dict[str, Any]:
    """A space as the JSON of a zip describes it."""
    if not isinstance(value, Inert):
        return {}
    entry: dict[str, Any] = {":type:": f"<class '{value.name}'>", ":serialized:": value}
    for name, item in attributes(value.state).items():
        if name in ("_shape", "shape") and isinstance(item, tuple):
            entry[name] = list(item)
        elif name == "dtype" and isinstance(item, Inert) and item.arguments:
            try:
                entry[name] = np.dtype(item.arguments[0]).name
            except TypeError:
                entry[name] = ""
    return entry
