"""Gradient steps that do not depend on how far a layer's inputs are from 0."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

_KEPT = 0.9
"""Share of a running mean that stays with each batch: it follows the earlier layers within some ten updates."""


class CentredInputs:
    """Writes layers as `W (x - m) + c` while the optimizer steps, with the running mean `m` of their inputs.

    The outputs of a ReLU are never negative, so all weights of a unit have gradients of one sign. An optimizer that moves each
    weight by about its learning rate shifts the unit's output by their number times the mean input. After some such steps the
    unit is 0 for every observation and gets no gradient any more. In the centred coordinates the mean does not count, and the
    function is the same: `c` is `b + W m` (Schraudolph 1998, "Accelerated gradient descent by factor-centering decomposition";
    Montavon & Mueller 2012, "Deep Boltzmann machines and the centering trick").

    Args:
        layers: of a network; its convolutions (without padding) and linear layers are centred.
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
        """Turns the gradients of W at constant b into those at constant c."""
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
        """Computes b from c: it compensates for the effect of the change of W, weight decay included, on the mean output."""
        with torch.no_grad():
            for place, (layer, before) in enumerate(zip(self._layers, self._before, strict=True)):
                if layer.bias is not None:
                    change = layer.weight - before
                    layer.bias.sub_((change.sum((2, 3)) if change.ndim == 4 else change) @ self._means[place])

    def state_dict(self) -> Sequence[Tensor]:
        """The running means, layer by layer."""
        return [self._means[place] for place in sorted(self._means)]

    def load_state_dict(self, means: Sequence[Tensor]) -> None:
        """Restores what `state_dict` returned."""
        self._means = {place: mean.to(self._layers[place].weight.device) for place, mean in enumerate(means)}
