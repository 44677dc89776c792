"""What a reference says of noise: `noisy:SIGMA:REF` is the teacher REF with noise on its values."""

from __future__ import annotations

import os
from dataclasses import dataclass

from rldistill.types import UserError, did_you_mean, printable

PREFIX = "noisy:"
_MOST = 1e30
"""Of sigma, since values are float32."""
_FORM = "noisy:SIGMA:REF, such as noisy:2:policies/pong, or noisy:0.5s:policies/pong in units of the values' spread"


@dataclass(frozen=True)
class Noise:
    """How much noise, and which."""

    sigma: float
    """The standard deviation."""
    in_spreads: bool
    """Whether `sigma` counts standard deviations of the teacher's advantages, and not units of its values."""
    seed: int

    def __str__(self) -> str:
        sigma = repr(self.sigma).removesuffix(".0")
        return f"{sigma}{'s' if self.in_spreads else ''}" + (f",seed={self.seed}" if self.seed else "")


def noise_in(ref: str | os.PathLike[str]) -> tuple[Noise | None, str]:
    """The noise that a reference names, if it names any, and the reference to the teacher without it.

    Raises:
        UserError: it begins with `noisy:`, and goes on in another way than `noisy:SIGMA:REF` or `noisy:SIGMA,seed=N:REF`.
    """
    place = os.fspath(ref)
    if not place.startswith(PREFIX):
        return None, place
    amount, _, inner = place.removeprefix(PREFIX).partition(":")
    if not inner:
        raise UserError(f"{printable(place)} names no teacher: write {_FORM}")
    if inner.startswith(PREFIX):
        raise UserError(f"{printable(place)} adds noise twice: name the teacher with one amount of noise")
    return _noise(amount, place), inner


def with_noise(noise: Noise | None, place: str) -> str:
    """The inverse of `noise_in`."""
    return place if noise is None else f"{PREFIX}{noise}:{place}"


def _noise(amount: str, place: str) -> Noise:
    sigma, *options = amount.split(",")
    number = sigma.removesuffix("s")
    try:
        value = float(number)
    except ValueError:
        raise UserError(f"{printable(place)}: {sigma!r} is no number: write {_FORM}") from None
    if not 0 <= value <= _MOST:
        raise UserError(f"{printable(place)}: sigma is a number from 0 to {_MOST:g}, not {number}")
    seed = 0
    for option in options:
        name, _, text = option.partition("=")
        if name != "seed":
            raise UserError(
                f"{printable(place)}: noise has no option {name!r}, only seed{did_you_mean(name, ['seed'])}"
            )
        if not (text.isascii() and text.isdigit() and len(text) < 19):
            raise UserError(f"{printable(place)}: the seed is a whole number of at least 0, not {text!r}")
        seed = int(text)
    return Noise(value, sigma != number, seed)
