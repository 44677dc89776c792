"""TorchScript files: programs that run in PyTorch's own interpreter, never in Python's."""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rldistill.formats.archives import DEFAULT_LIMITS, MOST_BYTES, read_members, read_policy
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
from rldistill.formats.outputs import ActionRange, Wanted, choose_output, scores_of
from rldistill.formats.programs import in_batches, last_line, policy_of
from rldistill.formats.torchscript.graphs import check_graph
from rldistill.types import UserError, printable

# TorchScript has no imports and no Python, but it has these: files written and mapped (`torch.save` and `torch.from_file`
# are operators like any other), calls to other machines, and loops, whose end nobody can foresee. A network needs none of
# them, so they are looked for in the program's text, whatever the context, before PyTorch gets to see it. Loading alone
# can run a program already (`__setstate__`), before its graph can be looked at.
_LOOP = "has a loop"
_REFUSED = {
    r"\b(save|from_file|_save|load|_load)\b": "reads or writes files",
    r"\brpc\w*|\bfork\b|\b_?awaitable\b": "starts other programs",
    r"\bops\b(?!\s*\.\s*(aten|prim|quantized)\b)": "calls operators of other libraries",
    r"^\s*(for|while)\b": _LOOP,
    r"\bdef __setstate__\b": "runs while it is loaded",
    r"\b(set_data|_?storage|set_source)\b": "reaches into raw memory",
}
_PROBED = 16  # rows: one number that is drawn may be the same twice, sixteen are not
_MAX_SOURCE = 4 << 20


class ScriptNetwork(nn.Module):
    """A TorchScript program behind the house's observations: (B, *obs) uint8 or float32 to (B, K) float32."""

    def __init__(self, script: Any, *, floats: bool, divide: bool) -> None:
        super().__init__()
        self.script, self.output = script, ""
        self.floats, self.divide = floats, divide

    def forward(self, observations: Tensor) -> Tensor:
        """Scores (B, K) float32, without gradients."""
        return in_batches(self._run, self._given(observations))

    def outputs(self, observations: Tensor) -> dict[str, Tensor]:
        """All tensors that it gives for (B, *obs), by name or number; a tensor by itself has no name."""
        with torch.no_grad():
            return _flat(self.script(self._given(observations)))

    def _given(self, observations: Tensor) -> Tensor:
        if not self.floats:
            return observations
        return observations.to(torch.float32) / 255.0 if self.divide else observations.to(torch.float32)

    def _run(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            out = _flat(self.script(x))[self.output].to(torch.float32)
        return out[:, None] if out.ndim == 1 else out


def _flat(given: Any, name: str = "") -> dict[str, Tensor]:
    """The tensors in tuples, lists and dictionaries: `0`, `1`, `logits`, `0.logits`."""
    if isinstance(given, Tensor):
        return {name: given}
    parts = given.items() if isinstance(given, dict) else enumerate(given) if isinstance(given, tuple | list) else ()
    tensors: dict[str, Tensor] = {}
    for key, part in parts:
        tensors |= _flat(part, f"{name}.{key}" if name else str(key))
    return tensors


def read_torchscript(
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
) -> ForeignPolicy:
    """A policy that was saved by `torch.jit.save`.

    Such a file is a program of PyTorch operators, so running it is running a stranger's program, in an interpreter that
    knows neither Python nor the system. Its operators for files and other machines, loops, and operators of other libraries
    are refused before the program is loaded, and programs whose course depends on more than the shape of their input
    before they are run (see `torchscript.graphs`). What is left takes the same time and memory whenever it gets as many
    observations, so that `teachers.trial` can measure them.

    Args:
        path: the file.
        observation_shape: what it sees; needed, since the file does not say.
        num_actions: where it is known.
        action_range: the least and the largest of each dimension, where actions are continuous.
        scores: what it gives; needed where the output has no name that says it.
        output: which of several outputs: the number in a tuple, the name in a dictionary; needed where more than one can be
            meant.
        inputs: refused: such a file does not say how large its other inputs are.
        pixels: whether images go in as 0 to 255 or 0 to 1; needed where it has no 255 in it.

    Raises:
        UserError: the file is damaged, refused, or does not run on such observations or give scores for them; or
            something that it does not say is not given.
    """
    data, members = _repacked(path)
    _check_source(members, path)
    if observation_shape is None:
        raise UserError(f"{path} is TorchScript, which does not say what it sees; name the environment (--env)")
    if inputs is not None:
        raise UserError(
            f"{path} is TorchScript, which does not say how large its inputs are: leave --teacher-input out, and save a module "
            "that takes observations alone"
        )
    script = _loaded(data, path)
    check_graph(script, path)
    space = observations_of(observation_shape, numbers)
    _check_arguments(script, path)
    network, supposed = _with_input(script, holds_bytes(space), observation_shape, pixels, path)
    zeros = torch.zeros((_PROBED, *space.shape), dtype=torch.uint8 if space.dtype == "uint8" else torch.float32)
    try:
        first, second = network.outputs(zeros), network.outputs(zeros)
    except Exception as error:  # of the interpreter
        raise UserError(f"{path} does not run on observations of shape {space.shape}: {last_line(error)}") from None
    if not first:
        raise UserError(f"{path} gives no tensor for an observation; save a module that gives scores")
    drawn = {name for name in first if not torch.equal(first[name].nan_to_num(), second[name].nan_to_num())}
    wanted = Wanted(output, scores, num_actions, action_range)
    network.output = choose_output(first, wanted, path, drawn)
    return policy_of(
        network,
        space,
        scores=scores_of(network.output, first[network.output], wanted, path),
        num_actions=num_actions,
        format="TorchScript",
        path=path,
        reason=last_line,
        mismatches=("what it gives is drawn at random, another at each call",) if network.output in drawn else (),
        used=acted(teacher_scores=scores, teacher_output=output, pixels=holds_bytes(space) and pixels),
        provenance={"supposed": supposed, "parameters": sum(parameter.numel() for parameter in script.parameters())},
    )


def _check_source(members: Mapping[str, bytes], path: Path) -> None:
    """Raises UserError where the program's text has what no network needs, or there is none."""
    sources = {name: member for name, member in members.items() if "/code/" in name}
    if not sources:
        raise UserError(f"{path} is no TorchScript file: it has no program in it")
    text = _source(sources, path)
    for pattern, what in _REFUSED.items():
        match = re.search(pattern, text, re.MULTILINE)
        if match:
            # BatchNorm's own source has a loop over sizes, which is gone from what is traced or frozen.
            mend = "; save it by torch.jit.freeze or torch.jit.trace, which leave none" if what == _LOOP else ""
            raise UserError(
                f"{path} is refused: its program {what} ({match.group().strip()!r}), which no network needs{mend}"
            )


def _loaded(data: bytes, path: Path) -> Any:
    """The program. Raises UserError where it is damaged, or a weight is not finite."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that TorchScript is old
            script = torch.jit.load(  # type: ignore[no-untyped-call]  # torch leaves it untyped
                io.BytesIO(data), map_location="cpu"
            )
        script.eval()
        tensors = [*script.parameters(), *script.buffers()]
        for parameter in script.parameters():
            parameter.requires_grad_(False)
    except Exception as error:  # its own parser and unpickler raise what they like
        raise UserError(f"{path} is damaged: {printable(error, 200)}; get the file anew") from None
    for tensor in tensors:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{path}: the weights hold NaN or infinity; the policy is of no use")
    return script


def _check_arguments(script: Any, path: Path) -> None:
    """Raises UserError where the program takes more than observations."""
    needed = [given.name for given in script.forward.schema.arguments[1:] if not given.has_default_value()]
    if len(needed) != 1:
        names = ", ".join(repr(printable(name)) for name in needed[:5]) or "none"
        raise UserError(
            f"{path} takes {len(needed)} inputs ({names}); a policy takes observations alone: save a module around it that "
            "gives it the others, or export it to ONNX"
        )


def _with_input(
    script: Any,
    takes_bytes: bool,
    shape: tuple[int, ...],
    pixels: Pixels | None,
    path: Path,
) -> tuple[ScriptNetwork, list[str]]:
    """What the program is fed with: bytes if it takes and scales them, else floats from 0 to 255 or from 0 to 1."""
    if not takes_bytes:
        return ScriptNetwork(script, floats=True, divide=False), []
    if pixels is not None:
        return ScriptNetwork(script, floats=True, divide=pixels == "unit"), []
    tensors = [*script.parameters(), *script.buffers()]
    if not (_divides(script) or any(_is_scale(tensor) for tensor in tensors)):
        raise unknown_range(path)  # even where it takes bytes: it may only cast them, and have been fed with 0 to 1
    supposed = ["has a 255 in it, so scales pixels itself"]
    raw = ScriptNetwork(script, floats=False, divide=False)
    try:
        raw(torch.zeros((2, *shape), dtype=torch.uint8))
    except Exception:  # the interpreter's own
        return ScriptNetwork(script, floats=True, divide=False), supposed
    return raw, supposed


def _divides(script: Any) -> bool:
    """Whether 255, or one over it, is among the constants of the program, without its branches that are never taken."""
    try:
        frozen = str(torch.jit.freeze(script, optimize_numerics=False).graph)
    except Exception:  # it has no forward, or cannot be frozen: what is unknown is asked for
        return False
    return re.search(r"value=\{?(255\.?0*|0\.00392\d*|3\.92\d*e-0?3)\b", frozen) is not None


def _is_scale(tensor: Tensor) -> bool:
    if tensor.numel() != 1:
        return False
    value = float(tensor)
    return abs(value - 255.0) < 1e-3 or abs(value * 255.0 - 1.0) < 1e-3


def _repacked(path: Path) -> tuple[bytes, dict[str, bytes]]:
    """The archive, written anew from its checked members, and the members by name.

    PyTorch reads archives with another library than Python's; so what was checked is what that library gets.
    """
    limits = DEFAULT_LIMITS._replace(total=MOST_BYTES)
    members = read_members(read_policy(path), lambda name: MOST_BYTES, name=str(path), limits=limits)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, member in members.items():
            archive.writestr(zipfile.ZipInfo(name), member)
    return buffer.getvalue(), members


def _source(sources: dict[str, bytes], path: Path) -> str:
    """The text of all modules of the program."""
    text = []
    for name, member in sources.items():
        if name.endswith(".debug_pkl"):
            continue
        if len(member) > _MAX_SOURCE:
            raise UserError(f"{path} is refused: its program has more than {_MAX_SOURCE >> 20} MiB")
        try:
            text.append(member.decode("ascii"))
        except UnicodeDecodeError:
            raise UserError(f"{path} is damaged: its program is no plain text; get the file anew") from None
    return "\n".join(text)
