"""Makes `starts/freeway.json`: states of a policy that presses UP, with random actions in between."""

import torch

import rldistill
from rldistill.play.envs import action_names

TASK = rldistill.make_task("FreewayNoFrameskip-v4")
SCORES = [float(name == "UP") for name in action_names(TASK)]


class PressesUp:
    """Scores UP 1 and the other actions 0."""

    task = TASK
    score_kind = "q_values"

    def __call__(self, observations: torch.Tensor) -> torch.Tensor:
        return torch.tensor(SCORES).repeat(len(observations), 1)


if __name__ == "__main__":
    config = rldistill.StartsConfig(per_episode=5, epsilon=0.3)
    rldistill.starts(PressesUp(), "starts/freeway.json", config)
