"""Gradient steps that do not depend on how far a layer's inputs are from 0."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

_KEPT = 0.9
"""Of a running mean with each batch: it follows the layers before within some ten updates."""


class CentredInputs:
    """Layers in the coordinates of their inputs' distance from the mean, `W (x - m) + c`, while the optimizer steps.

    What comes out of a ReLU is never negative, so all of a unit's weights have gradients of one sign, and an optimizer that
    moves each by about its learning rate shifts the unit's output by their number times the mean input. Some such steps and
    the unit is 0 for every observation, for good: of 16 channels in the second convolution of `net2`, fifteen died within
    10,000 control steps of Breakout. In these coordinates the mean does not count, and the function is the same: `c` is `b + W m`
    (Schraudolph 1998, "Accelerated gradient descent by factor-centering decomposition"; Montavon & Mueller 2012, "Deep
    Boltzmann machines and the centering trick").

    Args:
        layers: of a network; its convolutions (no padding) and linear layers are in these coordinates.
        skips_first: leaves out the first of them, whose inputs are standardized.
    """

    def __init__(self, layers: Iterable[nn.Module], *, skips_first: bool = True) -> None:
        weighted = [layer for layer in layers if isinstance(layer, nn.Conv2d | nn.Linear)]
        self._layers = weighted[1:] if skips_first else weighted
        self._means: dict[int, Tensor] = {}
        self._before: list[Tensor] = []
        for place, layer in enumerate(self._layers):
            layer.register_forward_pre_hook(lambda _, inputs, place=place: self._observe(place, inputs[0]))

    def _observe(self, place: int, inputs: Tensor) -> None:
        if not torch.is_grad_enabled():  # acting
            return
        over = (0, 2, 3) if inputs.ndim == 4 else (0,)
        mean = inputs.detach().mean(over, dtype=torch.float32)
        self._means[place] = self._means[place].lerp(mean, 1 - _KEPT) if place in self._means else mean

    def enter(self) -> None:
        """Gradients of W at constant c, from those at constant b."""
        self._before = [layer.weight.detach().clone() for layer in self._layers]
        for place, layer in enumerate(self._layers):
            gradient, shift = layer.weight.grad, layer.bias.grad if layer.bias is not None else None
            if gradient is None or shift is None:
                continue
            if gradient.ndim == 2:
                gradient.addr_(shift, self._means[place], alpha=-1)
            else:
                gradient.sub_(torch.outer(shift, self._means[place])[:, :, None, None])

    def leave(self) -> None:
        """b from c: it takes back what the change of W does to the mean output, weight decay's share of it too."""
        with torch.no_grad():
            for place, (layer, before) in enumerate(zip(self._layers, self._before, strict=True)):
                if layer.bias is not None:
                    change = layer.weight - before
                    layer.bias.sub_((change.sum((2, 3)) if change.ndim == 4 else change) @ self._means[place])

    def state_dict(self) -> Sequence[Tensor]:
        """The running means, layer by layer."""
        return [self._means[place] for place in sorted(self._means)]

    def load_state_dict(self, means: Sequence[Tensor]) -> None:
        """Puts back what `state_dict` gave."""
        self._means = {place: mean.to(self._layers[place].weight.device) for place, mean in enumerate(means)}
