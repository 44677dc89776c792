"""The verb `train`: an environment becomes a teacher, a policy folder in a run folder."""

from __future__ import annotations

import math
import os
import platform
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

import rldistill
from rldistill.dqn import DQN, DQNSettings
from rldistill.envs import Environments, make_task
from rldistill.machine import keep_freed_memory
from rldistill.networks import Architecture, build, parameter_count
from rldistill.policies import SavedPolicy, load_policy, save_policy
from rldistill.pqn import PQN, PQNSettings
from rldistill.progress import Progress, Silent
from rldistill.rollout import EpsilonGreedy, play
from rldistill.runs import Run, command_line
from rldistill.stats import summarize
from rldistill.types import UserError


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
    """Environments stepped together (dqn 16, pqn 64)."""
    learning_rate: float | None = None
    """dqn: Adam, 1e-4; pqn: RAdam, 2.5e-4 falling linearly to a tenth."""
    discount: float = 0.99
    """Gamma."""
    epsilon_end: float = 0.01
    """Probability of a random action after `epsilon_steps`; it falls linearly from 1."""
    epsilon_steps: int | None = None
    """By default a sixth of `steps`, at most 400,000 (pqn) or 250,000 (dqn)."""
    clip_rewards: bool | None = None
    """Learn from the sign of the rewards alone, as Mnih et al. 2015; by default on Atari only. Scores stay raw."""
    n_step: int = 3
    """dqn: rewards summed before the bootstrap."""
    replay: int = 400_000
    """dqn: control steps kept to learn from (7 kB each on Atari)."""
    sticky_actions: float | None = None
    """Probability of a repeated action; None leaves it to the environment id."""
    bfloat16: bool = True
    """Compute convolutions and products in bfloat16 (weights, targets and the optimizer stay float32)."""
    snapshots: tuple[float, ...] = ()
    """Shares of the training after which the weights are kept as a policy folder in `snapshots/`, such as 0.25 0.5 0.75."""
    checkpoint_seconds: float = 60.0
    """Between two checkpoints. They change nothing in the result."""
    final_episodes: int = 30
    """Games played at the end, with epsilon 0.01, for the score in `policy.json`."""


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
        progress: told how it goes.

    Raises:
        UserError: a wrong configuration, an unknown environment or network, a run folder that cannot be used.
    """
    config, progress = config or TrainConfig(), progress or Silent()
    task = make_task(env, sticky_actions=config.sticky_actions)
    settings = _resolve(config, task.observation_shape, atari=task.frame_skip > 1)
    keep_freed_memory()
    architecture = Architecture(
        settings["network"], task.observation_shape, task.num_actions, "layer" if config.algo == "pqn" else "none"
    )
    network = build(architecture, config.seed)
    run = Run(Path(out), {"verb": "train", "task": task.as_dict()} | settings, resume=resume)
    try:
        if run.finished:
            progress.say(f"{run.path} is finished already: its policy is {run.policy_path}")
            return load_policy(run.policy_path)
        network.bfloat16 = settings["bfloat16"]
        environments = Environments(task, settings["num_envs"], config.seed)
        common: dict[str, Any] = dict(
            steps=config.steps,
            learning_rate=settings["learning_rate"],
            discount=config.discount,
            epsilon_end=config.epsilon_end,
            epsilon_steps=settings["epsilon_steps"],
            clip_rewards=settings["clip_rewards"],
            seed=config.seed,
        )
        learner: PQN | DQN
        if config.algo == "pqn":
            learner = PQN(network, environments, **common, settings=PQNSettings())
        else:
            chosen = DQNSettings(capacity=settings["replay"], n_step=config.n_step)
            learner = DQN(network, environments, **common, settings=chosen, scratch=run.scratch)
        recent: deque[float] = deque(maxlen=100)
        spent, began = 0.0, time.monotonic()
        if run.state is not None:
            progress.say(f"resuming {run.path} at {run.state['learner']['control_steps']:,} control steps")
            learner.load_state_dict(run.state["learner"])
            recent.extend(run.state["recent"])
            spent = float(run.state["seconds"])
        first = learner.control_steps

        def seconds() -> float:
            return spent + time.monotonic() - began

        def keep() -> None:
            run.checkpoint({"learner": learner.state_dict(), "recent": list(recent), "seconds": seconds()})

        def provenance() -> dict[str, Any]:
            return {
                "made_by": f"rldistill {rldistill.__version__}",
                "command": command_line(),
                "algorithm": config.algo,
                "configuration": settings,
                "control_steps": learner.control_steps,
                "updates": learner.updates,
                "training_seconds": round(seconds(), 1),
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            }

        saved = time.monotonic()
        due = [share for share in sorted(config.snapshots) if share * config.steps > learner.control_steps]
        progress.start(f"train {task.env} ({config.algo})", config.steps, "steps", done=first)
        try:
            items = learner.learn()
            while learner.control_steps < config.steps:
                record = next(items)
                if not math.isfinite(record["loss"]):
                    raise UserError(f"the loss became {record['loss']} after {learner.control_steps} steps: lower --learning-rate")
                recent.extend(record["returns"])
                score = float(np.mean(recent)) if recent else math.nan
                run.log(control_steps=learner.control_steps, seconds=round(seconds(), 2), **record)
                progress.update(learner.control_steps, loss=record["loss"], epsilon=record["epsilon"], score=score)
                while due and learner.control_steps >= due[0] * config.steps:
                    share = due.pop(0)
                    save_policy(run.path / "snapshots" / f"{share:g}", network, task, provenance(), dtype="float16")
                if time.monotonic() - saved >= config.checkpoint_seconds:
                    keep()
                    saved = time.monotonic()
        except KeyboardInterrupt:
            keep()
            raise
        finally:
            environments.close()
        keep()
        network.eval()
        network.bfloat16 = False  # whoever loads it computes in float32
        progress.start("final score", config.final_episodes, "games")
        returns = play(
            task,
            lambda generator: EpsilonGreedy(network, task.num_actions, 0.01, generator),
            config.final_episodes,
            config.seed + 1_000_000,
            heard=progress.update,
        )
        summary = summarize(returns, seed=config.seed)
        score = {
            "episodes": len(returns), "epsilon": 0.01, "mean": summary.mean, "iqm": summary.iqm,
            "ci_low": summary.ci_low, "ci_high": summary.ci_high, "returns": returns.tolist(),
        }  # fmt: skip
        run.log(event="final_score", **score)
        save_policy(run.policy_path, network, task, provenance() | {"score": score})
        progress.say(
            f"{parameter_count(network):,} parameters, mean return {summary.mean:.1f} "
            f"[{summary.ci_low:.1f}, {summary.ci_high:.1f}] over {len(returns)} games: {run.policy_path}"
        )
        run.clean()
        return load_policy(run.policy_path)
    finally:
        run.close()


def _resolve(config: TrainConfig, shape: tuple[int, ...], *, atari: bool) -> dict[str, Any]:
    """The configuration with nothing left to default, as JSON data, without what does not change the result."""
    if config.steps < 1:
        raise UserError(f"--steps is at least 1, not {config.steps}")
    if config.final_episodes < 1:
        raise UserError(f"--final-episodes is at least 1, not {config.final_episodes}")
    if any(not 0 < share < 1 for share in config.snapshots):
        raise UserError(f"--snapshots are shares of the training between 0 and 1, not {config.snapshots}")
    pqn = config.algo == "pqn"
    network = "mlp:128,128" if len(shape) == 1 else "dqn" if min(shape[1:]) >= 36 else "cnn:16:128"
    defaults = {
        "network": network,
        "num_envs": 64 if pqn else 16,
        "learning_rate": 2.5e-4 if pqn else 1e-4,
        "epsilon_steps": min(config.steps // 6, 400_000 if pqn else 250_000),
        "clip_rewards": atari,
    }
    settings = asdict(config)
    for name in ("checkpoint_seconds",):
        del settings[name]
    for name, default in defaults.items():
        if settings[name] is None:
            settings[name] = default
    if settings["learning_rate"] <= 0:
        raise UserError(f"--learning-rate is positive, not {settings['learning_rate']}")
    if settings["num_envs"] < 1:
        raise UserError(f"--num-envs is at least 1, not {settings['num_envs']}")
    return settings
