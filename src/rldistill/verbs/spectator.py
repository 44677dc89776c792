"""A policy at play as a spectator sees it: pictures, scores of the actions, and the action that was taken."""

from __future__ import annotations

from collections.abc import Generator
from itertools import islice
from typing import NamedTuple, cast

import numpy as np
import torch

from rldistill.play.actions import allowed, bounds, chosen, finite, mix_in_random
from rldistill.play.envs import Environments
from rldistill.play.envs.world import Pixels
from rldistill.play.rollout import EpsilonGreedy, rollout
from rldistill.types import Actions, Floats, Masks, Observations, ScoreKind, Task, Teacher, as_tensor, first_line

_SPREAD_STEPS = 200
"""Control steps that are played to learn the usual spread of Q-values."""


class Moment(NamedTuple):
    """One control step: picture and scores before the decision, and its outcome."""

    frame: Pixels
    """(height, width, 3)."""
    values: Floats
    """(K,): the policy's scores; minus infinity at actions that are not allowed."""
    other: Floats | None
    """(K',): a second policy's scores for the same observation."""
    best: Actions
    """() or (D,): the policy's best action."""
    action: Actions
    """() or (D,): the action taken."""
    random: bool
    """Whether exploration decided."""
    score: float
    """Return so far of the game going on."""
    game: int
    """Its number, from 1."""
    reward: float
    """Of the action."""
    ended: bool
    """Whether it ended the game."""


def spectate(
    policy: Teacher, task: Task, *, epsilon: float, seed: int, other: Teacher | None = None
) -> Generator[Moment, None, None]:
    """Plays for ever, one game after the other; close it to free the environment.

    Args:
        policy: that plays.
        task: what it plays.
        epsilon: probability of a random action.
        seed: of environment and exploration.
        other: a second policy, asked of the same observations.
    """
    generator = np.random.default_rng([seed, 1])
    before: tuple[Pixels, Floats, Floats | None, Actions]

    def act(observations: Observations, masks: Masks | None = None) -> Actions:
        nonlocal before
        own, theirs = allowed(finite(policy(as_tensor(observations)), masks), masks), None
        if other is not None:
            theirs = allowed(other(as_tensor(observations)), masks).numpy()[0].astype(np.float32)
        greedy = cast(Actions, chosen(own, policy.score_kind, task).numpy())
        before = environments.pixels()[0].copy(), own[0].numpy().astype(np.float32), theirs, greedy[0]
        return mix_in_random(greedy, task, epsilon, generator, masks)

    score, game = 0.0, 1
    environments = Environments(task, 1, seed, pixels=True)
    try:
        for step in rollout(environments, act):
            frame, values, others, best = before
            action, reward = step.actions[0], float(step.rewards[0])
            ended = bool(step.terminated[0] or step.truncated[0])
            random = bool(np.any(action != best))
            yield Moment(frame, values, others, best, action, random, score, game, reward, ended)
            score, game = (0.0, game + 1) if ended else (score + reward, game)
    finally:
        environments.close()


def preferences(values: Floats, kind: ScoreKind, task: Task, *, temperature: float) -> Floats:
    """softmax(values / temperature), (T, A), of several actions at once each by itself; where continuous actions lie in their
    range, (T, D)."""
    scores = torch.from_numpy(values)
    if task.continuous:
        low, high = bounds(task)
        shares = ((chosen(scores, kind, task) - low) / (high - low)).clamp(0, 1)
    else:
        parts = torch.split(scores / temperature, list(task.choices), dim=1)
        shares = torch.cat([part.softmax(dim=1) for part in parts], dim=1)
    return np.asarray(shares.numpy(), dtype=np.float32)


def undrawable(task: Task) -> str | None:
    """Why no pictures can be had, None if they can."""
    try:
        environments = Environments(task, 1, 0, pixels=True)
        try:
            shape = environments.pixels().shape[1:]
            if len(shape) != 3 or shape[2] != 3:
                raise ValueError(f"its pictures are of shape {shape}, not (height, width, 3)")
        finally:
            environments.close()
    except Exception as error:  # a stranger's renderer may fail in any way
        return first_line(error)
    return None


def temperature_of(policy: Teacher, values: Floats, given: float | None) -> float:
    """The given one for Q-values, or a fifth of their usual spread; 1 for all else."""
    if policy.score_kind != "q_values":
        return 1.0
    if given is not None:
        return given
    least = np.where(np.isfinite(values), values, np.inf).min(axis=1)  # of the allowed actions
    spread = float(np.median(values.max(axis=1) - least))
    return spread / 5 if spread > 0 else 1.0


def usual_temperature(policy: Teacher, task: Task, *, epsilon: float, seed: int, given: float | None) -> float:
    """As `temperature_of`, before anything is drawn: the spread is that of a short play of its own."""
    values = [np.zeros(1, dtype=np.float32)]
    if policy.score_kind == "q_values" and given is None:
        environments = Environments(task, 1, seed)
        acting = EpsilonGreedy(policy, task, epsilon, np.random.default_rng([seed, 1]))
        try:
            steps = islice(rollout(environments, acting), _SPREAD_STEPS)
            values = [allowed(policy(as_tensor(step.observations)), step.masks).numpy()[0] for step in steps]
        finally:
            environments.close()
    return temperature_of(policy, np.stack(values), given)


def measure(policy: Teacher, temperature: float) -> str:
    """What `preferences` shows of a policy, in words."""
    if policy.task.continuous:
        return "where its action lies in its range"
    return "softmax of its logits" if policy.score_kind == "logits" else f"softmax of its Q-values / {temperature:.2g}"
