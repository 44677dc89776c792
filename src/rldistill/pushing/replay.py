"""The pictures of a policy at play, as a file that a model's page shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rldistill.envs import Pixels
from rldistill.types import UserError


def write_replay(folder: Path, frames: Sequence[Pixels], rate: float) -> str:
    """Writes frames (height, width, 3) of one size, `rate` a second, as a video that repeats; its name in the folder.

    Raises:
        UserError: it cannot be written.
    """
    from PIL import Image

    # No dithering: its specks differ from frame to frame, and only what differs is written.
    pictures = [Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE) for frame in frames]
    name = "replay.gif"
    duration = 10 * round(100 / rate)  # milliseconds; the format counts in hundredths
    try:
        pictures[0].save(folder / name, save_all=True, append_images=pictures[1:], duration=duration, loop=0)
    except OSError as error:
        raise UserError(f"cannot write {folder / name}: {error.strerror or error}") from None
    return name
