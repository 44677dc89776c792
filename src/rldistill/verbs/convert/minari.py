"""Datasets as Minari's: an episode each, single frames, the teacher's values among the infos.

Minari packs images as JPEG unless told not to. Here `jpeg_encoding` is off, and the data format is its Parquet: a frame of Pong
takes some 100 bytes in it, 7,000 in its Arrow and HDF5.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

import rldistill
from rldistill.datasets.episodes import Episode, observations_of, read_episodes
from rldistill.datasets.rows import Shard, frame_shape, joined, label_width
from rldistill.datasets.shards import Dataset, append_shard, empty_dataset, parse_card, shard_number, write_card
from rldistill.documents import read_json
from rldistill.files import check_regular
from rldistill.play.actions import action_layout, check_actions, describe
from rldistill.play.envs import is_as_declared
from rldistill.policies import SavedPolicy
from rldistill.progress import Progress
from rldistill.runs.folder import command_line
from rldistill.teachers import ForeignTeacher, known_of
from rldistill.types import Task, UserError, as_tensor, first_line

KEY = "rldistill"
VALUES = "teacher_values"
MASKS = "action_mask"
SHARD_STEPS = 16_384
"""Control steps of a shard that is made from episodes, at least (but of the last)."""
LONGEST = 131_072
"""Minari's Parquet reader hands out so many rows at once and takes them for a whole episode."""
_LABEL_ROWS = 256


def check_target(out: Path) -> None:
    """Raises UserError where Minari would not find a dataset under this name, or is not installed."""
    if not re.fullmatch(r"[-\w]+-v\d+", out.name):
        raise UserError(f"names of Minari datasets end in a version: --out {out.with_name('pong-v0')}, say, not {out}")
    _minari()


def minari_folder(source: Path) -> Path | None:
    """The folder of Minari's data at a path; None if there is something else."""
    for folder in (source / "data", source):
        card = folder / "metadata.json"
        if card.is_file() and "data_format" in read_json(card):
            return folder
    return None


def write_minari(
    dataset: Dataset, episodes: Sequence[Episode], folder: Path, name: str, progress: Progress
) -> list[str]:
    """Writes Minari's data into a folder that is there; returns what is to be known of it.

    Args:
        dataset: to write.
        episodes: all of its episodes.
        folder: the data lie in `data` below it.
        name: that `minari.load_dataset` will find it by.
        progress: told how it goes.

    Raises:
        UserError: minari is not installed, a shard is damaged, or an episode is too long.
        OSError: the disk is full.
    """
    minari, storage_of, buffer_of = _minari()
    task = dataset.task
    if any(episode.steps + task.frame_stack > LONGEST for episode in episodes):
        raise UserError(f"an episode of {dataset.path} has more than the {LONGEST:,} steps that Minari can read")
    spaces = _observation_space(task), _action_space(task)
    data = (folder / "data").resolve()  # Minari adds up sizes wrongly below a relative path
    storage = storage_of.new(data, *spaces, _env_spec(task), data_format="parquet", jpeg_encoding=False)
    card = {key: value for key, value in dataset.card.items() if key not in ("shards", "control_steps")}
    told = {"dataset_id": name, "minari_version": minari.__version__, KEY: card}
    told["description"] = (
        f"{task.env}, recorded by rldistill with a teacher's values of each step ({dataset.score_kind})"
    )
    storage.update_metadata(told)
    # After each episode Minari adds up the sizes of all files: time would grow with the square of the episodes.
    size = storage.get_size
    storage.get_size = lambda: 0.0
    done = 0
    progress.start("write Minari", dataset.control_steps, "steps")
    for episode, rows in read_episodes(dataset, episodes):
        context = len(rows.frames) - episode.steps
        truncated = rows.truncated.copy()
        truncated[-1] |= not episode.ended
        last = rows.frames[-1:]  # what an episode ended with is not recorded, and Minari wants one observation more
        infos = {VALUES: np.concatenate([rows.values, np.full_like(rows.values[-1:], np.nan)])}
        if rows.masks is not None:
            infos[MASKS] = np.concatenate([rows.masks, np.zeros_like(rows.masks[-1:])])
        storage.update_episodes(
            [
                buffer_of(
                    id=episode.number,
                    observations=np.concatenate([rows.frames, last]),
                    actions=rows.actions,
                    rewards=rows.rewards,
                    terminations=rows.terminated,
                    truncations=truncated,
                    infos=infos,
                )
            ]
        )
        own = {
            "recording": episode.recording,
            "environment": episode.environment,
            "begun": bool(rows.starts[0]),
            "ended": episode.ended,
            "context": context,
            "sha256": _checksum(rows),
        }
        storage.update_episode_metadata([{KEY: own}], [episode.number])
        done += episode.steps
        progress.update(done)
    del storage.get_size
    storage.update_metadata({"dataset_size": float(size())})
    return _notes(dataset, episodes)


def read_minari(
    source: Path, folder: Path, teacher: SavedPolicy | ForeignTeacher | None, task: Task | None, progress: Progress
) -> list[str]:
    """Writes the shards and the card of a Minari dataset into a folder that is there; returns what is to be known of them.

    Args:
        source: folder of Minari's data.
        folder: of the new dataset.
        teacher: who labels a dataset that has no teacher's values; None of one that has.
        task: that the teacher plays there.
        progress: told how it goes.

    Raises:
        UserError: minari is not installed, the dataset is damaged, does not suit the teacher's task, or lacks values.
    """
    _, storage_of, _ = _minari()
    told = read_json(source / "metadata.json")
    # Without them Minari would make the environment, and so import whatever the file names.
    if not isinstance(told.get("observation_space"), str) or not isinstance(told.get("action_space"), str):
        raise UserError(f"{source} does not say its spaces: open it with Minari and write it anew")
    with _readable(source):
        for path in source.rglob("*"):
            if not path.is_dir():
                check_regular(path)
        storage = storage_of.read(source)
        episodes = int(told["total_episodes"])
        steps = int(told["total_steps"])
    if KEY in told:
        if teacher is not None:
            raise UserError(f"{source} has its teacher's values: leave --teacher out")
        return _read_own(source, storage, told[KEY], folder, episodes, steps, progress)
    if teacher is None or task is None:
        raise UserError(
            f"{source} has no teacher's values, and a dataset of rldistill needs them: name who labels it with --teacher REF"
        )
    return _read_foreign(source, storage, told, folder, teacher, task, episodes, steps, progress)


def _read_own(
    source: Path, storage: Any, card: Any, folder: Path, episodes: int, steps: int, progress: Progress
) -> list[str]:
    if not isinstance(card, dict):
        raise UserError(f"{source} is damaged: what it holds of rldistill is no card")
    task, score_kind, _ = parse_card({**card, "shards": []}, str(source))
    empty = empty_dataset(folder, task, score_kind, card["teacher"])
    collected = _Collected(replace(empty, card={**empty.card, **card}))
    shape, kind = action_layout(task)
    recordings = [dict(item) for item in card["recordings"]]
    at, seen, done = -1, set[int](), 0
    progress.start("read Minari", steps, "steps")
    for number in range(episodes):
        with _readable(source, number):
            raw = next(iter(storage.get_episodes([number])))
            own = next(iter(storage.get_episode_metadata([number])))[KEY]
            length = len(raw["rewards"])
            ended, begun, context = bool(own["ended"]), bool(own["begun"]), int(own["context"])
            recording, environment = int(own["recording"]), int(own["environment"])
            truncated = np.array(raw["truncations"], np.bool_)
            truncated[-1] &= ended
            rows = Shard(
                frames=np.asarray(raw["observations"])[:length],
                starts=(np.arange(length) == 0) & begun,
                context=np.arange(length) < context,
                environments=np.full(length, environment, np.int32),
                actions=np.asarray(raw["actions"]).reshape(length, *shape).astype(kind),
                rewards=np.asarray(raw["rewards"], np.float32),
                terminated=np.array(raw["terminations"], np.bool_),
                truncated=truncated,
                values=np.asarray(raw["infos"][VALUES])[:length],
                masks=np.asarray(raw["infos"][MASKS], np.bool_)[:length] if task.action_masks else None,
            )
            if _checksum(rows) != own["sha256"]:
                raise ValueError("its checksum does not fit")
        if recording != at:
            collected.flush()
            for item in recordings[at + 1 : recording + 1]:
                item["first_shard"] = len(collected.dataset.shards)
            at, seen = recording, set()
        # The rows before those of an episode without a beginning are missing: time must not go on from what is there.
        # Where context rows stand in front, its start may be among them.
        if (context or not begun) and environment in seen:
            collected.flush(gap=True)
            seen = set()
        seen.add(environment)
        collected.add(rows)
        done += length - context
        progress.update(done)
    collected.flush()
    for item in recordings[at + 1 :]:
        item["first_shard"] = len(collected.dataset.shards)
    _check_count(source, done, steps - _context_of(collected.dataset))
    write_card(replace(collected.dataset, card={**collected.dataset.card, "recordings": recordings}))
    return ["rows stand episode after episode, in new shards"]


def _context_of(dataset: Dataset) -> int:
    return sum(shard.rows - shard.control_steps for shard in dataset.shards)


def _read_foreign(
    source: Path,
    storage: Any,
    told: Mapping[str, Any],
    folder: Path,
    teacher: SavedPolicy | ForeignTeacher,
    task: Task,
    episodes: int,
    steps: int,
    progress: Progress,
) -> list[str]:
    task = replace(task, action_masks=False)  # infos are left out
    transposed = _check_spaces(source, storage, task)
    empty = empty_dataset(folder, task, teacher.score_kind, known_of(teacher, None))
    recording = {
        "driver": "unknown",
        "first_shard": 0,
        "made_by": f"rldistill {rldistill.__version__}",
        "command": command_line(),
        "converted_from": {"format": "minari", "dataset_id": told.get("dataset_id"), "author": told.get("author")},
    }
    collected = _Collected(empty.with_recording(recording))
    shape, kind = action_layout(task)
    rounded: set[str] = set()
    infos: set[str] = set()
    done = 0
    progress.start("read Minari and label it", steps, "steps")
    for number in range(episodes):
        with _readable(source, number):
            raw = next(iter(storage.get_episodes([number])))
            infos |= set(raw["infos"] or {})
            length = len(raw["rewards"])
            if not length:
                continue
            seen = np.asarray(raw["observations"])[:length]
            frames = (seen.transpose(0, 3, 1, 2) if transposed else seen).astype(task.observation_dtype)
            actions = np.asarray(raw["actions"]).reshape(length, *shape).astype(kind)
            rewards = np.asarray(raw["rewards"]).astype(np.float32)
            try:
                check_actions(actions, length, task)
            except ValueError:  # its text shows all actions
                wrong = f"episode {number} of {source} has an action that {task.env} does not take"
                raise UserError(f"{wrong}: it has {describe(task)}") from None
            kept = {"observations": (seen, frames.transpose(0, 2, 3, 1) if transposed else frames),
                    "actions": (np.asarray(raw["actions"]).reshape(length, *shape), actions),
                    "rewards": (np.asarray(raw["rewards"]), rewards)}  # fmt: skip
            rounded |= {name for name, (before, after) in kept.items() if not np.array_equal(before, after)}
            rows = Shard(
                frames=np.ascontiguousarray(frames),
                starts=np.arange(length) == 0,
                context=np.zeros(length, np.bool_),
                environments=np.zeros(length, np.int32),
                actions=actions,
                rewards=rewards,
                terminated=np.array(raw["terminations"], np.bool_),
                truncated=np.array(raw["truncations"], np.bool_),
                values=np.zeros((length, label_width(collected.dataset)), np.float32),
            )
        for low in range(0, length, _LABEL_ROWS):
            at = np.arange(low, min(low + _LABEL_ROWS, length))
            with torch.no_grad():
                rows.values[at] = teacher(as_tensor(observations_of(rows, task, at))).numpy()
            if not np.isfinite(rows.values[at]).all():
                raise UserError(
                    f"{teacher.name} gives NaN or infinity in episode {number} of {source}: it cannot label it"
                )
            progress.update(done + int(at[-1]) + 1)
        collected.add(rows)
        done += length
    collected.flush()
    _check_count(source, done, steps)
    write_card(collected.dataset)
    notes = ["the last observation of each episode, after its last step, is left out"]
    notes += [f"{', '.join(sorted(rounded))} were rounded to float32"] if rounded else []
    notes += [f"infos are left out: {', '.join(sorted(infos))}"] if infos else []
    return [*notes, f"the values are those of {teacher.name}, who need not have played"]


class _Collected:
    """Episodes that become a shard when there are enough of them."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._parts: list[Shard] = []
        self._rows = self._number = 0

    def add(self, rows: Shard) -> None:
        self._parts.append(rows)
        self._rows += len(rows.frames)
        if self._rows >= SHARD_STEPS:
            self.flush()

    def flush(self, *, gap: bool = False) -> None:
        """Writes what there is, a record batch an environment; with a `gap` a number is left out before the next shard.

        Context rows come first in their batch: what has some is the first of its environment since the last gap.
        """
        if self._parts:
            grouped = groupby(self._parts, key=lambda part: int(part.environments[0]))
            parts = [joined(list(group)) for _, group in grouped]
            self.dataset = append_shard(self.dataset, parts, number=self._number)
            self._number = shard_number(self.dataset.shards[-1].file) + 1
        self._parts, self._rows = [], 0
        self._number += gap


def _minari() -> tuple[Any, Any, Any]:
    try:
        import minari
        from minari.data_collector.episode_buffer import EpisodeBuffer
        from minari.dataset.minari_storage import MinariStorage
    except ImportError:
        raise UserError("Minari datasets need minari: pip install 'rldistill[minari]'") from None
    return minari, MinariStorage, EpisodeBuffer


def _observation_space(task: Task) -> Any:
    from gymnasium.spaces import Box

    if task.observation_dtype == "uint8":
        return Box(0, 255, frame_shape(task), np.uint8)
    return Box(-np.inf, np.inf, frame_shape(task), np.float32)


def _action_space(task: Task) -> Any:
    from gymnasium.spaces import Box, Discrete, MultiDiscrete

    if task.continuous:
        return Box(np.array(task.action_low, np.float32), np.array(task.action_high, np.float32), dtype=np.float32)
    return MultiDiscrete(list(task.action_sizes)) if task.action_sizes else Discrete(task.num_actions)


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


def _check_spaces(source: Path, storage: Any, task: Task) -> bool:
    """Whether images have their channels last. Raises UserError where observations or actions are none of the task's."""
    from gymnasium.spaces import Box, Discrete, MultiDiscrete

    seen, taken = storage.observation_space, storage.action_space
    wanted = frame_shape(task)
    if isinstance(taken, Discrete):
        fits = not task.continuous and not task.action_sizes and (taken.n, taken.start) == (task.num_actions, 0)
    elif isinstance(taken, MultiDiscrete):
        fits = tuple(taken.nvec.ravel().tolist()) == task.action_sizes and not np.any(taken.start)
    else:
        fits = isinstance(taken, Box) and task.continuous and taken.shape == (task.num_actions,)
    if not fits:
        raise UserError(f"{source} has the actions {taken}, {task.env} has {describe(task)}")
    if not isinstance(seen, Box):
        raise UserError(f"{source} has {type(seen).__name__} observations: only arrays (Box) can be converted")
    transposed = len(wanted) == 3 and task.observation_dtype == "uint8" and seen.shape == (*wanted[1:], wanted[0])
    if (seen.shape != wanted and not transposed) or (task.observation_dtype == "uint8" and seen.dtype != np.uint8):
        raise UserError(
            f"{source} has observations of shape {seen.shape} {seen.dtype}, {task.env} has frames of shape {wanted} "
            f"{task.observation_dtype}"
        )
    return transposed and seen.shape != wanted


def _checksum(rows: Shard) -> str:
    """Minari's files have none."""
    found = hashlib.sha256()
    for column in rows:
        if column is not None:
            found.update(np.ascontiguousarray(column).data)
    return found.hexdigest()


def _check_count(source: Path, found: int, expected: int) -> None:
    if found != expected:
        raise UserError(f"{source} is damaged: it has {found} steps, its metadata say {expected}")


def _notes(dataset: Dataset, episodes: Sequence[Episode]) -> list[str]:
    stack = dataset.task.frame_stack
    cut = sum(not episode.ended for episode in episodes)
    led = sum(episode.lead is not None for episode in episodes)
    notes = []
    if stack > 1:
        notes.append(
            f"observations are single frames: the policy saw the last {stack}, zeros before an episode's first"
        )
    notes.append(f"the teacher's values are infos[{VALUES!r}], NaN at an episode's last observation")
    if dataset.task.action_masks:
        notes.append(f"the allowed actions are infos[{MASKS!r}], none at an episode's last observation")
    notes.append("what an episode ended with was not recorded: its last observation stands twice")
    if cut:
        notes.append(f"{cut} episodes that the recording cut off are marked as truncated")
    if led:
        notes.append(f"{led} episodes lack their beginning: up to {stack - 1} first steps only hold frames, no actions")
    return notes


@contextmanager
def _readable(source: Path, episode: int | None = None) -> Iterator[None]:
    """What goes wrong while Minari reads, as one line: it raises whatever its storages do."""
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"{source}: {error}") from None
    except Exception as error:
        where = "" if episode is None else f"episode {episode} of "
        raise UserError(f"{where}{source} cannot be read: {first_line(error)}") from None
