"""Several teachers of one task, among whom a chooser chooses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from rldistill.files import generator_state, load_generator_state
from rldistill.lessons.chances import drawn
from rldistill.lessons.contexts import Contexts, Pixels
from rldistill.lessons.guides import Rows, Stored
from rldistill.lessons.labels import labels_of
from rldistill.lessons.payments import Held, Outcome, Payments, restored
from rldistill.lessons.selection import Chooser, Doubles, Trusting
from rldistill.lessons.teaching import Panel
from rldistill.lessons.trust import TrustMap
from rldistill.play.actions import allowed, chosen, score_width, without_masked_infinity
from rldistill.play.replay import Columns, Replay
from rldistill.students.targets import fitted_temperature
from rldistill.types import Actions, Batch, Bools, Masks, Observations, as_tensor, labelled


@dataclass(frozen=True)
class WhenChosen:
    """How long a row holds its choice."""

    steps: int = 0
    """Control steps; 0 is a whole game. A choice never outlasts its game."""
    together: bool = False
    """Whether all rows hold the same choice, until its payment."""


class Selection(NamedTuple):
    """A chooser with all that it works with."""

    chooser: Chooser
    held: Held
    """The choices, which the payments read."""
    payments: Payments
    contexts: Contexts | None
    """None where the chooser needs none."""
    when: WhenChosen
    map: TrustMap | None = None
    """Of choosers that go state by state: where the teachers are trusted."""


_NOTED = 32
"""Samples of a draw that the map of trust takes: a picture of each costs time, and they were drawn independently."""


class SeveralGuides:
    """Teachers of one task: a chosen one drives each of the teacher's rows, and the chosen ones label.

    Choosers that trust teachers by state say for each state whose labels count. With the others a sample takes the label of the
    teacher that one of the driven rows, drawn at random, has now. A teacher labels a state at most once, when it is first asked.

    Args:
        panel: the teachers.
        selection: the chooser, with payments and contexts.
        temperature: as the user gave it: a number, `auto` or `auto:SHARE`, for each teacher by itself.
        generator: of the draws.
    """

    def __init__(self, panel: Panel, selection: Selection, temperature: str, generator: np.random.Generator) -> None:
        self.panel, self.selection, self.temperature, self.generator = panel, selection, temperature, generator
        self.task, self.score_kind = panel.task, panel.score_kind
        self.temperatures = np.ones(len(panel.teachers), dtype=np.float32)
        self.asked = np.zeros(len(panel.teachers))
        """(M,): the samples for updates that each teacher has labelled, parts where several share one."""
        self._active = 1
        self._places = Pixels(panel.task)
        width = score_width(panel.task, panel.teachers[0].score_kind)
        contexts = selection.contexts
        kept: Columns = {"contexts": ((contexts.kept,), np.float64)} if contexts is not None and contexts.kept else {}
        self.columns: Columns = {
            "values": ((len(panel.teachers), width), np.float32),
            "labelled": ((len(panel.teachers),), np.bool_),
            **kept,
        }

    @property
    def picture(self) -> tuple[int, int, int] | None:
        """Channels, height and width where the map of trust is of pictures; None where it is of named numbers."""
        trusted, places = self.selection.map, self._places
        if trusted is None or places.cells is None or "contexts" in self.columns:
            return None
        return (places.size // (places.cells[0] * places.cells[1]), *places.cells)

    def drive(
        self, observations: Observations, masks: Masks | None, starts: Bools, driven: int
    ) -> tuple[Actions, Stored]:
        """The choices of the teachers that drive, and their labels of the driven rows."""
        contexts = None if self.selection.contexts is None else self.selection.contexts.of(observations)
        self._choose(starts, driven, contexts)
        self.selection.payments.acted(contexts)
        rows, (item, _) = len(starts), self.columns["values"]
        values, own = np.zeros((rows, *item), dtype=np.float32), np.zeros((rows, item[0]), dtype=np.bool_)
        arms = self.selection.held.arms[:driven]
        for arm in np.unique(arms).tolist():
            at = np.flatnonzero(arms == arm)
            labels = labels_of(
                self.panel.teachers[arm], observations[at], self.task, None if masks is None else masks[at]
            )
            values[at, arm], own[at, arm] = labels.numpy(), True
        stored: dict[str, Any] = {"values": values, "labelled": own}
        if contexts is not None and "contexts" in self.columns:
            stored["contexts"] = contexts[:, -self.columns["contexts"][0][0] :]
        # Rows of the student have no values, and their actions do not count.
        picked = torch.from_numpy(values[np.arange(rows), self.selection.held.arms])
        kind = self.panel.teachers[0].score_kind
        return cast(Actions, chosen(picked, kind, self.task, masks).numpy()), stored

    def _choose(self, starts: Bools, driven: int, contexts: Doubles | None) -> None:
        chooser, held, payments, _, when, _ = self.selection
        self._active = max(driven, 1)
        if when.together:
            if payments.over.any() or held.ages[0] < 0:
                one = chooser.choose(1)
                held.arms[:], held.probabilities[:], held.ages[:] = one.arms[0], one.probabilities[0], 0
            return
        due = np.flatnonzero((starts | payments.over | (held.ages < 0))[:driven])
        if len(due):
            own = None if contexts is None else contexts[due]
            held.arms[due], held.probabilities[due] = chooser.choose(len(due), own)
            held.ages[due] = 0

    def followed(self, step: Outcome, driven: int) -> None:
        """Hands the outcome to the payments."""
        self.selection.payments.followed(step, driven)
        self.selection.held.ages[: self._active] += 1

    def fit(self, replay: Replay, times: Rows, rows: Rows) -> None:
        """Fits a temperature to each teacher."""
        masks = replay.column("masks", times, rows) if "masks" in replay else None
        every = np.ones((len(times), len(self.panel.teachers)), dtype=np.bool_)
        values = self._values(replay, times, rows, every, replay.observations(times, rows), masks)
        allowing = None if masks is None else torch.from_numpy(masks)
        if not self.task.continuous:
            self.temperatures = np.array(
                [
                    fitted_temperature(self.temperature, values[:, arm], teacher.score_kind, allowing)
                    for arm, teacher in enumerate(self.panel.teachers)
                ],
                dtype=np.float32,
            )

    def _values(
        self, replay: Replay, times: Rows, rows: Rows, needed: Bools, observations: Observations, masks: Masks | None
    ) -> Tensor:
        """(B, M, K): the teachers' values where they are needed (B, M), made and kept where they are missing."""
        missing = needed & ~replay.column("labelled", times, rows)
        for arm in np.flatnonzero(missing.any(axis=0)).tolist():
            at = np.flatnonzero(missing[:, arm])
            at = at[np.unique(times[at] * replay.num_envs + rows[at], return_index=True)[1]]  # one may be drawn twice
            labels = labels_of(
                self.panel.teachers[arm], observations[at], self.task, None if masks is None else masks[at]
            )
            replay.add_label(times[at], rows[at], arm, labels.numpy())
        return torch.from_numpy(replay.column("values", times, rows))

    def labelled(self, replay: Replay, times: Rows, rows: Rows) -> Batch:
        """The states with the labels of the teachers that are chosen now."""
        observations = replay.observations(times, rows)
        masks = replay.column("masks", times, rows) if "masks" in replay else None
        kept = replay.column("contexts", times, rows) if "contexts" in self.columns else None
        contexts = None if self.selection.contexts is None else self.selection.contexts.of(observations, kept)

        def values(needed: Bools) -> Tensor:
            return self._values(replay, times, rows, needed, observations, masks)

        labels, weights = self._mixed(values, len(times), contexts, masks)
        self._note(observations[:_NOTED], kept if kept is None else kept[:_NOTED], weights[:_NOTED])
        return labelled(as_tensor(observations), labels, None if masks is None else torch.from_numpy(masks))

    def label(self, observations: Tensor, masks: Tensor | None) -> Tensor:
        """Labels of states that nobody visited. A chooser whose contexts only visited states have must not be asked."""
        states = cast(Observations, observations.numpy())
        ruled = None if masks is None else masks.numpy()
        contexts = None if self.selection.contexts is None else self.selection.contexts.of(states)

        def values(needed: Bools) -> Tensor:
            out = torch.zeros(len(states), *self.columns["values"][0])
            for arm in np.flatnonzero(needed.any(axis=0)).tolist():
                at = np.flatnonzero(needed[:, arm])
                own = None if ruled is None else ruled[at]
                out[torch.from_numpy(at), arm] = labels_of(self.panel.teachers[arm], states[at], self.task, own)
            return out

        return self._mixed(values, len(states), contexts, ruled)[0]

    def _note(self, observations: Observations, kept: Doubles | None, weights: Doubles) -> None:
        """Keeps where the teachers are trusted: by the kept contexts, which have names, or by a small picture or the features."""
        if self.selection.map is None:
            return
        named = len(self.selection.map.names)
        self.selection.map.add(self._places.of(observations)[:, :named] if kept is None else kept, weights)

    def _mixed(
        self, values_of: Callable[[Bools], Tensor], number: int, contexts: Doubles | None, masks: Masks | None
    ) -> tuple[Tensor, Doubles]:
        """Labels (B, K) made of the values (B, M, K) of the teachers that count, and their weights (B, M)."""
        chooser, arms = self.selection.chooser, len(self.panel.teachers)
        if not isinstance(chooser, Trusting):
            rows = self.generator.integers(self._active, size=number)
            weights = np.eye(arms)[self.selection.held.arms[rows]]
            values = values_of(weights > 0)
        elif chooser.needs_policies:
            values = values_of(np.ones((number, arms), dtype=np.bool_))
            weights = chooser.trust(number, contexts, self._log_policies(values, masks).exp().double().numpy())
        else:
            weights = chooser.trust(number, contexts, None)
            values = values_of(weights > 0)
        if self.task.continuous or self.task.action_sizes:  # such labels do not mix
            weights = np.eye(arms)[drawn(weights, self.generator)[0]]
        self.asked += weights.sum(axis=0)
        best = weights.argmax(axis=1)
        if bool((weights[np.arange(number), best] == 1).all()):
            picked = values[torch.arange(number), torch.from_numpy(best)]
            scaled = picked if self.task.continuous else picked / torch.from_numpy(self.temperatures[best])[:, None]
            return scaled, weights
        log_weights = torch.from_numpy(weights).log().float()[..., None]
        mixed = (self._log_policies(values, masks) + log_weights).logsumexp(1)
        return without_masked_infinity(mixed, masks), weights

    def _log_policies(self, values: Tensor, masks: Masks | None) -> Tensor:
        """(B, M, A): logarithms of the teachers' probabilities at their temperatures; minus infinity where an action is masked."""
        scaled = values / torch.from_numpy(self.temperatures)[:, None]
        return allowed(scaled, None if masks is None else masks[:, None]).log_softmax(dim=2)

    def learnt(self, loss: float) -> None:
        """Hands the loss to the payments."""
        self.selection.payments.learnt(loss)

    def state_dict(self) -> dict[str, Any]:
        """Chooser, choices, payments, temperatures and generator."""
        chooser, held, payments, _, _, trusted = self.selection
        return {
            "map": None if trusted is None else trusted.state_dict(),
            "chooser": chooser.state_dict(),
            "payments": payments.state_dict(),
            "held": {name: getattr(held, name).copy() for name in _HELD},
            "temperatures": self.temperatures.copy(),
            "asked": self.asked.copy(),
            "active": self._active,
            "generator": generator_state(self.generator),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        chooser, held, payments, _, _, trusted = self.selection
        if trusted is not None:
            trusted.load_state_dict(state["map"])
        chooser.load_state_dict(state["chooser"])
        payments.load_state_dict(state["payments"])
        for name in _HELD:
            getattr(held, name)[...] = np.asarray(state["held"][name])
        self.temperatures, self.asked = (
            restored(state["temperatures"]),
            restored(state["asked"]),
        )
        self._active = int(state["active"])
        load_generator_state(self.generator, state["generator"])


_HELD = ("arms", "probabilities", "ages")
