"""The verb `evaluate`: full games of several policies under the same conditions, with confidence intervals."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from rldistill.arguments import checked_arguments
from rldistill.machine import usual_torch
from rldistill.play.envs import with_longest_game
from rldistill.policies import MultiTaskPolicy
from rldistill.progress import Progress, Silent
from rldistill.runs.scores import Scores, scores_file, write_scores
from rldistill.teachers import TeacherOptions, load_all
from rldistill.types import MOST_ENVIRONMENTS, Teacher, UserError, check_numbers, plain_numbers
from rldistill.verbs.scoring import Conditions, score, score_tasks, task_together

Evaluated: TypeAlias = str | os.PathLike[str] | Teacher | MultiTaskPolicy


@dataclass(frozen=True)
class EvaluateConfig:
    """The conditions under which all policies of a table play."""

    episodes: int = 30
    """Full games of each policy."""
    epsilon: float = 0.05
    """Probability of a uniformly random action, the same for all policies (paper: 0.05; nearly greedy: 0.01)."""
    seed: int = 0
    """Of environments, exploration and the bootstrap. All policies meet the same seeds."""
    num_envs: int = 15
    """Games played side by side; each row plays equally many, so that short games do not count more often."""
    env: str | None = None
    """Another environment than that of the first policy, with this id's own options."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments name=value that a Gymnasium environment is made with; values are JSON's scalars or else text. They are kept with
    the policy; given here, they count instead."""
    max_episode_steps: int | None = None
    """Control steps after which a game is cut, for all policies; by default that of the first policy's task: 10,000 where the
    environment sets no limit of its own."""


@usual_torch()
@checked_arguments
def evaluate(
    policies: Evaluated | Sequence[Evaluated],
    config: EvaluateConfig | None = None,
    *,
    json: str | os.PathLike[str] | None = None,
    options: TeacherOptions | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Plays full games with each policy, under the same environment options, seeds and epsilon.

    Args:
        policies: whatever `load_teacher` takes, loaded policies, or anything that is a `Teacher`. The first is what the others
            are measured by. Beside a student of several tasks, policies of one task are its teachers: each is what the heads
            with its environment are measured by.
        config: see `EvaluateConfig`.
        json: file for the scores, a list with one object a policy. A file that an earlier evaluation wrote is
            replaced in one step; any other file is left alone.
        options: what files of another tool do not say.
        progress: notified of finished games.

    Returns:
        One score a policy, in their order; of students of several tasks one a task, after the task's teachers, and in
        `across_tasks` the geometric means over the tasks.

    Raises:
        UserError: no policy, a wrong configuration, a folder that cannot be loaded, a policy that does not fit the
            environment, or a JSON file that cannot be written.
    """
    config, progress = plain_numbers(config or EvaluateConfig()), progress or Silent()
    check_numbers(
        config,
        least={"episodes": 1, "seed": 0, "max_episode_steps": 1},
        shares=["epsilon"],
        within={"num_envs": (1, MOST_ENVIRONMENTS)},
    )
    if not policies:
        raise UserError("nothing to evaluate: name at least one policy folder")
    target = scores_file(Path(json)) if json is not None else None
    if isinstance(policies, str | os.PathLike) or not isinstance(policies, Sequence):
        policies = [policies]
    table = load_all(policies, env=config.env, env_kwargs=config.env_kwargs, options=options, progress=progress)
    conditions = Conditions(config.episodes, config.epsilon, config.seed, config.num_envs)
    if any(one.whole is not None for one in table):
        scores = score_tasks(table, config.max_episode_steps, conditions, progress)
    else:
        task = with_longest_game(task_together(table, config.env, config.env_kwargs), config.max_episode_steps)
        scores = Scores(score(table, task, conditions, progress))
    if target is not None:
        write_scores(target, scores)
    return scores
