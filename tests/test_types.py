import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rldistill.types import ScoreKind, Task, UserError, as_tensor, greedy

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


class Table:
    """Scores that are the observations themselves."""

    score_kind: ScoreKind = "q_values"

    def __call__(self, observations: Tensor) -> Tensor:
        return observations


def test_greedy_takes_the_first_of_the_highest_scores() -> None:
    scores = np.array([[0.0, 2.0, 2.0], [-1.0, -3.0, -2.0]], dtype=np.float32)
    actions = greedy(Table(), scores)
    assert actions.tolist() == [1, 0]
    assert actions.dtype == np.int64


def test_greedy_keeps_no_graph_for_gradients() -> None:
    weights = torch.ones(3, requires_grad=True)

    class Scaled(Table):
        def __call__(self, observations: Tensor) -> Tensor:
            scores = observations * weights
            assert not scores.requires_grad
            return scores

    greedy(Scaled(), np.ones((1, 3), dtype=np.float32))
