"""A student beside a learner: what the learner is, the stream of both, and the games that choose its versions."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rldistill.configurations import changed, given
from rldistill.lessons.following import FollowingStream, Versions, frozen
from rldistill.lessons.teaching import Teaching
from rldistill.machine import torch_device
from rldistill.play.actions import describe
from rldistill.play.envs import make_task
from rldistill.policies import load_policy, save_policy
from rldistill.runs.curves import Curves, steadiness_of
from rldistill.runs.loop import Stop
from rldistill.runs.provenance import command_line, made_by
from rldistill.runs.records import Evaluation, LearnerEvaluation, Record
from rldistill.students.networks import Network
from rldistill.types import Task, UserError, as_flag
from rldistill.verbs.distill.config import DistillConfig, Following, Playing
from rldistill.verbs.distill.replaying import Snapshots
from rldistill.verbs.distill.teaching import teaching_of
from rldistill.verbs.train.config import TrainConfig
from rldistill.verbs.train.learners import Plan, make_network, make_plans

if TYPE_CHECKING:
    from rldistill.verbs.distill.work import Distillation, GamesOfRun


class Online(NamedTuple):
    """A learner that is to be followed."""

    source: Plan | Snapshots
    """What it learns, or the run whose snapshots it takes up."""
    network: Network
    """Trained in place."""
    teaching: Teaching
    """The lesson, whose teacher is the learner's present version."""


def is_run(config: DistillConfig) -> bool:
    """Whether the learner is a run of `train`, in its folder."""
    learner = config.following.learner
    return learner is not None and Path(learner).is_dir()


def make_online(config: DistillConfig, say: Callable[[str], object]) -> tuple[Online, DistillConfig]:
    """The learner of a configuration, before it learns, and the configuration with the length of its run.

    Args:
        config: of the student.
        say: takes a line when the first snapshot of a run is waited for.

    Raises:
        UserError: an unknown environment, one without a discrete action, settings that the learner does not have, or a folder that
            is no run with snapshots.
    """
    following = config.following
    assert following.learner is not None
    source: Plan | Snapshots
    if is_run(config):
        _check_for_run(following, config.playing)
        source = Snapshots(Path(following.learner), load_policy)
        first = source.first(say)
        _check_actions(first.task, following.learner)
        network, task, name = first.network, first.task, following.learner
        config = changed(config, learner_steps=source.steps)
    else:
        _check_actions(make_task(following.learner, env_kwargs=config.playing.env_kwargs), following.learner)
        source = _plan(config)
        made = make_network([source])
        assert isinstance(made, Network)
        network, task, name = made, source.task, f"a learner ({following.algo}) in {source.task.env}"
    versions = Versions(network, task, config.matching.temperature)
    teaching = teaching_of(versions, name, task, config)._replace(scaled=True)
    return Online(source, network.to(torch_device("auto")), teaching), config


def _check_actions(task: Task, learner: str) -> None:
    """Refuses a learner with other than one discrete action."""
    if task.continuous or task.action_sizes:
        raise UserError(
            f"{learner} has {describe(task)}; a student follows a learner with one discrete action: take a trained policy as "
            "--teacher"
        )


def _check_for_run(following: Following, playing: Playing) -> None:
    """Refuses what is about a learner that trains here."""
    for name in given(following) + given(playing):
        if name not in ("learner", "keep_snapshots"):
            raise UserError(
                f"{as_flag(name)} is for a learner that trains here, not for {following.learner}, which has its own: leave it out"
            )


def _plan(config: DistillConfig) -> Plan:
    """What a learner that trains here learns."""
    following = config.following
    train = TrainConfig.of(
        steps=following.learner_steps,
        algo=following.algo,
        seed=config.seed,
        network=following.learner_network,
        learning_rate=following.learner_learning_rate,
        num_envs=following.learner_num_envs,
        averaging=following.learner_averaging,
        max_episode_steps=config.playing.max_episode_steps,
        env_kwargs=config.playing.env_kwargs,
    )
    (plan,) = make_plans(str(following.learner), train)
    return plan


class LearnerEvaluations:
    """A hook that plays games of learner and student every so many of the learner's control steps.

    Games that choose the next version are others than those that are recorded, and others at each evaluation.

    Args:
        work: whose learner and student play.
        stream: of the learner.
        games: plays with a number of other games.
        log: takes the records.
        folder: where each version is kept; None keeps none.
    """

    def __init__(
        self,
        work: Distillation,
        stream: FollowingStream,
        games: Callable[[int], GamesOfRun],
        log: Callable[[Record], None],
        folder: Path | None,
    ) -> None:
        self.work, self.stream, self.games, self.log, self.folder = work, stream, games, log, folder
        settings = work.config
        every = settings.evaluating.evaluate_every
        self.every = max(work.total // 40, 1) if every is None else every
        self.next = self.every
        self.number, self.best, self.last = 0, float("nan"), 0
        self._updates = -1
        """Of the weights that were compared last; the same ones are not compared again."""
        self._chooses = settings.following.teacher_snapshot == "best"

    def measure_levels(self) -> list[Record]:
        """The record of the learner before it learns, with the score of random play."""
        task, settings = self.task, self.work.config.evaluating
        with self.work.released():
            random = task.random_score
            if random is None:
                random = float(self.games(0).play(task, None, "score of random play")["mean"])
            network = frozen(self.stream.candidate())
            choosing = self._choosing(network, lambda: None)
            scores = self.games(0).play(task, network, "score of the learner before learning")
        assert settings.evaluate_episodes
        if choosing is not None:
            self.best = choosing
        self.number, self._updates = 1, self.stream.learner.updates
        version = self.stream.guide.versions.owner
        return [LearnerEvaluation(**self.work.position(), version=version, choosing=choosing, random=random, **scores)]

    @property
    def task(self) -> Task:
        """What is played."""
        return self.work.lessons[0].task

    def _choosing(self, network: Network, stop_if_asked: Stop) -> float | None:
        """Mean return of the games that choose; None where none do, or where the weights are those of the time before."""
        if not self._chooses or self.stream.learner.updates == self._updates:
            return None
        games = self.games(2 + self.number)
        return float(games.play(self.task, network, "games that choose the version", stop_if_asked)["mean"])

    def __call__(self, stop_if_asked: Stop) -> bool:
        """Plays if games are due, and at the end of the run. The student's last games are played when its policy is safe."""
        done, total = self.work.done, self.work.total
        if done < self.next and (done < total or self.last == total):
            return False
        began = time.monotonic()
        student: dict[str, Any] | None = None
        with self.work.released():
            network = frozen(self.stream.candidate())
            choosing = self._choosing(network, stop_if_asked)
            learner = self.games(0).play(self.task, network, "score of the learner", stop_if_asked)
            if self.work.fitted and done < total:
                average = self.work.average_of(self.work.lessons[0])
                student = self.games(0).play(self.task, average, "score of the student", stop_if_asked)
        if choosing > self.best if choosing is not None else not self._chooses:
            self._take(network, learner, choosing)
        self._updates = self.stream.learner.updates
        self.work.seconds["evaluation"] += time.monotonic() - began
        version = self.stream.guide.versions.owner
        self.log(LearnerEvaluation(**self.work.position(), version=version, choosing=choosing, **learner))
        if student is not None:
            self.log(Evaluation(**self.work.position(), **student))
            self.work.score = float(student["mean"])
        self.number, self.last, self.next = self.number + 1, done, (done // self.every + 1) * self.every
        return True

    def _take(self, network: Network, scores: Mapping[str, Any], choosing: float | None) -> None:
        """Makes the learner's weights the next version, which is kept first: a full disk then costs nothing."""
        if self.folder is not None:
            number = self.stream.guide.versions.owner + 1
            save_policy(self.folder / str(number), network, self.task, self._made(scores, number))
        if choosing is not None:
            self.best = choosing
        self.stream.take()

    def _made(self, scores: Mapping[str, Any], number: int) -> dict[str, Any]:
        following = self.work.config.following
        return {
            "made_by": made_by(),
            "command": command_line(),
            "algorithm": following.algo,
            "version": number,
            "teacher_snapshot": following.teacher_snapshot,
            "control_steps": self.stream.learner.control_steps,
            "updates": self.stream.learner.updates,
            "score": dict(scores),
        }

    def state_dict(self) -> dict[str, Any]:
        """When the next games are due, their number, and the best score so far."""
        return {
            "next_evaluation": self.next,
            "number": self.number,
            "best": self.best,
            "last": self.last,
            "updates": self._updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave."""
        self.next, self.number = int(state["next_evaluation"]), int(state["number"])
        self.best, self.last = float(state["best"]), int(state["last"])
        self._updates = int(state["updates"])


def check_learnt(curves: Curves | None, policy: Path) -> None:
    """Raises UserError where a learner was followed that never played better than chance: its student learnt nothing of use."""
    if curves is not None and not curves.has_scale:
        raise UserError(
            f"the learner never scored above random play ({curves.random:g}; its best evaluation is {curves.top:g}), so its "
            f"student in {policy} is of no use: take more --learner-steps or another --algo, with another --out"
        )


def steadiness_card(curves: Curves) -> dict[str, Any]:
    """The steadiness of learner and student, for the policy's card; NaN becomes None."""
    return {
        who: {name: value if value == value else None for name, value in figures._asdict().items()}
        for who, figures in steadiness_of(curves).items()
    }


def steadiness_in_words(curves: Curves) -> str:
    """A line for the user."""
    figures = steadiness_of(curves)
    own = zip(figures["student"]._asdict().items(), figures["learner"], strict=True)
    pairs = ", ".join(f"{name.replace('_', ' ')} {student:.3f} and {learner:.3f}" for (name, student), learner in own)
    return (
        f"student beside learner in the last half of {len(curves.student)} evaluations, on the scale from random play to the "
        f"learner's best: {pairs}"
    )
