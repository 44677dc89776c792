"""Full games of a policy, played for their scores."""

from __future__ import annotations

import time
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from rldistill.play.envs import Environments, cut_in_words, make_backend
from rldistill.play.envs.started import StartedBackend
from rldistill.play.rollout import EpsilonGreedy, Transition, rollout, uniform
from rldistill.play.starts import Starts
from rldistill.stats import summarize
from rldistill.types import ActionValues, Policy, Task

MakePolicy: TypeAlias = Callable[[np.random.Generator], Policy]


_PROGRESS_SECONDS = 1.0
"""Seconds between two reports of progress while no game ends."""


class Games(NamedTuple):
    """Full games, row after row; those from starts in the order of the starts."""

    returns: npt.NDArray[np.float64]
    """(episodes,)."""
    fingerprints: list[bytes]
    """Digests of each game's observations, actions and rewards, which are equal for identical games."""

    @property
    def distinct(self) -> int:
        """The number of different games."""
        return len(set(self.fingerprints))


class _Fingerprints:
    """Digests of the games going on, one a row.

    Of a stack of frames the newest one goes in: with the whole first stack it determines all the others, and it is a quarter of
    the bytes.
    """

    def __init__(self, task: Task, rows: int) -> None:
        self._stacked = task.frame_stack > 1
        self._frame = task.observation_shape[0] // task.frame_stack
        self._digests = [blake2b(digest_size=16) for _ in range(rows)]

    def add(self, step: Transition) -> None:
        """Takes one control step of all rows in."""
        rows = len(self._digests)
        if self._stacked:
            for row in np.flatnonzero(step.starts):
                self._digests[row].update(step.observations[row].tobytes())
        frames = step.observations[:, -self._frame :] if self._stacked else step.observations
        parts = (frames, step.actions, step.rewards)
        together = np.concatenate(
            [np.ascontiguousarray(part).reshape(rows, -1).view(np.uint8) for part in parts], axis=1
        )
        for digest, outcome in zip(self._digests, together, strict=True):
            digest.update(outcome)

    def finish(self, row: int) -> bytes:
        """The digest of the game that ended in a row. The row's next game begins."""
        digest = self._digests[row].digest()
        self._digests[row] = blake2b(digest_size=16)
        return digest


def play(
    task: Task,
    make_policy: MakePolicy,
    episodes: int,
    seed: int,
    *,
    num_envs: int = 10,
    starts: Starts | None = None,
    on_progress: Callable[..., object] = lambda finished, **figures: None,
    on_step: Callable[[Transition], None] = lambda transition: None,
    on_line: Callable[[str], object] = lambda line: None,
) -> Games:
    """Plays `episodes` full games.

    Each row plays the same number of games (the last round may be shared by fewer), so that short games, which end
    earlier, are not counted more often than long ones. Endless games are truncated, see
    `Environments.longest_game`.

    Args:
        task: what is played.
        make_policy: given the generator that its exploration draws from, the policy.
        episodes: how many games.
        seed: of environments and exploration.
        num_envs: rows; no more than `episodes` are used.
        starts: where games begin, each in turn; what was rewarded before does not count. None begins them at resets.
        on_progress: called with the number of finished games whenever it grows, and in between about once a second with the number
            of control steps as well, `steps=`.
        on_step: called with each transition.
        on_line: called once with a line if games are truncated by the longest game.
    """
    rows = min(num_envs, episodes)
    quota = np.full(rows, episodes // rows) + (np.arange(rows) < episodes % rows)
    environments = _environments(task, rows, seed, starts)
    finished: list[list[tuple[float, bytes]]] = [[] for _ in range(rows)]
    fingerprints = _Fingerprints(task, rows)
    last, steps, cut = time.monotonic(), 0, False
    try:
        policy = make_policy(np.random.default_rng([seed, 1]))
        for transition in rollout(environments, policy):
            on_step(transition)
            steps += rows
            fingerprints.add(transition)
            ended = np.flatnonzero(~np.isnan(transition.returns)).tolist()
            for row in ended:
                game = float(transition.returns[row]), fingerprints.finish(row)
                if len(finished[row]) < quota[row]:
                    finished[row].append(game)
            if environments.cut and not cut:
                cut = True
                on_line(cut_in_words(task))
            if len(ended):
                on_progress(sum(map(len, finished)))
                if all(len(games) == wanted for games, wanted in zip(finished, quota, strict=True)):
                    break
            if time.monotonic() - last > _PROGRESS_SECONDS:
                last = time.monotonic()
                on_progress(sum(map(len, finished)), steps=steps)
    finally:
        environments.close()
    every = [game for games in finished for game in games]
    if starts is not None:
        every = [finished[number % rows][number // rows] for number in range(episodes)]
    return Games(np.array([score for score, _ in every]), [digest for _, digest in every])


def _environments(task: Task, rows: int, seed: int, starts: Starts | None) -> Environments:
    if starts is None:
        return Environments(task, rows, seed)
    return Environments(task, rows, seed, backend=StartedBackend(task, starts, rows, lambda: make_backend(task, 1)))


def play_scored(
    task: Task,
    values: ActionValues | None,
    episodes: int,
    epsilon: float,
    seed: int,
    *,
    num_envs: int = 10,
    starts: Starts | None = None,
    on_progress: Callable[..., object] = lambda finished, **figures: None,
    on_step: Callable[[Transition], None] = lambda transition: None,
    on_line: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """The record of `episodes` full games, epsilon-greedy in `values` (None plays uniformly at random): returns, mean, IQM, 95 %
    interval over distinct games and their number, as JSON data. Bounds are None where there is no interval.

    The games are seeded by `seed + 1_000_000`: others than those that a run with this seed trains on. From `starts` each
    begins in turn. `on_line` gets the line about games that were cut.
    """

    def make_policy(generator: np.random.Generator) -> Policy:
        return uniform(task, generator) if values is None else EpsilonGreedy(values, task, epsilon, generator)

    games = play(
        task,
        make_policy,
        episodes,
        seed + 1_000_000,
        num_envs=num_envs,
        starts=starts,
        on_progress=on_progress,
        on_step=on_step,
        on_line=on_line,
    )
    summary = summarize(games.returns, seed=seed, games=games.fingerprints)
    figures = {name: None if np.isnan(value) else value for name, value in summary._asdict().items()}
    returns = games.returns.tolist()
    return {"episodes": episodes, "epsilon": epsilon, **figures, "distinct": games.distinct, "returns": returns}
