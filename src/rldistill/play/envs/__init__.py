"""Environments, vectorized, from a `Task`: the ALE's own C++ vector environment, MinAtar, and any Gymnasium id.

Every episode starts from a seed that follows from (run seed, row, number of the episode), and the actions since its
start are kept. That is a complete snapshot of any deterministic environment, emulators that cannot save their state
included: `Environments.load_state_dict` seeds the open episodes again and plays their actions back. So a resumed run
goes on exactly where it was, without boundaries that cut episodes short.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from rldistill.arguments import check_fields, checked_arguments
from rldistill.play.actions import are_allowed, check_actions, first_allowed, uniform_actions
from rldistill.play.envs.atari import ATARI_RANDOM_SCORES, AtariBackend, atari_task
from rldistill.play.envs.boundary import EnvironmentFailed, remark
from rldistill.play.envs.gymnasium import GymnasiumBackend, declared_spaces, gymnasium_task, is_as_declared
from rldistill.play.envs.ids import arguments_of, canonical, is_atari, is_minatar, name_environment
from rldistill.play.envs.masks import remark_masks_are_gone
from rldistill.play.envs.minatar import MinAtarBackend, minatar_task
from rldistill.play.envs.minatar_games import MINATAR_GAMES
from rldistill.play.envs.names import action_names, features_of, nearest_game, same_game
from rldistill.play.envs.spaces import features_text
from rldistill.play.envs.watched import Watch
from rldistill.play.envs.world import Backend, Pixels, Step, unlike
from rldistill.types import Actions, Bools, Floats, Masks, Observations, Task, UserError

__all__ = [
    "ATARI_RANDOM_SCORES",
    "LONGEST_GAME",
    "MINATAR_GAMES",
    "Backend",
    "EnvironmentFailed",
    "Environments",
    "Pixels",
    "Step",
    "action_names",
    "arguments_of",
    "chosen_task",
    "confirm",
    "cut_in_words",
    "declared_spaces",
    "features_of",
    "features_text",
    "fitting_task",
    "gives_action_masks",
    "is_as_declared",
    "is_atari",
    "is_minatar",
    "make_backend",
    "make_task",
    "name_environment",
    "nearest_game",
    "newest_task",
    "observed_range",
    "repeats",
    "same_game",
    "task_in_file",
    "unlike",
    "with_longest_game",
]

LONGEST_GAME = 10_000
"""Control steps after which a game is truncated where neither the task nor the environment says when."""
_MOST_STEPS = 2**53


@checked_arguments
def make_task(env: str, **options: Any) -> Task:
    """The task of an environment id, its options at the id's defaults except those given.

    `ALE/<Game>-v5` has sticky actions 0.25 (Machado et al. 2018), `<Game>NoFrameskip-v4` has none (Mnih et al. 2015). Both
    are played with frame skip 4, 84 x 84 grey frames stacked by 4 and up to 30 no-ops, and one life lost does not
    end an episode. `MinAtar/<Game>-v0` has all six actions, `-v1` the minimal set. Other ids go to `gymnasium.make`, with the
    option `env_kwargs` (a mapping, or texts `name=value`) as arguments of the constructor. `max_episode_steps` is for all of
    them, see `with_longest_game`.

    `module:Id` imports the module, which runs its code: call this with ids that you trust. `task_in_file` does not.

    Raises:
        UserError: no such environment, its spaces are not understood, or it fails.
    """
    arguments = options.get("env_kwargs")
    name_environment(env, arguments_of(arguments) if arguments else ())
    return task_in_file(env, **options)


def task_in_file(env: str, **options: Any) -> Task:
    """As `make_task`, for an id that a file names: no module is imported that the user has not named in this process.

    Raises:
        UserError: as `make_task`, and where the id names such a module.
    """
    given = {name: value for name, value in options.items() if value is not None and value != ()}
    env = canonical(env)
    longest = given.pop("max_episode_steps", None)
    check_fields({**given, "env_kwargs": (), "max_episode_steps": longest or 0}, Task)
    if is_atari(env):
        task = atari_task(env, given)
    elif is_minatar(env):
        task = minatar_task(env, given)
    else:
        task = gymnasium_task(env, given)
    task = with_longest_game(task, longest)
    _check_options(task)
    return task


def with_longest_game(task: Task, steps: int | None) -> Task:
    """The task with another longest game, in control steps; None leaves it as it is.

    What random play scores is then unknown: the published figures are of longer games.
    """
    if steps is None or steps == task.max_episode_steps:
        return task
    return replace(task, max_episode_steps=steps, random_score=None)


def cut_in_words(task: Task) -> str:
    """The message about a game that was truncated by the task's longest game."""
    return (
        f"{task.env}: a game was cut after {task.max_episode_steps or LONGEST_GAME:,} control steps "
        "(--max-episode-steps sets another limit)"
    )


def chosen_task(own: Task, env: str | None, env_kwargs: Sequence[str] = ()) -> Task:
    """What a policy plays: its own task, or that of another id or other arguments, as the user names them.

    Where the id is that of the policy's own Gymnasium environment, the task is the policy's, but that the environment of now may
    give no action masks.

    Raises:
        UserError: no such environment.
    """
    arguments = arguments_of(env_kwargs)
    name_environment(env, arguments)
    if env is None and not arguments:
        return own
    if env == own.env and not arguments and not is_atari(env) and not is_minatar(env):
        return replace(own, action_masks=False)
    return newest_task(own.env if env is None else env, env_kwargs=arguments)


def newest_task(env: str, env_kwargs: Any = ()) -> Task:
    """As `task_in_file`, of the newest version where that one is gone: HalfCheetah-v3 is played as v5.

    Raises:
        UserError: as `task_in_file`, of the id as it is named; where a later version lacks a package, which one.
    """
    try:
        return task_in_file(env, env_kwargs=env_kwargs)
    except UserError:
        version_of = re.fullmatch(r"(.+)-v(\d+)", env)
        if version_of is None or is_atari(env) or is_minatar(env):
            raise
        for version in range(int(version_of[2]) + 3, int(version_of[2]), -1):
            try:
                return task_in_file(f"{version_of[1]}-v{version}", env_kwargs=env_kwargs)
            except UserError as error:
                if "not installed" in str(error):  # it is there, but for a package
                    raise
        raise


def fitting_task(own: Task, env: str | None, env_kwargs: Sequence[str] = ()) -> Task:
    """As `chosen_task`, if it fits.

    Raises:
        UserError: no such environment, or other actions or observations (the message has both numbers).
    """
    task = chosen_task(own, env, env_kwargs)
    differ = unlike(task, own)
    if differ is not None:
        raise UserError(f"{task.env} has {differ[0]}, the teacher {differ[1]}")
    return task


def confirm(env: str | None, own: Task) -> None:
    """Takes an id from the user as the confirmation of a policy's own environment, whose module may then be imported.

    Raises:
        UserError: it is another id.
    """
    name_environment(env)
    if env is not None and env != own.env:
        raise UserError(f"the policy plays {own.env}: --env only confirms it, and {env} is another one")


def observed_range(task: Task, steps: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Least and largest number of each feature, (*obs) each, that uniformly random play sees in so many steps."""
    environments = Environments(task, 1, 0)
    generator = np.random.default_rng(0)
    try:
        low = high = environments.observations[0].astype(np.float64)
        for _ in range(steps):
            environments.step(uniform_actions(task, 1, generator, environments.masks))
            low, high = np.minimum(low, environments.observations[0]), np.maximum(high, environments.observations[0])
    finally:
        environments.close()
    return low, high


def gives_action_masks(task: Task) -> bool:
    """Whether the environment says which actions are allowed, which one reset shows."""
    if is_atari(task.env) or is_minatar(task.env):
        return False
    environments = Environments(replace(task, action_masks=False), 1, 0)
    environments.close()
    return environments.task.action_masks


def make_backend(task: Task, num_envs: int, *, pixels: bool = False, ram: bool = False) -> Backend:
    """The world that plays the task; with `pixels` it has a spectator's picture, with `ram` that of Atari's emulators.

    Raises:
        UserError: no such environment here, or it has another number of actions or another observation than the task.
    """
    if not is_atari(task.env) and not is_minatar(task.env):
        return GymnasiumBackend(task, num_envs, pixels=pixels)
    fresh = task_in_file(task.env)
    stacked = (task.frame_stack, *fresh.observation_shape[1:]) if fresh.frame_stack > 1 else fresh.observation_shape
    differ = unlike(replace(fresh, observation_shape=stacked), task)
    if differ is not None:
        raise UserError(f"{task.env} has {differ[0]} here, the policy's task says {differ[1]}")
    if is_atari(task.env):
        return AtariBackend(task, num_envs, pixels=pixels, ram=ram)
    return MinAtarBackend(task, num_envs)


def repeats(task: Task, seed: int) -> bool:
    """Whether a game that is played again from its seed with the same actions is the same; a second or two of play.

    It is not where an environment draws from a generator that its seed does not set, or remembers earlier episodes.
    """
    if is_atari(task.env) or is_minatar(task.env):
        return True
    environments = Environments(task, 1, seed)
    try:
        return environments.repeats()
    finally:
        environments.close()


class Environments:
    """`num_envs` rows of one task that restart themselves, reproducibly, and can be saved and put back.

    Args:
        task: what is played. The attribute `task` says of action masks what the first reset shows.
        num_envs: rows.
        seed: of the run; row i's episode k starts from a seed that follows from (seed, i, k) alone.
        pixels: whether `pixels()` will be asked for (it costs a second emulation on Atari).
        watched: names of the numbers that `watched` gives (see `Watch`); on Atari any of them costs a second emulation.
        backend: another world than that of `make_backend`.

    Raises:
        UserError: the task has no such name to watch, or its environment cannot be made.
    """

    def __init__(
        self,
        task: Task,
        num_envs: int,
        seed: int,
        *,
        pixels: bool = False,
        watched: Sequence[str] = (),
        backend: Backend | None = None,
    ) -> None:
        if num_envs < 1:
            raise UserError(f"the number of environments is at least 1, not {num_envs}")
        self.task = task
        self.num_envs = num_envs
        self.seed = seed
        self.cut = 0
        """Games that were truncated by the task's longest game so far."""
        self._watch = Watch(task, watched)
        self._pixels = pixels
        if backend is not None and self._watch.needs_ram and backend.ram is None:
            raise UserError(f"to watch {', '.join(watched)} the world must be made with its RAM")
        self._backend = self._made() if backend is None else backend
        self._open = True
        limited = task.max_frames or self._backend.time_limit
        self.longest_game = task.max_episode_steps or (0 if limited else LONGEST_GAME)
        """Control steps after which an episode is truncated; 0 leaves it to the environment."""
        self._episodes = np.zeros(num_envs, dtype=np.int64)
        action = uniform_actions(task, 1, np.random.default_rng(0))[0]
        small = 0 < max(task.choices, default=0) <= 256
        self._any_action = action
        self._log = np.zeros((num_envs, 1024, *action.shape), dtype=np.uint8 if small else action.dtype)
        self._ages = np.zeros(num_envs, dtype=np.int64)
        self._returns = np.zeros(num_envs, dtype=np.float64)
        self.final_masks: Masks | None = None
        """(N, A): the actions allowed in the last step's `final_observations`; None where the environment gives no masks."""
        self.starts: Bools = np.ones(num_envs, dtype=np.bool_)
        """(N,): whether the current observation is the first of its episode."""
        try:
            self._backend.reset(np.ones(num_envs, dtype=np.bool_), self.seeds(np.arange(num_envs)))
        except BaseException:
            self.close()  # it may hold a device or a port that only one process can
            raise
        if task.action_masks and self.masks is None:
            remark_masks_are_gone(task.env)
        self.task = replace(task, action_masks=self.masks is not None)

    def _made(self) -> Backend:
        return make_backend(self.task, self.num_envs, pixels=self._pixels, ram=self._watch.needs_ram)

    @property
    def masks(self) -> Masks | None:
        """(N, A): the actions allowed now, at least one in each row; None where the environment gives no masks."""
        return self._backend.masks

    @property
    def observations(self) -> Observations:
        """(N, *obs): what the policies see now. A new array each step; never written to afterwards."""
        return self._backend.observations

    @property
    def watched(self) -> Floats:
        """(N, W): the numbers that the names of `watched` stand for, of the present observations."""
        return self._watch(self._backend.observations, self._backend.ram)

    def step(self, actions: Actions) -> Step:
        """Takes one action in each row; ended episodes are followed by the first observation of the next.

        Raises:
            ValueError: an action is out of range (the ALE itself would hang for ever), or not allowed.
        """
        check_actions(actions, self.num_envs, self.task, self.masks)
        if self._ages.max() >= self._log.shape[1]:
            self._log = np.concatenate([self._log, np.zeros_like(self._log)], axis=1)
        self._log[np.arange(self.num_envs), self._ages] = actions
        self._ages += 1
        rewards, terminated, truncated = self._backend.step(actions)
        if self.longest_game:
            too_long = (self._ages >= self.longest_game) & ~terminated & ~truncated
            truncated = truncated | too_long
            self.cut += int(too_long.sum())
        final, life_lost = self._backend.observations, self._backend.life_lost
        self.final_masks = self.masks
        ended = terminated | truncated
        self._returns += rewards
        returns = np.where(ended, self._returns, np.nan).astype(np.float32)
        if ended.any():
            self._returns[ended] = 0.0
            self._episodes[ended] += 1
            self._ages[ended] = 0
            self._backend.reset(ended, self.seeds(np.flatnonzero(ended)))
        self.starts = ended
        return Step(rewards, terminated, truncated, life_lost, final, returns)

    def pixels(self) -> Pixels:
        """What a spectator sees now: (N, height, width, 3)."""
        return self._backend.pixels()

    def state_dict(self) -> dict[str, Any]:
        """Each open episode as its number and its actions since the start, and a checksum of what is seen now."""
        longest = int(self._ages.max())
        return {
            "episodes": self._episodes.copy(),
            "ages": self._ages.copy(),
            "returns": self._returns.copy(),
            "log": self._log[:, :longest].copy(),
            "observations_sha256": self._checksum(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Plays the open episodes back; takes as long as playing the longest of them did.

        Where the environment does not repeat itself (it draws from a generator that its seed does not set, or remembers earlier
        episodes), a warning is logged, and play goes on from where it is.
        """
        if not self._play_back(state):
            remark(
                f"warning: {self.task.env} does not repeat itself from the same seed and actions: "
                "the run goes on, but not to the bit"
            )

    def repeats(self, *, steps: int = 64, seconds: float = 2.0) -> bool:
        """Whether games that are played again from their seeds with the same actions are the same.

        The environments are of no use afterwards.

        Args:
            steps: of the first play, which is random, at most.
            seconds: that the first play may take.
        """
        generator = np.random.default_rng(self.seed)
        ends = time.monotonic() + seconds
        for _ in range(steps):
            self.step(uniform_actions(self.task, self.num_envs, generator, self.masks))
            if time.monotonic() > ends:
                break
        return self._play_back(self.state_dict())

    def _play_back(self, state: Mapping[str, Any]) -> bool:
        """As `load_state_dict`; whether all is as it was, as far as the state says."""
        self._episodes = np.array(np.asarray(state["episodes"]), dtype=np.int64)
        self._ages = np.array(np.asarray(state["ages"]), dtype=np.int64)
        self._returns = np.array(np.asarray(state["returns"]), dtype=np.float64)
        log = np.array(np.asarray(state["log"]), dtype=self._log.dtype)
        longest = int(self._ages.max())
        self._log = np.zeros((self.num_envs, max(1024, 2 * longest), *log.shape[2:]), dtype=log.dtype)
        self._log[:, :longest] = log
        over = np.zeros(self.num_envs, dtype=np.bool_)
        # All episodes reach their last action at the same time: row i starts when as many steps are left as it has actions.
        # Before that it plays any action, and may end any number of games, since it is reset before it starts.
        for now in range(longest + 1):
            due = self._ages == longest - now
            if now == 0:
                self._backend.reset(np.ones(self.num_envs, dtype=np.bool_), self.seeds(np.arange(self.num_envs)))
            elif due.any():
                self._backend.reset(due, self.seeds(np.flatnonzero(due)))
            if now == longest:
                break
            since = now - (longest - self._ages)
            actions = self._log[np.arange(self.num_envs), np.maximum(since, 0)]
            actions[since < 0] = self._any_action
            actions = actions if self.task.continuous else actions.astype(np.int64)
            if self.masks is not None:
                illegal = ~are_allowed(actions, self.task, self.masks)
                over |= illegal & (since >= 0)
                actions[illegal] = first_allowed(self.task, self.masks)[illegal]
            _, terminated, truncated = self._backend.step(actions)
            ended = terminated | truncated
            over |= ended & (since >= 0)  # an open episode that is over already is not the saved one
            if ended.any():  # some worlds must not be stepped past an episode's end
                self._backend.reset(ended, self.seeds(np.flatnonzero(ended)))
        if over.any():
            self._episodes[over] += 1
            self._ages[over], self._returns[over] = 0, 0.0
            self._backend.reset(over, self.seeds(np.flatnonzero(over)))
        self.starts = self._ages == 0
        return not over.any() and state.get("observations_sha256") in (None, self._checksum())

    def _checksum(self) -> str:
        return hashlib.sha256(np.ascontiguousarray(self.observations).tobytes()).hexdigest()

    @contextmanager
    def released(self) -> Iterator[None]:
        """Within it the environments are closed, so that others can be made where there may be only one (a robot, a port).

        Afterwards they are made again and the open episodes are played back. `state_dict` works within it.
        """
        state = self.state_dict()
        self.close()
        yield
        self._backend = self._made()
        self._open = True
        self.load_state_dict(state)

    def close(self) -> None:
        """Frees the emulators. A second call does nothing."""
        if self._open:
            self._open = False
            self._backend.close()

    def seeds(self, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.int64]:
        """31-bit seeds for the current episodes of `rows`."""
        sequences = (np.random.SeedSequence([self.seed, int(row), int(self._episodes[row])]) for row in rows)
        return np.array([sequence.generate_state(1)[0] >> 1 for sequence in sequences], dtype=np.int64)


def _check_options(task: Task) -> None:
    if not 0.0 <= task.sticky_actions < 1.0:
        raise UserError(f"sticky actions are a probability below 1, not {task.sticky_actions}")
    if task.frame_skip < 1 or task.frame_stack < 1 or task.noop_max < 0 or task.max_frames < 0:
        raise UserError("frame skip and frame stack are at least 1; no-ops and the limit of frames are not negative")
    if not 0 <= task.max_episode_steps <= _MOST_STEPS:
        raise UserError(f"--max-episode-steps lies between 0 and {_MOST_STEPS:,}; 0 leaves it to the environment")
