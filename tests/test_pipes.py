"""Pipes and devices in the place of every file that is read: refused at once, for their end may never come."""

from __future__ import annotations

import os
import re
import shutil
import signal
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import rldistill
from foreign_files import balancing_zip
from rldistill.datasets import convert, head, info, load_replay, merge, open_dataset
from rldistill.play.envs import make_task
from rldistill.policies import save_policy
from rldistill.runs.records import Evaluation
from rldistill.runs.scores import read_scores
from rldistill.runs.writing import Run
from rldistill.students.networks import Architecture, build
from rldistill.teachers import TeacherOptions, load_policy, load_teacher
from rldistill.types import UserError
from rldistill.verbs.distill import DistillConfig, distill
from rldistill.verbs.evaluate import EvaluateConfig, evaluate
from rldistill.verbs.export import ExportConfig, export
from rldistill.verbs.inspect import inspect
from rldistill.verbs.push import PushConfig, push
from rldistill.verbs.record import RecordConfig, record
from rldistill.verbs.report import ReportConfig, report

CARTPOLE = make_task("CartPole-v1")
GAMES = EvaluateConfig(episodes=1, num_envs=1)
NO_GAMES = ReportConfig(episodes=0, seconds=0)
PUSH = PushConfig(episodes=1, num_envs=1, seconds=0)
CONFIG: dict[str, Any] = {"verb": "distill", "task": CARTPOLE.as_dict(), "steps": 10}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One good thing of each kind."""
    folder = tmp_path_factory.mktemp("shelf")
    made = build(Architecture("mlp:4", CARTPOLE.observation_shape, CARTPOLE.num_actions), 0)
    with Run(folder / "run", CONFIG, resume=False) as run:
        run.log(Evaluation(control_steps=1, returns=[1.0]))
        run.log(Evaluation(control_steps=2, returns=[1.0]))
        run.checkpoint({})
        save_policy(run.policy_path, made, CARTPOLE, {"score": {}})
    (folder / "run" / "policy" / "curve.csv").write_text("control_steps,mean_return\n")
    record(folder / "run", folder / "data", RecordConfig(steps=40, num_envs=2, shard_steps=20))
    record(folder / "run", folder / "more", RecordConfig(steps=40, num_envs=2, seed=1))
    convert(folder / "data", folder / "parquet", "parquet")
    evaluate([folder / "run"], GAMES, json=folder / "run" / "scores.json")
    for name, kind in (("policy.pt", "torchscript"), ("policy.zip", "sb3"), ("policy.onnx", "onnx"), ("policy.c", "c")):
        with suppress(UserError):  # a package or a compiler that is not here
            export(folder / "run", folder / name, kind, ExportConfig(states=20, calibration=8, episodes=0))  # type: ignore[arg-type]
    balancing_zip(folder / "hub" / "ppo-CartPole-v1.zip")
    (folder / "hub" / "README.md").write_text("---\nlibrary_name: stable-baselines3\n---\n")
    with zipfile.ZipFile(folder / "hub" / "ppo-CartPole-v1.zip") as zipped:
        zipped.extractall(folder / "unpacked")
    return folder


@contextmanager
def seconds(number: int) -> Iterator[None]:
    """Fails what takes longer."""

    def late(signal_number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"not done in {number} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(number)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def teacher(path: str, **options: Any) -> Callable[[Path], object]:
    return lambda shelf: load_teacher(shelf / path, env="CartPole-v1", options=TeacherOptions(**options))


def pushing(**more: Any) -> Callable[[Path], object]:
    def call(shelf: Path) -> object:
        given = {name: shelf / value for name, value in more.items()}
        config = PUSH if "scores" not in given else PushConfig(scores=given["scores"], seconds=0)
        files = [given["files"]] if "files" in given else []
        return push(shelf / "run", "me/it", config, out=shelf / "out", files=files, dry_run=True)

    return call


def learning(shelf: Path) -> object:
    config = DistillConfig.of(student="mlp:4", dataset=str(shelf / "data"), updates=2, evaluate_episodes=1)
    return distill(shelf / "run", shelf / "student", config)


SHARD = "data/shard-00001.arrow"
READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    **{f"teacher{ending}": (f"new{ending}", teacher(f"new{ending}"))
       for ending in (".zip", ".pth", ".pt", ".bin", ".onnx", ".safetensors", ".cleanrl_model", ".c", ".pkl", "")},
    "exported": ("policy.pt", lambda shelf: load_policy(shelf / "policy.pt")),
    "inspect": ("new.zip", lambda shelf: inspect(str(shelf / "new.zip"))),
    "policy.json": ("run/policy/policy.json", teacher("run")),
    "policy.json of a folder": ("run/policy/policy.json", teacher("run/policy")),
    "weights": ("run/policy/weights.safetensors", teacher("run")),
    "zip in a folder": ("hub/ppo-CartPole-v1.zip", teacher("hub")),
    "unpacked zip": ("unpacked/data", teacher("unpacked")),
    "unpacked zip's weights": ("unpacked/policy.pth", teacher("unpacked")),
    "README": ("hub/README.md", teacher("hub")),
    "statistics": ("new.pkl", lambda shelf: load_teacher(
        shelf / "hub/ppo-CartPole-v1.zip", options=TeacherOptions(normalization=shelf / "new.pkl"))),
    "statistics beside": ("hub/vecnormalize.pkl", teacher("hub")),
    "card": ("data/dataset.json", lambda shelf: open_dataset(shelf / "data")),
    "shard": (SHARD, lambda shelf: load_replay(open_dataset(shelf / "data"))),
    "shard of distill": (SHARD, learning),
    "shard of info": (SHARD, lambda shelf: damaged(info(shelf / "data"))),
    "shard of info without checksums": (SHARD, lambda shelf: damaged(info(shelf / "data", verify=False))),
    "shard of head": (SHARD, lambda shelf: head(shelf / "data")),
    "shard of merge": (SHARD, lambda shelf: merge([shelf / "data", shelf / "more"], shelf / "out")),
    "shard of convert": (SHARD, lambda shelf: convert(shelf / "data", shelf / "out", "parquet")),
    "card of record": ("data/dataset.json", lambda shelf: record(shelf / "run", shelf / "data", append=True)),
    "Parquet": ("parquet/shard-00000.parquet", lambda shelf: convert(shelf / "parquet", shelf / "out", "rldistill")),
    "Parquet, the second": ("parquet/shard-00001.parquet", lambda shelf: convert(shelf / "parquet", shelf / "out", "rldistill")),
    "scores": ("run/scores.json", lambda shelf: read_scores(shelf / "run" / "scores.json")),
    "scores of a report": ("run/scores.json", lambda shelf: report(shelf / "run", config=NO_GAMES)),
    "scores of push": ("new.json", pushing(scores="new.json")),
    "config.json": ("run/config.json", lambda shelf: report(shelf / "run", config=NO_GAMES)),
    "config.json of push": ("run/config.json", pushing()),
    "metrics": ("run/metrics.jsonl", lambda shelf: report(shelf / "run", config=NO_GAMES)),
    "metrics of push": ("run/metrics.jsonl", pushing()),
    "curve": ("run/policy/curve.csv", pushing()),
    "state": ("run/checkpoint/state", lambda shelf: Run(shelf / "run", CONFIG, resume=True)),
    "export of push": ("policy.pt", pushing(files="policy.pt")),
    "header of push": ("policy.h", pushing(files="policy.c")),
}  # fmt: skip
OPTIONAL = {"README", "statistics beside", "metrics", "curve", "metrics of push", "config.json of push"}
"""Where a file may be missing, it may be passed over."""


READ_ELSEWHERE = {
    "pages.py": "its own template",
    "verbs/report/page.py": "the script and style of its players",
    "teachers/trial.py": "/proc/self/statm",
    "terminal.py": "/dev/null",
}


def test_no_file_is_opened_in_another_way() -> None:
    """`open_regular` and what is made of it are the one place where files are opened for reading."""
    source = Path(rldistill.__file__).parent
    read = re.compile(
        r"\.read_bytes\(|\.read_text\(|\bopen\([^)]*\"rb?\"|is_zipfile\(path|json\.load\(|np\.load\(|[^_]load_file\("
    )
    places = {str(path.relative_to(source)): read.findall(path.read_text()) for path in source.rglob("*.py")}
    assert {name for name, result in places.items() if result} <= {"files.py", *READ_ELSEWHERE}


def damaged(result: Any) -> None:
    if result.damaged:
        raise UserError(next(iter(result.damaged.values())))


@pytest.mark.parametrize("kind", ["pipe", "endless device"])
@pytest.mark.parametrize("name", READERS)
def test_what_never_ends_is_not_read(tmp_path: Path, shelf: Path, name: str, kind: str) -> None:
    place, read = READERS[name]
    copy = tmp_path / "shelf"
    shutil.copytree(shelf, copy)
    if not (copy / "policy.c").exists() and place == "policy.h":
        pytest.skip("there is no C compiler here")
    (copy / place).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(copy / place)
    else:
        (copy / place).symlink_to("/dev/zero")
    with seconds(60), warnings.catch_warnings():  # a loaded machine may take a while over what is not the pipe
        warnings.simplefilter("ignore")
        if name in OPTIONAL:
            with suppress(UserError):
                read(copy)
        else:
            with pytest.raises(UserError):
                read(copy)
