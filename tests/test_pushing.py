"""The verb `push`: the folder, its card, what goes along, and a hub that takes it or does not."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hub_server import TOKEN, Hub, serving
from rldistill.formats.c.compiling import compiler
from rldistill.formats.hub.download import Card, read_card
from rldistill.formats.note import note_of
from rldistill.formats.torchscript.writing import to_torchscript
from rldistill.play.envs import make_task
from rldistill.policies import SavedPolicy, load_policy, save_policy
from rldistill.progress import Silent
from rldistill.runs.scores import read_scores
from rldistill.students.networks import Architecture, build
from rldistill.teachers import load_teacher
from rldistill.types import Task, UserError
from rldistill.verbs import push as pushing
from rldistill.verbs.evaluate import EvaluateConfig, evaluate
from rldistill.verbs.export import ExportConfig, export
from rldistill.verbs.push import PushConfig, Pushed, push
from test_ccode import NO_COMPILER

hub_package = pytest.importorskip("huggingface_hub")

QUICK = PushConfig(episodes=3, epsilon=0.1, seed=4, num_envs=2, seconds=0)
FEW = ExportConfig(states=60, calibration=10, episodes=1)


class Recorder(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def saved(folder: Path, task: Task, seed: int, network: str = "mlp:4", **provenance: Any) -> Path:
    save_policy(
        folder, build(Architecture(network, task.observation_shape, task.num_actions), seed, "logits"), task, provenance
    )
    return folder


@pytest.fixture(scope="module")
def task(levers: str) -> Task:
    """Ten steps a game, drawn by the environment itself."""
    return make_task(levers)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, task: Task) -> Path:
    """A teacher, and the run in which a student learnt from it."""
    shelf = tmp_path_factory.mktemp("shelf")
    saved(shelf / "teacher", task, 0, "mlp:8", command="rldistill train Levers-v0 --out teacher", algorithm="pqn")
    run = shelf / "run"
    saved(
        run / "policy", task, 1, command=f"rldistill distill --teacher {shelf}/teacher --out run", teacher=str(shelf / "teacher"),
        teacher_made_by="rldistill train Levers-v0 --out teacher", control_steps=1200, updates=77,
    )  # fmt: skip
    (run / "config.json").write_text(json.dumps({"verb": "distill", "teacher": str(shelf / "teacher"), "steps": 1200}))
    records: list[dict[str, Any]] = [
        {"event": "train", "control_steps": 100, "loss": 1.0},
        {"event": "evaluation", "control_steps": 600, "returns": [1.0, 3.0]},
        {"event": "evaluation", "control_steps": 1200, "returns": [4.0, 5.0]},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return shelf


@pytest.fixture(scope="module")
def written(shelf: Path) -> tuple[Pushed, Path, list[str]]:
    """A dry run of the run folder, with pictures."""
    recorder, out = Recorder(), shelf / "hub"
    done = push(
        shelf / "run", "me/levers", replace(QUICK, seconds=1, license="mit"), out=out, dry_run=True, progress=recorder
    )
    return done, out, recorder.lines


def refused(says: str, *words: Any, **options: Any) -> str:
    with pytest.raises(UserError, match=says) as caught:
        push(*words, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


# The folder


def test_the_folder_is_a_policy_folder_that_plays_the_same(
    written: tuple[Pushed, Path, list[str]], shelf: Path
) -> None:
    done, out, _ = written
    names = ["README.md", "config.json", "curve.csv", "policy.json", "replay.mp4", "scores.json", "weights.safetensors"]
    assert list(done.files) == sorted(names) == sorted(path.name for path in out.iterdir())
    assert (done.folder, done.url) == (out, None)
    ours, theirs = load_policy(shelf / "run"), load_teacher(out)
    assert isinstance(theirs, SavedPolicy)
    assert (theirs.sha256, theirs.task, theirs.provenance) == (ours.sha256, ours.task, ours.provenance)
    observations = np.random.default_rng(0).normal(size=(100, 6)).astype(np.float32)
    assert np.array_equal(ours.predict(observations)[0], theirs.predict(observations)[0])
    assert json.loads((out / "config.json").read_text())["steps"] == 1200
    assert (out / "curve.csv").read_text() == "control_steps,mean_return\n600,2.000\n1200,4.500\n"
    assert not [path for path in shelf.iterdir() if path.name.startswith(".")], "nothing written aside stays"


def test_scores_are_those_that_evaluate_gives_teacher_first(
    written: tuple[Pushed, Path, list[str]], shelf: Path
) -> None:
    done, out, _ = written
    kept = read_scores(out / "scores.json")
    assert [score.as_dict() for score in kept] == [score.as_dict() for score in done.scores]
    wanted = evaluate([shelf / "teacher", shelf / "run"], EvaluateConfig(3, 0.1, 4, 2))
    assert [score.policy for score in kept] == [str(shelf / "teacher"), "me/levers"]
    for ours, theirs in zip(kept, wanted, strict=True):
        assert (ours.returns, ours.ci_low, ours.agreement) == (theirs.returns, theirs.ci_low, theirs.agreement)
    assert kept[1].normalized == wanted[1].normalized


def test_the_card_s_metadata_is_what_the_hub_s_leaderboards_read(written: tuple[Pushed, Path, list[str]]) -> None:
    yaml = pytest.importorskip("yaml")
    done, out, _ = written
    text = (out / "README.md").read_text()
    _, block, body = text.split("---\n", 2)
    returns = done.scores[1].returns
    mean = sum(returns) / 3
    std = (sum((value - mean) ** 2 for value in returns) / 3) ** 0.5
    assert yaml.safe_load(block) == {
        "license": "mit",
        "library_name": "rldistill",
        "pipeline_tag": "reinforcement-learning",
        "tags": ["Levers-v0", "deep-reinforcement-learning", "policy-distillation"],
        "model-index": [{"name": "levers", "results": [{
            "task": {"type": "reinforcement-learning", "name": "reinforcement-learning"},
            "dataset": {"name": "Levers-v0", "type": "Levers-v0"},
            "metrics": [{"type": "mean_reward", "value": f"{mean:.2f} +/- {std:.2f}", "name": "mean_reward", "verified": False}],
        }]}],
    }  # fmt: skip
    assert read_card(out) == Card("Levers-v0", "rldistill", "levers"), "and our own reader of cards"
    assert body.startswith("\n# levers\n")


def test_the_card_s_page_tells_figures_origin_protocol_and_use(
    written: tuple[Pushed, Path, list[str]], shelf: Path
) -> None:
    done, out, _ = written
    lines = (out / "README.md").read_text().splitlines()
    student = done.scores[1]
    assert student.parameters == 6 * 4 + 4 + 4 * 5 + 5
    table = [line for line in lines if line.startswith("| `") and "ci" not in line and " mlp:" in line]
    assert len(table) == 2
    assert table[0].startswith(f"| `{shelf}/teacher` (teacher) | mlp:8 | {6 * 8 + 8 + 8 * 5 + 5} |")
    spread = f"{student.mean:.2f} ± {np.std(student.returns):.2f} | {student.ci_low:.2f} to {student.ci_high:.2f}"
    assert table[1].startswith(f"| `me/levers` (this policy) | mlp:4 | 53 | {student.bytes:,} | {spread} |")
    page = "\n".join(lines)
    for part in (
        "* 3 full games in `Levers-v0`, seed 4",
        "with probability 0.1 (epsilon)",
        "Sticky actions: none; no no-ops",
        'rldistill.load_teacher("hf://me/levers")',
        "rldistill evaluate hf://me/levers --episodes 3 --epsilon 0.1 --seed 4",
        f"    rldistill distill --teacher {shelf}/teacher --out run\n",
        "    rldistill train Levers-v0 --out teacher\n",
        "* control steps played: 1,200",
        "* gradient updates: 77",
        f"{100 * 53 / 101:.3g} % of the teacher's parameters",
    ):
        assert part in page, part


def test_the_replay_is_as_long_as_asked_at_the_game_s_own_speed(written: tuple[Pushed, Path, list[str]]) -> None:
    av = pytest.importorskip("av")
    _, out, _ = written
    with av.open(str(out / "replay.mp4")) as film:
        (stream,) = film.streams.video
        rate, pictures = float(stream.average_rate), sum(1 for _ in film.decode(stream))
    # One second of play, and the last picture for a second, as `watch` has it.
    assert pictures == 2 * rate


def test_without_the_package_for_it_the_replay_is_a_gif_and_that_is_said(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    recorded = Recorder()
    config = PushConfig(episodes=2, seconds=0.2, teacher="none")
    done = push(shelf / "run", "me/levers", config, out=tmp_path / "hub", dry_run=True, progress=recorded)
    assert "replay.gif" in done.files
    assert any("rldistill[video]" in line for line in recorded.lines)
    assert "![The policy at play](replay.gif)" in (tmp_path / "hub" / "README.md").read_text()


def test_folders_of_this_machine_in_what_is_published_are_told(
    written: tuple[Pushed, Path, list[str]], shelf: Path, task: Task, tmp_path: Path
) -> None:
    _, _, recorded = written
    assert any(
        line.startswith("note: folders of this machine stand in policy.json and config.json and scores.json, ")
        for line in recorded
    )
    recorder = Recorder()
    plain = saved(
        tmp_path / "plain", task, 0, command="rldistill train ALE/Pong-v5 --out runs/a/b", teacher="hf://a/b/c"
    )
    push(plain, "me/x", replace(QUICK, teacher="none"), out=tmp_path / "out", dry_run=True, progress=recorder)
    assert not any("folders of this machine" in line for line in recorder.lines)


def test_a_policy_whose_teacher_is_gone_stands_alone(task: Task, tmp_path: Path) -> None:
    recorder = Recorder()
    place = saved(tmp_path / "policy", task, 1, teacher="runs/gone")
    done = push(place, "me/x", QUICK, out=tmp_path / "out", dry_run=True, progress=recorder)
    assert (
        "the teacher runs/gone is left out: no policy folder at runs/gone (--teacher names another)" in recorder.lines
    )
    assert [score.policy for score in done.scores] == ["me/x"]
    assert set(done.files) == {"README.md", "policy.json", "scores.json", "weights.safetensors"}
    text = (tmp_path / "out" / "README.md").read_text()
    assert "distilled by rldistill from the teacher `runs/gone`" in text
    assert "agreement" not in text.lower(), "with nothing"


def test_a_policy_that_nobody_taught_is_not_called_distilled(shelf: Path, tmp_path: Path) -> None:
    for name, config in (("alone", QUICK), ("beside", replace(QUICK, teacher=str(shelf / "run")))):
        done = push(shelf / "teacher", "me/x", config, out=tmp_path / name, dry_run=True)
        assert len(done.scores) == 1 + (name == "beside")
        text = (tmp_path / name / "README.md").read_text()
        assert "policy-distillation" not in text
        assert "distilled" not in text
        assert "(teacher)" not in text
        assert "* algorithm: pqn" in text


def test_a_student_without_its_teacher_in_the_table_is_one_still(shelf: Path, tmp_path: Path) -> None:
    done = push(shelf / "run", "me/x", replace(QUICK, teacher="none"), out=tmp_path / "out", dry_run=True)
    assert len(done.scores) == 1
    text = (tmp_path / "out" / "README.md").read_text()
    assert "- policy-distillation" in text
    assert f"distilled by rldistill from the teacher `{shelf}/teacher`" in text


def test_given_scores_are_taken_as_they_are(shelf: Path, tmp_path: Path) -> None:
    file = tmp_path / "scores.json"
    wanted = evaluate([shelf / "teacher", shelf / "run"], EvaluateConfig(2, 0.25, 9), json=file)
    config = replace(QUICK, scores=file)
    done = push(shelf / "run", "me/x", config, out=tmp_path / "out", dry_run=True)
    assert [score.returns for score in done.scores] == [score.returns for score in wanted]
    assert "* 2 full games in `Levers-v0`, seed 9" in (tmp_path / "out" / "README.md").read_text()
    evaluate([shelf / "teacher"], EvaluateConfig(2, 0.25, 9), json=tmp_path / "others.json")
    for name, says in (("others.json", "others.json has no scores of this policy"), ("none.json", "cannot read")):
        config = replace(QUICK, scores=tmp_path / name)
        refused(says, shelf / "run", "me/x", config, out=tmp_path / "out2", dry_run=True)
    assert not (tmp_path / "out2").exists()


# Exports


@pytest.fixture
def few_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports made here are checked, on fewer states."""
    monkeypatch.setattr(pushing, "ExportConfig", partial(ExportConfig, states=60, calibration=10, episodes=1))
    monkeypatch.setattr(pushing, "STATES", 80)


@pytest.mark.usefixtures("few_states")
@pytest.mark.slow
def test_exports_made_now_and_before_go_along(shelf: Path, tmp_path: Path) -> None:
    formats = ["torchscript", *(["c"] if compiler() is not None else [])]
    before = [tmp_path / "mine.pt", *([tmp_path / "mine.c"] if compiler() is not None else [])]
    for file, format in zip(before, formats, strict=True):
        export(shelf / "run", file, format, FEW)  # type: ignore[arg-type]  # a literal out of a list
    config = replace(QUICK, exports=("torchscript", "torchscript"))
    out = tmp_path / "out"
    done = push(shelf / "run", "me/x", config, out=out, files=before, dry_run=True)
    there = {"exports/policy.pt", "exports/mine.pt"} | (
        {"exports/mine.c", "exports/mine.h"} if len(before) > 1 else set()
    )
    assert {name for name in done.files if name.startswith("exports/")} == there
    assert (out / "exports" / "mine.pt").read_bytes() == before[0].read_bytes()
    text = (out / "README.md").read_text()
    sizes = {name: (out / name).stat().st_size for name in there}
    asked = "chooses the policy's action in 100.00 % of"
    assert f"| `exports/policy.pt` | torchscript, {sizes['exports/policy.pt']:,} bytes; {asked} 60 states |" in text
    assert f"| `exports/mine.pt` | torchscript, {sizes['exports/mine.pt']:,} bytes; {asked} 80 states |" in text


@pytest.mark.usefixtures("few_states")
@pytest.mark.slow
def test_files_that_are_no_exports_of_this_policy_are_refused(shelf: Path, task: Task, tmp_path: Path) -> None:
    run, out = shelf / "run", tmp_path / "out"
    before: dict[str, Any] = {"out": out, "dry_run": True}
    export(shelf / "teacher", tmp_path / "teacher.pt", "torchscript", FEW)
    refused("teacher.pt is an export of another policy", run, "me/x", QUICK, files=[tmp_path / "teacher.pt"], **before)
    (tmp_path / "notes.txt").write_text("none")
    refused(
        "notes.txt was not written by rldistill export", run, "me/x", QUICK, files=[tmp_path / "notes.txt"], **before
    )
    refused("no file at", run, "me/x", QUICK, files=[tmp_path / "absent.pt"], **before)
    refused("name the C file", run, "me/x", QUICK, files=[tmp_path / "p.h"], **before)
    # It says that it is this policy's, and is not.
    own, other = load_policy(run), load_policy(saved(tmp_path / "other", task, 5))
    (tmp_path / "liar.pt").write_bytes(
        to_torchscript(other, note_of(task, "logits", {"policy_sha256": own.sha256, "parameters": 53}))
    )
    refused(
        "the liar.pt export chooses the policy's action in", run, "me/x", QUICK, files=[tmp_path / "liar.pt"], **before
    )
    export(run, tmp_path / "policy.pt", "torchscript", FEW)
    twice = replace(QUICK, exports=("torchscript",))
    refused("makes a policy.pt already", run, "me/x", twice, files=[tmp_path / "policy.pt"], **before)
    (tmp_path / "b").mkdir()
    shutil.copy(tmp_path / "policy.pt", tmp_path / "b" / "policy.pt")
    both = [tmp_path / "policy.pt", tmp_path / "b" / "policy.pt"]
    refused("two exports are called policy.pt", run, "me/x", QUICK, files=both, **before)
    assert not out.exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@NO_COMPILER
def test_a_c_file_goes_with_its_own_header_or_not_at_all(shelf: Path, tmp_path: Path) -> None:
    file = tmp_path / "p.c"
    export(shelf / "run", file, "c", FEW)
    file.with_suffix(".h").write_text(file.with_suffix(".h").read_text() + "int more;\n")
    refused("without its header p.h", shelf / "run", "me/x", QUICK, files=[file], out=tmp_path / "out", dry_run=True)
    file.with_suffix(".h").unlink()
    refused("without its header p.h", shelf / "run", "me/x", QUICK, files=[file], out=tmp_path / "out", dry_run=True)


# Wrong input


def test_wrong_input_is_refused_before_anything_is_played(shelf: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run: dict[str, Any] = {"out": out, "dry_run": True}
    for repo in (
        "levers",
        "me/levers/x",
        "me/",
        "/x",
        "a b/c",
        "me/x--y",
        "me/x.git",
        "me/..",
        "me/" + 97 * "x",
        "hf://me/x",
    ):
        refused("names no repository of the hub: write --repo owner/name", shelf / "run", repo, QUICK, **run)
    refused("--dry-run needs --out", shelf / "run", "me/x", QUICK, dry_run=True)
    for change, says in (
        ({"episodes": 0}, "--episodes is at least 1, not 0"),
        ({"epsilon": 1.5}, "--epsilon lies between 0 and 1"),
        ({"seconds": -1.0}, "--seconds lies between 0 and 600"),
        ({"license": "my own\nlicense"}, "--license is a name"),
        ({"exports": ("tar",)}, "--exports .* onnx, .*tar"),
        ({"teacher": "absent"}, "no policy folder at absent"),
    ):
        refused(says, shelf / "run", "me/x", replace(QUICK, **change), **run)
    refused("no policy folder at", tmp_path / "absent", "me/x", QUICK, **run)
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04")
    refused("a.zip is no policy folder: push takes policies of rldistill", tmp_path / "a.zip", "me/x", QUICK, **run)
    refused("there is no folder", shelf / "run", "me/x", QUICK, out=tmp_path / "b" / "c", dry_run=True)
    assert {path.name for path in tmp_path.iterdir()} == {"a.zip"}


def test_a_folder_is_replaced_only_when_told_and_only_one_that_push_wrote(
    shelf: Path, written: tuple[Pushed, Path, list[str]], tmp_path: Path
) -> None:
    out = shutil.copytree(written[1], tmp_path / "out")
    refused("exists: replace it with --force", shelf / "teacher", "me/y", QUICK, out=out, dry_run=True)
    push(shelf / "teacher", "me/y", QUICK, out=out, dry_run=True, force=True)
    assert {path.name for path in out.iterdir()} == {"README.md", "policy.json", "scores.json", "weights.safetensors"}
    (out / "thesis.tex").write_text("all my work")
    says = "is no folder that push wrote .it holds thesis.tex.: choose another --out"
    refused(says, shelf / "run", "me/x", QUICK, out=out, dry_run=True, force=True)
    says = "is no folder that push wrote .it has no card of rldistill."
    refused(says, shelf / "run", "me/x", QUICK, out=shelf / "teacher", dry_run=True, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_without_the_hub_s_package_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, shelf: Path, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused(r"pip install 'rldistill\[hub\]'", shelf / "run", "me/x", QUICK, out=tmp_path / "out", dry_run=True)


# The hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub on this machine, in the place of the real one for the hub's own package."""
    from huggingface_hub import constants

    with serving() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
        (tmp_path / "temporary").mkdir()
        yield hub


@pytest.mark.usefixtures("few_states")
@pytest.mark.slow
def test_what_was_pushed_comes_back_from_the_hub_and_acts_the_same(hub: Hub, shelf: Path, tmp_path: Path) -> None:
    config = replace(QUICK, seconds=0.2, exports=("torchscript",), private=True, message="first")
    done = push(shelf / "run", "me/levers", config)
    assert (done.folder, done.url) == (None, f"{hub.url}/me/levers")
    assert not list((tmp_path / "temporary").iterdir()), "the hub has it"
    assert set(hub.files["me/levers"]) == {".gitattributes", *done.files}
    assert (hub.commits[0]["summary"], hub.created[0]["visibility"]) == ("first", "private")
    back, ours = load_teacher("hf://me/levers"), load_policy(shelf / "run")
    observations = np.random.default_rng(0).normal(size=(100, 6)).astype(np.float32)
    assert np.array_equal(back.predict(observations)[0], ours.predict(observations)[0])
    assert isinstance(back, SavedPolicy)
    assert back.path is not None
    assert not (back.path / "exports").exists(), "exports are fetched when they are named"
    exported = load_teacher("hf://me/levers/exports/policy.pt")
    assert (exported.predict(observations)[0] == ours.predict(observations)[0]).mean() >= 0.99

    hub.cards["me/levers"] = {"library_name": "rldistill", "private": True}
    hub.files["me/levers"]["NOTES.md"] = b"mine"
    again = push(shelf / "teacher", "me/levers", QUICK, out=tmp_path / "kept")
    assert again.folder == tmp_path / "kept"
    assert load_policy(again.folder).sha256 == load_policy(shelf / "teacher").sha256
    left = {".gitattributes", "NOTES.md", "README.md", "policy.json", "scores.json", "weights.safetensors"}
    assert set(hub.files["me/levers"]) == left, "no replay, run or export of the policy that was there before"


@pytest.mark.slow
def test_what_a_repository_holds_is_not_lost_unasked(hub: Hub, shelf: Path, tmp_path: Path) -> None:
    hub.files["me/llm"] = {".gitattributes": b"", "README.md": b"", "model.bin": b"x"}
    hub.cards["me/llm"] = {"library_name": "transformers"}
    refused("me/llm holds a model of transformers: choose another --repo", shelf / "run", "me/llm", QUICK)
    hub.files["me/bare"] = {".gitattributes": b"", "README.md": b""}
    refused("me/bare is there already, and public", shelf / "run", "me/bare", replace(QUICK, private=True))
    assert not hub.commits
    assert not list((tmp_path / "temporary").iterdir())
    push(shelf / "run", "me/llm", QUICK, force=True)
    assert {"model.bin", "policy.json"} <= set(hub.files["me/llm"])
    push(shelf / "run", "me/bare", QUICK)
    assert "policy.json" in hub.files["me/bare"]


@pytest.mark.slow
def test_a_hub_that_refuses_is_told_in_a_line_that_names_the_folder(hub: Hub, shelf: Path, tmp_path: Path) -> None:
    text = refused(
        "You don't have the rights to create a model under the namespace", shelf / "run", "you/levers", QUICK
    )
    folder = Path(text.split("all that was written is in ")[1].split(",")[0])
    assert f"`hf upload you/levers {folder}` sends it" in text
    assert load_policy(folder).sha256 == load_policy(shelf / "run").sha256
    hub.refuse_commits = True
    text = refused(
        r"refuses me/levers \(400\): the card is wrong", shelf / "run", "me/levers", QUICK, out=tmp_path / "out"
    )
    assert f"is in {tmp_path / 'out'}," in text
    assert (tmp_path / "out" / "README.md").is_file()


def test_no_token_a_wrong_one_and_no_network_are_told_before_anything_is_played(
    hub: Hub, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refused("does not accept the token: log in anew", shelf / "run", "me/x", QUICK)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    refused("no token of the hub here: log in with `hf auth login`, or set HF_TOKEN", shelf / "run", "me/x", QUICK)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    text = refused("cannot reach http://127.0.0.1:9: ", shelf / "run", "me/x", QUICK, out=tmp_path / "out")
    assert "refused" in text
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "temporary").iterdir())
    assert not hub.created
