"""What people bring: policy files and environments of every kind, each through the verbs, with what came of it.

    python benchmarks/cases.py policies --cases ../shared/cases --out runs/cases-policies.json
    python benchmarks/cases.py environments --cases ../shared/cases --out runs/cases-environments.json
    python benchmarks/cases.py table runs/before.json runs/now.json

Each command runs in a process of its own under a time limit. Its outcome is one of

* `mean N`: games were played and this is their mean return; `done`: the verb ended well;
* `line: ...`: exit status 2 and one line;
* `TRACEBACK`, `SILENT` (a status other than 0 with no line), `HANG` (longer than the limit): faults.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LIMIT = 150.0
"""Seconds of a command."""

POLICIES: tuple[tuple[str, str], ...] = (
    ("skrl-CartPole-preprocessor.pt", "--env CartPole-v1 --teacher-scores logits"),
    ("skrl-CartPole-preprocessor.pt", "--env CartPole-v1 --teacher-scores logits --teacher-network mlp:64,64:tanh"),
    ("vecnormalize-elsewhere/best_model.zip", "--env CartPole-v1"),
    ("author-class-relu/ppo-CartPole-v1.zip", ""),
    ("author-class-relu/ppo-CartPole-v1.zip", "--teacher-network mlp:64:relu"),
    ("cleanrl-relu/ppo.cleanrl_model", "--env CartPole-v1"),
    ("cleanrl-relu/ppo.cleanrl_model", "--env CartPole-v1 --teacher-network mlp:64,64:relu"),
    ("sac-actor-unit-actions-Pendulum-v1.onnx", "--env Pendulum-v1 --teacher-scores deterministic"),
    (
        "sac-actor-unit-actions-Pendulum-v1.onnx",
        "--env Pendulum-v1 --teacher-scores deterministic --teacher-actions unit",
    ),
    ("minatar-breakout-dqn.pt", "--env MinAtar/Breakout-v0"),
    ("minatar-breakout-dqn.pt", "--env MinAtar/Breakout-v0 --teacher-network cnn:16:128 --teacher-scores q_values"),
    (
        "minatar-breakout-one-state-dict.pt",
        "--env MinAtar/Breakout-v0 --teacher-network cnn:16:128 --teacher-scores q_values",
    ),
    ("maskable/ppo-CartPole-v1.zip", ""),
    ("rslrl-policy.onnx", "--env Pendulum-v1 --teacher-scores deterministic"),
    ("rslrl-model.pt", "--env Pendulum-v1"),
    ("rslrl-model.pt", "--env Pendulum-v1 --teacher-network mlp:64,64:tanh"),
    ("sb3-docs-actions-out-CartPole-v1.onnx", "--env CartPole-v1"),
    ("unity-several-outputs.onnx", "--env Pendulum-v1"),
    ("unity-several-outputs.onnx", "--env Pendulum-v1 --teacher-output continuous_actions"),
    ("compiled/sac-Pendulum-v1.zip", ""),
    ("sb3-policy-save.pkl", "--env CartPole-v1"),
    ("unzipped/ppo-CartPole-v1", ""),
)
"""File, and options: as a user gives them at first, and then as the line that came of it says."""


def run(arguments: list[str], folder: Path, environment: dict[str, str]) -> tuple[str, str]:
    """The outcome of a command, and all that it printed."""
    command = [sys.executable, "-m", "rldistill", *arguments]
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, errors="replace", timeout=LIMIT,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        return "HANG", str(error.output)
    everything = done.stdout + done.stderr
    if "Traceback (most recent call last)" in everything:
        return "TRACEBACK " + everything.strip().splitlines()[-1][:200], everything
    lines = [line for line in done.stderr.splitlines() if line.startswith("rldistill: error:")]
    if done.returncode == 0:
        return "done", everything
    if done.returncode == 2 and len(lines) == 1:
        return "line: " + lines[0].removeprefix("rldistill: error: "), everything
    return f"SILENT status {done.returncode}: {everything.strip()[-200:]}", everything


def surroundings(cases: Path) -> dict[str, str]:
    """Variables of a command: the environments' package, few threads, failures that come soon."""
    paths = [str(Path(__file__).resolve().parents[1] / "src"), str(cases / "environments")]
    soon = {"SLOW": "0.05", "RAISE_AT": "700", "FAIL_AT": "700", "NAN_AT": "700"}
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "COLUMNS": "200", **soon}


def mean_of(scores: Path) -> str:
    """The mean that `evaluate --json` wrote."""
    data = json.loads(scores.read_text())
    return f"mean {data[0]['mean']:.1f}"


def policies(cases: Path) -> list[dict[str, Any]]:
    """Every file, evaluated in 20 games without exploration."""
    rows = []
    environment = surroundings(cases)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        shutil.copytree(cases / "policies", folder / "policies", copy_function=shutil.copyfile)
        for path in [folder / "policies", *(folder / "policies").rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        for file, options in POLICIES:
            scores = folder / "scores.json"
            scores.unlink(missing_ok=True)
            arguments = [
                "evaluate", f"policies/{file}", *options.split(), "--episodes", "20", "--epsilon", "0", "--json", str(scores)
            ]  # fmt: skip
            outcome, printed = run(arguments, folder, environment)
            if outcome == "done":
                notes = [line.strip() for line in printed.splitlines() if ": " in line and "│" not in line]
                outcome = mean_of(scores) + (f" ({'; '.join(notes)[:300]})" if notes else "")
            rows.append({"case": f"{file} {options}".strip(), "outcomes": {"evaluate": outcome}})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def ids_of(cases: Path) -> list[str]:
    """What the package of environments registers."""
    names = "(i for i, s in gymnasium.registry.items() if 'myenvs' in str(s.entry_point))"
    script = f"import gymnasium, myenvs; print('\\n'.join{names})"
    environment = surroundings(cases)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


def continuous_teacher(folder: Path) -> Path:
    """A state dict that moves three numbers to zero."""
    import torch

    path = folder / "to-zero.pt"
    one = torch.eye(3)
    weights = {"0.weight": torch.cat([one, -one]), "0.bias": torch.zeros(6)}
    weights |= {"2.weight": -0.5 * torch.cat([one, -one], dim=1), "2.bias": torch.zeros(3)}
    torch.save(weights, path)
    return path


def environments(cases: Path, only: list[str]) -> list[dict[str, Any]]:
    """Every environment through train, evaluate, record and distill."""
    rows = []
    environment = surroundings(cases)
    for name in only or ids_of(cases):
        env = f"myenvs:{name}"
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            outcomes = {}
            given: list[str] = []
            teacher = "run/policy"
            if name.startswith("Cont"):
                teacher = str(continuous_teacher(folder))
                given = ["--teacher-network", "mlp:6", "--teacher-scores", "deterministic"]
            else:
                train = ["train", env, "--algo", "pqn", "--steps", "2000", "--final-episodes", "3", "--out", "run"]
                outcomes["train"] = run(train, folder, environment)[0]
            if name.startswith("Cont") or (folder / teacher).exists():
                evaluate = ["evaluate", teacher, "--env", env, *given, "--episodes", "4", "--json", "scores.json"]
                outcomes["evaluate"] = run(evaluate, folder, environment)[0]
                if outcomes["evaluate"] == "done":
                    outcomes["evaluate"] = mean_of(folder / "scores.json")
                record = ["record", "--teacher", teacher, "--env", env, *given, "--steps", "400", "--out", "data"]
                outcomes["record"] = run(record, folder, environment)[0]
                distill = [
                    "distill", "--teacher", teacher, "--env", env, *given, "--steps", "1500", "--evaluate-episodes", "3",
                    "--evaluate-every", "0", "--out", "student",
                ]  # fmt: skip
                outcomes["distill"] = run(distill, folder, environment)[0]
            rows.append({"case": name, "outcomes": outcomes})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def short(outcomes: dict[str, str]) -> str:
    """The outcomes of a case in one cell: equal ones once."""
    by_outcome: dict[str, list[str]] = {}
    for verb, outcome in outcomes.items():
        by_outcome.setdefault(outcome.replace("|", "/").replace("\n", " "), []).append(verb)
    return "; ".join(f"{', '.join(verbs)}: {outcome}" for outcome, verbs in by_outcome.items())


def table(before: Path, now: Path) -> None:
    """Prints the two as a table."""
    earlier = {row["case"]: row["outcomes"] for row in json.loads(before.read_text())}
    print("| case | before | now |\n|---|---|---|")
    for row in json.loads(now.read_text()):
        print(f"| `{row['case']}` | {short(earlier.get(row['case'], {}))} | {short(row['outcomes'])} |")


def main() -> None:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["policies", "environments", "table"])
    parser.add_argument(
        "files", nargs="*", type=Path, help="of table: two results; of environments: ids, by default all"
    )
    parser.add_argument("--cases", type=Path, default=Path("../shared/cases"))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.what == "table":
        table(*given.files)
        return
    cases = given.cases.resolve()
    rows = policies(cases) if given.what == "policies" else environments(cases, [str(name) for name in given.files])
    if given.out is not None:
        given.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
