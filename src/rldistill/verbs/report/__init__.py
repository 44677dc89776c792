"""The verb `report`: one self-contained HTML page about a run, which needs no network and nothing else beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from rldistill.arguments import checked_arguments
from rldistill.files import place_at, read_regular, replace_file
from rldistill.machine import usual_torch
from rldistill.play.envs import confirm, unlike
from rldistill.policies import KeptPolicy, SavedPolicy, load_policy
from rldistill.progress import Progress, Silent
from rldistill.runs.folder import RunFolder
from rldistill.runs.scores import Score, read_scores, write_scores
from rldistill.teachers import ForeignTeacher, TeacherOptions, teacher_beside
from rldistill.types import MOST_ENVIRONMENTS, Task, UserError, check_numbers
from rldistill.verbs.report.animation import animation
from rldistill.verbs.scoring import Conditions, score_loaded
from rldistill.verbs.spectator import undrawable

GENERATOR = "rldistill report"
"""Every page says so in its head."""


@dataclass(frozen=True)
class ReportConfig:
    """Games played for the page. A `scores.json` in the run folder that fits its policy is used as it is."""

    episodes: int = 30
    """Games a policy, where there are no scores yet; 0 leaves the table out."""
    epsilon: float = 0.05
    """Probability of a random action, in the games and in the animation."""
    seed: int = 0
    """Of the games and of the animation; teacher and student start alike."""
    num_envs: int = 15
    """Games played side by side for the scores."""
    seconds: float = 30.0
    """Length of the animation at 15 decisions a second, the speed of a real Atari; 0 leaves it out."""
    teacher: str | None = None
    """The teacher, if it is no longer where the run's configuration says; `none` leaves it out."""
    env: str | None = None
    """The policy's own environment id, to confirm it where it is written module:Id: the module is imported only then."""
    trust_pickle: bool = False
    """Unpickle the teacher's statistics as Python does. That runs whatever program their author put into the file: only for
    your own. What the run's configuration says of it does not count: the folder may be a stranger's."""


@usual_torch()
@checked_arguments
def report(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    config: ReportConfig | None = None,
    progress: Progress | None = None,
) -> Path:
    """Writes the page of a run that `distill` or `train` made; one that is not finished gets what there is.

    Args:
        run: the run folder. Scores measured here are kept in its `scores.json`.
        out: the page; by default `report.html` in the run folder. An earlier page is replaced in one step.
        config: see `ReportConfig`.
        progress: notified of each step.

    Returns:
        Where the page is.

    Raises:
        UserError: no run folder, a wrong configuration, a policy that cannot be loaded, a page that cannot be written.
    """
    config, progress = config or ReportConfig(), progress or Silent()
    folder = Path(run)
    _check(config)
    begun = RunFolder(folder)
    if not begun.exists:
        raise UserError(f"{folder} is no run folder: it has no config.json (policies are compared with `evaluate`)")
    settings = begun.config()
    target = _writable(Path(out) if out is not None else folder / "report.html")
    metrics = [record.as_json() for record in begun.records()[0]]
    notes: list[str] = []
    policy = load_policy(folder) if begun.finished else None
    if policy is None:
        notes.append("The run is not finished: there is no policy to play with yet.")
    if policy is not None:
        confirm(config.env, policy.task)
    teacher = _teacher(settings, config, notes)
    players = [player for player in (teacher, policy) if player is not None]
    if policy is not None and teacher is not None and unlike(policy.task, teacher.task) is not None:
        notes.append("The teacher plays another environment than the student, so the two are not compared.")
        players = [policy]

    scores, plays = [], None
    if policy is not None:
        scores = _scores(folder, players, policy.task, config, progress)
        if config.seconds > 0:
            progress.start("play for the animation", 1, "animation")
            plays = _plays(players, policy, settings, config, notes)
            progress.update(1)
    # Matplotlib is slow to import, and the command imports this module for every verb.
    from rldistill.verbs.report.page import write_page

    text = write_page(folder, settings, metrics, policy, teacher, scores, plays, notes, generator=GENERATOR)
    page = text.encode(errors="backslashreplace")  # a path may hold bytes that are no UTF-8
    replace_file(target, page)
    progress.say(f"{target}: {len(page) / 2**20:.1f} MiB, open it in a browser")
    return target


def _check(config: ReportConfig) -> None:
    within = {"seconds": (0, 600), "num_envs": (1, MOST_ENVIRONMENTS)}
    check_numbers(config, least={"episodes": 0, "seed": 0}, shares=["epsilon"], within=within)


def _writable(path: Path) -> Path:
    """The page's path, checked before anything is played."""
    place = place_at(path)
    if place == "stream":
        return path
    if place == "folder":
        raise UserError(f"cannot write {path}: it is a folder; name a file such as {path / 'report.html'}")
    if not Path(os.path.realpath(path)).parent.is_dir():
        raise UserError(f"cannot write {path}: there is no folder {path.parent}")
    if place == "file" and GENERATOR.encode() not in read_regular(path, 2000):
        raise UserError(f"{path} exists and is no page that report made: choose another --out")
    return path


def _teacher(settings: Mapping[str, Any], config: ReportConfig, notes: list[str]) -> KeptPolicy | None:
    options = TeacherOptions.from_dict(settings.get("teacher_options", {}))
    options = replace(options, trust_pickle=config.trust_pickle)

    def note(line: str) -> None:
        notes.append(f"{line[:1].upper()}{line[1:]}.")

    named = settings.get("teacher")
    return teacher_beside(named, like=_task(settings), chosen=config.teacher, options=options, say=note)


def _task(settings: Mapping[str, Any]) -> Task | None:
    """The task that a teacher of another tool plays, by the run's configuration."""
    task = settings.get("task")
    return Task.from_dict(task) if isinstance(task, Mapping) else None


def _scores(
    folder: Path, players: list[KeptPolicy], task: Task, config: ReportConfig, progress: Progress
) -> list[Score]:
    """Scores in the run folder if they are of these policies, else measured now and kept there."""
    path = folder / "scores.json"
    expected = [sha256(player.weights()).hexdigest() for player in players]
    if path.exists():
        kept = read_scores(path)
        if set(expected) <= {score.weights_sha256 for score in kept}:
            return kept
        progress.say(f"{path} holds the scores of other weights: measuring anew")
    if config.episodes == 0:
        return []
    # A student may have learnt in another environment than its teacher (--env), and both play that.
    alike = [
        replace(player, task=task) if isinstance(player, SavedPolicy | ForeignTeacher) else player for player in players
    ]
    conditions = Conditions(config.episodes, config.epsilon, config.seed, config.num_envs)
    scores = score_loaded(alike, conditions, progress)
    write_scores(path, scores)
    return scores


def _plays(
    players: list[KeptPolicy], policy: KeptPolicy, settings: Mapping[str, Any], config: ReportConfig, notes: list[str]
) -> dict[str, Any] | None:
    reason = undrawable(policy.task)
    if reason is not None:
        notes.append(f"There is no animation: {policy.task.env} cannot be drawn here ({reason}).")
        return None
    # What the distillation used, where it acted on the teacher's values as they are (a constant added changes nothing).
    used = policy.provenance.get("temperature")
    plain = settings.get("targets", "raw") != "standardized"
    temperature = float(used) if plain and isinstance(used, int | float) and used > 0 else None
    return animation(
        players,
        policy.task,
        seconds=config.seconds,
        epsilon=config.epsilon,
        seed=config.seed,
        temperature=temperature,
    )
