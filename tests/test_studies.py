"""Studies: the grid in their files, their cells, and workers that share them."""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import rldistill
from rldistill import cli
from rldistill.datasets.shards import open_dataset
from rldistill.play.envs import make_task
from rldistill.policies import save_policy
from rldistill.progress import Silent
from rldistill.runs.studies.cells import CellFolder
from rldistill.runs.studies.plan import Cell, Plan, read_plan
from rldistill.runs.studies.reading import StudyFile
from rldistill.runs.studies.results import outcomes_of
from rldistill.runs.studies.work import State, forget_failures, work_on
from rldistill.students.networks import Architecture, build
from rldistill.types import UserError
from rldistill.verbs.evaluate import EvaluateConfig, evaluate
from rldistill.verbs.record import RecordConfig, record
from rldistill.verbs.starts import StartsConfig, starts
from rldistill.verbs.study import StudyConfig, builtin_studies, study, study_status, write_tables
from rldistill.verbs.study.running import runner

SOURCE = Path(rldistill.__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
TEACHER = '{env = "CartPole-v1", steps = 600, warmup = 100, final_episodes = 0}'
TINY = f"""
[study]
teachers = [{TEACHER}]
seeds = 2
reference = "kl"

[settings]
steps = 300
warmup = 100
samples_per_step = 4
evaluate_episodes = 0

[axes]
loss = ["kl", "mse"]

[games]
episodes = 2
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """The file of a study of four students."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


def planned(source: Path | str, out: Path, **config: Any) -> Plan:
    """The plan that the command writes, without any work."""
    study(source, out, StudyConfig(jobs=0, **config))
    return read_plan(out)


def compute(out: Path) -> None:
    """What a worker does, in this process."""
    work_on(out, runner(Silent()))
    write_tables(out, read_plan(out))


def students(plan: Plan) -> list[Cell]:
    return [cell for cell in plan.cells if cell.setting]


def noted(names: list[str], seconds: float = 0.0) -> Any:
    """Stands for the computation of a cell where only the order of cells matters."""

    def run(cell: Cell, folder: Path) -> Mapping[str, Any]:
        names.append(cell.name)
        time.sleep(seconds)
        if cell.seed == 1 and cell.setting == "kl":
            raise UserError("no luck")
        if cell.seed == 1 and cell.setting == "mse":
            raise ZeroDivisionError("a bug\nof two lines")
        return {"env": "CartPole-v1", "returns": [9.0, 10.0], "figures": {}, "random_score": 5.0}

    return run


def scored(cell: Cell, folder: Path) -> Mapping[str, Any]:
    """Stands for the computation of a cell where only its place in the tables matters."""
    returns = [float(zlib.crc32(cell.name.encode()) % 100) + 10 for _ in range(2)]
    return {"env": "CartPole-v1", "returns": returns, "figures": {}, "random_score": 5.0}


# ---- files ----


@pytest.mark.slow
def test_all_built_in_studies_can_be_planned_in_each_of_their_tiers(tmp_path: Path) -> None:
    for name, path in builtin_studies().items():
        for tier in StudyFile(path).table("tiers"):
            plan = planned(name, tmp_path / f"{name}-{tier}", tier=tier)
            assert plan.tier == tier
            assert len(students(plan)) == len({cell.name for cell in students(plan)})
            assert {cell.setting for cell in students(plan)} == set(plan.settings)


WRONG = {
    "unknown table": ("[games]", "[gmaes]", "line 16: gmaes is none of"),
    "unknown entry": ("seeds = 2", "sedes = 2", "line 4: sedes is none of"),
    "no TOML": ("[axes]", "[axes", r"no TOML file.*line 13"),
    "unknown option": ("steps = 300", "stpes = 300", "line 8: distill has no option 'stpes'; did you mean steps"),
    "option of another type": ("steps = 300", 'steps = "many"', "line 8: steps is a whole number"),
    "option out of range": ("samples_per_step = 4", "samples_per_step = 0", "line 10: .*--samples-per-step"),
    "seed": ("steps = 300", "seed = 3", "line 8: seed is set by the study"),
    "unknown value": ('"kl", "mse"', '"kl", "mes"', "line 14: mes: unknown loss 'mes'"),
    "reference": ('reference = "kl"', 'reference = "nll"', "line 5: the reference 'nll' is none of"),
    "no values": ('["kl", "mse"]', "[]", "line 14: the axis loss has no values, so the grid is empty"),
    "a setting twice": ('["kl", "mse"]', '["kl", "kl"]', "line 14: two settings are called kl"),
    "no teachers": (f"[{TEACHER}]", "[]", "line 3: .* empty"),
    "no such game": ("CartPole-v1", "CartPole-v9", "line 3: .*CartPole-v9"),
    "option of train": ("warmup = 100, final", "wramup = 100, final", "line 3: train has no option 'wramup'"),
    "no such teacher": (
        '{env = "CartPole-v1", steps = 600, warmup = 100, final_episodes = 0}',
        '"nobody"',
        "line 3: there is no nobody",
    ),
    "no such shipped teacher": (
        '{env = "CartPole-v1", steps = 600, warmup = 100, final_episodes = 0}',
        '"policies/tetris"',
        "line 3: no policies/tetris here",
    ),
    "games": ("episodes = 2", "episodes = 0", "line 17: --episodes"),
    "two names of one setting": (
        'loss = ["kl", "mse"]',
        "loss.kl = {}\nloss.other = {}",
        "kl and other are the same setting",
    ),
    "games of a setting": (
        'loss = ["kl", "mse"]',
        "loss.kl = { games = { episode = 3 } }",
        "line 14: episode is none of",
    ),
    "games that are no table": ('loss = ["kl", "mse"]', "loss.kl = { games = 3 }", "line 14: games is a table"),
    "no starts": ("episodes = 2", 'starts = ["nowhere.json"]', "line 17: cannot read .*nowhere.json"),
    "published": (
        "[games]",
        "[published.figures]\nkl = 1.0\nmse = 0.9\nklx = 0.8\n[games]",
        "line 19: 'klx' is none of",
    ),
    "no seeds": ("seeds = 2", "seeds = 0", "line 4: seeds"),
    "verb": ("seeds = 2", 'verb = "watch"', "line 4: the verb is distill, follow or train"),
    "an axis of no figure": ("seeds = 2", 'axis = "paramters"', "line 4: axis is one of parameters"),
    "a label that is empty": ('loss = ["kl", "mse"]', 'student = [""]', "line 14: a label"),
    "a published figure that is none": ("[games]", "[published.figures]\nkl = true\n[games]", "line 17: a published"),
    "no such dataset": ("steps = 300", 'dataset = "nowhere"', "line 8: there is no nowhere"),
    "two datasets": ("steps = 300", 'dataset = "."\nrecord = { steps = 64 }', "line 8: .* record makes another one"),
    "a teacher twice": (f"[{TEACHER}]", f"[{TEACHER}, {TEACHER}]", "line 3: teachers names one twice"),
    "envs": ("seeds = 2", 'envs = ["CartPole-v1"]', "line 4: a study of distill has teachers, not envs"),
}


@pytest.mark.parametrize(("good", "bad", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_in_a_file_is_reported_with_its_line_before_there_is_a_folder(
    tmp_path: Path, good: str, bad: str, message: str
) -> None:
    assert good in TINY
    path = tmp_path / "wrong.toml"
    path.write_text(TINY.replace(good, bad))
    with pytest.raises(UserError, match=message):
        study(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_study_or_tier_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no study 'loses': take .*losses"):
        study("loses", tmp_path / "out")
    with pytest.raises(UserError, match="has no tiers"):
        study(tiny, tmp_path / "out", StudyConfig(tier="atari"))
    with pytest.raises(UserError, match="classic: name one with --tier"):
        study("losses", tmp_path / "out")
    with pytest.raises(UserError, match="not 'go'"):
        study("losses", tmp_path / "out", StudyConfig(tier="go"))


def test_the_command_says_it_in_one_line(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: object) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["rldistill", "study", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, capsys.readouterr().err

    for words, message in {
        ("nothing", "--out", tmp_path / "out"): "there is no study 'nothing'",
        (tiny,): "add --out",
        (tiny, tiny, "--out", tmp_path / "out"): "one",
        ("work", tmp_path / "nowhere"): "no folder of a study",
        ("status", tmp_path): "no folder of a study",
        ("status", tmp_path, "--jobs", 3): "takes the study's folder and nothing else",
        (tiny, "--out", tmp_path): "exists and is no folder of a study",
        (tiny, "--out", tmp_path / "out", "--seeds", 0): "--seeds is at least 1",
    }.items():
        status, err = run(*words)
        assert status == 2
        assert message in err
        assert len(err.strip().splitlines()) == 1


def test_axes_make_all_combinations_and_a_table_of_options_makes_one_setting(tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(
        TINY.replace('reference = "kl"', "").replace(
            'loss = ["kl", "mse"]',
            """
temperature = [0.1, "auto"]
[axes.student]
small = { student = "mlp:8", dropout = 0.1 }
"with data" = { student = "mlp:16", steps = 250, record = { steps = 64, num_envs = 4 } }
""",
        )
    )
    plan = planned(path, tmp_path / "out", seeds=1)
    assert plan.settings == ("0.1 / small", "0.1 / with data", "auto / small", "auto / with data")
    options = {cell.setting: cell.options for cell in students(plan)}
    common = {"samples_per_step": 4, "evaluate_episodes": 0, "warmup": 100}
    assert options["0.1 / small"] == {**common, "steps": 300, "student": "mlp:8", "dropout": 0.1, "temperature": "0.1"}
    with_data = [cell for cell in students(plan) if "data" in cell.setting]
    assert {cell.data_cell for cell in with_data} == {cell.name for cell in plan.cells if cell.verb == "record"}
    assert len({cell.data_cell for cell in with_data}) == 1


def test_cells_stand_in_the_order_in_which_results_become_useful(tiny: Path, tmp_path: Path) -> None:
    plan = planned(tiny, tmp_path / "out")
    assert [cell.verb for cell in plan.cells] == ["train", "play", *["distill"] * 4]
    assert [(cell.seed, cell.setting) for cell in students(plan)] == [(0, "kl"), (0, "mse"), (1, "kl"), (1, "mse")]


def test_students_of_two_seeds_play_other_games(tiny: Path, tmp_path: Path) -> None:
    games = [cell.games for cell in students(planned(tiny, tmp_path / "out"))]
    assert len({json.dumps(one) for one in games}) == 2


# ---- workers ----


def test_a_failed_cell_stops_no_other_and_is_tried_again_by_the_next_study(tiny: Path, tmp_path: Path) -> None:
    plan = planned(tiny, tmp_path / "out")
    names: list[str] = []
    work_on(tmp_path / "out", noted(names))
    assert names == [cell.name for cell in plan.cells]
    state = study_status(tmp_path / "out")
    assert sorted(state.failed.values()) == ["ZeroDivisionError: a bug", "no luck"]
    assert (len(state.done), state.left) == (4, 0)
    work_on(tmp_path / "out", noted(names))
    assert len(names) == len(plan.cells)
    forget_failures(tmp_path / "out", plan)
    assert study_status(tmp_path / "out").left == 2


def test_a_cell_with_a_return_that_is_no_number_fails_alone(tiny: Path, tmp_path: Path) -> None:
    plan = planned(tiny, tmp_path / "out", seeds=1)
    bad = students(plan)[0]

    def run(cell: Cell, folder: Path) -> Mapping[str, Any]:
        return {**scored(cell, folder), **({"returns": [math.nan]} if cell == bad else {})}

    work_on(tmp_path / "out", run)
    assert list(study_status(tmp_path / "out").failed) == [bad.name]
    write_tables(tmp_path / "out", plan)
    assert "| kl | 0 of 1 |" in (tmp_path / "out" / "table.md").read_text()


def test_what_needs_a_failed_cell_fails_with_its_name(tiny: Path, tmp_path: Path) -> None:
    plan = planned(tiny, tmp_path / "out")

    def run(cell: Cell, folder: Path) -> Mapping[str, Any]:
        raise UserError("no luck")

    work_on(tmp_path / "out", run)
    failed = study_status(tmp_path / "out").failed
    assert failed.pop(plan.cells[0].name) == "no luck"
    assert set(failed.values()) == {f"it needs {plan.cells[0].name}, which failed"}


def test_workers_share_cells_and_none_is_computed_twice(tiny: Path, tmp_path: Path) -> None:
    plan = planned(tiny, tmp_path / "out", seeds=10)
    names: list[list[str]] = [[], [], []]
    together = threading.Barrier(len(names))

    def meeting(own: list[str]) -> Any:
        """Waits in its first student until the others are in theirs, so that no worker is too late for all of them."""
        run, met = noted(own), list[bool]()

        def compute(cell: Cell, folder: Path) -> Mapping[str, Any]:
            if cell.setting and not met:
                met.append(True)
                together.wait(60)
            result: Mapping[str, Any] = run(cell, folder)
            return result

        return compute

    workers = [threading.Thread(target=work_on, args=(tmp_path / "out", meeting(own))) for own in names]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert sorted(itertools.chain(*names)) == sorted(cell.name for cell in plan.cells)
    assert all(names)


def test_a_worker_takes_up_cells_that_are_added_meanwhile(tiny: Path, tmp_path: Path) -> None:
    planned(tiny, tmp_path / "out", seeds=1)
    names: list[str] = []
    run = noted(names)

    def add_cells(cell: Cell, folder: Path) -> Mapping[str, Any]:
        if not names:
            planned(tiny, tmp_path / "out", seeds=3)
        result: Mapping[str, Any] = run(cell, folder)
        return result

    work_on(tmp_path / "out", add_cells)
    assert set(names) == {cell.name for cell in read_plan(tmp_path / "out").cells}


def test_a_changed_file_keeps_finished_cells_and_drops_those_that_it_lacks(tiny: Path, tmp_path: Path) -> None:
    out, names = tmp_path / "out", list[str]()
    before = planned(tiny, out, seeds=1)
    work_on(out, noted(names))
    tiny.write_text(TINY.replace('["kl", "mse"]', '["kl", "nll"]'))
    after = planned(tiny, out, seeds=1)
    work_on(out, noted(names))
    added = {cell.name for cell in after.cells} - {cell.name for cell in before.cells}
    assert names == [*(cell.name for cell in before.cells), *added]
    assert len(added) == 1
    assert all(CellFolder(out, cell).finished for cell in before.cells)
    write_tables(out, after)
    assert "| nll |" in (out / "table.md").read_text()
    assert "| mse |" not in (out / "table.md").read_text()


@pytest.mark.slow
def test_a_cell_is_the_same_to_the_bit_alone_and_after_others(tiny: Path, tmp_path: Path) -> None:
    """Also where a worker was interrupted in it."""
    planned(tiny, tmp_path / "all", seeds=1)
    work_on(tmp_path / "all", runner(Silent()))
    tiny.write_text(TINY.replace('["kl", "mse"]', '["mse"]').replace('reference = "kl"', ""))
    plan = planned(tiny, tmp_path / "one", seeds=1)
    with pytest.raises(KeyboardInterrupt):
        work_on(tmp_path / "one", runner(_Interrupting(3)))
    work_on(tmp_path / "one", runner(Silent()))
    for cell in plan.cells:
        one, other = (CellFolder(tmp_path / name, cell) for name in ("one", "all"))
        assert {**one.result(), "seconds": 0} == {**other.result(), "seconds": 0}
        weights = "policy/weights.safetensors"
        if cell.setting:
            assert (one.run_path / weights).read_bytes() == (other.run_path / weights).read_bytes()


class _Interrupting(Silent):
    """Presses Ctrl-C when a stage begins for the so-many-th time."""

    def __init__(self, stages: int) -> None:
        self.left = stages

    def start(self, what: str, total: int, unit: str, *, done: int = 0) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_other_games_need_no_other_runs(tiny: Path, tmp_path: Path) -> None:
    """Among them games from starts that another policy made."""
    out = tmp_path / "out"
    plan = planned(tiny, out, seeds=1)
    compute(out)
    runs = {
        cell.name: (CellFolder(out, cell).run_path / "policy/policy.json").stat().st_mtime_ns for cell in students(plan)
    }
    teacher = CellFolder(out, plan.cells[0]).run_path
    starts(teacher, tmp_path / "cart.json", StartsConfig(number=3))
    tiny.write_text(TINY.replace("episodes = 2", 'starts = ["cart.json"]\nepsilon = 0'))
    plan = planned(tiny, out, seeds=1)
    assert study_status(out).left == 3
    compute(out)
    for cell in students(plan):
        assert (CellFolder(out, cell).run_path / "policy/policy.json").stat().st_mtime_ns == runs[cell.name]
        student, score = CellFolder(out, cell), evaluate([CellFolder(out, cell).run_path], from_starts(tmp_path))[0]
        assert student.result()["returns"] == score.returns
        assert (student.run_path / "report.html").is_file()
    assert "from the starts in cart.json" in (out / "table.md").read_text()


@pytest.mark.slow
def test_settings_that_differ_in_games_alone_share_their_students(tiny: Path, tmp_path: Path) -> None:
    """Students of a recorded dataset, so that the dataset's control steps count too."""
    out = tmp_path / "out"
    own = "[axes.games]\nfew = {}\nmany = { games = { episodes = 3, teacher_episodes = 4, epsilon = 1 } }\n"
    text = TINY.replace('[axes]\nloss = ["kl", "mse"]\n', own).replace('reference = "kl"', 'reference = "few"')
    tiny.write_text(
        text.replace("steps = 300\nwarmup = 100\nsamples_per_step = 4", "record = { steps = 200 }\nupdates = 20")
    )
    plan = planned(tiny, out, seeds=1)
    compute(out)
    assert [cell.verb for cell in plan.cells].count("distill") == 1
    few, many = outcomes_of(out, plan)
    assert few.run == many.run
    assert (out / few.run / "report.html").is_file()
    assert (len(few.returns), len(few.teacher_returns)) == (2, 2)
    assert (len(many.returns), len(many.teacher_returns)) == (3, 4)
    assert few.figures == many.figures
    assert few.figures["control_steps"] >= 200
    random_play = EvaluateConfig(episodes=3, epsilon=1, seed=1_000_000)
    assert list(many.returns) == evaluate([out / many.run], random_play)[0].returns
    words = (out / "table.md").read_text()
    assert "few: Full games, 2 of each student" in words
    assert "many: Full games, 3 of each student, 4 of each teacher" in words


def test_a_study_to_which_games_are_added_keeps_its_students(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tiny.write_text(TINY.replace('loss = ["kl", "mse"]', "[axes.games]\nkl = {}"))
    before = students(planned(tiny, out, seeds=1))
    tiny.write_text(TINY.replace('loss = ["kl", "mse"]', "[axes.games]\nkl = {}\nmany = { games = { episodes = 3 } }"))
    plan = planned(tiny, out, seeds=1)
    assert {cell.name for cell in before} <= {cell.name for cell in plan.cells}
    assert [cell.verb for cell in students(plan)] == ["play", "play"]
    assert {cell.teacher_cell for cell in students(plan)} == {cell.name for cell in before}
    names = [cell.name for cell in plan.cells]
    assert all(names.index(cell.teacher_cell) < names.index(cell.name) for cell in students(plan))


def test_games_of_two_axes_add_up(tiny: Path, tmp_path: Path) -> None:
    axes = (
        "[axes.number]\nfew = {}\nmany = { games = { episodes = 5 } }\n"
        "[axes.chance]\nlow = { games = { epsilon = 0.25 } }\nhigh = { games = { epsilon = 0.75 } }\n"
    )
    text = TINY.replace('[axes]\nloss = ["kl", "mse"]\n', axes).replace('reference = "kl"', 'reference = "few / low"')
    tiny.write_text(text.replace("[games]", "[games]\nteacher_episodes = 7"))
    plan = planned(tiny, tmp_path / "out", seeds=1)
    played = {cell.setting: (cell.games or {}) for cell in students(plan)}
    assert {setting: (games["episodes"], games["epsilon"]) for setting, games in played.items()} == {
        "few / low": (2, 0.25),
        "few / high": (2, 0.75),
        "many / low": (5, 0.25),
        "many / high": (5, 0.75),
    }
    assert all(cell.games["episodes"] == 7 for cell in plan.cells if cell.games and not cell.setting)


def test_names_of_games_hold_no_places(tiny: Path, tmp_path: Path) -> None:
    """The same starts in another folder are the same cells, with as many games as there are starts."""
    policy = tmp_path / "policy"
    task = make_task("CartPole-v1")
    save_policy(policy, build(Architecture("mlp:4", task.observation_shape, task.num_actions), 0), task, {})
    starts(policy, tmp_path / "cart.json", StartsConfig(number=3))
    names = []
    for folder in (tmp_path / "one", tmp_path / "other"):
        folder.mkdir()
        (folder / "cart.json").write_bytes((tmp_path / "cart.json").read_bytes())
        axis = '[axes.starts]\nkl = {}\nlate = { games = { starts = ["cart.json"] } }'
        (folder / "tiny.toml").write_text(TINY.replace('loss = ["kl", "mse"]', axis))
        plan = planned(folder / "tiny.toml", folder / "out", seeds=1)
        assert [cell.games["episodes"] for cell in students(plan) if cell.games] == [2, 0]
        names.append([cell.name for cell in plan.cells])
    assert names[0] == names[1]


def from_starts(folder: Path) -> EvaluateConfig:
    """The conditions of a study's games with seed 0, which are seeded by another number."""
    return EvaluateConfig(epsilon=0, seed=1_000_000, starts=(str(folder / "cart.json"),))


def test_a_folder_of_another_study_is_refused(tiny: Path, tmp_path: Path) -> None:
    planned(tiny, tmp_path / "out")
    other = tiny.with_name("other.toml")
    other.write_text(TINY)
    with pytest.raises(UserError, match="out is of the study tiny, not of other"):
        planned(other, tmp_path / "out")


def test_a_damaged_plan_is_refused_in_one_line(tiny: Path, tmp_path: Path) -> None:
    planned(tiny, tmp_path / "out")
    path = tmp_path / "out" / "study.json"
    plan = json.loads(path.read_text())
    for damaged in (plan | {"format": 9}, {**plan, "cells": [{"shape": 3}]}, {"format": 1}, []):
        path.write_text(json.dumps(damaged))
        with pytest.raises(UserError, match=r"study.json"):
            read_plan(tmp_path / "out")


def test_a_damaged_result_is_refused_in_one_line_and_made_anew_once_it_is_removed(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan = planned(tiny, out, seeds=1)
    work_on(out, scored)
    path = CellFolder(out, students(plan)[0]).result_path
    whole = json.loads(path.read_text())
    lacking = {name: value for name, value in whole.items() if name != "figures"}
    for damaged in ("{", "[]", json.dumps(lacking), json.dumps(whole | {"seconds": "long"})):
        path.write_text(damaged)
        for read in (lambda: study_status(out), lambda: write_tables(out, plan)):
            with pytest.raises(UserError, match=rf"^{path} is damaged.*remove it.*$"):
                read()
    path.unlink()
    work_on(out, scored)
    assert {**json.loads(path.read_text()), "seconds": 0} == {**whole, "seconds": 0}


@pytest.mark.slow
def test_a_study_of_train_compares_with_its_reference_setting(tmp_path: Path) -> None:
    path = tmp_path / "gammas.toml"
    path.write_text("""
[study]
verb = "train"
envs = ["CartPole-v1"]
reference = "0.99"
seeds = 2
[settings]
steps = 400
warmup = 100
final_episodes = 0
[axes]
discount = [0.9, 0.99]
[games]
episodes = 2
""")
    plan = planned(path, tmp_path / "out")
    compute(tmp_path / "out")
    assert study_status(tmp_path / "out").left == 0
    assert [cell.verb for cell in plan.cells] == ["play", *["train"] * 4]
    assert "| 0.9 |" in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.slow
def test_a_study_of_train_plays_one_game_with_all_its_options(tmp_path: Path) -> None:
    path = tmp_path / "short.toml"
    grid = """
[study]
verb = "train"
envs = ["CartPole-v1"]
reference = "0.99"
seeds = 1
[settings]
steps = 400
warmup = 100
final_episodes = 0
max_episode_steps = 5
[axes]
discount = [0.9, 0.99]
[games]
episodes = 2
"""
    path.write_text(grid)
    plan = planned(path, tmp_path / "out")
    compute(tmp_path / "out")
    random_play = CellFolder(tmp_path / "out", plan.cells[0]).result()["random_score"]
    assert random_play <= 5  # of whole games about 22
    assert all(sum(CellFolder(tmp_path / "out", cell).result()["returns"]) <= 10 for cell in students(plan))
    path.write_text(grid.replace("discount = [0.9, 0.99]", "max_episode_steps = [5, 6]").replace("0.99", "5"))
    with pytest.raises(UserError, match="line 13: 6 and 5 differ in max_episode_steps"):
        planned(path, tmp_path / "other")


def test_two_teachers_of_one_game_are_told_apart_by_their_options(tmp_path: Path, tiny: Path) -> None:
    tiny.write_text(TINY.replace(TEACHER, f"{TEACHER}, {TEACHER.replace('steps = 600', 'steps = 600, seed = 1')}"))
    plan = planned(tiny, tmp_path / "out", seeds=1)
    work_on(tmp_path / "out", scored)
    write_tables(tmp_path / "out", plan)
    assert {cell.teacher for cell in students(plan)} == {"CartPole-v1 (seed 0)", "CartPole-v1 (seed 1)"}
    levels = {cell.name: cell for cell in plan.cells if cell.verb == "play"}
    assert all(levels[cell.level_cell].teacher_cell == cell.teacher_cell for cell in students(plan))
    with (tmp_path / "out" / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    for row in rows:
        (level,) = [cell for cell in levels.values() if cell.teacher == row["teacher"]]
        returns = CellFolder(tmp_path / "out", level).result()["returns"]
        assert list(map(float, row["teacher_returns"].split())) == returns


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """A policy folder without any training."""
    return untrained(tmp_path / "policy", 0)


def untrained(folder: Path, seed: int) -> Path:
    task = make_task("CartPole-v1")
    save_policy(folder, build(Architecture("mlp:4", task.observation_shape, 2), seed), task, {})
    return folder


@pytest.mark.slow
def test_a_teacher_that_has_changed_since_the_plan_is_noticed(tmp_path: Path, tiny: Path, policy: Path) -> None:
    tiny.write_text(TINY.replace(TEACHER, '"policy"'))
    before = planned(tiny, tmp_path / "out", seeds=1)
    untrained(policy, 1)
    compute(tmp_path / "out")
    state = study_status(tmp_path / "out")
    assert (len(state.failed), len(state.done)) == (3, 0)
    assert all(f"{policy} has changed since" in line for line in state.failed.values())
    after = planned(tiny, tmp_path / "out", seeds=1)
    assert not {cell.name for cell in before.cells} & {cell.name for cell in after.cells}
    compute(tmp_path / "out")
    assert study_status(tmp_path / "out").failed == {}


@pytest.mark.slow
def test_starts_and_datasets_that_have_changed_since_the_plan_are_noticed(
    tmp_path: Path, tiny: Path, policy: Path
) -> None:
    def make(seed: int) -> None:
        for path in (tmp_path / "cart.json", tmp_path / "data"):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        starts(policy, tmp_path / "cart.json", StartsConfig(number=2, seed=seed))
        record(policy, tmp_path / "data", RecordConfig(steps=200, seed=seed))

    make(0)
    own = TINY.replace(TEACHER, '"policy"').replace("episodes = 2", 'starts = ["cart.json"]')
    tiny.write_text(own.replace("steps = 300", 'dataset = "data"\nupdates = 10'))
    before = planned(tiny, tmp_path / "out", seeds=1)
    make(1)
    compute(tmp_path / "out")
    failed = study_status(tmp_path / "out").failed
    assert "cart.json has changed" in failed.pop(before.cells[0].name)
    assert len(failed) == 2
    assert all("data has changed" in line for line in failed.values())
    planned(tiny, tmp_path / "out", seeds=1)
    compute(tmp_path / "out")
    assert study_status(tmp_path / "out").failed == {}


@pytest.mark.slow
def test_a_dataset_is_named_from_the_folder_of_the_file(
    tmp_path: Path, tiny: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(policy, tmp_path / "data", RecordConfig(steps=200))
    tiny.write_text(TINY.replace(TEACHER, '"policy"').replace("steps = 300", 'dataset = "data"\nupdates = 10'))
    plan = planned(tiny, tmp_path / "out", seeds=1)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    compute(tmp_path / "out")
    assert study_status(tmp_path / "out").failed == {}
    assert planned(tiny, tmp_path / "out", seeds=1) == plan


def test_the_tables_are_of_the_plan_in_the_folder(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where another `study` changed it while this one waited for its workers."""
    out = tmp_path / "out"

    def wait(folder: Path, jobs: int, threads: int, on_look: object) -> None:
        planned(tiny, out, seeds=2)
        work_on(out, scored)

    monkeypatch.setattr("rldistill.verbs.study.run_workers", wait)
    study(tiny, out, StudyConfig(jobs=1, seeds=1))
    with (out / "runs.csv").open() as file:
        assert {row["seed"] for row in csv.DictReader(file)} == {"0", "1"}


def test_tables_of_an_earlier_plan_do_not_stay(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    planned(tiny, out, seeds=1)
    work_on(out, scored)
    write_tables(out, read_plan(out))
    tiny.write_text(TINY.replace('["kl", "mse"]', '["nll"]').replace('reference = "kl"', ""))
    write_tables(out, planned(tiny, out, seeds=1))
    assert "| kl |" not in (out / "table.md").read_text()


@pytest.mark.slow
def test_a_dataset_is_recorded_once_for_the_settings_that_share_it(tmp_path: Path, tiny: Path) -> None:
    tiny.write_text(
        TINY.replace(
            'loss = ["kl", "mse"]',
            '[axes.driver]\nkl = {driver = "teacher"}\n'
            "offline = {record = {steps = 200}, updates = 20}\nshort = {record = {steps = 200}, updates = 10}",
        )
    )
    plan = planned(tiny, tmp_path / "out", seeds=1)
    compute(tmp_path / "out")
    assert study_status(tmp_path / "out").failed == {}
    assert sum(cell.verb == "record" for cell in plan.cells) == 1
    (offline,) = [cell for cell in students(plan) if cell.setting == "offline"]
    figures = CellFolder(tmp_path / "out", offline).result()["figures"]
    assert (figures["control_steps"], figures["teacher_steps"], figures["updates"]) == (200, 200, 20)


@pytest.mark.slow
def test_students_learn_from_what_their_teacher_visited_while_it_learnt(tmp_path: Path, tiny: Path) -> None:
    grid = TINY.replace('loss = ["kl", "mse"]', "driver = { kl = {}, learning = {visited = true, updates = 20} }")
    tiny.write_text(grid)
    with pytest.raises(UserError, match=r"line 14: learning learns from what CartPole-v1 visited .* record_steps"):
        planned(tiny, tmp_path / "out", seeds=1)
    tiny.write_text(grid.replace("warmup = 100, final", "warmup = 100, record_steps = 200, final"))
    plan = planned(tiny, tmp_path / "out", seeds=1)
    compute(tmp_path / "out")
    assert study_status(tmp_path / "out").failed == {}
    (learning,) = [cell for cell in students(plan) if cell.setting == "learning"]
    assert learning.data_cell == plan.cells[0].name
    steps = open_dataset(CellFolder(tmp_path / "out", plan.cells[0]).data_path).control_steps
    assert steps == 512  # of all 600, the least that is kept: one stretch
    assert CellFolder(tmp_path / "out", learning).result()["figures"]["teacher_steps"] == steps


# ---- processes ----


def started(*words: object, cwd: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "rldistill", "study", *map(str, words)],
        cwd=cwd,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


@pytest.mark.slow
def test_two_workers_compute_a_study(tiny: Path, tmp_path: Path) -> None:
    process = started(tiny, "--out", "out", "--jobs", 2, cwd=tmp_path)
    printed = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 0, printed
    assert "6 of 6 cells done" in printed
    assert {"table.md", "table.csv", "runs.csv", "plot.svg", "index.html"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }


@pytest.mark.slow
def test_the_tables_are_the_same_to_the_byte_after_kills(tiny: Path, tmp_path: Path) -> None:
    kills = int(os.environ.get("RLDISTILL_KILLS", "3"))
    tiny.write_text(
        TINY.replace("steps = 300", "steps = 3000\ncheckpoint_seconds = 0.1").replace(
            "seeds = 2", f"seeds = {kills + 2}"
        )
    )
    planned(tiny, tmp_path / "whole")
    compute(tmp_path / "whole")
    planned(tiny, tmp_path / "killed")
    draws = random.Random(0)
    for _ in range(kills):  # each worker is killed wherever it stands some time after it has begun to compute
        worker = subprocess.Popen(
            [sys.executable, "-m", "rldistill.verbs.study.worker", "killed"],
            cwd=tmp_path,
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
        )
        wait_for(lambda: bool(running(tmp_path / "killed")))
        time.sleep(draws.uniform(0.0, 2.0))
        assert worker.poll() is None, "the study is too short for so many kills"
        worker.kill()
        worker.communicate()
    worker = started("work", "killed", cwd=tmp_path)
    printed = worker.communicate(timeout=600)[0].decode()
    assert worker.returncode == 0, printed
    for name in ("table.md", "table.csv", "runs.csv"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_stop_with_the_study_that_started_them(tiny: Path, tmp_path: Path, number: signal.Signals) -> None:
    tiny.write_text(TINY.replace("steps = 300", "steps = 300000"))
    process = started(tiny, "--out", "out", "--jobs", 2, cwd=tmp_path)
    wait_for(lambda: any(learning(tmp_path / "out", cell) for cell in running(tmp_path / "out")))
    process.send_signal(number)
    printed = process.communicate(timeout=60)[0].decode()
    wait_for(lambda: not running(tmp_path / "out"))
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert "what is finished is kept" in printed
        assert any(
            (CellFolder(tmp_path / "out", cell).run_path / "checkpoint" / "state").exists()
            for cell in students(read_plan(tmp_path / "out"))
        )


@pytest.mark.slow
def test_a_study_whose_only_worker_dies_says_so(tiny: Path, tmp_path: Path) -> None:
    tiny.write_text(TINY.replace("steps = 300", "steps = 300000"))
    process = started(tiny, "--out", "out", "--jobs", 1, cwd=tmp_path)
    wait_for(lambda: any(cell.setting for cell in running(tmp_path / "out")))
    (worker,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(worker), signal.SIGKILL)
    printed = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 2
    assert "1 of 1 workers stopped (exit status -9): start it again to go on" in printed
    assert not any((tmp_path / "out" / "workers").iterdir())


def learning(out: Path, cell: Cell) -> bool:
    """Whether a student has learnt something that can be resumed."""
    return bool(cell.setting) and CellFolder(out, cell).last_figure() is not None


def running(out: Path) -> list[Cell]:
    if not (out / "study.json").exists():
        return []
    state = study_status(out)
    return [cell for cell in state.plan.cells if cell.name in state.running]


def wait_for(holds: Any, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_state_is_brought_up_to_date(tiny: Path, tmp_path: Path) -> None:
    plan = planned(tiny, tmp_path / "out")
    state = State(tmp_path / "out", plan).look()
    assert state.left == 6
    work_on(tmp_path / "out", noted([]))
    assert state.look().left == 0
