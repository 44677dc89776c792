"""DQN with replay and target network (Mnih et al. 2015), double by default (van Hasselt et al. 2015, arXiv 1509.06461)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rldistill.files import generator_state, load_generator_state
from rldistill.lessons.exploration import EZGreedy
from rldistill.lessons.learning import Inside, Learning, Learnt, as_figures
from rldistill.play.actions import allowed
from rldistill.play.replay import Replay, mask_column
from rldistill.play.rollout import Resumable, as_learnt, rollout
from rldistill.schedules import constant, linear
from rldistill.students.networks import Network
from rldistill.types import Actions, Bools, Floats, Masks, Observations, UserError, as_tensor


@dataclass(frozen=True)
class DQNSettings:
    """Defaults for Atari; `docs/train.md` lists the differences from the papers."""

    capacity: int = 400_000
    """Control steps kept to learn from (7 kB each on Atari)."""
    n_step: int = 3
    """Rewards summed before the bootstrap; 1 is the paper's."""
    double: bool = True
    """Double Q-learning: the learning network chooses the action of the bootstrap. Otherwise the target network does."""
    warmup: int = 20_000
    """Control steps of uniformly random play before the first update."""
    replay_ratio: float = 8.0
    """Samples drawn for each control step; the paper's 32 every 4 control steps are 8."""
    minibatch: int = 128
    """Samples for each update. The paper has 32, and four times as many updates for the same samples."""
    target_every: int = 500
    """Updates between two copies to the target network."""
    item_steps: int = 512
    """Control steps in an item of `DQN.learn`. They change only the times of records."""
    slack: int = 65_536
    """Control steps of room in the replay's files, so that not every item needs a checkpoint."""

    def item_times(self, rows: int) -> int:
        """Control steps of each row in an item."""
        return max(self.item_steps // rows, 1)


class NStep(NamedTuple):
    """Returns and bootstraps of B transitions, each (B,)."""

    returns: Floats
    """Discounted sum of the rewards of the window."""
    discounts: Floats
    """Factor of the bootstrap: gamma to the power of the number of rewards, 0 where the episode terminated."""
    steps: npt.NDArray[np.int64]
    """Control steps to the observation of the bootstrap."""
    valid: Bools
    """False where the first step was truncated: its last observation is not kept, so there is no target."""


class Drawn(NamedTuple):
    """A minibatch of B transitions."""

    observations: Tensor
    """(B, *obs)."""
    actions: Tensor
    """(B,) int64."""
    bootstrap: Tensor
    """(B, *obs): the observations of the bootstrap."""
    returns: Tensor
    discounts: Tensor
    valid: Tensor
    """(B,) each, as in `NStep`."""
    masks: Tensor | None = None
    """(B, A): the actions allowed in `bootstrap`; None where all are."""


def n_step_returns(rewards: Floats, terminated: Bools, truncated: Bools, discount: float) -> NStep:
    """Sums rewards up to the end of the window, or of the episode.

    A terminated episode has no bootstrap. A truncated one is cut one step earlier: the observation before its last action
    is kept and belongs to the same episode, so fewer rewards and a bootstrap there are exact.

    Args:
        rewards: (B, n) after each of n consecutive actions.
        terminated: (B, n) whether the episode terminated with it.
        truncated: (B, n) whether it was cut off there, disjoint from `terminated`.
        discount: gamma.
    """
    number, length = rewards.shape
    returns = np.zeros(number, dtype=np.float32)
    discounts = np.ones(number, dtype=np.float32)
    steps = np.zeros(number, dtype=np.int64)
    going = np.ones(number, dtype=np.bool_)
    for k in range(length):
        going &= ~truncated[:, k]
        returns += np.where(going, discounts * rewards[:, k], np.float32(0))
        steps += going
        discounts = np.where(going, discounts * np.float32(discount), discounts)
        discounts[going & terminated[:, k]] = 0.0
        going &= ~terminated[:, k]
    return NStep(returns, discounts, steps, steps > 0)


def updates_due(control_steps: int, num_envs: int, stack: int, settings: DQNSettings) -> int:
    """Updates that are due after a number of control steps. It depends on nothing else, so a resumed run makes the same updates.

    Args:
        control_steps: of all environments together.
        num_envs: environments stepped together.
        stack: frames in an observation.
        settings: the learner's.
    """
    # The first transition can be drawn once its whole window has been added.
    first = max(settings.warmup, (stack + settings.n_step - 1) * num_envs)
    return max(int((control_steps - first) * settings.replay_ratio / settings.minibatch), 0)


def q_targets(
    r_t: Tensor, discount_t: Tensor, q_t_value: Tensor, q_t_selector: Tensor, masks_t: Tensor | None = None
) -> Tensor:
    """r + discount * Q_value(s, argmax Q_selector(s)).

    With the learning network's values as selector, van Hasselt et al. 2015, arXiv 1509.06461, equation 4 (double Q-learning);
    with the target network's, r + discount * max Q_target(s) of Mnih et al. 2015.

    Args:
        r_t: (B,) rewards, or n-step returns.
        discount_t: (B,), 0 where the episode terminated.
        q_t_value: (B, A) the target network's values of the observation bootstrapped from.
        q_t_selector: (B, A) the values that choose among its actions.
        masks_t: (B, A) the actions that may be chosen; None allows all.

    Returns:
        (B,) float32.
    """
    best = allowed(q_t_selector, masks_t).argmax(dim=1, keepdim=True)
    return r_t + discount_t * q_t_value.gather(1, best).squeeze(1)


def adam(parts: Iterable[Iterable[nn.Parameter]], learning_rate: float) -> torch.optim.Adam:
    """The optimizer, with a group for each part of a network. Parts without gradients do not change."""
    return torch.optim.Adam([{"params": list(part)} for part in parts], lr=learning_rate, eps=1.5e-4, fused=True)


class DQN:
    """A learner: iterate `learn()`, save and load between two items. `policy` is the result.

    Args:
        network: trained in place.
        environments: its rows are stepped together.
        learning: what it shares with other learners; Adam's learning rate is constant, and epsilon falls after the warm-up.
        settings: its own.
        scratch: folder for the replay's files; None keeps it in the process, which then cannot be saved.
        optimizer: of `adam`, where parts of the network are shared with other learners; by default its own.
        only: the region whose states are drawn, by the environments' `watched`; None draws all.

    Raises:
        UserError: no room for the replay, or it is too small to sample from.
    """

    def __init__(
        self,
        network: Network,
        environments: Resumable,
        learning: Learning,
        settings: DQNSettings,
        *,
        scratch: Path | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        only: Inside | None = None,
    ) -> None:
        self.network, self.environments, self.settings = network, environments, settings
        self._only = only
        self.policy = network
        self.discount = learning.discount
        self.target = copy.deepcopy(network).eval().requires_grad_(False)
        self.optimizer = optimizer or adam([network.parameters()], learning.learning_rate)
        self.learning_rate = constant(learning.learning_rate)
        self._falling = linear(1.0, learning.epsilon_end, learning.epsilon_steps)
        self.generator = learning.generator()
        self._explore = EZGreedy(environments.task, environments.num_envs, learning.epsilon_repeats, self.generator)
        self.control_steps = 0
        self.updates = 0
        rows = environments.num_envs
        self.item_times = settings.item_times(rows)
        self.replay = Replay(
            environments.task,
            rows,
            settings.capacity,
            {
                "actions": ((), np.int64),
                "rewards": ((), np.float32),
                "terminated": ((), np.bool_),
                "truncated": ((), np.bool_),
                **mask_column(environments.task),
                **({} if only is None else {"inside": ((), np.bool_)}),
            },
            scratch=scratch,
            slack=max(settings.slack // rows, self.item_times) * rows,
        )
        least_times = self.replay.stack + settings.n_step
        if self.replay.capacity < least_times:
            raise UserError(
                f"a replay of {settings.capacity} control steps is too small for {rows} environments and {settings.n_step}-step "
                f"returns: it needs {least_times * rows}"
            )
        played = rollout(environments, self._act)
        self._rollout = as_learnt(
            played, clip_rewards=learning.clip_rewards, lives_as_episodes=learning.lives_as_episodes
        )

    @property
    def epsilon(self) -> float:
        """Probability of a random action now."""
        since = self.control_steps - self.settings.warmup
        return self._falling(since) if since >= 0 else 1.0

    def _act(self, observations: Observations, masks: Masks | None = None) -> Actions:
        greedy = np.zeros(len(observations), dtype=np.int64)
        if self.control_steps >= self.settings.warmup:
            with torch.no_grad():
                values = allowed(self.network(as_tensor(observations)), masks)
                greedy = np.asarray(values.argmax(dim=1).cpu().numpy())
        return self._explore(greedy, self.epsilon, masks)

    def learn(self) -> Iterator[dict[str, Any]]:
        """Makes `item_steps` control steps and their updates for each item. Yields a record with the mean loss, None during the
        warm-up, and the returns of the games that ended."""
        while True:
            yield self.figures([self._step() for _ in range(self.item_times)])

    def _step(self) -> Learnt:
        """Makes one control step of all rows, and the updates that are due."""
        returns = self.play()
        updates = []
        while self.updates < self.due:
            updates.append(self.update())
        return Learnt([loss for loss, _ in updates], [target for _, target in updates], returns)

    def figures(self, stretches: Sequence[Learnt]) -> dict[str, Any]:
        """The record of an item."""
        now = {"epsilon": self.epsilon, "learning_rate": self.learning_rate(self.control_steps)}
        if self._only is not None:
            times = np.arange(self.replay.added - self.item_times, self.replay.added)
            now["inside"] = float(self.replay.column("inside", times[:, None], np.arange(self.replay.num_envs)).mean())
        return now | as_figures(stretches)

    @property
    def due(self) -> int:
        """Updates that are due with the control steps so far. Once it is positive, the replay can be drawn from."""
        return updates_due(self.control_steps, self.environments.num_envs, self.replay.stack, self.settings)

    def play(self) -> list[float]:
        """Makes one control step of all rows and adds it to the replay. Returns the returns of the games that ended."""
        own = {} if self._only is None else {"inside": self._only(self.environments.watched)}
        step = next(self._rollout)
        self.replay.add(
            step.observations,
            step.starts,
            actions=step.actions,
            rewards=step.rewards,
            terminated=step.terminated,
            truncated=step.truncated,
            **({} if step.masks is None else {"masks": step.masks}),
            **own,
        )
        self.control_steps += self.environments.num_envs
        return [float(score) for score in step.returns[~np.isnan(step.returns)]]

    def update(self) -> tuple[Tensor, Tensor]:
        """Makes a gradient step on a fresh minibatch, and copies the target network when due. Returns mean loss and target."""
        loss, target = self.fit(self.draw())
        self.updates += 1
        if self.updates % self.settings.target_every == 0:
            self.target.load_state_dict(self.network.state_dict())
        return loss, target

    def draw(self) -> Drawn:
        """Draws a minibatch from the replay.

        Raises:
            UserError: no state in it lies in the region.
        """
        length = self.settings.n_step
        among = None if self._only is None else "inside"
        times, rows = self.replay.sample(self.generator, self.settings.minibatch, ahead=length, among=among)
        if not len(times):
            raise UserError(
                f"none of the {len(self.replay):,} control steps in the replay lies in the region of --only: take another region, "
                "a longer --warmup or a larger --replay"
            )
        window, beside = times[:, None] + np.arange(length), rows[:, None]
        following = n_step_returns(
            self.replay.column("rewards", window, beside),
            self.replay.column("terminated", window, beside),
            self.replay.column("truncated", window, beside),
            self.discount,
        )
        arrays = [
            self.replay.observations(times, rows),
            self.replay.column("actions", times, rows),
            self.replay.observations(times + following.steps, rows),
            following.returns,
            following.discounts,
            following.valid,
        ]
        if "masks" in self.replay:
            arrays.append(self.replay.column("masks", times + following.steps, rows))
        return Drawn(*(torch.from_numpy(array).to(self.network.device) for array in arrays))

    def fit(self, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """Makes one gradient step on a minibatch. Returns mean loss and mean target."""
        with torch.no_grad():
            q_t = self.target(drawn.bootstrap)
            selector = self.network(drawn.bootstrap) if self.settings.double else q_t
            targets = q_targets(drawn.returns, drawn.discounts, q_t, selector, drawn.masks)
        self.network.train()
        values = self.network(drawn.observations).gather(1, drawn.actions[:, None]).squeeze(1)
        # The paper's error clipped to [-1, 1] is the gradient of the Huber loss.
        errors = torch.nn.functional.huber_loss(values, targets, reduction="none")
        number = drawn.valid.sum().clamp(min=1)
        loss = errors[drawn.valid].sum() / number
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
        self.optimizer.step()
        self.network.eval()
        return loss.detach(), targets[drawn.valid].sum() / number

    @property
    def must_save(self) -> bool:
        """Whether the next item may overwrite states that the last saved state needs."""
        return self.replay.must_save(self.item_times)

    def state_dict(self) -> dict[str, Any]:
        """The state that the next item depends on; the replay's frames stay in its files."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **self.own_state_dict(),
        }

    def own_state_dict(self) -> dict[str, Any]:
        """The state without network and optimizer, which learners of several tasks share."""
        return {
            "target": self.target.state_dict(),
            "environments": self.environments.state_dict(),
            "generator": generator_state(self.generator),
            "exploration": self._explore.state_dict(),
            "replay": self.replay.state_dict(),
            "control_steps": self.control_steps,
            "updates": self.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned.

        Raises:
            UserError: the replay's files are missing or damaged.
        """
        self.load_own_state_dict(state)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])

    def load_own_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `own_state_dict` returned.

        Raises:
            UserError: the replay's files are missing or damaged.
        """
        self.replay.load_state_dict(state["replay"])
        self.target.load_state_dict(state["target"])
        self.environments.load_state_dict(state["environments"])
        load_generator_state(self.generator, state["generator"])
        self._explore.load_state_dict(state["exploration"])
        self.control_steps, self.updates = int(state["control_steps"]), int(state["updates"])
