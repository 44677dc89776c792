"""Muon: weight matrices are moved by orthogonal steps, everything else by AdamW."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from rldistill.students.optim.adamw import AdamW

_MOMENTUM = 0.95
_ROUNDS = 5
_QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of the published polynomial: in five rounds it maps singular values from 0.01 to 1 to 0.7 to 1.2."""

_NEGLIGIBLE = 1e-12
"""Entries below this are set to 0 in a matrix of norm 1."""


def orthogonalized(matrix: Tensor) -> Tensor:
    """The (N, M) matrix with the same singular vectors and singular values near 1: U V^T of its U S V^T, about.

    Newton-Schulz iteration with a quintic polynomial (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/). All
    rounds are polynomials of the smaller Gram matrix. They are computed there and applied to the matrix once, which takes less
    than half of the operations for a student's hidden layer.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    # The momentum of a dead unit decays to denormal numbers and stays there. Products with them take forty times as long, and
    # they are negligible beside a norm of 1.
    x = torch.hardshrink(x / (torch.linalg.matrix_norm(x) + 1e-7), _NEGLIGIBLE)
    gram = x @ x.T
    applied = factor = _factor(gram)
    for _ in range(_ROUNDS - 1):
        gram = factor @ gram @ factor
        factor = _factor(gram)
        applied = factor @ applied
    out: Tensor = applied @ x
    return out.T if tall else out


def _factor(gram: Tensor) -> Tensor:
    """What a round multiplies the matrix with, (N, N), from its Gram matrix."""
    a, b, c = _QUINTIC
    factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
    factor.diagonal().add_(a)
    return factor


class Muon:
    """Nesterov momentum whose steps are orthogonalized, for the matrices; AdamW for the rest.

    A step moves all directions of a layer alike, also those whose gradients are small beside that of what all
    observations share. Its size is that of AdamW's usual ones (root mean square 0.2 of the learning rate), so both take the
    same learning rate and weight decay: Liu et al. 2025, arXiv 2502.16982, section 2.2, equation 4.

    Args:
        matrices: weights of hidden layers, of two dimensions or more (units first; the others count as one).
        groups: all other parameters, as for `AdamW`.
        weight_decay: apart from the gradient, times the learning rate.
    """

    def __init__(self, matrices: Iterable[Tensor], groups: Iterable[dict[str, Any]], weight_decay: float) -> None:
        self._matrices = list(matrices)
        self._rest = AdamW(groups, weight_decay)
        self._weight_decay = weight_decay
        self._moments = [torch.zeros_like(matrix) for matrix in self._matrices]
        self.param_groups = [{"params": self._matrices, "share": 1.0}, *self._rest.param_groups]

    def step(self) -> None:
        """Moves each parameter by its gradient, which has to be there."""
        rate = self.param_groups[0]["lr"]
        with torch.no_grad():
            for matrix, moment in zip(self._matrices, self._moments, strict=True):
                gradient = matrix.grad
                assert gradient is not None
                moment.lerp_(gradient, 1 - _MOMENTUM)
                step = orthogonalized(gradient.lerp(moment, _MOMENTUM).flatten(1))
                size = 0.2 * max(step.shape) ** 0.5
                matrix.mul_(1 - rate * self._weight_decay).sub_(step.view_as(matrix), alpha=rate * size)
        self._rest.step()

    def state_dict(self) -> dict[str, Any]:
        """Moments, and the state of the rest."""
        return {"moments": self._moments, "rest": self._rest.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
        self._moments = list(state["moments"])
        self._rest.load_state_dict(state["rest"])
