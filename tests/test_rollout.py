from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rldistill.play.actions import mix_in_random
from rldistill.play.envs import Environments, make_task
from rldistill.play.games import MakePolicy, play
from rldistill.play.rollout import EpsilonGreedy, Transition, as_learnt, rollout, uniform
from rldistill.types import Actions, Policy, ScoreKind, Task

CARTPOLE = make_task("CartPole-v1")
BREAKOUT = make_task("MinAtar/Breakout-v1", max_frames=60)


def at_random(task: Task) -> MakePolicy:
    return lambda generator: uniform(task, generator)


def choosing(num_actions: int) -> Task:
    return Task("choices", num_actions, (1,), "float32")


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("lives", [False, True])
def test_learners_see_rewards_by_their_sign_and_lost_lives_as_ends_only_where_that_is_asked(
    clip: bool, lives: bool
) -> None:
    no = np.zeros(3, dtype=np.bool_)
    step = Transition(
        observations=np.zeros((3, 1), dtype=np.float32),
        starts=no,
        actions=np.zeros(3, dtype=np.int64),
        rewards=np.array([7.0, 0.0, -0.5], dtype=np.float32),
        terminated=np.array([True, False, False]),
        truncated=no,
        life_lost=np.array([False, True, False]),
        final_observations=np.zeros((3, 1), dtype=np.float32),
        returns=np.array([20.0, np.nan, np.nan], dtype=np.float32),
    )
    learnt = next(as_learnt(iter([step]), clip_rewards=clip, lives_as_episodes=lives))
    assert learnt.rewards.tolist() == ([1.0, 0.0, -1.0] if clip else [7.0, 0.0, -0.5])
    assert learnt.terminated.tolist() == [True, lives, False]
    assert learnt.returns[0] == 20.0, "scores stay as the game gives them"


def test_a_transition_is_what_was_seen_done_and_what_came_of_it() -> None:
    environments, control = Environments(BREAKOUT, 3, 0), Environments(BREAKOUT, 3, 0)
    chosen: list[Actions] = []
    inner = uniform(BREAKOUT, np.random.default_rng(0))

    def policy(observations: Any) -> Actions:
        np.testing.assert_array_equal(observations, control.observations)
        chosen.append(inner(observations))
        return chosen[-1]

    transitions = rollout(environments, policy)
    for number in range(80):
        observations, starts = control.observations, control.starts
        transition = next(transitions)
        step = control.step(chosen[number])
        np.testing.assert_array_equal(transition.observations, observations)
        np.testing.assert_array_equal(transition.starts, starts)
        np.testing.assert_array_equal(transition.actions, chosen[number])
        for name in step._fields:
            np.testing.assert_array_equal(getattr(transition, name), getattr(step, name), err_msg=name)


@pytest.mark.parametrize(("episodes", "num_envs"), [(7, 3), (4, 4), (2, 5), (1, 1), (9, 2)])
def test_each_row_plays_the_same_number_of_games_from_its_first_on(episodes: int, num_envs: int) -> None:
    games: dict[int, list[float]] = {}

    def count(transition: Transition) -> None:
        for row in np.flatnonzero(transition.terminated | transition.truncated):
            games.setdefault(int(row), []).append(float(transition.returns[row]))

    finished: list[int] = []
    returns = play(
        CARTPOLE, at_random(CARTPOLE), episodes, 3, num_envs=num_envs, on_step=count, on_progress=finished.append
    ).returns
    rows = min(episodes, num_envs)
    quotas = [len(share) for share in np.array_split(np.arange(episodes), rows)]
    assert returns.tolist() == [score for row in range(rows) for score in games[row][: quotas[row]]]
    assert len(returns) == episodes
    assert set(games) == set(range(rows))
    assert finished[-1] == episodes
    assert finished == sorted(finished)


def test_short_games_are_not_counted_more_often_than_long_ones() -> None:
    # One row in two falls at once, the other plays on; counted as they end, short games would crowd out the long ones.
    class Uneven:
        def __call__(self, observations: Any) -> npt.NDArray[np.int64]:
            lean: npt.NDArray[np.int64] = (observations[:, 2] + observations[:, 3] > 0).astype(np.int64)
            return np.where(np.arange(len(observations)) % 2 == 0, lean, 1 - lean)

    returns = play(CARTPOLE, lambda generator: Uneven(), 8, 0, num_envs=4).returns
    assert (returns > 50).sum() == 4
    assert (returns < 20).sum() == 4


def test_play_follows_from_the_seed() -> None:
    first, second, other = (play(CARTPOLE, at_random(CARTPOLE), 10, seed).returns for seed in (1, 1, 2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)
    assert first.dtype == np.float64


def test_environments_are_closed_when_the_policy_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Environments] = []
    close = Environments.close

    def noted(self: Environments) -> None:
        closed.append(self)
        close(self)

    monkeypatch.setattr(Environments, "close", noted)

    def broken(observations: Any) -> npt.NDArray[np.int64]:
        raise RuntimeError("no idea")

    with pytest.raises(RuntimeError, match="no idea"):
        play(CARTPOLE, lambda generator: broken, 1, 0)
    assert len(closed) == 1


class Prefers:
    """The same action always has the highest score."""

    score_kind: ScoreKind = "q_values"

    def __init__(self, action: int, num_actions: int) -> None:
        self.scores = torch.eye(num_actions)[action]

    def __call__(self, observations: Tensor) -> Tensor:
        return self.scores.expand(len(observations), -1)


def test_epsilon_is_the_share_of_uniformly_random_actions() -> None:
    policy: Policy = EpsilonGreedy(Prefers(2, 4), choosing(4), 0.3, np.random.default_rng(0))
    actions = policy(np.zeros((40_000, 1), dtype=np.float32))
    shares = np.bincount(actions, minlength=4) / len(actions)
    # A random action is the preferred one in a quarter of the cases; 0.01 is more than four standard deviations.
    np.testing.assert_allclose(shares, [0.075, 0.075, 0.775, 0.075], atol=0.01)


def test_without_epsilon_play_is_greedy_and_with_all_of_it_uniform() -> None:
    observations = np.zeros((4_000, 1), dtype=np.float32)
    assert set(EpsilonGreedy(Prefers(1, 3), choosing(3), 0.0, np.random.default_rng(0))(observations)) == {1}
    shares = np.bincount(EpsilonGreedy(Prefers(1, 3), choosing(3), 1.0, np.random.default_rng(0))(observations)) / 4_000
    np.testing.assert_allclose(shares, 1 / 3, atol=0.04)


@given(seed=st.integers(0, 1000), low=st.floats(0, 1), high=st.floats(0, 1))
def test_the_same_random_actions_are_drawn_for_any_epsilon(seed: int, low: float, high: float) -> None:
    low, high = sorted((low, high))
    first, second = np.random.default_rng(seed), np.random.default_rng(seed)
    wanted = np.full(20, 9)
    nine = choosing(9)
    few, many = mix_in_random(wanted, nine, low, first), mix_in_random(wanted, nine, high, second)
    assert ((few == 9) | (few == many)).all(), "more exploration replaces more actions, by the same ones"
    assert first.random() == second.random()
