"""Teachers of other tools: each is loaded, played, distilled with the defaults, and its student played beside it.

    python benchmarks/foreign_teachers.py --teachers FOLDER/*.zip --out runs/foreign

The student is the default one: at most a tenth of the teacher, or `mlp:32,32` of a small one; `net2` of Atari. A row that is there
already is not run again. The table and OUT/teachers.json come of it.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from rldistill.progress import Talking, table
from rldistill.stats import with_interval
from rldistill.students.networks import parameter_count
from rldistill.teachers import ForeignTeacher, TeacherOptions, load_teacher
from rldistill.verbs.distill import DistillConfig, distill
from rldistill.verbs.evaluate import EvaluateConfig, evaluate


@dataclass(frozen=True)
class Options:
    """What is run."""

    out: Path
    teachers: tuple[str, ...]
    """Files; NAME=ENV names the environment of one that does not say."""
    episodes: int = 30
    """Games a policy."""
    epsilon: float = 0.0
    """In those games: vector tasks are listed without exploration, Atari's with 0.01."""
    seed: int = 0
    """Of the distillation."""
    steps: int = DistillConfig.steps
    """Control steps of the distillation."""


def main(options: Options) -> None:
    """Runs what is missing and prints."""
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    with Talking() as progress:
        for named in options.teachers:
            ref, _, env = named.partition("=")
            path = options.out / Path(ref).stem / "row.json"
            if not path.exists():
                teacher = load_teacher(ref, env=env or None)
                run = options.out / Path(ref).stem / "run"
                began = time.perf_counter()
                config = DistillConfig.of(seed=options.seed, env=env or None, steps=options.steps, evaluate_every=0)
                policy = distill(ref, run, config, options=TeacherOptions(), resume=True, progress=progress)
                seconds = time.perf_counter() - began
                conditions = EvaluateConfig(episodes=options.episodes, epsilon=options.epsilon, seed=1, env=env or None)
                first, last = evaluate([ref, run], conditions, progress=progress)
                kind = teacher.foreign.algorithm if isinstance(teacher, ForeignTeacher) else "rldistill"
                path.write_text(
                    json.dumps(
                        {
                            "file": Path(ref).name,
                            "loaded as": f"{kind}, {teacher.score_kind}",
                            "played": teacher.task.env,
                            "teacher": with_interval(first.mean, first.ci_low, first.ci_high),
                            "parameters": f"{parameter_count(teacher.network):,} > {last.parameters:,}",
                            "student": with_interval(last.mean, last.ci_low, last.ci_high),
                            "normalized": f"{last.normalized:.3f} [{last.normalized_low:.2f}, {last.normalized_high:.2f}]",
                            "steps": f"{policy.provenance['control_steps']:,}",
                            "training s": f"{policy.provenance['seconds']:.0f}",
                            "with its games s": f"{seconds:.0f}",
                        }
                    )
                )
            rows.append(json.loads(path.read_text()))
    table(rows)
    (options.out / "teachers.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
