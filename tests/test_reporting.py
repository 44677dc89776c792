"""Tests of `report` on folders in the real format: MinAtar (drawn without a display), Pong's frames, and what is missing."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import re
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from markup import Reader
from rldistill.play.actions import score_width
from rldistill.play.envs import make_task
from rldistill.policies import SavedPolicy, save_policy
from rldistill.runs.scores import read_scores
from rldistill.students.networks import Architecture, build
from rldistill.types import ScoreKind, Task, UserError
from rldistill.verbs.report import ReportConfig, report
from rldistill.verbs.report.animation import SHEET_COLUMNS, SHEET_FRAMES, sprite_sheets, watched

pytest.importorskip("minatar")
BREAKOUT = make_task("MinAtar/Breakout-v1")
QUICK = ReportConfig(episodes=3, num_envs=3, seconds=2.0, epsilon=0.1)


def save(path: Path, network: str, seed: int, task: Task = BREAKOUT, **provenance: Any) -> None:
    save_policy(path, build(Architecture(network, task.observation_shape, task.num_actions), seed), task, provenance)


def write_run(folder: Path, config: dict[str, Any], metrics: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in metrics))
    return folder


def distilled(root: Path, **config: Any) -> Path:
    """A run folder as `distill` leaves it, with two small policies."""
    save(root / "teacher", "cnn:4:16", 0, command="rldistill train <MinAtar> & more")
    metrics: list[dict[str, Any]] = [{"event": "teacher", "mean": 6.0, "ci_low": 5.0, "ci_high": 7.0, "episodes": 3}]
    for steps in range(100, 1001, 100):
        position = {"control_steps": steps, "updates": steps // 8, "seconds": steps / 100}
        metrics.append({"event": "train", **position, "loss": 1 / steps, "agreement": 1 - 10 / steps})
        if steps % 500 == 0:
            score = {"mean": steps / 200, "ci_low": 1.0, "ci_high": 6.0, "episodes": 2, "returns": [1.0, 6.0]}
            metrics.append({"event": "evaluation", **position, **score})
    settings = {"verb": "distill", "teacher": str(root / "teacher"), "student": "cnn:2:8", "loss": "kl", "steps": 1000}
    run = write_run(root / "run", settings | {"task": BREAKOUT.as_dict()} | config, metrics)
    save(run / "policy", "cnn:2:8", 1, control_steps=1000, updates=125, seconds=12.5, temperature=0.03)
    return run


def plays(page: str) -> Any:
    match = re.search(r'<script type="application/json" id="plays">(.*?)</script>', page, flags=re.DOTALL)
    assert match
    return json.loads(match[1])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = distilled(tmp_path_factory.mktemp("distilled"))
    report(folder, config=QUICK)
    return folder


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return (run / "report.html").read_text()


def test_page_loads_nothing_from_elsewhere_and_closes_what_it_opens(page: str) -> None:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    assert all(address.startswith("#") for address in reader.addresses)
    assert len(set(reader.ids)) == len(reader.ids)
    assert "default-src 'none'" in page
    assert "{{" not in page


def test_page_shows_table_curve_and_configuration(run: Path, page: str) -> None:
    scores = read_scores(run / "scores.json")
    assert [score.episodes for score in scores] == [3, 3]
    assert f"{scores[1].parameters:,}" in page
    assert "control steps" in page
    assert page.count("<svg") == 2
    assert "of its parameters" in page or "of the teacher&#x27;s parameters" in page
    assert "1,000" in page
    # What strangers wrote is shown as text.
    assert "rldistill train &lt;MinAtar&gt; &amp; more" in page
    assert "<MinAtar>" not in page


def test_animation_has_both_players_and_what_the_teacher_thinks_of_the_students_game(page: str) -> None:
    replay = plays(page)
    assert replay["length"] == 30
    assert replay["actions"] == ["NOOP", "LEFT", "RIGHT"]
    teacher, student = replay["players"]
    assert (teacher["role"], student["role"]) == ("teacher", "student")
    assert teacher["other"] is None
    for rows in (teacher["preferences"], student["preferences"], student["other"]):
        assert len(rows) == 30
        assert all(abs(sum(row) - 100) < 0.2 for row in rows)
    # The same seed: the same first picture.
    assert first_frame(teacher) == first_frame(student)
    assert max(teacher["actions"] + student["actions"]) < 3


def first_frame(player: Any) -> bytes:
    sheet = Image.open(io.BytesIO(base64.b64decode(player["sheets"][0].split(",")[1]))).convert("RGB")
    return sheet.crop((0, 0, player["width"], player["height"])).tobytes()


@pytest.mark.slow
def test_scores_of_this_policy_are_shown_as_they_are_and_others_measured_anew(tmp_path: Path) -> None:
    run = distilled(tmp_path)
    quick = ReportConfig(episodes=2, num_envs=2, seconds=0)
    report(run, config=quick)
    before = (run / "scores.json").read_bytes()
    report(run, config=quick)
    assert (run / "scores.json").read_bytes() == before
    save(run / "policy", "cnn:2:8", 2)
    report(run, config=quick)
    other_student = (run / "scores.json").read_bytes()
    assert other_student != before
    save(Path(json.loads((run / "config.json").read_text())["teacher"]), "cnn:2:8", 3)
    report(run, config=quick)
    assert (run / "scores.json").read_bytes() != other_student


def test_run_without_its_teacher_gets_a_page_that_says_so(tmp_path: Path) -> None:
    run = distilled(tmp_path, teacher="elsewhere/teacher")
    page = report(run, tmp_path / "page.html", config=ReportConfig(episodes=2, num_envs=2, seconds=1)).read_text()
    assert "The teacher elsewhere/teacher is left out: no policy folder at elsewhere/teacher" in page
    assert [player["role"] for player in plays(page)["players"]] == ["student"]


def test_run_whose_teacher_is_damaged_gets_a_page_that_says_why(tmp_path: Path) -> None:
    run = distilled(tmp_path)
    (tmp_path / "teacher" / "policy.json").write_text("{")
    page = report(run, config=ReportConfig(episodes=2, num_envs=2, seconds=0)).read_text()
    assert re.search(r"The teacher \S+/teacher is left out: [^<]*policy\.json", page)
    assert len(read_scores(run / "scores.json")) == 1


def test_teacher_none_leaves_the_teacher_out(tmp_path: Path) -> None:
    run = distilled(tmp_path)
    page = report(run, config=ReportConfig(episodes=2, num_envs=2, seconds=0, teacher="none")).read_text()
    assert len(read_scores(run / "scores.json")) == 1
    assert "is left out" not in page


@pytest.mark.parametrize(("warming", "drawings"), [(1, 2), (3, 1)])
def test_training_that_warms_up_without_a_loss_keeps_its_scores(tmp_path: Path, warming: int, drawings: int) -> None:
    records: list[dict[str, Any]] = [
        {"control_steps": n, "loss": None if n <= warming else 0.1, "returns": [float(n)]} for n in range(1, 4)
    ]
    run = write_run(tmp_path / "run", {"verb": "train", "network": "mlp:4", "task": BREAKOUT.as_dict()}, records)
    page = report(run).read_text()
    assert page.count("<svg") == drawings, "the training scores, and the losses where there are some"
    assert "after 3 control steps: 2.0" in page, "the mean return of all three records"


def test_run_that_is_not_finished_gets_what_there_is(tmp_path: Path) -> None:
    record = {"control_steps": 2048, "seconds": 1.0, "loss": 0.1, "epsilon": 1.0, "mean_value": 0.0, "returns": [-21.0]}
    later = record | {"control_steps": 4096, "returns": [-19.0], "loss": 0.05}
    task = make_task("PongNoFrameskip-v4").as_dict()
    run = write_run(tmp_path / "run", {"verb": "train", "network": "dqn", "task": task}, [record, later])
    page = report(run).read_text()
    assert "The run is not finished" in page
    assert "dqn being trained on PongNoFrameskip-v4 after 4,096 control steps" in page
    assert "(1 = 4 frames)" in page
    assert plays(page) is None


def test_finished_training_shows_its_score(tmp_path: Path) -> None:
    records = [{"control_steps": n, "seconds": n / 10, "loss": 1 / n, "returns": [float(n)]} for n in range(1, 400)]
    final: dict[str, Any] = {"event": "final_score", "mean": 390.0, "ci_low": 380.0, "ci_high": 395.0, "episodes": 3}
    config = {"verb": "train", "network": "cnn:4:16", "task": BREAKOUT.as_dict()}
    run = write_run(tmp_path / "run", config, [*records, final])
    save(run / "policy", "cnn:4:16", 0, training_seconds=40.0, control_steps=399)
    page = report(run, config=ReportConfig(episodes=2, num_envs=2, seconds=1)).read_text()
    assert "final score" in page
    assert "points on MinAtar/Breakout-v1" in page
    assert "0:40" in page


def test_environment_that_cannot_be_drawn_gives_a_page_without_animation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pygame", None)  # as on a machine without it
    task = make_task("CartPole-v1")
    run = write_run(tmp_path / "run", {"verb": "train", "network": "mlp:4", "task": task.as_dict()}, [])
    save(run / "policy", "mlp:4", 0, task)
    page = report(run, config=ReportConfig(episodes=2, num_envs=2)).read_text()
    assert "There is no animation: CartPole-v1 cannot be drawn here" in page
    assert plays(page) is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ReportConfig(episodes=-1), "--episodes"),
        (ReportConfig(epsilon=2), "--epsilon"),
        (ReportConfig(seed=-1), "--seed"),
        (ReportConfig(num_envs=0), "--num-envs"),
        (ReportConfig(seconds=-1), "--seconds"),
        (ReportConfig(teacher="nowhere"), "no policy folder at nowhere"),
    ],
)
def test_wrong_settings_are_named(run: Path, config: ReportConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        report(run, config=config)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run folder: it has no config\.json"):
        report(tmp_path)


def test_only_a_page_of_its_own_is_overwritten(run: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.html").write_text("mine")
    with pytest.raises(UserError, match="no page that report made"):
        report(run, tmp_path / "notes.html", config=QUICK)
    with pytest.raises(UserError, match="it is a folder"):
        report(run, tmp_path, config=QUICK)
    with pytest.raises(UserError, match="there is no folder"):
        report(run, tmp_path / "absent" / "page.html", config=QUICK)
    assert (tmp_path / "notes.html").read_text() == "mine"


@pytest.mark.slow
def test_sprite_sheets_lose_nothing_of_pongs_frames() -> None:
    task = make_task("PongNoFrameskip-v4")
    policy = SavedPolicy(build(Architecture("cnn:2:4", task.observation_shape, 6), 0).eval(), task)
    played = watched(policy, task, SHEET_FRAMES + 3, epsilon=1.0, seed=0)
    sheets = sprite_sheets(played.frames)
    assert len(sheets) == 2
    for number in (0, 9, SHEET_FRAMES - 1, SHEET_FRAMES + 2):
        sheet = np.asarray(
            Image.open(io.BytesIO(base64.b64decode(sheets[number // SHEET_FRAMES].split(",")[1]))).convert("RGB")
        )
        y, x = divmod(number % SHEET_FRAMES, SHEET_COLUMNS)
        height, width, _ = played.frames[number].shape
        assert (sheet[y * height : (y + 1) * height, x * width : (x + 1) * width] == played.frames[number]).all()
    assert len({frame.tobytes() for frame in played.frames}) > SHEET_FRAMES // 2
    assert sum(map(len, sheets)) < 100_000


def test_frames_for_the_animation_are_kept_shrunk() -> None:
    gymnasium.register("Slide-v0", lambda **options: Slide(**options, scale=40))
    try:
        task = make_task("Slide-v0")
        policy = SavedPolicy(build(Architecture("mlp:4", (2,), 2), 0, "actions").eval(), task)
        played = watched(policy, task, 3, epsilon=0.0, seed=0)
    finally:
        del gymnasium.registry["Slide-v0"]
    assert [frame.shape for frame in played.frames] == [(320, 320, 3)] * 3


def test_sprite_sheets_of_many_colours_stop_at_the_limit() -> None:
    noise = np.random.default_rng(0).integers(256, size=(130, 16, 16, 3), dtype=np.uint8)
    assert len(sprite_sheets(list(noise), limit=10**9)) == 3
    assert len(sprite_sheets(list(noise), limit=1)) == 1


# Continuous actions, and several at once


class Slide(gymnasium.Env[npt.NDArray[np.float32], npt.NDArray[np.float32]]):
    """A dot that is pushed about on a picture of 16 by 16, each pixel `scale` times as wide and high."""

    observation_space = gymnasium.spaces.Box(-8, 8, (2,), np.float32)
    action_space = gymnasium.spaces.Box(np.array([-1, 0], np.float32), np.array([1, 4], np.float32))
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012  # as Gymnasium declares it

    def __init__(self, render_mode: str | None = None, scale: int = 1) -> None:
        self.render_mode = render_mode
        self.scale = scale

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.age = self.np_random.uniform(-4, 4, size=2).astype(np.float32), 0
        return self.place, {}

    def step(
        self, action: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self.place = np.clip(self.place + action - np.array([0, 2]), -8, 8).astype(np.float32)
        self.age += 1
        return self.place, float(-np.abs(self.place).sum()), False, self.age == 20, {}

    def render(self) -> npt.NDArray[np.uint8]:
        picture = np.zeros((16, 16, 3), dtype=np.uint8)
        x, y = np.clip(self.place + 8, 0, 15).astype(int)
        picture[y, x] = 255
        return picture.repeat(self.scale, axis=0).repeat(self.scale, axis=1)


def distilled_of(root: Path, task: Task, kind: ScoreKind) -> Path:
    width = score_width(task, kind)
    for name, network, seed in (("teacher", "mlp:8", 0), ("run/policy", "mlp:4", 1)):
        made = build(Architecture(network, task.observation_shape, width), seed, kind)
        save_policy(root / name, made, task, {"command": "by hand"})
    settings = {"verb": "distill", "teacher": str(root / "teacher"), "student": "mlp:4", "loss": "auto", "steps": 1000}
    (root / "run" / "config.json").write_text(json.dumps(settings | {"task": task.as_dict()}))
    (root / "run" / "metrics.jsonl").write_text("")
    return root / "run"


@pytest.mark.slow
def test_page_of_a_pendulum_run_has_its_scores_and_says_whether_it_can_be_drawn(tmp_path: Path) -> None:
    run = distilled_of(tmp_path, make_task("Pendulum-v1"), "gaussian")
    page = report(run, config=ReportConfig(episodes=2, num_envs=2, seconds=1)).read_text()
    teacher, student = read_scores(run / "scores.json")
    assert teacher.agreement == 1
    assert 0 < student.agreement < 1
    assert f"{student.agreement:.3f}" in page
    if importlib.util.find_spec("pygame") is None:
        assert "There is no animation: Pendulum-v1 cannot be drawn here" in page
        assert plays(page) is None
    else:
        assert plays(page)["length"] == 15


@pytest.mark.parametrize("kind", ["gaussian", "squashed_gaussian", "actions"])
def test_animation_of_continuous_actions_shows_where_they_lie(tmp_path: Path, kind: ScoreKind) -> None:
    gymnasium.register("Slide-v0", lambda **options: Slide(**options))
    try:
        run = distilled_of(tmp_path, make_task("Slide-v0"), kind)
        page = report(run, config=ReportConfig(episodes=2, num_envs=2, seconds=2, epsilon=0.2)).read_text()
    finally:
        del gymnasium.registry["Slide-v0"]
    replay = plays(page)
    teacher, student = replay["players"]
    assert replay["actions"] == ["0", "1"]
    assert "where its action lies in its range" in page
    for rows in (teacher["preferences"], student["preferences"], student["other"]):
        assert len(rows) == 30
        assert all(len(row) == 2 and min(row) >= 0 and max(row) <= 100 for row in rows)
    assert set(teacher["actions"] + student["actions"]) == {-1}, "no bar is the one that was taken"
    assert 0 < sum(teacher["random"]) < 30
    assert max(teacher["games"]) == 2


def test_animation_of_several_actions_names_their_choices(tmp_path: Path, levers: str) -> None:
    run = distilled_of(tmp_path, make_task(levers), "logits")
    page = report(run, config=ReportConfig(episodes=2, num_envs=2, seconds=2, epsilon=0.2)).read_text()
    replay = plays(page)
    assert replay["actions"] == ["0: 0", "0: 1", "1: 0", "1: 1", "1: 2"]
    for player in replay["players"]:
        assert all(abs(sum(row[:2]) - 100) < 0.2 and abs(sum(row[2:]) - 100) < 0.2 for row in player["preferences"])
        assert set(player["actions"]) == {-1}
