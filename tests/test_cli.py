"""The command: its verbs, what they leave, and what it says to wrong input."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

import rldistill
from foreign_files import balancing_zip
from rldistill import cli
from rldistill.configurations import flat
from rldistill.play.envs import make_task
from rldistill.policies import load_policy, save_policy
from rldistill.students.networks import Architecture, build
from rldistill.teachers import TeacherOptions
from rldistill.types import Task, UserError
from rldistill.verbs import demo
from rldistill.verbs.distill import DistillConfig
from rldistill.verbs.evaluate import EvaluateConfig
from rldistill.verbs.export import ExportConfig
from rldistill.verbs.inspect import InspectConfig
from rldistill.verbs.push import PushConfig
from rldistill.verbs.record import RecordConfig, record
from rldistill.verbs.report import ReportConfig
from rldistill.verbs.starts import StartsConfig
from rldistill.verbs.study import StudyConfig
from rldistill.verbs.train import TrainConfig
from rldistill.verbs.watch import WatchConfig

SOURCE = Path(rldistill.__file__).parents[1]
CARTPOLE = make_task("CartPole-v1")


@dataclass
class Outcome:
    status: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command in this process: starting Python and importing torch takes seconds each time."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["rldistill", *map(str, words)])
        capsys.readouterr()
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            assert isinstance(end.code, int)
            status = end.code
        outcome = capsys.readouterr()
        return Outcome(status, outcome.out, outcome.err)

    return run


def policy(path: Path, task: Task = CARTPOLE, network: str = "mlp:4", seed: int = 0) -> Path:
    score = {"mean": 10.0, "ci_low": 9.0, "ci_high": 11.0, "episodes": 30, "epsilon": 0.01}
    made = build(Architecture(network, task.observation_shape, task.num_actions), seed)
    save_policy(path, made, task, {"score": score})
    return path


SMALL = ["--student", "mlp:4", "--steps", "300", "--num-envs", "4", "--warmup", "60"]
SMALL += ["--evaluate-episodes", "1", "--evaluate-every", "0"]


# Verbs


EXPORT_FLAGS = ["out", "format", "force", "json"]
PUSH_FLAGS = ["repo", "out", "dry_run", "with", "force"]
WATCH_FLAGS = ["out", "force"]
CONFIGS = {
    "demo": None,
    "train": TrainConfig,
    "record": RecordConfig,
    "dataset": None,
    "distill": DistillConfig,
    "evaluate": EvaluateConfig,
    "starts": StartsConfig,
    "inspect": InspectConfig,
    "report": ReportConfig,
    "split": None,
    "study": StudyConfig,
    "export": ExportConfig,
    "push": PushConfig,
    "watch": WatchConfig,
}


@pytest.mark.parametrize("verb", CONFIGS)
def test_help_names_every_flag(command: Command, verb: str) -> None:
    outcome = command(verb, "--help")
    assert outcome.status == 0
    config = CONFIGS[verb]
    flags = list(flat(config())) if config else {"demo": ["seed"], "split": ["task", "out"]}.get(verb, [])
    more = {"evaluate": ["json"], "starts": ["out"], "report": ["out"], "record": ["append"], "study": ["out"]}
    more |= {"export": EXPORT_FLAGS, "push": PUSH_FLAGS, "watch": WATCH_FLAGS}
    flags += more.get(verb, [])
    flags += ["resume"] if verb in ("train", "distill") else []
    takes_files = verb in ("record", "distill", "evaluate", "starts", "inspect", "watch")
    flags += [field.name for field in fields(TeacherOptions)] if takes_files else []
    missing = [flag for flag in flags if f"--{flag.replace('_', '-')} " not in outcome.out.replace(",", " ")]
    assert not missing
    if verb != "demo":
        assert f"rldistill {verb} " in outcome.out, "it teaches by an example"


DATASET_FLAGS = {
    "info": ["verify", "no-verify", "json"],
    "head": ["rows", "episode", "picture"],
    "merge": ["out", "mixed-teachers"],
    "convert": ["to", "out", "teacher", "env", *[field.name.replace("_", "-") for field in fields(TeacherOptions)]],
}


@pytest.mark.parametrize("verb", DATASET_FLAGS)
def test_help_of_dataset_names_every_flag(command: Command, verb: str) -> None:
    assert set(DATASET_FLAGS) == set(cli.DATASET_VERBS)
    assert verb in command("dataset", "--help").out
    outcome = command("dataset", verb, "--help")
    assert outcome.status == 0
    assert not [flag for flag in DATASET_FLAGS[verb] if f"--{flag} " not in outcome.out.replace(",", " ")]
    assert f"Example: rldistill dataset {verb} " in outcome.out


def test_dataset_is_looked_into_merged_and_converted(tmp_path: Path, command: Command) -> None:
    teacher = policy(tmp_path / "teacher")
    for name, seed in (("a", 0), ("b", 1)):
        words = ["--steps", 200, "--shard-steps", 100, "--seed", seed]
        assert command("record", "--teacher", teacher, *words, "--out", tmp_path / name).status == 0
    assert command("dataset", "merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "c").status == 0
    outcome = command("dataset", "info", tmp_path / "c", "--json", tmp_path / "info.json")
    assert outcome.status == 0
    assert dict(line.split(maxsplit=1) for line in outcome.out.splitlines())["environment"] == "CartPole-v1"
    assert json.loads((tmp_path / "info.json").read_text())["control_steps"] == 400
    outcome = command("dataset", "head", tmp_path / "c", "-n", 3)
    assert outcome.status == 0
    assert outcome.out.count("│") == 3 * 7, "three rows of six columns"
    outcome = command("dataset", "convert", tmp_path / "c", "--to", "parquet", "--out", tmp_path / "p")
    assert outcome.status == 0
    assert "note: " in outcome.out
    assert command("dataset", "convert", tmp_path / "p", "--to", "rldistill", "--out", tmp_path / "back").status == 0
    assert {file.name: file.read_bytes() for file in (tmp_path / "back").iterdir()} == {
        file.name: file.read_bytes() for file in (tmp_path / "c").iterdir()
    }


def test_info_of_a_damaged_dataset_says_what_there_is_and_ends_with_2(shelf: Path, command: Command) -> None:
    outcome = command("dataset", "info", shelf / "flipped-shard")
    assert "CartPole-v1" in outcome.out
    refused(outcome, "1 of 2 shards of")
    assert "shard-00001.arrow" in outcome.err


def test_help_names_every_verb(command: Command) -> None:
    outcome = command("--help")
    assert outcome.status == 0
    assert set(CONFIGS) == set(cli.VERBS)
    assert all(verb in outcome.out for verb in CONFIGS)


@pytest.mark.slow
def test_verbs_follow_each_other_from_a_teacher_to_a_page(tmp_path: Path, command: Command) -> None:
    teacher, data, student = tmp_path / "teacher", tmp_path / "data", tmp_path / "student"
    played, offline = tmp_path / "student", tmp_path / "offline"
    outcome = command("train", "CartPole-v1", "--steps", 400, "--final-episodes", 2, "--seed", 3, "--out", teacher)
    assert (outcome.status, outcome.out) == (0, "")
    assert "mean return" in outcome.err
    assert command("record", "--teacher", teacher, "--steps", 300, "--out", data).status == 0
    assert {"dataset.json", "shard-00000.arrow"} <= {path.name for path in data.iterdir()}
    assert command("distill", "--teacher", teacher, *SMALL, "--out", played).status == 0
    options = ["--dataset", data, "--updates", 20, "--student", "mlp:4", "--evaluate-episodes", 1]
    assert command("distill", "--teacher", teacher, *options, "--out", offline).status == 0
    assert {path.name for path in student.iterdir()} == {"config.json", "metrics.jsonl", "policy"}
    assert load_policy(student).provenance["command"].startswith("rldistill distill --teacher")

    scores = tmp_path / "scores.json"
    outcome = command(
        "evaluate", teacher, played, offline, "--episodes", 4, "--epsilon", 0.01, "--seed", 1, "--json", scores
    )
    assert outcome.status == 0
    assert outcome.out.count("mlp:4") == 2
    table = json.loads(scores.read_text())
    assert [Path(row["policy"]).name for row in table] == ["teacher", "student", "offline"]
    for row in table:
        assert {
            "policy", "parameters", "bytes", "episodes", "returns", "mean", "iqm", "ci_low", "ci_high", "ratio",
            "normalized", "agreement", "microseconds",
        } <= set(row)  # fmt: skip
        assert len(row["returns"]) == row["episodes"] == 4
        assert sum(row["returns"]) / 4 == pytest.approx(row["mean"])
    assert table[1]["parameters"] == 4 * 4 + 4 + 4 * 2 + 2

    page = tmp_path / "page.html"
    outcome = command("report", student, "--out", page, "--episodes", 2, "--seconds", 0)
    assert (outcome.status, outcome.out.strip()) == (0, str(page))
    assert page.read_text().startswith("<!")


@pytest.mark.slow
def test_a_machine_without_memory_is_one_line(tmp_path: Path) -> None:
    words = ["train", "CartPole-v1", "--network", "mlp:65536,65536", "--out", str(tmp_path / "run")]  # 17 GB
    script = (
        "import resource, sys, rldistill.cli\n"
        "resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, resource.getrlimit(resource.RLIMIT_AS)[1]))\n"
        f"sys.argv = ['rldistill', *{words!r}]\n"
        "rldistill.cli.main()\n"
    )
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert outcome.returncode == 2
    assert re.fullmatch(r"rldistill: error: the machine has no memory left for this: take [^\n]*\n", outcome.stderr)
    assert not (tmp_path / "run").exists()


def test_finished_run_with_resume_is_done_at_once(tmp_path: Path, command: Command) -> None:
    teacher = policy(tmp_path / "teacher")
    words = ["distill", "--teacher", teacher, *SMALL, "--out", tmp_path / "run"]
    assert command(*words).status == 0
    outcome = command(*words, "--resume")
    assert outcome.status == 0
    assert "is finished already" in outcome.err


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("train", "--resume"),
        ("distill", "--resume"),
        ("record", "--append"),
        ("report", "RUN/scores.json"),
        ("watch", "nothing"),
    ],
)
def test_ctrl_c_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, command: Command, verb: str, words: str) -> None:
    def pressed() -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.VERBS, verb, pressed)
    outcome = command(verb)
    assert outcome.status == 130
    assert outcome.err.startswith("rldistill: interrupted; ")
    assert words in outcome.err
    assert outcome.err.count("\n") == 1


def test_version_is_said_without_importing_the_verbs(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit(1)")
    places = os.pathsep.join([str(tmp_path), str(SOURCE)])
    words = [sys.executable, "-m", "rldistill", "--version"]
    done = subprocess.run(words, env=os.environ | {"PYTHONPATH": places}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"rldistill {rldistill.__version__}\n")


@pytest.mark.slow
def test_ctrl_c_while_the_command_is_imported_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "tyro.py").write_text("raise KeyboardInterrupt")
    places = os.pathsep.join([str(tmp_path), str(SOURCE)])
    words = [sys.executable, "-m", "rldistill", "--help"]
    done = subprocess.run(words, env=os.environ | {"PYTHONPATH": places}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "rldistill: interrupted; nothing was written\n")


@pytest.mark.slow
def test_demo_makes_student_scores_and_page_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    pytest.importorskip("minatar")
    # A game that costs nothing to play, in the place where the demo looks for Pong.
    policy(tmp_path / "policies" / "pong", make_task("MinAtar/Breakout-v1"), "cnn:4:16")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "STEPS", 320)
    assert command("demo").status == 0
    assert {"config.json", "policy", "scores.json", "report.html"} <= {path.name for path in Path("demo").iterdir()}
    before = Path("demo/policy/weights.safetensors").read_bytes()
    again = command("demo")
    assert again.status == 0
    assert "finished already" in again.err
    assert "demo/report.html" in again.out
    assert Path("demo/policy/weights.safetensors").read_bytes() == before


def test_the_teacher_of_the_demo_is_found_from_any_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_policy(demo.shipped_policy("pong")).task.env == "PongNoFrameskip-v4"


def test_demo_without_its_teacher_says_so() -> None:
    with pytest.raises(UserError, match="no policies/tetris here: run this in a checkout"):
        demo.shipped_policy("tetris")


def test_inspect_prints_what_a_zip_is_and_how_it_plays(tmp_path: Path, command: Command) -> None:
    not_normalized = {"_last_obs": {}, "_last_original_obs": None}
    zipped = balancing_zip(tmp_path / "ppo-CartPole-v1.zip", sign=-1.0, changes=not_normalized)
    outcome = command("inspect", zipped, "--play", 2, "--epsilon", 0)
    assert outcome.status == 0
    lines = dict(line.split(maxsplit=1) for line in outcome.out.splitlines())
    assert lines["format"] == "Stable-Baselines3 zip"
    assert (lines["algorithm"], lines["environment"], lines["parameters"]) == ("PPO", "CartPole-v1", "16")
    assert "in 2 games, epsilon 0" in lines["plays"]
    outcome = command("inspect", zipped, "--env", "Acrobot-v1")
    assert outcome.status == 0, "what does not fit is told, not refused"
    unfit = [line for line in outcome.out.splitlines() if line.lstrip().startswith("does not fit")]
    assert len(unfit) == 2, "another shape, and other actions"
    assert "notes" not in outcome.out
    assert list(tmp_path.iterdir()) == [zipped]


def test_student_sees_the_parts_that_the_command_names(tmp_path: Path, levers: str, command: Command) -> None:
    task = make_task(levers)
    save_policy(
        tmp_path / "teacher", build(Architecture("mlp:4", (6,), 5), 0, "logits"), task, {"score": {"mean": 1.0}}
    )
    words = ["distill", "--teacher", tmp_path / "teacher", *SMALL, "--out", tmp_path / "run"]
    assert command(*words, "--student-observation", "wind", "age").status == 0
    assert load_policy(tmp_path / "run").network.architecture.reads == (4, 5, 0)


# Wrong input


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def refused(outcome: Outcome, words: str) -> None:
    assert outcome.status == 2
    assert outcome.err.startswith("rldistill: error: ")
    assert outcome.err.count("\n") == 1, outcome.err
    assert "Traceback" not in outcome.err
    assert words in outcome.err


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Policies and a dataset, good and damaged."""
    shelf = tmp_path_factory.mktemp("shelf")
    good = policy(shelf / "good")
    policy(shelf / "three", make_task("Acrobot-v1"))
    policy(shelf / "misfit", CARTPOLE.from_dict(CARTPOLE.as_dict() | {"num_actions": 3}))
    (shelf / "empty").mkdir()
    (shelf / "notes.txt").write_text("no policy")
    (shelf / "film.gif").write_bytes(b"mine")
    balancing_zip(shelf / "zip" / "ppo-CartPole-v1.zip")
    balancing_zip(shelf / "zip" / "unnamed.zip")
    (shelf / "zip" / "cut.zip").write_bytes((shelf / "zip" / "unnamed.zip").read_bytes()[:-300])
    for name in ("cut-weights", "flipped-weights", "cut-card", "flipped-card", "no-weights"):
        shutil.copytree(good, shelf / name)
        file = shelf / name / ("policy.json" if "card" in name else "weights.safetensors")
        data = file.read_bytes()
        half = len(data) // 2
        file.write_bytes(data[:half] if "cut" in name else data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :])
        if name == "no-weights":
            file.unlink()
    record(good, shelf / "data", RecordConfig(steps=200, num_envs=2, shard_steps=100))
    for name in ("cut-shard", "flipped-shard", "no-shard", "cut-dataset-card"):
        shutil.copytree(shelf / "data", shelf / name)
        file = shelf / name / ("dataset.json" if "card" in name else "shard-00001.arrow")
        data = file.read_bytes()
        half = len(data) // 2
        file.write_bytes(data[:half] if "cut" in name else data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :])
        if name == "no-shard":
            file.unlink()
    return shelf


BAD = {
    "unknown game": ("train ALE/Pnog-v5 --out {out}", "unknown Atari game 'Pnog'; did you mean Pong"),
    "unknown environment": ("train CartPole-v9 --out {out}", "unknown environment 'CartPole-v9'"),
    "train no steps": ("train CartPole-v1 --steps 0 --out {out}", "--steps is at least 1, not 0"),
    "train nothing": ("train --out {out}", "there is no environment"),
    "train a task twice": ("train CartPole-v1 CartPole-v1 --out {out}", "CartPole-v1 is named twice"),
    "train negative steps": ("train CartPole-v1 --steps -3 --out {out}", "--steps is at least 1, not -3"),
    "record no steps": ("record --teacher {shelf}/good --steps 0 --out {out}", "--steps is at least 1, not 0"),
    "distill no steps": ("distill --teacher {shelf}/good --steps 0 --out {out}", "--steps is at least 1, not 0"),
    "distill negative updates": (
        "distill --teacher {shelf}/good --dataset {shelf}/data --updates -1 --out {out}", "--updates is at least 1"),
    "no episodes": ("evaluate {shelf}/good --episodes 0", "--episodes is at least 1, not 0"),
    "unknown student": ("distill --teacher {shelf}/good --student net9 --out {out}", "unknown network 'net9'"),
    "unknown loss": ("distill --teacher {shelf}/good --student mlp:4 --loss l3 --out {out}", "unknown loss 'l3'"),
    "missing teacher": ("distill --teacher {shelf}/absent --out {out}", "no policy folder at"),
    "empty teacher": ("distill --teacher {shelf}/empty --out {out}", "has no policy.json"),
    "teacher without weights": ("distill --teacher {shelf}/no-weights --out {out}", "has no weights.safetensors"),
    "teacher's weights cut": ("distill --teacher {shelf}/cut-weights --out {out}", "is damaged"),
    "teacher's weights flipped": ("record --teacher {shelf}/flipped-weights --out {out}", "is damaged"),
    "teacher's card cut": ("evaluate {shelf}/good {shelf}/cut-card", "is damaged"),
    "teacher's card flipped": ("evaluate {shelf}/flipped-card", "damaged"),
    "actions do not fit": (
        "distill --teacher {shelf}/good --env Acrobot-v1 --student mlp:4 --out {out}",
        "Acrobot-v1 has 3 discrete actions, the teacher 2 discrete actions"),
    "actions do not fit the teacher's own": (
        "distill --teacher {shelf}/misfit --student mlp:4 --out {out}",
        "has 2 discrete actions here, the policy's task says 3 discrete actions"),
    "observations do not fit": (
        "distill --teacher {shelf}/three --env MountainCar-v0 --student mlp:4 --out {out}",
        "observations of shape (2,), the teacher (6,)"),
    "missing dataset": (
        "distill --teacher {shelf}/good --dataset {shelf}/absent --student mlp:4 --out {out}", "absent"),
    "dataset without card": (
        "distill --teacher {shelf}/good --dataset {shelf}/empty --student mlp:4 --out {out}", "empty"),
    "dataset's card cut": (
        "distill --teacher {shelf}/good --dataset {shelf}/cut-dataset-card --student mlp:4 --out {out}", "damaged"),
    "dataset of another task": (
        "distill --teacher {shelf}/three --dataset {shelf}/data --student mlp:4 --out {out}", "has 2 discrete actions"),
    "zip without environment": (
        "distill --teacher {shelf}/zip/unnamed.zip --student mlp:4 --out {out}", "name it with --env"),
    "zip that does not fit": (
        "record --teacher {shelf}/zip/ppo-CartPole-v1.zip --env Acrobot-v1 --out {out}", "--accept-mismatch goes on"),
    "zip cut": ("evaluate {shelf}/zip/cut.zip --env CartPole-v1", "cut.zip"),
    "file of no kind": ("inspect {shelf}/notes.txt", "is no policy that rldistill knows"),
    "nothing to inspect": ("inspect {shelf}/absent", "no policy folder at"),
    "inspect negative games": ("inspect {shelf}/good --play -1", "--play is at least 0, not -1"),
    "inspect epsilon": ("inspect {shelf}/good --play 1 --epsilon 2", "--epsilon lies between 0 and 1, not 2.0"),
    "inspect seed": ("inspect {shelf}/good --play 1 --seed -1", "--seed is at least 0, not -1"),
    "inspect another environment": (
        "inspect {shelf}/zip/unnamed.zip --env Acrobot-v1 --play 1", "cannot play Acrobot-v1: it reads (4,)"),
    "statistics that are none": (
        "inspect {shelf}/zip/ppo-CartPole-v1.zip --normalization {shelf}/notes.txt", "notes.txt"),
    "part of no observation": (
        "distill --teacher {shelf}/good --student mlp:4 --student-observation age --out {out}", "they have no named parts"),
    "existing out": ("distill --teacher {shelf}/good --student mlp:4 --out {shelf}/empty", "exists: continue it with --resume"),
    "existing out of train": ("train CartPole-v1 --out {shelf}/good", "good is no run folder"),
    "existing out of record": ("record --teacher {shelf}/good --out {shelf}/data", "exists: add to it with --append"),
    "resume of no run": ("distill --teacher {shelf}/good --student mlp:4 --out {shelf}/good --resume", "is no run folder"),
    "scores over something else": ("evaluate {shelf}/good --json {shelf}/good/policy.json", "holds no scores"),
    "info of no dataset": ("dataset info {shelf}/good", "is no dataset folder: it has no dataset.json"),
    "head of no such episode": ("dataset head {shelf}/data --episode 999", "there is no episode 999 in"),
    "head of a cut shard": ("dataset head {shelf}/cut-shard", "shard-00001.arrow"),
    "picture of vectors": ("dataset head {shelf}/data --picture {out}", "there is nothing to draw"),
    "merge one": ("dataset merge {shelf}/data --out {out}", "merge takes two datasets or more"),
    "merge twice the same": ("dataset merge {shelf}/data {shelf}/data --out {out}", "are the same play"),
    "convert nothing": ("dataset convert {shelf}/absent --to parquet --out {out}", "there is nothing at"),
    "convert no dataset": ("dataset convert {shelf}/good --to parquet --out {out}", "good is no dataset"),
    "convert a flipped shard": (
        "dataset convert {shelf}/flipped-shard --to parquet --out {out}", "shard-00001.arrow is damaged"),
    "convert to what it is": ("dataset convert {shelf}/data --to rldistill --out {out}", "in the format rldistill already"),
    "existing out of convert": ("dataset convert {shelf}/data --to parquet --out {shelf}/empty", "choose another --out"),
    "watch nothing": ("watch {shelf}/absent --out {out}.gif", "no policy folder at"),
    "watch three": ("watch {shelf}/good {shelf}/good {shelf}/good --out {out}.gif", "not 3"),
    "watch no film": ("watch {shelf}/good --out {out}.avi", "ends in .avi: watch writes .gif and .mp4 files"),
    "watch over a file": ("watch {shelf}/good --out {shelf}/film.gif", "film.gif exists: replace it with --force"),
    "watch two games": (
        "watch {shelf}/good {shelf}/three --out {out}.gif", "three has 3 discrete actions, but CartPole-v1 has 2"),
    "watch no episodes": ("watch {shelf}/good --episodes 0 --out {out}.gif", "--episodes is at least 1, not 0"),
    "a name too long": ("record --teacher {shelf}/good --out {out}" + 300 * "x", "File name too long"),
    "report of no run": ("report {shelf}/good", "is no run folder"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
@pytest.mark.slow
def test_wrong_input_is_one_line_and_status_2_and_touches_nothing(
    tmp_path: Path, shelf: Path, command: Command, case: str
) -> None:
    line, words = BAD[case]
    before = tree(shelf)
    outcome = command(*line.format(shelf=shelf, out=tmp_path / "out").split())
    refused(outcome, words)
    assert outcome.out == ""
    assert tree(shelf) == before
    assert not list(tmp_path.iterdir()), "no folder is left behind"


@pytest.mark.parametrize("name", ["cut-shard", "flipped-shard", "no-shard"])
def test_damaged_shard_is_refused_by_its_name(tmp_path: Path, shelf: Path, command: Command, name: str) -> None:
    before = tree(shelf)
    outcome = command(
        "distill",
        "--teacher",
        shelf / "good",
        "--dataset",
        shelf / name,
        "--student",
        "mlp:4",
        "--out",
        tmp_path / "out",
    )
    refused(outcome, "shard-00001.arrow")
    assert tree(shelf) == before


def test_resuming_with_another_configuration_names_the_field(tmp_path: Path, shelf: Path, command: Command) -> None:
    words = ["distill", "--teacher", shelf / "good", *SMALL, "--out", tmp_path / "run"]
    assert command(*words).status == 0
    before = tree(tmp_path)
    refused(command(*words, "--seed", 4, "--resume"), "was begun with seed = 0, not 4")
    refused(command(*words, "--loss", "nll", "--resume"), 'was begun with loss = "auto", not "nll"')
    refused(command(*words), "exists: continue it with --resume, or choose another --out")
    assert tree(tmp_path) == before


@pytest.mark.slow
def test_wrong_input_to_the_real_command(tmp_path: Path, shelf: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "rldistill",
            "distill",
            "--teacher",
            str(shelf / "cut-weights"),
            "--out",
            str(tmp_path / "out"),
        ],
        env=os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    refused(Outcome(done.returncode, done.stdout, done.stderr), "cut-weights")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_export_ends_with_a_table_and_its_file_is_evaluated(command: Command, tmp_path: Path) -> None:
    folder, out = policy(tmp_path / "policy"), tmp_path / "p.pt"
    few = ["--states", "50", "--calibration", "10", "--episodes", "2"]
    outcome = command("export", folder, "--format", "torchscript", "--out", out, *few)
    assert outcome.status == 0, outcome.err
    assert "eager torch" in outcome.out
    assert "torchscript" in outcome.out
    assert str(out) in outcome.out
    refused = command("export", folder, "--format", "torchscript", "--out", out, *few)
    assert (refused.status, refused.out) == (2, "")
    assert refused.err.count("\n") == 1
    assert "--force" in refused.err
    assert command("export", folder, "--format", "torchscript", "--out", out, "--force", *few).status == 0
    assert command("export", folder, "--format", "tar", "--out", tmp_path / "q", *few).status == 2
    scored = command("evaluate", folder, out, "--episodes", "2")
    assert scored.status == 0, scored.err
    assert "p.pt" in scored.out


def test_push_writes_the_folder_and_says_what_is_in_it(command: Command, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    folder, out = policy(tmp_path / "policy"), tmp_path / "hub"
    words = ["push", folder, "--repo", "me/pole", "--dry-run", "--out", out, "--episodes", 2, "--seconds", 0]
    outcome = command(*words)
    assert outcome.status == 0, outcome.err
    assert "me/pole" in outcome.out
    assert outcome.out.splitlines()[-1] == f"{out}: README.md, policy.json, scores.json, weights.safetensors"
    before = tree(tmp_path)
    refused(command(*words), "exists: replace it with --force")
    refused(command("push", folder, "--repo", "pole", "--dry-run", "--out", tmp_path / "x"), "write --repo owner/name")
    assert tree(tmp_path) == before
    balancing_zip(tmp_path / "ppo-CartPole-v1.zip")
    words = ["push", tmp_path / "ppo-CartPole-v1.zip", "--repo", "me/x", "--dry-run", "--out", tmp_path / "x"]
    refused(command(*words), "push takes policies of rldistill; distil this one into a student first")


@pytest.mark.slow
def test_watch_writes_a_film_and_says_how_it_went(tmp_path: Path, levers: str, command: Command) -> None:
    task = make_task(levers)
    for name, seed in (("teacher", 0), ("student", 1)):
        save_policy(tmp_path / name, build(Architecture("mlp:4", (6,), 5), seed, "logits"), task, {})
    out = tmp_path / "levers.gif"
    words = ["watch", tmp_path / "teacher", tmp_path / "student", "--episodes", 2, "--out", out]
    outcome = command(*words)
    assert outcome.status == 0, outcome.err
    assert out.read_bytes().startswith(b"GIF89a")
    assert outcome.out.count(" 20 ") == 2, "two games of ten steps each"
    assert outcome.out.endswith(f"{out}\n")
    refused(command(*words), "--force")
    assert command(*words, "--force").status == 0


@pytest.mark.parametrize("flag", ["--teacher", "--env-kwargs", "--env_kwargs", "--student-observation"])
def test_a_flag_of_several_values_is_given_once(command: Command, tmp_path: Path, flag: str) -> None:
    """The parser takes the last one, and a student would have one teacher of two."""
    words = ["distill", "--teacher", "policies/pong", "--out", tmp_path / "run"]
    done = command(*words, *([flag, "a"] if flag == "--teacher" else [flag, "a", flag, "b"]))
    assert done.status == 2
    assert f"{flag.replace('_', '-')} is given twice" in done.err
    assert not (tmp_path / "run").exists()
