"""The verb `evaluate`: full games of several policies under the same conditions, and what the numbers are worth."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import compress
from pathlib import Path
from statistics import median

import numpy as np
import torch

from rldistill.arguments import checked_arguments
from rldistill.machine import usual_torch
from rldistill.play.actions import agreement as agreement_of
from rldistill.play.actions import greedy, mix_in_random
from rldistill.play.envs import (
    chosen_task,
    repeats,
    same_game,
    unlike,
    with_longest_game,
)
from rldistill.play.games import Games, play
from rldistill.play.rollout import Transition, uniform
from rldistill.policies import KeptPolicy
from rldistill.progress import Progress, Silent
from rldistill.runs.scores import Score, scores_file, write_scores
from rldistill.stats import (
    bootstrap_ratio_interval,
    normalized_score,
    summarize,
)
from rldistill.teachers import ForeignTeacher, TeacherOptions, as_policy, check_all_act, load_fitting, parameters_of
from rldistill.types import (
    MOST_ENVIRONMENTS,
    Actions,
    Masks,
    Observations,
    Policy,
    Task,
    Teacher,
    UserError,
    check_numbers,
    plain_numbers,
)


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
    policies: str | os.PathLike[str] | Teacher | Sequence[str | os.PathLike[str] | Teacher],
    config: EvaluateConfig | None = None,
    *,
    json: str | os.PathLike[str] | None = None,
    options: TeacherOptions | None = None,
    progress: Progress | None = None,
) -> list[Score]:
    """Plays full games with each policy, under the same environment options, seeds and epsilon.

    Args:
        policies: whatever `load_teacher` takes, loaded policies, or anything that is a `Teacher`. The first is what the others
            are measured by.
        config: see `EvaluateConfig`.
        json: file for the scores, a list with one object a policy. A file that an earlier evaluation wrote is
            replaced in one step; any other file is left alone.
        options: what files of another tool do not say.
        progress: told how it goes.

    Returns:
        One score a policy, in their order.

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
    names, loaded, task = load_together(
        policies, env=config.env, env_kwargs=config.env_kwargs, options=options, progress=progress
    )
    task = with_longest_game(task, config.max_episode_steps)

    first, say = loaded[0], cache(progress.say)
    played = [
        _play(name, policy, first, task, config, progress, say) for name, policy in zip(names, loaded, strict=True)
    ]
    random, measured = task.random_score, task.random_score is None
    if random is None:
        progress.start("evaluate random play", config.episodes, "games")
        random_games = play(
            task,
            lambda generator: uniform(task, generator),
            config.episodes,
            config.seed,
            num_envs=config.num_envs,
            on_progress=progress.update,
            on_line=say,
        )
        random = float(random_games.returns.mean())
    _say_whether_it_repeats(task, config.seed, progress)
    times = decision_microseconds(loaded, played[0][2])

    reference = played[0][0]
    scores = []
    for name, policy, (games, agreement, _), microseconds in zip(names, loaded, played, times, strict=True):
        returns = games.returns
        summary = summarize(returns, seed=config.seed, games=games.fingerprints)
        # A policy by itself is 1, whatever its games were; two independent resamples of the same games would hide that.
        (ratio_low, ratio_high), (low, high) = (
            (1.0, 1.0)
            if policy is first
            else bootstrap_ratio_interval(
                returns,
                reference.returns,
                zero=zero,
                seed=config.seed,
                games=games.fingerprints,
                reference_games=reference.fingerprints,
            )
            for zero in (0.0, random)
        )
        level = float(reference.returns.mean())
        weights = policy.weights()
        scores.append(
            Score(
                policy=name,
                network=policy.name,
                parameters=parameters_of(policy),
                parameter_share=parameters_of(policy) / parameters_of(first) if parameters_of(first) else math.nan,
                bytes=len(weights),
                weights_sha256=hashlib.sha256(weights).hexdigest() if weights else "",
                task=task.as_dict(),
                epsilon=config.epsilon,
                seed=config.seed,
                episodes=len(returns),
                returns=[float(score) for score in returns],
                mean=summary.mean,
                iqm=summary.iqm,
                ci_low=summary.ci_low,
                ci_high=summary.ci_high,
                random_score=random,
                random_measured=measured,
                ratio=summary.mean / level if level else math.nan,
                ratio_low=ratio_low,
                ratio_high=ratio_high,
                normalized=normalized_score(summary.mean, random, level),
                normalized_low=low,
                normalized_high=high,
                agreement=agreement,
                microseconds=microseconds,
                distinct=games.distinct,
            )
        )
    if target is not None:
        write_scores(target, scores)
    return scores


def _say_whether_it_repeats(task: Task, seed: int, progress: Progress) -> None:
    with suppress(UserError):  # the games are played: nothing is lost by what nobody asked for
        if not repeats(task, seed):
            progress.say(
                f"note: {task.env} does not repeat itself: two games from one seed with the same actions differ, so --seed does "
                "not decide these scores, and policies do not meet the same games"
            )


def load_together(
    policies: Sequence[str | os.PathLike[str] | Teacher],
    *,
    env: str | None = None,
    env_kwargs: Sequence[str] = (),
    options: TeacherOptions | None = None,
    progress: Progress,
) -> tuple[list[str], list[KeptPolicy], Task]:
    """Policies that play the same: their names, themselves, and what they play, the first one's task or that of `env`.

    Raises:
        UserError: one cannot be loaded, does not fit, or plays another game and `env` does not say which it is to be.
    """
    loaded: list[KeptPolicy] = []
    for policy in policies:
        if isinstance(policy, str | os.PathLike):
            first = loaded[0].task if loaded else None  # what a file leaves unsaid, the first one says
            policy = load_fitting(
                policy, env=env, env_kwargs=env_kwargs, like=first, options=options, alone=False, progress=progress
            )
        loaded.append(as_policy(policy))
    names = [
        name_of(policy if isinstance(policy, str | os.PathLike) else player)
        for policy, player in zip(policies, loaded, strict=True)
    ]
    here = [isinstance(policy, str | os.PathLike) for policy in policies]
    check_all_act(options, list(compress(loaded, here)), list(compress(names, here)))
    task = chosen_task(loaded[0].task, env, env_kwargs)
    for name, policy in zip(names, loaded, strict=True):
        _check_fit(name, policy, task)
    if env is None:
        # Of a file its own word; who hands over a loaded policy has said what it plays.
        own = [
            player.foreign.env or player.task.env
            if isinstance(player, ForeignTeacher) and isinstance(policy, str | os.PathLike)
            else player.task.env
            for policy, player in zip(policies, loaded, strict=True)
        ]
        _check_same_game(names, own)
    return names, loaded, task


def _check_same_game(names: Sequence[str], envs: Sequence[str]) -> None:
    for name, env in zip(names, envs, strict=True):
        if not same_game(env, envs[0]):
            raise UserError(
                f"{names[0]} plays {envs[0]} and {name} {env}: name with --env what both are to play, if both can"
            )


def decision_microseconds(
    policies: Sequence[KeptPolicy], observation: Observations, *, rounds: int = 20, per_round: int = 10
) -> list[float]:
    """Median time of a decision of each policy: one NumPy observation (*obs) to one action, on one thread.

    The policies take turns, so that a machine which is busy for a while is busy for all of them.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times: list[list[float]] = [[] for _ in policies]
    try:
        for turn in range(rounds + 1):
            for policy, spent in zip(policies, times, strict=True):
                for _ in range(per_round):
                    began = time.perf_counter()
                    greedy(policy, observation[None], policy.task)[0]
                    if turn:  # the first round warms up
                        spent.append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return [1e6 * median(spent) for spent in times]


def _play(
    name: str,
    policy: KeptPolicy,
    first: KeptPolicy,
    task: Task,
    config: EvaluateConfig,
    progress: Progress,
    say: Callable[[str], object],
) -> tuple[Games, float, Observations]:
    """The games, agreement with the first policy, and one of the observations seen."""
    agreed, states = 0.0, 0
    finished: list[float] = []
    observation: Observations = np.zeros(task.observation_shape, dtype=task.observation_dtype)

    def make_policy(generator: np.random.Generator) -> Policy:
        def act(observations: Observations, masks: Masks | None = None) -> Actions:
            nonlocal agreed, states, observation
            best = greedy(policy, observations, task, masks)
            same = best if policy is first else greedy(first, observations, task, masks)
            agreed += float(agreement_of(torch.from_numpy(best), torch.from_numpy(same), task).sum())
            states += len(best)
            observation = observations[0]
            return mix_in_random(best, task, config.epsilon, generator, masks)

        return act

    def seen(transition: Transition) -> None:
        finished.extend(transition.returns[~np.isnan(transition.returns)].tolist())

    def update(games: int, **figures: int) -> None:
        means = {"score": float(np.mean(finished))} if finished else {}
        progress.update(games, **means, agreement=agreed / states, **figures)

    progress.start(f"evaluate {name}", config.episodes, "games")
    games = play(
        task,
        make_policy,
        config.episodes,
        config.seed,
        num_envs=config.num_envs,
        on_progress=update,
        on_step=seen,
        on_line=say,
    )
    return games, agreed / states, observation


def _check_fit(name: str, policy: KeptPolicy, task: Task) -> None:
    differ = unlike(policy.task, task)
    if differ is not None:
        raise UserError(f"{name} has {differ[0]}, but {task.env} has {differ[1]}")


def name_of(policy: str | os.PathLike[str] | KeptPolicy) -> str:
    """What a policy is called in tables: its place, spelt in one way, or its network."""
    if isinstance(policy, str | os.PathLike):
        place = os.fspath(policy)
        return place if "://" in place else str(Path(place))
    return str(policy.path) if policy.path is not None else policy.name
