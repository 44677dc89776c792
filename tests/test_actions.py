"""Actions of each kind of space: numbers by hand, and frequencies against the distributions they should have."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, chi2_contingency, chisquare, kstest, pearsonr
from torch import Tensor

from rldistill.play.actions import (
    agreement,
    bounds,
    check_actions,
    chosen,
    describe,
    drawn,
    greedy,
    mix_in_random,
    same_actions,
    score_width,
    split_gaussian,
    uniform_actions,
)
from rldistill.types import ScoreKind, Task, UserError

INF = math.inf
FOUR = Task("four", 4, (3,), "float32")
LEVERS = Task("levers", 5, (3,), "float32", action_sizes=(2, 3))
ARM = Task("arm", 2, (3,), "float32", action_low=(-2.0, 0.0), action_high=(2.0, 10.0))
FREE = Task("free", 2, (3,), "float32", action_low=(-INF, -INF), action_high=(INF, INF))
TASKS = (FOUR, LEVERS, ARM, FREE)
SUITING: dict[str, tuple[tuple[ScoreKind, int], ...]] = {
    "four": (("q_values", 4), ("logits", 4)),
    "levers": (("logits", 5),),
    "arm": (("gaussian", 4), ("squashed_gaussian", 4), ("actions", 2)),
    "free": (("gaussian", 4), ("squashed_gaussian", 4), ("actions", 2)),
}
KINDS: tuple[ScoreKind, ...] = ("q_values", "logits", "gaussian", "squashed_gaussian", "actions")


def tensor(*rows: list[float]) -> Tensor:
    return torch.tensor(rows)


@pytest.mark.parametrize(
    ("task", "choices", "mask_size", "dimensions"),
    [(FOUR, (4,), 4, 1), (LEVERS, (2, 3), 5, 2), (ARM, (), 0, 2), (FREE, (), 0, 2)],
    ids=lambda value: getattr(value, "env", None),
)
def test_choices_masks_and_dimensions_are_three_numbers(
    task: Task, choices: tuple[int, ...], mask_size: int, dimensions: int
) -> None:
    assert (task.choices, task.mask_size, task.action_dimensions) == (choices, mask_size, dimensions)


# Scores


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.env)
def test_each_kind_of_scores_has_its_width_or_is_refused(task: Task, kind: ScoreKind) -> None:
    widths = dict(SUITING[task.env])
    if kind in widths:
        assert score_width(task, kind) == widths[kind]
    else:
        with pytest.raises(UserError, match=f"{task.env} has .*, which {kind} scores do not suit") as refusal:
            score_width(task, kind)
        assert len(str(refusal.value).splitlines()) == 1


def test_actions_are_described_in_words() -> None:
    assert describe(FOUR) == "4 discrete actions"
    assert describe(LEVERS) == "2 discrete actions at once, of 2, 3 choices"
    assert describe(ARM) == "continuous actions of 2 dimensions (-2 to 2, 0 to 10)"
    assert describe(FREE) == "continuous actions of 2 dimensions (-inf to inf)"
    torque = replace(ARM, num_actions=1, action_low=(-0.5,), action_high=(0.5,))
    assert describe(torque) == "continuous actions of 1 dimension (-0.5 to 0.5)"


def test_actions_are_the_same_only_with_the_same_numbers_and_ranges() -> None:
    assert same_actions(FOUR, replace(FOUR, env="other", observation_shape=(9,)))
    others = (
        replace(FOUR, num_actions=5),
        replace(LEVERS, action_sizes=(3, 2)),
        replace(ARM, action_low=(-2.0, -1.0)),
        replace(ARM, action_high=(2.0, 11.0)),
    )
    for task, other in zip((FOUR, LEVERS, ARM, ARM), others, strict=True):
        assert same_actions(task, task)
        assert not same_actions(task, other)


def test_gaussian_scores_are_means_and_deviations_held_to_their_range() -> None:
    mean, log_std = split_gaussian(tensor([1.0, 2.0, -20.0, 0.5], [3.0, 4.0, 9.0, -5.0]))
    assert mean.tolist() == [[1, 2], [3, 4]]
    assert log_std.tolist() == [[-5, 0.5], [2, -5]]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-2.0, 3.0, (-2, 3)),
        (-INF, INF, (-1, 1)),
        (5.0, INF, (5, 7)),
        (-INF, -5.0, (-7, -5)),
        (4.0, 4.0, (4, 6)),
    ],
)
def test_a_range_without_bounds_gets_some(low: float, high: float, expected: tuple[float, float]) -> None:
    lower, upper = bounds(replace(ARM, num_actions=1, action_low=(low,), action_high=(high,)))
    assert (lower.item(), upper.item()) == expected


# Chosen


def test_the_highest_score_is_chosen_the_first_of_equals() -> None:
    for kind in ("q_values", "logits"):
        actions = chosen(tensor([0.0, 2.0, 2.0, 1.0], [-1.0, -3.0, -2.0, -9.0]), kind, FOUR)
        assert actions.tolist() == [1, 0]
        assert actions.dtype == torch.int64


def test_of_several_actions_each_is_chosen_by_itself() -> None:
    scores = tensor([0.0, 1.0, 9.0, 0.0, 9.0], [5.0, 4.0, 0.0, -1.0, 7.0])
    assert chosen(scores, "logits", LEVERS).tolist() == [[1, 0], [0, 2]]


def test_the_mean_is_chosen_and_held_to_the_range() -> None:
    assert chosen(tensor([1.5, 7.0, 0.0, 0.0], [-9.0, 99.0, 3.0, 3.0]), "gaussian", ARM).tolist() == [
        [1.5, 7],
        [-2, 10],
    ]
    assert chosen(tensor([1.5, 7.0], [9.0, -1.0]), "actions", ARM).tolist() == [[1.5, 7], [2, 0]]
    assert chosen(tensor([-99.0, 99.0]), "actions", FREE).tolist() == [[-99, 99]]


def test_a_squashed_mean_is_mapped_onto_the_range() -> None:
    half = math.atanh(0.5)  # three quarters of the way
    actions = chosen(
        tensor([0.0, 0.0, 0.0, 0.0], [half, -half, 2.0, 2.0], [99.0, -99.0, 0.0, 0.0]), "squashed_gaussian", ARM
    )
    torch.testing.assert_close(actions, tensor([0.0, 5.0], [1.0, 2.5], [2.0, 0.0]))
    torch.testing.assert_close(chosen(tensor([half, -half, 0.0, 0.0]), "squashed_gaussian", FREE), tensor([0.5, -0.5]))


finite = st.floats(-1e6, 1e6, width=32)


@given(st.tuples(finite, finite).filter(lambda pair: pair[0] <= pair[1]), finite, st.sampled_from(KINDS[2:]))
@pytest.mark.slow
def test_no_chosen_action_leaves_the_range(pair: tuple[float, float], mean: float, kind: ScoreKind) -> None:
    task = Task("line", 1, (1,), "float32", action_low=pair[:1], action_high=pair[1:])
    scores = torch.full((1, score_width(task, kind)), mean)
    check_actions(chosen(scores, kind, task).numpy(), 1, task)
    check_actions(drawn(scores, kind, task, np.random.default_rng(0)), 1, task)
    check_actions(uniform_actions(task, 3, np.random.default_rng(0)), 3, task)


def test_no_action_leaves_a_range_that_float32_cannot_say() -> None:
    """The float32 next to 0.1 is more than 0.1, and an environment in float64 may say that this is none of its actions."""
    space = gymnasium.spaces.Box(-0.1, 0.1, (2,), np.float64)
    task = Task("narrow", 2, (3,), "float32", action_low=(-0.1, -0.1), action_high=(0.1, 0.1))
    assert float(np.float32(0.1)) > 0.1
    taken = chosen(tensor([5.0, -5.0]), "actions", task).numpy()[0]
    assert space.contains(taken.astype(np.float64))
    np.testing.assert_allclose(taken, [0.1, -0.1], rtol=1e-6)
    squashed = chosen(tensor([50.0, -50.0, 0.0, 0.0]), "squashed_gaussian", task).numpy()[0]
    assert space.contains(squashed.astype(np.float64))
    for action in uniform_actions(task, 1000, np.random.default_rng(0)):
        assert space.contains(action.astype(np.float64))
    check_actions(taken[None], 1, task)


class Table:
    """Scores that are the observations themselves."""

    def __init__(self, score_kind: ScoreKind = "q_values") -> None:
        self.score_kind = score_kind

    def __call__(self, observations: Tensor) -> Tensor:
        return observations


def test_greedy_takes_the_first_of_the_highest_scores() -> None:
    scores = np.array([[0.0, 2.0, 2.0, 0.0], [-1.0, -3.0, -2.0, -4.0]], dtype=np.float32)
    actions = greedy(Table(), scores, FOUR)
    assert actions.tolist() == [1, 0]
    assert actions.dtype == np.int64


def test_greedy_takes_the_mean_of_a_gaussian() -> None:
    actions = greedy(Table("gaussian"), np.array([[1.0, 99.0, 0.0, 0.0]], dtype=np.float32), ARM)
    assert actions.tolist() == [[1, 10]]
    assert actions.dtype == np.float32


def test_greedy_keeps_no_graph_for_gradients() -> None:
    weights = torch.ones(4, requires_grad=True)

    class Scaled(Table):
        def __call__(self, observations: Tensor) -> Tensor:
            scores = observations * weights
            assert not scores.requires_grad
            return scores

    greedy(Scaled(), np.ones((1, 4), dtype=np.float32), FOUR)


# Drawn

MANY = 20_000


def repeated(*scores: float) -> Tensor:
    return torch.tensor(scores).expand(MANY, -1)


@pytest.mark.parametrize("kind", ["logits", "q_values"])
def test_actions_are_drawn_with_the_softmaxs_probabilities(kind: ScoreKind) -> None:
    scores = repeated(0.0, 1.0, -1.0, 0.5)
    counts = np.bincount(drawn(scores, kind, FOUR, np.random.default_rng(0)), minlength=4)
    expected = np.exp([0.0, 1.0, -1.0, 0.5]) / np.exp([0.0, 1.0, -1.0, 0.5]).sum()
    assert chisquare(counts, expected * MANY).pvalue > 1e-3


def test_several_actions_are_drawn_each_from_its_softmax_and_independently() -> None:
    actions = drawn(repeated(0.0, 1.0, 2.0, 0.0, 1.0), "logits", LEVERS, np.random.default_rng(1))
    assert actions.shape == (MANY, 2)
    for column, logits in ((0, [0.0, 1.0]), (1, [2.0, 0.0, 1.0])):
        expected = np.exp(logits) / np.exp(logits).sum() * MANY
        assert chisquare(np.bincount(actions[:, column]), expected).pvalue > 1e-3
    pairs = np.bincount(3 * actions[:, 0] + actions[:, 1], minlength=6).reshape(2, 3)
    assert chi2_contingency(pairs).pvalue > 1e-3


def test_gaussian_actions_have_their_mean_and_deviation() -> None:
    actions = drawn(repeated(1.0, -3.0, math.log(0.5), 1.0), "gaussian", FREE, np.random.default_rng(2))
    assert actions.dtype == np.float32
    assert kstest(actions[:, 0], "norm", (1.0, 0.5)).pvalue > 1e-3
    assert kstest(actions[:, 1], "norm", (-3.0, math.e)).pvalue > 1e-3
    assert pearsonr(actions[:, 0], actions[:, 1]).pvalue > 1e-3


def test_deviations_are_drawn_within_their_range() -> None:
    actions = drawn(repeated(0.0, 0.0, -20.0, 20.0), "gaussian", FREE, np.random.default_rng(3))
    assert kstest(actions[:, 0], "norm", (0.0, math.exp(-5))).pvalue > 1e-3
    assert kstest(actions[:, 1], "norm", (0.0, math.exp(2))).pvalue > 1e-3


def test_squashed_actions_are_gaussian_before_the_tanh() -> None:
    actions = drawn(repeated(0.3, -0.2, -1.0, 0.0), "squashed_gaussian", ARM, np.random.default_rng(4)).astype(
        np.float64
    )
    assert kstest(np.arctanh(actions[:, 0] / 2), "norm", (0.3, math.exp(-1))).pvalue > 1e-3
    assert kstest(np.arctanh(actions[:, 1] / 5 - 1), "norm", (-0.2, 1.0)).pvalue > 1e-3


def test_drawn_gaussians_are_held_to_the_range() -> None:
    actions = drawn(repeated(2.0, 0.0, 0.0, 0.0), "gaussian", ARM, np.random.default_rng(5))
    for column, bound in ((0, 2.0), (1, 0.0)):  # a mean on the bound: half of the draws are beyond it
        assert binomtest(int((actions[:, column] == bound).sum()), MANY, 0.5).pvalue > 1e-3
    check_actions(actions, MANY, ARM)


def test_deterministic_scores_draw_nothing() -> None:
    generator = np.random.default_rng(0)
    assert drawn(tensor([1.0, 99.0]), "actions", ARM, generator).tolist() == [[1, 10]]
    assert generator.random() == np.random.default_rng(0).random()


# Random


def test_uniform_actions_are_uniform_and_in_range() -> None:
    generator = np.random.default_rng(0)
    assert chisquare(np.bincount(uniform_actions(FOUR, MANY, generator), minlength=4)).pvalue > 1e-3
    actions = uniform_actions(LEVERS, MANY, generator)
    pairs = np.bincount(3 * actions[:, 0] + actions[:, 1], minlength=6)
    assert chisquare(pairs).pvalue > 1e-3
    actions = uniform_actions(ARM, MANY, generator)
    assert actions.dtype == np.float32
    assert kstest(actions[:, 0], "uniform", (-2, 4)).pvalue > 1e-3
    assert kstest(actions[:, 1], "uniform", (0, 10)).pvalue > 1e-3
    actions = uniform_actions(FREE, MANY, generator)
    assert kstest(actions[:, 0], "uniform", (-1, 2)).pvalue > 1e-3
    for task in TASKS:
        check_actions(uniform_actions(task, 7, generator), 7, task)


@pytest.mark.parametrize("task", [LEVERS, ARM], ids=lambda task: task.env)
def test_epsilon_is_the_share_of_rows_that_are_replaced_as_a_whole(task: Task) -> None:
    given_actions = np.full((MANY, 2), -7, dtype=np.float32 if task.continuous else np.int64)
    actions = mix_in_random(given_actions, task, 0.3, np.random.default_rng(0))
    replaced = (actions != -7).all(axis=1)
    assert (replaced | (actions == -7).all(axis=1)).all(), "no row is replaced in part"
    assert binomtest(int(replaced.sum()), MANY, 0.3).pvalue > 1e-3
    assert actions.dtype == given_actions.dtype
    check_actions(actions[replaced], int(replaced.sum()), task)
    assert (mix_in_random(given_actions, task, 0.0, np.random.default_rng(0)) == -7).all()
    assert (mix_in_random(given_actions, task, 1.0, np.random.default_rng(0)) != -7).all()


@given(seed=st.integers(0, 1000), low=st.floats(0, 1), high=st.floats(0, 1))
def test_the_same_random_vectors_are_drawn_for_any_epsilon(seed: int, low: float, high: float) -> None:
    low, high = sorted((low, high))
    first, second = np.random.default_rng(seed), np.random.default_rng(seed)
    wanted = np.full((20, 2), -7, dtype=np.float32)
    few, many = mix_in_random(wanted, ARM, low, first), mix_in_random(wanted, ARM, high, second)
    assert ((few == -7) | (few == many)).all(), "more exploration replaces more actions, by the same ones"
    assert first.random() == second.random()


# Agreement and range


def test_agreement_by_hand() -> None:
    assert agreement(torch.tensor([1, 2, 3]), torch.tensor([1, 0, 3]), FOUR).tolist() == [1, 0, 1]
    one, other = torch.tensor([[0, 1], [1, 2], [0, 0]]), torch.tensor([[0, 1], [1, 0], [1, 2]])
    assert agreement(one, other, LEVERS).tolist() == [1, 0.5, 0]
    # A half and the whole of their ranges, 4 and 10, apart; then a quarter and nothing.
    moved = agreement(tensor([1.0, 10.0], [0.0, 3.0]), tensor([-1.0, 0.0], [1.0, 3.0]), ARM)
    torch.testing.assert_close(moved, torch.tensor([0.25, 0.875]))
    # Ranges without bounds are 2 wide, and no distance counts for more than the range.
    torch.testing.assert_close(agreement(tensor([0.0, 0.0]), tensor([1.0, 50.0]), FREE), torch.tensor([0.25]))


@pytest.mark.parametrize(
    ("task", "good", "bad"),
    [
        (FOUR, [0, 3], [[0, 4], [-1, 0], [0], [0, 0, 0], [[0, 0]]]),
        (
            LEVERS,
            [[0, 2], [1, 0]],
            [[[2, 0], [0, 0]], [[0, 3], [0, 0]], [[0, -1], [0, 0]], [0, 0], [[0, 0]], [[0], [0]]],
        ),
    ],
    ids=lambda value: value.env if isinstance(value, Task) else None,
)
def test_discrete_actions_that_are_none_of_the_tasks_are_refused(
    task: Task, good: list[int], bad: list[list[int]]
) -> None:
    check_actions(np.array(good), 2, task)
    for wrong in bad:
        with pytest.raises(ValueError, match=f"{task.env} takes {describe(task)} in 2 rows"):
            check_actions(np.array(wrong), 2, task)


def test_continuous_actions_that_are_none_of_the_tasks_are_refused() -> None:
    good = np.array([[-2, 0], [2, 10]], dtype=np.float32)
    check_actions(good, 2, ARM)
    wrong: list[Any] = [good[:1], good.ravel(), good[:, :1], good.astype(np.float64), np.zeros((2, 3), np.float32)]
    for value in (math.nan, INF, -INF, 10.001, -0.001):
        wrong.append(good.copy())
        wrong[-1][1, 1] = value
    for actions in wrong:
        with pytest.raises(ValueError, match=r"arm takes continuous actions of 2 dimensions \(.*\) in 2 rows"):
            check_actions(actions, 2, ARM)
    for value, fits in ((1e30, True), (INF, False), (math.nan, False)):
        if fits:
            check_actions(np.full((1, 2), value, np.float32), 1, FREE)
        else:
            with pytest.raises(ValueError, match="free takes"):
                check_actions(np.full((1, 2), value, np.float32), 1, FREE)
