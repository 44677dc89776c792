"""Figures as SVG or PNG bytes, drawn by Matplotlib without a display.

Matplotlib is imported by the functions that draw, since most commands draw nothing.
"""

from __future__ import annotations

import io
import math
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's palette, told apart by every common kind of colour vision.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
TEACHER, RANDOM, INK, GRID = "#D55E00", "#7F7F7F", "#222222", "#DDDDDD"

PlotFormat = Literal["svg", "png"]


@dataclass(frozen=True)
class Curve:
    """Scores over time, each field one number a point."""

    label: str
    steps: Sequence[float]
    means: Sequence[float]
    lows: Sequence[float] = field(default=())
    highs: Sequence[float] = field(default=())
    """Bounds of the interval at each point; empty where it is not known."""


@dataclass(frozen=True)
class Level:
    """A score to compare with, drawn across."""

    label: str
    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Point:
    """A figure of one setting."""

    label: str
    value: float
    """NaN leaves it out."""
    low: float = math.nan
    high: float = math.nan
    """Bounds of its interval; NaN where there is none."""
    place: float | None = None
    """On a numeric axis."""


@dataclass(frozen=True)
class Series:
    """One figure of all settings."""

    label: str
    points: Sequence[Point]


_SERIES = ((PALETTE[0], "o", True), (PALETTE[2], "s", False), (TEACHER, "D", False))
"""Colours, markers, and whether they are filled. The first is drawn over the others."""


def learning_curve(
    curves: Sequence[Curve],
    *,
    teacher: Level | None = None,
    random: float | None = None,
    axis: str = "control steps",
    kind: PlotFormat = "svg",
    width: float = 8.0,
) -> bytes:
    """Mean episode return over control steps.

    One curve is drawn with its points and its interval; several (seeds, say) as thin lines.

    Args:
        curves: what was learnt; may be empty.
        teacher: a dashed line with its band.
        random: mean return of random play, a dotted line.
        axis: what the steps are, see `control_steps`.
        kind: of the bytes returned.
        width: in inches.
    """
    figure, axes = _figure(width, 0.5 * width)
    drawn = [curve for curve in curves if len(curve.steps)]
    for number, curve in enumerate(drawn):
        colour = PALETTE[0] if len(drawn) == 1 else PALETTE[(number if number < 1 else number + 1) % len(PALETTE)]
        alone = len(drawn) == 1
        few = len(curve.steps) <= 60
        axes.plot(
            curve.steps,
            curve.means,
            color=colour,
            linewidth=2 if alone else 1,
            label=curve.label,
            marker="o" if few else None,
            markersize=5 if alone else 3,
            zorder=3,
        )
        if alone and len(curve.lows) == len(curve.steps):
            axes.fill_between(curve.steps, curve.lows, curve.highs, color=colour, alpha=0.18, linewidth=0)
    if teacher is not None:
        axes.axhline(teacher.mean, color=TEACHER, linestyle="--", linewidth=1.6, label=teacher.label, zorder=2)
        if teacher.low is not None and teacher.high is not None:
            axes.axhspan(teacher.low, teacher.high, color=TEACHER, alpha=0.12, linewidth=0)
    if random is not None:
        axes.axhline(random, color=RANDOM, linestyle=":", linewidth=1.6, label="random play", zorder=2)
    axes.set_xlabel(axis)
    axes.set_ylabel("mean episode return (points)")
    axes.set_xlim(left=0)
    _finish(figure, axes)
    return _bytes(figure, kind)


def growth_curves(curves: Sequence[Curve], *, axis: str, measure: str, width: float = 8.0) -> bytes:
    """Positive figures that grow over time, as SVG, on two logarithmic axes: a power of time is a straight line.

    Args:
        curves: what grows; each name stands in the legend.
        axis: what the steps are.
        measure: what grows.
        width: in inches.
    """
    figure, axes = _figure(width, 0.65 * width)
    for number, curve in enumerate(curves):
        line = ("-", "--", ":", "-.")[number // len(PALETTE) % 4]
        colour = PALETTE[number % len(PALETTE)]
        axes.plot(curve.steps, curve.means, color=colour, linestyle=line, linewidth=1.6, label=curve.label)
        if len(curve.lows) == len(curve.steps):
            axes.fill_between(curve.steps, curve.lows, curve.highs, color=colour, alpha=0.12, linewidth=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(axis)
    axes.set_ylabel(measure)
    _finish(figure, axes)
    return _bytes(figure, "svg")


def loss_curve(
    steps: Sequence[float],
    losses: Sequence[float],
    agreement: Sequence[float] = (),
    *,
    axis: str = "control steps",
    label: str = "loss",
    kind: PlotFormat = "svg",
    width: float = 8.0,
) -> bytes:
    """The loss over control steps and, on an axis of its own below, the agreement with the teacher's best action."""
    two = len(agreement) == len(steps) and len(steps) > 0
    figure, axes = _figure(width, 0.5 * width if two else 0.35 * width, rows=2 if two else 1)
    last = axes
    axes.plot(steps, losses, color=PALETTE[0], linewidth=1.5, label=label)
    axes.set_ylabel(label)
    positive = np.asarray([loss for loss in losses if np.isfinite(loss)])
    if positive.size and positive.min() > 0 and positive.max() > 20 * positive.min():
        axes.set_yscale("log")
    if two:
        last = figure.axes[1]
        last.plot(steps, agreement, color=PALETTE[2], linewidth=1.5, label="agreement")
        last.set_ylabel("agreement")
        last.set_ylim(min(0.5, *agreement) if agreement else 0, 1.0)
        _style(last)
    last.set_xlabel(axis)
    last.set_xlim(left=0)
    _finish(figure, axes, legend=False)
    return _bytes(figure, kind)


def choices_plot(
    steps: Sequence[float],
    shares: Sequence[Sequence[float]],
    payments: Sequence[Sequence[float]],
    names: Sequence[str],
    *,
    axis: str,
    width: float = 8.0,
) -> bytes:
    """Shares of several teachers over control steps, stacked, and below them their payments, as SVG.

    Args:
        steps: (T,).
        shares: (T, M).
        payments: (T, M); NaN where there is none.
        names: (M,).
        axis: what the steps are.
        width: in inches.
    """
    figure, axes = _figure(width, 0.6 * width, rows=2)
    colours = _colours(len(names))
    axes.stackplot(steps, np.asarray(shares).T, colors=colours, labels=names, step="pre")
    axes.set_ylabel("share of labels")
    axes.set_ylim(0, 1)
    below = figure.axes[1]
    for column, colour in zip(np.asarray(payments).T, colours, strict=True):
        below.plot(steps, column, color=colour, linewidth=1.5)
    below.set_ylabel("mean payment")
    below.set_xlabel(axis)
    below.set_xlim(left=0)
    _style(below)
    _finish(figure, axes)
    return _bytes(figure, "svg")


def trust_plot(
    places: Sequence[float], shares: Sequence[Sequence[float]], names: Sequence[str], axis: str, width: float = 8.0
) -> bytes:
    """Shares of several teachers along a number of the state, stacked, as SVG: `places` (B,), `shares` (B, M)."""
    figure, axes = _figure(width, 0.35 * width)
    if len(places) == 1:  # a bar, because an area needs two places
        places, shares = [places[0] - 0.5, places[0] + 0.5], [shares[0], shares[0]]
    axes.stackplot(places, np.asarray(shares).T, colors=_colours(len(names)), labels=names)
    axes.set_ylabel("share of trust")
    axes.set_ylim(0, 1)
    axes.set_xlabel(axis)
    _finish(figure, axes)
    _number_axis(axes)
    return _bytes(figure, "svg")


def picture_row(pictures: npt.NDArray[np.float64], names: Sequence[str]) -> bytes:
    """Pictures (M, channels, height, width) side by side as SVG, their channels added up; an empty frame for one of NaN."""
    _matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.2 * len(pictures) + 0.2, 2.5), layout="constrained")
    for axes, picture, name in zip(figure.subplots(1, len(pictures), squeeze=False)[0], pictures, names, strict=True):
        axes.imshow(picture.sum(axis=0), cmap="gray", interpolation="nearest")
        axes.set_title(name, fontsize=9, color=INK)
        axes.set_xticks([])
        axes.set_yticks([])
    return _bytes(figure, "svg")


def _colours(number: int) -> list[str]:
    """Colours for so many teachers: the palette, and from its end on mixtures of it with white."""
    from matplotlib.colors import to_hex, to_rgb

    colours = [to_rgb(colour) for colour in PALETTE]
    lighter = [to_hex((0.5 + red / 2, 0.5 + green / 2, 0.5 + blue / 2)) for red, green, blue in colours]
    return [(*PALETTE, *lighter)[place % (2 * len(PALETTE))] for place in range(number)]


def comparison_plot(
    series: Sequence[Series], profiles: Sequence[Curve], *, axis: str, measure: str, width: float = 8.0
) -> bytes:
    """Settings against their figures, and performance profiles below, as SVG.

    Settings with a place are a curve over a numeric axis; those without one are rows under their names, or stand beside the
    curve.

    Args:
        series: the figures of all settings, once for each measure; each series has the same settings in the same order.
        profiles: of each setting; may be empty.
        axis: what the settings are of, such as `temperature`.
        measure: what the score 1 is.
        width: in inches.
    """
    points = series[0].points
    placed = [number for number, point in enumerate(points) if point.place is not None]
    named = [number for number, point in enumerate(points) if point.place is None]
    height = 3.6 if placed else 1.2 + 0.16 * len(named) * (len(series) + 0.6)
    _matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height + (3.8 if profiles else 0.3)), layout="constrained")
    parts: list[Any] = [figure]
    if profiles:
        parts = list(figure.subfigures(2, 1, squeeze=False, height_ratios=[height, 3.8])[:, 0])
    if placed:
        _draw_curves(parts[0], series, placed, named, axis, measure)
    else:
        _draw_rows(parts[0], series, axis, measure)
    if profiles:
        _draw_profiles(parts[1], profiles, measure)
    return _bytes(figure, "svg")


def _draw_curves(
    figure: Any, series: Sequence[Series], placed: Sequence[int], named: Sequence[int], axis: str, measure: str
) -> None:
    """Figures over a numeric axis, those without a place in a panel at the right."""
    ratios = [max(6.0, 2.0 * len(named)), max(1.0, len(named))]
    panels = figure.subplots(1, 2, sharey=True, width_ratios=ratios) if named else [figure.subplots()]
    places = [float(series[0].points[number].place or 0) for number in placed]
    for style, one in enumerate(series):
        order = np.argsort(places, kind="stable")
        _errorbars(panels[0], [places[k] for k in order], [one.points[placed[k]] for k in order], style, one.label, "-")
        if named:
            shift = 0.16 * (style - (len(series) - 1) / 2)
            _errorbars(panels[1], np.arange(len(named)) + shift, [one.points[k] for k in named], style, None, "")
    _style(panels[0])
    if min(places) > 0 and max(places) >= 8 * min(places):
        panels[0].set_xscale("log")
    _number_axis(panels[0])
    if all(series[0].points[number].label == f"{place:g}" for number, place in zip(placed, places, strict=True)):
        panels[0].set_xticks(sorted(places))  # few, and each has a name to look for
    panels[0].set_xlabel(axis)
    panels[0].set_ylabel(measure)
    if named:
        _style(panels[1])
        panels[1].set_xticks(range(len(named)), [series[0].points[k].label for k in named])
        panels[1].set_xlim(-0.6, len(named) - 0.4)
    for panel in panels:
        panel.axhline(1.0, color=TEACHER, linestyle="--", linewidth=1.4, zorder=1)
    _legend(figure, panels[0])


def _number_axis(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:,.6g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _draw_rows(figure: Any, series: Sequence[Series], axis: str, measure: str) -> None:
    """A row for each setting, the first at the top."""
    axes = figure.subplots()
    labels = [point.label for point in series[0].points]
    for style, one in enumerate(series):
        shift = 0.2 * (style - (len(series) - 1) / 2)
        _errorbars(axes, np.arange(len(labels)) + shift, one.points, style, one.label, "", across=True)
    _style(axes)
    _number_axis(axes)
    axes.axvline(1.0, color=TEACHER, linestyle="--", linewidth=1.4, zorder=1)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_ylabel(axis)
    axes.set_xlabel(measure)
    _legend(figure, axes)


def _errorbars(
    axes: Axes,
    places: Any,
    points: Sequence[Point],
    style: int,
    label: str | None,
    line: str,
    *,
    across: bool = False,
) -> None:
    """Points with their intervals where they have one; `across` lays the figures along the horizontal axis."""
    values = np.array([point.value for point in points])
    bounds = np.array([[point.low, point.high] for point in points]).reshape(-1, 2)
    errors = np.abs(bounds.T - values)
    colour, marker, filled = _SERIES[style % len(_SERIES)]
    finite = np.isfinite(values)
    where, values, errors = np.asarray(places, dtype=float)[finite], values[finite], errors[:, finite]
    drawn = (values, where) if across else (where, values)
    bars = {} if np.isnan(errors).all() else {"xerr" if across else "yerr": np.nan_to_num(errors)}
    axes.errorbar(
        *drawn,
        **bars,
        color=colour,
        marker=marker,
        markerfacecolor=colour if filled else "none",
        linestyle=line,
        linewidth=1.5,
        elinewidth=1.5,
        capsize=3,
        markersize=6,
        label=label,
        zorder=4 - 0.1 * style,
    )


def _draw_profiles(figure: Any, profiles: Sequence[Curve], measure: str) -> None:
    axes = figure.subplots()
    for number, curve in enumerate(profiles):
        colour = PALETTE[number % len(PALETTE)]
        line = ("-", "--", ":", "-.")[number // len(PALETTE) % 4]
        axes.plot(curve.steps, curve.means, color=colour, linestyle=line, linewidth=1.6, label=curve.label, zorder=3)
        axes.fill_between(curve.steps, curve.lows, curve.highs, color=colour, alpha=0.1, linewidth=0)
    _style(axes)
    _number_axis(axes)
    axes.set_xlabel(f"normalized score (0 is random play, {measure})")
    axes.set_ylabel("share of runs above it")
    axes.set_ylim(-0.02, 1.02)
    axes.axvline(1.0, color=RANDOM, linestyle=":", linewidth=1.2, zorder=1)
    _legend(figure, axes)


def _legend(figure: Any, axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper left", ncols=4, frameon=False, labelcolor=INK)


def observation_panels(observations: Sequence[npt.NDArray[Any]], labels: Sequence[str]) -> bytes:
    """Image observations (channels, height, width) as a PNG, a row of grey panels each, oldest frame left.

    Args:
        observations: of one shape.
        labels: one a row.
    """
    channels = observations[0].shape[0]
    _matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.7 * channels + 0.3, 1.95 * len(observations)), layout="constrained")
    rows = figure.subfigures(len(observations), 1, squeeze=False)[:, 0]
    for row, observation, label in zip(rows, observations, labels, strict=True):
        row.suptitle(label, fontsize=9, color=INK)
        # Planes of zeros and ones are grey images too.
        top = (
            255
            if observation.dtype == np.uint8 and observation.max(initial=0) > 1
            else max(float(observation.max()), 1)
        )
        for axes, panel in zip(row.subplots(1, channels, squeeze=False)[0], observation, strict=True):
            axes.imshow(panel, cmap="gray", vmin=min(float(observation.min()), 0), vmax=top, interpolation="nearest")
            axes.set_axis_off()
    return _bytes(figure, "png")


def control_steps(frame_skip: int) -> str:
    """The label of an axis of control steps."""
    return f"control steps (1 = {frame_skip} frames)" if frame_skip > 1 else "control steps"


def _matplotlib() -> Any:
    """The package, whatever MPLBACKEND says: nothing here needs a backend, and a name that it does not know ends its import."""
    if "matplotlib" in sys.modules:
        return sys.modules["matplotlib"]
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend is not None:
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = backend  # as it does itself
    return matplotlib


def _figure(width: float, height: float, rows: int = 1) -> tuple[Figure, Axes]:
    _matplotlib()
    # Not pyplot: it keeps figures and a backend for the whole process.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = [figure.add_subplot(rows, 1, 1)]
    for row in range(2, rows + 1):
        axes.append(figure.add_subplot(rows, 1, row, sharex=axes[0]))
        axes[0].tick_params(labelbottom=False)
    return figure, axes[0]


def _style(axes: Axes) -> None:
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(INK)
    axes.tick_params(colors=INK)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    from matplotlib.ticker import FuncFormatter

    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:,.0f}"))


def _finish(figure: Figure, axes: Axes, *, legend: bool = True) -> None:
    _style(axes)
    if legend:
        _legend(figure, axes)


def _bytes(figure: Figure, kind: PlotFormat) -> bytes:
    out = io.BytesIO()
    # Text stays text, and the same numbers give the same bytes.
    with _matplotlib().rc_context({"svg.fonttype": "none", "svg.hashsalt": "rldistill", "font.size": 11}):
        if kind == "svg":
            figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
        else:
            figure.savefig(out, format="png", dpi=160)
    return out.getvalue()
