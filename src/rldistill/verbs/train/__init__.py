"""The verb `train`: an environment becomes a teacher, a policy folder in a run folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rldistill.arguments import checked_arguments
from rldistill.files import replace_file
from rldistill.lessons.dqn import DQN, DQNSettings
from rldistill.lessons.learning import Learning
from rldistill.lessons.pqn import PQN, PQNSettings
from rldistill.machine import device_failures, keep_freed_memory, machine_in_words, torch_device, usual_torch
from rldistill.play.actions import describe
from rldistill.play.envs import Environments, cut_in_words, make_task
from rldistill.play.games import play_scored
from rldistill.policies import SavedPolicy, add_provenance, load_policy, save_policy
from rldistill.progress import Progress, Silent
from rldistill.runs.loop import Pace, say_once, work_through
from rldistill.runs.provenance import command_line, made_by
from rldistill.runs.records import FinalScore, curve_csv
from rldistill.runs.writing import Run, older_defaults
from rldistill.stats import games_in_words, with_interval
from rldistill.students.networks import Architecture, Network, Normalization, build, parameter_count
from rldistill.types import Task, UserError, check_boolean, plain_numbers
from rldistill.verbs.train.config import TrainConfig, check_config, own_settings, resolve
from rldistill.verbs.train.work import Training, snapshots_of

__all__ = ["TrainConfig", "make_learner", "train"]


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
    settings = resolve(config, task)
    device = torch_device(config.device)
    network = _network(settings, task).to(device)
    keep_freed_memory()
    resolved = settings | {config.algo: asdict(own_settings(settings, task))}
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
                snapshots_of(work, config.snapshots, run.path / "snapshots", made),
            ],
            on_stop=lambda: progress.say(f"stopped at {work.done:,} control steps: go on with --resume"),
            pace=Pace(saving=config.checkpoint_seconds, showing=0.0),  # a round takes long enough
        )


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
            policy.task,
            policy,
            games,
            0.01,
            settings["seed"],
            num_envs=1 if settings["num_envs"] == 1 else 10,
            on_progress=progress.update,
            on_line=progress.say,
        )
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
    settings = resolve(config, task)
    return _learner(settings, task, _network(settings, task).to(torch_device(config.device)), scratch)


def _task(env: str, config: TrainConfig) -> Task:
    """What is learnt, if it and the configuration are such as can be."""
    check_config(config)
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
    own = own_settings(settings, task)
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
