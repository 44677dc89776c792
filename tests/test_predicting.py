"""`predict` in an environment's own terms, and Stable-Baselines3's `evaluate_policy` on environments of every kind of space."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from rldistill.play.actions import greedy
from rldistill.play.envs import Environments, make_task
from rldistill.play.envs.own import predict_own
from rldistill.play.games import play_scored
from rldistill.policies import SavedPolicy
from rldistill.students.networks import Architecture, build
from rldistill.types import Task, UserError


class Signs(gymnasium.Env[Any, Any]):
    """Twenty steps whose observations are drawn from a space; a point for each action that is the space's first."""

    def __init__(self, observation_space: Any, action_space: Any = None) -> None:
        self.observation_space = observation_space
        self.action_space = spaces.Discrete(3) if action_space is None else action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.age = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self.age += 1
        first = getattr(self.action_space, "start", 0)
        return self.observation_space.sample(), float(np.all(action == first)), self.age == 20, False, {}


SPACES: dict[str, tuple[Any, Any]] = {
    "Dict": (
        spaces.Dict(
            {
                "wind": spaces.Box(-1, 1, (2,), np.float32),
                "door": spaces.Discrete(3),
                "in": spaces.Dict(
                    {"b": spaces.MultiBinary(2), "t": spaces.Tuple((spaces.Discrete(2, start=5), spaces.Box(0, 1, ())))}
                ),
            }
        ),
        None,
    ),
    "Tuple": (spaces.Tuple((spaces.Discrete(4), spaces.Box(-1, 1, (2,), np.float32))), None),
    "Discrete": (spaces.Discrete(6, start=2), None),
    "MultiDiscrete": (spaces.MultiDiscrete([2, 3]), None),
    "MultiBinary": (spaces.MultiBinary(5), None),
    "Image": (spaces.Box(0, 255, (12, 10, 3), np.uint8), None),
    "FloatImage": (spaces.Box(0, 1, (12, 10, 3), np.float32), None),
    "Table": (spaces.Box(-1, 1, (2, 3), np.float32), None),
    "Shifted": (spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(3, start=1)),
    "Grid": (spaces.Box(-1, 1, (2,), np.float32), spaces.Box(-1, 1, (2, 2), np.float32)),
}


@pytest.fixture(params=sorted(SPACES))
def kind(request: Any) -> Iterator[str]:
    name = f"Signs{request.param}-v0"
    gymnasium.register(
        name, Signs, kwargs=dict(zip(("observation_space", "action_space"), SPACES[request.param], strict=True))
    )
    yield name
    del gymnasium.registry[name]


def policy_of(env: str) -> SavedPolicy:
    """A policy with weights that are drawn."""
    task = make_task(env)
    network = "cnn:4:8" if len(task.observation_shape) == 3 else "mlp:8"
    kind: Any = "actions" if task.continuous else "logits"
    return SavedPolicy(build(Architecture(network, task.observation_shape, task.num_actions), 3, kind), task)


def test_predict_takes_what_the_environment_gives_and_gives_what_it_takes(kind: str) -> None:
    """One observation and batches of one and of several, against the policy on rldistill's own observations."""
    policy = policy_of(kind)
    own = gymnasium.make(kind)
    ours = Environments(policy.task, 1, 0)
    rows, given = [], []
    observation, _ = own.reset(seed=int(ours.seeds(np.arange(1))[0]))
    for _ in range(5):
        rows.append(ours.observations[0])
        given.append(observation)
        action = policy.predict(observation)[0]
        assert own.action_space.contains(action if action.ndim else int(action))
        expected = greedy(policy, ours.observations, policy.task)
        ours.step(expected)
        observation = own.step(action if action.ndim else int(action))[0]
        start = getattr(own.action_space, "start", 0)
        np.testing.assert_allclose(np.ravel(action), np.ravel(expected[0] + start), rtol=1e-5)
    batch = greedy(policy, np.stack(rows), policy.task)
    for number in (1, 5):
        stacked = stack(given[:number])
        actions = policy.predict(stacked)[0]
        assert actions.shape == (number, *own.action_space.shape)
        np.testing.assert_allclose(actions.reshape(number, -1), batch[:number].reshape(number, -1) + start, rtol=1e-5)
        np.testing.assert_allclose(policy.predict(np.stack(rows[:number]))[0], actions, rtol=1e-5)


def stack(observations: list[Any]) -> Any:
    """As `DummyVecEnv` does it."""
    first = observations[0]
    if isinstance(first, dict):
        return {key: stack([one[key] for one in observations]) for key in first}
    if isinstance(first, tuple):
        return tuple(stack([one[place] for one in observations]) for place in range(len(first)))
    return np.stack(observations)


@pytest.mark.parametrize("kind", ["Discrete", "Image", "MultiBinary", "Shifted", "FlatDict", "Tuple"], indirect=False)
@pytest.mark.slow
def test_evaluate_policy_scores_as_we_do(kind: str) -> None:
    evaluation = pytest.importorskip("stable_baselines3.common.evaluation")
    vectorized = pytest.importorskip("stable_baselines3.common.vec_env")
    flat = spaces.Dict({"wind": spaces.Box(-1, 1, (2,), np.float32), "door": spaces.Discrete(3)})
    space, actions = (flat, None) if kind == "FlatDict" else SPACES[kind]
    gymnasium.register("Signs-v0", Signs, kwargs={"observation_space": space, "action_space": actions})
    try:
        policy = policy_of("Signs-v0")
        environments = vectorized.DummyVecEnv([lambda: gymnasium.make("Signs-v0")] * 2)
        mean, deviation = evaluation.evaluate_policy(policy, environments, n_eval_episodes=40, warn=False)
        score = play_scored(policy.task, policy, 40, 0.0, 1)
        assert abs(mean - score["mean"]) < 3 * deviation / np.sqrt(20) + 1e-6
        one, _ = evaluation.evaluate_policy(policy, gymnasium.make("Signs-v0"), n_eval_episodes=5, warn=False)
        assert 0 <= one <= 20
    finally:
        del gymnasium.registry["Signs-v0"]


def test_frozen_lake_by_evaluate_policy() -> None:
    """Discrete observations: a policy that walks along the lake's safe path reaches the goal on ice that is not slippery."""
    evaluation = pytest.importorskip("stable_baselines3.common.evaluation")
    task = make_task("FrozenLake-v1", env_kwargs={"is_slippery": False})
    network = build(Architecture("mlp:16", task.observation_shape, 4), 0, "logits")
    policy = SavedPolicy(network, task)
    path = {0: 1, 4: 1, 8: 2, 9: 1, 13: 2, 14: 2}
    import torch

    class Walks:
        score_kind, task = policy.score_kind, policy.task

        def __call__(self, observations: torch.Tensor) -> torch.Tensor:
            return torch.eye(4)[[path.get(int(state), 0) for state in observations.argmax(1)]]

    object.__setattr__(policy, "network", Walks())
    mean, _ = evaluation.evaluate_policy(
        policy, gymnasium.make("FrozenLake-v1", is_slippery=False), n_eval_episodes=3, warn=False
    )
    assert mean == 1.0
    assert policy.predict(np.eye(16, dtype=np.float32)[8])[0] == 2
    assert policy.predict(np.eye(16, dtype=np.int64)[8])[0] == 2
    assert policy.predict(8)[0] == 2
    assert policy.predict([0] * 16)[0].tolist() == [1] * 16


@pytest.mark.parametrize(
    ("kind", "observation", "says"),
    [
        ("Dict", {"wind": np.zeros(2)}, "declares"),
        ("Dict", {"wind": np.zeros((2, 2)), "door": np.zeros(1), "in": {"b": 0, "t": (5, 0)}}, "different lengths"),
        ("Tuple", (1, 2, 3), "tuple of 2"),
        ("Discrete", 1, "lacks"),
        ("Image", np.zeros((10, 12, 3), np.uint8), "shape"),
        ("Table", np.zeros((1, 2, 2, 3)), "not"),
        ("Shifted", {"a": 1}, "named parts"),
    ],
)
def test_other_observations_are_one_line(kind: str, observation: Any, says: str) -> None:
    gymnasium.register(
        "Signs-v1", Signs, kwargs=dict(zip(("observation_space", "action_space"), SPACES[kind], strict=True))
    )
    try:
        with pytest.raises(UserError, match=says) as caught:
            policy_of("Signs-v1").predict(observation)
        assert len(str(caught.value).splitlines()) == 1
    finally:
        del gymnasium.registry["Signs-v1"]


def test_images_of_a_vector_of_stacked_frames_are_turned() -> None:
    """Stable-Baselines3 stacks Atari's frames along the last axis."""
    pytest.importorskip("ale_py")
    task = make_task("PongNoFrameskip-v4")
    policy = SavedPolicy(build(Architecture("cnn:2:3", task.observation_shape, 6), 0, "logits"), task)
    frames = np.random.default_rng(0).integers(256, size=(3, 4, 84, 84), dtype=np.uint8)
    np.testing.assert_array_equal(policy.predict(np.moveaxis(frames, 1, -1))[0], policy.predict(frames)[0])


def test_an_environment_that_is_not_here_is_only_needed_for_its_own_observations(tmp_path: Path) -> None:
    gymnasium.register("Gone-v0", Signs, kwargs={"observation_space": SPACES["Dict"][0]})
    policy = policy_of("Gone-v0")
    del gymnasium.registry["Gone-v0"]
    assert policy.predict(np.zeros((2, *policy.task.observation_shape), np.float32))[0].shape == (2,)
    with pytest.raises(UserError, match="unknown environment"):
        policy.predict({"wind": np.zeros(2)})


def test_an_environment_that_is_not_here_is_said_where_its_actions_may_be_shifted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    task = Task("gone:Away-v0", num_actions=2, observation_shape=(3,), observation_dtype="float32")
    policy = build(Architecture("mlp:4", (3,), 2), 0, "q_values")
    action = predict_own(
        policy, task, np.zeros(3, dtype=np.float32), deterministic=True, generator=np.random.default_rng(0)
    )
    assert int(action) in (0, 1)
    assert "count from 0" in caplog.text
