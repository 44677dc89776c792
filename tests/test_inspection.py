"""The verb `inspect`: what it tells of policies of every origin."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from foreign_files import balancing_zip
from rldistill.play.envs import make_task
from rldistill.policies import save_policy
from rldistill.students.networks import Architecture, build
from rldistill.types import UserError
from rldistill.verbs.inspect import InspectConfig, inspect
from test_teachers_formats import NATURE, nature
from test_teachers_sb3 import CONFIG, write_statistics


def test_every_line_of_a_policy_folder(tmp_path: Path) -> None:
    network = build(Architecture("mlp:4", (4,), 2), 0, "logits")
    provenance = {
        "algorithm": "dqn",
        "command": "by hand",
        "seed": 3,
        "score": {"mean": 1.0},
        "configuration": {"a": 1},
    }
    save_policy(tmp_path / "policy", network, make_task("CartPole-v1"), provenance)
    assert inspect(tmp_path / "policy") == {
        "policy": str(tmp_path / "policy"),
        "format": "rldistill policy folder",
        "algorithm": "dqn",
        "environment": "CartPole-v1",
        "observations": "(4,) float32",
        "actions": "2 discrete actions",
        "scores": "logits",
        "network": (
            "Flatten(start_dim=1, end_dim=-1) > Linear(in_features=4, out_features=4, bias=True) > ReLU() > "
            "Linear(in_features=4, out_features=2, bias=True)"
        ),
        "parameters": "30",  # 4 * 4 + 4 + 4 * 2 + 2
        "normalization": "shift and scale, in the policy folder",
        "made by": "command by hand, seed 3",
    }


def test_student_is_said_to_be_distilled_and_parts_of_observations_are_named(tmp_path: Path, levers: str) -> None:
    network = build(Architecture("mlp:1200", (6,), 5), 0, "logits")
    save_policy(tmp_path / "policy", network, make_task(levers), {"teacher": "somebody"})
    described = inspect(tmp_path / "policy")
    assert described["algorithm"] == "distilled"
    assert described["observations"] == "(6,) float32: age (1), door (3), wind (2)"
    assert described["actions"] == "2 discrete actions at once, of 2, 3 choices"
    assert described["parameters"] == "14,405"  # 6 * 1200 + 1200 + 1200 * 5 + 5
    assert described["made by"] == "teacher somebody"
    save_policy(tmp_path / "bare", network, make_task(levers), {})
    assert (inspect(tmp_path / "bare")["algorithm"], inspect(tmp_path / "bare")["made by"]) == ("unknown", "unknown")


def test_every_line_of_a_zip(tmp_path: Path) -> None:
    not_normalized = {"_last_obs": {}, "_last_original_obs": None}
    path = balancing_zip(tmp_path / "ppo-CartPole-v1.zip", changes=not_normalized)
    described = inspect(path)
    layers = described.pop("network")
    assert layers.count("Linear(") == 2
    assert "Tanh()" in layers
    made_by = described.pop("made by").split(", ")
    assert {"stable_baselines3 2.4.0", "control_steps 1234", "policy_class SomePolicy"} <= set(made_by)
    assert f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}" in made_by
    assert described == {
        "policy": str(path),
        "format": "Stable-Baselines3 zip",
        "algorithm": "PPO",
        "environment": "CartPole-v1",
        "observations": "(4,) float32",
        "actions": "2 discrete actions",
        "scores": "logits",
        "parameters": "16",  # without the critic: 4 * 2 + 2 + 2 * 2 + 2
        "normalization": "none",
        "does not fit": [],
        "notes": [],
    }


def test_normalization_is_told_as_found_or_as_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = balancing_zip(tmp_path / "CartPole-v1_1" / "CartPole-v1.zip")
    folder = path.parent / "CartPole-v1"
    folder.mkdir()
    (folder / "config.yml").write_text(CONFIG.format("true"))
    described = inspect(path)
    assert described["normalization"] == "expected, and not here"
    assert len(described["does not fit"]) == 1
    assert "--normalization" in described["does not fit"][0]
    statistics = write_statistics(folder / "vecnormalize.pkl", 4, monkeypatch)
    described = inspect(path)
    assert described["normalization"] == f"VecNormalize of {statistics}, clipped at 10"
    assert described["does not fit"] == []


def test_what_was_supposed_is_noted(tmp_path: Path) -> None:
    torch.save(nature(*NATURE), tmp_path / "pong.pth")
    described = inspect(tmp_path / "pong.pth", InspectConfig(env="PongNoFrameskip-v4"))
    assert described["format"] == "state dict"
    assert described["observations"] == "(4, 84, 84) uint8"
    assert described["scores"] == "logits"
    # Channels 8, kernels 8, 4, 3; 16 hidden units over 7 x 7 cells.
    assert (
        described["parameters"] == f"{4 * 64 * 8 + 8 + 8 * 16 * 8 + 8 + 8 * 9 * 8 + 8 + 392 * 16 + 16 + 16 * 6 + 6:,}"
    )
    assert described["does not fit"] == []
    assert described["notes"] == [
        "supposed, since the file does not say: strides of the convolutions are 4, 2, 1, pixels are divided by 255 "
        "(--pixels bytes leaves them as they are), ReLU after each hidden layer (--teacher-network cnn:8,8,8:16:tanh "
        "names another)"
    ]


@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_games_are_played_where_they_are_asked_for(tmp_path: Path, kind: str) -> None:
    """A zip that pushes the pole down needs 8 to 10 steps for it; a network of zeros always pushes to the left, too."""
    path = balancing_zip(tmp_path / "ppo-CartPole-v1.zip", sign=-1.0)
    if kind == "folder":
        network = build(Architecture("mlp:4", (4,), 2), 0)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.zero_()
        save_policy(tmp_path / "policy", network, make_task("CartPole-v1"), {})
        path = tmp_path / "policy"
    assert "plays" not in inspect(path)
    played = inspect(path, InspectConfig(play=3, epsilon=0.0, seed=1))["plays"]
    mean, rest = played.split(" ", 1)
    assert 8 <= float(mean) <= 10.5
    assert "in 3 games, epsilon 0" in rest
    assert "not above random play" in rest
    assert played == inspect(path, InspectConfig(play=3, epsilon=0.0, seed=1))["plays"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (InspectConfig(play=-1), "--play is at least 0, not -1"),
        (InspectConfig(epsilon=1.5), "--epsilon lies between 0 and 1, not 1.5"),
        (InspectConfig(play=1, seed=-1), "--seed is at least 0, not -1"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, config: InspectConfig, words: str) -> None:
    with pytest.raises(UserError, match=words):
        inspect(balancing_zip(tmp_path / "ppo-CartPole-v1.zip"), config)
