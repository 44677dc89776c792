"""Numbers beside the observation: that they are those of the game, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import ale_py
import gymnasium
import numpy as np
import numpy.typing as npt
import pytest
from minatar import Environment

from rldistill.play.envs import Environments, make_backend, make_task
from rldistill.play.envs.ram import RamDeparted
from rldistill.play.envs.started import StartedBackend
from rldistill.play.envs.watched import FEATURES, Watch, names_in_words
from rldistill.play.starts import Start, Starts, screen_of
from rldistill.types import Task, UserError

BYTES = tuple(f"ram:{address}" for address in range(128))
PONG = make_task("PongNoFrameskip-v4")
MINATAR = Task("MinAtar/Breakout-v1", 3, (4, 10, 10), "uint8")


def random_actions(task: Task, rows: int, steps: int, seed: int = 0) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(task.num_actions, size=(steps, rows))


class OfGymnasium:
    """A game in Gymnasium's own environment of single frames, whose observation is the RAM."""

    def __init__(self, task: Task, seed: int, first: npt.NDArray[np.float32]) -> None:
        gymnasium.register_envs(ale_py)
        name = task.env.removeprefix("ALE/").removesuffix("-v5").removesuffix("NoFrameskip-v4")
        made: Any = gymnasium.make(
            f"ALE/{name}-v5", frameskip=1, repeat_action_probability=task.sticky_actions, obs_type="ram"
        )
        self.env = made.unwrapped
        self.frames = task.frame_skip
        self.env.ale.setInt("random_seed", seed)
        self.env.load_game()
        self.env.ale.reset_game()
        for _ in range(31):  # no-ops, until they lead to the first RAM
            if (self.ram == first).all():
                return
            self.env.step(0)
        raise AssertionError("no number of no-ops leads to the first RAM")

    @property
    def ram(self) -> npt.NDArray[np.uint8]:
        return np.asarray(self.env.ale.getRAM())

    def step(self, action: int) -> float:
        reward = 0.0
        for _ in range(self.frames):
            _, of_frame, over, _, _ = self.env.step(action)
            reward += float(of_frame)
            if over:
                break
        return reward


@pytest.mark.parametrize(
    ("env", "steps"),
    [
        ("PongNoFrameskip-v4", 100),
        pytest.param("BreakoutNoFrameskip-v4", 400, marks=pytest.mark.slow),
        pytest.param("ALE/Breakout-v5", 400, marks=pytest.mark.slow),
        pytest.param("ALE/Seaquest-v5", 400, marks=pytest.mark.slow),
        pytest.param("ALE/Qbert-v5", 400, marks=pytest.mark.slow),
        pytest.param("ALE/Asterix-v5", 200, marks=pytest.mark.slow),
    ],
)
def test_the_ram_is_that_of_gymnasiums_game(env: str, steps: int) -> None:
    """With sticky actions too, over the ends of games."""
    task = make_task(env)
    with closing(Environments(task, 2, 3, watched=BYTES)) as environments:
        seeds, watched = environments.seeds(np.arange(2)), environments.watched
        games = [OfGymnasium(task, int(seed), first) for seed, first in zip(seeds, watched, strict=True)]
        assert watched.dtype == np.float32
        for actions in random_actions(task, 2, steps):
            step = environments.step(actions)
            for row, (action, game) in enumerate(zip(actions, games, strict=True)):
                assert game.step(action) == step.rewards[row]
                if environments.starts[row]:
                    seed = int(environments.seeds(np.array([row]))[0])
                    games[row] = OfGymnasium(task, seed, environments.watched[row])
                np.testing.assert_array_equal(environments.watched[row], games[row].ram)


def test_the_ball_of_pong_is_where_the_picture_has_it() -> None:
    """An observation has 84 rows for 210 lines, and the RAM counts the ball's lines from another one than the picture does."""
    with closing(Environments(PONG, 2, 0, watched=["ball_y", "ball_x"])) as environments:
        pairs = []
        for actions in random_actions(PONG, 2, 250):
            environments.step(actions)
            for frame, (ball_y, ball_x) in zip(environments.observations[:, -1], environments.watched, strict=True):
                middle = frame[14:77, 12:72]  # between the walls and the rackets
                lines = np.flatnonzero((middle > 150).any(axis=1))
                if 75 < ball_x < 180 and len(lines):
                    pairs.append((ball_y, 2.5 * (14 + lines.mean() + 0.5)))
    in_ram, in_picture = np.array(pairs).T
    assert len(pairs) > 50
    assert np.ptp(in_ram) > 60
    assert np.ptp(in_picture - in_ram) < 8, (
        "one is the other plus a constant, but for the picture's blur over two frames"
    )


def test_named_bytes_are_those_of_their_addresses() -> None:
    names = ("player_y", "ball_y", "ram:54", "ram:51")
    with closing(Environments(PONG, 1, 0, watched=names)) as environments:
        for actions in random_actions(PONG, 1, 90):
            environments.step(actions)
        player, ball, *bytes_of_both = environments.watched[0]
        assert [ball, player] == bytes_of_both
        assert player != ball


@pytest.mark.parametrize("env", ["ALE/Pong-v5", "MinAtar/Breakout-v1", "CartPole-v1"])
def test_watching_changes_nothing_and_is_resumed(env: str) -> None:
    names = {"A": BYTES, "M": ("ball.x", "ball.y", "brick.count"), "C": ("x0", "pole_angle")}[env[0]]
    task = make_task(env)
    actions = random_actions(task, 2, 40)
    with (
        closing(Environments(task, 2, 5, watched=names)) as environments,
        closing(Environments(task, 2, 5)) as plain,
        closing(Environments(task, 2, 5, watched=names)) as resumed,
    ):
        assert plain.watched.shape == (2, 0)
        for number, of_step in enumerate(actions):
            if number == 25:
                resumed.load_state_dict(environments.state_dict())
            for one, other in zip(environments.step(of_step), plain.step(of_step), strict=True):
                np.testing.assert_array_equal(one, other)
            if number >= 25:
                resumed.step(of_step)
                np.testing.assert_array_equal(resumed.watched, environments.watched)
        with environments.released():
            pass
        np.testing.assert_array_equal(resumed.watched, environments.watched)


def test_games_from_starts_are_watched_from_the_start_on() -> None:
    actions = random_actions(PONG, 1, 60)
    with closing(Environments(PONG, 1, 7, watched=BYTES)) as environments:
        seed = int(environments.seeds(np.arange(1))[0])
        for of_step in actions[:40]:
            environments.step(of_step)
        screen = screen_of(environments.observations[0])
        for of_step in actions[40:]:
            environments.step(of_step)
        expected = environments.watched
    starts = Starts("here", PONG, {}, (Start(seed, actions[:40, 0], screen),), "")
    backend = StartedBackend(PONG, starts, 2, lambda: make_backend(PONG, 1, ram=True))
    with closing(Environments(PONG, 2, 0, watched=BYTES, backend=backend)) as started:
        for of_step in actions[40:]:
            started.step(np.repeat(of_step, 2))
        np.testing.assert_array_equal(started.watched, expected.repeat(2, axis=0))
    without = StartedBackend(PONG, starts, 1, lambda: make_backend(PONG, 1))
    with pytest.raises(UserError, match="RAM"):
        Environments(PONG, 1, 0, watched=BYTES, backend=without)


def test_a_game_that_departs_is_an_error_and_no_other_ram() -> None:
    with closing(Environments(PONG, 2, 0, watched=["ball_y"])) as environments:
        backend: Any = environments._backend
        backend._ram._emulators[1].act(3)
        with pytest.raises(RamDeparted, match=r"environment 1 at frame"):
            environments.step(np.zeros(2, dtype=np.int64))


def test_a_screen_that_departs_is_noticed_where_rewards_and_frames_do_not() -> None:
    """The racket moves in one and not in the other."""
    with closing(Environments(PONG, 1, 0, watched=["ball_y"])) as environments:
        backend: Any = environments._backend
        twin = backend._ram
        twin._emulators = [Stubborn(twin._emulators[0])]
        with pytest.raises(RamDeparted, match="screen"):
            play_up(environments, 60)


def play_up(environments: Environments, steps: int) -> None:
    for _ in range(steps):
        environments.step(np.full(environments.num_envs, 3))


class Stubborn:
    """An emulator that takes no action."""

    def __init__(self, emulator: Any) -> None:
        self.emulator = emulator

    def act(self, action: Any) -> int:
        return int(self.emulator.act(0))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.emulator, name)


def test_positions_on_the_grid_are_those_of_minatars_game() -> None:
    task = make_task("MinAtar/Breakout-v1")
    environment, choices = Environment("breakout", sticky_action_prob=task.sticky_actions), [0, 1, 3]
    with closing(Environments(task, 1, 2, watched=["ball.x", "ball.y", "paddle.x", "brick.count"])) as environments:
        environment.seed(int(environments.seeds(np.arange(1))[0]))
        environment.last_action = 0
        environment.reset()
        for actions in random_actions(task, 1, 200):
            game = environment.env
            expected = [game.ball_x, game.ball_y, game.pos, game.brick_map.sum()]
            assert environments.watched[0].tolist() == expected
            _, over = environment.act(choices[actions[0]])
            assert environments.step(actions).terminated[0] == over
            if over:
                environment.seed(int(environments.seeds(np.arange(1))[0]))
                environment.last_action = 0
                environment.reset()


def test_a_channel_with_several_cells_has_their_mean_and_one_without_none() -> None:
    """By hand: cells in column 2, row 1 and column 6, row 4."""
    observations = np.zeros((2, 4, 10, 10), dtype=np.uint8)
    observations[0, 3, 1, 2] = observations[0, 3, 4, 6] = 1
    observations[1, 3, 9, 9] = 1
    watched = Watch(MINATAR, ["brick.x", "brick.y", "brick.count", "ball.x", "ball.count"])(observations, None)
    np.testing.assert_array_equal(watched, [[4, 2.5, 2, np.nan, 0], [9, 9, 1, np.nan, 0]])


def test_features_of_vectors_have_numbers_and_names(levers: str) -> None:
    with closing(
        Environments(make_task(levers), 2, 0, watched=["x1", "wind[0]", "wind[1]", "age", "x0"])
    ) as environments:
        task, observations = environments.task, environments.observations
        assert task.observation_keys == (("age", 1), ("door", 3), ("wind", 2)), "in the order of the alphabet"
        np.testing.assert_array_equal(environments.watched, observations[:, [1, 4, 5, 0, 0]])
    with closing(Environments(make_task("CartPole-v1"), 1, 0, watched=["pole_angle", "x2"])) as environments:
        for actions in random_actions(environments.task, 1, 5):
            environments.step(actions)
        assert environments.watched.tolist() == environments.observations[:, [2, 2]].tolist()


@pytest.mark.parametrize("name", sorted(FEATURES))
def test_known_features_are_as_many_as_the_environment_has(name: str) -> None:
    spec = max((spec for spec in gymnasium.registry.values() if spec.name == name), key=lambda spec: spec.version or 0)
    try:
        space = gymnasium.make(spec.id).observation_space
    except gymnasium.error.DependencyNotInstalled:
        pytest.skip("Box2D is not installed")
    assert space.shape == (len(FEATURES[name].split()),)


@pytest.mark.parametrize(
    ("env", "names", "line"),
    [
        ("PongNoFrameskip-v4", ["ball"], r"has no 'ball'.*did you mean ball_[xy].*player_score, ram:0 to ram:127$"),
        ("PongNoFrameskip-v4", ["ram:128"], r"has no 'ram:128'"),
        ("PongNoFrameskip-v4", ["ram:054"], r"has no 'ram:054'"),
        ("ALE/Asterix-v5", ["player_x"], r"has no 'player_x' to watch: it has ram:0 to ram:127$"),
        ("ALE/Breakout-v5", ["x0"], r"block_bit_map_0 to block_bit_map_29"),
        ("MinAtar/Breakout-v1", ["player.x"], r"paddle, ball, trail, brick, each with \.x, \.y and \.count"),
        ("MinAtar/Breakout-v1", ["ball.z"], r"did you mean ball\.[xy]"),
        ("MinAtar/Breakout-v1", ["ball"], r"has no 'ball'"),
        ("CartPole-v1", ["x4"], r"has no 'x4'.*cart_position, .*, x0 to x3$"),
        ("CartPole-v1", ["ram:4"], r"has no 'ram:4'"),
        ("CartPole-v1", ["x0", ""], r"has no ''"),
    ],
)
def test_unknown_names_are_refused_with_those_that_there_are(env: str, names: Sequence[str], line: str) -> None:
    with pytest.raises(UserError) as raised:
        Environments(make_task(env), 1, 0, watched=names)
    assert re.search(line, str(raised.value))
    assert "\n" not in str(raised.value)


def test_images_of_other_environments_have_nothing_to_watch() -> None:
    with pytest.raises(UserError, match="images"):
        Watch(Task("Camera-v0", 2, (3, 64, 64), "uint8"), ["x0"])


GAMES = ("Bowling", "Boxing", "Breakout", "Freeway", "MsPacman", "Pong", "Qbert", "Seaquest", "SpaceInvaders", "Tennis")


def test_the_page_has_all_names() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "regions.md").read_text()
    tasks = [Task(f"ALE/{game}-v5", 6, (4, 84, 84), "uint8") for game in GAMES]
    tasks += [
        Task(f"MinAtar/{game}-v1", 6, (4, 10, 10), "uint8") for game in ("Asterix", "Breakout", "Freeway", "Seaquest")
    ]
    tasks += [Task(f"{name}-v1", 2, (len(features.split()),), "float32") for name, features in FEATURES.items()]
    for task in tasks:
        words = names_in_words(task).split(", ram:")[0].split(", each")[0]
        names = set(re.findall(r"[a-z]\w*", words)) - {"to"}
        game = re.sub(r".*/|-v\d$|Continuous", "", task.env)
        rows = [line for line in page.splitlines() if re.match(rf"\| {game}\b", line)]
        written = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
        assert {name for name in names if not re.fullmatch(r"x\d|speed[2-4]", name)} <= written
