"""The page of a student of several tasks: a row and a curve a task, and the geometric means over the tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from rldistill.pages import cards_html, note_lines, section
from rldistill.runs.scores import MultiTaskScore, Score, Scores, by_task
from rldistill.verbs.report.made import Made
from rldistill.verbs.report.page import (
    curves,
    effort,
    fill_template,
    making,
    players_html,
    scores_html,
)


def write_tasks_page(
    folder: Path,
    settings: dict[str, Any],
    metrics: list[dict[str, Any]],
    policy: Made | None,
    teachers: Sequence[Made],
    scores: Scores,
    plays: dict[str, Any] | None,
    notes: list[str],
    *,
    tasks: Sequence[str],
    generator: str,
) -> str:
    """The whole page.

    Args:
        folder: of the run.
        settings: its `config.json`.
        metrics: its `metrics.jsonl`.
        policy: the result of the run, if it is finished.
        teachers: those that are there.
        scores: the table, of each task the teacher first; may be empty.
        plays: the data that `animation` returns; None leaves it out.
        notes: one sentence for each thing that is missing.
        tasks: names of the heads.
        generator: for the page's head.
    """
    name = str(settings.get("student") or settings.get("network") or "the policy")
    mean = next(iter(scores.across_tasks), None)
    headline, lead = _headline(name, tasks, scores, mean)
    groups = by_task(scores)
    roles = [
        ("teacher" if score is group[0] else "student") if len(group) > 1 else "" for group in groups for score in group
    ]
    sections = [
        note_lines(notes),
        section("Playing", players_html(plays, str(plays["task"]) if plays else "")),
        section("Scores", scores_html(scores, roles)),
        section("Learning curves", _curves(name, settings, metrics, policy, scores, tasks)),
        section("How it was made", making(settings, policy, teachers)),
    ]
    about = f"rldistill {settings.get('verb', 'run')} · {len(tasks)} tasks · {folder}"
    cards = cards_html([*_means(mean), *effort(metrics, policy)])
    return fill_template(generator, headline, about, headline, lead, cards, sections, plays)


def _headline(name: str, tasks: Sequence[str], scores: Sequence[Score], mean: MultiTaskScore | None) -> tuple[str, str]:
    if not scores:
        return f"{name} being made for {len(tasks)} tasks", "What there is so far."
    first = scores[0]
    games = f"{first.episodes} full games a policy and task, random actions with probability {first.epsilon:g}, seed {first.seed}"
    kept = [(mean.normalized, "normalized score"), (mean.ratio, "score")] if mean is not None else []
    for value, what in kept:
        if mean is not None and math.isfinite(value):
            verb = "keeps" if value <= 1.005 else "reaches"
            return (
                f"{name} {verb} {100 * value:.0f} % of its teachers' {what} over {mean.tasks} tasks",
                f"Geometric mean over the tasks; {games}; intervals are 95 % and count the teachers' games too.",
            )
    return f"{name} plays {len(tasks)} tasks", f"{games}."


def _means(mean: MultiTaskScore | None) -> list[tuple[str, str, str]]:
    if mean is None:
        return []
    cards = []
    for title, value, low, high in (
        ("Normalized, geometric mean", mean.normalized, mean.normalized_low, mean.normalized_high),
        ("Ratio, geometric mean", mean.ratio, mean.ratio_low, mean.ratio_high),
    ):
        if math.isfinite(value):
            bounds = f"95 % interval {low:.2f} to {high:.2f}; " if math.isfinite(low) else ""
            cards.append((title, f"{value:.3f}", f"{bounds}over {mean.tasks} tasks, the teachers are 1"))
    return [*cards, ("Parameters", f"{mean.parameters:,}", f"{mean.bytes / 1024:,.0f} KiB, all heads")]


def _curves(
    name: str,
    settings: dict[str, Any],
    metrics: list[dict[str, Any]],
    policy: Made | None,
    scores: Scores,
    tasks: Sequence[str],
) -> str:
    """The curves of each task under its name."""
    described = settings.get("task")
    described = described if isinstance(described, list) and len(described) == len(tasks) else [{}] * len(tasks)
    tables = {str(group[0].task["env"]): group for group in reversed(by_task(scores))}
    parts = []
    for place, (task, description) in enumerate(zip(tasks, described, strict=True)):
        own = [record for record in metrics if record.get("lesson") == task]
        group = tables.get(str(description.get("env", task)), [])
        reference = group[0] if len(group) > 1 else None
        student = group[-1] if group else None
        drawn = curves(
            name, settings | {"task": description}, own, policy, group, student, reference, label=f"-{place}"
        )
        parts.append(f"<h3>{escape(task)}</h3>{drawn}" if drawn else "")
    return "".join(parts)
