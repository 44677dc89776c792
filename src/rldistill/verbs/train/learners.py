"""What a run of `train` learns: its tasks, each with its settings, and the learner on a network for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

from rldistill.lessons.dqn import DQN, DQNSettings
from rldistill.lessons.joint import Joint, joint_dqn, joint_pqn
from rldistill.lessons.learning import Learning
from rldistill.lessons.ppo import PPO, PPOSettings
from rldistill.lessons.pqn import PQN, PQNSettings
from rldistill.play.actions import describe, score_width
from rldistill.play.envs import Environments, make_task
from rldistill.play.regions import Region, parse_region
from rldistill.play.replay import own_scratch
from rldistill.play.rollout import Resumable
from rldistill.students.heads import Head, MultiTaskNetwork, build_heads, widest_shape
from rldistill.students.networks import Architecture, Network, Normalization, build
from rldistill.types import ScoreKind, Task, UserError
from rldistill.verbs.train.config import TrainConfig, check_config, own_settings, resolve


class Plan(NamedTuple):
    """A task, and how it is learnt."""

    task: Task
    settings: Mapping[str, Any]
    """With the defaults of its algorithm, as JSON data."""
    own: DQNSettings | PQNSettings | PPOSettings
    """The learner's own; of several tasks they are all the same."""
    only: Region | None = None
    """The region that is learnt from; None is all states."""

    def learning(self, place: int) -> Learning:
        """The settings that learners share, for the task in a place among all."""
        shared = [field.name for field in fields(Learning) if field.name != "place"]
        return Learning(**{name: self.settings[name] for name in shared}, place=place)


def make_plans(env: str | Sequence[str], config: TrainConfig) -> list[Plan]:
    """The plan of each task, if they and the configuration are such as can be.

    Raises:
        UserError: a wrong configuration, an unknown environment, one without a discrete action, one that is named twice, a region
            that is none of it, or tasks whose observations no network reads together.
    """
    check_config(config)
    names = [env] if isinstance(env, str) else list(env)
    if not names:
        raise UserError("there is no environment: name one, or several that one network is to learn")
    tasks = [_task(name, config) for name in names]
    ids = [task.env for task in tasks]
    twice = [name for place, name in enumerate(ids) if name in ids[:place]]
    if twice:
        raise UserError(f"{twice[0]} is named twice: one network has one head a task, so name it once")
    alone = len(tasks) == 1
    if config.output.record is not None and not alone:
        raise UserError("--record is for one environment: a dataset is of one task")
    only = config.environments.only
    if only is not None and not alone:
        raise UserError("--only is for one environment: a region is of one task")
    if config.algo == "ppo" and not alone:
        raise UserError("--algo ppo is for one environment: dqn and pqn learn several together")
    if not alone:
        widest_shape(_heads(tasks))
    plans = []
    for task in tasks:
        settings = resolve(config, task, alone=alone)
        region = None if only is None else parse_region(only, task)
        plans.append(Plan(task, settings, own_settings(settings, task), region))
    return plans


def _task(env: str, config: TrainConfig) -> Task:
    task = make_task(
        env,
        sticky_actions=config.environments.sticky_actions,
        env_kwargs=config.environments.env_kwargs,
        max_episode_steps=config.environments.max_episode_steps,
    )
    if task.action_sizes or (task.continuous and config.algo != "ppo"):
        needs = "ppo needs one discrete action, or continuous ones"
        if config.algo != "ppo":
            needs = "deep Q-learning needs one discrete action" + ("; take --algo ppo" if task.continuous else "")
        raise UserError(f"{env} has {describe(task)}; {needs}")
    return task


def _heads(tasks: Sequence[Task]) -> dict[str, Head]:
    return {task.env: Head(task.observation_shape, task.choices[0], "q_values") for task in tasks}


def as_resolved(plans: Sequence[Plan]) -> dict[str, Any]:
    """The settings as JSON data; a list where they differ between tasks."""
    together: dict[str, Any] = {}
    for name, first in plans[0].settings.items():
        values = [plan.settings[name] for plan in plans]
        together[name] = first if all(value == first for value in values) else values
    return together | {together["algo"]: asdict(plans[0].own)}


def make_network(plans: Sequence[Plan]) -> Network | MultiTaskNetwork:
    """A fresh network, of several tasks with a head for each.

    Raises:
        UserError: no such network, or it does not suit the observations.
    """
    task, settings = plans[0].task, plans[0].settings
    normalization: Normalization = "layer" if settings["algo"] == "pqn" else "none"
    if len(plans) == 1:
        kind: ScoreKind = "q_values"
        if settings["algo"] == "ppo":
            kind = "gaussian" if task.continuous else "logits"
        width = score_width(task, kind)
        architecture = Architecture(settings["network"], task.observation_shape, width, normalization)
        return build(architecture, settings["seed"], kind)
    heads = _heads([plan.task for plan in plans])
    return build_heads(settings["network"], heads, settings["seed"], normalization=normalization)


def views_of(network: Network | MultiTaskNetwork) -> list[Network]:
    """The network of each task."""
    return [network] if isinstance(network, Network) else [view for _, view in network.views()]


def make_learner_of(
    plans: Sequence[Plan],
    network: Network | MultiTaskNetwork,
    scratch: Path,
    watched: Callable[[Environments, Plan], Resumable] = lambda environments, plan: environments,
) -> DQN | PQN | PPO | Joint:
    """The learner of a run; whoever takes it closes its environments.

    Args:
        plans: of all tasks.
        network: trained in place.
        scratch: folder for the replays' files.
        watched: what the learner plays in place of the environments of a plan.

    Raises:
        UserError: an environment cannot be made, or there is no room for the replays.
    """
    asked = plans[0].settings["bfloat16"]
    for view in views_of(network):
        view.bfloat16 = view.trains_faster_in_bfloat16 if asked is None else asked
    with ExitStack() as failed:
        environments: dict[str, Resumable] = {}
        for plan in plans:
            names = () if plan.only is None else plan.only.names
            made = Environments(plan.task, plan.settings["num_envs"], plan.settings["seed"], watched=names)
            failed.callback(made.close)
            environments[plan.task.env] = watched(made, plan)
        learning = {plan.task.env: plan.learning(place) for place, plan in enumerate(plans)}
        learner = _learner(network, environments, learning, plans[0], scratch)
        failed.pop_all()
    return learner


def _learner(
    network: Network | MultiTaskNetwork,
    environments: Mapping[str, Resumable],
    learning: Mapping[str, Learning],
    plan: Plan,
    scratch: Path,
) -> DQN | PQN | PPO | Joint:
    own = plan.own
    if isinstance(network, MultiTaskNetwork):
        if isinstance(own, PQNSettings):
            return joint_pqn(network, environments, learning, own)
        assert isinstance(own, DQNSettings)
        folders = {task: own_scratch(scratch, place) for place, task in enumerate(environments)}
        return joint_dqn(network, environments, learning, own, folders)
    ((task, alone),) = environments.items()
    if isinstance(own, PQNSettings):
        return PQN(network, alone, learning[task], own, only=plan.only)
    if isinstance(own, PPOSettings):
        return PPO(network, alone, learning[task], own)
    return DQN(network, alone, learning[task], own, scratch=scratch, only=plan.only)
