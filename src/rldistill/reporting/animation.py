"""The animation of a report: policies at play, what they think, and their pictures as sprite sheets."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from rldistill.actions import bounds, chosen, mix_in_random
from rldistill.envs import Environments, Pixels, action_names
from rldistill.policies import KeptPolicy
from rldistill.rollout import rollout
from rldistill.types import Actions, Floats, Observations, ScoreKind, Task, as_tensor

DECISIONS_PER_SECOND = 15
"""The speed of a real Atari at four frames a decision."""
SHEET_COLUMNS, SHEET_FRAMES = 8, 64
# Base64 in the page; with two players the page stays below 5 MB.
SHEETS_LIMIT = 2_000_000


@dataclass(frozen=True)
class Played:
    """T control steps of one policy, for the animation."""

    frames: list[Pixels]
    """What a spectator saw before each decision, (height, width, 3) each."""
    values: Floats
    """(T, K): the policy's scores."""
    other: Floats | None
    """(T, K): what a second policy said of the same observations."""
    actions: Actions
    """(T,) or (T, D): what was done."""
    random: npt.NDArray[np.bool_]
    """(T,): whether exploration decided."""
    scores: list[float]
    """Return so far of the game going on."""
    games: list[int]
    """Its number, from 1."""


def watch(
    policy: KeptPolicy, task: Task, steps: int, *, epsilon: float, seed: int, other: KeptPolicy | None = None
) -> Played:
    """Plays for so many control steps and keeps what a spectator sees and what the policy thinks."""
    environments = Environments(task, 1, seed, pixels=True)
    generator = np.random.default_rng([seed, 1])
    frames: list[Pixels] = []
    values: list[npt.NDArray[Any]] = []
    others: list[npt.NDArray[Any]] = []
    best: list[Actions] = []

    def act(observations: Observations) -> Actions:
        frames.append(environments.pixels()[0].copy())
        own = policy(as_tensor(observations))
        values.append(own[0].numpy())
        if other is not None:
            others.append(other(as_tensor(observations)).numpy()[0])
        greedy = cast(Actions, chosen(own, policy.score_kind, task).numpy())
        best.append(greedy[0])
        return mix_in_random(greedy, task, epsilon, generator)

    actions: list[Actions] = []
    scores: list[float] = []
    games: list[int] = []
    score, game = 0.0, 1
    try:
        for step in islice(rollout(environments, act), steps):
            actions.append(step.actions[0])
            scores.append(score)
            games.append(game)
            score += float(step.rewards[0])
            if step.terminated[0] or step.truncated[0]:
                score, game = 0.0, game + 1
    finally:
        environments.close()
    taken = cast(Actions, np.array(actions))
    return Played(
        frames,
        np.stack(values).astype(np.float32),
        np.stack(others).astype(np.float32) if others else None,
        taken,
        (taken != np.array(best)).reshape(steps, -1).any(axis=1),
        scores,
        games,
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


def preferences(values: Floats, kind: ScoreKind, task: Task, *, temperature: float) -> Floats:
    """softmax(values / temperature), (T, A), of several actions at once each by itself; where continuous actions lie in their
    range, (T, D)."""
    scores = torch.from_numpy(values)
    if task.continuous:
        low, high = bounds(task)
        shares = ((chosen(scores, kind, task) - low) / (high - low)).clamp(0, 1)
    else:
        sizes = list(task.action_sizes) or [task.num_actions]
        shares = torch.cat([part.softmax(dim=1) for part in torch.split(scores / temperature, sizes, dim=1)], dim=1)
    return np.asarray(shares.numpy(), dtype=np.float32)


def _png(image: Pixels) -> bytes:
    from PIL import Image

    codes = (image[..., 0].astype(np.uint32) << 16) | (image[..., 1].astype(np.uint32) << 8) | image[..., 2]
    present = np.zeros(1 << 24, dtype=np.bool_)
    present[codes] = True
    colours = np.flatnonzero(present)
    if len(colours) <= 256:
        place = np.zeros(1 << 24, dtype=np.uint8)
        place[colours] = np.arange(len(colours))
        drawn = Image.fromarray(place[codes])
        palette = np.stack([colours >> 16, colours >> 8 & 255, colours & 255], axis=1).astype(np.uint8)
        drawn.putpalette(palette.tobytes())
    else:
        drawn = Image.fromarray(image).quantize(256, dither=Image.Dither.NONE)
    out = io.BytesIO()
    drawn.save(out, format="PNG", optimize=True)
    return out.getvalue()


def shrunk(frames: list[Pixels], most: int = 320) -> list[Pixels]:
    """Frames no wider than `most`."""
    width = frames[0].shape[1]
    if width <= most:
        return frames
    from PIL import Image

    size = (most, max(1, round(frames[0].shape[0] * most / width)))
    return [np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX)) for frame in frames]


def animation(
    players: Sequence[KeptPolicy], task: Task, *, seconds: float, epsilon: float, seed: int, temperature: float | None
) -> dict[str, Any]:
    """What the page's script shows, plain JSON data.

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
    shown = []
    for player in players:
        student = teacher is not None and player is not teacher
        played = watch(player, task, steps, epsilon=epsilon, seed=seed, other=teacher if student else None)
        frames = shrunk(played.frames)
        spread = _temperature(player, played.values, temperature)
        drawn: dict[str, Any] = {
            "role": "teacher" if player is teacher else "student",
            "name": player.name,
            "measure": _measure(player, spread),
            "width": frames[0].shape[1],
            "height": frames[0].shape[0],
            "columns": SHEET_COLUMNS,
            "per": SHEET_FRAMES,
            "sheets": sprite_sheets(frames),
            "preferences": _percent(preferences(played.values, player.score_kind, task, temperature=spread)),
            "other": None,
            # Only one discrete action has one bar that was taken.
            "actions": played.actions.tolist() if played.actions.ndim == 1 else [-1] * steps,
            "random": played.random.astype(int).tolist(),
            "scores": [_number(score) for score in played.scores],
            "games": played.games,
        }
        if teacher is not None and played.other is not None:
            theirs = _temperature(teacher, played.other, temperature)
            drawn["other"] = _percent(preferences(played.other, teacher.score_kind, task, temperature=theirs))
        shown.append(drawn)
    length = min([steps] + [len(drawn["sheets"]) * SHEET_FRAMES for drawn in shown])
    return {"length": length, "rate": DECISIONS_PER_SECOND, "actions": action_names(task), "players": shown}


def undrawable(task: Task) -> str | None:
    """Why no pictures can be had, None if they can."""
    try:
        environments = Environments(task, 1, 0, pixels=True)
        try:
            environments.pixels()
        finally:
            environments.close()
    except (
        Exception
    ) as error:  # a stranger's renderer may fail in any way, and a page without pictures is better than none
        return (str(error).splitlines() or [type(error).__name__])[0]
    return None


def _temperature(policy: KeptPolicy, values: Floats, given: float | None) -> float:
    """The given one for Q-values, or a fifth of their usual spread; 1 for all else."""
    if policy.score_kind != "q_values":
        return 1.0
    if given is not None:
        return given
    spread = float(np.median(values.max(axis=1) - values.min(axis=1)))
    return spread / 5 if spread > 0 else 1.0


def _measure(policy: KeptPolicy, temperature: float) -> str:
    if policy.task.continuous:
        return "where its action lies in its range"
    return "softmax of its logits" if policy.score_kind == "logits" else f"softmax of its Q-values / {temperature:.2g}"


def _percent(shares: Floats) -> list[list[float]]:
    return [[round(100 * float(share), 1) for share in row] for row in shares]


def _number(value: float) -> float | int:
    return int(value) if value == int(value) else round(value, 2)
