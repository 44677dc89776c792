"""PQN, parallelised Q-network (Gallici et al. 2024, arXiv 2407.04811): Q(lambda) without replay or target network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rldistill.files import generator_state, load_generator_state
from rldistill.lessons.exploration import EZGreedy
from rldistill.lessons.learning import Inside, Learning, Learnt, as_figures, collected
from rldistill.play.actions import allowed
from rldistill.play.rollout import Resumable, as_learnt, rollout
from rldistill.schedules import linear
from rldistill.students.networks import Network
from rldistill.students.optim.centring import CentredInputs
from rldistill.students.optim.radam import RAdam
from rldistill.types import Actions, Bools, Masks, Observations, UserError, as_tensor


@dataclass(frozen=True)
class PQNSettings:
    """Defaults are those of the paper's Atari runs, except for the differences in `docs/papers.md`."""

    rollout_length: int = 32
    """Control steps of each environment between two phases of learning."""
    epochs: int = 2
    """Passes over each rollout."""
    minibatch: int = 256
    """Samples for each gradient step."""
    trace: float = 0.65
    """Lambda of Q(lambda)."""
    max_grad_norm: float = 10.0
    steady: bool = False
    """Gradients are taken for layers' inputs less their mean."""
    averaging: int = 1
    """Updates over which the weights of the policy are averaged, exponentially; 1 takes the last weights."""

    def item_times(self, rows: int) -> int:
        """Control steps of each row in an item, whatever the number of rows."""
        return self.rollout_length


def q_lambda_targets(r_t: Tensor, discount_t: Tensor, v_t: Tensor, cut_t: Tensor, trace: float) -> Tensor:
    """Peng's Q(lambda) returns, backwards in time; arXiv 2407.04811, equation 8 and algorithm 1.

    Args:
        r_t: rewards (T, N) after each action.
        discount_t: (T, N), gamma, or 0 where the episode terminated.
        v_t: (T, N), max over actions of the value of the observation after each action.
        cut_t: (T, N) bool, where the trace ends although the discount does not: truncated episodes.
        trace: lambda.

    Returns:
        (T, N) targets for the values of the actions taken.
    """
    targets = torch.empty_like(r_t)
    following = v_t[-1]
    for t in range(len(r_t) - 1, -1, -1):
        mixed = torch.where(cut_t[t], v_t[t], (1 - trace) * v_t[t] + trace * following)
        following = r_t[t] + discount_t[t] * mixed
        targets[t] = following
    return targets


def radam(parts: Iterable[Iterable[nn.Parameter]], learning_rate: float) -> torch.optim.RAdam:
    """The optimizer, with a group for each part of a network. Parts without gradients do not change."""
    groups = [{"params": list(part)} for part in parts]
    kind = RAdam if groups[0]["params"][0].device.type == "cpu" else torch.optim.RAdam
    return kind(groups, lr=learning_rate)


class Averaged(NamedTuple):
    """Exponential averages of weights."""

    averages: Sequence[Tensor]
    """The averages, changed in place."""
    weights: Sequence[Tensor]
    """The learnt weights, in the same order."""
    length: int
    """About the number of updates that are averaged over."""
    updates: Callable[[], int]
    """Updates of these weights so far."""

    def follow(self) -> None:
        """Adds the weights after an update to the average."""
        # The plain mean of all weights up to `length` updates, so that the first weights have no excess share.
        share = 1 / min(self.updates(), self.length)
        with torch.no_grad():
            for mean, last in zip(self.averages, self.weights, strict=True):
                mean.lerp_(last, share)


class Sharing(NamedTuple):
    """The optimizer, policy and averages that learners of several tasks share."""

    optimizer: torch.optim.Optimizer
    """An optimizer of `radam`."""
    policy: Network
    """The learner's own head on the averaged torso; the network itself where nothing is averaged."""
    averages: Sequence[Averaged]
    """The averages of the torso and of the head; empty where nothing is averaged."""


class PQN:
    """A learner: iterate `learn()`, save and load between two items. `policy` is the result.

    Args:
        network: trained in place; wants layer normalization.
        environments: its rows are stepped together.
        learning: what it shares with other learners; RAdam's learning rate falls linearly to a tenth.
        settings: its own.
        sharing: where parts of the network are shared with other learners.
        only: the region whose states are learnt from, by the environments' `watched`; None takes all.
    """

    def __init__(
        self,
        network: Network,
        environments: Resumable,
        learning: Learning,
        settings: PQNSettings,
        *,
        sharing: Sharing | None = None,
        only: Inside | None = None,
    ) -> None:
        self.network, self.environments, self.settings = network, environments, settings
        self._only = only
        self._inside: list[Bools] = []
        """Which states of the last rollout lie in the region."""
        self._reached_by = learning.steps // 10
        """Control steps after which a region that no state lies in is an error."""
        self.optimizer, self.policy, self._averages = sharing or self._sharing_nothing(learning.learning_rate)
        self.discount = learning.discount
        self._centred = CentredInputs(network.layers if settings.steady else ())
        self.learning_rate = linear(learning.learning_rate, learning.learning_rate / 10, learning.steps)
        self.epsilon = linear(1.0, learning.epsilon_end, learning.epsilon_steps)
        self.generator = learning.generator()
        self._explore = EZGreedy(environments.task, environments.num_envs, learning.epsilon_repeats, self.generator)
        self.control_steps = 0
        self.updates = 0
        played = rollout(environments, self._act)
        self._rollout = as_learnt(
            played, clip_rewards=learning.clip_rewards, lives_as_episodes=learning.lives_as_episodes
        )
        self._values: list[Tensor] = []

    def _sharing_nothing(self, learning_rate: float) -> Sharing:
        """The optimizer and policy of a learner that shares its network with no other."""
        network, length = self.network, self.settings.averaging
        optimizer = radam([network.parameters()], learning_rate)
        if length == 1:
            return Sharing(optimizer, network, ())
        policy = copy.deepcopy(network)
        means, weights = list(policy.parameters()), list(network.parameters())
        return Sharing(optimizer, policy, [Averaged(means, weights, length, lambda: self.updates)])

    def _act(self, observations: Observations, masks: Masks | None = None) -> Actions:
        with torch.no_grad():
            values = allowed(self.network(as_tensor(observations)), masks)
        self._values.append(values)
        if self._only is not None:
            self._inside.append(self._only(self.environments.watched))
        greedy = np.asarray(values.argmax(dim=1).cpu().numpy())
        epsilon = self.epsilon(self.control_steps)
        self.control_steps += self.environments.num_envs
        return self._explore(greedy, epsilon, masks)

    def learn(self) -> Iterator[dict[str, Any]]:
        """Plays one rollout and learns from it for each item. Yields a record with the loss and the returns of ended games."""
        while True:
            yield self.figures([self.learn_rollout()])

    def learn_rollout(self) -> Learnt:
        """Plays a rollout and learns from it.

        Raises:
            UserError: in a tenth of all control steps no state lay in the region.
        """
        observations, actions, targets, returns = self._collect()
        if self._only is not None:
            inside = torch.from_numpy(np.flatnonzero(np.concatenate(self._inside))).to(actions.device)
            observations, actions, targets = (part.index_select(0, inside) for part in (observations, actions, targets))
            if not len(inside):
                self._check_reached()
                return Learnt(returns=returns)
        losses = self._fit(observations, actions, targets)
        return Learnt(losses, [targets.mean()], returns)

    def _check_reached(self) -> None:
        if not self.updates and self.control_steps >= self._reached_by:
            raise UserError(
                f"none of the first {self.control_steps:,} control steps lies in the region of --only: take another region, or "
                "more --steps"
            )

    def figures(self, stretches: Sequence[Learnt]) -> dict[str, Any]:
        """The record of an item."""
        steps = self.control_steps
        share = {} if self._only is None else {"inside": float(np.mean(self._inside))}
        return {
            "epsilon": self.epsilon(steps),
            "learning_rate": self.learning_rate(steps),
            **share,
            **as_figures(stretches),
        }

    def _collect(self) -> tuple[Tensor, Tensor, Tensor, Sequence[float]]:
        self._values, self._inside = [], []
        played = collected(self._rollout, self.settings.rollout_length, self.discount)
        with torch.no_grad():
            last = self.network(as_tensor(self.environments.observations))
            self._values.append(allowed(last, self.environments.masks))
            following = torch.stack([values.amax(dim=1) for values in self._values[1:]]).cpu()
            for t, (final, masks) in played.finals.items():
                cut = torch.from_numpy(played.truncated[t])
                following[t, cut] = allowed(self.network(as_tensor(final)), masks).amax(dim=1).cpu()[cut]
        targets = q_lambda_targets(
            torch.from_numpy(played.rewards),
            torch.from_numpy(played.discounts),
            following,
            torch.from_numpy(played.truncated),
            self.settings.trace,
        )
        device = self.network.device
        return (
            torch.from_numpy(played.observations).to(device),
            torch.from_numpy(played.actions).flatten().to(device),
            targets.flatten().to(device),
            played.returns,
        )

    def _fit(self, observations: Tensor, actions: Tensor, targets: Tensor) -> list[Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.control_steps)
        losses = []
        self.network.train()
        for _ in range(self.settings.epochs):
            order = torch.from_numpy(self.generator.permutation(len(actions))).to(actions.device)
            for chosen in self._minibatches(order):
                losses.append(self.fit(observations.index_select(0, chosen), actions[chosen], targets[chosen]))
        self.network.eval()
        return losses

    def _minibatches(self, order: Tensor) -> Sequence[Tensor]:
        """Parts of the samples in this order. In a region their number varies, and all parts are about as large, so that no update
        is of a few samples."""
        size = self.settings.minibatch
        if self._only is None:
            return torch.split(order, size)
        return torch.tensor_split(order, max(len(order) // size, 1))

    def fit(self, observations: Tensor, actions: Tensor, targets: Tensor) -> Tensor:
        """Makes one gradient step on B samples, (B, *obs), (B,) and (B,). Returns the mean loss."""
        values = self.network(observations).gather(1, actions[:, None]).squeeze(1)
        loss: Tensor = 0.5 * (values - targets).square().mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.max_grad_norm)
        self._centred.enter()
        self.optimizer.step()
        self._centred.leave()
        self.updates += 1
        for average in self._averages:
            average.follow()
        return loss.detach()

    @property
    def must_save(self) -> bool:
        """False, because the saved state is complete."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """The state that the next item depends on."""
        return {
            "network": self.network.state_dict(),
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **self.own_state_dict(),
        }

    def own_state_dict(self) -> dict[str, Any]:
        """The state without network, policy and optimizer, which learners of several tasks share."""
        return {
            "means": self._centred.state_dict(),
            "environments": self.environments.state_dict(),
            "generator": generator_state(self.generator),
            "exploration": self._explore.state_dict(),
            "control_steps": self.control_steps,
            "updates": self.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.network.load_state_dict(state["network"])
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.load_own_state_dict(state)

    def load_own_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `own_state_dict` returned."""
        self._centred.load_state_dict(state["means"])
        self.environments.load_state_dict(state["environments"])
        load_generator_state(self.generator, state["generator"])
        self._explore.load_state_dict(state["exploration"])
        self.control_steps, self.updates = int(state["control_steps"]), int(state["updates"])
