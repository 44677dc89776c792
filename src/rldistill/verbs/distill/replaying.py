"""A run of `train` as a learner: its snapshots are taken up in their order, while the run goes on or later."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rldistill.files import generator_state, load_generator_state
from rldistill.play.rollout import EpsilonGreedy, Resumable, rollout
from rldistill.runs.folder import RunFolder
from rldistill.students.networks import Network
from rldistill.types import UserError

if TYPE_CHECKING:
    from rldistill.policies import SavedPolicy

ROUND_TIMES = 8
"""Control steps of each row in a round."""
_SECONDS = 0.5
"""Between two looks for a snapshot."""


class Snapshots:
    """The snapshots of a run of `train`, and its final policy as the last one.

    Args:
        path: of the run, finished or under way.
        load: reads a policy folder.

    Raises:
        UserError: it is no run of `train` of one task, or it keeps no snapshots.
    """

    def __init__(self, path: Path, load: Callable[[Path], SavedPolicy]) -> None:
        self.run, self._load = RunFolder(path), load
        config = self.run.config()
        steps, shares = config.get("steps"), config.get("snapshots")
        if config.get("verb") != "train" or not isinstance(steps, int) or not isinstance(shares, list):
            raise UserError(f"{path} is no run of `rldistill train`: --learner takes one, or an environment id")
        if isinstance(config.get("task"), list):
            raise UserError(f"{path} trains several tasks: --learner follows a run of one")
        if not shares:
            raise UserError(
                f"{path} keeps no snapshots to follow: train it with --snapshots 0.25 0.5 0.75, or distil from its policy with "
                "--teacher"
            )
        self.steps = steps
        self.shares = [*sorted(float(share) for share in shares), 1.0]

    def place(self, control_steps: int) -> int:
        """Which snapshot teaches after so many control steps: that at the end of the stretch between two."""
        return min(bisect_right(self.shares, control_steps / self.steps), len(self.shares) - 1)

    def folder(self, place: int) -> Path:
        """Where a snapshot lies, or will lie."""
        share = self.shares[place]
        return self.run.policy_path if share == 1 else self.run.path / "snapshots" / f"{share:g}"

    def is_there(self, place: int) -> bool:
        """Whether a snapshot is complete.

        Raises:
            UserError: it is not, and the run does not go on.
        """
        card = self.folder(place) / "policy.json"
        if card.is_file():
            return True
        status = self.run.status
        if status == "running" or card.is_file():
            return card.is_file()
        name, path = self.in_words(place), self.run.path
        if status in ("finished", "scored"):
            raise UserError(
                f"{path} is finished and lacks {name}: train it again with its --snapshots, in another --out"
            )
        raise UserError(
            f"{path} stopped before {name}: go on with `rldistill train` and --resume, then here with --resume"
        )

    def in_words(self, place: int) -> str:
        """A snapshot by its share of the training."""
        share = self.shares[place]
        return "its final policy" if share == 1 else f"its snapshot at {share:.0%}"

    def load(self, place: int) -> SavedPolicy:
        """A snapshot that is there."""
        return self._load(self.folder(place))

    def first(self, say: Callable[[str], object]) -> SavedPolicy:
        """The first snapshot, as soon as it is there."""
        if not self.is_there(0):
            say(f"waiting for {self.run.path}: {self.in_words(0)} is not there yet")
        while not self.is_there(0):
            time.sleep(_SECONDS)
        return self.load(0)


class Replayed:
    """A learner that takes up one snapshot after the other, and plays by it.

    A round without a snapshot that is due waits a moment and changes nothing, so that the result does not depend on when the
    snapshots are made.

    Args:
        snapshots: of the run.
        environments: stepped here.
        steps: control steps that are played while the run makes all of its own.
        epsilon: probability of a random action.
        generator: of the random actions.
        say: takes a line when a snapshot is waited for.
    """

    must_save = False

    def __init__(
        self,
        snapshots: Snapshots,
        environments: Resumable,
        steps: int,
        epsilon: float,
        generator: np.random.Generator,
        say: Callable[[str], object],
    ) -> None:
        self.snapshots, self.environments, self.generator, self._say = snapshots, environments, generator, say
        self._scale = snapshots.steps / steps
        self._played = 0
        self._place = self._waits_for = -1
        first = snapshots.load(0)
        self.policy: Network = first.network
        self._act = EpsilonGreedy(first, environments.task, epsilon, generator)
        self._rollout = rollout(environments, self._act)
        self._take(0)

    def _take(self, place: int) -> None:
        policy = self.snapshots.load(place)
        self.policy = policy.network
        self._act.values = policy
        self._place, self._sha256 = place, policy.sha256
        updates = policy.provenance.get("updates")
        self.updates = updates if isinstance(updates, int) else place

    @property
    def control_steps(self) -> int:
        """Where the run stood at this point of it."""
        return min(round(self._played * self._scale), self.snapshots.steps)

    def learn(self) -> Iterator[dict[str, Any]]:
        """Plays one round by the snapshot of now for each item. Yields a record without a loss."""
        while True:
            place = self.snapshots.place(self.control_steps)
            if place != self._place and not self.snapshots.is_there(place):
                if place != self._waits_for:
                    self._waits_for = place
                    self._say(
                        f"waiting for {self.snapshots.run.path}: {self.snapshots.in_words(place)} is not there yet"
                    )
                time.sleep(_SECONDS)
            else:
                if place != self._place:
                    self._take(place)
                for _ in range(ROUND_TIMES):
                    next(self._rollout)
                    self._played += self.environments.num_envs
            yield {"loss": None}

    def state_dict(self) -> dict[str, Any]:
        """Environments, generator and place."""
        return {
            "environments": self.environments.state_dict(),
            "generator": generator_state(self.generator),
            "played": self._played,
            "place": self._place,
            "sha256": self._sha256,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned.

        Raises:
            UserError: the snapshot is gone, or another one lies in its place.
        """
        self._take(int(state["place"]))
        if self._sha256 != state["sha256"]:
            folder = self.snapshots.folder(self._place)
            raise UserError(f"{folder} was replaced since this run was begun: begin anew with another --out")
        self.environments.load_state_dict(state["environments"])
        load_generator_state(self.generator, state["generator"])
        self._played = int(state["played"])
