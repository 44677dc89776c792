"""The verb `evaluate`: full games of several policies under the same conditions, and what the numbers are worth."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import cache
from itertools import compress
from json import dumps
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from rldistill.actions import agreement as agreement_of
from rldistill.actions import greedy, mix_in_random
from rldistill.arguments import checked_arguments
from rldistill.documents import read_any_json
from rldistill.envs import (
    EnvironmentFailed,
    chosen_task,
    repeats,
    same_game,
    unlike,
    with_longest_game,
)
from rldistill.files import place_at, replace_file
from rldistill.machine import usual_torch
from rldistill.policies import KeptPolicy
from rldistill.progress import Progress, Silent
from rldistill.rollout import Games, Transition, play, uniform
from rldistill.stats import (
    above,
    bootstrap_ratio_interval,
    figure,
    games_in_words,
    normalized_score,
    summarize,
    with_interval,
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


_KINDS: dict[str, Any] = {
    "str": str, "int": int, "float": int | float, "bool": bool, "list[float]": list, "dict[str, Any]": dict,
    "int | None": int | None,
}  # fmt: skip
"""Of a score's fields, as JSON has them."""


@dataclass(frozen=True)
class Score:
    """What one policy did. The first policy of a table is the reference of ratio, normalized score and agreement."""

    policy: str
    """The folder as it was given."""
    network: str
    parameters: int
    parameter_share: float
    """Of the first policy's."""
    bytes: int
    """Of `weights.safetensors`, or of the file of another tool."""
    weights_sha256: str
    task: dict[str, Any]
    """What was played, with every option."""
    epsilon: float
    seed: int
    episodes: int
    returns: list[float]
    """Raw return of each game, (episodes,)."""
    mean: float
    iqm: float
    """Mean of the middle half of the returns."""
    ci_low: float
    ci_high: float
    """95 % bootstrap interval of the mean over distinct games; NaN both where all games are the same one."""
    random_score: float
    """Mean return of uniformly random play: the task's, or measured here over as many games."""
    random_measured: bool
    ratio: float
    """Mean by the first policy's mean, the paper's measure. It means something for positive scores; NaN by zero."""
    ratio_low: float
    ratio_high: float
    """95 % bootstrap interval, both policies' games resampled; NaN where it has no bounds."""
    normalized: float
    """(mean - random) / (first mean - random); NaN where the first policy plays exactly as random play does."""
    normalized_low: float
    normalized_high: float
    agreement: float
    """Share of the states met while this policy plays at which its best action is the first policy's best action; of
    continuous actions 1 less their mean distance, as a share of the range."""
    microseconds: float
    """Median time of a decision, observation to action, at batch 1 on one thread."""
    distinct: int | None = None
    """How many of the games differ in their observations, actions or rewards; None in files of before it was counted."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON data, None for NaN."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Score:
        """The inverse of `as_dict`.

        Raises:
            UserError: a field is missing, unknown, or none of its kind.
        """
        given: dict[str, Any] = {
            name: math.nan if value is None and name != "distinct" else value for name, value in data.items()
        }
        try:
            score = Score(**given)
        except TypeError as error:
            raise UserError(f"a score lacks a field or has an unknown one ({error}); evaluate again") from None
        for field in fields(Score):
            if not isinstance(given.get(field.name), _KINDS[str(field.type)]):
                raise UserError(f"a score's {field.name} is {str(given.get(field.name))[:40]!r}; evaluate again")
        if not score.returns or not all(
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            for value in score.returns
        ):
            raise UserError("a score's returns are no list of numbers; evaluate again")
        try:
            Task.from_dict(score.task)
        except UserError as error:
            raise UserError(f"a score's task is damaged: {error}; evaluate again") from None
        return score


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
            heard=progress.update,
            say=say,
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
    with suppress(EnvironmentFailed):  # the games are played: nothing is lost by what nobody asked for
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


def write_scores(path: Path, scores: Sequence[Score]) -> None:
    """The scores as a JSON list, replaced in one step.

    Raises:
        UserError: it cannot be written.
    """
    replace_file(path, dumps([score.as_dict() for score in scores], indent=2, allow_nan=False).encode() + b"\n")


def read_scores(path: Path) -> list[Score]:
    """The inverse of `write_scores`.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    data = read_any_json(path)
    if not isinstance(data, list) or not data or not all(isinstance(item, dict) for item in data):
        raise UserError(f"{path} holds no list of scores")
    return [Score.from_dict(item) for item in data]


def remarks(scores: Sequence[Score]) -> list[str]:
    """What a reader of the scores must know, a line each: what random play scores, who is not above it, and whose games are the
    same ones."""
    first = scores[0]
    how = f"measured over {first.episodes:,} games" if first.random_measured else "as published"
    lines = [f"random play scores {figure(first.random_score)} ({how})"]
    for score in scores:
        if not above(score.mean, score.ci_low, score.random_score):
            lines.append(
                f"{score.policy} is not above random play: {with_interval(score.mean, score.ci_low, score.ci_high)} against "
                f"{figure(score.random_score, score.ci_low, score.ci_high)}"
            )
        if score.distinct is not None and score.distinct < score.episodes:
            counts = "its interval counts those alone" if score.distinct > 1 else "so there is no interval"
            lines.append(
                f"{score.policy} played {games_in_words(score.episodes, score.distinct)}, {counts}: --epsilon 0.05, sticky "
                "actions or an environment with more starts make games differ"
            )
    return lines


def score_table(scores: Sequence[Score]) -> list[dict[str, str]]:
    """Rows for `progress.table`: one a policy, all figures as short text, `-` where a figure means nothing."""
    rows = []
    for score in scores:
        # A ratio to a mean that is not positive turns better into worse.
        ratio = score.ratio if scores[0].mean > 0 else math.nan
        normalized = _figure(score.normalized) + _interval(score.normalized_low, score.normalized_high)
        rows.append(
            {
                "policy": score.policy,
                "network": score.network,
                "parameters": f"{score.parameters:,}" if score.parameters else "-",
                "share": f"{100 * score.parameter_share:.3g} %" if math.isfinite(score.parameter_share) else "-",
                "KiB": f"{score.bytes / 1024:,.0f}" if score.bytes else "-",
                "games": str(score.episodes)
                if score.distinct in (None, score.episodes)
                else f"{score.episodes} ({score.distinct} distinct)",
                "mean [95 % CI]": with_interval(score.mean, score.ci_low, score.ci_high),
                "IQM": figure(score.iqm, score.ci_low, score.ci_high),
                "ratio": _figure(ratio),
                "normalized [95 % CI]": normalized,
                "agreement": f"{score.agreement:.3f}",
                "µs": f"{score.microseconds:,.0f}",
            }
        )
    return rows


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
        heard=update,
        seen=seen,
        say=say,
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


def scores_file(path: Path) -> Path:
    """The path, if scores may be written there: told before the games are played, not after.

    Raises:
        UserError: there is no such folder, it cannot be written to, or the file holds something else.
    """
    place, folder = place_at(path), Path(os.path.realpath(path)).parent
    if place == "stream":
        return path
    if not folder.is_dir():
        raise UserError(f"cannot write {path}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise UserError(f"cannot write {path}: nothing may be written to {folder}")
    if place == "folder":
        raise UserError(f"{path} is a folder: name a file with --json")
    if place == "file":
        try:
            read_scores(path)
        except UserError:
            raise UserError(f"{path} exists and holds no scores: choose another --json") from None
    return path


def _figure(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"


def _interval(low: float, high: float) -> str:
    return f" [{low:.2f}, {high:.2f}]" if math.isfinite(low) else ""
