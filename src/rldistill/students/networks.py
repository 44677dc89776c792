"""Networks by name: those of the paper, and others of the same kinds, with a standardization in front."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn

from rldistill.types import ScoreKind, UserError, is_large_image

Normalization: TypeAlias = Literal["none", "layer"]

# Rusu et al. 2015, arXiv 1511.06295, appendix A, table A1 (single-task students): channels of the three convolutions,
# then units of the hidden layer. With 18 actions they have 1,693,362, 427,874, 113,346 and 61,954 parameters.
PAPER_NETWORKS = {
    "dqn": "cnn:32,64,64:512",
    "net1": "cnn:16,32,32:256",
    "net2": "cnn:16,16,16:128",
    "net3": "cnn:16,16,16:64",
    # Table A2, students of several games: three games with 12 actions in all have 1,882,668 parameters, ten with 85 have
    # 6,756,721.
    "multi3": "cnn:32,64,64:512+128",
    "multi10": "cnn:64,64,64:1500+128",
}
# Kernel and stride of the three convolutions of Mnih et al. 2015, and of those on grids too small for them.
_LARGE = ((8, 4), (4, 2), (3, 1))
_SMALL = ((3, 1), (3, 1), (3, 1))


class Architecture(NamedTuple):
    """The description of a network, from which it can be built."""

    name: str
    """`dqn`, `net1`, `net2`, `net3`, `multi3`, `multi10`, `cnn:8,8,8:16` (channels : hidden units) or `mlp:64,64`. Hidden
    units after a + belong to the head: `cnn:32,64,64:512+128`."""
    observation_shape: tuple[int, ...]
    num_scores: int
    """Scores for each observation: one for each action; for Gaussians a mean and a log standard deviation for each dimension."""
    normalization: Normalization = "none"
    """`layer`: each hidden layer is normalized over all its units before the ReLU, with a scale and a shift for each channel."""
    dropout: float = 0.0
    """Probability with which a unit of the last hidden layer is dropped, while training or exploring."""
    reads: tuple[int, ...] = ()
    """For vectors: the features that the network reads, in this order; empty for all of them."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for files, where the number of scores is called `num_actions`. Empty fields are left out."""
        names = {"num_scores": "num_actions"}
        return {names.get(name, name): value for name, value in self._asdict().items() if value != ()}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Architecture:
        """The inverse of `as_dict`.

        Raises:
            LookupError, TypeError, ValueError: a field is missing, unknown or of another kind.
        """
        given = {**data, "observation_shape": tuple(int(n) for n in data["observation_shape"])}
        given["reads"] = tuple(int(n) for n in data.get("reads", ()))
        given["num_scores"] = given.pop("num_actions")
        return Architecture(**given)


class Dropout(nn.Module):
    """Dropout that draws from a generator of its own, so that nothing reads a global one."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.generator = torch.Generator()
        self.exploring = False
        """Whether units are dropped outside of training too."""

    def forward(self, x: Tensor) -> Tensor:
        """Draws a fresh mask in each call. The units that stay are scaled up, so that expectations stay the same."""
        if not (self.training or self.exploring):
            return x
        keep = 1 - self.probability
        return x * (torch.rand(x.shape, generator=self.generator) < keep).to(x.dtype) / keep


class Network(nn.Module):
    """A standardization, a torso and a head: (B, *obs) uint8 or float to (B, A) float32 scores.

    The standardization is an affine step, `scale * (x - shift)`, with one pair of numbers for images and one for each feature
    of vectors. It is not trained and folds into the first layer, so it does not count as parameters.
    """

    shift: Tensor
    scale: Tensor
    bfloat16: bool  # type: ignore[assignment]  # hides the method that would round the weights themselves
    """Whether all layers but the last run under bfloat16 autocast; the weights stay float32."""
    padding: int
    """Channels or features of zeros that are appended to the standardized ones, where a wider task shares the first layer."""
    large_images: bool
    """Whether it reads large images (Atari's), not vectors or small grids."""

    def __init__(
        self,
        architecture: Architecture,
        score_kind: ScoreKind = "q_values",
        layers: Sequence[nn.Module] | None = None,
        padding: int = 0,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self._score_kind: ScoreKind = score_kind
        shape = architecture.observation_shape
        image = len(shape) == 3
        self.large_images = image and is_large_image(shape)
        features = (1,) if image else (len(architecture.reads),) if architecture.reads else shape
        self.register_buffer("shift", torch.zeros(features))
        # Pixels become [0, 1] until a standardization is fitted; small grids are 0 or 1 already.
        self.register_buffer("scale", torch.full(features, 1 / 255 if self.large_images else 1.0))
        self.layers = nn.Sequential(*(make_layers(architecture) if layers is None else layers))
        self.padding = padding
        self.bfloat16 = False

    @property
    def device(self) -> torch.device:
        """The device that computes. Observations are copied to it, scores stay on it."""
        return self.shift.device

    @property
    def arithmetic(self) -> str:
        """The number format of the computation, for provenance."""
        return "bfloat16" if self.bfloat16 else "float32"

    @property
    def trains_faster_in_bfloat16(self) -> bool:
        """Whether bfloat16 saves time: for large images on GPUs, and on processors that multiply it (AMX or AVX-512 BF16).

        With AVX-512 BF16 an update of `net2` takes 0.8 of the time in float32, one of `dqn` 0.65. With AVX-512 alone one of `dqn`
        takes 1.4 times as long.
        """
        capabilities = torch.cpu.get_capabilities()
        multiplies = any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16"))
        return self.large_images and (self.device.type != "cpu" or multiplies)

    @property
    def score_kind(self) -> ScoreKind:
        """The kind of the scores."""
        return self._score_kind

    def forward(self, observations: Tensor) -> Tensor:
        """Scores (B, A) float32 of observations (B, *obs)."""
        *_, head = self.layers
        # Scores stay float32: near 1 bfloat16 has steps of 0.004, and the scores of actions often differ by less.
        return cast(Tensor, head(self.hidden(observations)))

    def hidden(self, observations: Tensor) -> Tensor:
        """The last hidden layer (B, H), float32, of observations (B, *obs)."""
        first, *torso, _ = self.layers
        x: Tensor = self.selected(observations).to(self.device)
        if not self.bfloat16:  # entering autocast takes a tenth of a small network's time
            if self.large_images and torch.is_grad_enabled():
                # Channels last: in this order the first convolution's gradients take a quarter of the time.
                x = torch.stack(x.unbind(1), -1).permute(0, 3, 1, 2)
            x = first(self.standardized(x))
            for layer in torso:
                x = layer(x)
            return x
        with torch.autocast(self.device.type, torch.bfloat16):
            if x.dtype == torch.uint8 and isinstance(first, nn.Conv2d) and first.bias is not None and not self.padding:
                # The difference of two whole numbers up to 255 is exact in bfloat16. The rest of the affine step folds into
                # weights and bias, because a pass over the images in mixed types takes half of an update's time.
                whole = self.shift.round()
                x = x.to(torch.bfloat16).sub_(whole.to(torch.bfloat16))
                weight = first.weight * self.scale
                bias = first.bias - weight.sum(dim=(1, 2, 3)) * (self.shift - whole)
                x = nn.functional.conv2d(x, weight, bias, first.stride)
            else:
                x = first(self.standardized(x))
            for layer in torso:
                x = layer(x)
        return x.to(torch.float32)

    def standardized(self, x: Tensor) -> Tensor:
        """The read features of observations (B, *obs) after the affine step and padding: float32 in fresh memory."""
        # In place, because allocating memory of this size costs more than the arithmetic.
        x = x.to(torch.float32, copy=True).sub_(self.shift).mul_(self.scale)
        if not self.padding:
            return x
        return nn.functional.pad(x, (*[0] * (2 * (x.ndim - 2)), 0, self.padding))

    def selected(self, observations: Tensor) -> Tensor:
        """The features (B, features) that the network reads; images unchanged."""
        reads = self.architecture.reads
        return observations[:, list(reads)] if reads else observations

    @property
    def dropout(self) -> Dropout | None:
        """The dropout layer, if there is one."""
        return next((layer for layer in self.layers if isinstance(layer, Dropout)), None)

    @contextmanager
    def acting(self, *, sampled: bool) -> Iterator[None]:
        """Within it, dropout is drawn anew at each call if `sampled`, and off otherwise. Networks without dropout are unchanged."""
        dropout = self.dropout
        if dropout is None:
            yield
            return
        was_training, was_exploring = dropout.training, dropout.exploring
        dropout.training, dropout.exploring = False, sampled
        try:
            yield
        finally:
            dropout.training, dropout.exploring = was_training, was_exploring

    def standardize(self, shift: Tensor, scale: Tensor) -> None:
        """Fixes the affine step, shapes (1,) for images and (features,) for vectors."""
        self.shift.copy_(shift)
        self.scale.copy_(scale)


def parameter_count(network: nn.Module) -> int:
    """The number of trained parameters, without the standardization."""
    return sum(parameter.numel() for parameter in network.parameters())


def build(architecture: Architecture, seed: int, score_kind: ScoreKind = "q_values") -> Network:
    """A fresh network, its weights drawn from `seed` alone.

    Raises:
        UserError: no such network, or it does not suit the observations.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(architecture, score_kind)
    if network.dropout is not None:
        network.dropout.generator.manual_seed(seed)
    return network


def fit_initialization(networks: Sequence[Network], observations: Sequence[Tensor], seed: int) -> None:
    """Draws the weights anew so that every unit has mean 0 and variance 1 over these observations, before its ReLU.

    With layer normalization that holds before the normalization. Orthogonal weights, then one pass layer by layer that sets
    scale and bias of each unit (channel): Mishkin & Matas 2016, arXiv 1511.06422, and Kraehenbuehl et al. 2016, arXiv 1511.06856.
    Frames are mostly static background, which dominates the outputs of units with the usual initialization. The scores begin at
    a tenth of that scale.

    Args:
        networks: changed in place; their standardization is already fixed. Layers that all of them share are fitted to the
            observations of all.
        observations: (B, *obs) of each network, some hundreds.
        seed: of the weights.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = [list(network.layers) for network in networks]
    first = layers[0]
    shared = 0
    while shared < len(first) and all(own[shared] is first[shared] for own in layers):
        shared += 1
    with torch.no_grad():
        together = joined(
            [network.standardized(network.selected(x)) for network, x in zip(networks, observations, strict=True)]
        )
        for layer in first[:shared]:
            together = _fitted(layer, together, generator, last=layer is first[-1])
        parts = torch.split(together, [len(x) for x in observations])
        for own, x in zip(layers, parts, strict=True):
            for layer in own[shared:]:
                x = _fitted(layer, x, generator, last=layer is own[-1])


def joined(parts: Sequence[Tensor]) -> Tensor:
    """One tensor of all rows; a single part is not copied, for a thousand frames in float32 are 115 MB."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _fitted(layer: nn.Module, x: Tensor, generator: torch.Generator, *, last: bool) -> Tensor:
    """The layer's output for x, after its weights are drawn anew."""
    if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
        nn.init.orthogonal_(layer.weight, generator=generator)
        layer.bias.zero_()
        out = layer(x)
        over = (0, 2, 3) if out.ndim == 4 else (0,)
        deviation = out.std(dim=over).clamp(min=1e-3) * (10 if last else 1)
        layer.weight.div_(deviation.view(-1, *[1] * (layer.weight.ndim - 1)))
        layer.bias.copy_(-out.mean(dim=over) / deviation)
    return cast(Tensor, layer(x))


class Spec(NamedTuple):
    """The layers that a network's name stands for."""

    channels: tuple[int, ...]
    """Of the convolutions; empty for vectors."""
    hidden: tuple[int, ...]
    """Units of the hidden layers."""
    controller: tuple[int, ...]
    """Units of the head's own hidden layers."""


def read_name(name: str) -> Spec:
    """Reads a network's name.

    Raises:
        UserError: no such network, or a layer has 0 units or more than 65,536.
    """
    numbers = r"\d+(?:,\d+)*"
    spec = PAPER_NETWORKS.get(name, name)
    if match := re.fullmatch(rf"cnn:({numbers}):({numbers})(?:\+({numbers}))?", spec):
        return Spec(*(tuple(_numbers(group, name)) if group else () for group in match.groups()))
    if match := re.fullmatch(rf"mlp:({numbers})(?:\+({numbers}))?", spec):
        return Spec((), *(tuple(_numbers(group, name)) if group else () for group in match.groups()))
    raise UserError(f"unknown network {name!r}: take {', '.join(PAPER_NETWORKS)}, cnn:8,8,8:16 or mlp:64,64")


def make_layers(architecture: Architecture) -> list[nn.Module]:
    """Fresh layers of torso and head, for a network of one head.

    Raises:
        UserError: no such network, or it does not suit the observations.
    """
    torso, features = make_torso(architecture)
    return [*torso, *make_head(architecture, features)]


def make_head(architecture: Architecture, features: int) -> list[nn.Module]:
    """The head's own hidden layers, dropout, and the layer that gives the scores.

    Raises:
        UserError: no such network, or the dropout is no probability below 1.
    """
    layers: list[nn.Module] = []
    if not 0.0 <= architecture.dropout < 1.0:
        raise UserError(f"dropout is a probability below 1, not {architecture.dropout}")
    features = _add_hidden(layers, read_name(architecture.name).controller, features, architecture.normalization)
    layers += [Dropout(architecture.dropout)] if architecture.dropout else []
    return [*layers, nn.Linear(features, architecture.num_scores)]


def make_torso(architecture: Architecture) -> tuple[list[nn.Module], int]:
    """The layers that heads can share, and the number of features that they put out.

    Raises:
        UserError: no such network, or it does not suit the observations.
    """
    name, shape = architecture.name, architecture.observation_shape
    spec = read_name(name)
    layers: list[nn.Module] = []
    if spec.channels:
        if len(shape) != 3 or architecture.reads:
            raise UserError(
                f"network {name!r} reads images, but the observations have shape {shape}: take an mlp:64,64"
            )
        features = _add_convolutions(layers, spec.channels, architecture)
    else:
        features = len(architecture.reads) or int(torch.Size(shape).numel())
    layers.append(nn.Flatten())
    return layers, _add_hidden(layers, spec.hidden, features, architecture.normalization)


def _add_convolutions(layers: list[nn.Module], channels: Sequence[int], architecture: Architecture) -> int:
    """Appends convolutions with their normalization and ReLU; returns the number of features that they put out."""
    name, (depth, height, width) = architecture.name, architecture.observation_shape
    kernels = _LARGE if is_large_image(architecture.observation_shape) else _SMALL
    if len(channels) > len(kernels):
        raise UserError(f"network {name!r} has {len(channels)} convolutions; at most {len(kernels)} are understood")
    for out, (kernel, stride) in zip(channels, kernels, strict=False):
        layers.append(nn.Conv2d(depth, out, kernel, stride))
        depth, height, width = out, (height - kernel) // stride + 1, (width - kernel) // stride + 1
        if min(height, width) < 1:
            raise UserError(
                f"network {name!r} is too deep for observations of shape {architecture.observation_shape} "
                "(channels, height, width)"
            )
        # Over all units, with a scale and a shift for each channel. PQN's own code normalizes the channels of each place.
        layers += [nn.GroupNorm(1, out)] if architecture.normalization == "layer" else []
        layers.append(nn.ReLU())
    return depth * height * width


def _add_hidden(layers: list[nn.Module], hidden: Sequence[int], features: int, normalization: Normalization) -> int:
    """Appends hidden layers with their normalization and ReLU; returns the number of features that they put out."""
    for out in hidden:
        layers.append(nn.Linear(features, out))
        layers += [nn.LayerNorm(out)] if normalization == "layer" else []
        layers.append(nn.ReLU())
        features = out
    return features


def _numbers(text: str, name: str) -> list[int]:
    words = text.split(",")
    numbers = [int(word[:9]) for word in words]  # Python refuses to read numbers of thousands of digits
    if min(numbers) < 1 or max(numbers) > 65_536:
        raise UserError(f"network {name!r} has a layer without units, or an absurd one")
    return numbers
