"""The verb `train`: an environment, or several, becomes a teacher, a policy folder in a run folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, overload

import torch

from rldistill.arguments import checked_arguments
from rldistill.configurations import flat
from rldistill.datasets.shards import CARD, UNLABELLED
from rldistill.files import replace_file
from rldistill.lessons.dqn import DQN, DQNSettings
from rldistill.lessons.joint import Joint
from rldistill.lessons.ppo import PPO
from rldistill.lessons.pqn import PQN, PQNSettings
from rldistill.machine import device_failures, keep_freed_memory, machine_in_words, torch_device, usual_torch
from rldistill.play.envs import Environments, cut_in_words
from rldistill.play.games import play_scored
from rldistill.play.rollout import Resumable
from rldistill.policies import MultiTaskPolicy, SavedPolicy, add_provenance, load_heads, load_policy
from rldistill.progress import Progress, Silent
from rldistill.runs.loop import Hook, Pace, say_once, work_through
from rldistill.runs.provenance import command_line, made_by
from rldistill.runs.records import FinalScore, curve_csv
from rldistill.runs.writing import Run, older_defaults
from rldistill.stats import games_in_words, with_interval
from rldistill.students.heads import MultiTaskNetwork
from rldistill.students.networks import Network, parameter_count
from rldistill.teachers import card_of
from rldistill.types import check_boolean, plain_numbers
from rldistill.verbs.train.config import TrainConfig
from rldistill.verbs.train.learners import Plan, as_resolved, make_learner_of, make_network, make_plans, views_of
from rldistill.verbs.train.recording import Recorded, held_recording, label_recording, spread_evenly
from rldistill.verbs.train.work import Training, snapshots_of

__all__ = ["TrainConfig", "make_learner", "train"]


@overload
def train(
    env: str,
    out: str | os.PathLike[str],
    config: TrainConfig | None = None,
    *,
    resume: bool = False,
    progress: Progress | None = None,
) -> SavedPolicy: ...


@overload
def train(
    env: Sequence[str],
    out: str | os.PathLike[str],
    config: TrainConfig | None = None,
    *,
    resume: bool = False,
    progress: Progress | None = None,
) -> SavedPolicy | MultiTaskPolicy: ...


@usual_torch()
@checked_arguments
def train(
    env: str | Sequence[str],
    out: str | os.PathLike[str],
    config: TrainConfig | None = None,
    *,
    resume: bool = False,
    progress: Progress | None = None,
) -> SavedPolicy | MultiTaskPolicy:
    """Trains a teacher and returns it as it stands in `out/policy`.

    Args:
        env: environment id, as in `make_task`; or a sequence of several that one network learns together, with a head for each.
        out: run folder, made here.
        config: see `TrainConfig`.
        resume: go on with the run in `out`; the result is the same as without the interruption.
        progress: shows how it goes.

    Raises:
        UserError: a wrong configuration, an unknown environment or network, a run folder that cannot be used.
    """
    check_boolean("resume", resume)
    config, progress = plain_numbers(config or TrainConfig()), progress or Silent()
    plans = make_plans(env, config)
    network = make_network(plans).to(torch_device(config.device))
    keep_freed_memory()
    resolved = as_resolved(plans)
    tasks = [plan.task.as_dict() for plan in plans]
    named = {"verb": "train", "task": tasks if len(tasks) > 1 else tasks[0]}
    with (
        held_recording(config.output.record, resume=resume) as recording,
        _run(out, config, named | resolved, resume=resume) as run,
    ):
        made_before = run.result(load_heads, progress.say, games=config.output.final_episodes)
        if made_before is not None:
            _label(recording, run, progress)
            scored = run.folder.scored or not config.output.final_episodes
            return made_before if scored else _finished(run, resolved, progress)
        watched = [] if recording is None else [partial(_recorded, recording)]
        work = Training(make_learner_of(plans, network, run.scratch, *watched), config.steps)
        try:
            if run.state is not None:
                work.load_state_dict(run.state)
                progress.say(f"resuming {run.path} at {work.learner.control_steps:,} control steps")
            made = partial(_provenance, work, resolved)
            _learn(work, config, run, made, progress)
        finally:
            work.close()
        _keep(work, config, run, made())
        _label(recording, run, progress)
        return _finished(run, resolved, progress)


_OLDER = {"lives_as_episodes": False}
"""What runs from before an option did, where it is not what its default stands for."""


def _run(out: str | os.PathLike[str], config: TrainConfig, resolved: dict[str, Any], *, resume: bool) -> Run:
    defaults = older_defaults(flat(TrainConfig()), flat(config), resolved) | _OLDER
    defaults |= {"dqn": asdict(DQNSettings()), "pqn": asdict(PQNSettings())}
    return Run(Path(out), resolved, resume=resume, defaults=defaults, tensorboard=config.output.tensorboard)


def _learn(
    work: Training, config: TrainConfig, run: Run, made: Callable[[], dict[str, Any]], progress: Progress
) -> None:
    """From where the run stands to its last control step."""
    names = " and ".join(task.env for task in work.tasks)
    safe = "go on from the last checkpoint with --resume (and --device cpu), or take a smaller --network"
    with device_failures(safe):
        work_through(
            work,
            f"train {names} ({config.algo})",
            progress,
            save=lambda: run.checkpoint(work.state_dict()),
            log=run.log,
            hooks=[
                *[_cut_remark(learner.environments, progress) for learner in work.learners.values()],
                snapshots_of(work, config.output.snapshots, run.path / "snapshots", made),
            ],
            on_stop=lambda: progress.say(f"stopped at {work.done:,} control steps: go on with --resume"),
            pace=Pace(saving=config.output.checkpoint_seconds, showing=0.0),  # a round takes long enough
        )


def _cut_remark(environments: Resumable, progress: Progress) -> Hook:
    """Says once when endless games are cut."""
    return say_once(lambda: environments.cut > 0, lambda: cut_in_words(environments.task), progress.say)


def _provenance(work: Training, resolved: dict[str, Any]) -> dict[str, Any]:
    network = views_of(work.learner.network)[0]
    return {
        "made_by": made_by(),
        "command": command_line(),
        "algorithm": resolved["algo"],
        "configuration": resolved,
        "control_steps": work.learner.control_steps,
        "updates": work.learner.updates,
        "training_seconds": round(work.clock.seconds, 1),
        "cpu_seconds": round(work.clock.cpu_seconds, 1),
        "machine": machine_in_words(network.device),
        "arithmetic": network.arithmetic,
    }


def _keep(work: Training, config: TrainConfig, run: Run, made: dict[str, Any]) -> None:
    """Writes the policy, with its learning curve beside it."""
    network = work.learner.policy.eval().cpu()
    for view in views_of(network):
        view.bfloat16 = False  # whoever loads it computes in float32
    if config.output.weights_dtype == "float16":
        _round_to_half(network)
    with suppress(OSError):  # what follows reports a full disk
        run.policy_path.mkdir(exist_ok=True)
    replace_file(run.policy_path / "curve.csv", curve_csv(run.folder.records()[0]))
    work.save(run.policy_path, network, made, config.output.weights_dtype)


def _recorded(recording: Path, environments: Environments, plan: Plan) -> Recorded:
    """Environments whose control steps are written to the folder of a recording."""
    settings, rows = plan.settings, environments.num_envs
    stretches = spread_evenly(plan.own.item_times(rows), rows, settings["steps"], settings["record_steps"])
    return Recorded(environments, recording, stretches, settings)


def _label(recording: Path | None, run: Run, progress: Progress) -> None:
    """Gives what was recorded the labels of the run's policy, unless it has them."""
    if recording is not None and (recording / UNLABELLED / CARD).is_file():
        policy = load_policy(run.policy_path)
        label_recording(recording, policy, card_of(policy, str(run.policy_path)), progress)


def _finished(run: Run, settings: Mapping[str, Any], progress: Progress) -> SavedPolicy | MultiTaskPolicy:
    """Plays the final games and adds their scores to the policy, which is safe by now. Nothing else holds an environment."""
    policy = load_heads(run.policy_path)
    lines = ["no final games were played, so there is no score"]
    if settings["final_episodes"]:
        if isinstance(policy, SavedPolicy):
            scores = {"": _final_games(policy, "", settings, progress)}
        else:
            scores = {name: _final_games(policy.view(name), name, settings, progress) for name in policy.tasks}
        for name, final in scores.items():
            run.log(FinalScore(lesson=name or None, **final))
        add_provenance(run.policy_path, {"score": scores[""]} if "" in scores else {"scores": scores})
        lines = [_in_words(name, final) for name, final in scores.items()]
    progress.say(f"{parameter_count(policy.network):,} parameters, {', '.join(lines)}: {run.policy_path}")
    run.clean()
    return load_heads(run.policy_path)


def _final_games(policy: SavedPolicy, name: str, settings: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """The score of a policy, or of the head with this name."""
    games = settings["final_episodes"]
    progress.start("final score" + (f" in {name}" if name else ""), games, "games")
    return play_scored(
        policy.task,
        policy,
        games,
        0.01,
        settings["seed"],
        num_envs=1 if settings["num_envs"] == 1 else 10,
        on_progress=progress.update,
        on_line=progress.say,
    )


def _in_words(name: str, final: Mapping[str, Any]) -> str:
    mean = with_interval(final["mean"], final["ci_low"], final["ci_high"])
    of_task = f" in {name}" if name else ""
    return f"mean return {mean}{of_task} over {games_in_words(final['episodes'], final['distinct'])}"


@usual_torch()
def make_learner(env: str | Sequence[str], config: TrainConfig, scratch: Path) -> DQN | PQN | PPO | Joint:
    """What `train` would learn with, fresh, without a run; whoever takes it closes its environments.

    Args:
        env: environment id or ids, as in `train`.
        config: see `TrainConfig`.
        scratch: folder for the replays' files.

    Raises:
        UserError: a wrong configuration, an unknown environment or network, no room for the replay.
    """
    plans = make_plans(env, plain_numbers(config))
    return make_learner_of(plans, make_network(plans).to(torch_device(config.device)), scratch)


def _round_to_half(network: Network | MultiTaskNetwork) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.to(torch.float16))
