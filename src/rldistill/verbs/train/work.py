"""Learning from reward as work for the loop: an item is one round of a learner, or of several tasks' learners."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from rldistill.lessons.dqn import DQN
from rldistill.lessons.joint import Joint
from rldistill.lessons.ppo import PPO
from rldistill.lessons.pqn import PQN
from rldistill.policies import save_policy
from rldistill.runs.loop import Clock, Hook, Stop
from rldistill.runs.records import Record, Train
from rldistill.students.heads import MultiTaskNetwork
from rldistill.students.networks import Network
from rldistill.types import Task, UserError

WeightsType: TypeAlias = Literal["float32", "float16"]


class Training:
    """A learner at work: an item is one round of learning.

    Args:
        learner: that learns.
        steps: control steps of the whole training, of several tasks those of each.
    """

    unit = "steps"

    def __init__(self, learner: DQN | PQN | PPO | Joint, steps: int) -> None:
        self.learner, self.steps = learner, steps
        self.learners: dict[str | None, DQN | PQN | PPO] = {}
        """By the name of the task; of a single one it has none."""
        if isinstance(learner, Joint):
            self.learners.update(learner.learners)
        else:
            self.learners[None] = learner
        self.total = steps * len(self.learners)
        self.clock = Clock()
        self._recent: deque[float] = deque(maxlen=100)
        self._figures: dict[str, float] = {}
        self._rounds = _rounds(learner)

    @property
    def tasks(self) -> list[Task]:
        """What is learnt."""
        return [learner.environments.task for learner in self.learners.values()]

    @property
    def done(self) -> int:
        """Control steps; of several tasks without those that one of them has had beyond its own."""
        if not isinstance(self.learner, Joint):
            return self.learner.control_steps
        return sum(min(learner.control_steps, self.steps) for learner in self.learners.values())

    @property
    def must_save(self) -> bool:
        """As the learner says."""
        return self.learner.must_save

    def advance(self) -> Sequence[Record]:
        """One round of learning, which makes a record, or one of each task that was played or learnt.

        Raises:
            UserError: the loss is no finite number.
        """
        return [self._record(task, learnt) for task, learnt in next(self._rounds).items()]

    def _record(self, task: str | None, learnt: Mapping[str, Any]) -> Record:
        loss, steps = learnt["loss"], self.learners[task].control_steps
        if loss is not None and not math.isfinite(loss):
            of_task = f" of {task}" if task else ""
            raise UserError(
                f"the loss{of_task} became {loss} after {steps} steps: lower --learning-rate, with another --out"
            )
        self._recent.extend(learnt["returns"])
        self._figures = {"loss": loss} if loss is not None else {}  # None while dqn warms up
        if "epsilon" in learnt:
            self._figures["epsilon"] = learnt["epsilon"]
        return Train(lesson=task, control_steps=steps, seconds=round(self.clock.seconds, 2), **learnt)

    def figures(self) -> dict[str, float]:
        """The last round's, and of a single task the mean return of the last 100 games."""
        several = len(self.learners) > 1  # whose returns have no common scale
        return self._figures | ({"score": float(np.mean(self._recent))} if self._recent and not several else {})

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
        for learner in self.learners.values():
            learner.environments.close()

    def save(
        self, folder: Path, policy: Network | MultiTaskNetwork, made: Mapping[str, Any], dtype: WeightsType
    ) -> None:
        """Writes a policy folder of what is learnt."""
        task: Task | Mapping[str, Task] = self.tasks[0]
        if isinstance(policy, MultiTaskNetwork):
            task = dict(zip(policy.heads, self.tasks, strict=True))
        save_policy(folder, policy, task, made, dtype=dtype)


def _rounds(learner: DQN | PQN | PPO | Joint) -> Iterator[Mapping[str | None, dict[str, Any]]]:
    """The items of a learner, by task."""
    if isinstance(learner, Joint):
        for of_tasks in learner.learn():
            yield dict(of_tasks.items())
    else:
        for learnt in learner.learn():
            yield {None: learnt}


def snapshots_of(work: Training, shares: Sequence[float], folder: Path, made: Callable[[], dict[str, Any]]) -> Hook:
    """A hook that keeps the policy at some shares of the training."""
    due = [share for share in sorted(shares) if share * work.total > work.done]

    def hook(stop_if_asked: Stop) -> bool:
        while due and work.done >= due[0] * work.total:
            work.save(folder / f"{due.pop(0):g}", work.learner.policy, made(), "float16")
        return False

    return hook
