"""The verb `study`: a grid of runs in one folder, computed by any number of workers, and the tables that come out of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from rldistill.arguments import checked_arguments
from rldistill.configurations import changed
from rldistill.files import replace_file
from rldistill.holding import held_file
from rldistill.policies import SavedPolicy
from rldistill.progress import Progress, Silent, clock
from rldistill.runs.studies.cells import CellFolder
from rldistill.runs.studies.plan import PLAN, Plan, read_plan, write_plan
from rldistill.runs.studies.reading import StudyFile
from rldistill.runs.studies.results import card_of_study, outcomes_of
from rldistill.runs.studies.tables import write_outputs
from rldistill.runs.studies.work import State, forget_failures
from rldistill.students.networks import Network
from rldistill.teachers import load_fitting
from rldistill.types import Task, Teacher, UserError, check_numbers
from rldistill.verbs.distill.config import DistillConfig
from rldistill.verbs.distill.online import make_online
from rldistill.verbs.distill.selection import check_selecting, seated
from rldistill.verbs.distill.teaching import make_student, teaching_of
from rldistill.verbs.study.grid import read_grid
from rldistill.verbs.study.on_ray import check_ray, run_on_ray
from rldistill.verbs.study.on_slurm import check_slurm, run_on_slurm
from rldistill.verbs.study.options import VERBS
from rldistill.verbs.study.overview import Overview
from rldistill.verbs.study.planning import Loaders, make_plan
from rldistill.verbs.study.workers import cores, run_workers
from rldistill.verbs.train.config import TrainConfig
from rldistill.verbs.train.learners import make_network, make_plans

BUILTIN = Path(__file__).parent / "builtin"
COPY = "study.toml"
"""Name of the study's file in the study's folder."""


@dataclass(frozen=True)
class StudyConfig:
    """Which part of a study is computed, and how."""

    tier: str | None = None
    """Which teachers: `classic`, `minatar` or `atari` of the built-in studies, or a tier of your own file."""
    seeds: int | None = None
    """Students of each setting and teacher; by default as the study's file says, or 5."""
    jobs: int | None = None
    """Workers, each a process with its share of the cores; by default one for each core. 0 only writes the plan, for workers that
    are started with `rldistill study work DIR`."""
    on: str = "local"
    """Where cells are computed: `local`, workers on this machine; `ray` or `ray:HOST:PORT`, tasks of a Ray cluster; `slurm`, jobs
    of Slurm that share the folder."""
    slurm_options: tuple[str, ...] = ()
    """Of --on slurm: name=value of submitit, such as slurm_partition=long timeout_min=600."""


@checked_arguments
def study(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    config: StudyConfig | None = None,
    *,
    progress: Progress | None = None,
) -> State:
    """Computes the cells of a study that are not finished, and writes its tables.

    Args:
        source: name of a built-in study, or a TOML file.
        out: the study's folder. What is finished in it stays, also where the file has changed; failed cells are tried again.
        config: see `StudyConfig`.
        progress: shows how far all cells are.

    Returns:
        Which cells are finished, and which failed and why.

    Raises:
        UserError: something wrong in the file, a teacher that is missing, or a folder of something else.
    """
    config, progress = config or StudyConfig(), progress or Silent()
    check_numbers(config, least={"seeds": 1}, within={"jobs": (0, 1024)})
    _check_engine(config)
    folder, jobs = Path(out), cores() if config.jobs is None else config.jobs
    plan, text = _planned(source, config, folder, jobs)
    _prepare(folder, plan, text)
    state = State(folder, plan).look()
    overview = Overview(state, progress)
    overview.show()
    if jobs:
        _work(state, overview, partial(_engine, config, jobs))
        write_tables(folder, read_plan(folder))  # another `study` may have changed it meanwhile
    return state


def _check_engine(config: StudyConfig) -> None:
    engine, _, place = config.on.partition(":")
    if engine not in ("local", "ray", "slurm") or (engine == "local" and place):
        raise UserError(f"--on is local, ray, ray:HOST:PORT or slurm, not {config.on!r}")
    if config.slurm_options and engine != "slurm":
        raise UserError("--slurm-options is for --on slurm")
    if engine == "ray":
        check_ray(place or None)
    elif engine == "slurm":
        check_slurm(place or "slurm", config.slurm_options)


def _engine(config: StudyConfig, jobs: int, folder: Path, plan: Plan, on_look: Callable[[], None]) -> str | None:
    """Has the cells computed where the configuration says, and returns why that ended early."""
    engine, _, place = config.on.partition(":")
    if engine == "ray":
        run_on_ray(folder, plan, place or None, jobs, on_look)
        return None
    if engine == "slurm":
        return run_on_slurm(folder, place or "slurm", jobs, plan.threads, config.slurm_options, on_look)
    return run_workers(folder, jobs, plan.threads, on_look)


@checked_arguments
def work(out: str | os.PathLike[str], *, progress: Progress | None = None) -> State:
    """Computes cells of a study until none is left, beside any number of other workers on this machine or on others.

    The last worker writes the tables.

    Args:
        out: the study's folder, on a disk that all workers share.
        progress: shows how far all cells are.

    Raises:
        UserError: it is no study's folder.
    """
    folder, progress = Path(out), progress or Silent()
    plan = read_plan(folder)
    state = State(folder, plan).look()
    _work(state, Overview(state, progress), partial(_engine, StudyConfig(), 1))
    with ExitStack() as held:
        try:
            held.enter_context(held_file(folder / ".tables.lock", folder))
        except UserError:
            return state  # another worker writes them
        write_tables(folder, read_plan(folder))
    return state


@checked_arguments
def study_status(out: str | os.PathLike[str]) -> State:
    """How far a study is. Asking changes nothing.

    Raises:
        UserError: it is no study's folder.
    """
    return State(Path(out), read_plan(Path(out))).look()


def _work(state: State, overview: Overview, engine: Callable[[Path, Plan, Callable[[], None]], str | None]) -> None:
    """Computes what is left."""
    overview.show()
    if state.left:
        early = engine(state.folder, state.plan, overview.show)
        if state.look().left and early is not None:
            raise UserError(f"{early}: start it again to go on")


def write_tables(folder: Path, plan: Plan) -> None:
    """Writes the tables of what is finished; where no student is, only in place of those of another plan."""
    outcomes = outcomes_of(folder, plan)
    if outcomes or (folder / "table.md").exists():
        write_outputs(folder, card_of_study(folder, plan), outcomes)


def builtin_studies() -> dict[str, Path]:
    """The built-in studies, by name."""
    return {path.stem: path for path in sorted(BUILTIN.glob("*.toml"))}


def state_in_words(state: State) -> str:
    """One line: finished, running and failed cells, and an estimate of the time left while cells run."""
    words = [f"{len(state.done):,} of {state.total:,} cells done"]
    if state.running:
        words.append(f"{len(state.running)} running")
    if state.failed:
        words.append(f"{len(state.failed):,} failed")
    if state.done and state.running and state.left:
        mean = sum(state.done.values()) / len(state.done)
        words.append(f"about {clock(mean * state.left / len(state.running))} left")
    return ", ".join(words)


def state_table(state: State) -> list[dict[str, str]]:
    """Rows of running and failed cells."""
    rows = []
    for name in state.running:
        last = CellFolder(state.folder, name).last_figure()
        rows.append({"cell": name, "": "running", "last": f"{last[0]} {last[1]:.4g}" if last else "-"})
    return rows + [{"cell": name, "": "failed", "last": line} for name, line in state.failed.items()]


def _planned(source: str | os.PathLike[str], config: StudyConfig, folder: Path, jobs: int) -> tuple[Plan, str]:
    path = _file(os.fspath(source))
    file = StudyFile(path)
    grid = read_grid(file, path.stem, config.tier, VERBS)
    threads = max(1, min(torch.get_num_threads(), cores() // max(jobs, 1)))
    loaders = Loaders(partial(load_fitting, progress=Silent()), _untrained, _untrained_student)
    return make_plan(grid, config.seeds or grid.seeds, threads, loaders), file.text


def _untrained(env: str, config: TrainConfig | DistillConfig) -> SavedPolicy:
    if isinstance(config, DistillConfig):
        online, config = make_online(changed(config, learner=env), lambda line: None)
        student, _ = make_student([online.teaching], config)
        assert isinstance(student, Network)
        return SavedPolicy(student, online.teaching.task)
    plans = make_plans(env, config)
    network = make_network(plans)
    assert isinstance(network, Network)
    return SavedPolicy(network, plans[0].task)


def _untrained_student(teachers: Mapping[str, Teacher], task: Task, config: DistillConfig) -> SavedPolicy:
    config = check_selecting(config)
    teachings = [teaching_of(teacher, name, task, config) for name, teacher in teachers.items()]
    student, _ = make_student(seated(teachings, config), config)
    assert isinstance(student, Network)
    return SavedPolicy(student, task)


def _file(source: str) -> Path:
    studies = builtin_studies()
    if source in studies:
        return studies[source]
    if source.endswith(".toml") or Path(source).is_file():
        return Path(source)
    raise UserError(f"there is no study {source!r}: take {', '.join(studies)}, or name a FILE.toml")


def _prepare(folder: Path, plan: Plan, text: str) -> None:
    """Makes the folder or takes up the one that is there, and writes the plan.

    Raises:
        UserError: there is something else, another study, or the folder cannot be made.
    """
    if (folder / PLAN).is_file():
        before = read_plan(folder)
        plan.check_same(before, folder)
        plan = replace(plan, threads=before.threads)  # finished cells were computed so
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is no folder of a study (it has no {PLAN}): choose another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error.strerror}") from None
    replace_file(folder / COPY, text.encode())
    write_plan(folder, plan)
    forget_failures(folder, plan)


__all__: Sequence[str] = ["StudyConfig", "builtin_studies", "study", "study_status", "work"]
