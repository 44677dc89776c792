"""The fused step beside torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rldistill.students.optim.radam import RAdam

RATE = 0.01


def weights() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in ((30, 20), (30,), (2, 3))]


def moved(tensors: list[Tensor], optimizer: torch.optim.Optimizer, steps: range) -> list[Tensor]:
    """The last tensor never has a gradient; the rate falls."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for tensor in tensors[:-1]:
            tensor.grad = torch.randn(tensor.shape, generator=generator) * 10.0 ** -(step % 4)
        for group in optimizer.param_groups:
            group["lr"] = RATE / (1 + step / 100)
        optimizer.step()
    return [tensor.detach().clone() for tensor in tensors]


@pytest.mark.parametrize("steps", [1, 5, 6, 200])
def test_weights_go_where_torchs_own_step_takes_them(steps: int) -> None:
    ours, theirs = weights(), weights()
    expected = moved(theirs, torch.optim.RAdam(theirs, lr=RATE), range(steps))
    got = moved(ours, RAdam(ours, lr=RATE), range(steps))
    for one, other, start in zip(got, expected, weights(), strict=True):
        torch.testing.assert_close(one - start, other - start, rtol=1e-4, atol=1e-6)
    assert float((got[0] - weights()[0]).detach().abs().max()) > RATE / 10
    assert torch.equal(got[-1], weights()[-1])


def test_the_first_step_is_the_one_worked_out_by_hand() -> None:
    weight = torch.tensor([1.0]).requires_grad_()
    weight.grad = torch.tensor([3.0])
    RAdam([weight], lr=0.1).step()
    # No rectification yet: the first moment without its bias is the gradient, whatever its size.
    torch.testing.assert_close(weight.detach(), torch.tensor([1.0 - 0.1 * 3.0]))


@pytest.mark.parametrize("stop", [3, 50])
def test_either_goes_on_from_the_others_state(stop: int) -> None:
    whole, parted = weights(), weights()
    expected = moved(whole, RAdam(whole, lr=RATE), range(80))
    first, second = torch.optim.RAdam(parted, lr=RATE), RAdam(parted, lr=RATE)
    moved(parted, first, range(stop))
    second.load_state_dict(first.state_dict())
    got = moved(parted, second, range(stop, 80))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_what_the_fused_step_does_not_do_is_refused() -> None:
    with pytest.raises(ValueError, match="weight decay"):
        RAdam(weights(), lr=RATE, weight_decay=0.1).step()
    with pytest.raises(ValueError, match="closures"):
        RAdam(weights(), lr=RATE).step(lambda: 0.0)
