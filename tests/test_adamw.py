"""The optimizer's step beside torch's own."""

from __future__ import annotations

import torch
from torch import nn

from rldistill.students.optim.adamw import AdamW

STATES = torch.randn(32, 5, generator=torch.Generator().manual_seed(1))


def student() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 70), nn.ReLU(), nn.Linear(70, 3))


def groups(network: nn.Sequential) -> list[dict[str, object]]:
    """Two layers, two rates."""
    return [
        {"params": list(layer.parameters()), "share": share}
        for layer, share in zip(network[::2], (1.0, 0.3), strict=True)
    ]


def moved(
    network: nn.Sequential, optimizer: AdamW | torch.optim.AdamW, steps: int, start: int = 0
) -> list[torch.Tensor]:
    for step in range(start, start + steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * group["share"] / (1 + step)
        for parameter in network.parameters():
            parameter.grad = None
        network(STATES + step).square().mean().backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in network.parameters()]


def test_it_moves_weights_as_torch_does_to_the_bit() -> None:
    ours, theirs = student(), student()
    expected = moved(theirs, torch.optim.AdamW(groups(theirs), weight_decay=0.1, fused=True), 20)
    got = moved(ours, AdamW(groups(ours), 0.1), 20)
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(got, student().parameters(), strict=True))


def test_it_goes_on_from_its_state_as_if_it_had_not_stopped() -> None:
    whole, parted = student(), student()
    expected = moved(whole, AdamW(groups(whole), 0.1), 20)
    first = AdamW(groups(parted), 0.1)
    moved(parted, first, 12)
    second = AdamW(groups(parted), 0.1)
    second.load_state_dict(first.state_dict())
    got = moved(parted, second, 8, start=12)
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
