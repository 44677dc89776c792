"""The jobs of `peers.py` that run rldistill."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
from peer_worker import Job, answer, rate

from rldistill.machine import keep_freed_memory
from rldistill.play.actions import uniform_actions
from rldistill.play.envs import Environments, make_task
from rldistill.policies import SavedPolicy, parameters_of
from rldistill.students.networks import Architecture, build, parameter_count
from rldistill.teachers import load_policy
from rldistill.types import as_tensor
from rldistill.verbs import distill as distillation
from rldistill.verbs import export as exporting
from rldistill.verbs.distill import DistillConfig
from rldistill.verbs.export import ExportConfig, Format


def distill(job: Job) -> dict[str, Any]:
    """A student of a Stable-Baselines3 zip."""
    config = DistillConfig.of(**job["config"])
    made = distillation.distill(job["teacher"], Path(job["out"]) / "run", config).provenance
    return {
        "training_seconds": made["seconds"],
        "labelled": made["control_steps"],
        "updates": made["updates"],
        "student": "run/policy",
    }


def net2(job: Job) -> dict[str, Any]:
    """A net2 of the shipped Pong teacher. How it plays does not matter to how fast it decides, so it is a short run."""
    config = DistillConfig.of(student="net2", steps=2_000, evaluate_every=0, evaluate_episodes=1)
    return {"parameters": parameters_of(distillation.distill(job["teacher"], Path(job["out"]) / "run", config))}


def export(job: Job) -> dict[str, Any]:
    """One file of it."""
    config = ExportConfig(states=1_000, episodes=0, teacher="none")
    exporting.export(job["policy"], job["file"], cast(Format, job["format"]), config)
    return {"bytes": Path(job["file"]).stat().st_size}


def nature() -> SavedPolicy:
    """The network that Stable-Baselines3's CnnPolicy is, with fresh weights."""
    task = make_task("PongNoFrameskip-v4")
    network = build(Architecture("dqn", task.observation_shape, task.num_actions), 0, "q_values")
    return SavedPolicy(network.eval(), task)


def frames_of(job: Job) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """As Stable-Baselines3 gets them."""
    return np.random.default_rng(0).integers(256, size=(job["batch_size"], 4, 84, 84), dtype=np.uint8)


def predict(job: Job) -> dict[str, Any]:
    """Decisions a second with `predict`, a batch at a time; of one, a frame stack as it is."""
    policy = load_policy(job["policy"]) if job["policy"] else nature()
    frames = frames_of(job)
    observation = frames[0] if len(frames) == 1 else frames

    def work() -> int:
        policy.predict(observation)
        return len(frames)

    return {"rate": rate(work, job["seconds"]), "parameters": parameters_of(policy)}


def label(job: Job) -> dict[str, Any]:
    """States a second that a teacher of the same network labels, a NumPy batch at a time."""
    keep_freed_memory()  # as every verb does
    policy, frames = nature(), frames_of(job)

    def work() -> int:
        policy(as_tensor(frames)).numpy()
        return len(frames)

    return {"rate": rate(work, job["seconds"]), "parameters": parameter_count(policy.network)}


def stepping(job: Job) -> dict[str, Any]:
    """Control steps a second under random actions."""
    task, rows = make_task(job["env"]), int(job["num_envs"])
    environments = Environments(task, rows, 0)
    generator = np.random.default_rng(0)

    def work() -> int:
        environments.step(uniform_actions(task, rows, generator))
        return rows

    measured = rate(work, job["seconds"])
    environments.close()
    return {"rate": measured}


if __name__ == "__main__":
    answer(
        {"distill": distill, "net2": net2, "export": export, "predict": predict, "label": label, "stepping": stepping}
    )
