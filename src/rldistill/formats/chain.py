"""Networks out of named tensors: convolutions and linear layers one after the other, recognized by their shapes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from rldistill.formats.foreign import Numbers, Pixels, holds_bytes, observations_of, unknown_range
from rldistill.students.networks import PAPER_NETWORKS
from rldistill.types import UserError

Activation: TypeAlias = Literal[
    "relu", "tanh", "elu", "silu", "gelu", "leaky_relu", "selu", "celu", "mish", "sigmoid", "softplus"
]

ACTIVATIONS: Mapping[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "selu": nn.SELU,
    "celu": nn.CELU,
    "mish": nn.Mish,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
}
# A stride is not in the file. Those of Mnih et al. 2015 are what everybody takes for these kernels; on grids too small for
# them (MinAtar) everybody takes 3x3/1 and pixels are 0 or 1.
_NATURE_STRIDES = {8: 4, 4: 2, 3: 1}
_RECURRENT = re.compile(r"(weight|bias)_(ih|hh)(_l\d+)?(_reverse)?$")
NO_MEMORY = (
    "whose scores follow from all that it saw in an episode, and a teacher's follow from one observation: give it the last "
    "observations at once, as docs/inspect.md shows under 'A policy with a memory', or take a policy without one"
)
"""The end of a message about a recurrent policy."""


class Layer(NamedTuple):
    """One layer's tensors."""

    name: str
    weight: Tensor
    bias: Tensor | None

    @property
    def kind(self) -> Literal["convolution", "linear", "norm"]:
        """What the weight's shape shows: 4-D, 2-D, or that of what is normalized."""
        if self.bias is not None and self.bias.shape == self.weight.shape:
            return "norm"
        if self.weight.ndim == 4:
            return "convolution"
        return "linear" if self.weight.ndim == 2 else "norm"


class Spec(NamedTuple):
    """What an architecture's name says."""

    channels: tuple[int, ...]
    hidden: tuple[int, ...]
    activation: Activation
    squashed: bool = False
    """Whether a tanh follows the last layer, and what it gives is spread over the range of the actions."""


class Chain(NamedTuple):
    """A network built from layers."""

    network: nn.Sequential
    """(B, *observation_shape) to (B, outputs)."""
    observation_shape: tuple[int, ...]
    outputs: int
    architecture: str
    """In the house's spelling, `cnn:32,64,64:512` or `mlp:64,64`, with `:tanh` and the like where it is no ReLU."""
    supposed: list[str]
    """What the file does not say and was supposed."""


class Scale(nn.Module):
    """Pixels as the network takes them: divided by 255, or as they are."""

    def __init__(self, divisor: float) -> None:
        super().__init__()
        self.divisor = divisor

    def forward(self, x: Tensor) -> Tensor:
        """The same shape, float32."""
        return x.to(torch.float32) / self.divisor


class Standardize(nn.Module):
    """The affine step in front of the house's own networks."""

    def __init__(self, shift: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("shift", shift)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape, float32."""
        shift, scale = self.get_buffer("shift"), self.get_buffer("scale")
        return (x.to(torch.float32) - shift) * scale


class Rescale(nn.Module):
    """A tanh whose range of -1 to 1 is spread over the range of the actions."""

    def __init__(self, scale: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) before the tanh to (B, D) actions."""
        return torch.tanh(x) * self.get_buffer("scale") + self.get_buffer("bias")


class FixedDeviation(nn.Module):
    """Means, and behind them log standard deviations that are the same for all observations."""

    def __init__(self, log_std: Tensor) -> None:
        super().__init__()
        self.register_buffer("log_std", log_std)

    def forward(self, means: Tensor) -> Tensor:
        """(B, D) to (B, 2 D)."""
        return torch.cat([means, self.get_buffer("log_std").expand_as(means)], dim=1)


def parse_architecture(name: str) -> Spec:
    """`dqn`, `net1`, `net2`, `net3`, `cnn:32,64,64:512` or `mlp:64,64`, with `:tanh` (or elu, silu, ...) at will.

    `mlp:256,256:relu:tanh` names a second one for what comes out, a tanh that is spread over the range of the actions.

    Raises:
        UserError: it is none of them.
    """
    spec = PAPER_NETWORKS.get(name, name)
    numbers = r"\d{1,5}(?:,\d{1,5})*"
    match = re.fullmatch(
        rf"(?:cnn:({numbers}):(?={numbers}|:|$)|mlp:(?=\d))((?:{numbers})?)(?::({'|'.join(ACTIVATIONS)})(:tanh)?)?",
        spec,
    )
    if match is None:
        raise UserError(
            f"unknown network {name!r}: take {', '.join(PAPER_NETWORKS)}, cnn:32,64,64:512 or mlp:64,64, "
            f"with :tanh behind it where it has no ReLUs ({', '.join(ACTIVATIONS)} are known), "
            "with :relu:tanh where a tanh follows its last layer too"
        )
    channels = tuple(int(number) for number in match.group(1).split(",")) if match.group(1) else ()
    activation: Activation = next((kind for kind in ACTIVATIONS if kind == match.group(3)), "relu")
    hidden = tuple(int(number) for number in match.group(2).split(",") if number)
    return Spec(channels, hidden, activation, squashed=match.group(4) is not None)


def layers_of(tensors: Mapping[str, Tensor], path: Path) -> list[Layer]:
    """The layers in the order of the file.

    Raises:
        UserError: a tensor belongs to no convolution, linear layer or LayerNorm.
    """
    names: dict[str, dict[str, Tensor]] = {}
    for name, tensor in _with_own_biases(tensors).items():
        owner, _, role = name.rpartition(".")
        if _RECURRENT.search(name):
            raise UserError(f"{path}: {name!r} is of a recurrent network, {NO_MEMORY}")
        if role.startswith("running_"):
            raise UserError(f"{path}: {name!r} is of a BatchNorm, which is not understood; export it to ONNX")
        if role not in ("weight", "bias"):
            raise UserError(
                f"{path}: {name!r} is left over: it is of no convolution, linear layer or LayerNorm; export the network to ONNX or "
                "TorchScript"
            )
        names.setdefault(owner, {})[role] = tensor
    layers = []
    for owner, roles in names.items():
        if "weight" not in roles:
            raise UserError(f"{path}: {owner + '.bias'!r} is left over: it has no weight beside it")
        layer = Layer(owner, roles["weight"], roles.get("bias"))
        if layer.weight.numel() == 0:
            raise UserError(f"{path}: {owner + '.weight'!r} is empty")
        if layer.kind != "norm" and layer.bias is not None and layer.bias.shape != layer.weight.shape[:1]:
            raise UserError(
                f"{path}: {owner + '.bias'!r} has shape {tuple(layer.bias.shape)}, its weight {tuple(layer.weight.shape)}"
            )
        layers.append(layer)
    return layers


def _with_own_biases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, with biases that are modules of their own (ACKTR's `AddBias`, (n, 1)) at their layers."""
    merged: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        owner, _, role = name.removesuffix(".add_bias._bias").rpartition(".module.")
        if role == "weight" and f"{owner}.add_bias._bias" in tensors:
            merged[f"{owner}.weight"] = tensor
        elif name.endswith(".add_bias._bias") and tensor.ndim == 2 and tensor.shape[1] == 1:
            merged[name.removesuffix(".add_bias._bias") + ".bias"] = tensor[:, 0]
        else:
            merged[name] = tensor
    return merged


def natural_order(layers: Sequence[Layer]) -> list[Layer]:
    """Sorted by name, numbers as numbers: safetensors keeps the names and forgets their order."""

    def key(layer: Layer) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)|\.", layer.name) if part]

    return sorted(layers, key=key)


def in_order(layers: Sequence[Layer], path: Path) -> list[Layer]:
    """The order in which each layer takes what the one before it gives: the given one, or the only other one.

    Raises:
        UserError: there is no such order, or there are several.
    """
    given = [layer for layer in layers if layer.kind != "norm"]
    if _fits(given):
        return list(layers)
    broken = (
        f"{path}: its layers {', '.join(repr(layer.name) for layer in given[:8])} make no chain, one after the other"
    )
    if len(given) > 6 or len(given) != len(layers):
        raise UserError(f"{broken}; export the network to ONNX or TorchScript")
    orders = [order for order in itertools.permutations(given) if _fits(order)]
    if len(orders) != 1:
        raise UserError(f"{broken}; export the network to ONNX or TorchScript")
    return list(orders[0])


def build_chain(
    layers: Sequence[Layer],
    path: Path,
    *,
    activation: Activation,
    observation_shape: tuple[int, ...] | None,
    standardization: nn.Module | None = None,
    pixels: Pixels | None = None,
    numbers: Numbers | None = None,
) -> Chain:
    """The network of layers that follow one another, with the activation after each but the last.

    Args:
        layers: in order.
        path: of the file, for messages.
        activation: after every layer and its normalization.
        observation_shape: None supposes 84 x 84 pixels for large kernels and takes a vector's size from its layer.
        standardization: what stands in front, where the file has it; None is pixels / 255, and nothing for small grids.
        pixels: whether bytes go in as 0 to 255 or as 0 to 1, where there is no standardization; None supposes 0 to 1 of large
            images.
        numbers: what the observations are made of, where it is known.

    Raises:
        UserError: sizes do not fit each other or the observations, or strides cannot be told.
    """
    main = [layer for layer in layers if layer.kind != "norm"]
    if not main or main[-1].kind != "linear":
        raise UserError(f"{path}: its last layer is not linear, so it gives no score per action")
    supposed: list[str] = []
    shape, strides = _read_shape(layers, observation_shape, path, supposed)
    front = [standardization] if standardization is not None else _scaling(shape, pixels, numbers, path, supposed)
    modules = _modules(layers, front, shape, strides, ACTIVATIONS[activation], path, supposed)
    network = nn.Sequential(*modules)
    network.eval().requires_grad_(False)
    spelled = spell(*sizes_of(layers), activation)
    return Chain(network, shape, int(main[-1].weight.shape[0]), spelled, supposed)


def _read_shape(
    layers: Sequence[Layer], observation_shape: tuple[int, ...] | None, path: Path, supposed: list[str]
) -> tuple[tuple[int, ...], list[int]]:
    """Shape of the observations that layers read, and the strides of their convolutions."""
    main = [layer for layer in layers if layer.kind != "norm"]
    convolutions = [layer for layer in main if layer.kind == "convolution"]
    if not convolutions:
        size = int(main[0].weight.shape[1])
        observation_shape = (size,) if observation_shape is None else observation_shape
        if prod(observation_shape) != size:
            raise UserError(f"{path} takes {size} numbers, but the observations have shape {observation_shape}")
        return observation_shape, []
    if observation_shape is None:
        if max(int(layer.weight.shape[2]) for layer in convolutions) < 4:
            raise UserError(f"{path}: the size of its images cannot be told; name the environment (--env)")
        observation_shape = (int(convolutions[0].weight.shape[1]), 84, 84)
        supposed.append("observations are 84 x 84 pixels")
    _check_images(convolutions[0], observation_shape, path)
    flat = next(layer for layer in main if layer.kind == "linear").weight.shape[1]
    strides = _strides(convolutions, observation_shape, int(flat), layers, path)
    supposed.append(f"strides of the convolutions are {', '.join(map(str, strides))}")
    return observation_shape, strides


def _scaling(
    shape: tuple[int, ...], pixels: Pixels | None, numbers: Numbers | None, path: Path, supposed: list[str]
) -> list[nn.Module]:
    """The module that turns observations into the floats that layers take; none where they are floats already."""
    space = observations_of(shape, numbers)
    if holds_bytes(space):
        if pixels is None and observations_of(shape).dtype != space.dtype:
            raise unknown_range(path)
        supposed += [] if pixels else ["pixels are divided by 255 (--pixels bytes leaves them as they are)"]
        return [Scale(1.0 if pixels == "bytes" else 255.0)]
    return [Scale(1.0)] if space.dtype == "uint8" else []


def _modules(
    layers: Sequence[Layer],
    front: Sequence[nn.Module],
    shape: tuple[int, ...],
    strides: Sequence[int],
    activation: type[nn.Module],
    path: Path,
    supposed: list[str],
) -> list[nn.Module]:
    """The modules of a chain, an activation after each layer but the last."""
    modules = list(front) if strides else [*front, nn.Flatten()]
    left = list(strides)
    last = [layer for layer in layers if layer.kind != "norm"][-1]
    for layer in layers:
        if layer.kind == "norm":
            if not any(isinstance(module, nn.Conv2d | nn.Linear) for module in modules) or layer is layers[-1]:
                raise UserError(f"{path}: {layer.name!r} normalizes before the first layer or after the last one")
            if not isinstance(modules[-1], activation):
                raise UserError(f"{path}: {layer.name!r} is a second normalization of one layer")
            modules.insert(-1, _norm(layer, shape, path, supposed))
            continue
        if layer.kind == "convolution":
            out, depth, height, width = (int(size) for size in layer.weight.shape)
            step = left.pop(0)
            module: nn.Module = nn.Conv2d(depth, out, (height, width), step, bias=layer.bias is not None)
            shape = (out, (shape[1] - height) // step + 1, (shape[2] - width) // step + 1)
        else:
            if not any(isinstance(earlier, nn.Flatten) for earlier in modules):
                modules.append(nn.Flatten())
            out, features = (int(size) for size in layer.weight.shape)
            module = nn.Linear(features, out, bias=layer.bias is not None)
            shape = (out,)
        _fill(module, layer)
        modules += [module] if layer is last else [module, activation()]
    return modules


def sizes_of(layers: Sequence[Layer]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Channels of the convolutions, and sizes of the hidden linear layers."""
    main = [layer for layer in layers if layer.kind != "norm"]
    sizes = [int(layer.weight.shape[0]) for layer in main[:-1]]
    count = sum(layer.kind == "convolution" for layer in main)
    return tuple(sizes[:count]), tuple(sizes[count:])


def spell(channels: Sequence[int], hidden: Sequence[int], activation: Activation = "relu") -> str:
    """`cnn:32,64,64:512` or `mlp:64,64`, with `:tanh` and the like where it is no ReLU."""
    tail = "" if activation == "relu" else f":{activation}"
    sizes = ",".join(map(str, hidden))
    return (f"cnn:{','.join(map(str, channels))}:{sizes}" if channels else f"mlp:{sizes}") + tail


def check_spec(spec: Spec, sizes: tuple[tuple[int, ...], tuple[int, ...]], path: object) -> None:
    """Raises UserError where the named architecture has other sizes than the file's, as `sizes_of` has them."""
    if sizes != (spec.channels, spec.hidden):
        named, held = spell(spec.channels, spec.hidden), spell(*sizes)
        raise UserError(f"--teacher-network names {named}, but {path} holds {held}: name {held} and its activation")


def _fits(layers: Sequence[Layer]) -> bool:
    """Whether each takes what the one before gives, convolutions first."""
    for before, after in itertools.pairwise(layers):
        given, taken = int(before.weight.shape[0]), int(after.weight.shape[1])
        if before.kind == after.kind:
            if given != taken:
                return False
        elif before.kind == "linear" or taken % given:
            return False
    return True


def _check_images(first: Layer, observation_shape: tuple[int, ...], path: Path) -> None:
    if len(observation_shape) != 3:
        raise UserError(f"{path} sees images, but the observations have shape {observation_shape}")
    if int(first.weight.shape[1]) != observation_shape[0]:
        raise UserError(
            f"{path} sees {int(first.weight.shape[1])} channels, but the observations have shape {observation_shape} "
            "(channels first): another frame stack or channel order"
        )


def _strides(
    convolutions: Sequence[Layer], observation_shape: tuple[int, ...], flat: int, layers: Sequence[Layer], path: Path
) -> list[int]:
    """The stride of each convolution: the usual ones where they fit, or the only ones that do."""
    if len(convolutions) > 5:
        raise UserError(
            f"{path} has {len(convolutions)} convolutions; such deep networks are not understood as a chain"
        )
    kernels = [int(layer.weight.shape[2]) for layer in convolutions]
    usual = [_NATURE_STRIDES.get(kernel, 1) for kernel in kernels]
    if _flat(convolutions, usual, observation_shape) == flat:
        return usual
    published = all(kernel in _NATURE_STRIDES for kernel in kernels)  # then others would be an accident of the sizes
    choices: Iterable[tuple[int, ...]] = (
        () if published else itertools.product(*(range(1, min(kernel, 4) + 1) for kernel in kernels))
    )
    fitting = [list(choice) for choice in choices if _flat(convolutions, choice, observation_shape) == flat]
    normalized = [tuple(layer.weight.shape) for layer in layers if layer.kind == "norm" and layer.weight.ndim == 3]
    if normalized:
        fitting = [choice for choice in fitting if _shapes(convolutions, choice, observation_shape)[0] == normalized[0]]
    if len(fitting) != 1:
        raise UserError(
            f"{path}: {'no' if not fitting else 'several'} strides of its convolutions lead from observations of shape "
            f"{observation_shape} to the {flat} numbers that its linear layer takes; export it to ONNX or TorchScript"
        )
    return fitting[0]


def _shapes(
    convolutions: Sequence[Layer], strides: Sequence[int], observation_shape: tuple[int, ...]
) -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = []
    shape = observation_shape
    for layer, stride in zip(convolutions, strides, strict=True):
        out, _, height, width = (int(size) for size in layer.weight.shape)
        shape = (out, (shape[1] - height) // stride + 1, (shape[2] - width) // stride + 1)
        shapes.append(shape)
    return shapes


def _flat(convolutions: Sequence[Layer], strides: Sequence[int], observation_shape: tuple[int, ...]) -> int:
    """Numbers that come out of the last convolution; 0 where an image is too small."""
    shapes = _shapes(convolutions, strides, observation_shape)
    return prod(shapes[-1]) if min(min(shape) for shape in shapes) > 0 else 0


def _norm(layer: Layer, shape: tuple[int, ...], path: Path, supposed: list[str]) -> nn.Module:
    over = tuple(int(size) for size in layer.weight.shape)
    if over == shape:
        module: nn.Module = nn.LayerNorm(shape, bias=layer.bias is not None)
    elif len(shape) == 3 and over == shape[:1]:
        module = nn.GroupNorm(1, shape[0])  # as the house's own networks do
        supposed.append(f"{layer.name} normalizes over all channels together")
        if layer.bias is None:
            raise UserError(f"{path}: {layer.name!r} has no bias, so what it normalizes cannot be told")
    else:
        raise UserError(f"{path}: {layer.name!r} has shape {over}, but the layer before it gives {shape}")
    _fill(module, layer)
    return module


def _fill(module: nn.Module, layer: Layer) -> None:
    state = {"weight": layer.weight} | ({} if layer.bias is None else {"bias": layer.bias})
    module.load_state_dict(state)
