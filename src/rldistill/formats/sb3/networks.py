"""Makes networks that act out of the names and shapes of Stable-Baselines3's tensors. Layer sizes are read off the tensors.

Key layouts, 2020 to today (other tensors take no part in acting and are left aside: critics, targets, value nets):

* DQN `q_net.q_net.N`, QR-DQN `quantile_net.quantile_net.N`;
* PPO, A2C, TRPO `mlp_extractor.policy_net.N`, before 1.8 also `mlp_extractor.shared_net.N`, then `action_net`, `log_std`;
* SAC, TQC `actor.latent_pi.N`, then `actor.mu` and `actor.log_std` (with gSDE `actor.mu.0` and a bare tensor `actor.log_std`);
* TD3, DDPG `actor.mu.N`;
* images `...features_extractor.cnn.N` and `...features_extractor.linear.0`, under one or several prefixes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from rldistill.formats.foreign import BoxSpace, DiscreteSpace, ForeignScores
from rldistill.formats.sb3.modules import (
    SDE_EPSILON,
    Gaussian,
    NetworkGaussian,
    Plain,
    QuantileMean,
    Rescaled,
    Scorer,
    StateDependentGaussian,
)
from rldistill.types import UserError, printable

Family: TypeAlias = Literal["dqn", "qrdqn", "actor-critic", "sac", "td3"]
Activation: TypeAlias = Callable[[], nn.Module]

ACTIVATIONS: dict[str, Activation] = {
    "CELU": nn.CELU,
    "ELU": nn.ELU,
    "GELU": nn.GELU,
    "Hardswish": nn.Hardswish,
    "Hardtanh": nn.Hardtanh,
    "Identity": nn.Identity,
    "LeakyReLU": nn.LeakyReLU,
    "Mish": nn.Mish,
    "ReLU": nn.ReLU,
    "ReLU6": nn.ReLU6,
    "SELU": nn.SELU,
    "Sigmoid": nn.Sigmoid,
    "SiLU": nn.SiLU,
    "Softplus": nn.Softplus,
    "Softsign": nn.Softsign,
    "Tanh": nn.Tanh,
}
DEFAULT_ACTIVATION: dict[Family, str] = {
    "dqn": "ReLU",
    "qrdqn": "ReLU",
    "actor-critic": "Tanh",
    "sac": "ReLU",
    "td3": "ReLU",
}
_IDLE: dict[Family, tuple[str, ...]] = {
    "dqn": ("q_net_target.",),
    "qrdqn": ("quantile_net_target.",),
    "actor-critic": ("mlp_extractor.value_net.", "value_net.", "vf_features_extractor."),
    "sac": ("critic.", "critic_target."),
    "td3": ("critic.", "critic_target.", "actor_target."),
}
_NATURE = ((0, 32, 8, 4), (2, 64, 4, 2), (4, 64, 3, 1))  # position, channels, kernel, stride


class Settings(NamedTuple):
    """What the tensors do not show."""

    activation: str | None = None
    """A name of `ACTIVATIONS`; None is the family's default."""
    scale_images: bool = True
    """SB3's `normalize_images`: uint8 images with the range 0 to 255 are divided by 255."""
    clip_mean: float = 2.0
    """SAC and TQC with gSDE."""
    use_expln: bool = False
    """gSDE: another function than exp for the deviation."""
    squash_output: bool = False
    """PPO and A2C with gSDE: actions are tanh of the sample."""
    sde_net_is_empty: bool = False
    """gSDE before 1.8 with `sde_net_arch=[]`: the noise depends on the features, not on the last hidden layer."""
    quantiles: int | None = None


class Acting(NamedTuple):
    """The part of a policy that acts."""

    network: nn.Module
    scores: ForeignScores
    squashed: bool


class Weights:
    """Tensors by name; it remembers which were used."""

    def __init__(self, tensors: Mapping[str, Tensor], source: str) -> None:
        self._tensors = tensors
        self.source = source
        self._used: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def has(self, prefix: str) -> bool:
        """Whether any name begins so."""
        return any(name.startswith(prefix) for name in self._tensors)

    def dimensions(self, name: str) -> int | None:
        """How many a tensor has; None where it is not there."""
        return self._tensors[name].ndim if name in self._tensors else None

    def take(self, name: str, shape: Sequence[int | None]) -> Tensor:
        """A tensor, which counts as used then.

        Args:
            name: of the tensor.
            shape: that it must have; None is any length of at least 1.

        Raises:
            UserError: it is not there or has another shape.
        """
        if name not in self._tensors:
            raise self.error(f"the tensor {name!r} is missing")
        tensor = self._tensors[name]
        fits = len(tensor.shape) == len(shape) and all(
            length >= 1 and wanted in (None, length) for length, wanted in zip(tensor.shape, shape, strict=True)
        )
        if not fits or not tensor.is_floating_point():
            wanted = "x".join("?" if length is None else str(length) for length in shape)
            shape_text = "x".join(str(length) for length in tensor.shape)
            raise self.error(
                f"the tensor {name!r} is {shape_text}, not {wanted}: its spaces and its weights do not fit"
            )
        self._used.add(name)
        return tensor

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin so, by the rest of their names."""
        return {name[len(prefix) :]: tensor for name, tensor in self._tensors.items() if name.startswith(prefix)}

    def linear(self, prefix: str, inputs: int, outputs: int | None = None) -> nn.Linear:
        """A linear layer of `prefix` + weight and bias; any number of outputs where None."""
        weight = self.take(f"{prefix}weight", (outputs, inputs))
        layer = nn.Linear(inputs, weight.shape[0], device="meta")  # no memory, and no draw from the global generator
        layer.weight = _fixed(weight)
        layer.bias = _fixed(self.take(f"{prefix}bias", (weight.shape[0],)))
        return layer

    def mlp(
        self, prefix: str, inputs: int, activation: Activation, outputs: int | None = None
    ) -> tuple[nn.Sequential, int]:
        """Linear layers 0, 2, 4, ... under a prefix, with the activation between, and the length of the result.

        Args:
            prefix: such as `actor.mu.`.
            inputs: length of what comes in.
            activation: makes a layer.
            outputs: of the last layer, which has no activation then; where None, every layer has one.
        """
        numbered = re.compile(re.escape(prefix) + r"(\d{1,3})\.")
        numbers = sorted({int(match[1]) for name in self._tensors if (match := numbered.match(name))})
        if numbers != list(range(0, 2 * len(numbers), 2)):
            raise self.error(
                f"the layers {prefix}{'/'.join(map(str, numbers))} are not linear ones with activations between "
                "(normalization or dropout layers are not known here; export the policy to ONNX or TorchScript)"
            )
        layers: list[nn.Module] = []
        length = inputs
        for number in numbers:
            last = outputs is not None and number == numbers[-1]
            layer = self.linear(f"{prefix}{number}.", length, outputs if last else None)
            length = layer.out_features
            layers += [layer] if last else [layer, activation()]
        if outputs is not None and not numbers:
            raise self.error(f"the layers {prefix}* are missing")
        return nn.Sequential(*layers), length

    def check_all_used(self, idle: Sequence[str]) -> None:
        """Raises UserError where a tensor is neither used nor of a part that does not act."""
        left = [name for name in self._tensors if name not in self._used and not name.startswith(tuple(idle))]
        if left:
            names = ", ".join(printable(name, 60) for name in left[:3]) + (", ..." if len(left) > 3 else "")
            raise self.error(f"it has tensors of a network that is not known here ({names})")

    def use_copies(self, copies: str, original: str) -> None:
        """Counts tensors as used that are the same as others: SB3 saves a shared module under each of its names."""
        for name in [name for name in self._tensors if name.startswith(copies)]:
            twin = self._tensors.get(original + name[len(copies) :])
            if twin is None or not torch.equal(twin, self._tensors[name]):
                raise self.error(f"{name!r} differs from {original}*, and which of them acts is not known here")
            self._used.add(name)

    def error(self, text: str) -> UserError:
        """An error about these tensors, to be raised."""
        return UserError(f"{self.source}: {text}")


def family_of(tensors: Mapping[str, Tensor]) -> Family | None:
    """Which layout the names are of; None where they are of no known one."""

    def has(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in tensors)

    if has("q_net.q_net."):
        return "dqn"
    if has("quantile_net.quantile_net."):
        return "qrdqn"
    if has("action_net."):
        return "actor-critic"
    if has("actor.log_std"):
        return "sac"
    return "td3" if has("actor.mu.") else None


def build_acting(
    family: Family,
    tensors: Mapping[str, Tensor],
    observations: BoxSpace,
    actions: BoxSpace | DiscreteSpace,
    settings: Settings,
    *,
    source: str,
    features_of: Callable[[Weights, str, BoxSpace, str], tuple[nn.Module, int]] | None = None,
) -> Acting:
    """The network that acts, every tensor of it used and fitting.

    Args:
        family: of `family_of`.
        tensors: the policy's state dict.
        observations: as the network gets them (images channels first).
        actions: decides the number of outputs and what they are.
        settings: what the tensors do not show.
        source: the file, for messages.
        features_of: reads a features extractor that is its author's own, with the name of the activation; None is SB3's.

    Raises:
        UserError: a tensor is missing, has another shape than the spaces and the other layers ask for, or is left over.
    """
    weights = Weights(tensors, source)
    name = settings.activation or DEFAULT_ACTIVATION[family]
    prefix = {"dqn": "q_net.", "qrdqn": "quantile_net.", "actor-critic": "", "sac": "actor.", "td3": "actor."}[family]
    if features_of is None:
        features, length = _features(weights, prefix, observations)
    else:
        features, length = features_of(weights, prefix, observations, name)
    part = _Part(weights, settings, ACTIVATIONS[name], length)
    if family in ("dqn", "qrdqn"):
        acting = _values(part, family, actions)
    elif family == "actor-critic":
        acting = _actor(part, actions)
    else:
        acting = _continuous(part, family, actions)
    weights.check_all_used(_IDLE[family])
    divisor = 255.0 if settings.scale_images and is_image(observations) else 1.0
    network = Scorer(features, acting.body, acting.head, divisor=divisor)
    network.eval().requires_grad_(False)
    return Acting(network, acting.scores, acting.squashed)


class _Part(NamedTuple):
    """What the layers behind the features are made of."""

    weights: Weights
    settings: Settings
    activation: Activation
    features: int
    """Length of the features."""


class _Layers(NamedTuple):
    """The layers behind the features."""

    body: nn.Module
    head: nn.Module
    scores: ForeignScores
    squashed: bool = False


def _values(part: _Part, family: Family, actions: BoxSpace | DiscreteSpace) -> _Layers:
    """The layers of DQN and QR-DQN."""
    weights = part.weights
    if not isinstance(actions, DiscreteSpace) or len(actions.sizes) != 1:
        raise weights.error("it is a DQN, but its actions are not Discrete")
    count = actions.sizes[0]
    if family == "dqn":
        layers = weights.mlp("q_net.q_net.", part.features, part.activation, count)[0]
        return _Layers(nn.Identity(), Plain(layers), "q_values")
    quantiles = part.settings.quantiles or _quantiles(weights, count)
    layers = weights.mlp("quantile_net.quantile_net.", part.features, part.activation, count * quantiles)[0]
    return _Layers(nn.Identity(), QuantileMean(layers, quantiles, count), "q_values")


def _actor(part: _Part, actions: BoxSpace | DiscreteSpace) -> _Layers:
    """The layers of PPO, A2C and TRPO."""
    weights = part.weights
    shared, latent = weights.mlp("mlp_extractor.shared_net.", part.features, part.activation)
    own, latent = weights.mlp("mlp_extractor.policy_net.", latent, part.activation)
    body = nn.Sequential(*shared, *own)
    if isinstance(actions, DiscreteSpace):
        return _Layers(body, Plain(weights.linear("action_net.", latent, sum(actions.sizes))), "logits")
    size = math.prod(actions.shape)
    mean = weights.linear("action_net.", latent, size)
    if weights.dimensions("log_std") == 2:
        head: nn.Module = _state_dependent(part, "", mean, latent, size)
        return _Layers(body, head, "gaussian", part.settings.squash_output)
    return _Layers(body, Gaussian(mean, weights.take("log_std", (size,))), "gaussian")


def _continuous(part: _Part, family: Family, actions: BoxSpace | DiscreteSpace) -> _Layers:
    """The layers of SAC, TQC, TD3 and DDPG."""
    weights = part.weights
    if not isinstance(actions, BoxSpace):
        raise weights.error("it is a policy for continuous actions, but its action space is another")
    size = math.prod(actions.shape)
    low, high = (torch.from_numpy(bound).float().flatten() for bound in (actions.low, actions.high))
    if not bool((torch.isfinite(low) & torch.isfinite(high) & (low < high)).all()):
        raise weights.error("its actions are rescaled to their range, but the range in the file is not finite")
    if family == "td3":
        layers = weights.mlp("actor.mu.", part.features, part.activation, size)[0]
        return _Layers(nn.Identity(), Rescaled(layers, low, high), "deterministic")
    body, latent = weights.mlp("actor.latent_pi.", part.features, part.activation)
    if "actor.log_std" not in weights:
        mean = weights.linear("actor.mu.", latent, size)
        head = NetworkGaussian(mean, weights.linear("actor.log_std.", latent, size))
        return _Layers(body, head, "gaussian", squashed=True)
    clipped = "actor.mu.0.weight" in weights
    mean = weights.linear("actor.mu.0." if clipped else "actor.mu.", latent, size)
    clip_mean = part.settings.clip_mean
    bounded = nn.Sequential(mean, nn.Hardtanh(-clip_mean, clip_mean) if clipped else nn.Identity())
    return _Layers(body, _state_dependent(part, "actor.", bounded, latent, size), "gaussian", squashed=True)


def sizes_of(acting: Acting) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Channels of the convolutions, and sizes of the hidden linear layers, of a network that `build_acting` made."""
    network = acting.network
    assert isinstance(network, Scorer)
    modules = [*network.features.modules(), *network.body.modules()]
    if isinstance(network.head, Plain | QuantileMean | Rescaled) and isinstance(network.head.layer, nn.Sequential):
        modules += list(network.head.layer)[:-1]
    channels = tuple(module.out_channels for module in modules if isinstance(module, nn.Conv2d))
    return channels, tuple(module.out_features for module in modules if isinstance(module, nn.Linear))


def is_image(space: BoxSpace) -> bool:
    """As SB3 decides whether to divide by 255: uint8, three axes, range 0 to 255."""
    return (
        space.dtype == "uint8" and len(space.shape) == 3 and bool((space.low == 0).all() and (space.high == 255).all())
    )


def extractor_names(prefix: str) -> list[str]:
    """What the names of a features extractor's tensors begin with, by what is before the names of the part that acts."""
    names = [f"{prefix}features_extractor.", "features_extractor."]
    return names if prefix else ["pi_features_extractor.", *names]


def _features(weights: Weights, prefix: str, observations: BoxSpace) -> tuple[nn.Module, int]:
    """The layers from observations to a vector: a Nature CNN where the file has its tensors, else the plain numbers."""
    names = extractor_names(prefix)
    here = next((name for name in names if weights.has(name)), None)
    if here is None:
        return nn.Flatten(), math.prod(observations.shape)
    shape = observations.shape
    if len(shape) != 3:
        raise weights.error(f"it has convolutions, but its observations have the shape {shape}")
    layers: list[nn.Module] = []
    depth, height, width = shape
    for number, channels, kernel, stride in _NATURE:
        if min(height, width) < kernel:
            raise weights.error(f"observations of shape {shape} are too small for its convolutions")
        layer = nn.Conv2d(depth, channels, kernel, stride, device="meta")
        layer.weight = _fixed(weights.take(f"{here}cnn.{number}.weight", (channels, depth, kernel, kernel)))
        layer.bias = _fixed(weights.take(f"{here}cnn.{number}.bias", (channels,)))
        layers += [layer, nn.ReLU()]
        depth, height, width = channels, (height - kernel) // stride + 1, (width - kernel) // stride + 1
    linear = weights.linear(f"{here}linear.0.", depth * height * width)
    for name in dict.fromkeys(names):
        if name != here:
            weights.use_copies(name, here)
    return nn.Sequential(*layers, nn.Flatten(), linear, nn.ReLU()), linear.out_features


def _quantiles(weights: Weights, actions: int) -> int:
    """The number of quantiles by the last layer, where the file does not say it."""
    biases = weights.under("quantile_net.quantile_net.")
    outputs = [
        (int(match[1]), tensor.shape[0])
        for name, tensor in biases.items()
        if (match := re.fullmatch(r"(\d{1,3})\.bias", name)) and tensor.ndim == 1
    ]
    last = max(outputs)[1] if outputs else 0
    if last < actions or last % actions:
        raise weights.error(f"its {last} quantiles cannot be shared out among {actions} actions")
    return last // actions


def _state_dependent(part: _Part, prefix: str, mean: nn.Module, latent: int, size: int) -> nn.Module:
    """The Gaussian of gSDE, whose noise depends on the last hidden layer, or on layers of its own.

    Args:
        part: what the layers are made of.
        prefix: of the actor's names.
        mean: from the last hidden layer to the means.
        latent: length of the last hidden layer.
        size: dimensions of the actions.
    """
    weights, settings = part.weights, part.settings
    noise: nn.Module | None = None
    length = latent
    if weights.has(f"{prefix}sde_features_extractor."):  # until 1.8
        noise, length = weights.mlp(f"{prefix}sde_features_extractor.", part.features, part.activation)
    elif settings.sde_net_is_empty:
        noise, length = nn.Identity(), part.features
    log_std = weights.take(f"{prefix}log_std", (length, None))
    if log_std.shape[1] not in (1, size):
        raise weights.error(f"its log_std has {log_std.shape[1]} columns for {size} actions")
    return StateDependentGaussian(mean, _deviation(log_std, settings.use_expln).square(), noise)


def _deviation(log_std: Tensor, use_expln: bool) -> Tensor:
    if not use_expln:
        return log_std.exp()
    positive = log_std > 0
    return torch.where(positive, torch.log1p(log_std.clamp(min=0) + SDE_EPSILON) + 1.0, log_std.clamp(max=0).exp())


def _fixed(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
