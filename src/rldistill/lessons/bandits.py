"""Bandits: choosers of a teacher that look at payments alone.

A bandit is what it remembers of payments (`tallies`) and a rule that makes probabilities of it. Each function here makes the bandit
of its name in `selecting`; its keyword parameters are the options of that name. All payments are measured from their mean, in
units of their spread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from statistics import NormalDist
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from rldistill.files import generator_state, load_generator_state
from rldistill.lessons.chances import Pending, check_finite, choose_rows, explored, falling, greedy
from rldistill.lessons.selection import Choice, Doubles, Ints
from rldistill.lessons.tallies import (
    Memory,
    Statistics,
    Surprises,
    Tally,
    Trials,
    Weighted,
    Window,
)

Rule: TypeAlias = Callable[[Doubles], Doubles]
"""Probabilities (M,) of the arms for the next choice, from the number of unpaid choices of each arm (M,)."""


class Bandit:
    """A chooser by a memory and a rule.

    Choices that are not paid yet are pending. Where the rule looks at them, the rows of a call are chosen one after the other, each
    with the rows before it pending.

    Args:
        memory: of the payments.
        rule: reads the memory.
        generator: of the draws.
        begin: whether every arm is chosen before the rule is asked.
        alike: whether the rows of a call have the same probabilities, since the rule does not look at unpaid choices.
    """

    def __init__(
        self, memory: Memory, rule: Rule, generator: np.random.Generator, *, begin: bool = True, alike: bool = True
    ) -> None:
        self._memory, self._rule, self._generator = memory, rule, generator
        self._begin, self._alike = begin, alike
        self._pulls: Ints = np.zeros(len(memory.counts), dtype=np.int64)
        self._pending = Pending(len(self._pulls))

    @property
    def arms(self) -> int:
        """How many teachers there are."""
        return len(self._pulls)

    @property
    def pulls(self) -> Ints:
        """(M,): the payments taken so far, by arm."""
        return self._pulls.copy()

    @property
    def estimates(self) -> Doubles:
        """(M,): the mean payment of each arm as far as it is remembered, NaN where there is none."""
        return self._memory.means.copy()

    def choose(self, rows: int, contexts: Doubles | None = None) -> Choice:
        """An arm for each row."""

        def rest(row: int) -> Doubles:
            return np.repeat(self._rule(self._pending.counts)[None], rows - row if self._alike else 1, axis=0)

        return choose_rows(rows, self._memory.counts, self._pending, self._generator, rest, self._begin)

    def pay(self, choice: Choice, payments: Doubles, contexts: Doubles | None = None) -> None:
        """Takes the payments of earlier choices.

        Raises:
            UserError: a payment is NaN or infinite.
        """
        check_finite(payments, "the payment")
        rows = zip(choice.arms.tolist(), choice.probabilities.tolist(), payments.tolist(), strict=True)
        for arm, probability, payment in rows:
            self._memory.add(arm, payment, probability)
            self._pulls[arm] += 1
            self._pending.paid(arm)

    def state_dict(self) -> dict[str, Any]:
        """The memory, the counts and the generator."""
        return {
            "memory": self._memory.state_dict(),
            "pulls": self._pulls.tolist(),
            "pending": self._pending.counts.tolist(),
            "generator": generator_state(self._generator),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._memory.load_state_dict(state["memory"])
        self._pulls = np.array(state["pulls"], dtype=np.int64)
        self._pending.counts = np.array(state["pending"], dtype=np.float64)
        load_generator_state(self._generator, state["generator"])


def uniform(arms: int, generator: np.random.Generator) -> Bandit:
    """Every teacher with the same probability, whatever is paid."""
    return Bandit(Statistics(arms), lambda pending: np.full(arms, 1 / arms), generator, begin=False)


def epsilon_greedy(
    arms: int, generator: np.random.Generator, *, start: float = 1.0, end: float = 0.0, pulls: int | None = None
) -> Bandit:
    """The best mean so far, or with probability epsilon any arm; Auer et al. 2002 (Machine Learning 47), figure 3.

    Args:
        arms: M.
        generator: of the draws.
        start: epsilon during the first `pulls` payments; it falls in inverse proportion to their number from there on.
        end: epsilon is at least this.
        pulls: payments; None is 3 an arm.
    """
    memory = Statistics(arms)
    first = 3 * arms if pulls is None else pulls

    def rule(pending: Doubles) -> Doubles:
        return explored(greedy(memory.standings), falling(start, end, first, memory.counts.sum()))

    return Bandit(memory, rule, generator)


def vdbe(arms: int, generator: np.random.Generator, *, sensitivity: float = 0.1, step: float | None = None) -> Bandit:
    """Epsilon-greedy whose epsilon follows how much payments still change the means; Tokic 2010, section 3.

    Args:
        arms: M.
        generator: of the draws.
        sensitivity: sigma of the paper, in units of the payments' spread; the smaller, the longer it explores.
        step: delta of the paper, the share of a new change in epsilon; None is 1 / (4 M).
    """
    memory = Surprises(arms, sensitivity, step)
    return Bandit(memory, lambda pending: explored(greedy(memory.standings), memory.exploration), generator)


def _upper_bounds(memory: Tally, pending: Doubles, c: float) -> Doubles:
    """Probabilities by `mean + c * sqrt(ln(t) / n)`. Unpaid choices count in t and n, and not in the mean."""
    counts = memory.counts + pending
    return greedy(memory.standings + c * np.sqrt(math.log(max(counts.sum(), 1.0)) / np.maximum(counts, 1e-9)))


def ucb1(arms: int, generator: np.random.Generator, *, c: float = math.sqrt(2)) -> Bandit:
    """The largest upper bound of the mean; Auer et al. 2002 (Machine Learning 47), figure 1.

    Args:
        arms: M.
        generator: of ties.
        c: the bound is `mean + c * sqrt(ln(t) / n)`, in units of the payments' spread.
    """
    memory = Statistics(arms)
    return Bandit(memory, lambda pending: _upper_bounds(memory, pending, c), generator, alike=False)


def discounted_ucb(
    arms: int, generator: np.random.Generator, *, c: float = math.sqrt(0.5), discount: float | None = None
) -> Bandit:
    """UCB1 on discounted payments; Garivier & Moulines 2011, arXiv 0805.3415, algorithm 1.

    Args:
        arms: M.
        generator: of ties.
        c: as of `ucb1`.
        discount: the weight of a payment after each later one; None is 1 - 1 / (2 sqrt(M t)) after t payments.
    """
    memory = Statistics(arms, discount)
    return Bandit(memory, lambda pending: _upper_bounds(memory, pending, c), generator, alike=False)


def sliding_ucb(arms: int, generator: np.random.Generator, *, c: float = 0.5, window: int | None = None) -> Bandit:
    """UCB1 on the last payments; Garivier & Moulines 2011, arXiv 0805.3415, algorithm 2.

    Args:
        arms: M.
        generator: of ties.
        c: as of `ucb1`.
        window: how many payments; None is 2 sqrt(M t) after t payments, at least 2 M.
    """
    memory = Window(arms, window)
    return Bandit(memory, lambda pending: _upper_bounds(memory, pending, c), generator, alike=False)


def bayes_ucb(arms: int, generator: np.random.Generator) -> Bandit:
    """The largest quantile 1 - 1 / t of the posterior mean; Kaufmann et al. 2012, algorithm 1, for Gaussian payments.

    The prior is normal, its standard deviation the payments' spread. Unpaid choices narrow the posterior and do not move it.

    Args:
        arms: M.
        generator: of ties.
    """
    memory = Statistics(arms)

    def rule(pending: Doubles) -> Doubles:
        counts = memory.counts + pending
        quantile = NormalDist().inv_cdf(1 - 1 / (1 + max(counts.sum(), 1.0)))
        means = memory.standings * memory.counts / (memory.counts + 1)
        return greedy(means + quantile / np.sqrt(counts + 1))

    return Bandit(memory, rule, generator, alike=False)


def thompson(
    arms: int, generator: np.random.Generator, *, posterior: Literal["gaussian", "normal-inverse-gamma"] = "gaussian"
) -> Bandit:
    """Each arm with the probability that it is the best; Thompson 1933, Agrawal & Goyal 2013 (AISTATS), algorithm 2.

    Args:
        arms: M.
        generator: of the draws.
        posterior: `gaussian`: all arms have the variance of the pooled payments. `normal-inverse-gamma`: each arm has a variance of
            its own, which is drawn from its posterior; take it where some teachers' payments vary much more than others'.
    """
    memory = Statistics(arms)

    def rule(pending: Doubles) -> Doubles:
        scores, counts = memory.standings, memory.counts
        scales = 1.0 if posterior == "gaussian" else _drawn_scales(memory, scores, generator)
        return _probabilities_of_best(scores * counts / (counts + 1), scales / np.sqrt(counts + 1))

    return Bandit(memory, rule, generator)


def _drawn_scales(memory: Tally, scores: Doubles, generator: np.random.Generator) -> Doubles:
    """(M,): a standard deviation of each arm, drawn from its inverse-gamma posterior of prior shape 1 and scale 1."""
    counts, spread = memory.counts, memory.moments.spread
    within = memory.moments.deviations / max(spread**2, 1e-300)
    scales = 1 + 0.5 * within + 0.5 * counts * scores**2 / (counts + 1)
    return np.asarray(np.sqrt(scales / generator.gamma(1 + counts / 2)), dtype=np.float64)


def _probabilities_of_best(means: Doubles, deviations: Doubles) -> Doubles:
    """(M,): the probability that each of independent normal variables is the largest."""
    return np.frombuffer(_integrated(means.tobytes(), deviations.tobytes()))


_NODES = np.linspace(-6, 6, 61)
"""Standard deviations from the mean, at which densities are summed."""
_DENSITIES = np.exp(-(_NODES**2) / 2)


@lru_cache(maxsize=4)  # of calls between payments
def _integrated(means: bytes, deviations: bytes) -> bytes:
    mean, deviation = np.frombuffer(means), np.frombuffer(deviations)
    places = mean[:, None] + deviation[:, None] * _NODES
    below = torch.special.ndtr(torch.from_numpy((places[:, :, None] - mean) / deviation)).numpy()
    arms = np.arange(len(mean))
    below[arms, :, arms] = 1
    chances = below.prod(axis=2) @ _DENSITIES
    return np.asarray(chances / chances.sum()).tobytes()


def exp3(arms: int, generator: np.random.Generator, *, explore: float = 1.0) -> Bandit:
    """Exponential weights of importance-weighted gains; Auer et al. 2002 (SIAM Journal on Computing 32), section 3.

    Args:
        arms: M.
        generator: of the draws.
        explore: the uniform share is `explore * sqrt(M ln(M) / t)` after t payments, at most 1, and the weights' rate is 1 / M of
            it, so that no horizon is needed.
    """
    memory = Weighted(arms)

    def rule(pending: Doubles) -> Doubles:
        share = min(1.0, explore * math.sqrt(arms * math.log(arms) / max(memory.counts.sum(), 1.0)))
        gains = memory.gains * share / arms
        weights = np.exp(gains - gains.max())
        return explored(weights / weights.sum(), share)

    return Bandit(memory, rule, generator, begin=False)


def best_first(arms: int, generator: np.random.Generator, *, games: int = 5) -> Bandit:
    """Each arm until it was paid some times, then the best of them for good: explore, then commit.

    Args:
        arms: M.
        generator: of ties.
        games: payments of each arm.
    """
    memory = Trials(arms, games)

    def rule(pending: Doubles) -> Doubles:
        if memory.best is not None:
            return np.asarray(np.eye(arms)[memory.best])
        counts = memory.counts + pending
        if counts.min() > games - 0.5:  # enough are on their way, unless some of them are never paid
            counts = np.where(memory.counts < games, counts, np.inf)
        return greedy(-counts)

    return Bandit(memory, rule, generator, alike=False)
