"""All heads of a network as one C file, with the task as an argument."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from rldistill.formats.c.numbers import CPolicy, check_names, laid_out
from rldistill.formats.c.rendering import NORMALIZE, POSITIVE, array_text, comment_lines, layer_text
from rldistill.formats.heads import HeadsPolicy, filler, has_actions, most_scores, observation_dtype, observation_shape
from rldistill.students.lowering import Affine, chain

FIRST_LINE = "/* rldistill-c-tasks 1: written by rldistill. Made anew, not edited. */"
_PLAIN = CPolicy({"weights": "float32"}, {})
"""How layers are rendered."""


def render_heads(policy: HeadsPolicy, note: Mapping[str, Any], *, prefix: str, header: str) -> tuple[str, str]:
    """The C file and its header.

    Raises:
        UserError: the prefix is no C name, the header has no plain file name, or the tasks' observations are of different
            types.
    """
    check_names({"prefix": prefix, "header": header})
    kind = "uint8_t" if observation_dtype(policy) == "uint8" else "float"
    network = policy.network
    views = dict(network.views())
    widest = next(view for view in views.values() if not view.padding)
    chains = {name: chain(view) for name, view in views.items()}
    shared = sum(isinstance(module, nn.Conv2d | nn.Linear) for module in network.torso)
    torso = chain(widest)[:shared]
    heads = [layers[shared:] for layers in chains.values()]
    about = json.dumps(dict(note), sort_keys=True).replace("*", "\\u002a")  # an asterisk escaped can end no comment
    parts = [FIRST_LINE, f"/* {about} */", f'#include "{header}"', "", "#include <math.h>", ""]
    parts += [POSITIVE] if any(layer.relu for layers in (torso, *heads) for layer in layers) else []
    parts += [NORMALIZE] if any(layer.norm for layers in (torso, *heads) for layer in layers) else []
    parts += _layers(torso, "", None)
    for index, layers in enumerate(heads):
        parts += _layers(layers, f"{index}_", torso[-1])
    units = [math.prod(layer.outputs) for layers in (torso, *heads) for layer in layers]
    inputs = math.prod(torso[0].inputs)
    parts += [f"static float {name}[{max(units)}];" for name in ("even", "odd")]
    parts += [f"static float standardized[{inputs}];", ""]
    parts += [_standardization(index, name, policy, kind) for index, name in enumerate(views)]
    parts.append(_scores(policy, torso, heads, prefix, kind))
    if has_actions(list(policy.tasks.values())):
        parts.append(_act(policy, prefix, kind))
    return "\n".join(parts), _header(policy, prefix, kind)


def _layers(layers: list[Affine], label: str, before: Affine | None) -> list[str]:
    """The numbers and the function of each layer."""
    parts = []
    for place, layer in enumerate(layers, 1):
        number, first = f"{label}{place}", before is None
        parts.append(array_text(f"weights_{number}", laid_out(layer, before, first=first).reshape(-1)))
        parts.append(array_text(f"biases_{number}", layer.bias))
        if layer.norm is not None:
            parts.append(array_text(f"norm_weights_{number}", layer.norm.weight))
            parts.append(array_text(f"norm_biases_{number}", layer.norm.bias))
        parts.append(layer_text(number, layer, "float", _PLAIN, first=first))
        before = layer
    return parts


def _standardization(index: int, name: str, policy: HeadsPolicy, kind: str) -> str:
    """A function that fills `standardized` with a task's observation and zeros behind it."""
    view, head = policy.network.view(name), policy.network.heads[name]
    size = head.features * math.prod(head.observation_shape[1:])
    place = "0" if len(view.shift.flatten()) == 1 else "i"
    parts = [
        array_text(f"shift_{index}", view.shift.flatten().numpy().astype(np.float32)),
        array_text(f"scale_{index}", view.scale.flatten().numpy().astype(np.float32)),
    ]
    source = "i"
    if head.reads:
        numbers = ", ".join(map(str, head.reads))
        parts.append(f"static const int32_t reads_{index}[{len(head.reads)}] = {{{numbers}}};")
        source = f"reads_{index}[i]"
    return "\n".join(
        [
            *parts,
            f"static void standardize_{index}(const {kind} *observation)",
            "{",
            f"    for (int i = 0; i < {size}; i++)",
            f"        standardized[i] = ((float)observation[{source}] - shift_{index}[{place}]) * scale_{index}[{place}];",
            f"    for (int i = {size}; i < (int)(sizeof standardized / sizeof *standardized); i++)",
            "        standardized[i] = 0.0f;",
            "}",
            "",
        ]
    )


def _scores(policy: HeadsPolicy, torso: list[Affine], heads: list[list[Affine]], prefix: str, kind: str) -> str:
    at, lines = "standardized", []
    for place in range(1, len(torso) + 1):
        to = ("even", "odd")[(place - 1) % 2]
        lines.append(f"    layer_{place}({at}, {to});")
        at = to
    cases = []
    for index, (layers, task) in enumerate(zip(heads, policy.tasks.values(), strict=True)):
        own, calls = at, []
        for place in range(1, len(layers) + 1):
            other = "odd" if own == "even" else "even"
            to = "scores" if place == len(layers) else other
            calls.append(f"        layer_{index}_{place}({own}, {to});")
            own = to
        width, most = layers[-1].outputs[0], most_scores(policy)
        fill = "-INFINITY" if math.isinf(filler(task)) else "0.0f"
        if width < most:
            calls += [f"        for (int i = {width}; i < {most}; i++)", f"            scores[i] = {fill};"]
        cases += [f"    case {index}:", *calls, f"        return {width};"]
    return "\n".join(
        [
            f"int32_t {prefix}_scores(int64_t task, const {kind} *observation, float *scores)",
            "{",
            "    switch (task) {",
            *(f"    case {index}: standardize_{index}(observation); break;" for index in range(len(heads))),
            "    default: return 0;",
            "    }",
            *lines,
            "    switch (task) {",
            *cases,
            "    }",
            "    return 0;",
            "}",
            "",
        ]
    )


def _act(policy: HeadsPolicy, prefix: str, kind: str) -> str:
    return f"""\
int32_t {prefix}_act(int64_t task, const {kind} *observation)
{{
    static float scores[{most_scores(policy)}];
    const int32_t number = {prefix}_scores(task, observation, scores);
    int32_t best = 0;
    for (int32_t a = 1; a < number; a++)
        if (scores[a] > scores[best])
            best = a;
    return number ? best : -1;
}}
"""


def _header(policy: HeadsPolicy, prefix: str, kind: str) -> str:
    upper = prefix.upper()
    table = []
    for index, (name, head) in enumerate(policy.network.heads.items()):
        shape = " x ".join(map(str, head.observation_shape))
        table.append(f"task {index}: {name}, observation {shape}, {head.num_scores} scores ({head.score_kind})")
    act = ""
    if has_actions(list(policy.tasks.values())):
        act = (
            "\n/* The action of the highest score, the first of equals; -1 of an unknown task. */\n"
            f"int32_t {prefix}_act(int64_t task, const {kind} *observation);\n"
        )
    return f"""\
/* A policy of rldistill for several tasks. No allocation, nothing but libm; its buffers are static, so one thread at a time.
{comment_lines(table)} */
#ifndef {upper}_POLICY_H
#define {upper}_POLICY_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

#define {upper}_TASKS {len(table)}
#define {upper}_OBSERVATION_SIZE {math.prod(observation_shape(policy))} /* {kind}, of the widest task; row-major, channels first */
#define {upper}_SCORES {most_scores(policy)} /* of the widest task; behind a task's own stands -INFINITY, of continuous actions 0 */
{act}
/* Fills scores[{most_scores(policy)}] and returns how many are the task's own; 0 of an unknown task. */
int32_t {prefix}_scores(int64_t task, const {kind} *observation, float *scores);

#ifdef __cplusplus
}}
#endif

#endif
"""
