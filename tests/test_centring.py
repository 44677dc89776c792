"""Steps in coordinates that no mean input changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rldistill.students.networks import Architecture, Network, build
from rldistill.students.optim.centring import CentredInputs

IMAGES = Architecture("cnn:3,4:5", (2, 10, 10), 3)
NORMALIZED = Architecture("cnn:3,4:5", (2, 10, 10), 3, "layer")
VECTORS = Architecture("mlp:6,5", (4,), 3)


def linear_layers(network: Network) -> list[nn.Conv2d | nn.Linear]:
    return [layer for layer in network.layers if isinstance(layer, nn.Conv2d | nn.Linear)]


def step(network: Network, observations: Tensor, targets: Tensor, centred: CentredInputs, rate: float = 0.01) -> None:
    network.zero_grad()
    ((network(observations) - targets) ** 2).mean().backward()
    centred.enter()
    with torch.no_grad():
        for parameter in network.parameters():
            assert parameter.grad is not None
            parameter.sub_(rate * parameter.grad)
    centred.leave()


def test_a_step_does_not_depend_on_how_far_the_inputs_are_from_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    observations, targets = torch.randn(32, 4, generator=generator), torch.randn(32, 3, generator=generator)

    def stepped(shift: float) -> Tensor:
        network = build(VECTORS, 0)
        first, second, _ = linear_layers(network)
        assert second.bias is not None
        with torch.no_grad():
            first.bias.add_(20.0 + shift)  # every unit is above 0 for every observation, so a shift is only that
            second.bias.sub_(second.weight.sum(1) * (20.0 + shift))  # and the function stays as it was
        centred = CentredInputs(network.layers)
        for _ in range(3):
            step(network, observations, targets, centred)
        with torch.no_grad():
            return network(observations)

    torch.testing.assert_close(stepped(0.0), stepped(30.0), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", [IMAGES, NORMALIZED], ids=["plain", "normalized"])
def test_a_step_is_that_of_layers_written_with_centred_inputs(architecture: Architecture) -> None:
    generator = torch.Generator().manual_seed(1)
    observations = torch.randint(0, 2, (16, 2, 10, 10), generator=generator).float()
    targets = torch.randn(16, 3, generator=generator)
    network, rate = build(architecture, 2), 0.05
    layers = linear_layers(network)
    weights = [layer.weight.detach().clone().requires_grad_() for layer in layers]
    biases = [layer.bias.detach().clone().requires_grad_() for layer in layers if layer.bias is not None]
    # The same function, written out: each layer but the first has W (x - m) + c with c = b + W m.
    x, centres = observations, []
    for layer in network.layers:
        if layer not in layers:
            x = layer(x)
            continue
        at = layers.index(layer)
        image = x.ndim == 4
        mean = x.detach().mean((0, 2, 3) if image else (0,)) * (at > 0)
        flat = weights[at].detach().sum((2, 3)) if image else weights[at].detach()
        centre = (biases[at].detach() + flat @ mean).requires_grad_()
        moved = x - (mean.view(1, -1, 1, 1) if image else mean)
        x = nn.functional.conv2d(moved, weights[at], centre, layer.stride) if isinstance(layer, nn.Conv2d) else (
            nn.functional.linear(moved, weights[at], centre)
        )  # fmt: skip
        centres.append((centre, mean))
    torch.testing.assert_close(x, network(observations), atol=1e-5, rtol=1e-5)
    ((x - targets) ** 2).mean().backward()
    step(network, observations, targets, CentredInputs(network.layers), rate)
    for layer, weight, (centre, mean) in zip(layers, weights, centres, strict=True):
        assert weight.grad is not None
        assert centre.grad is not None
        new = weight.detach() - rate * weight.grad
        torch.testing.assert_close(layer.weight.detach(), new, atol=1e-6, rtol=1e-5)
        flat = new.sum((2, 3)) if new.ndim == 4 else new
        assert layer.bias is not None
        torch.testing.assert_close(
            layer.bias.detach(), centre.detach() - rate * centre.grad - flat @ mean, atol=1e-6, rtol=1e-5
        )


def test_running_means_forget_a_tenth_a_batch_and_acting_does_not_count() -> None:
    network = build(VECTORS, 0)
    centred = CentredInputs(network.layers)
    batches = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 8, 4)).astype(np.float32))
    for batch in batches:
        network(batch)
        with torch.no_grad():
            network(batch * 100)
    hidden = [torch.relu(linear_layers(network)[0](batch)).mean(0) for batch in batches]
    expected = 0.9 * (0.9 * hidden[0] + 0.1 * hidden[1]) + 0.1 * hidden[2]
    torch.testing.assert_close(centred.state_dict()[0], expected.detach())


def test_saved_means_go_on_as_they_were() -> None:
    network = build(VECTORS, 0)
    centred = CentredInputs(network.layers)
    network(torch.ones(4, 4))
    again = CentredInputs(build(VECTORS, 1).layers)
    again.load_state_dict(centred.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict(), centred.state_dict(), strict=True))
    assert len(again.state_dict()) == 2
