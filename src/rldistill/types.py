"""The types that all modules share: tasks, batches of labelled observations, and protocols of policies."""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias, TypeVar, get_args, get_type_hints

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Configuration = TypeVar("Configuration", bound="DataclassInstance")

ScoreKind: TypeAlias = Literal["q_values", "logits", "gaussian", "squashed_gaussian", "actions"]
"""What a policy's scores are. Of discrete actions: values in units of return, or unnormalized logits of a softmax policy. Of
continuous ones: means and log standard deviations of a Gaussian (`squashed_gaussian`: before a tanh that maps onto the action
range), or the actions themselves. See `actions`."""

Observations: TypeAlias = npt.NDArray[np.uint8] | npt.NDArray[np.float32]
Actions: TypeAlias = npt.NDArray[np.int64] | npt.NDArray[np.float32]
"""(N,) numbers of actions, (N, dimensions) of several at once, or (N, D) continuous ones in the environment's units."""
EnvArgument: TypeAlias = str | int | float | bool | None
"""What an environment can be made with: a JSON scalar."""
Floats: TypeAlias = npt.NDArray[np.float32]
Bools: TypeAlias = npt.NDArray[np.bool_]
Masks: TypeAlias = npt.NDArray[np.bool_]
"""(N, A): which of the discrete actions are allowed; of several actions at once dimension after dimension, as in scores."""


_LONGEST_MESSAGE = 6000
"""Characters: room for the longest path and the message about it."""


def printable(text: object, length: int = 80) -> str:
    """Any text made fit for a message: on one line, without control characters, not too long."""
    plain = "".join(map(_printable_character, str(text)[: length + 1]))
    return plain if len(plain) <= length else plain[: length - 1] + "…"


def first_line(error: object, length: int = 200) -> str:
    """The first line of an error's text, made fit for a message; the name of its type where it has no text."""
    try:
        text = str(error).strip()
    except Exception:  # of a stranger's class
        text = ""
    return printable((text.splitlines() or [type(error).__name__])[0], length)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The end of a message about an unknown name: the names that are spelt much alike, or nothing."""
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else ""


class UserError(ValueError):
    """A wrong input. Its text is one line that says what is wrong and how to mend it; the command exits with 2.

    The text can always be printed. Bytes of a path that are no UTF-8 become `\\xff`, control characters become `?`, and the middle
    of a very long text is left out.
    """

    def __init__(self, text: object = "") -> None:
        line = "".join(map(_printable_character, re.sub(r"\s", " ", str(text))))
        if len(line) > _LONGEST_MESSAGE:
            line = f"{line[: _LONGEST_MESSAGE - 1000]} … {line[-900:]}"
        super().__init__(line)


def _printable_character(character: str) -> str:
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":  # a byte of a path, as Python keeps it
        return f"\\x{ord(character) - 0xDC00:02x}"
    return "?"


_UNBOUNDED = 1e30


def unbounded(bound: float) -> float:
    """A bound of a space; infinity where it is beyond 1e30, for some environments declare the largest float32 instead."""
    return bound if abs(bound) <= _UNBOUNDED else math.copysign(math.inf, bound)


_LARGEST_SEED = 2**63 - 1  # what PyTorch's generators take
# Larger numbers are taken for typing errors and refused before environments are made or memory is allocated.
MOST_ENVIRONMENTS = 10_000
MOST_SAMPLES = 100_000


def check_numbers(
    config: object,
    *,
    least: Mapping[str, float] | None = None,
    shares: Sequence[str] = (),
    positive: Sequence[str] = (),
    within: Mapping[str, tuple[float, float]] | None = None,
) -> None:
    """Checks that a configuration's numbers are in their ranges. None stands for a default and is not checked.

    Args:
        config: whose fields they are. Messages name a field `num_envs` as the flag `--num-envs`.
        least: field to the least that it may be.
        shares: fields from 0 to 1.
        positive: fields that are finite and above 0.
        within: field to the least and the most that it may be.

    Raises:
        UserError: a number is out of its range, NaN, or has a fraction where a whole number is expected; or a field that should be
            True or False is something else.
    """
    ranges = {name: (low, math.inf, f"is at least {low}") for name, low in (least or {}).items()}
    ranges |= {name: (math.ulp(0.0), sys.float_info.max, "is a positive number") for name in positive}
    both = {**dict.fromkeys(shares, (0, 1)), **(within or {})}
    ranges |= {name: (low, high, f"lies between {low} and {high}") for name, (low, high) in both.items()}
    check_booleans(config)
    hints = get_type_hints(type(config))
    for name, (low, high, rule) in ranges.items():
        value = getattr(config, name)
        flag = as_flag(name)
        if value is not None and not isinstance(value, int | float | np.number):
            raise UserError(f"{flag} is a number, not {value!r}")
        if value is not None and not low <= value <= high:
            raise UserError(f"{flag} {rule}, not {value}")
        kinds = {hints.get(name), *get_args(hints.get(name))}
        if isinstance(value, float) and int in kinds and float not in kinds:
            raise UserError(f"{flag} is a whole number, not {value}")
        if name == "seed" and value is not None and value > _LARGEST_SEED:
            raise UserError(f"{flag} is at most {_LARGEST_SEED}, not {value}")


def check_booleans(config: object) -> None:
    """Raises UserError where a field of a configuration that is to be True or False is something else, such as the text `no`."""
    for name, hint in get_type_hints(type(config)).items():
        kinds = {hint, *get_args(hint)}
        if bool in kinds and not (getattr(config, name) is None and type(None) in kinds):
            check_boolean(name, getattr(config, name))


def as_flag(name: str) -> str:
    """A setting as the command spells it: `--learner-steps`."""
    return f"--{name.replace('_', '-')}"


def check_boolean(name: str, value: object) -> None:
    """Raises UserError where an option is neither True nor False."""
    if not isinstance(value, bool | np.bool_):
        raise UserError(f"{as_flag(name)} is True or False, not {value!r}")


def plain_numbers(config: Configuration) -> Configuration:
    """A configuration whose NumPy numbers (of a `for seed in np.arange(3)`) are Python's, which JSON can hold, in its parts too.

    Lists become tuples, so that an empty list is the default where that is an empty tuple.
    """
    changed: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, np.generic):
            changed[field.name] = value.item()
        elif isinstance(value, list):
            changed[field.name] = tuple(value)
        elif is_dataclass(value) and not isinstance(value, type):
            changed[field.name] = plain_numbers(value)
    return replace(config, **changed)


@dataclass(frozen=True, slots=True)
class Task:
    """An environment with every option that changes what is played. Heads, batches and scores have it as their key.

    One *control step* is one decision of the agent: `frame_skip` frames of the emulator on Atari, one step elsewhere.
    """

    env: str
    """Environment id as the user named it, such as `ALE/Pong-v5`, `PongNoFrameskip-v4`, `MinAtar/Breakout-v1`."""
    num_actions: int
    """As files have it: the number of discrete actions, the sum of the choices of several, or the dimensions of continuous ones.
    Code reads `choices`, `mask_size` or `action_dimensions`, which mean one thing each."""
    observation_shape: tuple[int, ...]
    """Shape of what the policy sees: (stack, height, width), (channels, height, width) or (features,)."""
    observation_dtype: Literal["uint8", "float32"] = "uint8"
    frame_skip: int = 1
    """Emulator frames for each control step."""
    frame_stack: int = 1
    """How many recent frames an observation holds, along its first axis, oldest first."""
    sticky_actions: float = 0.0
    """Probability with which the emulator repeats the last action instead of taking the new one."""
    noop_max: int = 0
    """An episode starts with 0 to `noop_max` no-ops (frames on Atari), drawn from its seed."""
    max_frames: int = 0
    """Emulator frames after which an episode is truncated; 0 leaves it to the environment."""
    fire_when_idle: int = 0
    """After so many control steps without a reward and without a FIRE, FIRE is pressed once; 0 is never. (A greedy
    Breakout policy that does not launch the ball would stall for ever.)"""
    difficulty_ramping: bool = False
    """MinAtar only: whether the game grows harder with time."""
    random_score: float | None = None
    """Mean episode return of uniformly random play, the zero of the normalized scale, where it is known."""
    action_sizes: tuple[int, ...] = ()
    """Of several discrete actions at once (MultiDiscrete): the choices of each."""
    action_low: tuple[float, ...] = ()
    """Of continuous actions (Box): the least of each dimension."""
    action_high: tuple[float, ...] = ()
    """Of continuous actions: the largest of each dimension."""
    observation_keys: tuple[tuple[str, int], ...] = ()
    """Of observations with named parts (Dict), flattened in this order: names and sizes."""
    env_kwargs: tuple[tuple[str, EnvArgument], ...] = ()
    """Arguments that a Gymnasium environment is made with, sorted by name."""
    action_masks: bool = False
    """Whether the environment says with each observation which actions are allowed, as its first reset shows."""
    max_episode_steps: int = 0
    """Control steps after which an episode is truncated; 0 leaves it to the environment's own limit, or to `envs.LONGEST_GAME`
    where it has none."""

    @property
    def continuous(self) -> bool:
        """Whether actions are numbers in a range."""
        return bool(self.action_low)

    @property
    def choices(self) -> tuple[int, ...]:
        """How many actions each discrete choice has: one number, or one for each of several at once; () of continuous actions."""
        return () if self.action_low else self.action_sizes or (self.num_actions,)

    @property
    def mask_size(self) -> int:
        """A: the truth values of an action mask, which are the discrete actions of all choices; 0 of continuous actions."""
        return 0 if self.action_low else self.num_actions

    @property
    def action_dimensions(self) -> int:
        """How many numbers an action is: D of continuous actions, 1 of a discrete one, one for each of several at once."""
        return len(self.action_low) or len(self.action_sizes) or 1

    def as_dict(self) -> dict[str, Any]:
        """The task as plain JSON data."""
        data = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        for name in ("observation_keys", "env_kwargs"):
            data[name] = [list(pair) for pair in getattr(self, name)]
        for name in ("action_low", "action_high"):  # JSON has no infinity
            data[name] = [n if math.isfinite(n) else None for n in data[name]]
        if not self.max_episode_steps:
            del data["max_episode_steps"]
        # Empty fields are left out, so that the data is the same as in files from before those fields existed.
        if not self.action_masks:
            del data["action_masks"]
        return {name: value for name, value in data.items() if value != [] or name == "observation_shape"}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Task:
        """The inverse of `as_dict`.

        Raises:
            UserError: a field is unknown or missing.
        """
        names = {field.name for field in fields(Task)}
        unknown = sorted(set(data) - names)
        if unknown:
            raise UserError(f"a task has no field {unknown[0]!r}; it was written by another version of rldistill")
        try:
            given = {**data, "observation_shape": _whole_numbers(data["observation_shape"])}
            given["action_sizes"] = _whole_numbers(data.get("action_sizes", ()))
            for name, infinity in (("action_low", -math.inf), ("action_high", math.inf)):
                # Older files hold Python's `Infinity`, which is read as it is.
                given[name] = tuple(infinity if n is None else unbounded(float(n)) for n in data.get(name, ()))
            given["observation_keys"] = tuple((str(key), int(size)) for key, size in data.get("observation_keys", ()))
            given["env_kwargs"] = tuple((name, value) for name, value in data.get("env_kwargs", ()))
            task = Task(**given)
            widths = {len(task.action_low), len(task.action_high)}
            if widths != ({task.num_actions} if task.continuous else {0}):
                raise ValueError("not as many bounds as actions")
            if task.continuous and task.action_masks:
                raise ValueError("continuous actions have no masks")
            if task.action_sizes and sum(task.action_sizes) != task.num_actions:
                raise ValueError("the choices of its actions do not add up")
            sizes = [size for _, size in task.observation_keys]
            if sizes and ((sum(sizes),) != task.observation_shape or min(sizes) < 0):
                raise ValueError("the parts of its observations do not add up")
            if not all(low <= high for low, high in zip(task.action_low, task.action_high, strict=True)):  # nor NaN
                raise ValueError("a least action is above the largest")
            _check_kinds(task)
            return task
        except (KeyError, OverflowError, TypeError, ValueError) as error:  # the second of infinity
            raise UserError(f"a task lacks a field or holds a wrong one ({printable(error, 200)})") from None


_RANGES = {
    "num_actions": (1, 65_536),
    "frame_skip": (1, 1_000),
    "frame_stack": (1, 1_000),
    "noop_max": (0, 10_000),
    "max_frames": (0, 2**53),
    "fire_when_idle": (0, 2**53),
    "max_episode_steps": (0, 2**53),
}
"""Least and largest values of a task's whole numbers, so that no reset and no step takes for ever."""


def _whole_numbers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list | tuple) or not all(is_number(value, int) for value in values):
        raise TypeError(f"{printable(repr(values))} is no list of whole numbers")
    return tuple(values)


_MOST_DIMENSIONS = 32
_MOST_NUMBERS = 2**30
"""Limits of one observation; Arrow's lists and NumPy's arrays hold little more."""


def _check_kinds(task: Task) -> None:
    """Raises ValueError where a field that was read from a file has a wrong type or value."""
    wrong = [
        name
        for name, (least, largest) in _RANGES.items()
        if not is_number(getattr(task, name), int) or not least <= getattr(task, name) <= largest
    ]
    wrong += [] if isinstance(task.env, str) else ["env"]
    sizes = task.observation_shape
    fits = len(sizes) <= _MOST_DIMENSIONS and min(sizes, default=0) >= 0 and math.prod(sizes) <= _MOST_NUMBERS
    wrong += [] if fits else ["observation_shape"]
    wrong += [] if all(_is_argument(*pair) for pair in task.env_kwargs) else ["env_kwargs"]
    wrong += [
        name for name in ("env_kwargs", "observation_keys") if len(dict(getattr(task, name))) < len(getattr(task, name))
    ]
    wrong += [] if task.observation_dtype in ("uint8", "float32") else ["observation_dtype"]
    wrong += [name for name in ("difficulty_ramping", "action_masks") if not isinstance(getattr(task, name), bool)]
    wrong += [] if is_number(task.sticky_actions) else ["sticky_actions"]
    wrong += [] if task.random_score is None or is_number(task.random_score) else ["random_score"]
    if wrong:
        raise ValueError(f"{wrong[0]} is {str(getattr(task, wrong[0]))[:40]!r}")


def is_number(value: Any, kind: Any = int | float) -> bool:
    """Whether data from a file is a finite number of a kind; True and False are none."""
    return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)


def _is_argument(name: Any, value: Any) -> bool:
    kinds = isinstance(value, str | bool | None) or is_number(value)
    return isinstance(name, str) and name.isidentifier() and kinds


_LARGE_FROM = 36
"""Pixels: the least height and width at which the three convolutions of Mnih et al. 2015 leave one cell."""


def is_large_image(shape: tuple[int, ...]) -> bool:
    """Whether observations (channels, height, width) are pictures, not a small grid as MinAtar's."""
    return len(shape) == 3 and min(shape[1:]) >= _LARGE_FROM


@dataclass(frozen=True)
class Lesson:
    """What a student is taught in one go: the key of batches, figures and checkpoints."""

    name: str
    """`PongNoFrameskip-v4`; of several teachers of one task `PongNoFrameskip-v4/ppo`."""
    task: Task
    head: str
    """The name of the head that answers."""

    @staticmethod
    def of(task: Task) -> Lesson:
        """The only lesson of a task."""
        return Lesson(task.env, task, task.env)

    def __hash__(self) -> int:
        return hash(self.name)  # a task has many fields, and this is asked for at every update


class Batch(NamedTuple):
    """B samples of one lesson."""

    observations: Tensor
    """(B, *obs) uint8 or float32."""
    columns: Mapping[str, Tensor]
    """(B, ...) each: the teacher's `values` (B, K) float32; `masks` (B, A) bool, the allowed actions, where the task has any."""

    @property
    def values(self) -> Tensor:
        """(B, K): the teacher's scores."""
        return self.columns["values"]

    @property
    def masks(self) -> Tensor | None:
        """(B, A) bool: the allowed actions; None where all are."""
        return self.columns.get("masks")

    def part(self, rows: slice) -> Batch:
        """Some of the samples."""
        return Batch(self.observations[rows], {name: column[rows] for name, column in self.columns.items()})


def labelled(observations: Tensor, values: Tensor, masks: Tensor | None = None) -> Batch:
    """A batch of observations (B, *obs) with the teacher's scores (B, K), and masks (B, A) where not all actions are allowed."""
    return Batch(observations, {"values": values} if masks is None else {"values": values, "masks": masks})


class ActionValues(Protocol):
    """Observations to scores of actions: what teachers, students and the networks of DQN and PQN have in common."""

    @property
    def score_kind(self) -> ScoreKind:
        """What the scores are."""

    def __call__(self, observations: Tensor) -> Tensor:
        """(B, *obs) to (B, K) float32; K as `actions.score_width` says."""


class Teacher(ActionValues, Protocol):
    """Scores of actions, and the task that the actions belong to."""

    @property
    def task(self) -> Task:
        """What it was made to play."""


class Policy(Protocol):
    """Observations (N, *obs) to actions (N,)."""

    def __call__(self, observations: Observations, masks: Masks | None = None) -> Actions:
        """One action for each row, an allowed one. `masks` is given where the environment gives any, and only there."""


def as_tensor(observations: Observations) -> Tensor:
    """A tensor over the same memory."""
    return torch.from_numpy(observations)
