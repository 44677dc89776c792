"""The teachers that come along: their cards say how to make them again, and they play."""

import csv
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from rldistill.play.games import play_scored
from rldistill.policies import load_policy

POLICIES = Path(__file__).resolve().parents[1] / "policies"
FOLDERS = sorted(card.parent.relative_to(POLICIES) for card in POLICIES.rglob("policy.json"))
TEACHERS = [folder for folder in FOLDERS if folder.parent.name != "snapshots"]
# Mean of two games: far below what they score, far above random play (-20.7, 1.7, 0, 163.9, 148.0, and 0.5, 0.5, 0, 0.1, 2.8).
FLOORS = {
    "PongNoFrameskip-v4": 10.0,
    "BreakoutNoFrameskip-v4": 40.0,
    "FreewayNoFrameskip-v4": 20.0,
    "QbertNoFrameskip-v4": 2_000.0,
    "SpaceInvadersNoFrameskip-v4": 300.0,
    "MinAtar/Asterix-v1": 3.0,
    "MinAtar/Breakout-v1": 3.0,
    "MinAtar/Freeway-v1": 30.0,
    "MinAtar/Seaquest-v1": 3.0,
    "MinAtar/SpaceInvaders-v1": 10.0,
}


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_a_shipped_policy_says_how_it_was_made(folder: Path) -> None:
    policy = load_policy(POLICIES / folder)
    made = policy.provenance
    words = shlex.split(made["command"])
    assert words[:3] == ["rldistill", "train", policy.task.env]
    assert not any(word.startswith(("/", "~")) for word in words)
    assert words[words.index("--seed") + 1] == str(made["configuration"]["seed"])
    assert made["made_by"].startswith("rldistill ")
    assert made["training_seconds"] > 0
    assert made["machine"]
    share = float(folder.name) if folder.parent.name == "snapshots" else 1.0
    assert made["control_steps"] == pytest.approx(share * made["configuration"]["steps"], rel=0.01)


@pytest.mark.parametrize("folder", TEACHERS, ids=str)
def test_a_shipped_teacher_has_its_score_and_its_curve(folder: Path) -> None:
    made = load_policy(POLICIES / folder).provenance
    score = made["score"]
    assert (score["episodes"], score["epsilon"]) == (30, 0.01)
    assert score["ci_low"] <= score["mean"] <= score["ci_high"]
    with open(POLICIES / folder / "curve.csv", newline="") as file:
        curve = list(csv.DictReader(file))
    assert int(curve[-1]["control_steps"]) == made["control_steps"]
    assert float(curve[-1]["mean_return"]) > float(curve[0]["mean_return"])


@pytest.mark.parametrize("folder", TEACHERS, ids=str)
@pytest.mark.slow
def test_a_shipped_teacher_plays_two_games_above_a_loose_floor(folder: Path) -> None:
    policy = load_policy(POLICIES / folder)
    # What is cut off then counts as it stands; a good player's game can be long.
    task = replace(policy.task, max_frames=3_000) if policy.task.env.startswith("MinAtar/") else policy.task
    assert play_scored(task, policy, 2, 0.01, 0)["mean"] >= FLOORS[policy.task.env]


def test_all_shipped_policies_together_take_at_most_52_megabytes() -> None:
    assert sum(path.stat().st_size for path in POLICIES.rglob("*") if path.is_file()) <= 52e6
