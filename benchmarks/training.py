"""How fast teachers are trained, and what holds it back.

Measures in one run, in turns so that a drift of the machine meets all of them: the bare rates (environment steps, acting,
gradient steps, each alone) and the rate of the whole learner, for DQN and PQN with the defaults of `rldistill train`; prints
the learner's share of the serial bound

    1 / (1/env + 1/act + updates_per_step/learn)

Beside it, on Atari, runs Stable-Baselines3's DQN on the same game, with the same network and replay ratio and its own wrappers
and vector environment (pip install stable-baselines3 opencv-python), twice: as its zoo of trained agents has it (one
environment, 32 samples every 4 control steps), and with our number of environments and minibatch. Warm-ups are not counted.
Run it on an idle machine:

    python benchmarks/training.py [--env PongNoFrameskip-v4] [--algos dqn pqn] [--rounds 5]
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from throughput import in_turns, rows_of, shares_of_bound

from rldistill.configurations import changed
from rldistill.lessons.dqn import DQN
from rldistill.lessons.pqn import PQN
from rldistill.machine import keep_freed_memory, machine_in_words, torch_device
from rldistill.play.actions import uniform_actions
from rldistill.play.envs import is_atari
from rldistill.progress import table
from rldistill.students.networks import parameter_count
from rldistill.types import as_tensor
from rldistill.verbs.train import TrainConfig, make_learner


@dataclass(frozen=True)
class Options:
    """What is measured."""

    env: str = "PongNoFrameskip-v4"
    algos: tuple[Literal["dqn", "plain-dqn", "pqn"], ...] = ("dqn", "plain-dqn", "pqn")
    """`plain-dqn` is dqn with `--no-double`: what Stable-Baselines3's does."""
    device: str = "auto"
    """Where our networks are, as in `rldistill train`; the peer's are on the processor."""
    sb3: bool = True
    """Stable-Baselines3's DQN beside ours."""
    replay: int = 20_000
    """Control steps in DQN's replay, ours and theirs; small, so that it is soon there."""
    rounds: int = 5
    """Of all rates, in turns."""
    seconds: float = 3.0
    """Of each measurement."""
    json: Path | None = None
    """Also write the figures to this file."""


def works_of(learner: DQN | PQN) -> tuple[dict[str, Callable[[], int]], dict[str, float], str]:
    """What is measured of a learner that is warmed up, how often a control step needs it, and a line about it."""
    environments, network = learner.environments, learner.network
    task, rows = environments.task, environments.num_envs
    generator = np.random.default_rng(0)
    items = learner.learn()
    next(items)

    def step() -> int:
        environments.step(uniform_actions(task, rows, generator))
        return rows

    def act() -> int:
        network.eval()
        with torch.no_grad():
            network(as_tensor(environments.observations)).argmax(dim=1).cpu()
        return rows

    def pipeline() -> int:
        before = learner.control_steps
        next(items)
        return learner.control_steps - before

    learn: Callable[[], object]
    if isinstance(learner, DQN):
        while not learner.updates:
            next(items)
        minibatch, drawn, dqn = learner.settings.minibatch, learner.draw(), learner
        updates_per_step = learner.settings.replay_ratio / minibatch

        def learn() -> object:
            return dqn.fit(drawn)
    else:
        minibatch, pqn = learner.settings.minibatch, learner
        updates_per_step = learner.settings.epochs / minibatch
        observations = as_tensor(environments.observations)
        observations = observations.repeat(-(-minibatch // rows), *[1] * (observations.ndim - 1))[
            :minibatch
        ].contiguous()
        observations = observations.to(network.device)
        actions = torch.zeros(minibatch, dtype=torch.int64, device=network.device)
        targets = torch.zeros(minibatch, device=network.device)

        def learn() -> object:
            network.train()
            return pqn.fit(observations, actions, targets)

    def train() -> int:
        learn()
        if network.device.type == "cuda":
            torch.cuda.synchronize(network.device)
        return 1

    description = f"{rows} environments, {parameter_count(network):,} parameters, {minibatch} samples an update, " \
        f"{updates_per_step:g} updates a control step"  # fmt: skip
    works: dict[str, Callable[[], int]] = {"env": step, "act": act, "learn": train, "pipeline": pipeline}
    return works, {"env": 1.0, "act": 1.0, "learn": updates_per_step}, description


def sb3_work(env: str, learner: DQN, replay: int, rows: int, minibatch: int) -> tuple[Callable[[], int], str]:
    """Some control steps of Stable-Baselines3's DQN with the network and replay ratio of ours, and a line about it.

    Args:
        env: environment id.
        learner: ours.
        replay: control steps kept.
        rows: environments.
        minibatch: samples an update.
    """
    import ale_py
    import cv2
    import gymnasium
    from stable_baselines3 import DQN as Theirs
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    cv2.setNumThreads(torch.get_num_threads())
    gymnasium.register_envs(ale_py)
    settings = learner.settings
    a_round = minibatch / settings.replay_ratio / rows  # steps of all environments together between two updates
    warmup, chunk = 1_000, 512
    model = Theirs(
        "CnnPolicy",
        VecFrameStack(make_atari_env(env, n_envs=rows, seed=0), 4),
        learning_rate=1e-4,
        buffer_size=replay,
        learning_starts=warmup,
        batch_size=minibatch,
        train_freq=(max(round(a_round), 1), "step"),
        gradient_steps=max(round(1 / a_round), 1),
        target_update_interval=int(settings.target_every * settings.minibatch / settings.replay_ratio),
        exploration_fraction=1e-9,
        exploration_final_eps=0.01,  # a random action would not need the network
        optimize_memory_usage=True,
        replay_buffer_kwargs={"handle_timeout_termination": False},
        device="cpu",
    )
    model.learn(warmup + chunk)

    def work() -> int:
        before = model.num_timesteps
        model.learn(chunk, reset_num_timesteps=False)
        return int(model.num_timesteps - before)

    parameters = parameter_count(model.q_net)
    return work, f"{rows} environment{'s' * (rows > 1)}, {parameters:,} parameters, {minibatch} samples an update"


def main(options: Options) -> None:
    """Measures and prints."""
    keep_freed_memory()
    print(f"{options.env} on {machine_in_words(torch_device(options.device))}")
    figures: dict[str, Any] = {}
    works: dict[str, Callable[[], int]] = {}
    peers: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        learners = {}
        for algo in options.algos:
            scratch = Path(folder) / algo
            scratch.mkdir()
            config = TrainConfig.of(steps=100_000_000, algo="pqn", device=options.device)
            if algo != "pqn":
                config = changed(config, algo="dqn", double=algo == "dqn", replay=options.replay, warmup=1_000)
            learners[algo] = make_learner(options.env, config, scratch)
        parts = {algo: works_of(learner) for algo, learner in learners.items()}
        for algo, (own, _, description) in parts.items():
            print(f"{algo}: {description}")
            works |= {f"{algo} {name}": work for name, work in own.items()}
        beside = next((learner for learner in learners.values() if isinstance(learner, DQN)), None)
        if options.sb3 and beside is not None:
            if not is_atari(options.env):
                print("Stable-Baselines3 is compared with on Atari alone")
            else:
                own_sizes = (beside.environments.num_envs, beside.settings.minibatch)
                try:
                    for name, sizes in {"its zoo's sizes": (1, 32), "our sizes": own_sizes}.items():
                        peer = f"Stable-Baselines3's DQN, {name}"
                        works[peer], description = sb3_work(options.env, beside, options.replay, *sizes)
                        peers.append(peer)
                        print(f"{peer}: {description}")
                except ImportError as error:
                    print(f"Stable-Baselines3 is left out, {error.name} is not installed: "
                          "pip install stable-baselines3 opencv-python")  # fmt: skip
        measured = in_turns(works, options.rounds, options.seconds)
        for learner in learners.values():
            learner.environments.close()
    units = {"env": "steps/s", "act": "states/s", "learn": "updates/s", "pipeline": "steps/s"}
    for algo, (_, a_step, _) in parts.items():
        rates = {name: measured[f"{algo} {name}"] for name in units}
        table([{algo: row.pop("alone"), **row} for row in rows_of(rates, a_step, units)])
        shares = shares_of_bound(rates, a_step)
        bound = 1 / sum(times / float(np.median(rates[name])) for name, times in a_step.items())
        print(f"{algo}: serial bound {bound:,.0f} control steps/s; share of it: median {np.median(shares):.2f}, "
              f"{min(shares):.2f} to {max(shares):.2f} over {options.rounds} rounds")  # fmt: skip
        figures[algo] = {"rates": rates, "shares": shares, "a_step": a_step}
    for peer in peers:
        theirs = measured[peer]
        print(f"{peer}: {np.median(theirs):,.0f} control steps/s ({min(theirs):,.0f} to {max(theirs):,.0f})")
        figures[peer] = {"rates": theirs, "ratios": {}}
        for algo in (algo for algo in parts if algo != "pqn"):
            ratios = [ours / other for ours, other in zip(measured[f"{algo} pipeline"], theirs, strict=True)]
            print(f"  {algo} by it: median {np.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")
            figures[peer]["ratios"][algo] = ratios
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
