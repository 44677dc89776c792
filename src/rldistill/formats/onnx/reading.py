"""ONNX files, run by onnxruntime on the processor. Nothing in them is Python."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rldistill.formats.archives import MOST_BYTES, read_policy
from rldistill.formats.foreign import (
    ForeignPolicy,
    ForeignScores,
    Numbers,
    Pixels,
    acted,
    holds_bytes,
    observations_of,
    unknown_range,
)
from rldistill.formats.note import MEMBER, Note, parse_note
from rldistill.formats.onnx.contents import Contents, contents_of, metadata_of
from rldistill.formats.onnx.sizes import check_sizes
from rldistill.formats.outputs import ActionRange, Wanted, before_tanh, choose_output, constants, is_memory, scores_of
from rldistill.formats.programs import in_batches, policy_of
from rldistill.types import UserError, first_line, printable

_DTYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
}
_FILLED: dict[str, type[np.generic]] = {
    **_DTYPES,
    "tensor(bool)": np.bool_,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}
_MAX_FILLED = 1 << 20
_MAX_MEMORY = 1 << 30
_MAX_SECONDS = 5.0
_PROBED = 16  # rows: one number that is drawn may be the same twice, sixteen are not
_MAX_BATCH = 1024  # that a model may fix


# Loops, whose end nobody can foresee; branches, so that one run says what every other takes; searches for whole sentences.
_REFUSED_OPERATORS = {
    "Loop": "whose end nobody can foresee",
    "Scan": "whose end nobody can foresee",
    "SequenceMap": "whose end nobody can foresee",
    "If": "so that nobody can foresee what it does",
    "BeamSearch": "whose end nobody can foresee",
    "GreedySearch": "whose end nobody can foresee",
    "Sampling": "whose end nobody can foresee",
}
_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}  # that onnxruntime brings along


class OnnxNetwork(nn.Module):
    """An onnxruntime session behind the house's observations: (B, *obs) uint8 or float32 to (B, K) float32."""

    def __init__(
        self, session: Any, model_input: Any, *, filled: Mapping[str, float], channels_last: bool, divide: bool
    ) -> None:
        super().__init__()
        self.session = session
        self.input, self.output = str(model_input.name), ""
        self.filled = [(given, filled[given.name]) for given in session.get_inputs() if given.name in filled]
        """Inputs beside the observation, and the number that fills each."""
        self.dtype = _DTYPES[model_input.type]
        self.batch = model_input.shape[0] if isinstance(model_input.shape[0], int) else None
        """Rows of every run, where the model fixes them."""
        self.channels_last, self.divide = channels_last, divide
        self.run_options: Any = None

    def forward(self, observations: Tensor) -> Tensor:
        """Scores (B, K) float32; a model of a fixed batch is run as often as needed, the last time on repeated rows."""
        if self.batch is None:
            return in_batches(self._run, observations)
        parts = []
        for part in torch.split(observations, self.batch):
            missing = self.batch - len(part)
            padded = torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) if missing else part
            parts.append(self._run(padded)[: len(part)])
        return torch.cat(parts)

    def outputs(self, observations: Tensor) -> dict[str, Tensor]:
        """All that it gives for (B, *obs), by name; what is no array of numbers is left out."""
        names = [str(output.name) for output in self.session.get_outputs()]
        values = zip(names, self._values(observations, names), strict=True)
        return {
            name: torch.from_numpy(np.array(value))
            for name, value in values
            if isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and value.dtype.itemsize <= 8
        }

    def _run(self, observations: Tensor) -> Tensor:
        (out,) = self._values(observations, [self.output])
        # A copy: torch wants to be allowed to write to it. One number an observation is a row of one.
        return torch.from_numpy(
            np.array(out, dtype=np.float32).reshape(len(out), -1)
            if np.ndim(out) == 1
            else np.array(out, dtype=np.float32)
        )

    def _values(self, observations: Tensor, names: list[str]) -> list[Any]:
        x = observations.detach().numpy()
        if self.divide:
            x = x.astype(np.float32) / np.float32(255)
        x = x.astype(self.dtype, copy=False)
        if self.channels_last:
            x = np.moveaxis(x, 1, -1)
        given = {self.input: np.ascontiguousarray(x)}
        for other, number in self.filled:
            sizes = [size if isinstance(size, int) and size > 0 else len(x) for size in other.shape]
            given[str(other.name)] = np.full(sizes, number, dtype=_FILLED[other.type])
        values: list[Any] = self.session.run(names, given, self.run_options)
        return values


def read_onnx(
    path: Path,
    *,
    observation_shape: tuple[int, ...] | None = None,
    num_actions: int | None = None,
    action_range: ActionRange | None = None,
    scores: ForeignScores | None = None,
    output: str | None = None,
    inputs: str | None = None,
    pixels: Pixels | None = None,
    numbers: Numbers | None = None,
    threads: int = 1,
) -> ForeignPolicy:
    """A policy in an ONNX file.

    Args:
        path: the file; weights in files beside it are read too, elsewhere not.
        observation_shape: (channels, height, width) or (features,), where it is known; images of a model that takes
            channels last are turned round.
        num_actions: where it is known.
        action_range: the least and the largest of each dimension, where actions are continuous.
        scores: what it gives, where the name of the output and the model's metadata (`score_kind`) do not tell.
        output: which of several outputs; needed where more than one can be meant.
        inputs: what fills the inputs beside the observation, such as `action_masks=1,epsilon=0`.
        pixels: whether images go in as 0 to 255 or 0 to 1; needed where it takes no bytes and has no 255 in it.
        numbers: what the observations are made of, where it is known.
        threads: of onnxruntime.

    Raises:
        UserError: the file is damaged, refused, or does not run on such observations or give scores for them; or
            something that it does not say is not given; or onnxruntime is not installed.
    """
    data = read_policy(path)
    contents = contents_of(data, path)
    _check_contents(contents, path)
    check_sizes(contents, path)
    # By its path where there are files beside it, by the bytes that were looked at where there are none.
    session = _session(str(path) if contents.external else data, threads, path)
    filled = constants(inputs)
    model_input = _observed(session, filled, path)
    shape, channels_last = _input(model_input, observation_shape, path)
    takes_bytes = model_input.type == "tensor(uint8)"
    space = observations_of(shape, numbers or ("bytes" if takes_bytes else None))
    as_floats = holds_bytes(space) and not takes_bytes
    divide = as_floats and _divide(contents, pixels, path)
    network = OnnxNetwork(session, model_input, filled=filled, channels_last=channels_last, divide=divide)
    wanted = Wanted(output, scores, num_actions, action_range)
    metadata = session.get_modelmeta()
    with _stopped_in_time(network):
        kind = metadata.custom_metadata_map.get("score_kind")
        scores, mismatches = _choose_output(network, shape, takes_bytes, wanted, path, score_kind=kind)
        return policy_of(
            network,
            space,
            scores=scores,
            num_actions=num_actions,
            format="ONNX",
            path=path,
            reason=first_line,
            mismatches=(*_memories(filled), *mismatches),
            used=acted(
                teacher_scores=wanted.scores,
                teacher_output=output,
                teacher_input=inputs,
                pixels=as_floats and pixels,
            ),
            provenance={
                "output": network.output,
                "parameters": contents.parameters,
                "channels_last": channels_last,
                "producer": printable(metadata.producer_name),
                "supposed": [] if not as_floats else [f"pixels from 0 to {1 if divide else 255}"],
            },
        )


def _memories(filled: Mapping[str, float]) -> list[str]:
    """A line for each input that looks like a memory and is filled with a number."""
    return [
        f"its input {printable(name)!r} looks like the memory of a recurrent network, which is {number:g} at every step here"
        for name, number in filled.items()
        if is_memory(name)
    ]


def _choose_output(
    network: OnnxNetwork,
    shape: tuple[int, ...],
    takes_bytes: bool,
    wanted: Wanted,
    path: Path,
    *,
    score_kind: str | None,
) -> tuple[ForeignScores, list[str]]:
    """Sets the output that a network gives; returns what that is, and a line for each thing about it that does not fit.

    Args:
        network: is run twice on observations of zeros.
        shape: of an observation.
        takes_bytes: whether observations are bytes.
        wanted: what a user and the environment say of the outputs.
        path: the file, for messages.
        score_kind: what the file says of its scores.

    Raises:
        UserError: the model does not run, or no output can be meant.
    """
    zeros = torch.zeros((network.batch or _PROBED, *shape), dtype=torch.uint8 if takes_bytes else torch.float32)
    try:
        first, second = network.outputs(zeros), network.outputs(zeros)
    except Exception as error:  # of the runtime, which has kinds of its own
        raise UserError(f"{path} does not run on observations of shape {shape}: {first_line(error)}") from None
    drawn = {name for name in first if not torch.equal(first[name].nan_to_num(), second[name].nan_to_num())}
    name = choose_output(first, wanted, path, drawn)
    scores = scores_of(name, first[name], wanted, path, score_kind=score_kind)
    network.output = name
    mismatches = [] if wanted.action_range is None else before_tanh(name, first)
    if name in drawn:
        mismatches.append(f"its output {printable(name)!r} is drawn at random, another at each call")
    return scores, mismatches


def read_note(path: Path) -> Note | None:
    """What `export` wrote into a model; None where `export` did not make it.

    Raises:
        UserError: the model or the note is damaged.
    """
    return parse_note(metadata_of(read_policy(path), path).get(Path(MEMBER).stem), path)


def _check_contents(contents: Contents, path: Path) -> None:
    """Refuses what has loops or branches, operators of others, absurd tensors, and weights elsewhere.

    Raises:
        UserError: any of these.
    """
    domains = _DOMAINS | {function.domain for function in contents.functions}
    for node in contents.nodes:
        if node.operator in _REFUSED_OPERATORS:
            why = _REFUSED_OPERATORS[node.operator]
            raise UserError(f"{path} is refused: it has a {node.operator}, {why} and no network needs")
        if node.domain not in domains:
            raise UserError(
                f"{path} is refused: its operator {printable(node.operator, 60)!r} is of {printable(node.domain, 60)!r}, "
                "which is not known here; export it with ONNX's own operators"
            )
    if contents.largest * 4 > MOST_BYTES:
        raise UserError(f"{path} is refused: it declares a tensor of {contents.largest:,} numbers")
    if contents.nan:
        raise UserError(f"{path}: the weights hold NaN; the policy is of no use")
    folder = path.resolve().parent
    for location in contents.external:
        place = PurePosixPath(location)
        if not location or place.is_absolute() or ".." in place.parts or "\\" in location or not location.isprintable():
            raise UserError(f"{path} is refused: its weights are in {printable(location)!r}, outside of its folder")
        file = folder / place
        if not file.is_file():
            raise UserError(f"{path} lacks the file of its weights, {printable(location)!r}, beside it")
        if file.stat().st_size > MOST_BYTES:
            raise UserError(
                f"{path} is refused: its weights in {printable(location)!r} are larger than any known policy"
            )
        if file.resolve() != file:
            raise UserError(f"{path} is refused: its weights are behind a link, {printable(location)!r}")


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
        raise UserError(f"{path} is no ONNX model that runs here: {first_line(error)}") from None
    session.disable_fallback()  # which prints, and falls back to the same
    return session


@contextmanager
def _stopped_in_time(network: OnnxNetwork) -> Iterator[None]:
    """Its runs end within seconds, by an exception if not by themselves."""
    import onnxruntime

    network.run_options = onnxruntime.RunOptions()
    timer = threading.Timer(_MAX_SECONDS, setattr, (network.run_options, "terminate", True))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        network.run_options = None


@cache
def _bound_memory() -> None:
    """Once a process: the arena that all sessions share."""
    import onnxruntime

    kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    memory = onnxruntime.OrtMemoryInfo("Cpu", kind, 0, onnxruntime.OrtMemType.DEFAULT)
    onnxruntime.create_and_register_allocator(memory, onnxruntime.OrtArenaCfg({"max_mem": _MAX_MEMORY}))


def _observed(session: Any, filled: Mapping[str, float], path: Path) -> Any:
    """The input that takes observations: the only one that no number fills.

    Raises:
        UserError: there is none, or more than one; or another cannot be filled.
    """
    inputs = {str(model_input.name): model_input for model_input in session.get_inputs()}
    names = ", ".join(repr(printable(name)) for name in [*inputs][:5])
    for name in filled:
        if name not in inputs:
            raise UserError(f"{path} has no input {printable(name)!r}, which --teacher-input fills: it has {names}")
        other = inputs.pop(name)
        sizes = [size for size in other.shape[1:] if not (isinstance(size, int) and size > 0)]
        count = math.prod(size for size in other.shape if isinstance(size, int))
        if other.type not in _FILLED or sizes or not 0 < count <= _MAX_FILLED:
            raise UserError(
                f"{path} does not say how large its input {printable(name)!r} is, so --teacher-input cannot fill it"
            )
    if len(inputs) == 1:
        return next(iter(inputs.values()))
    if not inputs:
        raise UserError(f"{path} has no input left for observations: it has {names}")
    for name in inputs:
        if is_memory(name):
            raise UserError(
                f"{path} takes {len(inputs)} inputs ({names}): {printable(name)!r} looks like the memory of a recurrent network, "
                "and rldistill plays policies without a memory"
            )
    last = printable([*inputs][-1])
    raise UserError(
        f"{path} takes {len(inputs)} inputs ({names}); a policy takes observations alone: fill each of the others with a number "
        f"by --teacher-input, such as {last}=1 (a mask of ones allows every action)"
    )


def _input(model_input: Any, wanted: tuple[int, ...] | None, path: Path) -> tuple[tuple[int, ...], bool]:
    """Shape of an observation, channels first, and whether the model takes channels last."""
    if model_input.type not in _DTYPES:
        raise UserError(f"{path} takes a {printable(model_input.type)}; observations are float or uint8")
    sizes = [size if isinstance(size, int) and size > 0 else None for size in model_input.shape[1:]]
    if not model_input.shape:
        raise UserError(f"{path} takes a single number, not a batch of observations")
    if isinstance(model_input.shape[0], int) and not 1 <= model_input.shape[0] <= _MAX_BATCH:
        raise UserError(
            f"{path} takes batches of {model_input.shape[0]} observations; export it with a batch of any size"
        )
    if wanted is None:
        if None in sizes or not sizes:
            raise UserError(f"{path} does not say what it sees (its input is {sizes}); name the environment (--env)")
        shape = tuple(size for size in sizes if size is not None)
        last = len(shape) == 3 and shape[2] < min(shape[:2])
        return ((shape[2], *shape[:2]), True) if last else (shape, False)
    if _matches(sizes, wanted):
        return wanted, False
    if len(wanted) == 3 and _matches(sizes, (*wanted[1:], wanted[0])):
        return wanted, True
    raise UserError(f"{path} takes observations of shape {sizes}, not {wanted}: another environment or frame stack")


def _matches(sizes: list[int | None], shape: tuple[int, ...]) -> bool:
    return len(sizes) == len(shape) and all(size in (None, want) for size, want in zip(sizes, shape, strict=True))


def _divide(contents: Contents, pixels: Pixels | None, path: Path) -> bool:
    if pixels is not None:
        return pixels == "unit"
    if contents.divides:
        return False
    raise unknown_range(path)
