"""The verb `train`: an environment becomes a teacher, a policy folder in a run folder."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from rldistill.arguments import checked_arguments
from rldistill.files import replace_file
from rldistill.lessons.dqn import DQN, DQNSettings, updates_due
from rldistill.lessons.learning import Learning
from rldistill.lessons.pqn import PQN, PQNSettings
from rldistill.machine import device_failures, keep_freed_memory, machine_in_words, torch_device, usual_torch
from rldistill.play.actions import describe
from rldistill.play.envs import Environments, cut_in_words, make_task
from rldistill.play.games import play_scored
from rldistill.policies import SavedPolicy, add_provenance, load_policy, save_policy
from rldistill.progress import Progress, Silent
from rldistill.runs.loop import Clock, Hook, Pace, Stop, say_once, work_through
from rldistill.runs.provenance import command_line, made_by
from rldistill.runs.records import FinalScore, Record, Train, curve_csv
from rldistill.runs.writing import Run, older_defaults
from rldistill.stats import games_in_words, with_interval
from rldistill.students.networks import Architecture, Network, Normalization, build, parameter_count
from rldistill.types import (
    MOST_ENVIRONMENTS,
    MOST_SAMPLES,
    Task,
    UserError,
    check_boolean,
    check_numbers,
    is_large_image,
    plain_numbers,
)


@dataclass(frozen=True)
class TrainConfig:
    """How a teacher is trained. None stands for the algorithm's own default."""

    steps: int = 2_000_000
    """Control steps of all environments together (on Atari one is four frames)."""
    algo: Literal["dqn", "pqn"] = "dqn"
    """`dqn`: double DQN with replay and target network. `pqn`: replay-free Q(lambda), better teachers per hour on a CPU."""
    seed: int = 0
    """Of weights, environments, exploration and minibatches."""
    network: str | None = None
    """`dqn`, `net1`, `net2`, `net3`, `cnn:32,64,64:512` or `mlp:64,64`; by default `dqn` for images, cnn:16:128 for small
    grids, mlp:128,128 for vectors."""
    num_envs: int | None = None
    """Environments stepped together (dqn 16, vectors 8; pqn 64, small grids 128, vectors 16). With 1 no second one is made."""
    max_episode_steps: int | None = None
    """Control steps after which a game is truncated, which bootstraps; by default 10,000 where the environment sets no limit
    (Atari's games end after 108,000 frames)."""
    learning_rate: float | None = None
    """dqn: Adam, 1e-4; pqn: RAdam, 2.5e-4 falling linearly to a tenth (on Atari; larger for small observations)."""
    discount: float = 0.99
    """Gamma."""
    epsilon_end: float = 0.01
    """Probability of a random action after `epsilon_steps`; it falls linearly from 1."""
    epsilon_steps: int | None = None
    """By default a sixth of `steps`, at most 400,000 (pqn) or 250,000 (dqn; for vectors half of `steps`); dqn counts from the
    end of the warm-up."""
    epsilon_repeats: int = 1
    """How many control steps a random action lasts at most: how many is drawn with a probability of 1 / n^2 (Dabney et al. 2021).
    1 is the usual epsilon-greedy; where random play finds no reward (Freeway), 100."""
    clip_rewards: bool | None = None
    """Learn from the sign of the rewards alone, as Mnih et al. 2015; by default on Atari only. Scores stay raw."""
    lives_as_episodes: bool | None = None
    """Learn as if a lost life ended the game, as Mnih et al. 2015; by default on Atari only. Games are played whole, and their
    scores are of whole games."""
    steady: bool = False
    """pqn: take gradients for layers' inputs less their mean, as `distill --steady` does. For games whose rewards are rare, which
    otherwise teach a network one value for all states; values of some size it reaches late."""
    averaging: int = 1
    """pqn: the policy's weights are averages, exponential ones over about so many updates (a run of 1,000,000 steps on Atari has
    7,800). 1 keeps the last weights. For games where a single slip ends the game, 2,000; what is learnt stays the same."""
    n_step: int = 3
    """dqn: rewards summed before the bootstrap."""
    double: bool = True
    """dqn: the learning network chooses the action that is bootstrapped from, which keeps values from growing too large (van
    Hasselt et al. 2015). False is the DQN of Mnih et al. 2015: a fifth less work an update."""
    replay: int = 400_000
    """dqn: control steps kept to learn from (7 kB each on Atari)."""
    warmup: int | None = None
    """dqn: control steps of uniformly random play before the first update (Atari 20,000, at most a tenth of `steps`)."""
    replay_ratio: float | None = None
    """dqn: samples drawn for each control step (Atari 8, as the paper's 32 every 4)."""
    minibatch: int | None = None
    """dqn: samples an update (128)."""
    target_every: int | None = None
    """dqn: updates between two copies to the target network (Atari 500)."""
    sticky_actions: float | None = None
    """Probability of a repeated action; None leaves it to the environment id."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments name=value that a Gymnasium environment is made with; values are JSON's scalars or else text. They are kept with
    the policy."""
    bfloat16: bool | None = None
    """Compute all layers but the last in bfloat16 (weights, scores, targets and the optimizer stay float32); by default for
    images where that is faster: on a GPU, or a processor that multiplies matrices of it (AMX)."""
    device: str = "auto"
    """Where the networks are: `cpu`, `cuda`, `cuda:1`, or `auto`, a GPU if PyTorch sees one. Games are played on the processor.
    A run may be resumed on another device."""
    snapshots: tuple[float, ...] = ()
    """Shares of the training after which the weights are kept as a policy folder in `snapshots/`, such as 0.25 0.5 0.75."""
    checkpoint_seconds: float = 60.0
    """Between two checkpoints. They change nothing in the result."""
    tensorboard: bool = False
    """Also write the metrics as TensorBoard events, to `tensorboard/` in the run folder."""
    final_episodes: int = 30
    """Games played at the end, with epsilon 0.01, for the score in `policy.json`; 0 plays none, and there is no score."""
    weights_dtype: Literal["float32", "float16"] = "float32"
    """How the final policy's numbers are kept: float16 is half the size. The score is that of the numbers kept."""


@usual_torch()
@checked_arguments
def train(
    env: str,
    out: str | os.PathLike[str],
    config: TrainConfig | None = None,
    *,
    resume: bool = False,
    progress: Progress | None = None,
) -> SavedPolicy:
    """Trains a teacher and returns it as it stands in `out/policy`.

    Args:
        env: environment id, as in `make_task`.
        out: run folder, made here.
        config: see `TrainConfig`.
        resume: go on with the run in `out`; the result is the same as without the interruption.
        progress: shows how it goes.

    Raises:
        UserError: a wrong configuration, an unknown environment or network, a run folder that cannot be used.
    """
    check_boolean("resume", resume)
    config, progress = plain_numbers(config or TrainConfig()), progress or Silent()
    task = _task(env, config)
    settings = _resolve(config, task)
    device = torch_device(config.device)
    network = _network(settings, task).to(device)
    keep_freed_memory()
    resolved = settings | {config.algo: asdict(_learning(settings, task))}
    with _run(out, config, {"verb": "train", "task": task.as_dict()} | resolved, resume=resume) as run:
        made_before = run.result(load_policy, progress.say, games=config.final_episodes)
        if made_before is not None:
            scored = run.folder.scored or not config.final_episodes
            return made_before if scored else _finished(run, settings, progress)
        work = Training(_learner(settings, task, network, run.scratch), config.steps)
        try:
            if run.state is not None:
                progress.say(f"resuming {run.path} at {run.state['learner']['control_steps']:,} control steps")
                work.load_state_dict(run.state)
            made = partial(_provenance, work, resolved)
            _learn(work, config, run, made, progress)
        finally:
            work.close()
        _keep(work, config, run, made())
        return _finished(run, settings, progress)


_OLDER = {"lives_as_episodes": False}
"""What runs from before an option did, where it is not what its default stands for."""


def _run(out: str | os.PathLike[str], config: TrainConfig, resolved: dict[str, Any], *, resume: bool) -> Run:
    defaults = older_defaults(asdict(TrainConfig()), asdict(config), resolved) | _OLDER
    defaults |= {"dqn": asdict(DQNSettings()), "pqn": asdict(PQNSettings())}
    return Run(Path(out), resolved, resume=resume, defaults=defaults, tensorboard=config.tensorboard)


class Training:
    """A learner at work: an item is one round of learning.

    Args:
        learner: that learns.
        steps: control steps of the whole training.
    """

    unit = "steps"

    def __init__(self, learner: DQN | PQN, steps: int) -> None:
        self.learner, self.total = learner, steps
        self.task = learner.environments.task
        self.clock = Clock()
        self._recent: deque[float] = deque(maxlen=100)
        self._figures: dict[str, float] = {}
        self._rounds = learner.learn()

    @property
    def done(self) -> int:
        """Control steps."""
        return self.learner.control_steps

    @property
    def must_save(self) -> bool:
        """As the learner says."""
        return self.learner.must_save

    def advance(self) -> Sequence[Record]:
        """One round of learning, which makes one record.

        Raises:
            UserError: the loss is no finite number.
        """
        learnt = next(self._rounds)
        loss = learnt["loss"]  # None while dqn warms up
        if loss is not None and not math.isfinite(loss):
            raise UserError(
                f"the loss became {loss} after {self.done} steps: lower --learning-rate, with another --out"
            )
        self._recent.extend(learnt["returns"])
        self._figures = {"loss": loss} if loss is not None else {}
        self._figures["epsilon"] = learnt["epsilon"]
        return [Train(control_steps=self.done, seconds=round(self.clock.seconds, 2), **learnt)]

    def figures(self) -> dict[str, float]:
        """The last round's, and the mean return of the last 100 games."""
        return self._figures | ({"score": float(np.mean(self._recent))} if self._recent else {})

    def state_dict(self) -> dict[str, Any]:
        """The learner's state, the last returns and the clock."""
        return {"learner": self.learner.state_dict(), "recent": list(self._recent)} | self.clock.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
        self.learner.load_state_dict(state["learner"])
        self._recent.extend(state["recent"])
        self.clock.load_state_dict(state)

    def close(self) -> None:
        """Frees the environments."""
        self.learner.environments.close()


def _learn(
    work: Training, config: TrainConfig, run: Run, made: Callable[[], dict[str, Any]], progress: Progress
) -> None:
    """From where the run stands to its last control step."""
    learner = work.learner
    safe = "go on from the last checkpoint with --resume (and --device cpu), or take a smaller --network"
    with device_failures(safe):
        work_through(
            work,
            f"train {work.task.env} ({config.algo})",
            progress,
            save=lambda: run.checkpoint(work.state_dict()),
            log=run.log,
            hooks=[
                say_once(lambda: learner.environments.cut > 0, lambda: cut_in_words(work.task), progress.say),
                _snapshots(work, config.snapshots, run.path / "snapshots", made),
            ],
            on_stop=lambda: progress.say(f"stopped at {work.done:,} control steps: go on with --resume"),
            pace=Pace(saving=config.checkpoint_seconds, showing=0.0),  # a round takes long enough
        )


def _snapshots(work: Training, shares: Sequence[float], folder: Path, made: Callable[[], dict[str, Any]]) -> Hook:
    """A hook that keeps the policy at some shares of the training."""
    due = [share for share in sorted(shares) if share * work.total > work.done]

    def hook(stop_if_asked: Stop) -> bool:
        while due and work.done >= due[0] * work.total:
            save_policy(folder / f"{due.pop(0):g}", work.learner.policy, work.task, made(), dtype="float16")
        return False

    return hook


def _provenance(work: Training, resolved: dict[str, Any]) -> dict[str, Any]:
    return {
        "made_by": made_by(),
        "command": command_line(),
        "algorithm": resolved["algo"],
        "configuration": resolved,
        "control_steps": work.done,
        "updates": work.learner.updates,
        "training_seconds": round(work.clock.seconds, 1),
        "cpu_seconds": round(work.clock.cpu_seconds, 1),
        "machine": machine_in_words(work.learner.network.device),
        "arithmetic": work.learner.network.arithmetic,
    }


def _keep(work: Training, config: TrainConfig, run: Run, made: dict[str, Any]) -> None:
    """Writes the policy, with its learning curve beside it."""
    network = work.learner.policy.eval().cpu()
    network.bfloat16 = False  # whoever loads it computes in float32
    if config.weights_dtype == "float16":
        _round_to_half(network)
    with suppress(OSError):  # what follows reports a full disk
        run.policy_path.mkdir(exist_ok=True)
    replace_file(run.policy_path / "curve.csv", curve_csv(run.folder.records()[0]))
    save_policy(run.policy_path, network, work.task, made, dtype=config.weights_dtype)


def _finished(run: Run, settings: dict[str, Any], progress: Progress) -> SavedPolicy:
    """Plays the final games and adds their score to the policy, which is safe by now. Nothing else holds an environment."""
    policy, games = load_policy(run.policy_path), settings["final_episodes"]
    score = "no final games were played, so there is no score"
    if games:
        progress.start("final score", games, "games")
        final = play_scored(
            policy.task, policy, games, 0.01, settings["seed"],
            num_envs=1 if settings["num_envs"] == 1 else 10, on_progress=progress.update, on_line=progress.say,
        )  # fmt: skip
        run.log(FinalScore(**final))
        add_provenance(run.policy_path, {"score": final})
        mean = with_interval(final["mean"], final["ci_low"], final["ci_high"])
        score = f"mean return {mean} over {games_in_words(games, final['distinct'])}"
    progress.say(f"{parameter_count(policy.network):,} parameters, {score}: {run.policy_path}")
    run.clean()
    return load_policy(run.policy_path)


@usual_torch()
def make_learner(env: str, config: TrainConfig, scratch: Path) -> DQN | PQN:
    """What `train` would learn with, fresh, without a run; whoever takes it closes its `environments`.

    Args:
        env: environment id, as in `make_task`.
        config: see `TrainConfig`.
        scratch: folder for the replay's files.

    Raises:
        UserError: a wrong configuration, an unknown environment or network, no room for the replay.
    """
    config = plain_numbers(config)
    task = _task(env, config)
    settings = _resolve(config, task)
    return _learner(settings, task, _network(settings, task).to(torch_device(config.device)), scratch)


def _task(env: str, config: TrainConfig) -> Task:
    """What is learnt, if it and the configuration are such as can be."""
    _check(config)
    task = make_task(
        env,
        sticky_actions=config.sticky_actions,
        env_kwargs=config.env_kwargs,
        max_episode_steps=config.max_episode_steps,
    )
    if task.continuous or task.action_sizes:
        raise UserError(f"{env} has {describe(task)}; deep Q-learning needs one discrete action")
    return task


def _network(settings: dict[str, Any], task: Task) -> Network:
    normalization: Normalization = "layer" if settings["algo"] == "pqn" else "none"
    return build(
        Architecture(settings["network"], task.observation_shape, task.choices[0], normalization), settings["seed"]
    )


def _learner(settings: dict[str, Any], task: Task, network: Network, scratch: Path) -> DQN | PQN:
    own = _learning(settings, task)
    asked = settings["bfloat16"]
    network.bfloat16 = network.trains_faster_in_bfloat16 if asked is None else asked
    environments = Environments(task, settings["num_envs"], settings["seed"])
    learning = Learning(**{field.name: settings[field.name] for field in fields(Learning)})
    if isinstance(own, PQNSettings):
        return PQN(network, environments, learning, own)
    return DQN(network, environments, learning, own, scratch=scratch)


def _round_to_half(network: Network) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.to(torch.float16))


_OF_ONE = {
    "dqn": ("n_step", "double", "replay", "warmup", "replay_ratio", "minibatch", "target_every"),
    "pqn": ("steady", "averaging"),
}
"""Settings that only one algorithm has."""


def _check(config: TrainConfig) -> None:
    """Raises a `UserError` for what no environment could make right."""
    check_numbers(
        config,
        least={
            "steps": 1, "seed": 0, "n_step": 1, "replay": 1, "warmup": 0, "target_every": 1, "averaging": 1, "epsilon_steps": 0,
            "max_episode_steps": 1, "final_episodes": 0, "checkpoint_seconds": 0,
        },
        positive=["learning_rate"],
        shares=["discount", "epsilon_end"],
        within={
            "num_envs": (1, MOST_ENVIRONMENTS), "minibatch": (1, MOST_SAMPLES), "epsilon_repeats": (1, 1_000_000),
            "replay_ratio": (0, 10_000),
        },
    )  # fmt: skip
    if config.algo not in ("dqn", "pqn"):
        raise UserError(f"--algo is dqn or pqn, not {config.algo!r}")
    for algorithm, names in _OF_ONE.items():
        set_in_vain = [name for name in names if getattr(config, name) != getattr(TrainConfig, name)]
        if set_in_vain and config.algo != algorithm:
            raise UserError(f"--{set_in_vain[0].replace('_', '-')} is for --algo {algorithm}; {config.algo} has none")
    if any(not 0 < share < 1 for share in config.snapshots):
        raise UserError(f"--snapshots are shares of the training between 0 and 1, not {config.snapshots}")
    if len({f"{share:g}" for share in config.snapshots}) < len(config.snapshots):
        raise UserError(f"--snapshots names a share twice: {config.snapshots}")
    if config.weights_dtype not in ("float32", "float16"):
        raise UserError(f"--weights-dtype is float32 or float16, not {config.weights_dtype!r}")


def _kind(task: Task) -> Literal["vector", "grid", "image"]:
    """What defaults follow from."""
    if len(task.observation_shape) == 1:
        return "vector"
    return "image" if is_large_image(task.observation_shape) else "grid"


def _resolve(config: TrainConfig, task: Task) -> dict[str, Any]:
    """The configuration with nothing left to default that the algorithm reads, as JSON data, without what does not change
    the result; what the machine decides (`bfloat16`) is left to it, so that another one can go on."""
    kind = _kind(task)
    defaults: dict[str, Any] = {
        "network": {"vector": "mlp:128,128", "grid": "cnn:16:128", "image": "dqn"}[kind],
        "clip_rewards": task.frame_skip > 1,
        "lives_as_episodes": task.frame_skip > 1,
    }
    if config.algo == "pqn":
        defaults |= {
            "num_envs": {"vector": 16, "grid": 128, "image": 64}[kind],
            "learning_rate": {"vector": 1e-3, "grid": 5e-4, "image": 2.5e-4}[kind],
            "epsilon_steps": min(config.steps // 6, 400_000),
        }
    else:
        defaults |= {
            "num_envs": 8 if kind == "vector" else 16,
            "learning_rate": {"vector": 1e-3, "grid": 2.5e-4, "image": 1e-4}[kind],
            "epsilon_steps": config.steps // 2 if kind == "vector" else min(config.steps // 6, 250_000),
            "warmup": min({"vector": 1_000, "grid": 5_000, "image": 20_000}[kind], config.steps // 10),
            "replay_ratio": {"vector": 16.0, "grid": 16.0, "image": 8.0}[kind],
            "minibatch": 128,
            "target_every": {"vector": 100, "grid": 125, "image": 500}[kind],
        }
    settings = asdict(config)
    for name in ("checkpoint_seconds", "tensorboard", "device", "env_kwargs"):  # the last are in the task
        del settings[name]
    return settings | {name: default for name, default in defaults.items() if settings[name] is None}


def _learning(settings: dict[str, Any], task: Task) -> DQNSettings | PQNSettings:
    """The learner's own settings: the papers' but for what `docs/train.md` lists; small observations take smaller minibatches."""
    if settings["algo"] == "pqn":
        kinds = {
            "vector": PQNSettings(minibatch=64, epochs=4),
            "grid": PQNSettings(minibatch=128),
            "image": PQNSettings(),
        }
        return replace(kinds[_kind(task)], steady=settings["steady"], averaging=settings["averaging"])
    least = settings["num_envs"] * (settings["n_step"] + task.frame_stack)
    if settings["replay"] < least:
        raise UserError(
            f"--replay is at least {least} for {settings['num_envs']} environments and {settings['n_step']}-step returns, "
            f"not {settings['replay']}"
        )
    if settings["warmup"] >= settings["steps"]:
        raise UserError(
            f"--warmup {settings['warmup']} leaves none of --steps {settings['steps']} for learning: take fewer"
        )
    learning = DQNSettings(
        capacity=settings["replay"],
        n_step=settings["n_step"],
        double=settings["double"],
        warmup=settings["warmup"],
        replay_ratio=settings["replay_ratio"],
        minibatch=settings["minibatch"],
        target_every=settings["target_every"],
        slack=min(settings["replay"], DQNSettings.slack),
    )
    if not updates_due(settings["steps"], settings["num_envs"], task.frame_stack, learning):
        raise UserError(
            f"--steps {settings['steps']} end before the first update: take more, or a smaller --minibatch ({learning.minibatch}), "
            f"a larger --replay-ratio ({learning.replay_ratio:g}) or a shorter --warmup ({learning.warmup})"
        )
    return learning
