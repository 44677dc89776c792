"""PPO: its estimates and losses against numbers worked out by hand, and real environments that it learns."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rldistill.files import load_state, save_state
from rldistill.lessons.ppo import RunningMoments, advantages, clipped_objective, clipped_value_loss, judged
from rldistill.play.actions import chosen
from rldistill.policies import load_policy
from rldistill.students.critics import ActorCritic, in_action_units
from rldistill.students.networks import Architecture, build
from rldistill.types import UserError, as_tensor
from rldistill.verbs.evaluate import EvaluateConfig, evaluate
from rldistill.verbs.train import TrainConfig, make_learner, train

SMALL: dict[str, Any] = dict(algo="ppo", network="mlp:16", rollout_length=32, epochs=2, minibatches=4, final_episodes=0)


def test_advantages_are_discounted_sums_of_errors() -> None:
    r_t, v_tm1 = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[0.5], [1.0], [2.0]])
    v_t, discount = torch.tensor([[1.0], [2.0], [4.0]]), torch.full((3, 1), 0.5)
    never = torch.zeros(3, 1, dtype=torch.bool)
    # Errors: 1 + 0.5 - 0.5 = 1; 2 + 1 - 1 = 2; 3 + 2 - 2 = 3. With gamma lambda = 0.4: 3; 2 + 1.2; 1 + 0.4 * 3.2.
    assert advantages(r_t, discount, v_tm1, v_t, never, 0.8).flatten().tolist() == pytest.approx([2.28, 3.2, 3.0])
    # Terminated after the second step: 2 - 1 = 1 there, and nothing from later ones.
    ended = torch.tensor([[0.5], [0.0], [0.5]])
    assert advantages(r_t, ended, v_tm1, v_t, never, 0.8).flatten().tolist() == pytest.approx([1.4, 1.0, 3.0])
    # Truncated after the second step: it bootstraps from its final observation, and nothing comes from later ones.
    cut = torch.tensor([[False], [True], [False]])
    assert advantages(r_t, discount, v_tm1, v_t, cut, 0.8).flatten().tolist() == pytest.approx([1.8, 2.0, 3.0])


def test_the_worse_of_ratio_and_clipped_ratio_counts() -> None:
    log_ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1]).log()
    advantage = torch.tensor([2.0, -2.0, 2.0, -2.0, 1.0])
    expected = [-2.4, 3.0, -1.0, 1.6, -1.1]
    assert clipped_objective(log_ratio, advantage, 0.2).tolist() == pytest.approx(expected)


def test_a_value_gains_nothing_by_going_far_from_the_old_one() -> None:
    values, before = torch.tensor([1.0, 1.0, 0.1]), torch.zeros(3)
    returns = torch.tensor([1.0, 0.0, 1.0])
    # Held at 0.2, 0.2 and 0.1: half of 0.64, of 1, and of 0.81.
    assert clipped_value_loss(values, before, returns, 0.2).tolist() == pytest.approx([0.32, 0.5, 0.405])


def test_probabilities_and_entropies_are_those_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, actions = torch.randn(7, 6, generator=generator), torch.randn(7, 3, generator=generator)
    normal = torch.distributions.Normal(scores[:, :3], scores[:, 3:].exp())
    made = judged(scores, actions, None)
    torch.testing.assert_close(made.log_probability, normal.log_prob(actions).sum(1))
    torch.testing.assert_close(made.entropy, normal.entropy().sum(1))
    taken = torch.tensor([0, 5, 2, 3, 4, 1, 0])
    masks = torch.rand(7, 6, generator=generator) < 0.5
    masks[torch.arange(7), taken] = True
    made = judged(scores, taken, masks)
    softmax = torch.distributions.Categorical(logits=scores.masked_fill(~masks, -1e9))
    torch.testing.assert_close(made.log_probability, softmax.log_prob(taken))
    torch.testing.assert_close(made.entropy, softmax.entropy())


def test_moments_are_those_of_all_numbers_together() -> None:
    numbers = np.random.default_rng(0).normal(3, 2, size=(100, 2))
    moments = RunningMoments((2,))
    for part in np.split(numbers, [1, 30, 77]):
        moments.add(part)
    np.testing.assert_allclose(moments.mean, numbers.mean(axis=0))
    np.testing.assert_allclose(moments.deviation, numbers.std(axis=0))


def test_a_gaussian_in_the_units_of_the_environment_acts_as_the_one_that_learns(tmp_path: Path) -> None:
    learner = make_learner("Pendulum-v1", TrainConfig.of(**SMALL, steps=2000), tmp_path)
    task = learner.environments.task
    network = learner.network
    try:
        states = as_tensor(np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32))
        with torch.no_grad():
            network.layers[-1].bias.copy_(torch.tensor([0.3, -1.0]))
            own, units = network(states), in_action_units(network, task)(states)
        torch.testing.assert_close(units[:, 0], 2 * own[:, 0])  # the torque goes from -2 to 2
        torch.testing.assert_close(units[:, 1], own[:, 1] + math.log(2))
        torch.testing.assert_close(chosen(units, "gaussian", task)[:, 0], 2 * own[:, 0])
    finally:
        learner.environments.close()


def test_deviations_do_not_depend_on_the_state_after_learning(tmp_path: Path) -> None:
    policy = train("Pendulum-v1", tmp_path / "run", TrainConfig.of(**SMALL, steps=1500))
    scores = policy(as_tensor(np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)))
    assert policy.score_kind == "gaussian"
    assert scores[:, 1].std() == 0
    assert scores[0, 1] != pytest.approx(math.log(2), abs=1e-6), "it is learnt"
    assert scores[:, 0].std() > 0


def test_the_critic_of_images_reads_the_policys_features() -> None:
    network = build(Architecture("cnn:4,4,4:8", (4, 84, 84), 6), 0, "logits")
    model = ActorCritic(network, 0)
    states = torch.randint(0, 255, (2, 4, 84, 84), dtype=torch.uint8)
    scores, values = model(states)
    torch.testing.assert_close(scores, network(states))
    assert values.shape == (2,)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in network.parameters()) + 9


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_a_stopped_learner_goes_on_to_the_same_weights(tmp_path: Path, env: str) -> None:
    config = TrainConfig.of(**SMALL, steps=4000, seed=3)
    whole = make_learner(env, config, tmp_path / "a")
    rounds = whole.learn()
    for _ in range(2):
        next(rounds)
    save_state(tmp_path / "state", whole.state_dict())
    for _ in range(2):
        next(rounds)
    again = make_learner(env, config, tmp_path / "b")
    again.load_state_dict(load_state(tmp_path / "state"))
    rounds = again.learn()
    for _ in range(2):
        next(rounds)
    assert again.control_steps == whole.control_steps
    for one, other in zip(whole.policy.parameters(), again.policy.parameters(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(whole.policy.shift, again.policy.shift)
    whole.environments.close()
    again.environments.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "steps", "least", "discount"), [("CartPole-v1", 40_000, 200, 0.99), ("Pendulum-v1", 50_000, -500, 0.9)]
)
def test_it_learns_and_the_saved_policy_takes_raw_observations(
    tmp_path: Path, env: str, steps: int, least: float, discount: float
) -> None:
    config = TrainConfig.of(algo="ppo", steps=steps, discount=discount, final_episodes=0)
    train(env, tmp_path / "run", config)
    (score,) = evaluate([tmp_path / "run"], EvaluateConfig(episodes=10, epsilon=0.0, seed=5))
    assert score.mean > least
    assert load_policy(tmp_path / "run").network.shift.abs().sum() > 0, "the standardization is in the policy"


@pytest.mark.parametrize(
    ("env", "settings", "word"),
    [
        ("CartPole-v1", dict(epsilon_end=0.1), "epsilon-end"),
        ("CartPole-v1", dict(n_step=5), "n-step"),
        ("CartPole-v1", dict(only="x0 < 0"), "only"),
        ("CartPole-v1", dict(minibatches=2000, rollout_length=8), "minibatches"),
        (["CartPole-v1", "Acrobot-v1"], {}, "one environment"),
        ("CartPole-v1", dict(algo="pqn", clip=0.3), "clip"),
        ("Pendulum-v1", dict(algo="pqn"), "ppo"),
    ],
)
def test_what_ppo_does_not_have_is_one_line(tmp_path: Path, env: Any, settings: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word):
        train(env, tmp_path / "run", TrainConfig.of(**{"algo": "ppo", "steps": 1000} | settings))
    assert not (tmp_path / "run").exists()
