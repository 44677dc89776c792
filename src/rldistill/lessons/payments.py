"""Payments: what a chooser learns of its choices, and when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from rldistill.lessons.selection import Choice, Chooser, Doubles, Ints
from rldistill.types import Bools, Floats

PaymentName: TypeAlias = Literal["auto", "teacher", "student", "progress", "loss"]


class Outcome(Protocol):
    """What came of a control step of N rows, (N,) each; a `Transition` is one."""

    @property
    def rewards(self) -> Floats: ...

    @property
    def terminated(self) -> Bools: ...

    @property
    def truncated(self) -> Bools: ...

    @property
    def returns(self) -> Floats:
        """Raw episode return in rows that ended one, NaN elsewhere."""


@dataclass(frozen=True)
class Held:
    """The choice that each of N rows holds now. The arrays are changed in place."""

    arms: Ints
    """(N,)."""
    probabilities: Doubles
    """(N,)."""
    ages: Ints
    """(N,): control steps since the choices; -1 before the first."""

    @staticmethod
    def of(rows: int) -> Held:
        """Nothing chosen yet."""
        return Held(np.zeros(rows, dtype=np.int64), np.ones(rows), np.full(rows, -1))

    def choice(self, rows: npt.NDArray[Any]) -> Choice:
        """The choices of some rows."""
        return Choice(self.arms[rows], self.probabilities[rows])


def restored(saved: Any) -> npt.NDArray[Any]:
    """An array of its own from one that was saved, which may come back as a tensor."""
    return np.asarray(saved).copy()


class Payments(Protocol):
    """Pays a chooser for its choices."""

    @property
    def over(self) -> Bools:
        """(N,): the rows whose choice has been paid, so that a new one is due. Rows that begin a game are not marked."""

    def acted(self, contexts: Doubles | None) -> None:
        """Takes the contexts (N, C) of the states in which the rows act now, after the choices are made."""

    def followed(self, step: Outcome, driven: int) -> None:
        """Takes what came of the actions, of which the first `driven` rows had a teacher's."""

    def learnt(self, loss: float) -> None:
        """Takes the mean loss of an update."""

    def state_dict(self) -> dict[str, Any]:
        """What the next payments depend on."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""


class OwnReturns:
    """Pays with the chosen teacher's own return while it drives a row: of a whole game, or of some control steps.

    A choice for a game is paid the game's raw return, one for n control steps the mean reward of these steps; where the game ends
    before, the rest counts 0. Only choices that a teacher drove from their first step to their last are paid.

    Args:
        chooser: is paid.
        held: the choices.
        steps: n; 0 pays by games.
    """

    def __init__(self, chooser: Chooser, held: Held, steps: int) -> None:
        rows = len(held.arms)
        self.chooser, self.held, self.steps = chooser, held, steps
        self.over: Bools = np.zeros(rows, dtype=np.bool_)
        self._sums, self._driven = np.zeros(rows), np.ones(rows, dtype=np.bool_)

    def acted(self, contexts: Doubles | None) -> None:
        """Sums begin anew with each choice."""
        fresh = self.held.ages == 0
        self._sums[fresh], self._driven[fresh] = 0, True

    def followed(self, step: Outcome, driven: int) -> None:
        """Pays the choices that have come to their end."""
        self._sums += step.rewards
        self._driven[driven:] = False
        ended = step.terminated | step.truncated
        self.over = (self.held.ages + 1 >= self.steps) & ~ended if self.steps else np.zeros_like(ended)
        due = np.flatnonzero((self.over | ended) & self._driven)
        if len(due):
            self.chooser.pay(self.held.choice(due), self._sums[due] / max(self.steps, 1))

    def learnt(self, loss: float) -> None:
        """Nothing depends on it."""

    def state_dict(self) -> dict[str, Any]:
        """The sums so far."""
        return {"over": self.over.copy(), "sums": self._sums.copy(), "driven": self._driven.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.over = restored(state["over"])
        self._sums, self._driven = restored(state["sums"]), restored(state["driven"])


@runtime_checkable
class Predicting(Protocol):
    """A contextual chooser that may predict payments."""

    def predict(self, contexts: Doubles) -> Doubles | None:
        """(B, M): the payment that each arm would get at contexts (B, C), NaN for arms that were never paid; None where it does not
        predict payments."""


@dataclass(frozen=True)
class Following:
    """Settings of `ReturnsThatFollow`."""

    steps: int = 100
    """n: control steps whose rewards are counted one by one."""
    discount: float = 0.99
    """Of one control step."""
    hold: int = 0
    """Control steps for which a choice is held; 0 is a whole game."""
    every: int = 4
    """Control steps of a row from one paid state to the next."""


class ReturnsThatFollow:
    """Pays for a teacher at a state with the return that follows while it, or what is chosen later, drives.

    The payment is the discounted sum of the rewards of the next n control steps. Where the game goes on after them, the chooser's
    prediction for the state that was reached stands for the rest: of the held arm where a choice is held for a whole game (Cheng
    et al. 2020, arXiv 2007.00795, the value of one teacher's rollouts), else the largest. It is 0 before any payment, and of
    choosers that do not predict payments.

    A game that is truncated could go on. There the prediction for the last state with an action stands for the rest, and that state
    is not paid.

    Args:
        chooser: is paid.
        held: the choices.
        contexts: C, the columns of a context.
        follow: n, the discount, and how long choices are held.
    """

    def __init__(self, chooser: Chooser, held: Held, contexts: int, follow: Following) -> None:
        rows, columns, steps, discount = len(held.arms), contexts, follow.steps, follow.discount
        self.chooser, self.held = chooser, held
        self.every, self.held_to_the_end, self._hold = follow.every, not follow.hold, follow.hold
        self.over: Bools = np.zeros(rows, dtype=np.bool_)
        self._discounts = discount ** np.arange(steps + 1)
        # Rings over the last n control steps; `_length` says how many of them belong to the present game of each row.
        self._contexts = np.zeros((steps, rows, columns))
        self._arms, self._probabilities = np.zeros((steps, rows), dtype=np.int64), np.ones((steps, rows))
        self._rewards, self._length = np.zeros((steps, rows)), np.zeros(rows, dtype=np.int64)
        self._time = 0
        """Control steps of a row so far; the present one is at `_time % n`."""

    def acted(self, contexts: Doubles | None) -> None:
        """Pays the states n control steps ago, and notes the present ones."""
        assert contexts is not None
        steps, at = len(self._rewards), self._time % len(self._rewards)
        full = np.flatnonzero(self._length >= steps)
        if len(full) and self._time % self.every == 0:
            in_turn = np.roll(self._rewards[:, full], -at, axis=0)
            rest = self._discounts[-1] * self._values(contexts[full], full)
            self._pay(np.full(len(full), at), full, self._discounts[:-1] @ in_turn + rest)
        self._contexts[at], self._arms[at] = contexts, self.held.arms
        self._probabilities[at], self._rewards[at] = self.held.probabilities, 0
        self._length = np.minimum(self._length + 1, steps)

    def _values(self, contexts: Doubles, rows: Ints) -> Doubles:
        predictions = self.chooser.predict(contexts) if isinstance(self.chooser, Predicting) else None
        if predictions is None:
            return np.zeros(len(rows))
        if self.held_to_the_end:
            own = predictions[np.arange(len(rows)), self.held.arms[rows]]
        else:
            own = np.fmax.reduce(predictions, axis=1)
        return np.asarray(np.nan_to_num(own))

    def _pay(self, times: Ints, rows: Ints, returns: Doubles) -> None:
        choice = Choice(self._arms[times, rows], self._probabilities[times, rows])
        self.chooser.pay(choice, returns, self._contexts[times, rows])

    def followed(self, step: Outcome, driven: int) -> None:
        """Notes the rewards, and pays all states of the games that ended."""
        self._rewards[self._time % len(self._rewards)] = step.rewards
        self._length[driven:] = 0
        self.over = (self.held.ages + 1 >= self._hold) if self._hold else self.over
        for row in np.flatnonzero((step.terminated | step.truncated) & (self._length > 0)).tolist():
            self._pay_to_the_end(row, cut=not step.terminated[row])
            self._length[row] = 0
        self._time += 1

    def _pay_to_the_end(self, row: int, *, cut: bool) -> None:
        number, total = int(self._length[row]), 0.0
        times = np.arange(self._time - number + 1, self._time + 1) % len(self._rewards)
        if cut:
            total = float(self._values(self._contexts[times[-1:], row], np.array([row]))[0])
            number, times = number - 1, times[:-1]
        returns = np.zeros(number)
        for place in reversed(range(number)):
            total = returns[place] = self._rewards[times[place], row] + self._discounts[1] * total
        own = slice(None, None, self.every)
        if number:
            self._pay(times[own], np.full(len(times[own]), row), returns[own])

    def learnt(self, loss: float) -> None:
        """Nothing depends on it."""

    def state_dict(self) -> dict[str, Any]:
        """The last control steps."""
        rings = {name: getattr(self, f"_{name}").copy() for name in _RINGS}
        return {**rings, "time": self._time, "over": self.over.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._time, self.over = int(state["time"]), restored(state["over"])
        for name in _RINGS:
            setattr(self, f"_{name}", restored(state[name]))


_RINGS = ("contexts", "arms", "probabilities", "rewards", "length")


class Blocks:
    """Pays the one teacher of a block of control steps by what the block brought.

    * `teacher`: the mean reward of a control step that it drove.
    * `student`: the mean return of the student's games that ended.
    * `progress`: that, less the mean of the last block that had any.
    * `loss`: the mean loss of the first half of the updates, less that of the second.

    A block without what is needed for a payment goes on until it has it. The first block is not paid for progress.

    Args:
        chooser: is paid.
        held: the choices; all rows hold the same.
        steps: of a block, of all rows together.
        payment: by what.
    """

    def __init__(self, chooser: Chooser, held: Held, steps: int, payment: PaymentName) -> None:
        rows = len(held.arms)
        self.chooser, self.held, self.steps, self.payment = chooser, held, steps, payment
        self.over: Bools = np.zeros(rows, dtype=np.bool_)
        self._played = self._driven = 0
        self._rewards = 0.0
        self._returns: list[float] = []
        self._losses: list[float] = []
        self._before = float("nan")
        self._own = np.ones(rows, dtype=np.bool_)
        """(N,): rows whose game only the student drove so far."""

    def acted(self, contexts: Doubles | None) -> None:
        """A block begins with each choice."""
        if self.over.any():
            self.over = np.zeros_like(self.over)
            self._played = self._driven = 0
            self._rewards = 0.0
            self._returns, self._losses = [], []

    def followed(self, step: Outcome, driven: int) -> None:
        """Notes what came of the actions, and pays where the block is over."""
        self._played += len(step.rewards)
        self._driven += driven
        self._rewards += float(step.rewards[:driven].sum())
        self._own[:driven] = False
        ended = step.terminated | step.truncated
        self._returns += step.returns[ended & self._own].tolist()
        self._own[ended] = True
        if self._played >= self.steps and self._has_payment():
            self._pay()

    def _has_payment(self) -> bool:
        return {"teacher": self._driven > 0, "loss": len(self._losses) > 1}.get(self.payment, bool(self._returns))

    def _pay(self) -> None:
        self.over = np.ones_like(self.over)
        payment = self._amount()
        if np.isfinite(payment):
            self.chooser.pay(self.held.choice(np.arange(1)), np.array([payment]))

    def _amount(self) -> float:
        if self.payment == "teacher":
            return self._rewards / self._driven
        if self.payment == "loss":
            half = len(self._losses) // 2
            return float(np.mean(self._losses[:half]) - np.mean(self._losses[half:]))
        mean = float(np.mean(self._returns))
        if self.payment == "student":
            return mean
        progress, self._before = mean - self._before, mean
        return progress

    def learnt(self, loss: float) -> None:
        """Notes the loss."""
        if self.payment == "loss":
            self._losses.append(loss)

    def state_dict(self) -> dict[str, Any]:
        """What the block has brought so far."""
        return {
            "over": self.over.copy(),
            "played": self._played,
            "driven": self._driven,
            "rewards": self._rewards,
            "returns": list(self._returns),
            "losses": list(self._losses),
            "before": self._before,
            "own": self._own.copy(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.over, self._own = restored(state["over"]), restored(state["own"])
        self._played, self._driven = int(state["played"]), int(state["driven"])
        self._rewards, self._before = float(state["rewards"]), float(state["before"])
        self._returns, self._losses = list(state["returns"]), list(state["losses"])
