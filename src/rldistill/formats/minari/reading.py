"""Reads Minari's datasets, those that `write_minari` made and those of others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rldistill.documents import read_json
from rldistill.files import check_regular
from rldistill.formats.minari.episodes import KEY, MASKS, VALUES, MinariEpisode, Origin, packages, readable
from rldistill.play.actions import action_layout, check_actions, describe
from rldistill.types import Task, UserError


class MinariData(NamedTuple):
    """An open dataset."""

    path: Path
    storage: Any
    """Minari's own."""
    metadata: Mapping[str, Any]
    episodes: int
    steps: int

    @property
    def is_own(self) -> bool:
        """Whether `write_minari` made it."""
        return KEY in self.metadata

    @property
    def card(self) -> Any:
        """The card of rldistill's dataset, as it stands in the metadata."""
        return self.metadata[KEY]


def open_minari(source: Path) -> MinariData:
    """Opens a folder of Minari's data.

    Raises:
        UserError: minari is not installed, or the dataset is damaged or does not say its spaces.
    """
    _, storage_of, _ = packages()
    metadata = read_json(source / "metadata.json")
    # Without them Minari would make the environment, and so import whatever the file names.
    if not isinstance(metadata.get("observation_space"), str) or not isinstance(metadata.get("action_space"), str):
        raise UserError(f"{source} does not say its spaces: open it with Minari and write it anew")
    with readable(source):
        for path in source.rglob("*"):
            if not path.is_dir():
                check_regular(path)
        storage = storage_of.read(source)
        return MinariData(source, storage, metadata, int(metadata["total_episodes"]), int(metadata["total_steps"]))


def read_own_episode(data: MinariData, number: int, task: Task) -> MinariEpisode:
    """An episode of a dataset that `write_minari` made.

    Raises:
        UserError: it cannot be read, or lacks something.
    """
    shape, kind = action_layout(task)
    with readable(data.path, number):
        raw = next(iter(data.storage.get_episodes([number])))
        origin = Origin.from_dict(next(iter(data.storage.get_episode_metadata([number])))[KEY])
        length = len(raw["rewards"])
        truncated = np.array(raw["truncations"], np.bool_)
        truncated[-1] &= origin.ended
        return MinariEpisode(
            frames=np.asarray(raw["observations"])[:length],
            actions=np.asarray(raw["actions"]).reshape(length, *shape).astype(kind),
            rewards=np.asarray(raw["rewards"], np.float32),
            terminated=np.array(raw["terminations"], np.bool_),
            truncated=truncated,
            values=np.asarray(raw["infos"][VALUES])[:length],
            masks=np.asarray(raw["infos"][MASKS], np.bool_)[:length] if task.action_masks else None,
            origin=origin,
        )


def read_episode(data: MinariData, number: int, task: Task, *, channels_last: bool) -> MinariEpisode:
    """An episode of a dataset of others, which may have no steps.

    Args:
        data: the dataset.
        number: of the episode.
        task: that its actions are to suit.
        channels_last: of `check_spaces`.

    Raises:
        UserError: it cannot be read, or has an action that is none of the task's.
    """
    shape, kind = action_layout(task)
    with readable(data.path, number):
        raw = next(iter(data.storage.get_episodes([number])))
        length = len(raw["rewards"])
        observations = np.asarray(raw["observations"])[:length]
        if channels_last and length:
            observations = observations.transpose(0, 3, 1, 2)
        given = {
            "observations": observations,
            "actions": np.asarray(raw["actions"]).reshape(length, *shape),
            "rewards": np.asarray(raw["rewards"]),
        }
        frames = observations.astype(task.observation_dtype)
        actions, rewards = given["actions"].astype(kind), given["rewards"].astype(np.float32)
        try:
            check_actions(actions, length, task)
        except ValueError:  # its text holds all actions
            wrong = f"episode {number} of {data.path} has an action that {task.env} does not take"
            raise UserError(f"{wrong}: it has {describe(task)}") from None
        kept = {"observations": frames, "actions": actions, "rewards": rewards}
        return MinariEpisode(
            frames=np.ascontiguousarray(frames),
            actions=actions,
            rewards=rewards,
            terminated=np.array(raw["terminations"], np.bool_),
            truncated=np.array(raw["truncations"], np.bool_),
            rounded=frozenset(name for name, array in kept.items() if not np.array_equal(given[name], array)),
            infos=frozenset(raw["infos"] or {}),
        )


def check_spaces(data: MinariData, task: Task, frame_shape: tuple[int, ...]) -> bool:
    """Whether images have their channels last. Raises UserError where observations or actions are none of the task's."""
    from gymnasium.spaces import Box, Discrete, MultiDiscrete

    observations, actions = data.storage.observation_space, data.storage.action_space
    if isinstance(actions, Discrete):
        fits = not task.action_sizes and ((actions.n,), actions.start) == (task.choices, 0)
    elif isinstance(actions, MultiDiscrete):
        fits = tuple(actions.nvec.ravel().tolist()) == task.action_sizes and not np.any(actions.start)
    else:
        fits = isinstance(actions, Box) and task.continuous and actions.shape == (task.action_dimensions,)
    if not fits:
        raise UserError(f"{data.path} has the actions {actions}, {task.env} has {describe(task)}")
    if not isinstance(observations, Box):
        raise UserError(
            f"{data.path} has {type(observations).__name__} observations: only arrays (Box) can be converted"
        )
    images = len(frame_shape) == 3 and task.observation_dtype == "uint8"
    last = images and observations.shape == (*frame_shape[1:], frame_shape[0])
    bytes_missing = task.observation_dtype == "uint8" and observations.dtype != np.uint8
    if (observations.shape != frame_shape and not last) or bytes_missing:
        raise UserError(
            f"{data.path} has observations of shape {observations.shape} {observations.dtype}, {task.env} has frames of "
            f"shape {frame_shape} {task.observation_dtype}"
        )
    return last and observations.shape != frame_shape
