"""How close students are to their teacher, in states that no run has learnt from.

    python benchmarks/regret.py TEACHER RUN_A RUN_B --env BreakoutNoFrameskip-v4 --json regret.json

Each policy in turn plays full games, of which every so many control steps the state is taken (`--drivers` names those who play):
the first steps of a game say nothing of how it ends. Over all of them: *regret*, the teacher's probability of its best
action less that of the student's action; *slips*, the share of states in which that is above 0.3; *divergence*,
KL(teacher || student) in nats; *agreement*. Scores of games are uncertain by their length and luck; these are means over
thousands of states. They do not say what a slip costs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from torch import Tensor

from rldistill.play.actions import agreement, chosen
from rldistill.play.games import play
from rldistill.play.rollout import EpsilonGreedy, Transition
from rldistill.policies import KeptPolicy
from rldistill.progress import Progress, Talking, table
from rldistill.stats import bootstrap_interval
from rldistill.students.losses import kl
from rldistill.students.targets import auto_temperature
from rldistill.teachers import load_all
from rldistill.types import Observations, UserError, as_tensor
from rldistill.verbs.scoring import task_together

_SLIP = 0.3
"""Regret of an action that the teacher would hardly take."""


@dataclass(frozen=True)
class Options:
    """What is measured."""

    policies: Annotated[tuple[str, ...], tyro.conf.Positional]
    """The teacher first."""
    env: str | None = None
    """Where the files do not say."""
    drivers: tuple[int, ...] = ()
    """Places in the list of policies whose states are taken; by default all."""
    games: int = 12
    """Full games of each driver."""
    apart: int = 25
    """Control steps between two states of a game."""
    epsilon: float = 0.01
    """In the games."""
    seed: int = 1_000
    json: Path | None = None
    """Also write the rows here."""


def main(options: Options) -> None:
    """Plays, compares and prints."""
    with Talking() as progress:
        loaded = load_all(options.policies, env=options.env, progress=progress)
        names, policies, task = (
            [one.name for one in loaded],
            [one.policy for one in loaded],
            task_together(loaded, options.env),
        )
        if task.continuous or task.action_sizes:
            raise UserError(f"{task.env} has no single discrete action, which is what regret is measured of")
        drivers = options.drivers or tuple(range(len(policies)))
        parts = [states_met(policies[place], names[place], options, progress) for place in drivers]
    sizes = [len(part) for part in parts]
    states = torch.cat(parts)
    values = scores_of(policies[0], states)
    preferred = chosen(values, policies[0].score_kind, task)
    temperature = auto_temperature(values, policies[0].score_kind)
    probabilities = (values / temperature).softmax(dim=1)
    best = probabilities.amax(dim=1)
    rows = []
    for name, policy in zip(names[1:], policies[1:], strict=True):
        scores = scores_of(policy, states)
        actions = chosen(scores, policy.score_kind, task)
        regret = (best - probabilities.gather(1, actions[:, None]).squeeze(1)).double()
        low, high = bootstrap_interval([regret.numpy()], seed=options.seed)
        divergence = kl(scores, values, temperature)
        rows.append(
            {
                "policy": name,
                "regret": f"{float(regret.mean()):.4f} [{low:.4f}, {high:.4f}]",
                "slips": f"{float((regret > _SLIP).double().mean()):.4f}",
                "divergence": f"{float(divergence.mean()):.4f}",
                "agreement": f"{float(agreement(actions, preferred, task).mean()):.3f}",
            }
        )
        for driver, part, parted in zip(
            drivers, torch.split(regret, sizes), torch.split(divergence, sizes), strict=True
        ):
            rows[-1][f"states of {names[driver]}"] = f"{float(part.mean()):.4f}, {float(parted.mean()):.4f}"
    table(rows)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


def states_met(policy: KeptPolicy, name: str, options: Options, progress: Progress) -> Tensor:
    """Observations (B, *obs) of one full game a row."""
    met: list[Observations] = []
    going = np.ones(options.games, dtype=np.bool_)
    steps = 0

    def count(transition: Transition) -> None:
        nonlocal going, steps
        if steps % options.apart == 0:
            met.append(transition.observations[going])
        going &= np.isnan(transition.returns)
        steps += 1

    progress.start(f"games of {name}", options.games, "games")
    play(
        policy.task,
        lambda generator: EpsilonGreedy(policy, policy.task, options.epsilon, generator),
        options.games,
        options.seed,
        num_envs=options.games,
        on_progress=progress.update,
        on_step=count,
    )
    return torch.cat([as_tensor(part) for part in met])


def scores_of(policy: KeptPolicy, states: Tensor) -> Tensor:
    """(B, A) float32."""
    with torch.no_grad():
        return torch.cat([policy(part) for part in torch.split(states, 256)])


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
