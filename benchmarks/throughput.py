"""How fast the pipeline runs, and what holds it back.

Measures in one run, in turns so that a drift of the machine meets all of them: the bare rates (environment steps, teacher
labels, student acting, student training, each alone) and the pipeline's rate; prints the pipeline's share of the serial bound

    1 / (1/env + 1/label + 1/act + updates_per_step/train + composites_per_step/label_composites)

(the last term is the teacher's labels of what `--augment` makes up, in batches as the pipeline makes them), with all
environments driven by the student, so that every term is there. Run it on an idle machine:

    python benchmarks/throughput.py [--teacher policies/pong] [--student net2] [--rounds 5]
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro

from rldistill.actions import chosen, score_width, uniform_actions
from rldistill.distillation import DistillConfig, Update, checked, make_stream
from rldistill.envs import Environments
from rldistill.losses import parse_loss
from rldistill.machine import keep_freed_memory
from rldistill.networks import Architecture, build
from rldistill.policies import load_policy
from rldistill.progress import Silent, table
from rldistill.streams import minibatches
from rldistill.types import as_tensor


@dataclass(frozen=True)
class Options:
    """What is measured."""

    teacher: Path = Path("policies/pong")
    student: str = "net2"
    rounds: int = 5
    """Of all rates, in turns."""
    seconds: float = 3.0
    """Of each measurement."""
    json: Path | None = None
    """Also write the figures to this file."""


def rate(work: Callable[[], int], seconds: float) -> float:
    """Units a second of repeated `work`, which returns the units it did."""
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        done += work()
    return done / (time.perf_counter() - began)


def main(options: Options) -> None:
    """Measures and prints."""
    keep_freed_memory()
    teacher = load_policy(options.teacher)
    task = teacher.task
    config = checked(
        replace(DistillConfig(), student=options.student, driver="student", warmup=1_000, steps=200_000, augment=0.5)
    )
    loss = parse_loss(config.loss, teacher.score_kind, task.action_sizes)
    width = score_width(task, loss.score_kind)
    network = build(Architecture(config.student, task.observation_shape, width), 0, loss.score_kind)
    network.bfloat16 = config.bfloat16
    update = Update(network, loss, config, 100_000, task, teacher.score_kind)
    environments = Environments(task, config.num_envs, 1)
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        stream = make_stream(teacher, network, task, config, Path(scratch), Silent())
        update.fit(stream.examples())
        item = next(stream)
        batch = minibatches(item, config.batch_size)[0]

        def step() -> int:
            environments.step(uniform_actions(task, config.num_envs, generator))
            return config.num_envs

        def label() -> int:
            teacher(as_tensor(environments.observations))
            return config.num_envs

        made = round((config.augment or 0.0) * len(item[task].values))

        def label_composites() -> int:
            teacher(item[task].observations[:made])
            return made

        def act() -> int:
            network.eval()
            with torch.no_grad():
                chosen(network(as_tensor(environments.observations)), loss.score_kind, task)
            return config.num_envs

        def train() -> int:
            update(batch)
            return 1

        def pipeline() -> int:
            before = stream.teacher_steps + stream.student_steps
            for _ in range(4):
                for batches in minibatches(next(stream), config.batch_size):
                    update(batches)
            return stream.teacher_steps + stream.student_steps - before

        works = {"env": step, "label": label, "act": act, "train": train}
        updates_per_step = config.samples_per_step / config.batch_size
        a_step = {"env": 1.0, "label": 1.0, "act": 1.0, "train": updates_per_step}
        if made:
            works["label composites"] = label_composites
            a_step["label composites"] = config.samples_per_step * (config.augment or 0.0)
        works["pipeline"] = pipeline
        rates: dict[str, list[float]] = {name: [] for name in works}
        shares = []
        for turn in range(options.rounds + 1):
            for name, work in works.items():
                measured = rate(work, options.seconds if turn else 0.5)
                if turn:  # the first is a warm-up
                    rates[name].append(measured)
            if turn:
                shares.append(rates["pipeline"][-1] * sum(times / rates[name][-1] for name, times in a_step.items()))
        stream.close()
    median = {name: float(np.median(values)) for name, values in rates.items()}
    cost = {name: times / median[name] for name, times in a_step.items()}
    units = {"env": "steps/s", "label": "states/s", "act": "states/s", "train": "updates/s", "pipeline": "steps/s",
             "label composites": "states/s"}  # fmt: skip
    rows = []
    for name, values in rates.items():
        microseconds = 1e6 * cost[name] if name in cost else 1e6 / median[name]
        rows.append(
            {
                "alone": name,
                "median": f"{median[name]:,.0f} {units[name]}",
                "range": f"{min(values):,.0f} to {max(values):,.0f}",
                "µs a control step": f"{microseconds:.0f}",
            }
        )
    table(rows)
    bound = 1 / sum(cost.values())
    print(
        f"{config.student} of {options.teacher}: {config.batch_size} samples an update, {updates_per_step:g} updates a control step"
    )
    print(f"serial bound {bound:,.0f} steps/s; the pipeline's share of it: median {np.median(shares):.2f}, "
          f"{min(shares):.2f} to {max(shares):.2f} over {options.rounds} rounds")  # fmt: skip
    if options.json is not None:
        options.json.write_text(
            json.dumps({"rates": rates, "shares": shares, "updates_per_step": updates_per_step}, indent=2)
        )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
