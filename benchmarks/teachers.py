"""The table and the figures of `docs/teachers.md`, from the cards and the curves of the shipped policies.

Prints a row a teacher and a row a snapshot, and draws the learning curves of each game to `docs/results/teachers-<game>.svg`:

    python benchmarks/teachers.py [--policies policies] [--figures docs/results]
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from rldistill.plots import Curve, control_steps, learning_curve
from rldistill.policies import SavedPolicy, load_policy
from rldistill.stats import with_interval


@dataclass(frozen=True)
class Options:
    """Where things are."""

    policies: Path = Path("policies")
    figures: Path = Path("docs/results")


def curve_of(folder: Path) -> tuple[list[int], list[float]]:
    """Control steps and mean returns of a policy folder's `curve.csv`, empty where there is none."""
    if not (folder / "curve.csv").is_file():
        return [], []
    with open(folder / "curve.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [int(row["control_steps"]) for row in rows], [float(row["mean_return"]) for row in rows]


def teacher_row(folder: Path, policy: SavedPolicy) -> dict[str, str]:
    """Score, steps and cost."""
    made, score = policy.provenance, policy.provenance["score"]
    minutes = f"{made['training_seconds'] / 60:.0f}"
    if "cpu_seconds" in made:
        minutes += f" ({made['cpu_seconds'] / 60:.1f})"
    return {
        "teacher": f"`{folder}`",
        "environment": policy.task.env,
        "seed": str(made["configuration"]["seed"]),
        "score [95 % CI]": with_interval(score["mean"], score["ci_low"], score["ci_high"]),
        "control steps": f"{made['control_steps']:,}",
        "minutes (computing)": minutes,
        "machine": made["machine"],
    }


def snapshot_row(folder: Path, policy: SavedPolicy) -> dict[str, str]:
    """What it played like: the curve of its run at its steps."""
    at = policy.provenance["control_steps"]
    steps, means = curve_of(folder.parent.parent)
    then = [mean for step, mean in zip(steps, means, strict=True) if step <= at]
    return {
        "snapshot": f"`{folder}`",
        "control steps": f"{at:,}",
        "mean return in training then": f"{then[-1]:.1f}" if then else "-",
    }


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """A table."""
    if not rows:
        return ""
    lines = [rows[0].keys(), ["---"] * len(rows[0]), *[row.values() for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(options: Options) -> None:
    """Prints and draws."""
    teachers, snapshots = [], []
    curves: dict[str, list[Curve]] = defaultdict(list)
    skips: dict[str, int] = {}
    for card in sorted(options.policies.rglob("policy.json")):
        folder = card.parent
        policy = load_policy(folder)
        if folder.parent.name == "snapshots":
            snapshots.append(snapshot_row(folder, policy))
            continue
        teachers.append(teacher_row(folder, policy))
        steps, means = curve_of(folder)
        if steps:
            game = policy.task.env.split("-")[0].removesuffix("NoFrameskip").replace("/", "-").lower()
            curves[game].append(Curve(f"seed {policy.provenance['configuration']['seed']}", steps, means))
            skips[game] = policy.task.frame_skip
    print(markdown(teachers), markdown(snapshots), sep="\n\n")
    for game, curve in curves.items():
        options.figures.mkdir(parents=True, exist_ok=True)
        (options.figures / f"teachers-{game}.svg").write_bytes(
            learning_curve(curve, axis=control_steps(skips[game]), width=5.0)
        )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
