"""The boundary around a user's environment: every call into it is made here, and whatever it raises becomes one line.

An environment may be any program: a simulator behind a socket, a script that exits, code that prints or changes the folder; see
`Surroundings`.
"""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rldistill.play.envs.surroundings import Own, Surroundings
from rldistill.types import UserError, first_line, printable

StepInfo = Mapping[str, Any]
_LARGEST = float(np.finfo(np.float32).max)


class EnvironmentFailed(UserError):
    """An environment raised an error, or gave what no environment may give."""

    details: str = ""
    """The environment's own traceback; empty where it raised nothing."""

    def add_number(self, made: int, wanted: int) -> None:
        """Adds to the message how many of several environments could be made, if any, and the way out."""
        if made:
            self.args = (f"{self}; {made} of {wanted} were made: where there can be only one, --num-envs 1",)


class Boundary:
    """One environment of a user's. Whatever it raises becomes an `EnvironmentFailed`, but for Ctrl-C.

    Args:
        env: its id, for messages.
        make: makes it.
        surroundings: of all environments that are called together; None makes some.

    Raises:
        EnvironmentFailed: it cannot be made. So do all methods where the environment fails in them.
    """

    def __init__(self, env: str, make: Callable[[], Any], surroundings: Surroundings | None = None) -> None:
        self.env = env
        self._surroundings, self._own = surroundings or Surroundings(), Own()
        self._made = self._call("making", make)
        self.observation_space = self._call("the observation space", lambda: self._made.observation_space)
        self.action_space = self._call("the action space", lambda: self._made.action_space)
        has_masks = self._call("the methods", lambda: self._made.has_wrapper_attr("action_masks"))
        masks = self._call("the methods", lambda: self._made.get_wrapper_attr("action_masks")) if has_masks else None
        self._masks: Callable[[], Any] | None = masks if callable(masks) else None

    @property
    def metadata(self) -> StepInfo:
        """The environment's metadata, such as `render_fps`."""
        metadata = self._call("the metadata", lambda: self._made.metadata)
        return metadata if isinstance(metadata, Mapping) else {}

    @property
    def time_limit(self) -> int | None:
        """Steps after which it was registered to truncate an episode; None without such a limit."""
        spec = self._call("the specification", lambda: self._made.spec)
        limit = getattr(spec, "max_episode_steps", None)
        return limit if isinstance(limit, int) and limit > 0 else None

    def reset(self, seed: int) -> tuple[Any, StepInfo]:
        """Its first observation, as it gives it, and its info."""
        answer = self._call("reset", lambda: self._made.reset(seed=seed))
        if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], Mapping)):
            raise EnvironmentFailed(
                f"reset of {self.env} gives no pair of an observation and a dictionary (info): that is the old Gym API; "
                "move the environment to Gymnasium's"
            )
        return answer

    def step(self, action: Any) -> tuple[Any, float, bool, bool, StepInfo]:
        """Observation as it gives it, reward, terminated, truncated and info of one action."""
        answer = self._call("step", lambda: self._made.step(action))
        if not isinstance(answer, tuple) or len(answer) != 5:
            size = f"{len(answer)} values" if isinstance(answer, tuple) else "no tuple"
            raise EnvironmentFailed(
                f"step of {self.env} gives {size}; Gymnasium's API has 5 (observation, reward, terminated, truncated, "
                "info), the old Gym API 4: move the environment to Gymnasium's"
            )
        observation, reward, terminated, truncated, info = answer
        return (
            observation,
            self._reward(reward),
            self._flag(terminated, "terminated"),
            self._flag(truncated, "truncated"),
            info if isinstance(info, Mapping) else {},
        )

    def action_mask(self, info: StepInfo) -> Any:
        """What it says of the allowed actions, as it gives it: in the last info, or by a method `action_masks()` of its own or of
        a wrapper, as sb3-contrib calls it. None where it says nothing."""
        mask = info.get("action_mask")
        return self._call("action_masks", self._masks) if mask is None and self._masks is not None else mask

    def render(self) -> npt.NDArray[np.uint8]:
        """What a spectator sees, (height, width, 3). Grey pictures and those with transparency are converted."""
        picture = self._call("render", lambda: self._made.render())
        try:
            array = np.asarray(picture)
        except Exception:  # of a picture that is no array: anything
            array = np.empty(0)
        if array.ndim == 2:
            array = np.repeat(array[:, :, None], 3, axis=2)
        if array.ndim == 3 and array.shape[2] == 4:
            array = array[:, :, :3]
        if array.ndim != 3 or array.shape[2] != 3 or array.dtype.kind not in "biuf":
            kind = f"an array of shape {array.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__
            raise EnvironmentFailed(f"render of {self.env} gives {kind}, no picture (height, width, 3)")
        return array.astype(np.uint8, copy=False)

    def close(self) -> None:
        """Frees it. An error here is only logged, so that it does not cost the work that is done."""
        try:
            self._call("close", lambda: self._made.close())
        except EnvironmentFailed as error:
            _remark_once(f"warning: {error}")

    def _call(self, name: str, function: Callable[[], Any]) -> Any:
        try:
            return self._surroundings.call(self._own, function)
        except (UserError, KeyboardInterrupt):
            raise
        except BaseException as error:  # SystemExit, and what simulators in other languages panic with
            raise failure(name, self.env, error) from error

    def _reward(self, reward: Any) -> float:
        number = reward if type(reward) is float else _number(reward)
        if number is None:
            raise EnvironmentFailed(f"step of {self.env} gives the reward {_in_words(reward)}, which is no number")
        if not abs(number) <= _LARGEST:  # nor NaN
            raise EnvironmentFailed(f"step of {self.env} gives the reward {number}: rewards must be finite")
        return number

    def _flag(self, flag: Any, name: str) -> bool:
        if flag is True or flag is False:  # as nearly always; this is asked twice a step
            return bool(flag)
        number = _number(flag)
        if number not in (0.0, 1.0):
            raise EnvironmentFailed(
                f"step of {self.env} gives {_in_words(flag)} as {name}, which is neither true nor false"
            )
        return bool(number)


def remark(line: str) -> None:
    """Logs a warning with Python's logging, whose default is a line on stderr."""
    logging.getLogger("rldistill").warning("%s", line)


_remark_once = lru_cache(maxsize=1000)(remark)  # many environments may all give the same warning


def failure(call: str, env: str, error: BaseException) -> EnvironmentFailed:
    """The one line for an error that an environment raised; the traceback is in its `details`."""
    kind, words = type(error).__name__, first_line(error)
    what = kind if words == kind else f"{kind}: {words}"
    old = "values to unpack" in words or "of the form `(obs, info)`" in words
    hint = "; is it of the old Gym API? move it to Gymnasium's" if old else ""
    if call == "making" and isinstance(error, TypeError) and "required" in words:
        hint = "; name the constructor's arguments with --env-kwargs name=value"
    failed = EnvironmentFailed(f"{call} of {env} failed: {what}{_place(error)}{hint}")
    failed.details = "".join(traceback.format_exception(error))
    return failed


def _place(error: BaseException) -> str:
    """Where in the environment's own code it was raised: ` (file, line N)`, the innermost frame outside of Gymnasium."""
    frames = traceback.extract_tb(error.__traceback__)
    inner = os.path.dirname(os.path.dirname(__file__))
    own = [frame for frame in frames if not frame.filename.startswith((inner, "<"))]
    own = [frame for frame in own if f"{os.sep}gymnasium{os.sep}" not in frame.filename]
    if not own:
        return ""
    path = Path(own[-1].filename)
    return f" ({printable('/'.join(path.parts[-2:]))}, line {own[-1].lineno})"


def _number(value: Any) -> float | None:
    """A number, or an array of one; None for anything else."""
    if isinstance(value, float | int):
        return _as_float(value)
    if value is None or isinstance(value, str | bytes):
        return None
    try:
        array = np.asarray(value)
    except Exception:  # a stranger's object may fail in any way
        return None
    if array.size != 1 or array.dtype.kind not in "biuf":
        return None
    return _as_float(array.item())


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number of four hundred digits
        return float("inf")


def _in_words(value: Any) -> str:
    try:
        return first_line(repr(value), 60)
    except Exception:  # a stranger's object may fail in any way
        return type(value).__name__
