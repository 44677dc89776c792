"""A network as plain numbers gives what the network gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rldistill.students.lowering import Affine, Lowered, activations, int8_layers, lower
from rldistill.students.networks import Architecture, Network, build

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


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rounded_layers_keep_the_mean_of_each_output(name: str) -> None:
    architecture = ARCHITECTURES[name]
    lowered = lower(made(architecture))
    examples = torch.rand((64, *architecture.observation_shape), generator=torch.Generator().manual_seed(2)) * 200
    rounded = int8_layers(lowered, examples)
    layers = [
        layer._replace(weight=(numbers * scales.reshape(-1, *[1] * (numbers.ndim - 1))).astype(np.float32), bias=bias)
        for layer, (numbers, scales, bias) in zip(lowered.layers, rounded, strict=True)
    ]
    for (ours, _), (theirs, _) in zip(
        activations(lowered._replace(layers=tuple(layers)), examples), activations(lowered, examples), strict=True
    ):
        over = (0, 2, 3) if ours.ndim == 4 else (0,)
        spread = float(theirs.std())
        torch.testing.assert_close(ours.mean(over), theirs.mean(over), atol=2e-3 * spread, rtol=0)
        assert 0 < float((ours - theirs).abs().max()) < 0.2 * spread


def test_what_a_rounding_does_is_taken_back_where_inputs_go_together() -> None:
    """Two inputs that are nearly one: 0.4 and 0.4 steps round to nothing by themselves, and to 1 and 0 together."""
    generator = np.random.default_rng(0)
    one = generator.normal(size=(500, 1))
    inputs = torch.from_numpy(
        np.hstack([one, one + 0.01 * generator.normal(size=(500, 1)), generator.normal(size=(500, 1))])
    )
    weight = np.array([[0.4, 0.4, 127.0]], np.float32)
    layer = Affine(weight, np.zeros(1, np.float32), 0, (3,), (1,), None, False)
    (rounded,) = int8_layers(Lowered(None, None, (layer,)), inputs.to(torch.float32))
    assert rounded.scales.tolist() == [1.0]
    assert int(rounded.numbers[0, :2].sum()) == 1
    assert rounded.numbers[0, 2] == 127


def test_numbers_are_within_a_scale_of_the_largest_weight_and_rows_of_nothing_stay_nothing() -> None:
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(3, 4)).astype(np.float32) * np.float32(10.0)
    weight[1] *= 1e-6
    weight[2] = 0
    layer = Affine(weight, np.zeros(3, np.float32), 0, (4,), (3,), None, False)
    (rounded,) = int8_layers(
        Lowered(None, None, (layer,)), torch.from_numpy(generator.normal(size=(99, 4)).astype(np.float32))
    )
    assert rounded.numbers.dtype == np.int8
    np.testing.assert_allclose(rounded.scales[:2], np.abs(weight[:2]).max(axis=1) / 127, rtol=1e-6)
    assert np.abs(rounded.numbers[:2]).max(axis=1).min() >= 120
    assert not rounded.numbers[2].any()
