"""Loads damaged and hostile files as a user would, each in a process of its own, under limits.

    python tests/hostile.py --number 1000 --seed 0

says how long each took, how much memory, and what is at fault.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hostile_files import CANARY, hostile_files
from rldistill.teachers import trial


def good_files(folder: Path) -> list[Path]:
    """A policy for CartPole as every kind of file that is accepted."""
    from foreign_files import good_cartpoles
    from recorded import STACKED, TEACHER, played
    from rldistill.datasets import create_dataset

    good = good_cartpoles(folder)
    played(create_dataset(folder / "data", STACKED, "q_values", TEACHER), 30, num_envs=2, shard_steps=30)
    run = folder / "run"
    shutil.copytree(folder / "policy", run / "policy")
    task = json.loads((run / "policy" / "policy.json").read_text())["heads"][0]["task"]
    config = {"verb": "distill", "teacher": "none", "task": task, "seed": 0, "student": "mlp:8", "steps": 300}
    (run / "config.json").write_text(json.dumps(config))
    records: list[dict[str, Any]] = [{"event": "teacher", "mean": 9.5, "ci_low": 9.0, "ci_high": 10.0, "episodes": 3}]
    records += [{"event": "train", "control_steps": n, "loss": 0.5, "returns": [float(n)]} for n in range(1, 9)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return [*good, folder / "data", run]


def try_to_load(path: Path, good: Path) -> str:
    """What a user would do: loads the file and asks it for the scores of one observation.

    Args:
        path: of `hostile_files`.
        good: where the good files are; statistics are tried with one of their zips.

    Returns:
        The refusal, empty where there is none.
    """
    from rldistill import ReportConfig, report
    from rldistill.play.envs import Environments
    from rldistill.teachers import TeacherOptions, load_teacher
    from rldistill.types import UserError, as_tensor

    try:
        if path.name == "data":
            return _read_dataset(path)
        if path.name == "run":
            report(path, path.with_name("page.html"), config=ReportConfig(episodes=0, seconds=0, teacher="none"))
            return ""
    except UserError as error:
        return str(error) or "a refusal without a text"
    statistics = path if path.suffix == ".pkl" else None
    network = "mlp:8,5" if path.suffix in (".pth", ".safetensors", ".cleanrl_model") else None
    scores: Any = "q_values" if path.suffix in (".pt", ".onnx") else None
    options = TeacherOptions(teacher_network=network, teacher_scores=scores, normalization=statistics)
    env = None if path.is_dir() else "CartPole-v1"
    try:
        teacher = load_teacher(good / "ppo.zip" if statistics else path, env=env, options=options)
        teacher(as_tensor(Environments(teacher.task, 1, 0).observations))
    except UserError as error:
        return str(error) or "a refusal without a text"
    return ""


def _read_dataset(path: Path) -> str:
    """Reads all of a dataset and says what it is; the first thing that is wrong."""
    from rldistill.datasets import info, info_lines, load_replay, open_dataset

    summary = info(path)
    info_lines(summary)
    load_replay(open_dataset(path))
    return next(iter(summary.damaged.values()), "")


class Outcome(NamedTuple):
    """Of one file."""

    name: str
    clock: float
    """Seconds from beginning to end; on a busy machine most of them are others'."""
    seconds: float
    """Of the processor's time: the process that loads the file, and the one in which programs are tried."""
    mebibytes: float
    """The most that either process had in memory."""
    refusal: str
    fault: str
    """What must not be; empty where all is well."""


_LIMIT_SECONDS, _LIMIT_MEBIBYTES = 10, 2048
_PATIENCE = 60
"""Seconds of the clock after which a process is ended, however busy the machine."""


def measured(path: Path, good: Path, canary: Path) -> Outcome:
    """Loads one file in a process of its own, under the limits.

    Ten seconds are the processor's; they are the clock's too where nobody else wants the processor.
    """
    if trial.running().poll() is not None:  # it has gone for lack of work
        trial.stop()
        trial.running()  # that children need not start their own
    there, here = os.pipe()
    begin = time.perf_counter()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(there)
            sys.path.insert(0, str(canary.parent))  # as where the command runs in a folder that was unpacked
            signal.alarm(_PATIENCE)
            peaks, trials = [0], [0.0]
            ask = trial.ask

            def noted(question: dict[str, Any]) -> dict[str, Any]:
                answer = ask(question)
                peaks.append(answer["peak"])
                trials.append(answer["seconds"])
                return answer

            trial.ask = noted
            try:
                text, code = try_to_load(path, good), 0
            except BaseException:
                text = traceback.format_exc()
            os.write(here, json.dumps([text[-3000:], max(peaks), sum(trials)]).encode())
        finally:
            os._exit(code)
    os.close(here)
    with os.fdopen(there, "rb") as pipe:
        raw = pipe.read()
    _, status, used = os.wait4(child, 0)
    clock = time.perf_counter() - begin
    text, peak, tried = json.loads(raw) if raw else ("", 0, 0.0)
    seconds = used.ru_utime + used.ru_stime + tried
    mebibytes = max(used.ru_maxrss / 1024, peak / 2**20)
    busy = os.getloadavg()[0] > (os.cpu_count() or 1)
    fault = ""
    if status != 0:
        fault = f"ended with {os.waitstatus_to_exitcode(status)}: {text}"
        if not raw:
            trial.stop()  # it may be waiting for an answer that comes to nobody
    elif len(text.splitlines()) > 1:
        fault = f"a refusal of several lines: {text}"
    if seconds > _LIMIT_SECONDS or (clock > _LIMIT_SECONDS and not busy):
        fault = fault or f"took {seconds:.1f} s of the processor, {clock:.1f} s of the clock"
    if mebibytes > _LIMIT_MEBIBYTES:
        fault = fault or f"took {mebibytes:.0f} MiB"
    if canary.exists():
        fault = "executed something"
        canary.unlink()
    return Outcome(path.parent.name, clock, seconds, mebibytes, text, fault)


def main() -> int:
    """Makes and measures files, says what was found, and returns 1 where anything was at fault."""
    parser = argparse.ArgumentParser(
        description="Damaged and hostile teachers: made, loaded as a user would, measured."
    )
    parser.add_argument("--number", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--teachers", type=Path, nargs="*", default=[], help="more good files to start from")
    parser.add_argument("--first", type=int, default=0, help="skip so many files, to go on where a run was stopped")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    outcomes: list[Outcome] = []
    refused: Counter[str] = Counter()
    tried: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        good = good_files(place / "good")
        for path in good:
            refusal = "" if path.suffix == ".pkl" else try_to_load(path, place / "good")
            if refusal:
                raise SystemExit(f"a good file is refused: {refusal}")
        bad = place / "bad"
        for count, path in enumerate(
            hostile_files([*good, *arguments.teachers], bad, arguments.number, arguments.seed)
        ):
            if count >= arguments.first:
                outcome = measured(path, place / "good", bad / CANARY)
                outcomes.append(outcome)
                kind = path.suffix[1:] or path.name
                tried[kind] += 1
                refused[kind] += bool(outcome.refusal)
                if outcome.fault:
                    print(f"FAULT {outcome.name}: {outcome.fault}", flush=True)
                if (count + 1) % 50 == 0:
                    print(f"{count + 1} of {arguments.number}", flush=True)
            shutil.rmtree(path.parent)
    print("\n| kind | files | refused |\n|---|---|---|")
    for kind in sorted(tried):
        print(f"| {kind} | {tried[kind]} | {refused[kind]} |")
    print("\n| file | seconds of the processor | of the clock | MiB |\n|---|---|---|---|")
    orders: list[Callable[[Outcome], float]] = [
        lambda outcome: outcome.seconds,
        lambda outcome: outcome.clock,
        lambda outcome: outcome.mebibytes,
    ]
    for order in orders:
        for outcome in sorted(outcomes, key=order, reverse=True)[:4]:
            print(f"| {outcome.name} | {outcome.seconds:.2f} | {outcome.clock:.2f} | {outcome.mebibytes:.0f} |")
    late = sum(outcome.clock > _LIMIT_SECONDS and not outcome.fault for outcome in outcomes)
    if late:
        print(
            f"\n{late} files took longer than {_LIMIT_SECONDS} s of the clock, since the machine had more to do than processors"
        )
    faults = sum(bool(outcome.fault) for outcome in outcomes)
    print(f"\n{len(outcomes)} files: {sum(refused.values())} refused in one line, the others load; {faults} at fault")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
