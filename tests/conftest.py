"""What holds for all tests."""

import os
import resource
import signal

# Before torch is loaded: the workers share the cores, and sums over another number of threads round differently.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import pytest
from gymnasium import spaces
from hypothesis import settings

# Tests press Ctrl-C; where the whole of them runs in the background of a script, that would be ignored.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples each time, so that a change that breaks something is the one that is tested; no deadline, because
# emulators share the cores with the other workers.
settings.register_profile("rldistill", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("rldistill")


class Levers(gymnasium.Env[dict[str, Any], npt.NDArray[np.int64]]):
    """Two levers of two and three positions, ten steps. A point for the first where the wind blows, and one for the second at
    the door that is open."""

    observation_space = spaces.Dict(
        {
            "wind": spaces.Box(-1, 1, (2,), np.float32),
            "door": spaces.Discrete(3),
            "age": spaces.Box(0, 10, (1,), np.float32),
        }
    )
    action_space = spaces.MultiDiscrete([2, 3])
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012  # as Gymnasium declares it

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def render(self) -> npt.NDArray[np.uint8]:
        return np.full((8, 8, 3), 10 * self.age, dtype=np.uint8)

    def _observation(self) -> dict[str, Any]:
        self.wind = self.np_random.uniform(-1, 1, size=2).astype(np.float32)
        self.door = int(self.np_random.integers(3))
        return {"wind": self.wind, "door": self.door, "age": np.array([self.age], dtype=np.float32)}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.age = 0
        return self._observation(), {}

    def step(self, action: npt.NDArray[np.int64]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        points = float(action[0] == (self.wind[0] > 0)) + float(action[1] == self.door)
        action += 100  # as some environments do: what is kept of the action must be a copy
        self.age += 1
        return self._observation(), points, self.age == 10, False, {}


@pytest.fixture(scope="session")
def levers() -> Iterator[str]:
    """Id of an environment with several discrete actions at once and observations with names."""
    gymnasium.register("Levers-v0", lambda **options: Levers(**options))
    yield "Levers-v0"
    del gymnasium.registry["Levers-v0"]


def _beside(name: str, variable: str) -> Path:
    """A folder beside the checkout, or where an environment variable says; the test is skipped where there is none."""
    folder = Path(os.environ.get(variable, Path(__file__).resolve().parents[2] / "shared" / name))
    if not folder.is_dir():
        pytest.skip(f"no {name} at {folder}")
    return folder


@pytest.fixture
def teachers() -> Path:
    """The folder of policies from elsewhere, where there is one."""
    return _beside("teachers", "RLDISTILL_TEACHERS")


@pytest.fixture
def cases() -> Path:
    """The folder of policies and environments that once failed, where there is one."""
    return _beside("cases", "RLDISTILL_CASES")


@pytest.fixture
def full_disk() -> Callable[[int], AbstractContextManager[None]]:
    """`with full_disk(bytes):` no file can become longer than that: as on a full disk, a write fails in its middle."""

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    return limited
