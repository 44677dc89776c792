"""Studies on clusters: Ray with two nodes, of which one is lost, and submitit's local executor."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import rldistill
from rldistill.runs.studies.cells import CellFolder
from rldistill.runs.studies.plan import read_plan
from rldistill.types import UserError
from rldistill.verbs.study import StudyConfig, study, study_status, write_tables
from rldistill.verbs.study.on_ray import packed, run_on_ray, unpack
from test_distillation import balancing, save

SOURCE = Path(rldistill.__file__).parents[1]
TINY = """
[study]
teachers = [{env = "CartPole-v1", steps = 600, warmup = 100, final_episodes = 0}]
seeds = 5
reference = "kl"

[settings]
steps = 3000
warmup = 100
samples_per_step = 4
evaluate_episodes = 0

[axes.loss]
kl = {}
offline = { record = { steps = 200 }, updates = 20 }

[games]
episodes = 2
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a study; its processes find this source, and write nothing to the home of whoever runs the tests."""
    monkeypatch.setenv("PYTHONPATH", str(SOURCE))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture
def cluster(tiny: Path) -> Iterator[Any]:
    """A Ray cluster of two nodes with a core each."""
    pytest.importorskip("ray", reason="the extra [ray] is not installed")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    made.wait_for_nodes()
    yield made
    made.shutdown()


def same_tables(one: Path, other: Path) -> bool:
    return all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in ("table.md", "table.csv", "runs.csv")
    )


@pytest.mark.slow
def test_a_study_on_ray_survives_the_loss_of_a_node(tiny: Path, cluster: Any, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "rldistill", "study", tiny, "--out", "out", "--on", f"ray:{cluster.address}"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    until = time.monotonic() + 240
    while not ((tmp_path / "out").exists() and len(running(tmp_path / "out")) == 2):
        assert process.poll() is None, process.communicate()[0].decode()
        assert time.monotonic() < until
        time.sleep(0.1)
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    printed = process.communicate(timeout=400)[0].decode()
    assert process.returncode == 0, printed
    assert study_status(tmp_path / "out").left == 0
    study(tiny, tmp_path / "alone", StudyConfig(jobs=1))
    assert same_tables(tmp_path / "out", tmp_path / "alone")


def running(out: Path) -> list[str]:
    return study_status(out).running if (out / "study.json").exists() else []


@pytest.mark.slow
def test_results_come_back_from_nodes_without_the_folder(tiny: Path, cluster: Any, tmp_path: Path) -> None:
    """Also what needs another cell's run or dataset is computed there."""
    out = tmp_path / "out"
    study(tiny, out, StudyConfig(jobs=0, seeds=1))
    plan = read_plan(out)
    run_on_ray(out, plan, cluster.address, 1, lambda: None, shared=False)
    assert study_status(out).failed == {}
    write_tables(out, plan)
    study(tiny, tmp_path / "alone", StudyConfig(jobs=1, seeds=1))
    assert same_tables(out, tmp_path / "alone")
    for cell in plan.cells:
        if cell.setting:
            weights = "policy/weights.safetensors"
            here, there = (CellFolder(folder, cell).run_path / weights for folder in (tmp_path / "alone", out))
            assert here.read_bytes() == there.read_bytes()


PANEL = """
[study]
panels = [
    { name = "poles", teachers = [
        "POLICY", "noisy:2s:POLICY",
        { env = "CartPole-v1", steps = 600, final_episodes = 0, snapshot = [0.5, 1], noise = [0, "1s"] },
    ] },
]

[settings]
teacher = "best"
steps = 300
warmup = 100
evaluate_episodes = 0

[axes]
loss = ["kl", "mse"]

[games]
episodes = 2
"""


@pytest.mark.slow
def test_panels_travel_to_nodes_without_the_folder(tiny: Path, cluster: Any, tmp_path: Path) -> None:
    """Files of teachers, runs of cells and their snapshots, with and without noise."""
    tiny.write_text(PANEL.replace("POLICY", str(save(tmp_path / "policy", balancing()))))
    out = tmp_path / "out"
    study(tiny, out, StudyConfig(jobs=0, seeds=1))
    plan = read_plan(out)
    run_on_ray(out, plan, cluster.address, 1, lambda: None, shared=False)
    assert study_status(out).failed == {}
    write_tables(out, plan)
    study(tiny, tmp_path / "alone", StudyConfig(jobs=1, seeds=1))
    assert same_tables(out, tmp_path / "alone")


@pytest.mark.slow
def test_a_ray_address_that_does_not_answer_is_refused(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra [ray] is not installed")
    for address, message in {"127.0.0.1:1": "no Ray answers at 127.0.0.1:1", "nowhere": "HOST:PORT"}.items():
        with pytest.raises(UserError, match=message):
            study(tiny, tmp_path / "out", StudyConfig(on=f"ray:{address}"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_workers_are_jobs_of_submitit(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="the extra [slurm] is not installed")
    state = study(tiny, tmp_path / "out", StudyConfig(on="slurm:local", jobs=2, seeds=1))
    assert (state.left, state.failed) == (0, {})
    assert (tmp_path / "out" / "table.md").is_file()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (StudyConfig(on="moon"), "--on is local, ray"),
        (StudyConfig(on="local:here"), "--on is local, ray"),
        (StudyConfig(slurm_options=("a=b",)), "--slurm-options is for --on slurm"),
    ],
)
def test_other_engines_are_refused(tiny: Path, tmp_path: Path, config: StudyConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        study(tiny, tmp_path / "out", config)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("engine", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_extra_is_named(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs {package}: pip install 'rldistill\[{engine}\]'"):
        study(tiny, tmp_path / "out", StudyConfig(on=engine))


def test_files_and_folders_are_packed_without_locks_and_checkpoints(tmp_path: Path) -> None:
    for name in ("run/policy/policy.json", "run/checkpoint/state", "lock", "result.json"):
        path = tmp_path / "cell" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    unpack(packed(tmp_path / "cell"), tmp_path / "there")
    unpack(packed(tmp_path / "cell" / "result.json"), tmp_path / "file" / "result.json")
    files = {
        path.relative_to(tmp_path / "there").as_posix() for path in (tmp_path / "there").rglob("*") if path.is_file()
    }
    assert files == {"run/policy/policy.json", "result.json"}
    assert (tmp_path / "file" / "result.json").read_text() == "result.json"
    assert os.listdir(tmp_path / "file") == ["result.json"]
