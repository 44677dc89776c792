"""The verb `report`: one self-contained HTML page about a run, which needs no network and nothing else beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from rldistill.arguments import checked_arguments
from rldistill.files import place_at, read_regular, replace_file
from rldistill.machine import usual_torch
from rldistill.play.envs import confirm, nearest_game, same_game, unlike
from rldistill.policies import KeptPolicy, MultiTaskPolicy, NamedPolicy, SavedPolicy, load_heads, named, named_heads
from rldistill.progress import Progress, Silent
from rldistill.runs.folder import RunFolder
from rldistill.runs.scores import Score, Scores, read_scores, write_scores
from rldistill.teachers import ForeignTeacher, NoisyTeacher, TeacherOptions, teacher_beside
from rldistill.types import MOST_ENVIRONMENTS, Task, UserError, check_numbers
from rldistill.verbs.report.animation import animation
from rldistill.verbs.report.made import Made
from rldistill.verbs.scoring import Conditions, score_loaded, score_tasks
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
    task: str | None = None
    """Of a student of several tasks, the one that the animation shows; by default the first."""
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
    policy = load_heads(folder) if begun.finished else None
    if policy is None:
        notes.append("The run is not finished: there is no policy to play with yet.")
    if isinstance(policy, MultiTaskPolicy) or isinstance(settings.get("task"), list):
        assert not isinstance(policy, SavedPolicy)
        text = _page_of_tasks(folder, settings, metrics, policy, notes, config, progress)
    else:
        text = _page(folder, settings, metrics, policy, notes, config, progress)
    page = text.encode(errors="backslashreplace")  # a path may hold bytes that are no UTF-8
    replace_file(target, page)
    progress.say(f"{target}: {len(page) / 2**20:.1f} MiB, open it in a browser")
    return target


def _page(
    folder: Path,
    settings: dict[str, Any],
    metrics: list[dict[str, Any]],
    policy: SavedPolicy | None,
    notes: list[str],
    config: ReportConfig,
    progress: Progress,
) -> str:
    """The page of a run with one task."""
    if config.task is not None:
        raise UserError("--task is one of several tasks, and this run has one: leave it out")
    if policy is not None:
        confirm(config.env, policy.task)
    teacher = _teacher(_with_best_teacher(_with_last_version(settings, folder), metrics, notes), config, notes)
    players = [player for player in (teacher, policy) if player is not None]
    if policy is not None and teacher is not None and unlike(policy.task, teacher.task) is not None:
        notes.append("The teacher plays another environment than the student, so the two are not compared.")
        players = [policy]

    scores, plays = Scores([]), None
    if policy is not None:
        conditions = _conditions(config)
        # A student may have learnt in another environment than its teacher (--env), and both play that.
        alike = [_playing(player, policy.task) for player in players]
        scores = _scores(folder, players, config, progress, lambda: score_loaded(alike, conditions, progress))
        plays = _plays(players, policy, settings, config, notes, progress)
    # Matplotlib is slow to import, and the command imports this module for every verb.
    from rldistill.verbs.report.page import write_page
    from rldistill.verbs.report.steady import steady_html

    skip = policy.task.frame_skip if policy is not None else 1
    beside = steady_html(str(settings.get("student")), metrics, frame_skip=skip)
    made = _made(policy) if policy is not None else None
    taught = _made(teacher) if teacher is not None else None
    return write_page(folder, settings, metrics, made, taught, scores, plays, notes, generator=GENERATOR, beside=beside)


def _page_of_tasks(
    folder: Path,
    settings: dict[str, Any],
    metrics: list[dict[str, Any]],
    policy: MultiTaskPolicy | None,
    notes: list[str],
    config: ReportConfig,
    progress: Progress,
) -> str:
    """The page of a run with several tasks."""
    tasks = [Task.from_dict(task) for task in settings.get("task", []) if isinstance(task, Mapping)]
    names = list(policy.tasks) if policy is not None else [task.env for task in tasks]
    if config.task is not None and config.task not in names:
        raise UserError(f"there is no head for {config.task!r}: the tasks are {', '.join(names)}")
    teachers = _teachers(settings, tasks, config, notes)
    scores, plays = Scores([]), None
    if policy is not None:
        conditions = _conditions(config)
        heads = named_heads(policy, folder)
        table = [*(_beside(teacher, heads) for teacher in teachers), *heads]
        players = [one.policy for one in table]
        scores = _scores(folder, players, config, progress, lambda: score_tasks(table, None, conditions, progress))
        task = config.task or names[0]
        view = policy.view(task)
        others = [one.policy for one in table if one.whole is None and same_game(one.env, view.task.env)]
        others.sort(key=lambda one: one.task.env != view.task.env)  # Pong's own teacher before one of another version
        plays = _plays([*others[:1], view], view, settings, config, notes, progress)
        if plays is not None:
            plays["task"] = task
            notes.append(f"The animation is of {task}; --task shows another one of {', '.join(names)}.")
    from rldistill.verbs.report.tasks import write_tasks_page

    made = None
    if policy is not None:
        made = Made(policy.provenance, sha256(policy.weights()).hexdigest(), next(iter(policy.tasks.values())))
    return write_tasks_page(
        folder,
        settings,
        metrics,
        made,
        [_made(teacher) for teacher in teachers],
        scores,
        plays,
        notes,
        tasks=names,
        generator=GENERATOR,
    )


def _made(policy: KeptPolicy) -> Made:
    return Made(policy.provenance, sha256(policy.weights()).hexdigest(), policy.task)


def _conditions(config: ReportConfig) -> Conditions:
    return Conditions(config.episodes, config.epsilon, config.seed, config.num_envs)


def _playing(player: KeptPolicy, task: Task) -> KeptPolicy:
    return replace(player, task=task) if isinstance(player, SavedPolicy | ForeignTeacher | NoisyTeacher) else player


def _beside(teacher: KeptPolicy, heads: Sequence[NamedPolicy]) -> NamedPolicy:
    """A teacher that plays the task of the head that it taught."""
    task = nearest_game(teacher.task.env, (head.policy.task for head in heads)) or teacher.task
    return named(_playing(teacher, task) if unlike(teacher.task, task) is None else teacher)


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


def _with_last_version(settings: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """The configuration of a run that follows a learner with the last version that is kept as its teacher, none where none is."""
    if not isinstance(settings.get("learner"), str):
        return settings
    kept = [card.parent for card in folder.glob("teachers/*/policy.json") if card.parent.name.isdigit()]
    last = max(kept, key=lambda path: int(path.name), default=None)
    return {**settings, "teacher": None if last is None else str(last)}


def _with_best_teacher(
    settings: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], notes: list[str]
) -> Mapping[str, Any]:
    """The configuration with the best of several teachers in the place of all."""
    sources = settings.get("teacher")
    if not isinstance(sources, list) or not sources:
        return settings
    scored = {
        record["teacher"]: float(record["mean"])
        for record in metrics
        if record.get("event") == "teacher" and record.get("teacher") in sources and "mean" in record
    }
    best = max(scored, key=lambda source: scored[source]) if scored else sources[0]
    why = "the best of them in the games of the run" if scored else "the first of them"
    notes.append(f"The student had {len(sources)} teachers. It is compared with {best}, {why}.")
    return {**settings, "teacher": best}


def _teacher(settings: Mapping[str, Any], config: ReportConfig, notes: list[str]) -> KeptPolicy | None:
    task = settings.get("task")
    like = Task.from_dict(task) if isinstance(task, Mapping) else None
    return _load_teacher(settings, settings.get("teacher"), like, config, notes)


def _teachers(
    settings: Mapping[str, Any], tasks: Sequence[Task], config: ReportConfig, notes: list[str]
) -> list[KeptPolicy]:
    """Of several tasks, those teachers that can be loaded."""
    if config.teacher not in (None, "none"):
        raise UserError("--teacher names one teacher, and this run has several: leave it out, or none to leave out all")
    places = settings.get("teacher")
    places = places if isinstance(places, list) else []
    loaded = [_load_teacher(settings, place, task, config, notes) for place, task in zip(places, tasks, strict=False)]
    return [teacher for teacher in loaded if teacher is not None]


def _load_teacher(
    settings: Mapping[str, Any], place: object, like: Task | None, config: ReportConfig, notes: list[str]
) -> KeptPolicy | None:
    options = TeacherOptions.from_dict(settings.get("teacher_options", {}))
    options = replace(options, trust_pickle=config.trust_pickle)

    def note(line: str) -> None:
        notes.append(f"{line[:1].upper()}{line[1:]}.")

    return teacher_beside(place, like=like, chosen=config.teacher, options=options, say=note)


def _scores(
    folder: Path,
    players: Sequence[KeptPolicy],
    config: ReportConfig,
    progress: Progress,
    play: Callable[[], Sequence[Score]],
) -> Scores:
    """Scores in the run folder if they are of these policies, else measured now and kept there."""
    path = folder / "scores.json"
    expected = [sha256(player.weights()).hexdigest() for player in players]
    if path.exists():
        kept = read_scores(path)
        if set(expected) <= {score.weights_sha256 for score in kept}:
            return kept
        progress.say(f"{path} holds the scores of other weights: measuring anew")
    if config.episodes == 0:
        return Scores([])
    scores = play()
    write_scores(path, scores)
    return scores if isinstance(scores, Scores) else Scores(scores)


def _plays(
    players: list[KeptPolicy],
    policy: KeptPolicy,
    settings: Mapping[str, Any],
    config: ReportConfig,
    notes: list[str],
    progress: Progress,
) -> dict[str, Any] | None:
    if config.seconds <= 0:
        return None
    reason = undrawable(policy.task)
    if reason is not None:
        notes.append(f"There is no animation: {policy.task.env} cannot be drawn here ({reason}).")
        return None
    progress.start("play for the animation", 1, "animation")
    # What the distillation used, where it acted on the teacher's values as they are (a constant added changes nothing).
    used = policy.provenance.get("temperature")
    plain = settings.get("targets", "raw") != "standardized"
    temperature = float(used) if plain and isinstance(used, int | float) and used > 0 else None
    played = animation(
        players,
        policy.task,
        seconds=config.seconds,
        epsilon=config.epsilon,
        seed=config.seed,
        temperature=temperature,
    )
    progress.update(1)
    return played
