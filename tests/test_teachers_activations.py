"""What no file says of its network is asked for: the activation between its layers, and layers that must fit the tensors."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from foreign_files import balancing_zip
from rldistill.formats.cleanrl.scripts import activation_in
from rldistill.formats.sb3.reading import read_sb3
from rldistill.teachers import TeacherOptions, load_teacher
from rldistill.types import UserError
from rldistill.verbs.evaluate import EvaluateConfig, evaluate
from test_teachers import MLP, of_kind
from test_teachers_formats import VECTORS, linear, mlp_scores, relu, saved, write_script
from test_teachers_sb3 import VECTOR, Draw, actor_critic, make_zip

NAMES = ("q.0", "q.2", "q.4")
BENT: dict[str, Callable[[Any], Any]] = {
    "relu": relu,
    "tanh": np.tanh,
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "selu": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x)),
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "softplus": lambda x: np.log1p(np.exp(x)),
}
AUTHOR = {"policy_class": {"__module__": "__main__", "__init__": "<function Mine.__init__ at 0x7f>"}}


def network_named(message: str, number: int) -> str:
    """The architecture that a message names."""
    return re.findall(r"(?:mlp|cnn):[\w,:]+\w", message)[number]


@pytest.mark.parametrize("activation", BENT)
def test_the_named_activation_is_what_stands_between_the_layers(tmp_path: Path, activation: str) -> None:
    options = TeacherOptions(f"mlp:8,5:{activation}", "q_values")
    teacher = load_teacher(of_kind("state dict", tmp_path), env="CartPole-v1", options=options)
    expected = mlp_scores(MLP, NAMES, VECTORS, BENT[activation])
    np.testing.assert_allclose(teacher(VECTORS).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("changes", [AUTHOR, {"policy_class": {"__module__": "__main__"}}, {"policy_class": {}}])
def test_a_class_of_the_authors_own_stops_and_asks(tmp_path: Path, changes: dict[str, Any]) -> None:
    draw = actor_critic(5, 8, 6, outputs=3)
    path = make_zip(tmp_path / "x.zip", "PPO", draw.tensors, VECTOR, spaces.Discrete(3), changes=changes)
    with pytest.raises(UserError, match="policy class .* its author's own.*--teacher-network") as refusal:
        read_sb3(path)
    tensors = {name: torch.from_numpy(array) for name, array in draw.tensors.items()}
    names = ("mlp_extractor.policy_net.0", "mlp_extractor.policy_net.2", "action_net")
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    for number, bend in ((0, np.tanh), (1, relu)):  # the way out that the message names
        policy = read_sb3(path, architecture=network_named(str(refusal.value), number))
        np.testing.assert_allclose(policy.network(x).numpy(), mlp_scores(tensors, names, x, bend), atol=1e-5)


def test_an_activation_of_the_authors_own_stops_and_asks(tmp_path: Path) -> None:
    draw = actor_critic(5, 8, outputs=3)
    kwargs = {"activation_fn": "<class '__main__.Mine'>"}
    path = make_zip(tmp_path / "x.zip", "PPO", draw.tensors, VECTOR, spaces.Discrete(3), kwargs=kwargs)
    with pytest.raises(UserError, match=r"activation .*Mine.*--teacher-network mlp:8:tanh"):
        read_sb3(path)
    assert any(isinstance(module, nn.ELU) for module in read_sb3(path, architecture="mlp:8:elu").network.modules())


def test_an_extractor_of_the_authors_own_is_read_layer_by_layer_as_the_user_says(tmp_path: Path) -> None:
    kwargs = {"features_extractor_class": "<class '__main__.Mine'>"}
    draw = Draw()
    draw.mlp("features_extractor.net", 5, 16, 12)
    draw.mlp("mlp_extractor.policy_net", 12, 8)
    draw.linear("action_net", 8, 3)
    for name in ("pi_features_extractor", "vf_features_extractor"):  # a shared one is saved under three names
        for own in [name for name in draw.tensors if name.startswith("features_extractor.")]:
            draw.tensors[own.replace("features_extractor", name)] = draw.tensors[own]
    path = make_zip(tmp_path / "x.zip", "PPO", draw.tensors, VECTOR, spaces.Discrete(3), kwargs=kwargs)
    with pytest.raises(UserError, match=r"features extractor of its author's own.*--teacher-network mlp:16,12,8:tanh"):
        read_sb3(path)
    with pytest.raises(UserError, match="names mlp:16,12, but"):
        read_sb3(path, architecture="mlp:16,12:elu")
    tensors = {name: torch.from_numpy(array) for name, array in draw.tensors.items()}
    names = ("features_extractor.net.0", "features_extractor.net.2", "mlp_extractor.policy_net.0", "action_net")
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    policy = read_sb3(path, architecture="mlp:16,12,8:elu")
    np.testing.assert_allclose(policy.network(x).numpy(), mlp_scores(tensors, names, x, BENT["elu"]), atol=1e-5)


def test_a_cnn_of_the_authors_own_is_read_too_and_its_pixels_are_scaled(tmp_path: Path) -> None:
    kwargs = {"features_extractor_class": "<class '__main__.CustomCNN'>"}
    draw = Draw()
    for number, inputs, outputs, kernel in ((0, 4, 8, 8), (2, 8, 6, 4)):
        draw.array(f"q_net.features_extractor.cnn.{number}.weight", outputs, inputs, kernel, kernel)
        draw.array(f"q_net.features_extractor.cnn.{number}.bias", outputs)
    draw.linear("q_net.features_extractor.linear.0", 6 * 9 * 9, 16)
    draw.linear("q_net.q_net.0", 16, 3)
    images = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    path = make_zip(tmp_path / "x.zip", "DQN", draw.tensors, images, spaces.Discrete(3), kwargs=kwargs)
    with pytest.raises(UserError, match="--teacher-network cnn:8,6:16:tanh"):
        read_sb3(path)
    layers = [torch.from_numpy(array) for array in draw.tensors.values()]
    frames = torch.randint(0, 256, (3, 4, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    hidden = torch.relu(nn.functional.conv2d(frames / 255, layers[0], layers[1], stride=4))
    hidden = torch.relu(nn.functional.conv2d(hidden, layers[2], layers[3], stride=2)).flatten(1)
    hidden = torch.relu(nn.functional.linear(hidden, layers[4], layers[5]))
    expected = nn.functional.linear(hidden, layers[6], layers[7])
    torch.testing.assert_close(
        read_sb3(path, architecture="cnn:8,6:16").network(frames), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("algorithm", ["DQN", "SAC", "TD3", "PPO"])
def test_layers_of_a_zip_are_checked_whatever_the_algorithm(tmp_path: Path, algorithm: str) -> None:
    draw = Draw()
    actions: spaces.Space[Any] = spaces.Box(-1, 1, (2,), np.float32)
    if algorithm == "DQN":
        draw.mlp("q_net.q_net", 5, 12, 8, 3)
        actions = spaces.Discrete(3)
    elif algorithm == "SAC":
        draw.mlp("actor.latent_pi", 5, 12, 8)
        draw.linear("actor.mu", 8, 2)
        draw.linear("actor.log_std", 8, 2)
    elif algorithm == "TD3":
        draw.mlp("actor.mu", 5, 12, 8, 2)
    else:
        draw.mlp("mlp_extractor.policy_net", 5, 12, 8)
        draw.linear("action_net", 8, 2)
        draw.array("log_std", 2)
    path = make_zip(tmp_path / "x.zip", algorithm, draw.tensors, VECTOR, actions)
    own, other = ("tanh", "relu") if algorithm == "PPO" else ("relu", "tanh")
    assert read_sb3(path, architecture=f"mlp:12,8:{own}").used == {"teacher_network"}  # what agrees is a check
    for wrong in (f"mlp:12,8:{other}", f"mlp:12,9:{own}"):
        policy = read_sb3(path, architecture=wrong)
        assert policy.used == frozenset()
        assert re.search(rf"mlp:12,8 with (?i:{own})", policy.decided["teacher_network"])
        assert any(type(module).__name__.lower() == own for module in policy.network.modules())


def test_a_cleanrl_file_without_its_script_stops_and_asks(tmp_path: Path) -> None:
    state = {**linear("actor.0", 4, 12), **linear("actor.2", 12, 2), **linear("critic.0", 4, 1)}
    path = saved(state, tmp_path / "CartPole-v1__ppo__1__1700000000" / "ppo.cleanrl_model")
    with pytest.raises(UserError, match=r"which activation.*no ppo.py.*--teacher-network mlp:12:tanh") as refusal:
        load_teacher(path)
    for number, bend in ((0, np.tanh), (1, relu)):
        options = TeacherOptions(network_named(str(refusal.value), number))
        expected = mlp_scores(state, ("actor.0", "actor.2"), VECTORS, bend)
        np.testing.assert_allclose(load_teacher(path, options=options)(VECTORS).numpy(), expected, atol=1e-5)


def test_the_script_beside_a_cleanrl_file_says_its_activation(tmp_path: Path) -> None:
    state = {**linear("actor.0", 4, 12), **linear("actor.2", 12, 2), **linear("critic.0", 4, 1)}
    path = saved(state, tmp_path / "CartPole-v1__ppo__1__1700000000" / "ppo.cleanrl_model")
    write_script(path, "actor", "nn.ReLU()")
    expected = mlp_scores(state, ("actor.0", "actor.2"), VECTORS, relu)
    np.testing.assert_allclose(load_teacher(path)(VECTORS).numpy(), expected, atol=1e-5)
    load_teacher(path, options=TeacherOptions("mlp:12"))
    with pytest.raises(
        UserError, match=r"--teacher-network has no effect on .*ppo.py.* says mlp:12 with relu: leave it out"
    ):
        load_teacher(path, options=TeacherOptions("mlp:12:tanh"))


@pytest.mark.parametrize(
    ("activation", "forward", "expected"),
    [
        ("nn.Tanh()", "", "tanh"),
        ("nn.ReLU(inplace=True)", "", "relu"),
        ("torch.nn.SiLU()", "", "silu"),
        ("nn.LeakyReLU()", "", "leaky_relu"),
        ("nn.Flatten()", "return F.relu(self.layer(x))", "relu"),
        ("nn.Flatten()", "return torch.nn.functional.elu(self.layer(x))", "elu"),
        ("nn.ReLU()", "return self.critic(self.layer(x))", "relu"),
        ("nn.LeakyReLU(0.3)", "", None),
        ("nn.ReLU(), nn.Linear(3, 3), nn.Tanh()", "", None),
        ("Mine()", "", None),
        ("nn.ReLU()", "return mine(self.layer(x))", None),
        ("nn.ReLU()", "return F.tanh(self.layer(x))", None),
        ("nn.ReLU(), nn.Dropout(0.1)", "", None),
        ("act()", "", None),
        ("nn.Flatten()", "", None),
        ("nn.ReLU()", "return (", None),
        ("nn.ReLU()", f"return {'(' * 5000}{')' * 5000}", None),
    ],
)
def test_a_script_is_read_and_never_run(tmp_path: Path, activation: str, forward: str, expected: str | None) -> None:
    path = write_script(tmp_path / "x.cleanrl_model", "layer", activation, forward).with_suffix(".py")
    path.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n" + path.read_text())
    assert activation_in(path, ["layer"]) == expected
    assert activation_in(path, ["layer", "other"]) is None
    assert not (tmp_path / "ran").exists()


def test_two_activations_are_two_policies(tmp_path: Path) -> None:
    path = balancing_zip(tmp_path / "ppo-CartPole-v1.zip", changes=AUTHOR)
    marks = [load_teacher(path, options=TeacherOptions(f"mlp:2:{name}")).sha256 for name in ("relu", "tanh")]
    assert marks[0] != marks[1]


@pytest.mark.parametrize(
    ("name", "options", "mean", "slack"),
    [
        ("author-class-relu/ppo-CartPole-v1.zip", TeacherOptions("mlp:64:relu"), 416, 60),
        ("cleanrl-relu/ppo.cleanrl_model", TeacherOptions("mlp:64,64:relu"), 202, 30),
    ],
)
def test_what_was_edited_plays_as_trained_with_its_activation(
    cases: Path, name: str, options: TeacherOptions, mean: float, slack: float
) -> None:
    path = cases / "policies" / name
    config = EvaluateConfig(episodes=10, epsilon=0.0, env="CartPole-v1")
    with pytest.raises(UserError, match="--teacher-network"):
        evaluate([path], config)
    assert evaluate([path], config, options=options)[0].mean == pytest.approx(mean, abs=slack)
