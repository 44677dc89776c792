"""Double DQN: its targets by hand, its bookkeeping, and that a saved learner goes on as if nothing had been."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rldistill.files import load_state, save_state
from rldistill.lessons.dqn import DQN, DQNSettings, n_step_returns, q_targets
from rldistill.lessons.learning import Learning
from rldistill.play.envs import Environments, make_task
from rldistill.play.replay import Replay
from rldistill.students.networks import Architecture, build
from rldistill.types import UserError

SMALL = dict(
    capacity=400, n_step=3, warmup=64, replay_ratio=2.0, minibatch=16, target_every=7, item_steps=64, slack=256
)

DQN_COLUMNS = {
    "actions": ((), np.int64), "rewards": ((), np.float32), "terminated": ((), np.bool_), "truncated": ((), np.bool_)
}  # fmt: skip


@contextmanager
def learner(
    env: str = "CartPole-v1",
    scratch: Path | None = None,
    num_envs: int = 4,
    lives_as_episodes: bool = False,
    epsilon_steps: int = 200,
    **changed: Any,
) -> Iterator[DQN]:
    task = make_task(env)
    name = "mlp:16" if len(task.observation_shape) == 1 else "cnn:4:16"
    network = build(Architecture(name, task.observation_shape, task.num_actions), 0)
    environments = Environments(task, num_envs, 0)
    learning = Learning(
        steps=1_000, learning_rate=1e-2, discount=0.9, epsilon_end=0.1, epsilon_steps=epsilon_steps, epsilon_repeats=5,
        clip_rewards=False, lives_as_episodes=lives_as_episodes, seed=0,
    )  # fmt: skip
    try:
        yield DQN(network, environments, learning, DQNSettings(**(SMALL | changed)), scratch=scratch)
    finally:
        environments.close()


def weights(dqn: DQN) -> list[bytes]:
    return [tensor.numpy().tobytes() for tensor in dqn.network.state_dict().values()]


def test_the_target_network_values_what_the_learning_network_chooses() -> None:
    targets = q_targets(
        r_t=torch.tensor([1.0, 0.5, -1.0]),
        discount_t=torch.tensor([0.5, 0.9, 0.0]),
        q_t_value=torch.tensor([[10.0, 2.0], [3.0, 4.0], [100.0, 100.0]]),
        q_t_selector=torch.tensor([[0.0, 1.0], [5.0, -5.0], [0.0, 1.0]]),
    )
    # 1 + 0.5 * 2 (not 10, the target network's best); 0.5 + 0.9 * 3 (not 4); and an end has no future.
    assert targets.tolist() == pytest.approx([2.0, 3.2, -1.0])


def test_without_a_network_to_choose_it_is_the_target_networks_largest_value() -> None:
    values = torch.tensor([[10.0, 2.0], [3.0, 4.0]])
    targets = q_targets(torch.tensor([1.0, 0.5]), torch.tensor([0.5, 0.9]), values, values)
    assert targets.tolist() == pytest.approx([6.0, 4.1])  # 1 + 0.5 * 10, 0.5 + 0.9 * 4


def test_rewards_are_summed_up_to_the_window_the_end_or_the_cut() -> None:
    no, yes = False, True
    rewards = np.array([[1, 2, 4], [1, 2, 4], [1, 2, 4], [1, 2, 4], [1, 2, 4], [1, 2, 4]], dtype=np.float32)
    terminated = np.array([[no, no, no], [yes, no, no], [no, no, yes], [no, no, no], [no, no, no], [no, yes, no]])
    truncated = np.array([[no, no, no], [no, yes, no], [no, no, no], [no, no, yes], [yes, no, no], [no, no, yes]])
    following = n_step_returns(rewards, terminated, truncated, 0.5)
    assert following.returns.tolist() == [
        3.0,
        1.0,
        3.0,
        2.0,
        0.0,
        2.0,
    ]  # 1 + 2/2 + 4/4; 1; the same; 1 + 2/2; none; 1 + 2/2
    assert following.discounts[[0, 1, 2, 3, 5]].tolist() == [0.125, 0.0, 0.0, 0.25, 0.0]
    assert following.steps.tolist() == [3, 1, 3, 2, 0, 2]
    assert following.valid.tolist() == [True, True, True, True, False, True]


def test_one_step_is_the_reward_and_the_discount() -> None:
    following = n_step_returns(
        np.array([[3.0], [4.0]], dtype=np.float32), np.array([[False], [True]]), np.zeros((2, 1), dtype=np.bool_), 0.99
    )
    assert following.returns.tolist() == [3.0, 4.0]
    assert following.discounts.tolist() == pytest.approx([0.99, 0.0])


outcomes = st.lists(
    st.tuples(st.floats(-2, 2, width=16), st.sampled_from(["on", "on", "end", "cut"])), min_size=1, max_size=6
)


@given(outcomes, st.floats(0.1, 1.0))
def test_n_step_returns_are_those_of_a_walk_along_the_episode(steps: list[tuple[float, str]], discount: float) -> None:
    expected, weight, used = 0.0, 1.0, 0
    for reward, outcome in steps:
        if outcome == "cut":
            break
        expected += weight * reward
        weight *= discount
        used += 1
        if outcome == "end":
            weight = 0.0
            break
    following = n_step_returns(
        np.array([[reward for reward, _ in steps]], dtype=np.float32),
        np.array([[outcome == "end" for _, outcome in steps]]),
        np.array([[outcome == "cut" for _, outcome in steps]]),
        discount,
    )
    assert following.returns[0] == pytest.approx(expected, abs=1e-5)
    assert following.discounts[0] == pytest.approx(weight, abs=1e-5)
    assert following.steps[0] == used
    assert following.valid[0] == (used > 0)


@pytest.mark.parametrize("double", [True, False])
def test_an_update_is_a_step_on_the_huber_loss_of_the_samples_drawn(double: bool) -> None:
    with learner(minibatch=64, double=double) as dqn:
        while dqn.control_steps < 600:  # the ring has gone round
            dqn.play()
        with torch.no_grad():
            for parameter in dqn.target.parameters():
                parameter.mul_(-1.5)  # so that it matters which network is asked for what
        generator = np.random.default_rng()
        generator.bit_generator.state = dqn.generator.bit_generator.state
        replay, errors = dqn.replay, []

        def values(network: torch.nn.Module, time: int, row: int) -> torch.Tensor:
            stacks = torch.from_numpy(replay.observations(np.array([time]), np.array([row])))
            with torch.no_grad():
                return network(stacks)[0]  # type: ignore[no-any-return]  # a Module's call is untyped

        def column(name: str, time: int, row: int) -> float:
            return float(replay.column(name, np.array([time]), np.array([row]))[0])

        for time, row in zip(*replay.sample(generator, 64, ahead=3), strict=True):
            target, weight = 0.0, 1.0
            for k in range(3):
                assert not column("truncated", time + k, row)  # none is as young as this
                target += weight * column("rewards", time + k, row)
                weight *= 0.9
                if column("terminated", time + k, row):
                    weight = 0.0
                    break
            else:
                chooses = dqn.network if double else dqn.target
                best = int(values(chooses, time + 3, row).argmax())
                target += weight * float(values(dqn.target, time + 3, row)[best])
            error = abs(float(values(dqn.network, time, row)[int(column("actions", time, row))]) - target)
            errors.append(error**2 / 2 if error <= 1 else error - 0.5)
        loss, _ = dqn.update()
        assert float(loss) == pytest.approx(np.mean(errors), rel=1e-4)


def test_the_warm_up_is_random_play_whatever_the_schedule_after_it() -> None:
    with learner("MinAtar/Breakout-v1", warmup=10_000) as dqn:
        assert dqn.epsilon == 1.0
    with learner("MinAtar/Breakout-v1", epsilon_steps=0, warmup=10_000) as dqn:
        for _ in range(150):
            dqn.play()
        actions = dqn.replay.column("actions", np.arange(50, 150)[:, None], np.arange(4)[None])
        assert dqn.epsilon == 1.0
        # 400 draws of three actions alike: each has 133 on average, with a deviation of 9.4.
        assert np.bincount(actions.ravel(), minlength=3).min() > 90


def test_updates_follow_from_the_control_steps_alone() -> None:
    with learner() as dqn:
        items = dqn.learn()
        records = [next(items) for _ in range(6)]
        assert dqn.control_steps == 6 * 64
        assert dqn.updates == (6 * 64 - 64) * 2 // 16
    assert records[0]["loss"] is None  # warming up
    assert records[0]["epsilon"] == 1.0
    assert all(np.isfinite(record["loss"]) for record in records[1:])
    assert records[-1]["epsilon"] == pytest.approx(0.1)
    assert sum(len(record["returns"]) for record in records) > 5


def test_the_target_network_is_a_copy_from_every_seventh_update() -> None:
    with learner() as dqn:
        for _ in range(30):
            dqn.play()
        first = [tensor.clone() for tensor in dqn.target.state_dict().values()]
        for _ in range(6):
            dqn.update()
        assert all(map(torch.equal, first, dqn.target.state_dict().values()))
        dqn.update()
        copied = [tensor.clone() for tensor in dqn.target.state_dict().values()]
        assert all(map(torch.equal, copied, dqn.network.state_dict().values()))
        assert not all(map(torch.equal, first, copied))
        dqn.update()
        assert all(map(torch.equal, copied, dqn.target.state_dict().values()))


@pytest.mark.parametrize("env", ["CartPole-v1", "MinAtar/Breakout-v1", "PongNoFrameskip-v4"])
@pytest.mark.slow
def test_vectors_grids_and_images_are_learnt_from(env: str) -> None:
    with learner(env) as dqn:
        dqn.network.bfloat16 = True
        before = weights(dqn)
        items = dqn.learn()
        next(items)
        assert np.isfinite(next(items)["loss"])
        assert weights(dqn) != before


def test_what_a_checkpoint_needs_is_never_overwritten_before_the_next_is_due(tmp_path: Path) -> None:
    with learner(scratch=tmp_path) as dqn:
        items = dqn.learn()
        resumed = Replay(dqn.environments.task, 4, 400, DQN_COLUMNS, scratch=tmp_path, slack=256)
        saved, number = dqn.state_dict()["replay"], 0
        for _ in range(30):
            next(items)
            resumed.load_state_dict(saved)  # raises where a frame that it needs is another one by now
            if dqn.must_save:
                saved, number = dqn.state_dict()["replay"], number + 1
        # An item adds 16 times. The ring of 100 with its room of 64 is full after 10 items; then every fourth item.
        assert number == 6


def test_a_learner_put_back_learns_on_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    (tmp_path / "replay").mkdir()
    with learner(scratch=tmp_path / "replay") as dqn:
        items = dqn.learn()
        for _ in range(8):
            next(items)
        save_state(tmp_path / "state", dqn.state_dict())
        expected = [next(items) for _ in range(3)]  # these write on into the same files, as a killed process may have
        after = weights(dqn)
    with learner(scratch=tmp_path / "replay") as dqn:
        dqn.load_state_dict(load_state(tmp_path / "state"))
        items = dqn.learn()
        assert [next(items) for _ in range(3)] == expected
        assert weights(dqn) == after


def test_a_replay_too_small_to_sample_from_is_refused() -> None:
    with (
        pytest.raises(UserError, match="too small for 4 environments and 30-step returns"),
        learner(capacity=40, n_step=30),
    ):
        pass


def test_settings_of_an_item_change_reports_alone() -> None:
    ends = []
    for item_steps in (32, 256):
        with learner(item_steps=item_steps) as dqn:
            items = dqn.learn()
            while dqn.control_steps < 512:
                next(items)
            ends.append(weights(dqn))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("lives_as_episodes", [False, True])
@pytest.mark.slow
def test_a_lost_life_ends_what_is_learnt_only_where_that_is_asked(lives_as_episodes: bool) -> None:
    with learner("BreakoutNoFrameskip-v4", lives_as_episodes=lives_as_episodes, warmup=10_000, capacity=2_000) as dqn:
        games = sum(len(dqn.play()) for _ in range(500))
        ends = int(dqn.replay.column("terminated", np.arange(500)[:, None], np.arange(4)[None]).sum())
    # Five lives a game, the last of which is the end of it; up to four more are lost in each game that is still open.
    assert games > 4
    assert 5 * games <= ends <= 5 * games + 4 * 4 if lives_as_episodes else ends == games
