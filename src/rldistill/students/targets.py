"""Transformations of the teacher's values, and the temperature and standardization that are fitted once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from rldistill.play.actions import allowed
from rldistill.types import ScoreKind

Targets: TypeAlias = Literal["raw", "advantage", "standardized"]
Weights: TypeAlias = Literal["none", "gap"]

AUTO_ENTROPY = 0.35
"""Mean entropy of the softened teacher that `temperature auto` aims at for Q-values, as a share of log A."""


class Standardization(NamedTuple):
    """The affine step `scale * (x - shift)` in front of a network: one pair for images, one a feature for vectors."""

    shift: Tensor
    scale: Tensor


def transform(
    values: Tensor, targets: Targets, spread: float, sizes: Sequence[int] = (), masks: Tensor | None = None
) -> Tensor:
    """Teacher's values (B, A) as they are, less their mean over actions, or that in units of `spread`.

    Several discrete actions at once, of `sizes` choices each, have a mean each. With `masks` (B, A) the mean is
    over the allowed actions, and the results for the others have no meaning.
    """
    if targets == "raw":
        return values
    advantages = _advantages(values, sizes, masks)
    return advantages if targets == "advantage" else advantages / spread


def _advantages(values: Tensor, sizes: Sequence[int], masks: Tensor | None) -> Tensor:
    parts = torch.split(values, list(sizes), dim=1) if sizes else (values,)
    if masks is None:
        return torch.cat([part - part.mean(dim=1, keepdim=True) for part in parts], dim=1)
    sides = torch.split(masks, list(sizes), dim=1) if sizes else (masks,)
    means = [
        part.masked_fill(~mask, 0).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True)
        for part, mask in zip(parts, sides, strict=True)
    ]
    return torch.cat([part - mean for part, mean in zip(parts, means, strict=True)], dim=1)


def advantage_spread(values: Tensor, sizes: Sequence[int] = (), masks: Tensor | None = None) -> float:
    """Root mean square of the advantages over states and allowed actions, 1 where all are equal; `sizes` and `masks` as in
    `transform`."""
    advantages = _advantages(values, sizes, masks)
    spread = float((advantages if masks is None else advantages[masks]).square().mean().sqrt())
    return spread if spread > 0 else 1.0


def gaps(values: Tensor, sizes: Sequence[int] = (), masks: Tensor | None = None) -> Tensor:
    """Largest less smallest value (B,) of the allowed actions; Bastani et al. 2018 (VIPER), arXiv 1805.08328.

    Of logits it is the logarithm of how many times likelier the best action is than the worst, for the paper takes log pi(a | s)
    as the values of a policy. Several discrete actions at once, of `sizes` choices each, are one action whose logits are sums, so
    their gaps add up.
    """
    parts = torch.split(values, list(sizes), dim=1) if sizes else (values,)
    if masks is None:
        return torch.stack([part.amax(dim=1) - part.amin(dim=1) for part in parts]).sum(dim=0)
    sides = torch.split(masks, list(sizes), dim=1) if sizes else (masks,)
    return torch.stack(
        [
            part.masked_fill(~mask, -math.inf).amax(dim=1) - part.masked_fill(~mask, math.inf).amin(dim=1)
            for part, mask in zip(parts, sides, strict=True)
        ]
    ).sum(dim=0)


def mean_entropy(values: Tensor, temperature: float, masks: Tensor | None = None) -> float:
    """Mean over states of the entropy of softmax(values / temperature) over the allowed actions, in nats."""
    log_p = (allowed(values, masks).double() / temperature).log_softmax(dim=1)
    surprise = log_p if masks is None else log_p.masked_fill(~masks, 0)
    return float(-(log_p.exp() * surprise).sum(dim=1).mean())


def auto_share(temperature: str) -> float | None:
    """The share of log A that `auto` or `auto:SHARE` aims at; None of a number.

    Raises:
        ValueError: neither is written there, or the share is not between 0 and 1.
    """
    name, colon, share = temperature.partition(":")
    if name != "auto":
        return None
    aim = float(share) if colon else AUTO_ENTROPY
    if not 0 < aim < 1:
        raise ValueError(f"a share of the largest entropy lies between 0 and 1, not {aim}")
    return aim


def auto_temperature(
    values: Tensor, score_kind: ScoreKind, masks: Tensor | None = None, share: float = AUTO_ENTROPY
) -> float:
    """The temperature that suits these values (B, A), over the actions that the masks (B, A) allow.

    Logits are a policy already, and continuous actions have no softmax: 1. Q-values have the scale of the game's
    returns: the temperature is the one at which the softened teacher is, on average over its states, `share` as
    uncertain as a uniform choice. So it does not depend on how the rewards are scaled (Rusu et al. 2015 took 0.01 for
    all games, after trying four).
    """
    if score_kind != "q_values":
        return 1.0
    # Of log A, its mean over states where their numbers of actions differ.
    log_number = math.log(values.shape[1]) if masks is None else float(masks.sum(dim=1).double().log().mean())
    goal = share * log_number
    spread = advantage_spread(values, masks=masks)
    # Entropy grows with the temperature: bisection on its logarithm, around the spread of the values.
    low, high = spread * 1e-6, spread * 1e6
    if not mean_entropy(values, low, masks) < goal < mean_entropy(values, high, masks):
        return spread  # in most states all values are equal
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if mean_entropy(values, middle, masks) < goal else (low, middle)
    # Three digits suffice, and do not depend on the last bit of a sum.
    return float(f"{math.sqrt(low * high):.3g}")


def fitted_temperature(temperature: str, values: Tensor, score_kind: ScoreKind, masks: Tensor | None = None) -> float:
    """The number in `temperature`, or for `auto` and `auto:SHARE` the one that suits the values, as `auto_temperature` does it."""
    share = auto_share(temperature)
    return float(temperature) if share is None else auto_temperature(values, score_kind, masks, share)


def fit_standardization(observations: Tensor) -> Standardization:
    """Mean 0 and variance 1 over these observations (B, *obs): all pixels of an image together, vectors by feature.

    A feature that never changes keeps its scale of 1.
    """
    x = observations.to(torch.float64)
    over = tuple(range(x.ndim)) if x.ndim == 4 else (0,)
    mean = x.mean(dim=over, keepdim=True).flatten()
    deviation = x.var(dim=over, correction=0, keepdim=True).sqrt().flatten()
    scale = torch.where(deviation > 1e-6, 1 / deviation.clamp(min=1e-6), torch.ones_like(deviation))
    return Standardization(mean.float(), scale.float())
