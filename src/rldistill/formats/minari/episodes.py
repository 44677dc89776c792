"""What a Minari dataset is made of here: an episode in plain arrays, and where Minari keeps the rest."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt

from rldistill.documents import read_json
from rldistill.types import Actions, Bools, Floats, Masks, UserError, first_line

KEY = "rldistill"
"""Of rldistill's own entries in the metadata of a dataset and of an episode."""
VALUES = "teacher_values"
"""Of the teacher's scores among the infos."""
MASKS = "action_mask"
"""Of the allowed actions among the infos."""


class Origin(NamedTuple):
    """Where an episode of rldistill comes from, and what Minari has no place for."""

    recording: int
    """Place among the dataset's recordings."""
    environment: int
    begun: bool
    """Whether the first row is the first of the episode."""
    ended: bool
    """Whether the episode was terminated or truncated, and not only cut off where the recording ends."""
    context: int
    """Rows at the beginning that only complete the stacks of later rows."""
    sha256: str
    """Of the episode's rows; Minari's files have no checksums."""

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Origin:
        """The inverse of `_asdict`; raises what Python raises where an entry is missing or of another kind."""
        return Origin(
            int(data["recording"]),
            int(data["environment"]),
            bool(data["begun"]),
            bool(data["ended"]),
            int(data["context"]),
            data["sha256"],
        )


class MinariEpisode(NamedTuple):
    """The rows of one episode, T in all. What the episode ended with, Minari's last observation, is left out."""

    frames: npt.NDArray[Any]
    """(T, *frame)"""
    actions: Actions
    """(T,) or (T, D)"""
    rewards: Floats
    """(T,)"""
    terminated: Bools
    """(T,)"""
    truncated: Bools
    """(T,): False in the last row of an episode that was only cut off."""
    values: Floats | None = None
    """(T, K): the teacher's scores, where the dataset has them."""
    masks: Masks | None = None
    """(T, A): the allowed actions, where the task has masks."""
    origin: Origin | None = None
    """None in a dataset of others."""
    rounded: frozenset[str] = frozenset()
    """Names of the columns that lost digits, since the dataset keeps more of them than the task has."""
    infos: frozenset[str] = frozenset()
    """Names of the infos that are left out."""


def minari_folder(source: Path) -> Path | None:
    """The folder of Minari's data at a path; None if there is something else."""
    for folder in (source / "data", source):
        card = folder / "metadata.json"
        if card.is_file() and "data_format" in read_json(card):
            return folder
    return None


def check_target(out: Path) -> None:
    """Raises UserError where Minari would not find a dataset under this name, or is not installed."""
    if not re.fullmatch(r"[-\w]+-v\d+", out.name):
        raise UserError(f"names of Minari datasets end in a version: --out {out.with_name('pong-v0')}, say, not {out}")
    packages()


def packages() -> tuple[Any, Any, Any]:
    """Minari, its storage and its buffer of an episode.

    Raises:
        UserError: it is not installed.
    """
    try:
        import minari
        from minari.data_collector.episode_buffer import EpisodeBuffer
        from minari.dataset.minari_storage import MinariStorage
    except ImportError:
        raise UserError("Minari datasets need minari: pip install 'rldistill[minari]'") from None
    return minari, MinariStorage, EpisodeBuffer


@contextmanager
def readable(source: Path, episode: int | None = None) -> Iterator[None]:
    """Turns whatever goes wrong while Minari reads into one line: it raises whatever its storages do."""
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"{source}: {error}") from None
    except Exception as error:
        where = "" if episode is None else f"episode {episode} of "
        raise UserError(f"{where}{source} cannot be read: {first_line(error)}") from None
