import pytest
from hypothesis import given
from hypothesis import strategies as st

from rldistill.schedules import constant, linear, warmup_cosine

values = st.floats(-1e3, 1e3)
steps = st.integers(1, 10**7)


@given(values, st.integers(0, 10**9))
def test_constant_is_the_same_at_every_step(value: float, step: int) -> None:
    assert constant(value)(step) == value


def test_linear_goes_straight_from_start_to_end_and_stays() -> None:
    schedule = linear(1.0, 0.2, 100)
    assert [schedule(step) for step in (0, 25, 50, 100, 1_000)] == pytest.approx([1.0, 0.8, 0.6, 0.2, 0.2])


@given(values, values, steps, st.integers(-10, 10**8))
def test_linear_stays_between_its_ends(start: float, end: float, length: int, step: int) -> None:
    value = linear(start, end, length)(step)
    assert min(start, end) - 1e-9 <= value <= max(start, end) + 1e-9


@pytest.mark.parametrize("length", [0, -3])
def test_linear_over_no_steps_is_at_its_end_at_once(length: int) -> None:
    assert linear(1.0, 0.1, length)(0) == 0.1


def test_warmup_cosine_climbs_to_the_peak_and_falls_by_half_a_cosine() -> None:
    schedule = warmup_cosine(peak=2.0, end=1.0, warmup=4, steps=104)
    assert [schedule(step) for step in range(4)] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    # A cosine is halfway down in the middle, and 1 - cos(pi / 3) = 1/2 of the half-way mark at a third.
    assert [schedule(step) for step in (4, 54, 104, 999)] == pytest.approx([2.0, 1.5, 1.0, 1.0])
    assert warmup_cosine(1.0, 0.0, 0, 3)(1) == pytest.approx(0.75)


@given(st.floats(1e-5, 1.0), st.integers(0, 50), st.integers(1, 500))
def test_warmup_cosine_never_exceeds_its_peak_and_falls_after_it(peak: float, warmup: int, length: int) -> None:
    schedule = warmup_cosine(peak, 0.0, warmup, length)
    rates = [schedule(step) for step in range(length + 10)]
    assert all(0 <= rate <= peak * (1 + 1e-12) for rate in rates)
    assert all(later <= earlier + 1e-12 for earlier, later in zip(rates[warmup:], rates[warmup + 1 :], strict=False))
