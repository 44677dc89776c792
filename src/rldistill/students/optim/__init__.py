"""Optimizers, and transformations of gradients before a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Optimization:
    """First weights, optimizer, schedule and average."""

    optimizer: Literal["auto", "adam", "muon", "rmsprop"] = "auto"
    """AdamW; Muon (orthogonal steps of the weight matrices); or RMSProp as in the paper. `auto`: muon for students of images whose
    teacher gives logits, which it fits in far fewer updates; else adam."""
    learning_rate: float = 3e-3
    """Peak of the learning rate."""
    steady: bool = True
    """Steps that no layer's mean input and number of inputs make longer: gradients are taken for inputs less their mean, and
    layers of more than 256 inputs have a smaller rate. Without it many of a student's ReLUs die."""
    weight_decay: float | None = None
    """Of Muon and Adam, apart from the gradient: each update shrinks the weights by this times the learning rate. A student of few
    images follows its teacher better where it has not been: by default 0.1 for images, 0 for vectors."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Of the learning rate: a short warm-up and half a cosine down to nothing, or constant."""
    max_grad_norm: float = 1.0
    """Gradients longer than this are shortened to it; 0 leaves them. One large step can kill a small student's ReLUs."""
    average: float = 0.1
    """Share of the updates so far that the running average of the weights spans; it is what is evaluated and kept. 0 keeps the
    last weights."""
    standardize: bool = True
    """Fit mean and scale of the observations once; without it pixels are divided by 255 and vectors left as they are."""
    initialize: Literal["data", "torch"] = "data"
    """`data`: weights drawn so that every unit has mean 0 and variance 1 over the warm-up; `torch`: PyTorch's default."""
    bfloat16: bool | None = None
    """Train all layers but the last in bfloat16 (weights, scores, labels and the optimizer stay float32); by default for images
    where that is faster: on a GPU, or a processor that multiplies matrices of it (AMX)."""
