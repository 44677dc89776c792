"""`distill` on real games: a student that plays, the same one each time, through kills at random moments too."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

import rldistill
from rldistill.configurations import changed, flat
from rldistill.lessons.streams import Driven
from rldistill.play.envs import make_task
from rldistill.play.games import play
from rldistill.play.rollout import EpsilonGreedy
from rldistill.policies import SavedPolicy, card_checksum, load_policy, save_policy
from rldistill.progress import Silent
from rldistill.runs.folder import read_metrics
from rldistill.students.fitting import GradientFitting, shorten
from rldistill.students.losses import parse_loss
from rldistill.students.networks import Architecture, Network, build, parameter_count
from rldistill.students.objectives import Match
from rldistill.teachers import TeacherOptions
from rldistill.types import Lesson, ScoreKind, Task, UserError, labelled
from rldistill.verbs.distill import DistillConfig, checked, distill
from rldistill.verbs.distill.streams import make_stream
from rldistill.verbs.distill.teaching import suited, suited_architecture, teaching_of
from rldistill.verbs.evaluate import EvaluateConfig, evaluate
from rldistill.verbs.record import RecordConfig, record

CARTPOLE = make_task("CartPole-v1")
PONG = make_task("PongNoFrameskip-v4", max_frames=400)  # games of at most 100 control steps
SOURCE = Path(rldistill.__file__).parents[1]

TINY = DistillConfig.of(
    student="mlp:8", steps=400, num_envs=4, warmup=80, batch_size=32, samples_per_step=8, evaluate_episodes=2,
    evaluate_epsilon=1.0,  # random play, whose games end soon
    augment=0.5, weight_decay=0.1,  # what images have by default
)  # fmt: skip


def balancing(score_kind: ScoreKind = "q_values") -> SavedPolicy:
    """A CartPole teacher made by hand: it pushes to the side to which the pole leans and turns."""
    network = build(Architecture("mlp:2", CARTPOLE.observation_shape, CARTPOLE.num_actions), 0, score_kind)
    hidden, head = network.layers[1], network.layers[3]
    assert isinstance(hidden, torch.nn.Linear)
    assert isinstance(head, torch.nn.Linear)
    side = torch.tensor([0.0, 0.0, 1.0, 0.5]) * (20 if score_kind == "logits" else 1)
    with torch.no_grad():
        hidden.weight.copy_(torch.stack([-side, side]))
        hidden.bias.zero_()
        head.weight.copy_(torch.eye(2))
        head.bias.zero_()
    return SavedPolicy(network.eval().requires_grad_(False), CARTPOLE)


def save(path: Path, policy: SavedPolicy) -> Path:
    # With a score, as `train` writes it, so that no run has to measure it.
    score = {"mean": 10.0, "ci_low": 9.0, "ci_high": 11.0, "episodes": 30, "epsilon": 0.01}
    save_policy(path, policy.network, policy.task, {"command": "by hand", "score": score})
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of two teachers and a dataset of each."""
    root = tmp_path_factory.mktemp("teachers")
    save(root / "cartpole", balancing())
    save(root / "pendulum", braking())
    network = build(Architecture("cnn:4,4,4:16", PONG.observation_shape, PONG.num_actions), 0)
    save(root / "pong", SavedPolicy(network, PONG))
    record(root / "cartpole", root / "cartpole-data", RecordConfig(steps=600, num_envs=4))
    record(root / "pong", root / "pong-data", RecordConfig(steps=400, num_envs=4))
    return root


def weights(out: Path) -> str:
    return hashlib.sha256((out / "policy" / "weights.safetensors").read_bytes()).hexdigest()


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def fitting_of(network: Network, loss: str, config: DistillConfig) -> GradientFitting:
    """Of three updates in CartPole."""
    objective = Match(parse_loss(loss), CARTPOLE, "q_values", config.matching)
    return GradientFitting(network, {Lesson.of(CARTPOLE): objective}, config.optimization, 3, config.seed)


def stream_of(teacher: SavedPolicy, config: DistillConfig, scratch: Path) -> Driven:
    """What a run in CartPole learns from, whose student is the teacher itself."""
    teaching = teaching_of(teacher, "teacher", CARTPOLE, config)
    stream = make_stream([teaching], teacher.network, config, scratch, Silent())
    assert isinstance(stream, Driven)
    return stream


# What is done to a student


@pytest.mark.slow
def test_students_exploration_falls_to_nothing_at_the_end_of_the_run(tmp_path: Path) -> None:
    """All of it random at first: of two actions every other one is the student's own by chance."""
    teacher = balancing()
    config = checked(changed(TINY, driver="student", explore="epsilon", epsilon=1.0, steps=4000, augment=0.0))
    stream = stream_of(teacher, config, tmp_path)
    (environments,) = stream.environments
    other = []
    while stream.control_steps < config.steps:
        best = teacher(torch.from_numpy(environments.observations)).argmax(dim=1).numpy()
        other.append(float((stream.student(environments.observations) != best).mean()))
        next(stream)
    tenth = len(other) // 10
    assert np.mean(other[:tenth]) == pytest.approx(0.5, abs=0.1)
    assert np.mean(other[-tenth:]) == pytest.approx(0.025, abs=0.025)
    stream.close()


@pytest.mark.parametrize(
    ("loss", "score_kind"),
    [(loss, "q_values") for loss in ("kl", "nll", "mse", "mse_prob", "nll:1,mse_prob:1")] + [("kl", "logits")],
)
@pytest.mark.slow
def test_student_keeps_the_teachers_play(tmp_path: Path, loss: str, score_kind: ScoreKind) -> None:
    """CartPole's best return is 500; random play gets some 22. `kl` has all the settings that are shipped."""
    teacher = balancing(score_kind)
    config = DistillConfig.of(student="mlp:8", steps=4000, num_envs=8, loss=loss, evaluate_every=0, evaluate_episodes=1)
    if loss != "kl":
        config = changed(config, targets="standardized", learning_rate=3e-3)
    student = distill(teacher, tmp_path / "run", config)
    assert student.score_kind == ("q_values" if loss == "mse" else "logits")

    def mean(policy: SavedPolicy) -> float:
        return float(
            play(CARTPOLE, lambda generator: EpsilonGreedy(policy, CARTPOLE, 0.01, generator), 10, 77).returns.mean()
        )

    assert mean(teacher) > 200
    assert mean(student) >= 0.9 * mean(teacher)


@pytest.mark.parametrize("initialize", ["data", "torch"])
@pytest.mark.slow
def test_a_normalized_student_keeps_the_teachers_play_and_its_layers(
    tmp_path: Path, root: Path, initialize: Any
) -> None:
    config = changed(TINY, student="mlp:16,16", student_normalization="layer", initialize=initialize, steps=2000)
    student = distill(root / "cartpole", tmp_path / "run", config)
    kept = load_policy(tmp_path / "run")
    for network in (student.network, kept.network):
        assert sum(isinstance(layer, torch.nn.LayerNorm) for layer in network.layers) == 2
    # 4 x 16 + 16, 16 x 16 + 16, 16 x 2 + 2; a scale and a shift for each of 32 units.
    assert parameter_count(kept.network) == 80 + 272 + 34 + 64
    assert agreement_with(balancing(), kept) > 0.9


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_scales_and_shifts_of_a_normalization_are_moved_by_adamw(optimizer: Any) -> None:
    """Adam's first step is the learning rate in the direction against the gradient; a matrix of Muon moves as a whole."""
    config = changed(TINY, optimizer=optimizer, weight_decay=0.0, schedule="constant", learning_rate=0.01)
    network = build(Architecture("mlp:8,8", (4,), 2, "layer"), 0)
    fitting = fitting_of(network, "kl", config)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    generator = torch.Generator().manual_seed(0)
    observations, values = torch.randn(32, 4, generator=generator), torch.randn(32, 2, generator=generator)
    fitting({Lesson.of(CARTPOLE): labelled(observations, values)})
    by_step = {
        id(parameter): parameter.detach() - old for parameter, old in zip(network.parameters(), before, strict=True)
    }
    for layer in network.layers:
        if isinstance(layer, torch.nn.LayerNorm):
            for parameter in (layer.weight, layer.bias):
                assert parameter.grad is not None
                moved = parameter.grad.abs() > 1e-5
                assert moved.any()
                torch.testing.assert_close(
                    by_step[id(parameter)][moved], -0.01 * parameter.grad[moved].sign(), rtol=0.01, atol=1e-5
                )


@pytest.mark.parametrize("targets", ["raw", "advantage", "standardized"])
@pytest.mark.parametrize("loss", ["kl", "kl_hinton", "kl_reverse", "js", "mse"])
@pytest.mark.slow
def test_student_comes_to_agree_with_each_kind_of_target(tmp_path: Path, root: Path, targets: Any, loss: str) -> None:
    config = changed(TINY, loss=loss, targets=targets, steps=1600, temperature="auto", learning_rate=3e-3)
    distill(root / "cartpole", tmp_path / "run", config)
    agreements = [line["agreement"] for line in read_metrics(tmp_path / "run") if line["event"] == "train"]
    assert np.mean(agreements[-20:]) > 0.75, "a coin agrees in half of the states"


@pytest.mark.parametrize(
    "changes",
    [
        {"explore": "epsilon", "epsilon": 0.3},
        {"explore": "boltzmann"},
        {"explore": "dropout", "dropout": 0.3},
        {"average": 0.0, "schedule": "constant", "optimizer": "rmsprop"},
        {"optimizer": "muon"},
        {"standardize": False, "bfloat16": False},
        {"env": "CartPole-v0"},
    ],
    ids=lambda changes: next(iter(changes)),
)
@pytest.mark.slow
def test_every_way_of_working_ends_in_the_same_student_twice(
    tmp_path: Path, root: Path, changes: dict[str, Any]
) -> None:
    config = changed(TINY, driver="student", **changes)
    for name in ("a", "b"):
        distill(root / "cartpole", tmp_path / name, config)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    other = distill(root / "cartpole", tmp_path / "c", changed(config, seed=1))
    assert weights(tmp_path / "c") != weights(tmp_path / "a")
    assert other.task.env == changes.get("env", "CartPole-v1")


@pytest.mark.slow
def test_how_often_it_is_evaluated_or_saved_changes_nothing(tmp_path: Path, root: Path) -> None:
    distill(root / "cartpole", tmp_path / "a", changed(TINY, evaluate_every=0, checkpoint_seconds=3600))
    distill(root / "cartpole", tmp_path / "b", changed(TINY, evaluate_every=100, checkpoint_seconds=0))
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


@pytest.mark.parametrize(
    ("share", "weights_of"), [(0.5, (1 / 6, 1 / 3, 1 / 2)), (1.0, (1 / 3, 1 / 3, 1 / 3)), (0.0, (0, 0, 1))]
)
def test_average_weighs_the_last_weights_as_worked_out_by_hand(share: float, weights_of: tuple[float, ...]) -> None:
    """Shamir & Zhang 2013: with a share of a half (eta = 1) the t-th weights count in proportion to t."""
    network = build(Architecture("mlp:4", (4,), 2), 0, "logits")
    update = fitting_of(network, "kl", DistillConfig.of(average=share, learning_rate=0.1))
    batch = labelled(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.eye(2).repeat(4, 1))
    visited = []
    for _ in range(3):
        update({Lesson.of(CARTPOLE): batch})
        visited.append(torch.cat([parameter.detach().flatten().clone() for parameter in network.parameters()]))
    expected = sum(weight * vector for weight, vector in zip(weights_of, visited, strict=True))
    averaged = torch.cat([parameter.flatten() for parameter in update.average.parameters()])
    torch.testing.assert_close(averaged, expected)
    assert not torch.allclose(visited[0], visited[2])


def test_weight_decay_alone_shrinks_the_weights_by_its_share_of_the_rate() -> None:
    """AdamW: where the gradient is 0, a weight becomes (1 - 0.1 * 0.2) of itself."""
    network = build(Architecture("mlp:4", (4,), 2), 0, "q_values")
    config = DistillConfig.of(
        loss="mse", schedule="constant", learning_rate=0.1, weight_decay=0.2, bfloat16=False, steady=False
    )
    update = fitting_of(network, "mse", config)
    before = torch.cat([parameter.detach().flatten().clone() for parameter in network.parameters()])
    states = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    update({Lesson.of(CARTPOLE): labelled(states, network(states).detach())})
    after = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
    torch.testing.assert_close(after, 0.98 * before)


@pytest.mark.parametrize(
    ("student", "shape", "augment", "decay"),
    [("cnn:2:8", (4, 84, 84), 0.0, 0.1), ("net2", (4, 84, 84), 0.5, 0.1), ("mlp:300,300", (4,), 0.0, 0.0)],
)  # fmt: skip
def test_composites_are_for_students_of_images_with_room_and_decay_for_all_of_images(
    student: str, shape: tuple[int, ...], augment: float, decay: float
) -> None:
    network = build(Architecture(student, shape, 6), 0)
    config = suited(DistillConfig.of(student=student), network, {"q_values"})
    assert (config.batches.augment, config.optimization.weight_decay) == (augment, decay)
    asked = suited(DistillConfig.of(student=student, augment=0.25, weight_decay=0.3), network, {"q_values"})
    assert (asked.batches.augment, asked.optimization.weight_decay) == (0.25, 0.3)


@pytest.mark.parametrize(
    ("student", "shape", "teacher_kind", "optimizer"),
    [("net2", (4, 84, 84), "logits", "muon"), ("net2", (4, 84, 84), "q_values", "adam"),
     ("mlp:16", (4,), "logits", "adam"), ("mlp:16", (4,), "gaussian", "adam")],
)  # fmt: skip
def test_orthogonal_steps_are_for_students_of_images_of_a_teacher_of_logits(
    student: str, shape: tuple[int, ...], teacher_kind: ScoreKind, optimizer: str
) -> None:
    network = build(Architecture(student, shape, 6), 0)
    assert suited(DistillConfig.of(student=student), network, {teacher_kind}).optimization.optimizer == optimizer
    assert suited(DistillConfig.of(optimizer="rmsprop"), network, {teacher_kind}).optimization.optimizer == "rmsprop"


@pytest.mark.parametrize(
    ("shape", "teacher", "student"),
    [((4, 84, 84), "dqn", "net2"), ((4, 10, 10), "cnn:8:8", "net2"), ((4,), "mlp:64,64", "mlp:32,32"),
     ((4,), "mlp:211,211", "mlp:64,64"), ((4,), "mlp:210,210", "mlp:32,32"), ((40,), "mlp:64,64", "mlp:24,24"),
     ((400,), "mlp:8", "mlp:16,16")],
)  # fmt: skip
def test_the_student_that_auto_stands_for_is_at_most_a_tenth_of_its_teacher_or_2000_parameters(
    shape: tuple[int, ...], teacher: str, student: str
) -> None:
    """With two actions, mlp:64,64 of 4 features has 4,610 parameters, mlp:211,211 46,211 and mlp:210,210 45,782; of 40
    features mlp:32,32 has 2,434 and mlp:24,24 1,634; of 400 none has as few."""
    task = replace(PONG if len(shape) == 3 else CARTPOLE, observation_shape=shape)
    reference = SavedPolicy(build(Architecture(teacher, shape, task.num_actions), 0), task)
    assert suited_architecture(Architecture("auto", shape, task.num_actions), reference).name == student


def test_a_run_whose_student_is_auto_has_it_by_name_in_its_folder(tmp_path: Path, root: Path) -> None:
    student = distill(root / "cartpole", tmp_path / "run", changed(TINY, student="auto"))
    assert student.network.architecture.name == "mlp:32,32"
    assert json.loads((tmp_path / "run" / "config.json").read_text())["student"] == "mlp:32,32"


def test_auto_takes_the_narrower_student_of_a_teacher_whose_size_nobody_knows() -> None:
    class Function:
        task, score_kind = CARTPOLE, "q_values"

        def __call__(self, observations: torch.Tensor) -> torch.Tensor:
            return observations[:, :2]

    assert suited_architecture(Architecture("auto", (4,), 2), Function()).name == "mlp:32,32"


@pytest.mark.parametrize(("asked", "arithmetic"), [(True, "bfloat16"), (False, "float32"), (None, "float32")])
@pytest.mark.slow
def test_a_student_says_in_what_it_was_computed(
    tmp_path: Path, root: Path, asked: bool | None, arithmetic: str
) -> None:
    student = distill(str(root / "cartpole"), tmp_path / "run", changed(TINY, bfloat16=asked))
    assert student.provenance["arithmetic"] == arithmetic


@pytest.mark.slow
def test_what_suited_the_student_stands_in_the_run_folder(tmp_path: Path) -> None:
    teacher = SavedPolicy(
        build(Architecture("cnn:2:8", PONG.observation_shape, 6), 0), PONG, {"score": {"mean": -20.0}}
    )
    config = DistillConfig.of(student="net2", steps=64, warmup=16, num_envs=4, evaluate_episodes=1, evaluate_every=0,
                           batch_size=8, samples_per_step=1)  # fmt: skip
    distill(teacher, tmp_path / "run", config)
    kept = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (kept["augment"], kept["weight_decay"], kept["samples_per_step"]) == (0.5, 0.1, 1)
    assert kept["optimizer"] == "adam"


@pytest.mark.parametrize("most", [0.5, 1e4])
def test_long_gradients_are_shortened_as_torch_does(most: float) -> None:
    ours, theirs = (build(Architecture("mlp:8,5", (4,), 2), 0) for _ in range(2))
    for network in (ours, theirs):
        (100 * network(torch.ones(3, 4))).square().mean().backward()
    shorten(list(ours.parameters()), most)
    before = torch.nn.utils.clip_grad_norm_(theirs.parameters(), most)
    assert 0.5 < before < 1e4, "the one is longer than the bound, the other shorter"
    for mine, reference in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, reference.grad)


@pytest.mark.slow
def test_python_callable_can_be_the_teacher(tmp_path: Path) -> None:
    class Rule:
        task = CARTPOLE
        score_kind: ScoreKind = "q_values"

        def __call__(self, observations: Tensor) -> Tensor:
            lean = observations[:, 2] + 0.5 * observations[:, 3]
            return torch.stack([-lean, lean], dim=1)

    student = distill(Rule(), tmp_path / "run", changed(TINY, steps=1600))
    assert student.task == CARTPOLE
    assert student.provenance["teacher"] == "a policy in memory"
    level = next(line for line in read_metrics(tmp_path / "run") if line["event"] == "teacher")
    assert len(level["returns"]) == 2, "its score is not known, so it was measured"


def test_student_can_be_the_next_teacher(tmp_path: Path, root: Path) -> None:
    first = distill(root / "cartpole", tmp_path / "first", TINY)
    second = distill(tmp_path / "first", tmp_path / "second", changed(TINY, student="mlp:4"))
    assert second.network.architecture.name == "mlp:4"
    level = next(line for line in read_metrics(tmp_path / "second") if line["event"] == "teacher")
    assert level["mean"] == first.provenance["score"]["mean"], "its folder says how well it plays"


def test_temperature_and_standardization_are_fitted_to_what_is_played(tmp_path: Path, root: Path) -> None:
    student = distill(root / "cartpole", tmp_path / "run", changed(TINY, standardize=True, temperature="auto"))
    fitted = next(line for line in read_metrics(tmp_path / "run") if line["event"] == "fit")
    assert 0 < fitted["temperature"] != 1
    assert student.provenance["temperature"] == fitted["temperature"]
    np.testing.assert_allclose(student.network.scale, fitted["scale"], rtol=1e-6)
    assert len(set(fitted["scale"])) == 4, "a scale for each of CartPole's features"
    plain = distill(root / "cartpole", tmp_path / "plain", changed(TINY, standardize=False, temperature="0.5"))
    assert plain.network.scale.tolist() == [1, 1, 1, 1]
    assert plain.provenance["temperature"] == 0.5


@pytest.mark.parametrize("driver", ["teacher", "student", "mixture"])
@pytest.mark.slow
def test_run_folder_tells_who_drove_and_what_came_of_it(tmp_path: Path, root: Path, driver: Any) -> None:
    config = changed(TINY, driver=driver, teacher_share=0.25, share_steps=100, evaluate_every=150)
    student = distill(root / "cartpole", tmp_path / "run", config)
    metrics = read_metrics(tmp_path / "run")
    evaluations = [line for line in metrics if line["event"] == "evaluation"]
    assert [line["event"] for line in metrics].count("teacher") == 1
    # Every 4 control steps earn the 32 samples of an update.
    assert [line["control_steps"] for line in evaluations] == [152, 300, 400]
    last = evaluations[-1]
    assert last["teacher_steps"] + last["student_steps"] == 400
    assert last["updates"] == (400 - 80) * 8 / 32
    if driver == "mixture":
        # All four rows for 80 steps of warm-up; then shares 1, 0.97, 0.94 ... 0.25 of the rows, rounded; then 1 row.
        falling = sum(round(4 * (1 - 0.75 * step / 100)) for step in range(0, 100, 4))
        assert last["teacher_steps"] == 80 + falling + (400 - 180) // 4
    else:
        assert last[f"{driver}_steps"] == 400
    assert student.provenance["score"]["mean"] == last["mean"] == np.mean(last["returns"])
    assert student.provenance["teacher"] == str(root / "cartpole")
    assert student.provenance["control_steps"] == 400
    kept = json.loads((tmp_path / "run" / "config.json").read_text())
    left_out = {"checkpoint_seconds", "tensorboard", "env_kwargs"}  # the last is in the task
    assert set(kept) == set(flat(DistillConfig())) - left_out | {
        "verb", "teacher", "teacher_sha256", "task",
    }  # fmt: skip
    assert not (tmp_path / "run" / "checkpoint").exists()
    assert load_policy(tmp_path / "run").task == CARTPOLE


def test_dataset_is_distilled_without_playing(tmp_path: Path, root: Path) -> None:
    config = changed(TINY, dataset=str(root / "cartpole-data"), updates=60, evaluate_every=32)
    student = distill(root / "cartpole", tmp_path / "run", config)
    evaluations = [line for line in read_metrics(tmp_path / "run") if line["event"] == "evaluation"]
    assert [(line["updates"], line["control_steps"]) for line in evaluations] == [(32, 0), (60, 0)]
    assert student.provenance["updates"] == 60


# Sure: killed, stopped, continued


HARNESS = """
import json, os, signal, sys, time, traceback
import ale_py.vector_env
from rldistill.verbs.distill import DistillConfig, distill
# Once here, so that each child need not import what torch and gymnasium import at their first use.
warm = DistillConfig.of(student="mlp:2", steps=40, num_envs=1, evaluate_episodes=1, evaluate_epsilon=1.0)
distill(sys.argv[1], sys.argv[2], warm)
def state(out):
    try:
        return os.stat(out + "/checkpoint/state").st_mtime_ns
    except FileNotFoundError:
        return None
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()  # imports cost seconds, and a fork of a process without threads is as good as a new one
    if child == 0:
        try:
            distill(order["teacher"], order["out"], DistillConfig.of(**order["config"]), resume=order["resume"])
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    status = None
    if order["kill"] is not None:
        checkpoints, seconds = order["kill"]
        seen = state(order["out"])
        while checkpoints and status is None:
            now = state(order["out"])
            checkpoints, seen = checkpoints - (now != seen), now
            time.sleep(0.0005)
            pid, raw = os.waitpid(child, os.WNOHANG)
            status = raw if pid else None
        if status is None:
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1] if status is None else status
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Harness:
    """Another process, in which runs are killed."""

    def __init__(self, teacher: Path, warm: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HARNESS, str(teacher), str(warm)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def distill(
        self,
        teachers: Sequence[Path],
        out: Path,
        config: DistillConfig,
        *,
        resume: bool = False,
        kill: tuple[int, float] | None = None,
    ) -> int:
        """Exit status. `kill`: after so many checkpoints and so many seconds more."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        order = {
            "teacher": [str(path) for path in teachers],
            "out": str(out),
            "config": flat(config),
            "resume": resume,
            "kill": kill,
        }
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@pytest.fixture(scope="module")
def harness(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    harness = Harness(root / "cartpole", tmp_path_factory.mktemp("warm") / "run")
    yield harness
    harness.close()


SMALL_PONG = changed(TINY, student="cnn:4,4,4:8", steps=320, samples_per_step=5, evaluate_every=0, evaluate_episodes=1)
KILLED = {
    "teacher drives": ("cartpole", changed(TINY, driver="teacher", steps=1000, samples_per_step=10)),
    "student drives with dropout": (
        "cartpole",
        changed(TINY, driver="student", explore="dropout", dropout=0.2, steps=1000),
    ),
    "dataset with weights": ("cartpole", changed(TINY, dataset="cartpole-data", updates=300, weights="gap")),
    # The ring of 100 times goes round many times; the room of 100 more forces checkpoints.
    "ring goes round": (
        "cartpole",
        changed(TINY, driver="mixture", explore="boltzmann", steps=1600, replay=400, samples_per_step=9),
    ),
    "mixture in Pong": ("pong", changed(SMALL_PONG, driver="mixture", explore="epsilon")),
    "orthogonal steps of normalized layers": (
        "pong",
        changed(SMALL_PONG, driver="mixture", optimizer="muon", student_normalization="layer"),
    ),
    "two tasks": ("cartpole pendulum", changed(TINY, student="mlp:8+4", augment=0.0, steps=600, replay=200)),
    "dataset of Pong": ("pong", changed(SMALL_PONG, dataset="pong-data", updates=40)),
}


@pytest.mark.parametrize("case", KILLED)
@pytest.mark.slow
def test_run_killed_at_random_moments_ends_in_the_same_weights(
    tmp_path: Path, root: Path, harness: Harness, case: str
) -> None:
    name, config = KILLED[case]
    config = changed(config, checkpoint_seconds=0.02 if "cartpole" in name else 0.0)
    teachers = [root / each for each in name.split()]
    if config.dataset is not None:
        config = changed(config, dataset=str(root / config.dataset))
    assert harness.distill(teachers, tmp_path / "whole", config) == 0
    draw = np.random.default_rng(sum(case.encode()))
    killed = saved = 0
    for attempt in range(4):
        # The first at the start of everything; the others where the machine's load cannot move them out of the run.
        kill = (int(draw.integers(1, 9)) if attempt else 0, draw.uniform(0, 0.05))
        status = harness.distill(teachers, tmp_path / "killed", config, resume=attempt > 0, kill=kill)
        assert status in (0, -signal.SIGKILL)
        killed += status == -signal.SIGKILL
        saved += (tmp_path / "killed" / "checkpoint" / "state").exists()
    assert killed >= 2
    assert saved > 0, "some run must go on from the middle"
    assert harness.distill(teachers, tmp_path / "killed", config, resume=True) == 0
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")

    def curve(out: Path) -> list[dict[str, Any]]:
        return [{k: v for k, v in line.items() if k != "seconds"} for line in read_metrics(out)]

    assert curve(tmp_path / "killed") == curve(tmp_path / "whole"), "and in the same curve"
    assert not (tmp_path / "killed" / "checkpoint").exists()


@pytest.mark.parametrize("saved_by", ["need", "time"])
@pytest.mark.parametrize(
    ("steps", "replay", "num_envs", "samples_per_step", "batch_size"),
    [
        (1200, 200, 2, 8.0, 32),  # goes round, forced checkpoints
        (1200, 200, 2, 0.05, 32),  # an item takes 320 times, more than the room
        (301, 300, 4, 16.0, 128),  # one step too many for the ring
        (300, 300, 4, 5.0, 128),  # all steps have room, and the last item ends beyond them
        (300, 300, 3, 0.1, 64),
    ],
)
@pytest.mark.slow
def test_what_the_last_checkpoint_needs_is_never_overwritten(
    tmp_path: Path, steps: int, replay: int, num_envs: int, samples_per_step: float, batch_size: int, saved_by: str
) -> None:
    teacher = balancing()
    config = checked(
        changed(TINY, steps=steps, replay=replay, num_envs=num_envs, samples_per_step=samples_per_step,
                batch_size=batch_size, warmup=20, driver="teacher", augment=0.0)
    )  # fmt: skip
    stream = stream_of(teacher, config, tmp_path)
    # What a resumed process sees: the same files.
    other = stream_of(teacher, config, tmp_path)
    stream.examples()
    saved, forced = stream.state_dict(), 0
    while stream.control_steps < steps:
        next(stream)
        other.replay.load_state_dict(saved["replay"])  # raises if a frame that it needs is another one by now
        forced += stream.must_save and stream.control_steps < steps
        if stream.must_save or saved_by == "time":
            saved = stream.state_dict()
    if saved_by == "need":
        assert (forced > 0) == (steps > replay + 100 * num_envs), "no more than needed"


class PressesCtrlC(Silent):
    """Ctrl-C in the middle of an evaluation, once or twice."""

    def __init__(self, times: int, after: int) -> None:
        self.times, self.after = times, after
        self.games = 0

    def start(self, what: str, total: int, unit: str, *, done: int = 0) -> None:
        self.unit = unit

    def update(self, done: int, **figures: float) -> None:
        if self.unit == "games":
            self.games += 1
            if self.games == self.after:
                for _ in range(self.times):
                    os.kill(os.getpid(), signal.SIGINT)
                    time.sleep(0.01)  # the handler runs between two bytecodes


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.slow
def test_ctrl_c_during_an_evaluation_changes_nothing(tmp_path: Path, root: Path, times: int) -> None:
    distill(root / "cartpole", tmp_path / "whole", TINY)
    with pytest.raises(KeyboardInterrupt):
        distill(root / "cartpole", tmp_path / "run", TINY, progress=PressesCtrlC(times, after=2))
    assert not (tmp_path / "run" / "policy").exists()
    distill(root / "cartpole", tmp_path / "run", TINY, resume=True)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_ctrl_c_at_the_command_says_how_to_resume_and_resuming_ends_in_the_same_weights(
    tmp_path: Path, root: Path, number: signal.Signals
) -> None:
    """The command, its flags as typed, against the function."""
    config = changed(TINY, steps=4000, batch_size=16, driver="student", evaluate_every=0, checkpoint_seconds=3600)
    command = [
        sys.executable, "-m", "rldistill", "distill", "--teacher", str(root / "cartpole"), "--student", "mlp:8",
        "--steps", "4000", "--num-envs", "4", "--warmup", "80", "--batch-size", "16", "--samples-per-step", "8",
        "--evaluate-episodes", "2", "--evaluate-epsilon", "1.0", "--evaluate-every", "0",
        "--driver", "student", "--checkpoint-seconds", "3600", "--augment", "0.5", "--weight-decay", "0.1",
        "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.is_file() and metrics.read_bytes().count(b"train") > 3):
        time.sleep(0.01)
    process.send_signal(number)
    content = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert re.search(r"interrupted; continue with the same command and --resume$", content.strip())
    assert "Traceback" not in content
    assert not (tmp_path / "run" / "policy").exists()
    stopped = torch.load(tmp_path / "run" / "checkpoint" / "state", weights_only=True)["fitting"]["updates"]
    assert stopped > 0

    distill(str(root / "cartpole"), tmp_path / "run", config, resume=True)
    distill(str(root / "cartpole"), tmp_path / "whole", config)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_finished_run_is_not_done_again(tmp_path: Path, root: Path) -> None:
    distill(root / "cartpole", tmp_path / "run", TINY)
    before = files_of(tmp_path / "run")
    student = distill(root / "cartpole", tmp_path / "run", TINY, resume=True)
    assert student.path == tmp_path / "run" / "policy"
    assert files_of(tmp_path / "run") == before


# Wrong input


WRONG = [
    ({"steps": 0}, "--steps is at least 1, not 0"),
    ({"steps": -5}, "--steps is at least 1, not -5"),
    ({"share_steps": -5}, "--share-steps is at least 0, not -5"),
    ({"seed": -1}, "--seed is at least 0, not -1"),
    ({"updates": 0, "dataset": "d"}, "--updates is at least 1, not 0"),
    ({"updates": 5}, "--updates is for --dataset"),
    ({"num_envs": 0}, "--num-envs lies between 1 and 10000, not 0"),
    ({"batch_size": 0}, "--batch-size lies between 1 and 100000, not 0"),
    ({"replay": 0}, "--replay is at least 1"),
    ({"warmup": -1}, "--warmup is at least 0"),
    ({"evaluate_every": -1}, "--evaluate-every is at least 0"),
    ({"evaluate_episodes": -1}, "--evaluate-episodes is at least 0"),
    ({"checkpoint_seconds": -1.0}, "--checkpoint-seconds is at least 0"),
    ({"checkpoint_seconds": float("nan")}, "--checkpoint-seconds is at least 0"),
    ({"max_grad_norm": -1.0}, "--max-grad-norm is at least 0"),
    ({"teacher_share": 1.5}, "--teacher-share lies between 0 and 1, not 1.5"),
    ({"teacher_epsilon": -0.1}, "--teacher-epsilon lies between 0 and 1"),
    ({"epsilon": float("nan")}, "--epsilon lies between 0 and 1, not nan"),
    ({"evaluate_epsilon": 2.0}, "--evaluate-epsilon lies between 0 and 1"),
    ({"samples_per_step": 0.0}, "--samples-per-step is a positive number"),
    ({"learning_rate": float("inf")}, "--learning-rate is a positive number"),
    ({"average": 1.5}, "--average lies between 0 and 1, not 1.5"),
    ({"explore": "dropout", "dropout": 0.0}, "--explore dropout needs units to drop"),
    ({"dropout": 1.0}, "dropout is a probability below 1, not 1.0"),
    ({"student_normalization": "batch"}, "--student-normalization is one of none, layer, not 'batch'"),
    ({"temperature": "0"}, "--temperature .* not '0'"),
    ({"temperature": "hot"}, "--temperature .* not 'hot'"),
    ({"temperature": "nan"}, "--temperature .* not 'nan'"),
    ({"temperature": "auto:"}, "--temperature .* not 'auto:'"),
    ({"temperature": "auto:1"}, "--temperature .* not 'auto:1'"),
    ({"temperature": "auto:nan"}, "--temperature .* not 'auto:nan'"),
    ({"loss": "l1"}, "unknown loss 'l1'"),
    ({"student": "net9"}, "unknown network 'net9'"),
    ({"student": "net2"}, "reads images, but the observations have shape"),
    ({"driver": "nobody"}, "--driver is one of mixture, teacher, student, not 'nobody'"),
    ({"explore": "thoroughly"}, "--explore is one of greedy"),
    ({"targets": "z"}, "--targets is one of raw"),
    ({"weights": "margin"}, "--weights is one of none, gap, not 'margin'"),
    ({"optimizer": "sgd"}, "--optimizer is one of auto, adam, muon, rmsprop"),
    ({"schedule": "step"}, "--schedule is one of"),
    ({"env": "CartPole-v9"}, "unknown environment 'CartPole-v9'"),
    ({"env": "Acrobot-v1"}, "Acrobot-v1 has 3 discrete actions, the teacher 2 discrete actions"),
    ({"dataset": "no/such/folder"}, "no/such/folder"),
]


@pytest.mark.parametrize(("changes", "words"), WRONG, ids=[words for _, words in WRONG])
def test_wrong_configuration_is_refused_before_anything_is_made(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words) as refused:
        distill(balancing(), tmp_path / "run", changed(TINY, **changes))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def sick(value: float) -> SavedPolicy:
    teacher = balancing()
    with torch.no_grad():
        list(teacher.network.parameters())[-1].fill_(value)  # the head's bias
    return teacher


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_teacher_with_sick_weights_is_refused(tmp_path: Path, value: float) -> None:
    with pytest.raises(UserError, match="NaN or infinity"):
        distill(sick(value), tmp_path / "run", TINY)
    # save_policy would refuse such weights, so the folder is written by hand.
    save(tmp_path / "teacher", balancing())
    import safetensors.torch

    file, card = tmp_path / "teacher" / "weights.safetensors", tmp_path / "teacher" / "policy.json"
    file.write_bytes(safetensors.torch.save(dict(sick(value).network.state_dict())))
    content = json.loads(card.read_text())
    content["weights_sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    card.write_text(json.dumps(content | {"card_sha256": card_checksum(content)}))
    with pytest.raises(UserError, match="NaN or infinity"):
        distill(tmp_path / "teacher", tmp_path / "run", TINY)
    assert not (tmp_path / "run").exists()


def teacher_of(task: Task) -> SavedPolicy:
    network: Network = build(Architecture("mlp:4", task.observation_shape, task.num_actions), 0)
    return SavedPolicy(network.eval().requires_grad_(False), task)


def test_teacher_that_does_not_fit_its_environment_is_refused_with_both_numbers(tmp_path: Path) -> None:
    three_actions = teacher_of(replace(CARTPOLE, num_actions=3))
    five_features = teacher_of(replace(CARTPOLE, observation_shape=(5,)))
    acrobot = teacher_of(make_task("Acrobot-v1"))
    for teacher, env, words in (
        (three_actions, None, "CartPole-v1 has 2 discrete actions here, the policy's task says 3 discrete actions"),
        (
            three_actions,
            "CartPole-v1",
            "CartPole-v1 has 2 discrete actions here, the policy's task says 3 discrete actions",
        ),
        (five_features, None, r"shape \(4,\) here, the policy's task says \(5,\)"),
        (three_actions, "Acrobot-v1", r"observations of shape \(6,\), the teacher \(4,\)"),
        (acrobot, "MountainCar-v0", r"MountainCar-v0 has observations of shape \(2,\), the teacher \(6,\)"),
    ):
        with pytest.raises(UserError, match=words):
            distill(teacher, tmp_path / "run", changed(TINY, env=env))
        assert not (tmp_path / "run").exists()


def test_callable_that_says_another_number_of_values_is_refused(tmp_path: Path) -> None:
    class Generous:
        task = CARTPOLE
        score_kind: ScoreKind = "q_values"

        def __call__(self, observations: Tensor) -> Tensor:
            return torch.arange(3.0).repeat(len(observations), 1)

    with pytest.raises(UserError, match=r"values of shape \(1, 3\); 2 discrete actions need 2 \(q_values\)"):
        distill(Generous(), tmp_path / "run", TINY)
    assert not (tmp_path / "run").exists()


def test_dataset_of_another_task_or_kind_of_scores_is_refused(tmp_path: Path, root: Path) -> None:
    config = changed(TINY, dataset=str(root / "cartpole-data"), updates=5)
    with pytest.raises(UserError, match=r"has 2 discrete actions, the teacher 3 discrete actions"):
        distill(teacher_of(make_task("Acrobot-v1")), tmp_path / "run", config)
    with pytest.raises(UserError, match="holds q_values, the teacher gives logits"):
        distill(balancing("logits"), tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


def test_dataset_of_another_game_of_the_same_shape_is_refused_unless_it_is_accepted(tmp_path: Path, root: Path) -> None:
    """As Pong and Q*bert, whose screens and numbers of actions are alike."""
    gymnasium.register(
        "Pole-v0", entry_point="gymnasium.envs.classic_control.cartpole:CartPoleEnv", max_episode_steps=20
    )
    config = changed(TINY, dataset=str(root / "cartpole-data"), updates=5)
    lines: list[str] = []

    class Recorder(Silent):
        def say(self, line: str) -> None:
            lines.append(line)

    try:
        teacher = balancing()
        elsewhere = SavedPolicy(teacher.network, replace(teacher.task, env="Pole-v0"))
        with pytest.raises(
            UserError, match="was recorded in CartPole-v1, the student plays Pole-v0 .--accept-mismatch"
        ):
            distill(elsewhere, tmp_path / "run", config)
        assert not (tmp_path / "run").exists()
        accepted = TeacherOptions(accept_mismatch=True)
        distill(elsewhere, tmp_path / "run", config, options=accepted, progress=Recorder())
        assert any(line.startswith("warning: the dataset") for line in lines)
    finally:
        del gymnasium.registry["Pole-v0"]


def test_existing_folder_is_left_alone_without_resume(tmp_path: Path, root: Path) -> None:
    distill(root / "cartpole", tmp_path / "run", TINY)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    for name, resume, words in (
        ("run", False, "exists: continue it with --resume, or choose another --out"),
        ("mine", False, "is no run folder"),
        ("mine", True, "is no run folder"),
    ):
        before = files_of(tmp_path / name)
        with pytest.raises(UserError, match=words):
            distill(root / "cartpole", tmp_path / name, changed(TINY, seed=5), resume=resume)
        assert files_of(tmp_path / name) == before


@pytest.fixture
def stopped(tmp_path: Path, root: Path) -> Path:
    """A run that was interrupted after its first evaluation began."""
    with pytest.raises(KeyboardInterrupt):
        distill(root / "cartpole", tmp_path / "run", TINY, progress=PressesCtrlC(1, after=3))
    return tmp_path / "run"


def test_resuming_with_another_configuration_names_the_field(stopped: Path, root: Path) -> None:
    before = files_of(stopped)
    for changes, words in (
        ({"seed": 3}, r"was begun with seed = 0, not 3"),
        ({"steps": 800}, r"was begun with steps = 400, not 800"),
        ({"loss": "nll"}, r'was begun with loss = "auto", not "nll"'),
        ({"student": "mlp:9"}, r'was begun with student = "mlp:8", not "mlp:9"'),
        ({"learning_rate": 0.5}, r"was begun with learning_rate = .*, not 0.5"),
    ):
        with pytest.raises(UserError, match=words):
            distill(root / "cartpole", stopped, changed(TINY, **changes), resume=True)
    with pytest.raises(UserError, match=r"was begun with teacher = "):
        distill(root / "cartpole" / ".." / "cartpole", stopped, TINY, resume=True)
    kept = root / "kept"
    (root / "cartpole").rename(kept)
    try:  # another policy under the same name
        save_policy(root / "cartpole", build(Architecture("mlp:8", (4,), 2), 99), load_policy(kept).task, {})
        with pytest.raises(UserError, match=r"was begun with teacher_sha256 = "):
            distill(root / "cartpole", stopped, TINY, resume=True)
    finally:
        shutil.rmtree(root / "cartpole")
        kept.rename(root / "cartpole")
    assert files_of(stopped) == before
    distill(root / "cartpole", stopped, changed(TINY, checkpoint_seconds=1.0), resume=True)  # this one may change


@pytest.mark.parametrize("damage", ["empty", "cut", "bit"])
@pytest.mark.parametrize("file", ["state", "replay-frames", "replay-values"])
def test_damaged_checkpoint_is_refused_and_left_as_it_is(stopped: Path, root: Path, file: str, damage: str) -> None:
    path = stopped / "checkpoint" / file
    data = path.read_bytes()
    middle = 500 if file.startswith("replay") else len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]
    path.write_bytes({"empty": b"", "cut": data[:middle], "bit": flipped}[damage])
    state = (stopped / "checkpoint" / "state").read_bytes()
    with pytest.raises(UserError, match="damaged"):
        distill(root / "cartpole", stopped, TINY, resume=True)
    assert (stopped / "checkpoint" / "state").read_bytes() == state
    assert not (stopped / "policy").exists()


# Settings


def test_preset_has_the_papers_settings() -> None:
    """Rusu et al. 2015, arXiv 1511.06295, appendix A: 10,000 minibatches for each hour, 54,000 control steps."""
    paper = checked(DistillConfig.of(preset="rusu2015", steps=1_000_000))
    matching, driving, batches, moved = paper.matching, paper.driving, paper.batches, paper.optimization
    assert (matching.loss, matching.temperature, matching.targets) == ("kl", "0.01", "raw")
    assert (driving.driver, driving.teacher_epsilon, batches.replay) == ("teacher", 0.05, 540_000)
    assert batches.samples_per_step / batches.batch_size * 54_000 == pytest.approx(10_000)
    assert (moved.optimizer, moved.schedule, moved.learning_rate) == ("rmsprop", "constant", 5e-4)
    assert (moved.average, moved.standardize) == (0.0, False)
    assert paper.steps == 1_000_000


def test_a_setting_that_is_given_counts_whatever_the_preset_says() -> None:
    assert DistillConfig.of(preset="rusu2015", temperature="1").matching.temperature == "1"
    assert DistillConfig.of(preset="rusu2015", temperature="auto").matching.temperature == "auto", "the default, given"
    assert DistillConfig.of(preset="rusu2015").matching.temperature == "0.01"


def test_unknown_presets_and_settings_are_refused() -> None:
    with pytest.raises(UserError, match="rusu2016"):
        DistillConfig.of(preset="rusu2016")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="learning_rate"):
        DistillConfig.of(learning_rat=1.0)


def test_preset_of_the_paper_runs(tmp_path: Path, root: Path) -> None:
    config = DistillConfig.of(
        preset="rusu2015", student="mlp:8", steps=300, num_envs=4, warmup=50, evaluate_episodes=1, evaluate_every=0
    )
    student = distill(root / "cartpole", tmp_path / "run", config)
    assert student.provenance["temperature"] == 0.01
    assert student.provenance["student_steps"] == 0


@pytest.mark.parametrize("steps", [17, 40, 100, 3_000, 50_000])
def test_resolved_configuration_leaves_time_to_learn(steps: int) -> None:
    config = checked(DistillConfig.of(steps=steps))
    assert config.driving.share_steps is not None
    assert config.driving.share_steps <= steps
    assert config.batches.warmup <= steps / 2
    assert 1 <= config.batches.replay <= steps
    assert checked(config) == config, "what is resolved stays as it is"


def test_shortest_run_ends(tmp_path: Path, root: Path) -> None:
    config = DistillConfig.of(student="mlp:4", steps=3, num_envs=2, evaluate_episodes=1)
    assert distill(root / "cartpole", tmp_path / "run", config).task == CARTPOLE
    updates = [record["updates"] for record in read_metrics(tmp_path / "run") if record["event"] == "evaluation"]
    assert updates == [2]  # the first of two steps of both rows is warm-up; the second pays for 2 * 64 samples


def test_run_too_short_for_one_update_is_refused() -> None:
    with pytest.raises(UserError, match="--steps 2 leaves none for learning"):
        checked(DistillConfig.of(steps=2, num_envs=2))


def test_run_without_room_for_its_replay_leaves_no_folder(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match="lower --replay"):
        distill(root / "cartpole", tmp_path / "run", DistillConfig.of(student="mlp:4", steps=300, num_envs=2))
    assert not (tmp_path / "run").exists()


# Continuous actions, and several at once


PENDULUM = make_task("Pendulum-v1")
SWING = DistillConfig.of(
    student="mlp:16", steps=3000, num_envs=10, warmup=200, evaluate_every=0, evaluate_episodes=1, learning_rate=1e-2
)


def braking(kind: ScoreKind = "gaussian") -> SavedPolicy:
    """A Pendulum teacher made by hand: a torque linear in (cos, sin, speed), means within about 2."""
    network = build(Architecture("mlp:2", PENDULUM.observation_shape, 1 if kind == "actions" else 2), 0, kind)
    hidden, head = network.layers[1], network.layers[3]
    assert isinstance(hidden, torch.nn.Linear)
    assert isinstance(head, torch.nn.Linear)
    law = torch.tensor([0.3, -1.0, -0.3])
    with torch.no_grad():
        hidden.weight.copy_(torch.stack([law, -law]))
        hidden.bias.zero_()
        head.weight.zero_()
        head.weight[0] = torch.tensor([1.0, -1.0])
        head.bias.copy_(torch.tensor([0.0, -1.0][: len(head.bias)]))
    return SavedPolicy(network.eval().requires_grad_(False), PENDULUM)


def agreement_with(teacher: SavedPolicy, student: SavedPolicy) -> float:
    """On the states that the student visits."""
    return evaluate([teacher, student], EvaluateConfig(episodes=5, num_envs=5, seed=3))[1].agreement


@pytest.mark.parametrize(
    ("kind", "loss", "becomes"),
    [
        ("gaussian", "auto", "gaussian"),
        ("squashed_gaussian", "auto", "squashed_gaussian"),
        ("gaussian", "kl_gaussian_reverse", "gaussian"),
        ("actions", "auto", "actions"),
        ("gaussian", "mse_mean", "actions"),
        ("squashed_gaussian", "huber", "actions"),
        ("actions", "huber:1,mse_mean:0.5", "actions"),
    ],
)
@pytest.mark.slow
def test_student_of_continuous_actions_does_what_its_teacher_does(
    tmp_path: Path, kind: ScoreKind, loss: str, becomes: ScoreKind
) -> None:
    teacher = braking(kind)
    student = distill(teacher, tmp_path / "run", changed(SWING, loss=loss))
    assert student.score_kind == becomes
    assert student.provenance["temperature"] == 1
    assert agreement_with(teacher, student) > 0.95
    fresh = build(student.network.architecture, 1, becomes).eval()
    assert agreement_with(teacher, SavedPolicy(fresh, PENDULUM)) < 0.9
    if becomes == kind != "actions":
        visited = braked()
        deviations = student(visited)[:, 1].clamp(-5, 2)
        assert (deviations + 1).abs().mean() < 0.2, "the teacher's log standard deviation is -1"


def braked() -> Tensor:
    """What a braked pendulum is seen to do, from ten starts."""
    visited: list[np.ndarray] = []
    policy = braking("actions")
    play(
        PENDULUM,
        lambda generator: EpsilonGreedy(policy, PENDULUM, 0.0, generator),
        10,
        5,
        num_envs=10,
        on_step=lambda transition: visited.append(transition.observations),
    )
    return torch.from_numpy(np.concatenate(visited))


@pytest.mark.parametrize(
    "changes",
    [
        {"driver": "teacher"},
        {"driver": "student", "explore": "greedy"},
        {"driver": "student", "explore": "epsilon", "epsilon": 0.3},
        {"driver": "student", "explore": "dropout", "dropout": 0.1},
        {"driver": "mixture", "teacher_share": 0.25, "share_steps": 1000},
        {"driver": "mixture", "explore": "boltzmann"},
        {"driver": "student", "explore": "boltzmann", "augment": 0.0, "env": "Pendulum-v1"},
    ],
    ids=lambda changes: "-".join(str(value) for value in changes.values()),
)
@pytest.mark.slow
def test_every_driver_and_exploration_teaches_continuous_actions(tmp_path: Path, changes: dict[str, Any]) -> None:
    teacher = braking()
    student = distill(teacher, tmp_path / "run", changed(SWING, **changes))
    assert agreement_with(teacher, student) > 0.95


@pytest.mark.parametrize("kind", ["gaussian", "actions"])
@pytest.mark.slow
def test_dataset_of_continuous_actions_is_distilled(tmp_path: Path, kind: ScoreKind) -> None:
    teacher = braking(kind)
    save(tmp_path / "teacher", teacher)
    record(tmp_path / "teacher", tmp_path / "data", RecordConfig(steps=3000, num_envs=10, epsilon=0.3))
    config = changed(SWING, dataset=str(tmp_path / "data"), updates=400)
    student = distill(tmp_path / "teacher", tmp_path / "run", config)
    assert agreement_with(teacher, student) > 0.95
    other = SavedPolicy(teacher.network, replace(PENDULUM, action_high=(3.0,)))
    with pytest.raises(UserError, match=r"dataset .* dimension \(-2 to 2\), the teacher .* dimension \(-2 to 3\)"):
        distill(other, tmp_path / "other", config)
    wrong: ScoreKind = "actions" if kind == "gaussian" else "gaussian"
    with pytest.raises(UserError, match=f"holds {kind}, the teacher gives {wrong}"):
        distill(braking(wrong), tmp_path / "other", config)


@pytest.mark.slow
def test_same_command_gives_the_same_weights_on_pendulum(tmp_path: Path) -> None:
    for name in ("a", "b"):
        distill(braking("squashed_gaussian"), tmp_path / name, changed(SWING, steps=600, explore="boltzmann"))
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


@pytest.mark.slow
def test_stopped_pendulum_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    teacher = save(tmp_path / "teacher", braking())
    config = changed(SWING, steps=800, evaluate_every=200, explore="boltzmann")
    distill(teacher, tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        distill(teacher, tmp_path / "run", config, progress=PressesCtrlC(1, after=3))
    assert (tmp_path / "run" / "checkpoint" / "state").is_file()
    distill(teacher, tmp_path / "run", config, resume=True)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


class PullsTheRightLevers:
    """Says of each lever of `Levers` where it pays; as a policy in memory."""

    score_kind: ScoreKind = "logits"

    def __init__(self, task: Task) -> None:
        self.task = task

    def __call__(self, observations: Tensor) -> Tensor:
        door, wind = observations[:, 1:4], observations[:, 4:5]
        return torch.cat([-5 * wind, 5 * wind, 5 * door], dim=1)


@pytest.mark.parametrize("changes", [{}, {"loss": "nll:1,mse_prob:1"}, {"weights": "gap", "loss": "js"}])
@pytest.mark.slow
def test_student_of_several_actions_at_once_pulls_the_right_levers(
    tmp_path: Path, levers: str, changes: dict[str, Any]
) -> None:
    teacher = PullsTheRightLevers(make_task(levers))
    student = distill(teacher, tmp_path / "run", changed(SWING, explore="boltzmann", **changes))
    assert student.score_kind == "logits"
    assert load_policy(tmp_path / "run").task == teacher.task
    games = play(teacher.task, lambda generator: EpsilonGreedy(student, teacher.task, 0.0, generator), 20, 9)
    assert games.returns.mean() > 19, "of 20 points a game; random play gets 8.3"


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("gaussian", {"loss": "kl"}, "the loss kl does not suit a teacher of gaussian"),
        ("actions", {"loss": "kl_gaussian"}, "the loss kl_gaussian does not suit a teacher of actions"),
        ("gaussian", {"loss": "kl_gaussian:1,huber:1"}, "they cannot be added"),
        ("gaussian", {"targets": "standardized"}, "--targets standardized is for scores of discrete actions"),
        ("actions", {"targets": "advantage"}, "--targets advantage is for scores of discrete actions"),
        ("gaussian", {"temperature": "0.01"}, "--temperature 0.01 is for scores of discrete actions"),
        ("actions", {"weights": "gap"}, "--weights gap is for scores of discrete actions"),
        ("gaussian", {"explore": "boltzmann", "loss": "mse_mean"}, "--explore boltzmann draws from a Gaussian"),
        ("actions", {"explore": "boltzmann"}, "--explore boltzmann draws from a Gaussian"),
        ("gaussian", {"env": "CartPole-v1"}, "has 2 discrete actions, the teacher continuous actions of 1 dimension "),
        (
            "gaussian",
            {"env": "MountainCarContinuous-v0"},
            r"of 1 dimension \(-1 to 1\), the teacher .* of 1 dimension \(-2 to 2\)",
        ),
    ],
)
def test_what_makes_no_sense_for_continuous_actions_is_refused(
    tmp_path: Path, kind: ScoreKind, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words) as refusal:
        distill(braking(kind), tmp_path / "run", changed(SWING, **changes))
    assert len(str(refusal.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_scores_that_do_not_suit_the_actions_are_refused(tmp_path: Path, levers: str) -> None:
    class Values(PullsTheRightLevers):
        score_kind: ScoreKind = "q_values"

    with pytest.raises(UserError, match="which q_values scores do not suit"):
        distill(Values(make_task(levers)), tmp_path / "run", SWING)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_student_matched_with_logits_by_mse_has_logits(tmp_path: Path, levers: str) -> None:
    made = distill(PullsTheRightLevers(make_task(levers)), tmp_path / "run", changed(SWING, loss="mse"))
    assert made.score_kind == "logits"


# A student that sees part of what its teacher sees


@pytest.mark.parametrize(
    ("parts", "reads", "parameters"),
    [
        (("door",), (1, 2, 3), 3 * 8 + 8 + 8 * 5 + 5),
        (("wind", "door"), (4, 5, 1, 2, 3), 5 * 8 + 8 + 8 * 5 + 5),
        ((), (), 6 * 8 + 8 + 8 * 5 + 5),
    ],
)
@pytest.mark.slow
def test_student_reads_only_the_parts_that_it_is_shown(
    tmp_path: Path, levers: str, parts: tuple[str, ...], reads: tuple[int, ...], parameters: int
) -> None:
    """Flattened, the observation is age, door (3) and wind (2)."""
    config = changed(SWING, student="mlp:8", steps=400, student_observation=parts)
    student = distill(PullsTheRightLevers(make_task(levers)), tmp_path / "run", config)
    assert student.network.architecture.reads == reads
    assert student.network.shift.shape == (len(reads) or 6,)
    assert parameter_count(student.network) == parameters
    assert student.task.observation_shape == (6,), "it is still given all of it"
    observations = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    for feature in range(6):
        altered = observations.clone()
        altered[:, feature] += 3
        same = torch.equal(student(altered), student(observations))
        assert same == (bool(reads) and feature not in reads), feature
    again = load_policy(tmp_path / "run")
    assert again.network.architecture == student.network.architecture
    assert torch.equal(again(observations), student(observations))


@pytest.mark.slow
def test_student_of_a_privileged_teacher_learns_what_it_can_see(tmp_path: Path, levers: str) -> None:
    """Half of the wind's ten points come by chance; all ten of the door's are there for who sees it."""
    teacher = PullsTheRightLevers(make_task(levers))
    means = {}
    for parts in (("door",), ("wind", "door")):
        out = tmp_path / "-".join(parts)
        student = distill(teacher, out, changed(SWING, student_observation=parts))
        explorer = partial(EpsilonGreedy, student, teacher.task, 0.0)
        means[parts] = play(teacher.task, explorer, 40, 9).returns.mean()
    assert 13.5 < means["door",] < 16.5
    assert means["wind", "door"] > 19


@pytest.mark.slow
def test_student_of_part_of_the_observation_can_be_resumed_and_be_the_next_teacher(tmp_path: Path, levers: str) -> None:
    teacher = PullsTheRightLevers(make_task(levers))
    config = changed(SWING, steps=800, evaluate_every=200, student_observation=("wind", "door"))
    distill(teacher, tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        distill(teacher, tmp_path / "run", config, progress=PressesCtrlC(1, after=3))
    assert (tmp_path / "run" / "checkpoint" / "state").is_file()
    distill(teacher, tmp_path / "run", config, resume=True)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    with pytest.raises(UserError, match="begun with student_observation"):
        distill(teacher, tmp_path / "run", changed(config, student_observation=("wind",)), resume=True)
    second = distill(tmp_path / "run", tmp_path / "second", changed(config, student_observation=("door",)))
    assert second.network.architecture.reads == (1, 2, 3)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (("window",), "the observations of Levers-v0 have no part 'window': they have age, door, wind"),
        (("door", "wind", "door"), "a part of the observation is named twice: door, wind, door"),
    ],
)
def test_parts_that_cannot_be_shown_are_refused(
    tmp_path: Path, levers: str, parts: tuple[str, ...], words: str
) -> None:
    with pytest.raises(UserError, match=words) as refusal:
        distill(PullsTheRightLevers(make_task(levers)), tmp_path / "run", changed(SWING, student_observation=parts))
    assert len(str(refusal.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_observations_without_named_parts_are_not_shown_in_part(tmp_path: Path, root: Path) -> None:
    with pytest.raises(
        UserError, match="the observations of CartPole-v1 have no part 'pole': they have no named parts"
    ):
        distill(root / "cartpole", tmp_path / "run", changed(TINY, student_observation=("pole",)))
    assert not (tmp_path / "run").exists()
