"""How fast the pipeline runs, and what holds it back.

Measures in one run, in turns so that a drift of the machine meets all of them: the bare rates (environment steps, teacher
labels, student acting, student training, each alone) and the pipeline's rate; prints the pipeline's share of the serial bound

    1 / (1/env + 1/label + 1/act + updates_per_step/train + composites_per_step/label_composites)

(the last term is the teacher's labels of what `--augment` makes up, in batches as the pipeline makes them), with all
environments driven by the student, so that every term is there. Run it on an idle machine:

    python benchmarks/throughput.py [--teacher policies/pong] [--student net2] [--rounds 5]

With several teachers it measures, in turns as well, a run of all their tasks and a run of the first one's task alone with as
many environments in all and the same torso, and prints the ratio of their control steps a second:

    python benchmarks/throughput.py --tasks policies/pong policies/freeway policies/qbert --student multi3
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

from rldistill.configurations import changed
from rldistill.lessons.streams import Stream, minibatches
from rldistill.machine import keep_freed_memory
from rldistill.play.actions import chosen, uniform_actions
from rldistill.play.envs import Environments
from rldistill.policies import load_policy
from rldistill.progress import Silent, table
from rldistill.students.fitting import GradientFitting
from rldistill.students.networks import Network
from rldistill.students.objectives import Match
from rldistill.types import Lesson, as_tensor
from rldistill.verbs.distill import DistillConfig, checked
from rldistill.verbs.distill.streams import make_stream
from rldistill.verbs.distill.teaching import make_student, teaching_of


@dataclass(frozen=True)
class Options:
    """What is measured."""

    teacher: Path = Path("policies/pong")
    tasks: tuple[Path, ...] = ()
    """Teachers of several tasks: measure one student of all of them beside one of the first."""
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


def in_turns(works: Mapping[str, Callable[[], int]], rounds: int, seconds: float) -> dict[str, list[float]]:
    """The rates of several works, one measurement a round of each, so that a drift of the machine meets all of them."""
    rates: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            measured = rate(work, seconds if turn else 0.5)
            if turn:  # the first is a warm-up
                rates[name].append(measured)
    return rates


def shares_of_bound(rates: Mapping[str, list[float]], a_step: Mapping[str, float]) -> list[float]:
    """Each round's rate of the pipeline by its serial bound.

    Args:
        rates: of `in_turns`, one of them named `pipeline`, in control steps a second.
        a_step: units of each other work that one control step needs.
    """
    return [
        pipeline * sum(times / rates[name][turn] for name, times in a_step.items())
        for turn, pipeline in enumerate(rates["pipeline"])
    ]


def rows_of(
    rates: Mapping[str, list[float]], a_step: Mapping[str, float], units: Mapping[str, str]
) -> list[dict[str, str]]:
    """Rows for `progress.table`: each rate with its range, and what it costs a control step."""
    rows = []
    for name, values in rates.items():
        median = float(np.median(values))
        rows.append(
            {
                "alone": name,
                "median": f"{median:,.0f} {units[name]}",
                "range": f"{min(values):,.0f} to {max(values):,.0f}",
                "µs a control step": f"{1e6 * a_step.get(name, 1.0) / median:.0f}",
            }
        )
    return rows


def pipeline_of(
    teachers: Sequence[Path], student: str, num_envs: int, scratch: Path
) -> tuple[Callable[[], int], Stream]:
    """A run of the teachers' tasks, which plays and learns at each call and returns the control steps of it; and its stream."""
    config = checked(changed(DistillConfig(), student=student, driver="student", steps=200_000, num_envs=num_envs))
    policies = [load_policy(path) for path in teachers]
    teachings = [
        teaching_of(policy, str(path), policy.task, config) for policy, path in zip(policies, teachers, strict=True)
    ]
    network, config = make_student(teachings, config)
    stream = make_stream(teachings, network, config, scratch, Silent())
    objectives = {
        lesson: Match(teaching.loss, lesson.task, teaching.teacher.score_kind, config.matching)
        for lesson, teaching in zip(stream.lessons, teachings, strict=True)
    }
    fitting = GradientFitting(network, objectives, config.optimization, 1_000_000, config.seed)
    fitting.fit(stream.examples())

    def work() -> int:
        before = stream.teacher_steps + stream.student_steps
        for _ in range(4 * len(teachers)):
            for batches in minibatches(next(stream), config.batches.batch_size):
                fitting(batches)
        return stream.teacher_steps + stream.student_steps - before

    return work, stream


def compare_tasks(options: Options) -> None:
    """Measures and prints a run of several tasks beside one of the first task."""
    number, each = len(options.tasks), DistillConfig().driving.num_envs
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        several, stream = pipeline_of(options.tasks, options.student, each, Path(one))
        single, alone = pipeline_of(options.tasks[:1], options.student, each * number, Path(other))
        rates = in_turns({f"{number} tasks": several, "one task": single}, options.rounds, options.seconds)
        stream.close()
        alone.close()
    rows = [
        {
            "run": name,
            "control steps/s": f"{np.median(values):,.0f}",
            "range": f"{min(values):,.0f} to {max(values):,.0f}",
        }
        for name, values in rates.items()
    ]
    table(rows)
    ratios = np.array(rates[f"{number} tasks"]) / np.array(rates["one task"])
    share = f"{np.median(ratios):.2f}, {ratios.min():.2f} to {ratios.max():.2f} over {options.rounds} rounds"
    print(
        f"{options.student}, {each * number} environments in all: control steps a second of {number} tasks by those of one: {share}"
    )


def main(options: Options) -> None:
    """Measures and prints."""
    keep_freed_memory()
    if options.tasks:
        compare_tasks(options)
        return
    teacher = load_policy(options.teacher)
    task = teacher.task
    config = checked(changed(DistillConfig(), student=options.student, driver="student", steps=200_000))
    teaching = teaching_of(teacher, str(options.teacher), task, config)
    network, config = make_student([teaching], config)
    assert isinstance(network, Network)
    lesson = Lesson.of(task)
    objective = Match(teaching.loss, task, teacher.score_kind, config.matching)
    update = GradientFitting(network, {lesson: objective}, config.optimization, 100_000, config.seed)
    environments = Environments(task, config.driving.num_envs, 1)
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        stream = make_stream([teaching], network, config, Path(scratch), Silent())
        update.fit(stream.examples())
        item = next(stream)
        batch = minibatches(item, config.batches.batch_size)[0]

        def step() -> int:
            environments.step(uniform_actions(task, config.driving.num_envs, generator))
            return config.driving.num_envs

        def label() -> int:
            teacher(as_tensor(environments.observations))
            return config.driving.num_envs

        made = round((config.batches.augment or 0.0) * len(item[lesson].values))

        def label_composites() -> int:
            teacher(item[lesson].observations[:made])
            return made

        def act() -> int:
            network.eval()
            with torch.no_grad():
                chosen(network(as_tensor(environments.observations)), teaching.loss.score_kind, task)
            return config.driving.num_envs

        def train() -> int:
            update(batch)
            return 1

        def pipeline() -> int:
            before = stream.teacher_steps + stream.student_steps
            for _ in range(4):
                for batches in minibatches(next(stream), config.batches.batch_size):
                    update(batches)
            return stream.teacher_steps + stream.student_steps - before

        works = {"env": step, "label": label, "act": act, "train": train}
        samples = config.batches.samples_per_step
        updates_per_step = samples / config.batches.batch_size
        a_step = {"env": 1.0, "label": 1.0, "act": 1.0, "train": updates_per_step}
        if made:
            works["label composites"] = label_composites
            a_step["label composites"] = samples * (config.batches.augment or 0.0)
        works["pipeline"] = pipeline
        rates = in_turns(works, options.rounds, options.seconds)
        stream.close()
    shares = shares_of_bound(rates, a_step)
    units = {"env": "steps/s", "label": "states/s", "act": "states/s", "train": "updates/s", "pipeline": "steps/s",
             "label composites": "states/s"}  # fmt: skip
    table(rows_of(rates, a_step, units))
    bound = 1 / sum(times / float(np.median(rates[name])) for name, times in a_step.items())
    print(
        f"{config.student} of {options.teacher}: {config.batches.batch_size} samples an update, "
        f"{updates_per_step:g} updates a control step"
    )
    print(f"serial bound {bound:,.0f} steps/s; the pipeline's share of it: median {np.median(shares):.2f}, "
          f"{min(shares):.2f} to {max(shares):.2f} over {options.rounds} rounds")  # fmt: skip
    if options.json is not None:
        options.json.write_text(
            json.dumps({"rates": rates, "shares": shares, "updates_per_step": updates_per_step}, indent=2)
        )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
