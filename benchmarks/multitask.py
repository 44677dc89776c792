"""One student of several games: multi-task distillation by KL and NLL, joint training, and students of one game each.

    python benchmarks/multitask.py --tier minatar --out runs/multitask
    python benchmarks/multitask.py --tier atari --student multi3 --student-normalization none --batch-size 64 \\
        --samples-per-step 16 --schedule-lessons uniform --steps 100000 --seeds 0 --arms kl --out runs/multitask-atari

Rusu et al. 2015, arXiv 1511.06295, section 4.3 and table 2. Each cell is a run folder in OUT; a killed study goes on where it was
when the same command is given again. All are scored by the same games (epsilon 0.01), which no run has trained or been chosen
on; the geometric mean of the ratios to the teachers has an interval over resampled games of students and teachers, and over
seeds. OUT/table.md, OUT/scores.json and the printed table come of it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro

from rldistill.lessons.choosers import LessonScheduleName
from rldistill.policies import load_heads, load_policy
from rldistill.progress import Talking, table
from rldistill.stats import GameReturns, geometric_mean_of_ratios
from rldistill.students.networks import Normalization, parameter_count
from rldistill.verbs.distill import DistillConfig, distill
from rldistill.verbs.evaluate import EvaluateConfig, evaluate
from rldistill.verbs.train import TrainConfig, train

TEACHERS = {
    "minatar": ("asterix", "breakout", "freeway", "seaquest", "space_invaders"),
    "atari": ("pong", "freeway", "qbert", "breakout"),
}
FOLDER = {"minatar": "policies/minatar", "atari": "policies"}


@dataclass(frozen=True)
class Options:
    """What is run."""

    out: Path
    tier: Literal["minatar", "atari"] = "minatar"
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Several shells can each take some of them; the table is of those that are given."""
    steps: int = 400_000
    """Control steps of each game, in every arm."""
    student: str = "cnn:32,32,32:320"
    """Of all games together."""
    single: str = "cnn:16,16,16:125"
    """Of each game alone; together they have about as many parameters as the student of all."""
    joint: str = "cnn:16:128"
    """Of joint training."""
    arms: tuple[str, ...] = ("kl", "nll", "joint", "single")
    """Which of them are run."""
    samples_per_step: float = 10.0
    batch_size: int = 128
    augment: float = 0.0
    """MinAtar's composites are far from what is visited, and a small student pays for them with its play."""
    student_normalization: Normalization = "layer"
    optimizer: Literal["auto", "adam", "muon"] = "adam"
    learning_rate: float = 1e-2
    weight_decay: float = 0.01
    temperature: str = "auto:0.75"
    bfloat16: bool | None = None
    """Twice as fast for MinAtar's student where the processor multiplies it."""
    schedule_lessons: LessonScheduleName = "progress"
    """Of the multi-task students."""
    evaluate_every: int = 50_000
    """Control steps of a game between the evaluations that `progress` needs."""
    evaluate_episodes: int = 60
    """Their games; those of the table are others."""
    episodes: int = 100
    """Full games a policy and game."""


class Outcome(NamedTuple):
    """One arm with one seed: the scores of its games, teachers first."""

    arm: str
    seed: int
    parameters: int
    scores: list[dict[str, Any]]


def run_cell(options: Options, arm: str, seed: int, teachers: Sequence[Path], progress: Talking) -> list[Path | str]:
    """Makes the policies of a cell where they are missing; returns references to them, one a game."""
    out = options.out / f"{arm}-seed{seed}"
    games = [load_policy(teacher).task.env for teacher in teachers]
    if arm == "joint":
        learning = TrainConfig.of(
            steps=options.steps, algo="pqn", network=options.joint, seed=seed, final_episodes=0, averaging=200
        )
        train(games, out, learning, resume=True, progress=progress)
        return [f"{out}#{game}" for game in games]
    names = ("steps", "samples_per_step", "batch_size", "augment", "student_normalization", "optimizer")
    names += ("learning_rate", "weight_decay", "temperature", "bfloat16")
    settings: dict[str, Any] = {name: getattr(options, name) for name in names} | dict(seed=seed)
    unmeasured: dict[str, Any] = dict(evaluate_every=0, evaluate_episodes=0)
    if arm == "single":
        places: list[Path | str] = []
        for teacher, game in zip(teachers, games, strict=True):
            place = out / game.replace("/", "-")
            distill(
                str(teacher),
                place,
                DistillConfig.of(student=options.single, **settings, **unmeasured),
                resume=True,
                progress=progress,
            )
            places.append(place)
        return places
    if options.schedule_lessons == "progress":
        unmeasured = dict(evaluate_every=options.evaluate_every, evaluate_episodes=options.evaluate_episodes)
    config = DistillConfig.of(
        student=options.student, loss=arm, schedule_lessons=options.schedule_lessons, **settings, **unmeasured
    )
    distill([str(teacher) for teacher in teachers], out, config, resume=True, progress=progress)
    return [f"{out}#{game}" for game in games]


def scored(options: Options, arm: str, seed: int, teachers: Sequence[Path], progress: Talking) -> Outcome:
    """The cell's scores, played once with these options and kept beside its policies."""
    place = options.out / f"{arm}-seed{seed}.json"
    own = {name: value for name, value in asdict(options).items() if name not in ("out", "seeds", "arms")}
    if not place.exists() or json.loads(place.read_text()).get("options") != own:
        policies = run_cell(options, arm, seed, teachers, progress)
        conditions = EvaluateConfig(episodes=options.episodes, epsilon=0.01, seed=2_000_000 + seed)
        scores: list[dict[str, Any]] = []
        for teacher, policy in zip(teachers, policies, strict=True):
            scores += [asdict(score) for score in evaluate([str(teacher), str(policy)], conditions, progress=progress)]
        place.write_text(json.dumps({"options": own, "parameters": size_of(policies), "scores": scores}))
    kept = json.loads(place.read_text())
    return Outcome(arm, seed, kept["parameters"], kept["scores"])


def size_of(policies: Sequence[Path | str]) -> int:
    """Parameters of all policies of a cell together; heads of one network share its torso."""
    folders = dict.fromkeys(str(policy).partition("#")[0] for policy in policies)
    return sum(parameter_count(load_heads(folder).network) for folder in folders)


def ratio_of(outcomes: Sequence[Outcome]) -> tuple[float, float, float]:
    """Geometric mean over games of the ratio to the teacher, over all seeds' games, with its 95 % interval."""
    number = len(outcomes[0].scores) // 2
    students, references = [], []
    for game in range(number):
        own = [outcome.scores[2 * game + 1]["returns"] for outcome in outcomes]
        teacher = [outcome.scores[2 * game]["returns"] for outcome in outcomes]
        students.append(GameReturns(np.concatenate(own), None))
        references.append(GameReturns(np.concatenate(teacher), None))
    return geometric_mean_of_ratios(students, references, [0.0] * number, seed=0)


def main(options: Options) -> None:
    """Runs what is missing and prints."""
    teachers = [Path(FOLDER[options.tier]) / name for name in TEACHERS[options.tier]]
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    with Talking() as progress:
        for arm in options.arms:
            outcomes = [scored(options, arm, seed, teachers, progress) for seed in options.seeds]
            rows.append(row_of(arm, outcomes))
    table(rows)
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([row[name] for name in names] for row in rows)]
    (options.out / "table.md").write_text("\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")


def row_of(arm: str, outcomes: Sequence[Outcome]) -> dict[str, str]:
    """An arm's means by game and its geometric mean of ratios, over all seeds."""
    mean, low, high = ratio_of(outcomes)
    each = [ratio_of([outcome])[0] for outcome in outcomes]
    row = {"arm": arm, "parameters": f"{outcomes[0].parameters:,}", "seeds": str(len(outcomes))}
    for game in range(len(outcomes[0].scores) // 2):
        own = np.mean([outcome.scores[2 * game + 1]["mean"] for outcome in outcomes])
        teacher = np.mean([outcome.scores[2 * game]["mean"] for outcome in outcomes])
        name = outcomes[0].scores[2 * game]["task"]["env"].removeprefix("MinAtar/").partition("-")[0]
        row[name.removesuffix("NoFrameskip")] = f"{own:.1f} of {teacher:.1f}"
    row["geometric mean of ratios"] = f"{mean:.3f} [{low:.3f}, {high:.3f}]"
    row["by seed"] = ", ".join(f"{value:.2f}" for value in each)
    return row


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
