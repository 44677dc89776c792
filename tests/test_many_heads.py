"""Students of several tasks: how they are compared with their teachers, and what one head is for every verb."""

from __future__ import annotations

import json
import math
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from rldistill.formats.c.compiling import compiler
from rldistill.play.envs import make_task
from rldistill.policies import MultiTaskPolicy, SavedPolicy, load_heads, load_policy, save_policy
from rldistill.runs.scores import read_scores, score_table, write_scores
from rldistill.stats import GameReturns, bootstrap_ratio_interval, geometric_mean_of_ratios
from rldistill.students.heads import Head, build_heads
from rldistill.students.networks import Architecture, build, parameter_count
from rldistill.types import UserError
from rldistill.verbs.evaluate import EvaluateConfig, evaluate
from rldistill.verbs.export import ExportConfig, export
from rldistill.verbs.inspect import InspectConfig, inspect
from rldistill.verbs.push import PushConfig, push
from rldistill.verbs.report import ReportConfig, report
from rldistill.verbs.split import split
from rldistill.verbs.watch import WatchConfig, watch

TASKS = {name: make_task(name) for name in ("CartPole-v1", "Acrobot-v1", "Pendulum-v1")}
HEADS = {
    "CartPole-v1": Head((4,), 2, "logits"),
    "Acrobot-v1": Head((6,), 3, "q_values"),
    "Pendulum-v1": Head((3,), 1, "actions"),
}
QUICK = EvaluateConfig(episodes=3, epsilon=0.2, num_envs=3, max_episode_steps=40)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of three tasks of different widths with normalized layers, and a teacher of each of the first two."""
    folder = tmp_path_factory.mktemp("shelf")
    save_policy(folder / "student", build_heads("mlp:8+4", HEADS, 0, normalization="layer"), TASKS, {"seed": 0})
    for number, name in enumerate(["CartPole-v1", "Acrobot-v1"]):
        head = HEADS[name]
        network = build(Architecture("mlp:6", head.observation_shape, head.num_scores), number, head.score_kind)
        save_policy(folder / name, network, TASKS[name], {})
    return folder


def student(shelf: Path) -> MultiTaskPolicy:
    policy = load_heads(shelf / "student")
    assert isinstance(policy, MultiTaskPolicy)
    return policy


# Statistics


def test_a_geometric_mean_of_ratios_is_the_root_of_their_product() -> None:
    played = [GameReturns(np.array([1.0, 3.0])), GameReturns(np.array([12.0, 12.0, 12.0]))]
    references = [GameReturns(np.array([4.0, 4.0])), GameReturns(np.array([4.0, 8.0, 6.0]))]
    mean = geometric_mean_of_ratios(played, references, [0.0, 0.0], seed=0)
    assert mean.value == pytest.approx(math.sqrt(2 / 4 * 12 / 6))
    # Against a random score of 1 in the first and 2 in the second task: 1/3 and 10/4.
    assert geometric_mean_of_ratios(played, references, [1.0, 2.0], seed=0).value == pytest.approx(math.sqrt(10 / 12))


def test_of_one_task_the_interval_is_that_of_its_ratio() -> None:
    generator = np.random.default_rng(0)
    own, teacher = generator.normal(5, 1, 30), generator.normal(6, 2, 30)
    mean = geometric_mean_of_ratios([GameReturns(own)], [GameReturns(teacher)], [0.5], seed=3)
    assert (mean.low, mean.high) == pytest.approx(bootstrap_ratio_interval(own, teacher, zero=0.5, seed=3))


def test_the_interval_counts_the_games_of_teachers_and_students() -> None:
    """By the delta method the variance of a log ratio is the sum of both means' relative variances."""
    generator = np.random.default_rng(1)
    played = [GameReturns(generator.normal(10, 1, 200)) for _ in range(3)]
    references = [GameReturns(generator.normal(20, 4, 200)) for _ in range(3)]
    mean = geometric_mean_of_ratios(played, references, [0.0] * 3, seed=0)
    relative = [np.var(one.returns) / 200 / np.mean(one.returns) ** 2 for one in (*played, *references)]
    width = 2 * 1.96 * math.sqrt(sum(relative)) / 3
    assert math.log(mean.high / mean.low) == pytest.approx(width, rel=0.06)


def test_a_task_at_its_zero_makes_the_mean_0_and_a_teacher_there_none() -> None:
    good, none = GameReturns(np.array([2.0, 4.0])), GameReturns(np.array([-1.0, 1.0]))
    assert geometric_mean_of_ratios([good, none], [good, good], [0.0, 0.0], seed=0).value == 0
    assert all(map(math.isnan, geometric_mean_of_ratios([good, good], [good, none], [0.0, 0.0], seed=0)))
    same = GameReturns(np.array([2.0, 2.0]), ["a", "a"])
    mean = geometric_mean_of_ratios([good, same], [good, good], [0.0, 0.0], seed=0)
    assert mean.value == pytest.approx(math.sqrt(2 / 3))
    assert math.isnan(mean.low)
    assert math.isnan(mean.high)


# Evaluation


def test_each_task_is_played_beside_its_teacher(shelf: Path, tmp_path: Path) -> None:
    names = [shelf / "Acrobot-v1", shelf / "student", shelf / "CartPole-v1"]
    scores = evaluate(names, QUICK, json=tmp_path / "scores.json")
    place = str(shelf / "student")
    expected = [
        (str(shelf / "CartPole-v1"), "CartPole-v1"),
        (f"{place}#CartPole-v1", "CartPole-v1"),
        (str(shelf / "Acrobot-v1"), "Acrobot-v1"),
        (f"{place}#Acrobot-v1", "Acrobot-v1"),
        (f"{place}#Pendulum-v1", "Pendulum-v1"),
    ]
    assert [(score.policy, score.task["env"]) for score in scores] == expected
    # What is compared within a task is as if that task were evaluated alone.
    alone = evaluate([shelf / "CartPole-v1", f"{place}#CartPole-v1"], QUICK)
    for one, other in zip(scores[:2], alone, strict=True):
        assert replace(one, microseconds=0.0) == replace(other, microseconds=0.0)
    (across,) = scores.across_tasks
    assert (across.policy, across.tasks) == (place, 2)
    assert across.parameters == parameter_count(student(shelf).network) > max(score.parameters for score in scores)
    pairs = [(scores[1], scores[0]), (scores[3], scores[2])]
    normalized = [max(own.normalized, 0.0) for own, _ in pairs]
    if all(teacher.mean > teacher.random_score for _, teacher in pairs):
        assert across.normalized == pytest.approx(math.sqrt(normalized[0] * normalized[1]))
    else:
        assert math.isnan(across.normalized)
    kept = read_scores(tmp_path / "scores.json")
    assert [score.as_dict() for score in kept] == [score.as_dict() for score in scores]
    assert [mean.as_dict() for mean in kept.across_tasks] == [across.as_dict()]
    data = json.loads((tmp_path / "scores.json").read_text())
    assert data["across_tasks"][0]["tasks"] == 2
    write_scores(tmp_path / "scores.json", kept)
    assert json.loads((tmp_path / "scores.json").read_text()) == data
    assert [row["task"] for row in score_table(scores)] == [env for _, env in expected]


def test_a_student_alone_has_a_row_a_task_and_no_mean(shelf: Path) -> None:
    scores = evaluate(student(shelf), QUICK)
    assert [score.task["env"] for score in scores] == list(TASKS)
    assert [score.ratio_low for score in scores] == [1.0] * 3
    assert scores.across_tasks == ()


def test_one_head_is_named_by_its_task(shelf: Path) -> None:
    (score,) = evaluate(f"{shelf / 'student'}#Acrobot-v1", QUICK)
    assert score.task["env"] == "Acrobot-v1"
    assert score.parameters == parameter_count(student(shelf).view("Acrobot-v1").network)


@pytest.mark.parametrize(
    ("policies", "config", "words"),
    [
        (("{}/student#Pong",), QUICK, ["no head for 'Pong'", *TASKS]),
        (("{}/CartPole-v1#Pong",), QUICK, ["no head for 'Pong'", "it plays CartPole-v1"]),
        (("{}/student",), replace(QUICK, env="CartPole-v1"), ["--env", "#CartPole-v1"]),
        (("{}/other", "{}/student"), QUICK, ["other plays MountainCar-v0", *TASKS]),
    ],
)
def test_what_does_not_go_together_is_refused(
    shelf: Path, policies: tuple[str, ...], config: EvaluateConfig, words: list[str]
) -> None:
    network = build(Architecture("mlp:2", (2,), 3), 0, "logits")
    save_policy(shelf / "other", network, make_task("MountainCar-v0"), {})
    with pytest.raises(UserError) as refusal:
        evaluate([name.format(shelf) for name in policies], config)
    assert all(word in str(refusal.value) for word in words), refusal.value


@pytest.mark.filterwarnings("ignore:.*out of date")
def test_teachers_of_two_versions_of_a_game_stand_beside_the_heads_of_their_own_version() -> None:
    """CartPole-v0 ends after 200 control steps, CartPole-v1 after 500."""
    tasks = {name: make_task(name) for name in ("CartPole-v0", "CartPole-v1")}
    whole = MultiTaskPolicy(build_heads("mlp:4", dict.fromkeys(tasks, Head((4,), 2, "logits")), 0).eval(), tasks)
    teachers = [
        SavedPolicy(build(Architecture("mlp:4", (4,), 2), 1).eval(), tasks[name])
        for name in ("CartPole-v1", "CartPole-v0")
    ]
    scores = evaluate([*teachers, whole], QUICK)
    assert [score.task["env"] for score in scores] == ["CartPole-v0"] * 2 + ["CartPole-v1"] * 2
    assert scores.across_tasks[0].tasks == 2


def test_a_loaded_teacher_finds_its_task(shelf: Path) -> None:
    head = HEADS["CartPole-v1"]
    teacher = SavedPolicy(build(Architecture("mlp:6", (4,), 2), 0, head.score_kind).eval(), TASKS["CartPole-v1"])
    scores = evaluate([student(shelf), teacher], QUICK)
    assert [score.network for score in scores] == ["mlp:6", *["mlp:8+4"] * 3]


# One head


def test_a_head_that_is_split_off_plays_as_it_did_and_exports_like_any_other(shelf: Path, tmp_path: Path) -> None:
    made = split(shelf / "student", "Acrobot-v1", tmp_path / "alone")
    view = student(shelf).view("Acrobot-v1")
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(made(x), view(x))
    assert made.provenance["split_from"]["sha256"] == student(shelf).sha256
    assert made.provenance["seed"] == 0
    (one,), (other,) = evaluate(made, QUICK), evaluate(f"{shelf / 'student'}#Acrobot-v1", QUICK)
    assert one.returns == other.returns
    few = ExportConfig(states=50, calibration=10, episodes=0)
    done = export(tmp_path / "alone", tmp_path / "head.pt", "torchscript", few)
    assert done.compared.agreement == 1


@pytest.mark.parametrize(
    ("policy", "task", "out", "words"),
    [
        ("student", "Pong-v5", "new", ["no head for 'Pong-v5'", *TASKS]),
        ("CartPole-v1", "CartPole-v1", "new", ["plays one task, CartPole-v1"]),
        ("student", "CartPole-v1", "student", ["exists"]),
        ("nothing", "CartPole-v1", "new", ["nothing"]),
    ],
)
def test_a_split_that_cannot_be_is_one_line(shelf: Path, policy: str, task: str, out: str, words: list[str]) -> None:
    with pytest.raises(UserError) as refusal:
        split(shelf / policy, task, shelf / out)
    assert all(word in str(refusal.value) for word in words), refusal.value
    assert not (shelf / "new").exists()


def test_inspect_has_a_line_a_task(shelf: Path) -> None:
    facts = inspect(shelf / "student", InspectConfig(play=1, num_envs=1, max_episode_steps=40))
    assert [line.split(":")[0] for line in facts["tasks"]] == list(TASKS)
    assert [line.split(":")[0] for line in facts["plays"]] == list(TASKS)
    assert facts["parameters"].startswith(f"{parameter_count(student(shelf).network):,},")
    assert facts["padding"] == "CartPole-v1 from 4 to 6, Pendulum-v1 from 3 to 6"


# Watching


@pytest.fixture(scope="module")
def grids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of two MinAtar games, whose pictures have the same size, and a teacher of the second."""
    pytest.importorskip("minatar")
    folder = tmp_path_factory.mktemp("grids")
    tasks = {name: make_task(name) for name in ("MinAtar/Breakout-v1", "MinAtar/Freeway-v1")}
    heads = {name: Head(task.observation_shape, *task.choices, "logits") for name, task in tasks.items()}
    save_policy(folder / "student", build_heads("cnn:4:8", heads, 0), tasks, {})
    freeway = heads["MinAtar/Freeway-v1"]
    network = build(Architecture("cnn:4:8", freeway.observation_shape, freeway.num_scores), 1, "logits")
    save_policy(folder / "freeway", network, tasks["MinAtar/Freeway-v1"], {})
    return folder


def frames_of(path: Path) -> int:
    from PIL import Image

    with Image.open(path) as film:
        return int(getattr(film, "n_frames", 1))


def test_all_tasks_are_watched_one_after_the_other_each_beside_its_teacher(grids: Path, tmp_path: Path) -> None:
    config = WatchConfig(max_steps=4, epsilon=1.0)
    done = watch([grids / "freeway", grids / "student"], config, out=tmp_path / "both.gif")
    place = str(grids / "student")
    assert [one.policy for one in done] == [
        f"{place}#MinAtar/Breakout-v1",
        str(grids / "freeway"),
        f"{place}#MinAtar/Freeway-v1",
    ]
    assert [one.steps for one in done] == [4, 4, 4]
    one = watch(grids / "student", replace(config, task="MinAtar/Freeway-v1"), out=tmp_path / "one.gif")
    assert [watched.policy for watched in one] == [f"{place}#MinAtar/Freeway-v1"]
    assert frames_of(tmp_path / "both.gif") > frames_of(tmp_path / "one.gif")


def test_a_task_that_is_not_there_cannot_be_watched(grids: Path, tmp_path: Path) -> None:
    for policy, task, words in (
        ("student", "MinAtar/Asterix-v1", "MinAtar/Breakout-v1, MinAtar/Freeway-v1"),
        ("freeway", "MinAtar/Freeway-v1", "no policy here plays several"),
    ):
        with pytest.raises(UserError, match=words):
            watch(grids / policy, WatchConfig(task=task), out=tmp_path / "none.gif")
    assert not list(tmp_path.iterdir())


# All heads as one file


@pytest.mark.parametrize("format", ["onnx", "c"])
@pytest.mark.parametrize("folder", ["shelf", "grids"])
@pytest.mark.slow
def test_all_heads_are_one_file_that_takes_the_task(
    request: pytest.FixtureRequest, folder: str, format: Literal["onnx", "c"], tmp_path: Path
) -> None:
    """Files are run here by what they are made for, ONNX Runtime and a C compiler, not by the exporter's own reader."""
    if format == "c" and compiler() is None:
        pytest.skip("no C compiler")
    pytest.importorskip("onnxruntime")
    policy = load_heads(request.getfixturevalue(folder) / "student")
    assert isinstance(policy, MultiTaskPolicy)
    out = tmp_path / f"all.{format}"
    done = export(policy, out, format, ExportConfig(states=64, episodes=int(folder == "grids")))
    assert done.compared.agreement == 1
    assert [row["policy"] for row in done.rows] == [f"{policy.name}#{task}" for task in policy.tasks for _ in range(2)]
    shapes = [head.observation_shape for head in policy.heads.values()]
    wide = (max(shape[0] for shape in shapes), *shapes[0][1:])
    most = max(head.num_scores for head in policy.heads.values())
    for index, (name, head) in enumerate(policy.heads.items()):
        task = policy.tasks[name]
        x = np.zeros((5, *wide), dtype=task.observation_dtype)
        x[:, : head.observation_shape[0]] = np.random.default_rng(0).integers(0, 2, (5, *head.observation_shape))
        expected = policy.view(name)(torch.from_numpy(np.ascontiguousarray(x[:, : head.observation_shape[0]]))).numpy()
        scores = run_onnx(out, x, index) if format == "onnx" else run_c(out, x, index, most)
        np.testing.assert_allclose(scores[:, : head.num_scores], expected, rtol=1e-4, atol=1e-5)
        behind = 0.0 if task.continuous else -np.inf
        assert (scores[:, head.num_scores :] == behind).all()


def run_onnx(path: Path, observations: np.ndarray, index: int) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes())
    table = json.loads(session.get_modelmeta().custom_metadata_map["rldistill"])["tasks"]
    assert [entry["index"] for entry in table] == list(range(len(table)))
    given = {"observation": observations, "task": np.full(len(observations), index)}
    names = [output.name for output in session.get_outputs()]
    outputs = dict(zip(names, session.run(names, given), strict=True))
    if "action" in outputs:
        np.testing.assert_array_equal(outputs["action"], outputs["scores"].argmax(axis=1))
    return np.asarray(outputs["scores"])


MAIN = """#include <stdio.h>
#include <stdlib.h>
#include "all.h"
int main(int count, char **words)
{
    static OBSERVATION observation[RLDISTILL_OBSERVATION_SIZE];
    float scores[RLDISTILL_SCORES];
    while (fread(observation, sizeof observation, 1, stdin) == 1) {
        rldistill_scores(atoi(words[1]), observation, scores);
        fwrite(scores, sizeof scores, 1, stdout);
    }
    return rldistill_scores(99, observation, scores);
}
"""


def run_c(path: Path, observations: np.ndarray, index: int, most: int) -> np.ndarray:
    kind = "uint8_t" if observations.dtype == np.uint8 else "float"
    main = path.with_name("main.c")
    main.write_text(MAIN.replace("OBSERVATION observation", f"{kind} observation"))
    program = path.with_name("main")
    subprocess.run([*(compiler() or []), "-std=c99", main, path, "-o", program, "-lm"], check=True)
    done = subprocess.run([program, str(index)], input=observations.tobytes(), capture_output=True, check=True)
    return np.frombuffer(done.stdout, np.float32).reshape(-1, most)


@pytest.mark.slow
def test_a_format_of_one_task_takes_one_head(shelf: Path, tmp_path: Path) -> None:
    few = ExportConfig(states=20, calibration=10, episodes=0)
    with pytest.raises(UserError, match="#CartPole-v1"):
        export(shelf / "student", tmp_path / "all.pt", "torchscript", few)
    export(f"{shelf / 'student'}#CartPole-v1", tmp_path / "one.pt", "torchscript", few)
    assert [path.name for path in tmp_path.iterdir()] == ["one.pt"]
    export(shelf / "student", tmp_path / "all.onnx", "onnx", few)
    with pytest.raises(UserError, match="holds all heads"):
        evaluate(tmp_path / "all.onnx", QUICK)


# The report


@pytest.fixture
def run(grids: Path, tmp_path: Path) -> Path:
    """A run folder of the student of two games, whose second teacher is there."""
    policy = load_heads(grids / "student")
    assert isinstance(policy, MultiTaskPolicy)
    places = [str(grids / "gone"), str(grids / "freeway")]
    save_policy(
        tmp_path / "run" / "policy", policy.network, policy.tasks, {"teacher": places, "temperature": [0.1, 0.2]}
    )
    config = {
        "verb": "distill",
        "student": "cnn:4:8",
        "teacher": places,
        "task": [t.as_dict() for t in policy.tasks.values()],
    }
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    records = [
        {"event": "evaluation", "lesson": name, "control_steps": steps, "mean": mean, "returns": [mean]}
        for steps in (100, 200)
        for name, mean in zip(policy.tasks, (1.0, 2.0), strict=True)
    ]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return tmp_path / "run"


@pytest.mark.slow
def test_a_page_of_several_tasks_has_a_row_and_a_curve_a_task(run: Path) -> None:
    config = ReportConfig(episodes=2, num_envs=2, seconds=0.2, task="MinAtar/Freeway-v1")
    text = report(run, config=config).read_text()
    assert all(f'id="curve-{place}-' in text for place in (0, 1))
    rows = re.findall(r'<th scope="row">(.*?)</th>', text)
    assert [re.sub("<.*?>", " ", row).split()[-1] for row in rows] == [
        f"{run}#MinAtar/Breakout-v1",
        json.loads((run / "config.json").read_text())["teacher"][1],
        f"{run}#MinAtar/Freeway-v1",
    ]
    assert "gone is left out" in text
    plays = json.loads(re.findall(r'id="plays">(.*?)</script>', text, re.DOTALL)[0])
    assert plays["task"] == "MinAtar/Freeway-v1"
    assert [player["role"] for player in plays["players"]] == ["teacher", "student"]
    kept = (run / "scores.json").read_bytes()
    report(run, config=replace(config, seconds=0))
    assert (run / "scores.json").read_bytes() == kept


def test_a_report_of_a_task_or_a_teacher_that_is_not_there_is_one_line(run: Path) -> None:
    for config, words in (
        (ReportConfig(task="Pong-v5"), "MinAtar/Breakout-v1, MinAtar/Freeway-v1"),
        (ReportConfig(teacher="policies/pong"), "this run has several"),
    ):
        with pytest.raises(UserError, match=words):
            report(run, config=config)
    assert not (run / "report.html").exists()


def test_one_head_has_its_own_teacher(run: Path) -> None:
    view = load_policy(run, "MinAtar/Freeway-v1")
    assert (Path(view.provenance["teacher"]).name, view.provenance["temperature"]) == ("freeway", 0.2)


# Publishing


@pytest.mark.slow
def test_a_student_of_several_tasks_is_published_with_a_row_and_a_result_a_task(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    config = PushConfig(episodes=2, num_envs=2, seconds=0.2, exports=("c",) if compiler() is not None else ())
    done = push(run, "me/two", config, out=tmp_path / "hub", dry_run=True)
    assert [score.policy for score in done.scores][0::2] == ["me/two#MinAtar/Breakout-v1", "me/two#MinAtar/Freeway-v1"]
    text = (tmp_path / "hub" / "README.md").read_text()
    card = text.split("---")[1]
    assert all(card.count(f"type: {name}") == 1 for name in ("MinAtar/Breakout-v1", "MinAtar/Freeway-v1"))
    assert text.count("(this policy)") == 2
    assert text.count("(teacher)") == 1
    assert read_scores(tmp_path / "hub" / "scores.json").across_tasks[0].policy == "me/two"
    assert "* me/two (" in text, "a name is not capitalized"
    published = load_heads(tmp_path / "hub")
    assert published.sha256 == load_heads(run).sha256
    # Over its own folder, its exports among it, and with its own scores.
    again = replace(config, scores=tmp_path / "hub" / "scores.json", seconds=0)
    (tmp_path / "scores.json").write_bytes((tmp_path / "hub" / "scores.json").read_bytes())
    again = replace(again, scores=tmp_path / "scores.json")
    assert push(run, "me/two", again, out=tmp_path / "hub", dry_run=True, force=True).scores == done.scores
