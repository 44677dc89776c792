"""Loaded policies at play, drawn in a window or into a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rldistill.files import check_new_file, replacing
from rldistill.machine import check_packages
from rldistill.play.envs import action_names
from rldistill.play.envs.declared import decisions_per_second
from rldistill.play.envs.world import Pixels
from rldistill.policies import KeptPolicy, NamedPolicy
from rldistill.progress import Progress, Silent
from rldistill.stats import decimals
from rldistill.types import Floats, Task, UserError, check_numbers
from rldistill.verbs.spectator import Moment, measure, preferences, spectate, undrawable, usual_temperature
from rldistill.verbs.watch.drawing import BACKGROUND, Caption, Stage, View
from rldistill.verbs.watch.films import WRITERS
from rldistill.verbs.watch.window import KEYS
from rldistill.verbs.watch.window import show as show_window

FILE_STEPS = 3000
"""Of a file, where --max-steps is not given: 200 seconds of Atari."""


@dataclass(frozen=True)
class WatchConfig:
    """What is played, and how it is drawn."""

    episodes: int = 1
    """Games of each policy."""
    max_steps: int | None = None
    """Control steps after which it ends in the middle of a game; by default 3,000 for a file, and none for a window."""
    epsilon: float = 0.01
    """Probability of a random action, the same for both."""
    seed: int = 0
    """Of environments and exploration. Both policies start from it."""
    fps: float | None = None
    """Control steps a second; by default the game's own speed: 15 on Atari, what a Gymnasium environment declares."""
    env: str | None = None
    """Another environment than that of the first policy, with this id's own options."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments name=value that a Gymnasium environment is made with; values are JSON's scalars or else text. They are kept with
    the policy; given here, they count instead."""
    scale: float | None = None
    """Of the environment's pictures; by default small ones grow to some 320 pixels, and large ones shrink to 480."""
    max_episode_steps: int | None = None
    """Control steps after which each game is cut and the next one begins; by default the task's own: 10,000 where the environment
    sets no limit."""
    task: str | None = None
    """Of policies of several tasks, the one to watch; by default all of them, one after the other."""
    temperature: float | None = None
    """Q-values are drawn as their softmax at this temperature; by default a fifth of their usual spread."""


@dataclass(frozen=True)
class Watched:
    """The games of one policy."""

    policy: str
    """Its name in the table."""
    returns: list[float]
    """Raw return of each game that was finished."""
    unfinished: float | None
    """Return so far of the game that was cut; None if none was."""
    steps: int
    """Control steps of all of them."""


def play_drawn(
    programme: Sequence[tuple[Sequence[NamedPolicy], Task]],
    config: WatchConfig,
    target: Path | None,
    *,
    force: bool = False,
    progress: Progress,
) -> list[Watched]:
    """Plays one policy a task, or two side by side, task after task, and draws every control step.

    Args:
        programme: policies that fit a task, and the task.
        config: see `WatchConfig`; games and control steps are those of each task.
        target: a file that ends in `.gif` or `.mp4`; None opens a window.
        force: replace a file that exists.
        progress: notified of the control steps of a file.

    Raises:
        UserError: an environment cannot be drawn, or the file cannot be written.
    """
    for _, task in programme:
        reason = undrawable(task)
        if reason is not None:
            raise UserError(f"{task.env} cannot be drawn here: {reason}")
    rate = config.fps if config.fps is not None else decisions_per_second(programme[0][1])
    most = config.max_steps if config.max_steps is not None else FILE_STEPS if target is not None else None
    on_progress = progress.update if target is not None else Silent().update  # a window shows everything itself
    with ExitStack() as open_games:
        shows = [_Show.open(policies, task, config, open_games) for policies, task in programme]
        size = max(show.stage.width for show in shows), max(show.stage.height for show in shows)
        pictures = _one_after_the_other(shows, size, config.episodes, most, rate, on_progress)
        if target is None:
            progress.say(KEYS)
            title = f"{programme[0][1].env}: {' | '.join(one.name for one in programme[0][0])}"
            show_window(pictures, rate, size=size, title=title)
        else:
            progress.start(f"play {', '.join(task.env for _, task in programme)}", (most or 0) * len(shows), "steps")
            with replacing(target, new=not force) as file:
                WRITERS[target.suffix](file, pictures, rate)
    lanes = [lane for show in shows for lane in show.lanes]
    done = [lane.done() for lane in lanes]
    if config.max_steps is None and target is not None and not all(lane.over for lane in lanes):
        progress.say(f"the game was cut after {FILE_STEPS:,} control steps: --max-steps sets another bound")
    return done


class _Show(NamedTuple):
    """One task's players, and what draws them."""

    lanes: list[_Lane]
    stage: Stage
    task: Task

    @staticmethod
    def open(policies: Sequence[NamedPolicy], task: Task, config: WatchConfig, open_games: ExitStack) -> _Show:
        lanes = _lanes(policies, task, config, open_games)
        return _Show(lanes, _stage(lanes, task, config), task)


def _one_after_the_other(
    shows: Sequence[_Show],
    size: tuple[int, int],
    episodes: int,
    most: int | None,
    rate: float,
    on_progress: Callable[..., None],
) -> Iterator[Pixels]:
    """The pictures of all tasks, of one size; control steps are counted on from task to task."""
    before = 0
    for show in shows:
        count = partial(_counted, on_progress, before)
        for picture in _pictures(show.lanes, show.stage, show.task, episodes, most, rate, count):
            yield _framed(picture, size)
        before += max(lane.steps for lane in show.lanes)


def _counted(on_progress: Callable[..., None], before: int, steps: int, **figures: float) -> None:
    on_progress(before + steps, **figures)


def _framed(picture: Pixels, size: tuple[int, int]) -> Pixels:
    """The picture in the upper left corner of one of this size."""
    width, height = size
    if picture.shape[:2] == (height, width):
        return picture
    framed: Pixels = np.full((height, width, 3), BACKGROUND, dtype=np.uint8)
    framed[: picture.shape[0], : picture.shape[1]] = picture
    return framed


def watched_table(done: Sequence[Watched]) -> list[dict[str, str]]:
    """Rows for `progress.table`, one a policy."""
    rows = []
    for one in done:
        scores = [_score(score) for score in one.returns]
        scores += [f"{_score(one.unfinished)} (unfinished)"] if one.unfinished is not None else []
        rows.append({"policy": one.policy, "score": ", ".join(scores), "control steps": f"{one.steps:,}"})
    return rows


class _Lane:
    """One player and its games.

    Attributes:
        now: the moment that is drawn; when all games are over, the last one.
        score: return so far; from `finish` on with the reward of the last action.
        returns: of the finished games.
        steps: control steps, that of `now` included.
        playing: whether a game is going on.
        over: whether it has played all its games.
    """

    def __init__(
        self, own: NamedPolicy, other: KeptPolicy | None, temperature: float, moments: Iterator[Moment]
    ) -> None:
        self.name, self.policy, self.other, self.temperature = own.name, own.policy, other, temperature
        self._moments = moments
        self.now = next(moments)
        self.score, self.returns, self.steps = 0.0, list[float](), 1
        self.playing, self.over = True, False

    def finish(self, episodes: int) -> None:
        """Counts the outcome of `now`."""
        self.score += self.now.reward
        if self.now.ended:
            self.returns.append(self.score)
            self.playing, self.over = False, len(self.returns) >= episodes

    def advance(self) -> None:
        """To the next moment."""
        self.now = next(self._moments)
        self.steps += 1
        self.score, self.playing = self.now.score, True

    def done(self) -> Watched:
        """The games up to now."""
        return Watched(self.name, self.returns, self.score if self.playing else None, self.steps)


def _lanes(policies: Sequence[NamedPolicy], task: Task, config: WatchConfig, open_games: ExitStack) -> list[_Lane]:
    lanes = []
    first = policies[0].policy
    for own in policies:
        player = own.policy
        other = None if player is first else first
        temperature = usual_temperature(
            player, task, epsilon=config.epsilon, seed=config.seed, given=config.temperature
        )
        # Freed together when all is over: some renderers of Gymnasium close every window of the process.
        moments = spectate(player, task, epsilon=config.epsilon, seed=config.seed, other=other)
        lanes.append(_Lane(own, other, temperature, open_games.enter_context(closing(moments))))
    return lanes


def _stage(lanes: Sequence[_Lane], task: Task, config: WatchConfig) -> Stage:
    captions = [Caption(f"{lane.name} ({lane.policy.name})", measure(lane.policy, lane.temperature)) for lane in lanes]
    return Stage(
        task,
        action_names(task),
        captions,
        marks=lanes[0].name if len(lanes) == 2 else "",
        frame=(lanes[0].now.frame.shape[0], lanes[0].now.frame.shape[1]),
        scale=config.scale,
    )


def _pictures(
    lanes: Sequence[_Lane],
    stage: Stage,
    task: Task,
    episodes: int,
    most: int | None,
    rate: float,
    on_progress: Callable[..., None],
) -> Iterator[Pixels]:
    """One picture a control step, as they are asked for, and the last one with the final scores for a second."""
    first = lanes[0].temperature
    steps = 0
    while True:
        yield stage.draw([_view(lane, task, first, episodes) for lane in lanes])
        for lane in lanes:
            if not lane.over:
                lane.finish(episodes)
        steps += 1
        on_progress(steps, score=lanes[-1].score)
        if steps == most or all(lane.over for lane in lanes):
            break
        for lane in lanes:
            if not lane.over:
                lane.advance()
    last = stage.draw([_view(lane, task, first, episodes) for lane in lanes])
    for _ in range(max(1, round(rate))):
        yield last


def _view(lane: _Lane, task: Task, first: float, episodes: int) -> View:
    now = lane.now
    marks = None
    if lane.other is not None and now.other is not None:
        marks = _preferences(now.other, lane.other, task, first)
    shares = _preferences(now.values, lane.policy, task, lane.temperature)
    if lane.over:
        status = f"over: {', '.join(_score(score) for score in lane.returns)}"
    else:
        game = f"   game {now.game} of {episodes}" if episodes > 1 else ""
        status = f"score {_score(lane.score)}   step {lane.steps:,}{game}"
    return View(now.frame, shares, marks, now.best, now.action, now.random, status)


def _preferences(values: Floats, policy: KeptPolicy, task: Task, temperature: float) -> Floats:
    shares: Floats = preferences(values[None], policy.score_kind, task, temperature=temperature)[0]
    return shares


def _score(score: float) -> str:
    return f"{int(score):,}" if score == int(score) else f"{score:,.{decimals(score, least=2)}f}"


def check_settings(config: WatchConfig) -> None:
    """Raises UserError where a number is out of its range."""
    least = {"episodes": 1, "max_steps": 1, "seed": 0, "max_episode_steps": 1}
    check_numbers(config, least=least, shares=["epsilon"], positive=["temperature"])
    if config.fps is not None and not 0.1 <= config.fps <= 1000:
        raise UserError(f"--fps lies between 0.1 and 1000, not {config.fps}")
    if config.scale is not None and not 0 < config.scale <= 100:
        raise UserError(f"--scale is above 0 and at most 100, not {config.scale}")


def film_file(path: Path, *, force: bool) -> Path:
    """The file, checked before anything is loaded.

    Raises:
        UserError: its ending is unknown, it exists, or a package is missing.
    """
    if path.suffix not in WRITERS:
        raise UserError(f"{path} ends in {path.suffix or 'nothing'}: watch writes {' and '.join(WRITERS)} files")
    check_new_file(path, force=force)
    if path.suffix == ".mp4":
        check_packages("av", extra="video", what="an mp4 (a gif needs nothing)")
    return path
