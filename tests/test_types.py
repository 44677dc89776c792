import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rldistill.policies import load_policy
from rldistill.types import Task, UserError, as_tensor, check_numbers
from rldistill.verbs.evaluate import EvaluateConfig

tasks = st.builds(
    Task,
    env=st.text(min_size=1),
    num_actions=st.integers(1, 18),
    observation_shape=st.lists(st.integers(1, 210), min_size=1, max_size=3).map(tuple),
    observation_dtype=st.sampled_from(["uint8", "float32"]),
    frame_skip=st.integers(1, 8),
    frame_stack=st.integers(1, 8),
    sticky_actions=st.floats(0, 1, exclude_max=True),
    noop_max=st.integers(0, 30),
    max_frames=st.integers(0, 108_000),
    fire_when_idle=st.integers(0, 500),
    difficulty_ramping=st.booleans(),
    random_score=st.none() | st.floats(-1e6, 1e6),
)


@given(tasks)
def test_a_task_comes_back_from_its_plain_data_as_the_same_key(task: Task) -> None:
    back = Task.from_dict(task.as_dict())
    assert back == task
    assert hash(back) == hash(task)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"colour": 3}, "no field 'colour'"),
        ({"observation_shape": None}, "lacks a field"),
        ({"observation_shape": ["a"]}, "lacks a field"),
    ],
)
def test_damaged_task_data_is_refused(change: dict[str, object], says: str) -> None:
    data = Task("CartPole-v1", 2, (4,), "float32").as_dict()
    with pytest.raises(UserError, match=says):
        Task.from_dict(data | change)
    del data["env"]
    with pytest.raises(UserError, match="env"):
        Task.from_dict(data)


def test_a_tensor_of_observations_shares_their_memory() -> None:
    observations = np.zeros((2, 3), dtype=np.uint8)
    tensor = as_tensor(observations)
    observations[1, 2] = 7
    assert tensor[1, 2] == 7


bounds_of = st.lists(
    st.tuples(st.floats(-1e3, 0) | st.just(-math.inf), st.floats(1, 1e3) | st.just(math.inf)), min_size=1
)
continuous = bounds_of.map(
    lambda pairs: Task(
        "arm",
        len(pairs),
        (3,),
        "float32",
        action_low=tuple(low for low, _ in pairs),
        action_high=tuple(high for _, high in pairs),
        observation_keys=(("joints", 2), ("goal", 1)),
    )
)
several = st.lists(st.integers(1, 9), min_size=1).map(
    lambda sizes: Task("levers", sum(sizes), (3,), "float32", action_sizes=tuple(sizes))
)


@given(continuous | several | tasks)
def test_a_task_comes_back_through_a_file_ranges_without_bounds_included(task: Task) -> None:
    back = Task.from_dict(json.loads(json.dumps(task.as_dict())))
    assert back == task
    assert hash(back) == hash(task)
    assert back.continuous == (task.env == "arm")


def test_plain_data_of_a_discrete_task_is_what_it_always_was() -> None:
    """Checksums of policy folders and cards of datasets made before other actions were understood hang on it."""
    assert list(Task("CartPole-v1", 2, (4,), "float32").as_dict()) == [
        "env",
        "num_actions",
        "observation_shape",
        "observation_dtype",
        "frame_skip",
        "frame_stack",
        "sticky_actions",
        "noop_max",
        "max_frames",
        "fire_when_idle",
        "difficulty_ramping",
        "random_score",
    ]
    shipped = Path(__file__).parents[1] / "policies" / "pong"
    if shipped.is_dir():  # not in a source distribution
        assert load_policy(shipped).task.as_dict() == json.loads((shipped / "policy.json").read_text())["task"]


@pytest.mark.parametrize(
    "change",
    [
        {"action_low": ["low"]},
        {"action_low": 3},
        {"action_low": [-1.0]},
        {"action_high": [1.0]},
        {"action_low": []},
        {"action_sizes": [2, 3]},
        {"observation_keys": [["a"]]},
        {"action_low": [2.0, -1.0]},
        {"action_low": [math.nan, -1.0]},
        {"env": 3},
        {"env": ["ALE/Pong-v5"]},
        {"frame_skip": 10**15},
        {"frame_skip": True},
        {"frame_stack": 0},
        {"noop_max": -1},
        {"noop_max": 10**15},
        {"max_frames": "9"},
        {"max_frames": math.nan},
        {"sticky_actions": math.inf},
        {"random_score": [[]]},
        {"difficulty_ramping": None},
        {"observation_dtype": []},
        {"observation_keys": [["a", 10**9]]},
        {"observation_keys": [["a", 10**400]]},
        {"observation_keys": [["a", 5], ["b", -1]]},
        {"observation_keys": [["a", 2], ["a", 2]]},
        {"env_kwargs": [["a", 1], ["a", 2]]},
        {"env_kwargs": [["a", 10**400]]},
        {"max_episode_steps": -1},
    ],
)
def test_absurd_task_data_is_refused(change: dict[str, object]) -> None:
    data = Task("arm", 2, (4,), "float32", action_low=(-1.0, -1.0), action_high=(1.0, 1.0)).as_dict()
    assert Task.from_dict(data).continuous
    with pytest.raises(UserError, match="lacks a field or holds a wrong one"):
        Task.from_dict(data | change)


def test_a_range_without_bounds_is_valid_json_and_comes_back() -> None:
    """As one of before, which held what only Python reads."""
    low, high = (-math.inf, -1.0, 0.0), (math.inf, math.inf, 2.0)
    task = Task("Some-v0", 3, (4,), "float32", action_low=low, action_high=high)
    text = json.dumps(task.as_dict(), allow_nan=False)
    assert json.loads(text)["action_low"] == [None, -1.0, 0.0]
    assert Task.from_dict(json.loads(text)) == task
    before = json.dumps({**task.as_dict(), "action_low": low, "action_high": high})
    assert "Infinity" in before
    assert Task.from_dict(json.loads(before)) == task


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (dict(games=0), "--games is at least 1, not 0"),
        (dict(num_envs=-3), "--num-envs is at least 2, not -3"),
        (dict(epsilon=1.5), "--epsilon lies between 0 and 1, not 1.5"),
        (dict(epsilon=math.nan), "--epsilon lies between 0 and 1, not nan"),
        (dict(games=math.nan), "--games is at least 1, not nan"),
        (dict(rate=0.0), "--rate is a positive number, not 0.0"),
        (dict(rate=math.inf), "--rate is a positive number, not inf"),
    ],
)
def test_a_number_out_of_its_range_is_refused_by_its_flag(numbers: dict[str, float], message: str) -> None:
    config = SimpleNamespace(**{"games": 1, "num_envs": 2, "epsilon": 0.0, "rate": 1e-3} | numbers)
    with pytest.raises(UserError) as caught:
        check_numbers(config, least={"games": 1, "num_envs": 2}, shares=["epsilon"], positive=["rate"])
    assert str(caught.value) == message


def test_whole_numbers_are_whole_and_seeds_are_what_generators_take() -> None:
    for config, message in (
        (EvaluateConfig(episodes=2.0), "--episodes is a whole number, not 2.0"),  # type: ignore[arg-type]  # wrong on purpose
        (EvaluateConfig(seed=2**63), f"--seed is at most {2**63 - 1}, not {2**63}"),
    ):
        with pytest.raises(UserError) as caught:
            check_numbers(config, least={"episodes": 1, "seed": 0})
        assert str(caught.value) == message
    check_numbers(EvaluateConfig(seed=2**63 - 1), least={"seed": 0})


def test_a_number_that_is_left_to_its_default_is_in_its_range() -> None:
    check_numbers(SimpleNamespace(games=None, epsilon=1.0), least={"games": 1}, shares=["epsilon"])
