"""The policy folder: `policy.json` says what it is, `weights.safetensors` holds the numbers. Nothing in it is executed.

Teachers and students are saved alike, so a student can be the next teacher.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, cast, get_args

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from rldistill.arguments import checked_arguments
from rldistill.documents import read_json
from rldistill.files import read_regular, replace_file
from rldistill.machine import usual_torch
from rldistill.play.actions import score_width
from rldistill.play.envs.own import Predicting
from rldistill.students.networks import Architecture, Network, build, parameter_count
from rldistill.types import ScoreKind, Task, Teacher, UserError, first_line

FORMAT = "rldistill-policy"
VERSION = 1


class KeptPolicy(Teacher, Protocol):
    """A teacher with numbers and an origin, of our own making or of another tool's: what can be compared and shown."""

    @property
    def network(self) -> nn.Module:
        """With its parameters."""

    @property
    def name(self) -> str:
        """What a table calls its network."""

    @property
    def path(self) -> Path | None:
        """Where it was read, if it was."""

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Whatever is to be known of its making, as plain JSON data."""

    @property
    def sha256(self) -> str:
        """Tells whether two are the same."""

    def weights(self) -> bytes:
        """The numbers as they lie on disk, or as they would."""


class NamedPolicy(NamedTuple):
    """A policy as a table lists it."""

    name: str
    policy: KeptPolicy
    env: str
    """Environment id that it plays by its own account, whatever it is loaded for."""


def named(policy: KeptPolicy) -> NamedPolicy:
    """A loaded policy by its own name."""
    return NamedPolicy(name_of(policy), policy, policy.task.env)


def name_of(policy: str | os.PathLike[str] | KeptPolicy) -> str:
    """What a table calls a policy: its place, spelt in one way, or its network."""
    if isinstance(policy, str | os.PathLike):
        place = os.fspath(policy)
        return place if "://" in place else str(Path(place))
    return str(policy.path) if policy.path is not None else policy.name


def parameters_of(policy: KeptPolicy) -> int:
    """How many numbers were trained; those of an ONNX model are in its file, not in the module that runs it."""
    return parameter_count(policy.network) or int(policy.provenance.get("parameters", 0))


@dataclass(frozen=True)
class SavedPolicy(Predicting):
    """A network with the task it plays and where it comes from. It is a `KeptPolicy`."""

    network: Network
    task: Task
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Command, seed, control steps, scores: whatever is to be known later, as plain JSON data."""
    path: Path | None = None

    @property
    def score_kind(self) -> ScoreKind:
        """What the scores are."""
        return self.network.score_kind

    @property
    def name(self) -> str:
        """The architecture's."""
        return self.network.architecture.name

    @property
    def sha256(self) -> str:
        """Of architecture and float32 numbers, however they were saved."""
        # What is empty is left out, so that a policy of before it could be said is still the same.
        said = {name: value for name, value in self.network.architecture._asdict().items() if value != ()}
        digest = hashlib.sha256(repr(said).encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(tensor.detach().cpu().to(torch.float32).numpy()).tobytes())
        return digest.hexdigest()

    def weights(self) -> bytes:
        """`weights.safetensors` as it lies on disk, or as it would."""
        if self.path is not None:
            return read_regular(self.path / "weights.safetensors")
        return safetensors.torch.save({name: tensor.contiguous() for name, tensor in self.network.state_dict().items()})

    def __call__(self, observations: Tensor) -> Tensor:
        """Scores (B, K) float32, without gradients."""
        with torch.no_grad():
            return cast(Tensor, self.network(observations))


@checked_arguments
def save_policy(
    path: str | os.PathLike[str],
    network: Network,
    task: Task,
    provenance: Mapping[str, Any],
    *,
    dtype: Literal["float32", "float16"] = "float32",
) -> None:
    """Writes a policy folder; each file is replaced in one step, `policy.json` last.

    Raises:
        UserError: a weight is NaN or infinite, or the folder cannot be written.
    """
    path = Path(path)
    kind = {"float32": torch.float32, "float16": torch.float16}[dtype]
    tensors = {name: tensor.detach().cpu().to(kind).contiguous() for name, tensor in network.state_dict().items()}
    for name in ("shift", "scale"):  # 1 / 255 needs its digits
        tensors[name] = network.state_dict()[name].cpu().clone()
    check_finite(tensors, path)
    weights = safetensors.torch.save(tensors)
    card = {
        "format": FORMAT,
        "format_version": VERSION,
        "architecture": network.architecture._asdict(),
        "score_kind": network.score_kind,
        "task": task.as_dict(),
        "weights_dtype": dtype,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "provenance": dict(provenance),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    card["card_sha256"] = card_checksum(card)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the policy folder {path}: {error.strerror}") from None
    replace_file(path / "weights.safetensors", weights)
    replace_file(path / "policy.json", json.dumps(card, indent=2).encode() + b"\n")


def add_provenance(path: Path, more: Mapping[str, Any]) -> None:
    """Adds to the provenance in a policy folder, in one step; the weights stay as they are.

    Raises:
        UserError: there is no policy, or the folder cannot be written.
    """
    card = read_json(path / "policy.json")
    card["provenance"] = {**card.get("provenance", {}), **more}
    card["card_sha256"] = card_checksum(card)
    replace_file(path / "policy.json", json.dumps(card, indent=2).encode() + b"\n")


@usual_torch()
def load_policy(path: str | os.PathLike[str]) -> SavedPolicy:
    """Reads a policy folder, or the student of a run folder.

    Raises:
        UserError: the folder is missing, empty, incomplete, truncated, altered, or holds NaN or infinity.
    """
    folder = Path(path)
    if (folder / "policy" / "policy.json").is_file():  # a run folder
        folder = folder / "policy"
    if not folder.is_dir():
        raise UserError(f"no policy folder at {folder}")
    if not (folder / "policy.json").is_file():
        raise UserError(f"{folder} is no policy folder: it has no policy.json (has its run finished?)")
    card = read_json(folder / "policy.json")
    if card.get("format") != FORMAT or card.get("format_version") != VERSION:
        raise UserError(f"{folder / 'policy.json'} is not of the format {FORMAT} version {VERSION}")
    if not _is_whole(card):
        raise UserError(f"{folder / 'policy.json'} is damaged: its checksum does not fit; get the folder anew")
    weights = folder / "weights.safetensors"
    if not weights.is_file():
        raise UserError(f"{folder} is incomplete: it has no weights.safetensors")
    try:
        data = read_regular(weights)
    except OSError as error:
        raise UserError(f"cannot read {weights}: {error.strerror}") from None
    if hashlib.sha256(data).hexdigest() != card.get("weights_sha256"):
        raise UserError(f"{weights} is damaged: its checksum is not the one in policy.json; get the folder anew")
    try:
        architecture = card["architecture"]
        shape = tuple(int(n) for n in architecture["observation_shape"])
        reads = tuple(int(n) for n in architecture.get("reads", ()))
        if reads and not (len(shape) == 1 and 0 <= min(reads) <= max(reads) < shape[0]):
            raise ValueError(f"it reads features that observations of shape {shape} do not have")
        given = {**architecture, "observation_shape": shape, "reads": reads}
        network = build(Architecture(**given), 0, card["score_kind"])
        task = Task.from_dict(card["task"])
        tensors = safetensors.torch.load(data)
        network.load_state_dict({name: tensor.to(torch.float32) for name, tensor in tensors.items()})
    except UserError:
        raise
    except (LookupError, OverflowError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise UserError(f"{folder} is damaged: {first_line(error)}") from None
    if card["score_kind"] not in get_args(ScoreKind):
        raise UserError(f"{folder / 'policy.json'} is damaged: score_kind is {card['score_kind']!r}")
    if network.architecture.num_actions != _width(task, network) or shape != task.observation_shape:
        raise UserError(f"{folder / 'policy.json'} is damaged: its network does not fit its task")
    provenance = card.get("provenance", {})
    if not isinstance(provenance, dict):
        raise UserError(f"{folder / 'policy.json'} is damaged: its provenance is no JSON object")
    check_finite(tensors, folder)
    network.eval().requires_grad_(False)
    return SavedPolicy(network, task, provenance, folder)


def _width(task: Task, network: Network) -> int | None:
    try:
        return score_width(task, network.score_kind)
    except UserError:
        return None


def _is_whole(card: Mapping[str, Any]) -> bool:
    try:
        return bool(card.get("card_sha256") == card_checksum(card))
    except RecursionError:  # what could just be read may be too deep to be written
        return False


def card_checksum(card: Mapping[str, Any]) -> str:
    """Of what the card says, however it is laid out."""
    said = {name: value for name, value in card.items() if name != "card_sha256"}
    plain = json.loads(json.dumps(said))  # names that are numbers sort otherwise than their text
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def check_finite(tensors: Mapping[str, Tensor], path: Path | None) -> None:
    """Raises UserError where a policy's tensors hold NaN or infinity."""
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(
                f"{path or 'this policy'}: the weights hold NaN or infinity (in {name}); the policy is of no use"
            )
