"""How many control steps a student needs: several seeds, evaluated along the way, with a figure and a table.

    python benchmarks/steps_to_parity.py --student net2 --steps 20000 --every 2500 --out runs/steps-net2

The teacher plays the same protocol as the students (full games, the task's no-op starts, epsilon 0.01). Each seed's run lies
in OUT/seed-N and is not played again if it is there; OUT/curves.svg, OUT/curves.json and the printed table come of it. "Steps
to 95 %" and "to parity" are the first evaluations whose normalized score is at least 0.95 and 1, so `--every` is their
resolution. A mean of 30 games is uncertain by more than its distance from parity, the teacher's own too; so beside it stands from
which evaluation on no interval of the normalized score (of student and teacher, 95 %) ends below 1.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from rldistill.plots import Curve, Level, control_steps, learning_curve
from rldistill.policies import load_policy
from rldistill.progress import Talking, table
from rldistill.runs.folder import read_metrics
from rldistill.stats import bootstrap_ratio_interval, normalized_score, with_interval
from rldistill.verbs.distill import DistillConfig, distill
from rldistill.verbs.evaluate import EvaluateConfig, evaluate


@dataclass(frozen=True)
class Options:
    """What is run."""

    out: Path
    teacher: Path = Path("policies/pong")
    student: str = "net2"
    steps: int = 20_000
    every: int = 2_500
    """Control steps between two evaluations."""
    episodes: int = 30
    """Full games an evaluation."""
    seeds: tuple[int, ...] = (0, 1, 2)


def main(options: Options) -> None:
    """Runs what is missing and prints."""
    teacher = load_policy(options.teacher)
    with Talking() as progress:
        reference = evaluate(
            [options.teacher],
            EvaluateConfig(episodes=options.episodes, epsilon=0.01, seed=1_000_000),
            progress=progress,
        )[0]
        for seed in options.seeds:
            config = DistillConfig.of(
                student=options.student,
                steps=options.steps,
                seed=seed,
                evaluate_every=options.every,
                evaluate_episodes=options.episodes,
            )
            distill(options.teacher, options.out / f"seed-{seed}", config, resume=True, progress=progress)
    random = reference.random_score
    rows, curves, figures = [], [], []
    for seed in options.seeds:
        records = read_metrics(options.out / f"seed-{seed}")
        points = [record for record in records if record.get("event") == "evaluation"]
        steps = [point["control_steps"] for point in points]
        scores = [normalized_score(point["mean"], random, reference.mean) for point in points]
        curves.append(Curve(f"seed {seed}", steps, [point["mean"] for point in points]))

        intervals = [
            bootstrap_ratio_interval(point["returns"], reference.returns, zero=random, seed=0) for point in points
        ]

        def first(level: float, steps: list[int] = steps, scores: list[float] = scores) -> int | None:
            return next((step for step, score in zip(steps, scores, strict=True) if score >= level), None)

        below = [number for number, (_, high) in enumerate(intervals) if high < 1]
        within = steps[below[-1] + 1 :] if below else steps
        last, (low, high) = points[-1], intervals[-1]
        figures.append(
            {
                "seed": seed,
                "to_95": first(0.95),
                "to_parity": first(1.0),
                "not_below_from": within[0] if within else None,
                "points": points,
                "normalized": [
                    {"score": score, "ci_low": lower, "ci_high": upper}
                    for score, (lower, upper) in zip(scores, intervals, strict=True)
                ],
            }
        )
        rows.append(
            {
                "seed": str(seed),
                "steps to 95 %": f"{first(0.95):,}" if first(0.95) else "not reached",
                "to parity": f"{first(1.0):,}" if first(1.0) else "not reached",
                "not below it from": f"{within[0]:,}" if within else "never",
                "last": with_interval(last["mean"], last["ci_low"], last["ci_high"]),
                "normalized": f"{scores[-1]:.3f} [{low:.2f}, {high:.2f}]",
                "training s": f"{last['seconds']:.0f}",
            }
        )
    level = Level(f"teacher {reference.mean:.1f}", reference.mean, reference.ci_low, reference.ci_high)
    axis = control_steps(teacher.task.frame_skip)
    (options.out / "curves.svg").write_bytes(learning_curve(curves, teacher=level, random=random, axis=axis))
    (options.out / "curves.json").write_text(
        json.dumps({"teacher": reference.as_dict(), "student": options.student, "seeds": figures}, indent=2)
    )
    print(f"teacher {with_interval(reference.mean, reference.ci_low, reference.ci_high)}, {options.episodes} games; "
          f"student {options.student}")  # fmt: skip
    table(rows)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
