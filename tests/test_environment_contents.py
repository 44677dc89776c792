"""What environments give: layouts of images, precision, bounds, and whether they repeat themselves."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rldistill import EvaluateConfig, TrainConfig, evaluate, load_teacher, save_policy, train
from rldistill.formats.matching import mismatches_of
from rldistill.play.actions import bounds, uniform_actions
from rldistill.play.envs import EnvironmentFailed, Environments, make_task, repeats
from rldistill.play.envs.declared import observation_bounds, own_shape
from rldistill.progress import Silent
from rldistill.runs.writing import ENVIRONMENT_ERROR
from rldistill.students.networks import Architecture, build
from rldistill.types import Task, UserError


class World(gymnasium.Env[Any, Any]):
    """Thirty steps; `observe` makes an observation of its generator and its age."""

    def __init__(self, space: Any, observe: Callable[["World"], Any], actions: Any, render_mode: str | None) -> None:
        self.observation_space, self.action_space, self.observe = space, actions, observe
        self.games = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.age, self.place = 0, self.np_random.integers(7, size=2)
        self.games += 1
        return self.observe(self), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.age += 1
        self.place = (self.place + self.np_random.integers(-1, 2, size=2)) % 7
        return self.observe(self), 1.0, False, self.age == 30, {}


Register = Callable[..., str]


@pytest.fixture
def world() -> Iterator[Register]:
    """Registers `World-v0`, and returns its id."""

    def register(space: Any, observe: Any, actions: Any = spaces.Discrete(2)) -> str:
        gymnasium.registry.pop("World-v0", None)
        gymnasium.register("World-v0", lambda render_mode=None: World(space, observe, actions, render_mode))
        return "World-v0"

    yield register
    gymnasium.registry.pop("World-v0", None)


def spotted(env: World) -> np.ndarray[Any, Any]:
    image = np.zeros((7, 7, 3), np.float32)
    image[*env.place, 0] = 1
    image[env.age % 7, :, 2] = 0.5
    return image


def stepped(env: str, steps: int, rows: int = 1) -> Environments:
    task = make_task(env)
    environments = Environments(task, rows, 0)
    generator = np.random.default_rng(0)
    for _ in range(steps):
        environments.step(uniform_actions(task, rows, generator))
    return environments


# Layouts


def test_tables_are_vectors_and_grey_pictures_have_one_channel(world: Register) -> None:
    numbers = np.arange(6, dtype=np.float32).reshape(2, 3)
    env = world(spaces.Box(0, 9, (2, 3)), lambda _: numbers)
    assert make_task(env).observation_shape == (6,)
    np.testing.assert_array_equal(stepped(env, 1).observations[0], numbers.ravel())
    picture = np.arange(120, dtype=np.uint8).reshape(10, 12)
    env = world(spaces.Box(0, 255, (10, 12), np.uint8), lambda _: picture)
    assert (make_task(env).observation_shape, make_task(env).observation_dtype) == ((1, 10, 12), "uint8")
    np.testing.assert_array_equal(stepped(env, 1).observations[0, 0], picture)


def test_a_policy_of_before_reads_images_of_floats_as_it_learnt_them(world: Register, tmp_path: Path) -> None:
    """Its task says (7, 7, 3): such images used to stay as they were."""
    env = world(spaces.Box(0, 1, (7, 7, 3)), spotted)
    now = make_task(env)
    assert now.observation_shape == (3, 7, 7)
    before = replace(now, observation_shape=(7, 7, 3))
    turned, plain = (Environments(task, 1, 0).observations[0] for task in (now, before))
    np.testing.assert_array_equal(turned, plain.transpose(2, 0, 1))
    save_policy(tmp_path / "old", build(Architecture("cnn:2:4", (7, 7, 3), 2), 0), before, {})
    assert evaluate([tmp_path / "old"], EvaluateConfig(episodes=1))[0].mean == 30
    save_policy(tmp_path / "new", build(Architecture("cnn:2:4", (3, 7, 7), 2), 0), now, {})
    with pytest.raises(UserError, match=r"\(3, 7, 7\).*\(7, 7, 3\)"):
        evaluate([tmp_path / "old", tmp_path / "new"], EvaluateConfig(episodes=1))


def test_a_teacher_that_learnt_from_floats_with_channels_last_is_given_them_so(world: Register, tmp_path: Path) -> None:
    """Stable-Baselines3 turns images in bytes alone: its policy reads (7, 7, 3), and must choose as it does there."""
    sb3 = pytest.importorskip("stable_baselines3")
    env = world(spaces.Box(0, 1, (7, 7, 3)), spotted)
    model = sb3.PPO("MlpPolicy", gymnasium.make(env), n_steps=8, batch_size=8, seed=0, policy_kwargs={"net_arch": [8]})
    model.save(tmp_path / "ppo.zip")
    teacher = load_teacher(tmp_path / "ppo.zip", env=env)
    assert mismatches_of(teacher.foreign, teacher.task) == []  # type: ignore[union-attr]
    assert (teacher.task.observation_shape, own_shape(teacher.task)) == ((3, 7, 7), (7, 7, 3))
    environments = stepped(env, 0, rows=64)
    ours = teacher(torch.from_numpy(environments.observations)).log_softmax(dim=1)
    with torch.no_grad():
        given = torch.from_numpy(environments.observations.transpose(0, 2, 3, 1).copy())
        theirs = model.policy.get_distribution(given).distribution.logits
    assert theirs.std(dim=0).min() > 1e-4, "it tells the states apart"
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


# Precision and bounds


@pytest.mark.parametrize(
    ("observe", "says"),
    [
        (lambda env: env.place + 1.7e9, "number [01] .from 0. is about 1.7e"),
        (lambda env: np.array([env.place[0], 1_700_000_000_000 + 60 * env.age]), "number 1 .from 0."),
    ],
)
def test_numbers_that_float32_cannot_tell_apart_are_refused(world: Register, observe: Any, says: str) -> None:
    env = world(spaces.Box(-np.inf, np.inf, (2,), np.float64), observe)
    with pytest.raises(EnvironmentFailed, match=f"float32.*{says}.*Subtract"):
        stepped(env, 100, rows=2)


@pytest.mark.parametrize(
    "observe",
    [
        lambda env: (env.place + 5e6).astype(np.float64),  # whole metres of a map
        lambda env: np.array([1.25, 8.3]) + env.np_random.normal(size=2) * 1e-15,  # constants, and what float64 rounds
        lambda env: np.array([1.0, 0.3]) * 0.5**env.age,  # comes to rest
        lambda env: np.array([1.5 + 1e-9 * env.age + (env.age == 1), 0.0]),  # hardly moves
        lambda env: env.np_random.normal(size=2) * 1e9,
    ],
)
@pytest.mark.slow
def test_numbers_that_float32_rounds_and_keeps_apart_are_played(world: Register, observe: Any) -> None:
    stepped(world(spaces.Box(-np.inf, np.inf, (2,), np.float64), observe), 1500, rows=2)


def test_bounds_of_the_largest_number_are_none(world: Register) -> None:
    """gymnasium's examples declare finfo.max; as a range it would make every student's action the same."""
    largest = float(np.finfo(np.float32).max)
    space = spaces.Box(np.array([-largest, -1], np.float32), np.array([1e31, 1], np.float32))
    env = world(space, lambda _: np.zeros(2, np.float32), space)
    task = make_task(env)
    assert (task.action_low, task.action_high) == ((-np.inf, -1), (np.inf, 1))
    old = Task.from_dict({**task.as_dict(), "action_low": [-largest, -1], "action_high": [1e31, 1]})
    assert old == task
    assert [side.tolist() for side in bounds(task)] == [[-1, -1], [1, 1]]
    bounds_of_features = observation_bounds(task)
    assert bounds_of_features is not None
    assert [side.tolist() for side in bounds_of_features] == [[-np.inf, -1], [np.inf, 1]]


def test_a_teacher_whose_file_says_the_largest_number_fits(world: Register, tmp_path: Path) -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    largest = float(np.finfo(np.float32).max)
    env = world(spaces.Box(-1, 1, (2,)), lambda _: np.zeros(2, np.float32), spaces.Box(-largest, largest, (2,)))
    sb3.PPO("MlpPolicy", gymnasium.make(env), n_steps=8, batch_size=8).save(tmp_path / "ppo.zip")
    assert load_teacher(tmp_path / "ppo.zip", env=env).mismatches == ()  # type: ignore[union-attr]


# Repeating


UNREPEATED: dict[str, Callable[[World], Any]] = {
    "another generator": lambda env: np.array([random.random(), env.age], np.float32),
    "memory of earlier games": lambda env: np.array([env.games, env.age], np.float32),
}
SEEDED: Callable[[World], Any] = lambda env: np.append(env.place, env.age).astype(np.float32)[1:]  # noqa: E731


@pytest.mark.parametrize("kind", UNREPEATED)
def test_an_environment_that_does_not_repeat_itself_is_noticed(
    world: Register, kind: str, caplog: Any, tmp_path: Path
) -> None:
    env = world(spaces.Box(-9, 9, (2,)), UNREPEATED[kind])
    task = make_task(env)
    assert not repeats(task, 0)
    environments = stepped(env, 100)
    state = environments.state_dict()
    Environments(task, 1, 0).load_state_dict(state)
    assert "does not repeat itself" in caplog.text
    caplog.clear()
    del state["observations_sha256"]  # of a checkpoint from before it was there
    Environments(task, 1, 0).load_state_dict(state)
    assert not caplog.text


def test_an_environment_that_repeats_itself_is_not_suspected(world: Register, caplog: Any) -> None:
    env = world(spaces.Box(-9, 9, (2,)), SEEDED)
    task = make_task(env)
    assert repeats(task, 0)
    state = stepped(env, 40, rows=3).state_dict()
    Environments(task, 3, 0).load_state_dict(state)
    assert not caplog.text


class Lines(Silent):
    """Keeps the lines that stay."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.mark.parametrize("repeated", [True, False])
def test_evaluate_says_where_the_seed_does_not_decide(world: Register, tmp_path: Path, repeated: bool) -> None:
    env = world(spaces.Box(-9, 9, (2,)), SEEDED if repeated else UNREPEATED["another generator"])
    save_policy(tmp_path / "policy", build(Architecture("mlp:4", (2,), 2), 0), make_task(env), {})
    progress = Lines()
    evaluate([tmp_path / "policy"], EvaluateConfig(episodes=1), progress=progress)
    assert any("does not repeat itself" in line for line in progress.lines) != repeated


@pytest.mark.slow
def test_a_run_whose_environment_fails_keeps_the_traceback_and_goes_on(world: Register, tmp_path: Path) -> None:
    fails_at = 900
    steps = 0

    def observe(env: World) -> Any:
        nonlocal steps
        steps += 1
        if steps == fails_at:
            raise RuntimeError("no reply of the simulator")
        return SEEDED(env)

    env = world(spaces.Box(-9, 9, (2,)), observe)
    config = TrainConfig.of(algo="pqn", steps=1200, num_envs=2, network="mlp:4", final_episodes=1, checkpoint_seconds=0)
    with pytest.raises(EnvironmentFailed, match="no reply.*the traceback is in .*; go on with --resume") as refusal:
        train(env, tmp_path / "run", config)
    assert len(str(refusal.value).splitlines()) == 1
    assert "in observe" in (tmp_path / "run" / ENVIRONMENT_ERROR).read_text()
    resumed = train(env, tmp_path / "run", config, resume=True)
    assert resumed.sha256 == train(env, tmp_path / "whole", config).sha256


def test_a_run_that_fails_at_once_leaves_no_folder(world: Register, tmp_path: Path) -> None:
    env = world(spaces.Box(-9, 9, (2,)), lambda env: 1 / (env.age - 1) * np.ones(2))
    with pytest.raises(EnvironmentFailed, match="ZeroDivisionError: division by zero"):
        train(env, tmp_path / "run", TrainConfig.of(algo="pqn", steps=600, network="mlp:4"))
    assert not (tmp_path / "run").exists()
