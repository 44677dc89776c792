"""Composites of two states."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rldistill.lessons.augmentation import compose_


def composites(observations: Tensor, partners: Tensor, generator: np.random.Generator) -> Tensor:
    made = observations.clone()
    compose_(made, partners, generator)
    return made


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 30))
def test_composite_image_is_a_rectangle_of_the_partner_in_the_observation(seed: int, height: int, width: int) -> None:
    ours, theirs = torch.zeros(5, 2, height, width, dtype=torch.uint8), torch.full((5, 2, height, width), 7).byte()
    made = composites(ours, theirs, np.random.default_rng(seed))
    assert made.dtype == torch.uint8
    assert made.shape == ours.shape
    for image in made:
        assert torch.equal(image[0], image[1]), "all frames of a stack get the same rectangle"
        pasted = image[0] == 7
        rows, columns = pasted.any(dim=1), pasted.any(dim=0)
        assert torch.equal(pasted, rows[:, None] & columns[None, :])
        assert rows.any()
        for edge in (rows, columns):  # one run without a gap
            places = edge.nonzero().flatten()
            assert len(places) == places[-1] - places[0] + 1
    assert bool((theirs == 7).all()), "partners are not written to"


def test_rectangles_cover_less_than_half_on_average_and_fall_everywhere() -> None:
    """The drawn area is half of the image on average, and some of it is cut off at the borders: by hand, a side that is the
    share s of its axis keeps s - s^2 / 4 of it for a centre drawn uniformly; with s^2 uniform, E (s - s^2 / 4)^2 = 0.3208."""
    number = 4_000
    ours, theirs = torch.zeros(number, 1, 40, 40), torch.ones(number, 1, 40, 40)
    made = composites(ours, theirs, np.random.default_rng(0))
    assert float(made.mean()) == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=0.02)
    assert float(made.mean(dim=(0, 1)).min()) > 0.1


def test_every_pixel_of_a_composite_stays_in_its_place() -> None:
    ours = -torch.arange(1, 401).reshape(1, 1, 20, 20).expand(8, 1, 20, 20)
    made = composites(ours, -ours, np.random.default_rng(1))
    assert torch.equal(made.abs(), -ours)
    assert bool((made > 0).flatten(1).any(dim=1).all())


def test_composite_vector_lies_between_the_two() -> None:
    generator = np.random.default_rng(3)
    ours, theirs = (torch.from_numpy(generator.normal(size=(50, 4)).astype(np.float32)) for _ in range(2))
    made = composites(ours, theirs, np.random.default_rng(0))
    weights = (made - ours) / (theirs - ours)
    assert torch.allclose(weights, weights[:, :1].expand(-1, 4), atol=1e-3), "one weight for all features"
    assert 0 <= float(weights.min()) < 0.1
    assert 0.9 < float(weights.max()) <= 1.001


def test_composites_follow_from_their_generator() -> None:
    images = torch.randint(0, 256, (6, 4, 12, 12), generator=torch.Generator().manual_seed(0)).byte()
    first, again, other = (composites(images, images.flip(0), np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
