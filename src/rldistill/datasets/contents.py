"""The verbs `dataset info` and `dataset head`: a dataset as a whole and row by row."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rldistill.arguments import checked_arguments
from rldistill.datasets.episodes import find_episodes, read_episodes, stacked_observations
from rldistill.datasets.rows import Shard
from rldistill.datasets.shards import CARD, open_dataset
from rldistill.files import free_path, place_at, replace_file
from rldistill.play.actions import describe
from rldistill.play.envs import action_names
from rldistill.plots import observation_panels
from rldistill.progress import Progress
from rldistill.stats import Summary, summarize
from rldistill.types import Observations, Task, UserError, check_boolean

PICTURES = 4
"""The most rows that a picture shows."""


class Info(NamedTuple):
    """A dataset as a whole."""

    path: str
    task: Task
    control_steps: int
    """Labelled control steps, as the card says."""
    episodes: int
    """Episodes that are complete in the dataset."""
    unfinished: int
    """Episodes that the recording cut off, or whose beginning is missing. Their returns do not count."""
    returns: Summary | None
    """Returns of the complete episodes; None where there is none."""
    shards: int
    bytes: int
    """Size of shards and card."""
    score_kind: str
    """The kind of the teacher's values."""
    teachers: tuple[dict[str, Any], ...]
    """As the card has them."""
    recordings: tuple[dict[str, Any], ...]
    """As the card has them: driver, epsilon, seeds, the version and the command that recorded."""
    format_version: int
    verified: bool
    """Whether checksums were compared."""
    damaged: dict[str, str]
    """The problems of damaged shards, by file name."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        returns = None
        if self.returns is not None:  # one episode has no interval, and JSON no NaN
            returns = {name: value if math.isfinite(value) else None for name, value in self.returns._asdict().items()}
        return {**self._asdict(), "task": self.task.as_dict(), "returns": returns}


class Row(NamedTuple):
    """One control step."""

    episode: int
    step: int
    """Number of the step among those of the episode in the dataset, from 0."""
    action: int | list[int] | list[float]
    name: str
    """Name of the action; empty where it has none."""
    reward: float
    end: str
    """`terminated`, `truncated` or empty."""
    values: list[float]
    """The teacher's scores (K,)."""


@checked_arguments
def info(
    data: str | os.PathLike[str],
    *,
    verify: bool = True,
    json: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Info:
    """Summarizes a dataset: task, episodes and their returns, teacher, recordings and damaged shards.

    Args:
        data: dataset folder.
        verify: whether the checksum of each shard is looked at. Without it lengths are.
        json: file for all of it; made, never overwritten.
        progress: notified of the steps read.

    Raises:
        UserError: no dataset, or `json` exists. A damaged shard does not raise, see `Info.damaged`.
    """
    check_boolean("verify", verify)
    dataset = open_dataset(data)
    target = None if json is None else _free_file(Path(json), "--json")
    episodes, damaged = find_episodes(dataset, verify=verify, progress=progress)
    scores = [episode.score for episode in episodes if episode.whole]
    teacher = dataset.card["teacher"]
    contents = Info(
        path=str(dataset.path),
        task=dataset.task,
        control_steps=dataset.control_steps,
        episodes=len(scores),
        unfinished=len(episodes) - len(scores),
        returns=summarize(scores, seed=0) if scores else None,
        shards=len(dataset.shards),
        bytes=sum(shard.bytes for shard in dataset.shards) + (dataset.path / CARD).stat().st_size,
        score_kind=dataset.score_kind,
        teachers=tuple(teacher.get("teachers", [teacher])),
        recordings=tuple(dataset.card["recordings"]),
        format_version=dataset.card["format_version"],
        verified=verify,
        damaged=damaged,
    )
    if target is not None:
        replace_file(target, dumps(contents.as_dict(), indent=2).encode() + b"\n", new=True)
    return contents


def info_lines(contents: Info) -> list[tuple[str, str]]:
    """The summary as names and texts to print."""
    task, returns = contents.task, contents.returns
    lines = [
        ("dataset", contents.path),
        ("environment", task.env),
        ("task", _options(task)),
        ("observations", f"{task.observation_shape} {task.observation_dtype}"),
        ("actions", describe(task)),
        ("control steps", f"{contents.control_steps:,}"),
        ("episodes", f"{contents.episodes:,}, and {contents.unfinished:,} that are not there from beginning to end"),
    ]
    if returns is not None:
        bounds = f", 95 % CI [{returns.ci_low:.4g}, {returns.ci_high:.4g}]" if math.isfinite(returns.ci_low) else ""
        lines.append(("returns", f"mean {returns.mean:.4g}{bounds}, interquartile mean {returns.iqm:.4g}"))
    lines.append(("shards", f"{contents.shards:,}, {contents.bytes / 1e6:,.1f} MB"))
    lines += [("teacher", _teacher(teacher)) for teacher in contents.teachers]
    lines.append(("values", contents.score_kind))
    for number, item in enumerate(contents.recordings):
        names = ("driver", "epsilon", "seed", "num_envs", "made_by")
        settings = [f"{name.replace('_', ' ')} {item[name]}" for name in names if item.get(name) is not None]
        lines.append((f"recording {number}" if len(contents.recordings) > 1 else "recording", ", ".join(settings)))
    lines.append(("format", f"version {contents.format_version}"))
    checked = "all checksums fit" if contents.verified else "not looked at; lengths fit"
    lines.append(("integrity", checked if not contents.damaged else f"{len(contents.damaged)} damaged"))
    return lines + [("damaged", text) for text in contents.damaged.values()]


@checked_arguments
def head(
    data: str | os.PathLike[str],
    *,
    rows: int = 10,
    episode: int | None = None,
    picture: str | os.PathLike[str] | None = None,
) -> list[Row]:
    """The first control steps, in the order of episodes: recording after recording, environment after environment.

    Args:
        data: dataset folder.
        rows: how many.
        episode: of this one alone, from 0.
        picture: PNG file for the observation stacks of a few of the rows; made, never overwritten.

    Raises:
        UserError: no dataset, a damaged shard, no such episode, nothing to draw, or `picture` exists.
    """
    if rows < 1:
        raise UserError(f"--rows is at least 1, not {rows}")
    dataset = open_dataset(data)
    task = dataset.task
    target = None if picture is None else _free_file(Path(picture), "--picture")
    if target is not None and len(task.observation_shape) != 3:
        raise UserError(f"{task.env} has observations of shape {task.observation_shape}: there is nothing to draw")
    episodes, damaged = find_episodes(dataset, verify=False)
    if damaged:
        raise UserError(next(iter(damaged.values())))
    if not episodes:
        raise UserError(f"the dataset {dataset.path} holds no control steps")
    if episode is not None:
        if not 0 <= episode < len(episodes):
            raise UserError(f"there is no episode {episode} in {dataset.path}: they go from 0 to {len(episodes) - 1}")
        episodes = [episodes[episode]]
    names = _names(task)
    count = min(rows, sum(one.steps for one in episodes))
    drawn = np.unique(np.linspace(0, count - 1, PICTURES).round().astype(int)).tolist() if target is not None else []
    table: list[Row] = []
    observations = []
    for one, part in read_episodes(dataset, episodes):
        first = len(part.frames) - one.steps
        for step in range(min(one.steps, rows - len(table))):
            at = first + step
            action = part.actions[at].tolist()
            ends = {"terminated": part.terminated[at], "truncated": part.truncated[at]}
            table.append(
                Row(
                    one.number,
                    step,
                    action,
                    names[action] if names and isinstance(action, int) else "",
                    float(part.rewards[at]),
                    ", ".join(name for name, there in ends.items() if there),
                    part.values[at].tolist(),
                )
            )
            if len(table) - 1 in drawn:
                observations.append(_observation(part, task, at))
        if len(table) == rows:
            break
    if target is not None:
        labels = [
            f"episode {table[n].episode}, step {table[n].step}" + f", {table[n].name}" * bool(table[n].name)
            for n in drawn
        ]
        replace_file(target, observation_panels(observations, labels), new=True)
    return table


def _observation(part: Shard, task: Task, at: int) -> Observations:
    """The observation (*obs) at one row of an episode. Only the rows of its stack are copied."""
    low = max(at - task.frame_stack + 1, 0)
    near = part.rows(low, at + 1)
    stack: Observations = stacked_observations(near, task, np.array([at - low]))[0]
    return stack


def head_table(rows: Sequence[Row]) -> list[dict[str, str]]:
    """The rows as a table for `progress.table`."""
    return [
        {
            "episode": str(row.episode),
            "step": str(row.step),
            "action": f"{_short(row.action)} {row.name}".rstrip(),
            "reward": f"{row.reward:g}",
            "end": row.end or "-",
            "values": _short(row.values),
        }
        for row in rows
    ]


def _short(numbers: int | Sequence[float], most: int = 8) -> str:
    if isinstance(numbers, int):
        return str(numbers)
    text = " ".join(f"{number:.4g}" for number in numbers[:most])
    return text + " ..." * (len(numbers) > most)


def _names(task: Task) -> list[str]:
    """Names of the choices of one discrete action; empty where they have no names, or the environment is not installed."""
    if task.continuous or task.action_sizes:
        return []
    try:
        names = action_names(task)
    except Exception:  # a missing or broken package of the environment may raise anything
        return []
    return names if names != [str(action) for action in range(task.choices[0])] else []


def _options(task: Task) -> str:
    """Options of the task that differ from the defaults."""
    plain = Task(task.env, task.num_actions, task.observation_shape).as_dict()
    elsewhere = {"action_sizes", "action_low", "action_high", "observation_dtype"}
    own = {name: value for name, value in task.as_dict().items() if value != plain.get(name) and name not in elsewhere}
    return ", ".join(f"{name} = {value}" for name, value in own.items()) or "all options at their defaults"


def _teacher(teacher: dict[str, Any]) -> str:
    provenance = teacher.get("provenance")
    parts = [teacher.get("path") or teacher.get("kind") or "unknown"]
    parts += [provenance["algorithm"]] if isinstance(provenance, dict) and provenance.get("algorithm") else []
    parts += [f"sha256 {teacher['sha256'][:12]}"] if isinstance(teacher.get("sha256"), str) else []
    return ", ".join(map(str, parts))


def _free_file(path: Path, flag: str) -> Path:
    """The path of a new file, checked before the dataset is read."""
    if place_at(path) == "stream":
        return path
    free_path(path, flag)
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: there is no folder {path.parent}")
    return path
