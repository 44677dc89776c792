"""The format `onnx`: PyTorch's own exporter, one file, any batch size."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rldistill.formats.deployed import Deployed, NetworkPolicy, example
from rldistill.formats.note import MEMBER
from rldistill.machine import check_packages

OPSET = 18
"""In onnxruntime since 1.14, of February 2023."""


class _Both(Deployed):
    """Action and scores at once."""

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]  # two outputs
        scores = super().forward(observation)
        return self.choose(scores), scores


def to_onnx(policy: NetworkPolicy, note: Mapping[str, Any]) -> bytes:
    """A model with the input `observation` (B, *obs), uint8 or float32, and the outputs `action` and `scores`.

    Raises:
        UserError: the packages of the extra are missing.
    """
    model = exported_model(_Both(policy), {"observation": example(policy)}, ["action", "scores"])
    add_note(model, note)
    return bytes(model.SerializeToString())


def exported_model(module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> Any:
    """A module as an ONNX model of any batch size.

    Args:
        module: called with the inputs in their order.
        inputs: an example of each, of the same batch size.
        outputs: their names.

    Raises:
        UserError: the packages of the extra are missing.
    """
    check_packages("onnx", "onnxscript", "onnxruntime")
    # It warns of operators of packages that are not installed, and of its own calls.
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    batch = torch.export.Dim("batch")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                tuple(inputs.values()),
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=tuple({0: batch} for _ in inputs),
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    finally:
        logger.setLevel(level)
    assert program is not None
    model = program.model_proto
    for node in model.graph.node:  # where in the Python source each came from
        del node.metadata_props[:]
        node.ClearField("doc_string")
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    return model


def add_note(model: Any, note: Mapping[str, Any]) -> None:
    """Writes the note into a model's properties; `score_kind` and `interface` stand alone too, where others look."""
    del model.metadata_props[:]
    texts = {Path(MEMBER).stem: json.dumps(note), "score_kind": str(note["score_kind"])}
    if "interface" in note:
        texts["interface"] = "\n".join(note["interface"])
    for key, text in texts.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, text
