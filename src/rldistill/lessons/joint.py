"""Joint training: one network learns several tasks from reward, with a head for each.

Rusu et al. 2015, arXiv 1511.06295, compare multi-task distillation with a multi-task DQN of this kind. It has a replay and a head
for each game, changes games by episodes, and interleaves updates evenly between the games.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch

from rldistill.lessons.dqn import DQN, DQNSettings, adam
from rldistill.lessons.learning import Learning, Learnt
from rldistill.lessons.pqn import PQN, Averaged, PQNSettings, Sharing, radam
from rldistill.play.rollout import Resumable
from rldistill.students.heads import MultiTaskNetwork


class Stretch(NamedTuple):
    """The shortest play of a task: its records, and whether another task may follow."""

    learnt: Mapping[str, Learnt]
    """Records by task."""
    ends_turn: bool
    """Whether another task may be played now."""


Advance: TypeAlias = Callable[[str], Stretch]
"""Plays the named task, and makes the updates that are due."""


class Joint:
    """Learners of several tasks that share a network. Iterate `learn()`, save and load between two items.

    The next task is the one with the fewest control steps so far. So all tasks have about equal numbers of control steps at any
    time, whatever the lengths of their episodes.

    Args:
        network: trained in place.
        policy: the result: the network, or the average of its weights.
        learners: by task; each trains its view of the network.
        optimizer: of the network, which all learners use.
        advance: how a task is played and learnt.
        steps: control steps of each task.
        times: stretches in each item.
    """

    def __init__(
        self,
        network: MultiTaskNetwork,
        policy: MultiTaskNetwork,
        learners: Mapping[str, DQN | PQN],
        optimizer: torch.optim.Optimizer,
        advance: Advance,
        steps: int,
        times: int = 1,
    ) -> None:
        self.network, self.policy, self.learners, self.optimizer = network, policy, learners, optimizer
        self.steps = steps
        self.advance, self._times = advance, times
        self._now = next(iter(learners))

    @property
    def control_steps(self) -> int:
        """The sum over all tasks."""
        return sum(learner.control_steps for learner in self.learners.values())

    @property
    def updates(self) -> int:
        """The sum over all tasks."""
        return sum(learner.updates for learner in self.learners.values())

    @property
    def finished(self) -> bool:
        """Whether all tasks have had their control steps."""
        return all(learner.control_steps >= self.steps for learner in self.learners.values())

    def learn(self) -> Iterator[Mapping[str, dict[str, Any]]]:
        """Plays some stretches for each item, and yields a record of each task that was played or learnt."""
        while True:
            learnt: dict[str, list[Learnt]] = {}
            for _ in range(self._times):
                stretch = self.advance(self._now)
                for task, of_task in stretch.learnt.items():
                    learnt.setdefault(task, []).append(of_task)
                if stretch.ends_turn or self.learners[self._now].control_steps >= self.steps:
                    self._now = min(self.learners, key=lambda task: self.learners[task].control_steps)
                if self.finished:
                    break
            yield {task: self.learners[task].figures(stretches) for task, stretches in learnt.items()}

    @property
    def must_save(self) -> bool:
        """Whether any learner must be saved, because any may be played next."""
        return any(learner.must_save for learner in self.learners.values())

    def state_dict(self) -> dict[str, Any]:
        """The state that the next item depends on; the replays' frames stay in their files."""
        return {
            "network": self.network.arrays(),
            "policy": self.policy.arrays(),
            "optimizer": self.optimizer.state_dict(),
            "learners": {task: learner.own_state_dict() for task, learner in self.learners.items()},
            "now": self._now,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned.

        Raises:
            UserError: files of a replay are missing or damaged.
        """
        for task, learner in self.learners.items():
            learner.load_own_state_dict(state["learners"][task])
        self.network.load_arrays(state["network"])
        self.policy.load_arrays(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._now = str(state["now"])


def joint_dqn(
    network: MultiTaskNetwork,
    environments: Mapping[str, Resumable],
    learning: Mapping[str, Learning],
    settings: DQNSettings,
    scratch: Mapping[str, Path],
) -> Joint:
    """DQN of several tasks: each has a replay and a target network of its own.

    Args:
        network: trained in place.
        environments: by task.
        learning: by task; steps and learning rate are the same.
        settings: of every learner.
        scratch: by task, the folder for its replay's files.

    Raises:
        UserError: no room for the replays.
    """
    first = next(iter(learning.values()))
    optimizer = adam(network.parts(), first.learning_rate)
    learners = {
        task: DQN(view, environments[task], learning[task], settings, scratch=scratch[task], optimizer=optimizer)
        for task, view in network.views()
    }
    times = next(iter(learners.values())).item_times
    return Joint(
        network, network, learners, optimizer, lambda task: play_and_update(learners, task), first.steps, times
    )


def play_and_update(learners: Mapping[str, DQN], played: str) -> Stretch:
    """Plays one control step of all rows of a task, and makes the updates that are due, of all tasks in turn.

    The next update is of the task with the fewest updates so far, among those whose warm-up is over. Otherwise a long game
    would be the only one that is learnt while it lasts.
    """
    returns = learners[played].play()
    made: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {played: []}
    due = sum(learner.due for learner in learners.values())
    done = sum(learner.updates for learner in learners.values())
    for _ in range(done, due):
        task = min((task for task, own in learners.items() if own.due), key=lambda task: learners[task].updates)
        made.setdefault(task, []).append(learners[task].update())
    learnt = {
        task: Learnt([loss for loss, _ in own], [target for _, target in own], returns if task == played else ())
        for task, own in made.items()
    }
    return Stretch(learnt, ends_turn=bool(returns))


def joint_pqn(
    network: MultiTaskNetwork,
    environments: Mapping[str, Resumable],
    learning: Mapping[str, Learning],
    settings: PQNSettings,
) -> Joint:
    """PQN of several tasks: plays a rollout of one task and learns from it, then one of the next.

    Args:
        network: trained in place; it should have layer normalization.
        environments: by task.
        learning: by task; steps and learning rate are the same.
        settings: of every learner.
    """
    first = next(iter(learning.values()))
    optimizer = radam(network.parts(), first.learning_rate)
    length = settings.averaging
    policy = copy.deepcopy(network) if length > 1 else network
    learners: dict[str, PQN] = {}
    torso, *heads = zip(policy.parts(), network.parts(), strict=True)
    of_torso = Averaged(*torso, length, lambda: sum(learner.updates for learner in learners.values()))
    for (task, view), head in zip(network.views(), heads, strict=True):
        of_head = Averaged(*head, length, lambda task=task: learners[task].updates)  # type: ignore[misc]  # of a lambda's default
        sharing = Sharing(optimizer, policy.view(task), [of_torso, of_head] if length > 1 else ())
        learners[task] = PQN(view, environments[task], learning[task], settings, sharing=sharing)

    def advance(task: str) -> Stretch:
        return Stretch({task: learners[task].learn_rollout()}, ends_turn=True)

    return Joint(network, policy, learners, optimizer, advance, first.steps)
