"""rldistill side by side with what people use today, each peer in an environment of its own.

    python benchmarks/peers.py --out runs/peers [--only imitation|predict|stepping] [--seeds 0 1 2 3 4]

* `imitation`: students of the same Stable-Baselines3 DQN teachers by behavioural cloning and DAgger of imitation 1.0.1, and by
  rldistill, with the same network, labelled states and gradient samples: return, time, memory, files.
* `predict`: time of a decision, and states labelled a second, beside Stable-Baselines3.
* `stepping`: control steps a second, beside Stable-Baselines3's vectorized Atari environments.

The environments of the peers lie in `.peers/` and are made at the first call (3 GB; pins in `peer_imitation.txt` and
`peer_sb3.txt`). Each run is a process of its own, on one thread, in turns. What is done lies in OUT/rows and is not run again; the
tables are printed as markdown and lie in OUT/peers.md, all rows in OUT/peers.json. Run it on an idle machine.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
import tyro
from teachers import markdown

import rldistill
from rldistill.documents import read_json
from rldistill.files import replace_file
from rldistill.machine import machine_in_words
from rldistill.progress import Progress, Talking
from rldistill.runs.scores import Score, read_scores
from rldistill.stats import bootstrap_interval, normalized_score, with_interval
from rldistill.types import UserError
from rldistill.verbs.demo import shipped_policy
from rldistill.verbs.distill import DistillConfig, checked
from rldistill.verbs.evaluate import EvaluateConfig, evaluate

Part: TypeAlias = Literal["imitation", "predict", "stepping"]
Peer: TypeAlias = Literal["rldistill", "imitation", "sb3"]
Game: TypeAlias = Literal["CartPole-v1", "Acrobot-v1", "LunarLander-v3"]
HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE.parent / ".peers"
HIDDEN = [64, 64]
PONG = "PongNoFrameskip-v4"


@dataclass(frozen=True)
class Options:
    """What is compared."""

    out: Path
    """Rows, tables and what the runs leave; the same command goes on with it."""
    only: Part | None = None
    """One part instead of all three."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of the students."""
    games: tuple[Game, ...] = ("CartPole-v1", "Acrobot-v1", "LunarLander-v3")
    """That the students are made for."""
    steps: int = 20_000
    """Control steps of each distillation of ours; the budget of imitation follows from it."""
    imitation_batch: int = 64
    """Samples an update of imitation's. Its own default is 32: as many samples are then twice the updates."""
    episodes: int = 100
    """Full games of each student and teacher."""
    net2: str | None = None
    """A net2 of Pong for `predict` (a run or policy folder); by default one is made, in a minute or two."""
    rounds: int = 5
    """Of all rates, in turns."""
    seconds: float = 3.0
    """Of each measurement of a rate."""


class Budget(NamedTuple):
    """What a student may cost, on both sides."""

    labelled: int
    """Visited states with the teacher's label: one a control step."""
    updates: int
    batch_size: int

    @property
    def samples(self) -> int:
        """Samples that gradients were taken of."""
        return self.updates * self.batch_size

    def in_batches_of(self, size: int) -> Budget:
        """The same samples in other batches.

        Raises:
            UserError: they do not come out even.
        """
        if size < 1 or self.samples % size:
            raise UserError(
                f"{self.samples:,} samples cannot be parted into batches of {size}: take another --imitation-batch"
            )
        return self._replace(updates=self.samples // size, batch_size=size)


def budget_of(config: DistillConfig) -> Budget:
    """What a distillation costs that is driven by play.

    Raises:
        UserError: the configuration is wrong, or leaves open what depends on the student.
    """
    config = checked(config)
    rows, samples = config.driving.num_envs, config.batches.samples_per_step
    if config.batches.augment != 0:
        raise UserError("a budget needs --augment 0: imitation has no composites")
    steps, warmup = (rows * math.ceil(number / rows) for number in (config.steps, max(config.batches.warmup, 1)))
    updates = int((steps - warmup) * samples / config.batches.batch_size)
    return Budget(steps, updates, config.batches.batch_size)


class Row(NamedTuple):
    """One process: what it is called, in whose environment it runs, what it does."""

    name: str
    peer: Peer
    job: dict[str, Any]


class Rows:
    """Runs processes one after the other, but those whose result is there.

    Args:
        out: `rows/NAME.json` and `rows/NAME.log` there, what they leave in `work/NAME`.
        progress: told how it goes.
    """

    def __init__(self, out: Path, progress: Progress) -> None:
        self.out, self.progress = out, progress
        (out / "rows").mkdir(parents=True, exist_ok=True)

    def work(self, name: str) -> Path:
        """What a row leaves."""
        return self.out / "work" / name

    def run(self, what: str, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """The results, in order: the worker's own, `whole_seconds` of the process, `files` and `file_bytes` that it left.

        Raises:
            UserError: a process fails, or a result that is there is of another job.
        """
        # Before anything runs: of other settings would be found out after an hour.
        earlier = [self._earlier(row) for row in rows]
        done = sum(result is not None for result in earlier)
        self.progress.start(what, len(rows), "runs", done=done)
        results = []
        for row, result in zip(rows, earlier, strict=True):
            if result is None:
                result = self._run(row, done)
                done += 1
                self.progress.update(done)
            results.append(result)
        return results

    def _earlier(self, row: Row) -> dict[str, Any] | None:
        path = self.out / "rows" / f"{row.name}.json"
        if not path.exists():
            return None
        result = read_json(path)
        if result.get("job") != row.job:
            raise UserError(f"{path} is of other settings: take another --out, or remove it")
        return result

    def _run(self, row: Row, done: int) -> dict[str, Any]:
        place, log = self.work(row.name), self.out / "rows" / f"{row.name}.log"
        answer, zipped = self.out / "rows" / f"{row.name}.answer", place.with_name(f"{row.name}.zip")
        shutil.rmtree(place, ignore_errors=True)  # of a process that was killed
        place.mkdir(parents=True)
        job = row.job | {"out": str(place), "zip": str(zipped), "answer": str(answer)}
        command = [str(python_of(row.peer)), str(HERE / f"peer_{row.peer}.py"), json.dumps(job)]
        own = {"PYTHONPATH": str(Path(rldistill.__file__).parents[1])} if row.peer == "rldistill" else {}
        began = time.perf_counter()
        watched(command, log, waiting(self.progress, done), own)
        whole = time.perf_counter() - began
        result = read_json(answer)
        left = [path for path in place.rglob("*") if path.is_file()]
        result |= {
            "job": row.job,
            "peer": row.peer,
            "whole_seconds": whole - result.get("not_counted_seconds", 0.0),
            "files": len(left),
            "file_bytes": sum(path.stat().st_size for path in left),
            "working_processor_seconds": result["processor_seconds"] - result["import_processor_seconds"],
        }
        if "student" in result:
            student = place / result["student"]
            parts = student.iterdir() if student.is_dir() else [student]
            result["student_bytes"] = sum(path.stat().st_size for path in parts)
        replace_file(self.out / "rows" / f"{row.name}.json", json.dumps(result, indent=2).encode() + b"\n")
        answer.unlink()
        return result


def waiting(progress: Progress, done: int) -> Callable[[float], None]:
    """Tells that one more is under way, and since when."""
    return lambda seconds: progress.update(done, seconds=seconds)


def watched(command: Sequence[str], log: Path, on_wait: Callable[[float], None], own: Mapping[str, str]) -> None:
    """Runs a command on one thread, its output in a file, and tells now and then how many seconds that has taken.

    Args:
        command: program and arguments.
        log: for its output.
        heard: called with the seconds.
        own: environment variables of its own.

    Raises:
        UserError: it fails.
    """
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    surroundings |= {
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        **own,
    }
    began = time.perf_counter()
    with open(log, "w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=surroundings)
        try:
            while True:
                try:
                    status = process.wait(0.5)
                    break
                except subprocess.TimeoutExpired:
                    on_wait(time.perf_counter() - began)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if status:
        log_lines = log.read_text().strip().splitlines() or ["it said nothing"]
        raise UserError(f"{log.stem} failed with status {status}: {log_lines[-1]} (all of it in {log})")


def python_of(peer: Peer) -> Path:
    """The interpreter of a peer."""
    return Path(sys.executable) if peer == "rldistill" else ENVIRONMENTS / peer / "bin" / "python"


def make_environment(peer: Peer, progress: Progress) -> None:
    """Makes a peer's environment, or goes on making it; one that has its pins already is left alone.

    Raises:
        UserError: its packages cannot be installed.
    """
    pins, folder = HERE / f"peer_{peer}.txt", ENVIRONMENTS / peer
    installed = folder / "installed.txt"
    if installed.exists() and installed.read_bytes() == pins.read_bytes():
        return
    folder.mkdir(parents=True, exist_ok=True)
    steps = [
        [sys.executable, "-m", "venv", str(folder)],
        [str(python_of(peer)), "-m", "pip", "install", "--disable-pip-version-check", "-r", str(pins)],
    ]
    progress.say(f"making the environment of {peer} in {folder}: some minutes, 1 to 2 GB")
    progress.start(f"environment of {peer}", len(steps), "steps")
    for number, step in enumerate(steps):
        watched(step, ENVIRONMENTS / f"{peer}.log", waiting(progress, number), {})
    replace_file(installed, pins.read_bytes())


# Students of vector tasks


class Method(NamedTuple):
    """A way to make a student."""

    key: str
    label: str
    peer: Peer


METHODS = (
    Method("ours", "rldistill", "rldistill"),
    Method("bc", "imitation BC", "imitation"),
    Method("dagger", "imitation DAgger", "imitation"),
)


def student_row(method: Method, game: str, seed: int, teacher: str, options: Options) -> tuple[Row, Budget]:
    """The process that makes a student, and what it may cost."""
    config: dict[str, Any] = dict(
        student="mlp:" + ",".join(map(str, HIDDEN)),
        steps=options.steps,
        seed=seed,
        env=game,
        augment=0.0,  # as is the default for vectors
        samples_per_step=32.0,
        evaluate_every=0,
    )
    made = DistillConfig.of(**config)
    budget = budget_of(made)
    name = f"{game}-{method.key}-{seed}"
    if method.peer == "rldistill":
        return Row(name, "rldistill", {"work": "distill", "teacher": teacher, "config": config}), budget
    budget = budget.in_batches_of(options.imitation_batch)
    job = {"work": method.key, "env": game, "seed": seed, "teacher": teacher, "num_envs": made.driving.num_envs, "hidden": HIDDEN,
           "labelled": budget.labelled, "updates": budget.updates, "batch_size": budget.batch_size}  # fmt: skip
    return Row(name, "imitation", job), budget


def check_spent(row: Row, result: Mapping[str, Any], budget: Budget) -> None:
    """Raises UserError where a run did not keep to its budget; DAgger's last round ends with its games, so it may label more."""
    labelled = result["labelled"]
    fits = labelled >= budget.labelled if row.job["work"] == "dagger" else labelled == budget.labelled
    if not fits or result["updates"] != budget.updates:
        raise UserError(
            f"{row.name} labelled {labelled:,} states and made {result['updates']:,} updates; its budget was "
            f"{budget.labelled:,} and {budget.updates:,}"
        )


def compare_students(options: Options, rows: Rows) -> str:
    """Teachers, students by each method, games of all of them; as tables."""
    taught = [Row(f"teacher-{game}", "imitation", {"work": "teacher", "env": game}) for game in options.games]
    training = dict(zip(options.games, rows.run("teachers", taught), strict=True))
    teachers = {game: str(rows.work(f"teacher-{game}") / "best_model.zip") for game in options.games}
    planned = [
        (method, game, seed, *student_row(method, game, seed, teachers[game], options))
        for seed in options.seeds
        for game in options.games
        for method in METHODS
    ]
    results = rows.run("students", [row for *_, row, _ in planned])
    for (*_, row, budget), result in zip(planned, results, strict=True):
        check_spent(row, result, budget)
    by_method: dict[tuple[str, str], list[dict[str, Any]]] = {}
    scored: dict[tuple[str, str], list[Score]] = {}
    levels: dict[str, Score] = {}
    for game in options.games:
        refs = [str(rows.work(row.name) / "run") if method.peer == "rldistill" else str(rows.work(row.name)) + ".zip"
                for method, played, _, row, _ in planned if played == game]  # fmt: skip
        levels[game], *students = games_of(game, [teachers[game], *refs], options, rows)
        mine = [
            (method, result) for (method, played, *_), result in zip(planned, results, strict=True) if played == game
        ]
        for (method, result), score in zip(mine, students, strict=True):
            by_method.setdefault((game, method.key), []).append(result)
            scored.setdefault((game, method.key), []).append(score)
    budgets = {method.key: budget for method, _, _, _, budget in planned}
    lines = [
        f"Seeds a row: {len(options.seeds)}; {options.episodes} games a student with epsilon 0.01; times and memory are medians.",
        markdown([teacher_line(game, level, training[game]) for game, level in levels.items()]),
        markdown([
            student_line(game, levels[game], method, budgets[method.key], by_method[game, method.key], scored[game, method.key])
            for game in options.games for method in METHODS
        ]),
        "What imitation takes by what rldistill takes, seed by seed: median (range).",
        markdown([
            ratio_line(game, ours, theirs, levels[game], by_method, scored)
            for game in options.games for ours in METHODS for theirs in METHODS
            if ours.peer == "rldistill" and theirs.peer == "imitation"
        ]),
    ]  # fmt: skip
    return "\n\n".join(["## Students", *lines])


def games_of(game: str, refs: list[str], options: Options, rows: Rows) -> list[Score]:
    """The scores of a teacher and its students, under one protocol; what was played is not played again."""
    path = rows.out / f"scores-{game}.json"
    if path.exists():
        scores = read_scores(path)
        same = all(score.episodes == options.episodes for score in scores)
        if same and [score.policy for score in scores] == refs:
            return scores
    conditions = EvaluateConfig(episodes=options.episodes, epsilon=0.01, seed=1, env=game)
    return evaluate(refs, conditions, json=path, progress=rows.progress)


def teacher_line(game: str, score: Score, result: Mapping[str, Any]) -> dict[str, str]:
    """What the students had to learn from."""
    return {
        "game": game,
        "teacher": f"DQN, {score.parameters:,} parameters",
        "mean return [95 % CI]": with_interval(score.mean, score.ci_low, score.ci_high),
        "random play": f"{score.random_score:.1f}",
        "control steps": f"{result['control_steps']:,}",
    }


def student_line(
    game: str,
    level: Score,
    method: Method,
    budget: Budget,
    results: Sequence[Mapping[str, Any]],
    scores: Sequence[Score],
) -> dict[str, str]:
    """What a method's students were worth, and what they took."""
    normal = [
        [normalized_score(score, level.random_score, level.mean) for score in student.returns] for student in scores
    ]
    means = [float(np.mean(values)) for values in normal]
    low, high = bootstrap_interval(normal, seed=0)
    visited = sorted({result["labelled"] for result in results})
    return {
        "game": game,
        "student": method.label,
        "visited states": " to ".join(f"{number:,}" for number in dict.fromkeys((visited[0], visited[-1]))),
        "updates × batch": f"{budget.updates:,} × {budget.batch_size}",
        "normalized [95 % CI]": f"{np.mean(means):.3f} [{low:.2f}, {high:.2f}]",
        "worst seed": f"{min(means):.3f}",
        "agreement": f"{np.mean([student.agreement for student in scores]):.3f}",
        "training s": f"{median_of(results, 'training_seconds'):.1f}",
        "process s": f"{median_of(results, 'whole_seconds'):.1f}",
        "processor s (after imports)": f"{median_of(results, 'processor_seconds'):.1f} "
        f"({median_of(results, 'working_processor_seconds'):.1f})",
        "peak MiB": f"{median_of(results, 'peak_bytes') / 2**20:.0f}",
        "student KiB": f"{median_of(results, 'student_bytes') / 1024:.0f}",
        "files left": f"{median_of(results, 'files'):.0f}, {median_of(results, 'file_bytes') / 1024:.0f} KiB",
    }


def ratio_line(
    game: str,
    ours: Method,
    theirs: Method,
    level: Score,
    by_method: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]],
    scored: Mapping[tuple[str, str], Sequence[Score]],
) -> dict[str, str]:
    """One method of theirs by one of ours."""
    pairs = list(zip(by_method[game, theirs.key], by_method[game, ours.key], strict=True))
    mean = {
        method.key: np.mean(
            [normalized_score(score.mean, level.random_score, level.mean) for score in scored[game, method.key]]
        )
        for method in (ours, theirs)
    }
    line = {
        "game": game,
        "rldistill": ours.label,
        "imitation": theirs.label,
        "normalized, ours less theirs": f"{mean[ours.key] - mean[theirs.key]:+.3f}",
    }
    for label, name in (
        ("training", "training_seconds"),
        ("process", "whole_seconds"),
        ("processor", "processor_seconds"),
        ("processor after imports", "working_processor_seconds"),
        ("peak memory", "peak_bytes"),
    ):
        line[label] = spread([their[name] / our[name] for their, our in pairs], "{:.2f}")
    return line


def median_of(results: Sequence[Mapping[str, Any]], name: str) -> float:
    """Of one figure of several runs."""
    return float(np.median([result[name] for result in results]))


def spread(values: Sequence[float], form: str) -> str:
    """Median and range."""
    text = form.format(np.median(values))
    return text if len(values) == 1 else f"{text} ({form.format(min(values))} to {form.format(max(values))})"


# Rates


class Contender(NamedTuple):
    """What is measured in turns with others. The first of a table is the reference of the others."""

    label: str
    peer: Peer
    job: dict[str, Any]


def measured(key: str, what: str, contenders: Sequence[Contender], options: Options, rows: Rows) -> str:
    """A table of rates: each contender's, and by the first's of the same round."""
    planned = [
        Row(f"{key}-{number}-round-{turn}", contender.peer, contender.job | {"seconds": options.seconds})
        for turn in range(options.rounds)
        for number, contender in enumerate(contenders)
    ]
    results = rows.run(what, planned)
    rates = {
        contender.label: [result["rate"] for result in results[number :: len(contenders)]]
        for number, contender in enumerate(contenders)
    }
    reference = rates[contenders[0].label]
    lines = []
    for number, (label, values) in enumerate(rates.items()):
        line = {what: label}
        parameters = results[number].get("parameters")
        if parameters is not None:
            line["parameters"] = f"{parameters:,}"
        line["a second"] = spread(values, "{:,.0f}")
        line["µs each"] = f"{1e6 / np.median(values):,.1f}"
        line[f"by {contenders[0].label}"] = spread(
            [mine / first for mine, first in zip(values, reference, strict=True)], "{:.2f}"
        )
        lines.append(line)
    return markdown(lines)


def compare_decisions(options: Options, rows: Rows) -> str:
    """Latency at batch 1 and labels at batch 256; as tables."""
    source = options.net2
    if source is None:
        rows.run("net2 of Pong", [Row("net2", "rldistill", {"work": "net2", "teacher": str(shipped_policy("pong"))})])
        source = str(rows.work("net2") / "run")
    files = {name: str(rows.out / f"net2-{name}{ending}") for name, ending in FILES.items()}
    exports = [
        Row(f"export-{name}", "rldistill", {"work": "export", "policy": source, "format": name, "file": file})
        for name, file in files.items()
    ]
    for row in exports:  # a file without its row is of an export that was killed
        if not (rows.out / "rows" / f"{row.name}.json").exists():
            Path(row.job["file"]).unlink(missing_ok=True)
    rows.run("exports of net2", exports)
    one = {"env": PONG, "batch_size": 1, "work": "predict"}
    decisions = [
        Contender("Stable-Baselines3, Nature CNN", "sb3", one),
        Contender("rldistill, the same network", "rldistill", one | {"policy": None}),
        Contender("rldistill, net2", "rldistill", one | {"policy": source}),
        *(Contender(f"rldistill, net2 as {name}", "rldistill", one | {"policy": file}) for name, file in files.items()),
    ]
    many = {"env": PONG, "batch_size": 256}
    labels = [
        Contender("Stable-Baselines3, `q_net`", "sb3", many | {"work": "q_net"}),
        Contender("Stable-Baselines3, `predict`", "sb3", many | {"work": "predict"}),
        Contender("rldistill, a teacher's call", "rldistill", many | {"work": "label"}),
        Contender("rldistill, `predict`", "rldistill", many | {"work": "predict", "policy": None}),
    ]
    return "\n\n".join(
        [
            "## Decisions and labels",
            measured("decision", "decisions, batch 1", decisions, options, rows),
            measured("label", "labels, Nature CNN, batch 256", labels, options, rows),
        ]
    )


FILES = {"onnx": ".onnx", "onnx-int8": ".onnx", "c": ".c"}
"""Exports that are timed."""


def compare_stepping(options: Options, rows: Rows) -> str:
    """Control steps a second of 8 environments; as a table."""
    job = {"work": "stepping", "env": PONG, "num_envs": 8}
    contenders = [
        Contender("Stable-Baselines3, DummyVecEnv", "sb3", job | {"subprocesses": False}),
        Contender("Stable-Baselines3, SubprocVecEnv", "sb3", job | {"subprocesses": True}),
        Contender("rldistill", "rldistill", job),
        Contender("rldistill, kept to one core", "rldistill", job | {"cores": 1}),
    ]
    return "\n\n".join(
        ["## Stepping", measured("stepping", "control steps of Pong, 8 environments", contenders, options, rows)]
    )


PARTS: dict[Part, tuple[tuple[Peer, ...], Callable[[Options, Rows], str]]] = {
    "imitation": (("imitation",), compare_students),
    "predict": (("sb3",), compare_decisions),
    "stepping": (("sb3",), compare_stepping),
}


def main(options: Options) -> None:
    """Runs what is missing, prints and writes the tables."""
    if not options.seeds or not options.games or len({*options.seeds}) < len(options.seeds):
        raise UserError("name at least one game and one seed, none of them twice")
    if options.rounds < 1 or not options.seconds > 0 or options.episodes < 1:
        raise UserError("--rounds and --episodes are at least 1, --seconds is positive")
    parts: tuple[Part, ...] = (options.only,) if options.only else tuple(PARTS)
    if "imitation" in parts:  # what is wrong with the numbers is said before anything is installed
        for method in METHODS:
            student_row(method, options.games[0], options.seeds[0], "", options)
    torch.set_num_threads(1)
    with Talking() as progress:
        for peer in dict.fromkeys(peer for part in parts for peer in PARTS[part][0]):
            make_environment(peer, progress)
        rows = Rows(options.out, progress)
        for part in parts:
            tables = PARTS[part][1](options, rows)
            replace_file(options.out / f"{part}.md", tables.encode() + b"\n")
    kept = [options.out / f"{part}.md" for part in PARTS]  # those of earlier calls with --only among them
    text = "\n".join([f"On {machine_in_words()}.\n", *(path.read_text() for path in kept if path.exists())])
    replace_file(options.out / "peers.md", text.encode())
    by_method = [{"name": path.stem, **read_json(path)} for path in sorted((options.out / "rows").glob("*.json"))]
    replace_file(options.out / "peers.json", json.dumps(by_method, indent=2).encode() + b"\n")
    print(text, end="")


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description=__doc__))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        sys.exit(130)
