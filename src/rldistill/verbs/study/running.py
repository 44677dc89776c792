"""How a cell is computed: the verb's function in this process, resumed where it stands, and the games of its result."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from rldistill.datasets.shards import open_dataset
from rldistill.play.envs import fitting_task, make_task, with_longest_game
from rldistill.play.games import play_scored
from rldistill.play.starts import chosen_starts, read_starts
from rldistill.policies import KeptPolicy, MultiTaskPolicy, SavedPolicy, parameters_of
from rldistill.progress import Progress, Silent
from rldistill.runs.provenance import made_by
from rldistill.runs.studies.cells import CELLS, CellFolder
from rldistill.runs.studies.plan import Cell
from rldistill.runs.studies.work import RunCell
from rldistill.teachers import load_fitting
from rldistill.teachers.noise import noise_in, with_noise
from rldistill.types import ActionValues, Task, UserError
from rldistill.verbs.distill import distill
from rldistill.verbs.record import record
from rldistill.verbs.report import ReportConfig, report
from rldistill.verbs.study.options import VERBS
from rldistill.verbs.train import train

_FIGURES = ("control_steps", "teacher_steps", "student_steps", "updates")


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Within it PyTorch computes with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def runner(progress: Progress) -> RunCell:
    """Computes cells, and reports how they go."""
    verbs = {
        "play": _play,
        "choose": _choose,
        "record": _record,
        "distill": _distill,
        "train": _train,
        "follow": _follow,
    }

    def run(cell: Cell, folder: Path) -> Mapping[str, Any]:
        return {"cell": cell.name, "made_by": made_by(), **verbs[cell.verb](cell, folder, progress)}

    return run


def _teachers(cell: Cell, folder: Path) -> list[str]:
    """Where the cell's teachers are.

    Raises:
        UserError: one is another than when the study was planned.
    """
    if cell.teacher_cell and not cell.policy:  # the policy of that cell
        return [str(CellFolder(folder, cell.teacher_cell).run_path)]
    names = {"policy": cell.policy} if cell.policy else {f"policy {n}": path for n, path in enumerate(cell.panel)}
    if cell.choice_cell:
        chosen = CellFolder(folder, cell.choice_cell).result()["chosen"]
        names = dict([list(names.items())[chosen]])
    return [_unchanged(cell, what, _in_folder(path, folder)) for what, path in names.items()]


def _teacher(cell: Cell, folder: Path) -> str:
    """Where the one teacher of the cell is."""
    (teacher,) = _teachers(cell, folder)
    return teacher


def _in_folder(path: str, folder: Path) -> str:
    """The place of a teacher, which may be in the study's folder."""
    noise, plain = noise_in(path)
    return with_noise(noise, str(folder / plain) if plain.startswith(f"{CELLS}/") else plain)


def _unchanged(cell: Cell, what: str, path: str) -> str:
    _check_unchanged(cell, what, path, lambda: getattr(load_fitting(path, progress=Silent()), "sha256", None))
    return path


def _check_unchanged(cell: Cell, what: str, path: str, checksum: Callable[[], str | None]) -> None:
    """Raises UserError where a file that the cell reads has changed since the plan: its result would have a wrong name."""
    planned = (cell.checksums or {}).get(what)
    if planned is not None and checksum() != planned:
        raise UserError(
            f"{path} has changed since the study was planned: start `rldistill study` again, which plans it anew"
        )


def _play(cell: Cell, folder: Path, progress: Progress) -> dict[str, Any]:
    """Games of a policy, or of random play alone."""
    assert cell.games is not None
    options = dict(cell.options or {})
    if cell.env:
        task = make_task(cell.env, **options)
        return {
            "env": task.env,
            "returns": [],
            "figures": {},
            "random_score": _random_score(task, cell.games, progress),
        }
    policy = load_fitting(_teacher(cell, folder), progress=progress)
    task = _task_of(policy, options)
    return {
        "env": task.env,
        "returns": _games(task, policy, cell.games, progress)["returns"],
        "figures": _size(policy),
    } | ({} if cell.setting else {"random_score": _random_score(task, cell.games, progress)})


def _choose(cell: Cell, folder: Path, progress: Progress) -> dict[str, Any]:
    """The best teacher of a panel, by games that count for nothing else."""
    options = dict(cell.options or {})
    means = []
    for place in _teachers(cell, folder):
        policy = load_fitting(place, progress=progress)
        means.append(float(_games(_task_of(policy, options), policy, options["games"], progress)["mean"]))
    return {"returns": [], "figures": {}, "means": means, "chosen": means.index(max(means))}


def _task_of(policy: KeptPolicy, options: Mapping[str, Any]) -> Task:
    task = fitting_task(policy.task, options.get("env"), options.get("env_kwargs", ()))
    return with_longest_game(task, options.get("max_episode_steps"))


def _random_score(task: Task, games: Mapping[str, Any], progress: Progress) -> float:
    if task.random_score is not None and not games.get("starts"):  # the published ones are of whole games
        return task.random_score
    return float(_games(task, None, games, progress)["mean"])


def _record(cell: Cell, folder: Path, progress: Progress) -> dict[str, Any]:
    """A dataset. One that was interrupted is made anew: what `record` appends comes from other episodes."""
    data = CellFolder(folder, cell.name).data_path
    shutil.rmtree(data, ignore_errors=True)
    dataset = record(_teacher(cell, folder), data, VERBS["record"].make(**(cell.options or {})), progress=progress)
    return {"returns": [], "figures": {"control_steps": dataset.control_steps}}


def _distill(cell: Cell, folder: Path, progress: Progress) -> dict[str, Any]:
    options = dict(cell.options or {})
    steps = 0
    if cell.data_cell:
        data = CellFolder(folder, cell.data_cell)
        options["dataset"] = str(data.data_path)
        steps = open_dataset(data.data_path).control_steps
    elif options.get("dataset"):
        path = options["dataset"]
        _check_unchanged(cell, "dataset", path, lambda: open_dataset(path).sha256)
    config = VERBS["distill"].make(**options)
    out = CellFolder(folder, cell.name).run_path
    teachers = _teachers(cell, folder)
    student = distill(teachers if len(teachers) > 1 else teachers[0], out, config, resume=True, progress=progress)
    _report(out)
    result = _result(student, cell, progress)
    for name in ("control_steps", "teacher_steps"):  # the dataset's were played for this student too
        result["figures"][name] = result["figures"].get(name, 0) + steps
    return result


def _train(cell: Cell, folder: Path, progress: Progress) -> dict[str, Any]:
    place, options = CellFolder(folder, cell.name), dict(cell.options or {})
    if "record" in options:
        options["record"] = str(place.data_path)
    out = place.run_path
    policy = train(cell.env, out, VERBS["train"].make(**options), resume=True, progress=progress)
    _report(out)
    return _result(policy, cell, progress)


def _follow(cell: Cell, folder: Path, progress: Progress) -> dict[str, Any]:
    """A student that follows a learner; its figures have the steadiness of both."""
    out = CellFolder(folder, cell.name).run_path
    policy = distill((), out, VERBS["follow"].make(**(cell.options or {})), resume=True, progress=progress)
    _report(out)
    result, steady = _result(policy, cell, progress), policy.provenance.get("steadiness", {})
    for who, figures in steady.items():
        named = {f"{who}_{name}": value for name, value in figures.items() if value is not None}
        result["figures"] |= named
    return result


def _report(run: Path) -> None:
    """The page of a run, without games of its own. Where it cannot be made, the result counts all the same."""
    with suppress(UserError, OSError):
        report(run, config=ReportConfig(episodes=0, seconds=0))


def _result(policy: SavedPolicy | MultiTaskPolicy, cell: Cell, progress: Progress) -> dict[str, Any]:
    assert isinstance(policy, SavedPolicy)
    made = policy.provenance
    figures = {name: made[name] for name in _FIGURES if name in made} | _size(policy)
    games = {} if cell.games is None else _games(policy.task, policy, cell.games, progress)
    return {"env": policy.task.env, "returns": games.get("returns", []), "figures": figures}


def _size(policy: KeptPolicy) -> dict[str, int]:
    return {"parameters": parameters_of(policy), "bytes": len(policy.weights())}


def _games(task: Task, values: ActionValues | None, games: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    files = [read_starts(path) for path in games.get("starts", ())]
    for one, planned in zip(files, games.get("starts_sha256", ()), strict=True):
        if one.sha256 != planned:
            raise UserError(f"{one.path} has changed since the study was planned: start `rldistill study` again")
    starts = chosen_starts(files, task) if files else None
    episodes = games["episodes"] or (len(starts.starts) if starts else 0)
    progress.start("random play" if values is None else "games for the table", episodes, "games")
    return play_scored(
        task,
        values,
        episodes,
        games["epsilon"],
        games["seed"],
        num_envs=games["num_envs"],
        starts=starts,
        on_progress=progress.update,
        on_line=progress.say,
    )
