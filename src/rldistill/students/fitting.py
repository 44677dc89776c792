"""Updates of a student: a gradient step on the minibatches of one lesson or of several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rldistill.play.actions import middle_and_half
from rldistill.schedules import constant, warmup_cosine
from rldistill.students.heads import MultiTaskNetwork, build_heads
from rldistill.students.networks import Network, build, fit_initialization, joined
from rldistill.students.objectives import Objective
from rldistill.students.optim import Optimization
from rldistill.students.optim.adamw import AdamW
from rldistill.students.optim.centring import CentredInputs
from rldistill.students.optim.muon import Muon
from rldistill.students.targets import fit_standardization
from rldistill.types import Batch, Lesson, ScoreKind, Task


class Figures(NamedTuple):
    """Losses and scores of one lesson in one update. `loss` and `agreement` are computed when they are read, which is rare."""

    losses: Tensor
    """(B,)."""
    scores: Tensor
    """The student's scores (B, K) before the update."""
    batch: Batch
    objective: Objective

    @property
    def loss(self) -> float:
        """The mean loss of the samples."""
        return float(self.losses.mean())

    @property
    def agreement(self) -> float:
        """Share of the samples in which the student chooses the action that the lesson asks for."""
        return float(self.objective.agreement(self.scores, self.batch).mean())


class RangeUnits:
    """Rescales the output layer of a student of continuous actions, so that an action range of any width becomes [-1, 1].

    An optimizer moves every weight by about its learning rate. With a range of 0 to 100 in the environment's units, a
    student begins at the edge of the range and needs thousands of updates to reach its middle. Nothing is rescaled where the
    scores are in other units, or where the middle of the range is 0, as in nearly all environments.
    """

    def __init__(self, network: Network, task: Task, kind: ScoreKind) -> None:
        self.layers: list[tuple[nn.Linear, Tensor, Tensor]] = []
        layer = network.layers[-1]
        if kind not in ("actions", "gaussian") or not isinstance(layer, nn.Linear):
            return
        middle, half = middle_and_half(task)
        if not middle.any():
            return
        if kind == "gaussian":  # the log deviations stay as they are
            middle, half = torch.cat([middle, torch.zeros_like(middle)]), torch.cat([half, torch.ones_like(half)])
        self.layers = [(layer, middle, half)]

    def enter(self) -> None:
        """Rescales weights and gradients from the environment's units to [-1, 1]."""
        with torch.no_grad():
            for layer, middle, half in self.layers:
                layer.weight.div_(half[:, None])
                layer.bias.sub_(middle).div_(half)
                for parameter, by in ((layer.weight, half[:, None]), (layer.bias, half)):
                    if parameter.grad is not None:
                        parameter.grad.mul_(by)

    def leave(self) -> None:
        """Rescales the weights to the environment's units."""
        with torch.no_grad():
            for layer, middle, half in self.layers:
                layer.weight.mul_(half[:, None])
                layer.bias.mul_(half).add_(middle)


_WIDE = 256
"""Inputs of a unit above which its learning rate is smaller: as many as in the paper's first convolution."""


def _groups(layers: Sequence[nn.Module], steady: bool) -> list[dict[str, Any]]:
    """Groups of parameters by their share of the learning rate.

    Adam moves all weights of a unit by about the learning rate, and so the unit's output by that times the number of inputs. The
    rate of a layer with more than 256 inputs falls with their number (Yang et al. 2022, arXiv 2203.03466, table 3, hidden layers).
    """
    shares: dict[float, list[nn.Parameter]] = {}
    for layer in layers:
        inputs = layer.weight[0].numel() if isinstance(layer, nn.Conv2d | nn.Linear) else 1
        shares.setdefault(min(1.0, _WIDE / inputs) if steady else 1.0, []).extend(layer.parameters())
    # Few groups: the update of a small student consists mostly of calls, and each group is one more.
    return [{"params": parameters, "share": share} for share, parameters in shares.items() if parameters]


def _optimizer(
    layers: Sequence[nn.Module], settings: Optimization, *, has_scores: bool
) -> AdamW | Muon | torch.optim.Optimizer:
    """The optimizer of some layers. If `has_scores`, the last layer gives the scores, and Muon does not move it."""
    decay, groups = settings.weight_decay or 0.0, _groups(layers, settings.steady)
    if settings.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, lr=settings.learning_rate)
    if settings.optimizer != "muon":
        return AdamW(groups, decay)
    inner = layers[:-1] if has_scores else layers
    hidden = [layer.weight for layer in inner if isinstance(layer, nn.Conv2d | nn.Linear)]
    ids = {id(matrix) for matrix in hidden}
    for group in groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in ids]
    return Muon(hidden, [group for group in groups if group["params"]], decay)


def shorten(parameters: Sequence[Tensor], most: float) -> None:
    """Scales gradients down to a norm of `most`, as `torch.nn.utils.clip_grad_norm_` does, in fewer calls."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))) + 1e-6
    if float(norm) > most:
        torch._foreach_mul_(gradients, most / norm)


class _Part:
    """Layers that are moved together: a network of one head, or the torso or one head of a network of several.

    Args:
        layers: in order.
        averaged: the same layers of the average.
        settings: optimizer and average.
        is_first: whether the first layer reads observations, which are standardized.
        has_scores: whether the last one gives the scores.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        averaged: Sequence[nn.Module],
        settings: Optimization,
        *,
        is_first: bool,
        has_scores: bool,
    ) -> None:
        self.optimizer = _optimizer(layers, settings, has_scores=has_scores)
        # Kept, because gathering them takes a twentieth of a small student's update.
        self.parameters: list[Tensor] = [parameter for layer in layers for parameter in layer.parameters()]
        self._averaged: list[Tensor] = [parameter for layer in averaged for parameter in layer.parameters()]
        self._centred = CentredInputs(layers if settings.steady else (), skips_first=is_first)
        self._share = settings.average
        self.updates = 0

    def step(self, rate: float) -> None:
        """Moves the weights by their gradients."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        self._centred.enter()
        self.optimizer.step()
        self._centred.leave()
        self.updates += 1

    def follow(self) -> None:
        """Moves the average: polynomial-decay averaging (Shamir & Zhang 2013, arXiv 1212.1824, section 4). It spans a set share of
        the updates so far, whatever the length of the run."""
        newest = 1 / (1 + self._share * (self.updates - 1)) if self._share else 1.0
        with torch.no_grad():
            torch._foreach_lerp_(self._averaged, self.parameters, newest)

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "means": self._centred.state_dict(),
            "updates": self.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self._centred.load_state_dict(state["means"])
        self.updates = int(state["updates"])


class GradientFitting:
    """Fits a student by gradient steps, each on a minibatch of one lesson or of several.

    The torso and each head have their own optimizers. A head and its momentum do not change while its task is not in the
    minibatch.

    Args:
        student: trained in place. With several heads a lesson is answered by the head that it names.
        objectives: of all lessons.
        settings: optimizer, schedule and average.
        updates: in the whole run, for the schedule.
        seed: of the weights that `fit` draws.
    """

    def __init__(
        self,
        student: Network | MultiTaskNetwork,
        objectives: Mapping[Lesson, Objective],
        settings: Optimization,
        updates: int,
        seed: int,
    ) -> None:
        self.student, self.objectives, self.settings, self.seed = student.train(), objectives, settings, seed
        self.average = empty_copy(student).eval().requires_grad_(False)
        self.networks = {lesson: answering(student, lesson) for lesson in objectives}
        peak = settings.learning_rate
        self.rate = (
            constant(peak)
            if settings.schedule == "constant"
            else warmup_cosine(peak, 0.0, min(100, updates // 10), updates)
        )
        self.updates = 0
        self._parts, self._parts_of = _parts(student, self.average, self.networks, settings)
        # Lessons that share a head share its units.
        own_units = {
            network: RangeUnits(network, lesson.task, network.score_kind) for lesson, network in self.networks.items()
        }
        self._units = {lesson: own_units[network] for lesson, network in self.networks.items()}

    def fit(self, examples: Mapping[Lesson, Batch]) -> None:
        """Fits objectives, standardizations and the first weights to the first observations, once."""
        for lesson, batch in examples.items():
            self.objectives[lesson].fit(batch)
        # Lessons that share a head have the same kind of observations, and one standardization.
        parts: dict[Network, list[Tensor]] = {}
        for lesson, batch in examples.items():
            parts.setdefault(self.networks[lesson], []).append(batch.observations)
        observations = {network: joined(own) for network, own in parts.items()}
        if self.settings.standardize:
            for network, own in observations.items():
                network.standardize(*fit_standardization(network.selected(own)))
        if self.settings.initialize == "data":
            fit_initialization(list(observations), list(observations.values()), self.seed)
        for units in dict.fromkeys(self._units.values()):
            units.leave()  # drawn around 0, so that the student begins around the range's middle
        load_arrays(self.average, arrays_of(self.student))

    def __call__(self, batches: Mapping[Lesson, Batch]) -> Mapping[Lesson, Figures]:
        """Makes one gradient step. The figures are those of the student before it."""
        figures = {}
        for lesson, batch in batches.items():
            scores = self.networks[lesson](batch.observations)
            losses = self.objectives[lesson](scores, batch, self.updates)
            figures[lesson] = Figures(losses, scores, batch, self.objectives[lesson])
        each = [of_lesson.losses for of_lesson in figures.values()]
        loss = (torch.cat(each) if len(each) > 1 else each[0]).mean()
        moved = list(dict.fromkeys(part for lesson in batches for part in self._parts_of[lesson]))
        parameters = [parameter for part in moved for parameter in part.parameters]
        for parameter in parameters:
            parameter.grad = None
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
        self._step(moved, parameters, list(dict.fromkeys(self._units[lesson] for lesson in batches)))
        return {
            lesson: of_lesson._replace(losses=of_lesson.losses.detach(), scores=of_lesson.scores.detach())
            for lesson, of_lesson in figures.items()
        }

    def _step(self, moved: Sequence[_Part], parameters: Sequence[Tensor], units: Sequence[RangeUnits]) -> None:
        for own in units:
            own.enter()
        if self.settings.max_grad_norm:
            shorten(parameters, self.settings.max_grad_norm)
        rate = self.rate(self.updates)
        for part in moved:
            part.step(rate)
        for own in units:
            own.leave()
        self.updates += 1
        for part in moved:
            part.follow()

    def state_dict(self) -> dict[str, Any]:
        """The state that the next call depends on."""
        return {
            "student": arrays_of(self.student),
            "average": arrays_of(self.average),
            "parts": [part.state_dict() for part in self._parts],
            "dropout": [layer.generator.get_state() for layer in self._dropouts()],
            "objectives": {lesson.name: objective.state_dict() for lesson, objective in self.objectives.items()},
            "updates": self.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        load_arrays(self.student, state["student"])
        load_arrays(self.average, state["average"])
        for part, own in zip(self._parts, state["parts"], strict=True):
            part.load_state_dict(own)
        for layer, generator in zip(self._dropouts(), state["dropout"], strict=True):
            layer.generator.set_state(generator)
        for lesson, objective in self.objectives.items():
            objective.load_state_dict(state["objectives"][lesson.name])
        self.updates = int(state["updates"])

    def _dropouts(self) -> Iterator[Any]:
        for network in dict.fromkeys(self.networks.values()):
            if network.dropout is not None:
                yield network.dropout


def answering(student: Network | MultiTaskNetwork, lesson: Lesson) -> Network:
    """The network of the head that answers a lesson."""
    return student.view(lesson.head) if isinstance(student, MultiTaskNetwork) else student


def _parts(
    student: Network | MultiTaskNetwork,
    average: Network | MultiTaskNetwork,
    networks: Mapping[Lesson, Network],
    settings: Optimization,
) -> tuple[list[_Part], dict[Lesson, list[_Part]]]:
    """All parts, and those of each lesson. A network of one head is a single part, which takes the fewest calls."""
    if isinstance(student, Network):
        assert isinstance(average, Network)
        whole = _Part(list(student.layers), list(average.layers), settings, is_first=True, has_scores=True)
        return [whole], {lesson: [whole] for lesson in networks}
    assert isinstance(average, MultiTaskNetwork)
    torso = _Part(list(student.torso), list(average.torso), settings, is_first=True, has_scores=False)
    heads = {
        name: _Part(
            list(student.own_layers(name)),
            list(average.own_layers(name)),
            settings,
            is_first=False,
            has_scores=True,
        )
        for name in student.heads
    }
    return [torso, *heads.values()], {lesson: [torso, heads[lesson.head]] for lesson in networks}


def empty_copy(student: Network | MultiTaskNetwork) -> Network | MultiTaskNetwork:
    """A network of the same shape, with weights of its own."""
    if isinstance(student, Network):
        return build(student.architecture, 0, student.score_kind)
    own = next(view.architecture for _, view in student.views())
    return build_heads(student.name, student.heads, 0, normalization=own.normalization, dropout=own.dropout)


def arrays_of(student: Network | MultiTaskNetwork) -> dict[str, Tensor]:
    """All arrays by name. They share their memory with the student."""
    return student.arrays() if isinstance(student, MultiTaskNetwork) else student.state_dict()


def load_arrays(student: Network | MultiTaskNetwork, arrays: Mapping[str, Tensor]) -> None:
    """Puts the arrays into a network of the same shape."""
    if isinstance(student, MultiTaskNetwork):
        student.load_arrays(arrays)
    else:
        student.load_state_dict(arrays)
