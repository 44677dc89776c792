"""A network of several heads as exporters see it: a table of its tasks, and what the file takes and gives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rldistill.formats.note import TASKS_FORMAT, VERSION
from rldistill.students.heads import MultiTaskNetwork
from rldistill.types import Task, UserError


class HeadsPolicy(Protocol):
    """A network with a head for each of several tasks."""

    @property
    def network(self) -> MultiTaskNetwork:
        """With its weights."""

    @property
    def tasks(self) -> Mapping[str, Task]:
        """By the name of the head, in the order of the heads."""


def heads_note(policy: HeadsPolicy, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The note in a file of all heads, plain JSON data: a table of the tasks, each with its index and number of scores."""
    table = [
        {
            "index": index,
            "name": name,
            "num_scores": head.num_scores,
            "score_kind": head.score_kind,
            "observation_shape": list(head.observation_shape),
            "task": policy.tasks[name].as_dict(),
        }
        for index, (name, head) in enumerate(policy.network.heads.items())
    ]
    return {"format": TASKS_FORMAT, "format_version": VERSION, "tasks": table, **facts}


def observation_shape(policy: HeadsPolicy) -> tuple[int, ...]:
    """Of the file's input: as wide as the widest task's observations, along the first axis."""
    shapes = [head.observation_shape for head in policy.network.heads.values()]
    return (max(shape[0] for shape in shapes), *shapes[0][1:])


def most_scores(policy: HeadsPolicy) -> int:
    """Of the file's output: as many as the head with the most has."""
    return max(head.num_scores for head in policy.network.heads.values())


def observation_dtype(policy: HeadsPolicy) -> str:
    """The type that all tasks' observations have.

    Raises:
        UserError: they differ.
    """
    kinds = {task.observation_dtype: name for name, task in policy.tasks.items()}
    if len(kinds) > 1:
        texts = [f"{name} {dtype}" for dtype, name in kinds.items()]
        raise UserError(
            f"one file takes observations of one type, and these tasks have two ({', '.join(texts)}): "
            "export head by head, as REF#TASK"
        )
    return next(iter(kinds))


def has_actions(tasks: Sequence[Task]) -> bool:
    """Whether every task has one discrete action, which one number can name."""
    return all(not task.continuous and not task.action_sizes for task in tasks)


def filler(task: Task) -> float:
    """What stands behind a head's scores up to the widest head's: never the highest of a discrete task."""
    return 0.0 if task.continuous else -math.inf
