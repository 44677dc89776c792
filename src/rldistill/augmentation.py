"""States that nobody visited, made of two that were. A teacher labels whatever it is shown, so they cost no control step."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from rldistill.types import as_tensor


def compose_(observations: Tensor, partners: Tensor, generator: np.random.Generator) -> None:
    """Makes each observation a composite of itself and its partner, in place.

    Images get a rectangle of their partner's pixels, in all channels and frames, as in CutMix (Yun et al. 2019, arXiv
    1905.04899, equations 1 and 2): its area's share is drawn uniformly, its centre too, and what lies outside is cut off.
    So a paddle here meets a ball from there. Every other partner is shifted first, wrapped around, by an offset drawn
    uniformly: what is seen nowhere but at the edge (a score that counts up) is then met with anything in its place, and the
    student learns from its teacher what to make nothing of. Vectors become a point on the line between the two, drawn
    uniformly, as in mixup (Zhang et al. 2018, arXiv 1710.09412).

    Args:
        observations: (B, channels, height, width) of any type, or (B, features) float; written to.
        partners: the same shape and type, in other memory.
        generator: of everything random here.
    """
    number = len(observations)
    if observations.ndim == 2:
        weights = as_tensor(generator.random((number, 1), dtype=np.float32))
        observations.lerp_(partners, weights)
        return
    side = np.sqrt(generator.random(number))
    edges = []
    for length in observations.shape[2:]:
        centre = generator.integers(length, size=number)
        half = np.maximum(side * length / 2, 0.5)
        first = np.maximum(np.ceil(centre - half), 0).astype(np.int64)
        last = np.minimum(np.floor(centre + half), length - 1).astype(np.int64)
        offsets = generator.integers(length, size=number)
        offsets[1::2] = 0
        runs = zip(first.tolist(), (last + 1).tolist(), offsets.tolist(), strict=True)
        edges.append([_wrapped(low, high, offset, length) for low, high, offset in runs])
    # One by one, and the rectangles alone: a mask over whole batches moves far more memory. NumPy starts a small copy sooner.
    for image, partner, rows, columns in zip(observations.numpy(), partners.numpy(), *edges, strict=True):
        for here, there in rows:
            for across, from_ in columns:
                image[:, here, across] = partner[:, there, from_]


def _wrapped(first: int, end: int, offset: int, length: int) -> list[tuple[slice, slice]]:
    """The places `first` to `end`, and where what stands there comes from, shifted by `offset` and wrapped around: one run
    or two."""
    if first < offset < end:
        return _wrapped(first, offset, offset, length) + _wrapped(offset, end, offset, length)
    back = offset - length if first < offset else offset
    return [(slice(first, end), slice(first - back, end - back))]
