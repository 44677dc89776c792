"""Double DQN with replay and target network (Mnih et al. 2015; van Hasselt et al. 2015), vectorized, n-step."""
from __future__ import annotations
from dataclasses import dataclass
from typing import Any
@dataclass(frozen=True)
class DQNSettings:
    capacity: int = 400_000
    n_step: int = 3
class DQN:
    def __init__(self, *a: Any, **k: Any) -> None: ...
