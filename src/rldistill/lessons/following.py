"""A student that follows a learner: the learner's versions teach, on the states that learner and student visit."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from rldistill.lessons.guides import Guide, OneGuide, Rows, Stored
from rldistill.lessons.payments import Outcome
from rldistill.play.actions import chosen
from rldistill.play.envs import Environments
from rldistill.play.envs.world import Step
from rldistill.play.replay import Columns, Replay
from rldistill.schedules import Schedule
from rldistill.students.networks import Network
from rldistill.students.targets import fitted_temperature
from rldistill.types import (
    Actions,
    Batch,
    Bools,
    Floats,
    Lesson,
    Masks,
    Observations,
    ScoreKind,
    Task,
    UserError,
    as_tensor,
)

if TYPE_CHECKING:
    from rldistill.lessons.streams import Driven


class Learner(Protocol):
    """What learns from reward, as `DQN`, `PQN` and `PPO` do."""

    updates: int

    @property
    def policy(self) -> Network:
        """The weights that would be kept now."""

    @property
    def control_steps(self) -> int:
        """Control steps so far."""

    def learn(self) -> Iterator[dict[str, Any]]:
        """An item is a round of learning; its record has the mean loss."""

    @property
    def must_save(self) -> bool:
        """Whether the next item may overwrite what the last saved state needs."""

    def state_dict(self) -> dict[str, Any]:
        """The state that the next item depends on."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""


def frozen(network: Network) -> Network:
    """A copy of a network as it is now, on the processor, in float32."""
    made = copy.deepcopy(network).cpu().eval().requires_grad_(False)
    made.bfloat16 = False
    return made


class Versions:
    """A teacher that is replaced by a newer version from time to time. Its labels are logits: values by their temperature.

    The values of each version have a scale of their own, so each version has its own temperature.

    Args:
        network: of version 0.
        task: that it plays.
        temperature: a number, `auto` or `auto:SHARE`.
    """

    changes = True

    def __init__(self, network: Network, task: Task, temperature: str) -> None:
        self.network, self.task, self.asked = frozen(network), task, temperature
        self.owner, self.temperature = 0, 1.0
        self.score_kind: ScoreKind = "logits"

    def __call__(self, observations: Tensor) -> Tensor:
        """Logits (B, A) of observations (B, *obs)."""
        with torch.no_grad():
            values: Tensor = self.network(observations) / self.temperature
        return values

    def take(self, network: Network) -> None:
        """Makes the network the next version."""
        self.network, self.owner = frozen(network), self.owner + 1

    def fit(self, observations: Tensor, masks: Tensor | None) -> None:
        """Fits the temperature of this version to observations (B, *obs)."""
        with torch.no_grad():
            values = self.network(observations)
        if not bool(torch.isfinite(values).all()):
            raise UserError("the learner's values became infinite: lower --learner-learning-rate, with another --out")
        self.temperature = fitted_temperature(self.asked, values, self.network.score_kind, masks)

    def state_dict(self) -> dict[str, Any]:
        """Weights, number and temperature."""
        return {"network": self.network.state_dict(), "owner": self.owner, "temperature": self.temperature}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.network.load_state_dict(state["network"])
        self.owner, self.temperature = int(state["owner"]), float(state["temperature"])


class RunningMean:
    """The exponential mean of a network's weights over control steps.

    Args:
        network: whose weights are averaged.
        length: control steps that the mean spans, about.
    """

    def __init__(self, network: Network, length: float) -> None:
        self.network, self.length = frozen(network), length

    def follow(self, network: Network, control_steps: int) -> None:
        """Moves the mean towards the weights that the network has after so many more control steps."""
        share = 1 - math.exp(-control_steps / self.length)
        with torch.no_grad():
            for mean, last in zip(self.network.parameters(), network.parameters(), strict=True):
                mean.lerp_(last.to(mean.device), share)

    def state_dict(self) -> dict[str, Any]:
        """The mean."""
        return {"network": self.network.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.network.load_state_dict(state["network"])


class Visited:
    """Environments whose observations are kept in a replay while a learner plays them.

    Args:
        environments: stepped here.
        replay: keeps them, with labels of nobody.
    """

    def __init__(self, environments: Environments, replay: Replay) -> None:
        self.environments, self.replay = environments, replay
        self._nobody = np.full(environments.num_envs, -1, dtype=np.int64)

    @property
    def task(self) -> Task:
        return self.environments.task

    @property
    def num_envs(self) -> int:
        return self.environments.num_envs

    @property
    def watched(self) -> Floats:
        return self.environments.watched

    @property
    def cut(self) -> int:
        return self.environments.cut

    @property
    def observations(self) -> Observations:
        return self.environments.observations

    @property
    def starts(self) -> Bools:
        return self.environments.starts

    @property
    def masks(self) -> Masks | None:
        return self.environments.masks

    @property
    def final_masks(self) -> Masks | None:
        return self.environments.final_masks

    def step(self, actions: Actions) -> Step:
        """One control step of all rows, whose observations are kept."""
        masks = {} if self.masks is None else {"masks": self.masks}
        self.replay.add(self.observations, self.starts, owners=self._nobody, **masks)
        return self.environments.step(actions)

    def state_dict(self) -> dict[str, Any]:
        """That of the environments; the replay is saved by whoever draws from it."""
        return self.environments.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.environments.load_state_dict(state)

    def close(self) -> None:
        """Closes the environments."""
        self.environments.close()


class VersionGuide:
    """Drives by the present version, and labels states when they are drawn.

    No state is labelled when it is visited, because most labels would be of an older version by the time that it is drawn.

    Args:
        versions: whose labels they are.
        task: that is played.
    """

    def __init__(self, versions: Versions, task: Task) -> None:
        self.versions, self.task = versions, task
        self.score_kind: ScoreKind = versions.score_kind
        self._guide = OneGuide(versions, task)
        self.columns: Columns = self._guide.columns

    def drive(
        self, observations: Observations, masks: Masks | None, starts: Bools, driven: int
    ) -> tuple[Actions, Stored]:
        """The version's choices in the driven rows; the labels are nobody's yet."""
        actions = np.zeros(len(starts), dtype=np.int64)
        if driven:
            values = self.versions(as_tensor(observations[:driven]))
            own = None if masks is None else masks[:driven]
            actions[:driven] = chosen(values, self.score_kind, self.task, own).numpy()
        return cast(Actions, actions), {"owners": np.full(len(starts), -1, dtype=np.int64)}

    def followed(self, step: Outcome, driven: int) -> None:
        """Nothing depends on it."""

    def fit(self, replay: Replay, times: Rows, rows: Rows) -> None:
        """Fits the version's temperature."""
        masks = torch.from_numpy(replay.column("masks", times, rows)) if "masks" in replay else None
        self.versions.fit(as_tensor(replay.observations(times, rows)), masks)

    def labelled(self, replay: Replay, times: Rows, rows: Rows) -> Batch:
        """The states with the labels of the present version."""
        return self._guide.labelled(replay, times, rows)

    def label(self, observations: Tensor, masks: Tensor | None) -> Tensor:
        """The present version's labels."""
        return self._guide.label(observations, masks)

    def learnt(self, loss: float) -> None:
        """Nothing depends on it."""

    def state_dict(self) -> dict[str, Any]:
        """That of the versions."""
        return self.versions.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.versions.load_state_dict(state)


class Beside(NamedTuple):
    """How a student learns beside a learner."""

    learner_steps: int
    """Control steps of the learner, the length of the run."""
    steps: int
    """Control steps of the student, spread evenly over those of the learner."""
    share: Schedule
    """The share of the learner's states in what is drawn, by the student's control steps."""
    drives: bool
    """Whether the student plays."""
    round_times: int
    """Control steps of each of the learner's environments in one of its rounds."""
    clock_of_step: float
    """How far one of these control steps moves the student's clock."""

    def own_times(self, num_envs: int, own_envs: int) -> int:
        """The most control steps of each of `own_envs` that are due with one round of a learner with `num_envs`."""
        return math.ceil(self.clock_of_step * self.round_times * num_envs / own_envs) + 1


class FollowingStream:
    """A learner learns; batches are of the states that it visits and of those that the student visits, with its version's labels.

    An item is a round of the learner, without batches, or some of the batches that are due since the last one.

    Args:
        learner: plays `visited`.
        visited: its environments.
        own: the student's environments and their replay; the student drives all rows.
        guide: drives nobody, and labels.
        mean: of the learner's weights, where it is wanted.
        beside: how the two go together.
    """

    def __init__(
        self,
        learner: Learner,
        visited: Visited,
        own: Driven,
        guide: VersionGuide,
        mean: RunningMean | None,
        beside: Beside,
    ) -> None:
        self.learner, self.visited, self.own, self.guide, self.mean = learner, visited, own, guide, mean
        self.beside = beside
        self.environments: Sequence[Environments] = (visited.environments, *own.environments)
        self._rounds = learner.learn()
        self._credit = 0.0

    def __iter__(self) -> FollowingStream:
        return self

    def __next__(self) -> Mapping[Lesson, Batch]:
        plan = self.own.plan
        if self._credit < plan.batch_size:
            self._advance()
            return {}
        due = plan.due(self._credit)
        self._credit -= due
        return {self.own.lesson: self._draw(due)}

    def _advance(self) -> None:
        """A round of the learner, and the student's control steps that are due with it."""
        plan, before = self.own.plan, max(self.clock, self.own.plan.warmup)
        steps = self.learner.control_steps
        loss = next(self._rounds)["loss"]
        if loss is not None and not math.isfinite(loss):
            raise UserError(f"the learner's loss became {loss}: lower --learner-learning-rate, with another --out")
        if self.mean is not None:
            self.mean.follow(self.learner.policy, self.learner.control_steps - steps)
        self._credit += max(self.clock - before, 0) * plan.samples_per_step
        rows = self.own.environments[0].num_envs
        # Until its first update the student knows nothing.
        while self.beside.drives and plan.warmup + self.own.control_steps + rows <= self.clock:
            self.own.step()

    @property
    def clock(self) -> float:
        """The student's control steps that are due with those of the learner."""
        return self.beside.steps * min(self.learner.control_steps / self.beside.learner_steps, 1.0)

    def _draw(self, number: int) -> Batch:
        """Samples of both replays; the student's is passed over while it is empty."""
        share = self.beside.share(int(self.clock)) if len(self.own.replay) else 1.0
        theirs = round(share * number)
        parts = []
        if theirs:
            parts.append(self._of_learner(theirs, self.own.generator))
        if theirs < number:
            parts.append(self.own.draw(number - theirs))
        if len(parts) == 1:
            return parts[0]
        observations = torch.cat([part.observations for part in parts])
        columns = {name: torch.cat([part.columns[name] for part in parts]) for name in parts[0].columns}
        # In random order, because an item is split into batches.
        order = torch.from_numpy(self.own.generator.permutation(number))
        return Batch(observations[order], {name: column[order] for name, column in columns.items()})

    def _of_learner(self, number: int, generator: np.random.Generator) -> Batch:
        replay = self.visited.replay
        return self.guide.labelled(replay, *replay.sample(generator, number))

    @property
    def lessons(self) -> Sequence[Lesson]:
        """The only lesson."""
        return self.own.lessons

    @property
    def guides(self) -> Mapping[Lesson, Guide]:
        """That of the only lesson."""
        return self.own.guides

    @property
    def teacher_steps(self) -> int:
        """Control steps of the learner."""
        return self.learner.control_steps

    @property
    def student_steps(self) -> int:
        """Control steps of the student."""
        return self.own.student_steps

    @property
    def total(self) -> int:
        """Control steps of the learner in the whole run."""
        return self.beside.learner_steps

    @property
    def done(self) -> int:
        """Control steps of the learner, one less than all while batches are due."""
        due = self._credit >= self.own.plan.batch_size
        return min(self.learner.control_steps, self.total) - due

    def candidate(self) -> Network:
        """The weights that may be the next version."""
        return self.learner.policy if self.mean is None else self.mean.network

    def take(self) -> None:
        """Makes the learner's present weights, or their running mean, the next version."""
        self.guide.versions.take(self.candidate())
        if len(self.visited.replay):
            self._fit_version()

    def _fit_version(self) -> None:
        replay = self.visited.replay
        generator = np.random.default_rng([0, self.guide.versions.owner])
        self.guide.fit(replay, *replay.sample(generator, 1024))

    def examples(self) -> Mapping[Lesson, Batch]:
        """1,024 of the learner's states; the version's temperature is fitted first."""
        self._fit_version()
        return {self.own.lesson: self._of_learner(1024, self.own.generator)}

    def learnt(self, losses: Mapping[Lesson, float]) -> None:
        """Nothing depends on it."""

    @property
    def must_save(self) -> bool:
        """Whether one of the replays may overwrite what the last saved state needs."""
        rows = self.own.environments[0].num_envs
        times = self.beside.round_times
        own = self.beside.own_times(self.visited.num_envs, rows)
        return self.learner.must_save or self.visited.replay.must_save(times) or self.own.replay.must_save(own)

    def state_dict(self) -> dict[str, Any]:
        """Learner, versions, both replays, the student's environments and the generator."""
        return {
            "learner": self.learner.state_dict(),
            "mean": None if self.mean is None else self.mean.state_dict(),
            "visited": self.visited.replay.state_dict(),
            "own": self.own.state_dict(),
            "due": self._credit,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.learner.load_state_dict(state["learner"])
        if self.mean is not None:
            self.mean.load_state_dict(state["mean"])
        self.visited.replay.load_state_dict(state["visited"])
        self.own.load_state_dict(state["own"])
        self._credit = float(state["due"])

    def close(self) -> None:
        """Closes all environments."""
        self.visited.close()
        self.own.close()
