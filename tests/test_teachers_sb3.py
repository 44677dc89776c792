"""Stable-Baselines3 zips, built here in the layouts of 2020, 2021 and today, and those of others where they are."""

from __future__ import annotations

import base64
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from rldistill.formats.foreign import BoxSpace, DiscreteSpace, ForeignPolicy
from rldistill.formats.sb3.reading import read_sb3
from rldistill.formats.tensors.files import load_state_dict, load_tensors
from rldistill.types import UserError

Arrays = dict[str, npt.NDArray[np.float32]]
VECTOR = spaces.Box(-3, 3, (5,), np.float32)
IMAGE = spaces.Box(0, 255, (4, 84, 84), np.uint8)
ACTIONS = spaces.Box(np.array([-2, -1], np.float32), np.array([2, 3], np.float32))
DATA: dict[str, dict[str, Any]] = {
    "DQN": {"exploration_rate": 0.1},
    "QR-DQN": {"n_quantiles": 7},
    "PPO": {"gae_lambda": 0.9, "vf_coef": 0.5, "clip_range": {":type:": "<class 'function'>", ":serialized:": "gAWV"}},
    "A2C": {"gae_lambda": 0.9, "vf_coef": 0.5},
    "TRPO": {"gae_lambda": 0.9, "cg_max_steps": 15},
    "MaskablePPO": {"gae_lambda": 0.9, "vf_coef": 0.5, "target_kl": None},
    "SAC": {"target_entropy": -1.0},
    "TQC": {"target_entropy": -1.0, "top_quantiles_to_drop_per_net": 2},
    "TD3": {"policy_delay": 2, "target_noise_clip": 0.5},
    "DDPG": {"policy_delay": 1, "target_noise_clip": 0.0},
}
MODULES = {
    "DQN": "stable_baselines3.dqn.policies",
    "QR-DQN": "sb3_contrib.qrdqn.policies",
    "PPO": "stable_baselines3.common.policies",
    "A2C": "stable_baselines3.common.policies",
    "TRPO": "stable_baselines3.common.policies",
    "MaskablePPO": "sb3_contrib.common.maskable.policies",
    "SAC": "stable_baselines3.sac.policies",
    "TQC": "sb3_contrib.tqc.policies",
    "TD3": "stable_baselines3.td3.policies",
    "DDPG": "stable_baselines3.td3.policies",
}


# --- zips made by hand


def described(value: Any, *, today: bool) -> dict[str, Any]:
    """A space as SB3's JSON describes it: type, pickle, and its attributes, which are text where JSON has no such thing."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    state = {
        name: getattr(value, name)
        for name in ("n", "nvec", "low", "high", "low_repr", "high_repr")
        if hasattr(value, name)
    }
    if not today:
        kind = kind.replace("gymnasium", "gym")
        state = {name: item for name, item in state.items() if not name.endswith("_repr")}
    shape = list(value.shape)
    copies = {name: str(item) for name, item in state.items()}
    if not today and "n" in copies:
        copies["n"] = int(copies["n"])  # type: ignore[assignment]  # of two kinds
    return {
        ":type:": f"<class '{kind}'>",
        ":serialized:": base64.b64encode(pickle.dumps(value)).decode(),
        "_shape" if today else "shape": shape,
        "dtype": str(value.dtype),
        **copies,
    }


def make_zip(
    path: Path,
    algorithm: str,
    tensors: Arrays,
    observations: spaces.Space[Any],
    actions: spaces.Space[Any],
    *,
    today: bool = True,
    kwargs: dict[str, Any] | None = None,
    changes: dict[str, Any] | None = None,
) -> Path:
    """A zip as SB3 2.x (`today`) or 1.0 saves it."""
    data = {
        "policy_class": {
            ":type:": "<class 'abc.ABCMeta'>",
            ":serialized:": base64.b64encode(b"cos\nsystem\n(X\x05\0\0\0falsetR.").decode(),
            "__module__": MODULES[algorithm],
            "__init__": "<function SomePolicy.__init__ at 0x7f>",
        },
        "policy_kwargs": kwargs or {},
        "num_timesteps": 1234,
        "observation_space": described(observations, today=today),
        "action_space": described(actions, today=today),
        **DATA[algorithm],
        **(changes or {}),
    }
    members = {
        "data": json.dumps(data, indent=4).encode(),
        "policy.pth": saved({name: torch.from_numpy(array) for name, array in tensors.items()}, today=today),
        "policy.optimizer.pth": b"never read",
        "_stable_baselines3_version": b"2.4.0" if today else b"1.0",
    }
    if today:
        members["system_info.txt"] = b"- OS: Linux\n- Python: 3.11\n"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def saved(value: Any, *, today: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=today)
    return buffer.getvalue()


class Draw:
    """Random layers under SB3's names."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.tensors: Arrays = {}

    def array(self, name: str, *shape: int) -> npt.NDArray[np.float32]:
        self.tensors[name] = (self.rng.normal(size=shape) / np.sqrt(max(np.prod(shape[1:]), 1))).astype(np.float32)
        return self.tensors[name]

    def linear(self, prefix: str, inputs: int, outputs: int) -> None:
        self.array(f"{prefix}.weight", outputs, inputs)
        self.array(f"{prefix}.bias", outputs)

    def mlp(self, prefix: str, *sizes: int) -> None:
        for number, (inputs, outputs) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            self.linear(f"{prefix}.{2 * number}", inputs, outputs)

    def nature(self, prefix: str, depth: int, flat: int, features: int) -> None:
        for number, inputs, outputs, kernel in ((0, depth, 32, 8), (2, 32, 64, 4), (4, 64, 64, 3)):
            self.array(f"{prefix}.cnn.{number}.weight", outputs, inputs, kernel, kernel)
            self.array(f"{prefix}.cnn.{number}.bias", outputs)
        self.linear(f"{prefix}.linear.0", flat, features)


def dense(tensors: Arrays, prefix: str, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return x @ tensors[f"{prefix}.weight"].astype(np.float64).T + tensors[f"{prefix}.bias"]


def relu(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.maximum(x, 0)


def layers(
    tensors: Arrays, prefix: str, x: npt.NDArray[Any], count: int, activation: Callable[..., Any], *, last: bool
) -> npt.NDArray[Any]:
    for number in range(count):
        x = dense(tensors, f"{prefix}.{2 * number}", x)
        x = activation(x) if last or number < count - 1 else x
    return x


def convolve(tensors: Arrays, prefix: str, x: npt.NDArray[Any], stride: int) -> npt.NDArray[Any]:
    weight = tensors[f"{prefix}.weight"].astype(np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
    return np.einsum("bchwij,ocij->bohw", windows, weight) + tensors[f"{prefix}.bias"][:, None, None]


def nature(tensors: Arrays, prefix: str, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    for number, stride in ((0, 4), (2, 2), (4, 1)):
        x = relu(convolve(tensors, f"{prefix}.cnn.{number}", x, stride))
    return relu(dense(tensors, f"{prefix}.linear.0", x.reshape(len(x), -1)))


def observed(space: spaces.Box, count: int = 3) -> npt.NDArray[Any]:
    rng = np.random.default_rng(1)
    if space.dtype == np.uint8:
        return rng.integers(0, 256, (count, *space.shape)).astype(np.uint8)
    return rng.normal(size=(count, *space.shape)).astype(np.float32)


def check(policy: ForeignPolicy, space: spaces.Box, wanted: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> None:
    x = observed(space)
    scores = policy.network(torch.from_numpy(x))
    assert scores.dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in policy.network.parameters())
    np.testing.assert_allclose(scores.numpy(), wanted(x.astype(np.float64)), rtol=1e-4, atol=1e-5)


# --- networks


@pytest.mark.parametrize("today", [False, True])
def test_dqn_gives_q_values(tmp_path: Path, today: bool) -> None:
    draw = Draw()
    draw.mlp("q_net.q_net", 5, 8, 6, 3)
    draw.mlp("q_net_target.q_net", 5, 8, 6, 3)
    policy = read_sb3(make_zip(tmp_path / "x.zip", "DQN", draw.tensors, VECTOR, spaces.Discrete(3), today=today))
    assert (policy.algorithm, policy.scores, policy.squashed) == ("DQN", "q_values", False)
    assert policy.action_space == DiscreteSpace((3,))
    assert isinstance(policy.observation_space, BoxSpace)
    assert policy.observation_space.shape == (5,)
    assert policy.observation_space.low.tolist() == [-3.0] * 5
    assert policy.provenance["stable_baselines3"] == ("2.4.0" if today else "1.0")
    assert policy.provenance["control_steps"] == 1234
    json.dumps(dict(policy.provenance))
    check(policy, VECTOR, lambda x: layers(draw.tensors, "q_net.q_net", x, 3, relu, last=False))


def test_qrdqn_gives_the_mean_over_quantiles(tmp_path: Path) -> None:
    draw = Draw()
    draw.mlp("quantile_net.quantile_net", 5, 8, 21)
    draw.mlp("quantile_net_target.quantile_net", 5, 8, 21)
    policy = read_sb3(make_zip(tmp_path / "x.zip", "QR-DQN", draw.tensors, VECTOR, spaces.Discrete(3)))
    assert (policy.algorithm, policy.scores) == ("QR-DQN", "q_values")

    def wanted(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return layers(draw.tensors, "quantile_net.quantile_net", x, 2, relu, last=False).reshape(-1, 7, 3).mean(axis=1)

    check(policy, VECTOR, wanted)
    path = make_zip(
        tmp_path / "y.zip", "QR-DQN", draw.tensors, VECTOR, spaces.Discrete(3), changes={"n_quantiles": None}
    )
    check(read_sb3(path), VECTOR, wanted)


def actor_critic(*sizes: int, outputs: int) -> Draw:
    draw = Draw()
    draw.mlp("mlp_extractor.policy_net", *sizes)
    draw.mlp("mlp_extractor.value_net", *sizes)
    draw.linear("action_net", sizes[-1], outputs)
    draw.linear("value_net", sizes[-1], 1)
    return draw


@pytest.mark.parametrize("algorithm", ["PPO", "A2C", "TRPO", "MaskablePPO"])
def test_actor_critics_give_logits(tmp_path: Path, algorithm: str) -> None:
    draw = actor_critic(5, 8, 6, outputs=3)
    policy = read_sb3(make_zip(tmp_path / "x.zip", algorithm, draw.tensors, VECTOR, spaces.Discrete(3)))
    assert (policy.algorithm, policy.scores) == (algorithm, "logits")
    check(
        policy,
        VECTOR,
        lambda x: dense(
            draw.tensors, "action_net", layers(draw.tensors, "mlp_extractor.policy_net", x, 2, np.tanh, last=True)
        ),
    )


def test_an_algorithm_that_the_file_does_not_tell_is_said_to_be_unknown(tmp_path: Path) -> None:
    draw = actor_critic(5, 8, outputs=3)
    path = make_zip(tmp_path / "x.zip", "A2C", draw.tensors, VECTOR, spaces.Discrete(3), changes={"gae_lambda": 1.0})
    with zipfile.ZipFile(path) as archive:
        data, weights = json.loads(archive.read("data")), archive.read("policy.pth")
    del data["gae_lambda"]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", json.dumps(data))
        archive.writestr("policy.pth", weights)
    policy = read_sb3(path)
    assert policy.algorithm == "PPO, A2C or TRPO"
    assert "tells PPO, A2C and TRPO apart" in policy.provenance["notes"][0]


def test_shared_layers_of_before_1_8_are_understood(tmp_path: Path) -> None:
    draw = Draw()
    draw.mlp("mlp_extractor.shared_net", 5, 7)
    draw.mlp("mlp_extractor.policy_net", 7, 6)
    draw.mlp("mlp_extractor.value_net", 7, 4)
    draw.linear("action_net", 6, 3)
    draw.linear("value_net", 4, 1)
    policy = read_sb3(make_zip(tmp_path / "x.zip", "PPO", draw.tensors, VECTOR, spaces.Discrete(3), today=False))

    def wanted(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        shared = layers(draw.tensors, "mlp_extractor.shared_net", x, 1, np.tanh, last=True)
        return dense(
            draw.tensors, "action_net", layers(draw.tensors, "mlp_extractor.policy_net", shared, 1, np.tanh, last=True)
        )

    check(policy, VECTOR, wanted)


def test_the_activation_is_read_from_its_text(tmp_path: Path) -> None:
    draw = actor_critic(5, 8, outputs=3)
    kwargs = {
        ":type:": "<class 'dict'>",
        ":serialized:": "",
        "activation_fn": "<class 'torch.nn.modules.activation.ELU'>",
    }
    policy = read_sb3(make_zip(tmp_path / "x.zip", "PPO", draw.tensors, VECTOR, spaces.Discrete(3), kwargs=kwargs))

    def elu(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))

    check(
        policy,
        VECTOR,
        lambda x: dense(
            draw.tensors, "action_net", layers(draw.tensors, "mlp_extractor.policy_net", x, 1, elu, last=True)
        ),
    )


def test_multidiscrete_logits_stand_one_after_the_other(tmp_path: Path) -> None:
    draw = actor_critic(5, 8, outputs=9)
    policy = read_sb3(make_zip(tmp_path / "x.zip", "PPO", draw.tensors, VECTOR, spaces.MultiDiscrete([3, 2, 4])))
    assert policy.action_space == DiscreteSpace((3, 2, 4))
    assert policy.scores == "logits"
    assert policy.network(torch.zeros(2, 5)).shape == (2, 9)


def test_boxes_get_means_and_log_deviations(tmp_path: Path) -> None:
    draw = actor_critic(5, 8, outputs=2)
    log_std = draw.array("log_std", 2)
    policy = read_sb3(make_zip(tmp_path / "x.zip", "PPO", draw.tensors, VECTOR, ACTIONS))
    assert (policy.scores, policy.squashed) == ("gaussian", False)
    assert isinstance(policy.action_space, BoxSpace)
    assert policy.action_space.high.tolist() == [2.0, 3.0]

    def wanted(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        mean = dense(
            draw.tensors, "action_net", layers(draw.tensors, "mlp_extractor.policy_net", x, 1, np.tanh, last=True)
        )
        return np.concatenate([mean, np.broadcast_to(log_std, mean.shape)], axis=1)

    check(policy, VECTOR, wanted)


def expln(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.where(x > 0, np.log1p(np.maximum(x, 0) + 1e-6) + 1, np.exp(np.minimum(x, 0)))


@pytest.mark.parametrize(("columns", "use_expln", "squash"), [(2, False, False), (1, False, True), (2, True, False)])
def test_state_dependent_noise_of_actor_critics(tmp_path: Path, columns: int, use_expln: bool, squash: bool) -> None:
    draw = actor_critic(5, 8, outputs=2)
    log_std = draw.array("log_std", 8, columns)
    kwargs = {"use_expln": use_expln, "squash_output": squash}
    policy = read_sb3(make_zip(tmp_path / "x.zip", "PPO", draw.tensors, VECTOR, ACTIONS, kwargs=kwargs))
    assert (policy.scores, policy.squashed) == ("gaussian", squash)

    def wanted(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        latent = layers(draw.tensors, "mlp_extractor.policy_net", x, 1, np.tanh, last=True)
        deviation = expln(log_std) if use_expln else np.exp(log_std)
        variance = latent**2 @ np.broadcast_to(deviation, (8, 2)) ** 2
        return np.concatenate([dense(draw.tensors, "action_net", latent), np.log(np.sqrt(variance + 1e-6))], axis=1)

    check(policy, VECTOR, wanted)


def test_noise_may_have_features_of_its_own_before_1_8(tmp_path: Path) -> None:
    draw = actor_critic(5, 8, outputs=2)
    draw.mlp("sde_features_extractor", 5, 4)
    log_std = draw.array("log_std", 4, 2)
    policy = read_sb3(make_zip(tmp_path / "x.zip", "PPO", draw.tensors, VECTOR, ACTIONS, today=False))

    def wanted(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        latent = layers(draw.tensors, "mlp_extractor.policy_net", x, 1, np.tanh, last=True)
        noise = layers(draw.tensors, "sde_features_extractor", x, 1, np.tanh, last=True)
        deviation = 0.5 * np.log(noise**2 @ np.exp(log_std) ** 2 + 1e-6)
        return np.concatenate([dense(draw.tensors, "action_net", latent), deviation], axis=1)

    check(policy, VECTOR, wanted)


def soft_actor(*, gsde: bool) -> Draw:
    draw = Draw()
    draw.mlp("actor.latent_pi", 5, 8, 6)
    draw.linear("actor.mu.0" if gsde else "actor.mu", 6, 2)
    draw.mlp("critic.qf0", 7, 8, 1)
    draw.mlp("critic_target.qf0", 7, 8, 1)
    if gsde:
        draw.array("actor.log_std", 6, 2)
    else:
        draw.linear("actor.log_std", 6, 2)
        draw.tensors["actor.log_std.bias"] = np.array([-30, 5], np.float32)  # beyond both ends of the clamp
    return draw


@pytest.mark.parametrize("algorithm", ["SAC", "TQC"])
def test_soft_actors_give_gaussians_before_the_tanh(tmp_path: Path, algorithm: str) -> None:
    draw = soft_actor(gsde=False)
    policy = read_sb3(make_zip(tmp_path / "x.zip", algorithm, draw.tensors, VECTOR, ACTIONS))
    assert (policy.algorithm, policy.scores, policy.squashed) == (algorithm, "gaussian", True)

    def wanted(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        latent = layers(draw.tensors, "actor.latent_pi", x, 2, relu, last=True)
        log_std = np.clip(dense(draw.tensors, "actor.log_std", latent), -20, 2)
        return np.concatenate([dense(draw.tensors, "actor.mu", latent), log_std], axis=1)

    check(policy, VECTOR, wanted)


@pytest.mark.parametrize("today", [False, True])
def test_state_dependent_noise_of_soft_actors(tmp_path: Path, today: bool) -> None:
    draw = soft_actor(gsde=True)
    kwargs = {"clip_mean": 0.1, "use_sde": True}
    policy = read_sb3(make_zip(tmp_path / "x.zip", "SAC", draw.tensors, VECTOR, ACTIONS, today=today, kwargs=kwargs))

    def wanted(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        latent = layers(draw.tensors, "actor.latent_pi", x, 2, relu, last=True)
        variance = latent**2 @ np.exp(draw.tensors["actor.log_std"]) ** 2
        mean = np.clip(dense(draw.tensors, "actor.mu.0", latent), -0.1, 0.1)
        return np.concatenate([mean, 0.5 * np.log(variance + 1e-6)], axis=1)

    check(policy, VECTOR, wanted)


def test_a_limit_of_0_on_the_means_is_none(tmp_path: Path) -> None:
    """Stable-Baselines3 builds no Hardtanh then, and calls the layer otherwise."""
    draw = soft_actor(gsde=True)
    tensors = {name.replace("actor.mu.0.", "actor.mu."): array * 50 for name, array in draw.tensors.items()}
    kwargs = {"clip_mean": 0.0, "use_sde": True}
    policy = read_sb3(make_zip(tmp_path / "x.zip", "SAC", tensors, VECTOR, ACTIONS, kwargs=kwargs))
    x = observed(VECTOR)
    mean = dense(tensors, "actor.mu", layers(tensors, "actor.latent_pi", x, 2, relu, last=True))
    assert np.abs(mean).max() > 2
    means = policy.network(torch.from_numpy(x)).numpy()[:, : mean.shape[1]]
    np.testing.assert_allclose(means, mean, rtol=1e-4)


@pytest.mark.parametrize("algorithm", ["TD3", "DDPG"])
def test_deterministic_actors_give_actions_in_units_of_the_environment(tmp_path: Path, algorithm: str) -> None:
    draw = Draw()
    draw.mlp("actor.mu", 5, 8, 2)
    draw.mlp("actor_target.mu", 5, 8, 2)
    draw.mlp("critic.qf0", 7, 8, 1)
    policy = read_sb3(make_zip(tmp_path / "x.zip", algorithm, draw.tensors, VECTOR, ACTIONS))
    assert (policy.algorithm, policy.scores) == (algorithm, "deterministic")

    def wanted(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        tanh = np.tanh(layers(draw.tensors, "actor.mu", x, 2, relu, last=False))
        return np.array([-2, -1]) + 0.5 * (tanh + 1) * np.array([4, 4])

    check(policy, VECTOR, wanted)


@pytest.mark.parametrize("scaled", [True, False])
def test_a_nature_cnn_scales_pixels_if_training_did(tmp_path: Path, scaled: bool) -> None:
    draw = Draw()
    draw.nature("q_net.features_extractor", 4, 3136, 16)
    draw.mlp("q_net.q_net", 16, 3)
    kwargs = {} if scaled else {"normalize_images": False}
    policy = read_sb3(make_zip(tmp_path / "x.zip", "DQN", draw.tensors, IMAGE, spaces.Discrete(3), kwargs=kwargs))

    def wanted(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        features = nature(draw.tensors, "q_net.features_extractor", x / 255 if scaled else x)
        return dense(draw.tensors, "q_net.q_net.0", features)

    x = observed(IMAGE)
    scores = policy.network(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(scores, wanted(x.astype(np.float64)), rtol=1e-3, atol=1e-4 if scaled else 1e-2)


def test_a_shared_cnn_that_is_saved_under_three_names_acts_once(tmp_path: Path) -> None:
    draw = Draw()
    draw.nature("pi_features_extractor", 4, 3136, 16)
    twins = {name.replace("pi_f", "f", 1): array for name, array in draw.tensors.items()}
    draw.linear("action_net", 16, 3)
    draw.linear("value_net", 16, 1)
    draw.nature("vf_features_extractor", 4, 3136, 16)
    path = make_zip(tmp_path / "x.zip", "PPO", {**draw.tensors, **twins}, IMAGE, spaces.Discrete(3))
    policy = read_sb3(path)

    def wanted(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return dense(draw.tensors, "action_net", nature(draw.tensors, "pi_features_extractor", x / 255))

    check(policy, IMAGE, wanted)
    twins["features_extractor.cnn.0.bias"] = np.zeros(32, np.float32)
    with pytest.raises(UserError, match="which of them acts is not known"):
        read_sb3(make_zip(path, "PPO", {**draw.tensors, **twins}, IMAGE, spaces.Discrete(3)))


def test_loading_draws_nothing_from_the_global_generator(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "x.zip", "PPO", actor_critic(5, 8, outputs=3).tensors, VECTOR, spaces.Discrete(3))
    before = torch.random.get_rng_state()
    read_sb3(path)
    assert torch.equal(before, torch.random.get_rng_state())


# --- spaces


@pytest.mark.parametrize("today", [False, True])
def test_abbreviated_bounds_are_read_from_the_pickle_as_data(tmp_path: Path, today: bool) -> None:
    high = np.arange(1, 1201, dtype=np.float32)
    large = spaces.Box(-high, high)
    draw = Draw()
    draw.mlp("actor.mu", 5, 1200)
    policy = read_sb3(make_zip(tmp_path / "x.zip", "TD3", draw.tensors, VECTOR, large, today=today))
    assert isinstance(policy.action_space, BoxSpace)
    np.testing.assert_array_equal(policy.action_space.high, high)


def test_abbreviated_bounds_that_are_all_equal_need_no_pickle(tmp_path: Path) -> None:
    space = described(spaces.Box(-2, 2, (1200,), np.float32), today=False) | {":serialized:": ""}
    assert "..." in space["high"]
    draw = Draw()
    draw.mlp("actor.mu", 5, 1200)
    path = make_zip(tmp_path / "x.zip", "TD3", draw.tensors, VECTOR, ACTIONS, changes={"action_space": space})
    policy = read_sb3(path)
    assert isinstance(policy.action_space, BoxSpace)
    assert policy.action_space.high.tolist() == [2.0] * 1200


def test_a_missing_number_of_actions_is_read_from_the_pickle_as_data(tmp_path: Path) -> None:
    space = described(spaces.Discrete(3), today=True)
    del space["n"]
    draw = actor_critic(5, 8, outputs=3)
    changes = {"action_space": space}
    path = tmp_path / "x.zip"
    assert read_sb3(
        make_zip(path, "PPO", draw.tensors, VECTOR, ACTIONS, changes=changes)
    ).action_space == DiscreteSpace((3,))
    space[":serialized:"] = base64.b64encode(b"cos\nsystem\n(X\x05\0\0\0falsetR.").decode()
    with pytest.raises(UserError, match="wants to call os.system"):
        read_sb3(make_zip(path, "PPO", draw.tensors, VECTOR, ACTIONS, changes=changes))


@pytest.mark.parametrize(
    ("observations", "actions", "text"),
    [
        (spaces.Dict(a=VECTOR), spaces.Discrete(3), "a space of its data is damaged or no pickle"),
        (spaces.Discrete(5), spaces.Discrete(3), "a space of its data is damaged or no pickle"),
        (spaces.Text(5), spaces.Discrete(3), "kind Text; Box, Discrete"),
        (VECTOR, spaces.MultiBinary(3), "kind MultiBinary"),
    ],
)
def test_other_spaces_are_refused(tmp_path: Path, observations: Any, actions: Any, text: str) -> None:
    kinds = {":type:": f"<class '{type(observations).__module__}.{type(observations).__name__}'>"}
    changes = {"observation_space": kinds} if observations is not VECTOR else {}
    draw = actor_critic(5, 8, outputs=3)
    with pytest.raises(UserError, match=text):
        read_sb3(make_zip(tmp_path / "x.zip", "PPO", draw.tensors, VECTOR, actions, changes=changes))


def test_a_squashed_policy_needs_a_finite_action_range(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not finite"):
        read_sb3(
            make_zip(
                tmp_path / "x.zip", "SAC", soft_actor(gsde=False).tensors, VECTOR, spaces.Box(-np.inf, np.inf, (2,))
            )
        )


# --- mismatches


def test_a_tensor_too_few_a_tensor_too_many_and_a_wrong_shape_are_named(tmp_path: Path) -> None:
    draw = actor_critic(5, 8, outputs=3)
    path = tmp_path / "x.zip"

    def read(tensors: Arrays, actions: spaces.Space[Any] = spaces.Discrete(3)) -> ForeignPolicy:
        return read_sb3(make_zip(path, "PPO", tensors, VECTOR, actions))

    read(draw.tensors)
    with pytest.raises(UserError, match="'mlp_extractor.policy_net.0.bias' is missing"):
        read({name: array for name, array in draw.tensors.items() if name != "mlp_extractor.policy_net.0.bias"})
    with pytest.raises(UserError, match=r"not known here \(noise.weight\)"):
        read(draw.tensors | {"noise.weight": np.zeros((4, 4), np.float32)})
    with pytest.raises(UserError, match="recurrent"):
        read(draw.tensors | {"lstm_actor.weight_ih_l0": np.zeros((4, 4), np.float32)})
    with pytest.raises(UserError, match="'action_net.weight' is 3x8, not 4x8"):
        read(draw.tensors, spaces.Discrete(4))
    with pytest.raises(UserError, match="'mlp_extractor.policy_net.0.weight' is 8x5, not \\?x6"):
        read_sb3(make_zip(path, "PPO", draw.tensors, spaces.Box(-1, 1, (6,)), spaces.Discrete(3)))
    with pytest.raises(UserError, match="NaN or infinity in 'action_net.bias'"):
        read(draw.tensors | {"action_net.bias": np.array([0, np.nan, 0], np.float32)})


def test_normalization_layers_between_are_refused(tmp_path: Path) -> None:
    draw = Draw()
    draw.linear("q_net.q_net.0", 5, 8)
    draw.array("q_net.q_net.1.weight", 8)
    draw.array("q_net.q_net.1.bias", 8)
    draw.linear("q_net.q_net.3", 8, 3)
    with pytest.raises(UserError, match="normalization or dropout"):
        read_sb3(make_zip(tmp_path / "x.zip", "DQN", draw.tensors, VECTOR, spaces.Discrete(3)))


def test_data_and_weights_of_different_algorithms_are_refused(tmp_path: Path) -> None:
    draw = actor_critic(5, 8, outputs=3)
    with pytest.raises(
        UserError, match="tells of stable_baselines3.dqn.policies, but its policy.pth holds a actor-critic"
    ):
        read_sb3(make_zip(tmp_path / "x.zip", "DQN", draw.tensors, VECTOR, spaces.Discrete(3)))


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("sb3_contrib.common.recurrent.policies", "RecurrentPPO"),
        ("sb3_contrib.crossq.policies", "CrossQ"),
        ("sb3_contrib.ars.policies", "ARS"),
    ],
)
def test_algorithms_that_act_otherwise_are_refused(tmp_path: Path, module: str, text: str) -> None:
    draw = actor_critic(5, 8, outputs=3)
    changes = {"policy_class": {"__module__": module}}
    with pytest.raises(UserError, match=text):
        read_sb3(make_zip(tmp_path / "x.zip", "PPO", draw.tensors, VECTOR, spaces.Discrete(3), changes=changes))


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"activation_fn": "<class '__main__.Mine'>"}, "activation .*Mine"),
        ({"features_extractor_class": "<class '__main__.Mine'>"}, "features extractor of its author's own"),
        (
            {"features_extractor_class": "<class '__main__.MyFlattenExtractor'>"},
            "features extractor of its author's own",
        ),
        ({"features_extractor_class": "<class '__main__.FlattenExtractor'>"}, "features extractor of its author's own"),
    ],
)
def test_code_of_the_author_is_not_guessed_at(tmp_path: Path, kwargs: dict[str, Any], text: str) -> None:
    draw = actor_critic(5, 8, outputs=3)
    with pytest.raises(UserError, match=text):
        read_sb3(make_zip(tmp_path / "x.zip", "PPO", draw.tensors, VECTOR, spaces.Discrete(3), kwargs=kwargs))


def test_an_extractor_of_sb3_may_be_named(tmp_path: Path) -> None:
    draw = actor_critic(5, 8, outputs=3)
    named = {"features_extractor_class": "<class 'stable_baselines3.common.torch_layers.FlattenExtractor'>"}
    policy = read_sb3(make_zip(tmp_path / "x.zip", "PPO", draw.tensors, VECTOR, spaces.Discrete(3), kwargs=named))
    assert policy.scores == "logits"


def test_a_policy_class_of_the_author_is_remarked(tmp_path: Path) -> None:
    draw = actor_critic(5, 8, outputs=3)
    changes = {"policy_class": {"__module__": "__main__"}}
    path = make_zip(tmp_path / "x.zip", "PPO", draw.tensors, VECTOR, spaces.Discrete(3), changes=changes)
    assert "class __main__" in read_sb3(path, architecture="mlp:8:tanh").provenance["notes"][0]


def test_other_zips_are_named_as_what_they_are_not(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(saved({"a": torch.zeros(1)}))
    with pytest.raises(UserError, match="no Stable-Baselines3 zip"):
        read_sb3(path)
    path.write_bytes(b"text")
    with pytest.raises(UserError, match="no zip file"):
        read_sb3(path)


# --- statistics and names


def write_statistics(path: Path, size: int, monkeypatch: pytest.MonkeyPatch, *, norm_obs: bool = True) -> Path:
    import sys
    from types import ModuleType

    for module, name in (
        ("stable_baselines3.common.running_mean_std", "RunningMeanStd"),
        ("stable_baselines3.common.vec_env.vec_normalize", "VecNormalize"),
    ):
        for end in range(1, module.count(".") + 2):
            part = ".".join(module.split(".")[:end])
            if part not in sys.modules:
                monkeypatch.setitem(sys.modules, part, ModuleType(part))
        monkeypatch.setattr(sys.modules[module], name, type(name, (), {"__module__": module}), raising=False)
    moments = sys.modules["stable_baselines3.common.running_mean_std"].RunningMeanStd()
    moments.mean, moments.var = np.full(size, 0.5), np.full(size, 4.0)
    whole = sys.modules["stable_baselines3.common.vec_env.vec_normalize"].VecNormalize()
    whole.__dict__.update(obs_rms=moments, norm_obs=norm_obs, epsilon=1e-8, clip_obs=10.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(whole))
    return path


ARGS = "!!python/object/apply:collections.OrderedDict\n- - - algo\n    - ppo\n  - - env\n    - Acrobot-v1\n  - - seed\n    - 3\n"
CONFIG = (
    "!!python/object/apply:collections.OrderedDict\n- - - batch_size\n    - 64\n"
    "  - - normalize\n    - {}\n  - - policy\n    - MlpPolicy\n"
)


def ppo(path: Path, **changes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return make_zip(path, "PPO", actor_critic(5, 8, outputs=3).tensors, VECTOR, spaces.Discrete(3), changes=changes)


@pytest.mark.parametrize(
    ("zip_name", "statistics"),
    [
        ("ppo/Acrobot-v1_1/Acrobot-v1.zip", "ppo/Acrobot-v1_1/Acrobot-v1/vecnormalize.pkl"),
        ("ppo/Acrobot-v1_1/best_model.zip", "ppo/Acrobot-v1_1/Acrobot-v1/vecnormalize.pkl"),
        ("ppo-Acrobot-v1.zip", "Acrobot-v1/vecnormalize.pkl"),
        ("ppo-Acrobot-v1.zip", "ppo-Acrobot-v1.vecnormalize.pkl"),
        ("mine.zip", "mine.vecnormalize.pkl"),
        ("mine.zip", "vecnormalize.pkl"),
        ("ppo-Acrobot-v1.zip", "vec_normalize.pkl"),
        ("rl_model_1000_steps.zip", "rl_model_vecnormalize_1000_steps.pkl"),
    ],
)
def test_statistics_are_found_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zip_name: str, statistics: str
) -> None:
    path = ppo(tmp_path / zip_name)
    written = write_statistics(tmp_path / statistics, 5, monkeypatch)
    policy = read_sb3(path)
    assert policy.normalization is not None
    assert policy.normalization.source == str(written)
    assert policy.normalization_expected
    assert policy.env == ("Acrobot-v1" if "Acrobot" in zip_name else None)


def test_statistics_named_are_taken_and_must_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ppo(tmp_path / "mine.zip")
    fitting = write_statistics(tmp_path / "elsewhere" / "a.pkl", 5, monkeypatch)
    assert read_sb3(path, normalization=fitting).normalization is not None
    other = write_statistics(tmp_path / "elsewhere" / "b.pkl", 6, monkeypatch)
    with pytest.raises(UserError, match=r"b.pkl is for observations of shape \(6,\), not \(5,\)"):
        read_sb3(path, normalization=other)
    with pytest.raises(UserError, match="no statistics file at"):
        read_sb3(path, normalization=tmp_path / "none.pkl")


def test_own_statistics_that_do_not_fit_are_an_error_and_a_neighbours_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ppo(tmp_path / "mine.zip")
    write_statistics(tmp_path / "vecnormalize.pkl", 6, monkeypatch)
    policy = read_sb3(path)
    assert policy.normalization is None
    assert not policy.normalization_expected
    assert "another policy's" in policy.provenance["notes"][0]
    write_statistics(tmp_path / "mine.vecnormalize.pkl", 6, monkeypatch)
    with pytest.raises(UserError, match="lies beside the teacher, but"):
        read_sb3(path)


def test_rewards_alone_are_no_normalization(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ppo(tmp_path / "mine.zip")
    write_statistics(tmp_path / "vecnormalize.pkl", 5, monkeypatch, norm_obs=False)
    policy = read_sb3(path)
    assert (policy.normalization, policy.normalization_expected) == (None, False)


@pytest.mark.parametrize(
    ("normalize", "expected"),
    [
        ("true", True),
        ("'{''norm_obs'': True, ''norm_reward'': False}'", True),
        ("'{''norm_obs'': False, ''norm_reward'': True}'", False),
        ("dict(norm_obs=False)", False),
        ("false", False),
        ("true\n  - - normalize_kwargs\n    - gamma: 0.9\n      norm_obs: false", False),
    ],
)
def test_the_zoos_configuration_tells_of_normalization(tmp_path: Path, normalize: str, expected: bool) -> None:
    path = ppo(tmp_path / "ppo" / "Acrobot-v1_1" / "best_model.zip")
    folder = path.parent / "Acrobot-v1"
    folder.mkdir()
    (folder / "config.yml").write_text(CONFIG.format(normalize) + "  - - frame_stack\n    - 4\n")
    (folder / "args.yml").write_text(ARGS)
    policy = read_sb3(path)
    assert policy.normalization_expected is expected
    assert policy.normalization is None
    assert policy.env == "Acrobot-v1"
    assert policy.provenance["frame_stack"] == 4


def test_the_environment_is_read_from_args_beside_unless_they_are_anothers(tmp_path: Path) -> None:
    path = ppo(tmp_path / "model.zip")
    (tmp_path / "args.yml").write_text(ARGS)
    (tmp_path / "config.yml").write_text(CONFIG.format("true"))
    assert read_sb3(path).env == "Acrobot-v1"
    assert read_sb3(path).normalization_expected
    (tmp_path / "args.yml").write_text(ARGS.replace("ppo", "sac"))
    assert read_sb3(path).env is None
    assert not read_sb3(path).normalization_expected
    assert read_sb3(ppo(tmp_path / "ppo-CartPole-v1.zip")).env == "CartPole-v1"


@pytest.mark.parametrize(
    ("name", "env"),
    [
        ("PPO-CartPole-v1.zip", "CartPole-v1"),
        ("ppo-ALE-Pong-v5.zip", "ALE/Pong-v5"),
        ("ALE-Pong-v5_1/best_model.zip", "ALE/Pong-v5"),
    ],
)
def test_a_name_tells_the_environment_in_any_case_and_without_its_slash(tmp_path: Path, name: str, env: str) -> None:
    assert read_sb3(ppo(tmp_path / name)).env == env


def test_another_environment_than_the_plain_one_is_remarked(tmp_path: Path) -> None:
    path = ppo(tmp_path / "Acrobot-v1_1" / "best_model.zip", _last_obs={}, _last_original_obs=None)
    args, config = path.parent / "args.yml", path.parent / "config.yml"
    args.write_text(ARGS + "  - - env_kwargs\n    - null\n")
    config.write_text(
        CONFIG.format("false") + "  - - env_wrapper\n    - stable_baselines3.common.atari_wrappers.AtariWrapper\n"
    )
    assert "notes" not in read_sb3(path).provenance
    config.write_text(CONFIG.format("false") + "  - - env_wrapper\n    - rl_zoo3.wrappers.MaskVelocityWrapper\n")
    (note,) = read_sb3(path).provenance["notes"]
    assert (
        note
        == "it was trained in an environment wrapped by rl_zoo3.wrappers.MaskVelocityWrapper, which is not applied here"
    )
    config.unlink()
    args.write_text(ARGS + "  - - env_kwargs\n    - g: 1.0\n")
    (note,) = read_sb3(path).provenance["notes"]
    assert note == "its environment was made with g: 1.0, here it is made without"
    args.write_text(ARGS)
    (path.parent / "env_kwargs.yml").write_text("{}\n")
    assert "notes" not in read_sb3(path).provenance
    (path.parent / "env_kwargs.yml").write_text("book_or_nips: nips\ngravity: 9.0\n")
    (note,) = read_sb3(path).provenance["notes"]
    assert "made with book_or_nips: nips, gravity: 9.0," in note


@pytest.mark.parametrize("name", ["ppo_acrobot.zip", "model.zip", "final-v1-model.zip"])
def test_an_environment_is_not_guessed(tmp_path: Path, name: str) -> None:
    assert read_sb3(ppo(tmp_path / name)).env is None


# --- tensors


def test_tensors_are_read_from_both_layouts_of_pytorch() -> None:
    tensors = {"a": torch.arange(4.0).reshape(2, 2), "b": torch.tensor(3), "c": torch.ones(2, dtype=torch.float16)}
    for today in (True, False):
        read = load_state_dict(saved(tensors, today=today), "x.pth")
        assert list(read) == ["a", "b", "c"]
        assert all(torch.equal(read[name], tensor.to(read[name].dtype)) for name, tensor in tensors.items())
        assert read["c"].dtype == torch.float32
    transposed = load_tensors(saved([torch.arange(6.0).reshape(2, 3).T, {"n": 1}]), "x.pth")
    assert torch.equal(transposed[0], torch.arange(6.0).reshape(2, 3).T)


@pytest.mark.parametrize("today", [True, False])
@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": torch.zeros(1).expand(10**9)}, "declares 4,000,000,000 bytes and has fewer"),
        ({"a": torch.full((1,), torch.inf)}, "NaN or infinity in 'a'"),
        ({"a": torch.zeros(1), "b": 3}, "more than tensors"),
        ([torch.zeros(1)], "no dictionary of tensors"),
        ({"a": torch.zeros(1, dtype=torch.complex64)}, "refused|wants to call"),
        ({"a": Path("x")}, r"wants to call pathlib\.PosixPath"),
    ],
)
def test_what_is_no_state_dict_says_why(value: Any, text: str, today: bool) -> None:
    with pytest.raises(UserError, match=text):
        load_state_dict(saved(value, today=today), "x.pth")


@pytest.mark.parametrize("today", [True, False])
def test_a_truncated_file_of_tensors_is_refused(today: bool) -> None:
    data = saved({"a": torch.zeros(100)}, today=today)
    for keep in (0, 1, 30, 200, len(data) // 2, len(data) - 1):
        with pytest.raises(UserError, match="x.pth"):
            load_state_dict(data[:keep], "x.pth")


# --- files of others


def play(policy: ForeignPolicy, episodes: int) -> list[float]:
    assert policy.env is not None
    env = gymnasium.make(policy.env)
    returns = []
    for episode in range(episodes):
        observation, _ = env.reset(seed=100 + episode)
        total, done = 0.0, False
        while not done:
            x = torch.from_numpy(np.asarray(observation, dtype=np.float32))[None]
            scores = policy.network(x if policy.normalization is None else policy.normalization(x))[0]
            observation, reward, terminated, truncated, _ = env.step(act(policy, scores))
            total, done = total + float(reward), terminated or truncated
        returns.append(total)
    return returns


def act(policy: ForeignPolicy, scores: Tensor) -> Any:
    if not isinstance(policy.action_space, BoxSpace):
        return int(scores.argmax())
    mean = scores[: len(scores) // 2].numpy()
    low, high = policy.action_space.low, policy.action_space.high
    action = low + 0.5 * (np.tanh(mean) + 1) * (high - low) if policy.squashed else np.clip(mean, low, high)
    return action.astype(np.float32)


@pytest.mark.parametrize(
    ("name", "algorithm", "scores"),
    [
        ("dqn-CartPole-v1", "DQN", "q_values"),
        ("dqn-LunarLander-v2", "DQN", "q_values"),
        ("qrdqn-CartPole-v1", "QR-DQN", "q_values"),
        ("ppo-CartPole-v1", "PPO", "logits"),
        ("a2c-CartPole-v1", "A2C", "logits"),
        ("ppo-LunarLander-v2", "PPO", "logits"),
        ("ppo-Acrobot-v1", "PPO", "logits"),
        ("ppo-Pendulum-v1", "PPO", "gaussian"),
        ("sac-Pendulum-v1", "SAC", "gaussian"),
    ],
)
def test_files_of_others_load(teachers: Path, name: str, algorithm: str, scores: str) -> None:
    policy = read_sb3(teachers / "sb3" / f"{name}.zip")
    assert (policy.algorithm, policy.scores, policy.env) == (algorithm, scores, name.split("-", 1)[1])
    assert (policy.normalization is not None) == policy.normalization_expected == ("Acrobot" in name)
    assert policy.squashed == (algorithm == "SAC")


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("dqn-CartPole-v1", 500),
        ("a2c-CartPole-v1", 500),
        ("qrdqn-CartPole-v1", 500),
        ("ppo-Acrobot-v1", -85),
        ("sac-Pendulum-v1", -300),
    ],
)
@pytest.mark.slow
def test_files_of_others_play_well(teachers: Path, name: str, least: float) -> None:
    assert np.mean(play(read_sb3(teachers / "sb3" / f"{name}.zip"), 4)) >= least


def test_acrobot_plays_worse_without_its_statistics(teachers: Path, tmp_path: Path) -> None:
    path = tmp_path / "ppo-Acrobot-v1.zip"
    path.write_bytes((teachers / "sb3" / path.name).read_bytes())
    bare = read_sb3(path)
    assert bare.normalization is None
    assert np.mean(play(bare, 4)) < np.mean(play(read_sb3(teachers / "sb3" / path.name), 4))


# --- Stable-Baselines3 itself, where it is installed


@pytest.mark.parametrize("name", ["DQN", "PPO", "A2C", "SAC", "TD3", "DDPG", "QRDQN", "TRPO", "TQC"])
def test_actions_are_those_of_stable_baselines3(tmp_path: Path, name: str) -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    algorithm = getattr(sb3, name, None) or getattr(pytest.importorskip("sb3_contrib"), name)
    env = gymnasium.make("CartPole-v1" if "DQN" in name or name == "TRPO" else "Pendulum-v1")
    model = algorithm("MlpPolicy", env, seed=1, device="cpu", policy_kwargs={"net_arch": [16, 16]})
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    model.save(tmp_path / "x.zip")
    policy = read_sb3(tmp_path / "x.zip")
    observations = np.random.default_rng(0).normal(size=(20, *env.observation_space.shape)).astype(np.float32)  # type: ignore[misc]  # a Box has one
    wanted, _ = model.predict(observations, deterministic=True)
    scores = policy.network(torch.from_numpy(observations))
    if policy.scores == "deterministic":
        np.testing.assert_allclose(scores.numpy(), wanted, rtol=1e-5, atol=1e-6)
    else:
        np.testing.assert_allclose(np.stack([act(policy, row) for row in scores]), wanted, rtol=1e-5, atol=1e-6)
