"""State dicts out of a stranger's file, be it of `torch.save` or safetensors. Nothing is executed."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rldistill.formats.archives import read_policy
from rldistill.formats.tensors.files import load_tensors
from rldistill.types import UserError, printable

# Checkpoints that hold more than the weights name them so.
_WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "policy_state_dict",
    "model_weights",
    "model",
    "policy",
    "network",
    "params",
    "q_network",
    "agent",
)
_PREFIXES = ("module.", "_orig_mod.", "actor_critic.")  # of DataParallel, torch.compile and rsl_rl before every name
# Words of the names of state dicts in a checkpoint: the one that acts, and those that do not.
_ACTORS = {"actor", "policy", "pi"}
_CRITICS = {
    "critic",
    "critics",
    "value",
    "values",
    "vf",
    "target",
    "targ",
    "old",
    "discriminator",
    "optimizer",
    "optimizers",
    "optim",
}

_MOST_DIMENSIONS = 8


def read_tensor_file(path: Path) -> Any:
    """What a `.pth`, `.pt`, `.bin` or `.safetensors` file holds: tensors in plain dicts, lists and tuples.

    Raises:
        UserError: it is missing, damaged, something else, or its pickle names anything but tensors and plain values.
    """
    data = read_policy(path)
    if is_safetensors(data[:16], len(data)):
        import safetensors
        import safetensors.torch

        try:
            return safetensors.torch.load(data)
        except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise UserError(f"{path} is damaged: {printable(error, 200)}; get the file anew") from None
    if data[:2] != b"PK" and data[:1] != b"\x80":
        raise UserError(f"{path} holds no tensors: it is neither a torch.save file nor safetensors")
    return load_tensors(data, str(path))


def is_safetensors(start: bytes, size: int) -> bool:
    """Whether a file of `size` bytes that begins so is safetensors: the length of a header, then the header's brace."""
    return len(start) > 8 and start[8:9] == b"{" and 2 <= int(struct.unpack("<Q", start[:8])[0]) <= size - 8


def is_msgpack(start: bytes) -> bool:
    """Whether a file that begins so is Flax's: a MessagePack map or array. (A pickle begins with 0x80 too: an empty map.)"""
    return bool(start) and (0x81 <= start[0] <= 0x9F or 0xDC <= start[0] <= 0xDF)


class Part(NamedTuple):
    """Which state dict of a checkpoint acts."""

    name: str
    """Empty where the file is a state dict itself."""
    others: tuple[str, ...]
    """Names of the other state dicts in it."""


def part_of(value: Any) -> Part:
    """The part of a file's contents that `state_dict_of` takes."""
    if not _is_checkpoint(value):
        return Part("", ())
    name = acting_part(value) or ""
    return Part(name, tuple(str(key) for key, item in value.items() if key != name and _holds_tensors(item)))


def state_dict_of(value: Any, path: Path) -> dict[str, Tensor]:
    """The tensors by name, float32, in the file's order: of a state dict, or of the checkpoint around one.

    Raises:
        UserError: there is none or several, or a value is no floating tensor or not finite.
    """
    if _is_checkpoint(value):
        acting = acting_part(value)
        if acting is None:
            parts = [printable(name) for name, item in value.items() if _holds_tensors(item)]
            says = f"several: {', '.join(parts[:5])}" if parts else "none"
            raise UserError(f"{path} should hold one state dict, but it holds {says}; save the policy's alone")
        value = value[acting]
    if not isinstance(value, Mapping):
        raise UserError(f"{path} holds no state dict but a {type(value).__name__}; save the policy's state_dict()")
    tensors: dict[str, Tensor] = {}
    for name, tensor in value.items():
        if not isinstance(name, str) or len(name) > 500 or not name.isprintable():
            raise UserError(f"{path} holds no state dict: one of its names is no plain text")
        if not isinstance(tensor, Tensor):
            raise UserError(f"{path}: {name!r} is a {type(tensor).__name__}, not a tensor; save the state_dict() alone")
        if tensor.dtype == torch.int64 and tensor.ndim == 0:
            continue  # a counter, such as BatchNorm's; its layer is judged by its other tensors
        if not tensor.is_floating_point():
            raise UserError(f"{path}: {name!r} is of {tensor.dtype}, which is no weight; save the weights as float32")
        if tensor.ndim > _MOST_DIMENSIONS:  # PyTorch itself can do little with them
            raise UserError(f"{path}: {name!r} has {tensor.ndim} dimensions, which no weight has")
        tensors[name] = tensor.detach().to(torch.float32).contiguous()
        if not bool(torch.isfinite(tensors[name]).all()):
            raise UserError(f"{path}: the weights hold NaN or infinity (in {name!r}); the policy is of no use")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _is_checkpoint(value: Any) -> bool:
    """Whether it is no state dict itself; a few tensors may stand beside the state dicts, such as SAC's temperature."""
    if not isinstance(value, Mapping):
        return False
    direct = [name for name, item in value.items() if isinstance(item, Tensor)]
    inner = any(map(_holds_tensors, value.values()))
    return not direct or (inner and not any(str(name).endswith("weight") for name in direct))


def acting_part(checkpoint: Mapping[Any, Any]) -> str | None:
    """The name of the state dict that acts in a checkpoint; None where none or several may be the one."""
    held = {name: _words(name) for name, item in checkpoint.items() if isinstance(name, str) and _holds_tensors(item)}
    others = {name: words for name, words in held.items() if not words & _CRITICS or "actor_critic" in name}
    for choice in (
        [name for name in _WRAPPERS if name in held],
        [name for name, words in others.items() if words & _ACTORS],
        list(others),
    ):
        if len(choice) == 1:
            return choice[0]
    return None


def _words(name: str) -> set[str]:
    return set(re.split(r"[^a-z]+", name.lower()))


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(item, Tensor) for item in value.values())
