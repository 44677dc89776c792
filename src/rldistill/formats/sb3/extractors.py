"""Features extractors of an author's own: layers that follow one another, whose activation a user names."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from rldistill.formats.chain import ACTIVATIONS, Layer, build_chain, in_order, layers_of
from rldistill.formats.foreign import BoxSpace
from rldistill.formats.sb3.networks import Weights, extractor_names

# The first layer behind the features, by the layout.
_AFTER = (
    "q_net.q_net.0.weight",
    "quantile_net.quantile_net.0.weight",
    "mlp_extractor.shared_net.0.weight",
    "mlp_extractor.policy_net.0.weight",
    "action_net.weight",
    "actor.latent_pi.0.weight",
    "actor.mu.0.weight",
    "actor.mu.weight",
)


def own_features(weights: Weights, prefix: str, observations: BoxSpace, activation: str) -> tuple[nn.Module, int]:
    """From observations to a vector, with the activation behind each layer.

    Args:
        weights: of the policy.
        prefix: before the names of the part that acts.
        observations: as the network gets them; pixels are scaled before.
        activation: a name of `networks.ACTIVATIONS`.

    Raises:
        UserError: they are no layers that follow one another, or strides cannot be told.
    """
    names = extractor_names(prefix)
    here = next((name for name in names if weights.has(name)), None)
    follows = next((name for name in _AFTER if name in weights), None)
    spelled = next((name for name, kind in ACTIVATIONS.items() if kind.__name__ == activation), None)
    if here is None or follows is None or spelled is None or observations.keys:
        raise weights.error(
            "it has a features extractor of its author's own whose layers are not understood; export it to ONNX or TorchScript"
        )
    tensors = weights.under(here)
    path = Path(weights.source)
    head = Layer(follows, weights.take(follows, (None, None)), None)
    chain = build_chain(
        [*in_order(layers_of(tensors, path), path), head],
        path,
        activation=spelled,
        observation_shape=observations.shape,
        standardization=nn.Identity(),
    )
    for name, tensor in tensors.items():
        weights.take(here + name, tuple(tensor.shape))
    for name in dict.fromkeys(names):
        if name != here:
            weights.use_copies(name, here)
    return nn.Sequential(*list(chain.network)[:-1]), int(head.weight.shape[1])
