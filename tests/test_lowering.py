"""A network as plain numbers gives what the network gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rldistill.lowering import activations, int8_bias, int8_rows, lower
from rldistill.networks import Architecture, Network, build

ARCHITECTURES = {
    "cnn": Architecture("cnn:4,6,5:7", (2, 36, 36), 3),
    "normalized cnn": Architecture("cnn:4,6,5:7", (2, 36, 36), 3, "layer", 0.1),
    "mlp of an image": Architecture("mlp:5", (2, 4, 4), 3),
    "normalized mlp": Architecture("mlp:5,4", (6,), 3, "layer"),
    "mlp of some features": Architecture("mlp:5,4", (6,), 3, reads=(4, 1)),
}


def made(architecture: Architecture) -> Network:
    """With numbers everywhere that are not those of a fresh network."""
    network = build(architecture, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        network.standardize(
            torch.randn(network.shift.shape, generator=generator),
            0.01 + torch.rand(network.scale.shape, generator=generator),
        )
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_chain_gives_the_networks_scores(name: str, fold: bool) -> None:
    architecture = ARCHITECTURES[name]
    network = made(architecture)
    lowered = lower(network, fold_vectors=fold)
    observations = torch.randn((5, *architecture.observation_shape), generator=torch.Generator().manual_seed(2))
    wanted = network(observations)
    torch.testing.assert_close(activations(lowered, observations)[-1][1], wanted, atol=1e-4, rtol=1e-4)
    assert wanted.std() > 0.01
    assert (lowered.shift is None) == (fold or len(architecture.observation_shape) == 3)


def test_the_bias_makes_up_for_the_rounding_of_weights_over_an_even_background() -> None:
    layer = lower(made(ARCHITECTURES["cnn"])).layers[0]
    numbers, scales = int8_rows(layer.weight)
    even = np.full(layer.weight.shape[1:], 100.0)
    wanted = (layer.weight * even).reshape(len(scales), -1).sum(axis=1) + layer.bias
    rounded = (numbers * even).reshape(len(scales), -1).sum(axis=1) * scales
    np.testing.assert_allclose(rounded + int8_bias(layer, numbers, scales, 100.0), wanted, rtol=1e-4)
    assert np.abs(rounded + layer.bias - wanted).max() > 1e-3 * np.abs(wanted).max()


def test_rows_are_rounded_to_half_a_step_of_their_own_scale() -> None:
    weight = np.random.default_rng(0).normal(size=(3, 4, 2, 2)).astype(np.float32) * np.float32(10.0)
    weight[1] *= 1e-6
    weight[2] = 0
    numbers, scales = int8_rows(weight)
    assert numbers.dtype == np.int8
    assert np.abs(numbers[:2]).reshape(2, -1).max(axis=1).tolist() == [127, 127]
    back = numbers * scales.reshape(-1, 1, 1, 1)
    assert (np.abs(back - weight) <= 0.5001 * scales.reshape(-1, 1, 1, 1)).all()
    assert not back[2].any()
