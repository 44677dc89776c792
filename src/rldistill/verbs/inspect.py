"""The verb `inspect`: what a policy is, whoever made it, and how it plays."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from torch import nn

from rldistill.arguments import checked_arguments
from rldistill.machine import usual_torch
from rldistill.play.actions import describe
from rldistill.play.envs import fitting_task, with_longest_game
from rldistill.play.games import play_scored
from rldistill.policies import MultiTaskPolicy, SavedPolicy, parameters_of
from rldistill.progress import Progress, Silent
from rldistill.stats import above, figure, games_in_words, with_interval
from rldistill.students.heads import widest_shape
from rldistill.students.networks import parameter_count
from rldistill.teachers import ForeignTeacher, NoisyTeacher, TeacherOptions, load_all, load_several, load_teacher
from rldistill.types import MOST_ENVIRONMENTS, Task, Teacher, check_numbers


@dataclass(frozen=True)
class InspectConfig:
    """Where the policy plays, and how many games."""

    env: str | None = None
    """Environment id, where the file does not name one."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments name=value that a Gymnasium environment is made with; values are JSON's scalars or else text. They are kept with
    the policy; given here, they count instead."""
    play: int = 0
    """Full games to play."""
    epsilon: float = 0.01
    """Probability of a random action in them."""
    seed: int = 0
    """Of the games."""
    num_envs: int = 10
    """Games played side by side."""
    max_episode_steps: int | None = None
    """Control steps after which a game is cut; by default the task's own: 10,000 where the environment sets no limit."""


@usual_torch()
@checked_arguments
def inspect(
    ref: str | os.PathLike[str],
    config: InspectConfig | None = None,
    *,
    options: TeacherOptions | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """What a policy is: a name and a text (or a list of lines) for each fact.

    Args:
        ref: as `load_teacher` takes it.
        config: see `InspectConfig`.
        options: what the file does not say.
        progress: notified of finished games.

    Raises:
        UserError: it cannot be loaded, or a wrong configuration.
    """
    config, progress = config or InspectConfig(), progress or Silent()
    check_numbers(
        config,
        least={"play": 0, "seed": 0, "max_episode_steps": 1},
        shares=["epsilon"],
        within={"num_envs": (1, MOST_ENVIRONMENTS)},
    )
    several = load_several(ref)
    if several is not None:
        return _heads(ref, several, config, options, progress)
    policy = load_teacher(ref, env=config.env, env_kwargs=config.env_kwargs, options=options)
    task = policy.task
    plain = policy.teacher if isinstance(policy, NoisyTeacher) else policy
    facts: dict[str, Any] = {"policy": os.fspath(ref)}
    if isinstance(plain, ForeignTeacher):
        facts |= {"format": plain.foreign.format, "algorithm": plain.foreign.algorithm}
    else:
        algorithm = plain.provenance.get("algorithm", "distilled" if "teacher" in plain.provenance else "unknown")
        facts |= {"format": "rldistill policy folder", "algorithm": algorithm}
    keys = ", ".join(f"{name} ({size})" for name, size in task.observation_keys)
    facts |= {
        "environment": task.env,
        "observations": f"{task.observation_shape} {task.observation_dtype}{f': {keys}' if keys else ''}",
        "actions": describe(task),
        "scores": policy.score_kind,
        "network": _layers(policy.network),
        "parameters": f"{parameters_of(policy):,}",
        "normalization": _normalization(plain),
        "made by": _origin(plain),
    }
    if isinstance(policy, NoisyTeacher):
        facts["noise"] = f"standard deviation {policy.sigma:.4g}, seed {policy.noise.seed}"
    if isinstance(plain, ForeignTeacher):
        facts |= {"does not fit": list(plain.mismatches), "notes": list(plain.notes)}
    if config.play:
        task = with_longest_game(fitting_task(task, config.env, config.env_kwargs), config.max_episode_steps)
        facts |= _plays(policy, task, config, progress)
    return facts


def _heads(
    ref: str | os.PathLike[str],
    policy: MultiTaskPolicy,
    config: InspectConfig,
    options: TeacherOptions | None,
    progress: Progress,
) -> dict[str, Any]:
    """The facts about a policy of several tasks; a line a task."""
    heads = load_all([ref], env=config.env, env_kwargs=config.env_kwargs, options=options, progress=progress)
    facts: dict[str, Any] = {
        "policy": os.fspath(ref),
        "format": "rldistill policy folder",
        "algorithm": policy.provenance.get("algorithm", "distilled" if "teacher" in policy.provenance else "unknown"),
        "network": f"{policy.name}, {len(heads)} heads{_layer_normalization(policy)}",
        "parameters": f"{parameter_count(policy.network):,}, of one head with the torso "
        f"{', '.join(f'{parameters_of(head.policy):,}' for head in heads)}",
        "tasks": [
            f"{name}: {head.policy.task.observation_shape} {head.policy.task.observation_dtype}, {describe(head.policy.task)}, "
            f"{head.policy.score_kind}"
            for name, head in zip(policy.tasks, heads, strict=True)
        ],
        "padding": _padding(policy),
        "made by": _origin(policy),
    }
    if config.play:
        for name, head in zip(policy.tasks, heads, strict=True):
            task = with_longest_game(head.policy.task, config.max_episode_steps)
            plays = _plays(head.policy, task, config, progress)
            facts |= {fact: [*facts.get(fact, []), f"{name}: {text}"] for fact, text in plays.items()}
    return facts


def _layer_normalization(policy: MultiTaskPolicy) -> str:
    normalized = any(view.architecture.normalization == "layer" for _, view in policy.network.views())
    return ", layer normalization" if normalized else ""


def _padding(policy: MultiTaskPolicy) -> str:
    """Which tasks' observations are narrower than what the torso reads."""
    widest = widest_shape(policy.heads)[0]
    narrow = [
        f"{name} from {head.features} to {widest}" for name, head in policy.heads.items() if head.features < widest
    ]
    return ", ".join(narrow) or "none"


def _plays(policy: Teacher, task: Task, config: InspectConfig, progress: Progress) -> dict[str, str]:
    """The mean return of the games and of random play, and whether the first is above the second."""

    def play(values: Teacher | None, what: str) -> dict[str, Any]:
        progress.start(f"{what} {task.env}", config.play, "games")
        return play_scored(
            task,
            values,
            config.play,
            config.epsilon,
            config.seed,
            num_envs=config.num_envs,
            on_progress=progress.update,
            on_line=progress.say,
        )

    score = play(policy, "play")
    games = games_in_words(score["episodes"], score["distinct"])
    mean, low, high = (score[name] for name in ("mean", "ci_low", "ci_high"))
    facts = {"plays": f"{with_interval(mean, low, high)} in {games}, epsilon {config.epsilon:g}"}
    chance = task.random_score
    facts["random play"] = f"{figure(chance)} as published" if chance is not None else ""
    if chance is None:
        random = play(None, "random play")
        chance = float(random["mean"])
        facts["random play"] = f"{with_interval(chance, random['ci_low'], random['ci_high'])} in {config.play} games"
    if not above(mean, low, chance):
        facts["plays"] += "; not above random play"
    return facts


def _layers(network: nn.Module) -> str:
    """The layers and activation functions, in order."""
    leaves = [module for module in network.modules() if not list(module.children())]
    texts = [str(leaf) for leaf in leaves if not isinstance(leaf, nn.Identity)]
    return " > ".join(texts) if texts else type(network).__name__


def _normalization(policy: SavedPolicy | ForeignTeacher) -> str:
    if isinstance(policy, SavedPolicy):
        return "shift and scale, in the policy folder"
    statistics = policy.foreign.normalization
    if statistics is not None:
        return statistics.rule or f"VecNormalize of {statistics.source}, clipped at {statistics.limit:g}"
    return "expected, and not here" if policy.foreign.normalization_expected else "none"


def _origin(policy: SavedPolicy | ForeignTeacher | MultiTaskPolicy) -> str:
    skipped = {"format", "algorithm", "notes", "supposed", "score", "configuration", "returns"}
    pairs = ((name, value) for name, value in policy.provenance.items() if name not in skipped and value is not None)
    return (
        ", ".join(f"{name} {value}" for name, value in pairs if not isinstance(value, dict | list | tuple)) or "unknown"
    )
