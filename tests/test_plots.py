"""Tests of the figures: what they say, and that the same numbers give the same bytes."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from rldistill.plots import Curve, Level, control_steps, learning_curve, loss_curve

CURVE = Curve("net2", [1000, 2000, 3000], [-21.0, 3.0, 18.0], [-21.0, -2.0, 17.0], [-20.0, 8.0, 19.0])


def texts(svg: bytes) -> list[str]:
    return [
        "".join(element.itertext()) for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    ]


def test_learning_curve_names_its_axes_with_units_and_its_lines() -> None:
    drawn = texts(
        learning_curve([CURVE], teacher=Level("teacher", 19.0, 18.0, 20.0), random=-20.7, axis=control_steps(4))
    )
    for text in (
        "control steps (1 = 4 frames)",
        "mean episode return (points)",
        "net2",
        "teacher",
        "random play",
        "2,000",
    ):
        assert text in drawn


def test_the_same_numbers_give_the_same_bytes() -> None:
    assert learning_curve([CURVE]) == learning_curve([CURVE])


def test_each_seed_has_a_line_of_its_own() -> None:
    seeds = [Curve(f"seed {seed}", [0, 1000], [seed, seed + 1]) for seed in range(3)]
    assert {"seed 0", "seed 1", "seed 2"} <= set(texts(learning_curve(seeds)))


def test_a_run_without_points_still_shows_the_teacher() -> None:
    assert "teacher" in texts(learning_curve([], teacher=Level("teacher", 19.0)))


def test_png_is_a_png() -> None:
    assert learning_curve([CURVE], kind="png").startswith(b"\x89PNG")


def test_loss_curve_shows_the_agreement_where_there_is_one() -> None:
    steps, losses = [1.0, 2.0, 3.0], [1.0, 0.1, 0.01]
    assert "agreement" in texts(loss_curve(steps, losses, [0.5, 0.8, 0.9]))
    assert "agreement" not in texts(loss_curve(steps, losses))


def test_a_control_step_of_one_frame_needs_no_explanation() -> None:
    assert control_steps(1) == "control steps"
