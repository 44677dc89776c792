"""Environments, vectorized, from a `Task`: the ALE's own C++ vector environment, MinAtar, and any Gymnasium id.

Every episode starts from a seed that follows from (run seed, row, number of the episode), and the actions since its
start are kept. That is a complete snapshot of any deterministic environment, emulators that cannot save their state
included: `Environments.load_state_dict` seeds the open episodes again and plays their actions back. So a resumed run
goes on exactly where it was, without boundaries that cut episodes short.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import numpy.typing as npt

from rldistill.types import Actions, Bools, Floats, Observations, Task, UserError

# Mean return of uniformly random play from no-op starts: dqn_zoo's atari_data (Mnih et al. 2015, extended table 2).
ATARI_RANDOM_SCORES = {
    "beam_rider": 363.9,
    "breakout": 1.7,
    "enduro": 0.0,
    "freeway": 0.0,
    "ms_pacman": 307.3,
    "pong": -20.7,
    "qbert": 163.9,
    "riverraid": 1338.5,
    "seaquest": 68.4,
    "space_invaders": 148.0,
}
MINATAR_GAMES = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")

Pixels = npt.NDArray[np.uint8]


class Step(NamedTuple):
    """What one control step of all rows gave, each (N,)."""

    rewards: Floats
    """Raw, never clipped."""
    terminated: Bools
    truncated: Bools
    final_observations: Observations
    """(N, *obs) as they stood before ended episodes were restarted; elsewhere equal to the new observations."""
    returns: Floats
    """The raw return of the episode in rows that ended one, NaN elsewhere."""


class Backend(Protocol):
    """One world of environments: rows that are reset from given seeds and stepped together. It never resets itself."""

    observations: Observations

    def reset(self, rows: Bools, seeds: npt.NDArray[np.int64]) -> None:
        """Starts a new episode in the rows of the mask (N,), from one seed each."""

    def step(self, actions: Actions) -> tuple[Floats, Bools, Bools]:
        """Rewards, terminated and truncated, (N,) each."""

    def pixels(self) -> Pixels:
        """What a spectator sees: (N, height, width, 3)."""

    def close(self) -> None:
        """Frees what the world holds."""


def make_task(env: str, **options: Any) -> Task:
    """The task of an environment id, its options at the id's defaults except those given.

    `ALE/<Game>-v5` has sticky actions 0.25 (Machado et al. 2018), `<Game>NoFrameskip-v4` has none (Mnih et al. 2015);
    both are played with frame skip 4, 84 x 84 grey frames stacked by 4 and up to 30 no-ops, and one life lost does not
    end an episode. `MinAtar/<Game>-v0` has all six actions, `-v1` the minimal set. Other ids go to `gymnasium.make`.

    Raises:
        UserError: no such environment, or its spaces are not a Box and a Discrete.
    """
    given = {name: value for name, value in options.items() if value is not None}
    game = _atari_game(env)
    if game is not None:
        defaults: dict[str, Any] = dict(
            frame_skip=4,
            frame_stack=4,
            sticky_actions=0.25 if env.startswith("ALE/") else 0.0,
            noop_max=30,
            max_frames=108_000,
            fire_when_idle=200,
            random_score=ATARI_RANDOM_SCORES.get(game),
        )
        chosen = defaults | _understood(env, given, defaults)
        shape = (int(chosen["frame_stack"]), 84, 84)
        task = Task(env, _atari_actions(game), shape, "uint8", **chosen)
    elif env.startswith("MinAtar/"):
        probe_minatar = _minatar(_minatar_game(env), 0.1, True)
        height, width, channels = probe_minatar.state_shape()
        number = 6 if env.endswith("-v0") else len(probe_minatar.minimal_action_set())
        minatar_defaults: dict[str, Any] = dict(sticky_actions=0.1, difficulty_ramping=True, max_frames=27_000)
        minatar_chosen = minatar_defaults | _understood(env, given, minatar_defaults)
        task = Task(env, number, (channels, height, width), "uint8", **minatar_chosen)
    else:
        _understood(env, given, {})
        task = _gymnasium_task(env)
    _check_options(task)
    return task


def fitting_task(own: Task, env: str | None) -> Task:
    """What a policy plays: its own task, or that of another environment id if it fits.

    Raises:
        UserError: no such environment, or other actions or observations (the message has both numbers).
    """
    if env is None:
        return own
    task = make_task(env)
    if task.num_actions != own.num_actions:
        raise UserError(f"{env} has {task.num_actions} actions, the teacher {own.num_actions}")
    if task.observation_shape != own.observation_shape:
        seen = f"the teacher sees {own.observation_shape}"
        raise UserError(f"{env} has observations of shape {task.observation_shape}, {seen}")
    if task.observation_dtype != own.observation_dtype:
        raise UserError(f"{env} has {task.observation_dtype} observations, the teacher sees {own.observation_dtype}")
    return task


def _understood(env: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The options given, if this world takes them: one without effect would be a wrong record of what was played."""
    for name in given:
        if name not in defaults:
            takes = f"it takes {', '.join(defaults)}" if defaults else "those are for Atari and MinAtar games"
            raise UserError(f"{env} does not take the option {name!r}: {takes}")
    return dict(given)


def _check_options(task: Task) -> None:
    if not 0.0 <= task.sticky_actions < 1.0:
        raise UserError(f"sticky actions are a probability below 1, not {task.sticky_actions}")
    if task.frame_skip < 1 or task.frame_stack < 1 or task.noop_max < 0 or task.max_frames < 0:
        raise UserError("frame skip and frame stack are at least 1; no-ops and the limit of frames are not negative")


def _atari_game(env: str) -> str | None:
    """The ROM's name where `env` is an Atari id, None where it belongs elsewhere."""
    if env.startswith("ALE/"):
        name, ending = env.removeprefix("ALE/"), "-v5"
    elif "NoFrameskip-v" in env:
        name, ending = env, "NoFrameskip-v4"
    else:
        return None
    if not name.endswith(ending):
        raise UserError(f"unknown Atari id {env!r}: write ALE/<Game>-v5 or <Game>NoFrameskip-v4")
    from ale_py import roms

    known = {rom.title().replace("_", ""): str(rom) for rom in roms.get_all_rom_ids()}
    pascal = name.removesuffix(ending)
    if pascal not in known:
        raise UserError(f"unknown Atari game {pascal!r}{_nearest(pascal, list(known))}")
    return known[pascal]


@cache
def _atari_actions(game: str) -> int:
    options = dict(frame_skip=4, frame_stack=4, sticky_actions=0.0, noop_max=0, max_frames=0)
    return int(_ale(game, 1, options, pixels=False).single_action_space.n)


def _minatar_game(env: str) -> str:
    known = {game.title().replace("_", ""): game for game in MINATAR_GAMES}
    name, _, version = env.removeprefix("MinAtar/").rpartition("-")
    if name not in known or version not in ("v0", "v1"):
        raise UserError(
            f"unknown MinAtar id {env!r}: the games are {', '.join(known)}, with -v0 or -v1 (minimal actions)"
        )
    return known[name]


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _gymnasium_task(env: str) -> Task:
    made = _gymnasium(env, None)
    observations, actions = made.observation_space, made.action_space
    made.close()
    from gymnasium.spaces import Box, Discrete

    if not isinstance(observations, Box) or not isinstance(actions, Discrete):
        raise UserError(
            f"{env} has {type(observations).__name__} observations and {type(actions).__name__} actions; "
            "rldistill plays Box observations with Discrete actions"
        )
    if actions.start != 0:
        raise UserError(f"{env} numbers its actions from {actions.start}; rldistill expects them from 0")
    shape = tuple(int(n) for n in observations.shape)
    if len(shape) not in (1, 3):
        raise UserError(f"{env} has observations of shape {shape}; vectors and images (three axes) are understood")
    if observations.dtype == np.uint8 and len(shape) == 3:
        shape = (shape[2], shape[0], shape[1])  # Gymnasium's images have their channels last
    dtype = "uint8" if observations.dtype == np.uint8 else "float32"
    return Task(env, int(actions.n), shape, "uint8" if dtype == "uint8" else "float32")


class AtariBackend:
    """The ALE's vector environment (threads inside), reset by seeded masks, with range checks it does not make."""

    def __init__(self, task: Task, num_envs: int, *, pixels: bool) -> None:
        game = _atari_game(task.env)
        assert game is not None
        options = task.as_dict()
        self._task = task
        self._ale = _ale(game, num_envs, options, pixels=False)
        # The spectator's picture comes from a twin that gets the same seeds and actions.
        self._twin = _ale(game, num_envs, options, pixels=True) if pixels else None
        meanings = [action.name for action in self._ale.ale.get_action_set()]
        self._fires = np.array(["FIRE" in meaning for meaning in meanings])
        self._fire = meanings.index("FIRE") if "FIRE" in meanings else -1
        self._idle = np.zeros(num_envs, dtype=np.int64)
        self.observations: Observations = np.zeros((num_envs, *task.observation_shape), dtype=np.uint8)

    def reset(self, rows: Bools, seeds: npt.NDArray[np.int64]) -> None:
        self.observations, _ = self._ale.reset(seed=seeds, options={"reset_mask": rows})
        if self._twin is not None:
            self._seen, _ = self._twin.reset(seed=seeds, options={"reset_mask": rows})
        self._idle[rows] = 0

    def step(self, actions: Actions) -> tuple[Floats, Bools, Bools]:
        if self._task.fire_when_idle and self._fire >= 0:
            actions = np.where(self._idle >= self._task.fire_when_idle, self._fire, actions)
        self.observations, rewards, terminated, truncated, _ = self._ale.step(actions)
        if self._twin is not None:
            self._seen = self._twin.step(actions)[0]
        self._idle = np.where((rewards != 0) | self._fires[actions], 0, self._idle + 1)
        return rewards.astype(np.float32), terminated, truncated & ~terminated

    def pixels(self) -> Pixels:
        return np.ascontiguousarray(self._seen[:, -1])

    def close(self) -> None:
        self._ale.close()
        if self._twin is not None:
            self._twin.close()


class MinAtarBackend:
    """MinAtar's games (Young & Tian 2019, arXiv 1903.03176), channels first, one after the other."""

    # Colours for up to ten channels, for the spectator alone.
    PALETTE = np.array(
        [[0, 0, 0], [102, 194, 165], [252, 141, 98], [141, 160, 203], [231, 138, 195], [166, 216, 84],
         [255, 217, 47], [229, 196, 148], [179, 179, 179], [228, 26, 28], [55, 126, 184]], dtype=np.uint8)  # fmt: skip

    def __init__(self, task: Task, num_envs: int) -> None:
        game = _minatar_game(task.env)
        self._envs = [_minatar(game, task.sticky_actions, task.difficulty_ramping) for _ in range(num_envs)]
        minimal = self._envs[0].minimal_action_set()
        self._actions = list(range(6)) if task.env.endswith("-v0") else [int(action) for action in minimal]
        self._limit = task.max_frames
        self._ages = np.zeros(num_envs, dtype=np.int64)
        self.observations: Observations = np.zeros((num_envs, *task.observation_shape), dtype=np.uint8)

    def reset(self, rows: Bools, seeds: npt.NDArray[np.int64]) -> None:
        self.observations = self.observations.copy()
        for row, seed in zip(np.flatnonzero(rows), seeds, strict=True):
            env = self._envs[row]
            env.seed(int(seed))
            env.last_action = 0  # else a sticky first action would come from the episode before
            env.reset()
            self.observations[row] = env.state().transpose(2, 0, 1)
        self._ages[rows] = 0

    def step(self, actions: Actions) -> tuple[Floats, Bools, Bools]:
        number = len(self._envs)
        rewards, terminated = np.zeros(number, dtype=np.float32), np.zeros(number, dtype=np.bool_)
        observations = np.empty_like(self.observations)
        for row, env in enumerate(self._envs):
            rewards[row], terminated[row] = env.act(self._actions[actions[row]])
            observations[row] = env.state().transpose(2, 0, 1)
        self.observations = observations
        self._ages += 1
        over = self._ages >= self._limit if self._limit else np.zeros(number, dtype=np.bool_)
        return rewards, terminated, over & ~terminated

    def pixels(self) -> Pixels:
        channels = self.observations.shape[1]
        top = (self.observations * np.arange(1, channels + 1)[None, :, None, None]).max(axis=1)
        small = self.PALETTE[top.astype(np.int64)]
        return cast(Pixels, small.repeat(16, axis=1).repeat(16, axis=2))

    def close(self) -> None:
        pass


class GymnasiumBackend:
    """Any registered Gymnasium environment with Box observations and Discrete actions, one after the other."""

    def __init__(self, task: Task, num_envs: int, *, pixels: bool) -> None:
        self._envs = [_gymnasium(task.env, "rgb_array" if pixels else None) for _ in range(num_envs)]
        self._images = len(task.observation_shape) == 3 and task.observation_dtype == "uint8"
        shape = (num_envs, *task.observation_shape)
        self.observations: Observations = (
            np.zeros(shape, dtype=np.uint8) if task.observation_dtype == "uint8" else np.zeros(shape, dtype=np.float32)
        )

    def _seen(self, observation: Any) -> Any:
        return observation.transpose(2, 0, 1) if self._images else observation

    def reset(self, rows: Bools, seeds: npt.NDArray[np.int64]) -> None:
        self.observations = self.observations.copy()
        for row, seed in zip(np.flatnonzero(rows), seeds, strict=True):
            self.observations[row] = self._seen(self._envs[row].reset(seed=int(seed))[0])

    def step(self, actions: Actions) -> tuple[Floats, Bools, Bools]:
        number = len(self._envs)
        rewards = np.zeros(number, dtype=np.float32)
        terminated, truncated = np.zeros(number, dtype=np.bool_), np.zeros(number, dtype=np.bool_)
        observations = np.empty_like(self.observations)
        for row, env in enumerate(self._envs):
            observation, reward, terminated[row], truncated[row], _ = env.step(int(actions[row]))
            observations[row], rewards[row] = self._seen(observation), float(reward)
        self.observations = observations
        return rewards, terminated, truncated & ~terminated

    def pixels(self) -> Pixels:
        return np.stack([np.asarray(env.render(), dtype=np.uint8) for env in self._envs])

    def close(self) -> None:
        for env in self._envs:
            env.close()


def make_backend(task: Task, num_envs: int, *, pixels: bool = False) -> Backend:
    """The world that plays the task.

    Raises:
        UserError: no such environment here, or it has another number of actions or another observation than the task.
    """
    fresh = make_task(task.env)
    if fresh.num_actions != task.num_actions:
        raise UserError(f"{task.env} has {fresh.num_actions} actions here, the policy's task says {task.num_actions}")
    stacked = (task.frame_stack, *fresh.observation_shape[1:]) if fresh.frame_stack > 1 else fresh.observation_shape
    if stacked != task.observation_shape:
        raise UserError(
            f"{task.env} has observations of shape {stacked} here, the policy's task says {task.observation_shape}"
        )
    if _atari_game(task.env) is not None:
        return AtariBackend(task, num_envs, pixels=pixels)
    if task.env.startswith("MinAtar/"):
        return MinAtarBackend(task, num_envs)
    return GymnasiumBackend(task, num_envs, pixels=pixels)


class Environments:
    """`num_envs` rows of one task that restart themselves, reproducibly, and can be saved and put back.

    Args:
        task: what is played.
        num_envs: rows.
        seed: of the run; row i's episode k starts from a seed that follows from (seed, i, k) alone.
        pixels: whether `pixels()` will be asked for (it costs a second emulation on Atari).
    """

    def __init__(self, task: Task, num_envs: int, seed: int, *, pixels: bool = False) -> None:
        if num_envs < 1:
            raise UserError(f"the number of environments is at least 1, not {num_envs}")
        self.task = task
        self.num_envs = num_envs
        self.seed = seed
        self._backend = make_backend(task, num_envs, pixels=pixels)
        self._episodes = np.zeros(num_envs, dtype=np.int64)
        self._log = np.zeros((num_envs, 1024), dtype=np.uint8 if task.num_actions <= 256 else np.int64)
        self._ages = np.zeros(num_envs, dtype=np.int64)
        self._returns = np.zeros(num_envs, dtype=np.float64)
        self.starts: Bools = np.ones(num_envs, dtype=np.bool_)
        """(N,): whether the current observation is the first of its episode."""
        self._backend.reset(np.ones(num_envs, dtype=np.bool_), self._seeds(np.arange(num_envs)))

    @property
    def observations(self) -> Observations:
        """(N, *obs): what the policies see now. A new array each step; never written to afterwards."""
        return self._backend.observations

    def step(self, actions: Actions) -> Step:
        """Takes one action in each row; ended episodes are followed by the first observation of the next.

        Raises:
            ValueError: an action is out of range (the ALE itself would hang for ever).
        """
        if actions.shape != (self.num_envs,) or actions.min() < 0 or actions.max() >= self.task.num_actions:
            raise ValueError(
                f"actions are {self.num_envs} numbers from 0 to {self.task.num_actions - 1}, got {actions}"
            )
        if self._ages.max() >= self._log.shape[1]:
            self._log = np.concatenate([self._log, np.zeros_like(self._log)], axis=1)
        self._log[np.arange(self.num_envs), self._ages] = actions
        self._ages += 1
        rewards, terminated, truncated = self._backend.step(actions)
        final = self._backend.observations
        ended = terminated | truncated
        self._returns += rewards
        returns = np.where(ended, self._returns, np.nan).astype(np.float32)
        if ended.any():
            self._returns[ended] = 0.0
            self._episodes[ended] += 1
            self._ages[ended] = 0
            self._backend.reset(ended, self._seeds(np.flatnonzero(ended)))
        self.starts = ended
        return Step(rewards, terminated, truncated, final, returns)

    def pixels(self) -> Pixels:
        """What a spectator sees now: (N, height, width, 3)."""
        return self._backend.pixels()

    def state_dict(self) -> dict[str, Any]:
        """Each open episode as its number and its actions since the start."""
        longest = int(self._ages.max())
        return {
            "episodes": self._episodes.copy(),
            "ages": self._ages.copy(),
            "returns": self._returns.copy(),
            "log": self._log[:, :longest].copy(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Plays the open episodes back; takes as long as playing the longest of them did."""
        self._episodes = np.array(np.asarray(state["episodes"]), dtype=np.int64)
        self._ages = np.array(np.asarray(state["ages"]), dtype=np.int64)
        self._returns = np.array(np.asarray(state["returns"]), dtype=np.float64)
        log = np.array(np.asarray(state["log"]), dtype=self._log.dtype)
        longest = int(self._ages.max())
        self._log = np.zeros((self.num_envs, max(1024, 2 * longest)), dtype=log.dtype)
        self._log[:, :longest] = log
        # All episodes are brought to their ends together: row i starts when as many steps are left as it has actions.
        # Before that a row plays first actions only (and may end any number of games: it is reset by then).
        for now in range(longest + 1):
            due = self._ages == longest - now
            if now == 0:
                self._backend.reset(np.ones(self.num_envs, dtype=np.bool_), self._seeds(np.arange(self.num_envs)))
            elif due.any():
                self._backend.reset(due, self._seeds(np.flatnonzero(due)))
            if now == longest:
                break
            since = now - (longest - self._ages)
            actions = np.where(since >= 0, self._log[np.arange(self.num_envs), np.maximum(since, 0)], 0)
            _, terminated, truncated = self._backend.step(actions.astype(np.int64))
            early = (terminated | truncated) & (since < 0)
            if early.any():  # some worlds must not be stepped past an episode's end
                self._backend.reset(early, self._seeds(np.flatnonzero(early)))
        self.starts = self._ages == 0

    def close(self) -> None:
        """Frees the emulators."""
        self._backend.close()

    def _seeds(self, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.int64]:
        """31-bit seeds for the current episodes of `rows`."""
        sequences = (np.random.SeedSequence([self.seed, int(row), int(self._episodes[row])]) for row in rows)
        return np.array([sequence.generate_state(1)[0] >> 1 for sequence in sequences], dtype=np.int64)


def _ale(game: str, num_envs: int, options: Mapping[str, Any], *, pixels: bool) -> Any:
    import ale_py
    from ale_py.vector_env import AtariVectorEnv

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    look: dict[str, Any] = dict(grayscale=True, img_height=84, img_width=84, stack_num=int(options["frame_stack"]))
    if pixels:
        look = dict(grayscale=False, img_height=210, img_width=160, stack_num=1)
    return AtariVectorEnv(
        game,
        num_envs,
        frameskip=int(options["frame_skip"]),
        repeat_action_probability=float(options["sticky_actions"]),
        noop_max=int(options["noop_max"]),
        max_num_frames_per_episode=int(options["max_frames"]) or 2**31 - 1,  # 0 would end episodes after one step
        use_fire_reset=False,
        reward_clipping=False,  # on by default, and then the raw score is nowhere
        episodic_life=False,
        autoreset_mode="NextStep",  # never takes place: ended rows are reset by their mask first
        **look,
    )


def _minatar(game: str, sticky_actions: float, ramping: bool) -> Any:
    import logging

    root = logging.getLogger()
    level = root.level
    try:
        root.setLevel(logging.ERROR)  # MinAtar warns at import that it could not draw, which nobody asks of it
        from minatar import Environment
    except ImportError:
        raise UserError("MinAtar is not installed: pip install 'rldistill[minatar]'") from None
    finally:
        root.setLevel(level)
    return Environment(game, sticky_action_prob=sticky_actions, difficulty_ramping=ramping)


def _gymnasium(env: str, render_mode: str | None) -> Any:
    import gymnasium

    try:
        # Not every environment takes a render mode, so it is given only where one is wanted.
        return gymnasium.make(env, render_mode=render_mode) if render_mode else gymnasium.make(env)
    except gymnasium.error.DependencyNotInstalled as error:
        raise UserError(f"{env} needs a package that is not installed: {str(error).splitlines()[0]}") from None
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        names = [str(name) for name in gymnasium.registry]
        raise UserError(f"unknown environment {env!r}{_nearest(env, names)} ({str(error).splitlines()[0]})") from None
