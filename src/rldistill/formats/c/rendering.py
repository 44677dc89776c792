"""The text of a C file and its header, from its numbers alone."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from rldistill.formats.c.numbers import CPolicy, skeleton
from rldistill.play.actions import LOG_STD_RANGE, MASKED, bounds, score_width
from rldistill.students.lowering import Affine
from rldistill.types import Task

FIRST_LINE = "/* rldistill-c-policy 2: written by rldistill. Made anew, not edited: it is read back as data. */"
_ON_A_LINE = 16
_AT_ONCE = 10  # neighbours, the sums of 16 channels each: more have no place in the registers


def render(policy: CPolicy) -> tuple[str, str]:
    """The C file and its header.

    Raises:
        ValueError: arrays and description do not fit each other.
    """
    lowered = skeleton(policy)
    task, prefix = policy.task, str(policy.description["prefix"])
    # An asterisk escaped is the same asterisk to JSON, and can end no comment.
    description = json.dumps(policy.description, sort_keys=True).replace("*", "\\u002a")
    parts = [
        FIRST_LINE,
        f"/* {description} */",
        f'#include "{policy.description["header"]}"',
        "",
        "#include <math.h>",
        "",
    ]
    parts += [array_text(name, array) for name, array in policy.arrays.items()]
    if task.continuous:
        parts += [
            array_text("low", np.array(task.action_low, np.float32)),
            array_text("high", np.array(task.action_high, np.float32)),
        ]
    units = [math.prod(layer.outputs) for layer in lowered.layers[:-1]]
    buffers = {"even": max(units[0::2], default=0), "odd": max(units[1::2], default=0)}
    if policy.description["weights"] == "int8":
        filters = (layer for layer in lowered.layers if layer.stride)
        buffers["wide"] = max((layer.weight[0].size * block_of(layer) for layer in filters), default=0)
    parts += [f"static float {name}[{size}];" for name, size in buffers.items() if size]
    kind = "uint8_t" if task.observation_dtype == "uint8" else "float"
    if lowered.shift is not None:
        parts.append(f"static float standardized[{lowered.shift.size}];")
    parts.append("")
    source = kind if lowered.shift is None else "float"
    parts += [POSITIVE] if any(layer.relu for layer in lowered.layers) else []
    parts += [NORMALIZE] if any(layer.norm is not None for layer in lowered.layers) else []
    for number, layer in enumerate(lowered.layers, 1):
        parts.append(layer_text(number, layer, source if number == 1 else "float", policy, first=number == 1))
    calls, at = [], "observation"
    if lowered.shift is not None:
        calls += [
            f"    for (int i = 0; i < {lowered.shift.size}; i++)",
            "        standardized[i] = ((float)observation[i] - shift[i]) * scale[i];",
        ]
        at = "standardized"
    for number in range(1, len(lowered.layers) + 1):
        to = "scores" if number == len(lowered.layers) else ("even", "odd")[(number - 1) % 2]
        calls.append(f"    layer_{number}({at}, {to});")
        at = to
    parts += [f"void {prefix}_scores(const {kind} *observation, float *scores)", "{", *calls, "}", ""]
    parts.append(_act(policy, task, prefix, kind))
    return "\n".join(parts), _header(policy, task, prefix, kind)


def array_text(name: str, array: npt.NDArray[Any]) -> str:
    """An array of numbers."""
    kind, mark = ("int8_t", "") if array.dtype == np.int8 else ("float", "f")
    # The shortest text that is this number again; infinities are bounds of actions.
    words = [f"{word}{mark}".replace("inff", "INFINITY") for word in map(str, array)]
    rows = (",".join(words[at : at + _ON_A_LINE]) for at in range(0, len(words), _ON_A_LINE))
    return f"static const {kind} {name}[{len(words)}] = {{\n" + ",\n".join(rows) + "};"


POSITIVE = """\
static inline float positive(float x)
{
    return x > 0.0f ? x : 0.0f;
}
"""

NORMALIZE = """\
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


def layer_text(number: int | str, layer: Affine, source: str, policy: CPolicy, *, first: bool) -> str:
    """The function of a layer, from one buffer to the next."""
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


def _convolution(number: int | str, layer: Affine, policy: CPolicy, *, first: bool) -> list[str]:
    """Lines that compute some neighbours of a row of outputs at once, 16 or 8 channels of each.

    Their sums, an array each and not one of all, stay in vector registers, and each weight is read once for all of them:
    with the flags of `compiling` fifteen times as fast as one output after the other.
    """
    channels, height, width = layer.inputs
    kernel, stride, (outputs, rows, columns) = layer.weight.shape[2], layer.stride, layer.outputs
    at_once, block = math.ceil(columns / math.ceil(columns / _AT_ONCE)), block_of(layer)
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


def block_of(layer: Affine) -> int:
    """Output channels that are computed at once."""
    return next((size for size in (16, 8) if layer.outputs[0] % size == 0), layer.outputs[0])


def _numbers_of(number: int | str, layer: Affine, policy: CPolicy) -> tuple[str, str, Callable[[str, str], str]]:
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
        extra = [array_text("least", least), array_text("most", most)]
        unit = "least[d] + (tanhf(scores[d]) + 1.0f) / 2.0f * (most[d] - least[d])"
    extra = [line.replace("static const", "    static const", 1) for line in extra]
    return "\n".join(
        [
            f"void {prefix}_act(const {kind} *observation, float *action)",
            "{",
            *extra,
            f"    static float scores[{width}];",
            f"    {prefix}_scores(observation, scores);",
            f"    for (int d = 0; d < {task.action_dimensions}; d++)",
            f"        action[d] = fminf(fmaxf({unit}, low[d]), high[d]);",
            "}",
            "",
        ]
    )


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
            f"/* The action, action[{task.action_dimensions}], in the environment's units and within their range. */\n"
            f"void {prefix}_act(const {kind} *observation, float *action);"
        )
    if task.action_masks:
        action = f"/* {MASKED}. */\n{action}"
    meaning = {
        "q_values": "action values",
        "logits": "unnormalized logits",
        "actions": "actions",
        "gaussian": f"means, then log standard deviations (to be held to {LOG_STD_RANGE[0]:g} to {LOG_STD_RANGE[1]:g})",
        "squashed_gaussian": "means before tanh, then log standard deviations",
    }[policy.score_kind]
    return f"""\
/* A policy of rldistill. No allocation, nothing but libm; its buffers are static, so one thread at a time.
{comment_lines(policy.description.get("interface", ()))} */
#ifndef {upper}_POLICY_H
#define {upper}_POLICY_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

#define {upper}_OBSERVATION_SIZE {math.prod(task.observation_shape)} /* {kind}, {shape}, row-major */
#define {upper}_SCORES {width}

{action}
/* scores[{width}]: {meaning}. */
void {prefix}_scores(const {kind} *observation, float *scores);

#ifdef __cplusplus
}}
#endif

#endif
"""


def comment_lines(lines: Any) -> str:
    """Lines of a comment. They may be a stranger's, so what would end the comment is altered."""
    texts = [str(line) for line in lines] if isinstance(lines, list) else []
    plain = ["".join(letter if " " <= letter <= "~" and letter != "\\" else "?" for letter in text) for text in texts]
    return "\n".join(" * " + text.replace("*/", "* /").replace("/*", "/ *") for text in plain)
