"""What the command's `demo` runs: the Pong teacher of the repository, and how a small student is made of it."""

from __future__ import annotations

from pathlib import Path

from rldistill.types import UserError
from rldistill.verbs.distill.config import DistillConfig

# In five minutes on 2 cores there is time for 7,500 control steps with the default of 64 samples, or for twice as many with half
# of them; the longer play comes to the ends of games.
STEPS, SAMPLES_PER_STEP = 15_000, 32.0
EPISODES, EPSILON = 30, 0.01
"""Of the table at the end."""


def demo_config(seed: int) -> DistillConfig:
    """Distils into the paper's net2. Games take most of the five minutes, so a point of the curve is five of them."""
    return DistillConfig.of(
        student="net2", steps=STEPS, samples_per_step=SAMPLES_PER_STEP, evaluate_episodes=5, seed=seed
    )


def shipped(path: str) -> Path | None:
    """The path in the working directory or in the checkout that this code runs from; None where neither has it."""
    places = [Path(path), Path(__file__).resolve().parents[3] / path]
    return next((place for place in places if place.exists()), None)


def shipped_policy(name: str) -> Path:
    """The policy folder `policies/<name>` of the working directory or of the checkout that this code runs from.

    Raises:
        UserError: there is none.
    """
    place = shipped(f"policies/{name}/policy.json")
    if place is None:
        raise UserError(f"no policies/{name} here: run this in a checkout of rldistill, where the shipped policies are")
    return place.parent
