"""Loaded policies compared by full games: the table of `evaluate`, `export`, `report` and `push`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from rldistill.play.actions import agreement as agreement_of
from rldistill.play.actions import greedy, mix_in_random
from rldistill.play.envs import chosen_task, repeats, same_game, unlike, with_longest_game
from rldistill.play.games import Games, play
from rldistill.play.rollout import Transition, uniform
from rldistill.play.starts import Starts, check_starts, chosen_starts
from rldistill.play.timing import decision_microseconds
from rldistill.policies import KeptPolicy, MultiTaskPolicy, NamedPolicy, named, parameters_of
from rldistill.progress import Progress
from rldistill.runs.scores import MultiTaskScore, Score, Scores
from rldistill.stats import GameReturns, bootstrap_ratio_interval, geometric_mean_of_ratios, normalized_score, summarize
from rldistill.students.networks import parameter_count
from rldistill.types import Actions, Masks, Observations, Policy, Task, UserError


class Conditions(NamedTuple):
    """The conditions under which all policies of a table play."""

    episodes: int
    """Games of each policy; 0 is one from each start."""
    epsilon: float
    seed: int
    num_envs: int
    starts: Starts | None = None
    """Where games begin; None begins them at resets."""

    def at(self, starts: Starts | None) -> Conditions:
        """The same, from other starts."""
        return self._replace(starts=starts, episodes=self.episodes or (len(starts.starts) if starts else 0))


class _Outcome(NamedTuple):
    """What one policy did."""

    games: Games
    agreement: float
    """With the first policy of the table, over the states of these games."""
    observation: Observations
    """One of them, (*obs)."""


class _Random(NamedTuple):
    """The score of uniformly random play."""

    score: float
    measured: bool
    """Whether it comes from games of now, and not from the task."""


class _ComparedWith(NamedTuple):
    """What every row of a table is compared with."""

    task: Task
    conditions: Conditions
    first: KeptPolicy
    games: Games
    """Of the first policy."""
    random: _Random


def score_loaded(policies: Sequence[KeptPolicy], conditions: Conditions, progress: Progress) -> list[Score]:
    """Scores of loaded policies in the first one's task, in their order.

    Raises:
        UserError: they do not play the same game.
    """
    table = [named(policy) for policy in policies]
    return score(table, task_together(table), conditions, progress)


def task_together(policies: Sequence[NamedPolicy], env: str | None = None, env_kwargs: Sequence[str] = ()) -> Task:
    """What several policies play together: the first one's task, or that of `env`.

    Raises:
        UserError: one does not fit it, or plays another game and `env` does not say which it is to be.
    """
    first = policies[0]
    task = chosen_task(first.policy.task, env, env_kwargs)
    for one in policies:
        differ = unlike(one.policy.task, task)
        if differ is not None:
            raise UserError(f"{one.name} has {differ[0]}, but {task.env} has {differ[1]}")
    for other in policies if env is None else ():
        if not same_game(other.env, first.env):
            raise UserError(
                f"{first.name} plays {first.env} and {other.name} {other.env}: name with --env what both are to play, "
                "if both can"
            )
    return task


def score(policies: Sequence[NamedPolicy], task: Task, conditions: Conditions, progress: Progress) -> list[Score]:
    """Plays full games with each policy, under the same environment options, seeds and epsilon.

    Args:
        policies: that fit the task. The first is what the others are measured by.
        task: what is played.
        conditions: of the games.
        progress: notified of finished games.

    Returns:
        One score a policy, in their order.
    """
    return _play_table(policies, task, conditions, progress).scores


def score_tasks(
    policies: Sequence[NamedPolicy],
    longest_game: int | None,
    conditions: Conditions,
    progress: Progress,
    starts: Sequence[Starts] = (),
) -> Scores:
    """Scores of students of several tasks, each task beside its teachers, and the geometric means over the tasks.

    Args:
        policies: heads of students, and policies of one task each. Those stand before the heads that have their environment.
        longest_game: control steps after which a game is cut; None leaves it to the tasks.
        conditions: of the games.
        progress: notified of finished games.
        starts: one file a task, where games begin; none begins them at resets.

    Raises:
        UserError: a policy plays none of the students' tasks, or a task has no starts where others have.
    """
    groups = tables_by_task(policies)
    tasks = [with_longest_game(task_together(group), longest_game) for group in groups]
    if starts:
        check_starts(starts, tasks, conditions.episodes)
    tables = []
    for group, task in zip(groups, tasks, strict=True):
        own = conditions.at(chosen_starts(starts, task)) if starts else conditions
        tables.append(_play_table(group, task, own, progress))
    wholes: dict[str, MultiTaskPolicy] = {}
    for one in policies:
        if one.whole is not None:
            wholes.setdefault(one.name.rpartition("#")[0], one.whole)
    means = (_across_tasks(name, whole, tables, conditions.seed) for name, whole in wholes.items())
    return Scores((own for table in tables for own in table.scores), (mean for mean in means if mean is not None))


def tables_by_task(policies: Sequence[NamedPolicy]) -> list[list[NamedPolicy]]:
    """Policies of one task before the heads of students that play it, a list a task.

    Raises:
        UserError: a policy plays none of the students' tasks.
    """
    heads = {_head_of(one): one.policy.task for one in policies if one.whole is not None}
    tables: dict[str, list[NamedPolicy]] = {name: [] for name in heads}
    for one in sorted(policies, key=lambda one: one.whole is not None):
        if one.whole is not None:
            tables[_head_of(one)].append(one)
            continue
        alike = [name for name, task in heads.items() if same_game(task.env, one.env)]
        if not alike:
            raise UserError(f"{one.name} plays {one.env}, and no student here does: their tasks are {', '.join(heads)}")
        kwargs = one.policy.task.env_kwargs
        nearest = max(alike, key=lambda name: (heads[name].env == one.env, heads[name].env_kwargs == kwargs))
        tables[nearest].append(one)
    return list(tables.values())


def _head_of(one: NamedPolicy) -> str:
    """The name of the head, which stands behind that of its policy."""
    return one.name.rpartition("#")[2]


class _TaskTable(NamedTuple):
    """One task's rows, and the games that they come from."""

    policies: Sequence[NamedPolicy]
    scores: list[Score]
    games: list[Games]


def _across_tasks(name: str, whole: MultiTaskPolicy, tables: Sequence[_TaskTable], seed: int) -> MultiTaskScore | None:
    """A student's score over all tasks that have a teacher; None where none has."""
    played, references, random = [], [], []
    for table in tables:
        own = next((place for place, one in enumerate(table.policies) if one.whole is whole), None)
        if own is not None and table.policies[0].whole is None:
            played.append(GameReturns(table.games[own].returns, table.games[own].fingerprints))
            references.append(GameReturns(table.games[0].returns, table.games[0].fingerprints))
            random.append(table.scores[0].random_score)
    if not played:
        return None
    ratio = geometric_mean_of_ratios(played, references, [0.0] * len(played), seed=seed)
    normalized = geometric_mean_of_ratios(played, references, random, seed=seed)
    return MultiTaskScore(name, parameter_count(whole.network), len(whole.weights()), len(played), *ratio, *normalized)


def _play_table(policies: Sequence[NamedPolicy], task: Task, conditions: Conditions, progress: Progress) -> _TaskTable:
    first, say = policies[0].policy, cache(progress.say)
    played = [_play(one, first, task, conditions, progress, say) for one in policies]
    random = _random_play(task, conditions, progress, say)
    _warn_if_irreproducible(task, conditions.seed, progress)
    times = decision_microseconds([one.policy for one in policies], played[0].observation)
    reference = _ComparedWith(task, conditions, first, played[0].games, random)
    scores = [
        _score(one, own, microseconds, reference)
        for one, own, microseconds in zip(policies, played, times, strict=True)
    ]
    return _TaskTable(policies, scores, [own.games for own in played])


def _score(own: NamedPolicy, played: _Outcome, microseconds: float, reference: _ComparedWith) -> Score:
    task, conditions, first, first_games, random = reference
    policy, games, seed = own.policy, played.games, int(conditions.seed)
    summary = summarize(games.returns, seed=seed, games=games.fingerprints)
    # A policy by itself is 1, whatever its games were; two independent resamples of the same games would hide that.
    (ratio_low, ratio_high), (low, high) = (
        (1.0, 1.0)
        if policy is first
        else bootstrap_ratio_interval(
            games.returns,
            first_games.returns,
            zero=zero,
            seed=seed,
            games=games.fingerprints,
            reference_games=first_games.fingerprints,
        )
        for zero in (0.0, random.score)
    )
    level = float(first_games.returns.mean())
    weights = policy.weights()
    return Score(
        policy=own.name,
        network=policy.name,
        parameters=parameters_of(policy),
        parameter_share=parameters_of(policy) / parameters_of(first) if parameters_of(first) else math.nan,
        bytes=len(weights),
        weights_sha256=hashlib.sha256(weights).hexdigest() if weights else "",
        task=task.as_dict(),
        epsilon=float(conditions.epsilon),
        seed=seed,
        episodes=len(games.returns),
        returns=[float(value) for value in games.returns],
        mean=summary.mean,
        iqm=summary.iqm,
        ci_low=summary.ci_low,
        ci_high=summary.ci_high,
        random_score=random.score,
        random_measured=random.measured,
        ratio=summary.mean / level if level else math.nan,
        ratio_low=ratio_low,
        ratio_high=ratio_high,
        normalized=normalized_score(summary.mean, random.score, level),
        normalized_low=low,
        normalized_high=high,
        agreement=played.agreement,
        microseconds=microseconds,
        distinct=games.distinct,
        starts=conditions.starts.card if conditions.starts is not None else None,
    )


def _play(
    own: NamedPolicy,
    first: KeptPolicy,
    task: Task,
    conditions: Conditions,
    progress: Progress,
    say: Callable[[str], object],
) -> _Outcome:
    agreed, states = 0.0, 0
    finished: list[float] = []
    observation: Observations = np.zeros(task.observation_shape, dtype=task.observation_dtype)

    def make_policy(generator: np.random.Generator) -> Policy:
        def act(observations: Observations, masks: Masks | None = None) -> Actions:
            nonlocal agreed, states, observation
            best = greedy(own.policy, observations, task, masks)
            same = best if own.policy is first else greedy(first, observations, task, masks)
            agreed += float(agreement_of(torch.from_numpy(best), torch.from_numpy(same), task).sum())
            states += len(best)
            observation = observations[0]
            return mix_in_random(best, task, conditions.epsilon, generator, masks)

        return act

    def on_step(transition: Transition) -> None:
        finished.extend(transition.returns[~np.isnan(transition.returns)].tolist())

    def on_progress(games: int, **figures: int) -> None:
        means = {"score": float(np.mean(finished))} if finished else {}
        progress.update(games, **means, agreement=agreed / states, **figures)

    progress.start(f"evaluate {own.name}", conditions.episodes, "games")
    games = play(
        task,
        make_policy,
        conditions.episodes,
        conditions.seed,
        num_envs=conditions.num_envs,
        starts=conditions.starts,
        on_progress=on_progress,
        on_step=on_step,
        on_line=say,
    )
    return _Outcome(games, agreed / states, observation)


def _random_play(task: Task, conditions: Conditions, progress: Progress, say: Callable[[str], object]) -> _Random:
    if task.random_score is not None and conditions.starts is None:  # the published ones are of whole games
        return _Random(task.random_score, False)
    progress.start("evaluate random play", conditions.episodes, "games")
    games = play(
        task,
        lambda generator: uniform(task, generator),
        conditions.episodes,
        conditions.seed,
        num_envs=conditions.num_envs,
        starts=conditions.starts,
        on_progress=progress.update,
        on_line=say,
    )
    return _Random(float(games.returns.mean()), True)


def _warn_if_irreproducible(task: Task, seed: int, progress: Progress) -> None:
    with suppress(UserError):  # the games are played: a failing environment costs no scores
        if not repeats(task, seed):
            progress.say(
                f"note: {task.env} does not repeat itself: two games from one seed with the same actions differ, so --seed does "
                "not decide these scores, and policies do not meet the same games"
            )
