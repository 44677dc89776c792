"""A network as plain arrays, from which the exporters write their formats.

Every network of `networks` is a chain of affine layers: convolutions, then linear ones. Each but the last is followed by an
optional normalization and a ReLU. Dropout is left out, and features that a network does not read have weights of zero.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rldistill.students.networks import Network
from rldistill.types import Floats


class Norm(NamedTuple):
    """Normalization over all units of a layer, then a scale and a shift for each channel, (C,) each."""

    weight: Floats
    bias: Floats
    epsilon: float


class Affine(NamedTuple):
    """One layer; the `stride` of a linear layer is 0."""

    weight: Floats
    """(out, in, kernel, kernel) or (out, in)."""
    bias: Floats
    """(out,)."""
    stride: int
    inputs: tuple[int, ...]
    """(channels, height, width) or (features,)."""
    outputs: tuple[int, ...]
    norm: Norm | None
    relu: bool


class Lowered(NamedTuple):
    """A network: the step `scale * (x - shift)`, unless it is folded into the first layer, then the layers."""

    shift: Floats | None
    """(features,); None where the first layer takes observations as they are."""
    scale: Floats | None
    layers: tuple[Affine, ...]


def lower(network: Network, *, fold_vectors: bool = False) -> Lowered:
    """The chain of a network, without gradients and sharing no memory with it.

    The standardization of images, one pair of numbers, is folded into the first layer. The standardization of vectors, a pair for
    each feature, stays a separate step unless `fold_vectors`, because a feature that hardly varies loses digits in the sum.

    Args:
        network: of `networks.build`.
        fold_vectors: fold the standardization of vectors too.
    """
    shape = network.architecture.observation_shape
    image = len(shape) == 3
    layers = chain(network)
    shift, scale = (_numbers(buffer).astype(np.float64) for buffer in (network.shift, network.scale))
    reads = network.architecture.reads
    if reads:
        first = layers[0]
        every = np.zeros((len(first.weight), *shape), np.float32)
        every[:, list(reads)] = first.weight
        wide = [np.zeros(shape), np.ones(shape)]
        wide[0][list(reads)], wide[1][list(reads)] = shift, scale
        shift, scale = wide
        layers[0] = first._replace(weight=every, inputs=shape)
    if not (image or fold_vectors):
        return Lowered(shift.astype(np.float32), scale.astype(np.float32), tuple(layers))
    first = layers[0]
    weight = first.weight.astype(np.float64) * scale  # of images one number; of vectors one a column
    inner = (weight * shift).reshape(len(weight), -1).sum(axis=1)
    layers[0] = first._replace(
        weight=weight.astype(np.float32), bias=(first.bias.astype(np.float64) - inner).astype(np.float32)
    )
    return Lowered(None, None, tuple(layers))


def activations(lowered: Lowered, observations: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The outputs of each layer for observations (B, *obs): before its normalization and ReLU, and after."""
    x = _standardized(lowered, observations)
    outputs = []
    for layer in lowered.layers:
        before, x = _forward(layer, x)
        outputs.append((before, x))
    return outputs


def _standardized(lowered: Lowered, observations: Tensor) -> Tensor:
    x = observations.to(torch.float32)
    if lowered.shift is None or lowered.scale is None:
        return x
    return (x - torch.from_numpy(lowered.shift)) * torch.from_numpy(lowered.scale)


def _forward(layer: Affine, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output before normalization and ReLU, and after."""
    weight, bias = torch.from_numpy(layer.weight), torch.from_numpy(layer.bias)
    if layer.stride:
        before = nn.functional.conv2d(x, weight, bias, layer.stride)
    else:
        before = nn.functional.linear(x.flatten(1), weight, bias)
    x = before
    if layer.norm is not None:
        norm = layer.norm
        x = nn.functional.group_norm(x, 1, torch.from_numpy(norm.weight), torch.from_numpy(norm.bias), norm.epsilon)
    return before, x.relu() if layer.relu else x


class Rounded(NamedTuple):
    """A layer's weights in 8 bits: `numbers[o] * scales[o]` stands for `weight[o]`."""

    numbers: npt.NDArray[np.int8]
    """-127 to 127, in the shape of the weight."""
    scales: Floats
    """(out,)."""
    bias: Floats
    """(out,), float32."""


_PATCHES = 16_384
"""The most inputs of a layer that its rounding is fitted to."""
_DAMPING = 0.01
"""Share of the mean square of the inputs that is added to it, because some inputs hardly vary."""


def int8_layers(lowered: Lowered, observations: Tensor) -> list[Rounded]:
    """All layers' weights in 8 bits, fitted to observations so that each layer's outputs change as little as can be.

    A layer's weights are rounded one input after the other. The following weights compensate for the change of the
    outputs, as far as their inputs are correlated with it: Frantar et al. 2022, arXiv 2210.17323, algorithm 1 (GPTQ). Each
    layer is fitted to the outputs of the rounded layers before it, and its bias keeps the mean output of the plain network.
    Scales are those of the largest weight.

    Args:
        lowered: the network.
        observations: (B, *obs), some hundreds.
    """
    plain = rounded = _standardized(lowered, observations)
    done = []
    for layer in lowered.layers:
        meant = _patches(layer, plain).mean(axis=0)
        inputs = _patches(layer, rounded)
        numbers, scales = _fitted(layer.weight.reshape(len(layer.bias), -1).astype(np.float64), inputs)
        weight = (numbers * scales[:, None]).astype(np.float32)
        exact = layer.weight.reshape(weight.shape).astype(np.float64)
        bias = (layer.bias + exact @ meant - weight @ inputs.mean(axis=0)).astype(np.float32)
        done.append(Rounded(numbers.reshape(layer.weight.shape), scales, bias))
        _, plain = _forward(layer, plain)
        _, rounded = _forward(layer._replace(weight=weight.reshape(layer.weight.shape), bias=bias), rounded)
    return done


def _patches(layer: Affine, x: Tensor) -> npt.NDArray[np.float64]:
    """The inputs of the layer's units, (N, inputs of a unit)."""
    if not layer.stride:
        return x.flatten(1).numpy().astype(np.float64)
    number = max(_PATCHES // math.prod(layer.outputs[1:]), 1)
    spread = x[:: max(-(-len(x) // number), 1)]  # spread over all observations
    patches = nn.functional.unfold(spread, layer.weight.shape[2], stride=layer.stride)
    return patches.transpose(1, 2).flatten(0, 1).numpy().astype(np.float64)


def _fitted(weight: npt.NDArray[np.float64], inputs: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.int8], Floats]:
    """Numbers (out, in) and scales (out,) of a weight (out, in) for inputs (N, in)."""
    largest = np.abs(weight).max(axis=1)
    scales = np.where(largest > 0, largest / 127, 1.0).astype(np.float32)
    centred = inputs - inputs.mean(axis=0)
    square = centred.T @ centred / len(centred)
    square[np.diag_indices_from(square)] += _DAMPING * float(np.diag(square).mean()) + 1e-12
    inverse = np.linalg.cholesky(np.linalg.inv(square)).T
    left, numbers = weight.copy(), np.zeros(weight.shape, np.int8)
    for place in range(weight.shape[1]):
        number = np.clip(np.rint(left[:, place] / scales), -127, 127)
        numbers[:, place] = number
        error = (left[:, place] - number * scales) / inverse[place, place]
        left[:, place + 1 :] -= np.outer(error, inverse[place, place + 1 :])
    return numbers, scales


def chain(network: Network) -> list[Affine]:
    """The layers of a network without its standardization; the first one reads the padding too."""
    shape: tuple[int, ...] = network.architecture.observation_shape
    if network.architecture.reads:
        shape = (len(network.architecture.reads),)
    shape = (shape[0] + network.padding, *shape[1:])
    layers: list[Affine] = []
    for module in network.layers:
        if isinstance(module, nn.Conv2d):
            kernel, stride = module.kernel_size[0], module.stride[0]
            out = (module.out_channels, *((side - kernel) // stride + 1 for side in shape[1:]))
            layers.append(Affine(_numbers(module.weight), _bias(module), stride, shape, out, None, False))
            shape = out
        elif isinstance(module, nn.Linear):
            inputs, shape = (math.prod(shape),), (module.out_features,)
            layers.append(Affine(_numbers(module.weight), _bias(module), 0, inputs, shape, None, False))
        elif isinstance(module, nn.GroupNorm | nn.LayerNorm):
            norm = Norm(_numbers(cast(Tensor, module.weight)), _numbers(cast(Tensor, module.bias)), module.eps)
            layers[-1] = layers[-1]._replace(norm=norm)
        elif isinstance(module, nn.ReLU):
            layers[-1] = layers[-1]._replace(relu=True)
    return layers


def _bias(layer: nn.Conv2d | nn.Linear) -> Floats:
    assert layer.bias is not None  # all layers of `networks.build` have one
    return _numbers(layer.bias)


def _numbers(tensor: Tensor) -> Floats:
    if tensor.is_meta:  # a meta tensor has a shape and no numbers
        return np.zeros(tuple(tensor.shape), np.float32)
    return tensor.detach().to(torch.float32).numpy().copy()
