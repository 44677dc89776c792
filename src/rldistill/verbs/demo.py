"""The verb `demo`: the main job on a fresh machine, with the Pong teacher that comes along."""

from __future__ import annotations

import os
from pathlib import Path

from rldistill.progress import Progress, Silent
from rldistill.runs.scores import Score
from rldistill.types import UserError
from rldistill.verbs.distill import DistillConfig, distill
from rldistill.verbs.evaluate import EvaluateConfig, evaluate
from rldistill.verbs.report import report

# In five minutes on 2 cores there is time for 7,500 control steps with the default of 64 samples, or for twice as many with half
# of them; the longer play comes to the ends of games.
STEPS, SAMPLES_PER_STEP = 15_000, 32.0


def demo(
    out: str | os.PathLike[str] = "demo", *, seed: int = 0, progress: Progress | None = None
) -> tuple[list[Score], Path]:
    """Distils the shipped Pong teacher into the paper's net2, plays 30 games with both, writes the report.

    An interrupted demo goes on where it was when called again.

    Args:
        out: run folder.
        seed: of the distillation.
        progress: told how it goes.

    Returns:
        The scores of teacher and student, and the page.

    Raises:
        UserError: the teacher is not to be found.
    """
    progress = progress or Silent()
    teacher = shipped_policy("pong")
    # Five games a point of the curve: games take most of the five minutes, and the table plays thirty of each.
    config = DistillConfig.of(
        student="net2", steps=STEPS, samples_per_step=SAMPLES_PER_STEP, evaluate_episodes=5, seed=seed
    )
    distill(teacher, out, config, resume=True, progress=progress)
    scores = evaluate(
        [teacher, out],
        EvaluateConfig(episodes=30, epsilon=0.01, seed=seed + 1),
        json=Path(out) / "scores.json",
        progress=progress,
    )
    return scores, report(out, progress=progress)


def shipped_policy(name: str) -> Path:
    """The policy folder `policies/<name>` of the working directory or of the checkout that this code runs from."""
    places = [Path("policies"), Path(__file__).resolve().parents[2] / "policies"]
    for place in places:
        if (place / name / "policy.json").is_file():
            return place / name
    raise UserError(f"no policies/{name} here: run the demo from a checkout of rldistill")
