"""Bandits: what each rule chooses, by hand; and what all choosers keep to, with and without context."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from choosing import COLUMNS, arms_of, bernoulli, chooser, gaussian, played, saved
from rldistill.lessons.selecting import WITH_CONTEXT, WITHOUT_CONTEXT
from rldistill.lessons.selection import Choice, Chooser, Doubles
from rldistill.types import UserError

NIG = "thompson:posterior=normal-inverse-gamma"
LEARNING = [name for name in WITHOUT_CONTEXT if name not in ("uniform", "mean", "agreement")] + [NIG]
CONTEXTUAL = [name for name in WITH_CONTEXT if name not in ("oracle", "mamba")] + ["iwc:doubly-robust=true"]
BEGINNING = [name for name in LEARNING + CONTEXTUAL if not name.startswith(("exp3", "iwc"))]
"""Those that choose every arm before any again."""
ALL = [*WITHOUT_CONTEXT, NIG, "mamba", *CONTEXTUAL, "ridge:forget=0.01", "linucb:forget=0.01", "agreement:sharpness=3"]


def paid(chooser: Chooser, arms: list[int], payments: list[float]) -> None:
    """Pays choices that were made elsewhere, one after the other."""
    for arm, payment in zip(arms, payments, strict=True):
        chooser.pay(Choice(np.array([arm]), np.ones(1)), np.array([payment]), np.zeros((1, COLUMNS)))


@pytest.mark.parametrize("spec", ALL)
@pytest.mark.parametrize(("scale", "shift"), [(1000.0, -7000.0), (0.001, 0.5)])
@pytest.mark.parametrize("pay", [gaussian([0.3, -0.2, 0.8]), bernoulli([0.5, 0.5, 0.7])], ids=["gaussian", "bernoulli"])
def test_payments_of_any_scale_and_origin_give_the_same_choices(spec, scale, shift, pay) -> None:  # type: ignore[no-untyped-def]
    plain = played(chooser(spec, 3), pay, 40, rows=2)
    other = played(chooser(spec, 3), lambda arm, x, generator: scale * pay(arm, x, generator) + shift, 40, rows=2)
    assert arms_of(plain).tolist() == arms_of(other).tolist()
    for one, same in zip(plain, other, strict=True):
        np.testing.assert_allclose(one.probabilities, same.probabilities, rtol=1e-5)


@pytest.mark.parametrize("spec", ALL)
def test_pulls_count_the_payments_and_estimates_are_near_their_means(spec: str) -> None:
    one = chooser(spec, 3)
    assert one.pulls.tolist() == [0, 0, 0]
    assert np.isnan(one.estimates).all()
    choices = played(one, gaussian([20.0, 10.0, 30.0]), 60, rows=5)
    assert one.pulls.tolist() == np.bincount(arms_of(choices), minlength=3).tolist()
    assert one.pulls.sum() == 300
    assert one.arms == 3
    np.testing.assert_allclose(one.estimates, [20.0, 10.0, 30.0], atol=4)


@pytest.mark.parametrize("spec", [name for name in LEARNING if name != "best-first"] + CONTEXTUAL)
def test_the_best_arm_is_chosen_most(spec: str) -> None:
    """Negative payments, far from 0."""
    counts = np.bincount(arms_of(played(chooser(spec, 3), gaussian([-52.0, -50.0, -53.0]), 500)), minlength=3)
    assert counts.argmax() == 1
    assert counts[1] > 250


@pytest.mark.parametrize("spec", ALL)
def test_payments_that_are_all_equal_lead_to_no_arm_and_no_error(spec: str) -> None:
    one = chooser(spec, 3)
    with np.errstate(all="raise", under="ignore"):
        choices = played(one, lambda arm, x, generator: 7.0, 150, rows=2)
    np.testing.assert_allclose(one.estimates, 7.0)
    if not spec.startswith("best-first"):
        assert np.bincount(arms_of(choices), minlength=3).min() > 0


@pytest.mark.parametrize("spec", ALL)
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_payments_and_contexts_that_are_no_numbers_are_refused_and_nothing_is_learnt(spec: str, wrong: float) -> None:
    one, contexts = chooser(spec, 3), np.zeros((2, COLUMNS))
    choice = one.choose(2, contexts)
    with pytest.raises(UserError, match="payment"):
        one.pay(choice, np.array([1.0, wrong]), contexts)
    assert one.pulls.sum() == 0
    assert np.isnan(one.estimates).all()
    if spec.partition(":")[0] in WITH_CONTEXT:
        with pytest.raises(UserError, match="context"):
            one.choose(2, contexts + wrong)


@pytest.mark.parametrize("spec", BEGINNING)
def test_every_arm_is_chosen_first_in_one_call_and_in_several_unpaid_ones(spec: str) -> None:
    contexts = np.zeros((1, COLUMNS))
    assert sorted(chooser(spec, 5).choose(5, np.zeros((5, COLUMNS))).arms) == [0, 1, 2, 3, 4]
    one = chooser(spec, 5)
    assert sorted(int(one.choose(1, contexts).arms[0]) for _ in range(5)) == [0, 1, 2, 3, 4]
    again = np.bincount(one.choose(10, np.zeros((10, COLUMNS))).arms)
    assert again.tolist() == [2] * 5  # nothing is known: all arms alike


@pytest.mark.parametrize("spec", BEGINNING)
def test_an_arm_whose_first_choice_is_never_paid_is_chosen_again(spec: str) -> None:
    one = chooser(spec, 3)
    choice = one.choose(3, np.zeros((3, COLUMNS)))
    lost = int(choice.arms[1])
    one.pay(Choice(choice.arms[::2], choice.probabilities[::2]), np.array([1.0, 2.0]), np.zeros((2, COLUMNS)))
    arms = []
    for _ in range(60):
        choice = one.choose(1, np.zeros((1, COLUMNS)))
        arms.append(int(choice.arms[0]))
        if arms[-1] != lost:
            one.pay(choice, np.array([float(len(arms) % 2)]), np.zeros((1, COLUMNS)))
    assert lost in arms


@pytest.mark.parametrize("spec", ALL)
def test_payments_may_come_in_any_order(spec: str) -> None:
    """Rows of several calls, paid in one go backwards."""
    one, generator = chooser(spec, 3), np.random.default_rng(3)
    contexts = generator.normal(size=(8, COLUMNS))
    first, second = one.choose(4, contexts[:4]), one.choose(4, contexts[4:])
    arms = np.concatenate([first.arms, second.arms])[::-1]
    both = Choice(arms, np.concatenate([first.probabilities, second.probabilities])[::-1])
    one.pay(both, np.arange(8.0), contexts[::-1])
    assert one.pulls.tolist() == np.bincount(arms, minlength=3).tolist()
    if spec in WITHOUT_CONTEXT and spec not in ("discounted-ucb",):
        means = [np.arange(8.0)[arms == arm].mean() if (arms == arm).any() else np.nan for arm in range(3)]
        np.testing.assert_allclose(one.estimates, means)


@pytest.mark.parametrize("spec", ALL)
def test_a_saved_chooser_goes_on_as_it_would_have(spec: str, tmp_path: Path) -> None:
    pay = gaussian([0.0, 0.3, -0.3])
    one = chooser(spec, 3)
    played(one, pay, 20, rows=3)
    contexts = np.random.default_rng(9).normal(size=(4, COLUMNS))
    unpaid = one.choose(4, contexts)
    state = saved(one, tmp_path)
    other = chooser(spec, 3, seed=77)
    played(other, pay, 7, rows=2, seed=5)
    other.load_state_dict(state)
    for each in (one, other):
        each.pay(Choice(unpaid.arms[:2], unpaid.probabilities[:2]), np.array([0.5, 1.5]), contexts[:2])
    goes_on, resumed = played(one, pay, 40, rows=2, seed=2), played(other, pay, 40, rows=2, seed=2)
    assert arms_of(goes_on).tolist() == arms_of(resumed).tolist()
    assert [c.probabilities.tolist() for c in goes_on] == [c.probabilities.tolist() for c in resumed]
    np.testing.assert_array_equal(one.estimates, other.estimates)


@pytest.mark.parametrize(
    "spec", ["uniform", "epsilon-greedy", "vdbe", "thompson", "exp3", "iwc", "ridge", "network", "mamba"]
)
def test_probabilities_are_those_of_the_choices(spec: str) -> None:
    """Many rows in one state: each arm is as frequent as it says."""
    one, number = chooser(spec, 3), 4000
    played(one, gaussian([0.0, 0.3, -0.3]), 30)
    choice = one.choose(number, np.zeros((number, COLUMNS)))
    for arm in np.unique(choice.arms):
        (chance,) = set(choice.probabilities[choice.arms == arm].tolist())
        assert abs((choice.arms == arm).mean() - chance) < 5 * math.sqrt(chance * (1 - chance) / number) + 1e-9


def by_hand(payments: dict[int, list[float]]) -> tuple[Doubles, Doubles]:
    """Counts, and means from the mean of all in units of the spread, in plain arithmetic."""
    everything = [payment for arm in payments for payment in payments[arm]]
    centre, number = sum(everything) / len(everything), len(everything)
    within = sum((p - sum(own) / len(own)) ** 2 for own in payments.values() for p in own)
    overall = sum((p - centre) ** 2 for p in everything) / number
    spread = math.sqrt((within + len(payments) * overall) / number)
    scores = [(sum(own) / len(own) - centre) / spread for own in payments.values()]
    return np.array([float(len(own)) for own in payments.values()]), np.array(scores)


PAYMENTS = {0: [3.0, 5.0, 4.0, 4.5], 1: [6.0, 2.0], 2: [5.0]}


@pytest.mark.parametrize("c", [0.1, 0.7, 1.4, 3.0])
def test_ucb1_chooses_by_its_formula_with_unpaid_choices_counted(c: float) -> None:
    one = chooser(f"ucb1:c={c}", 3)
    for arm, payments in PAYMENTS.items():
        paid(one, [arm] * len(payments), payments)
    counts, scores = by_hand(PAYMENTS)
    for arm in one.choose(6).arms:
        index = [s + c * math.sqrt(math.log(counts.sum()) / n) for s, n in zip(scores, counts, strict=True)]
        assert arm == int(np.argmax(index))
        counts[arm] += 1


def test_bayes_ucb_chooses_by_the_quantile_of_its_posterior() -> None:
    norm = pytest.importorskip("scipy.stats").norm
    one = chooser("bayes-ucb", 3)
    for arm, payments in PAYMENTS.items():
        paid(one, [arm] * len(payments), payments)
    counts, scores = by_hand(PAYMENTS)
    means = scores * counts / (counts + 1)
    for arm in one.choose(6).arms:
        assert arm == int(np.argmax(norm.ppf(1 - 1 / (counts.sum() + 1), means, 1 / np.sqrt(counts + 1))))
        counts[arm] += 1


def test_thompson_chooses_an_arm_as_often_as_its_posterior_is_largest() -> None:
    one = chooser("thompson", 3)
    for arm, payments in PAYMENTS.items():
        paid(one, [arm] * len(payments), payments)
    counts, scores = by_hand(PAYMENTS)
    draws = np.random.default_rng(0).normal(scores * counts / (counts + 1), 1 / np.sqrt(counts + 1), (200_000, 3))
    often = np.bincount(draws.argmax(axis=1), minlength=3) / len(draws)
    choice = one.choose(200)
    for arm, probability in zip(*choice, strict=True):
        assert probability == pytest.approx(often[arm], abs=0.005)


def test_each_arm_has_a_variance_of_its_own_under_normal_inverse_gamma() -> None:
    """An arm of steady payments just below the best is left alone; one of wild payments is not."""

    def rarest(spread: float) -> float:
        one, generator = chooser(NIG, 2), np.random.default_rng(0)
        paid(one, [0] * 100, list(generator.normal(0.0, 0.01, 100)))
        paid(one, [1] * 100, list(-0.2 + generator.normal(0.0, spread, 100)))
        return float(np.mean(one.choose(2000).arms == 1))

    assert rarest(0.01) < 0.01 < 0.03 < rarest(2.0)


def test_epsilon_falls_in_inverse_proportion_to_the_pulls() -> None:
    one = chooser("epsilon-greedy:start=0.8,end=0.1,pulls=10", 4)
    paid(one, [0, 1, 2, 3], [4.0, 1.0, 2.0, 3.0])
    expected = {10: 0.8, 20: 0.4, 40: 0.2, 200: 0.1}
    for pulls, epsilon in expected.items():
        paid(one, [0] * (pulls - int(one.pulls.sum())), [4.0] * (pulls - int(one.pulls.sum())))
        choice = one.choose(300)
        assert set(choice.probabilities[choice.arms == 0].round(9)) == {round(1 - epsilon + epsilon / 4, 9)}
        assert set(choice.probabilities[choice.arms != 0].round(9)) == {round(epsilon / 4, 9)}


def test_vdbe_explores_as_much_as_payments_surprise() -> None:
    """Worked out by hand: the exploration after the second payment of an arm."""
    one = chooser("vdbe:sensitivity=0.5,step=0.25", 2)
    paid(one, [0, 1], [1.0, 3.0])
    exploration = 1.0  # both first payments surprise as much as any
    paid(one, [1], [2.0])  # the mean falls from 3 to 2.5
    within, overall = 0.5, ((1 - 2) ** 2 + (3 - 2) ** 2 + 0) / 3
    change = 0.5 / math.sqrt((within + 2 * overall) / 3)
    surprise = (1 - math.exp(-change / 0.5)) / (1 + math.exp(-change / 0.5))
    exploration += 0.25 * (surprise - exploration)
    assert max(one.choose(100).probabilities) == pytest.approx(1 - exploration / 2)


def test_a_window_forgets_what_leaves_it() -> None:
    one = chooser("sliding-ucb:window=4", 2)
    paid(one, [0, 0, 1, 1, 0, 1], [9.0, 9.0, 1.0, 3.0, 5.0, 5.0])
    np.testing.assert_allclose(one.estimates, [5.0, 3.0])
    paid(one, [1] * 4, [2.0] * 4)
    assert np.isnan(one.estimates[0])
    assert one.choose(1).arms.tolist() == [0]  # nothing is left of it: it is chosen again
    assert one.pulls.tolist() == [3, 7]


def test_discounted_means_weight_payments_by_age() -> None:
    one = chooser("discounted-ucb:discount=0.5", 2)
    paid(one, [0, 1, 0, 1], [8.0, 2.0, 4.0, 6.0])  # ages 3, 2, 1, 0
    np.testing.assert_allclose(one.estimates, [(8 / 8 + 4 / 2) / (1 / 8 + 1 / 2), (2 / 4 + 6) / (1 / 4 + 1)])


@pytest.mark.parametrize("spec", ["discounted-ucb", "sliding-ucb"])
def test_rules_for_drift_follow_when_the_best_arm_changes(spec: str) -> None:
    one = chooser(spec, 3)
    played(one, gaussian([1.0, 0.0, 0.0], 0.5), 600)
    after = arms_of(played(one, gaussian([1.0, 3.0, 0.0], 0.5), 600, seed=2))
    assert (after[300:] == 1).mean() > 0.7


def test_exp3_weights_follow_the_importance_weighted_payments() -> None:
    """By hand: the second choice's probabilities after one payment of each arm."""
    one = chooser("exp3:explore=0.5", 2)
    for arm, payment, chance in [(0, 1.0, 0.5), (1, 3.0, 0.25), (1, 1.0, 0.5)]:
        one.pay(Choice(np.array([arm]), np.array([chance])), np.array([payment]))
    share = 0.5 * math.sqrt(2 * math.log(2) / 3)
    centre, spread = 5 / 3, math.sqrt((2 + 2 * (4 / 9 + 16 / 9 + 4 / 9) / 3) / 3)
    gains = [(1 - centre) / 0.5 / spread, ((3 - centre) / 0.25 + (1 - centre) / 0.5) / spread]
    weights = [math.exp(share / 2 * gain) for gain in gains]
    expected = [(1 - share) * weight / sum(weights) + share / 2 for weight in weights]
    choice = one.choose(200)
    for arm, probability in zip(*choice, strict=True):
        assert probability == pytest.approx(expected[arm])


def test_best_first_plays_each_arm_its_games_and_then_one_for_good() -> None:
    one = chooser("best-first:games=3", 3)
    first = played(one, gaussian([0.0, 5.0, 1.0], 0.1), 9)
    assert np.bincount(arms_of(first)).tolist() == [3, 3, 3]
    rest = played(one, gaussian([9.0, -5.0, 1.0], 0.1), 50, seed=2)  # too late to change its mind
    assert set(arms_of(rest)) == {1}
    assert {probability for choice in rest for probability in choice.probabilities} == {1.0}


def test_best_first_does_not_wait_for_payments_that_never_come() -> None:
    one = chooser("best-first:games=2", 2)
    for number in range(40):
        choice = one.choose(2)
        kept = (choice.arms == 0) | (number > 20)  # arm 1 is not paid at first
        one.pay(Choice(choice.arms[kept], choice.probabilities[kept]), choice.arms[kept].astype(float))
    assert set(one.choose(5).arms) == {1}
