"""Pictures one after the other as a file: GIF and MP4. Neither keeps more of them in memory than two."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from fractions import Fraction
from math import ceil
from typing import Any, BinaryIO

import numpy as np

from rldistill.play.envs.world import Pixels
from rldistill.play.pictures import indexed

_GIF_RATE = 50
"""Pictures a second. Viewers take a hundredth of a second for a tenth."""


def write_gif(file: BinaryIO, pictures: Iterable[Pixels], rate: float) -> None:
    """An endless GIF. Up to 256 new colours a picture (255 after the first) nothing is lost.

    Pillow's own writer holds all pictures until the last: a game of Pong would be a gigabyte. Here each is written when the
    next one is there, as the rectangle in which it differs, with what is the same left transparent.

    Args:
        file: to write to.
        pictures: (height, width, 3) each, of one size, at least one.
        rate: of the pictures, a second; above 50 only every second (third, ...) is kept, which lasts as long.
    """
    every = ceil(rate / _GIF_RATE)
    before: Pixels | None = None
    # A picture and the time when it came up. How long it stays is not clear before the next one.
    waiting: tuple[Pixels, int] | None = None
    count = 0
    for number, picture in enumerate(pictures):
        count = number + 1
        if number % every or (waiting is not None and np.array_equal(picture, waiting[0])):
            continue
        now = _hundredths(number, rate)
        if waiting is None:
            height, width = picture.shape[:2]
            file.write(b"GIF89a" + struct.pack("<HHBBB", width, height, 0x70, 0, 0))
            file.write(b"!\xff\x0bNETSCAPE2.0\x03\x01" + struct.pack("<H", 0) + b"\0")
        else:
            file.write(_gif_frame(waiting[0], before, now - waiting[1]))
            before = waiting[0]
        waiting = (picture, now)
    assert waiting is not None
    file.write(_gif_frame(waiting[0], before, max(2, _hundredths(count, rate) - waiting[1])) + b";")


def write_mp4(file: BinaryIO, pictures: Iterable[Pixels], rate: float) -> None:
    """H.264 in an MP4, as every browser plays it.

    Args:
        file: to write to.
        pictures: (height, width, 3) each, of one size with even sides, at least one.
        rate: of the pictures, a second.

    Raises:
        OSError: of the file.
    """
    import av
    from av.video.stream import VideoStream

    container = av.open(file, "w", format="mp4")
    try:
        stream: VideoStream | None = None
        for picture in pictures:
            if stream is None:
                stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1000))
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = "yuv420p"  # the only one that players agree on
                # One thread: the same pictures are the same bytes. Edges of letters and pixels want the low crf.
                stream.options = {"crf": "18", "preset": "medium", "threads": "1"}
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        assert stream is not None
        container.mux(stream.encode())
    except BaseException:
        with suppress(av.FFmpegError):  # the first error counts, not that half a film cannot be closed
            container.close()
        raise
    container.close()


Writer = Callable[[BinaryIO, Iterable[Pixels], float], None]
WRITERS: dict[str, Writer] = {".gif": write_gif, ".mp4": write_mp4}


def _hundredths(number: int, rate: float) -> int:
    """When a picture comes up. Rounded from the start, not from the last: the film is as long as it should be."""
    return round(100 * number / rate)


def _gif_frame(picture: Pixels, before: Pixels | None, delay: int) -> bytes:
    """One image block of the file, with its own colours."""
    from PIL import GifImagePlugin, Image

    if before is None:
        top, left, transparent = 0, 0, None
        places, palette = indexed(picture)
    else:
        unlike = picture != before
        changed = unlike[..., 0] | unlike[..., 1] | unlike[..., 2]
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        top, left = int(rows[0]), int(columns[0])
        window = np.s_[top : rows[-1] + 1, left : columns[-1] + 1]
        new, palette = indexed(picture[changed], 255)
        transparent = len(palette)
        palette = np.concatenate([palette, np.zeros((1, 3), dtype=np.uint8)])
        places = np.full(changed.shape, transparent, dtype=np.uint8)
        places[changed] = new
        places = np.ascontiguousarray(places[window])
    image = Image.fromarray(places)
    image.putpalette(palette.tobytes())
    options = {} if transparent is None else {"transparency": transparent, "disposal": 1}
    encode: Any = GifImagePlugin.getdata
    return b"".join(encode(image, (left, top), include_color_table=True, duration=10 * delay, **options))
