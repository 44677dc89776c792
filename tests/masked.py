"""Environments that say which actions are allowed, and raise an error where another one is taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor

from rldistill.types import ScoreKind, Task

SIDE = 3
MOVES = ((0, 1), (1, 0), (0, -1), (-1, 0))


class Square(gymnasium.Env[npt.NDArray[np.float32], Any]):
    """A walk to a target on a square; -0.1 a step and 1 at the target, at most 20 steps. A move off the square is an error."""

    action_space: spaces.Space[Any] = spaces.Discrete(4)
    observation_space = spaces.Box(0, SIDE, (4,), np.float32)
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012  # as Gymnasium declares it

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def render(self) -> npt.NDArray[np.uint8]:
        return np.full((8, 8, 3), 10 * int(self.place[0]), dtype=np.uint8)

    def allowed(self) -> npt.NDArray[Any]:
        places = self.place + np.array(MOVES)
        return np.asarray(((places >= 0) & (places < SIDE)).all(axis=1), dtype=np.int8)

    def info(self) -> dict[str, Any]:
        return {"action_mask": self.allowed()}

    def observation(self) -> npt.NDArray[np.float32]:
        return np.concatenate([self.place, self.target]).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place, self.target = self.np_random.integers(SIDE, size=(2, 2))
        self.age = 0
        return self.observation(), self.info()

    def moved(self, action: Any) -> tuple[int, int]:
        return MOVES[int(action)]

    def step(self, action: Any) -> Any:
        if not self.allowed()[int(action)]:
            raise ValueError(f"illegal move {action}")
        self.place = self.place + self.moved(action)
        self.age += 1
        arrived = bool((self.place == self.target).all())
        return self.observation(), 1.0 if arrived else -0.1, arrived, self.age == 20 and not arrived, self.info()


class Method(Square):
    """Says it as sb3-contrib wants it said."""

    def info(self) -> dict[str, Any]:
        return {}

    def action_masks(self) -> npt.NDArray[np.bool_]:
        return np.asarray(self.allowed(), dtype=np.bool_)


class Unmasked(Square):
    """Says nothing, and allows all: a move off the square stays on it."""

    def info(self) -> dict[str, Any]:
        return {}

    def step(self, action: Any) -> Any:
        allowed = self.allowed()[int(action)]
        if allowed:
            return super().step(action)
        self.age += 1
        return self.observation(), -0.1, False, self.age == 20, {}


class Axes(Square):
    """Both axes at once: back, stay or on."""

    action_space = spaces.MultiDiscrete([3, 3])

    def allowed(self) -> npt.NDArray[Any]:
        sides = [np.array([place > 0, True, place < SIDE - 1]) for place in self.place]
        return np.concatenate(sides).astype(np.int8)

    def step(self, action: Any) -> Any:
        sides = self.allowed().reshape(2, 3)
        if not all(side[choice] for side, choice in zip(sides, action, strict=True)):
            raise ValueError(f"illegal move {action}")
        self.place = self.place + np.asarray(action) - 1
        self.age += 1
        arrived = bool((self.place == self.target).all())
        return self.observation(), 1.0 if arrived else -0.1, arrived, self.age == 20 and not arrived, self.info()


class Pairs(Axes):
    """Gives a mask for each of the two actions."""

    def info(self) -> dict[str, Any]:
        return {"action_mask": tuple(self.allowed().reshape(2, 3))}


IDS: dict[str, Callable[..., gymnasium.Env[Any, Any]]] = {
    "Square-v0": Square, "SquareMethod-v0": Method, "SquareUnmasked-v0": Unmasked, "Axes-v0": Axes, "Pairs-v0": Pairs,
}  # fmt: skip


class Walker:
    """A teacher that knows the way. Its scores are highest where a move is not allowed, which nobody must ever see."""

    def __init__(self, task: Task, score_kind: ScoreKind = "logits", *, outside: float = 50.0) -> None:
        self.task, self.score_kind, self.outside = task, score_kind, outside

    def __call__(self, observations: Tensor) -> Tensor:
        place, target = observations[:, :2], observations[:, 2:]
        if self.task.action_sizes:
            choices = torch.arange(-1.0, 2.0)
            wanted = (target - place).clamp(-1, 1)
            scores = -(choices - wanted[:, :, None]).abs() * 3
            outside = (place[:, :, None] + choices < 0) | (place[:, :, None] + choices >= SIDE)
            return torch.where(outside, self.outside, scores).flatten(1)
        places = place[:, None] + torch.tensor(MOVES, dtype=torch.float32)
        outside = ((places < 0) | (places >= SIDE)).any(dim=2)
        return torch.where(outside, self.outside, -3 * (places - target[:, None]).abs().sum(dim=2))
