"""The one place that updates a student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rldistill.play.actions import agreement, bounds, chosen
from rldistill.schedules import constant, warmup_cosine
from rldistill.students.losses import WeightedLoss
from rldistill.students.networks import Network, build, fit_initialization
from rldistill.students.optim.adamw import AdamW
from rldistill.students.optim.centring import CentredInputs
from rldistill.students.optim.muon import Muon
from rldistill.students.targets import (
    Standardization,
    advantage_spread,
    auto_temperature,
    fit_standardization,
    transform,
)
from rldistill.types import Batch, ScoreKind, Task
from rldistill.verbs.distill.config import DistillConfig


class _RangeUnits:
    """The last layer of a student of continuous actions, told in halves of the action range from its middle.

    An optimizer moves every weight by about its learning rate. From a range of 0 to 100 in the environment's units a
    student would begin at the range's edge and need thousands of updates to its middle. Where the scores are not in the
    range's units, or its middle is 0 (nearly all ranges are -1 to 1 or a few times that), there is nothing to tell.
    """

    def __init__(self, network: Network, task: Task, kind: ScoreKind) -> None:
        self.heads: list[tuple[nn.Linear, Tensor, Tensor]] = []
        head = network.layers[-1]
        if kind not in ("actions", "gaussian") or not isinstance(head, nn.Linear):
            return
        low, high = bounds(task)
        middle, half = (low + high) / 2, (high - low) / 2
        if not middle.any():
            return
        if kind == "gaussian":  # the log deviations stay as they are
            middle, half = torch.cat([middle, torch.zeros_like(middle)]), torch.cat([half, torch.ones_like(half)])
        self.heads = [(head, middle, half)]

    def enter(self) -> None:
        """From the environment's units, gradients too."""
        with torch.no_grad():
            for head, middle, half in self.heads:
                head.weight.div_(half[:, None])
                head.bias.sub_(middle).div_(half)
                for parameter, by in ((head.weight, half[:, None]), (head.bias, half)):
                    if parameter.grad is not None:
                        parameter.grad.mul_(by)

    def leave(self) -> None:
        """Back to the environment's units."""
        with torch.no_grad():
            for head, middle, half in self.heads:
                head.weight.mul_(half[:, None])
                head.bias.mul_(half).add_(middle)


_WIDE = 256
"""Inputs of a unit above which its learning rate is smaller: those of the paper's first convolution."""


def _groups(network: Network, steady: bool) -> list[dict[str, Any]]:
    """Parameters by their share of the learning rate.

    Adam moves all weights of a unit by about the learning rate, so its output by that times the number of its inputs. A
    layer of more than 256 gets as much less (the hidden layers' rule of Yang et al. 2022, arXiv 2203.03466, table 3).
    """
    shares: dict[float, list[nn.Parameter]] = {}
    for layer in network.layers:
        inputs = layer.weight[0].numel() if isinstance(layer, nn.Conv2d | nn.Linear) else 1
        shares.setdefault(min(1.0, _WIDE / inputs) if steady else 1.0, []).extend(layer.parameters())
    # As few as can be: a small student's update is mostly calls, and each group is one more.
    return [{"params": parameters, "share": share} for share, parameters in shares.items() if parameters]


def _optimizer(network: Network, config: DistillConfig) -> AdamW | Muon | torch.optim.Optimizer:
    decay, groups = config.optimization.weight_decay or 0.0, _groups(network, config.optimization.steady)
    if config.optimization.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, lr=config.optimization.learning_rate)
    if config.optimization.optimizer != "muon":
        return AdamW(groups, decay)
    hidden = [layer.weight for layer in list(network.layers)[:-1] if isinstance(layer, nn.Conv2d | nn.Linear)]
    ids = {id(matrix) for matrix in hidden}
    for group in groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in ids]
    return Muon(hidden, [group for group in groups if group["params"]], decay)


def _shorten(parameters: list[Tensor], most: float) -> None:
    """`torch.nn.utils.clip_grad_norm_` in few calls; its own bookkeeping is a tenth of a small student's update."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))) + 1e-6
    if float(norm) > most:
        torch._foreach_mul_(gradients, most / norm)


class Figures(NamedTuple):
    """Of one update, over its samples. Nearly nobody looks at them, so they are computed when somebody does."""

    mean_loss: Tensor
    compared: list[tuple[Tensor, Tensor, Tensor | None]]
    """The student's scores, the teacher's values and the masks of each task."""
    update: Update

    @property
    def loss(self) -> float:
        """Its mean."""
        return float(self.mean_loss)

    @property
    def agreement(self) -> float:
        """Share of the samples in which student and teacher choose the same action."""
        kind, teacher_kind, task = self.update.loss.score_kind, self.update.teacher_kind, self.update.task
        told = [
            agreement(chosen(scores, kind, task, masks), chosen(values, teacher_kind, task, masks), task)
            for scores, values, masks in self.compared
        ]
        return float(torch.cat(told).mean())


class Update:
    """The one place that updates a student: one gradient step a call, on a batch of each task.

    Args:
        network: the student, trained in place.
        loss: of student's scores and teacher's transformed values.
        task: whose actions the scores are for.
        teacher_kind: of the teacher's values.
        config: optimizer, schedule, targets and average.
        updates: in the whole run, for the schedule.
    """

    def __init__(
        self,
        network: Network,
        loss: WeightedLoss,
        config: DistillConfig,
        updates: int,
        task: Task,
        teacher_kind: ScoreKind,
    ) -> None:
        self.network, self.loss, self.config = network.train(), loss, config
        self.task, self.teacher_kind = task, teacher_kind
        self.optimizer = _optimizer(network, config)
        peak = config.optimization.learning_rate
        self.rate = (
            constant(peak)
            if config.optimization.schedule == "constant"
            else warmup_cosine(peak, 0.0, min(100, updates // 10), updates)
        )
        self.average = build(network.architecture, 0, network.score_kind).eval().requires_grad_(False)
        # Kept: to gather them anew takes a twentieth of a small student's update.
        self._parameters: list[Tensor] = list(network.parameters())
        self._averaged: list[Tensor] = list(self.average.parameters())
        self.updates = 0
        self.temperature, self.spread = 1.0, 1.0
        self._units = _RangeUnits(network, task, loss.score_kind)
        self._centred = CentredInputs(network.layers if config.optimization.steady else ())

    def fit(self, examples: Batch) -> None:
        """What is fitted once, to the first labelled observations: temperature, spread, and the network's standardization."""
        sizes, masks = self.task.action_sizes, examples.masks
        self.spread = advantage_spread(examples.values, sizes, masks)
        values = transform(examples.values, self.config.matching.targets, self.spread, sizes, masks)
        auto = self.config.matching.temperature == "auto"
        self.temperature = (
            auto_temperature(values, self.teacher_kind, masks) if auto else float(self.config.matching.temperature)
        )
        if self.config.optimization.standardize:
            fitted: Standardization = fit_standardization(self.network.selected(examples.observations))
            self.network.standardize(*fitted)
        if self.config.optimization.initialize == "data":
            fit_initialization([self.network], [examples.observations], self.config.seed)
        self._units.leave()  # drawn around 0, so that the student begins around the range's middle
        self.average.load_state_dict(self.network.state_dict())

    def __call__(self, batches: Mapping[Task, Batch]) -> Figures:
        """One gradient step; the figures are of the student before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.updates) * group["share"]
        losses, compared = [], []
        for observations, values, masks in batches.values():
            scores = self.network(observations)
            losses.append(self.loss(*self._matched(scores, values, masks), self.temperature, masks))
            compared.append((scores.detach(), values, masks))
        loss = (torch.cat(losses) if len(losses) > 1 else losses[0]).mean()
        for parameter in self._parameters:
            parameter.grad = None
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
        self._units.enter()
        if self.config.optimization.max_grad_norm:
            _shorten(self._parameters, self.config.optimization.max_grad_norm)
        self._centred.enter()
        self.optimizer.step()
        self._centred.leave()
        self._units.leave()
        self.updates += 1
        self._follow()
        return Figures(loss.detach(), compared, self)

    def _matched(self, scores: Tensor, values: Tensor, masks: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the loss compares: scores and transformed values, or actions in halves of their range."""
        if self.loss.score_kind != "actions":
            return scores, transform(values, self.config.matching.targets, self.spread, self.task.action_sizes, masks)
        low, high = bounds(self.task)
        middle, half = (low + high) / 2, (high - low) / 2
        # Less the middle, which changes no distance but keeps small ones from being rounded away.
        return (scores - middle) / half, (chosen(values, self.teacher_kind, self.task) - middle) / half

    def _follow(self) -> None:
        """Polynomial-decay averaging (Shamir & Zhang 2013, arXiv 1212.1824, section 4): it spans a set share of the run so
        far, so it forgets the first weights, and needs no decay that suits the run's length."""
        share = self.config.optimization.average
        newest = 1 / (1 + share * (self.updates - 1)) if share else 1.0
        with torch.no_grad():
            torch._foreach_lerp_(self._averaged, self._parameters, newest)

    def state_dict(self) -> dict[str, Any]:
        """All that the next call depends on."""
        dropout = self.network.dropout
        return {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "means": self._centred.state_dict(),
            "dropout": dropout.generator.get_state() if dropout else None,
            "updates": self.updates,
            "temperature": self.temperature,
            "spread": self.spread,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._centred.load_state_dict(state["means"])
        if self.network.dropout is not None:
            self.network.dropout.generator.set_state(state["dropout"])
        self.updates, self.temperature, self.spread = (
            int(state["updates"]),
            float(state["temperature"]),
            float(state["spread"]),
        )
