"""Datasets made up without an environment, and what was put into them, kept apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rldistill.datasets import Dataset, DatasetWriter, create_dataset, frame_shape
from rldistill.play.actions import score_width, uniform_actions
from rldistill.types import ScoreKind, Task

STACKED = Task("stacked", 3, (4, 5, 6), "uint8", frame_stack=4)
IMAGE = Task("image", 3, (36, 40, 3), "uint8")
VECTOR = Task("vector", 2, (4,), "float32")
ARM = Task("arm", 2, (4,), "float32", action_low=(-2.0, 0.0), action_high=(2.0, np.inf))
LEVERS = Task("levers", 5, (4,), "float32", action_sizes=(2, 3))
TEACHER = {"path": "policies/one", "sha256": "a" * 64, "provenance": {"algorithm": "dqn"}}


@dataclass
class Played:
    """One episode as it was played."""

    environment: int
    observations: list[npt.NDArray[Any]] = field(default_factory=list)
    """Whole stacks."""
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    """Action, reward, terminated, truncated, values."""

    @property
    def score(self) -> float:
        return float(sum(row[1] for row in self.rows))

    @property
    def ended(self) -> bool:
        return bool(self.rows[-1][2] or self.rows[-1][3])


def played(
    dataset: Dataset, steps: int, *, num_envs: int = 3, shard_steps: int = 60, seed: int = 0, end: float = 0.1
) -> tuple[Dataset, list[Played]]:
    """Adds a recording of `steps` steps of each environment; returns the episodes in the order in which they are numbered."""
    task, generator = dataset.task, np.random.default_rng(seed)
    recording = {"driver": "teacher", "epsilon": 0.05, "seed": seed, "first_shard": len(dataset.shards)}
    writer = DatasetWriter(dataset.with_recording(recording), num_envs, shard_steps)
    frame = frame_shape(task)
    now = [Played(row) for row in range(num_envs)]
    starts = np.ones(num_envs, np.bool_)
    observations = np.zeros((num_envs, *task.observation_shape), task.observation_dtype)
    episodes: list[Played] = []
    for _ in range(steps):
        new = generator.integers(1, 256, size=(num_envs, *frame)).astype(task.observation_dtype)
        observations = observations.copy()
        observations[starts] = 0
        depth = frame[0] if task.frame_stack > 1 else 0
        observations = np.concatenate([observations[:, depth:], new], axis=1) if depth else new
        actions = uniform_actions(task, num_envs, generator)
        rewards = generator.integers(-3, 4, size=num_envs).astype(np.float32)
        terminated = generator.random(num_envs) < end
        truncated = (generator.random(num_envs) < end / 2) & ~terminated
        values = generator.normal(size=(num_envs, score_width(task, dataset.score_kind))).astype(np.float32)
        writer.add(observations, starts, actions, rewards, terminated, truncated, values)
        for row in range(num_envs):
            now[row].observations.append(observations[row])
            now[row].rows.append((actions[row], rewards[row], terminated[row], truncated[row], values[row]))
            if terminated[row] or truncated[row]:
                episodes.append(now[row])
                now[row] = Played(row)
        starts = terminated | truncated
    writer.flush()
    episodes += [episode for episode in now if episode.rows]
    return writer.dataset, sorted(episodes, key=lambda episode: episode.environment)


def recorded(
    path: Path,
    task: Task = STACKED,
    kind: ScoreKind = "q_values",
    *,
    steps: int = 70,
    seed: int = 0,
    teacher: Any = TEACHER,
) -> tuple[Dataset, list[Played]]:
    """A dataset of one recording."""
    return played(create_dataset(path, task, kind, teacher), steps, seed=seed)


def tree(folder: Path) -> dict[str, bytes | None]:
    """All that lies there."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def flip(path: Path, at: float = 0.5) -> None:
    """Alters one bit."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    """Takes the end away."""
    path.write_bytes(path.read_bytes()[:-40])
