"""What an action is in each kind of action space, and how scores become actions.

| action space | actions | kinds of scores (B, K) |
|---|---|---|
| Discrete | (N,) int64 | `q_values`, `logits`: K = A |
| MultiDiscrete | (N, dimensions) int64 | `logits`: K = the sizes' sum, dimension after dimension |
| Box | (N, D) float32, in the environment's units | `gaussian`, `squashed_gaussian`: K = 2 D; `actions`: K = D |
"""

from __future__ import annotations

import math
from functools import cache
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rldistill.types import (
    Actions,
    ActionValues,
    Bools,
    Floats,
    Masks,
    Observations,
    ScoreKind,
    Task,
    UserError,
    as_tensor,
)

MASKED = "The environment allows some of the actions at a time: take the best of the allowed scores"
"""What the descriptions in exported files say about action masks."""
LOG_STD_RANGE = (-5.0, 2.0)
"""Log standard deviations are clamped to it wherever they are read. Some teachers give -20, which no student needs to match."""


def score_width(task: Task, kind: ScoreKind) -> int:
    """K, the scores of one observation.

    Raises:
        UserError: scores of this kind do not suit the task's actions.
    """
    continuous = kind in ("gaussian", "squashed_gaussian", "actions")
    if continuous != task.continuous or (kind == "q_values" and task.action_sizes):
        raise UserError(f"{task.env} has {describe(task)}, which {kind} scores do not suit")
    if not continuous:
        return task.mask_size
    return task.action_dimensions if kind == "actions" else 2 * task.action_dimensions


def describe(task: Task) -> str:
    """The action space in words."""
    if task.continuous:
        ranges = [f"{low:g} to {high:g}" for low, high in zip(task.action_low, task.action_high, strict=True)]
        listed = ranges[:1] if len(set(ranges)) == 1 else ranges
        return f"continuous actions of {len(ranges)} dimension{'s'[: len(ranges) - 1]} ({', '.join(listed)})"
    if task.action_sizes:
        return f"{task.action_dimensions} discrete actions at once, of {', '.join(map(str, task.choices))} choices"
    return f"{task.choices[0]} discrete actions"


def action_layout(task: Task) -> tuple[tuple[int, ...], npt.DTypeLike]:
    """Shape and type of one row's action."""
    if task.continuous:
        return (task.action_dimensions,), np.float32
    return ((task.action_dimensions,) if task.action_sizes else ()), np.int64


def same_actions(task: Task, other: Task) -> bool:
    """Whether two tasks have the same actions."""
    names = ("num_actions", "action_sizes", "action_low", "action_high")
    return all(getattr(task, name) == getattr(other, name) for name in names)


def split_gaussian(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Means and log standard deviations, (B, D) each, of scores (B, 2 D)."""
    mean, log_std = scores.chunk(2, dim=1)
    return mean, log_std.clamp(*LOG_STD_RANGE)


def bounds(task: Task) -> tuple[Tensor, Tensor]:
    """Least and largest action, (D,) each, never the same: -1 and 1 stand for a range without bounds, and a range with one
    bound, or of no extent, is 2 wide."""
    low, high = (torch.tensor(side, dtype=torch.float32) for side in (task.action_low, task.action_high))
    lower = torch.where(low.isfinite(), low, torch.where(high.isfinite(), high - 2, -torch.ones(())))
    return lower, torch.where(high.isfinite() & (high > lower), high, lower + 2)


def middle_and_half(task: Task) -> tuple[Tensor, Tensor]:
    """Middle and half width of the action range, (D,) each: an action of `middle + half * u` has u from -1 to 1."""
    low, high = bounds(task)
    return (low + high) / 2, (high - low) / 2


def allowed(scores: Tensor, masks: Masks | Tensor | None) -> Tensor:
    """Scores (B, A) with minus infinity at the actions that the masks (B, A) rule out: their probability is 0."""
    if masks is None:
        return scores
    return scores.masked_fill(~torch.as_tensor(masks, device=scores.device), -math.inf)


def chosen(scores: Tensor, kind: ScoreKind, task: Task, masks: Masks | Tensor | None = None) -> Tensor:
    """The action that a policy takes when it does not explore.

    The allowed action of the highest score, the first of equals; of Gaussians the mean, in the environment's units and held
    to the action range.

    Args:
        scores: (B, K).
        kind: of the scores.
        task: whose actions they are.
        masks: (B, A) the allowed actions, of discrete ones alone; None allows all.

    Returns:
        (B,) or (B, dimensions) int64, or (B, D) float32.
    """
    if not task.continuous:
        scores = allowed(scores, masks)
        if not task.action_sizes:
            return scores.argmax(dim=1)
        return torch.stack([part.argmax(dim=1) for part in torch.split(scores, list(task.action_sizes), dim=1)], dim=1)
    return _in_range(scores if kind == "actions" else split_gaussian(scores)[0], kind, task)


def drawn(
    scores: Tensor, kind: ScoreKind, task: Task, generator: np.random.Generator, masks: Masks | None = None
) -> Actions:
    """Actions drawn from the policy that the scores describe: the softmax of logits or values, the Gaussian.

    Deterministic scores (`actions`) have nothing to draw from: the actions themselves.
    """
    if task.continuous:
        if kind == "actions":
            return cast(Actions, chosen(scores, kind, task).numpy())
        mean, log_std = split_gaussian(scores)
        noise = torch.from_numpy(generator.standard_normal(mean.shape, dtype=np.float32))
        return cast(Actions, _in_range(mean + log_std.exp() * noise, kind, task).numpy())
    # The largest of scores with Gumbel noise is a draw from their softmax.
    noisy = scores + torch.from_numpy(generator.gumbel(size=tuple(scores.shape)))
    return cast(Actions, chosen(noisy, kind, task, masks).numpy())


def _in_range(actions: Tensor, kind: ScoreKind, task: Task) -> Tensor:
    if kind == "squashed_gaussian":
        low, high = bounds(task)
        actions = low + (actions.tanh() + 1) / 2 * (high - low)  # may be rounded to beyond the range
    return torch.clamp(actions, *(torch.from_numpy(end) for end in _ends(task)))


def greedy(values: ActionValues, observations: Observations, task: Task, masks: Masks | None = None) -> Actions:
    """The chosen action of each row, (N,) or (N, D), of the allowed ones."""
    with torch.no_grad():
        scores = finite(values(as_tensor(observations)), masks)
        return cast(Actions, chosen(scores, values.score_kind, task, masks).numpy())


def finite(scores: Tensor, masks: Masks | Tensor | None = None) -> Tensor:
    """The scores of a policy at play, (B, K), as `without_masked_infinity` gives them.

    Raises:
        UserError: NaN or infinity is among them, as where finite weights are so large that their products overflow. The
            highest of such scores is no choice.
    """
    scores = without_masked_infinity(scores, masks)
    if not bool(torch.isfinite(scores).all()):
        raise UserError(
            "the scores of this policy hold NaN or infinity, so it cannot be played: its weights are damaged, too large, or of a "
            "training that diverged"
        )
    return scores


def without_masked_infinity(scores: Tensor, masks: Masks | Tensor | None) -> Tensor:
    """0 in place of the minus infinity that a policy itself gives to actions which the masks (B, A) rule out."""
    if masks is None:
        return scores
    return torch.where(~torch.as_tensor(masks, device=scores.device) & torch.isneginf(scores), 0.0, scores)


def _ends(task: Task) -> tuple[Floats, Floats]:
    """The range, (D,) each: the outermost float32 that are in it, for the float32 next to 0.1 is more than 0.1."""
    return _float32_ends(task.action_low, task.action_high)


@cache  # asked at every control step
def _float32_ends(low: tuple[float, ...], high: tuple[float, ...]) -> tuple[Floats, Floats]:
    least, largest = np.asarray(low, dtype=np.float32), np.asarray(high, dtype=np.float32)
    return (
        np.where(least < np.asarray(low), np.nextafter(least, np.float32(np.inf)), least),
        np.where(largest > np.asarray(high), np.nextafter(largest, -np.float32(np.inf)), largest),
    )


def uniform_actions(task: Task, number: int, generator: np.random.Generator, masks: Masks | None = None) -> Actions:
    """Uniformly random actions of `number` rows, of the allowed ones (N, A); -1 to 1 where a dimension has no bound."""
    if task.continuous:
        low, high = (side.numpy() for side in bounds(task))
        random = generator.uniform(low, high, size=(number, task.action_dimensions)).astype(np.float32)
        return np.clip(random, *_ends(task))
    if masks is not None:
        # As many draws whatever is allowed, so that what follows them does not depend on it.
        columns = [_uniform_allowed(part, generator.random(number)) for part in _dimensions(masks, task)]
        return np.stack(columns, axis=1) if task.action_sizes else columns[0]
    if task.action_sizes:
        return generator.integers(task.choices, size=(number, task.action_dimensions))
    return generator.integers(task.choices[0], size=number)


def _uniform_allowed(masks: Masks, shares: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """(N,): of the allowed actions (N, A) the one at a share of 0 to 1 of their number (N,)."""
    counts = masks.sum(axis=1)
    places = np.minimum((shares * counts).astype(np.int64), counts - 1)
    return np.asarray((np.cumsum(masks, axis=1) > places[:, None]).argmax(axis=1), dtype=np.int64)


def first_allowed(task: Task, masks: Masks) -> Actions:
    """The first allowed action of each row of masks (N, A): (N,), or (N, dimensions)."""
    columns = [part.argmax(axis=1).astype(np.int64) for part in _dimensions(masks, task)]
    return np.stack(columns, axis=1) if task.action_sizes else columns[0]


def some_allowed(masks: Masks, task: Task) -> Bools:
    """(N,): whether each mask (N, A) allows an action, of several at once one in each dimension."""
    return np.asarray(np.logical_and.reduce([part.any(axis=1) for part in _dimensions(masks, task)]))


def _dimensions(masks: Masks, task: Task) -> list[Masks]:
    """The masks of each of several discrete actions at once, (N, size) each; of a single one its own."""
    return np.split(masks, np.cumsum(task.action_sizes)[:-1], axis=1) if task.action_sizes else [masks]


def are_allowed(actions: Actions, task: Task, masks: Masks) -> Bools:
    """(N,): whether each row's action, in all of its dimensions, is one that its mask (N, A) allows."""
    if not task.action_sizes:
        return np.asarray(np.take_along_axis(masks, actions[:, None].astype(np.int64), axis=1)[:, 0])
    offsets = np.cumsum((0, *task.action_sizes[:-1]))
    return np.asarray(np.take_along_axis(masks, actions.astype(np.int64) + offsets, axis=1).all(axis=1))


def mix_in_random(
    actions: Actions, task: Task, epsilon: float, generator: np.random.Generator, masks: Masks | None = None
) -> Actions:
    """Each row's action with probability epsilon replaced by a random allowed one. Draws the same numbers for any epsilon."""
    instead = generator.random(len(actions)) < epsilon
    random = uniform_actions(task, len(actions), generator, masks)
    return cast(Actions, np.where(instead.reshape(-1, *[1] * (actions.ndim - 1)), random, actions))


def agreement(one: Tensor, other: Tensor, task: Task) -> Tensor:
    """(B,): 1 where two chosen actions (B, ...) are the same, 0 where they are not.

    Of several discrete actions at once it is the share that is the same; of continuous actions 1 less their distance, as a
    share of the range and as a mean over dimensions.
    """
    if task.continuous:
        low, high = bounds(task)
        return 1 - ((one - other).abs() / (high - low)).clamp(max=1).mean(dim=1)
    return (one == other).float().reshape(len(one), -1).mean(dim=1)


def check_actions(actions: Actions, num_envs: int, task: Task, masks: Masks | None = None) -> None:
    """Raises ValueError where a row's action is none of the task's, or not allowed."""
    shape = (num_envs, *action_layout(task)[0])
    if task.continuous:
        low, high = _ends(task)
        # Of another type a replayed action would not be the one that was taken.
        fits = actions.shape == shape and actions.dtype == np.float32 and bool(np.isfinite(actions).all())
        fits = fits and bool(((actions >= low) & (actions <= high)).all())
    else:
        fits = actions.shape == shape and bool(((actions >= 0) & (actions < task.choices)).all())
    if not fits:
        raise ValueError(
            f"an action is none of the task's: {task.env} takes {describe(task)} in {num_envs} rows, got {actions}"
        )
    if masks is not None and not are_allowed(actions, task, masks).all():
        row = int(np.flatnonzero(~are_allowed(actions, task, masks))[0])
        raise ValueError(f"an action is masked: row {row} of {task.env} got {actions[row]}, its mask is {masks[row]}")


def predicted(
    values: ActionValues,
    task: Task,
    observation: npt.ArrayLike,
    *,
    deterministic: bool,
    generator: np.random.Generator,
    action_masks: npt.ArrayLike | None = None,
) -> Actions:
    """The action of one observation, or of each of several, as Stable-Baselines3's `predict` gives it.

    Args:
        values: the policy.
        task: that it plays.
        observation: (*obs) or (B, *obs), of the task's type; numbers of any type where the task has floats.
        deterministic: take the chosen action; else draw from what the scores stand for.
        generator: of the draw.
        action_masks: (A,) or (B, A) the allowed actions, as numbers or truth values; None allows all.

    Returns:
        () or (dimensions,) for one, (B,) or (B, dimensions) for several.

    Raises:
        UserError: observations of another shape or type, masks of another shape, or one that allows nothing.
    """
    given = np.asarray(observation)
    one = given.shape == task.observation_shape
    batch = given[None] if one else given
    if batch.shape[1:] != task.observation_shape:
        raise UserError(f"the policy of {task.env} reads observations of {task.observation_shape}, not {given.shape}")
    if task.observation_dtype == "uint8" and batch.dtype != np.uint8:
        raise UserError(f"the policy of {task.env} reads bytes (uint8), not {batch.dtype}: leave the scaling to it")
    rows = np.array(batch, dtype=task.observation_dtype)  # a copy: torch wants memory that it may write to
    masks = None if action_masks is None else _given_masks(action_masks, len(rows), task)
    if deterministic:
        actions = greedy(values, rows, task, masks)
    else:
        with torch.no_grad():
            actions = drawn(finite(values(as_tensor(rows)), masks), values.score_kind, task, generator, masks)
    return cast(Actions, np.asarray(actions[0])) if one else actions


def _given_masks(action_masks: npt.ArrayLike, number: int, task: Task) -> Masks:
    """Masks that a caller gives for so many observations, (number, A)."""
    if task.continuous:
        raise UserError(f"{task.env} has {describe(task)}: there is nothing to mask")
    try:
        masks = np.asarray(action_masks).astype(np.bool_).reshape(number, task.mask_size)
    except (TypeError, ValueError):
        raise UserError(
            f"action_masks are of shape {(number, task.mask_size)} for {task.env}, not {np.shape(action_masks)}"
        ) from None
    if not some_allowed(masks, task).all():
        raise UserError(f"action_masks allow no action at all in row {int((~some_allowed(masks, task)).argmax())}")
    return masks
