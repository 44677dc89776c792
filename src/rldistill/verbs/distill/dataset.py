"""Whether a dataset's labels are those that a student is to learn: its task, its kind of scores and its teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rldistill.datasets.shards import Dataset, open_dataset, same_teacher
from rldistill.lessons.teaching import Teaching
from rldistill.play.envs import same_game, unlike
from rldistill.types import UserError, printable


def fitting_dataset(
    path: str, teaching: Teaching, own: Mapping[str, Any], *, augment: bool
) -> tuple[Dataset, list[str]]:
    """The dataset, and in words what a user must accept: another game, or labels of another teacher.

    Args:
        path: of the dataset.
        teaching: whose teacher the user names.
        own: what a dataset's card says of this teacher.
        augment: whether the teacher labels composites of the dataset's states.

    Raises:
        UserError: it was made for another task or another kind of scores, or composites would get another teacher's labels.
    """
    teacher, task = teaching.teacher, teaching.task
    dataset = open_dataset(path)
    differ = unlike(dataset.task, task)
    if differ is not None:
        raise UserError(f"the dataset {path} has {differ[0]}, the teacher {differ[1]}")
    if dataset.score_kind != teacher.score_kind:
        raise UserError(f"the dataset {path} holds {dataset.score_kind}, the teacher gives {teacher.score_kind}")
    doubts = []
    card = dataset.card["teacher"]
    labelled_by = card.get("sha256")
    if labelled_by is not None and own["sha256"] is not None and labelled_by != own["sha256"] and augment:
        raise UserError(
            f"another teacher labelled the dataset {path}, and composites would get labels from this one: "
            "name the dataset's own teacher, or learn its labels alone with --augment 0 --accept-mismatch"
        )
    # Whoever merged several teachers' labels has said that they may be mixed. Cards made by hand may say nothing of a teacher.
    several = [item.get("sha256") for item in card.get("teachers", [])]
    if "sha256" in card and not same_teacher(card, own) and own["sha256"] not in several:
        named = card.get("path") or (
            card.get("kind") if labelled_by is None else f"the one of checksum {labelled_by[:12]}"
        )
        doubts.append(
            f"another teacher labelled the dataset {path} ({printable(named, 200)}), and the student learns its labels, not those "
            "of the teacher named here: name that one"
        )
    if not same_game(dataset.task.env, task.env):
        doubts.append(f"the dataset {path} was recorded in {dataset.task.env}, the student plays {task.env}")
    return dataset, doubts
