"""An export beside the policy that it was made of: settings, states to compare them on, bounds, and the place of the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from json import dumps
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch

from rldistill.datasets.shards import load_replay, open_dataset
from rldistill.files import check_new_file, put_in_place, replace_file
from rldistill.holding import folder_aside
from rldistill.play.actions import agreement, chosen
from rldistill.play.envs import Environments, unlike
from rldistill.play.rollout import EpsilonGreedy, rollout
from rldistill.progress import Progress
from rldistill.types import Observations, Task, Teacher, UserError

Format: TypeAlias = Literal["onnx", "onnx-int8", "c", "c-int8", "torchscript", "sb3"]
ROWS = 16
EPSILON = 0.05
"""Of the play that gives states where no dataset does."""
BATCH = 64


class Bound(NamedTuple):
    """Past it an export fails."""

    agreement: float
    """The least share of states in which both choose the same action (see `actions.agreement`)."""
    difference: float | None = None
    """The largest difference of two scores, as a share of the range of the policy's scores; None where scores are rounded
    on purpose."""


EXACT = Bound(agreement=0.999, difference=1e-3)
"""Float32 sums in another order."""


class Compared(NamedTuple):
    """How an export differs from its policy on so many states."""

    states: int
    difference: float
    """The largest, over states and scores."""
    range: float
    """From the least to the largest score of the policy."""
    agreement: float
    last: Observations
    """One of the states, (*obs)."""


@dataclass(frozen=True)
class ExportConfig:
    """How an export is made and checked."""

    dataset: Path | None = None
    """Recorded observations to compare (and calibrate) on; by default the policy plays for them, with epsilon 0.05."""
    states: int = 10_000
    """Observations on which the export's scores and actions are compared with the policy's."""
    calibration: int = 512
    """Observations, others than those, that give int8 its ranges."""
    episodes: int = 10
    """Full games of the policy and of the export, for their scores; 0 plays none."""
    epsilon: float = 0.01
    """Probability of a random action in these games."""
    num_envs: int = 10
    """Games played side by side."""
    seed: int = 0
    """Of games and draws."""
    teacher: str | None = None
    """A policy for a row of its own in the table; by default the teacher, if it is still where it was; `none` for none."""
    env: str | None = None
    """The policy's own environment id, to confirm it where it is written module:Id: the module is imported only then."""
    prefix: str = "rldistill"
    """Of C: what the names of functions begin with."""


@dataclass(frozen=True)
class Export:
    """Files that were written, and how they compare with the policy."""

    files: tuple[Path, ...]
    format: Format
    bytes: int
    """Of the file; of C those of its numbers when compiled."""
    compared: Compared
    notes: tuple[str, ...]
    """Differences between policy and file that come with the format."""
    rows: tuple[dict[str, Any], ...]
    """The policy, the export, and the teacher where there is one: `policy`, `format`, `bytes`, `microseconds` (of a decision,
    NumPy observation to action, batch 1, one thread), `agreement` (with the policy, on the compared states; None of the
    teacher), `episodes`, `distinct`, `mean`, `ci_low`, `ci_high` as in `Score` (None where no games were played), plain JSON
    data."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "files": [str(file) for file in self.files],
            "format": self.format,
            "bytes": self.bytes,
            "states": self.compared.states,
            "largest_difference": self.compared.difference,
            "range_of_scores": self.compared.range,
            "agreement": self.compared.agreement,
            "notes": list(self.notes),
            "policies": list(self.rows),
        }


def dataset_states(path: Path, task: Task, number: int, seed: int, progress: Progress) -> Iterator[Observations]:
    """Recorded observations, drawn without replacement, `number` of them or all there are, in batches (B, *obs).

    Raises:
        UserError: it is no dataset, damaged, or of another task.
    """
    dataset = open_dataset(path)
    theirs = dataset.task
    alike = (theirs.env, theirs.frame_skip, theirs.frame_stack)
    own = (task.env, task.frame_skip, task.frame_stack)
    if alike != own or unlike(theirs, task) is not None:
        raise UserError(
            f"{path} was recorded in {theirs.env} {theirs.observation_shape}, the policy plays {task.env} {task.observation_shape}"
        )
    steps, shards = 0, []
    for shard in dataset.shards:  # no more of them in memory than the number needs
        if steps < number:
            shards.append(shard)
            steps += shard.control_steps
    replay, times = load_replay(replace(dataset, shards=tuple(shards)), progress=progress)
    drawn = np.random.default_rng(seed).permutation(times)[:number]

    def batches() -> Iterator[Observations]:
        for at in range(0, len(drawn), BATCH):
            part = drawn[at : at + BATCH]
            yield replay.observations(part, np.zeros(len(part), dtype=np.int64))

    return batches()


def played_states(
    policy: Teacher, number: int, seed: int, *, every: int = 1, num_envs: int = ROWS
) -> Iterator[Observations]:
    """Observations that the policy meets while it plays with epsilon 0.05, in batches (B, *obs), `number` in all.

    Args:
        policy: plays its own task.
        number: how many.
        seed: of the games.
        every: control steps from one batch to the next.
        num_envs: games played side by side; with 1 there is never a second environment.
    """
    rows = min(num_envs, number)
    environments = Environments(policy.task, rows, seed)
    act = EpsilonGreedy(policy, policy.task, EPSILON, np.random.default_rng([seed, 1]))
    done = 0
    try:
        for count, step in enumerate(rollout(environments, act)):
            if count % every == 0:
                yield step.observations[: number - done]
                done += min(rows, number - done)
                if done == number:
                    return
    finally:
        environments.close()


def compare(
    policy: Teacher, exported: Teacher, states: Iterator[Observations], number: int, progress: Progress
) -> Compared:
    """Scores and chosen actions of both on the same states.

    Where the export has no deviations of the policy's own (a PPO of Stable-Baselines3), means alone are compared.

    Raises:
        UserError: the export gives NaN or infinity.
    """
    task = policy.task
    done, agreed, difference = 0, 0.0, 0.0
    low, high = np.inf, -np.inf
    last: Observations = np.zeros(task.observation_shape, dtype=task.observation_dtype)
    progress.start("compare", number, "states")
    for observations in states:
        given = torch.from_numpy(np.ascontiguousarray(observations))
        ours, theirs = policy(given), exported(given)
        same = agreement(chosen(ours, policy.score_kind, task), chosen(theirs, exported.score_kind, task), task)
        if not bool(torch.isfinite(theirs).all()):
            raise UserError("the exported policy gives NaN or infinity")
        if policy.score_kind != "squashed_gaussian" and task.continuous:
            ours, theirs = ours[:, : task.action_dimensions], theirs[:, : task.action_dimensions]
        difference = max(difference, float((ours - theirs).abs().max()))
        low, high = min(low, float(ours.min())), max(high, float(ours.max()))
        agreed += float(same.sum())
        done += len(observations)
        last = observations[-1]
        progress.update(done, agreement=agreed / done)
    return Compared(done, difference, high - low, agreed / done, last)


def refuse_beyond(bound: Bound, compared: Compared, format: str) -> None:
    """Raises UserError where the export differs by more than the bound of its format."""
    if compared.agreement < bound.agreement:
        raise UserError(
            f"the {format} export chooses the policy's action in {100 * compared.agreement:.2f} % of {compared.states:,} states, "
            f"at least {100 * bound.agreement:g} % are asked for: nothing was written"
        )
    if bound.difference is not None and compared.difference > bound.difference * compared.range:
        raise UserError(
            f"the {format} export's scores differ by up to {compared.difference:.2g} where they range over {compared.range:.2g}, "
            f"at most {bound.difference:g} of it is allowed: nothing was written"
        )


def place_checked(
    files: Sequence[Path],
    written: Mapping[str, bytes],
    tried: Callable[[Path], Export],
    *,
    force: bool,
    report: Path | None,
) -> Export:
    """Writes files aside, tries the first of them, and only then puts all of them in their place.

    Args:
        files: where they go.
        written: their contents, by name.
        tried: reads the first file back and checks it.
        force: replace files that exist.
        report: file for `Export.as_dict`.

    Raises:
        UserError: as `tried`, or a file cannot be written. Nothing is written then.
    """
    target = files[0]
    try:
        with folder_aside(target) as aside:
            for file in files:
                replace_file(aside / file.name, written[file.name])  # synced to disk: renaming it needs no more room
            done = tried(aside / target.name)
            for file in files:
                check_new_file(file, force=force)  # once more: another process may have written it meanwhile
            if report is not None:
                data = dumps(done.as_dict(), indent=2, allow_nan=False).encode() + b"\n"
                replace_file(report, data, new=not force)
            for file in files:
                if file.is_symlink():
                    replace_file(file, written[file.name])
                else:
                    put_in_place(aside / file.name, file, new=not force)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}; nothing was written") from None
    return done
