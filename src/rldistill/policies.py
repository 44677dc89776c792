"""The policy folder: `policy.json` describes a policy, `weights.safetensors` holds its weights. Nothing in it is executed.

Teachers and students are saved in the same way, so a student can be a teacher. A policy has a head for each task that it plays:
`SavedPolicy` is one of a single head, `MultiTaskPolicy` one of several, and its `view` of a task is a `SavedPolicy`.
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
from rldistill.students.heads import Head, MultiTaskNetwork, build_heads, widest_shape
from rldistill.students.networks import Architecture, Network, build, parameter_count
from rldistill.types import ScoreKind, Task, Teacher, UserError, first_line

FORMAT = "rldistill-policy"
VERSION = 2
"""Version 1 knew one head: its architecture, kind of scores and task stood in `policy.json` itself. It is read as before."""


class KeptPolicy(Teacher, Protocol):
    """A teacher with weights and an origin, made by rldistill or by another tool. Scores and tables are made of it."""

    @property
    def network(self) -> nn.Module:
        """With its parameters."""

    @property
    def name(self) -> str:
        """The name of its network in tables."""

    @property
    def path(self) -> Path | None:
        """Where it was read, if it was."""

    @property
    def provenance(self) -> Mapping[str, Any]:
        """How it was made, as plain JSON data."""

    @property
    def sha256(self) -> str:
        """Equal for equal policies."""

    def weights(self) -> bytes:
        """The bytes of its file of weights, or those that saving it would write."""


class NamedPolicy(NamedTuple):
    """A policy as a table lists it."""

    name: str
    policy: KeptPolicy
    env: str
    """Environment id that it plays by its own account, whatever it is loaded for."""
    whole: MultiTaskPolicy | None = None
    """The policy of several tasks that this is one head of."""


def named(policy: KeptPolicy) -> NamedPolicy:
    """A loaded policy by its own name."""
    return NamedPolicy(name_of(policy), policy, policy.task.env)


def named_heads(policy: MultiTaskPolicy, place: str | os.PathLike[str] | MultiTaskPolicy) -> list[NamedPolicy]:
    """Each head of a policy of several tasks, called as a reference names it: `runs/three#PongNoFrameskip-v4`."""
    return [
        NamedPolicy(f"{name_of(place)}#{head}", policy.view(head), task.env, policy)
        for head, task in policy.tasks.items()
    ]


def name_of(policy: str | os.PathLike[str] | KeptPolicy | MultiTaskPolicy) -> str:
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
    """How it was made: command, seed, control steps, scores, as plain JSON data."""
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
        """A hash of architecture and float32 weights, whatever type they were saved in."""
        return _checksum(self.network.architecture.as_dict(), self.network.state_dict())

    def weights(self) -> bytes:
        """The bytes of `weights.safetensors`, or those that saving it would write."""
        if self.path is not None:
            return read_regular(self.path / "weights.safetensors")
        return safetensors.torch.save({name: tensor.contiguous() for name, tensor in self.network.state_dict().items()})

    def __call__(self, observations: Tensor) -> Tensor:
        """Scores (B, K) float32, without gradients."""
        with torch.no_grad():
            return cast(Tensor, self.network(observations))


@dataclass(frozen=True)
class MultiTaskPolicy:
    """A network with a head for each of several tasks, and where it comes from."""

    network: MultiTaskNetwork
    tasks: Mapping[str, Task]
    """By the name of the head, in the order of the heads."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """As of `SavedPolicy`; `scores` holds the scores by task."""
    path: Path | None = None

    @property
    def name(self) -> str:
        """The architecture's."""
        return self.network.name

    @property
    def heads(self) -> Mapping[str, Head]:
        """By task."""
        return self.network.heads

    @property
    def sha256(self) -> str:
        """Of architecture, heads and float32 numbers, however they were saved."""
        heads = [(name, *head) for name, head in self.heads.items()]
        return _checksum({"name": self.name, "heads": heads}, self.network.arrays())

    def weights(self) -> bytes:
        """The bytes of `weights.safetensors`, or those that saving it would write."""
        if self.path is not None:
            return read_regular(self.path / "weights.safetensors")
        return safetensors.torch.save({name: tensor.contiguous() for name, tensor in self.network.arrays().items()})

    def view(self, task: str) -> SavedPolicy:
        """One head as a policy of its own, with the torso's numbers.

        Raises:
            UserError: there is no head for the task; the message names those that are there.
        """
        network = self.network.split(task).eval().requires_grad_(False)
        place = list(self.tasks).index(task)
        made = {
            name: value[place]
            if name in _BY_TASK and isinstance(value, list) and len(value) == len(self.tasks)
            else value
            for name, value in self.provenance.items()
            if name != "scores"
        }
        score = self.provenance.get("scores", {}).get(task)
        return SavedPolicy(network, self.tasks[task], made | ({"score": score} if score else {}))


_BY_TASK = ("teacher", "teacher_made_by", "temperature")
"""Provenance that a policy of several tasks has of each task, in the order of the heads."""


def _checksum(description: Mapping[str, Any], arrays: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(repr(dict(description)).encode())
    for name, tensor in sorted(arrays.items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().to(torch.float32).numpy()).tobytes())
    return digest.hexdigest()


@checked_arguments
def save_policy(
    path: str | os.PathLike[str],
    network: Network | MultiTaskNetwork,
    task: Task | Mapping[str, Task],
    provenance: Mapping[str, Any],
    *,
    dtype: Literal["float32", "float16"] = "float32",
) -> None:
    """Writes a policy folder; each file is replaced in one step, `policy.json` last.

    Args:
        path: of the folder.
        network: of one head or of several.
        task: what it plays; of several heads the task of each, by its name.
        provenance: plain JSON data.
        dtype: how the trained numbers are kept.

    Raises:
        UserError: a weight is NaN or infinite, or the folder cannot be written.
    """
    path = Path(path)
    if isinstance(network, MultiTaskNetwork):
        assert not isinstance(task, Task)
        arrays, torso, heads = network.arrays(), _torso_card(network), _head_cards(network, task)
    else:
        assert isinstance(task, Task)
        arrays, architecture = network.state_dict(), network.architecture
        torso = {name: getattr(architecture, name) for name in _TORSO}
        head = Head(architecture.observation_shape, architecture.num_scores, network.score_kind, architecture.reads)
        heads = [_head_card(task.env, head, task)]
    kind = {"float32": torch.float32, "float16": torch.float16}[dtype]
    # The standardization keeps its digits: 1 / 255 needs them.
    tensors = {
        name: tensor.detach()
        .cpu()
        .to(torch.float32 if name.split(".")[-1] in ("shift", "scale") else kind)
        .contiguous()
        for name, tensor in arrays.items()
    }
    check_finite(tensors, path)
    weights = safetensors.torch.save({name: tensor.clone() for name, tensor in tensors.items()})
    card = {
        "format": FORMAT,
        "format_version": VERSION,
        "kind": "network",
        "architecture": torso,
        "heads": heads,
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


_TORSO = ("name", "observation_shape", "normalization", "dropout")
"""What heads share of an architecture."""


def _torso_card(network: MultiTaskNetwork) -> dict[str, Any]:
    architecture = next(view.architecture for _, view in network.views())
    return {name: getattr(architecture, name) for name in _TORSO} | {"observation_shape": widest_shape(network.heads)}


def _head_cards(network: MultiTaskNetwork, tasks: Mapping[str, Task]) -> list[dict[str, Any]]:
    views = dict(network.views())
    return [
        _head_card(name, head, tasks[name]) | ({"padding": views[name].padding} if views[name].padding else {})
        for name, head in network.heads.items()
    ]


def _head_card(name: str, head: Head, task: Task) -> dict[str, Any]:
    card = {"name": name, "score_kind": head.score_kind, "num_scores": head.num_scores, "task": task.as_dict()}
    return card | ({"reads": head.reads} if head.reads else {})


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
def load_policy(path: str | os.PathLike[str], task: str | None = None) -> SavedPolicy:
    """Reads a policy folder, or the student of a run folder.

    Args:
        path: of the folder.
        task: of a policy with several heads, the one to take.

    Raises:
        UserError: the folder is missing, empty, incomplete, truncated, altered, or holds NaN or infinity; it has several heads
            and `task` is not given, or none for it.
    """
    policy = load_heads(path)
    if isinstance(policy, MultiTaskPolicy):
        if task is None:
            first = next(iter(policy.tasks))
            raise UserError(
                f"{path} plays {len(policy.tasks)} tasks ({', '.join(policy.tasks)}): name one, "
                f"{path}#{first} on the command line or task={first!r} in Python"
            )
        return policy.view(task)
    if task is not None and task != policy.task.env:
        raise UserError(f"{path} has no head for {task!r}: it plays {policy.task.env}")
    return policy


@usual_torch()
def load_heads(path: str | os.PathLike[str]) -> SavedPolicy | MultiTaskPolicy:
    """Reads a policy folder, or the student of a run folder, with all its heads.

    Raises:
        UserError: the folder is missing, empty, incomplete, truncated, altered, or holds NaN or infinity.
    """
    folder = Path(path)
    if (folder / "policy" / "policy.json").is_file():  # a run folder
        folder = folder / "policy"
    card, data = _read_folder(folder)
    try:
        network, tasks = _described(card)
        tensors = {name: tensor.to(torch.float32) for name, tensor in safetensors.torch.load(data).items()}
        if isinstance(network, MultiTaskNetwork):
            network.load_arrays(tensors)
        else:
            network.load_state_dict(tensors)
    except UserError:
        raise
    except (LookupError, OverflowError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise UserError(f"{folder} is damaged: {first_line(error)}") from None
    for (name, task), (_, head) in zip(tasks.items(), heads_of(network), strict=True):
        if head.score_kind not in get_args(ScoreKind):
            raise UserError(f"{folder / 'policy.json'} is damaged: score_kind is {head.score_kind!r}")
        if head.num_scores != _width(task, head.score_kind) or head.observation_shape != task.observation_shape:
            raise UserError(f"{folder / 'policy.json'} is damaged: its network does not fit its task {name}")
    provenance = card.get("provenance", {})
    if not isinstance(provenance, dict):
        raise UserError(f"{folder / 'policy.json'} is damaged: its provenance is no JSON object")
    check_finite(tensors, folder)
    network.eval().requires_grad_(False)
    if isinstance(network, MultiTaskNetwork):
        return MultiTaskPolicy(network, tasks, provenance, folder)
    return SavedPolicy(network, next(iter(tasks.values())), provenance, folder)


def heads_of(network: Network | MultiTaskNetwork) -> list[tuple[str, Head]]:
    """Names and heads, in order; the head of a network that has only one has no name."""
    if isinstance(network, MultiTaskNetwork):
        return list(network.heads.items())
    own = network.architecture
    return [("", Head(own.observation_shape, own.num_scores, network.score_kind, own.reads))]


def _read_folder(folder: Path) -> tuple[dict[str, Any], bytes]:
    """The card, as version 2 writes it, and the bytes of the weights, whose checksums fit."""
    if not folder.is_dir():
        raise UserError(f"no policy folder at {folder}")
    if not (folder / "policy.json").is_file():
        raise UserError(f"{folder} is no policy folder: it has no policy.json (has its run finished?)")
    card = read_json(folder / "policy.json")
    if card.get("format") != FORMAT or card.get("format_version") not in (1, VERSION):
        raise UserError(f"{folder / 'policy.json'} is not of the format {FORMAT} version 1 or {VERSION}")
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
    return card, data


def _described(card: Mapping[str, Any]) -> tuple[Network | MultiTaskNetwork, dict[str, Task]]:
    """The network that a card describes, its weights drawn, and the tasks by the names of its heads."""
    if card["format_version"] == 1:
        architecture = Architecture.from_dict(card["architecture"])
        _check_reads(architecture.reads, architecture.observation_shape)
        task = Task.from_dict(card["task"])
        return build(architecture, 0, card["score_kind"]), {task.env: task}
    if card["kind"] != "network":
        raise ValueError(f"it is a {str(card['kind'])[:40]!r}, which another version of rldistill reads")
    torso = card["architecture"]
    tasks = {str(head["name"]): Task.from_dict(head["task"]) for head in card["heads"]}
    heads = {str(head["name"]): _described_head(head, tasks[str(head["name"])]) for head in card["heads"]}
    if not heads or len(heads) < len(card["heads"]):
        raise ValueError("it has no head, or two of one name")
    if len(heads) > 1:
        name, normalization, dropout = torso["name"], torso["normalization"], torso["dropout"]
        return build_heads(name, heads, 0, normalization=normalization, dropout=dropout), tasks
    (head,) = heads.values()
    shape = tuple(int(n) for n in torso["observation_shape"])
    architecture = Architecture(
        torso["name"], shape, head.num_scores, torso["normalization"], torso["dropout"], head.reads
    )
    return build(architecture, 0, head.score_kind), tasks


def _described_head(head: Mapping[str, Any], task: Task) -> Head:
    reads = tuple(int(n) for n in head.get("reads", ()))
    _check_reads(reads, task.observation_shape)
    return Head(task.observation_shape, int(head["num_scores"]), head["score_kind"], reads)


def _check_reads(reads: tuple[int, ...], shape: tuple[int, ...]) -> None:
    if reads and not (len(shape) == 1 and 0 <= min(reads) <= max(reads) < shape[0]):
        raise ValueError(f"it reads features that observations of shape {shape} do not have")


def _width(task: Task, kind: ScoreKind) -> int | None:
    try:
        return score_width(task, kind)
    except UserError:
        return None


def _is_whole(card: Mapping[str, Any]) -> bool:
    try:
        return bool(card.get("card_sha256") == card_checksum(card))
    except RecursionError:  # JSON that can just be read may be nested too deeply to be written
        return False


def card_checksum(card: Mapping[str, Any]) -> str:
    """The checksum of a card's content, whatever its layout."""
    signed = {name: value for name, value in card.items() if name != "card_sha256"}
    plain = json.loads(json.dumps(signed))  # names that are numbers sort otherwise than their text
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def check_finite(tensors: Mapping[str, Tensor], path: Path | None) -> None:
    """Raises UserError where a policy's tensors hold NaN or infinity."""
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(
                f"{path or 'this policy'}: the weights hold NaN or infinity (in {name}); the policy is of no use"
            )
