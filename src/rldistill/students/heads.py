"""One network for several tasks: a torso that they share, and a head for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from rldistill.students.networks import Architecture, Network, Normalization, make_head, make_torso
from rldistill.types import ScoreKind, UserError


class Head(NamedTuple):
    """The inputs and outputs of the network for one task."""

    observation_shape: tuple[int, ...]
    num_scores: int
    """Scores for each observation, as in `Architecture`."""
    score_kind: ScoreKind
    reads: tuple[int, ...] = ()
    """For vectors: the features that the head reads; empty for all of them."""

    @property
    def features(self) -> int:
        """Features or channels that come in, along the first axis."""
        return len(self.reads) or self.observation_shape[0]


class MultiTaskNetwork(nn.Module):
    """A torso, and for each task a head with a controller layer of its own where the architecture has one.

    Rusu et al. 2015, arXiv 1511.06295, figure 2b and appendix A, table A2. `view` is one head with the torso as a `Network`,
    over the same modules and weights. Each head has its own standardization. Observations with fewer channels or features
    than the widest task's are padded with zeros after it.

    Args:
        name: of the architecture, `multi3` or `cnn:32,64,64:512+128`.
        heads: by task, in the order in which they are saved.
        normalization, dropout: as in `Architecture`.

    Raises:
        UserError: no such network, or images and vectors, or images of different sizes, are among the observations.
    """

    def __init__(
        self, name: str, heads: Mapping[str, Head], normalization: Normalization = "none", dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.heads = dict(heads)
        self.name = name
        widest = widest_shape(heads)
        torso, features = make_torso(Architecture(name, widest, 1, normalization, dropout))
        self._views: dict[str, Network] = {}
        for task, head in heads.items():
            architecture = Architecture(
                name, head.observation_shape, head.num_scores, normalization, dropout, head.reads
            )
            layers = [*torso, *make_head(architecture, features)]
            self._views[task] = Network(architecture, head.score_kind, layers, widest[0] - head.features)
        self.torso = nn.Sequential(*torso)
        # For `parameters` and `to`; shared modules count once.
        self._networks = nn.ModuleList(self._views.values())

    def view(self, task: str) -> Network:
        """The network of one head, which shares its weights with this one.

        Raises:
            UserError: there is no head for the task.
        """
        if task not in self._views:
            raise UserError(f"there is no head for {task!r}: the tasks are {', '.join(self._views)}")
        return self._views[task]

    def views(self) -> Iterator[tuple[str, Network]]:
        """Each task with its view."""
        yield from self._views.items()

    def own_layers(self, task: str) -> nn.Sequential:
        """The layers of one head, which come after the torso."""
        return cast(nn.Sequential, self.view(task).layers[len(self.torso) :])

    def parts(self) -> list[list[nn.Parameter]]:
        """The parameters of the torso, and of each head."""
        return [list(self.torso.parameters()), *(list(self.own_layers(task).parameters()) for task in self.heads)]

    def arrays(self) -> dict[str, Tensor]:
        """All saved arrays, each once: `torso.0.weight`, `heads.0.0.weight`, `heads.0.shift` ...; heads are numbered by place."""
        arrays = {f"torso.{name}": tensor for name, tensor in self.torso.state_dict().items()}
        for place, (task, network) in enumerate(self._views.items()):
            arrays |= {f"heads.{place}.{name}": tensor for name, tensor in network.named_buffers() if "." not in name}
            own = self.own_layers(task).state_dict()
            arrays |= {f"heads.{place}.{name}": tensor for name, tensor in own.items()}
        return arrays

    def load_arrays(self, arrays: Mapping[str, Tensor]) -> None:
        """Restores what `arrays` returned.

        Raises:
            ValueError: an array is missing, unknown, or has another shape.
        """
        own = self.arrays()
        if set(own) != set(arrays) or any(own[name].shape != arrays[name].shape for name in own):
            raise ValueError("the arrays are not those of its network")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(arrays[name])

    def split(self, task: str) -> Network:
        """A head and the torso as a separate network, with copies of the weights and without padding.

        Raises:
            UserError: there is no head for the task.
        """
        view = self.view(task)
        with torch.random.fork_rng(devices=[]):  # the drawn weights are replaced below
            network = Network(view.architecture, view.score_kind)
        state = {name: tensor.detach().clone() for name, tensor in view.state_dict().items()}
        if view.padding:
            first = f"layers.{next(name for name, _ in view.layers.named_parameters())}"
            # Channels, or of images that are flattened the pixels of all channels; the padded ones come last.
            state[first] = state[first][:, : network.state_dict()[first].shape[1]].contiguous()
        network.load_state_dict(state)
        return network.train(self.training)


def widest_shape(heads: Mapping[str, Head]) -> tuple[int, ...]:
    """The input shape of the torso: the most channels or features of all tasks.

    Raises:
        UserError: images and vectors, or images of different sizes, are among the observations.
    """
    shapes = {task: head.observation_shape for task, head in heads.items()}
    (first, shape), *others = shapes.items()
    for task, other in others:
        if len(other) != len(shape):
            raise UserError(
                f"{first} has observations of shape {shape} and {task} of {other}: one network reads images or vectors, not both"
            )
        if other[1:] != shape[1:]:
            raise UserError(
                f"{first} has images of {shape[1:]} pixels and {task} of {other[1:]}: one network reads images of one size"
            )
    return (max(head.features for head in heads.values()), *shape[1:])


def build_heads(
    name: str,
    heads: Mapping[str, Head],
    seed: int,
    *,
    normalization: Normalization = "none",
    dropout: float = 0.0,
) -> MultiTaskNetwork:
    """A fresh network for several tasks, its weights drawn from `seed` alone.

    Raises:
        UserError: as `MultiTaskNetwork`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = MultiTaskNetwork(name, heads, normalization, dropout)
    for place, (_, view) in enumerate(network.views()):
        if view.dropout is not None:
            view.dropout.generator.manual_seed(seed + place)
    return network
