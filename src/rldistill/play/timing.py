"""How long a policy takes for a decision."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

import torch

from rldistill.play.actions import greedy
from rldistill.types import Observations, Teacher


def decision_microseconds(
    policies: Sequence[Teacher], observation: Observations, *, rounds: int = 20, per_round: int = 10
) -> list[float]:
    """Median time of a decision of each policy: one NumPy observation (*obs) to one action, on one thread.

    The policies take turns, so that a machine which is busy for a while is busy for all of them.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times: list[list[float]] = [[] for _ in policies]
    try:
        for turn in range(rounds + 1):
            for policy, spent in zip(policies, times, strict=True):
                for _ in range(per_round):
                    began = time.perf_counter()
                    greedy(policy, observation[None], policy.task)[0]
                    if turn:  # the first round warms up
                        spent.append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return [1e6 * median(spent) for spent in times]
