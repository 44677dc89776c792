"""What a user states about a teacher's file where the file itself does not say it, and whether each option has an effect."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rldistill.types import UserError, as_flag, check_booleans

# These two permit something and state nothing about the file: a permission that is not needed does no harm.
_PERMISSIONS = ("trust_pickle", "accept_mismatch")


@dataclass(frozen=True)
class TeacherOptions:
    """What a file of another tool may not say of itself. Policy folders of rldistill need none of these options."""

    teacher_network: str | None = None
    """Of a plain state dict: `dqn`, `cnn:32,64,64:512`, `mlp:64,64`, `mlp:64,64:tanh`; `mlp:256,256:relu:tanh` has a tanh
    behind its last layer too, spread over the range of the actions."""
    teacher_scores: Literal["q_values", "logits", "gaussian", "deterministic"] | None = None
    """What the network gives, where the file does not say it."""
    normalization: Path | None = None
    """File of statistics of observations, which goes before all others: of `VecNormalize`, a pickle of Gymnasium's
    `NormalizeObservation.obs_rms`, or JSON with mean, std and clip."""
    pixels: Literal["bytes", "unit"] | None = None
    """Of ONNX, TorchScript and plain state dicts: whether images go in as 0 to 255 or as 0 to 1, where the file does not say it."""
    trust_pickle: bool = False
    """Unpickle statistics as Python does. That runs whatever program their author put into the file: only for your own."""
    accept_mismatch: bool = False
    """Go on although something does not fit; it is still reported."""
    teacher_actions: Literal["unit", "environment"] | None = None
    """Of ONNX, TorchScript and plain state dicts with continuous actions: whether -1 to 1 stands for the range of each action,
    as in an actor of SAC, TD3 or DDPG by itself, or actions are in the environment's units."""
    teacher_output: str | None = None
    """Of ONNX and TorchScript: the name of the output to learn from, where there are several; of tuples its number, from 0."""
    teacher_input: str | None = None
    """Of ONNX with more inputs than the observation: a number that fills each of the others, such as
    `action_masks=1,epsilon=0`."""

    def __post_init__(self) -> None:
        check_booleans(self)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {name: os.fspath(value) if isinstance(value, Path) else value for name, value in vars(self).items()}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> TeacherOptions:
        """The inverse of `as_dict`, but that it trusts no pickle: a run folder may be a stranger's, and only users may say so.

        Raises:
            UserError: it holds what no options hold.
        """
        default = vars(TeacherOptions())
        if not isinstance(data, Mapping):
            raise UserError(f"teacher_options in the run's config.json is {data!r}, not a table")
        for name, value in data.items():
            if name not in default or not isinstance(value, bool if isinstance(default[name], bool) else str | None):
                raise UserError(
                    f"teacher_options in the run's config.json has {name} = {value!r}, unknown to rldistill"
                )
        given = {**data, "trust_pickle": False}
        given["normalization"] = Path(given["normalization"]) if given.get("normalization") else None
        return TeacherOptions(**given)

    def given(self) -> dict[str, Any]:
        """Names and values of what is stated about the file, permissions left out."""
        default = vars(TeacherOptions())
        return {
            name: value for name, value in vars(self).items() if name not in _PERMISSIONS and value != default[name]
        }


def check_acting(
    options: TeacherOptions | None, used: Collection[str], subject: str, decided: Mapping[str, str] | None = None
) -> None:
    """Refuses options without an effect.

    Args:
        options: as a user gave them.
        used: names of those that acted.
        subject: the file or files, for the message.
        decided: of those that contradict the file, what it says itself.

    Raises:
        UserError: an option is given that did not act.
    """
    idle = [name for name in (options or TeacherOptions()).given() if name not in used]
    if idle:
        verb, it = ("has", "it") if len(idle) == 1 else ("have", "them")
        why = "; ".join((decided or {})[name] for name in idle if name in (decided or {}))
        says = f", since {why}" if why else ""
        raise UserError(f"{', '.join(map(as_flag, idle))} {verb} no effect on {subject}{says}: leave {it} out")
