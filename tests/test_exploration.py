"""How a driving student explores, on a real network; frequencies against the probabilities they should have."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, chisquare, kstest
from torch import Tensor, nn

from rldistill.lessons.exploration import Explore, EZGreedy, explorer
from rldistill.play.actions import check_actions, drawn, mix_in_random
from rldistill.students.networks import Architecture, Network, build
from rldistill.types import ScoreKind, Task

ALL: tuple[Explore, ...] = ("greedy", "epsilon", "boltzmann", "dropout")


FOUR = Task("four", 4, (5,), "float32")
TWO = Task("two", 2, (5,), "float32")


def network_of(seed: int = 0, *, dropout: float = 0.0, actions: int = 4) -> Network:
    return build(Architecture("mlp:32", (5,), actions, dropout=dropout), seed)


def observations(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, 5)).astype(np.float32)


def scores_of(network: Network, x: np.ndarray) -> Tensor:
    network.eval()
    with torch.no_grad():
        scores = network(torch.from_numpy(x))
    network.train()
    assert isinstance(scores, Tensor)
    return scores


class Listening:
    """Keeps what a network's head is given."""

    def __init__(self, network: Network) -> None:
        self.recorded: list[Tensor] = []
        head = network.layers[-1]
        assert isinstance(head, nn.Linear)
        head.register_forward_hook(lambda module, inputs, output: self.recorded.append(inputs[0].clone()))


def test_greedy_takes_the_best_action() -> None:
    network, x = network_of(), observations(64)
    actions = explorer(network, FOUR, "greedy", lambda: 0.9, np.random.default_rng(0))(x)
    np.testing.assert_array_equal(actions, scores_of(network, x).argmax(dim=1).numpy())
    assert actions.dtype == np.int64


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_epsilon_is_the_share_of_uniformly_random_actions(epsilon: float) -> None:
    network, x = network_of(), observations(20_000)
    best = scores_of(network, x).argmax(dim=1).numpy()
    actions = explorer(network, FOUR, "epsilon", lambda: epsilon, np.random.default_rng(1))(x)
    # A random one of four actions is the best one in a quarter of the cases.
    other = int((actions != best).sum())
    expected = epsilon * 3 / 4
    assert (other == 0) if epsilon == 0 else binomtest(other, len(x), expected).pvalue > 1e-3


def test_boltzmann_draws_from_the_softmax() -> None:
    network = network_of()
    x = np.repeat(observations(1) * 3, 20_000, axis=0)
    probabilities = scores_of(network, x[:1]).softmax(dim=1).numpy()[0].astype(np.float64)
    assert probabilities.max() < 0.9, "the test must see different actions"
    actions = explorer(network, FOUR, "boltzmann", lambda: 0.5, np.random.default_rng(2))(x)
    counts = np.bincount(actions, minlength=4)
    assert chisquare(counts, probabilities / probabilities.sum() * len(x)).pvalue > 1e-3


def test_boltzmann_is_not_troubled_by_large_scores() -> None:
    scores = np.array([[0.0, 1e30], [1e30, -1e30]], dtype=np.float32)
    np.testing.assert_array_equal(drawn(torch.from_numpy(scores), "logits", TWO, np.random.default_rng(0)), [1, 0])


def test_dropout_drops_other_units_each_control_step() -> None:
    network, x = network_of(dropout=0.5), observations(32)
    listening = Listening(network)
    act = explorer(network, FOUR, "dropout", lambda: 0.0, np.random.default_rng(0))
    actions = [act(x) for _ in range(3)]
    first, second, third = listening.recorded
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    assert any((one != other).any() for one, other in itertools.pairwise(actions))
    # Half of the units that were not 0 anyway are dropped, a mask a row; those that stay are doubled.
    clean = network.layers[:-1].eval()(torch.from_numpy(x)).detach()
    alive = clean > 0
    kept = first[alive] > 0
    assert binomtest(int(kept.sum()), kept.numel(), 0.5).pvalue > 1e-3
    torch.testing.assert_close(first[alive][kept], 2 * clean[alive][kept])
    assert not torch.equal(first[0] > 0, first[1] > 0)


def test_dropout_comes_again_from_the_same_generator_state() -> None:
    network, x = network_of(dropout=0.5), observations(32)
    assert network.dropout is not None
    act = explorer(network, FOUR, "dropout", lambda: 0.0, np.random.default_rng(0))
    state = network.dropout.generator.get_state()
    before = [act(x) for _ in range(4)]
    network.dropout.generator.set_state(state)
    np.testing.assert_array_equal(before, [act(x) for _ in range(4)])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("explore", ALL)
def test_network_is_left_as_it_was(explore: Explore, training: bool) -> None:
    network, x = network_of(dropout=0.5), observations(16)
    network.train(training)
    explorer(network, FOUR, explore, lambda: 0.1, np.random.default_rng(0))(x)
    assert network.training == training
    assert network.dropout is not None
    assert network.dropout.training == training
    network.eval()
    with torch.no_grad():
        assert torch.equal(network(torch.from_numpy(x)), network(torch.from_numpy(x))), "no dropout at evaluation"


@pytest.mark.parametrize("explore", ["greedy", "epsilon", "boltzmann"])
def test_only_dropout_drops(explore: Explore) -> None:
    network, x = network_of(dropout=0.5), observations(16)
    listening = Listening(network)
    act = explorer(network, FOUR, explore, lambda: 0.1, np.random.default_rng(0))
    act(x)
    act(x)
    assert torch.equal(*listening.recorded)


@pytest.mark.parametrize("explore", ALL)
def test_nothing_reads_a_global_generator(explore: Explore) -> None:
    network, x = network_of(dropout=0.5), observations(16)
    torch.manual_seed(0)
    before, numpy_before = torch.get_rng_state(), str(np.random.get_state())
    explorer(network, FOUR, explore, lambda: 0.5, np.random.default_rng(0))(x)
    assert torch.equal(torch.get_rng_state(), before)
    assert str(np.random.get_state()) == numpy_before


def test_student_is_followed_as_it_learns() -> None:
    network, x = network_of(), observations(256)
    act = explorer(network, FOUR, "greedy", lambda: 0.0, np.random.default_rng(0))
    before = act(x)
    network.load_state_dict(network_of(seed=9).state_dict())
    assert (act(x) != before).any()
    np.testing.assert_array_equal(act(x), scores_of(network, x).argmax(dim=1).numpy())


# Continuous actions

ARM = Task("arm", 2, (5,), "float32", action_low=(-50.0, -50.0), action_high=(50.0, 50.0))
SHORT = Task("short", 2, (5,), "float32", action_low=(-0.5, 0.0), action_high=(0.5, 10.0))


def gaussian_network(kind: ScoreKind = "gaussian", *, dropout: float = 0.0) -> Network:
    return build(Architecture("mlp:32", (5,), 2 if kind == "actions" else 4, dropout=dropout), 0, kind)


def test_greedy_takes_the_mean_of_a_gaussian() -> None:
    network, x = gaussian_network(), observations(64)
    actions = explorer(network, ARM, "greedy", lambda: 0.9, np.random.default_rng(0))(x)
    np.testing.assert_array_equal(actions, scores_of(network, x)[:, :2].numpy())
    assert actions.dtype == np.float32


@pytest.mark.parametrize("kind", ["gaussian", "squashed_gaussian", "actions"])
def test_epsilon_replaces_whole_rows_by_actions_in_range(kind: ScoreKind) -> None:
    network, x = gaussian_network(kind), observations(20_000)
    best = explorer(network, SHORT, "greedy", lambda: 0.0, np.random.default_rng(1))(x)
    actions = explorer(network, SHORT, "epsilon", lambda: 0.3, np.random.default_rng(1))(x)
    replaced = (actions != best).any(axis=1)
    assert binomtest(int(replaced.sum()), len(x), 0.3).pvalue > 1e-3
    check_actions(actions, len(x), SHORT)
    assert kstest(actions[replaced, 1], "uniform", (0, 10)).pvalue > 1e-3


def test_boltzmann_draws_from_the_gaussian() -> None:
    network, x = gaussian_network(), np.repeat(observations(1), 20_000, axis=0)
    mean, log_std = scores_of(network, x[:1])[0].double().chunk(2)
    actions = explorer(network, ARM, "boltzmann", lambda: 0.5, np.random.default_rng(2))(x)
    for column in range(2):
        assert kstest(actions[:, column], "norm", (mean[column].item(), log_std[column].exp().item())).pvalue > 1e-3
    check_actions(actions, len(x), ARM)


def test_boltzmann_has_nothing_to_draw_from_deterministic_scores() -> None:
    network, x = gaussian_network("actions"), observations(64)
    actions = explorer(network, SHORT, "boltzmann", lambda: 0.5, np.random.default_rng(2))(x)
    np.testing.assert_array_equal(actions, explorer(network, SHORT, "greedy", lambda: 0.5, np.random.default_rng(2))(x))


@pytest.mark.parametrize("kind", ["gaussian", "squashed_gaussian", "actions"])
@pytest.mark.parametrize("explore", ALL)
def test_every_way_to_explore_stays_in_range(explore: Explore, kind: ScoreKind) -> None:
    network, x = gaussian_network(kind, dropout=0.5), observations(256)
    act = explorer(network, SHORT, explore, lambda: 0.5, np.random.default_rng(0))
    check_actions(act(x), 256, SHORT)
    assert (act(x) != act(x)).any() == (
        explore in ("epsilon", "dropout") or (explore == "boltzmann" and kind != "actions")
    )


TORQUE = Task("torque", 1, (5,), "float32", action_low=(-2.0,), action_high=(2.0,))


def test_random_actions_that_last_one_step_are_epsilon_greedy() -> None:
    ez = EZGreedy(FOUR, 6, 1, np.random.default_rng(3))
    generator = np.random.default_rng(3)
    for greedy in np.random.default_rng(0).integers(4, size=(50, 6)):
        np.testing.assert_array_equal(ez(greedy, 0.3), mix_in_random(greedy, FOUR, 0.3, generator))


@pytest.mark.slow
def test_random_actions_last_as_often_as_the_inverse_square_of_their_length() -> None:
    ez = EZGreedy(TORQUE, 1, 3, np.random.default_rng(0))
    taken = [float(ez(np.zeros((1, 1), dtype=np.float32), 1.0)[0, 0]) for _ in range(4_000)]
    lengths = [len(list(run)) for _, run in itertools.groupby(taken)][:-1]  # real numbers, so no two are drawn alike
    counts = np.bincount(lengths, minlength=4)[1:]
    assert len(counts) == 3  # none lasts longer
    expected = np.array([1, 1 / 4, 1 / 9])
    assert chisquare(counts, counts.sum() * expected / expected.sum()).pvalue > 1e-3


@pytest.mark.slow
def test_random_actions_begin_with_probability_epsilon_where_none_goes_on() -> None:
    ez, greedy = EZGreedy(TORQUE, 1, 50, np.random.default_rng(1)), np.full((1, 1), 9.0, dtype=np.float32)
    begins = free = 0
    for _ in range(4_000):
        free += int(ez.state_dict()["left"][0] == 0)
        before = ez.state_dict()["held"].copy()
        action = ez(greedy, 0.2)
        begins += int(action[0, 0] != 9.0 and action[0, 0] != before[0, 0])
    assert free < 3_500  # it does go on
    assert binomtest(begins, free, 0.2).pvalue > 1e-3


def test_random_actions_put_back_go_on() -> None:
    def played(ez: EZGreedy, steps: int) -> list[list[int]]:
        return [ez(np.zeros(5, dtype=np.int64), 0.2).tolist() for _ in range(steps)]

    generator = np.random.default_rng(2)
    ez = EZGreedy(FOUR, 5, 30, generator)
    played(ez, 40)
    state, drawn_so_far = ez.state_dict(), generator.bit_generator.state
    expected = played(ez, 40)
    again = np.random.default_rng()
    again.bit_generator.state = drawn_so_far
    other = EZGreedy(FOUR, 5, 30, again)
    other.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})  # as checkpoints give it
    assert played(other, 40) == expected
