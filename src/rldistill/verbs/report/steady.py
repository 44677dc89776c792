"""The part of a report that is about a learner and the student that follows it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rldistill import plots
from rldistill.pages import inline_svg, table_html
from rldistill.runs.curves import curves_of, steadiness_of
from rldistill.runs.records import parse
from rldistill.runs.steadiness import Steadiness


def steady_html(name: str, metrics: Sequence[Mapping[str, Any]], *, frame_skip: int) -> str:
    """Both curves and the table of their steadiness; empty where no learner is followed.

    Args:
        name: of the student.
        metrics: of the run.
        frame_skip: of the task.
    """
    curves = curves_of([parse(record) for record in metrics])
    if curves is None or not curves.student:
        return ""
    steps = [float(step) for step in curves.control_steps]
    drawn = plots.learning_curve(
        [plots.Curve("learner", steps, curves.learner), plots.Curve(f"student ({name})", steps, curves.student)],
        random=curves.random if math.isfinite(curves.random) else None,
        axis=f"{plots.control_steps(frame_skip)} of the learner",
    )
    table = table_html([_row(who, own) for who, own in steadiness_of(curves).items()]) if curves.has_scale else ""
    text = f"Mean episode return of learner and student, at last {curves.learner[-1]:.3g} and {curves.student[-1]:.3g}"
    return (
        f'<div class="wide">{inline_svg(drawn, text, "steady")}</div>{table}'
        '<p class="note">Both play the same games; the games that choose the versions are others. The figures are of the last half '
        "of these evaluations, on the scale on which random play is 0 and the learner's best evaluation is 1. The change is "
        "between neighbouring evaluations, its root mean square. The worst drop is from the best evaluation before.</p>"
    )


def _row(who: str, own: Steadiness) -> dict[str, str]:
    return {
        "": who,
        "mean": _number(own.mean),
        "deviation": _number(own.deviation),
        "change": _number(own.change),
        "worst drop": _number(own.worst_drop),
        "below 90 % of the best": "" if math.isnan(own.below) else f"{own.below:.0%}",
    }


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"
