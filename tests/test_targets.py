"""Targets: what is done to the teacher's values, and what is fitted to them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rldistill.students.losses import parse_loss
from rldistill.students.networks import Architecture, build
from rldistill.students.objectives import Match, Matching
from rldistill.students.targets import (
    AUTO_ENTROPY,
    Weights,
    advantage_spread,
    auto_temperature,
    fit_standardization,
    fitted_temperature,
    gaps,
    mean_entropy,
    transform,
)
from rldistill.types import ScoreKind, Task, UserError, labelled

BY_HAND = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]])


def values_of_a_game(seed: int, actions: int = 6, spread: float = 1.0) -> torch.Tensor:
    """States in which more or less is at stake, as games have them."""
    generator = np.random.default_rng(seed)
    stakes = generator.lognormal(0.0, 1.0, size=(400, 1))
    return torch.from_numpy((10 + spread * stakes * generator.normal(size=(400, actions))).astype(np.float32))


def test_transforms_worked_out_by_hand() -> None:
    # Means 3 and 1; advantages (-2, -1, 3) and (-1, -1, 2); their squares sum to 14 + 6 = 20 over six numbers.
    advantages = torch.tensor([[-2.0, -1.0, 3.0], [-1.0, -1.0, 2.0]])
    spread = advantage_spread(BY_HAND)
    assert spread == pytest.approx(math.sqrt(20 / 6))
    assert torch.equal(transform(BY_HAND, "raw", spread), BY_HAND)
    torch.testing.assert_close(transform(BY_HAND, "advantage", spread), advantages)
    torch.testing.assert_close(transform(BY_HAND, "standardized", 2.0), advantages / 2)


def test_several_actions_at_once_have_a_mean_each() -> None:
    # Two choices, then three: means 2 and 5, so (-1, 1) and (-1, 0, 1); squares sum to 2 + 2 over five numbers.
    values = torch.tensor([[1.0, 3.0, 4.0, 5.0, 6.0]])
    spread = advantage_spread(values, (2, 3))
    assert spread == pytest.approx(math.sqrt(4 / 5))
    expected = torch.tensor([[-1.0, 1.0, -1.0, 0.0, 1.0]])
    torch.testing.assert_close(transform(values, "advantage", spread, (2, 3)), expected)
    torch.testing.assert_close(transform(values, "standardized", spread, (2, 3)), expected / spread)
    offset = values + torch.tensor([[0.0, 0.0, 9.0, 9.0, 9.0]])  # which no softmax of a head shows
    torch.testing.assert_close(transform(offset, "advantage", spread, (2, 3)), expected)


@pytest.mark.parametrize("targets", ["raw", "advantage", "standardized"])
def test_no_transform_changes_the_best_action(targets: str) -> None:
    values = values_of_a_game(0)
    changed = transform(values, targets, advantage_spread(values))  # type: ignore[arg-type]  # one of the literals
    assert torch.equal(changed.argmax(dim=1), values.argmax(dim=1))
    assert changed.shape == values.shape


def test_standardized_values_have_a_spread_of_1() -> None:
    values = values_of_a_game(1, spread=0.01)
    assert advantage_spread(transform(values, "standardized", advantage_spread(values))) == pytest.approx(1, rel=1e-3)


def test_entropy_worked_out_by_hand() -> None:
    # softmax(0, ln 3) = (1/4, 3/4): 1/4 ln 4 + 3/4 ln(4/3) = 0.346574 + 0.215762; the uniform choice of two: ln 2.
    values = torch.tensor([[0.0, math.log(3)], [7.0, 7.0]])
    assert mean_entropy(values, 1.0) == pytest.approx((0.562335 + 0.693147) / 2, abs=1e-5)
    assert mean_entropy(values, 1e6) == pytest.approx(math.log(2), abs=1e-5)


@given(st.integers(0, 1000), st.integers(2, 18), st.floats(0.001, 100))
def test_auto_temperature_aims_at_its_entropy(seed: int, actions: int, spread: float) -> None:
    values = values_of_a_game(seed, actions, spread)
    reached = mean_entropy(values, auto_temperature(values, "q_values"))
    assert reached == pytest.approx(AUTO_ENTROPY * math.log(actions), rel=0.02)  # it is rounded to three digits


@pytest.mark.parametrize("share", [0.1, 0.35, 0.8])
def test_a_share_of_the_largest_entropy_is_reached(share: float) -> None:
    values = values_of_a_game(1, actions=6)
    temperature = fitted_temperature(f"auto:{share}", values, "q_values")
    assert mean_entropy(values, temperature) == pytest.approx(share * math.log(6), rel=0.02)


def test_a_temperature_that_is_given_is_taken() -> None:
    assert fitted_temperature("0.25", values_of_a_game(1), "q_values") == 0.25


@given(st.integers(0, 1000), st.sampled_from([1 / 1024, 1 / 8, 4.0, 256.0]))
def test_auto_temperature_scales_with_the_rewards(seed: int, factor: float) -> None:
    values = values_of_a_game(seed)
    scaled = auto_temperature(values * factor, "q_values")
    assert scaled == pytest.approx(factor * auto_temperature(values, "q_values"), rel=0.011)


def test_auto_temperature_does_not_depend_on_the_level_of_the_values() -> None:
    values = values_of_a_game(3)
    assert auto_temperature(values + 5, "q_values") == pytest.approx(auto_temperature(values, "q_values"), rel=0.011)


def test_logits_are_a_policy_already() -> None:
    assert auto_temperature(values_of_a_game(0, spread=100), "logits") == 1.0


@pytest.mark.parametrize("kind", ["gaussian", "squashed_gaussian", "actions"])
def test_continuous_actions_have_no_temperature(kind: ScoreKind) -> None:
    assert auto_temperature(values_of_a_game(0, spread=100), kind) == 1.0


@pytest.mark.parametrize(
    "values",
    [torch.zeros(5, 3), torch.full((5, 3), -7.5), torch.zeros(5, 1), torch.tensor([[0.0, 1.0]] + 9 * [[0.0, 0.0]])],
    ids=["zeros", "constant", "one action", "one state that matters"],
)
def test_values_that_tell_nothing_give_a_usable_temperature(values: torch.Tensor) -> None:
    temperature = auto_temperature(values, "q_values")
    assert 0 < temperature < math.inf
    spread = advantage_spread(values)
    assert 0 < spread < math.inf
    assert transform(values, "standardized", spread).isfinite().all()


def test_gaps_worked_out_by_hand() -> None:
    # 6 - 1 and 3 - 0; without the third action 2 - 1 and, of one action alone, 0.
    assert gaps(BY_HAND).tolist() == [5.0, 3.0]
    masks = torch.tensor([[True, True, False], [True, False, False]])
    assert gaps(BY_HAND, (), masks).tolist() == [1.0, 0.0]
    # Of two choices and of three: (3 - 1) + (6 - 4), and with masks (3 - 3) + (6 - 5).
    several = torch.tensor([[1.0, 3.0, 4.0, 5.0, 6.0]])
    assert gaps(several, (2, 3)).tolist() == [4.0]
    assert gaps(several, (2, 3), torch.tensor([[False, True, False, True, True]])).tolist() == [1.0]


@given(st.integers(0, 1000), st.floats(-50, 50))
def test_the_gap_of_logits_is_the_logarithm_of_odds(seed: int, level: float) -> None:
    logits = values_of_a_game(seed, actions=4) + level
    p = logits.double().softmax(dim=1)
    odds = p.amax(dim=1).log() - p.amin(dim=1).log()
    finite = odds.isfinite()  # probabilities of 0 have no logarithm
    torch.testing.assert_close(gaps(logits).double()[finite], odds[finite], rtol=1e-3, atol=1e-3)


def test_the_gap_of_two_actions_at_once_is_that_of_their_joint_logits() -> None:
    first, second = torch.tensor([[0.5, -1.0]]), torch.tensor([[2.0, 0.0, 3.0]])
    joint = (first[:, :, None] + second[:, None, :]).flatten(1)
    assert gaps(torch.cat([first, second], dim=1), (2, 3)).tolist() == gaps(joint).tolist()


def match(weights: Weights, sizes: tuple[int, ...] = ()) -> Match:
    task = Task("any", observation_shape=(2,), num_actions=3)
    return Match(parse_loss("kl"), task, "q_values", Matching(temperature="1", weights=weights))


def test_weights_multiply_the_loss_of_each_state_and_have_mean_1_over_the_examples() -> None:
    plain, weighted = match("none"), match("gap")
    values = values_of_a_game(5, actions=3)
    batch = labelled(torch.zeros(len(values), 2), values)
    scores = torch.randn(len(values), 3, generator=torch.Generator().manual_seed(0))
    for own in (plain, weighted):
        own.fit(batch)
    weights = weighted(scores, batch, 0) / plain(scores, batch, 0)
    assert weights.shape == (len(values),), "one number a sample"
    assert weights.mean().item() == pytest.approx(1, abs=1e-4)
    spread = values.amax(dim=1) - values.amin(dim=1)
    torch.testing.assert_close(weights, spread / spread.mean(), rtol=1e-3, atol=1e-4)
    # Other states have weights in the same unit: none where nothing is at stake, 2 where twice the mean is.
    few = labelled(torch.zeros(2, 2), torch.tensor([[3.0, 3.0, 3.0], [0.0, 0.0, 2 * float(spread.mean())]]))
    other = weighted(scores[:2], few, 0) / plain(scores[:2], few, 0)
    assert other.tolist() == pytest.approx([0, 2], rel=1e-3)


def test_weights_are_put_back_and_older_states_have_none() -> None:
    values = values_of_a_game(6, actions=3)
    batch = labelled(torch.zeros(len(values), 2), values)
    scores = torch.zeros(len(values), 3)
    fitted, again, older = match("gap"), match("gap"), match("none")
    fitted.fit(batch)
    again.load_state_dict(fitted.state_dict())
    assert torch.equal(again(scores, batch, 0), fitted(scores, batch, 0))
    older.load_state_dict({"temperature": fitted.temperature, "spread": fitted.spread})
    plain = match("none")
    plain.fit(batch)
    assert torch.equal(older(scores, batch, 0), plain(scores, batch, 0))


def test_a_teacher_without_gaps_weighs_nothing_and_is_refused() -> None:
    with pytest.raises(UserError, match="--weights gap: .* same value"):
        match("gap").fit(labelled(torch.zeros(4, 2), torch.full((4, 3), 2.5)))


def test_standardization_gives_images_mean_0_and_variance_1_over_all_pixels() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(60, 180, size=(50, 4, 40, 40), dtype=np.uint8))
    shift, scale = fit_standardization(images)
    assert shift.shape == scale.shape == (1,)
    assert shift.item() == pytest.approx(images.double().mean().item(), rel=1e-6)
    x = scale * (images.float() - shift)
    assert x.mean().item() == pytest.approx(0, abs=1e-4)
    assert x.var(correction=0).item() == pytest.approx(1, abs=1e-4)


def test_standardization_is_by_feature_for_vectors_and_leaves_what_never_changes_finite() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(1000, 3, generator=generator) * torch.tensor([10.0, 0.01, 0.0]) + torch.tensor(
        [5.0, -2.0, 3.0]
    )
    shift, scale = fit_standardization(vectors)
    assert shift.shape == scale.shape == (3,)
    x = scale * (vectors - shift)
    torch.testing.assert_close(x.mean(dim=0), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(x.var(dim=0, correction=0), torch.tensor([1.0, 1.0, 0.0]), atol=1e-3, rtol=0)
    assert scale[2] == 1


def test_standardization_of_a_black_screen_is_finite() -> None:
    shift, scale = fit_standardization(torch.zeros(8, 4, 40, 40, dtype=torch.uint8))
    assert (shift.item(), scale.item()) == (0, 1)


@pytest.mark.parametrize("shape", [(4, 84, 84), (5,)])
def test_a_network_takes_the_standardization_that_is_fitted(shape: tuple[int, ...]) -> None:
    x = torch.rand(16, *shape, generator=torch.Generator().manual_seed(0)) * 9 + 3
    network = build(Architecture("net3" if len(shape) == 3 else "mlp:4", shape, 2), 0)
    plain = build(Architecture("net3" if len(shape) == 3 else "mlp:4", shape, 2), 0)
    shift, scale = fit_standardization(x)
    network.standardize(shift, scale)
    plain.standardize(torch.zeros_like(shift), torch.ones_like(scale))
    torch.testing.assert_close(network(x), plain(scale * (x - shift)), rtol=1e-4, atol=1e-5)
