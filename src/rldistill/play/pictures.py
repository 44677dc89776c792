"""Pictures as arrays: their colours counted, their sizes changed."""

from __future__ import annotations

import numpy as np

from rldistill.play.envs.world import Pixels


def indexed(pixels: Pixels, most: int = 256) -> tuple[Pixels, Pixels]:
    """Pixels (..., 3) as places in a palette, (...), and the palette, (colours, 3).

    Up to `most` colours, nothing is lost; beyond that the colours are reduced to so many.
    """
    codes = (pixels[..., 0].astype(np.uint32) << 16) | (pixels[..., 1].astype(np.uint32) << 8) | pixels[..., 2]
    colours = np.unique(codes)
    if len(colours) <= most:
        palette = np.stack([colours >> 16, colours >> 8 & 255, colours & 255], axis=1).astype(np.uint8)
        return np.searchsorted(colours, codes).astype(np.uint8), palette
    from PIL import Image

    reduced = Image.fromarray(pixels.reshape(1, -1, 3)).quantize(most, dither=Image.Dither.NONE)
    return np.asarray(reduced).reshape(codes.shape), np.array(reduced.getpalette(), dtype=np.uint8).reshape(-1, 3)


def resized(image: Pixels, width: int, height: int) -> Pixels:
    """The image at another size: grown, its pixels stay squares with sharp edges; shrunk, they are averaged."""
    if image.shape[:2] == (height, width):
        return image
    from PIL import Image

    shrinks = width < image.shape[1] or height < image.shape[0]
    way = Image.Resampling.BOX if shrinks else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(image).resize((width, height), way))
