"""Which of a program's outputs a student learns from, what it gives, and in which units its continuous actions are."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn

from rldistill.formats.archives import printable
from rldistill.formats.foreign import ForeignPolicy, ForeignScores
from rldistill.formats.programs import UNITS
from rldistill.formats.tensors.state_dict import scores_named
from rldistill.play.actions import chosen, describe, mix_in_random
from rldistill.play.envs import Environments
from rldistill.types import Task, Teacher, UserError, as_tensor

Units: TypeAlias = Literal["unit", "environment"]
"""What continuous actions are in: -1 to 1 over the range of each dimension, or the environment's units."""
ActionRange: TypeAlias = tuple[Sequence[float], Sequence[float]]

_MOST_SHOWN = 8
_STEPS = 1_000
_SECONDS = 20.0
"""Of a slow environment fewer steps must do."""
_RANDOM_SHARE = 0.5
_SLACK = 1e-3
_BESIDE = re.compile(r"value|critic|entropy|log_?prob|std|sigma")
"""Words in the names of what lies beside a policy's scores."""
_LOG_STD = re.compile(r"log_?(std|sigma|scale)")
# Names under which networks with a memory take what they gave a step before.
_MEMORY = re.compile(r"(recurrent|memory|hidden|lstm|gru|rnn|state|carry)|^[hc]x?(_?(in|n|t|prev|\d+))?$")


class Wanted(NamedTuple):
    """What a user and the environment say of the outputs of a program."""

    output: str | None = None
    """The name of one of them."""
    scores: ForeignScores | None = None
    num_actions: int | None = None
    action_range: ActionRange | None = None
    """The least and the largest of each dimension, where actions are continuous."""

    @property
    def widths(self) -> set[int]:
        """How many numbers an output may give for an observation; empty where that is not known."""
        if self.num_actions is None:
            return set()
        if self.action_range is None:
            return {self.num_actions}
        widths: dict[ForeignScores | None, int] = {"deterministic": self.num_actions, "gaussian": 2 * self.num_actions}
        return {widths[self.scores]} if self.scores in widths else {*widths.values()}


def choose_output(outputs: Mapping[str, Tensor], wanted: Wanted, path: Path, drawn: Collection[str] = ()) -> str:
    """The name of the output that is named, or the only one that can be meant.

    Args:
        outputs: what a probe of several observations gave, by name, each (B, ...).
        wanted: what is known of it.
        path: the file, for messages.
        drawn: names of those that a second probe gave otherwise, since they are drawn at random.

    Raises:
        UserError: there is none of that name, none that fits, or several.
    """
    if wanted.output is not None:
        if wanted.output not in outputs:
            raise UserError(f"{path} has no output {wanted.output!r}: it has {_listed(outputs)}")
        return wanted.output
    if len(outputs) == 1:
        return next(iter(outputs))
    fitting = [name for name, value in outputs.items() if _fits(value, wanted)]
    fitting = [name for name in fitting if name not in drawn] or fitting
    named = [name for name in fitting if scores_named([name]) is not None]
    for few in (fitting, named):
        if len(few) == 1:
            return few[0]
    if not fitting and wanted.action_range is None:
        chosen_ones = [name for name, value in outputs.items() if _are_actions(value, wanted)]
        # Whole numbers, or what is named so: a constant, a value or a probability, one number each, may lie beside them.
        whole = [name for name in chosen_ones if not outputs[name].is_floating_point() or "action" in name.lower()]
        other = [name for name in chosen_ones if not _BESIDE.search(name.lower())]
        for name in whole or other or chosen_ones:
            raise _refusal_of_actions(name, outputs[name], path)
    several = f"{len(outputs)} outputs, {_listed(outputs)}"
    if not fitting:
        widths = " or ".join(map(str, sorted(wanted.widths)))
        raise UserError(f"{path} has {several}, and none gives {widths} numbers for an observation")
    likely = [name for name in fitting if not _BESIDE.search(name.lower())] or fitting
    raise UserError(f"{path} has {several}: name the one to learn from with --teacher-output, such as {likely[0]!r}")


def scores_of(name: str, value: Tensor, wanted: Wanted, path: Path, *, said: str | None = None) -> ForeignScores:
    """What an output gives.

    Args:
        name: of the output.
        value: what a probe gave, (B, ...).
        wanted: what is known of it.
        path: the file, for messages.
        said: what the file says.

    Raises:
        UserError: it gives the numbers of actions, or nothing says what it gives.
    """
    continuous = wanted.action_range is not None
    title = f"its output {printable(name)!r} gives" if name else "it gives"
    if not continuous and _are_actions(value, wanted):
        raise _refusal_of_actions(name, value, path)
    if wanted.scores is not None:
        return wanted.scores
    if said in ("q_values", "logits"):
        return cast(ForeignScores, said)
    if not continuous:
        kind = scores_named([name])
        if kind is None:
            raise UserError(
                f"{path} does not say whether {title} Q-values or logits: name it with "
                "--teacher-scores q_values or --teacher-scores logits"
            )
        return kind
    width = 1 if value.ndim == 1 else int(value.shape[-1])
    number = wanted.num_actions or width
    if width == number and re.search(r"(^|[^a-z])actions?([^a-z]|$)", name.lower()):
        return "deterministic"
    way = "gaussian where they are means, then log standard deviations"
    if width == number:
        way = "deterministic where they are the actions themselves"
    raise UserError(
        f"{path} does not say what {title}, {width} number{'s'[: width - 1]} for {number} continuous "
        f"action{'s'[: number - 1]}: --teacher-scores {way}"
    )


def _fits(value: Tensor, wanted: Wanted) -> bool:
    if value.ndim != 2 or not value.is_floating_point():
        return False
    return value.shape[1] in wanted.widths if wanted.widths else value.shape[1] > 1


def _are_actions(value: Tensor, wanted: Wanted) -> bool:
    """Whether it has one number an observation, or whole numbers, where scores have a number an action."""
    single = value.ndim == 1 or (value.ndim == 2 and value.shape[1] == 1 and wanted.num_actions != 1)
    return single or not value.is_floating_point()


def _refusal_of_actions(name: str, value: Tensor, path: Path) -> UserError:
    kind = str(value.dtype).removeprefix("torch.")
    what = f"its output {printable(name)!r}" if name else "it"
    each = "one" if value.ndim == 1 else str(value.shape[-1])
    return UserError(
        f"{path}: {what} gives actions ({kind}, {each} for an observation), and a student learns from scores: export the logits or "
        "Q-values that they are chosen by. Stable-Baselines3's documented OnnxableSB3Policy then returns "
        "self.policy.get_distribution(observation).distribution.logits (of a DQN, self.policy.q_net(observation)), with "
        "output_names=['logits'] (or ['q_values']); its zip is read as it is"
    )


def _listed(outputs: Mapping[str, Tensor]) -> str:
    parts = [
        f"{printable(name)!r} ({str(value.dtype).removeprefix('torch.')}, {' x '.join(map(str, value.shape[1:])) or 'one number'})"
        for name, value in outputs.items()
    ]
    return ", ".join(parts[:_MOST_SHOWN]) + (
        f" and {len(parts) - _MOST_SHOWN} more" if len(parts) > _MOST_SHOWN else ""
    )


class Spread(nn.Module):
    """Actions from -1..1 to their range: (B, D), or means and log standard deviations (B, 2 D)."""

    reach: Tensor
    middle: Tensor

    def __init__(self, network: nn.Module, low: Sequence[float], high: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        least, most = (torch.tensor(side, dtype=torch.float64) for side in (low, high))
        self.register_buffer("reach", ((most - least) / 2).float())
        self.register_buffer("middle", ((most + least) / 2).float())

    def forward(self, observations: Tensor) -> Tensor:
        """The same shape, in the environment's units."""
        x = self.network(observations)
        means = x[:, : len(self.reach)] * self.reach + self.middle
        return (
            torch.cat([means, x[:, len(self.reach) :] + self.reach.log()], dim=1)
            if x.shape[1] > means.shape[1]
            else means
        )


def with_units(foreign: ForeignPolicy, units: Units | None, task: Task, path: Path) -> ForeignPolicy:
    """A policy with continuous actions in the environment's units, where its file leaves open what they are in.

    Args:
        foreign: as it was read.
        units: what a user says that they are in.
        task: what it plays.
        path: the file, for messages.

    Raises:
        UserError: actions are to be spread over a range that has no ends.
    """
    if units is None or not foreign.units_supposed or not task.continuous:
        return foreign
    known = dict(foreign.provenance)
    known["supposed"] = [line for line in known.get("supposed", ()) if not str(line).startswith(UNITS)]
    network = foreign.network
    if units == "unit":
        if not np.isfinite([task.action_low, task.action_high]).all():
            raise UserError(
                f"{path}: actions of -1 to 1 cannot be spread over the range of {describe(task)}: leave --teacher-actions out"
            )
        network = Spread(network, task.action_low, task.action_high)
    used = foreign.used | {"teacher_actions"}
    return replace(foreign, network=network, units_supposed=False, provenance=known, used=used)


def unit_tool(foreign: ForeignPolicy, task: Task) -> str | None:
    """A line where the tool that wrote a policy spreads -1..1 over a wider range by default: then means beyond 1 tell nothing.

    rl_games is known by the names of its layers; its option `clip_actions: False` gives actions in the environment's units.
    """
    low, high = np.asarray(task.action_low), np.asarray(task.action_high)
    named = any("a2c_network" in str(name).split(".") for name in foreign.provenance.get("layers", ()))
    if not named or not np.isfinite([low, high]).all() or (np.allclose(low, -1) and np.allclose(high, 1)):
        return None
    return (
        f"it is of rl_games, which spreads actions of -1 to 1 over {_range(low, high)} unless its configuration has clip_actions: "
        "False: say --teacher-actions unit, or --teacher-actions environment where it has"
    )


def unit_mismatch(teacher: Teacher) -> str | None:
    """Whether a policy's continuous actions look like shares of their range, of which nobody has said what they are.

    It plays a thousand steps, half of them at random, until an action leaves -1..1. One that never does, where the range
    is wider, or which leaves a range that is narrower, may be of either kind, and nothing but its maker knows.

    Returns:
        What does not fit; None where actions can only be in the environment's units.
    """
    task = teacher.task
    low, high = np.asarray(task.action_low), np.asarray(task.action_high)
    ends = np.isfinite(low) & np.isfinite(high)
    wide = ends & ((low < -1 - _SLACK) | (high > 1 + _SLACK))
    if not ends.any() or (np.allclose(low[ends], -1) and np.allclose(high[ends], 1)):
        return None
    least, most = np.full(len(low), np.inf), np.full(len(low), -np.inf)
    environments = Environments(task, 1, 0)
    generator = np.random.default_rng(0)
    began, steps = time.monotonic(), 0
    try:
        while steps < _STEPS and (steps == 0 or time.monotonic() - began < _SECONDS):
            steps += 1
            scores = teacher(as_tensor(environments.observations))
            actions = scores[:, : task.action_dimensions].double().numpy()
            if not (np.abs(actions) <= 1 + _SLACK).all():
                return None
            least, most = np.minimum(least, actions[0]), np.maximum(most, actions[0])
            greedy = chosen(scores, teacher.score_kind, task).numpy()
            environments.step(mix_in_random(greedy, task, _RANDOM_SHARE, generator))
    finally:
        environments.close()
    left = ends & ((least < low - _SLACK) | (most > high + _SLACK))
    if not (wide | left).any():
        return None
    return (
        f"its actions lie in {_range(least, most)} in {steps:,} observations, those of {task.env} in {_range(low, high)}: say "
        "--teacher-actions unit where -1 to 1 stands for that range, --teacher-actions environment where they are in its units"
    )


def _range(low: Any, high: Any) -> str:
    one = low.min(), high.max()
    return (
        f"{one[0]:.3g} to {one[1]:.3g}"
        if len(low) > 4
        else f"{np.round(low, 3).tolist()} to {np.round(high, 3).tolist()}"
    )


def constants(given: str | None) -> dict[str, float]:
    """The inputs that are always the same, of a text such as `action_masks=1,epsilon=0`.

    Raises:
        UserError: it is no such text.
    """
    found: dict[str, float] = {}
    for part in given.split(",") if given is not None else ():
        name, equals, text = part.rpartition("=")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not name or not equals or not math.isfinite(value) or name in found:
            raise UserError(f"--teacher-input {printable(given)} is no list such as action_masks=1,epsilon=0")
        found[name] = value
    return found


def before_tanh(name: str, outputs: Mapping[str, Tensor]) -> list[str]:
    """A line where an output lies beside the deviation of a Gaussian: in SAC a tanh follows, which is not in the file."""
    if any(other != name and _LOG_STD.search(other.lower()) for other in outputs):
        return [
            f"its output {printable(name)!r} lies beside a log standard deviation, so a tanh may follow it, as in SAC: export "
            "torch.tanh(mean) under the name actions, with --teacher-actions unit"
        ]
    return []


def is_memory(name: str) -> bool:
    """Whether an input is named like what a recurrent network takes from one step to the next."""
    return _MEMORY.search(name.lower()) is not None
