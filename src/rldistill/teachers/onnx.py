"""ONNX files, run by onnxruntime on the processor. Nothing in them is Python."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rldistill.teachers.archives import shown
from rldistill.teachers.foreign import DiscreteSpace, ForeignPolicy, ForeignScores
from rldistill.teachers.state_dict import observations_of, scores_named
from rldistill.teachers.tensors import MOST_BYTES
from rldistill.teachers.torchscript import Pixels, checked_outputs
from rldistill.teachers.weights import read_bytes
from rldistill.types import UserError

_DTYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
}
# Of onnx.proto, which never changes a number: message -> field -> the message in it.
_MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {},
}
_METADATA = 14
_NODE_OPERATOR = 4
_ATTRIBUTE_FLOAT = 2
_REFUSED_OPERATORS = {"Loop"}  # nobody can foresee its end
_MAX_DEPTH = 32
_MAX_MEMORY = 1 << 30
_MAX_SECONDS = 5.0
_MAX_FIELDS = 1_000_000


class Contents(NamedTuple):
    """What a model file says that onnxruntime does not tell."""

    external: list[str]
    """Files that hold weights, as the model names them."""
    operators: set[str]
    divides: bool
    """Whether 255, or one over it, is among its constants."""
    parameters: int
    """Numbers in its tensors."""
    nan: bool
    """Whether one of them is NaN. (Infinities are bounds of clips and masks.)"""


class OnnxNetwork(nn.Module):
    """An onnxruntime session behind the house's observations: (B, *obs) uint8 or float32 to (B, K) float32."""

    def __init__(self, session: Any, output: str, *, channels_last: bool, divide: bool) -> None:
        super().__init__()
        self.session = session
        (model_input,) = session.get_inputs()
        self.input, self.output = str(model_input.name), output
        self.dtype = _DTYPES[model_input.type]
        self.batch = model_input.shape[0] if isinstance(model_input.shape[0], int) else None
        self.channels_last, self.divide = channels_last, divide
        self.run_options: Any = None

    def forward(self, observations: Tensor) -> Tensor:
        """Scores (B, K) float32; a model of a fixed batch is run as often as needed, the last time on repeated rows."""
        x = observations.detach().numpy()
        if self.divide:
            x = x.astype(np.float32) / np.float32(255)
        x = x.astype(self.dtype, copy=False)
        if self.channels_last:
            x = np.moveaxis(x, 1, -1)
        if self.batch is None:
            return torch.from_numpy(self._run(np.ascontiguousarray(x)))
        rows = []
        for start in range(0, len(x), self.batch):
            part = x[start : start + self.batch]
            missing = self.batch - len(part)
            padded = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) if missing else part
            rows.append(self._run(np.ascontiguousarray(padded))[: len(part)])
        return torch.from_numpy(np.concatenate(rows))

    def _run(self, x: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        (out,) = self.session.run([self.output], {self.input: x}, self.run_options)
        return np.array(out, dtype=np.float32)  # a copy: torch wants to be allowed to write to it


def read_onnx(
    path: Path,
    *,
    observation_shape: tuple[int, ...] | None = None,
    num_actions: int | None = None,
    scores: ForeignScores | None = None,
    output: str | None = None,
    pixels: Pixels | None = None,
    threads: int = 1,
) -> ForeignPolicy:
    """A policy in an ONNX file.

    Args:
        path: the file; weights in files beside it are read too, elsewhere not.
        observation_shape: (channels, height, width) or (features,), where it is known; images of a model that takes
            channels last are turned round.
        num_actions: where it is known.
        scores: what it gives, where the name of the output and the model's metadata (`score_kind`) do not tell.
        output: which of several outputs; by default the one whose name says scores, else the first.
        pixels: whether images go in as 0 to 255 or 0 to 1; needed where it takes no bytes and has no 255 in it.
        threads: of onnxruntime.

    Raises:
        UserError: the file is damaged, refused, or does not run on such observations or give scores for them; or
            something that it does not say is not given; or onnxruntime is not installed.
    """
    data = read_bytes(path)
    contents = contents_of(data, path)
    _check_contents(contents, path)
    # By its path where there are files beside it, by the bytes that were looked at where there are none.
    session = _session(str(path) if contents.external else data, threads, path)
    shape, channels_last = _input(session, observation_shape, path)
    name, named = _output(session, output, path)
    if scores is None:
        kind = session.get_modelmeta().custom_metadata_map.get("score_kind")
        scores = "q_values" if kind == "q_values" else "logits" if kind == "logits" else named
    if scores is None:
        raise UserError(
            f"{path} does not say whether its output {name!r} gives Q-values or logits: name the kind of scores"
        )
    space = observations_of(shape)
    takes_bytes = session.get_inputs()[0].type == "tensor(uint8)"
    if takes_bytes:
        space = space._replace(low=np.zeros(shape), high=np.full(shape, 255.0), dtype="uint8")
    divide = space.dtype == "uint8" and not takes_bytes and _divide(contents, pixels, path)
    network = OnnxNetwork(session, name, channels_last=channels_last, divide=divide)
    out = _probe(
        network, torch.zeros((2, *shape), dtype=torch.uint8 if space.dtype == "uint8" else torch.float32), path
    )
    outputs = checked_outputs(out, num_actions, scores, path)
    return ForeignPolicy(
        network=network,
        scores=scores,
        algorithm="unknown",
        format="ONNX",
        observation_space=space,
        action_space=DiscreteSpace((outputs,)) if scores in ("q_values", "logits") else None,
        provenance={
            "output": name,
            "parameters": contents.parameters,
            "channels_last": channels_last,
            "producer": shown(session.get_modelmeta().producer_name),
            "supposed": [] if takes_bytes or space.dtype != "uint8" else [f"pixels from 0 to {1 if divide else 255}"],
        },
    )


def _session(source: str | bytes, threads: int, path: Path) -> Any:
    """A session that takes no more than a gigabyte for its tensors, on the processor."""
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"{path} needs onnxruntime: pip install 'rldistill[onnx]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 4  # its complaints come as exceptions too
    options.add_session_config_entry("session.use_env_allocators", "1")
    try:
        _bound_memory()
        # Folding constants is running the model before anybody can stop it.
        session = onnxruntime.InferenceSession(
            source,
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers={"ConstantFolding"},
            enable_fallback=False,
        )
        meta = session.get_modelmeta()  # names are decoded when they are asked for, so what cannot be shows here
        [(given.name, given.type, given.shape) for given in (*session.get_inputs(), *session.get_outputs())]
        _ = meta.producer_name, meta.custom_metadata_map
    except Exception as error:  # its own kinds, which it does not export
        raise UserError(f"{path} is no ONNX model that runs here: {_reason(error)}") from None
    session.disable_fallback()  # which prints, and falls back to the same
    return session


@cache
def _bound_memory() -> None:
    """Once a process: the arena that all sessions share."""
    import onnxruntime

    kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    memory = onnxruntime.OrtMemoryInfo("Cpu", kind, 0, onnxruntime.OrtMemType.DEFAULT)
    onnxruntime.create_and_register_allocator(memory, onnxruntime.OrtArenaCfg({"max_mem": _MAX_MEMORY}))


def _probe(network: OnnxNetwork, observations: Tensor, path: Path) -> Tensor:
    """Scores of the observations, if they come within seconds."""
    import onnxruntime

    network.run_options = onnxruntime.RunOptions()
    timer = threading.Timer(_MAX_SECONDS, setattr, (network.run_options, "terminate", True))
    timer.start()
    try:
        return cast(Tensor, network(observations))
    except Exception as error:
        shape = tuple(observations.shape[1:])
        raise UserError(f"{path} does not run on observations of shape {shape}: {_reason(error)}") from None
    finally:
        timer.cancel()
        network.run_options = None


def contents_of(data: bytes, path: Path) -> Contents:
    """What is in a model, nodes within nodes and functions included.

    Raises:
        UserError: it is no ONNX model.
    """
    contents = Contents([], set(), False, 0, False)
    budget = iter(range(_MAX_FIELDS))
    try:
        if not any(number == 7 for number, _ in _fields(memoryview(data), budget)):
            raise ValueError("it has no graph")
        return _walk(memoryview(data), "model", contents, 0, budget)
    except (ValueError, IndexError, struct.error) as error:
        raise UserError(f"{path} is damaged or no ONNX model ({error}); get the file anew") from None


def metadata_of(data: bytes, path: Path) -> dict[str, str]:
    """A model's own properties, names and texts.

    Raises:
        UserError: it is no ONNX model.
    """
    found = {}
    budget = iter(range(_MAX_FIELDS))
    try:
        for number, value in _fields(memoryview(data), budget):
            if number == _METADATA and isinstance(value, memoryview):
                entry = {key: bytes(part) for key, part in _fields(value, budget) if isinstance(part, memoryview)}
                found[entry.get(1, b"").decode("utf-8", "replace")] = entry.get(2, b"").decode("utf-8", "replace")
    except (ValueError, IndexError, struct.error) as error:
        raise UserError(f"{path} is damaged or no ONNX model ({error}); get the file anew") from None
    return found


def _walk(data: memoryview, message: str, contents: Contents, depth: int, budget: Iterator[int]) -> Contents:
    if depth > _MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    inside = _MESSAGES[message]
    for number, value in _fields(data, budget):
        if message == "node" and number == _NODE_OPERATOR and isinstance(value, memoryview):
            contents.operators.add(bytes(value).decode("utf-8", "replace"))
        elif message == "attribute" and number == _ATTRIBUTE_FLOAT and isinstance(value, int):
            contents = contents._replace(divides=contents.divides or _is_scale(value.to_bytes(8, "little")[:4]))
        elif number in inside and isinstance(value, memoryview):
            if inside[number] == "tensor":
                contents = _tensor(value, contents, budget)
            contents = _walk(value, inside[number], contents, depth + 1, budget)
    return contents


def _tensor(data: memoryview, contents: Contents, budget: Iterator[int]) -> Contents:
    """Dims 1, element type 2, floats 4, raw data 9, external data 13 (entries of key 1 and value 2)."""
    count, kind, raw = 1, 0, memoryview(b"")
    for number, value in _fields(data, budget):
        if number == 1:
            for size in [value] if isinstance(value, int) else _varints(value):
                count *= size
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number in (4, 9) and isinstance(value, memoryview):
            raw = value
        elif number == 4 and isinstance(value, int):  # one float that is not packed
            raw = memoryview(struct.pack("<I", value & 0xFFFFFFFF))
        elif number == 13 and isinstance(value, memoryview):
            entry = {key: bytes(part) for key, part in _fields(value, budget) if isinstance(part, memoryview)}
            if entry.get(1) == b"location":
                contents.external.append(entry.get(2, b"").decode("utf-8", "replace"))
    dtype = {1: "<f4", 11: "<f8"}.get(kind)
    floats = np.frombuffer(raw, dtype) if dtype and len(raw) % int(dtype[-1]) == 0 else np.zeros(0)
    return contents._replace(
        parameters=contents.parameters + count,
        divides=contents.divides or (count == 1 and len(raw) in (4, 8) and _is_scale(bytes(raw))),
        nan=contents.nan or bool(np.isnan(floats).any()),
    )


def _is_scale(raw: bytes) -> bool:
    value = float(struct.unpack("<f" if len(raw) == 4 else "<d", raw)[0])
    return abs(value - 255.0) < 1e-3 or abs(value * 255.0 - 1.0) < 1e-3


def _fields(data: memoryview, budget: Iterator[int]) -> Iterator[tuple[int, int | memoryview]]:
    """Field numbers and values of one protobuf message, as many as the budget has.

    Raises:
        ValueError: it is none.
    """
    position = 0
    while position < len(data):
        if next(budget, None) is None:
            raise ValueError("it has too many parts")
        tag, position = _varint(data, position)
        number, kind = tag >> 3, tag & 7
        value: int | memoryview
        if kind == 0:
            value, position = _varint(data, position)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, position = int.from_bytes(data[position : position + size], "little"), position + size
        elif kind == 2:
            size, position = _varint(data, position)
            value, position = data[position : position + size], position + size
        else:
            raise ValueError("it is no protobuf")
        if position > len(data) or number == 0:
            raise ValueError("it is cut short")
        yield number, value


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("it has a number without an end")


def _varints(data: memoryview) -> Iterator[int]:
    position = 0
    while position < len(data):
        value, position = _varint(data, position)
        yield value


def _check_contents(contents: Contents, path: Path) -> None:
    refused = contents.operators & _REFUSED_OPERATORS
    if refused:
        raise UserError(
            f"{path} is refused: it has a {min(refused)}, whose end nobody can foresee and no network needs"
        )
    if contents.nan:
        raise UserError(f"{path}: the weights hold NaN; the policy is of no use")
    folder = path.resolve().parent
    for location in contents.external:
        place = PurePosixPath(location)
        if not location or place.is_absolute() or ".." in place.parts or "\\" in location or not location.isprintable():
            raise UserError(f"{path} is refused: its weights are in {shown(location)!r}, outside of its folder")
        file = folder / place
        if not file.is_file():
            raise UserError(f"{path} lacks the file of its weights, {shown(location)!r}, beside it")
        if file.stat().st_size > MOST_BYTES:
            raise UserError(f"{path} is refused: its weights in {shown(location)!r} are larger than any known policy")
        if file.resolve() != file:
            raise UserError(f"{path} is refused: its weights are behind a link, {shown(location)!r}")


def _input(session: Any, wanted: tuple[int, ...] | None, path: Path) -> tuple[tuple[int, ...], bool]:
    """Shape of an observation, channels first, and whether the model takes channels last."""
    inputs = session.get_inputs()
    if len(inputs) != 1:
        names = ", ".join(repr(shown(model_input.name)) for model_input in inputs[:5])
        raise UserError(f"{path} takes {len(inputs)} inputs ({names}); a policy takes observations alone")
    if inputs[0].type not in _DTYPES:
        raise UserError(f"{path} takes a {shown(inputs[0].type)}; observations are float or uint8")
    sizes = [size if isinstance(size, int) and size > 0 else None for size in inputs[0].shape[1:]]
    if not inputs[0].shape:
        raise UserError(f"{path} takes a single number, not a batch of observations")
    if wanted is None:
        if None in sizes or not sizes:
            raise UserError(
                f"{path} does not say what it sees (its input is {sizes}); name the environment or the shape"
            )
        known = tuple(size for size in sizes if size is not None)
        last = len(known) == 3 and known[2] < min(known[:2])
        return ((known[2], *known[:2]), True) if last else (known, False)
    if _matches(sizes, wanted):
        return wanted, False
    if len(wanted) == 3 and _matches(sizes, (*wanted[1:], wanted[0])):
        return wanted, True
    raise UserError(f"{path} takes observations of shape {sizes}, not {wanted}: another environment or frame stack")


def _matches(sizes: list[int | None], shape: tuple[int, ...]) -> bool:
    return len(sizes) == len(shape) and all(size in (None, want) for size, want in zip(sizes, shape, strict=True))


def _output(session: Any, wanted: str | None, path: Path) -> tuple[str, ForeignScores | None]:
    """The output's name, and the kind of scores that it says."""
    names = [str(model_output.name) for model_output in session.get_outputs()]
    if wanted is not None:
        if wanted not in names:
            raise UserError(f"{path} has no output {wanted!r}: it has {', '.join(shown(name) for name in names[:5])}")
        return wanted, scores_named([wanted])
    told = [(name, scores_named([name])) for name in names]
    fitting = [(name, kind) for name, kind in told if kind is not None]
    return fitting[0] if len(fitting) == 1 else told[0]


def _divide(contents: Contents, pixels: Pixels | None, path: Path) -> bool:
    if pixels is not None:
        return pixels == "unit"
    if contents.divides:
        return False
    raise UserError(
        f"{path} takes floating images but does not say of which range: say whether pixels are bytes (0 to 255) or unit (0 to 1)"
    )


def _reason(error: Exception) -> str:
    return shown((str(error).strip().splitlines() or [type(error).__name__])[0], 200)
