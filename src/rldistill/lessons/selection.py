"""Protocols of the choice among several teachers of one task: who teaches, and whose labels count where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

Ints: TypeAlias = npt.NDArray[np.int64]
Doubles: TypeAlias = npt.NDArray[np.float64]


class Choice(NamedTuple):
    """The teachers of R rows."""

    arms: Ints
    """(R,): the number of the teacher that is chosen for each row."""
    probabilities: Doubles
    """(R,): with which it was chosen, given all that the chooser had learnt; 1 for deterministic rules."""


class Chooser(Protocol):
    """Chooses a teacher for each of R rows, and learns from what its choices are paid.

    The arms are M teachers, numbered from 0. Payments have any sign and scale.
    """

    @property
    def arms(self) -> int:
        """How many teachers there are: M."""

    @property
    def pulls(self) -> Ints:
        """(M,): the payments taken so far, by arm."""

    @property
    def estimates(self) -> Doubles:
        """(M,): the mean payment of each arm in the payments' own units, NaN where there is none.

        Of a contextual chooser it is the mean prediction over recent contexts.
        """

    def choose(self, rows: int, contexts: Doubles | None = None) -> Choice:
        """A teacher for each of R rows.

        Args:
            rows: R.
            contexts: (R, C), for contextual choosers.
        """

    def pay(self, choice: Choice, payments: Doubles, contexts: Doubles | None = None) -> None:
        """Takes the payments of earlier choices. They come in any order, and may never come for some choices.

        Args:
            choice: rows of earlier choices.
            payments: (R,).
            contexts: (R, C), those that the rows were chosen with.
        """

    def state_dict(self) -> dict[str, Any]:
        """The state that the next choices depend on."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""


@runtime_checkable
class Trusting(Protocol):
    """Says for each state how much each teacher's labels count: what state-wise choosers have beside `Chooser`."""

    @property
    def needs_policies(self) -> bool:
        """Whether `trust` needs all teachers' probabilities of actions."""

    def trust(self, rows: int, contexts: Doubles | None, policies: Doubles | None) -> Doubles:
        """Weights (B, M) of the teachers at B states; each row sums to 1. Nothing is explored.

        Args:
            rows: B.
            contexts: (B, C), or None.
            policies: (B, M, A): each teacher's probabilities of the actions, or None.
        """
