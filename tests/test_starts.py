"""Starts from another policy's games: that they replay exactly, and what a score from them counts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import pytest
import torch

import rldistill
from masked import Square
from rldistill import EvaluateConfig, StartsConfig, evaluate
from rldistill.cli import main
from rldistill.play.envs import make_backend, make_task
from rldistill.play.envs.started import StartedBackend
from rldistill.play.games import play
from rldistill.play.rollout import uniform
from rldistill.play.starts import Starts, read_starts, screen_of, starts_text
from rldistill.policies import SavedPolicy, save_policy
from rldistill.progress import Silent
from rldistill.runs.scores import Score, read_scores, remarks, score_table
from rldistill.students.heads import Head, build_heads
from rldistill.students.networks import Architecture, build
from rldistill.types import ScoreKind, Task, UserError

CARTPOLE = make_task("CartPole-v1")
NUMBER = 12


def a_policy(task: Task, seed: int = 0) -> SavedPolicy:
    kind = "gaussian" if task.continuous else "q_values"
    width = 2 * task.action_dimensions if task.continuous else task.num_actions
    network = "mlp:4" if len(task.observation_shape) == 1 else "cnn:2:4"
    return SavedPolicy(build(Architecture(network, task.observation_shape, width), seed, kind).eval(), task)


def made(path: Path, task: Task, **options: Any) -> Starts:
    config = StartsConfig(**{"number": NUMBER, "num_envs": 4, "epsilon": 0.5, **options})
    return rldistill.starts(a_policy(task, 7), path, config)


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> Starts:
    return made(tmp_path_factory.mktemp("starts") / "cartpole.json", CARTPOLE, fraction=0.5)


@pytest.fixture
def squares() -> Iterator[str]:
    """Id of an environment with action masks."""
    gymnasium.register("Square-v0", lambda **options: Square(**options))
    yield "Square-v0"
    del gymnasium.registry["Square-v0"]


class Leaning:
    """Pushes to the side to which CartPole's pole leans, which keeps it up for some 40 steps; where it minds to which side the pole
    turns as well, for 500."""

    task: Task = CARTPOLE
    score_kind: ScoreKind = "q_values"

    def __init__(self, turning: float = 0.0) -> None:
        self.turning = turning

    def __call__(self, observations: torch.Tensor) -> torch.Tensor:
        right = observations[:, 2] + self.turning * observations[:, 3] > 0
        return torch.stack([~right, right], dim=1).float()


# Files


def test_a_start_is_where_the_environment_itself_is_after_its_seed_and_actions(cartpole: Starts) -> None:
    world = gymnasium.make("CartPole-v1")
    for start in cartpole.starts:
        observation, _ = world.reset(seed=start.seed)
        for action in start.actions:
            observation, _, terminated, truncated, _ = world.step(action)
            assert not terminated
            assert not truncated
        digest = hashlib.blake2b(observation.astype(np.float32).tobytes(), digest_size=16).hexdigest()
        assert digest == start.screen
    assert len({start.screen for start in cartpole.starts}) == NUMBER


def test_of_a_game_with_sticky_actions_the_seed_draws_the_same_again(tmp_path: Path) -> None:
    minatar = pytest.importorskip("minatar")
    task = make_task("MinAtar/Asterix-v1")
    minimal = minatar.Environment("asterix").minimal_action_set()
    for start in made(tmp_path / "asterix.json", task, fraction=1.0).starts:
        world = minatar.Environment("asterix", sticky_action_prob=0.1, difficulty_ramping=True)
        world.seed(start.seed)
        world.reset()
        for action in start.actions:
            _, terminated = world.act(minimal[action])
            assert not terminated
        assert screen_of(world.state().transpose(2, 0, 1).astype(np.uint8)) == start.screen


@pytest.mark.parametrize("env", ["PongNoFrameskip-v4", "ALE/Pong-v5"])
@pytest.mark.slow
def test_atari_games_begin_at_screens_that_were_played_to(tmp_path: Path, env: str) -> None:
    """With no-ops, FIRE after idleness and, in v5, sticky actions; the file is checked against the policy's own games."""
    task = dataclasses.replace(make_task(env), fire_when_idle=8)
    starts = made(tmp_path / "pong.json", task, number=3, num_envs=3, fraction=1.0, max_episode_steps=30)
    first: list[npt.NDArray[np.uint8]] = []
    play(
        dataclasses.replace(task, max_episode_steps=2),
        lambda generator: uniform(task, generator),
        3,
        0,
        num_envs=2,
        starts=starts,
        on_step=lambda step: first.extend(step.observations[step.starts]),
    )
    screens = [screen_of(observation) for observation in first]
    assert screens[:3] == [start.screen for start in starts.starts]
    assert max(len(start.actions) for start in starts.starts) > 8


@pytest.mark.slow
def test_actions_of_every_kind_are_kept_to_the_bit(tmp_path: Path, levers: str, squares: str) -> None:
    for place, env in enumerate(["Pendulum-v1", levers, squares]):
        task = make_task(env)
        starts = made(tmp_path / f"{place}.json", task, number=6, max_episode_steps=10, fraction=1.0)
        again = read_starts(tmp_path / f"{place}.json")
        for one, other in zip(starts.starts, again.starts, strict=True):
            assert one.actions.dtype == other.actions.dtype
            np.testing.assert_array_equal(one.actions, other.actions)
        (score,) = evaluate(a_policy(task), EvaluateConfig(starts=(starts.path,), num_envs=2))
        assert score.episodes == 6


def test_starts_lie_anywhere_in_the_first_part_of_their_episodes(tmp_path: Path) -> None:
    """Of episodes of 50 steps a fifth are the states after 0 to 9 actions."""
    config = StartsConfig(number=60, max_episode_steps=50, epsilon=0.2, num_envs=20)
    starts = rldistill.starts(Leaning(0.5), tmp_path / "starts.json", config)
    ages = [len(start.actions) for start in starts.starts]
    assert set(ages) == set(range(10))
    assert np.mean(ages) == pytest.approx(4.5, abs=3 * 2.87 / 60**0.5)
    assert len({start.seed for start in starts.starts}) == 60


def test_several_starts_may_come_from_one_episode(tmp_path: Path) -> None:
    config = StartsConfig(number=10, per_episode=4, max_episode_steps=50, epsilon=0.2)
    starts = rldistill.starts(Leaning(0.5), tmp_path / "starts.json", config).starts
    seeds = [start.seed for start in starts]
    assert [seeds.count(seed) for seed in dict.fromkeys(seeds)] == [4, 4, 2]
    assert len({start.screen for start in starts}) == 10


def test_a_file_says_who_made_it_and_the_same_command_makes_the_same(tmp_path: Path) -> None:
    save_policy(tmp_path / "policy", a_policy(CARTPOLE).network, CARTPOLE, {})
    config = StartsConfig(number=3, seed=5)
    first = rldistill.starts(tmp_path / "policy", tmp_path / "a.json", config)
    again = rldistill.starts(tmp_path / "policy", tmp_path / "b.json", config)
    other = rldistill.starts(tmp_path / "policy", tmp_path / "c.json", dataclasses.replace(config, seed=6))
    assert first.made["policy"] == str(tmp_path / "policy")
    weights = (tmp_path / "policy" / "weights.safetensors").read_bytes()
    assert first.made["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    assert first.made["configuration"]["seed"] == 5
    assert first.sha256 == hashlib.sha256((tmp_path / "a.json").read_bytes()).hexdigest()
    screens = [[start.screen for start in starts.starts] for starts in (first, again, other)]
    assert screens[0] == screens[1] != screens[2]


COMMITTED = sorted((Path(__file__).parent.parent / "starts").rglob("*.json"))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: f"{path.parent.name}/{path.stem}")
@pytest.mark.slow
def test_the_starts_of_the_repository_are_different_and_are_reached_here(path: Path) -> None:
    if path.parent.name == "minatar":
        pytest.importorskip("minatar")
    starts = read_starts(path)
    assert len({start.screen for start in starts.starts}) == 100
    with closing(StartedBackend(starts.task, starts, 2, lambda: make_backend(starts.task, 1))) as world:
        world.reset(np.ones(2, dtype=np.bool_), np.zeros(2, dtype=np.int64))
        reached = [screen_of(observation) for observation in world.observations]
    assert reached == [start.screen for start in starts.starts[:2]]


# Scores


def test_returns_count_from_the_start_and_come_in_the_order_of_the_starts(cartpole: Starts) -> None:
    expected = []
    world = gymnasium.make("CartPole-v1")
    for start in cartpole.starts:
        observation, _ = world.reset(seed=start.seed)
        for action in start.actions:
            observation, *_ = world.step(action)
        total, over = 0.0, False
        while not over:
            observation, reward, terminated, truncated, _ = world.step(int(observation[2] > 0))
            total, over = total + float(reward), terminated or truncated
        expected.append(total)
    for rows in (1, 5):
        (score,) = evaluate(Leaning(), EvaluateConfig(starts=(cartpole.path,), epsilon=0.0, num_envs=rows))
        assert score.returns == expected
        assert score.distinct == NUMBER
    assert len(set(expected)) > 1


def test_all_starts_are_played_equally_often(cartpole: Starts) -> None:
    config = EvaluateConfig(starts=(cartpole.path,), epsilon=0.0, episodes=3 * NUMBER, num_envs=7)
    (score,) = evaluate(a_policy(CARTPOLE), config)
    assert score.returns[:NUMBER] == score.returns[NUMBER : 2 * NUMBER] == score.returns[2 * NUMBER :]
    assert score.distinct == NUMBER


def test_random_play_from_the_starts_is_the_zero_of_their_scale(cartpole: Starts) -> None:
    published = dataclasses.replace(CARTPOLE, random_score=-1000.0)
    policy = SavedPolicy(a_policy(CARTPOLE).network, published)
    (score,) = evaluate(policy, EvaluateConfig(starts=(cartpole.path,), num_envs=4, seed=3))
    games = play(CARTPOLE, lambda generator: uniform(CARTPOLE, generator), NUMBER, 3, num_envs=4, starts=cartpole)
    assert score.random_measured
    assert score.random_score == games.returns.mean()


@pytest.mark.slow
def test_both_kinds_of_starts_stand_in_one_table(cartpole: Starts, tmp_path: Path) -> None:
    policies = [Leaning(), a_policy(CARTPOLE)]
    config = EvaluateConfig(episodes=2 * NUMBER, num_envs=4, starts=(cartpole.path,), own_starts=True)
    both = evaluate(policies, config, json=tmp_path / "scores.json")
    own = evaluate(policies, dataclasses.replace(config, starts=(), own_starts=False))
    started = evaluate(policies, dataclasses.replace(config, own_starts=False))
    assert [score.returns for score in both] == [score.returns for score in [*own, *started]]
    assert [score.normalized for score in both] == [score.normalized for score in [*own, *started]]
    card = {"file": cartpole.path, "number": NUMBER, "sha256": cartpole.sha256}
    assert [score.starts for score in both] == [None, None, card, card]
    assert len({row["starts"] for row in score_table(both)}) == 2
    assert "starts" not in score_table(own)[0]
    assert any(f"{NUMBER} starts of {cartpole.path}" in line for line in remarks(both))
    written = json.loads((tmp_path / "scores.json").read_text())
    assert ["starts" in score for score in written] == [False, False, True, True]
    assert [score.starts for score in read_scores(tmp_path / "scores.json")] == [score.starts for score in both]
    with pytest.raises(UserError, match="starts"):
        Score.from_dict(written[2] | {"starts": {"file": 3}})


def test_each_task_of_a_student_has_starts_of_its_own(cartpole: Starts, tmp_path: Path) -> None:
    acrobot = make_task("Acrobot-v1")
    heads = {"CartPole-v1": Head((4,), 2, "logits"), "Acrobot-v1": Head((6,), 3, "q_values")}
    tasks = {"CartPole-v1": CARTPOLE, "Acrobot-v1": acrobot}
    save_policy(tmp_path / "student", build_heads("mlp:8+4", heads, 0), tasks, {})
    place = made(tmp_path / "acrobot.json", acrobot, number=3, max_episode_steps=40).path
    config = EvaluateConfig(starts=(place, cartpole.path), max_episode_steps=30)
    scores = evaluate([tmp_path / "student"], config)
    assert [(score.task["env"], score.episodes) for score in scores] == [("CartPole-v1", NUMBER), ("Acrobot-v1", 3)]
    assert [score.starts and score.starts["file"] for score in scores] == [cartpole.path, place]
    with pytest.raises(UserError, match="what is played is Acrobot-v1"):
        evaluate([tmp_path / "student"], dataclasses.replace(config, starts=(cartpole.path,)))
    with pytest.raises(UserError, match="no policy here plays"):
        evaluate([a_policy(CARTPOLE)], config)
    with pytest.raises(UserError, match="--own-starts"):
        evaluate([tmp_path / "student"], dataclasses.replace(config, own_starts=True))


def test_a_policy_that_made_the_starts_is_named(tmp_path: Path) -> None:
    save_policy(tmp_path / "policy", a_policy(CARTPOLE).network, CARTPOLE, {})
    save_policy(tmp_path / "other", a_policy(CARTPOLE, 3).network, CARTPOLE, {})
    starts = rldistill.starts(tmp_path / "policy", tmp_path / "starts.json", StartsConfig(number=2))
    lines: list[str] = []

    class Listening(Silent):
        def say(self, line: str) -> None:
            lines.append(line)

    evaluate([tmp_path / "other", tmp_path / "policy"], EvaluateConfig(starts=(starts.path,)), progress=Listening())
    assert [line for line in lines if "made the starts" in line] == [line for line in lines if "policy" in line]
    assert len(lines) == 1


def test_a_page_and_a_card_lead_with_the_own_starts_and_show_both(cartpole: Starts, tmp_path: Path) -> None:
    run = tmp_path / "run"
    save_policy(tmp_path / "teacher", a_policy(CARTPOLE, 7).network, CARTPOLE, {})
    save_policy(run / "policy", a_policy(CARTPOLE, 3).network, CARTPOLE, {"teacher": str(tmp_path / "teacher")})
    settings = {"verb": "distill", "teacher": str(tmp_path / "teacher"), "task": CARTPOLE.as_dict()}
    (run / "config.json").write_text(json.dumps(settings))
    (run / "metrics.jsonl").write_text("")
    config = EvaluateConfig(episodes=3 * NUMBER, epsilon=0.7, starts=(cartpole.path,), own_starts=True)
    scores = evaluate([tmp_path / "teacher", run], config, json=run / "scores.json")
    assert len({score.mean for score in scores}) == 4
    page = rldistill.report(run, config=rldistill.ReportConfig(seconds=0)).read_text()
    assert page.count('<span class="dot teacher">') == page.count('<span class="dot student">') == 2
    headline = re.search(r"Mean return <?[^<]*", page)
    assert headline is not None
    assert f"{scores[1].mean:.1f}" in headline[0]
    assert f"{scores[3].mean:.1f}" not in headline[0]
    push_config = rldistill.PushConfig(scores=run / "scores.json", seconds=0)
    done = rldistill.push(run, "me/run", push_config, out=tmp_path / "hub", dry_run=True)
    assert [score.policy for score in done.scores] == [str(tmp_path / "teacher"), "me/run"] * 2
    card = (tmp_path / "hub" / "README.md").read_text()
    assert card.count("mean_reward") == 2, "one result, of the games from the own starts"
    assert f"| {NUMBER} of cartpole.json |" in card


# Wrong inputs


def written(path: Path, starts: Starts, **changes: Any) -> Path:
    """A file of the same starts but for changes of the first one, with a checksum that fits."""
    first = starts.starts[0]._replace(**changes)
    path.write_bytes(starts_text(starts.task, starts.made, [first, *starts.starts[1:]]))
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda starts: {"screen": "0" * 32}, "start 0 departs: its .* actions lead to another screen"),
        (lambda starts: {"seed": starts.starts[0].seed + 1}, "start 0 departs"),
        (lambda starts: {"actions": np.ones(60, dtype=np.int64)}, "start 0 departs: the game ends after"),
    ],
)
def test_a_start_that_departs_is_named(
    cartpole: Starts, tmp_path: Path, change: Callable[[Starts], dict[str, Any]], says: str
) -> None:
    path = written(tmp_path / "starts.json", cartpole, **change(cartpole))
    with pytest.raises(UserError, match=f"{re.escape(str(path))}: {says}"):
        evaluate(Leaning(), EvaluateConfig(starts=(str(path),)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text.replace('{"seed":', '{"seed":1', 1), "damaged: its checksum"),
        (lambda text: text.replace('"actions":[', '"actions":[1,', 1), "damaged: its checksum"),
        (lambda text: text[:-40], "damaged"),
        (lambda text: "[1, 2]", "holds no starts"),
        (lambda text: text.replace('"format_version": 1', '"format_version": 2'), "format version 2"),
    ],
)
def test_a_damaged_file_is_refused(cartpole: Starts, tmp_path: Path, change: Callable[[str], str], says: str) -> None:
    path = tmp_path / "starts.json"
    path.write_text(change(Path(cartpole.path).read_text()))
    with pytest.raises(UserError, match=f"{re.escape(str(path))}.*{says}"):
        evaluate(Leaning(), EvaluateConfig(starts=(str(path),)))


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": -1},
        {"seed": 2**31},
        {"screen": "x"},
        {"actions": np.array([2])},
        {"actions": np.array([0.5])},
        {"actions": np.array([1e30])},
        {"actions": np.array([[0, 1]])},
        {"actions": np.array(["0"])},
    ],
)
def test_what_is_no_start_of_the_task_is_refused(cartpole: Starts, tmp_path: Path, changes: dict[str, Any]) -> None:
    path = written(tmp_path / "starts.json", cartpole, **changes)
    with pytest.raises(UserError, match=f"{re.escape(str(path))} is damaged: start 0 has"):
        read_starts(path)


def test_starts_of_another_game_or_with_other_options_are_refused(cartpole: Starts, tmp_path: Path) -> None:
    task = make_task("CartPole-v1", env_kwargs=["sutton_barto_reward=true"])
    with pytest.raises(UserError, match="env_kwargs"):
        evaluate(a_policy(task), EvaluateConfig(starts=(cartpole.path,)))
    with pytest.raises(UserError, match="starts of CartPole-v1, and what is played is Acrobot-v1"):
        evaluate(a_policy(make_task("Acrobot-v1")), EvaluateConfig(starts=(cartpole.path,)))
    with pytest.raises(UserError, match="both have starts of CartPole-v1"):
        evaluate(Leaning(), EvaluateConfig(starts=(cartpole.path, cartpole.path)))
    with pytest.raises(UserError, match=f"--episodes {NUMBER + 1} is no multiple of the {NUMBER} starts"):
        evaluate(Leaning(), EvaluateConfig(starts=(cartpole.path,), episodes=NUMBER + 1))
    with pytest.raises(UserError, match="--own-starts goes with --starts"):
        evaluate(Leaning(), EvaluateConfig(own_starts=True))
    with pytest.raises(UserError, match="cannot read"):
        evaluate(Leaning(), EvaluateConfig(starts=(str(tmp_path / "none.json"),)))


class Drawing(gymnasium.Env[npt.NDArray[np.float32], int]):
    """Its observations come from a generator that no seed sets."""

    observation_space = gymnasium.spaces.Box(0, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.random.default_rng().random(2).astype(np.float32), {}

    def step(self, action: int) -> Any:
        return np.random.default_rng().random(2).astype(np.float32), 0.0, False, False, {}


def test_no_starts_are_made_of_an_environment_that_does_not_repeat_itself(tmp_path: Path) -> None:
    gymnasium.register("Drawing-v0", Drawing)
    try:
        with pytest.raises(UserError, match="Drawing-v0 does not repeat itself"):
            made(tmp_path / "starts.json", make_task("Drawing-v0"), max_episode_steps=10)
    finally:
        del gymnasium.registry["Drawing-v0"]
    assert not (tmp_path / "starts.json").exists()


@pytest.mark.slow
def test_an_environment_without_enough_states_is_refused(tmp_path: Path) -> None:
    """Without random actions, sticky actions and no-ops every game of Freeway is the same one."""
    task = make_task("FreewayNoFrameskip-v4", noop_max=0, max_episode_steps=10)
    with pytest.raises(UserError, match="comes to 2 different states"):
        made(tmp_path / "starts.json", task, number=3, num_envs=3, epsilon=0.0)
    assert not (tmp_path / "starts.json").exists()


def test_the_command_makes_and_plays_starts_and_refuses_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(*words: str) -> int:
        monkeypatch.setattr("sys.argv", ["rldistill", *words])
        try:
            main()
        except SystemExit as end:
            assert isinstance(end.code, int)
            return end.code
        return 0

    save_policy(tmp_path / "policy", a_policy(CARTPOLE).network, CARTPOLE, {})
    policy, path = str(tmp_path / "policy"), tmp_path / "starts.json"
    assert command("starts", policy, "--number", "4", "--out", str(path)) == 0
    assert command("evaluate", policy, "--starts", str(path)) == 0
    assert "4 starts" in capfd.readouterr().out
    before = path.read_bytes()
    departing = written(tmp_path / "departing.json", read_starts(path), screen="0" * 32)
    for words in (
        ("starts", policy, "--number", "4", "--out", str(path)),
        ("starts", policy, "--number", "0", "--out", str(tmp_path / "new.json")),
        ("starts", policy, "--out", str(tmp_path / "none" / "new.json")),
        ("starts", str(tmp_path / "none"), "--out", str(tmp_path / "new.json")),
        ("evaluate", policy, "--starts", str(departing)),
    ):
        assert command(*words) == 2
        assert capfd.readouterr().err.strip().splitlines()[-1].startswith("rldistill: error: ")
    assert path.read_bytes() == before
    assert not (tmp_path / "new.json").exists()
