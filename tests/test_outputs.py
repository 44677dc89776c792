"""Outputs of every verb that are links, pipes or devices, or that two processes write at once."""

from __future__ import annotations

import json
import os
import shutil
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from rldistill.datasets import convert, head, info, merge
from rldistill.holding import claimed
from rldistill.play.envs import make_task
from rldistill.policies import save_policy
from rldistill.runs.scores import read_scores
from rldistill.runs.writing import Run
from rldistill.students.networks import Architecture, build
from rldistill.types import UserError
from rldistill.verbs.evaluate import EvaluateConfig, evaluate
from rldistill.verbs.export import ExportConfig, export
from rldistill.verbs.push import PushConfig, push
from rldistill.verbs.record import RecordConfig, record
from rldistill.verbs.report import ReportConfig, report
from rldistill.verbs.watch import WatchConfig, watch
from test_files import device

CARTPOLE = make_task("CartPole-v1")
QUICK = ExportConfig(states=20, calibration=8, episodes=0)
PUSH = PushConfig(episodes=1, num_envs=1, seconds=0, teacher="none")

Write = Callable[[Path, Path], object]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shelf")
    made = build(Architecture("mlp:4", CARTPOLE.observation_shape, CARTPOLE.num_actions), 0)
    with Run(folder / "run", {"verb": "distill", "task": CARTPOLE.as_dict()}, resume=False) as run:
        save_policy(run.policy_path, made, CARTPOLE, {"score": {}})
        run.clean()
    for number in range(2):
        record(folder / "run", folder / f"data{number}", RecordConfig(steps=40, num_envs=2, seed=number))
    return folder


FILES: dict[str, tuple[str, Write, Callable[[bytes], object]]] = {
    "evaluate --json": (
        "scores.json",
        lambda shelf, out: evaluate([shelf / "run"], EvaluateConfig(episodes=1, num_envs=1), json=out),
        json.loads,
    ),
    "dataset info --json": ("info.json", lambda shelf, out: info(shelf / "data0", json=out), json.loads),
    "export --json": (
        "export.json",
        lambda shelf, out: export(
            shelf / "run", out.with_name("policy.pt"), "torchscript", QUICK, json=out, force=True
        ),
        json.loads,
    ),
    "report --out": (
        "page.html",
        lambda shelf, out: report(shelf / "run", out, config=ReportConfig(episodes=0, seconds=0)),
        lambda data: data.index(b"</html>"),
    ),
    "watch --out": (
        "film.gif",
        lambda shelf, out: watch(shelf / "run", WatchConfig(max_steps=2), out=out),
        lambda data: data.index(b"GIF89a"),
    ),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.slow
def test_a_file_goes_to_a_pipe_a_device_and_through_a_link(tmp_path: Path, shelf: Path, name: str) -> None:
    file, write, check = FILES[name]
    if name.startswith("watch"):
        pytest.importorskip("pygame")
    pipe = tmp_path / file
    os.mkfifo(pipe)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
    reader.start()
    write(shelf, pipe)
    reader.join(20)
    check(received[0])
    assert stat.S_ISFIFO(pipe.stat().st_mode)

    pipe.unlink()
    (tmp_path / "there").mkdir()
    if not name.startswith("dataset"):  # it replaces nothing, and takes a link for something
        pipe.symlink_to(tmp_path / "there" / "file")
        write(shelf, pipe)
        check((tmp_path / "there" / "file").read_bytes())
        assert pipe.is_symlink()
        pipe.unlink()

    null = device(pipe, "/dev/null")
    write(shelf, null)
    assert stat.S_ISCHR(null.stat().st_mode)
    left = {path.name for path in tmp_path.iterdir()}
    assert left <= {file, "there", "policy.pt"}, "nothing written aside stays"


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_read_back_or_is_a_folder_goes_to_no_pipe(tmp_path: Path, shelf: Path, kind: str) -> None:
    writes: dict[str, Write] = {
        "policy.pt": lambda shelf, out: export(shelf / "run", out, "torchscript", QUICK, force=True),
        "data": lambda shelf, out: record(shelf / "run", out, RecordConfig(steps=10), append=True),
        "merged": lambda shelf, out: merge([shelf / "data0", shelf / "data1"], out),
        "parquet": lambda shelf, out: convert(shelf / "data0", out, "parquet"),
        "hub": lambda shelf, out: push(shelf / "run", "me/it", PUSH, out=out, dry_run=True, force=True),
        "run": lambda shelf, out: Run(out, {"verb": "train"}, resume=True),
        "picture.png": lambda shelf, out: head(shelf / "data0", picture=out),  # there is nothing to draw
    }
    for name, write in writes.items():
        place = tmp_path / name
        if kind == "pipe":
            os.mkfifo(place)
        else:
            device(place, "/dev/null")
        with pytest.raises(UserError):
            write(shelf, place)
        mode = place.stat().st_mode
        assert stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)
    assert {path.name for path in tmp_path.iterdir()} == set(writes)


def at_once(work: Callable[[], object]) -> list[int]:
    """Status of three processes that do the same, sorted: 2 for a UserError that says that there was another one."""
    children = []
    for _ in range(3):
        children.append(os.fork())
        if children[-1] == 0:
            status = 1
            try:
                work()
                status = 0
            except UserError as error:
                status = 2 if "exists" in str(error) or "another process" in str(error) else 3
            finally:
                os._exit(status)
    return sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


@pytest.mark.parametrize("number", range(2))
def test_of_processes_that_make_one_folder_at_once_one_does(tmp_path: Path, shelf: Path, number: int) -> None:
    out = tmp_path / "out"
    works: list[Callable[[], object]] = [
        lambda: merge([shelf / "data0", shelf / "data1"], out),
        lambda: convert(shelf / "data0", out, "parquet"),
    ]
    assert at_once(works[number]) == [0, 2, 2]
    assert os.listdir(tmp_path) == ["out"]


def test_two_exports_to_one_file_do_not_take_it_from_each_other(tmp_path: Path, shelf: Path) -> None:
    out = tmp_path / "policy.pt"
    with claimed(out), pytest.raises(UserError, match="another process works on"):
        export(shelf / "run", out, "torchscript", QUICK)
    assert at_once(lambda: export(shelf / "run", out, "torchscript", QUICK)) == [0, 2, 2]
    assert os.listdir(tmp_path) == ["policy.pt"]


def test_a_link_is_written_through_by_an_export(tmp_path: Path, shelf: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file.pt").write_bytes(b"old")
    (tmp_path / "policy.pt").symlink_to("there/file.pt")
    with pytest.raises(UserError, match="exists"):
        export(shelf / "run", tmp_path / "policy.pt", "torchscript", QUICK)
    export(shelf / "run", tmp_path / "policy.pt", "torchscript", QUICK, force=True)
    assert (tmp_path / "policy.pt").is_symlink()
    assert (tmp_path / "there" / "file.pt").read_bytes()[:2] == b"PK"


def test_scores_that_are_written_at_once_are_those_of_one(tmp_path: Path, shelf: Path) -> None:
    games = EvaluateConfig(episodes=1, num_envs=1)
    assert at_once(lambda: evaluate([shelf / "run"], games, json=tmp_path / "scores.json")) == [0, 0, 0]
    assert len(read_scores(tmp_path / "scores.json")) == 1
    assert os.listdir(tmp_path) == ["scores.json"]


@pytest.mark.slow
def test_a_file_of_the_user_among_the_exports_of_a_pushed_folder_keeps_it(tmp_path: Path, shelf: Path) -> None:
    out = tmp_path / "hub"
    exported = export(shelf / "run", tmp_path / "mine.pt", "torchscript", QUICK).files[0]

    def write() -> None:
        push(shelf / "run", "me/it", PUSH, out=out, files=[exported], dry_run=True, force=True)

    write()
    write()  # what push wrote is replaced
    for name in ("exports/notes.txt", "exports/more/notes.txt", "replay.mp4/notes.txt"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("mine")
        with pytest.raises(UserError, match="no folder that push wrote"):
            write()
        assert (out / name).read_text() == "mine"
        (out / name).unlink() if name == "exports/notes.txt" else shutil.rmtree((out / name).parent)
    write()
    assert sorted(os.listdir(tmp_path)) == ["hub", "mine.pt"]
