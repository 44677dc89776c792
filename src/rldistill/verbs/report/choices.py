"""The part of a page that shows a choice among several teachers of one task."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from rldistill import plots
from rldistill.pages import inline_svg
from rldistill.stats import figure


def choices_html(metrics: Sequence[Mapping[str, Any]], *, axis: str, label: str = "") -> str:
    """Scores of the teachers, their shares of the labels, their payments, and where they are trusted; empty with one teacher."""
    records = _whole(metrics)
    scored = [record for record in metrics if record.get("event") == "teacher" and "teacher" in record]
    if not records:
        return ""
    number = len(records[-1]["pulls"])
    names = short_names([str(record["teacher"]) for record in scored]) if len(scored) == number else []
    names = names or [f"teacher {place + 1}" for place in range(number)]
    shares, payments = _shares(records, number), _payments(records, number)
    steps = [float(record["control_steps"]) for record in records]
    drawn = plots.choices_plot(steps, shares, payments, names, axis=axis)
    most = int(np.argmax(np.asarray(records[-1]["samples"])))
    text = f"Shares of the labels over {axis}: most at the end are of {names[most]}"
    trusted = [record for record in metrics if record.get("event") == "trust"]
    maps = "".join(_map_html(record, names, f"{label}-{place}") for place, record in enumerate(trusted))
    return (
        f"<h3>Teachers</h3>{_table(records[-1], scored, names)}"
        '<p class="note">Above, whose labels the samples of each stretch had; below, the mean payment of a choice as the chooser '
        f'estimates it.</p><div class="wide">{inline_svg(drawn, text, f"choices{label}")}</div>{maps}'
    )


def _whole(metrics: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The records of choices that have all their figures, of as many teachers as the last one."""
    records = [
        record
        for record in metrics
        if record.get("event") == "choices"
        and "control_steps" in record
        and record.get("pulls")
        and all(len(record.get(name) or ()) == len(record["pulls"]) for name in ("payments", "samples"))
    ]
    return [record for record in records if len(record["pulls"]) == len(records[-1]["pulls"])]


def short_names(sources: Sequence[str]) -> list[str]:
    """What teachers are called in a picture: as many last parts of their paths as tell them apart, with the noise before them."""
    split = [_NOISE.match(source) for source in sources]
    noises = [match[0] if match else "" for match in split]
    paths = [source.removeprefix(noise).split("/") for source, noise in zip(sources, noises, strict=True)]
    for parts in range(1, max(map(len, paths)) + 1):
        names = [noise + "/".join(path[-parts:]) for noise, path in zip(noises, paths, strict=True)]
        if len(set(names)) == len(names):
            return names
    return list(sources)


_NOISE = re.compile(r"noisy:[^:]*:")
_LARGEST = 1024
"""Channels, rows or columns of a mean picture; a file that says more is damaged."""


def _shares(records: Sequence[Mapping[str, Any]], number: int) -> list[list[float]]:
    """(T, M): each teacher's share of the samples since the record before."""
    samples = np.array([[0.0] * number, *(record["samples"] for record in records)])
    since = np.diff(samples, axis=0)
    total = since.sum(axis=1, keepdims=True)
    shares: list[list[float]] = (since / np.where(total > 0, total, 1)).tolist()
    return shares


def _payments(records: Sequence[Mapping[str, Any]], number: int) -> list[list[float]]:
    """(T, M): estimated payments, NaN where there is none."""
    return [[np.nan if mean is None else float(mean) for mean in record["payments"]] for record in records]


def _table(last: Mapping[str, Any], scored: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    scores = dict(enumerate(scored)) if len(scored) == len(names) else {}
    total = sum(last["samples"]) or 1.0
    rows = ""
    for place, name in enumerate(names):
        score = scores.get(place, {})
        mean = figure(score["mean"], score.get("ci_low"), score.get("ci_high")) if "mean" in score else ""
        payment = last["payments"][place]
        cells = [
            mean,
            f"{last['pulls'][place]:,.0f}",
            "" if payment is None else figure(payment),
            f"{100 * last['samples'][place] / total:.1f} %",
        ]
        rows += f"<tr><th>{escape(name)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    head = "".join(f"<th>{title}</th>" for title in ("teacher", "its score", "payments", "mean payment", "labels"))
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _map_html(record: Mapping[str, Any], names: Sequence[str], label: str) -> str:
    """Who is trusted where."""
    name, places, shares = record.get("name"), record.get("places"), record.get("shares")
    if not isinstance(places, list) or not isinstance(shares, list) or not places:
        return ""
    pictured = name == "picture"
    if pictured and not (len(places) == 3 and all(1 <= place <= _LARGEST for place in places)):
        return ""
    if len(shares) != len(names) * (math.prod(map(int, places)) if pictured else len(places)):
        return ""
    if pictured:
        pictures = np.array([np.nan if pixel is None else pixel for pixel in shares], dtype=np.float64)
        drawn = plots.picture_row(pictures.reshape(len(names), *map(int, places)), names)
        words = "The mean picture of the states where each teacher is trusted"
    else:
        drawn = plots.trust_plot(places, np.array(shares).reshape(len(places), len(names)).tolist(), names, str(name))
        words = f"Who is trusted along {name}"
    return f'<p class="note">{escape(words)}.</p><div class="wide">{inline_svg(drawn, words, f"trust{label}")}</div>'
