"""Writes Minari's datasets.

Minari packs images as JPEG unless its caller refuses. Here `jpeg_encoding` is off, and the data format is its Parquet: a frame
of Pong takes some 100 bytes in it, 7,000 in its Arrow and HDF5.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from rldistill.formats.minari.episodes import KEY, MASKS, VALUES, MinariEpisode, packages
from rldistill.play.envs import is_as_declared
from rldistill.progress import Progress
from rldistill.types import Task, UserError

LONGEST = 131_072
"""Rows of an episode. Minari's Parquet reader hands out so many rows at once and takes them for a whole episode."""


def write_minari(
    episodes: Iterable[MinariEpisode],
    folder: Path,
    metadata: Mapping[str, Any],
    task: Task,
    *,
    frame_shape: tuple[int, ...],
    control_steps: int,
    progress: Progress,
) -> None:
    """Writes Minari's data into a folder that exists.

    Args:
        episodes: in the order of their numbers, each with its origin and its values.
        folder: the data lie in `data` below it.
        metadata: of the dataset, beside what Minari writes by itself.
        task: what was played.
        frame_shape: of a frame.
        control_steps: of all episodes, for the progress.
        progress: shows how many are written.

    Raises:
        UserError: minari is not installed, or reading the episodes fails.
        OSError: the disk is full.
    """
    minari, storage_of, buffer_of = packages()
    data = (folder / "data").resolve()  # Minari adds up sizes wrongly below a relative path
    spaces = _observation_space(task, frame_shape), _action_space(task)
    storage = storage_of.new(data, *spaces, _env_spec(task), data_format="parquet", jpeg_encoding=False)
    storage.update_metadata({**metadata, "minari_version": minari.__version__})
    # After each episode Minari adds up the sizes of all files: time would grow with the square of the episodes.
    size = storage.get_size
    storage.get_size = lambda: 0.0
    done = 0
    progress.start("write Minari", control_steps, "steps")
    for number, episode in enumerate(episodes):
        assert episode.origin is not None
        storage.update_episodes([buffer_of(id=number, **_columns(episode))])
        storage.update_episode_metadata([{KEY: episode.origin._asdict()}], [number])
        done += len(episode.frames) - episode.origin.context
        progress.update(done)
    del storage.get_size
    storage.update_metadata({"dataset_size": float(size())})


def _columns(episode: MinariEpisode) -> dict[str, Any]:
    """An episode as Minari keeps it. It wants one observation more, which was not recorded: the last frame stands twice."""
    assert episode.values is not None
    assert episode.origin is not None
    truncated = episode.truncated.copy()
    truncated[-1] |= not episode.origin.ended
    infos = {VALUES: np.concatenate([episode.values, np.full_like(episode.values[-1:], np.nan)])}
    if episode.masks is not None:
        infos[MASKS] = np.concatenate([episode.masks, np.zeros_like(episode.masks[-1:])])
    return {
        "observations": np.concatenate([episode.frames, episode.frames[-1:]]),
        "actions": episode.actions,
        "rewards": episode.rewards,
        "terminations": episode.terminated,
        "truncations": truncated,
        "infos": infos,
    }


def _observation_space(task: Task, frame_shape: tuple[int, ...]) -> Any:
    from gymnasium.spaces import Box

    if task.observation_dtype == "uint8":
        return Box(0, 255, frame_shape, np.uint8)
    return Box(-np.inf, np.inf, frame_shape, np.float32)


def _action_space(task: Task) -> Any:
    from gymnasium.spaces import Box, Discrete, MultiDiscrete

    if task.continuous:
        return Box(np.array(task.action_low, np.float32), np.array(task.action_high, np.float32), dtype=np.float32)
    return MultiDiscrete(list(task.action_sizes)) if task.action_sizes else Discrete(task.choices[0])


def _env_spec(task: Task) -> Any:
    """Gymnasium's, where the environment is played as it is: what Minari's `recover_environment` makes must suit the data."""
    import gymnasium

    if task.frame_stack > 1 or task.frame_skip > 1 or task.env_kwargs or len(task.observation_shape) != 1:
        return None
    spec = gymnasium.registry.get(task.env)
    # An environment that was registered with a function cannot be named in a file.
    with suppress(UserError):
        return spec if spec is not None and isinstance(spec.entry_point, str) and is_as_declared(task) else None
    return None
