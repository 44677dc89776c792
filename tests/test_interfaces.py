"""What an exported file says of its input and output."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from rldistill.formats.c.compiling import compiler
from rldistill.formats.interface import interface_of
from rldistill.formats.note import note_of
from rldistill.formats.onnx.int8 import to_onnx_int8
from rldistill.play.envs import features_text, make_task
from rldistill.policies import SavedPolicy, load_policy, save_policy
from rldistill.students.networks import Architecture, build
from rldistill.verbs.export import ExportConfig, export

QUICK = ExportConfig(states=16, calibration=8, episodes=0, num_envs=2)


class Rooms(gymnasium.Env[Any, Any]):
    """Ten steps of nothing but its spaces."""

    observation_space: Any = spaces.Dict(
        {
            "wind": spaces.Box(np.float32([-1, -1, 0]), np.float32([1, 1, 5]), dtype=np.float32),
            "door": spaces.Discrete(3),
            "in": spaces.Dict({"b": spaces.MultiBinary(2), "t": spaces.Tuple((spaces.Discrete(2, start=5),))}),
        }
    )
    action_space: Any = spaces.Discrete(3, start=1)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.age = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.age += 1
        return self.observation_space.sample(), 0.0, self.age == 10, False, {}


class Pictures(Rooms):
    observation_space = spaces.Box(0, 255, (12, 10, 3), np.uint8)
    action_space = spaces.Box(np.float32([-1, 0]), np.float32([1, 5]))


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    gymnasium.register("Rooms-v0", Rooms)
    gymnasium.register("Pictures-v0", Pictures)
    yield
    del gymnasium.registry["Rooms-v0"], gymnasium.registry["Pictures-v0"]


def test_each_place_of_a_flat_observation_has_its_line() -> None:
    """The places are those of Gymnasium's own `flatten`."""
    lines = interface_of(make_task("Rooms-v0"))
    assert "observation[0..2]: door, one-hot of a whole number from 0 to 2" in lines
    assert "observation[3..4]: in.b, 0 or 1 each" in lines
    assert "observation[5..6]: in.t.0, one-hot of a whole number from 5 to 6" in lines
    assert "observation[7..8]: wind, -1 to 1" in lines
    assert "observation[9]: wind, 0 to 5" in lines
    assert "the environment counts from 1: add that" in lines
    space = Rooms.observation_space
    for name, at, size, _ in features_text(space):
        changed = spaces.flatten(space, space.sample()) * 0
        changed[at : at + size] = 1
        part = spaces.flatten_space(space)
        assert part.shape == changed.shape
        assert name.split(".")[0] in space.spaces
    one = {"door": 1, "in": {"b": np.array([0, 1], np.int8), "t": (6,)}, "wind": np.float32([0.5, -0.5, 3])}
    assert spaces.flatten(space, one).tolist() == [0, 1, 0, 0, 1, 0, 1, 0.5, -0.5, 3]


def test_features_that_a_student_does_not_read_are_named() -> None:
    lines = interface_of(make_task("Rooms-v0"), (0, 1, 2, 5))
    assert any(line.startswith("it ignores observation[3..4], [6..9]:") for line in lines)


def test_images_say_their_layout_and_the_environments_own() -> None:
    lines = interface_of(make_task("Pictures-v0"))
    assert any("3 x 12 x 10 bytes" in line and "channels first" in line for line in lines)
    assert any("12 x 10 x 3, channels last" in line for line in lines)
    assert "action[1]: 0 to 5" in lines
    frames = interface_of(make_task("PongNoFrameskip-v4"))
    assert any("4 frames, the oldest first" in line for line in frames)
    assert any("2 RIGHT" in line for line in frames)


def test_an_environment_that_is_not_here_leaves_the_names() -> None:
    task = make_task("Rooms-v0")
    spec = gymnasium.registry.pop("Rooms-v0")
    lines = interface_of(task)
    gymnasium.registry["Rooms-v0"] = spec
    assert "observation[0..2]: door" in lines
    assert "observation[7..9]: wind" in lines


@pytest.mark.parametrize("format", ["onnx-int8", "torchscript", "sb3", "c"])
@pytest.mark.slow
def test_every_format_says_it_and_is_read_back(format: Any, tmp_path: Path) -> None:
    if format == "c" and compiler() is None:
        pytest.skip("there is no C compiler here")
    for package in {"onnx": ("onnx", "onnxscript", "onnxruntime"), "sb3": ("stable_baselines3",)}.get(format[:4], ()):
        pytest.importorskip(package)
    task = make_task("Rooms-v0")
    save_policy(tmp_path / "p", build(Architecture("mlp:8", task.observation_shape, 3), 0, "logits"), task, {})
    out = tmp_path / {"c": "policy.c", "sb3": "policy.zip"}.get(format, "policy.bin")
    export(load_policy(tmp_path / "p"), out, format, QUICK)
    if format == "c":
        text = out.with_suffix(".h").read_text()
    elif format == "sb3":
        import zipfile

        text = "\n".join(json.loads(zipfile.ZipFile(out).read("rldistill.json"))["interface"])
    elif format == "torchscript":
        import torch

        files = {"rldistill.json": ""}
        torch.jit.load(str(out), _extra_files=files)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        text = "\n".join(json.loads(files["rldistill.json"])["interface"])
    else:
        import onnxruntime

        text = onnxruntime.InferenceSession(out.read_bytes()).get_modelmeta().custom_metadata_map["interface"]
    assert "observation[0..2]: door, one-hot" in text
    assert "the environment counts from 1" in text
    from rldistill import load_policy as load_any

    action = load_any(out).predict({"door": 1, "in": {"b": [0, 1], "t": (6,)}, "wind": [0.5, -0.5, 3]})[0]
    assert int(action) in (1, 2, 3)


@pytest.mark.parametrize(
    ("env", "network", "normalization", "kind"),
    [
        ("CartPole-v1", "mlp:8,8", "none", "q_values"),
        ("Pendulum-v1", "mlp:8", "layer", "squashed_gaussian"),
        ("Pictures-v0", "cnn:4:8", "none", "gaussian"),
    ],
)
def test_an_int8_file_loads_without_a_warning(
    env: str, network: str, normalization: Any, kind: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    task = make_task(env)
    width = task.num_actions * (2 if task.continuous else 1)
    policy = SavedPolicy(build(Architecture(network, task.observation_shape, width, normalization), 0, kind), task)
    observations = (
        np.random.default_rng(0).integers(0, 255, size=(16, *task.observation_shape)).astype(task.observation_dtype)
    )
    model = to_onnx_int8(policy, note_of(task, kind, {}), observations)  # type: ignore[arg-type]  # of either type
    options = runtime.SessionOptions()
    options.log_severity_level = 2  # its own default
    runtime.InferenceSession(model, options)
    assert capfd.readouterr().err == ""
