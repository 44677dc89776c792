"""Fills the replay with the paper's ten hours of Atari, 540,000 control steps, and prints what the process takes.

python benchmarks/replay_memory.py [--steps 540000] [--scratch FOLDER]
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import numpy as np

from rldistill.play.envs import make_task
from rldistill.play.replay import Replay


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=540_000, help="control steps")
    parser.add_argument("--scratch", type=Path, help="folder for the ring's files; by default it lies in memory")
    options = parser.parse_args()
    task, rows = make_task("PongNoFrameskip-v4"), 16
    columns = {
        "actions": ((), np.int64),
        "rewards": ((), np.float32),
        "terminated": ((), np.bool_),
        "truncated": ((), np.bool_),
    }
    replay = Replay(task, rows, options.steps, columns, scratch=options.scratch)
    observations = np.random.default_rng(0).integers(256, size=(rows, *task.observation_shape), dtype=np.uint8)
    none = np.zeros(rows, dtype=np.bool_)
    began = time.monotonic()
    for _ in range(replay.capacity):
        replay.add(
            observations, none, actions=np.zeros(rows, dtype=np.int64), rewards=np.zeros(rows, dtype=np.float32),
            terminated=none, truncated=none,
        )  # fmt: skip
    generator = np.random.default_rng(0)
    filled = time.monotonic()
    for _ in range(100):
        times, drawn = replay.sample(generator, 128, ahead=1)
        replay.observations(times, drawn)
        replay.observations(times + 1, drawn)
    sampled = time.monotonic()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{len(replay):,} control steps: ring {replay.nbytes / 2**30:.2f} GiB, process at most {peak:.2f} GiB resident"
    )
    rates = len(replay) / (filled - began), 12_800 / (sampled - filled)
    print(f"filled at {rates[0]:,.0f} control steps/s, sampled at {rates[1]:,.0f} transitions/s")


if __name__ == "__main__":
    main()
