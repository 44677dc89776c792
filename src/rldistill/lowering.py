"""A network as the plain numbers that are left of it when it acts: what exporters write down, format by format.

Every network of `networks` is a chain of affine layers (convolutions, then linear ones), each but the last followed by an
optional normalization and a ReLU. Dropout is gone, and the features that a network does not read have weights of zero.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rldistill.networks import Network
from rldistill.types import Floats


class Norm(NamedTuple):
    """Over all units of a layer, then scale and shift a channel: (C,) each."""

    weight: Floats
    bias: Floats
    epsilon: float


class Affine(NamedTuple):
    """One layer; of a linear one `stride` is 0."""

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
    """A network: `scale * (x - shift)` where they are not folded into the first layer, then the layers."""

    shift: Floats | None
    """(features,); None where the first layer takes observations as they are."""
    scale: Floats | None
    layers: tuple[Affine, ...]
    centre: float = 0.0
    """The middle of what the first layer reads, where the standardization of images is folded into it."""


def lower(network: Network, *, fold_vectors: bool = False) -> Lowered:
    """The chain of a network, without gradients and sharing no memory with it.

    The standardization of images, one pair of numbers, is folded into the first layer. That of vectors, a pair a feature,
    stays a step of its own (a feature that hardly varies would lose its digits in the sum) unless `fold_vectors`.

    Args:
        network: of `networks.build`.
        fold_vectors: fold there too.
    """
    shape = network.architecture.observation_shape
    image = len(shape) == 3
    layers = _chain(network)
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
    return Lowered(None, None, tuple(layers), float(shift[0]) if image else 0.0)


def activations(lowered: Lowered, observations: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What each layer gives for observations (B, *obs): before its normalization and ReLU, and after."""
    x = observations.to(torch.float32)
    if lowered.shift is not None and lowered.scale is not None:
        x = (x - torch.from_numpy(lowered.shift)) * torch.from_numpy(lowered.scale)
    given = []
    for layer in lowered.layers:
        weight, bias = torch.from_numpy(layer.weight), torch.from_numpy(layer.bias)
        if layer.stride:
            before = nn.functional.conv2d(x, weight, bias, layer.stride)
        else:
            before = nn.functional.linear(x.flatten(1), weight, bias)
        x = before
        if layer.norm is not None:
            norm = layer.norm
            x = nn.functional.group_norm(x, 1, torch.from_numpy(norm.weight), torch.from_numpy(norm.bias), norm.epsilon)
        x = x.relu() if layer.relu else x
        given.append((before, x))
    return given


def int8_rows(weight: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    """A weight rounded to -127 to 127 with one scale an output, symmetric: `weight[o]` is about `numbers[o] * scales[o]`.

    Returns:
        Numbers of the weight's shape, and scales (out,).
    """
    largest = np.abs(weight.reshape(len(weight), -1)).max(axis=1).astype(np.float64)
    scales = np.where(largest > 0, largest / 127, 1.0)
    rounded = np.rint(weight / scales.reshape(-1, *[1] * (weight.ndim - 1)))
    return np.clip(rounded, -127, 127).astype(np.int8), scales.astype(np.float32)


def int8_bias(layer: Affine, numbers: npt.NDArray[np.int8], scales: Floats, centre: float) -> Floats:
    """The bias (out,) with which rounded weights give what the weights give for an input that is `centre` everywhere.

    Pixels are far from zero: without it the roundings of a whole filter would add up times the grey of the background.
    """
    weight = layer.weight.astype(np.float64).reshape(len(scales), -1).sum(axis=1)
    rounded = numbers.astype(np.float64).reshape(len(scales), -1).sum(axis=1) * scales
    bias: npt.NDArray[np.float64] = layer.bias + centre * (weight - rounded)
    return bias.astype(np.float32)


def _chain(network: Network) -> list[Affine]:
    shape: tuple[int, ...] = network.architecture.observation_shape
    if network.architecture.reads:
        shape = (len(network.architecture.reads),)
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
    assert layer.bias is not None  # of `networks.build` all have one
    return _numbers(layer.bias)


def _numbers(tensor: Tensor) -> Floats:
    if tensor.is_meta:  # a skeleton: shapes alone
        return np.zeros(tuple(tensor.shape), np.float32)
    return tensor.detach().to(torch.float32).numpy().copy()
