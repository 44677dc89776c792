"""Teachers with noise on their values: `noisy:SIGMA:REF`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from foreign_files import acting_zip, balancing_zip
from rldistill.cli import main
from rldistill.configurations import changed
from rldistill.play.envs import make_task
from rldistill.policies import SavedPolicy, save_policy
from rldistill.runs.studies.cells import CellFolder
from rldistill.runs.studies.plan import read_plan
from rldistill.students.heads import Head, build_heads
from rldistill.students.networks import Architecture, build
from rldistill.teachers import NoisyTeacher, TeacherOptions, load_policy, load_teacher
from rldistill.teachers.noise import Noise
from rldistill.types import Task, UserError
from rldistill.verbs.distill import distill
from rldistill.verbs.evaluate import EvaluateConfig, evaluate
from rldistill.verbs.record import RecordConfig, record
from rldistill.verbs.report import ReportConfig, report
from rldistill.verbs.study import StudyConfig, study, study_status
from test_distillation import CARTPOLE, TINY, PressesCtrlC, balancing, save, weights
from test_studies import compute

GRID = Task("MinAtar/Breakout-v1", 3, (4, 10, 10))


def constant(values: list[float], task: Task = CARTPOLE) -> SavedPolicy:
    """A policy with the same values in every state."""
    name = "mlp:2" if len(task.observation_shape) == 1 else "cnn:2:2"
    network = build(Architecture(name, task.observation_shape, len(values)), 0)
    state = {name: torch.zeros_like(tensor) for name, tensor in network.state_dict().items()}
    state[next(name for name in reversed(state) if name.endswith("bias"))] = torch.tensor(values)
    network.load_state_dict(state)
    return SavedPolicy(network.eval().requires_grad_(False), task)


def noise_of(observations: Tensor, *, seed: int = 0, sigma: float = 1.0, policy: SavedPolicy | None = None) -> Any:
    """(B, 3): what is added to the values of a policy of Breakout."""
    plain = policy or constant([0.0, 0.0, 0.0], GRID)
    return (NoisyTeacher.of(plain, Noise(sigma, False, seed))(observations) - plain(observations)).numpy()


def grids(number: int, seed: int = 0) -> Tensor:
    generator = np.random.default_rng(seed)
    return torch.from_numpy(generator.integers(0, 2, size=(number, 4, 10, 10), dtype=np.uint8))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("teachers")
    save(root / "cartpole", balancing())
    return root


# The noise


def test_a_state_has_the_same_noise_in_every_batch_and_place() -> None:
    observations = grids(300)
    noise = noise_of(observations)
    order = np.random.default_rng(1).permutation(300)
    assert (noise_of(observations[torch.from_numpy(order)]) == noise[order]).all()
    assert (np.concatenate([noise_of(row[None]) for row in observations[:20]]) == noise[:20]).all()
    backwards = torch.flip(torch.flip(observations, (3,)).contiguous(), (3,))  # another layout of the same numbers
    assert (noise_of(backwards.permute(1, 0, 2, 3).contiguous().permute(1, 0, 2, 3)) == noise).all()


def test_the_noise_is_gaussian_and_independent_of_action_and_state() -> None:
    noise = noise_of(grids(20_000), sigma=2.0) / 2
    assert noise.mean() == pytest.approx(0, abs=0.02)
    assert np.cov(noise.T) == pytest.approx(np.eye(3), abs=0.04)
    shares = [(np.abs(noise) < limit).mean() for limit in (0.6745, 1.6449, 2.5758)]  # of a normal distribution
    assert shares == pytest.approx([0.5, 0.9, 0.99], abs=0.01)
    assert np.corrcoef(noise[1:, 0], noise[:-1, 0])[0, 1] == pytest.approx(0, abs=0.03)


def test_states_that_differ_in_one_or_two_cells_have_unrelated_noise() -> None:
    """In grids of zeros and ones most bits are 0, and neighbours differ in the same bit of several bytes."""
    cells = torch.eye(400, dtype=torch.uint8)
    pairs = cells[:150, None] | cells[None, :150]
    noise = noise_of(pairs[torch.triu_indices(150, 150).unbind()].reshape(-1, 4, 10, 10))
    assert len(np.unique(noise, axis=0)) == 150 * 151 // 2
    single = noise_of(cells.reshape(-1, 4, 10, 10))
    assert abs(np.corrcoef(single[1:].ravel(), single[:-1].ravel())[0, 1]) < 0.1


@pytest.mark.parametrize("shape", [(4, 84, 84), (3, 5, 5), (5,), ()])
def test_observations_of_any_size_have_noise(shape: tuple[int, ...]) -> None:
    """Also where their bytes are no multiple of four; a change in the last byte counts."""
    task = Task("MinAtar/Breakout-v1", 2, shape)
    teacher = NoisyTeacher(constant([0.0, 0.0]), Noise(1.0, False, 0), task)
    object.__setattr__(teacher, "teacher", _Zeros())
    observations = torch.zeros((3, *shape), dtype=torch.uint8)
    observations[2].view(-1)[-1] = 1
    first, same, other = teacher(observations)
    assert (first == same).all()
    assert (first != other).all()


class _Zeros:
    """A teacher of anything."""

    sha256 = "none"

    def __call__(self, observations: Tensor) -> Tensor:
        return torch.zeros((len(observations), 2))


def test_teachers_differ_in_their_noise_by_seed_sigma_and_policy() -> None:
    observations = grids(2000)
    noises = [
        noise_of(observations),
        noise_of(observations, seed=1),
        noise_of(observations, sigma=2.0) / 2,
        noise_of(observations, policy=constant([1.0, 0.0, 0.0], GRID)),
    ]
    related = np.corrcoef([noise.ravel() for noise in noises])
    assert related == pytest.approx(np.eye(4), abs=0.06)
    checksums = {NoisyTeacher.of(constant([1.0, 0.0]), Noise(1.0, s, n)).sha256 for s in (True, False) for n in (0, 1)}
    assert len(checksums) == 4


def test_units_of_the_spread_are_the_standard_deviation_of_the_advantages(tmp_path: Path) -> None:
    """Values 5 and 1 in all states: advantages 2 and -2."""
    save(tmp_path / "two", constant([5.0, 1.0]))
    for sigma, expected in (("3s", 6.0), ("3", 3.0), ("0s", 0.0), ("1e-1s", 0.2)):
        teacher = load_teacher(f"noisy:{sigma}:{tmp_path / 'two'}")
        assert isinstance(teacher, NoisyTeacher)
        assert teacher.sigma == pytest.approx(expected)
    observations = torch.randn((500, 4))
    noise = load_teacher(f"noisy:3s:{tmp_path / 'two'}")(observations) - torch.tensor([5.0, 1.0])
    assert float(noise.std()) == pytest.approx(6, rel=0.1)
    assert (load_teacher(f"noisy:0:{tmp_path / 'two'}")(observations) == torch.tensor([5.0, 1.0])).all()


def test_the_spread_is_measured_over_the_teachers_own_play(root: Path) -> None:
    """Of a pole that is balanced the values are close to each other: random states have a spread many times as large."""
    one, again = (load_teacher(f"noisy:1s:{root / 'cartpole'}") for _ in range(2))
    assert isinstance(one, NoisyTeacher)
    assert isinstance(again, NoisyTeacher)
    assert 0 < one.sigma == again.sigma < 0.2
    far = load_teacher(root / "cartpole")(torch.randn((500, 4)))
    assert float((far - far.mean(dim=1, keepdim=True)).square().mean().sqrt()) > 2 * one.sigma


# References


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("noisy:", "names no teacher"),
        ("noisy:1", "names no teacher"),
        ("noisy:1s:", "names no teacher"),
        ("noisy:policies/pong:", "names no teacher"),
        ("noisy:loud:POLICY", "'loud' is no number"),
        ("noisy:s:POLICY", "'s' is no number"),
        ("noisy::POLICY", "'' is no number"),
        ("noisy:-1:POLICY", "from 0 to"),
        ("noisy:-0.5s:POLICY", "from 0 to"),
        ("noisy:nan:POLICY", "from 0 to"),
        ("noisy:1e308:POLICY", "from 0 to"),
        ("noisy:1,seed=-1:POLICY", "seed"),
        ("noisy:1,seed=x:POLICY", "seed"),
        ("noisy:1,sed=1:POLICY", "did you mean seed"),
        ("noisy:1:noisy:1:POLICY", "twice"),
        ("noisy:1:nowhere", "nowhere"),
        ("noisy:1:POLICY#Pong-v5", "Pong-v5"),
    ],
)
def test_a_wrong_reference_is_refused(root: Path, reference: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_teacher(reference.replace("POLICY", str(root / "cartpole")))


def test_continuous_actions_have_no_noise(tmp_path: Path) -> None:
    box = spaces.Box(-1, 1, (3,), np.float32)
    file = acting_zip(tmp_path / "ppo-Pendulum-v1.zip", box, spaces.Box(-2, 2, (1,), np.float32))
    with pytest.raises(UserError, match="discrete actions"):
        load_teacher(f"noisy:0.1:{file}")


def test_a_file_of_another_tool_keeps_its_remarks_and_options(tmp_path: Path) -> None:
    file = balancing_zip(tmp_path / "ppo-CartPole-v1.zip")
    noisy, plain = load_teacher(f"noisy:0.5:{file}"), load_teacher(file)
    observations = torch.randn((100, 4))
    assert float((noisy(observations) - plain(observations)).std()) == pytest.approx(0.5, rel=0.2)
    assert noisy.network.state_dict().keys() == plain.network.state_dict().keys()
    with pytest.raises(UserError, match="pixels"):
        load_teacher(f"noisy:0.5:{file}", options=TeacherOptions(pixels="unit"))


def test_a_policy_with_noise_is_no_file(root: Path, tmp_path: Path) -> None:
    reference = f"noisy:1:{root / 'cartpole'}"
    with pytest.raises(UserError, match=f"name {root / 'cartpole'}"):
        load_policy(reference)
    options = {
        "export": ["--format", "torchscript"],
        "push": ["--repo", "owner/name", "--dry-run"],
        "split": ["--task", "CartPole-v1"],
    }
    for verb, more in options.items():
        status, said = command(verb, reference, "--out", str(tmp_path / "out"), *more)
        assert status == 2
        assert "which no file holds" in said
        assert not (tmp_path / "out").exists()


# Verbs


def command(*arguments: str) -> tuple[int, str]:
    """Status and standard error of a command."""
    import contextlib
    import io

    said = io.StringIO()
    before, sys.argv = sys.argv, ["rldistill", *arguments]
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            main()
        return 0, said.getvalue()
    except SystemExit as end:
        return int(end.code or 0), said.getvalue()
    finally:
        sys.argv = before


def test_a_killed_run_is_resumed_with_the_same_labels(root: Path, tmp_path: Path) -> None:
    teacher = f"noisy:2s:{root / 'cartpole'}"
    config = changed(TINY, driver="mixture")
    distill(teacher, tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        distill(teacher, tmp_path / "run", config, progress=PressesCtrlC(1, after=4))
    distill(teacher, tmp_path / "run", config, resume=True)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    with pytest.raises(UserError, match="teacher"):
        distill(f"noisy:1s:{root / 'cartpole'}", tmp_path / "run", config, resume=True)


def test_a_recording_has_the_labels_that_a_student_learns_from(root: Path, tmp_path: Path) -> None:
    teacher = f"noisy:1,seed=3:{root / 'cartpole'}"
    data = record(teacher, tmp_path / "data", RecordConfig(steps=60, num_envs=3))
    loaded = load_teacher(teacher)
    for index in range(len(data.shards)):
        rows = data.read(index)
        observations = torch.from_numpy(rows.frames.reshape(-1, 4).copy())
        assert rows.values.reshape(-1, 2) == pytest.approx(loaded(observations).numpy(), abs=1e-6)
    config = changed(TINY, dataset=str(tmp_path / "data"), updates=5)
    distill(teacher, tmp_path / "run", config)
    with pytest.raises(UserError, match="teacher"):  # whose labels these are not
        distill(root / "cartpole", tmp_path / "plain", config)


def test_noise_lowers_the_score_and_repeats_it(root: Path) -> None:
    references = [str(root / "cartpole"), f"noisy:1s:{root / 'cartpole'}", f"noisy:50s:{root / 'cartpole'}"]
    config = EvaluateConfig(episodes=10, epsilon=0.0, num_envs=10)
    scores = evaluate(references, config)
    assert [score.policy for score in scores] == references
    assert len({score.weights_sha256 for score in scores}) == 3
    assert scores[0].mean > scores[1].mean > scores[2].mean
    assert scores[2].mean < 60  # little is left but chance
    assert evaluate(references, config)[1].returns == scores[1].returns


def test_a_report_compares_the_student_with_the_teacher_that_it_had(root: Path, tmp_path: Path) -> None:
    distill(f"noisy:1s:{root / 'cartpole'}", tmp_path / "run", TINY)
    page = report(tmp_path / "run", config=ReportConfig(episodes=2, seconds=1)).read_text()
    assert "with noise 1s" in page


def test_inspect_says_how_much_noise_there_is(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rldistill import inspect

    facts = inspect(f"noisy:0.25,seed=7:{root / 'cartpole'}")
    assert "0.25" in facts["noise"]
    assert "7" in facts["noise"]
    assert facts["environment"] == "CartPole-v1"


STUDY = """
[study]
teachers = ["POLICY", "noisy:1s:POLICY", "noisy:2s:POLICY"]
seeds = 1
[settings]
steps = 200
warmup = 100
evaluate_episodes = 0
[axes]
loss = ["kl"]
[games]
episodes = 2
"""


def test_a_study_has_teachers_with_noise_beside_those_without(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "noise.toml"
    file.write_text(STUDY.replace("POLICY", str(root / "cartpole")))
    out = tmp_path / "out"
    study(file, out, StudyConfig(jobs=0))
    plan = read_plan(out)
    levels = [cell for cell in plan.cells if cell.verb == "play"]
    assert [cell.policy.partition("/")[0] for cell in levels] == ["", "noisy:1s:", "noisy:2s:"]
    assert all(words in cell.name for cell, words in zip(levels[1:], ("noisy_1s", "noisy_2s"), strict=True))
    compute(out)
    assert study_status(out).failed == {}
    assert {len(CellFolder(out, cell).result()["returns"]) for cell in plan.cells} == {2}
    file.write_text(STUDY.replace("POLICY", str(root / "cartpole")).replace("1s", "-1s"))
    with pytest.raises(UserError, match="line 3: .* from 0 to"):
        study(file, out, StudyConfig(jobs=0))


def test_a_head_of_a_policy_of_several_tasks_has_noise(tmp_path: Path) -> None:
    tasks = {task.env: task for task in (CARTPOLE, make_task("Acrobot-v1"))}
    heads = {name: Head(task.observation_shape, task.num_actions, "q_values") for name, task in tasks.items()}
    save_policy(tmp_path / "two", build_heads("mlp:4+4", heads, 0), tasks, {})
    teacher = load_teacher(f"noisy:0.5:{tmp_path / 'two'}#Acrobot-v1")
    assert teacher.task.env == "Acrobot-v1"
    observations = torch.randn((400, 6))
    noise = teacher(observations) - load_teacher(f"{tmp_path / 'two'}#Acrobot-v1")(observations)
    assert float(noise.std()) == pytest.approx(0.5, rel=0.1)
    with pytest.raises(UserError, match="plays 2 tasks"):
        load_teacher(f"noisy:0.5:{tmp_path / 'two'}")
