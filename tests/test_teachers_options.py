"""What a user says of a teacher's file acts, or is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from foreign_files import balancing_zip
from rldistill.play.envs import make_task
from rldistill.policies import load_policy, save_policy
from rldistill.students.networks import Architecture, build
from rldistill.teachers import TeacherOptions, load_teacher, teacher_beside
from rldistill.types import UserError
from rldistill.verbs.distill import DistillConfig, distill
from rldistill.verbs.evaluate import EvaluateConfig, evaluate
from rldistill.verbs.export import ExportConfig, export
from rldistill.verbs.inspect import inspect
from rldistill.verbs.record import RecordConfig, record
from rldistill.verbs.watch import watch
from test_teachers import of_kind
from test_teachers_formats import NATURE, nature

OPTIONS: dict[str, Any] = {
    "teacher_network": "mlp:8,5",
    "teacher_scores": "logits",
    "pixels": "bytes",
    "normalization": Path("statistics.pkl"),
}


def own_folder(folder: Path) -> Path:
    """A policy folder for CartPole with random weights, which gives Q-values."""
    save_policy(folder / "own", build(Architecture("mlp:8", (4,), 2), 0), make_task("CartPole-v1"), {})
    return folder / "own"


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@pytest.mark.slow
def test_an_option_on_a_file_that_says_everything_itself_is_refused_by_name(tmp_path: Path) -> None:
    own = own_folder(tmp_path)
    export(own, tmp_path / "own.ts", "torchscript", ExportConfig(states=100, episodes=1, num_envs=1))
    zipped = of_kind("Stable-Baselines3 zip", tmp_path)  # its algorithm is DQN, its input no image
    choices = [(path, name) for path in (own, tmp_path / "own.ts") for name in OPTIONS]
    for path, name in [*choices, (zipped, "teacher_scores"), (zipped, "pixels")]:
        with pytest.raises(UserError, match=f"{flag(name)} has no effect on .*{path.name}: leave it out"):
            load_teacher(path, options=TeacherOptions(**{name: OPTIONS[name]}))


@pytest.mark.parametrize("kind", ["state dict", "ONNX", "TorchScript", "CleanRL"])
def test_pixels_of_a_file_that_reads_none_are_refused(tmp_path: Path, kind: str) -> None:
    network = "mlp:8,5" if kind in ("state dict", "CleanRL") else None
    scores: Any = None if kind == "CleanRL" else "q_values"
    path = of_kind(kind, tmp_path)
    with pytest.raises(UserError, match="--pixels ha.* no effect"):
        load_teacher(path, env="CartPole-v1", options=TeacherOptions(network, scores, pixels="unit"))


def test_an_option_is_refused_in_every_verb_before_anything_is_written(tmp_path: Path) -> None:
    own, out = own_folder(tmp_path), tmp_path / "out"
    out.mkdir()
    idle = TeacherOptions(teacher_network="mlp:8", pixels="unit")
    loaded = load_policy(own)
    verbs: list[Callable[[], Any]] = [
        lambda: distill(own, out / "run", DistillConfig(), options=idle),
        lambda: distill(loaded, out / "run", DistillConfig(), options=idle),
        lambda: record(own, out / "data", RecordConfig(), options=idle),
        lambda: record(loaded, out / "data", RecordConfig(), options=idle),
        lambda: evaluate([own], EvaluateConfig(), json=out / "scores.json", options=idle),
        lambda: evaluate([loaded], EvaluateConfig(), options=idle),
        lambda: watch(own, out=out / "watch.gif", options=idle),
        lambda: inspect(own, options=idle),
    ]
    for verb in verbs:
        with pytest.raises(UserError, match="--teacher-network, --pixels have no effect on .*: leave them out"):
            verb()
    assert not list(out.iterdir())


def test_of_several_policies_one_is_enough_for_an_option_to_act_on(tmp_path: Path) -> None:
    tensors, own, config = of_kind("state dict", tmp_path), own_folder(tmp_path), EvaluateConfig(episodes=1)
    acting = TeacherOptions(teacher_network="mlp:8,5", teacher_scores="q_values")
    assert len(evaluate([own, tensors], config, options=acting)) == 2
    zipped = balancing_zip(tmp_path / "ppo-CartPole-v1.zip")  # which has another network, and says so itself
    assert len(evaluate([zipped, tensors], config, options=acting)) == 2
    with pytest.raises(
        UserError, match=r"--teacher-network has no effect on .*zip, since .* mlp:2 with Tanh: leave it out"
    ):
        evaluate([zipped], config, options=TeacherOptions("mlp:2:relu"))
    with pytest.raises(UserError, match=r"--pixels has no effect on .*own and .*net\.pth: leave it out"):
        evaluate([own, tensors], config, options=TeacherOptions("mlp:8,5", "q_values", pixels="unit"))


def test_a_permission_that_is_not_needed_does_no_harm(tmp_path: Path) -> None:
    load_teacher(own_folder(tmp_path), options=TeacherOptions(trust_pickle=True, accept_mismatch=True))


def test_scores_that_agree_with_the_file_are_a_check_and_others_are_refused(tmp_path: Path) -> None:
    path = balancing_zip(tmp_path / "ppo-CartPole-v1.zip")
    assert load_teacher(path, options=TeacherOptions(teacher_scores="logits")).score_kind == "logits"
    with pytest.raises(UserError, match="--teacher-scores has no effect"):
        load_teacher(path, options=TeacherOptions(teacher_scores="q_values"))


def test_a_report_passes_over_options_of_its_run_that_do_not_act(tmp_path: Path) -> None:
    """Runs of before name options in their configuration that were accepted without effect."""
    idle, own = TeacherOptions(pixels="unit"), own_folder(tmp_path)
    lines: list[str] = []
    assert teacher_beside(str(own), like=None, chosen=None, options=idle, say=lines.append) is not None
    assert lines == []


def test_pixels_of_a_plain_state_dict_are_divided_or_left(tmp_path: Path) -> None:
    torch.save(nature(*NATURE), tmp_path / "pong_dqn.pth")
    frames = torch.randint(0, 256, (3, 4, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    module = torch.nn.Sequential(
        torch.nn.Conv2d(4, 8, 8, 4), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 4, 2), torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, 3, 1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(392, 16), torch.nn.ReLU(),
        torch.nn.Linear(16, 6),
    )  # fmt: skip
    for parameter, tensor in zip(module.parameters(), nature(*NATURE).values(), strict=True):
        parameter.data = tensor
    for pixels, divisor in (("bytes", 1), ("unit", 255), (None, 255)):
        options = TeacherOptions(teacher_scores="q_values", pixels=pixels)  # type: ignore[arg-type]  # out of a list
        teacher = load_teacher(tmp_path / "pong_dqn.pth", env="PongNoFrameskip-v4", options=options)
        torch.testing.assert_close(teacher(frames), module(frames.float() / divisor).detach())
