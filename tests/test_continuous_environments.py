"""Box2D's and MuJoCo's environments: policies of Stable-Baselines3 are played in them and distilled."""

from __future__ import annotations

import math
from pathlib import Path

import gymnasium
import pytest

from rldistill.play.actions import check_actions, greedy
from rldistill.play.envs import Environments
from rldistill.policies import load_policy
from rldistill.runs.folder import read_metrics
from rldistill.teachers import ForeignTeacher, TeacherOptions, load_teacher
from rldistill.verbs.distill import distill
from rldistill.verbs.distill.config import DistillConfig


@pytest.mark.parametrize(
    ("env", "algorithm", "kind"),
    [
        ("LunarLanderContinuous-v3", "SAC", "squashed_gaussian"),
        ("BipedalWalker-v3", "PPO", "gaussian"),
        ("HalfCheetah-v5", "SAC", "squashed_gaussian"),
    ],
)
@pytest.mark.slow
def test_policies_of_box2d_and_mujoco_play_and_teach(tmp_path: Path, env: str, algorithm: str, kind: str) -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    pytest.importorskip("mujoco" if env.startswith("HalfCheetah") else "Box2D")
    made = gymnasium.make(env)
    model = getattr(sb3, algorithm)("MlpPolicy", made, seed=0, device="cpu", policy_kwargs={"net_arch": [16]})
    model.save(tmp_path / "teacher.zip")
    made.close()
    teacher = load_teacher(tmp_path / "teacher.zip", env=env)
    assert isinstance(teacher, ForeignTeacher)
    assert (teacher.score_kind, teacher.mismatches) == (kind, ())
    config = DistillConfig.of(
        student="mlp:16", env=env, steps=300, num_envs=4, warmup=100, evaluate_every=0, evaluate_episodes=1
    )
    out = tmp_path / "run"
    distill(tmp_path / "teacher.zip", out, config, options=TeacherOptions(accept_mismatch=True))
    losses = [record["loss"] for record in read_metrics(out) if record["event"] == "train"]
    assert losses
    assert all(math.isfinite(loss) for loss in losses)
    student = load_policy(out)
    assert (student.name, student.score_kind, student.task.env) == ("mlp:16", kind, env)
    environments = Environments(student.task, 2, 0)
    for policy in (teacher, student):
        actions = greedy(policy, environments.observations, student.task)
        check_actions(actions, 2, student.task)
        environments.step(actions)
    environments.close()
