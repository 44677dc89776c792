"""The picture of one moment of `watch`: the players side by side, and under each its preferences among the actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from rldistill.play.envs.world import Pixels
from rldistill.play.pictures import resized
from rldistill.types import Actions, Floats, Task, UserError

Colour: TypeAlias = tuple[int, int, int]

# In steps of 16: letters are smoothed in as few shades, so that with an Atari screen there are not more than 256 colours.
BACKGROUND: Colour = (16, 16, 32)
INK: Colour = (224, 224, 224)
FAINT: Colour = (144, 144, 160)
TRACK: Colour = (48, 48, 64)
BAR: Colour = (96, 128, 160)
# Nearly the blue and vermilion of Okabe & Ito: what was taken, and what exploration took.
TAKEN: Colour = (80, 176, 224)
EXPLORED: Colour = (224, 112, 32)
MARK: Colour = (240, 240, 240)

_MARGIN, _ROW, _FONT, _SMALL = 12, 17, 13, 11
_LEAST_WIDTH = 200
_MOST_ROWS = 36
"""Of more actions than these none is named: their bars stand upright, side by side."""
_STRIP = 60
_ONE_COLUMN = 9
_MOST_PIXELS = 4096 * 2304  # what players of H.264 are made for


class View(NamedTuple):
    """One player at one moment."""

    frame: Pixels
    """(height, width, 3)."""
    preferences: Floats
    """(A,), each from 0 to 1."""
    marks: Floats | None
    """(A,): those of another policy for the same observation."""
    best: Actions
    """() or (D,): its best action."""
    action: Actions
    """() or (D,): the action taken."""
    random: bool
    """Whether exploration decided."""
    status: str


@dataclass(frozen=True)
class Caption:
    """The text under a player, which does not change."""

    name: str
    measure: str
    """What its bars mean."""


class Stage:
    """Draws moments of one or two players, all in pictures of one size.

    Args:
        task: what is played.
        names: of its actions, (A,).
        captions: of the players.
        marks: the name of the policy whose preferences are marked in the others' bars, where there are any.
        frame: (height, width) of the environment's pictures.
        scale: of these; None takes a whole multiple that brings small ones to some 320, and large ones down to 480.

    Attributes:
        width, height: of the pictures, even numbers, as video formats want them.

    Raises:
        UserError: the pictures would be too large.
    """

    def __init__(
        self,
        task: Task,
        names: Sequence[str],
        captions: Sequence[Caption],
        *,
        marks: str = "",
        frame: tuple[int, int],
        scale: float | None = None,
    ) -> None:
        from PIL import Image, ImageDraw, ImageFont

        self._task, self._captions, self._marks = task, captions, marks
        height, width = frame
        factor = scale if scale is not None else max(1, 320 // width) if width <= 480 else 480 / width
        self._frame = max(1, round(width * factor)), max(1, round(height * factor))
        self._column = max(self._frame[0], _LEAST_WIDTH)
        self._strip = len(names) > _MOST_ROWS
        self._font: Any = ImageFont.load_default(_FONT)
        self._small: Any = ImageFont.load_default(_SMALL)
        self._share = round(_length("-88.88" if task.continuous else "100 %", self._font)) + 4
        longest = round(max(_length(name, self._font) for name in names)) + 8
        columns = 1 if len(names) <= _ONE_COLUMN or self._column < 300 else 2
        if len(names) <= 2 * _ONE_COLUMN and 2 * longest > self._column // 2 - self._share:
            columns = 1  # bars longer than their names are worth the height
        self._rows = -(-len(names) // columns)
        self._bars = self._frame[1] + 2 * _MARGIN + 3 * _ROW + (_ROW if marks else 0)
        bottom = self._bars + (_STRIP if self._strip else self._rows * _ROW) + _MARGIN
        self.width = _even(len(captions) * self._column + (len(captions) + 1) * _MARGIN)
        self.height = _even(bottom)
        if self.width * self.height > _MOST_PIXELS:  # before an image of any size is asked for
            raise UserError(f"pictures of {self.width} x {self.height} are too large: take a smaller --scale")
        cell = (self._column - (columns - 1) * _MARGIN) // columns
        label = min(longest, cell - self._share - 24)
        self._names = [self._fitted(name, label - 4, self._font) for name in names]
        self._places = [
            (at // self._rows * (cell + _MARGIN), self._bars + at % self._rows * _ROW, label, cell)
            for at in range(len(names))
        ]
        self._background = Image.new("RGB", (self.width, self.height), BACKGROUND)
        pen = ImageDraw.Draw(self._background)
        for player in range(len(captions)):
            self._draw_still(pen, player)

    def draw(self, views: Sequence[View]) -> Pixels:
        """A picture (height, width, 3), one view a player."""
        from PIL import Image, ImageDraw

        picture = self._background.copy()
        pen = ImageDraw.Draw(picture)
        for player, view in enumerate(views):
            left = self._left(player)
            frame = Image.fromarray(resized(view.frame, *self._frame))
            picture.paste(frame, (left + (self._column - self._frame[0]) // 2, _MARGIN))
            y = self._frame[1] + 2 * _MARGIN + _ROW
            room = self._column - 60  # of "random"
            pen.text((left, y), self._fitted(view.status, room, self._font), INK, self._font)
            if view.random:
                pen.text((left + self._column, y), "random", EXPLORED, self._font, anchor="ra")
            if self._strip:
                self._draw_strip(pen, left, view)
            else:
                self._draw_bars(pen, left, view)
        drawn = np.array(picture)
        drawn[self._frame[1] + _MARGIN :] &= 0xF0
        return drawn

    def _left(self, player: int) -> int:
        return _MARGIN + player * (self._column + _MARGIN)

    def _draw_still(self, pen: Any, player: int) -> None:
        left, y, caption = self._left(player), self._frame[1] + 2 * _MARGIN, self._captions[player]
        pen.text((left, y), self._fitted(caption.name, self._column, self._font, end=False), TAKEN, self._font)
        pen.text((left, y + 2 * _ROW), self._fitted(caption.measure, self._column, self._small), FAINT, self._small)
        if self._marks and player:
            text = "white marks: preferences of "
            room = self._column - round(_length(text, self._small))
            text += self._fitted(self._marks, room, self._small, end=False)
            pen.text((left, y + 3 * _ROW - 3), text, FAINT, self._small)
        if self._strip:
            pen.rectangle((left, self._bars, left + self._column - 1, self._bars + _STRIP - 1), TRACK)
            return
        for name, (x, y, label, cell) in zip(self._names, self._places, strict=True):
            pen.text((left + x, y), name, INK, self._font)
            pen.rectangle((left + x + label, y + 3, left + x + cell - self._share - 1, y + _ROW - 4), TRACK)

    def _draw_bars(self, pen: Any, left: int, view: View) -> None:
        taken = _taken(view.action, self._task)
        for at, (x, y, label, cell) in enumerate(self._places):
            start, end = left + x + label, left + x + cell - self._share
            share = float(view.preferences[at])
            place = start + round(share * (end - start))
            colour = BAR if at not in taken else EXPLORED if view.random else TAKEN
            text = f"{round(100 * share)} %"
            if self._task.continuous:
                # From the middle of the range: an action is as much to the one side as to the other.
                middle, place = (start + end) // 2, start + round(share * (end - 1 - start))
                pen.rectangle((min(middle, place), y + 3, max(middle, place), y + _ROW - 4), colour)
                pen.line((middle, y + 1, middle, y + _ROW - 2), FAINT)
                text = _short(float(view.best[at]))
            elif place > start:
                pen.rectangle((start, y + 3, place - 1, y + _ROW - 4), colour)
            if view.marks is not None:
                mark = start + round(float(view.marks[at]) * (end - start - 2))
                pen.rectangle((mark, y + 1, mark + 1, y + _ROW - 2), MARK)
            pen.text((left + x + cell, y), text, INK if at in taken else FAINT, self._font, anchor="ra")

    def _draw_strip(self, pen: Any, left: int, view: View) -> None:
        """Upright bars; where they are more than pixels, the highest of those that share one."""
        number, bottom = len(view.preferences), self._bars + _STRIP - 1
        taken = _taken(view.action, self._task)
        wide = max(1, self._column // number)
        heights: dict[int, int] = {}
        for at, share in enumerate(view.preferences):
            x = at * self._column // number
            heights[x] = max(heights.get(x, 0), round(float(share) * (_STRIP - 1)))
        for x, tall in heights.items():
            pen.rectangle((left + x, bottom - tall, left + x + wide - 1, bottom), BAR)
        for at in taken:
            x = at * self._column // number
            colour = EXPLORED if view.random else TAKEN
            pen.rectangle((left + x, bottom - max(2, heights[x]), left + x + wide - 1, bottom), colour)

    def _fitted(self, text: str, width: int, font: Any, *, end: bool = True) -> str:
        """The text, its end (of a path its beginning) left out where it is wider."""
        if _length(text, font) <= width:
            return text
        while text and _length(text + "…", font) > width:
            text = text[:-1] if end else text[1:]
        return text + "…" if end else "…" + text


def _taken(action: Actions, task: Task) -> set[int]:
    """The bars of the action taken; none of continuous actions."""
    if task.continuous:
        return set()
    if not task.action_sizes:
        return {int(action)}
    offsets = np.cumsum((0, *task.action_sizes[:-1]))
    return {int(offset + choice) for offset, choice in zip(offsets, action, strict=True)}


def _short(value: float) -> str:
    return (
        f"{value:.0f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.2g}"
    )


def _length(text: str, font: Any) -> float:
    """Pixels across."""
    return float(font.getlength(text))


def _even(size: int) -> int:
    return size + size % 2
