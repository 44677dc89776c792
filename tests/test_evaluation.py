"""Tests of `evaluate` on real games: CartPole for most, one MinAtar game for the measured random score."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rldistill.play.envs import make_task, same_game
from rldistill.play.games import play
from rldistill.play.rollout import EpsilonGreedy, uniform
from rldistill.play.timing import decision_microseconds
from rldistill.policies import SavedPolicy, load_policy, save_policy
from rldistill.runs.scores import Score, read_scores, score_table
from rldistill.students.networks import Architecture, Network, build
from rldistill.types import ScoreKind, UserError
from rldistill.verbs.evaluate import EvaluateConfig, evaluate

CARTPOLE = make_task("CartPole-v1")
QUICK = EvaluateConfig(episodes=6, num_envs=3, epsilon=0.1, seed=4)


def cartpole_network(name: str = "mlp:8", seed: int = 0) -> Network:
    return build(Architecture(name, CARTPOLE.observation_shape, CARTPOLE.num_actions), seed)


def leaning(*, inverted: bool = False) -> Network:
    """Pushes to the side to which the pole leans and turns, which balances it for long; inverted, it never does."""
    network = cartpole_network("mlp:2")
    hidden, head = network.layers[1], network.layers[3]
    assert isinstance(hidden, torch.nn.Linear)
    assert isinstance(head, torch.nn.Linear)
    side = torch.tensor([0.0, 0.0, 1.0, 0.5])
    with torch.no_grad():
        hidden.weight.copy_(torch.stack([-side, side]))
        hidden.bias.zero_()
        head.weight.copy_(torch.eye(2).flip(0) if inverted else torch.eye(2))
        head.bias.zero_()
    return network


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("policies")
    save_policy(root / "teacher", leaning(), CARTPOLE, {})
    save_policy(root / "worse", leaning(inverted=True), CARTPOLE, {})
    return root / "teacher", root / "worse"


@pytest.mark.slow
def test_scores_are_those_of_the_same_games_played_one_by_one(folders: tuple[Path, Path]) -> None:
    scores = evaluate(folders, QUICK)
    for score, folder in zip(scores, folders, strict=True):
        policy = load_policy(folder)

        def explorer(generator: np.random.Generator, policy: SavedPolicy = policy) -> EpsilonGreedy:
            return EpsilonGreedy(policy, CARTPOLE, 0.1, generator)

        assert score.returns == play(CARTPOLE, explorer, 6, 4, num_envs=3).returns.tolist()
        assert score.mean == pytest.approx(np.mean(score.returns))
        assert score.ci_low <= score.mean <= score.ci_high


def test_first_policy_is_the_measure_of_the_others(folders: tuple[Path, Path]) -> None:
    first, other = evaluate(folders, QUICK)
    assert (first.ratio, first.normalized, first.agreement, first.parameter_share) == (1, 1, 1, 1)
    assert other.ratio == pytest.approx(other.mean / first.mean)
    assert other.normalized == pytest.approx((other.mean - other.random_score) / (first.mean - other.random_score))
    assert other.ratio_low <= other.ratio <= other.ratio_high < 1
    assert other.normalized < 0.2


def test_random_score_is_measured_where_the_task_does_not_know_it(folders: tuple[Path, Path]) -> None:
    score = evaluate(folders[:1], QUICK)[0]
    games = play(CARTPOLE, lambda generator: uniform(CARTPOLE, generator), 6, 4, num_envs=3)
    assert score.random_measured
    assert score.random_score == games.returns.mean()


@pytest.mark.slow
def test_agreement_of_opposites_is_0_and_of_equals_1(folders: tuple[Path, Path]) -> None:
    first, opposite, again = evaluate([folders[0], folders[1], str(folders[0])], QUICK)
    # At rest both scores are equal and both networks choose the first; that is never met exactly.
    assert opposite.agreement == 0
    assert again.agreement == 1
    assert again.returns == first.returns


def test_agreement_counts_the_states_of_the_policys_own_games() -> None:
    # A student that always pushes left: it agrees exactly where the teacher would push left too.
    student = cartpole_network("mlp:2")
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    teacher = SavedPolicy(leaning(), CARTPOLE)
    visited: list[np.ndarray] = []
    play(
        CARTPOLE,
        lambda generator: EpsilonGreedy(SavedPolicy(student, CARTPOLE), CARTPOLE, 0.1, generator),
        6,
        4,
        num_envs=3,
        on_step=lambda transition: visited.append(transition.observations),
    )
    left = teacher(torch.from_numpy(np.concatenate(visited))).argmax(dim=1) == 0
    assert evaluate([teacher, SavedPolicy(student, CARTPOLE)], QUICK)[1].agreement == pytest.approx(
        float(left.float().mean())
    )


@pytest.mark.slow
def test_json_file_holds_the_scores_and_can_be_read_back(folders: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    scores = evaluate(folders, QUICK, json=path)
    data = json.loads(path.read_text())
    needed = "policy parameters bytes episodes returns mean iqm ci_low ci_high ratio normalized agreement microseconds"
    assert all(set(needed.split()) <= set(item) for item in data)
    weights = folders[1] / "weights.safetensors"
    assert data[1]["bytes"] == weights.stat().st_size
    assert data[1]["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert data[1]["parameters"] == 4 * 2 + 2 + 2 * 2 + 2
    assert read_scores(path) == scores
    evaluate(folders[:1], QUICK, json=path)  # an earlier evaluation may be replaced
    assert len(json.loads(path.read_text())) == 1


def test_undefined_figures_are_null_in_json(folders: tuple[Path, Path]) -> None:
    score = evaluate(folders[:1], QUICK)[0]
    data = score.as_dict() | {"normalized": None}
    assert math.isnan(Score.from_dict(json.loads(json.dumps(data, allow_nan=False))).normalized)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mean": "high"}, "a score's mean is 'high'"),
        ({"episodes": 2.5}, "a score's episodes is '2.5'"),
        ({"policy": None}, "a score's policy is 'nan'"),
        ({"returns": []}, "returns are no list of numbers"),
        ({"returns": [1.0, "2"]}, "returns are no list of numbers"),
        ({"more": 1}, "has an unknown one"),
    ],
)
@pytest.mark.slow
def test_a_score_of_another_kind_is_refused(
    folders: tuple[Path, Path], tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    path = tmp_path / "scores.json"
    evaluate(folders[:1], QUICK, json=path)
    path.write_text(json.dumps([json.loads(path.read_text())[0] | change]))
    with pytest.raises(UserError, match=says):
        read_scores(path)


def test_a_file_that_holds_no_scores_is_left_alone(folders: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "precious.json"
    path.write_text('{"mine": 1}')
    with pytest.raises(UserError, match=r"precious\.json exists and holds no scores"):
        evaluate(folders, QUICK, json=path)
    assert path.read_text() == '{"mine": 1}'


def test_a_folder_that_may_not_be_written_to_is_told_before_playing(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)  # a root user may write anywhere
    with pytest.raises(UserError, match="nothing may be written to"):
        evaluate(folders, EvaluateConfig(episodes=10**9), json=tmp_path / "scores.json")


def test_one_name_is_one_policy(folders: tuple[Path, Path]) -> None:
    (score,) = evaluate(str(folders[0]), EvaluateConfig(episodes=1, num_envs=1))
    assert score.policy == str(folders[0])


def test_a_json_path_without_a_folder_is_refused_before_playing(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        evaluate(folders, EvaluateConfig(episodes=10**9), json=tmp_path / "absent" / "scores.json")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EvaluateConfig(episodes=0), "--episodes is at least 1, not 0"),
        (EvaluateConfig(epsilon=1.5), "--epsilon lies between 0 and 1, not 1.5"),
        (EvaluateConfig(epsilon=math.nan), "--epsilon lies between 0 and 1"),
        (EvaluateConfig(num_envs=0), "--num-envs lies between 1 and 10000, not 0"),
        (EvaluateConfig(seed=-1), "--seed is at least 0"),
    ],
)
def test_wrong_settings_are_named(folders: tuple[Path, Path], config: EvaluateConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(folders, config)


def test_no_policy_is_refused() -> None:
    with pytest.raises(UserError, match="at least one policy"):
        evaluate([])


def test_policies_of_other_named_parts_are_not_compared(levers: str) -> None:
    """They read features by their place, so parts of other names or in another order are other observations."""
    task = make_task(levers)
    network = build(Architecture("mlp:2", (6,), 5), 0, "logits").eval().requires_grad_(False)
    renamed = tuple(("weather" if name == "wind" else name, size) for name, size in task.observation_keys)
    other = SavedPolicy(network, dataclasses.replace(task, observation_keys=renamed))
    with pytest.raises(UserError, match=r"has the parts age \(1\), .* of observations, but .* has age \(1\)"):
        evaluate([SavedPolicy(network, task), other], QUICK)
    with pytest.raises(UserError, match=r"here, the policy's task says age .*weather \(2\)"):
        evaluate([other], QUICK)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("PongNoFrameskip-v4", "ALE/Pong-v5", True),
        ("LunarLander-v2", "LunarLander-v3", True),
        ("my.module:Track-v0", "Track-v0", True),
        ("PongNoFrameskip-v4", "QbertNoFrameskip-v4", False),
        ("MinAtar/Breakout-v1", "BreakoutNoFrameskip-v4", False),
    ],
)
def test_ids_are_of_the_same_game_or_not(one: str, other: str, same: bool) -> None:
    assert same_game(one, other) is same_game(other, one) is same


@pytest.mark.slow
def test_two_atari_games_with_as_many_actions_are_not_one_unless_it_is_said(tmp_path: Path) -> None:
    for name, env in (("pong", "PongNoFrameskip-v4"), ("qbert", "QbertNoFrameskip-v4")):
        task = make_task(env)
        save_policy(tmp_path / name, build(Architecture("net3", task.observation_shape, 6), 0), task, {})
    both = [tmp_path / "pong", tmp_path / "qbert"]
    with pytest.raises(UserError, match=r"plays PongNoFrameskip-v4 and .* QbertNoFrameskip-v4: name with --env"):
        evaluate(both, QUICK, json=tmp_path / "scores.json")
    assert not (tmp_path / "scores.json").exists()
    scores = evaluate(both, EvaluateConfig(env="ALE/Pong-v5", episodes=1, epsilon=1.0))
    assert [score.task["env"] for score in scores] == ["ALE/Pong-v5"] * 2


def test_policy_of_another_number_of_actions_is_refused_with_both_numbers(folders: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match="has 2 discrete actions, but Acrobot-v1 has 3 discrete actions"):
        evaluate(folders, EvaluateConfig(episodes=1, env="Acrobot-v1"))


def test_policy_of_other_observations_is_refused_with_both_shapes(folders: tuple[Path, Path]) -> None:
    three = build(Architecture("mlp:4", (3,), 2), 0)
    task = CARTPOLE.from_dict(CARTPOLE.as_dict() | {"observation_shape": [3]})
    with pytest.raises(UserError, match=r"has observations of shape \(3,\), but CartPole-v1 has \(4,\)"):
        evaluate([folders[0], SavedPolicy(three, task)], QUICK)


def test_timing_leaves_the_threads_as_they_were(folders: tuple[Path, Path]) -> None:
    before = torch.get_num_threads()
    times = decision_microseconds([load_policy(folders[0])], np.zeros(4, dtype=np.float32), rounds=2)
    assert torch.get_num_threads() == before
    assert 1 < times[0] < 1e6


def test_table_shows_no_ratio_to_a_negative_score(folders: tuple[Path, Path]) -> None:
    first, other = evaluate(folders, QUICK)
    rows = score_table([first, other])
    assert rows[1]["ratio"] == f"{other.mean / first.mean:.3f}"
    losing = Score.from_dict(first.as_dict() | {"mean": -20.0})
    assert [row["ratio"] for row in score_table([losing, other])] == ["-", "-"]


PENDULUM = make_task("Pendulum-v1")


def damped(kind: ScoreKind, offset: float = 0.0, log_std: float = 0.0) -> SavedPolicy:
    """Brakes the pendulum with a torque of -0.1 times its speed, plus an offset."""
    network = build(Architecture("mlp:2", (3,), 1 if kind == "actions" else 2), 0, kind)
    hidden, head = network.layers[1], network.layers[3]
    assert isinstance(hidden, torch.nn.Linear)
    assert isinstance(head, torch.nn.Linear)
    with torch.no_grad():
        hidden.weight.copy_(torch.tensor([[0.0, 0.0, -0.1], [0.0, 0.0, 0.1]]))
        hidden.bias.zero_()
        head.weight.zero_()
        head.weight[0] = torch.tensor([1.0, -1.0])
        head.bias.copy_(torch.tensor([offset, log_std][: len(head.bias)]))
    return SavedPolicy(network.eval().requires_grad_(False), PENDULUM)


@pytest.mark.slow
def test_agreement_on_continuous_actions_is_what_is_left_of_their_range() -> None:
    """Speeds are at most 8, so no torque leaves the range of -2 to 2: one unit apart is a quarter of it."""
    config = EvaluateConfig(episodes=4, num_envs=2, epsilon=0.1, seed=4)
    policies = [damped("gaussian"), damped("actions", 1.0), damped("gaussian", log_std=-3.0), damped("actions")]
    first, apart, same_mean, deterministic = evaluate(policies, config)
    assert first.agreement == 1
    assert apart.agreement == pytest.approx(0.75, abs=1e-5)
    assert (same_mean.agreement, deterministic.agreement) == (1, 1)
    assert same_mean.returns == deterministic.returns == first.returns != apart.returns
    assert all(score.mean < 0 for score in (first, apart)), "a pendulum costs"
    assert score_table([first, apart])[1]["agreement"] == "0.750"


def test_agreement_on_several_actions_is_the_share_that_is_the_same(levers: str) -> None:
    task = make_task(levers)

    def always(first: int, second: int) -> SavedPolicy:
        network = build(Architecture("mlp:2", (6,), 5), 0, "logits")
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.zero_()
            head = network.layers[-1]
            assert isinstance(head, torch.nn.Linear)
            head.bias[[first, 2 + second]] = 1.0
        return SavedPolicy(network.eval().requires_grad_(False), task)

    scores = evaluate([always(0, 1), always(0, 2), always(1, 1), always(1, 0)], QUICK)
    assert [score.agreement for score in scores] == [1, 0.5, 0.5, 0]
    assert all(0 <= score.mean <= 20 for score in scores)


def test_policies_of_other_ranges_are_not_compared() -> None:
    stronger = SavedPolicy(damped("actions").network, dataclasses.replace(PENDULUM, action_high=(3.0,)))
    with pytest.raises(
        UserError, match=r"has continuous actions of 1 dimension \(-2 to 3\), but Pendulum-v1 has .*\(-2 to 2\)"
    ):
        evaluate([damped("actions"), stronger], QUICK)
