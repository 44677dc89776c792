"""What a spectator sees and reads, the same for the report page and for `watch`."""

from __future__ import annotations

from contextlib import closing
from itertools import islice

import numpy as np
import pytest

from rldistill.play.envs import action_names, make_task
from rldistill.play.games import play
from rldistill.play.rollout import EpsilonGreedy
from rldistill.policies import SavedPolicy
from rldistill.students.networks import Architecture, build
from rldistill.types import ScoreKind, Task
from rldistill.verbs.spectator import measure, preferences, spectate, temperature_of, usual_temperature

pytest.importorskip("minatar")
BREAKOUT = make_task("MinAtar/Breakout-v1")


def a_policy(task: Task = BREAKOUT, kind: ScoreKind = "q_values", seed: int = 0) -> SavedPolicy:
    network = "cnn:2:4" if len(task.observation_shape) == 3 else "mlp:4"
    return SavedPolicy(build(Architecture(network, task.observation_shape, task.num_actions), seed, kind).eval(), task)


def test_a_spectator_sees_the_games_that_are_played_without_one() -> None:
    policy = a_policy()
    expected = play(
        BREAKOUT, lambda generator: EpsilonGreedy(policy, BREAKOUT, 0.5, generator), 3, 7, num_envs=1
    ).returns.tolist()
    with closing(spectate(policy, BREAKOUT, epsilon=0.5, seed=7)) as moments:
        ended = [m for m in islice(moments, 400) if m.ended]
    assert [m.score + m.reward for m in ended[:3]] == expected
    assert [m.game for m in ended[:3]] == [1, 2, 3]


def test_running_score_and_game_follow_the_rewards() -> None:
    policy = a_policy()
    with closing(spectate(policy, BREAKOUT, epsilon=1.0, seed=0, other=policy)) as moments:
        watched = list(islice(moments, 120))
    assert watched[0].game == 1
    assert watched[-1].game > 1  # random play soon loses the ball
    for before, after in zip(watched, watched[1:], strict=False):
        assert after.game == before.game + before.ended
        assert after.score == (0 if before.ended else before.score + before.reward)
    for moment in watched:
        assert moment.other is not None
        assert np.array_equal(moment.other, moment.values)
        assert moment.best == moment.values.argmax()
        assert moment.random == (moment.action != moment.best)


def test_actions_have_the_names_that_the_world_gives_them(levers: str) -> None:
    pong = ["NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE"]
    assert action_names(make_task("PongNoFrameskip-v4")) == action_names(make_task("ALE/Pong-v5")) == pong
    assert action_names(BREAKOUT) == ["NOOP", "LEFT", "RIGHT"]
    assert action_names(make_task("CartPole-v1")) == ["0", "1"]
    assert action_names(make_task(levers)) == ["0: 0", "0: 1", "1: 0", "1: 1", "1: 2"]


def test_preferences_are_a_softmax_at_the_temperature() -> None:
    values = np.array([[0.0, 0.03 * np.log(3)]], dtype=np.float32)
    assert preferences(values, "q_values", make_task("CartPole-v1"), temperature=0.03)[0] == pytest.approx(
        [0.25, 0.75], abs=1e-6
    )


def test_preferences_of_several_actions_are_a_softmax_each(levers: str) -> None:
    log3 = float(np.log(3))
    values = np.array([[0.0, log3, 0.0, log3, 0.0]], dtype=np.float32)
    shares = preferences(values, "logits", make_task(levers), temperature=1.0)
    assert shares[0] == pytest.approx([0.25, 0.75, 0.2, 0.6, 0.2], abs=1e-6)


def test_preferences_of_continuous_actions_are_their_places_in_the_range() -> None:
    task = Task("arm", 2, (3,), "float32", action_low=(-2.0, 0.0), action_high=(2.0, 10.0))
    half = float(np.arctanh(0.5))
    for kind, row, expected in (
        ("actions", [1.0, 2.5], [0.75, 0.25]),
        ("actions", [-9.0, 99.0], [0.0, 1.0]),
        ("gaussian", [1.0, 2.5, 0.3, -4.0], [0.75, 0.25]),
        ("squashed_gaussian", [half, -half, 0.3, -4.0], [0.75, 0.25]),
    ):
        shares = preferences(np.array([row], dtype=np.float32), kind, task, temperature=0.01)  # type: ignore[arg-type]  # a word of a case
        assert shares[0] == pytest.approx(expected, abs=1e-6)


def test_q_values_are_drawn_at_a_fifth_of_their_usual_spread_and_logits_as_they_are() -> None:
    values = np.array([[0.0, 1.0, 3.0], [5.0, 5.5, 5.0], [-1.0, 1.0, 1.0]], dtype=np.float32)  # spreads 3, 0.5, 2
    task, q_valued, with_logits = BREAKOUT, a_policy(), a_policy(kind="logits")
    assert temperature_of(q_valued, values, None) == pytest.approx(0.4)
    assert temperature_of(q_valued, values, 0.03) == 0.03
    assert temperature_of(q_valued, np.ones((4, 3), dtype=np.float32), None) == 1.0, "no spread"
    assert temperature_of(with_logits, values, 0.03) == 1.0
    assert usual_temperature(q_valued, task, epsilon=0.1, seed=0, given=0.03) == 0.03
    assert usual_temperature(with_logits, task, epsilon=0.1, seed=0, given=None) == 1.0
    with closing(spectate(q_valued, task, epsilon=0.1, seed=3)) as moments:
        met = np.stack([moment.values for moment in islice(moments, 200)])
    measured = usual_temperature(q_valued, task, epsilon=0.1, seed=3, given=None)
    assert measured == pytest.approx(temperature_of(q_valued, met, None))
    assert measure(q_valued, 0.4) == "softmax of its Q-values / 0.4"
