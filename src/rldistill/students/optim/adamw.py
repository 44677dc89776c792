"""AdamW without the bookkeeping of `torch.optim`, which takes longer than the arithmetic of a small student."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8


class AdamW:
    """The step of `torch.optim.AdamW(..., fused=True)`, bit for bit; Loshchilov & Hutter, arXiv 1711.05101.

    Args:
        groups: of parameters, each `{"params": [...], ...}`; `lr` is set by the caller before each step.
        weight_decay: apart from the gradient, times the learning rate.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], weight_decay: float) -> None:
        self.param_groups = list(groups)
        self._weight_decay = weight_decay
        self._steps = torch.zeros(())
        self._moments = [
            ([torch.zeros_like(p) for p in group["params"]], [torch.zeros_like(p) for p in group["params"]])
            for group in self.param_groups
        ]

    def step(self) -> None:
        """Moves each parameter by its gradient; every parameter needs one."""
        with torch.no_grad():
            self._steps.add_(1)
            for group, (first, second) in zip(self.param_groups, self._moments, strict=True):
                parameters = group["params"]
                torch._fused_adamw_(
                    parameters,
                    [parameter.grad for parameter in parameters],
                    first,
                    second,
                    [],
                    [self._steps] * len(parameters),
                    lr=group["lr"],
                    beta1=_BETAS[0],
                    beta2=_BETAS[1],
                    weight_decay=self._weight_decay,
                    eps=_EPSILON,
                    amsgrad=False,
                    maximize=False,
                )

    def state_dict(self) -> dict[str, Any]:
        """Moments and the number of steps."""
        return {"steps": self._steps, "moments": self._moments}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._steps, self._moments = state["steps"], state["moments"]
