"""The command `rldistill`: each verb is one function of the library, with the fields of its configuration as flags."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

import tyro
from tyro.conf import OmitArgPrefixes, Positional, arg

from rldistill.demo import demo
from rldistill.distillation import DistillConfig, distill
from rldistill.evaluation import EvaluateConfig, evaluate, score_table
from rldistill.exporting import ExportConfig, Format, export, export_table
from rldistill.inspection import InspectConfig, inspect
from rldistill.progress import Talking, table
from rldistill.recording import RecordConfig, record
from rldistill.reporting import ReportConfig, report
from rldistill.teachers import TeacherOptions
from rldistill.training import TrainConfig, train
from rldistill.types import UserError
from rldistill.watching import WatchConfig, watch, watched_table

T = TypeVar("T")
Out: TypeAlias = Annotated[Path, arg(help="Folder to make; an existing one is never overwritten.")]
Resume: TypeAlias = Annotated[
    bool, arg(help="Go on with the run in --out; it ends as if it had never been interrupted.")
]
REF = (
    "a policy or run folder, a file of export, a Stable-Baselines3 zip, a CleanRL, ONNX, TorchScript or state dict file, "
    "hf://owner/name"
)
TeacherRef: TypeAlias = Annotated[str, arg(metavar="REF", help=f"The teacher: {REF}.")]
Refs: TypeAlias = Annotated[
    tuple[str, ...],
    arg(metavar="REF [REF ...]", help=f"Policies, the first is what others are compared with; each {REF}."),
]


def _demo(out: Out = Path("demo"), seed: int = 0) -> None:
    """The main job in some minutes: a Pong teacher becomes a student a fifteenth of its size, with its report."""
    with Talking() as progress:
        scores, page = demo(out, seed=seed, progress=progress)
    table(score_table(scores))
    print(f"report: {page}")


def _train(
    env: Annotated[
        Positional[str],
        arg(help="Environment id: ALE/Pong-v5, PongNoFrameskip-v4, MinAtar/Breakout-v1, CartPole-v1 ..."),
    ],
    out: Out,
    config: OmitArgPrefixes[TrainConfig],
    resume: Resume = False,
) -> None:
    """Train a teacher by deep Q-learning; the result is a policy folder, OUT/policy.

    Example: rldistill train ALE/Pong-v5 --algo pqn --steps 2500000 --seed 0 --out runs/pong
    """
    with Talking() as progress:
        train(env, out, config, resume=resume, progress=progress)


def _record(
    teacher: TeacherRef,
    out: Out,
    config: OmitArgPrefixes[RecordConfig],
    options: OmitArgPrefixes[TeacherOptions],
    append: Annotated[bool, arg(help="Add --steps to the dataset in --out.")] = False,
) -> None:
    """Record a dataset: what a teacher sees, does and thinks of every action.

    Example: rldistill record --teacher policies/pong --steps 54000 --out data/pong
    """
    with Talking() as progress:
        record(teacher, out, config, append=append, options=options, progress=progress)


def _distill(
    teacher: TeacherRef,
    out: Out,
    config: OmitArgPrefixes[DistillConfig],
    options: OmitArgPrefixes[TeacherOptions],
    resume: Resume = False,
) -> None:
    """Distil a teacher into a student; the result is a policy folder, OUT/policy.

    Examples:
      rldistill distill --teacher policies/pong --student net2 --out runs/pong-net2
      rldistill distill --teacher policies/pong --driver teacher --student net3 --steps 100000 --out runs/pong-net3
      rldistill distill --teacher policies/pong --dataset data/pong --student net2 --updates 10000 --out runs/pong-off
    """
    with Talking() as progress:
        distill(teacher, out, config, resume=resume, options=options, progress=progress)


def _evaluate(
    policies: Positional[Refs],
    config: OmitArgPrefixes[EvaluateConfig],
    options: OmitArgPrefixes[TeacherOptions],
    json: Annotated[Path | None, arg(help="Also write the scores to this file, a JSON list.")] = None,
) -> None:
    """Play full games and compare policies, with 95 % bootstrap intervals.

    Example: rldistill evaluate policies/pong runs/pong-net2 --episodes 30 --epsilon 0.01 --seed 1 --json scores.json
    """
    with Talking() as progress:
        scores = evaluate(policies, config, json=json, options=options, progress=progress)
    table(score_table(scores))


def _inspect(
    policy: Annotated[Positional[str], arg(metavar="REF", help=f"The policy: {REF}.")],
    config: OmitArgPrefixes[InspectConfig],
    options: OmitArgPrefixes[TeacherOptions],
) -> None:
    """Say what a policy is: algorithm, spaces, network, scores, normalization, what trained it, and what does not fit.

    Example: rldistill inspect ppo-Acrobot-v1.zip --play 5
    """
    with Talking() as progress:
        known = inspect(policy, config, options=options, progress=progress)
    for name, value in known.items():
        for line in [value] if isinstance(value, str) else value:
            print(f"{name:>14}  {line}")


def _report(
    run: Annotated[Positional[Path], arg(help="Run folder, of distill or train.")],
    config: OmitArgPrefixes[ReportConfig],
    out: Annotated[Path | None, arg(help="The page to write; by default RUN/report.html.")] = None,
) -> None:
    """Write one self-contained HTML page: scores, curves, teacher and student at play, the whole configuration.

    Example: rldistill report runs/pong-net2 --out page.html
    """
    with Talking() as progress:
        page = report(run, out, config=config, progress=progress)
    print(page)


def _export(
    policy: Annotated[Positional[str], arg(metavar="REF", help="The policy: a policy folder or a run folder.")],
    out: Annotated[Path, arg(help="File to write: of c and c-int8 FILE.c (FILE.h comes beside it), of sb3 FILE.zip.")],
    format: Annotated[Format, arg(help="What is written.")],
    config: OmitArgPrefixes[ExportConfig],
    force: Annotated[bool, arg(help="Replace files that exist.")] = False,
    json: Annotated[Path | None, arg(help="Also write the table and the comparison to this file.")] = None,
) -> None:
    """Write a policy for where there is no rldistill; the file is read back, compared and played before it is there.

    Example: rldistill export runs/pong-net2 --format onnx-int8 --out pong.onnx --dataset data/pong
    """
    with Talking() as progress:
        done = export(policy, out, format, config, force=force, json=json, progress=progress)
    table(export_table(done))
    for note in done.notes:
        print(f"note: {note}")
    print(f"{done.format}: {', '.join(map(str, done.files))}")


def _watch(
    policies: Annotated[
        Positional[tuple[str, ...]],
        arg(metavar="REF [REF2]", help=f"A policy, or two that are shown side by side; each {REF}."),
    ],
    config: OmitArgPrefixes[WatchConfig],
    options: OmitArgPrefixes[TeacherOptions],
    out: Annotated[Path | None, arg(help="File to write, F.gif or F.mp4; without it a window opens.")] = None,
    force: Annotated[bool, arg(help="Replace a file that exists.")] = False,
) -> None:
    """Watch a policy play, or two side by side: the game, and what the policy thinks of its actions.

    In the window space pauses, the right arrow key goes a step, q or escape quits.

    Examples:
      rldistill watch policies/pong
      rldistill watch policies/pong runs/pong-net2 --out pong.mp4
    """
    with Talking() as progress:
        done = watch(policies, config, out=out, force=force, options=options, progress=progress)
    table(watched_table(done))
    if out is not None:
        print(out)


VERBS: dict[str, Callable[..., Any]] = {
    "demo": _demo,
    "train": _train,
    "record": _record,
    "distill": _distill,
    "inspect": _inspect,
    "evaluate": _evaluate,
    "report": _report,
    "export": _export,
    "watch": _watch,
}


def main() -> None:
    """Runs a verb. Exit status 2 and one line for a wrong input, 130 for Ctrl-C."""
    try:
        tyro.extras.subcommand_cli_from_dict(
            VERBS, description="Policy distillation for reinforcement learning: a trained policy becomes a smaller one."
        )
    except UserError as error:
        print(f"rldistill: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        verb = sys.argv[1] if len(sys.argv) > 1 else ""
        way = {
            "train": "continue with the same command and --resume",
            "distill": "continue with the same command and --resume",
            "record": "what was recorded is kept; add the rest with --append",
            "demo": "run it again to continue",
        }.get(verb, "nothing was written")
        print(f"rldistill: interrupted; {way}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
