"""PPO, proximal policy optimization (Schulman et al. 2017, arXiv 1707.06347), of discrete and continuous actions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from rldistill.files import generator_state, load_generator_state
from rldistill.lessons.learning import Learning, Learnt, Rollout, as_figures, collected
from rldistill.play.actions import allowed, drawn, middle_and_half, split_gaussian
from rldistill.play.rollout import Resumable, as_learnt, rollout
from rldistill.schedules import linear
from rldistill.students.critics import ActorCritic, in_action_units
from rldistill.students.networks import Network
from rldistill.types import Actions, Floats, Masks, Observations, as_tensor


@dataclass(frozen=True)
class PPOSettings:
    """What only PPO has. `verbs/train/config.py` gives the defaults of each kind of task."""

    rollout_length: int
    """Control steps of each environment between two phases of learning."""
    epochs: int
    """Passes over each rollout."""
    minibatches: int
    """Gradient steps of each pass."""
    clip: float
    """Epsilon of the clipped objective; also for the values."""
    entropy: float
    """Weight of the entropy bonus."""
    gae_lambda: float
    """Lambda of the advantages."""
    normalize: bool
    """Standardize the observations, and divide the rewards by the deviation of the discounted return."""
    value_weight: float = 0.5
    max_grad_norm: float = 0.5

    def item_times(self, rows: int) -> int:
        """Control steps of each row in an item, whatever the number of rows."""
        return self.rollout_length


def advantages(r_t: Tensor, discount_t: Tensor, v_tm1: Tensor, v_t: Tensor, cut_t: Tensor, trace: float) -> Tensor:
    """Generalized advantage estimates, backwards in time; Schulman et al. 2015, arXiv 1506.02438, equation 16.

    Args:
        r_t: rewards (T, N) after each action.
        discount_t: (T, N), gamma, or 0 where the episode terminated.
        v_tm1: (T, N), values of the observations before the actions.
        v_t: (T, N), values of the observations after them; where an episode ended, of its final observation.
        cut_t: (T, N) bool, where an episode was truncated: the trace ends although the discount does not.
        trace: lambda.

    Returns:
        (T, N) advantages of the actions taken.
    """
    errors = r_t + discount_t * v_t - v_tm1
    made = torch.empty_like(errors)
    following = torch.zeros_like(errors[0])
    for t in range(len(errors) - 1, -1, -1):
        following = errors[t] + torch.where(cut_t[t], 0.0, discount_t[t] * trace * following)
        made[t] = following
    return made


def clipped_objective(log_ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """The loss of the policy, (B,), minus equation 7 of arXiv 1707.06347: the worse of the ratio and the clipped ratio counts."""
    ratio = log_ratio.exp()
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))


def clipped_value_loss(values: Tensor, before: Tensor, returns: Tensor, clip: float) -> Tensor:
    """The loss of the critic, (B,): half the squared error, the worse of the value and the value held near the old one."""
    held = before + (values - before).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns).square(), (held - returns).square())


class Chosen(NamedTuple):
    """What a policy thinks of actions, (B,) each."""

    log_probability: Tensor
    entropy: Tensor


def judged(scores: Tensor, actions: Tensor, masks: Tensor | None) -> Chosen:
    """Log probabilities in nats, and the policy's entropies.

    Args:
        scores: (B, A) logits, or (B, 2 D) of a Gaussian.
        actions: (B,) int64, or (B, D) float32 in the Gaussian's units.
        masks: (B, A) the allowed actions, of discrete ones.
    """
    if actions.ndim == 1:
        log_policy = torch.log_softmax(allowed(scores, masks), dim=1)
        policy = log_policy.exp()
        entropy = -(policy * torch.where(policy > 0, log_policy, 0.0)).sum(dim=1)
        return Chosen(log_policy.gather(1, actions[:, None]).squeeze(1), entropy)
    mean, log_std = split_gaussian(scores)
    normalized = (actions - mean) * (-log_std).exp()
    half_log = 0.5 * math.log(2 * math.pi)
    return Chosen((-0.5 * normalized.square() - log_std - half_log).sum(dim=1), (log_std + 0.5 + half_log).sum(dim=1))


class RunningMoments:
    """Mean and variance of all numbers so far, for each feature; Chan et al. 1979, the parallel algorithm."""

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        self.count = 0.0
        self.mean, self._sum = np.zeros(shape), np.zeros(shape)

    def add(self, numbers: np.ndarray) -> None:
        """Numbers (B, *shape)."""
        count, mean = len(numbers), numbers.mean(axis=0, dtype=np.float64)
        total, apart = self.count + count, mean - self.mean
        self._sum = self._sum + ((numbers - mean) ** 2).sum(axis=0) + apart**2 * self.count * count / total
        self.mean = self.mean + apart * count / total
        self.count = total

    @property
    def deviation(self) -> np.ndarray:
        """The standard deviation of each feature; 1 before the first number."""
        return np.sqrt(self._sum / self.count) if self.count else np.ones_like(self.mean)

    def state_dict(self) -> dict[str, Any]:
        """Count, mean and sum of squares."""
        return {"count": self.count, "mean": torch.tensor(self.mean), "sum": torch.tensor(self._sum)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.count = float(state["count"])
        self.mean, self._sum = state["mean"].numpy().copy(), state["sum"].numpy().copy()


_LEAST_DEVIATION = 0.01
"""Of an observation's feature: one that hardly changes at first is not blown up when it does."""


class Samples(NamedTuple):
    """A rollout, all rows after each other: T times N samples."""

    observations: Tensor
    actions: Tensor
    log_probabilities: Tensor
    values: Tensor
    advantages: Tensor
    masks: Tensor | None

    def part(self, chosen: Tensor) -> Samples:
        """Some of them."""
        return Samples._make(None if whole is None else whole.index_select(0, chosen) for whole in self)


class PPO:
    """A learner: iterate `learn()`, save and load between two items. `policy` is the result.

    A truncated episode bootstraps from the value of its final observation. Adam's learning rate falls linearly to 0.

    Args:
        network: trained in place; its scores are logits, or of a Gaussian.
        environments: its rows are stepped together.
        learning: what it shares with other learners; the epsilons are not used.
        settings: its own.
    """

    def __init__(self, network: Network, environments: Resumable, learning: Learning, settings: PPOSettings) -> None:
        self.environments, self.settings, self.discount = environments, settings, learning.discount
        self.model = ActorCritic(network, learning.seed)
        self.network = network
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=learning.learning_rate, eps=1e-5, fused=True)
        self.learning_rate = linear(learning.learning_rate, 0.0, learning.steps)
        self.generator = learning.generator()
        self.control_steps = self.updates = 0
        task = environments.task
        self._range = middle_and_half(task) if task.continuous else None
        self._observed = RunningMoments(task.observation_shape)
        self._returned = RunningMoments()
        self._discounted = np.zeros(environments.num_envs)
        """The discounted return of each row so far, whose deviation divides the rewards."""
        played = rollout(environments, self._act)
        self._rollout = as_learnt(
            played, clip_rewards=learning.clip_rewards, lives_as_episodes=learning.lives_as_episodes
        )
        self._choices: list[tuple[Tensor, Tensor, Tensor]] = []

    @property
    def policy(self) -> Network:
        """The network in the environment's units: itself where actions are discrete, else a copy."""
        return in_action_units(self.network, self.environments.task)

    def _act(self, observations: Observations, masks: Masks | None = None) -> Actions:
        with torch.no_grad():
            scores, values = self.model(as_tensor(observations))
            actions = self._drawn(scores, masks)
            chosen = judged(scores, actions, None if masks is None else torch.from_numpy(masks).to(scores.device))
        self._choices.append((actions, chosen.log_probability, values))
        self.control_steps += self.environments.num_envs
        if self._range is None:
            return cast(Actions, actions.cpu().numpy())
        task, (middle, half) = self.environments.task, self._range
        wanted = middle + half * actions.cpu()
        return cast(Actions, np.clip(wanted.numpy(), task.action_low, task.action_high).astype(np.float32))

    def _drawn(self, scores: Tensor, masks: Masks | None) -> Tensor:
        """Actions drawn from the policy, those of a Gaussian in its own units."""
        if self.network.score_kind == "gaussian":
            mean, log_std = split_gaussian(scores)
            noise = torch.from_numpy(self.generator.standard_normal(tuple(mean.shape), dtype=np.float32))
            return mean + log_std.exp() * noise.to(mean.device)
        actions = drawn(scores.cpu(), "logits", self.environments.task, self.generator, masks)
        return torch.from_numpy(actions).to(scores.device)

    def learn(self) -> Iterator[dict[str, Any]]:
        """Plays one rollout and learns from it for each item. Yields a record with the loss and the returns of ended games.

        The first rollout fits the standardization alone, where there is one.
        """
        while True:
            first = self.settings.normalize and not self._observed.count
            samples, returns = self._collect()
            losses = [] if first else self._fit(samples)
            if self.settings.normalize:
                self._standardize(samples.observations)
            values = (samples.values + samples.advantages).mean()
            yield {
                "learning_rate": self.learning_rate(self.control_steps),
                **as_figures([Learnt(losses, [values], returns)]),
            }

    def _standardize(self, observations: Tensor) -> None:
        """Moves the standardization, which is the same in play and learning of the next rollout."""
        self._observed.add(observations.cpu().numpy())
        reads = list(self.network.architecture.reads) or slice(None)
        mean = torch.from_numpy(self._observed.mean[reads]).to(torch.float32)
        deviation = torch.from_numpy(self._observed.deviation[reads]).to(torch.float32)
        self.network.standardize(mean, 1 / deviation.clamp(min=_LEAST_DEVIATION))

    def _collect(self) -> tuple[Samples, Sequence[float]]:
        self._choices = []
        played = collected(self._rollout, self.settings.rollout_length, self.discount)
        actions, log_probabilities, values = (torch.stack(parts) for parts in zip(*self._choices, strict=True))
        rewards = self._scaled(played)
        with torch.no_grad():
            following = torch.cat([values[1:], self.model(as_tensor(self.environments.observations))[1][None]])
            for t, (final, _) in played.finals.items():
                cut = torch.from_numpy(played.truncated[t]).to(values.device)
                following[t, cut] = self.model(as_tensor(final))[1][cut]
        arrays = (rewards, played.discounts, played.truncated)
        r_t, discount_t, cut_t = (torch.from_numpy(array).to(values.device) for array in arrays)
        better = advantages(r_t, discount_t, values, following, cut_t, self.settings.gae_lambda)
        whole = torch.from_numpy(played.observations).to(values.device)
        masks = None if played.masks is None else torch.from_numpy(played.masks).to(values.device)
        actions, log_probabilities = actions.flatten(0, 1), log_probabilities.flatten()
        return Samples(whole, actions, log_probabilities, values.flatten(), better.flatten(), masks), played.returns

    def _scaled(self, played: Rollout) -> Floats:
        """Rewards (T, N) divided by the deviation of the discounted returns up to each of them."""
        if not self.settings.normalize:
            return played.rewards
        scaled = np.empty_like(played.rewards)
        for t, rewards in enumerate(played.rewards):
            self._discounted = self._discounted * self.discount + rewards
            self._returned.add(self._discounted)
            self._discounted[(played.discounts[t] == 0) | played.truncated[t]] = 0.0
            deviation = float(self._returned.deviation)
            scaled[t] = rewards / deviation if deviation > 0 else rewards
        return scaled

    def _fit(self, samples: Samples) -> list[Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.control_steps)
        losses = []
        number = len(samples.values)
        self.model.train()
        for _ in range(self.settings.epochs):
            order = torch.from_numpy(self.generator.permutation(number)).to(samples.values.device)
            for chosen in torch.tensor_split(order, self.settings.minibatches):
                losses.append(self.fit(samples.part(chosen)))
        self.model.eval()
        return losses

    def fit(self, samples: Samples) -> Tensor:
        """Makes one gradient step on B samples. Returns the mean loss."""
        settings = self.settings
        scores, values = self.model(samples.observations)
        chosen = judged(scores, samples.actions, samples.masks)
        advantage = samples.advantages
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        losses = clipped_objective(chosen.log_probability - samples.log_probabilities, advantage, settings.clip)
        returns = samples.values + samples.advantages
        losses = losses + settings.value_weight * clipped_value_loss(values, samples.values, returns, settings.clip)
        loss: Tensor = (losses - settings.entropy * chosen.entropy).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
        self.model.keep_deviations_apart()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.max_grad_norm)
        self.optimizer.step()
        self.updates += 1
        return loss.detach()

    @property
    def must_save(self) -> bool:
        """False, because the saved state is complete."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """The state that the next item depends on."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "environments": self.environments.state_dict(),
            "generator": generator_state(self.generator),
            "observed": self._observed.state_dict(),
            "returned": self._returned.state_dict(),
            "discounted": torch.from_numpy(self._discounted.copy()),
            "control_steps": self.control_steps,
            "updates": self.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.environments.load_state_dict(state["environments"])
        load_generator_state(self.generator, state["generator"])
        self._observed.load_state_dict(state["observed"])
        self._returned.load_state_dict(state["returned"])
        self._discounted = state["discounted"].numpy().copy()
        self.control_steps, self.updates = int(state["control_steps"]), int(state["updates"])
