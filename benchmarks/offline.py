"""Whether reading a recorded dataset slows the student's training.

Measures in one run, in turns: bare student training (updates on one batch, again and again), the teacher's labels of composites,
and training from the dataset, with composites and without. Prints the dataset's size on disk, how long it took to load, and the
shares of the bare rates. Run it on an idle machine, with a dataset made for instance by

    rldistill record --teacher policies/pong --steps 540000 --out data/pong
    python benchmarks/offline.py data/pong
"""

from __future__ import annotations

import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from throughput import in_turns

from rldistill.configurations import changed
from rldistill.datasets import open_dataset
from rldistill.lessons.streams import Composed, Stream, minibatches
from rldistill.machine import keep_freed_memory
from rldistill.policies import load_policy
from rldistill.progress import Talking, table
from rldistill.students.fitting import GradientFitting
from rldistill.students.networks import Network
from rldistill.students.objectives import Match
from rldistill.types import Lesson
from rldistill.verbs.distill import DistillConfig, checked
from rldistill.verbs.distill.streams import make_stream
from rldistill.verbs.distill.teaching import make_student, teaching_of


@dataclass(frozen=True)
class Options:
    """What is measured."""

    dataset: Annotated[Path, tyro.conf.Positional]
    teacher: Path = Path("policies/pong")
    student: str = "net2"
    rounds: int = 5
    """Of all rates, in turns."""
    seconds: float = 3.0
    """Of each measurement."""


def main(options: Options) -> None:
    """Measures and prints."""
    keep_freed_memory()
    teacher, dataset = load_policy(options.teacher), open_dataset(options.dataset)
    task = teacher.task
    config = checked(
        changed(DistillConfig(), student=options.student, dataset=str(options.dataset), updates=100_000, augment=0.5)
    )
    teaching = teaching_of(teacher, str(options.teacher), task, config)
    network, config = make_student([teaching], config)
    assert isinstance(network, Network)
    lesson = Lesson.of(task)
    objective = Match(teaching.loss, task, teacher.score_kind, config.matching)
    update = GradientFitting(network, {lesson: objective}, config.optimization, 100_000, config.seed)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch, Talking() as progress:
        composed = make_stream([teaching], network, config, Path(scratch), progress, dataset)
        assert isinstance(composed, Composed)
        loading = time.perf_counter() - began
        visited = composed.stream
        update.fit(visited.examples())
        drawn = next(visited)
        batch = minibatches(drawn, config.batches.batch_size)[0]
        made = len(drawn[lesson].values) // 2

        def train() -> int:
            update(batch)
            return 1

        def label() -> int:
            teacher(drawn[lesson].observations[:made])
            return 2 * made // config.batches.batch_size

        def train_from(stream: Stream) -> int:
            batches = minibatches(next(stream), config.batches.batch_size)
            for each in batches:
                update(each)
            return len(batches)

        works = {"bare training": train, "labels of its composites": label,
                 "from the dataset, --augment 0": lambda: train_from(visited),
                 "from the dataset, composites": lambda: train_from(composed)}  # fmt: skip
        rates = in_turns(works, options.rounds, options.seconds)
    table(
        [
            {
                "what": name,
                "updates/s (median)": f"{np.median(values):.0f}",
                "range": f"{min(values):.0f} to {max(values):.0f}",
            }
            for name, values in rates.items()
        ]
    )
    bare, label_rate, plain, whole = (np.array(values) for values in rates.values())
    size = sum(path.stat().st_size for path in options.dataset.iterdir())
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{dataset.control_steps:,} control steps: {size / 1e6:.1f} MB on disk, loaded in {loading:.1f} s; "
          f"this process had at most {resident:.2f} GiB resident")  # fmt: skip
    for name, share in (("--augment 0", plain / bare), ("composites", whole * (1 / bare + 1 / label_rate))):
        print(f"{name}: {np.median(share):.2f} of the bare rate, {share.min():.2f} to {share.max():.2f}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
