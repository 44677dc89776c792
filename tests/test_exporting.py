"""The verb `export`: files that play the same, and none where they do not."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

import rldistill
from rldistill.formats.c.compiling import compiler
from rldistill.formats.note import note_of
from rldistill.formats.onnx.int8 import to_onnx_int8
from rldistill.formats.sb3.writing import sb3_actions, to_sb3
from rldistill.formats.torchscript.writing import to_torchscript
from rldistill.play.actions import score_width
from rldistill.play.envs import make_task
from rldistill.policies import SavedPolicy, save_policy
from rldistill.students.networks import Architecture, Network, build
from rldistill.teachers import ForeignTeacher, load_policy, note_in, read_exported, trial
from rldistill.types import ScoreKind, Task, UserError
from rldistill.verbs.evaluate import EvaluateConfig, evaluate
from rldistill.verbs.export import BOUNDS, ExportConfig, Format, export, export_table
from rldistill.verbs.export.checks import Bound
from rldistill.verbs.record import RecordConfig, record
from test_evaluation import CARTPOLE, leaning
from test_lowering import made

QUICK = ExportConfig(states=300, calibration=64, episodes=2, seed=1)
NO_GAMES = ExportConfig(states=100, calibration=32, episodes=0)
ENDINGS = {"c": "c", "c-int8": "c", "sb3": "zip"}
NEEDS = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "onnx-int8": ("onnx", "onnxruntime"),
    "sb3": ("stable_baselines3",),
}
JOINTS = Task("Joints-v0", 2, (6,), "float32", action_low=(-1.0, -2.0), action_high=(1.0, 0.5))
LEVERS = Task("Levers-v0", 5, (6,), "float32", action_sizes=(2, 3))
FRAMES = Task("Frames-v0", 6, (4, 84, 84))


def skip_without(format: str) -> None:
    for package in NEEDS.get(format, ()):
        pytest.importorskip(package)
    if format in ("c", "c-int8") and compiler() is None:
        pytest.skip("there is no C compiler here")


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Balances CartPole's pole for long."""
    folder = tmp_path_factory.mktemp("student") / "policy"
    save_policy(folder, leaning(), CARTPOLE, {})
    return folder


@pytest.fixture(scope="module")
def exports(student: Path) -> dict[str, Any]:
    """Each format's file, made once."""
    done: dict[str, Any] = {}

    def make(format: Format) -> Any:
        skip_without(format)
        if format not in done:
            out = student.parent / f"{format.replace('-', '_')}.{ENDINGS.get(format, 'bin')}"
            report = student.parent / f"{format}.json"
            done[format] = export(student, out, format, QUICK, json=report), out, report
        return done[format]

    return {"make": make}


@pytest.mark.parametrize("format", get_args(Format))
@pytest.mark.slow
def test_what_was_exported_plays_as_the_policy_does(format: Format, student: Path, exports: dict[str, Any]) -> None:
    done, out, report = exports["make"](format)
    ours, theirs = load_policy(student), rldistill.load_policy(out)
    assert isinstance(theirs, ForeignTeacher)
    assert (theirs.task, theirs.score_kind, theirs.provenance["parameters"]) == (CARTPOLE, "q_values", 16)
    observations = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32) * np.float32(0.1)
    wanted, state = ours.predict(observations)
    assert state is None
    assert 0 < wanted.mean() < 1
    assert (theirs.predict(observations)[0] == wanted).mean() >= BOUNDS[format].agreement
    one, _ = theirs.predict(observations[0], None, np.array([True]), True)
    assert one.shape == ()
    # The command takes the file wherever it takes a policy.
    scores = evaluate([student, out], EvaluateConfig(episodes=2, epsilon=0.0, seed=3))
    assert min(scores[1].returns) > 100
    written = json.loads(report.read_text())
    assert written == json.loads(json.dumps(done.as_dict()))
    assert written["states"] == 300
    assert written["agreement"] >= BOUNDS[format].agreement
    assert [row["format"] for row in written["policies"]] == ["eager torch", format]
    assert written["policies"][1]["mean"] == pytest.approx(written["policies"][0]["mean"], rel=0.2)
    assert all(row["microseconds"] > 0 and row["bytes"] > 0 for row in written["policies"])
    assert [row["format"] for row in export_table(done)] == ["eager torch", format]
    left = {path.name for path in out.parent.iterdir() if path.name.startswith(".")}
    assert not left, "nothing written aside stays"


@pytest.mark.parametrize("format", ["onnx", "torchscript"])
def test_a_program_that_says_it_was_exported_is_tried_like_any_other(
    format: Format, exports: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody can write that into a file."""
    _, out, _ = exports["make"](format)
    monkeypatch.setattr(trial, "ask", lambda question: {"error": f"{question['kind']} was tried", "peak": 0})
    with pytest.raises(UserError, match=f"{format} was tried"):
        load_policy(out)


@pytest.mark.slow
def test_torchscript_needs_nothing_of_rldistill(student: Path, exports: dict[str, Any]) -> None:
    _, out, _ = exports["make"]("torchscript")
    program = (
        "import sys, torch\n"
        f"policy = torch.jit.load({str(out)!r})\n"
        "x = torch.tensor([[0., 0., 1., 1.], [0., 0., -1., -1.], [0., 0., 2., 0.]])\n"
        "print(policy.act(x).tolist(), list(policy(x).shape), 'rldistill' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True)
    wanted = load_policy(student).predict(np.float32([[0, 0, 1, 1], [0, 0, -1, -1], [0, 0, 2, 0]]))[0].tolist()
    assert wanted[0] != wanted[1]
    assert done.stdout.strip() == f"{wanted} [3, 2] False"


def test_onnx_is_one_file_with_both_outputs_and_any_batch(exports: dict[str, Any]) -> None:
    for format in ("onnx", "onnx-int8"):
        _, out, _ = exports["make"](format)
        runtime = pytest.importorskip("onnxruntime")
        session = runtime.InferenceSession(out.read_bytes())
        assert [entry.name for entry in session.get_inputs()] == ["observation"]
        for batch in (1, 3):
            action, scores = session.run(["action", "scores"], {"observation": np.eye(4, dtype=np.float32)[:batch]})
            assert (action == scores.argmax(axis=1)).all()
            assert scores.shape == (batch, 2)


def test_policies_and_exports_drop_into_evaluate_policy(student: Path, exports: dict[str, Any]) -> None:
    evaluation = pytest.importorskip("stable_baselines3.common.evaluation")
    vectorized = pytest.importorskip("stable_baselines3.common.env_util")
    _, out, _ = exports["make"]("torchscript")
    for policy in (load_policy(student), load_policy(out)):
        environments = vectorized.make_vec_env("CartPole-v1", n_envs=2, seed=0)
        mean, _ = evaluation.evaluate_policy(policy, environments, n_eval_episodes=2, warn=False)
        drawn = policy.predict(np.zeros((50, 4), np.float32), deterministic=False)[0]
        assert mean > 100
        assert len(set(drawn.tolist())) == 2


# Formats, beyond CartPole


def saved(network: Network, task: Task) -> SavedPolicy:
    return SavedPolicy(network, task)


def observations_of(task: Task, number: int) -> Any:
    generator = np.random.default_rng(7)
    size = (number, *task.observation_shape)
    if task.observation_dtype == "uint8":
        return generator.integers(256, size=size, dtype=np.uint8)
    return generator.normal(size=size).astype(np.float32)


def read(data: bytes, kind: str, path: Path) -> Any:
    path.write_bytes(data)
    note = note_in(kind, path)
    assert note is not None
    return read_exported(kind, path, note)


KINDS: list[tuple[Task, ScoreKind]] = [
    (JOINTS, "gaussian"),
    (JOINTS, "squashed_gaussian"),
    (JOINTS, "actions"),
    (LEVERS, "logits"),
]


@pytest.mark.parametrize(("task", "kind"), KINDS)
def test_every_kind_of_action_is_in_the_file(task: Task, kind: ScoreKind, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    network = made(Architecture("mlp:16,16", (6,), score_width(task, kind), reads=(5, 0, 1, 2)))
    network._score_kind = kind
    policy = saved(network, task)
    note = note_of(task, kind, {})
    observations = observations_of(task, 200)
    wanted = policy.predict(observations)[0]
    scripted = torch.jit.load(_file(tmp_path / "p.ts", to_torchscript(policy, note)))
    np.testing.assert_allclose(scripted.act(torch.from_numpy(observations)).numpy(), wanted, atol=1e-5)
    session = runtime.InferenceSession(to_onnx_int8(policy, note, observations))
    action, scores = session.run(["action", "scores"], {"observation": observations})
    ours = policy(torch.from_numpy(observations)).numpy()
    assert 0 < np.abs(scores - ours).max() < 0.05 * (ours.max() - ours.min())
    if task.continuous:
        assert np.abs(action - wanted).max() < 0.25
        assert (action >= -2).all()
        assert (action[:, 1] <= 0.5).all()
    else:
        assert (action == wanted).mean() > 0.95
    assert action.dtype == wanted.dtype


def _file(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize("normalization", ["none", "layer"])
@pytest.mark.slow
def test_int8_net2_has_at_most_27_hundredths_of_the_bytes(normalization: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    network = build(Architecture("net2", (4, 84, 84), 6, normalization), 0).eval().requires_grad_(False)
    network.standardize(torch.tensor([100.0]), torch.tensor([0.02]))
    policy, observations = saved(network, FRAMES), observations_of(FRAMES, 32)
    data = to_onnx_int8(policy, note_of(FRAMES, "q_values", {}), observations)
    assert len(data) <= 0.27 * 4 * sum(parameter.numel() for parameter in network.parameters())
    theirs = read(data, "onnx", tmp_path / "p.onnx").network(torch.from_numpy(observations))
    ours = network(torch.from_numpy(observations))
    assert 0 < float((theirs - ours).abs().max()) < 0.05 * float(ours.max() - ours.min())


SB3_CASES: list[tuple[Task, ScoreKind, str]] = [
    (FRAMES, "q_values", "cnn:3,5,4:6"),
    (FRAMES, "logits", "cnn:3,5,4:6,7"),
    (JOINTS, "gaussian", "mlp:8,9"),
    (JOINTS, "squashed_gaussian", "mlp:8"),
    (JOINTS, "actions", "mlp:8"),
    (LEVERS, "logits", "mlp:8"),
]


@pytest.mark.parametrize(("task", "kind", "name"), SB3_CASES)
@pytest.mark.slow
def test_stable_baselines3_plays_the_zip_as_the_policy_does(
    task: Task, kind: ScoreKind, name: str, tmp_path: Path
) -> None:
    pytest.importorskip("stable_baselines3")
    network = made(Architecture(name, task.observation_shape, score_width(task, kind)))
    network._score_kind = kind
    policy, observations = saved(network, task), observations_of(task, 40)
    data, notes = to_sb3(policy, note_of(task, kind, {}), observations)
    foreign = read(data, "sb3", tmp_path / "p.zip")
    wanted = policy.predict(observations)[0]
    np.testing.assert_allclose(sb3_actions(tmp_path / "p.zip", policy, observations), wanted, atol=1e-4)
    assert len(np.unique(wanted, axis=0)) > 1
    width = task.num_actions
    ours = policy(torch.from_numpy(observations))
    torch.testing.assert_close(
        foreign.network(torch.from_numpy(observations))[:, :width], ours[:, :width], atol=1e-3, rtol=1e-3
    )
    assert any("channels" in note for note in notes) == (task is FRAMES)


def test_networks_beyond_the_standard_classes_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("stable_baselines3")
    note: dict[str, Any] = note_of(FRAMES, "q_values", {})
    normalized = saved(made(Architecture("cnn:3,5,4:6", (4, 84, 84), 6, "layer")), FRAMES)
    wide = saved(made(Architecture("cnn:33,5,4:6", (4, 84, 84), 6)), FRAMES)
    with pytest.raises(UserError, match="its layers are normalized"):
        to_sb3(normalized, note, observations_of(FRAMES, 1))
    with pytest.raises(UserError, match="none of a Nature CNN"):
        to_sb3(wide, note, observations_of(FRAMES, 1))


# What goes wrong


def test_an_export_past_its_bound_leaves_no_file(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for bound, says in ((Bound(agreement=1.01), "at least 101 %"), (Bound(0.5, -1.0), "scores differ by up to")):
        monkeypatch.setitem(BOUNDS, "torchscript", bound)
        with pytest.raises(UserError, match=says):
            export(student, tmp_path / "p.pt", "torchscript", NO_GAMES, json=tmp_path / "p.json")
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("out", "format", "config", "says"),
    [
        ("p.tar", "tar", NO_GAMES, "format is one of onnx, onnx-int8, c, c-int8, torchscript, sb3, not 'tar'"),
        ("there.pt", "torchscript", NO_GAMES, r"there.pt exists: replace it with --force"),
        ("p.pt", "c", NO_GAMES, r"ends in \.c"),
        ("p.bin", "sb3", NO_GAMES, r"ends in \.zip"),
        ("no/p.pt", "torchscript", NO_GAMES, "there is no folder"),
        (".", "torchscript", NO_GAMES, "is a folder"),
        ("p.pt", "torchscript", ExportConfig(states=0), "--states is at least 1"),
        ("p.pt", "torchscript", ExportConfig(epsilon=2), "--epsilon lies between 0 and 1"),
        ("p.pt", "torchscript", ExportConfig(dataset=Path("nowhere")), "no dataset folder"),
        ("p.pt", "torchscript", ExportConfig(teacher="nowhere"), "no policy folder"),
        ("p.c", "c", ExportConfig(prefix="1"), "no prefix of C names"),
    ],
)
def test_wrong_input_is_one_line_and_no_file(
    out: str, format: Any, config: ExportConfig, says: str, student: Path, tmp_path: Path
) -> None:
    (tmp_path / "there.pt").write_text("precious")
    with pytest.raises(UserError, match=says) as error:
        export(student, tmp_path / out, format, config)
    assert len(str(error.value).splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["there.pt"]
    assert (tmp_path / "there.pt").read_text() == "precious"


@pytest.mark.parametrize("format", ["torchscript", "c"])
def test_a_full_disk_is_one_line_and_what_was_there_survives(
    format: Format, student: Path, tmp_path: Path, full_disk: Any
) -> None:
    skip_without(format)
    out = tmp_path / f"p.{ENDINGS.get(format, 'pt')}"
    out.write_text("precious")
    with full_disk(512), pytest.raises(UserError, match=r"cannot write .*: File too large; .*untouched$"):
        export(student, out, format, NO_GAMES, force=True)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert out.read_text() == "precious"


@pytest.mark.parametrize("format", ["onnx", "onnx-int8", "sb3"])
def test_a_missing_package_is_named_with_its_extra(
    format: Format, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, NEEDS[format][0], None)
    with pytest.raises(UserError, match=rf"pip install 'rldistill\[{'sb3' if format == 'sb3' else 'onnx'}\]'"):
        export(student, tmp_path / "p.zip", format, NO_GAMES)
    assert not list(tmp_path.iterdir())


def test_a_dataset_gives_the_states_and_must_be_of_the_same_task(student: Path, tmp_path: Path) -> None:
    record(student, tmp_path / "data", RecordConfig(steps=400, num_envs=4, seed=2))
    config = ExportConfig(dataset=tmp_path / "data", states=1000, calibration=50, episodes=0)
    done = export(student, tmp_path / "p.pt", "torchscript", config)
    assert done.compared.states == 350  # all that calibration leaves
    assert done.rows[1]["mean"] is None
    acrobot = make_task("Acrobot-v1")
    save_policy(tmp_path / "acrobot", build(Architecture("mlp:4", (6,), 3), 0), acrobot, {})
    with pytest.raises(UserError, match=r"was recorded in CartPole-v1 .*, the policy plays Acrobot-v1"):
        export(tmp_path / "acrobot", tmp_path / "q.pt", "torchscript", config)
    assert not (tmp_path / "q.pt").exists()


def test_a_file_of_another_tool_is_not_exported_and_not_our_policy(
    student: Path, exports: dict[str, Any], tmp_path: Path
) -> None:
    _, out, _ = exports["make"]("torchscript")
    with pytest.raises(UserError, match="is no policy folder"):
        export(out, tmp_path / "p.pt", "torchscript", NO_GAMES)
    stranger = torch.jit.trace(torch.nn.Linear(4, 2), torch.zeros((1, 4)))
    torch.jit.save(stranger, tmp_path / "stranger.pt")
    with pytest.raises(UserError, match="was not exported by rldistill; load_teacher"):
        load_policy(tmp_path / "stranger.pt")


def test_what_a_file_says_of_itself_is_checked(student: Path, tmp_path: Path) -> None:
    policy = load_policy(student)
    assert isinstance(policy, SavedPolicy)
    good = note_of(CARTPOLE, "q_values", {})
    for note in (
        {**good, "format_version": 2},
        {**good, "score_kind": "gaussian"},
        {**good, "score_kind": ["q_values"]},
        {**good, "task": {"env": "CartPole-v1"}},
        {},
    ):
        path = tmp_path / "p.pt"
        path.write_bytes(to_torchscript(policy, note))
        with pytest.raises(UserError, match="what it says of itself is damaged") as error:
            load_policy(path)
        assert len(str(error.value).splitlines()) == 1


def test_what_else_a_file_says_of_itself_cannot_pass_for_what_it_is(student: Path, tmp_path: Path) -> None:
    policy, path = load_policy(student), tmp_path / "p.pt"
    assert isinstance(policy, SavedPolicy)
    lies = {"sha256": "0" * 64, "format": "other", "parameters": "many", "path": 7, "network": "mlp:2"}
    path.write_bytes(to_torchscript(policy, {**lies, **note_of(CARTPOLE, "q_values", {}), "parameters": "many"}))
    read_back = load_policy(path)
    assert read_back.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_back.provenance["format"] == "TorchScript"
    assert read_back.provenance["network"] == "mlp:2"
    assert isinstance(read_back.provenance["parameters"], int)


def test_predict_refuses_what_the_policy_does_not_read(student: Path) -> None:
    policy = load_policy(student)
    with pytest.raises(UserError, match=r"shape \(3,\); its space declares \(4,\)"):
        policy.predict(np.zeros(3))
    with pytest.raises(UserError, match="not named parts"):
        policy.predict({"a": np.zeros(4)})
    frames = saved(made(Architecture("cnn:2:3", (4, 84, 84), 6)), FRAMES)
    with pytest.raises(UserError, match=r"reads bytes \(uint8\), not float32"):
        frames.predict(np.zeros((4, 84, 84), np.float32))
