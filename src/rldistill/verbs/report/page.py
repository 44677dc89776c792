"""The page of a report: figures and words about a run, put into the template `page.html`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from rldistill import plots
from rldistill.pages import cards_html, cell_html, fill_page, inline_svg, meanings_html, note_lines, section
from rldistill.progress import clock
from rldistill.runs.scores import Score, by_task, score_table, sentences
from rldistill.stats import figure, interval, with_interval
from rldistill.verbs.report.choices import choices_html
from rldistill.verbs.report.made import Made


def write_page(
    folder: Path,
    settings: dict[str, Any],
    metrics: list[dict[str, Any]],
    policy: Made | None,
    teacher: Made | None,
    scores: list[Score],
    plays: dict[str, Any] | None,
    notes: list[str],
    *,
    generator: str,
    beside: str = "",
) -> str:
    """The whole page.

    Args:
        folder: of the run.
        settings: its `config.json`.
        metrics: its `metrics.jsonl`.
        policy: the result of the run, if it is finished.
        teacher: of a distillation, if it is there.
        scores: the table, the teacher first; may be empty.
        plays: the data that `animation` returns; None leaves it out.
        notes: one sentence for each thing that is missing.
        generator: for the page's head.
        beside: HTML about a learner that is followed.
    """
    tables = [(group, *_own_and_reference(group, policy)) for group in by_task(scores)]
    # Scores from other starts than the first ones stand in the table alone.
    own, reference = next((pair for _, *pair in tables if pair[0] is not None), (None, None))
    name = str(settings.get("student") or settings.get("network") or "the policy")
    env = str(_mapping(settings.get("task")).get("env") or (policy.task.env if policy else "an environment"))
    headline, lead = _headline(name, env, settings, metrics, own, reference)
    sections = [
        note_lines(notes),
        section(
            "Playing side by side" if plays and len(plays["players"]) == 2 else "Playing", players_html(plays, env)
        ),
        section("Scores", scores_html(scores, [_role(score, *pair) for group, *pair in tables for score in group])),
        section("Learning curve", curves(name, settings, metrics, policy, scores, own, reference)),
        section("Learner and student", beside),
        section("How it was made", making(settings, policy, [teacher] if teacher is not None else [])),
    ]
    about = f"rldistill {settings.get('verb', 'run')} · {env} · {folder}"
    cards = _cards(metrics, policy, own, reference)
    return fill_template(generator, f"{headline} ({env})", about, headline, lead, cards, sections, plays)


def fill_template(
    generator: str,
    title: str,
    about: str,
    headline: str,
    lead: str,
    cards: str,
    sections: Sequence[str],
    plays: dict[str, Any] | None,
) -> str:
    """The page out of its parts, with what moves the players; cards and sections are HTML, the rest is plain text."""
    # "<" would let a name end the script element.
    data = json.dumps(plays, separators=(",", ":")).replace("<", "\\u003c")
    style, script = (
        Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("players.css", "players.js")
    )
    return fill_page(
        generator,
        title=title,
        about=about,
        headline=headline,
        lead=lead,
        cards=cards,
        sections=sections,
        style=style,
        script=f'<script type="application/json" id="plays">{data}</script>\n<script>\n{script}</script>\n',
    )


def _own_and_reference(group: Sequence[Score], policy: Made | None) -> tuple[Score | None, Score | None]:
    """The policy's score among those of one task and its starts, and what it is compared with."""
    own = next((score for score in reversed(group) if policy is not None and _is_of(score, policy)), None)
    return own, group[0] if own is not None and group[0] is not own else None


def _role(score: Score, own: Score | None, reference: Score | None) -> str:
    return "student" if score is own else "teacher" if score is reference else ""


def _is_of(score: Score, policy: Made) -> bool:
    return score.weights_sha256 == policy.weights_sha256


def _headline(
    name: str,
    env: str,
    settings: Mapping[str, Any],
    metrics: list[dict[str, Any]],
    own: Score | None,
    reference: Score | None,
) -> tuple[str, str]:
    if own is None:
        steps = metrics[-1].get("control_steps") if metrics else None
        so_far = f" after {steps:,} control steps" if isinstance(steps, int) else ""
        verb = "distilled" if settings.get("verb") == "distill" else "trained"
        return f"{name} being {verb} on {env}{so_far}", "What there is so far."
    alike = "" if own.distinct in (None, own.episodes) else f" ({own.distinct} distinct)"
    games = (
        f"{own.episodes}{alike} full games a policy, random actions with probability {own.epsilon:g}, seed {own.seed}"
    )
    chance = figure(own.random_score, own.ci_low, own.ci_high)
    if reference is None:
        return (
            f"{name} scores {figure(own.mean, own.ci_low, own.ci_high)} points on {env}",
            f"{_interval(own)}{games}. Uniformly random play scores {chance}.",
        )
    share = _percentage(own.parameter_share)
    lead = (
        f"Mean return {with_interval(own.mean, own.ci_low, own.ci_high)} against the teacher's "
        f"{with_interval(reference.mean, reference.ci_low, reference.ci_high)}; {games}; brackets are 95 % intervals."
    )
    if reference.mean <= own.random_score or not math.isfinite(own.normalized):
        return (
            f"{name} scores {figure(own.mean, own.ci_low, own.ci_high)} points with {share} of the teacher's parameters",
            (f"{lead} The teacher is no better than random play ({chance}), so there is nothing to keep."),
        )
    verb = "keeps" if own.normalized <= 1.005 else "reaches"
    kept = _percentage(max(own.normalized, 0.0), digits=0)
    return f"{name} {verb} {kept} of the teacher's normalized score with {share} of its parameters", lead


def _interval(score: Score) -> str:
    bounds = interval(score.ci_low, score.ci_high)
    return f"95 % interval {bounds}; " if bounds else ""


def _cards(metrics: list[dict[str, Any]], policy: Made | None, own: Score | None, reference: Score | None) -> str:
    cards: list[tuple[str, str, str]] = []
    if own is not None and reference is not None:
        bounds = (
            f"95 % interval {own.normalized_low:.2f} to {own.normalized_high:.2f}"
            if math.isfinite(own.normalized_low)
            else ""
        )
        if math.isfinite(own.normalized):
            cards.append(
                ("Normalized score", f"{own.normalized:.3f}", f"{bounds}; the teacher is 1, random play 0".lstrip("; "))
            )
        cards.append(("Parameters", f"{own.parameters:,}", f"the teacher has {reference.parameters:,}"))
        cards.append(("Agreement", f"{100 * own.agreement:.1f} %", "of its states: the teacher's best action"))
        faster = reference.microseconds / own.microseconds
        cards.append(("Time a decision", f"{own.microseconds:,.0f} µs", f"one thread; {faster:.1f} times as fast"))
    elif own is not None:
        cards.append(("Mean return", figure(own.mean, own.ci_low, own.ci_high), _interval(own).removesuffix("; ")))
        cards.append(("Parameters", f"{own.parameters:,}", f"{own.bytes / 1024:,.0f} KiB on disk"))
        cards.append(("Time a decision", f"{own.microseconds:,.0f} µs", "one thread, one observation"))
    cards += effort(metrics, policy)
    return cards_html(cards)


def effort(metrics: list[dict[str, Any]], policy: Made | None) -> list[tuple[str, str, str]]:
    """Cards of control steps and training time."""
    cards: list[tuple[str, str, str]] = []
    made = dict(policy.provenance) if policy is not None else {}
    last: dict[str, Any] = {}
    for record in metrics:
        last |= {key: record[key] for key in ("control_steps", "updates", "seconds") if key in record}
    steps, updates = made.get("control_steps", last.get("control_steps")), made.get("updates", last.get("updates"))
    seconds = made.get("seconds", made.get("training_seconds", last.get("seconds")))
    if isinstance(steps, int):
        cards.append(
            ("Control steps", f"{steps:,}", f"{updates:,} gradient updates" if isinstance(updates, int) else "")
        )
    if isinstance(seconds, int | float):
        cards.append(
            ("Training time", clock(seconds), "hours:minutes:seconds" if seconds >= 3600 else "minutes:seconds")
        )
    return cards


def players_html(plays: dict[str, Any] | None, env: str) -> str:
    """The animation and its controls."""
    if plays is None:
        return ""
    figures = []
    pair = len(plays["players"]) == 2
    for number, player in enumerate(plays["players"]):
        role, name = str(player["role"]), escape(str(player["name"]))
        title = f"{role.capitalize()}<small>{name}</small>" if pair else name
        label = f"The {role if pair else 'policy'} {player['name']} playing {env}"
        many = " many" if len(plays["actions"]) > 9 else ""
        figures.append(
            f'<figure class="player {role}" id="player-{number}">'
            f'<header><span class="name">{title}</span><span class="score"><small>score</small><b>0</b></span></header>'
            f'<div class="screen"><canvas width="{player["width"]}" height="{player["height"]}" role="img" '
            f'style="--ratio: {player["width"] / player["height"]:.4f}" '
            f'aria-label="{escape(label, quote=True)}"></canvas></div>'
            f'<ul class="bars{many}" aria-label="Action preferences: {escape(player["measure"], quote=True)}"></ul>'
            f'<figcaption class="status"></figcaption></figure>'
        )
    measures = "; ".join(f"{player['role']}: " * pair + player["measure"] for player in plays["players"])
    tick = (
        " The upright marks in the student's bars are what the teacher thinks of the same moment of the student's game."
        if pair
        else ""
    )
    return (
        f'<p class="note">{"Both start from the same seed. " if pair else ""}'
        f"Bars are the preferences among the actions ({escape(measures)}); the bold one was taken.{tick}</p>"
        f'<div class="players">{"".join(figures)}</div>'
        '<div class="controls"><button type="button" id="toggle">Play</button>'
        '<button type="button" id="back" aria-label="one decision back">&#8592;</button>'
        '<button type="button" id="forward" aria-label="one decision on">&#8594;</button>'
        f'<input type="range" id="scrub" min="0" max="{plays["length"] - 1}" value="0" aria-label="time">'
        '<output id="clock" for="scrub"></output>'
        '<label>Speed <select id="speed"><option value="0.25">¼</option><option value="0.5">½</option>'
        '<option value="1" selected>1</option><option value="2">2</option><option value="4">4</option>'
        "</select></label></div>"
        "<noscript><p>The animation needs JavaScript.</p></noscript>"
    )


MEANINGS = {
    "task": "the environment, where the table has several",
    "share": "parameters of the policy by those of the first",
    "KiB": "size of the weights on disk",
    "starts": "where games begin: the environment's own starts, or those of a file",
    "games": "full games, and how many of them are distinct where some are the same one",
    "mean [95 % CI]": "mean raw return of the games and its 95 % bootstrap interval over distinct games",
    "IQM": "interquartile mean: of the middle half of the games",
    "ratio": "mean by the teacher's mean, the paper's measure (- where the teacher's is not positive)",
    "normalized [95 % CI]": "(mean - random) / (teacher's mean - random)",
    "agreement": "share of the states in the policy's own games at which its best action is the teacher's",
    "µs": "median microseconds of a decision at batch 1 on one thread",
}


def scores_html(scores: Sequence[Score], roles: Sequence[str]) -> str:
    """The table of scores; a role is `student`, `teacher` or nothing."""
    if not scores:
        return ""
    rows = score_table(scores)
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in rows[0] if name != "network")
    body = ""
    for role, row in zip(roles, rows, strict=True):
        dot = f'<span class="dot {role}"></span>' if role else ""
        label = f"{dot}{escape(f'{role}, ' if role and 'teacher' in roles else '')}{escape(row['network'])}"
        title = escape(row["policy"], quote=True)
        body += f'<tr><th scope="row">{label}<small title="{title}">{title}</small></th>'
        for name, text in row.items():
            if name not in ("policy", "network"):
                body += f"<td>{cell_html(text)}</td>"
        body += "</tr>"
    first, games = scores[0], " or ".join(dict.fromkeys(str(score.episodes) for score in scores))
    notes = "".join(f"{escape(line)} " for line in sentences(scores))
    meanings = {name: text for name, text in MEANINGS.items() if name in rows[0]}
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        f'<p class="note">{games} full games a policy with the same environment seeds, '
        f"epsilon {first.epsilon:g}, seed {first.seed}. {notes.strip()}</p>"
        f"{meanings_html(meanings)}"
    )


def curves(
    name: str,
    settings: Mapping[str, Any],
    metrics: list[dict[str, Any]],
    policy: Made | None,
    scores: list[Score],
    own: Score | None,
    reference: Score | None,
    *,
    label: str = "",
) -> str:
    """The learning curve and the loss; `label` tells the curves of several tasks apart."""
    task = _mapping(settings.get("task"))
    skip = int(task.get("frame_skip") or (policy.task.frame_skip if policy else 1))
    # From a dataset nothing is played: there the updates count.
    when = "updates" if settings.get("dataset") else "control_steps"
    axis = "gradient updates" if settings.get("dataset") else plots.control_steps(skip)
    points = [
        record for record in metrics if record.get("event") == "evaluation" and "mean" in record and when in record
    ]
    training = [record for record in metrics if record.get("event") == "train" and when in record]
    level = best_teacher(metrics)
    random = _event(metrics, "random").get("mean", task.get("random_score"))
    if random is None and scores:
        random = scores[0].random_score
    teacher = None
    if "mean" in level:
        teacher = plots.Level("teacher", float(level["mean"]), level.get("ci_low"), level.get("ci_high"))
    elif reference is not None:
        bounds_of = reference.as_dict()  # None where there is no interval
        teacher = plots.Level("teacher", reference.mean, bounds_of["ci_low"], bounds_of["ci_high"])
    final = _event(metrics, "final_score")
    if teacher is None and "mean" in final:
        teacher = plots.Level("final score", float(final["mean"]), final.get("ci_low"), final.get("ci_high"))
    if points:
        steps = [float(record[when]) for record in points]
        bounds = all(record.get(name) is not None for record in points for name in ("ci_low", "ci_high"))
        curve = plots.Curve(
            name,
            steps,
            [float(record["mean"]) for record in points],
            [float(record["ci_low"]) for record in points] if bounds else (),
            [float(record["ci_high"]) for record in points] if bounds else (),
        )
        caption = "Points are evaluations during the run, bands 95 % intervals."
    else:
        curve = _training_scores(training)
        caption = "Mean return of the last 100 games played while training, exploration included."
    out = ""
    if len(curve.steps):
        drawn = plots.learning_curve([curve], teacher=teacher, random=random, axis=axis)
        text = f"Mean episode return of {name} after {curve.steps[-1]:,.0f} {axis}: {figure(curve.means[-1])}"
        text += f", {teacher.label} {figure(teacher.mean)}" if teacher else ""
        out += f'<p class="note">{caption}</p><div class="wide">{inline_svg(drawn, text, f"curve{label}")}</div>'
    learnt = [record for record in training if "loss" in record]  # there is none while dqn warms up
    if len(learnt) > 1:
        steps, losses, agreement = _binned(learnt, when)
        loss = f"loss ({settings['loss']})" if isinstance(settings.get("loss"), str) else "loss"
        drawn = plots.loss_curve(steps, losses, agreement, axis=axis, label=loss)
        text = f"{loss} over {axis}: {losses[0]:.3g} at first, {losses[-1]:.3g} at last"
        out += f'<div class="wide">{inline_svg(drawn, text, f"loss{label}")}</div>'
    return out + choices_html(metrics, axis=axis, label=label)


def best_teacher(metrics: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The score of the only teacher, or of several the best; empty where none was measured."""
    scored = [record for record in metrics if record.get("event") == "teacher" and "mean" in record]
    return max(scored, key=lambda record: float(record["mean"])) if scored else {}


def _training_scores(training: list[dict[str, Any]]) -> plots.Curve:
    """The learning curve of a teacher: a mean over the last 100 games at up to 300 times."""
    returns: list[float] = []
    steps: list[float] = []
    means: list[float] = []
    for record in training:
        if record.get("returns"):
            returns += record["returns"]
            steps.append(float(record["control_steps"]))
            means.append(float(np.mean(returns[-100:])))
    every = max(1, len(steps) // 300)
    # Counted from the end, so that the last one is always shown.
    return plots.Curve("training games", steps[::-1][::every][::-1], means[::-1][::every][::-1])


def _binned(training: list[dict[str, Any]], when: str, most: int = 300) -> tuple[list[float], list[float], list[float]]:
    """Steps, losses and agreements, averaged in groups of neighbours to at most `most` points."""
    both = all(isinstance(record.get("agreement"), int | float) for record in training)
    groups = np.array_split(np.arange(len(training)), min(most, len(training)))
    steps = [float(training[int(group[-1])][when]) for group in groups]
    losses = [float(np.mean([training[int(i)]["loss"] for i in group])) for group in groups]
    agreement = [float(np.mean([training[int(i)]["agreement"] for i in group])) for group in groups] if both else []
    return steps, losses, agreement


def making(settings: dict[str, Any], policy: Made | None, teachers: Sequence[Made]) -> str:
    """Configuration, task and provenances, and the commands that made the policies."""
    task = settings.get("task")
    called = "The teacher" if len(teachers) < 2 else "A teacher"
    parts = [
        _facts("Configuration", {key: value for key, value in settings.items() if key != "task"}),
        *(_facts("Task", one) for one in (task if isinstance(task, list) else [_mapping(task)])),
        _facts("The policy's provenance", _brief(policy)),
        *(_facts(f"{called}'s provenance", dict(teacher.provenance)) for teacher in teachers),
    ]
    commands = ""
    for title, made in [("This run", policy), *((called, teacher) for teacher in teachers)]:
        command = made.provenance.get("command") if made else None
        if isinstance(command, str):
            commands += f"<h3>{title}</h3><pre><code>{escape(command)}</code></pre>"
    return f'{commands}<div class="facts">{"".join(parts)}</div>'


def _brief(policy: Made | None) -> dict[str, Any]:
    """Its provenance without the configuration, which has a place of its own on the page."""
    return {key: value for key, value in policy.provenance.items() if key != "configuration"} if policy else {}


def _facts(title: str, data: Mapping[str, Any]) -> str:
    if not data:
        return ""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in _flat(data) if name != "command")
    return f"<div><h3>{escape(title)}</h3><dl>{rows}</dl></div>"


def _flat(data: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in data.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping):
            rows += _flat(value, f"{name} · ")
        elif isinstance(value, list) and len(value) > 12:
            rows.append((name, f"{len(value)} values"))
        elif isinstance(value, list):
            rows.append((name, ", ".join(map(_text, value)) or "none"))
        else:
            rows.append((name, _text(value)))
    return rows


def _text(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _event(metrics: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The last event of a kind, empty if there was none."""
    return next((record for record in reversed(metrics) if record.get("event") == kind), {})


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _percentage(share: float, digits: int | None = None) -> str:
    return f"{100 * share:.{digits}f} %" if digits is not None else f"{100 * share:.2g} %"
