"""Environments of users: every kind of failure is one line, and what they give is right or refused."""

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rldistill.play.envs import EnvironmentFailed, Environments, make_task
from rldistill.play.envs.boundary import Boundary
from rldistill.play.rollout import uniform
from rldistill.types import UserError

BOX, TWO = spaces.Box(-1, 1, (2,)), spaces.Discrete(2)


class Line(gymnasium.Env[Any, Any]):
    """Ten steps; gives what it is made with."""

    last: "Line"

    def __init__(
        self,
        observation_space: Any = BOX,
        action_space: Any = TWO,
        observation: Any = (0.0, 0.5),
        reward: Any = 1.0,
        step: Callable[[Any], Any] | None = None,
        reset: Callable[[], Any] | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.observation_space, self.action_space, self.render_mode = observation_space, action_space, render_mode
        numbers = isinstance(observation, tuple) and all(isinstance(n, float) for n in observation)
        self.observation = np.array(observation, np.float32) if numbers else observation
        self.reward, self._step, self._reset = reward, step, reset
        self.actions: list[Any] = []
        Line.last = self

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.age = 0
        return self._reset() if self._reset else (self.observation, {})

    def step(self, action: Any) -> Any:
        self.age += 1
        self.actions.append(action)
        if self._step is not None:
            return self._step(self)
        return self.observation, self.reward, self.age == 10, False, {}


Register = Callable[..., str]


@pytest.fixture
def line() -> Iterator[Register]:
    """Registers `Line-v0` with the arguments given, and returns its id."""

    def register(**given: Any) -> str:
        gymnasium.registry.pop("Line-v0", None)
        gymnasium.register("Line-v0", lambda **options: Line(**given, **options), disable_env_checker=True)
        return "Line-v0"

    yield register
    gymnasium.registry.pop("Line-v0", None)


def played(env: str, steps: int = 3) -> Environments:
    task = make_task(env)
    environments = Environments(task, 1, 0)
    generator = np.random.default_rng(0)
    for _ in range(steps):
        environments.step(uniform(task, generator)(environments.observations))
    return environments


def raising(error: BaseException) -> Callable[..., Any]:
    def function(*_: object) -> Any:
        raise error

    return function


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


ERRORS: list[BaseException] = [
    RuntimeError("lost its connection\nsecond line"),
    SystemExit(0),
    MemoryError("texture pool"),
    BrokenPipeError(32, "Broken pipe"),
    UserWarning("of -W error"),
    KeyError("reward"),
    AssertionError(),
    GeneratorExit(),
    asyncio.CancelledError(),
    Unspeakable(),
]


@pytest.mark.parametrize("call", ["reset", "step"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_an_environment_raises_is_one_line_with_its_words(line: Register, call: str, error: Any) -> None:
    env = line(**{call: raising(error)})
    with pytest.raises(EnvironmentFailed) as refusal:
        played(env)
    text = str(refusal.value)
    assert text.startswith(f"{call} of {env} failed: {type(error).__name__}")
    assert len(text.splitlines()) == 1
    assert "second line" not in text
    assert "test_boundary.py, line" in text
    assert type(error).__name__ in refusal.value.details


def test_ctrl_c_stays_ctrl_c(line: Register) -> None:
    with pytest.raises(KeyboardInterrupt):
        played(line(step=raising(KeyboardInterrupt())))


def test_an_environment_that_cannot_be_closed_costs_nothing(line: Register, caplog: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(Line, "close", raising(SystemExit(1)))
    played(line()).close()
    assert "close of Line-v0 failed: SystemExit: 1" in caplog.text


def test_what_an_environment_prints_goes_to_stderr(line: Register, capsys: Any) -> None:
    def step(env: Line) -> Any:
        print("from the environment")
        return env.observation, 1.0, False, False, {}

    played(line(step=step))
    out, err = capsys.readouterr()
    assert (out, err.count("from the environment")) == ("", 3)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"reset": lambda: np.zeros(2, np.float32)}, "reset of Line-v0 gives no pair.*old Gym API"),
        ({"step": lambda env: (env.observation, 1.0, False, {})}, "step of Line-v0 gives 4 values.*old Gym API"),
        ({"reward": None}, "the reward None, which is no number"),
        ({"reward": "1"}, "the reward '1', which is no number"),
        ({"reward": np.array([1.0, 2.0])}, "which is no number"),
        ({"reward": float("nan")}, "the reward nan: rewards must be finite"),
        ({"reward": 1e39}, "rewards must be finite"),
        ({"reward": 10**400}, "rewards must be finite"),
        ({"step": lambda env: (env.observation, 1.0, None, False, {})}, "None as terminated"),
        ({"observation": (0.0, np.nan)}, "gives nan in an observation .number 1, from 0."),
        ({"observation": np.array([1e39, 0.0])}, "gives inf in an observation .number 0, from 0."),
        ({"observation": (0.0, 0.0, 0.0)}, r"an observation of shape \(3,\); its space declares \(2,\)"),
        ({"observation": 0.5}, r"an observation of shape \(\); its space declares \(2,\)"),
        ({"observation": "text"}, "no array of numbers but str"),
        ({"observation": None}, "no array of numbers but NoneType"),
        (
            {"observation_space": spaces.Box(0, 255, (2,), np.uint8), "observation": (0.0, 0.5)},
            "float32 numbers that the type of its space, uint8, cannot hold",
        ),
        ({"observation_space": spaces.Discrete(3), "observation": 3}, "an observation of 3, which its space"),
        ({"observation_space": spaces.Discrete(3, start=4), "observation": 3}, "an observation of 3, which its space"),
        (
            {"observation_space": spaces.Dict({"a": BOX, "b": TWO}), "observation": {"a": np.zeros(2)}},
            "with a; its space declares a, b",
        ),
        (
            {
                "observation_space": spaces.Dict({"a": BOX, "b": spaces.Tuple([TWO, BOX])}),
                "observation": {"a": np.zeros(2), "b": (0, np.array([0, np.nan]))},
            },
            "number 3 of its part 'b'",
        ),
    ],
)
def test_what_no_environment_may_give_is_one_line(line: Register, given: dict[str, Any], says: str) -> None:
    with pytest.raises(EnvironmentFailed, match=says) as refusal:
        played(line(**given))
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("picture", "shape"),
    [
        (np.zeros((4, 5, 3), np.uint8), (4, 5)),
        (np.zeros((4, 5), np.uint8), (4, 5)),
        (np.zeros((4, 5, 4), np.uint8), (4, 5)),
        (None, None),
        ("text", None),
        (np.zeros((4, 5, 2), np.uint8), None),
        ([[1], [2, 3]], None),
    ],
)
def test_pictures_are_rgb_or_refused(line: Register, monkeypatch: Any, picture: Any, shape: Any) -> None:
    monkeypatch.setattr(Line, "render", lambda self: picture, raising=False)
    environments = Environments(make_task(line()), 1, 0, pixels=True)
    if shape is None:
        with pytest.raises(EnvironmentFailed, match="render of Line-v0 gives .*, no picture"):
            environments.pixels()
    else:
        assert environments.pixels().shape == (1, *shape, 3)


@pytest.mark.parametrize("reward", [np.array([1.5], np.float32), np.float16(1.5), np.array(1.5), np.array([[1.5]])])
def test_an_array_of_one_number_is_a_reward(line: Register, reward: Any) -> None:
    task = make_task(line(reward=reward))
    assert Environments(task, 1, 0).step(np.array([0])).rewards.tolist() == [1.5]


@pytest.mark.parametrize(
    "space",
    [
        spaces.Dict(
            {"z": BOX, "a": spaces.Discrete(3, start=-1), "m": spaces.Tuple([spaces.MultiBinary((2, 2)), TWO])}
        ),
        spaces.Tuple(
            [spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[0, 1], [2, 3]]), spaces.Box(0, 9, (2, 2), np.int64)]
        ),
        spaces.Discrete(5, start=10),
        spaces.Dict({"deep": spaces.Dict({"x": spaces.Box(-1, 1, (2, 1), np.float64), "y": spaces.Text(4)})}),
    ],
)
def test_parts_are_put_together_as_gymnasium_flattens_them(line: Register, space: Any) -> None:
    space.seed(0)
    for _ in range(5):
        observation = space.sample()
        task = make_task(line(observation_space=space, observation=observation))
        expected = spaces.flatten(space, observation).astype(np.float32)
        np.testing.assert_array_equal(Environments(task, 1, 0).observations[0], expected)


@pytest.mark.parametrize(
    ("space", "sizes", "action", "given"),
    [
        (spaces.Discrete(3, start=5), (), np.array([2]), 7),
        (spaces.MultiDiscrete([2, 3], start=[1, -4]), (2, 3), np.array([[1, 2]]), [2, -2]),
        (spaces.MultiDiscrete([[2], [3]]), (2, 3), np.array([[1, 2]]), [[1], [2]]),
        (spaces.MultiBinary(3), (2, 2, 2), np.array([[1, 0, 1]]), [1, 0, 1]),
        (spaces.Tuple([spaces.Discrete(2), spaces.Discrete(3, start=1)]), (2, 3), np.array([[1, 2]]), (1, 3)),
        (spaces.Box(-2, 2, ()), None, np.array([[1.5]], np.float32), 1.5),
        (spaces.Box(-2, 2, (2, 1)), None, np.array([[1.5, -1]], np.float32), [[1.5], [-1]]),
    ],
)
def test_actions_count_from_0_and_reach_the_environment_in_its_own_way(
    line: Register, space: Any, sizes: Any, action: Any, given: Any
) -> None:
    task = make_task(line(action_space=space))
    assert task.continuous == (sizes is None)
    assert task.action_sizes == (sizes or ())
    environments = Environments(task, 1, 0)
    environments.step(action)
    received = Line.last.actions[-1]
    assert space.contains(received)
    np.testing.assert_array_equal(received, given)


class SilentError(Exception):
    """An error that has no text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_an_error_whose_own_text_fails_is_named_by_its_type() -> None:
    def make() -> None:
        raise SilentError

    with pytest.raises(EnvironmentFailed, match="making of Odd-v0 failed: SilentError"):
        Boundary("Odd-v0", make)


def test_what_an_environment_changes_of_its_process_it_changes_for_itself(
    line: Register, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir()
    away.mkdir()
    (away / "map.txt").write_text("here")
    monkeypatch.chdir(home)
    calls = []

    def reset() -> Any:
        os.chdir(away)
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        np.seterr(all="raise")
        sys.stdout.close()
        return np.zeros(2, np.float32), {}

    def step(env: Any) -> Any:
        calls.append((Path("map.txt").read_text(), torch.get_default_dtype(), torch.is_grad_enabled()))
        print("spoken")
        sys.stderr.close()
        sys.stderr = sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (as such environments do)
        return np.zeros(2, np.float32), 1.0, False, False, {}

    errors = np.geterr()
    played(line(reset=reset, step=step)).close()
    assert calls == [("here", torch.float64, False)] * 3
    assert Path.cwd() == home
    assert (torch.get_default_dtype(), torch.is_grad_enabled(), np.geterr()) == (torch.float32, True, errors)
    print("after", file=sys.stderr)
    assert capsys.readouterr() == ("", "spoken\nspoken\nspoken\nafter\n")


def test_rows_that_are_stepped_together_do_not_see_each_others_settings(
    line: Register, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row moves to a folder of its own in its first step, by a path relative to where the run is."""
    monkeypatch.chdir(tmp_path)
    calls: list[tuple[int, str, str]] = []

    def step(env: Any) -> Any:
        calls.append((id(env), Path.cwd().relative_to(tmp_path).as_posix(), np.geterr()["over"]))
        if env.age == 1:
            Path(f"row-{id(env)}").mkdir()
            os.chdir(f"row-{id(env)}")
            np.seterr(over="raise")
        return np.zeros(2, np.float32), 1.0, False, False, {}

    over = np.geterr()["over"]
    with contextlib.closing(Environments(make_task(line(step=step)), 3, 0)) as environments:
        for _ in range(3):
            environments.step(np.zeros(3, np.int64))
            assert (Path.cwd(), np.geterr()["over"]) == (tmp_path, over)
    assert len({row for row, _, _ in calls}) == 3
    assert [(folder, errors) for _, folder, errors in calls[:3]] == [(".", over)] * 3
    assert all((folder, errors) == (f"row-{row}", "raise") for row, folder, errors in calls[3:])


def test_a_call_from_a_folder_that_was_removed(line: Register, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with contextlib.closing(played(line())) as environments:
        assert environments.task.num_actions == 2


def test_an_error_in_closing_many_environments_is_one_line(line: Register, caplog: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(Line, "close", raising(RuntimeError("no answer of twenty")))
    task = make_task(line())
    Environments(task, 5, 0).close()
    assert caplog.text.count("no answer of twenty") == 1


def test_a_vector_of_a_thousand_million_places_is_refused(line: Register) -> None:
    with pytest.raises(UserError, match="1,000,000,000 numbers"):
        make_task(line(observation_space=spaces.Discrete(10**9), observation=3))
