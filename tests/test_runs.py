import fcntl
import hashlib
import json
import os
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rldistill.configurations import changed
from rldistill.files import load_state, save_state
from rldistill.play.envs import make_task
from rldistill.runs.folder import RunFolder, Status, read_metrics
from rldistill.runs.loop import Pace
from rldistill.runs.provenance import command_line
from rldistill.runs.records import (
    Evaluation,
    FinalScore,
    Record,
    Train,
    curve_csv,
)
from rldistill.runs.writing import CHECKPOINT_FORMAT, READABLE_FORMATS, Run, older_defaults
from rldistill.types import UserError
from rldistill.verbs.distill import DistillConfig, distill
from rldistill.verbs.train import TrainConfig, train
from rldistill.verbs.train.config import own_settings, resolve
from test_training import CtrlC, weights

CONFIG: dict[str, Any] = {"verb": "distill", "steps": 100, "loss": "kl", "shares": (0.5, 1.0), "task": {"env": "a"}}


def listing(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def finish(run: Run) -> None:
    run.policy_path.mkdir()
    (run.policy_path / "policy.json").write_text("{}")


def test_a_run_leaves_its_complete_configuration(tmp_path: Path) -> None:
    Run(tmp_path / "a" / "run", CONFIG, resume=False).close()
    assert json.loads((tmp_path / "a" / "run" / "config.json").read_text()) == CONFIG | {"shares": [0.5, 1.0]}


@pytest.mark.parametrize("kind", ["run", "empty folder"])
def test_what_exists_is_not_touched_without_resume(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "run"
    if kind == "run":
        Run(out, CONFIG, resume=False).close()
    else:
        out.mkdir()
    before = listing(tmp_path)
    with pytest.raises(UserError, match=r"run exists: continue it with --resume, or choose another --out"):
        Run(out, CONFIG, resume=False)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("kind", ["folder of somebody", "file", "checkpoint without config"])
def test_what_is_no_run_folder_is_not_touched(tmp_path: Path, kind: str, resume: bool) -> None:
    out = tmp_path / "run"
    if kind == "file":
        out.write_text("mine")
    elif kind == "folder of somebody":
        out.mkdir()
        (out / "thesis.tex").write_text("mine")
    else:
        (out / "checkpoint").mkdir(parents=True)
        (out / "checkpoint" / "state").write_text("mine")
    before = listing(tmp_path)
    with pytest.raises(UserError, match=r"is no run folder .*: choose another --out"):
        Run(out, CONFIG, resume=resume)
    assert listing(tmp_path) == before


def test_a_folder_whose_configuration_finds_no_room_goes_away(
    tmp_path: Path, full_disk: Callable[[int], AbstractContextManager[None]]
) -> None:
    with full_disk(10), pytest.raises(UserError, match=r"cannot write .*config.json"):
        Run(tmp_path / "run", CONFIG, resume=False)
    assert not (tmp_path / "run").exists()


def test_a_link_to_nothing_is_reported_as_one(tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match="is a link to nothing"):
        Run(tmp_path / "run", CONFIG, resume=False)


def test_resume_begins_a_run_that_is_not_there_yet(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", CONFIG, resume=True)
    assert run.state is None
    run.close()


def test_a_run_killed_before_it_wrote_its_configuration_can_be_resumed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    (out / "checkpoint").mkdir(parents=True)
    (out / "checkpoint" / "lock").touch()
    (out / ".config.json.123.tmp").write_text("{")
    Run(out, CONFIG, resume=True).close()
    assert sorted(os.listdir(out)) == ["checkpoint", "config.json", "metrics.jsonl"]


@pytest.mark.parametrize("name", ["model.ckpt", "replay-notes", "state", ".state.notes.tmp", "folder"])
def test_a_folder_of_somebody_who_calls_his_files_checkpoint_is_no_run(tmp_path: Path, name: str) -> None:
    (tmp_path / "run" / "checkpoint").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint" / name).write_text("mine") if name != "folder" else (
        tmp_path / "run" / "checkpoint" / name
    ).mkdir()
    before = listing(tmp_path)
    with pytest.raises(UserError, match=f"no run folder .*it holds checkpoint/{name}"):
        Run(tmp_path / "run", CONFIG, resume=True)
    assert listing(tmp_path) == before


def test_what_a_user_has_put_into_a_run_stays_when_it_is_finished_or_fails(tmp_path: Path) -> None:
    mine = ["checkpoint/notes.txt", "checkpoint/.notes.tmp", ".notes.123.tmp", "tensorboard/notes.txt", "notes.txt"]

    def put(out: Path) -> None:
        for name in mine:
            (out / name).parent.mkdir(exist_ok=True)
            (out / name).write_text("mine")

    def fail() -> None:
        with Run(tmp_path / "failed", CONFIG, resume=False):
            put(tmp_path / "failed")
            raise UserError("no")

    with pytest.raises(UserError, match="no"):
        fail()
    assert sorted(listing(tmp_path / "failed")) == sorted(mine)
    with Run(tmp_path / "run", CONFIG, resume=False, tensorboard=True) as run:
        put(run.path)
        run.log(Train(updates=1))
        run.checkpoint({})
    with Run(tmp_path / "run", CONFIG, resume=True, tensorboard=True) as run:
        finish(run)
        run.clean()
    left = set(listing(tmp_path / "run"))
    assert set(mine) < left
    assert {name for name in left - set(mine) if "tfevents" not in name} == {
        "config.json",
        "metrics.jsonl",
        "policy/policy.json",
    }


def test_of_several_that_begin_one_run_at_once_one_does(tmp_path: Path) -> None:
    begun, refused = [], []

    def begin(number: int) -> None:
        try:
            run = Run(tmp_path / "run", CONFIG | {"number": number}, resume=False)
            begun.append((number, run))
        except UserError as error:
            refused.append(str(error))

    workers = [threading.Thread(target=begin, args=(number,)) for number in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(begun) == 1
    assert len(refused) == 7
    assert all("exists" in text or "another process" in text for text in refused)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["number"] == begun[0][0]
    begun[0][1].close()


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "checkpoint/state", "checkpoint/lock"])
def test_pipes_in_a_run_folder_are_refused_at_once(tmp_path: Path, name: str) -> None:
    with Run(tmp_path / "run", CONFIG, resume=False) as run:
        run.log(Train(updates=1))
        run.checkpoint({})
    (tmp_path / "run" / name).unlink()
    os.mkfifo(tmp_path / "run" / name)
    with pytest.raises(UserError, match=name.split("/")[-1]):
        Run(tmp_path / "run", CONFIG, resume=True)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"steps": 200}, "begun with steps = 100, not 200"),
        ({"task": {"env": "b"}}, r'begun with task.env = "a", not "b"'),
        ({"task": {"env": "a", "new": 1}}, "begun with task.new = null, not 1"),
        ({"extra": 1}, "begun with extra = null, not 1"),
    ],
)
def test_a_changed_configuration_is_refused_and_the_field_named(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    Run(tmp_path / "run", CONFIG, resume=False).close()
    before = listing(tmp_path)
    with pytest.raises(UserError, match=says):
        Run(tmp_path / "run", CONFIG | change, resume=True)
    assert listing(tmp_path) == before


def test_a_field_that_is_gone_is_named_too(tmp_path: Path) -> None:
    Run(tmp_path / "run", CONFIG, resume=False).close()
    with pytest.raises(UserError, match='begun with loss = "kl", not null'):
        Run(tmp_path / "run", {name: value for name, value in CONFIG.items() if name != "loss"}, resume=True)


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    out = tmp_path / "run"
    Run(out, CONFIG, resume=False).close()
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with open(out / "checkpoint" / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.write(ready[1], b"x")
            os.read(done[0], 1)
            os._exit(0)  # as a kill: nothing is tidied up
    os.read(ready[0], 1)
    try:
        with pytest.raises(UserError, match="another process works on"):
            Run(out, CONFIG, resume=True)
    finally:
        os.write(done[1], b"x")
        os.waitpid(child, 0)
    Run(out, CONFIG, resume=True).close()


def test_a_run_holds_its_folder_until_it_is_closed(tmp_path: Path) -> None:
    first = Run(tmp_path / "run", CONFIG, resume=False)
    with pytest.raises(UserError, match="another process works on"):
        Run(tmp_path / "run", CONFIG, resume=True)
    first.close()
    Run(tmp_path / "run", CONFIG, resume=True).close()


def test_what_was_logged_is_kept_where_a_run_has_lost_its_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "run"
    for names, files in [([], 0), (["metrics.1.jsonl"], 1), (["metrics.2.jsonl"], 2)]:
        run = Run(out, CONFIG, resume=True)
        assert [remark.rsplit("/", 1)[-1] for remark in run.remarks] == names
        assert all("begins anew" in remark for remark in run.remarks)
        assert read_metrics(out) == []
        assert len(list(out.glob("metrics.*.jsonl"))) == files
        run.log(Train(updates=files))
        run.close()
    assert (out / "metrics.1.jsonl").read_text() == '{"event": "train", "updates": 0}\n'
    assert (out / "metrics.2.jsonl").read_text() == '{"event": "train", "updates": 1}\n'


def test_lost_lines_of_the_metrics_are_reported(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", CONFIG, resume=False)
    run.log(Train(updates=1))
    run.checkpoint({})
    run.close()
    again = Run(tmp_path / "run", CONFIG, resume=True)
    assert again.remarks == []
    again.close()
    (tmp_path / "run" / "metrics.jsonl").unlink()
    with Run(tmp_path / "run", CONFIG, resume=True) as run:
        assert len(run.remarks) == 1
        assert "lost lines" in run.remarks[0]


def test_a_checkpoint_goes_only_when_what_the_run_made_can_be_read(tmp_path: Path) -> None:
    def damaged(path: Path) -> str:
        raise UserError(f"{path} is damaged")

    with Run(tmp_path / "run", CONFIG, resume=False) as run:
        lines: list[str] = []
        assert run.result(str, lines.append) is None  # not finished
        assert lines == []
        run.checkpoint({})
        finish(run)
    with Run(tmp_path / "run", CONFIG, resume=True) as run:
        assert run.result(damaged, lines.append) is None
        assert lines[-1].endswith("is damaged: made again from the last checkpoint")
        assert run.state is not None
        assert run.result(str, lines.append) == str(tmp_path / "run" / "policy")
        assert "finished already" in lines[-1]
        assert not run.scratch.exists()
    with Run(tmp_path / "run", CONFIG, resume=True) as run, pytest.raises(UserError, match="is damaged"):
        run.result(damaged, lines.append)


def test_metrics_go_back_to_the_checkpoint_on_resume(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", CONFIG, resume=False)
    run.log(Train(updates=1, loss=0.5))
    run.checkpoint({"step": 1})
    run.log(Train(updates=2, loss=0.4))
    run.close()
    with open(tmp_path / "run" / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 3, "lo')  # the line of a kill
    assert [record["updates"] for record in read_metrics(tmp_path / "run")] == [1, 2]
    again = Run(tmp_path / "run", CONFIG, resume=True)
    assert again.state is not None
    assert again.state["step"] == 1
    assert read_metrics(tmp_path / "run") == [{"event": "train", "updates": 1, "loss": 0.5}]
    again.log(Train(updates=2, loss=0.3))
    assert [record["updates"] for record in read_metrics(tmp_path / "run")] == [1, 2]
    again.close()


def test_lines_of_metrics_that_are_no_records_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'[1]\n{"updates": 1}\n3\n{"updates": 2}\n\xff\n{"updates": 3}\n')
    assert [record["updates"] for record in read_metrics(tmp_path)] == [1, 2]


def test_metrics_of_a_run_without_a_checkpoint_begin_anew(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", CONFIG, resume=False)
    run.log(Train(updates=1))
    run.close()
    Run(tmp_path / "run", CONFIG, resume=True).close()
    assert read_metrics(tmp_path / "run") == []


def test_a_finished_run_keeps_its_metrics_and_not_what_only_a_resumed_one_needs(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", CONFIG, resume=False)
    run.log(Train(updates=1))
    run.checkpoint({"step": 1})
    (run.scratch / "replay-frames").write_bytes(bytes(100))
    finish(run)
    run.clean()
    run.close()
    assert sorted(listing(tmp_path / "run")) == ["config.json", "metrics.jsonl", "policy/policy.json"]
    again = Run(tmp_path / "run", CONFIG, resume=True)
    assert again.folder.finished
    again.close()
    assert [record["updates"] for record in read_metrics(tmp_path / "run")] == [1]


def test_a_damaged_checkpoint_is_refused_and_nothing_is_overwritten(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", CONFIG, resume=False)
    run.log(Train(updates=1))
    run.checkpoint({"step": 1})
    run.close()
    state = tmp_path / "run" / "checkpoint" / "state"
    state.write_bytes(state.read_bytes()[:-1])
    before = listing(tmp_path)
    with pytest.raises(UserError, match="the checkpoint .* is damaged"):
        Run(tmp_path / "run", CONFIG, resume=True)
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    ("made_by", "words"),
    [("rldistill 0.0.1", "begun by rldistill 0.0.1, "), (None, "begun by another version of rldistill, ")],
)
def test_a_checkpoint_of_another_version_is_refused_and_kept(tmp_path: Path, made_by: str | None, words: str) -> None:
    out = tmp_path / "run"
    with Run(out, CONFIG, resume=False) as run:
        run.log(Train(updates=1))
        run.checkpoint({"a": 1})
    state = load_state(out / "checkpoint" / "state") | {"format": min(READABLE_FORMATS) - 1}
    del state["made_by"]
    save_state(out / "checkpoint" / "state", state | ({"made_by": made_by} if made_by else {}))
    before = listing(out)
    with pytest.raises(UserError, match=f"{words}.* start anew with another --out"):
        Run(out, CONFIG, resume=True)
    assert listing(out) == before


@pytest.mark.slow
def test_a_checkpoint_with_another_layout_has_another_number(tmp_path: Path) -> None:
    def layout(state: Any, depth: int = 3) -> Any:
        if not isinstance(state, dict) or not depth:
            return ""
        return {str(name): layout(state[name], depth - 1) for name in sorted(state, key=str)}

    learners: dict[str, TrainConfig] = {
        "dqn": TrainConfig.of(steps=2_000, algo="dqn", network="mlp:8", warmup=64, replay=500),
        "pqn": TrainConfig.of(steps=2_000, algo="pqn", network="mlp:8"),
    }
    for algo, learning in learners.items():
        with pytest.raises(KeyboardInterrupt):
            train("CartPole-v1", tmp_path / algo, learning, progress=CtrlC(600))
    short = DistillConfig.of(student="mlp:8", steps=2_000, warmup=64, evaluate_episodes=1, evaluate_every=0)
    trained = train("CartPole-v1", tmp_path / "teacher", TrainConfig.of(steps=300, network="mlp:8", final_episodes=1))
    with pytest.raises(KeyboardInterrupt):
        distill(trained, tmp_path / "student", short, progress=CtrlC(600))
    layouts = {name: layout(load_state(tmp_path / name / "checkpoint" / "state")) for name in ("dqn", "pqn", "student")}
    checksum = hashlib.sha256(json.dumps(layouts).encode()).hexdigest()[:16]
    # Another layout: put the new pair here, and count CHECKPOINT_FORMAT up, but where all that is new may be absent. If the older
    # one can still be read, it stays in READABLE_FORMATS, with a test of its own.
    assert (CHECKPOINT_FORMAT, checksum) == (4, "00499d32e14cfe15")


def test_half_files_of_a_killed_process_are_swept_up(tmp_path: Path) -> None:
    Run(tmp_path / "run", CONFIG, resume=False).close()
    aside = tmp_path / "run" / "checkpoint" / ".state.4711.tmp"
    aside.write_bytes(bytes(10))
    Run(tmp_path / "run", CONFIG, resume=True).close()
    assert not aside.exists()


def test_a_damaged_configuration_is_refused(tmp_path: Path) -> None:
    Run(tmp_path / "run", CONFIG, resume=False).close()
    (tmp_path / "run" / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        Run(tmp_path / "run", CONFIG, resume=True)


def test_a_run_where_no_folder_can_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write to"):
        Run(tmp_path / "file" / "run", CONFIG, resume=False)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_events_hold_what_was_logged_and_a_resumed_run_repeats_no_point(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", CONFIG, resume=False, tensorboard=True)
    run.log(Train(control_steps=16, updates=1, loss=0.5))
    run.checkpoint({})
    run.log(Train(control_steps=32, updates=2, loss=0.25))
    run.close()
    run = Run(tmp_path / "run", CONFIG, resume=True, tensorboard=True)
    run.log(Train(control_steps=48, updates=3, loss=0.125))
    run.log(Evaluation(control_steps=48, mean=3.0, returns=[2.0, 4.0]))
    run.log(FinalScore(mean=2.0))  # has no step of its own
    run.log(Train(updates=5, loss=1.0))
    run.close()
    assert scalars(tmp_path / "run" / "tensorboard") == {
        "train/loss": [(16, 0.5), (48, 0.125), (5, 1.0)],
        "evaluation/mean": [(48, 3.0)],
        "evaluation/return": [(48, 3.0)],
        "final_score/mean": [(48, 2.0)],
    }


def test_missing_tensorboard_names_its_extra_before_there_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    with pytest.raises(UserError, match=r"rldistill\[tensorboard\]"):
        Run(tmp_path / "run", CONFIG, resume=False, tensorboard=True)
    assert not (tmp_path / "run").exists()


def test_a_disk_full_of_metrics_is_reported_in_one_line_and_the_checkpoint_survives(
    tmp_path: Path, full_disk: Any
) -> None:
    run = Run(tmp_path / "run", CONFIG, resume=False)
    run.log(Train(updates=1))
    run.checkpoint({"step": 1})
    there = (tmp_path / "run" / "metrics.jsonl").stat().st_size
    says = r"cannot write .*metrics.jsonl: File too large; .* go on with --resume"
    with full_disk(there + 4), pytest.raises(UserError, match=says):  # a part of the line fits, the rest does not
        run.log(Train(updates=2))
    run.close()
    again = Run(tmp_path / "run", CONFIG, resume=True)
    assert again.state is not None
    assert again.state["step"] == 1
    assert [record["updates"] for record in read_metrics(tmp_path / "run")] == [1]
    again.close()


def test_a_learning_curve_has_the_mean_of_recent_games_at_even_distances_and_at_the_end() -> None:
    records: list[Record] = [Train(control_steps=10, returns=[])]  # no game has ended yet
    records += [Train(control_steps=10 * (k + 2), returns=[float(k)]) for k in range(7)]
    records += [FinalScore(returns=[99.0]), Train(control_steps=90, loss=1.0)]
    assert curve_csv(records, points=4, games=2).decode().splitlines() == [
        "control_steps,mean_return",
        "20,0.000",
        "40,1.500",
        "60,3.500",
        "80,5.500",
    ]
    assert curve_csv([]) == b"control_steps,mean_return\n"


@pytest.mark.parametrize("program", ["/somewhere/bin/rldistill", "/somewhere/rldistill/__main__.py"])
def test_the_command_in_a_card_can_be_typed_again(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr(sys, "argv", [program, "train", "CartPole-v1", "--out", "my run"])
    assert command_line() == "rldistill train CartPole-v1 --out 'my run'"


# Reading


def state_of(path: Path) -> dict[str, tuple[bytes, int]]:
    return {str(file): (file.read_bytes(), file.stat().st_mtime_ns) for file in path.rglob("*") if file.is_file()}


def test_a_folder_says_how_its_run_stands_and_reading_changes_nothing(tmp_path: Path) -> None:
    def read() -> Status:
        before = state_of(tmp_path)
        folder = RunFolder(tmp_path / "run")
        assert folder.config() == (json.loads(json.dumps(CONFIG)) if folder.exists else {})
        folder.records()
        assert folder.scores() == []
        status = folder.status
        assert state_of(tmp_path) == before
        return status

    assert read() == "fresh"
    with Run(tmp_path / "run", CONFIG, resume=False) as run:
        assert read() == "running"
        run.log(Train(updates=1))
    assert read() == "fresh", "there is no checkpoint to go on from"
    with Run(tmp_path / "run", CONFIG, resume=True) as run:
        run.checkpoint({})
    assert read() == "interrupted"
    with Run(tmp_path / "run", CONFIG, resume=True) as run:
        finish(run)
        assert read() == "running"
    assert read() == "finished"
    (tmp_path / "run" / "policy" / "policy.json").write_text('{"provenance": {"score": {}}}')
    assert read() == "scored"


def test_a_run_that_another_process_reads_can_be_begun_and_resumed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with Run(tmp_path / "run", CONFIG, resume=False) as run:
        for _ in range(3):
            assert folder.status == "running"
        run.checkpoint({})
    assert folder.status == "interrupted"
    Run(tmp_path / "run", CONFIG, resume=True).close()


def test_snapshots_are_listed_by_their_share(tmp_path: Path) -> None:
    for name in ("0.5", "0.25", "mine", "0.75"):
        (tmp_path / "snapshots" / name).mkdir(parents=True)
        if name != "0.75":
            (tmp_path / "snapshots" / name / "policy.json").touch()
    assert RunFolder(tmp_path).snapshots == {0.25: tmp_path / "snapshots/0.25", 0.5: tmp_path / "snapshots/0.5"}


def test_a_configuration_keeps_what_nobody_knows_and_has_defaults_inside_groups(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"steps": 5, "invented": 1, "dqn": {"n_step": 3}}')
    assert RunFolder(tmp_path).config({"steps": 9, "seed": 0, "dqn": {"n_step": 1, "double": True}}) == {
        "steps": 5,
        "seed": 0,
        "invented": 1,
        "dqn": {"n_step": 3, "double": True},
    }


# Older runs


def test_what_an_older_run_lacks_or_has_more_is_at_its_default(tmp_path: Path) -> None:
    out = tmp_path / "run"
    before = {"steps": 5, "gone": "a", "group": {"old": 1}}
    Run(out, before, resume=False).close()
    options: dict[str, Any] = {"resume": True, "removed": {"gone": ("a", "b"), "group.old": (1,)}}
    defaults = {"steps": 9, "new": None, "group": {"inner": 2}}
    now = {"steps": 5, "new": 0.5, "group": {"inner": 2}}
    # The user leaves `new` at its default, which stands for 0.5 here.
    Run(out, now, defaults=older_defaults(defaults, {"new": None}, now), **options).close()
    for change, words in (
        ({"new": 0.7}, "new = null, not 0.7"),
        ({"group": {"inner": 3}}, "group.inner = 2, not 3"),
        ({"steps": 9}, "steps = 5, not 9"),
    ):
        given = {"new": 0.7} if "new" in change else {"new": None}
        changed = now | change
        with pytest.raises(UserError, match=f"begun with {words}"):
            Run(out, changed, defaults=older_defaults(defaults, given, changed), **options)
    with pytest.raises(UserError, match='begun with gone = "a", not null'):
        Run(
            out,
            now,
            defaults=older_defaults(defaults, {"new": None}, now),
            resume=True,
            removed={"gone": ("b",), "group.old": (1,)},
        )


OLDER: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("older_runs.json").read_text())
"""`config.json` of runs of earlier commits, as they were written."""


def begun(out: Path, name: str, **changes: Any) -> None:
    out.mkdir()
    (out / "config.json").write_text(json.dumps(OLDER[name] | changes))


@pytest.mark.parametrize("algo", ["dqn", "pqn"])
@pytest.mark.slow
def test_trainings_from_before_some_options_are_resumed(tmp_path: Path, algo: Any) -> None:
    begun(tmp_path / "run", algo)
    config = TrainConfig.of(algo=algo, steps=1_000, final_episodes=1)
    others = {"dqn": changed(config, double=False), "pqn": changed(config, weights_dtype="float16")}
    with pytest.raises(
        UserError, match="begun with (double = true, not false|weights_dtype = .float32., not .float16.)"
    ):
        train("CartPole-v1", tmp_path / "run", others[algo], resume=True)
    train("CartPole-v1", tmp_path / "run", config, resume=True)
    assert RunFolder(tmp_path / "run").status == "scored"


def test_lost_lives_were_no_episodes_before_there_was_the_option(tmp_path: Path) -> None:
    config, task = TrainConfig.of(steps=4_000, network="cnn:4,4,4:8"), make_task("PongNoFrameskip-v4")
    settings = resolve(config, task)
    before = {"verb": "train", "task": task.as_dict(), **settings, "dqn": asdict(own_settings(settings, task))}
    del before["lives_as_episodes"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(before))
    with pytest.raises(UserError, match="begun with lives_as_episodes = false, not true"):
        train("PongNoFrameskip-v4", tmp_path / "run", config, resume=True)


@pytest.mark.parametrize(("name", "preset"), [("distill", "none"), ("distill rusu2015", "rusu2015")])
@pytest.mark.slow
def test_distillations_from_before_some_options_are_resumed(tmp_path: Path, name: str, preset: Any) -> None:
    teacher = train("CartPole-v1", tmp_path / "teacher", TrainConfig.of(steps=300, network="mlp:8", final_episodes=1))
    begun(tmp_path / "run", name, teacher="a policy in memory", teacher_sha256=teacher.sha256)
    config = DistillConfig.of(preset, student="mlp:8", steps=600, evaluate_episodes=1)
    with pytest.raises(UserError, match="begun with targets = .raw., not .advantage."):
        distill(teacher, tmp_path / "run", changed(config, targets="advantage"), resume=True)
    distill(teacher, tmp_path / "run", config, resume=True)
    assert RunFolder(tmp_path / "run").status == "scored"


def in_format_3(state: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint of a distillation of one lesson, as it was before there were several."""
    fitting = state["fitting"]
    ((_, fitted),) = fitting["objectives"].items()
    (part,) = fitting["parts"]
    update = {"network": fitting["student"], "average": fitting["average"], **part, **fitted}
    update["dropout"] = fitting["dropout"][0] if fitting["dropout"] else None
    names = ("stream", "seconds", "score", "next_log", "next_evaluation", "metrics_bytes")
    return {name: state[name] for name in names} | {"update": update, "format": 3}


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.slow
def test_a_distillation_from_before_there_were_several_lessons_ends_in_the_same_weights(
    tmp_path: Path, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rldistill.verbs.distill.Pace", partial(Pace, showing=0.0))
    teacher = train("CartPole-v1", tmp_path / "teacher", TrainConfig.of(steps=300, network="mlp:8", final_episodes=1))
    config = DistillConfig.of(
        student="mlp:8", steps=600, warmup=64, dropout=dropout, evaluate_episodes=1, evaluate_every=0
    )
    with pytest.raises(KeyboardInterrupt):
        distill(teacher, tmp_path / "run", config, progress=CtrlC(300))
    state = tmp_path / "run" / "checkpoint" / "state"
    save_state(state, in_format_3(load_state(state)))
    distill(teacher, tmp_path / "run", config, resume=True)
    distill(teacher, tmp_path / "whole", config)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
