"""Studies whose students have panels of several teachers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rldistill.play.envs import make_task
from rldistill.play.games import play_scored
from rldistill.runs.studies.cells import CellFolder
from rldistill.runs.studies.plan import Cell, Plan
from rldistill.teachers import load_teacher
from rldistill.types import UserError
from rldistill.verbs.study import StudyConfig, study, study_status
from test_distillation import balancing, save
from test_studies import compute, planned, students

MADE = 'env = "CartPole-v1", steps = 600, warmup = 100, final_episodes = 0'
PANELS = f"""
[study]
seeds = 2
panels = [
    {{ name = "noises", teachers = ["noisy:9s:good", "good", "noisy:5s:good"] }},
    {{ name = "made", teachers = [
        {{ {MADE}, seed = [0, 1], snapshot = [0.5, 1] }},
        {{ teacher = "good", student = "mlp:4", steps = 200, warmup = 100, evaluate_episodes = 0, noise = [0, "2s"] }},
    ] }},
]

[settings]
steps = 200
warmup = 100
evaluate_episodes = 0
teacher = "best"

[axes]
loss = ["kl", "mse"]

[games]
episodes = 3
epsilon = 0.0
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save(tmp_path / "good", balancing())
    path = tmp_path / "panels.toml"
    path.write_text(PANELS)
    return path


def cells(plan: Plan, verb: str) -> list[Cell]:
    return [cell for cell in plan.cells if cell.verb == verb and not cell.setting]


def run_config(out: Path, cell: Cell) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((CellFolder(out, cell).run_path / "config.json").read_text())
    return config


def test_a_panels_teachers_are_made_once_and_chosen_once(file: Path, tmp_path: Path) -> None:
    plan = planned(file, tmp_path / "out")
    assert len(cells(plan, "train")) == 2  # seeds; their snapshots are of the same runs
    assert len(cells(plan, "distill")) == 1  # with noise it is the same student
    assert [cell.teacher for cell in cells(plan, "choose")] == ["noises", "made"]
    assert len(cells(plan, "play")) == 2
    assert len(students(plan)) == 2 * 2 * 2
    made = next(cell for cell in students(plan) if cell.teacher == "made")
    ends = [path.partition("/run")[2] for path in made.panel]
    assert ends == ["/snapshots/0.5", "", "/snapshots/0.5", "", "", ""]
    assert [path.startswith("noisy:2s:cells/") for path in made.panel] == [False] * 5 + [True]
    assert len(made.panel_cells) == 3
    assert all(
        name.startswith(("kl-noises-s", "mse-noises-s", "kl-made-s", "mse-made-s"))
        for name in map(_name, students(plan))
    )


def _name(cell: Cell) -> str:
    return cell.name


def test_a_teacher_is_chosen_by_games_that_no_student_plays(file: Path, tmp_path: Path) -> None:
    plan = planned(file, tmp_path / "out", seeds=50)
    seeds = {cell.games["seed"] for cell in plan.cells if cell.games}
    chosen = {(cell.options or {})["games"]["seed"] for cell in cells(plan, "choose")}
    assert not chosen & {seed + more for seed in seeds for more in range(1000)}


@pytest.mark.slow
def test_students_learn_from_the_best_teacher_and_are_divided_by_its_games(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan = planned(file, out, seeds=1)
    compute(out)
    assert study_status(out).failed == {}
    choices = {cell.teacher: CellFolder(out, cell).result() for cell in cells(plan, "choose")}
    assert choices["noises"]["chosen"] == 1
    for cell in students(plan):
        means = choices[cell.teacher]["means"]
        best = cell.panel[means.index(max(means))]
        place = best.replace("cells/", f"{out}/cells/")
        assert run_config(out, cell)["teacher"] == place
        level = next(one for one in plan.cells if one.name == cell.level_cell)
        games = play_scored(make_task("CartPole-v1"), load_teacher(place), 3, 0.0, 0, num_envs=15)
        assert CellFolder(out, level).result()["returns"] == games["returns"]
    table = (out / "table.md").read_text()
    assert "best teacher's mean" in table
    assert "| noises | good |" in table
    assert (out / "index.html").read_text().count("Panels of teachers") > 0
    made = next(row for row in table.splitlines() if "snapshot 0.5" in row)
    assert "CartPole-v1 (seed 0, snapshot 0.5)" in made


def test_a_best_teacher_that_the_file_names_is_not_measured(file: Path, tmp_path: Path) -> None:
    file.write_text(PANELS.replace('"noisy:5s:good"] }', '"noisy:5s:good"], best = "noisy:5s:good" }'))
    plan = planned(file, tmp_path / "out")
    assert [cell.teacher for cell in cells(plan, "choose")] == ["made"]
    of_noises = [cell for cell in students(plan) if cell.teacher == "noises"]
    assert {cell.policy for cell in of_noises} == {f"noisy:5s:{tmp_path / 'good'}"}
    levels = {cell.level_cell for cell in of_noises}
    (level,) = [cell for cell in plan.cells if cell.name in levels]
    assert level.policy == of_noises[0].policy


def test_a_list_in_a_teacher_is_a_teacher_for_each_value_and_options_that_are_lists_stay(
    file: Path, tmp_path: Path
) -> None:
    text = PANELS[: PANELS.index("panels")] + PANELS[PANELS.index("[settings]") :].replace('teacher = "best"\n', "")
    options = (
        'loss = ["kl", "mse"], steps = [200, 300], env_kwargs = ["sutton_barto_reward=true"], evaluate_episodes = 0'
    )
    file.write_text(text.replace("[study]", f'[study]\nteachers = [{{ teacher = "good", warmup = 100, {options} }}]'))
    made = cells(planned(file, tmp_path / "out"), "distill")
    assert [((cell.options or {}).get("loss", "kl"), (cell.options or {})["steps"]) for cell in made] == [
        ("kl", 200),
        ("kl", 300),
        ("mse", 200),
        ("mse", 300),
    ]
    assert all((cell.options or {})["env_kwargs"] == ["sutton_barto_reward=true"] for cell in made)


def test_single_teachers_stand_beside_panels(file: Path, tmp_path: Path) -> None:
    text = PANELS.replace("panels = [", 'teachers = ["good"]\npanels = [').replace('teacher = "best"\n', "")
    text = text.replace('[axes]\nloss = ["kl", "mse"]', '[axes.who]\nbest = { teacher = "best" }\nalone = {}')
    file.write_text(text)
    plan = planned(file, tmp_path / "out", seeds=1)
    assert [(cell.setting, cell.teacher) for cell in students(plan)] == [
        ("alone", "good"),
        ("best", "noises"),
        ("best", "made"),
    ]


@pytest.mark.slow
def test_a_failed_teacher_of_a_panel_fails_its_students_with_its_name(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan = planned(file, out, seeds=1)
    lost = cells(plan, "distill")[0]
    CellFolder(out, lost).path.mkdir(parents=True)
    CellFolder(out, lost).fail("lost")
    (choice,) = [cell for cell in cells(plan, "choose") if cell.teacher == "made"]
    assert lost.name in choice.needs
    compute(out)
    failed = study_status(out).failed
    assert failed[choice.name] == f"it needs {lost.name}, which failed"
    assert len(failed) == 5  # the teacher, the choice, its games, and two students


WRONG = {
    "no panels": (PANELS[PANELS.index("panels") : PANELS.index("[settings]")], 'teachers = ["good"]\n', "none: panels"),
    "no setting": ('teacher = "best"\n', "", "line 4: no setting learns from the panels"),
    "not best": ('teacher = "best"', 'teacher = "worst"', 'line 16: teacher = "best"'),
    "a name twice": ('name = "made"', 'name = "noises"', "line 4: each panel has a name"),
    "no name": ('name = "made", ', "", "line 4: each panel has a name"),
    "unknown entry": ('name = "made"', 'nmae = "made"', "line 4: nmae is none of name, teachers, best"),
    "one teacher": ('"noisy:9s:good", "good", "noisy:5s:good"', '"good"', "line 4: the panel noises has 1 teachers"),
    "a teacher twice": ('"good", "noisy:5s:good"', '"good", "good"', "line 4: teachers names one twice: good"),
    "no such teacher": ('"noisy:9s:good"', '"bad"', "line 4: there is no bad"),
    "wrong noise": ('"noisy:9s:good"', '"noisy:x:good"', "line 4: .*'x' is no number"),
    "wrong noise of one to make": ('[0, "2s"]', '[0, "loud"]', "line 4: .*'loud' is no number"),
    "no noise": ('[0, "2s"]', "[]", "line 4: noise has no values"),
    "another task": (
        f"{MADE}, seed",
        MADE.replace("CartPole", "Acrobot").replace("v1", "v1") + ", seed",
        "different tasks",
    ),
    "best of others": ('"noisy:5s:good"] }', '"noisy:5s:good"], best = "bad" }', "line 4: best names one"),
    "snapshot of a student": (
        'noise = [0, "2s"]',
        "snapshot = 0.5",
        "line 4: snapshot is of a teacher that the study trains",
    ),
    "snapshot out of range": ("[0.5, 1]", "[1.5, 1]", "line 4: .*--snapshots"),
    "a dataset": ("steps = 200\nwarmup", "record = { steps = 50 }\nwarmup", "record is of one teacher"),
    "a table": ("panels = [", "panels = 3\nothers = [", "panels is a list of tables|others is none of"),
}


@pytest.mark.parametrize(("good", "bad", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_about_panels_is_reported_with_its_line(
    file: Path, tmp_path: Path, good: str, bad: str, message: str
) -> None:
    assert good in PANELS
    file.write_text(PANELS.replace(good, bad, 1))
    with pytest.raises(UserError, match=message) as error:
        study(file, tmp_path / "out", StudyConfig(jobs=0))
    assert "line" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_study_of_train_has_no_panels(tmp_path: Path) -> None:
    file = tmp_path / "train.toml"
    file.write_text('[study]\nverb = "train"\npanels = []\n[axes]\nsteps = [100, 200]\n')
    with pytest.raises(UserError, match="line 3: a study of train has envs, not panels"):
        study(file, tmp_path / "out", StudyConfig(jobs=0))


CHOICE = PANELS.replace('teacher = "best"\n', "").replace(
    'loss = ["kl", "mse"]',
    """
[axes.choice]
best = { teacher = "best" }
ucb1 = { select = "ucb1", select_every = "control-step" }
mean = { select = "mean" }
ridge = { select = "ridge", context = ["features"] }
""",
)


@pytest.mark.slow
def test_settings_with_select_have_all_teachers_of_a_panel(file: Path, tmp_path: Path) -> None:
    file.write_text(CHOICE)
    out = tmp_path / "out"
    plan = planned(file, out, seeds=1)
    panels = {cell.teacher: cell for cell in cells(plan, "choose")}
    for cell in students(plan):
        assert list(cell.panel) == list(panels[cell.teacher].panel)
        assert bool(cell.choice_cell) == (cell.setting == "best")
    assert {cell.level_cell for cell in students(plan)} == {cell.name for cell in cells(plan, "play")}
    compute(out)
    assert study_status(out).failed == {}
    for cell in students(plan):
        places = [path.replace("cells/", f"{out}/cells/") for path in cell.panel]
        taught = run_config(out, cell)["teacher"]
        assert taught in places if cell.setting == "best" else taught == places
    rows = [row for row in (out / "table.md").read_text().splitlines() if row.startswith("| CartPole-v1 | ")]
    assert [row.split(" | ")[1] for row in rows] == ["made", "noises"]


WRONG_CHOICE = {
    "unknown chooser": ('"ucb1", select_every', '"ucb2", select_every', "line 21: ucb1: unknown chooser 'ucb2'"),
    "unknown option": ('"ucb1", select', '"ucb1:d=1", select', "line 21: ucb1: .*option 'd'"),
    "both": ('select = "mean"', 'select = "mean", teacher = "best"', 'line 22: teacher = "best"'),
    "context of no use": ('"mean" }', '"mean", context = ["pixels"] }', "line 22: mean: --context"),
    "no such context": ('["features"]', '["wheel"]', "line 23: ridge: .*wheel"),
    "a dataset": ('select = "mean"', 'select = "mean", record = { steps = 40 }', "line 22: record is of one teacher"),
}


@pytest.mark.parametrize(("good", "bad", "message"), WRONG_CHOICE.values(), ids=WRONG_CHOICE)
def test_what_is_wrong_about_a_choice_is_reported_with_its_line(
    file: Path, tmp_path: Path, good: str, bad: str, message: str
) -> None:
    assert good in CHOICE
    file.write_text(CHOICE.replace(good, bad, 1))
    with pytest.raises(UserError, match=message):
        study(file, tmp_path / "out", StudyConfig(jobs=0))
    assert not (tmp_path / "out").exists()
