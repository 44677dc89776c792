"""The model card: metadata that the hub reads, and a page that people read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rldistill.play.actions import describe
from rldistill.policies import SavedPolicy
from rldistill.runs.scores import Score, remarks, score_table
from rldistill.stats import figure, interval
from rldistill.students.networks import parameter_count
from rldistill.types import ScoreKind, Task, is_large_image

# Keys of a provenance, and what the card calls them; in this order.
_FACTS = (
    ("algorithm", "algorithm", ""),
    ("control_steps", "control steps played", ""),
    ("teacher_steps", "of them driven by the teacher", ""),
    ("student_steps", "of them driven by the student", ""),
    ("updates", "gradient updates", ""),
    ("seconds", "time without evaluations", " s"),
    ("training_seconds", "time", " s"),
    ("machine", "machine", ""),
    ("arithmetic", "computed in", ""),
    ("made_by", "made by", ""),
)


class Shipped(NamedTuple):
    """An export in the folder."""

    file: str
    format: str
    bytes: int
    agreement: float
    """Share of the compared states in which it chooses the policy's action."""
    states: int
    """How many were compared."""


class CardFacts(NamedTuple):
    """Everything that the card is written from."""

    repo: str
    policy: SavedPolicy
    scores: Sequence[Score]
    own: int
    """Which of the scores is the policy's."""
    teacher: str | None
    """The teacher's name in `scores`, or where it was; None of a policy that has none."""
    exports: Sequence[Shipped]
    files: Sequence[str]
    """Names of the other files, the card left out."""
    replay: str | None
    license: str | None


def card(facts: CardFacts) -> str:
    """The text of README.md."""
    from huggingface_hub import EvalResult, ModelCardData

    score = facts.scores[facts.own]
    env = str(score.task["env"])
    reward = EvalResult(
        task_type="reinforcement-learning",
        task_name="reinforcement-learning",
        dataset_type=env,
        dataset_name=env,
        metric_type="mean_reward",
        metric_name="mean_reward",
        metric_value=_spread(score, "+/-"),  # as Stable-Baselines3 computes it
        verified=False,
    )
    data = ModelCardData(
        license=facts.license,
        library_name="rldistill",
        pipeline_tag="reinforcement-learning",
        tags=[
            facts.policy.task.env,
            "deep-reinforcement-learning",
            *(["policy-distillation"] if facts.teacher else []),
        ],
        model_name=facts.repo.split("/")[1],
        eval_results=[reward],
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {facts.repo.split('/')[1]}",
        _what(facts),
        f"![The policy at play]({facts.replay})" if facts.replay and facts.replay.endswith(".gif") else "",
        "## Scores",
        _markdown(_rows(facts)),
        _protocol(score, facts.scores),
        "## Use",
        _use(facts, score),
        "## How it was made",
        _making(facts),
        "## Files",
        _files(facts),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _what(facts: CardFacts) -> str:
    policy, score = facts.policy, facts.scores[facts.own]
    task = policy.task
    shape = "x".join(map(str, task.observation_shape))
    network = (
        f"The network is `{_plain(policy.name)}`, {parameter_count(policy.network):,} parameters in {score.bytes:,} bytes of "
        f"weights. It reads observations of {shape} ({task.observation_dtype}) and gives {_SCORES[policy.score_kind]} for "
        f"{describe(task)}."
    )
    if facts.teacher is None:
        return f"A policy for **{_plain(task.env)}**, written by rldistill. {network}"
    kept = ""
    teacher = next((other for other in facts.scores if other.policy == facts.teacher), None)
    if teacher is not None and teacher is facts.scores[0] and score is not teacher:
        kept = f" The policy has {100 * score.parameter_share:.3g} % of the teacher's parameters"
        kept += f" and {score.normalized:.2f} of its score above random play." if np.isfinite(score.normalized) else "."
    return (
        f"A policy for **{_plain(task.env)}**, distilled by rldistill from the teacher `{_plain(facts.teacher)}`. "
        f"{network}{kept}"
    )


_SCORES: dict[ScoreKind, str] = {
    "q_values": "Q-values",
    "logits": "logits",
    "gaussian": "Gaussians",
    "squashed_gaussian": "squashed Gaussians",
    "actions": "values",
}


def _rows(facts: CardFacts) -> list[dict[str, str]]:
    rows = []
    some_alike = any(score.distinct not in (None, score.episodes) for score in facts.scores)
    for number, (score, texts) in enumerate(zip(facts.scores, score_table(facts.scores), strict=True)):
        name = f"`{_plain(score.policy)}`"
        role = "this policy" if number == facts.own else "teacher" if score.policy == facts.teacher else None
        row = {
            "policy": f"{name} ({role})" if role else name,
            "network": _plain(score.network),
            "parameters": texts["parameters"],
            "bytes": f"{score.bytes:,}",
            **({"games": texts["games"]} if some_alike else {}),
            "mean ± std": _spread(score, "±"),
            "95 % CI of the mean": interval(score.ci_low, score.ci_high, least=2).strip("[]").replace(", ", " to ")
            or "none",
            "IQM": texts["IQM"],
        }
        if len(facts.scores) > 1:
            compared = ("normalized [95 % CI]", "agreement")
            row |= {name: texts[name] for name in compared}
        rows.append(row | {"µs a decision": texts["µs"]})
    return rows


def _protocol(score: Score, scores: Sequence[Score]) -> str:
    """The conditions of the games."""
    task = Task.from_dict(score.task)
    noops = f"up to {task.noop_max} no-ops at the start" if task.noop_max else "no no-ops at the start"
    lines = [
        f"* {score.episodes} full games in `{_plain(task.env)}`, seed {score.seed}, raw (unclipped) returns; the same seeds and "
        "options for every policy.",
        f"* Actions: the best one, with probability {score.epsilon:g} (epsilon) a uniformly random one.",
        f"* Sticky actions: {f'with probability {task.sticky_actions:g}' if task.sticky_actions else 'none'}; {noops}.",
    ]
    if task.frame_skip > 1 or task.frame_stack > 1:
        lines.append(
            f"* {task.frame_skip} frames a decision, a stack of {task.frame_stack} observations"
            + (f", at most {task.max_frames:,} frames a game" if task.max_frames else "")
            + (f", FIRE after {task.fire_when_idle} decisions without a reward" if task.fire_when_idle else "")
            + "."
        )
    lines.append(
        "* Intervals are 95 % percentile bootstrap intervals over distinct games; ± is the standard deviation of the games; IQM is "
        "the mean of the middle half. Decisions are timed one by one on one thread of the machine that played."
    )
    random = "\n".join(f"* {_plain(line[:1].upper() + line[1:])}." for line in remarks(scores))
    if len(scores) > 1:
        random += (
            "\n* Normalized, random play is 0, and the first row's mean is 1. Agreement is the share of visited states in which a "
            "policy's best action is the first row's."
        )
    return "\n".join([*lines, random])


def _use(facts: CardFacts, score: Score) -> str:
    kind = f"{facts.policy.task.observation_dtype}, {facts.policy.task.observation_shape}"
    exported = next((shipped.file for shipped in facts.exports), None)
    python = [
        "import rldistill  # with its extra: rldistill[hub]",
        "",
        f'policy = rldistill.load_teacher("hf://{facts.repo}")',
        f"action, _ = policy.predict(observation)  # {kind}; one observation or a batch",
    ]
    commands = [
        f"rldistill evaluate hf://{facts.repo} --episodes {score.episodes} --epsilon {score.epsilon:g} --seed {score.seed}",
        f"rldistill distill --teacher hf://{facts.repo} --student {_smaller(facts.policy)} --out runs/student",
    ]
    if exported is not None:
        commands.append(f"rldistill evaluate hf://{facts.repo}/exports/{exported}")
    return f"```python\n{chr(10).join(python)}\n```\n\n```sh\n{chr(10).join(commands)}\n```"


def _smaller(policy: SavedPolicy) -> str:
    """A student that reads the same observations."""
    shape = policy.task.observation_shape
    return "mlp:32,32" if len(shape) == 1 else "net3" if is_large_image(shape) else "cnn:8:32"


def _making(facts: CardFacts) -> str:
    provenance = facts.policy.provenance
    parts = []
    command, before = provenance.get("command"), provenance.get("teacher_made_by")
    if isinstance(command, str):
        parts.append(_code(command))
    if isinstance(before, str) and facts.teacher is not None:
        parts.append(f"Its teacher was made by\n\n{_code(before)}")
    lines = [
        f"* {called}: {f'{value:,}' if isinstance(value, int) else _plain(str(value))}{unit}"
        for name, called, unit in _FACTS
        if isinstance(value := provenance.get(name), int | float | str)
    ]
    parts.append("\n".join(lines))
    parts.append(
        "`policy.json` has the whole provenance"
        + ("; `config.json` is the configuration of the run." if "config.json" in facts.files else ".")
    )
    return "\n\n".join(part for part in parts if part)


_FILES = {
    "policy.json": "architecture, task, provenance; with the weights, the policy folder that rldistill loads",
    "weights.safetensors": "the weights",
    "config.json": "the run's configuration, complete",
    "scores.json": "the scores above, with the return of every game",
    "curve.csv": "the learning curve: control steps and mean return",
}


def _files(facts: CardFacts) -> str:
    rows = [{"file": f"`{name}`", "what it is": _FILES.get(name, "the policy at play")} for name in facts.files]
    for shipped in facts.exports:
        header = ", with its header" if shipped.file.endswith(".c") else ""
        text = (
            f"{shipped.format}{header}, {shipped.bytes:,} bytes; chooses the policy's action in "
            f"{100 * shipped.agreement:.2f} % of {shipped.states:,} states"
        )
        rows.append({"file": f"`exports/{shipped.file}`", "what it is": text})
    return _markdown(rows)


def _markdown(rows: Sequence[Mapping[str, str]]) -> str:
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    return "\n".join([*lines, *("| " + " | ".join(row.values()) + " |" for row in rows)])


def _code(command: str) -> str:
    """A block of code, whatever stands in the command."""
    return "\n".join(f"    {line}" for line in command.splitlines())


def _plain(text: str) -> str:
    """On one line of a table, and no markup."""
    kept = "".join(character if character.isprintable() else " " for character in text)
    return kept.replace("`", "'").replace("|", "\\|").replace("<", "&lt;")


def _spread(score: Score, sign: str) -> str:
    """Mean and standard deviation of the games' returns."""
    numbers = (score.mean, float(np.std(score.returns)))
    return f" {sign} ".join(figure(number, score.ci_low, score.ci_high, least=2) for number in numbers)
