"""PQN: its targets by hand and by their definition, and that a saved learner goes on as if nothing had been."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rldistill.files import load_state, save_state
from rldistill.lessons.learning import Learning
from rldistill.lessons.pqn import PQN, PQNSettings, q_lambda_targets
from rldistill.play.envs import Environments, make_task
from rldistill.schedules import constant
from rldistill.students.networks import Architecture, build


@contextmanager
def learner(env: str = "CartPole-v1", lives_as_episodes: bool = False, averaging: int = 20) -> Iterator[PQN]:
    task = make_task(env)
    name = "mlp:16" if len(task.observation_shape) == 1 else "cnn:4:16"
    network = build(Architecture(name, task.observation_shape, task.num_actions, "layer"), 0)
    environments = Environments(task, 4, 0)
    try:
        learning = Learning(
            steps=2_000, learning_rate=1e-2, discount=0.9, epsilon_end=0.1, epsilon_steps=400, epsilon_repeats=5,
            clip_rewards=False, lives_as_episodes=lives_as_episodes, seed=0,
        )  # fmt: skip
        settings = PQNSettings(rollout_length=16, minibatch=16, steady=True, averaging=averaging)
        yield PQN(network, environments, learning, settings)
    finally:
        environments.close()


def column(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers)[:, None]


def test_q_lambda_targets_are_those_worked_out_by_hand() -> None:
    targets = q_lambda_targets(
        column(1.0, 2.0, 4.0), column(0.5, 0.5, 0.5), column(10.0, 20.0, 40.0), column(0, 0, 0).bool(), 0.5
    )
    # Backwards: 4 + 0.5 * 40 = 24; 2 + 0.5 * (20 + 24) / 2 = 13; 1 + 0.5 * (10 + 13) / 2 = 6.75.
    assert targets.flatten().tolist() == [6.75, 13.0, 24.0]


def test_an_end_has_no_future_and_a_cut_bootstraps_and_ends_the_trace() -> None:
    rewards, values = column(1.0, 2.0, 4.0), column(10.0, 20.0, 40.0)
    ended = q_lambda_targets(rewards, column(0.5, 0.0, 0.5), values, column(0, 0, 0).bool(), 0.5)
    assert ended.flatten().tolist() == [4.0, 2.0, 24.0]  # 1 + 0.5 * (10 + 2) / 2
    cut = q_lambda_targets(rewards, column(0.5, 0.5, 0.5), values, column(0, 1, 0).bool(), 0.5)
    assert cut.flatten().tolist() == [6.5, 12.0, 24.0]  # 2 + 0.5 * 20, then 1 + 0.5 * (10 + 12) / 2


def test_without_a_trace_the_targets_are_one_step() -> None:
    rewards, discounts, values = torch.rand(3, 5, 2, generator=torch.Generator().manual_seed(0))
    targets = q_lambda_targets(rewards, discounts, values, torch.zeros(5, 2, dtype=torch.bool), 0.0)
    torch.testing.assert_close(targets, rewards + discounts * values)


@given(st.integers(1, 6), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**31))
def test_targets_are_the_weighted_mean_of_all_n_step_returns(
    length: int, trace: float, discount: float, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    rewards, values = generator.normal(size=(2, length))
    following = q_lambda_targets(
        column(*rewards),
        torch.full((length, 1), discount),
        column(*values),
        torch.zeros(length, 1, dtype=torch.bool),
        trace,
    )
    for t in range(length):
        n_step = [
            sum(discount**k * rewards[t + k] for k in range(n)) + discount**n * values[t + n - 1]
            for n in range(1, length - t + 1)
        ]
        shares = [(1 - trace) * trace**k for k in range(len(n_step) - 1)]
        shares.append(1 - sum(shares))
        assert float(following[t, 0]) == pytest.approx(float(np.dot(shares, n_step)), abs=1e-4)


def test_a_learner_put_back_learns_on_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    with learner() as pqn:
        items = pqn.learn()
        for _ in range(4):
            next(items)
        save_state(tmp_path / "state", pqn.state_dict())
        expected = [next(items) for _ in range(3)]
        policy = [parameter.clone() for parameter in pqn.policy.parameters()]
        assert pqn.control_steps == 7 * 64
        assert pqn.updates == 7 * 2 * 4
    with learner() as pqn:
        pqn.load_state_dict(load_state(tmp_path / "state"))
        items = pqn.learn()
        assert [next(items) for _ in range(3)] == expected
        assert all(map(torch.equal, pqn.policy.parameters(), policy))


def test_the_policy_is_the_mean_of_all_weights_and_later_an_exponential_one() -> None:
    generator = torch.Generator().manual_seed(0)
    with learner(averaging=4) as pqn:
        head, expected = pqn.network.layers[-1].weight, torch.zeros(())
        assert pqn.policy.layers[-1].weight is not head
        for number in range(1, 8):
            pqn.fit(torch.randn((16, 4), generator=generator), torch.zeros(16, dtype=torch.int64), torch.ones(16))
            share = 1 / number if number < 4 else 1 / 4  # 1, 1/2, 1/3, then a quarter is new each time
            expected = (1 - share) * expected + share * head.detach()
            torch.testing.assert_close(pqn.policy.layers[-1].weight.detach(), expected)


def test_a_policy_that_is_not_averaged_is_the_network_itself() -> None:
    with learner(averaging=1) as pqn:
        assert pqn.policy is pqn.network


@pytest.mark.parametrize("lives_as_episodes", [False, True])
@pytest.mark.slow
def test_a_lost_life_has_no_future_only_where_lives_are_episodes(lives_as_episodes: bool) -> None:
    with learner("BreakoutNoFrameskip-v4", lives_as_episodes) as pqn:
        pqn.epsilon = constant(1.0)
        head = pqn.network.layers[-1]
        with torch.no_grad():  # whatever is seen has the value 10
            head.weight.zero_()
            head.bias.fill_(10.0)
        targets, games = [], 0
        for _ in range(16):  # 256 steps of four rows; random play loses a life within some 30
            _, _, learnt, returns = pqn._collect()
            targets.append(learnt)
            games += len(returns)
    without_future = int((torch.cat(targets) < 0.5).sum())  # a life is never lost with a reward
    assert games > 3
    assert 5 * games <= without_future <= 5 * games + 4 * 4 if lives_as_episodes else without_future == games


@pytest.mark.slow
def test_steady_steps_to_one_value_for_all_states_leave_them_apart() -> None:
    # A still background and a small square that moves, as in games whose rewards are rare. What the states have in common
    # must not drown it: without steady steps 0.45 of the difference is left here, and less with each further step.
    generator = np.random.default_rng(0)
    background = generator.integers(256, size=(4, 84, 84), dtype=np.uint8)

    def states(number: int) -> torch.Tensor:
        images = np.repeat(background[None], number, axis=0)
        for image, (row, column) in zip(images, generator.integers(76, size=(number, 2)), strict=True):
            image[:, row : row + 8, column : column + 8] = 255
        return torch.from_numpy(images)

    task = make_task("PongNoFrameskip-v4")
    network = build(Architecture("cnn:8,8,8:32", task.observation_shape, 3, "layer"), 0)
    environments = Environments(task, 1, 0)
    learning = Learning(
        steps=10**6, learning_rate=1e-3, discount=0.99, epsilon_end=0.01, epsilon_steps=1, epsilon_repeats=1,
        clip_rewards=True, lives_as_episodes=True, seed=0,
    )  # fmt: skip
    pqn = PQN(network, environments, learning, PQNSettings(steady=True))
    observations = states(64)

    def apart() -> float:
        """Mean deviation of the last hidden layer's units, which are normalized in each state, over states."""
        with torch.no_grad():
            return float(network.layers[:-2](observations / 255).std(0).mean())

    before = apart()
    network.train()
    for _ in range(150):
        loss = pqn.fit(states(32), torch.zeros(32, dtype=torch.int64), torch.zeros(32))
    environments.close()
    assert loss < 1e-3
    assert apart() > 0.65 * before
