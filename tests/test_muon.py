"""Orthogonal steps: against the iteration as it is published, against singular values, and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rldistill.students.optim.adamw import AdamW
from rldistill.students.optim.muon import Muon, orthogonalized

SHAPES = [(16, 256), (128, 784), (300, 20), (7, 7), (1, 5)]


def matrix(shape: tuple[int, int], seed: int = 0) -> Tensor:
    """Columns of sizes from 1 down to a thousandth."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * torch.logspace(0, -3, shape[1])


def published(gradient: Tensor) -> Tensor:
    """`zeropower_via_newtonschulz5` of https://github.com/KellerJordan/Muon, in float64 instead of bfloat16."""
    x = gradient.double()
    x = x.T if len(gradient) > gradient.shape[1] else x
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.T if len(gradient) > gradient.shape[1] else x).float()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_iteration_on_the_gram_matrix_is_the_published_one(shape: tuple[int, int]) -> None:
    torch.testing.assert_close(orthogonalized(matrix(shape)), published(matrix(shape)), atol=1e-3, rtol=1e-4)


def test_singular_vectors_stay_and_singular_values_come_near_one() -> None:
    before = torch.randn((32, 200), generator=torch.Generator().manual_seed(1))
    left, _, right = torch.linalg.svd(before, full_matrices=False)
    values = left.T @ orthogonalized(before) @ right.T
    torch.testing.assert_close(values, torch.diag(values.diagonal()), atol=1e-4, rtol=0)
    assert float(values.diagonal().min()) > 0.6
    assert float(values.diagonal().max()) < 1.25


def test_nothing_to_follow_is_no_step() -> None:
    assert torch.equal(orthogonalized(torch.zeros(3, 5)), torch.zeros(3, 5))


@pytest.mark.parametrize("transposed", [False, True])
def test_the_faded_momentum_of_a_dead_unit_is_no_momentum(transposed: bool) -> None:
    alive = matrix((8, 20))
    faded, still = alive.clone(), alive.clone()
    faded[2] = 7e-43  # a denormal number, as what is left of a momentum
    still[2] = 0
    turn = torch.t if transposed else torch.clone
    assert torch.equal(orthogonalized(turn(faded)), orthogonalized(turn(still)))
    assert not orthogonalized(still)[2].any()


def test_steps_of_one_row_are_those_worked_out_by_hand() -> None:
    # One row of length l has the singular value l: divided by it, 1 goes through the polynomial five times.
    value = 1.0
    for _ in range(5):
        value = 3.4445 * value - 4.7750 * value**3 + 2.0315 * value**5
    weights = torch.tensor([[2.0, 0.0, 0.0, 0.0]], requires_grad=True)
    muon = Muon([weights], [], weight_decay=0.5)
    muon.param_groups[0]["lr"] = 0.1
    weights.grad = torch.tensor([[3.0, 4.0, 0.0, 0.0]])
    muon.step()
    # Decay by 0.1 * 0.5, then 0.1 * 0.2 * sqrt(4) along (0.6, 0.8), whatever the gradient's size and the momentum's.
    first = torch.tensor([[1.9 - 0.04 * value * 0.6, -0.04 * value * 0.8, 0.0, 0.0]])
    torch.testing.assert_close(weights.detach(), first)
    weights.grad = torch.tensor([[0.0, 0.0, 1.0, 0.0]])
    muon.step()
    # Momentum 0.05 (3, 4) * 0.95 + 0.05 e3; Nesterov: 0.95 of that and 0.05 of the gradient.
    follow = torch.tensor([[0.95 * 0.95 * 0.15, 0.95 * 0.95 * 0.2, 0.95 * 0.05 + 0.05, 0.0]])
    second = 0.95 * first - 0.04 * value * follow / follow.norm()
    torch.testing.assert_close(weights.detach(), second)


def parameters(seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    shapes: list[tuple[int, ...]] = [(4, 3, 2, 2), (5, 8)]
    hidden = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    rest = [
        torch.randn(4, generator=generator).requires_grad_(),
        torch.randn((2, 5), generator=generator).requires_grad_(),
    ]
    return hidden, rest


def stepped(optimizer: Any, tensors: list[Tensor], seeds: range) -> list[bytes]:
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for tensor in tensors:
            tensor.grad = torch.randn(tensor.shape, generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        optimizer.step()
    return [tensor.detach().numpy().tobytes() for tensor in tensors]


def test_what_is_no_hidden_matrix_is_moved_by_adamw() -> None:
    hidden, rest = parameters()
    moved = stepped(Muon(hidden, [{"params": rest, "share": 1.0}], 0.1), hidden + rest, range(5))
    _, alone = parameters()
    adamw = AdamW([{"params": alone, "share": 1.0}], 0.1)
    ignored = [torch.zeros_like(tensor) for tensor in hidden]  # drawn for, so that the gradients are the same
    assert stepped(adamw, ignored + alone, range(5))[2:] == moved[2:]


def test_a_step_of_a_convolution_is_that_of_its_kernels_as_rows() -> None:
    hidden, _ = parameters()
    kernels = hidden[0].detach().clone().flatten(1).requires_grad_()
    together = stepped(Muon(hidden[:1], [], 0.0), hidden[:1], range(3))
    muon = Muon([kernels], [], 0.0)
    for seed in range(3):
        kernels.grad = torch.randn(hidden[0].shape, generator=torch.Generator().manual_seed(seed)).flatten(1)
        muon.param_groups[0]["lr"] = 0.01
        muon.step()
    np.testing.assert_array_equal(np.frombuffer(together[0], np.float32), kernels.detach().numpy().ravel())


def test_an_optimizer_put_back_goes_on_to_the_bit() -> None:
    hidden, rest = parameters()
    muon = Muon(hidden, [{"params": rest}], 0.1)
    stepped(muon, hidden + rest, range(3))
    copies = [[tensor.detach().clone().requires_grad_() for tensor in tensors] for tensors in (hidden, rest)]
    again = Muon(copies[0], [{"params": copies[1]}], 0.1)
    state = muon.state_dict()
    again.load_state_dict(
        {
            "moments": [moment.clone() for moment in state["moments"]],
            "rest": {
                "steps": state["rest"]["steps"].clone(),
                "moments": [tuple([m.clone() for m in side] for side in pair) for pair in state["rest"]["moments"]],
            },
        }
    )
    assert stepped(muon, hidden + rest, range(3, 6)) == stepped(again, copies[0] + copies[1], range(3, 6))
