"""Which of a program's outputs a student learns from, and what it gives."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias, cast

from torch import Tensor

from rldistill.formats.foreign import ForeignScores, scores_named
from rldistill.types import UserError, printable

ActionRange: TypeAlias = tuple[Sequence[float], Sequence[float]]

_MOST_SHOWN = 8
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
        wanted: what a user and the environment say of it.
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


def scores_of(name: str, value: Tensor, wanted: Wanted, path: Path, *, score_kind: str | None = None) -> ForeignScores:
    """What an output gives.

    Args:
        name: of the output.
        value: what a probe gave, (B, ...).
        wanted: what a user and the environment say of it.
        path: the file, for messages.
        score_kind: what the file says.

    Raises:
        UserError: it gives the numbers of actions, or nothing says what it gives.
    """
    continuous = wanted.action_range is not None
    title = f"its output {printable(name)!r} gives" if name else "it gives"
    if not continuous and _are_actions(value, wanted):
        raise _refusal_of_actions(name, value, path)
    if wanted.scores is not None:
        return wanted.scores
    if score_kind in ("q_values", "logits"):
        return cast(ForeignScores, score_kind)
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


def constants(given: str | None) -> dict[str, float]:
    """The inputs that a text such as `action_masks=1,epsilon=0` fills, and the number for each.

    Raises:
        UserError: it is no such text.
    """
    numbers: dict[str, float] = {}
    for part in given.split(",") if given is not None else ():
        name, equals, text = part.rpartition("=")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not name or not equals or not math.isfinite(value) or name in numbers:
            raise UserError(f"--teacher-input {printable(given)} is no list such as action_masks=1,epsilon=0")
        numbers[name] = value
    return numbers


def before_tanh(name: str, outputs: Mapping[str, Tensor]) -> list[str]:
    """A line where an output lies beside the deviation of a Gaussian: in SAC a tanh follows that is not in the file."""
    if any(other != name and _LOG_STD.search(other.lower()) for other in outputs):
        return [
            f"its output {printable(name)!r} lies beside a log standard deviation, so a tanh may follow it, as in SAC: export "
            "torch.tanh(mean) under the name actions, with --teacher-actions unit"
        ]
    return []


def is_memory(name: str) -> bool:
    """Whether an input is named like what a recurrent network takes from one step to the next."""
    return _MEMORY.search(name.lower()) is not None
