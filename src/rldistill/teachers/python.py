"""Teachers that are objects of Python: anything with a task, a kind of scores and a call."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn

from rldistill.types import ScoreKind, Task, Teacher, UserError, printable


class PythonTeacher:
    """A user's object as a `KeptPolicy`. It is given observations of its own, so that it may change them.

    What it does not say of itself is empty: a network without parameters, no weights, no checksum.

    Args:
        teacher: anything with a `task`, a `score_kind` and a call from observations (B, *obs) to scores (B, K).

    Raises:
        UserError: it lacks one of them.
    """

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher
        task, kind = getattr(teacher, "task", None), getattr(teacher, "score_kind", None)
        if not isinstance(task, Task):
            raise UserError(f"the teacher's task is a Task, as make_task makes it, not {printable(repr(task))}")
        if kind not in get_args(ScoreKind):
            raise UserError(
                f"the teacher's score_kind is one of {', '.join(get_args(ScoreKind))}, not {printable(repr(kind))}"
            )
        self.task: Task = task
        self.score_kind: ScoreKind = cast(ScoreKind, kind)

    def __call__(self, observations: Tensor) -> Tensor:
        """Scores (B, K) float32 of observations (B, *obs), which are not changed.

        Raises:
            UserError: what it gives is no array.
        """
        with torch.no_grad():
            scores: Any = self.teacher(observations.clone())
        if isinstance(scores, np.ndarray) and scores.dtype.kind in "fiu":
            scores = torch.from_numpy(np.ascontiguousarray(scores))
        if not isinstance(scores, Tensor):
            raise UserError(f"the teacher gives a {type(scores).__name__}: its scores are a tensor (B, K)")
        # Memory of its own: some teachers give the same tensor at each call.
        return scores.detach().to("cpu", torch.float32, copy=True)

    @property
    def network(self) -> nn.Module:
        """The object itself if it is a module, or the module that it has."""
        inner = getattr(self.teacher, "network", self.teacher)
        return inner if isinstance(inner, nn.Module) else nn.Identity()

    @property
    def name(self) -> str:
        """The object's name, or that of its class."""
        name = getattr(self.teacher, "name", None)
        return name if isinstance(name, str) else type(self.teacher).__name__

    @property
    def path(self) -> Path | None:
        """Where it was read, if it says so."""
        path = getattr(self.teacher, "path", None)
        return path if isinstance(path, Path) else None

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What it says of its making."""
        made = getattr(self.teacher, "provenance", None)
        return made if isinstance(made, Mapping) else {}

    @property
    def sha256(self) -> str:
        """The object's checksum; empty where it has none, since two objects cannot be compared then."""
        checksum = getattr(self.teacher, "sha256", None)
        return checksum if isinstance(checksum, str) else ""

    def weights(self) -> bytes:
        """The object's weights; empty where it has none."""
        own = getattr(self.teacher, "weights", None)
        data = own() if callable(own) else b""
        return data if isinstance(data, bytes) else b""
