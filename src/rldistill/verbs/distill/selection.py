"""The choice among several teachers of one task: its settings, and the guide that is made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, cast

import numpy as np

from rldistill.configurations import changed, given
from rldistill.lessons.contexts import Contexts, Joined, Pixels, StudentFeatures, Watched
from rldistill.lessons.payments import Blocks, Following, Held, OwnReturns, PaymentName, Payments, ReturnsThatFollow
from rldistill.lessons.selecting import contextual, make_chooser
from rldistill.lessons.selection import Chooser, Doubles
from rldistill.lessons.several import Selection, SeveralGuides, WhenChosen
from rldistill.lessons.teaching import Panel, Teaching
from rldistill.lessons.trust import TrustMap
from rldistill.play.actions import describe
from rldistill.play.envs import Environments
from rldistill.play.envs.watched import Watch
from rldistill.play.regions import parse_region
from rldistill.students.losses import parse_loss
from rldistill.students.networks import Network
from rldistill.types import Floats, Task, UserError, as_flag
from rldistill.verbs.distill.config import DistillConfig, Selecting

_BY_GAME = ("mamba", "maps")
"""Choosers of values of a teacher's rollouts, which hold a teacher to the end of a game."""


class Rule(NamedTuple):
    """When a teacher is chosen, and what the choice is paid."""

    when: WhenChosen
    payment: PaymentName


def rule_of(config: DistillConfig) -> Rule:
    """The settings with their defaults.

    Raises:
        UserError: settings that do not go together.
    """
    settings, driver = config.selecting, config.driving.driver
    by_state = contextual(cast(str, settings.select))
    payment = settings.payment
    if payment == "auto":
        payment = "student" if driver == "student" and not by_state else "teacher"
    if payment == "teacher" and driver == "student":
        raise UserError(
            "--driver student leaves no row to a teacher, which --payment teacher and choosers that go state by state need: take "
            "--driver mixture or teacher"
        )
    if payment in ("student", "progress") and driver == "teacher":
        raise UserError(
            f"--driver teacher leaves no games to the student, which --payment {payment} needs: take mixture"
        )
    _check_rows(config, payment)
    if by_state and payment != "teacher":
        raise UserError(f"--select {settings.select} learns state by state, which --payment teacher alone pays")
    when = _when(config, by_state, payment)
    if when.together and by_state:
        raise UserError(
            f"--select {settings.select} chooses state by state: take --select-every control-step or episode"
        )
    if payment != "teacher" and not when.together:
        raise UserError(f"--payment {payment} is the same for all rows: take --select-every block")
    return Rule(when, payment)


def _check_rows(config: DistillConfig, payment: PaymentName) -> None:
    """Refuses a mixture that leaves nobody in the end whom the payment needs."""
    number, share = config.driving.num_envs, config.driving.teacher_share
    driven = round(share * number)  # as the stream rounds it
    if config.driving.driver == "mixture" and payment == "teacher" and not driven:
        raise UserError(
            f"--teacher-share {share:g} of {number} environments leaves no row to a teacher in the end, and --payment teacher "
            "needs one: take a larger share, or more --num-envs"
        )
    if config.driving.driver == "mixture" and payment in ("student", "progress") and driven == number:
        raise UserError(
            f"--teacher-share {share:g} of {number} environments leaves no row to the student, and --payment {payment} needs one: "
            "take a smaller share, or more --num-envs"
        )


def _when(config: DistillConfig, by_state: bool, payment: PaymentName) -> WhenChosen:
    text = config.selecting.select_every
    if text == "auto":
        name = cast(str, config.selecting.select).partition(":")[0]
        suiting = "control-step" if by_state and name not in _BY_GAME else "episode"
        text = suiting if payment == "teacher" else "block"
    kind, colon, number = text.partition(":")
    if kind == "block" and (not colon or _is_count(number)):
        return WhenChosen(int(number) if colon else max(config.steps // 20, 1), together=True)
    named = {"control-step": 1, "episode": 0}
    if text not in named and not _is_count(text):
        raise UserError(
            f"--select-every is control-step, a number of control steps, episode, block or block:2000, not {text!r}"
        )
    return WhenChosen(named[text] if text in named else int(text))


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and 0 < int(text) < 2**31


_BY_STATE = ("context", "payment_steps", "payment_discount")
"""Settings of choosers that go state by state."""


def check_selecting(config: DistillConfig) -> DistillConfig:
    """The configuration, without composites where their contexts would not be known.

    Raises:
        UserError: settings of the choice among teachers that do not go together, or that nothing uses.
    """
    settings, names = config.selecting, given(config.selecting)
    by_state = [name for name in _BY_STATE if name in names]
    if settings.select is None:
        others = [name for name in names if name not in by_state]
        _refuse([*others, *by_state], "is for the choice among several teachers of one task: add --select")
        return config
    if config.dataset is not None:
        raise UserError("--select chooses among teachers while they are played, and --dataset is played already")
    make_chooser(settings.select, 2, np.random.default_rng(0), 1)
    if not contextual(settings.select):
        _refuse(by_state, f"is for choosers that go state by state, and --select {settings.select} does not")
    rule_of(config)
    if config.matching.targets != "raw":
        raise UserError(
            f"--targets {config.matching.targets} is for one teacher; with --select labels are probabilities"
        )
    if not settings.named:
        return config
    if config.batches.augment:
        raise UserError(
            f"--augment {config.batches.augment} makes states that nobody visited, and --context {' '.join(settings.context)} is "
            "known of visited states alone: take --augment 0"
        )
    return changed(config, augment=0.0)


def _refuse(in_vain: Sequence[str], why: str) -> None:
    """Raises UserError where a setting is given that nothing uses."""
    for name in in_vain:
        raise UserError(f"{as_flag(name)} {why}")


def seated(teachings: Sequence[Teaching], config: DistillConfig) -> list[Teaching]:
    """The lessons with the teachers of each task together.

    Raises:
        UserError: teachers of one task that do not go together, or no task that has several.
    """
    if config.selecting.select is None:
        return list(teachings)
    by_task: dict[str, list[Teaching]] = {}
    for teaching in teachings:
        by_task.setdefault(teaching.lesson.name, []).append(teaching)
    if all(len(group) == 1 for group in by_task.values()):
        raise UserError(
            "--select chooses among several teachers of one task, and each task has one here: name more, or leave it out"
        )
    return [group[0] if len(group) == 1 else _together(group, config) for group in by_task.values()]


def _together(group: Sequence[Teaching], config: DistillConfig) -> Teaching:
    first = group[0]
    for other in group[1:]:
        if replace(other.task, random_score=None) != replace(first.task, random_score=None):
            raise UserError(
                f"{first.source} and {other.source} both play {first.task.env}, with other options or other actions "
                f"({describe(first.task)}, {describe(other.task)}): teachers that are chosen among play the same task"
            )
    panel = Panel(
        tuple(teaching.teacher for teaching in group), tuple(teaching.source for teaching in group), first.task
    )
    name = str(config.selecting.select).partition(":")[0]
    if first.task.continuous:
        kinds = sorted({teaching.teacher.score_kind for teaching in group})
        if len(kinds) > 1:
            raise UserError(f"teachers that are chosen among have the same kind of scores, not {' and '.join(kinds)}")
    if name in ("mean", "agreement") and (first.task.continuous or first.task.action_sizes):
        raise UserError(
            f"--select {name} mixes probabilities of one discrete action, and {first.task.env} has {describe(first.task)}"
        )
    watched_names(config.selecting, first.task)
    loss = parse_loss(config.matching.loss, panel.score_kind, first.task.action_sizes)
    if any(part == "mse" for part, _ in loss.parts):
        raise UserError(
            "--loss mse matches values, and teachers that are chosen among have probabilities in common: take kl or mse_prob"
        )
    return first._replace(panel=panel, source=", ".join(panel.sources), loss=loss)


class PanelSelector:
    """Makes the guides of panels by the settings of a run.

    Args:
        config: of the run.
    """

    def __init__(self, config: DistillConfig) -> None:
        self.config = config

    def watched(self, task: Task) -> tuple[str, ...]:
        """What the environments must give beside their observations."""
        return watched_names(self.config.selecting, task)

    def guide(
        self, panel: Panel, network: Network, environments: Environments, generator: np.random.Generator
    ) -> SeveralGuides:
        """The guide of a panel.

        Args:
            panel: the teachers.
            network: the student.
            environments: in which they drive; they give what contexts need.
            generator: of the choices.
        """
        settings, rule = self.config.selecting, rule_of(self.config)
        select = cast(str, settings.select)
        contexts = _contexts(settings, network, environments) if contextual(select) else None
        chooser = make_chooser(select, len(panel.teachers), generator, None if contexts is None else contexts.size)
        held = Held.of(environments.num_envs)
        payments = _payments(chooser, held, contexts, rule, settings)
        trusted = None if contexts is None else TrustMap(_map_names(contexts, environments.task), len(panel.teachers))
        selection = Selection(chooser, held, payments, contexts, rule.when, trusted)
        seated_panel = replace(panel, task=environments.task)
        return SeveralGuides(seated_panel, selection, self.config.matching.temperature, generator)


def _payments(chooser: Chooser, held: Held, contexts: Contexts | None, rule: Rule, settings: Selecting) -> Payments:
    hold = rule.when.steps
    if contexts is not None:
        following = Following(settings.payment_steps, settings.payment_discount, hold, every=1 if hold == 1 else 4)
        return ReturnsThatFollow(chooser, held, contexts.size, following)
    if rule.when.together:
        return Blocks(chooser, held, hold, rule.payment)
    return OwnReturns(chooser, held, hold)


def _contexts(settings: Selecting, network: Network, environments: Environments) -> Contexts:
    names = settings.context or ("features",)
    parts: list[Contexts] = []
    if "features" in names:
        parts.append(StudentFeatures(network))
    if "pixels" in names:
        parts.append(Pixels(environments.task))
    watched = watched_names(settings, environments.task)
    if watched:
        columns = {name: _column(name, watched, environments.task) for name in settings.named}
        parts.append(Watched(lambda: environments.watched, columns))
    return parts[0] if len(parts) == 1 else Joined(parts)


def _map_names(contexts: Contexts, task: Task) -> tuple[str, ...]:
    """What a map of trust is drawn along: the named contexts, or a small picture's pixels, or the first features of vectors."""
    last = contexts.parts[-1] if isinstance(contexts, Joined) else contexts
    if isinstance(last, Watched):
        return last.names
    pixels = Pixels(task)
    if pixels.cells is not None:
        return tuple(f"pixel{place}" for place in range(pixels.size))
    return tuple(f"x{place}" for place in range(min(pixels.size, _MOST_FEATURES)))


_MOST_FEATURES = 8
"""Of a vector, in a map of trust."""


def watched_names(settings: Selecting, task: Task) -> tuple[str, ...]:
    """What the environments must give beside their observations for these contexts.

    Raises:
        UserError: they do not give it, or a region is none.
    """
    names: dict[str, None] = {}
    for name in settings.named:
        own = parse_region(name, task).names if _is_region(name) else (name,)
        Watch(task, own)
        names |= dict.fromkeys(own)
    return tuple(names)


def _is_region(name: str) -> bool:
    return bool(set(name) & set("<>=!"))


def _column(name: str, watched: Sequence[str], task: Task) -> Callable[[Floats], Doubles]:
    """A column of the context: 1 inside a region and 0 outside, or a number, -1 where it is absent."""
    if not _is_region(name):
        place = watched.index(name)
        return lambda numbers: np.nan_to_num(numbers[:, place].astype(np.float64), nan=-1.0)
    region = parse_region(name, task)
    places = [watched.index(own) for own in region.names]
    return lambda numbers: region(numbers[:, places]).astype(np.float64)
