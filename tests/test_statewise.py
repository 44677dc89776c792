"""State-wise choosers: whose labels count where."""

from __future__ import annotations

import numpy as np
import pytest

from choosing import arms_of, chooser, gaussian, played
from rldistill.lessons.selecting import WITH_CONTEXT, make_chooser
from rldistill.lessons.selection import Doubles, Trusting
from rldistill.types import UserError


def trusting(spec: str, arms: int, columns: int = 3) -> Trusting:
    one = chooser(spec, arms, columns=columns)
    assert isinstance(one, Trusting)
    return one


def test_the_mean_counts_all_teachers_alike() -> None:
    mean = trusting("mean", 4)
    assert not mean.needs_policies
    np.testing.assert_array_equal(mean.trust(2, None, None), np.full((2, 4), 0.25))


def test_agreement_is_the_overlap_with_the_mean_of_the_others() -> None:
    """By hand. First state: two agree and one does not; second: all agree; third: nobody agrees with anybody."""
    agreement = trusting("agreement", 3)
    assert agreement.needs_policies
    policies = np.array(
        [
            [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
            [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.5, 0.5, 0.0]],
            [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        ]
    )
    third = np.full(3, 1 / 3)
    np.testing.assert_allclose(agreement.trust(3, None, policies), [[0.5, 0.5, 0.0], third, third])
    half = np.array([[[0.6, 0.4], [0.2, 0.8], [0.4, 0.6]]])  # overlaps 0.7, 0.7 and 1
    np.testing.assert_allclose(agreement.trust(1, None, half), [[0.7 / 2.4, 0.7 / 2.4, 1 / 2.4]])
    sharp = trusting("agreement:sharpness=2", 3).trust(1, None, half)
    np.testing.assert_allclose(sharp, [[0.49 / 1.98, 0.49 / 1.98, 1 / 1.98]])


def test_of_two_teachers_both_agree_equally() -> None:
    policies = np.random.default_rng(0).dirichlet(np.ones(5), size=(20, 2))
    np.testing.assert_allclose(trusting("agreement", 2).trust(20, None, policies), 0.5)


def test_agreement_is_refused_without_policies() -> None:
    with pytest.raises(ValueError, match="probabilities"):
        trusting("agreement", 2).trust(1, None, None)


@pytest.mark.parametrize("spec", ["mean", "agreement", "mamba"])
def test_drivers_are_uniformly_random(spec: str) -> None:
    one = chooser(spec, 4)
    choices = played(one, gaussian([0.0, 100.0, 0.0, 0.0]), 250, rows=4)
    counts = np.bincount(arms_of(choices), minlength=4)
    assert abs(counts - 250).max() < 5 * np.sqrt(1000 * 0.25 * 0.75)
    assert {chance for choice in choices for chance in choice.probabilities} == {0.25}


def test_the_oracle_takes_the_teacher_that_its_context_names() -> None:
    oracle = make_chooser("oracle", 3, np.random.default_rng(0), 1)
    assert isinstance(oracle, Trusting)
    contexts = np.array([[2.0], [0.0], [1.0]])
    choice = oracle.choose(3, contexts)
    assert choice.arms.tolist() == [2, 0, 1]
    assert choice.probabilities.tolist() == [1.0, 1.0, 1.0]
    np.testing.assert_array_equal(oracle.trust(3, contexts, None), np.eye(3)[[2, 0, 1]])
    oracle.pay(choice, np.array([3.0, 1.0, 2.0]), contexts)
    assert oracle.estimates.tolist() == [1.0, 2.0, 3.0]
    for wrong in (3.0, -1.0, 0.5, np.nan):
        with pytest.raises(UserError, match="0 to 2"):
            oracle.choose(1, np.array([[wrong]]))


@pytest.mark.parametrize("spec", sorted(set(WITH_CONTEXT) - {"oracle"}))
def test_contextual_choosers_trust_and_need_no_policies(spec: str) -> None:
    assert not trusting(spec, 2).needs_policies


def test_the_larger_value_is_trusted_and_the_upper_bound_drives() -> None:
    """MAMBA and MAPS trust alike; MAPS drives with the better teacher more and more, MAMBA does not."""

    def pay(arm: int, context: Doubles, generator: np.random.Generator) -> float:
        return float((context[0] > 0) == arm) + float(generator.normal()) * 0.3

    late = {}
    for spec in ("mamba", "maps"):
        one = chooser(spec, 2)
        assert isinstance(one, Trusting)
        choices = played(one, pay, 300, rows=2)
        right = [
            (np.random.default_rng((1, number)).normal(size=(2, 3))[:, 0] > 0) == choice.arms
            for number, choice in enumerate(choices)
        ]
        late[spec] = np.mean(right[200:])
        np.testing.assert_array_equal(one.trust(2, np.array([[1.5, 0, 0], [-1.5, 0, 0]]), None), [[0, 1], [1, 0]])
    assert late["maps"] > 0.8 > 0.65 > late["mamba"]
