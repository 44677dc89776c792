"""The format `onnx-int8`: the same model in 8 bits, as a graph of quantize and dequantize pairs (QDQ) that any ONNX runtime
fuses into integer convolutions.

The graph is written here and not by `onnxruntime.quantization`, which lacks what the policy says: bytes are integers
already, so the first convolution of images reads them without any rounding, and the scores, whose differences decide, stay
float32. Vectors too go into their first layer as float32: a scale for all features would drown the small ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rldistill.formats.deployed import NetworkPolicy
from rldistill.formats.onnx.writing import OPSET, add_note
from rldistill.machine import check_packages
from rldistill.play.actions import action_layout, bounds
from rldistill.students.lowering import Affine, Norm, Rounded, activations, int8_layers, lower
from rldistill.types import Observations, Task, as_tensor

_IR_VERSION = 10
_MOST_BIAS = 2.0**30


class _Graph:
    """Nodes and constants as they are added."""

    def __init__(self) -> None:
        import onnx

        self.helper, self.numbers = onnx.helper, onnx.numpy_helper
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        name = output or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(self.helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def constant(self, array: npt.ArrayLike, dtype: npt.DTypeLike) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(self.numbers.from_array(np.asarray(array, dtype=dtype), name))
        return name

    def rounded(self, x: str, values: Tensor, *, flat: bool = False) -> tuple[str, float]:
        """x in 256 steps over the range of these values, and the width of a step."""
        low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
        step = float(np.float32((high - low) / 255)) or 1.0
        scale, zero = self.constant(step, np.float32), self.constant(round(-low / step), np.uint8)
        x = self.add("QuantizeLinear", x, scale, zero)
        x = self.add("Flatten", x, axis=1) if flat else x
        return self.add("DequantizeLinear", x, scale, zero), step

    def affine(self, x: str, layer: Affine, rounded: Rounded, step: float | None, output: str | None) -> str:
        """A layer with int8 weights; its bias is int32 where its input has a step."""
        weight, scales = rounded.numbers.copy(), rounded.scales.copy()
        if step is None:
            bias = self.constant(rounded.bias, np.float32)
        else:
            # An output whose weights are next to nothing has a bias beyond int32 in units of them.
            least = (np.abs(rounded.bias) / (step * _MOST_BIAS)).astype(np.float32)
            for row in np.flatnonzero(scales < least):
                weight[row], scales[row] = 0, least[row]
            unit = (step * scales).astype(np.float32)
            whole = self.constant(np.rint(rounded.bias / unit.astype(np.float64)), np.int32)
            bias = self.add("DequantizeLinear", whole, self.constant(unit, np.float32), axis=0)
        numbers = self.constant(weight, np.int8)
        real = self.add("DequantizeLinear", numbers, self.constant(scales, np.float32), axis=0)
        if layer.stride:
            return self.add("Conv", x, real, bias, output=output, strides=[layer.stride] * 2)
        return self.add("Gemm", x, real, bias, output=output, transB=1)

    def norm(self, x: str, norm: Norm, axes: int) -> str:
        """Over all axes but the batch."""
        over = self.constant(range(1, axes + 1), np.int64)
        centred = self.add("Sub", x, self.add("ReduceMean", x, over))
        variance = self.add("ReduceMean", self.add("Mul", centred, centred), over)
        deviation = self.add("Sqrt", self.add("Add", variance, self.constant(norm.epsilon, np.float32)))
        shape = (-1, *[1] * (axes - 1))
        weight, bias = (self.constant(side.reshape(shape), np.float32) for side in (norm.weight, norm.bias))
        return self.add("Add", self.add("Mul", self.add("Div", centred, deviation), weight), bias)

    def action(self, scores: str, policy: NetworkPolicy) -> None:
        """The output `action`, as `actions.chosen`."""
        task = policy.task
        if not task.continuous and not task.action_sizes:
            self.add("ArgMax", scores, output="action", axis=1, keepdims=0)
        elif not task.continuous:
            ends = np.cumsum(task.action_sizes)
            parts = [self._columns(scores, end - size, end) for end, size in zip(ends, task.action_sizes, strict=True)]
            self.add("Concat", *(self.add("ArgMax", part, axis=1) for part in parts), output="action", axis=1)
        else:
            x = self._columns(scores, 0, task.action_dimensions)
            if policy.score_kind == "squashed_gaussian":
                low, high = (side.numpy() for side in bounds(task))
                half, middle = self.constant((high - low) / 2, np.float32), self.constant((high + low) / 2, np.float32)
                x = self.add("Add", self.add("Mul", self.add("Tanh", x), half), middle)
            x = self.add("Max", x, self.constant(task.action_low, np.float32))
            self.add("Min", x, self.constant(task.action_high, np.float32), output="action")

    def _columns(self, x: str, start: int, end: int) -> str:
        return self.add("Slice", x, *(self.constant([number], np.int64) for number in (start, end, 1)))


def to_onnx_int8(policy: NetworkPolicy, note: Mapping[str, Any], calibration: Observations) -> bytes:
    """A model as `to_onnx` makes it, weights int8 with a scale an output, activations uint8 with a scale a layer.

    Args:
        policy: the student.
        note: what the file says of itself, as `note_of` has it.
        calibration: observations (B, *obs), some hundreds, whose activations give the ranges.

    Raises:
        UserError: the packages of the extra are missing.
    """
    check_packages("onnx", "onnxruntime")
    import onnx

    lowered = lower(policy.network)
    task, graph = policy.task, _Graph()
    bytes_in = task.observation_dtype == "uint8"
    with torch.no_grad():
        outputs, rounded = activations(lowered, as_tensor(calibration)), int8_layers(lowered, as_tensor(calibration))
    step: float | None = None
    x = "observation"
    flat_next = not lowered.layers[0].stride and len(task.observation_shape) > 1
    if lowered.shift is not None and lowered.scale is not None:
        x = graph.add("Cast", x, to=onnx.TensorProto.FLOAT) if bytes_in else x
        x = graph.add("Sub", x, graph.constant(lowered.shift, np.float32))
        x = graph.add("Mul", x, graph.constant(lowered.scale, np.float32))
    elif bytes_in:
        x = graph.add("Flatten", x, axis=1) if flat_next else x
        step = 1.0
        x = graph.add("DequantizeLinear", x, graph.constant(1.0, np.float32), graph.constant(0, np.uint8))
    else:
        x, step = graph.rounded(x, as_tensor(calibration), flat=flat_next)
    for number, (layer, (before, after)) in enumerate(zip(lowered.layers, outputs, strict=True), 1):
        last = number == len(lowered.layers)
        flat = not last and bool(layer.stride) and not lowered.layers[number].stride
        x = graph.affine(x, layer, rounded[number - 1], step, "scores" if last else None)
        if layer.norm is not None:
            x, _ = graph.rounded(x, before)
            x = graph.norm(x, layer.norm, len(layer.outputs))
        if not last:
            x, step = graph.rounded(graph.add("Relu", x), after, flat=flat)
    graph.action("scores", policy)
    return _model(graph, task, lowered.layers[-1].outputs[0], note)


def _model(graph: _Graph, task: Task, width: int, note: Mapping[str, Any]) -> bytes:
    import onnx

    kind, info = onnx.TensorProto, graph.helper.make_tensor_value_info
    given = info(
        "observation",
        kind.UINT8 if task.observation_dtype == "uint8" else kind.FLOAT,
        ["batch", *task.observation_shape],
    )
    dimensions, _ = action_layout(task)
    action = info("action", kind.FLOAT if task.continuous else kind.INT64, ["batch", *dimensions])
    scores = info("scores", kind.FLOAT, ["batch", width])
    made = graph.helper.make_graph(graph.nodes, "policy", [given], [action, scores], graph.constants)
    model = graph.helper.make_model(
        made, opset_imports=[graph.helper.make_opsetid("", OPSET)], ir_version=_IR_VERSION, producer_name="rldistill"
    )
    add_note(model, note)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
