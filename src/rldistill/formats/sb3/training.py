"""What a Stable-Baselines3 zip and the files around it say of its training: environment, options, normalized observations."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rldistill.formats.archives import MIB, read_file
from rldistill.formats.arrays import admits_statistics, plain_array
from rldistill.formats.foreign import BoxSpace, Statistics
from rldistill.formats.pickles import interpret
from rldistill.formats.sb3.spaces import entry_of, integer, text_of
from rldistill.types import UserError, printable

_PREFIXES = ("ppo_mask", "maskable_ppo", "ppo", "a2c", "dqn", "qrdqn", "trpo", "sac", "td3", "ddpg", "tqc", "her")
_ENVIRONMENT = r"[A-Za-z][\w.:-]*-v\d+"


class Training(NamedTuple):
    """What names and files beside a zip say of its training."""

    env: str | None = None
    normalized: bool | None = None
    """Whether the zoo's configuration says that observations were normalized, None where there is none."""
    frame_stack: int | None = None
    wrapper: str | None = None
    arguments: str | None = None
    """What the environment was made with, such as `{g: 1.0}`."""


def read_training(path: Path, algorithm: str = "") -> Training:
    """What the file's name, its folders and the zoo's `args.yml` and `config.yml` say.

    Args:
        path: of the zip.
        algorithm: of the zip; an `args.yml` of another is not about this file.

    Raises:
        UserError: one of these files cannot be read.
    """
    env = _env_of_names(path)
    arguments = _beside(path, env, "args.yml")
    written, algo = _yaml(arguments, "env"), _yaml(arguments, "algo")
    if written is not None and not re.fullmatch(r"[A-Za-z][\w.:/-]{0,99}", written):
        written = None
    plain = algorithm.replace("-", "").lower()
    other_env = env is not None and written is not None and written.replace("/", "-") != env.replace("/", "-")
    if other_env or (algo is not None and algo.lower() in _PREFIXES and plain in _PREFIXES and algo.lower() != plain):
        return Training(env)  # a folder of many files, and these are about another
    env = written or env
    config = _beside(path, env, "config.yml")
    normalized = _yaml(config, "normalize") or ""
    without = re.search(r"norm_obs['\"]*\s*[:=]\s*false", config, re.IGNORECASE)
    yes = bool(normalized) and normalized.lower() not in ("false", "none", "null", "no", "0")
    stack = integer(_yaml(config, "frame_stack") or "")
    wrapper = _yaml(config, "env_wrapper")
    # The zoo's copy on the hub has a file of them.
    made_with = _yaml(arguments, "env_kwargs") or _beside(path, env, "env_kwargs.yml").strip().replace("\n", ", ")
    return Training(
        env, yes and not without if config else None, stack, *(_noted(value) for value in (wrapper, made_with))
    )


def _noted(value: str | None) -> str | None:
    """A value for a note; None where YAML writes nothing in one of its ways."""
    empty = value is None or value.lower() in ("", "null", "none", "~", "{}", "[]", "false", "ordereddict()")
    return None if empty else printable(value, 200)


def _env_of_names(path: Path) -> str | None:
    """`<env>_1/` of the zoo, `ppo-<env>.zip`, `<env>.zip`; None where it would be a guess."""
    stem = re.fullmatch(rf"(?i:(?:{'|'.join(_PREFIXES)})[-_])?({_ENVIRONMENT})", path.stem)
    folder = re.fullmatch(rf"({_ENVIRONMENT})_\d+", path.absolute().parent.name)
    match = stem or folder
    return re.sub("^ALE-", "ALE/", match[1]) if match else None  # no file's name has a slash


def own_folders(path: Path, env: str | None) -> Iterator[Path]:
    """Where the zoo keeps what belongs to a zip, nearest first."""
    yield path if path.is_dir() else path.parent / path.stem
    if env is not None and ".." not in env:
        yield path.parent / env.replace("/", "-")


def _beside(path: Path, env: str | None, name: str) -> str:
    for folder in (*own_folders(path, env), path.parent):
        if (folder / name).is_file():
            return read_file(folder / name, MIB, what="configuration").decode(errors="replace")
    return ""


def _yaml(text: str, key: str) -> str | None:
    """A value in the zoo's YAML (a list of pairs, or `key: value`), as text. What it means is not looked into."""
    pair = re.search(rf"^[ \t-]*-[ \t]+{key}[ \t]*\n((?:[ \t]+-[ \t]|[ \t]+\S).*)$", text, re.MULTILINE)
    line = pair or re.search(rf"^[ \t]*{key}[ \t]*:[ \t]*(\S.*)$", text, re.MULTILINE)
    if not line:
        return None
    return re.sub(r"^[ \t]*-[ \t]+", "", line[1]).strip().strip("'\"").strip() or None


# --- what the data say of normalized observations


class LastObservations(NamedTuple):
    """What `data` keeps of the last step: `_last_obs`, as the policy got it, and `_last_original_obs`."""

    normalized: bool | None
    """Whether they show that the policy was trained on observations of `VecNormalize`; None where they do not show it."""
    received: npt.NDArray[np.float64] | None = None
    original: npt.NDArray[np.float64] | None = None
    """Of the same step under `VecNormalize`, of the step before without it. Both None where they cannot be compared."""

    def refute(self, statistics: Statistics) -> bool:
        """Whether the two are nearer to each other than normalizing the one comes to the other.

        Statistics that were saved later than the policy have moved, so normalizing need not give the very numbers.
        """
        if self.received is None or self.original is None or self.received.shape[1:] != statistics.mean.shape:
            return False
        scale = np.sqrt(statistics.variance + statistics.epsilon)
        wanted = np.clip((self.original - statistics.mean) / scale, -statistics.limit, statistics.limit)
        apart = np.abs(self.received - self.original).mean()
        return bool(apart < np.abs(self.received - wanted).mean())


def last_observations(data: Mapping[str, Any], observations: BoxSpace, *, on_policy: bool) -> LastObservations:
    """What the last observations in a zip's JSON show.

    On-policy algorithms keep the original observation only under `VecNormalize`. Off-policy ones always do, so that only the
    type and the range of the last observation may show it.

    Args:
        data: the zip's JSON.
        observations: the space of the policy.
        on_policy: whether its algorithm is PPO, A2C, TRPO or another that learns from its own rollouts only.
    """
    if on_policy and data.get("_last_original_obs") is None:
        learned = data.get("_last_obs") is not None and "_last_original_obs" in data
        return LastObservations(False if learned else None)
    received, original = (_stored_array(data, name) for name in ("_last_obs", "_last_original_obs"))
    if received is not None and received.dtype.kind in "iub":
        return LastObservations(False)  # VecNormalize gives floats, here it only normalized rewards
    if on_policy:
        return LastObservations(True)
    if received is None or original is None or received.shape != original.shape or not received.size:
        return LastObservations(None)
    if original.dtype.kind in "iub":
        return LastObservations(True)
    if received.shape[1:] != observations.shape:
        return LastObservations(None)
    values = received.astype(np.float64), original.astype(np.float64)
    outside, inside = (bool(_outside(value, observations)) for value in values)
    return LastObservations(True if outside and not inside else None, *values)


def _outside(values: npt.NDArray[np.float64], space: BoxSpace) -> bool:
    slack = 1e-3 * np.maximum(1.0, np.abs(values))
    return bool(((values < space.low - slack) | (values > space.high + slack)).any())


def _stored_array(data: Mapping[str, Any], name: str) -> npt.NDArray[Any] | None:
    """An array that the JSON holds as a pickle, read as data; None where it is none, or damaged."""
    text = text_of(entry_of(data, name), ":serialized:")
    try:
        root, _ = interpret(base64.b64decode(text, validate=True), admits_statistics, source=name)
        return plain_array(root)
    except (ValueError, UserError):
        return None
