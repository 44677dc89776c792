"""`benchmarks/peers.py`: both sides of the comparison get the same budget, and it is what a distillation spends."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from rldistill.play.envs import make_task
from rldistill.policies import SavedPolicy
from rldistill.progress import Silent
from rldistill.students.networks import Architecture, build
from rldistill.types import UserError
from rldistill.verbs.distill import DistillConfig, distill

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    if not BENCHMARKS.is_dir():
        pytest.skip("the benchmarks are in the repository alone")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("peers")


def test_a_budget_is_what_the_distillation_spends(peers: ModuleType, tmp_path: Path) -> None:
    """The warm-up of 100 steps ends with all rows, after 104; then every step of 8 rows pays for four batches of 64."""
    task = make_task("CartPole-v1")
    teacher = SavedPolicy(build(Architecture("mlp:2", task.observation_shape, task.num_actions), 0, "q_values"), task)
    config = DistillConfig.of(
        student="mlp:2",
        steps=397,
        warmup=100,
        augment=0.0,
        samples_per_step=32.0,
        evaluate_every=0,
        evaluate_episodes=1,
    )  # 397 are 400 with all rows
    spent = distill(teacher, tmp_path / "run", config).provenance
    budget = peers.budget_of(config)
    assert (budget.labelled, budget.updates, budget.batch_size) == (spent["control_steps"], spent["updates"], 64)
    assert budget == (400, 148, 64)  # (400 - 104) / 8 * 4 updates


def test_a_budget_has_no_composites(peers: ModuleType) -> None:
    with pytest.raises(UserError, match="--augment"):
        peers.budget_of(DistillConfig())


@pytest.mark.parametrize("batch", [64, 32, 128])
@pytest.mark.parametrize("method", ["bc", "dagger"])
def test_imitation_gets_the_labelled_states_and_the_samples_of_ours(
    peers: ModuleType, method: str, batch: int, tmp_path: Path
) -> None:
    options = peers.Options(out=tmp_path, imitation_batch=batch)
    rows = {made.key: peers.student_row(made, "CartPole-v1", 3, "teacher.zip", options) for made in peers.METHODS}
    ours = peers.budget_of(DistillConfig.of(**rows["ours"][0].job["config"]))
    job = rows[method][0].job
    assert job["labelled"] == ours.labelled == 20_000
    assert job["updates"] * job["batch_size"] == ours.samples == 19_000 * 32
    assert job["batch_size"] == batch
    assert job["seed"] == rows["ours"][0].job["config"]["seed"] == 3


def test_samples_that_do_not_come_out_even_are_refused(peers: ModuleType) -> None:
    with pytest.raises(UserError, match="batches of 7"):
        peers.Budget(400, 148, 64).in_batches_of(7)


def test_a_run_beyond_its_budget_is_told_and_only_dagger_may_end_its_games(peers: ModuleType) -> None:
    budget = peers.Budget(400, 148, 64)
    longer = {"labelled": 430, "updates": 148}
    peers.check_spent(peers.Row("dagger", "imitation", {"work": "dagger"}), longer, budget)
    for work, spent in (("bc", longer), ("distill", longer), ("dagger", {"labelled": 430, "updates": 149})):
        with pytest.raises(UserError, match="its budget"):
            peers.check_spent(peers.Row(work, "imitation", {"work": work}), spent, budget)


def test_results_of_other_settings_are_not_taken_for_these(peers: ModuleType, tmp_path: Path) -> None:
    rows = peers.Rows(tmp_path, Silent())
    (tmp_path / "rows" / "here.json").write_text('{"job": {"work": "step", "seed": 0}, "rate": 3.0}')
    assert rows.run("rows", [peers.Row("here", "sb3", {"work": "step", "seed": 0})])[0]["rate"] == 3.0
    with pytest.raises(UserError, match="other settings"):
        rows.run("rows", [peers.Row("here", "sb3", {"work": "step", "seed": 1})])
