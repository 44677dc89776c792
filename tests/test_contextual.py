"""Contextual bandits: their regressions by hand, what they learn, and estimates of other policies from logged choices."""

from __future__ import annotations

import math

import numpy as np
import pytest

from choosing import arms_of, chooser, played
from rldistill.lessons.contextual import policy_values
from rldistill.lessons.regression import Network, Ridge
from rldistill.lessons.selection import Choice, Doubles

LINEAR = ["ridge", "network", "linucb", "iwc", "iwc:doubly-robust=true", "mamba", "maps"]
CERTAIN = np.ones(1)


def paid(model: Ridge | Network, arms: Doubles, payments: Doubles, contexts: Doubles) -> None:
    for arm, payment, context in zip(arms, payments, contexts, strict=True):
        model.learn(Choice(np.array([arm]), CERTAIN), np.array([payment]), context[None])


def data(number: int, columns: int, arms: int, seed: int = 0) -> tuple[Doubles, Doubles, Doubles]:
    generator = np.random.default_rng(seed)
    contexts = generator.normal(size=(number, columns)) * np.arange(1, columns + 1) + 10
    which = np.arange(number) % arms
    weights = generator.normal(size=(arms, columns))
    return which, (weights[which] * contexts).sum(axis=1) + generator.normal(size=number), contexts


@pytest.mark.parametrize("forget", [0.0, 0.1])
def test_ridge_solves_the_penalized_least_squares_of_each_arm(forget: float) -> None:
    """Against one augmented system for each arm, with an intercept that is not penalized."""
    arms, payments, contexts = data(20, 3, 2)
    model = Ridge(2, 3, penalty=0.5, forget=forget)
    paid(model, arms, payments, contexts)
    keep = (1 - forget) ** np.arange(20)[::-1]
    scales = np.sqrt(np.average((contexts - np.average(contexts, axis=0, weights=keep)) ** 2, axis=0, weights=keep))
    new = np.random.default_rng(1).normal(size=(5, 3)) + 10
    for arm in range(2):
        rows = arms == arm
        design = np.hstack([np.ones((10, 1)), (contexts[rows] - 10) / scales]) * np.sqrt(keep[rows])[:, None]
        penalty = math.sqrt(0.5 * 3) * np.eye(4)[1:]
        targets = np.concatenate([payments[rows] * np.sqrt(keep[rows]), np.zeros(3)])
        solution, *_ = np.linalg.lstsq(np.vstack([design, penalty]), targets, rcond=None)
        expected = solution[0] + (new - 10) / scales @ solution[1:]
        np.testing.assert_allclose(model.predict(new)[:, arm], expected)


def test_deviations_of_ridge_are_those_of_its_predictions() -> None:
    """Over many samples of the noise, with hardly any penalty; contexts are the same each time."""
    arms, _, contexts = data(40, 3, 2)
    new = np.array([[10.0, 10.0, 10.0], [14.0, 2.0, 20.0]])
    predictions, deviations = [], []
    for seed in range(200):
        model = Ridge(2, 3, penalty=1e-6)
        paid(model, arms, np.random.default_rng(seed).normal(size=40) * 2, contexts)
        predictions.append(model.predict(new))
        deviations.append(model.deviations(new))
    np.testing.assert_allclose(np.mean(deviations, axis=0), np.std(predictions, axis=0), rtol=0.2)


def test_linucb_chooses_the_largest_upper_bound() -> None:
    arms, payments, contexts = data(30, 3, 3)
    one, model = chooser("linucb:alpha=2", 3), Ridge(3, 3)
    paid(model, arms, payments, contexts)
    for arm, payment, context in zip(arms, payments, contexts, strict=True):
        one.pay(Choice(np.array([arm]), CERTAIN), np.array([payment]), context[None])
    new = np.random.default_rng(2).normal(size=(20, 3)) * 9
    bounds = model.predict(new) + 2 * model.deviations(new)
    for context, best in zip(new, bounds.argmax(axis=1), strict=True):
        fresh = chooser("linucb:alpha=2", 3)
        fresh.load_state_dict(one.state_dict())
        assert fresh.choose(1, context[None]).arms[0] == best


@pytest.mark.parametrize("spec", LINEAR)
def test_scale_and_origin_of_a_context_do_not_matter_nor_does_a_constant_column(spec: str) -> None:
    def pay(arm: int, context: Doubles, generator: np.random.Generator) -> float:
        return float(context[0] * (arm - 1) + generator.normal())

    plain = played(chooser(spec, 3, columns=3), pay, 60)
    other = chooser(spec, 3, columns=3)
    choices = []
    for number in range(60):
        generator = np.random.default_rng((1, number))
        context = generator.normal(size=(1, 3))
        moved = context * [1000.0, 0.001, 3.0] + [-500.0, 7.0, 1.0]
        choices.append(other.choose(1, moved))
        other.pay(choices[-1], np.array([pay(int(choices[-1].arms[0]), context[0], generator)]), moved)
    assert arms_of(plain).tolist() == arms_of(choices).tolist()
    constant = chooser(spec, 3, columns=2)
    for number in range(30):
        contexts = np.array([[float(number % 5), 7e5]])
        choice = constant.choose(1, contexts)
        constant.pay(choice, choice.arms * contexts[0, 0], contexts)
    trust = constant.trust(2, np.array([[4.0, 7e5], [4.0, 7e5]]), None)  # type: ignore[attr-defined]
    assert trust[0].tolist() == trust[1].tolist()


def accuracy(spec: str, rounds: int, best: object = None) -> float:
    """The share of new contexts in which the arm that is paid more is trusted."""
    one = chooser(spec, 2, columns=4)
    rule = best or (lambda context: context[..., 1] > 0.3)

    def pay(arm: int, context: Doubles, generator: np.random.Generator) -> float:
        return float((rule(context) == arm) + generator.normal() * 0.5)  # type: ignore[operator]

    played(one, pay, rounds, rows=4, columns=4)
    contexts = np.random.default_rng(8).normal(size=(1000, 4))
    trust = one.trust(1000, contexts, None)  # type: ignore[attr-defined]
    assert set(np.unique(trust)) <= {0.0, 1.0}
    np.testing.assert_array_equal(trust.sum(axis=1), 1)
    return float((trust.argmax(axis=1) == rule(contexts)).mean())  # type: ignore[operator]


@pytest.mark.parametrize("spec", LINEAR)
def test_who_is_better_where_is_learnt(spec: str) -> None:
    assert accuracy(spec, 300) > 0.85


def test_a_network_learns_what_no_line_divides() -> None:
    def opposite(context: Doubles) -> Doubles:
        return np.asarray(context[..., 0] * context[..., 1] > 0)

    assert accuracy("network:rate=0.01,end=0.2", 600, opposite) > 0.8 > 0.65 > accuracy("ridge", 600, opposite)


@pytest.mark.parametrize("spec", ["ridge:end=0.1,forget=0.01", "linucb:forget=0.01"])
def test_what_is_forgotten_is_learnt_anew(spec: str) -> None:
    """The better arm of each side changes."""
    one = chooser(spec, 2)
    for sign in (1, -1):

        def pay(arm: int, context: Doubles, generator: np.random.Generator, sign: int = sign) -> float:
            return float(sign * context[0] * (2 * arm - 1) + generator.normal())

        played(one, pay, 400, rows=2, seed=sign + 5)
    trust = one.trust(2, np.array([[1.0, 0, 0], [-1.0, 0, 0]]), None)  # type: ignore[attr-defined]
    assert trust.argmax(axis=1).tolist() == [0, 1]


def test_all_teachers_count_the_same_before_any_payment() -> None:
    for spec in LINEAR:
        trust = chooser(spec, 4).trust(3, np.ones((3, 3)), None)  # type: ignore[attr-defined]
        np.testing.assert_array_equal(trust, 0.25)


def test_an_ensemble_is_sure_where_it_has_payments() -> None:
    generator = np.random.default_rng(0)
    model = Network(2, 1, generator, members=5)
    contexts = generator.uniform(-1, 1, size=(600, 1))
    paid(model, np.arange(600) % 2, contexts[:, 0] + generator.normal(size=600) * 0.1, contexts)
    inside, outside = model.deviations(np.array([[0.0], [6.0]]))
    assert (inside * 2 < outside).all()


def logged(seed: int, number: int = 400) -> tuple[Choice, Doubles, Doubles, Doubles, float]:
    """Choices of a policy that prefers arm 0, with payments, contexts, another policy's probabilities and its true value."""
    generator = np.random.default_rng(seed)
    contexts = generator.normal(size=(number, 3))
    behaviour = np.where(contexts[:, :1] > 0, [0.7, 0.2, 0.1], [0.4, 0.3, 0.3])
    arms = (behaviour.cumsum(axis=1) <= generator.random(number)[:, None]).sum(axis=1)
    expected = contexts @ np.array([[1.0, 0, 0], [0, -1.0, 1.0], [0.5, 0.5, 0]]).T - 4
    payments = expected[np.arange(number), arms] + generator.normal(size=number)
    chances = np.eye(3)[(contexts[:, 1] > 0).astype(int) * 2]
    return (
        Choice(arms, behaviour[np.arange(number), arms]),
        payments,
        contexts,
        chances,
        float((chances * expected).sum(1).mean()),
    )


def half_predictions(choice: Choice, payments: Doubles, contexts: Doubles) -> Doubles:
    """Each half predicted by a ridge regression of the other."""
    predictions, even = np.zeros((len(payments), 3)), np.arange(len(payments)) % 2 == 0
    for half in (even, ~even):
        model = Ridge(3, 3)
        model.learn(Choice(choice.arms[~half], choice.probabilities[~half]), payments[~half], contexts[~half])
        predictions[half] = model.predict(contexts[half])
    return predictions


def test_importance_weighting_is_unbiased_and_doubly_robust_varies_less() -> None:
    """Over 200 logs: the mean error is within its interval, and so is the truth in 95 % of the logs' own intervals."""
    errors, within, variances = [], [], []
    for seed in range(200):
        choice, payments, contexts, chances, truth = logged(seed)
        predictions = half_predictions(choice, payments, contexts)
        both = [policy_values(choice, payments, chances, predictions=model) for model in (None, predictions)]
        spread = [float(terms.std() / math.sqrt(len(terms))) for terms in both]
        errors.append([float(terms.mean()) - truth for terms in both])
        within.append([abs(error) < 1.96 * one for error, one in zip(errors[-1], spread, strict=True)])
        variances.append(np.square(spread))
    bias, wide = np.mean(errors, axis=0), 3 * np.std(errors, axis=0) / math.sqrt(200)
    assert (np.abs(bias) < wide).all()
    assert (np.mean(within, axis=0) > 0.9).all()
    assert np.var(errors, axis=0)[1] < np.var(errors, axis=0)[0]
    assert np.mean(variances, axis=0)[1] < np.mean(variances, axis=0)[0]


def test_clipped_weights_bound_the_terms() -> None:
    choice = Choice(np.array([0, 1]), np.array([0.01, 0.5]))
    terms = policy_values(choice, np.array([2.0, 2.0]), np.array([[1.0, 0.0], [0.0, 1.0]]), clip=10)
    np.testing.assert_allclose(terms, [20.0, 4.0])


def test_value_of_the_chooser_of_weighted_classification_is_unbiased_on_what_it_logged() -> None:
    """Its own choices while it learns, as logs for always taking one arm; 30 runs."""
    means, errors = np.array([0.0, 0.5, -0.5]), []

    def pay(arm: int, context: Doubles, generator: np.random.Generator) -> float:
        return float(means[arm] + context[0] * (arm == 2) + generator.normal())

    for seed in range(30):
        one = chooser("iwc:end=0.3", 3, seed=seed)
        choices = played(one, pay, 60, rows=4, seed=seed)
        payments, arms = [], arms_of(choices)
        chances = np.concatenate([choice.probabilities for choice in choices])
        for number, choice in enumerate(choices):
            generator = np.random.default_rng((seed, number))
            contexts = generator.normal(size=(4, 3))
            payments += [pay(int(arm), x, generator) for arm, x in zip(choice.arms, contexts, strict=True)]
        log, paid_sums = Choice(arms, chances), np.array(payments)
        always = [policy_values(log, paid_sums, np.tile(np.eye(3)[arm], (240, 1))).mean() for arm in range(3)]
        errors.append(np.array(always) - means)
        np.testing.assert_allclose(
            one.estimates, [np.average(paid_sums[arms == k], weights=1 / chances[arms == k]) for k in range(3)]
        )
    assert (np.abs(np.mean(errors, axis=0)) < 3 * np.std(errors, axis=0) / math.sqrt(30)).all()


@pytest.mark.parametrize("spec", ["ridge", "network", "linucb", "maps"])
def test_tiny_payments_differ_as_large_ones_do(spec: str) -> None:
    one, generator = chooser(spec, 2), np.random.default_rng(0)
    for _ in range(100):
        contexts = generator.normal(size=(4, 3))
        choice = one.choose(4, contexts)
        one.pay(choice, 1e-12 * np.where(choice.arms == 1, contexts[:, 0], -contexts[:, 0]), contexts)
    contexts = generator.normal(size=(300, 3))
    trusted = one.trust(300, contexts, None)
    assert (trusted[:, 1] == (contexts[:, 0] > 0)).mean() > 0.9


def test_every_arm_has_a_chance_in_every_choice_of_weighted_classification_also_before_any_payment() -> None:
    """A choice that could be no other has no weight that makes up for the arms it left out."""
    one, generator = chooser("iwc", 2), np.random.default_rng(0)
    for _ in range(10):
        assert one.choose(8, generator.normal(size=(8, 3))).probabilities.tolist() == [0.5] * 8


@pytest.mark.parametrize("spec", LINEAR)
def test_a_call_without_contexts_is_refused(spec: str) -> None:
    with pytest.raises(ValueError, match="context"):
        chooser(spec, 2).choose(2, None)
