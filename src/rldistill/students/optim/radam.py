"""RAdam in one pass over the weights instead of a dozen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class RAdam(torch.optim.RAdam):
    """`torch.optim.RAdam` for parameters of one processor, with the same state; Liu et al. 2019, arXiv 1908.03265, algorithm 2.

    Its step is Adam's with two numbers changed, the learning rate by the rectification and epsilon by the bias of the second
    moment, and Adam has a fused kernel. In the first five steps, where the rectification is undefined, it is the first moment.
    """

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]  # torch returns a closure's loss
        """Moves each parameter that has a gradient.

        Raises:
            ValueError: there is a closure, or a group has a weight decay.
        """
        if closure is not None or any(group["weight_decay"] for group in self.param_groups):
            raise ValueError("closures and weight decay are not supported")
        for group in self.param_groups:
            parameters: list[Tensor] = []
            gradients: list[Tensor] = []
            first: list[Tensor] = []
            second: list[Tensor] = []
            steps: list[Tensor] = []
            self._init_group(group, parameters, gradients, first, second, steps)  # type: ignore[no-untyped-call]  # of torch
            if not parameters:
                continue
            (beta1, beta2), rate = group["betas"], group["lr"]
            torch._foreach_add_(steps, 1)
            step = float(steps[0])
            unbias = 1 - beta2**step
            longest = 2 / (1 - beta2) - 1
            length = longest - 2 * step * beta2**step / unbias
            rectified = length > 5
            if rectified:
                rate *= (((length - 4) * (length - 2) * longest) / ((longest - 4) * (longest - 2) * length)) ** 0.5
            with torch.no_grad():
                torch._fused_adam_(
                    parameters,
                    gradients,
                    first,
                    second,
                    [],
                    steps,
                    lr=rate if rectified else 0.0,
                    beta1=beta1,
                    beta2=beta2,
                    weight_decay=0.0,
                    eps=group["eps"] / unbias**0.5,
                    amsgrad=False,
                    maximize=False,
                )
                if not rectified:
                    torch._foreach_add_(parameters, first, alpha=-rate / (1 - beta1**step))
