"""Learning from reward as work for the loop: an item is one round of a learner."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rldistill.lessons.dqn import DQN
from rldistill.lessons.pqn import PQN
from rldistill.policies import save_policy
from rldistill.runs.loop import Clock, Hook, Stop
from rldistill.runs.records import Record, Train
from rldistill.types import UserError


class Training:
    """A learner at work: an item is one round of learning.

    Args:
        learner: that learns.
        steps: control steps of the whole training.
    """

    unit = "steps"

    def __init__(self, learner: DQN | PQN, steps: int) -> None:
        self.learner, self.total = learner, steps
        self.task = learner.environments.task
        self.clock = Clock()
        self._recent: deque[float] = deque(maxlen=100)
        self._figures: dict[str, float] = {}
        self._rounds = learner.learn()

    @property
    def done(self) -> int:
        """Control steps."""
        return self.learner.control_steps

    @property
    def must_save(self) -> bool:
        """As the learner says."""
        return self.learner.must_save

    def advance(self) -> Sequence[Record]:
        """One round of learning, which makes one record.

        Raises:
            UserError: the loss is no finite number.
        """
        learnt = next(self._rounds)
        loss = learnt["loss"]  # None while dqn warms up
        if loss is not None and not math.isfinite(loss):
            raise UserError(
                f"the loss became {loss} after {self.done} steps: lower --learning-rate, with another --out"
            )
        self._recent.extend(learnt["returns"])
        self._figures = {"loss": loss} if loss is not None else {}
        self._figures["epsilon"] = learnt["epsilon"]
        return [Train(control_steps=self.done, seconds=round(self.clock.seconds, 2), **learnt)]

    def figures(self) -> dict[str, float]:
        """The last round's, and the mean return of the last 100 games."""
        return self._figures | ({"score": float(np.mean(self._recent))} if self._recent else {})

    def state_dict(self) -> dict[str, Any]:
        """The learner's state, the last returns and the clock."""
        return {"learner": self.learner.state_dict(), "recent": list(self._recent)} | self.clock.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
        self.learner.load_state_dict(state["learner"])
        self._recent.extend(state["recent"])
        self.clock.load_state_dict(state)

    def close(self) -> None:
        """Frees the environments."""
        self.learner.environments.close()


def snapshots_of(work: Training, shares: Sequence[float], folder: Path, made: Callable[[], dict[str, Any]]) -> Hook:
    """A hook that keeps the policy at some shares of the training."""
    due = [share for share in sorted(shares) if share * work.total > work.done]

    def hook(stop_if_asked: Stop) -> bool:
        while due and work.done >= due[0] * work.total:
            save_policy(folder / f"{due.pop(0):g}", work.learner.policy, work.task, made(), dtype="float16")
        return False

    return hook
