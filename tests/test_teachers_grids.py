"""Networks of small grids such as MinAtar's, bytes that are no large pictures, and biases that are modules of their own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from rldistill.formats.tensors.state_dict import read_state_dict
from rldistill.teachers import ForeignTeacher, TeacherOptions, load_teacher
from rldistill.types import UserError
from rldistill.verbs.inspect import InspectConfig, inspect
from test_teachers_formats import conv, linear, numbers, script

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning")

Q_VALUES = TeacherOptions(teacher_scores="q_values")
GRIDS = torch.randint(0, 2, (5, 4, 10, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Grid(nn.Module):
    """MinAtar's example of DQN: 3 x 3 convolution, one hidden layer, floats go in as they are."""

    def __init__(self, actions: int = 6) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 16, 3)
        self.fc_hidden = nn.Linear(1024, 32)
        self.output = nn.Linear(32, actions)
        state = {**conv("conv", 4, 16, 3), **linear("fc_hidden", 1024, 32), **linear("output", 32, actions)}
        self.load_state_dict(state)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        x = F.relu(self.fc_hidden(x.reshape(-1, 1024)))
        out: Tensor = self.output(x)
        return out


def grid_onnx(path: Path) -> None:
    """`Grid` as a model."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, state = onnx.helper, Grid().state_dict()
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Flatten", ["b"], ["c"]),
        helper.make_node("Gemm", ["c", "fc_hidden.weight", "fc_hidden.bias"], ["d"], transB=1),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("Gemm", ["e", "output.weight", "output.bias"], ["q_values"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "grid",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 4, 10, 10])],
        [helper.make_tensor_value_info("q_values", onnx.TensorProto.FLOAT, ["batch", 6])],
        [onnx.numpy_helper.from_array(tensor.numpy(), name) for name, tensor in state.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))


@pytest.mark.parametrize("kind", ["state dict", "checkpoint", "TorchScript", "ONNX"])
def test_minatar_s_own_network_plays_its_planes_as_they_are(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("p.onnx" if kind == "ONNX" else "p.pt")
    if kind == "state dict":
        torch.save(Grid().state_dict(), path)
    elif kind == "checkpoint":
        torch.save({"returns": [1.0], "frame_stamps": [1], "network": Grid().state_dict()}, path)
    elif kind == "TorchScript":
        script(Grid(), path)
    else:
        grid_onnx(path)
    teacher = load_teacher(path, env="MinAtar/Breakout-v0", options=Q_VALUES)
    assert isinstance(teacher, ForeignTeacher)
    assert teacher.mismatches == ()
    torch.testing.assert_close(teacher(GRIDS), Grid()(GRIDS.float()).detach(), rtol=1e-4, atol=1e-5)


def test_all_actions_for_the_minimal_set_are_answered_with_the_right_id(tmp_path: Path) -> None:
    torch.save(Grid().state_dict(), tmp_path / "p.pt")
    with pytest.raises(UserError, match="6 numbers, but there are 3 actions; .* -v0 have all six"):
        load_teacher(tmp_path / "p.pt", env="MinAtar/Breakout-v1", options=Q_VALUES)
    grid_onnx(tmp_path / "p.onnx")
    with pytest.raises(UserError, match="6 numbers .* -v0 have all six"):
        load_teacher(tmp_path / "p.onnx", env="MinAtar/Breakout-v1", options=Q_VALUES)
    torch.save(Grid(3).state_dict(), tmp_path / "three.pt")
    load_teacher(tmp_path / "three.pt", env="MinAtar/Breakout-v1", options=Q_VALUES)


def test_minatar_s_actor_critic_has_no_relus_and_asks(tmp_path: Path) -> None:
    state = {**conv("conv", 4, 16, 3), **linear("fc_hidden", 1024, 32), **linear("policy", 32, 6)}
    torch.save({**state, **linear("value", 32, 1)}, tmp_path / "p.pt")
    with pytest.raises(UserError, match="SiLU.*--teacher-network cnn:16:32") as refusal:
        load_teacher(tmp_path / "p.pt", env="MinAtar/Breakout-v0")
    named = re.findall(r"cnn:\S+", str(refusal.value))[0]
    load_teacher(tmp_path / "p.pt", env="MinAtar/Breakout-v0", options=TeacherOptions(named))


class Bytes(gymnasium.Env[Any, Any]):
    """An environment of bytes that are no large picture."""

    action_space = spaces.Discrete(2)

    def __init__(self, shape: tuple[int, ...], **_: Any) -> None:
        self.observation_space = spaces.Box(0, 255, shape, np.uint8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        return self.observation_space.sample(), 1.0, True, False, {}


@pytest.mark.parametrize("shape", [(8,), (7, 7, 3)])
def test_bytes_that_are_no_large_picture_are_divided_or_not_as_the_user_says(
    tmp_path: Path, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gymnasium.registry, "Bytes-v0", gymnasium.envs.registration.EnvSpec("Bytes-v0", Bytes))
    monkeypatch.setattr(gymnasium.registry["Bytes-v0"], "kwargs", {"shape": shape})
    if len(shape) == 1:
        state, network = {**linear("q.0", 8, 6), **linear("q.2", 6, 2)}, "mlp:6"
        x = torch.randint(0, 256, (3, 8), dtype=torch.uint8)
    else:
        state, network = {**conv("q.0", 3, 4, 3), **linear("q.2", 100, 6), **linear("q.4", 6, 2)}, "cnn:4:6"
        x = torch.randint(0, 256, (3, 3, 7, 7), dtype=torch.uint8)
    torch.save(state, tmp_path / "q.pth")
    with pytest.raises(UserError, match="--pixels"):
        load_teacher(tmp_path / "q.pth", env="Bytes-v0", options=TeacherOptions(network))
    for pixels, divisor in (("bytes", 1), ("unit", 255)):
        teacher = load_teacher(
            tmp_path / "q.pth",
            env="Bytes-v0",
            options=TeacherOptions(network, pixels=pixels),  # type: ignore[arg-type]  # out of a list
        )
        hidden = x.float() / divisor
        if len(shape) == 3:
            hidden = F.relu(F.conv2d(hidden, state["q.0.weight"], state["q.0.bias"])).flatten(1)
        first, last = ("q.0", "q.2") if len(shape) == 1 else ("q.2", "q.4")
        hidden = F.relu(F.linear(hidden, state[f"{first}.weight"], state[f"{first}.bias"]))
        expected = F.linear(hidden, state[f"{last}.weight"], state[f"{last}.bias"])
        torch.testing.assert_close(teacher(x), expected, rtol=1e-4, atol=1e-5)


def test_biases_that_are_modules_of_their_own_are_their_layers(tmp_path: Path) -> None:
    """As ACKTR's code of 2018 splits them off, (n, 1) each, in another order than the weights."""
    names = ("base.main.0", "base.main.2", "dist.linear")
    plain = {**linear(names[0], 4, 8), **linear(names[1], 8, 5), **linear(names[2], 5, 2)}
    split = {f"{name}.module.weight": plain[f"{name}.weight"] for name in names}
    split |= {f"{name}.add_bias._bias": plain[f"{name}.bias"][:, None] for name in names}
    split |= {"base.critic_linear.module.weight": numbers(1, 5), "base.critic_linear.add_bias._bias": numbers(1, 1)}
    torch.save(plain, tmp_path / "plain.pth")
    torch.save(split, tmp_path / "split.pth")
    x = numbers(3, 4)
    whole, merged = (
        read_state_dict(tmp_path / f"{name}.pth", architecture="mlp:8,5:tanh") for name in ("plain", "split")
    )
    torch.testing.assert_close(merged.network(x), whole.network(x), rtol=0, atol=0)
    assert merged.scores == "logits"
    del split["dist.linear.module.weight"]
    torch.save(split, tmp_path / "split.pth")
    with pytest.raises(UserError, match="dist.linear.bias.* is left over"):
        read_state_dict(tmp_path / "split.pth", architecture="mlp:8,5:tanh")


@pytest.mark.parametrize("name", ["minatar-breakout-dqn.pt"])
def test_minatar_s_files_load_and_play(cases: Path, name: str) -> None:
    inspected = inspect(cases / "policies" / name, InspectConfig(env="MinAtar/Breakout-v0", play=2), options=Q_VALUES)
    assert inspected["does not fit"] == []
    assert "in 2 games" in inspected["plays"]
