"""The jobs of `peers.py` that run in imitation's environment: teachers, behavioural cloning, DAgger."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from peer_worker import Job, answer, peak_bytes
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv

# rl-baselines3-zoo's hyperparameters of DQN (hyperparams/dqn.yml), and a mean return at which training may end.
_SLOWLY = dict(learning_rate=6.3e-4, batch_size=128, buffer_size=50_000, learning_starts=0, gamma=0.99, target_update_interval=250,
               train_freq=4, gradient_steps=-1, exploration_fraction=0.12, exploration_final_eps=0.1)  # fmt: skip
TEACHERS: dict[str, tuple[int, float, dict[str, Any]]] = {
    "CartPole-v1": (
        50_000,
        500.0,
        dict(learning_rate=2.3e-3, batch_size=64, buffer_size=100_000, learning_starts=1_000, gamma=0.99, target_update_interval=10,
             train_freq=256, gradient_steps=128, exploration_fraction=0.16, exploration_final_eps=0.04),
    ),
    "Acrobot-v1": (100_000, -80.0, _SLOWLY),
    "LunarLander-v3": (100_000, 240.0, _SLOWLY),
}  # fmt: skip


def environments(env: str, number: int, seed: int) -> VecEnv:
    """Rows of an environment, one after the other in this process."""
    if env == "LunarLander-v3" and env not in gymnasium.registry:
        # Gymnasium 0.29 has v2. Version 3 differs in the wind, which is off, and in the bounds that it declares.
        gymnasium.register(env, entry_point="gymnasium.envs.box2d:LunarLander", max_episode_steps=1000)
    return make_vec_env(env, n_envs=number, seed=seed)


def teacher(job: Job) -> dict[str, Any]:
    """A DQN, the best of its evaluations."""
    from stable_baselines3.common.callbacks import EvalCallback, StopTrainingOnRewardThreshold

    env, out = job["env"], Path(job["out"])
    steps, enough, hyperparameters = TEACHERS[env]
    callback = EvalCallback(
        environments(env, 1, 1_000),
        callback_on_new_best=StopTrainingOnRewardThreshold(enough),
        n_eval_episodes=20,
        eval_freq=5_000,
        best_model_save_path=str(out),
        verbose=1,
    )
    began = time.perf_counter()
    model = DQN(
        "MlpPolicy",
        environments(env, 1, 0),
        policy_kwargs=dict(net_arch=[256, 256]),
        seed=0,
        device="cpu",
        **hyperparameters,
    )
    model.learn(steps, callback)
    return {"training_seconds": time.perf_counter() - began, "control_steps": model.num_timesteps}


def student(venv: VecEnv, hidden: list[int]) -> ActorCriticPolicy:
    """A policy of imitation's kind with hidden layers for its actions alone: nothing here trains a critic."""
    return ActorCriticPolicy(
        venv.observation_space,
        venv.action_space,
        lr_schedule=lambda _: float(np.finfo(np.float32).max),  # as imitation has it: BC brings its own optimizer
        net_arch=dict(pi=hidden, vf=[]),
    )


def finished(policy: ActorCriticPolicy, venv: VecEnv, job: Job, training_seconds: float) -> dict[str, Any]:
    """Saves the student as imitation's users do; and, off the clock, as a zip, which rldistill plays."""
    peak = peak_bytes()
    out = Path(job["out"])
    policy.save(out / "student.pt")
    began = time.perf_counter()
    model = PPO("MlpPolicy", venv, policy_kwargs=dict(net_arch=dict(pi=job["hidden"], vf=[])), device="cpu")
    model.policy.load_state_dict(policy.state_dict())
    model.save(job["zip"])
    return {
        "training_seconds": training_seconds,
        "not_counted_seconds": time.perf_counter() - began,
        "peak_bytes": peak,
        "student": "student.pt",
    }


def bc(job: Job) -> dict[str, Any]:
    """Behavioural cloning of greedy demonstrations."""
    from imitation.algorithms.bc import BC
    from imitation.data import rollout

    expert = DQN.load(job["teacher"], device="cpu")
    venv = environments(job["env"], job["num_envs"], job["seed"])
    rng = np.random.default_rng(job["seed"])
    began = time.perf_counter()
    trajectories = rollout.generate_trajectories(
        expert, venv, rollout.make_min_timesteps(job["labelled"]), rng, deterministic_policy=True
    )
    demonstrations = rollout.flatten_trajectories(trajectories)[: job["labelled"]]
    policy = student(venv, job["hidden"])
    trainer = BC(
        observation_space=venv.observation_space,
        action_space=venv.action_space,
        rng=rng,
        policy=policy,
        demonstrations=demonstrations,
        batch_size=job["batch_size"],
        device="cpu",
    )
    updates = 0

    def count() -> None:
        nonlocal updates
        updates += 1

    trainer.train(n_batches=job["updates"], on_batch_end=count, progress_bar=False)
    seconds = time.perf_counter() - began
    return finished(policy, venv, job, seconds) | {"labelled": len(demonstrations), "updates": updates}


def dagger(job: Job) -> dict[str, Any]:
    """imitation's own DAgger loop: rounds of play, each followed by its share of the updates; the rest of them at the end.

    A round lasts until a twentieth of the states is there and all its games are over, so there are at most twenty.
    """
    from imitation.algorithms.bc import BC
    from imitation.algorithms.dagger import LinearBetaSchedule, SimpleDAggerTrainer
    from imitation.data import serialize

    expert = DQN.load(job["teacher"], device="cpu")
    venv = environments(job["env"], job["num_envs"], job["seed"])
    rng = np.random.default_rng(job["seed"])
    scratch = Path(job["out"]) / "dagger"
    updates = 0

    def count() -> None:
        nonlocal updates
        updates += 1

    began = time.perf_counter()
    policy = student(venv, job["hidden"])
    cloning = BC(
        observation_space=venv.observation_space,
        action_space=venv.action_space,
        rng=rng,
        policy=policy,
        batch_size=job["batch_size"],
        device="cpu",
    )
    trainer = SimpleDAggerTrainer(
        venv=venv,
        scratch_dir=scratch,
        expert_policy=expert,
        rng=rng,
        bc_trainer=cloning,
        beta_schedule=LinearBetaSchedule(5),  # the fewest rounds that a game here comes to
    )
    # Without log_rollouts_venv: by default it plays five more games every 500 updates, for its log.
    quietly = dict(log_rollouts_venv=None, on_batch_end=count, progress_bar=False)
    trainer.train(
        job["labelled"],
        rollout_round_min_episodes=1,
        rollout_round_min_timesteps=job["labelled"] // 20,
        bc_train_kwargs=dict(n_batches=job["updates"] // 20, **quietly),
    )
    if updates < job["updates"]:
        cloning.train(n_batches=job["updates"] - updates, **quietly)
    seconds = time.perf_counter() - began
    result = finished(policy, venv, job, seconds)
    began = time.perf_counter()
    labelled = sum(len(game) for path in scratch.rglob("*.npz") for game in serialize.load(path))
    result["not_counted_seconds"] += time.perf_counter() - began
    return result | {"labelled": labelled, "updates": updates, "rounds": trainer.round_num}


if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)
    answer({"teacher": teacher, "bc": bc, "dagger": dagger})
