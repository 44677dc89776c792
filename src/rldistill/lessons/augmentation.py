"""Composites of two visited states. A teacher can label any observation, so they cost no control step."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from rldistill.types import as_tensor


def compose_(observations: Tensor, partners: Tensor, generator: np.random.Generator) -> None:
    """Makes each observation a composite of itself and its partner, in place.

    Images get a rectangle of their partner's pixels, in all channels and frames, as in CutMix (Yun et al. 2019, arXiv
    1905.04899, equations 1 and 2). The share of its area and its centre are drawn uniformly, and the parts outside of the
    image are cut off. Pixels keep their places. Vectors become a point on the line between the two, drawn uniformly, as in
    mixup (Zhang et al. 2018, arXiv 1710.09412).

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
        edges.append(list(zip(first.tolist(), (last + 1).tolist(), strict=True)))
    # Rectangles are copied one by one: a mask over whole batches moves far more memory, and small copies are faster in NumPy.
    for image, partner, (top, bottom), (left, right) in zip(
        observations.numpy(), partners.numpy(), *edges, strict=True
    ):
        image[:, top:bottom, left:right] = partner[:, top:bottom, left:right]
