"""Schedules: functions from a step to a value."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

Schedule: TypeAlias = Callable[[int], float]


def constant(value: float) -> Schedule:
    """The same at every step."""
    return lambda step: value


def linear(start: float, end: float, steps: int) -> Schedule:
    """From `start` at step 0 to `end` at `steps`, and `end` from there on."""
    if steps <= 0:
        return constant(end)
    return lambda step: start + (end - start) * min(max(step / steps, 0.0), 1.0)


def warmup_cosine(peak: float, end: float, warmup: int, steps: int) -> Schedule:
    """Linearly up to `peak` over `warmup` steps, then half a cosine down to `end` at `steps`; `end` from there on."""

    def value(step: int) -> float:
        if step < warmup:
            return peak * (step + 1) / warmup
        share = min((step - warmup) / max(steps - warmup, 1), 1.0)
        return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * share))

    return value
