"""The last layers of Stable-Baselines3's policies, and how they stand behind the others.

A head takes what the layers before it give (`latent`), and the features that these began with.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LOG_STD_RANGE = (-20.0, 2.0)
SDE_EPSILON = 1e-6


class Scorer(nn.Module):
    """Observations (B, *shape) to scores (B, K) float32."""

    def __init__(self, features: nn.Module, body: nn.Module, head: nn.Module, *, divisor: float) -> None:
        super().__init__()
        self.features = features
        self.body = body
        self.head = head
        self.divisor = divisor

    def forward(self, observations: Tensor) -> Tensor:
        """Raw observations; pixels are scaled here."""
        x = observations.to(torch.float32)
        features = self.features(x / self.divisor if self.divisor != 1 else x)
        scores: Tensor = self.head(self.body(features), features)
        return scores


class Plain(nn.Module):
    """A layer's outputs as they are."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, latent: Tensor, features: Tensor) -> Tensor:
        scores: Tensor = self.layer(latent)
        return scores


class QuantileMean(nn.Module):
    """The mean over an action's quantiles. SB3 lays them out as (quantile, action)."""

    def __init__(self, layer: nn.Module, quantiles: int, actions: int) -> None:
        super().__init__()
        self.layer = layer
        self.shape = (quantiles, actions)

    def forward(self, latent: Tensor, features: Tensor) -> Tensor:
        quantiles: Tensor = self.layer(latent)
        return quantiles.view(-1, *self.shape).mean(dim=1)


class Gaussian(nn.Module):
    """One log standard deviation a dimension, the same in all states."""

    log_std: Tensor

    def __init__(self, mean: nn.Module, log_std: Tensor) -> None:
        super().__init__()
        self.mean = mean
        self.register_buffer("log_std", log_std)

    def forward(self, latent: Tensor, features: Tensor) -> Tensor:
        mean = self.mean(latent)
        return torch.cat((mean, self.log_std.expand_as(mean)), dim=1)


class NetworkGaussian(nn.Module):
    """Log standard deviations out of a layer of their own, clamped as SAC does."""

    def __init__(self, mean: nn.Module, log_std: nn.Module) -> None:
        super().__init__()
        self.mean = mean
        self.log_std = log_std

    def forward(self, latent: Tensor, features: Tensor) -> Tensor:
        return torch.cat((self.mean(latent), self.log_std(latent).clamp(*LOG_STD_RANGE)), dim=1)


class StateDependentGaussian(nn.Module):
    """gSDE: noise = latent @ Gaussian matrix, so the variance is latent^2 @ std^2 (Raffin et al., arXiv 2005.05719)."""

    variance: Tensor

    def __init__(self, mean: nn.Module, variance: Tensor, noise: nn.Module | None) -> None:
        super().__init__()
        self.mean = mean
        self.register_buffer("variance", variance)
        self.noise = noise
        """From the features to what the noise depends on; None: it depends on the last hidden layer."""

    def forward(self, latent: Tensor, features: Tensor) -> Tensor:
        mean = self.mean(latent)
        basis = latent if self.noise is None else self.noise(features)
        variance = basis.square() @ self.variance + SDE_EPSILON
        return torch.cat((mean, (0.5 * variance.log()).expand_as(mean)), dim=1)


class Rescaled(nn.Module):
    """A tanh, and its range of -1 to 1 spread over the range of the actions."""

    low: Tensor
    high: Tensor

    def __init__(self, layer: nn.Module, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    def forward(self, latent: Tensor, features: Tensor) -> Tensor:
        return self.low + 0.5 * (torch.tanh(self.layer(latent)) + 1.0) * (self.high - self.low)
