"""The animation of a report: policies at play, their preferences among the actions, and pictures as sprite sheets."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from rldistill.play.envs import action_names
from rldistill.play.envs.world import Pixels
from rldistill.play.pictures import indexed, resized
from rldistill.policies import KeptPolicy
from rldistill.types import Actions, Floats, Task
from rldistill.verbs.spectator import measure, preferences, spectate, temperature_of

DECISIONS_PER_SECOND = 15
"""The speed of a real Atari at four frames a decision."""
SHEET_COLUMNS, SHEET_FRAMES = 8, 64
FRAME_WIDTH = 320
# Base64 in the page; with two players the page stays below 5 MB.
SHEETS_LIMIT = 2_000_000


class WatchedPlay(NamedTuple):
    """T control steps of one policy, for the animation."""

    frames: list[Pixels]
    """The picture before each decision, (height, width, 3) each, no wider than `FRAME_WIDTH`."""
    values: Floats
    """(T, K): the policy's scores."""
    other: Floats | None
    """(T, K): a second policy's scores for the same observations."""
    actions: Actions
    """(T,) or (T, D): the actions taken."""
    random: npt.NDArray[np.bool_]
    """(T,): whether exploration decided."""
    scores: list[float]
    """Return so far of the game going on."""
    games: list[int]
    """Its number, from 1."""


def watched(
    policy: KeptPolicy, task: Task, steps: int, *, epsilon: float, seed: int, other: KeptPolicy | None = None
) -> WatchedPlay:
    """Plays for so many control steps and keeps the pictures, the scores and the actions."""
    with closing(spectate(policy, task, epsilon=epsilon, seed=seed, other=other)) as moments:
        # Shrunk one by one: those of a minute as they are drawn fill a gigabyte.
        kept = [moment._replace(frame=_shrunk(moment.frame)) for moment in islice(moments, steps)]
    others = [moment.other for moment in kept if moment.other is not None]
    return WatchedPlay(
        [moment.frame for moment in kept],
        np.stack([moment.values for moment in kept]),
        np.stack(others) if others else None,
        cast(Actions, np.array([moment.action for moment in kept])),
        np.array([moment.random for moment in kept]),
        [moment.score for moment in kept],
        [moment.game for moment in kept],
    )


def sprite_sheets(frames: Sequence[Pixels], limit: int = SHEETS_LIMIT) -> list[str]:
    """Frames (height, width, 3) of one size as PNG data URIs, 64 frames each in rows of 8, until `limit` is reached.

    Up to 256 colours, all that an Atari screen shows, nothing is lost; beyond that the colours are reduced. The sheet
    that would exceed the limit and those after it are left out, the first never.
    """
    sheets: list[str] = []
    total = 0
    for first in range(0, len(frames), SHEET_FRAMES):
        part = frames[first : first + SHEET_FRAMES]
        height, width = part[0].shape[:2]
        rows = -(-len(part) // SHEET_COLUMNS)
        sheet = np.zeros((rows * height, SHEET_COLUMNS * width, 3), dtype=np.uint8)
        for number, frame in enumerate(part):
            y, x = number // SHEET_COLUMNS * height, number % SHEET_COLUMNS * width
            sheet[y : y + height, x : x + width] = frame
        uri = "data:image/png;base64," + base64.b64encode(_png(sheet)).decode()
        total += len(uri)
        if sheets and total > limit:
            break
        sheets.append(uri)
    return sheets


def _png(image: Pixels) -> bytes:
    from PIL import Image

    places, palette = indexed(image)
    drawn = Image.fromarray(places)
    drawn.putpalette(palette.tobytes())
    out = io.BytesIO()
    drawn.save(out, format="PNG", optimize=True)
    return out.getvalue()


def _shrunk(frame: Pixels) -> Pixels:
    """The frame, (height, width, 3), no wider than `FRAME_WIDTH`."""
    height, width = frame.shape[:2]
    return frame if width <= FRAME_WIDTH else resized(frame, FRAME_WIDTH, max(1, round(height * FRAME_WIDTH / width)))


def animation(
    players: Sequence[KeptPolicy], task: Task, *, seconds: float, epsilon: float, seed: int, temperature: float | None
) -> dict[str, Any]:
    """Data of the page's script, plain JSON.

    Args:
        players: a teacher and its student, or one policy.
        task: what they play, from the same seed.
        seconds: length, at 15 decisions a second; shorter where the pictures would take more than 2 MB a player.
        epsilon: probability of a random action.
        seed: of environment and exploration.
        temperature: of Q-values in the preferences; None is a fifth of their usual spread.
    """
    teacher = players[0] if len(players) == 2 else None
    steps = max(1, round(seconds * DECISIONS_PER_SECOND))
    animated = []
    for player in players:
        student = teacher is not None and player is not teacher
        played = watched(player, task, steps, epsilon=epsilon, seed=seed, other=teacher if student else None)
        spread = temperature_of(player, played.values, temperature)
        drawn: dict[str, Any] = {
            "role": "teacher" if player is teacher else "student",
            "name": player.name,
            "measure": measure(player, spread),
            "width": played.frames[0].shape[1],
            "height": played.frames[0].shape[0],
            "columns": SHEET_COLUMNS,
            "per": SHEET_FRAMES,
            "sheets": sprite_sheets(played.frames),
            "preferences": _percent(preferences(played.values, player.score_kind, task, temperature=spread)),
            "other": None,
            # Only one discrete action has one bar that was taken.
            "actions": played.actions.tolist() if played.actions.ndim == 1 else [-1] * steps,
            "random": played.random.astype(int).tolist(),
            "scores": [_number(score) for score in played.scores],
            "games": played.games,
        }
        if teacher is not None and played.other is not None:
            theirs = temperature_of(teacher, played.other, temperature)
            drawn["other"] = _percent(preferences(played.other, teacher.score_kind, task, temperature=theirs))
        animated.append(drawn)
        del played  # its frames are in the sheets, and need no room while the next one plays
    length = min([steps] + [len(drawn["sheets"]) * SHEET_FRAMES for drawn in animated])
    return {"length": length, "rate": DECISIONS_PER_SECOND, "actions": action_names(task), "players": animated}


def _percent(shares: Floats) -> list[list[float]]:
    return [[round(100 * float(share), 1) for share in row] for row in shares]


def _number(value: float) -> float | int:
    return int(value) if value == int(value) else round(value, 2)
