"""The jobs of `peers.py` that run in the environment of Stable-Baselines3."""

from __future__ import annotations

from typing import Any

import ale_py
import cv2
import gymnasium
import numpy as np
import torch
from peer_worker import Job, answer, rate
from stable_baselines3 import DQN
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecFrameStack

gymnasium.register_envs(ale_py)
cv2.setNumThreads(1)


def environments(job: Job, kind: type[DummyVecEnv] | type[SubprocVecEnv]) -> VecEnv:
    """Its Atari environment; games end where rldistill's do, with all lives lost, and rewards are as they are."""
    options = dict(terminal_on_life_loss=False, clip_reward=False)
    return VecFrameStack(
        make_atari_env(job["env"], n_envs=job["num_envs"], seed=0, wrapper_kwargs=options, vec_env_cls=kind), 4
    )


def model_and_frames(job: Job) -> tuple[DQN, np.ndarray[Any, Any]]:
    """A Nature CNN with fresh weights (their values change no time), and frames, channels first."""
    model = DQN("CnnPolicy", environments(job | {"num_envs": 1}, DummyVecEnv), buffer_size=1, device="cpu")
    size = (job["batch_size"], 4, 84, 84)
    return model, np.random.default_rng(0).integers(256, size=size, dtype=np.uint8)


def predict(job: Job) -> dict[str, Any]:
    """Decisions a second with `predict`, a batch at a time; of one, a frame stack as it is."""
    model, frames = model_and_frames(job)
    observation = frames[0] if len(frames) == 1 else frames

    def work() -> int:
        model.predict(observation, deterministic=True)
        return len(frames)

    return {"rate": rate(work, job["seconds"]), "parameters": sum(p.numel() for p in model.q_net.parameters())}


def q_net(job: Job) -> dict[str, Any]:
    """States a second that its network labels with values, a NumPy batch at a time."""
    model, frames = model_and_frames(job)
    model.policy.set_training_mode(False)

    def work() -> int:
        with torch.no_grad():
            model.q_net(model.policy.obs_to_tensor(frames)[0]).numpy()
        return len(frames)

    return {"rate": rate(work, job["seconds"]), "parameters": sum(p.numel() for p in model.q_net.parameters())}


def stepping(job: Job) -> dict[str, Any]:
    """Control steps a second under random actions."""
    venv = environments(job, SubprocVecEnv if job["subprocesses"] else DummyVecEnv)
    generator = np.random.default_rng(0)
    venv.reset()

    def work() -> int:
        venv.step(generator.integers(venv.action_space.n, size=job["num_envs"]))
        return job["num_envs"]

    measured = rate(work, job["seconds"])
    venv.close()
    return {"rate": measured}


if __name__ == "__main__":
    answer({"predict": predict, "q_net": q_net, "stepping": stepping})
