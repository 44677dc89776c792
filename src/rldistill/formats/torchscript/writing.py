"""The format `torchscript`: a traced program of PyTorch's operators."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from rldistill.formats.deployed import Deployed, NetworkPolicy, example
from rldistill.formats.note import MEMBER


def to_torchscript(policy: NetworkPolicy, note: Mapping[str, Any]) -> bytes:
    """`torch.jit.load(file)(observations)` gives scores (B, K), `.act(observations)` actions; both of any batch size."""
    buffer = io.BytesIO()
    given = example(policy)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is old; that constants are constant
        traced = torch.jit.trace_module(  # type: ignore[no-untyped-call]  # torch leaves it untyped
            Deployed(policy), {"forward": (given,), "act": (given,)}
        )
        torch.jit.save(traced, buffer, _extra_files={MEMBER: json.dumps(note)})
    return buffer.getvalue()
