"""The verb `starts`: states of a policy's games, from which other policies are evaluated."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import numpy as np

from rldistill.arguments import checked_arguments
from rldistill.files import check_new_file, free_path, replace_file
from rldistill.machine import usual_torch
from rldistill.play.envs import Environments, cut_in_words, make_backend, repeats, with_longest_game
from rldistill.play.envs.started import StartDeparted, StartedBackend
from rldistill.play.rollout import EpsilonGreedy, rollout
from rldistill.play.starts import Start, Starts, read_starts, screen_of, starts_text
from rldistill.policies import NamedPolicy, parameters_of
from rldistill.progress import Progress, Silent
from rldistill.runs.provenance import command_line, made_by
from rldistill.teachers import TeacherOptions, load_all
from rldistill.types import MOST_ENVIRONMENTS, Actions, Task, Teacher, UserError, check_numbers, plain_numbers
from rldistill.verbs.scoring import task_together

_SEEDS_FROM = 2_000_000
"""Added to the seed: others than those that a training or an evaluation with this seed meets."""
_MOST_TIMES = 5
"""After so many times the episodes that the starts need, there are not enough different ones."""


@dataclass(frozen=True)
class StartsConfig:
    """Which states are kept."""

    number: int = 100
    """Starts, all different."""
    per_episode: int = 1
    """Starts of one episode."""
    fraction: float = 0.2
    """A start lies in this first part of its episode, anywhere in it with the same probability."""
    epsilon: float = 0.05
    """Probability of a random action in the episodes."""
    seed: int = 0
    """Of environments, exploration and the choice."""
    num_envs: int = 10
    """Episodes played side by side; each row plays equally many."""
    env: str | None = None
    """Another environment than the policy's own, with this id's own options."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments name=value that a Gymnasium environment is made with; values are JSON's scalars or else text. They are kept with
    the policy; given here, they count instead."""
    max_episode_steps: int | None = None
    """Control steps after which an episode is cut; by default the policy's own: 10,000 where the environment sets no limit."""


@dataclass
class _Episode:
    """An episode so far."""

    seed: int
    actions: list[Actions] = field(default_factory=list)
    screens: list[str] = field(default_factory=list)
    """Before each action."""


@usual_torch()
@checked_arguments
def starts(
    policy: str | os.PathLike[str] | Teacher,
    out: str | os.PathLike[str],
    config: StartsConfig | None = None,
    *,
    options: TeacherOptions | None = None,
    progress: Progress | None = None,
) -> Starts:
    """Lets a policy play whole episodes, draws states from their beginnings, and writes how they are reached again.

    All starts are different, and each is reached once more, from its seed and its actions, before the file is written.

    Args:
        policy: whatever `load_teacher` takes, or anything that is a `Teacher`. It should be none of those that are evaluated
            from the starts.
        out: file to make.
        config: see `StartsConfig`.
        options: what a file of another tool does not say.
        progress: notified of episodes.

    Returns:
        What is in the file.

    Raises:
        UserError: a wrong configuration, a policy that cannot be loaded, `out` exists, an environment that does not repeat
            itself from its seed, or too few different states.
    """
    config, progress = plain_numbers(config or StartsConfig()), progress or Silent()
    check_numbers(
        config,
        least={"number": 1, "per_episode": 1, "seed": 0, "max_episode_steps": 1},
        shares=["epsilon", "fraction"],
        within={"num_envs": (1, MOST_ENVIRONMENTS)},
    )
    path = Path(out)
    free_path(path)
    check_new_file(path, force=False)
    (own, *others) = load_all(
        [policy], env=config.env, env_kwargs=config.env_kwargs, options=options, progress=progress
    )
    if others:
        raise UserError(f"{own.name.rpartition('#')[0]} plays several tasks: take one head, {own.name}")
    task = with_longest_game(task_together([own], config.env, config.env_kwargs), config.max_episode_steps)
    if not repeats(task, config.seed):
        raise _no_repeats(task)
    kept = _drawn(own, task, config, progress)
    _replay(task, kept, path, progress)
    replace_file(path, starts_text(task, _made(own, config), kept), new=True)
    return read_starts(path)


def _drawn(own: NamedPolicy, task: Task, config: StartsConfig, progress: Progress) -> list[Start]:
    """So many starts of each episode, but for states that are kept already."""
    generator = np.random.default_rng([config.seed, 2])
    kept: dict[str, Start] = {}
    played, most = 0, _MOST_TIMES * math.ceil(config.number / config.per_episode)
    progress.start(f"play {own.name}", config.number, "starts")
    with closing(_rounds(own, task, config, progress)) as rounds:
        for episodes in rounds:
            for episode in episodes:
                wanted = min(config.per_episode, config.number - len(kept))
                kept |= {start.screen: start for start in _starts(episode, wanted, config.fraction, generator, kept)}
            played += len(episodes)
            progress.update(len(kept))
            if len(kept) == config.number:
                return list(kept.values())
            if played >= most:
                raise UserError(
                    f"{own.name} comes to {len(kept)} different states in the first {config.fraction:g} of {played} episodes of "
                    f"{task.env}: take fewer with --number, or a larger --fraction or --epsilon"
                )
    raise AssertionError("episodes have no end")


def _starts(
    episode: _Episode, wanted: int, fraction: float, generator: np.random.Generator, kept: Collection[str]
) -> Iterator[Start]:
    """Up to so many states of the first part of an episode, drawn uniformly from those that are not kept already."""
    first = max(1, math.ceil(len(episode.actions) * fraction))
    ages = {episode.screens[age]: age for age in range(first) if episode.screens[age] not in kept}
    for screen in generator.permutation(sorted(ages, key=ages.__getitem__))[:wanted].tolist():
        yield Start(episode.seed, cast(Actions, np.stack(episode.actions)[: ages[screen]]), screen)


def _rounds(
    own: NamedPolicy, task: Task, config: StartsConfig, progress: Progress
) -> Generator[list[_Episode], None, None]:
    """Each row's first episode, each row's second one, and so on; so that short episodes do not count more often."""
    rows = min(config.num_envs, math.ceil(config.number / config.per_episode))
    environments = Environments(task, rows, _SEEDS_FROM + config.seed)
    player = EpsilonGreedy(own.policy, task, config.epsilon, np.random.default_rng([config.seed, 1]))
    open_now: dict[int, _Episode] = {}
    over: list[list[_Episode]] = [[] for _ in range(rows)]
    cut = False
    with closing(environments):
        play = rollout(environments, player)
        while True:
            for row in np.flatnonzero(environments.starts).tolist():
                open_now[row] = _Episode(int(environments.seeds(np.array([row]))[0]))
            step = next(play)
            for row, episode in open_now.items():
                episode.screens.append(screen_of(step.observations[row]))
                episode.actions.append(step.actions[row])
            for row in np.flatnonzero(step.terminated | step.truncated).tolist():
                over[row].append(open_now[row])
            if environments.cut and not cut:
                cut = True
                progress.say(cut_in_words(task))
            if all(over):
                yield [episodes.pop(0) for episodes in over]


def _replay(task: Task, kept: list[Start], path: Path, progress: Progress) -> None:
    """Raises UserError where a start is not reached again."""
    progress.start("play them again", len(kept), "starts")
    file = Starts(str(path), task, {}, tuple(kept), "")
    with closing(StartedBackend(task, file, 1, lambda: make_backend(task, 1))) as world:
        try:
            for number in range(len(kept)):
                world.reset(np.ones(1, dtype=np.bool_), np.zeros(1, dtype=np.int64))
                progress.update(number + 1)
        except StartDeparted:
            raise _no_repeats(task) from None


def _no_repeats(task: Task) -> UserError:
    return UserError(
        f"{task.env} does not repeat itself from the same seed and actions, so no start of it can be kept: it draws from a "
        "generator that its seed does not set, or remembers earlier episodes"
    )


def _made(own: NamedPolicy, config: StartsConfig) -> dict[str, Any]:
    """How a file was made."""
    weights = own.policy.weights()
    return {
        "made_by": made_by(),
        "command": command_line(),
        "policy": own.name,
        "network": own.policy.name,
        "parameters": parameters_of(own.policy),
        "weights_sha256": sha256(weights).hexdigest() if weights else "",
        "configuration": {name: value for name, value in vars(config).items() if value not in (None, ())},
    }
