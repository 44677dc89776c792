"""How a dataset is recorded: the configuration and its checks."""

from __future__ import annotations

from dataclasses import dataclass

from rldistill.types import MOST_ENVIRONMENTS, check_numbers


@dataclass(frozen=True)
class RecordConfig:
    """What is recorded."""

    steps: int = 54_000
    """Control steps recorded, of all environments together and exactly (on Atari one is four frames; 54,000 are an hour
    of play). With --append so many more."""
    seed: int = 0
    """Of environments and exploration. What is appended gets fresh episodes under the same seed."""
    num_envs: int = 16
    """Environments stepped together."""
    epsilon: float = 0.05
    """Probability of a random action; the labels stay the teacher's own (0.05 as in Rusu et al. 2015)."""
    shard_steps: int = 16_384
    """Control steps a shard. A shard is what a kill can cost, and it is held in memory (7 kB a step on Atari)."""
    env: str | None = None
    """Another environment id than the teacher's own, with the same actions and observations."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments name=value that a Gymnasium environment is made with; values are JSON's scalars or else text. They are kept with
    the policy; given here, they count instead."""
    max_episode_steps: int | None = None
    """Control steps after which a game is truncated; by default the teacher's own: 10,000 where the environment sets no limit."""


def check_config(config: RecordConfig) -> None:
    """Raises UserError where a setting is out of its range."""
    check_numbers(
        config,
        least={"steps": 1, "shard_steps": 1, "seed": 0, "max_episode_steps": 1},
        shares=["epsilon"],
        within={"num_envs": (1, MOST_ENVIRONMENTS)},
    )
