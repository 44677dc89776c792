"""A policy as one C99 file: rendered from numbers, read back as numbers, compiled and called.

Reading is strict: a file is compiled only if it is, character by character, what `render` writes of the numbers and the
description found in it. So the file of a stranger is data here like any other, and no line of its own is ever run.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rldistill.actions import LOG_STD_RANGE, bounds, score_width
from rldistill.lowering import Affine, Lowered, int8_layers, lower
from rldistill.networks import Architecture, Network, build
from rldistill.types import Observations, ScoreKind, Task, UserError, as_tensor

Arrays: TypeAlias = dict[str, npt.NDArray[Any]]

FIRST_LINE = "/* rldistill-c-policy 2: written by rldistill. Made anew, not edited: it is read back as data. */"
_ARRAY = re.compile(r"^static const (float|int8_t) (\w+)\[(\d+)\] = \{\n([^}]*)\};$", re.MULTILINE)
_ON_A_LINE = 16
_AT_ONCE = 10  # neighbours, the sums of 16 channels each: more have no place in the registers
_FLAGS = ("-std=c99", "-O3", "-fPIC", "-shared")
_COMPILE_SECONDS = 300


class CPolicy(NamedTuple):
    """What a C file is rendered from."""

    description: Mapping[str, Any]
    """Plain JSON data: `architecture`, `task`, `score_kind`, `prefix` of the functions, name of the `header`, `weights`
    (float32 or int8), and whatever else is to be known."""
    arrays: Arrays
    """The numbers by name, each flat."""

    @property
    def task(self) -> Task:
        """What it plays."""
        return Task.from_dict(self.description["task"])

    @property
    def score_kind(self) -> ScoreKind:
        """What its scores are."""
        kind: ScoreKind = self.description["score_kind"]
        return kind

    @property
    def weight_bytes(self) -> int:
        """Of its numbers when compiled."""
        return sum(array.nbytes for array in self.arrays.values())


def c_policy(
    network: Network,
    task: Task,
    *,
    prefix: str,
    header: str,
    calibration: Observations | None = None,
    known: Mapping[str, Any],
) -> CPolicy:
    """A network's numbers, ready to be rendered.

    Args:
        network: of any architecture of the house.
        task: what it plays.
        prefix: of the names of functions and macros.
        header: file name of the header that the C file includes.
        calibration: observations (B, *obs), some hundreds; with them the weights are rounded to -127 to 127 with one scale an
            output (`lowering.int8_layers`), and biases and everything else stay float32.
        known: goes into the description too.

    Raises:
        UserError: the prefix is no C name, or the header has no plain file name.
    """
    description = {
        **known,
        "architecture": network.architecture._asdict(),
        "score_kind": network.score_kind,
        "task": task.as_dict(),
        "prefix": prefix,
        "header": header,
        "weights": "float32" if calibration is None else "int8",
    }
    _check_names(description)
    lowered = lower(network)
    rounded = [] if calibration is None else int8_layers(lowered, as_tensor(calibration))
    arrays: Arrays = {}
    if lowered.shift is not None and lowered.scale is not None:
        arrays |= {"shift": lowered.shift, "scale": lowered.scale}
    before: Affine | None = None
    for number, layer in enumerate(lowered.layers, 1):
        weight, bias = _laid_out(layer, before, first=number == 1), layer.bias
        if rounded:
            numbers, arrays[f"scales_{number}"], bias = rounded[number - 1]
            weight = _laid_out(layer._replace(weight=numbers), before, first=number == 1)  # type: ignore[arg-type]  # int8 now
        arrays[f"weights_{number}"] = weight
        arrays[f"biases_{number}"] = bias
        if layer.norm is not None:
            arrays |= {f"norm_weights_{number}": layer.norm.weight, f"norm_biases_{number}": layer.norm.bias}
        before = layer
    return CPolicy(json.loads(json.dumps(description)), {name: array.reshape(-1) for name, array in arrays.items()})


def _laid_out(layer: Affine, before: Affine | None, *, first: bool) -> npt.NDArray[Any]:
    """Outputs last, so that the innermost loop runs over them; what is read pixel by pixel has its channels last."""
    weight = layer.weight
    if layer.stride:  # observations have channels first, what layers give each other has them last
        return weight.transpose(1, 2, 3, 0) if first else weight.transpose(2, 3, 1, 0)
    if before is not None and before.stride:
        return weight.reshape(len(weight), *before.outputs).transpose(2, 3, 1, 0)
    return weight.T


def read_c(text: str, name: str) -> CPolicy:
    """The numbers and the description of a file that `render` wrote.

    Raises:
        UserError: it is none, or was changed since.
    """
    lines = text.split("\n", 2)
    if lines[0] != FIRST_LINE or len(lines) < 3 or not (lines[1].startswith("/* {") and lines[1].endswith("} */")):
        raise UserError(f"{name} is no C file of rldistill export")
    arrays: Arrays = {}
    try:
        description = json.loads(lines[1][3:-3])
        if not isinstance(description, dict):
            raise ValueError("its description is none")
        _check_names(description)
        for kind, array, length, numbers in _ARRAY.findall(text):
            if array in ("low", "high"):  # of the task
                continue
            words = numbers.replace("f", "").replace("\n", "").rstrip(",").split(",")
            arrays[array] = np.array(words, dtype=np.float32 if kind == "float" else np.int8)
            if len(words) != int(length):
                raise ValueError(f"its array {array} is cut short")
        found = CPolicy(description, arrays)
        same = render(found)[0] == text
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError, RecursionError, MemoryError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{name} is damaged: {reason}; export it anew") from None
    if not same:
        raise UserError(f"{name} was changed since rldistill wrote it, so it is not compiled here: export it anew")
    return found


def _check_names(description: Mapping[str, Any]) -> None:
    """Raises UserError where a name could not stand in the file."""
    prefix, header = str(description.get("prefix")), str(description.get("header"))
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,60}", prefix):
        raise UserError(f"{prefix!r} is no prefix of C names: letters, digits and _, a letter first")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*\.h", header):
        raise UserError(f"the C file cannot include {header!r}: take letters, digits, '_', '-' and '.' in --out")


def _skeleton(policy: CPolicy) -> Lowered:
    """The layers with their shapes alone, whose arrays the policy has.

    Raises:
        ValueError: it has others.
    """
    given = policy.description["architecture"]
    shape = tuple(int(n) for n in given["observation_shape"])
    reads = tuple(int(n) for n in given.get("reads", ()))
    if shape != policy.task.observation_shape or policy.description["weights"] not in ("float32", "int8"):
        raise ValueError("its description does not fit itself")
    with torch.device("meta"):  # what a file claims takes no memory before its arrays bear it out
        network = build(Architecture(**{**given, "observation_shape": shape, "reads": reads}), 0, policy.score_kind)
    total = sum(parameter.numel() for parameter in network.parameters())
    there = sum(array.size for array in policy.arrays.values())
    if total > there or (len(shape) == 1 and policy.arrays["shift"].size != shape[0]):
        raise ValueError("its arrays are not those of its network")
    if network.architecture.num_actions != score_width(policy.task, policy.score_kind):
        raise ValueError("its network does not fit its task")
    lowered = lower(network)
    sizes: dict[str, int] = {}
    if lowered.shift is not None:
        sizes |= {"shift": lowered.shift.size, "scale": lowered.shift.size}
    for number, layer in enumerate(lowered.layers, 1):
        sizes |= {f"weights_{number}": layer.weight.size, f"biases_{number}": layer.bias.size}
        if policy.description["weights"] == "int8":
            sizes[f"scales_{number}"] = layer.bias.size
        if layer.norm is not None:
            sizes |= {f"norm_weights_{number}": layer.bias.size, f"norm_biases_{number}": layer.bias.size}
    if sizes != {name: array.size for name, array in policy.arrays.items()}:
        raise ValueError("its arrays are not those of its network")
    return lowered


# --- rendering


def render(policy: CPolicy) -> tuple[str, str]:
    """The C file and its header.

    Raises:
        ValueError: arrays and description do not fit each other.
    """
    lowered = _skeleton(policy)
    task, prefix = policy.task, str(policy.description["prefix"])
    # An asterisk escaped is the same asterisk to JSON, and can end no comment.
    told = json.dumps(policy.description, sort_keys=True).replace("*", "\\u002a")
    parts = [FIRST_LINE, f"/* {told} */", f'#include "{policy.description["header"]}"', "", "#include <math.h>", ""]
    parts += [_array(name, array) for name, array in policy.arrays.items()]
    if task.continuous:
        parts += [
            _array("low", np.array(task.action_low, np.float32)),
            _array("high", np.array(task.action_high, np.float32)),
        ]
    units = [math.prod(layer.outputs) for layer in lowered.layers[:-1]]
    buffers = {"even": max(units[0::2], default=0), "odd": max(units[1::2], default=0)}
    if policy.description["weights"] == "int8":
        filters = (layer for layer in lowered.layers if layer.stride)
        buffers["wide"] = max((layer.weight[0].size * _block(layer) for layer in filters), default=0)
    parts += [f"static float {name}[{size}];" for name, size in buffers.items() if size]
    kind = "uint8_t" if task.observation_dtype == "uint8" else "float"
    if lowered.shift is not None:
        parts.append(f"static float standardized[{lowered.shift.size}];")
    parts.append("")
    source = kind if lowered.shift is None else "float"
    parts += [_POSITIVE] if any(layer.relu for layer in lowered.layers) else []
    parts += [_NORMALIZE] if any(layer.norm is not None for layer in lowered.layers) else []
    for number, layer in enumerate(lowered.layers, 1):
        parts.append(_layer(number, layer, source if number == 1 else "float", policy, first=number == 1))
    calls, at = [], "observation"
    if lowered.shift is not None:
        calls += [f"    for (int i = 0; i < {lowered.shift.size}; i++)",
                  "        standardized[i] = ((float)observation[i] - shift[i]) * scale[i];"]  # fmt: skip
        at = "standardized"
    for number in range(1, len(lowered.layers) + 1):
        to = "scores" if number == len(lowered.layers) else ("even", "odd")[(number - 1) % 2]
        calls.append(f"    layer_{number}({at}, {to});")
        at = to
    parts += [f"void {prefix}_scores(const {kind} *observation, float *scores)", "{", *calls, "}", ""]
    parts.append(_act(policy, task, prefix, kind))
    return "\n".join(parts), _header(policy, task, prefix, kind)


def _array(name: str, array: npt.NDArray[Any]) -> str:
    kind, mark = ("int8_t", "") if array.dtype == np.int8 else ("float", "f")
    # The shortest text that is this number again; infinities are bounds of actions.
    words = [f"{word}{mark}".replace("inff", "INFINITY") for word in map(str, array)]
    rows = (",".join(words[at : at + _ON_A_LINE]) for at in range(0, len(words), _ON_A_LINE))
    return f"static const {kind} {name}[{len(words)}] = {{\n" + ",\n".join(rows) + "};"


_POSITIVE = """\
static inline float positive(float x)
{
    return x > 0.0f ? x : 0.0f;
}
"""

_NORMALIZE = """\
static void normalize(float *x, int units, int channels, const float *weight, const float *bias, float epsilon)
{
    float mean = 0.0f, variance = 0.0f;
    for (int i = 0; i < units; i++)
        mean += x[i];
    mean /= (float)units;
    for (int i = 0; i < units; i++)
        variance += (x[i] - mean) * (x[i] - mean);
    const float by = 1.0f / sqrtf(variance / (float)units + epsilon);
    for (int i = 0; i < units; i++)
        x[i] = positive((x[i] - mean) * by * weight[i % channels] + bias[i % channels]);
}
"""


def _layer(number: int, layer: Affine, source: str, policy: CPolicy, *, first: bool) -> str:
    """A function from one buffer to the next."""
    kind, weight, result = _numbers_of(number, layer, policy)
    outputs = layer.outputs[0]
    lines = [f"static void layer_{number}(const {source} *in, float *out)", "{"]
    if layer.stride:
        lines += _convolution(number, layer, policy, first=first)
    else:
        lines += [
            f"    const {kind} *weight = weights_{number};",
            f"    float sum[{outputs}] = {{0.0f}};",
            f"    for (int i = 0; i < {layer.inputs[0]}; i++, weight += {outputs}) {{",
            "        const float value = (float)in[i];",
            "        if (value != 0.0f)",
            f"            for (int o = 0; o < {outputs}; o++)",
            f"                sum[o] += value * {weight};",
            "    }",
            f"    for (int o = 0; o < {outputs}; o++)",
            f"        out[o] = {result('sum[o]', 'o')};",
        ]
    if layer.norm is not None:
        units = math.prod(layer.outputs)
        lines.append(
            f"    normalize(out, {units}, {outputs}, norm_weights_{number}, norm_biases_{number}, {layer.norm.epsilon}f);"
        )
    return "\n".join([*lines, "}", ""])


def _convolution(number: int, layer: Affine, policy: CPolicy, *, first: bool) -> list[str]:
    """Lines that compute some neighbours of a row of outputs at once, 16 or 8 channels of each.

    Their sums, an array each and not one of all, stay in vector registers, and each weight is read once for all of them:
    with the flags below fifteen times as fast as one output after the other.
    """
    channels, height, width = layer.inputs
    kernel, stride, (outputs, rows, columns) = layer.weight.shape[2], layer.stride, layer.outputs
    at_once, block = math.ceil(columns / math.ceil(columns / _AT_ONCE)), _block(layer)
    # Channels last: a filter's row is one run of numbers. Observations have them first, and become floats row by row.
    lines_of_filter, run, line, step = kernel, kernel * channels, width * channels, stride * channels
    into = [f"            const float *rows = in + y * {stride * line};"]
    if first:
        lines_of_filter, run, line, step = channels * kernel, kernel, width, stride
        into = [
            f"            static float rows[{channels * kernel * width}];",
            f"            for (int c = 0; c < {channels}; c++)",
            f"                for (int i = 0; i < {kernel * width}; i++)",
            f"                    rows[c * {kernel * width} + i] = (float)in[(c * {height} + y * {stride}) * {width} + i];",
        ]
    kind, weight, result = _numbers_of(number, layer, policy)
    start, next_weight, widen = f"weights_{number} + b", outputs, []
    if kind == "int8_t":  # made floats once a block: between the sums it would drive them out of the registers
        widen = [
            f"        for (int i = 0; i < {lines_of_filter * run}; i++)",
            f"            for (int o = 0; o < {block}; o++)",
            f"                wide[i * {block} + o] = (float)weights_{number}[i * {outputs} + b + o];",
        ]
        kind, start, weight, next_weight = "float", "wide", "weight[o]", block

    def neighbours(count: int) -> list[str]:
        return [
            *(f"                float sum_{n}[{block}] = {{0.0f}};" for n in range(count)),
            f"                const {kind} *weight = {start};",
            f"                for (int k = 0; k < {lines_of_filter}; k++) {{",
            f"                    const float *from = rows + k * {line} + x * {step};",
            f"                    for (int i = 0; i < {run}; i++, weight += {next_weight})",
            f"                        for (int o = 0; o < {block}; o++) {{",
            *(f"                            sum_{n}[o] += from[i + {n * step}] * {weight};" for n in range(count)),
            "                        }",
            "                }",
            f"                float *to = out + (y * {columns} + x) * {outputs} + b;",
            f"                for (int o = 0; o < {block}; o++) {{",
            *(f"                    to[{n * outputs} + o] = {result(f'sum_{n}[o]', 'b + o')};" for n in range(count)),
            "                }",
        ]

    full, rest = columns // at_once * at_once, columns % at_once
    last = [f"            for (int x = {full}; x < {columns}; x += {rest}) {{", *neighbours(rest), "            }"]
    return [
        f"    for (int b = 0; b < {outputs}; b += {block}) {{",
        *widen,
        f"        for (int y = 0; y < {rows}; y++) {{",
        *into,
        f"            for (int x = 0; x < {full}; x += {at_once}) {{",
        *neighbours(at_once),
        "            }",
        *(last if rest else []),
        "        }",
        "    }",
    ]


def _block(layer: Affine) -> int:
    """Output channels that are computed at once."""
    return next((size for size in (16, 8) if layer.outputs[0] % size == 0), layer.outputs[0])


def _numbers_of(number: int, layer: Affine, policy: CPolicy) -> tuple[str, str, Callable[[str, str], str]]:
    """Type of the weights, a weight as float, and an output by its sum and the name of its index."""
    int8 = policy.description["weights"] == "int8"

    def result(total: str, o: str) -> str:
        scaled = f"{total} * scales_{number}[{o}]" if int8 else total
        unit = f"{scaled} + biases_{number}[{o}]"
        return f"positive({unit})" if layer.relu and layer.norm is None else unit

    return ("int8_t", "(float)weight[o]", result) if int8 else ("float", "weight[o]", result)


def _act(policy: CPolicy, task: Task, prefix: str, kind: str) -> str:
    width = score_width(task, policy.score_kind)
    if not task.continuous:
        best = (
            "    int32_t best = 0;\n    for (int a = 1; a < {n}; a++)\n"
            "        if (scores[{at}a] > scores[{at}best])\n            best = a;"
        )
        body = [f"    static float scores[{width}];", f"    {prefix}_scores(observation, scores);"]
        if not task.action_sizes:
            lines = [f"int32_t {prefix}_act(const {kind} *observation)", "{", *body]
            return "\n".join([*lines, best.format(n=width, at=""), "    return best;", "}", ""])
        lines, at = [f"void {prefix}_act(const {kind} *observation, int32_t *action)", "{", *body], 0
        for number, size in enumerate(task.action_sizes):
            chosen = textwrap.indent(best.format(n=size, at=f"{at} + "), "    ")
            lines += ["    {", chosen, f"        action[{number}] = best;", "    }"]
            at += size
        return "\n".join([*lines, "}", ""])
    unit = "scores[d]"
    extra: list[str] = []
    if policy.score_kind == "squashed_gaussian":
        least, most = (side.numpy() for side in bounds(task))
        extra = [_array("least", least), _array("most", most)]
        unit = "least[d] + (tanhf(scores[d]) + 1.0f) / 2.0f * (most[d] - least[d])"
    extra = [line.replace("static const", "    static const", 1) for line in extra]
    return "\n".join([
        f"void {prefix}_act(const {kind} *observation, float *action)", "{",
        *extra, f"    static float scores[{width}];", f"    {prefix}_scores(observation, scores);",
        f"    for (int d = 0; d < {task.num_actions}; d++)",
        f"        action[d] = fminf(fmaxf({unit}, low[d]), high[d]);", "}", "",
    ])  # fmt: skip


def _header(policy: CPolicy, task: Task, prefix: str, kind: str) -> str:
    upper = prefix.upper()
    shape = " x ".join(map(str, task.observation_shape))
    width = score_width(task, policy.score_kind)
    if not task.continuous and not task.action_sizes:
        action = (
            f"/* The action of the highest score, 0 to {width - 1}, the first of equals. */\n"
            f"int32_t {prefix}_act(const {kind} *observation);"
        )
    elif not task.continuous:
        action = (
            f"/* The highest score's action in each dimension, action[{len(task.action_sizes)}]. */\n"
            f"void {prefix}_act(const {kind} *observation, int32_t *action);"
        )
    else:
        action = (
            f"/* The action, action[{task.num_actions}], in the environment's units and within their range. */\n"
            f"void {prefix}_act(const {kind} *observation, float *action);"
        )
    meaning = {
        "q_values": "action values", "logits": "unnormalized logits", "actions": "actions",
        "gaussian": f"means, then log standard deviations (to be held to {LOG_STD_RANGE[0]:g} to {LOG_STD_RANGE[1]:g})",
        "squashed_gaussian": "means before tanh, then log standard deviations",
    }[policy.score_kind]  # fmt: skip
    return f"""\
/* A policy of rldistill. No allocation, nothing but libm; its buffers are static, so one thread at a time. */
#ifndef {upper}_POLICY_H
#define {upper}_POLICY_H

#include <stdint.h>

#define {upper}_OBSERVATION_SIZE {math.prod(task.observation_shape)} /* {kind}, {shape}, row-major, as the environment gives it */
#define {upper}_SCORES {width}

{action}
/* scores[{width}]: {meaning}. */
void {prefix}_scores(const {kind} *observation, float *scores);

#endif
"""


# --- compiling


class CNetwork(nn.Module):
    """A compiled policy behind the house's observations: (B, *obs) to (B, K) float32."""

    def __init__(self, policy: CPolicy, library: ctypes.CDLL) -> None:
        super().__init__()
        self.dtype = torch.uint8 if policy.task.observation_dtype == "uint8" else torch.float32
        self.width = score_width(policy.task, policy.score_kind)
        self.shape = policy.task.observation_shape
        self.weight_bytes = policy.weight_bytes
        self.library = library
        self.scores = getattr(library, f"{policy.description['prefix']}_scores")
        self.scores.argtypes, self.scores.restype = [ctypes.c_void_p, ctypes.c_void_p], None

    def forward(self, observations: Tensor) -> Tensor:
        """Scores, row after row.

        Raises:
            UserError: observations of another shape (C would read beyond their end).
        """
        if tuple(observations.shape[1:]) != self.shape:
            raise UserError(f"the policy reads {self.shape}, and is given {tuple(observations.shape[1:])}")
        x = observations.detach().to(self.dtype).contiguous()
        out = torch.empty((len(x), self.width), dtype=torch.float32)
        step = x[0].numel() * x.element_size() if len(x) else 0
        for row in range(len(x)):
            self.scores(x.data_ptr() + row * step, out.data_ptr() + row * self.width * 4)
        return out


def compiler() -> list[str] | None:
    """The words that call the system's C compiler: `$CC`, or the first of cc, gcc and clang; None where there is none."""
    named = shlex.split(os.environ.get("CC", ""))
    found = [*filter(None, map(shutil.which, named[:1] if named else ("cc", "gcc", "clang")))]
    return [found[0], *named[1:]] if found else None


def compiled(policy: CPolicy, name: str) -> CNetwork:
    """The policy as machine code in this process, made by the system's compiler from a fresh rendering.

    Raises:
        UserError: there is no compiler, or it fails.
    """
    cc = compiler()
    if cc is None:
        raise UserError(f"{name} is C, and there is no compiler here to run it with: install cc, or name one in $CC")
    source, header = render(policy)
    with tempfile.TemporaryDirectory(prefix="rldistill-") as folder:
        (Path(folder) / "policy.c").write_text(source)
        (Path(folder) / str(policy.description["header"])).write_text(header)
        failed = ""
        for native in (["-march=native"], []):  # not every compiler knows it
            command = [*cc, *_FLAGS, *native, "policy.c", "-o", "policy.so", "-lm"]
            try:
                done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_COMPILE_SECONDS)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise UserError(f"{name} cannot be compiled: {error}") from None
            if done.returncode == 0:
                # Loaded it stays in memory when its file is gone.
                return CNetwork(policy, ctypes.CDLL(str(Path(folder) / "policy.so")))
            failed = (done.stderr.strip().splitlines() or [f"{cc[0]} failed"])[-1]
    raise UserError(f"{name} cannot be compiled: {failed}")
