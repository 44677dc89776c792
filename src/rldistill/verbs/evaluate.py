"""The verb `evaluate`: full games of several policies under the same conditions, with confidence intervals."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TypeAlias

from rldistill.arguments import checked_arguments
from rldistill.machine import usual_torch
from rldistill.play.envs import with_longest_game
from rldistill.play.starts import Starts, check_starts, read_starts
from rldistill.policies import MultiTaskPolicy, NamedPolicy
from rldistill.progress import Progress, Silent
from rldistill.runs.scores import Score, Scores, scores_file, write_scores
from rldistill.teachers import TeacherOptions, load_all
from rldistill.types import MOST_ENVIRONMENTS, Task, Teacher, UserError, check_numbers, plain_numbers
from rldistill.verbs.scoring import Conditions, score, score_tasks, task_together

_EPISODES = 30
"""Games of each policy from the environment's own starts."""
Evaluated: TypeAlias = str | os.PathLike[str] | Teacher | MultiTaskPolicy


@dataclass(frozen=True)
class EvaluateConfig:
    """The conditions under which all policies of a table play."""

    episodes: int | None = None
    """Full games of each policy; by default 30, and one from each start of --starts."""
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
    starts: tuple[str, ...] = ()
    """Files that `rldistill starts` made, one a task: games begin at those starts, the same for all policies, and returns count
    from there."""
    own_starts: bool = False
    """With --starts: also play from the environment's own starts, in the same table."""


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
        `across_tasks` the geometric means over the tasks. With `own_starts` first those from the environment's own starts, then
        those from the file.

    Raises:
        UserError: no policy, a wrong configuration, a folder that cannot be loaded, a policy that does not fit the
            environment, starts that cannot be read, are of another task or depart when they are played again, or a JSON file
            that cannot be written.
    """
    config, progress = plain_numbers(config or EvaluateConfig()), progress or Silent()
    check_numbers(
        config,
        least={"episodes": 1, "seed": 0, "max_episode_steps": 1},
        shares=["epsilon"],
        within={"num_envs": (1, MOST_ENVIRONMENTS)},
    )
    if config.own_starts and not config.starts:
        raise UserError("--own-starts goes with --starts: without that, games begin at the environment's own starts")
    if not policies:
        raise UserError("nothing to evaluate: name at least one policy folder")
    target = scores_file(Path(json)) if json is not None else None
    if isinstance(policies, str | os.PathLike) or not isinstance(policies, Sequence):
        policies = [policies]
    table = load_all(policies, env=config.env, env_kwargs=config.env_kwargs, options=options, progress=progress)
    files = [read_starts(place) for place in config.starts]
    _note_makers(files, table, progress)
    if any(one.whole is not None for one in table):
        scores = _of_several(table, files, config, progress)
    else:
        task = with_longest_game(task_together(table, config.env, config.env_kwargs), config.max_episode_steps)
        scores = _of_one(table, task, files, config, progress)
    if target is not None:
        write_scores(target, scores)
    return scores


def _conditions(config: EvaluateConfig, *, started: bool) -> Conditions:
    episodes = config.episodes or (0 if started else _EPISODES)
    return Conditions(episodes, config.epsilon, config.seed, config.num_envs)


def _of_one(
    table: Sequence[NamedPolicy], task: Task, files: Sequence[Starts], config: EvaluateConfig, progress: Progress
) -> Scores:
    """The scores of policies of one task: from its own starts, from those of a file, or both in this order."""
    scores: list[Score] = []
    if files:
        check_starts(files, [task], config.episodes or 0)
    if not files or config.own_starts:
        scores += score(table, task, _conditions(config, started=False), progress)
    if files:
        scores += score(table, task, _conditions(config, started=True).at(files[0]), progress)
    return Scores(scores)


def _of_several(
    table: Sequence[NamedPolicy], files: Sequence[Starts], config: EvaluateConfig, progress: Progress
) -> Scores:
    """The scores of students of several tasks."""
    if config.own_starts:
        raise UserError("--own-starts is for policies of one task: evaluate with --starts, and again without it")
    return score_tasks(table, config.max_episode_steps, _conditions(config, started=bool(files)), progress, files)


def _note_makers(files: Sequence[Starts], table: Sequence[NamedPolicy], progress: Progress) -> None:
    """Starts are fair where none of the policies made them."""
    for file in files:
        for one in table:
            weights = one.policy.weights()
            if weights and file.made.get("weights_sha256") == sha256(weights).hexdigest():
                progress.say(f"note: {one.name} made the starts in {file.path}, so it begins where it knows its way")
