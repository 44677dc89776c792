"""Pictures one after the other in a window."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable

from rldistill.machine import check_packages
from rldistill.play.envs.world import Pixels
from rldistill.types import UserError

KEYS = "space pauses, the right arrow key goes a step, q or escape quits"
LOOK_SECONDS = 0.01
"""Seconds between two checks of the keys."""
_INSTEAD = "write a file instead, with --out F.gif or --out F.mp4"


def check_display() -> None:
    """Checks for a display, before anything is loaded and played.

    Raises:
        UserError: pygame is not installed (the message names the extra), or there is no display.
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # it greets on stdout
    check_packages("pygame", extra="window", what=f"a window ({_INSTEAD})")
    named = os.environ.get("SDL_VIDEODRIVER")
    # Without a display SDL draws to nowhere and says nothing of it.
    if sys.platform.startswith("linux") and not (
        named or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        raise UserError(f"there is no display for a window: {_INSTEAD}")
    import pygame

    try:
        pygame.display.init()
        driver = pygame.display.get_driver()
    except pygame.error as error:
        raise UserError(f"there is no display for a window ({error}): {_INSTEAD}") from None
    finally:
        pygame.display.quit()
    if driver == "offscreen" and named != driver:
        raise UserError(f"there is no display for a window: {_INSTEAD}")


def show(pictures: Iterable[Pixels], rate: float, *, size: tuple[int, int], title: str) -> None:
    """Shows pictures until they end or the person quits.

    While it is paused no picture is asked for.

    Args:
        pictures: (height, width, 3) each, of one size.
        rate: of the pictures, a second, if they come as fast.
        size: (width, height).
        title: of the window.
    """
    import pygame

    pygame.display.init()
    try:
        screen = pygame.display.set_mode(size)
        pygame.display.set_caption(title)
        paused = False
        due = time.monotonic() + 1 / rate
        for picture in pictures:
            screen.blit(pygame.image.frombuffer(picture.tobytes(), size, "RGB"), (0, 0))
            pygame.display.flip()
            while True:
                step = False
                for event in pygame.event.get():
                    if event.type == pygame.QUIT:
                        return
                    if event.type != pygame.KEYDOWN:
                        continue
                    if event.key in (pygame.K_q, pygame.K_ESCAPE):
                        return
                    if event.key == pygame.K_SPACE:
                        paused = not paused
                    elif event.key == pygame.K_RIGHT:
                        paused = step = True
                left = due - time.monotonic()
                if step or (left <= 0 and not paused):
                    break
                time.sleep(LOOK_SECONDS if paused else min(left, LOOK_SECONDS))
            due = time.monotonic() + 1 / rate
    finally:
        pygame.display.quit()
