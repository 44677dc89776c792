"""What ONNX and TorchScript have in common: they are programs, which run here in batches of sizes that were tried before."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from rldistill.formats.foreign import (
    ALL_OF_MINATAR,
    BoxSpace,
    DiscreteSpace,
    ForeignPolicy,
    ForeignScores,
    holds_bytes,
)
from rldistill.types import UserError, printable

UNITS = "actions are in the environment's units"
_LARGEST_BATCH = 256
_NUMBERS_OF_BATCH = 2**20


def batch_sizes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The batches in which a program is fed: powers of two, up to 256 vectors or a million numbers.

    They are few so that all of them can be tried (see `teachers.trial`) before the program is trusted with any.
    """
    most = max(1, min(_LARGEST_BATCH, _NUMBERS_OF_BATCH // max(1, math.prod(shape))))
    return tuple(2**power for power in range(most.bit_length()))


def in_batches(run: Callable[[Tensor], Tensor], observations: Tensor) -> Tensor:
    """Runs all rows in batches of the tried sizes; the last batch is filled up with copies of its last row."""
    sizes = batch_sizes(tuple(observations.shape[1:]))
    parts = []
    for part in torch.split(observations, sizes[-1]):
        missing = next(size for size in sizes if size >= len(part)) - len(part)
        padded = torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) if missing else part
        parts.append(run(padded)[: len(part)])
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def policy_of(
    network: nn.Module,
    space: BoxSpace,
    *,
    scores: ForeignScores,
    num_actions: int | None,
    format: str,
    path: Path,
    reason: Callable[[Exception], str],
    mismatches: tuple[str, ...] = (),
    used: frozenset[str],
    provenance: Mapping[str, Any],
) -> ForeignPolicy:
    """A policy around a program, once it has given finite scores for two observations of zeros.

    Args:
        network: runs the program: observations (B, *shape) to scores (B, K).
        space: of the observations.
        scores: what it gives.
        num_actions: where it is known.
        format: name of the file's format.
        path: the file, for messages.
        reason: what went wrong, in one line, of an error of the program's runtime.
        mismatches: what does not fit, a line each.
        used: names of the options that acted.
        provenance: what else the file says.

    Raises:
        UserError: the program does not run on such observations, or gives no scores for as many actions.
    """
    zeros = torch.zeros((2, *space.shape), dtype=torch.uint8 if space.dtype == "uint8" else torch.float32)
    try:
        out = network(zeros)
    except Exception as error:  # of the runtime, which has kinds of its own
        raise UserError(f"{path} does not run on observations of shape {space.shape}: {reason(error)}") from None
    planes = space.dtype == "uint8" and not holds_bytes(space)
    outputs = _checked_outputs(out, num_actions, scores, path, ALL_OF_MINATAR if planes else "")
    supposed = [*provenance.get("supposed", ())]
    if scores == "logits" and _are_probabilities(out):
        network = LogProbabilities(network)
        supposed.append("it gives probabilities, so logits are their logarithms")
    if scores == "deterministic":
        supposed.append(UNITS)
    return ForeignPolicy(
        network=network,
        scores=scores,
        algorithm="unknown",
        format=format,
        observation_space=space,
        action_space=DiscreteSpace((outputs,), divided=False) if scores in ("q_values", "logits") else None,
        provenance={**provenance, "supposed": supposed},
        mismatches=mismatches,
        units_supposed=scores in ("deterministic", "gaussian"),
        used=used,
    )


class LogProbabilities(nn.Module):
    """Logits of a network that ends in a softmax: (B, K) to (B, K)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, observations: Tensor) -> Tensor:
        """Logarithms of the probabilities. A probability that is 0 in float32 counts as the least positive number."""
        probabilities = cast(Tensor, self.network(observations))
        return probabilities.clamp(min=torch.finfo(torch.float32).tiny).log()


def last_line(error: Exception) -> str:
    """The end of an error's text, where TorchScript says what went wrong."""
    return printable((str(error).strip().splitlines() or [type(error).__name__])[-1], 200)


def _are_probabilities(out: Tensor) -> bool:
    """Whether each row is a distribution. That logits add up to 1 would be an accident."""
    sums = out.double().sum(dim=1)
    return out.shape[1] > 1 and bool((out >= 0).all()) and bool(((sums - 1).abs() < 1e-5).all())


def _checked_outputs(out: Any, num_actions: int | None, scores: ForeignScores, path: Path, hint: str) -> int:
    """How many numbers a probe of two observations gave for each of them. The hint ends the message where there are six."""
    if not isinstance(out, Tensor) or out.ndim != 2 or out.shape[0] != 2 or not 1 <= out.shape[1] <= 65_536:
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise UserError(f"{path} should give one row of scores for each of 2 observations, but gives {got}")
    if not bool(torch.isfinite(out).all()):
        raise UserError(f"{path} gives NaN or infinity for an observation of zeros; the policy is of no use")
    outputs = int(out.shape[1])
    wanted = None if num_actions is None else num_actions * (2 if scores == "gaussian" else 1)
    if wanted is not None and outputs != wanted:
        why = hint if outputs == 6 else ""
        raise UserError(
            f"{path} gives {outputs} numbers for an observation, but {num_actions} actions need {wanted}{why}"
        )
    return outputs
