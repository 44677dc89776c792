"""The interface of a backend of environments, and what all backends share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from rldistill.play.actions import describe, same_actions
from rldistill.play.envs.ram import Ram
from rldistill.types import Actions, Bools, Floats, Masks, Observations, Task, UserError

Pixels = npt.NDArray[np.uint8]


class Step(NamedTuple):
    """The outcome of one control step of all rows, each (N,)."""

    rewards: Floats
    """Raw, never clipped."""
    terminated: Bools
    truncated: Bools
    life_lost: Bools
    """Where a life was lost and the episode goes on; False everywhere in environments without lives."""
    final_observations: Observations
    """(N, *obs) as they stood before ended episodes were restarted; elsewhere equal to the new observations."""
    returns: Floats
    """The raw return of the episode in rows that ended one, NaN elsewhere."""


class Backend(Protocol):
    """Rows of one environment that are reset from given seeds and stepped together. A backend never resets itself."""

    observations: Observations
    life_lost: Bools
    """(N,), in the last step; see `Step`."""

    @property
    def time_limit(self) -> int | None:
        """Control steps after which the environment itself truncates an episode, where it declares that."""

    @property
    def masks(self) -> Masks | None:
        """(N, A): the actions allowed in `observations`, at least one in each row; None where the environment gives no masks."""

    @property
    def ram(self) -> Ram | None:
        """The RAM at the time of `observations`, of an Atari game that was made for it; None of all others."""

    def reset(self, rows: Bools, seeds: npt.NDArray[np.int64]) -> None:
        """Starts a new episode in the rows of the mask (N,), from one seed each."""

    def step(self, actions: Actions) -> tuple[Floats, Bools, Bools]:
        """Rewards, terminated and truncated, (N,) each."""

    def pixels(self) -> Pixels:
        """What a spectator sees: (N, height, width, 3)."""

    def close(self) -> None:
        """Frees what it holds."""


def understood(env: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The options given. Raises UserError where one would have no effect, and a task with it would be a wrong record."""
    for name in given:
        if name not in defaults:
            games = (
                "those are for other environments" if name == "env_kwargs" else "those are for Atari and MinAtar games"
            )
            takes = f"it takes {', '.join(defaults)}" if defaults else games
            raise UserError(f"{env} does not take the option {name!r}: {takes}")
    return dict(given)


def unlike(one: Task, other: Task) -> tuple[str, str] | None:
    """Why a policy of one task cannot play the other: what each of them has, in words. None where it can."""
    if not same_actions(one, other):
        return describe(one), describe(other)
    if one.observation_shape != other.observation_shape:
        return f"observations of shape {one.observation_shape}", f"{other.observation_shape}"
    if one.observation_dtype != other.observation_dtype:
        return f"{one.observation_dtype} observations", other.observation_dtype
    if one.observation_keys != other.observation_keys:  # flattened in their order, which policies know them by
        parts = [", ".join(f"{name} ({size})" for name, size in task.observation_keys) for task in (one, other)]
        return f"the parts {parts[0] or 'without names'} of observations", parts[1] or "without names"
    return None
