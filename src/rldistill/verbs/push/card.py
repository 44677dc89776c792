"""The model card: metadata that the hub reads, and a page that people read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rldistill.play.actions import describe
from rldistill.policies import MultiTaskPolicy, SavedPolicy
from rldistill.runs.scores import Score, score_table, sentences
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
    policy: SavedPolicy | MultiTaskPolicy
    scores: Sequence[Score]
    own: Sequence[int]
    """Which of the scores are the policy's, one a task."""
    teachers: Sequence[str]
    """The teachers' names in `scores`, or where they were; empty where the policy has none."""
    exports: Sequence[Shipped]
    files: Sequence[str]
    """Names of the other files, the card left out."""
    replay: str | None
    license: str | None


def card(facts: CardFacts) -> str:
    """The text of README.md."""
    from huggingface_hub import EvalResult, ModelCardData

    scores = [facts.scores[place] for place in facts.own]
    rewards = [
        EvalResult(
            task_type="reinforcement-learning",
            task_name="reinforcement-learning",
            dataset_type=str(score.task["env"]),
            dataset_name=str(score.task["env"]),
            metric_type="mean_reward",
            metric_name="mean_reward",
            metric_value=_spread(score, "+/-"),  # as Stable-Baselines3 computes it
            verified=False,
        )
        for score in scores
    ]
    data = ModelCardData(
        license=facts.license,
        library_name="rldistill",
        pipeline_tag="reinforcement-learning",
        tags=[
            *(task.env for task in _tasks(facts.policy).values()),
            "deep-reinforcement-learning",
            *(["policy-distillation"] if facts.teachers else []),
        ],
        model_name=facts.repo.split("/")[1],
        eval_results=rewards,
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {facts.repo.split('/')[1]}",
        _what(facts, facts.policy) if isinstance(facts.policy, SavedPolicy) else _what_heads(facts, facts.policy),
        f"![The policy at play]({facts.replay})" if facts.replay and facts.replay.endswith(".gif") else "",
        "## Scores",
        _markdown(_rows(facts)),
        _protocol(scores, facts.scores),
        "## Use",
        _use(facts, scores[0]),
        "## How it was made",
        _making(facts),
        "## Files",
        _files(facts),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _tasks(policy: SavedPolicy | MultiTaskPolicy) -> Mapping[str, Task]:
    return {policy.task.env: policy.task} if isinstance(policy, SavedPolicy) else policy.tasks


def _what_heads(facts: CardFacts, policy: MultiTaskPolicy) -> str:
    """What a policy of several tasks is."""
    origin = f"distilled by rldistill from {len(facts.teachers)} teachers" if facts.teachers else "written by rldistill"
    lines = [
        f"A policy for **{len(policy.tasks)} tasks**, {origin}. The network is `{_plain(policy.name)}` with a head for each task, "
        f"{parameter_count(policy.network):,} parameters in {len(policy.weights()):,} bytes of weights.",
        "",
    ]
    for name, head in policy.heads.items():
        shape = "x".join(map(str, head.observation_shape))
        task = policy.tasks[name]
        lines.append(
            f"* `{_plain(name)}`: observations of {shape} ({task.observation_dtype}), {_SCORES[head.score_kind]} for "
            f"{describe(task)}"
        )
    return "\n".join(lines)


def _what(facts: CardFacts, policy: SavedPolicy) -> str:
    score, name = facts.scores[facts.own[0]], next(iter(facts.teachers), None)
    task = policy.task
    shape = "x".join(map(str, task.observation_shape))
    network = (
        f"The network is `{_plain(policy.name)}`, {parameter_count(policy.network):,} parameters in {score.bytes:,} bytes of "
        f"weights. It reads observations of {shape} ({task.observation_dtype}) and gives {_SCORES[policy.score_kind]} for "
        f"{describe(task)}."
    )
    if name is None:
        return f"A policy for **{_plain(task.env)}**, written by rldistill. {network}"
    kept = ""
    teacher = next((other for other in facts.scores if other.policy == name), None)
    if teacher is not None and teacher is facts.scores[0] and score is not teacher:
        kept = f" The policy has {100 * score.parameter_share:.3g} % of the teacher's parameters"
        kept += f" and {score.normalized:.2f} of its score above random play." if np.isfinite(score.normalized) else "."
    return (
        f"A policy for **{_plain(task.env)}**, distilled by rldistill from the teacher `{_plain(name)}`. "
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
        role = "this policy" if number in facts.own else "teacher" if score.policy in facts.teachers else None
        row = {
            "policy": f"{name} ({role})" if role else name,
            **{name: _plain(texts[name]) for name in ("task", "starts") if name in texts},
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


def _protocol(own: Sequence[Score], scores: Sequence[Score]) -> str:
    """The conditions of the games, task by task where there are several."""
    score, tasks = own[0], [Task.from_dict(one.task) for one in own]
    where = f"in `{_plain(tasks[0].env)}`" if len(tasks) == 1 else "of each task"
    lines = [
        f"* {score.episodes} full games {where}, seed {score.seed}, raw (unclipped) returns; the same seeds and "
        "options for every policy.",
        f"* Actions: the best one, with probability {score.epsilon:g} (epsilon) a uniformly random one.",
    ]
    for task in tasks:
        lines += [f"* {f'`{_plain(task.env)}`: ' if len(tasks) > 1 else ''}{line}" for line in _options(task)]
    lines.append(
        "* Intervals are 95 % percentile bootstrap intervals over distinct games; ± is the standard deviation of the games; IQM is "
        "the mean of the middle half. Decisions are timed one by one on one thread of the machine that played."
    )
    random = "\n".join(f"* {_plain(line)}" for line in sentences(scores))
    if len(scores) > 1:
        random += (
            "\n* Normalized, random play is 0, and the first row's mean is 1. Agreement is the share of visited states in which a "
            "policy's best action is the first row's."
        )
    return "\n".join([*lines, random])


def _options(task: Task) -> list[str]:
    """Options of a task that change its scores."""
    noops = f"up to {task.noop_max} no-ops at the start" if task.noop_max else "no no-ops at the start"
    lines = [
        f"Sticky actions: {f'with probability {task.sticky_actions:g}' if task.sticky_actions else 'none'}; {noops}."
    ]
    if task.frame_skip > 1 or task.frame_stack > 1:
        lines.append(
            f"{task.frame_skip} frames a decision, a stack of {task.frame_stack} observations"
            + (f", at most {task.max_frames:,} frames a game" if task.max_frames else "")
            + (f", FIRE after {task.fire_when_idle} decisions without a reward" if task.fire_when_idle else "")
            + "."
        )
    return lines


def _use(facts: CardFacts, score: Score) -> str:
    name, task = next(iter(_tasks(facts.policy).items()))
    reads = f"{task.observation_dtype}, {task.observation_shape}"
    several = isinstance(facts.policy, MultiTaskPolicy)
    head = f"hf://{facts.repo}#{name}" if several else f"hf://{facts.repo}"
    exported = next((shipped.file for shipped in facts.exports), None) if not several else None
    python = [
        "import rldistill  # with its extra: rldistill[hub]",
        "",
        f'policy = rldistill.load_teacher("{head}")',
        f"action, _ = policy.predict(observation)  # {reads}; one observation or a batch",
    ]
    commands = [
        f"rldistill evaluate hf://{facts.repo} --episodes {score.episodes} --epsilon {score.epsilon:g} --seed {score.seed}",
        f"rldistill split hf://{facts.repo} --task {name} --out alone"
        if several
        else f"rldistill distill --teacher {head} --student {_smaller(task)} --out runs/student",
    ]
    if exported is not None:
        commands.append(f"rldistill evaluate hf://{facts.repo}/exports/{exported}")
    return f"```python\n{chr(10).join(python)}\n```\n\n```sh\n{chr(10).join(commands)}\n```"


def _smaller(task: Task) -> str:
    """A student that reads the same observations."""
    shape = task.observation_shape
    return "mlp:32,32" if len(shape) == 1 else "net3" if is_large_image(shape) else "cnn:8:32"


def _making(facts: CardFacts) -> str:
    provenance = facts.policy.provenance
    parts = []
    command, before = provenance.get("command"), provenance.get("teacher_made_by")
    if isinstance(command, str):
        parts.append(_code(command))
    makers = [before] if isinstance(before, str) else before if isinstance(before, list) else []
    if facts.teachers and any(isinstance(maker, str) for maker in makers):
        text = "\n".join(_code(maker) for maker in makers if isinstance(maker, str))
        parts.append(f"Its teacher{'s were' if len(facts.teachers) > 1 else ' was'} made by\n\n{text}")
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
