import subprocess
import sys
from functools import cache
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rldistill.play.actions import check_actions, uniform_actions
from rldistill.play.envs import MINATAR_GAMES, Environments, Step, features_of, make_task
from rldistill.play.envs.declared import decisions_per_second
from rldistill.types import Actions, Task, UserError

MINATAR_IDS = [f"MinAtar/{game.title().replace('_', '')}-v1" for game in MINATAR_GAMES]


@cache
def task_of(env: str, **options: Any) -> Task:
    return make_task(env, **options)


def actions_of(task: Task, steps: int, rows: int, seed: int = 0) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(task.num_actions, size=(steps, rows))


def played(environments: Environments, actions: Actions) -> list[tuple[Any, ...]]:
    """All that each step shows: what was observed before it, whether that was a start, and its outcome."""
    return [
        (environments.observations, environments.starts, *environments.step(step))
        for step in actions  # evaluated from left to right
    ]


def same(first: list[tuple[Any, ...]], second: list[tuple[Any, ...]], rows: slice = slice(None)) -> None:
    assert len(first) == len(second)
    for number, (left, right) in enumerate(zip(first, second, strict=True)):
        for name, one, other in zip(("observations", "starts", *Step._fields), left, right, strict=True):
            np.testing.assert_array_equal(one[rows], other[rows], err_msg=f"{name} of step {number}")


def differ(first: list[tuple[Any, ...]], second: list[tuple[Any, ...]]) -> bool:
    return any(not np.array_equal(left[0], right[0]) for left, right in zip(first, second, strict=True))


# Tasks


@pytest.mark.parametrize(("env", "sticky"), [("ALE/Pong-v5", 0.25), ("PongNoFrameskip-v4", 0.0)])
def test_both_ids_of_pong_are_played_alike_but_for_sticky_actions(env: str, sticky: float) -> None:
    assert task_of(env) == Task(
        env,
        num_actions=6,
        observation_shape=(4, 84, 84),
        frame_skip=4,
        frame_stack=4,
        sticky_actions=sticky,
        noop_max=30,
        max_frames=108_000,
        fire_when_idle=200,
        random_score=-20.7,
    )


@pytest.mark.parametrize(("env", "sticky"), [("ALE/Pong-v5", True), ("PongNoFrameskip-v4", False)])
@pytest.mark.slow
def test_sticky_actions_are_the_only_chance_in_an_atari_game(env: str, sticky: bool) -> None:
    task = task_of(env, noop_max=0)
    actions = actions_of(task, 30, 1)
    first, second = Environments(task, 1, 1), Environments(task, 1, 2)
    assert differ(played(first, actions), played(second, actions)) == sticky


@pytest.mark.parametrize(
    ("env", "shape", "actions"),
    [
        ("MinAtar/Asterix-v1", (4, 10, 10), 5),
        ("MinAtar/Breakout-v1", (4, 10, 10), 3),
        ("MinAtar/Freeway-v1", (7, 10, 10), 3),
        ("MinAtar/Seaquest-v1", (10, 10, 10), 6),
        ("MinAtar/SpaceInvaders-v1", (6, 10, 10), 4),
        ("MinAtar/Breakout-v0", (4, 10, 10), 6),
    ],
)
def test_minatar_games_are_channels_first_with_their_actions(env: str, shape: tuple[int, ...], actions: int) -> None:
    task = task_of(env)
    assert (task.observation_shape, task.num_actions, task.observation_dtype) == (shape, actions, "uint8")
    assert (task.sticky_actions, task.difficulty_ramping) == (0.1, True)
    environments = Environments(task, 2, 0)
    assert environments.observations.shape == (2, *shape)
    assert set(np.unique(environments.observations)) == {0, 1}


def test_cartpole_has_vectors_of_floats() -> None:
    assert task_of("CartPole-v1") == Task("CartPole-v1", 2, (4,), "float32")
    assert Environments(task_of("CartPole-v1"), 3, 0).observations.dtype == np.float32


def test_images_of_a_gymnasium_environment_come_channels_first() -> None:
    class Corner(gymnasium.Env[npt.NDArray[np.uint8], np.int64]):
        """Shows one red pixel in the upper right corner."""

        observation_space = gymnasium.spaces.Box(0, 255, (5, 6, 3), np.uint8)
        action_space = gymnasium.spaces.Discrete(2)

        def _observation(self) -> npt.NDArray[np.uint8]:
            picture = np.zeros((5, 6, 3), dtype=np.uint8)
            picture[0, 5, 0] = 255
            return picture

        def reset(
            self, *, seed: int | None = None, options: Any = None
        ) -> tuple[npt.NDArray[np.uint8], dict[str, Any]]:
            return self._observation(), {}

        def step(self, action: np.int64) -> tuple[npt.NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
            return self._observation(), 1.0, False, False, {}

    gymnasium.register("Corner-v0", lambda **options: Corner(**options))
    try:
        environments = Environments(make_task("Corner-v0"), 2, 0)
        environments.step(np.array([0, 1]))
        assert environments.observations.shape == (2, 3, 5, 6)
        assert np.argwhere(environments.observations).tolist() == [[0, 0, 0, 5], [1, 0, 0, 5]]
    finally:
        del gymnasium.registry["Corner-v0"]


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ("ALE/Pongg-v5", "unknown Atari game 'Pongg'; did you mean Pong"),
        ("ALE/pong-v5", "unknown Atari game 'pong'; did you mean .*Pong"),
        ("ALE/Pong-v4", r"write ALE/<Game>-v5 or <Game>NoFrameskip-v4"),
        ("PongNoFrameskip-v5", r"write ALE/<Game>-v5 or <Game>NoFrameskip-v4"),
        ("BrekoutNoFrameskip-v4", "did you mean Breakout"),
        ("MinAtar/Brekout-v1", "the games are Asterix, Breakout, Freeway, Seaquest, SpaceInvaders, with -v0 or -v1"),
        ("MinAtar/Breakout", "the games are"),
        ("CartPol-v1", "did you mean CartPole-v1"),
        ("no such thing", "unknown environment 'no such thing'"),
        ("", "unknown environment"),
    ],
)
def test_an_environment_that_cannot_be_played_is_refused_in_one_line(env: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as refusal:
        make_task(env)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("env", "options", "says"),
    [
        ("ALE/Pong-v5", {"sticky_actions": 1.0}, "a probability below 1, not 1.0"),
        ("ALE/Pong-v5", {"sticky_actions": -0.1}, "a probability below 1"),
        ("ALE/Pong-v5", {"frame_skip": 0}, "at least 1"),
        ("ALE/Pong-v5", {"frame_stack": 0}, "at least 1"),
        ("ALE/Pong-v5", {"noop_max": -1}, "not negative"),
        ("ALE/Pong-v5", {"difficulty_ramping": True}, "does not take the option 'difficulty_ramping'"),
        ("MinAtar/Breakout-v1", {"frame_skip": 4}, "does not take the option 'frame_skip'"),
        ("CartPole-v1", {"sticky_actions": 0.1}, "does not take the option 'sticky_actions'"),
    ],
)
def test_options_that_are_wrong_or_without_effect_are_refused(env: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        make_task(env, **options)


def test_options_left_open_are_those_of_the_id() -> None:
    assert make_task("CartPole-v1", sticky_actions=None) == task_of("CartPole-v1")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_actions": 4}, "has 2 discrete actions here, the policy's task says 4 discrete actions"),
        ({"observation_shape": (5,)}, r"shape \(4,\) here, the policy's task says \(5,\)"),
    ],
)
def test_a_task_that_does_not_fit_its_environment_is_refused_with_both_numbers(
    change: dict[str, Any], says: str
) -> None:
    data = task_of("CartPole-v1").as_dict() | change
    with pytest.raises(UserError, match=says):
        Environments(Task.from_dict(data), 1, 0)


@pytest.mark.parametrize("number", [0, -2])
def test_there_is_at_least_one_row(number: int) -> None:
    with pytest.raises(UserError, match=f"at least 1, not {number}"):
        Environments(task_of("CartPole-v1"), number, 0)


# Play


@pytest.mark.parametrize("env", ["ALE/Pong-v5", "MinAtar/Breakout-v1", "CartPole-v1"])
@pytest.mark.slow
def test_an_action_out_of_range_is_refused_at_once_and_plays_nothing(env: str) -> None:
    task = task_of(env)
    environments, control = Environments(task, 2, 0), Environments(task, 2, 0)
    for wrong in ([0, task.num_actions], [-1, 0], [0], [0, 0, 0], [[0, 0]]):
        with pytest.raises(ValueError, match=f"takes {task.num_actions} discrete actions in 2 rows, got"):
            environments.step(np.array(wrong))
    actions = actions_of(task, 5, 2)
    same(played(environments, actions), played(control, actions))


# Episodes end often and at different times: by the limit of frames, by lost balls, by a fallen pole.
SHORT: dict[str, dict[str, Any]] = {
    "ALE/Breakout-v5": dict(fire_when_idle=3, max_frames=800),
    "PongNoFrameskip-v4": dict(max_frames=200),
    "CartPole-v1": {},
} | {env: dict(max_frames=60) for env in MINATAR_IDS}


@pytest.mark.parametrize("env", SHORT)
@pytest.mark.slow
def test_returns_starts_and_final_observations_tell_the_story_of_the_episodes(env: str) -> None:
    task = task_of(env, **SHORT[env])
    rows, steps = 3, (task.max_frames // task.frame_skip or 100) + 20
    environments = Environments(task, rows, 5)
    assert environments.starts.all()
    total, ends = np.zeros(rows), np.zeros(rows, dtype=np.int64)
    for actions in actions_of(task, steps, rows):
        step = environments.step(actions)
        total += step.rewards
        ended = step.terminated | step.truncated
        assert not (step.terminated & step.truncated).any()
        np.testing.assert_array_equal(np.isnan(step.returns), ~ended)
        np.testing.assert_allclose(step.returns[ended], total[ended])
        np.testing.assert_array_equal(environments.starts, ended)
        changed = (step.final_observations != environments.observations).reshape(rows, -1).any(axis=1)
        np.testing.assert_array_equal(changed, ended)
        total[ended] = 0
        ends += ended
    assert (ends > 0).all()


@pytest.mark.slow
def test_rewards_are_raw() -> None:
    # Space invaders are worth 5 to 30 points each.
    task = task_of("SpaceInvadersNoFrameskip-v4")
    environments = Environments(task, 4, 0)
    rewards = np.concatenate([environments.step(actions).rewards for actions in actions_of(task, 250, 4)])
    assert set(rewards) >= {0.0, 5.0}
    assert set(rewards) <= {0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 200.0}


@pytest.mark.parametrize(("env", "lives"), [("BreakoutNoFrameskip-v4", 5), ("QbertNoFrameskip-v4", 4)])
@pytest.mark.slow
def test_each_life_but_the_last_is_told_when_it_is_lost(env: str, lives: int) -> None:
    task = task_of(env)
    environments = Environments(task, 3, 0)
    lost, games = np.zeros(3, dtype=np.int64), 0
    for actions in actions_of(task, 900, 3):
        step = environments.step(actions)
        ended = step.terminated | step.truncated
        assert not (step.life_lost & ended).any()
        lost += step.life_lost
        assert (lost[ended] == lives - 1).all()
        lost[ended] = 0
        games += int(ended.sum())
    assert games > 3


@pytest.mark.parametrize("env", ["PongNoFrameskip-v4", "MinAtar/Breakout-v1", "CartPole-v1"])
def test_worlds_without_lives_lose_none(env: str) -> None:
    task = task_of(env)
    environments = Environments(task, 2, 0)
    assert not any(environments.step(actions).life_lost.any() for actions in actions_of(task, 120, 2))


@pytest.mark.slow
def test_episodes_are_truncated_at_the_limit_of_frames_and_without_one_never() -> None:
    for env, limit in (("PongNoFrameskip-v4", 80), ("MinAtar/Freeway-v1", 20)):
        environments = Environments(task_of(env, max_frames=limit), 2, 0)
        story = [environments.step(np.zeros(2, dtype=np.int64)) for _ in range(40)]
        at = [number for number, step in enumerate(story, start=1) if step.truncated.all()]
        assert at == [20, 40], env
        assert not any(step.terminated.any() for step in story)
        unlimited = Environments(task_of(env, max_frames=0), 1, 0)
        assert not any(unlimited.step(np.zeros(1, dtype=np.int64)).truncated.any() for _ in range(100)), env


@pytest.mark.parametrize("env", SHORT)
@pytest.mark.slow
def test_the_seed_decides_the_play_and_rows_and_seeds_differ(env: str) -> None:
    task = task_of(env, **SHORT[env])
    actions = np.repeat(actions_of(task, 60, 1), 3, axis=1)
    first, second, other = (played(Environments(task, 3, seed), actions) for seed in (4, 4, 5))
    same(first, second)
    assert differ(first, other)
    assert any(not np.array_equal(step[0][0], step[0][1]) for step in first), "two rows are two games"


@pytest.mark.parametrize("env", SHORT)
@pytest.mark.slow
def test_the_play_of_a_row_does_not_depend_on_how_many_there_are(env: str) -> None:
    task = task_of(env, **SHORT[env])
    actions = actions_of(task, 120, 4)
    many, few = played(Environments(task, 4, 7), actions), played(Environments(task, 2, 7), actions[:, :2])
    same([tuple(part[:2] for part in step) for step in many], few)


def test_observations_handed_out_are_not_written_to_later() -> None:
    for env in ("PongNoFrameskip-v4", "MinAtar/Breakout-v1", "CartPole-v1"):
        task = task_of(env, **SHORT[env])
        environments = Environments(task, 2, 0)
        past = [environments.observations]
        copies = [past[0].copy()]
        for actions in actions_of(task, 60, 2):
            final = environments.step(actions).final_observations
            for observations in (final, environments.observations):
                past.append(observations)
                copies.append(observations.copy())
        assert all(np.array_equal(one, other) for one, other in zip(past, copies, strict=True)), env


def test_an_atari_stack_is_its_last_frames_oldest_first() -> None:
    task = task_of("PongNoFrameskip-v4")
    environments = Environments(task, 1, 0)
    before = environments.observations
    for actions in actions_of(task, 8, 1):
        environments.step(actions)
        np.testing.assert_array_equal(environments.observations[:, :3], before[:, 1:])
        before = environments.observations


def test_fire_is_pressed_when_nothing_happens_so_that_a_greedy_policy_cannot_stall() -> None:
    def frames_with_ball(idle: int) -> int:
        # Without the ball nothing moves while no action is taken.
        environments = Environments(task_of("BreakoutNoFrameskip-v4", fire_when_idle=idle, noop_max=0), 1, 0)
        moved = 0
        for _ in range(60):
            step = environments.step(np.zeros(1, dtype=np.int64))
            newest = step.final_observations[0, -2:].astype(np.int64)
            moved += bool(np.abs(newest[1, 20:] - newest[0, 20:]).max() > 0)
        return moved

    assert frames_with_ball(0) == 0
    assert frames_with_ball(10) > 20


@pytest.mark.parametrize("env", ["PongNoFrameskip-v4", "MinAtar/Breakout-v1"])
@pytest.mark.slow
def test_a_spectator_sees_the_game_and_changes_nothing(env: str) -> None:
    task = task_of(env, **SHORT[env])
    actions = actions_of(task, 60, 2)
    watched, alone = Environments(task, 2, 0, pixels=True), Environments(task, 2, 0)
    pictures = []
    for step in actions:
        watched.step(step)
        alone.step(step)
        np.testing.assert_array_equal(watched.observations, alone.observations)
        pictures.append(watched.pixels().copy())
    assert pictures[0].shape[0] == 2
    assert pictures[0].shape[3] == 3
    assert pictures[0].dtype == np.uint8
    assert any(not np.array_equal(one, pictures[0]) for one in pictures)
    if task.frame_skip > 1:
        assert pictures[0].shape == (2, 210, 160, 3)


# Saving and putting back


def check_restored(task: Task, seed: int, before: int, after: int) -> Environments:
    rows = 3
    environments = Environments(task, rows, seed)
    actions = actions_of(task, before + after, rows, seed)
    played(environments, actions[:before])
    state = environments.state_dict()
    expected = played(environments, actions[before:])
    restored = Environments(task, rows, seed)
    played(restored, actions[:7])  # what it did before does not matter
    restored.load_state_dict(state)
    same(played(restored, actions[before:]), expected)
    return restored


@pytest.mark.parametrize("env", ["CartPole-v1", *MINATAR_IDS])
@settings(max_examples=12)
@given(seed=st.integers(0, 2**31), before=st.integers(0, 200))
@example(seed=0, before=0)
@pytest.mark.slow
def test_restored_environments_go_on_exactly_as_the_saved_ones(env: str, seed: int, before: int) -> None:
    check_restored(task_of(env, **SHORT[env]), seed, before, after=80)


@pytest.mark.parametrize(
    ("env", "options", "before"),
    [
        ("ALE/Pong-v5", {"max_frames": 400}, 150),
        ("ALE/Pong-v5", {}, 100),
        ("PongNoFrameskip-v4", {"max_frames": 400}, 100),  # at the very first observation of all episodes
        ("ALE/Breakout-v5", {"fire_when_idle": 3, "max_frames": 800}, 399),
        ("SeaquestNoFrameskip-v4", {"frame_skip": 3, "frame_stack": 2, "noop_max": 5}, 300),
    ],
)
@pytest.mark.slow
def test_restored_emulators_go_on_exactly_as_the_saved_ones(env: str, options: dict[str, Any], before: int) -> None:
    check_restored(task_of(env, **options), 3, before, after=120)


@pytest.mark.parametrize("env", ["ALE/Breakout-v5", "MinAtar/Asterix-v1"])
@pytest.mark.slow
def test_rows_of_the_saved_environments_may_be_in_different_episodes(env: str) -> None:
    task = task_of(env, **SHORT[env])
    environments = Environments(task, 3, 0)
    for number, actions in enumerate(actions_of(task, 400, 3)):
        environments.step(actions)
        state = environments.state_dict()
        if len(set(state["ages"])) == 3 and len(set(state["episodes"])) > 1 and number > 60:
            break
    else:
        pytest.fail("the rows kept step")
    restored = Environments(task, 3, 0)
    restored.load_state_dict(state)
    actions = actions_of(task, 60, 3, seed=1)
    same(played(restored, actions), played(environments, actions))


def test_a_restored_state_can_be_saved_again() -> None:
    task = task_of("CartPole-v1")
    environments, restored = Environments(task, 3, 0), Environments(task, 3, 0)
    played(environments, actions_of(task, 50, 3))
    restored.load_state_dict(environments.state_dict())
    for name, value in environments.state_dict().items():
        np.testing.assert_array_equal(restored.state_dict()[name], value, err_msg=name)


def test_an_episode_longer_than_the_first_log_is_restored() -> None:
    task = task_of("MinAtar/Freeway-v1")  # ends at 2,500 steps
    environments, restored = Environments(task, 1, 0), Environments(task, 1, 0)
    actions = actions_of(task, 2_300, 1)
    played(environments, actions[:2_200])
    assert environments.state_dict()["ages"].tolist() == [2_200]
    restored.load_state_dict(environments.state_dict())
    same(played(restored, actions[2_200:]), played(environments, actions[2_200:]))


# Continuous actions, several at once, observations with names


def random_actions(task: Task, steps: int, rows: int, seed: int = 0) -> list[Any]:
    generator = np.random.default_rng(seed)
    return [uniform_actions(task, rows, generator) for _ in range(steps)]


def test_pendulum_has_one_torque() -> None:
    task = task_of("Pendulum-v1")
    assert task == Task("Pendulum-v1", 1, (3,), "float32", action_low=(-2.0,), action_high=(2.0,))
    assert Task.from_dict(task.as_dict()) == task


def test_discrete_observations_become_a_vector() -> None:
    task = task_of("FrozenLake-v1")
    assert task == Task("FrozenLake-v1", 4, (16,), "float32")
    assert Environments(task, 1, 0).observations.tolist() == [[1.0] + [0.0] * 15], "the first of 16 fields"


def test_observations_with_names_are_flattened_in_the_order_that_the_task_tells(levers: str) -> None:
    task = make_task(levers)
    assert task == Task(
        levers, 5, (6,), "float32", action_sizes=(2, 3), observation_keys=(("age", 1), ("door", 3), ("wind", 2))
    )
    environments = Environments(task, 2, 0)
    # What the environment draws after a seed: first the wind, then the door.
    seeds = [int(np.random.SeedSequence([0, row, 0]).generate_state(1)[0] >> 1) for row in range(2)]
    generators = [gymnasium.utils.seeding.np_random(seed)[0] for seed in seeds]
    for age in range(3):
        for row, generator in enumerate(generators):
            wind, door = generator.uniform(-1, 1, size=2).astype(np.float32), int(generator.integers(3))
            np.testing.assert_array_equal(environments.observations[row], [age, *np.eye(3)[door], *wind])
        environments.step(np.zeros((2, 2), np.int64))


class Odd(gymnasium.Env[Any, Any]):
    """Spaces as they are given."""

    def __init__(self, observation_space: Any, action_space: Any) -> None:
        self.observation_space, self.action_space = observation_space, action_space


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize(
    ("shape", "turned"),
    [((4, 36, 40), False), ((36, 40, 3), True), ((3, 3, 3), True), ((8, 8, 11), True), ((11, 8, 8), False)],
)
def test_the_channels_of_an_image_come_first_whatever_its_type(dtype: Any, shape: Any, turned: bool) -> None:
    """Gymnasium's stacks of frames come first, its colours last; of a cube in bytes the last axis is taken, as SB3 does."""
    numbers = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    if shape == (3, 3, 3) and dtype == np.float32:
        turned = False
    expected = numbers.transpose(2, 0, 1) if turned else numbers

    class Picture(Odd):
        def reset(self, **options: Any) -> Any:
            return numbers, {}

    space = gymnasium.spaces.Box(0, 255, shape, dtype)
    gymnasium.register("Picture-v0", lambda **options: Picture(space, TWO), disable_env_checker=True)
    try:
        task = make_task("Picture-v0")
        assert (task.observation_shape, task.observation_dtype) == (expected.shape, np.dtype(dtype).name)
        np.testing.assert_array_equal(Environments(task, 1, 0).observations[0], expected)
    finally:
        del gymnasium.registry["Picture-v0"]


BOX, TWO = gymnasium.spaces.Box(-1, 1, (2,)), gymnasium.spaces.Discrete(2)


@pytest.mark.parametrize(
    ("observations", "actions", "says"),
    [
        (gymnasium.spaces.Sequence(TWO), TWO, "Sequence observations that cannot be flattened"),
        (
            gymnasium.spaces.Dict({"a": BOX, "b": gymnasium.spaces.Tuple([gymnasium.spaces.Sequence(BOX)])}),
            TWO,
            "Sequence observations .in the part 'b', 0.",
        ),
        (gymnasium.spaces.Box(-1, 1, (2, 9, 9, 3)), TWO, r"observations of shape \(2, 9, 9, 3\)"),
        (BOX, gymnasium.spaces.Box(0, 9, (2,), np.int64), "Box actions of int64; rldistill plays Discrete"),
        (BOX, gymnasium.spaces.Dict({"a": TWO}), "Dict actions"),
        (BOX, gymnasium.spaces.Tuple([TWO, BOX]), "Tuple actions"),
        (BOX, gymnasium.spaces.Discrete(70_000), "70,000 actions; 65,536 are the most"),
    ],
)
def test_spaces_that_are_not_understood_are_refused_in_one_line(observations: Any, actions: Any, says: str) -> None:
    gymnasium.register("Odd-v0", lambda **options: Odd(observations, actions), disable_env_checker=True)
    try:
        with pytest.raises(UserError, match=says) as refusal:
            make_task("Odd-v0")
        assert len(str(refusal.value).splitlines()) == 1
    finally:
        del gymnasium.registry["Odd-v0"]


def test_a_torque_of_a_wrong_shape_or_out_of_range_is_refused_and_plays_nothing() -> None:
    task = task_of("Pendulum-v1")
    environments, control = Environments(task, 2, 0), Environments(task, 2, 0)
    for wrong in (
        [1.0, 1.0],
        [[1.0]],
        [[1.0, 1.0]],
        [[1.0], [2.5]],
        [[-2.1], [0.0]],
        [[np.nan], [0.0]],
        [[np.inf], [0.0]],
    ):
        with pytest.raises(ValueError, match=r"takes continuous actions of 1 dimension \(-2 to 2\) in 2 rows, got"):
            environments.step(np.array(wrong, dtype=np.float32))
    actions = random_actions(task, 5, 2)
    same(played(environments, actions), played(control, actions))  # type: ignore[arg-type]  # a list will do


def test_torques_reach_the_pendulum_in_its_own_units() -> None:
    task = task_of("Pendulum-v1")
    environments = Environments(task, 3, 0)
    (cos, sin, speed), torque = environments.observations.T, np.array([-2.0, 0.5, 2.0])
    step = environments.step(torque[:, None].astype(np.float32))
    # Pendulum's own cost and equation of motion, with mass, length 1, gravity 10 and steps of 0.05 s.
    cost = np.arctan2(sin, cos) ** 2 + 0.1 * speed**2 + 0.001 * torque**2
    np.testing.assert_allclose(step.rewards, -cost, rtol=1e-5)
    np.testing.assert_allclose(
        environments.observations[:, 2], speed + (15 * sin + 3 * torque) * 0.05, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("env", ["Pendulum-v1", "Levers-v0"])
@pytest.mark.parametrize("before", [0, 7, 230])
def test_saved_episodes_of_any_actions_go_on_exactly(levers: str, env: str, before: int, tmp_path: Any) -> None:
    """230 steps: both have begun another episode, of 200 and 10 steps."""
    from rldistill.files import load_state, save_state

    task = make_task(env)
    environments = Environments(task, 3, 5)
    actions = random_actions(task, before + 30, 3)
    played(environments, actions[:before])
    save_state(tmp_path / "state", environments.state_dict())
    other = Environments(task, 3, 5)
    other.load_state_dict(load_state(tmp_path / "state"))
    rest = played(environments, actions[before:])
    same(rest, played(other, actions[before:]))


def test_rows_of_different_ages_are_put_back_too(levers: str) -> None:
    """Episodes that end at different times: the rows are played back from different moments on."""
    task = make_task(levers)
    environments = Environments(task, 2, 0)
    state = environments.state_dict()
    played(environments, random_actions(task, 4, 2))
    old = environments.state_dict()
    mixed = {name: old[name].copy() for name in ("episodes", "ages", "returns", "log")}  # without its checksum
    for name in ("ages", "returns"):
        mixed[name][1] = state[name][1]
    environments.load_state_dict(mixed)
    assert environments.observations[:, 0].tolist() == [4, 0], "the age is the first feature"
    np.testing.assert_array_equal(environments.observations[1], Environments(task, 2, 0).observations[1])


def test_an_environment_that_writes_to_its_action_does_not_change_the_policys(levers: str) -> None:
    task = make_task(levers)
    environments = Environments(task, 2, 0)
    actions = random_actions(task, 1, 2)[0]
    before = actions.copy()
    environments.step(actions)
    np.testing.assert_array_equal(actions, before)
    check_actions(environments.state_dict()["log"][:, 0].astype(np.int64), 2, task)


@pytest.mark.parametrize(
    ("parts", "features"),
    [
        ((), ()),
        (("age",), (0,)),
        (("door",), (1, 2, 3)),
        (("wind", "age"), (4, 5, 0)),
        (("age", "door", "wind"), tuple(range(6))),
    ],
)
def test_parts_of_an_observation_are_found_in_its_vector(
    levers: str, parts: tuple[str, ...], features: tuple[int, ...]
) -> None:
    assert features_of(make_task(levers), parts) == features


def test_versions_of_mujoco_that_have_moved_are_one_line() -> None:
    with pytest.raises(UserError, match="unknown environment 'HalfCheetah-v3'.*gymnasium-robotics") as refusal:
        make_task("HalfCheetah-v3")
    assert len(str(refusal.value).splitlines()) == 1


def test_games_are_shown_at_their_own_speed() -> None:
    assert decisions_per_second(make_task("PongNoFrameskip-v4")) == 15
    assert decisions_per_second(make_task("ALE/Pong-v5", frame_skip=2)) == 30
    assert decisions_per_second(make_task("CartPole-v1")) == 50, "as it declares"
    assert decisions_per_second(Task("MinAtar/Breakout-v1", 3, (4, 10, 10), "uint8")) == 15
    gymnasium.register("Silent-v0", lambda **options: Silent())
    try:
        assert decisions_per_second(make_task("Silent-v0")) == 30
    finally:
        del gymnasium.registry["Silent-v0"]


class Silent(gymnasium.Env[npt.NDArray[np.float32], int]):
    """Declares no speed."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)


@pytest.mark.slow
def test_playing_minatar_imports_neither_seaborn_nor_pyplot_until_it_draws() -> None:
    code = (
        "import sys\n"
        "from rldistill.play.envs import Environments, make_task\n"
        "Environments(make_task('MinAtar/Breakout-v1'), 1, 0)\n"
        "assert not {'seaborn', 'scipy.stats', 'matplotlib.pyplot'} & set(sys.modules)\n"
        "from minatar import environment\n"
        "import seaborn, matplotlib.pyplot\n"
        "assert environment.sns.color_palette is seaborn.color_palette\n"
        "assert environment.plt.subplots is matplotlib.pyplot.subplots\n"
    )
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (outcome.returncode, outcome.stderr) == (0, "")
