"""The command `rldistill`: each verb is one function of the library, with the fields of its configuration as flags."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar, Union

import tyro
from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, Positional, arg, subcommand

from rldistill.cli.flags import PRESET, REF, Data, ForeignFile, Out, Refs, Resume, TeacherRef, check_lists, preset_in
from rldistill.cli.printing import is_output, print_facts, print_scores
from rldistill.datasets.contents import head, head_table, info, info_lines
from rldistill.datasets.merging import merge
from rldistill.policies import parameters_of
from rldistill.progress import Talking, table
from rldistill.runs.scores import scores_file, write_scores
from rldistill.terminal import settle
from rldistill.types import UserError
from rldistill.verbs.convert import Target, convert
from rldistill.verbs.demo import EPISODES, EPSILON, demo_config, shipped_policy
from rldistill.verbs.distill import DistillConfig, distill
from rldistill.verbs.distill.config import Preset
from rldistill.verbs.evaluate import EvaluateConfig, evaluate
from rldistill.verbs.export import ExportConfig, Format, export, export_table
from rldistill.verbs.inspect import InspectConfig, inspect
from rldistill.verbs.push import PushConfig, push
from rldistill.verbs.record import RecordConfig, record
from rldistill.verbs.report import ReportConfig, report
from rldistill.verbs.split import split
from rldistill.verbs.starts import StartsConfig, starts
from rldistill.verbs.study import StudyConfig, builtin_studies, state_in_words, state_table, study, study_status, work
from rldistill.verbs.train import TrainConfig, train
from rldistill.verbs.watch import WatchConfig, watch, watched_table

T = TypeVar("T")


def _demo(out: Out = Path("demo"), seed: int = 0) -> None:
    """The main job in some minutes: a Pong teacher becomes a student a fifteenth of its size, with its report.

    An interrupted demo goes on where it was when it is started again.
    """
    teacher = shipped_policy("pong")
    games = EvaluateConfig(episodes=EPISODES, epsilon=EPSILON, seed=seed + 1)
    with Talking() as progress:
        distill(teacher, out, demo_config(seed), resume=True, progress=progress)
        scores = evaluate([teacher, out], games, json=out / "scores.json", progress=progress)
        page = report(out, progress=progress)
    print_scores(scores)
    print(f"report: {page}")


def _train(
    env: Annotated[
        Positional[tuple[str, ...]],
        arg(
            metavar="ENV [ENV ...]",
            help="Environment id: ALE/Pong-v5, PongNoFrameskip-v4, MinAtar/Breakout-v1, CartPole-v1 ... Several are learnt "
            "together by one network with a head for each.",
        ),
    ],
    out: Out,
    config: OmitArgPrefixes[Annotated[TrainConfig, arg(name="")]],
    resume: Resume = False,
) -> None:
    """Train a teacher from reward; the result is a policy folder, OUT/policy.

    Example: rldistill train ALE/Pong-v5 --algo pqn --steps 2500000 --seed 0 --out runs/pong

    Example: rldistill train PongNoFrameskip-v4 FreewayNoFrameskip-v4 --algo dqn --network multi3 --out runs/joint
    """
    with Talking() as progress:
        train(env, out, config, resume=resume, progress=progress)


def _record(
    teacher: TeacherRef,
    out: Out,
    config: OmitArgPrefixes[Annotated[RecordConfig, arg(name="")]],
    options: ForeignFile,
    append: Annotated[bool, arg(help="Add --steps to the dataset in --out.")] = False,
) -> None:
    """Record a dataset: observations, actions and the teacher's scores of every action.

    Example: rldistill record --teacher policies/pong --steps 54000 --out data/pong
    """
    with Talking() as progress:
        record(teacher, out, config, append=append, options=options, progress=progress)


def _distill_with(defaults: DistillConfig) -> Callable[..., None]:
    """The verb `distill`: a preset is another set of defaults, so that a flag that is given counts whatever the preset says."""

    def _distill(
        out: Out,
        options: ForeignFile,
        teacher: Annotated[
            tuple[str, ...],
            arg(metavar="REF [REF ...]", help=f"The teacher, or one for each of several tasks; each {REF}."),
        ] = (),
        config: OmitArgPrefixes[Annotated[DistillConfig, arg(name="")]] = defaults,
        preset: Annotated[Preset, arg(help=PRESET)] = "none",
        resume: Resume = False,
    ) -> None:
        """Distil a teacher into a student; the result is a policy folder, OUT/policy.

        Example: rldistill distill --teacher policies/pong --student net2 --out runs/pong-net2

        Example: rldistill distill --teacher policies/pong --driver teacher --student net3 --steps 100000 --out runs/pong-net3

        Example: rldistill distill --teacher policies/pong policies/freeway policies/qbert --student multi3 --out runs/three

        Example: rldistill distill --teacher policies/pong --dataset data/pong --student net2 --updates 10000 --out runs/pong-off

        Example: rldistill distill --learner MinAtar/Breakout-v1 --algo pqn --learner-steps 1000000 --out runs/online
        """
        with Talking() as progress:
            distill(teacher, out, config, resume=resume, options=options, progress=progress)

    return _distill


def _evaluate(
    policies: Positional[Refs],
    config: OmitArgPrefixes[Annotated[EvaluateConfig, arg(name="")]],
    options: ForeignFile,
    json: Annotated[Path | None, arg(help="Also write the scores to this file, a JSON list.")] = None,
) -> None:
    """Play full games and compare policies, with 95 % bootstrap intervals.

    Example: rldistill evaluate policies/pong runs/pong-net2 --episodes 30 --epsilon 0.01 --seed 1 --json scores.json
    """
    target = None if json is None else scores_file(json)
    with Talking() as progress:
        scores = evaluate(policies, config, options=options, progress=progress)
    unwritten = None
    if target is not None:
        try:  # first: output that is closed or full costs no scores, nor does a full disk cost the table
            write_scores(target, scores)
        except UserError as error:
            unwritten = error
    print_scores(scores, stderr=is_output(target))
    if unwritten is not None:
        raise unwritten


def _starts(
    policy: Annotated[Positional[str], arg(metavar="REF", help=f"The policy that plays: {REF}.")],
    out: Annotated[Path, arg(help="File to make; an existing one is never overwritten.")],
    config: OmitArgPrefixes[Annotated[StartsConfig, arg(name="")]],
    options: ForeignFile,
) -> None:
    """Keep states of a policy's games, from which `evaluate --starts` begins the games of others.

    Example: rldistill starts policies/pong-seed1 --number 100 --out pong.json
    """
    with Talking() as progress:
        made = starts(policy, out, config, options=options, progress=progress)
    print(f"{len(made.starts)} starts of {made.task.env}: {made.path}")


def _inspect(
    policy: Annotated[Positional[str], arg(metavar="REF", help=f"The policy: {REF}.")],
    config: OmitArgPrefixes[Annotated[InspectConfig, arg(name="")]],
    options: ForeignFile,
) -> None:
    """Say what a policy is: algorithm, spaces, network, scores, normalization, what trained it, and what does not fit.

    Example: rldistill inspect ppo-Acrobot-v1.zip --play 5
    """
    with Talking() as progress:
        facts = inspect(policy, config, options=options, progress=progress)
    print_facts(
        [(name, line) for name, value in facts.items() for line in ([value] if isinstance(value, str) else value)]
    )


def _report(
    run: Annotated[Positional[Path], arg(help="Run folder, of distill or train.")],
    config: OmitArgPrefixes[Annotated[ReportConfig, arg(name="")]],
    out: Annotated[Path | None, arg(help="The page to write; by default RUN/report.html.")] = None,
) -> None:
    """Write one self-contained HTML page: scores, curves, teacher and student at play, the whole configuration.

    Example: rldistill report runs/pong-net2 --out page.html
    """
    with Talking() as progress:
        page = report(run, out, config=config, progress=progress)
    if not is_output(page):
        print(page)


def _export(
    policy: Annotated[Positional[str], arg(metavar="REF", help="The policy: a policy folder or a run folder.")],
    out: Annotated[Path, arg(help="File to write: of c and c-int8 FILE.c (FILE.h comes beside it), of sb3 FILE.zip.")],
    format: Annotated[Format, arg(help="What is written.")],
    config: OmitArgPrefixes[Annotated[ExportConfig, arg(name="")]],
    force: Annotated[bool, arg(help="Replace files that exist.")] = False,
    json: Annotated[Path | None, arg(help="Also write the table and the comparison to this file.")] = None,
) -> None:
    """Write a policy for where there is no rldistill; the file is read back, compared and played before it is there.

    Example: rldistill export runs/pong-net2 --format onnx-int8 --out pong.onnx --dataset data/pong
    """
    with Talking() as progress:
        done = export(policy, out, format, config, force=force, json=json, progress=progress)
    out_or_err = sys.stderr if is_output(json) else sys.stdout
    table(export_table(done), stderr=is_output(json))
    for note in done.notes:
        print(f"note: {note}", file=out_or_err)
    print(f"{done.format}: {', '.join(map(str, done.files))}", file=out_or_err)


def _split(
    policy: Annotated[
        Positional[str],
        arg(metavar="REF", help="The policy of several tasks: a policy folder, a run folder, hf://owner/name."),
    ],
    task: Annotated[str, arg(help="The head: the environment id of its task.")],
    out: Out,
) -> None:
    """Make one head of a student of several tasks a policy folder of its own.

    Example: rldistill split runs/three --task PongNoFrameskip-v4 --out pong-only
    """
    made = split(policy, task, out)
    print(f"{out}: {made.name} for {made.task.env}, {parameters_of(made):,} parameters")


def _push(
    policy: Annotated[
        Positional[str], arg(metavar="REF", help="The policy: a policy folder, a run folder, or hf://owner/name.")
    ],
    repo: Annotated[str, arg(metavar="OWNER/NAME", help="The repository; made if it is not there.")],
    config: OmitArgPrefixes[Annotated[PushConfig, arg(name="")]],
    out: Annotated[Path | None, arg(help="Keep the folder here; without it, it goes when the hub has it.")] = None,
    dry_run: Annotated[bool, arg(help="Only write the folder --out, and ask the hub nothing.")] = False,
    files: Annotated[
        tuple[Path, ...], arg(name="with", metavar="[FILE ...]", help="Exports of this policy that were made before.")
    ] = (),
    force: Annotated[
        bool, arg(help="Replace a folder that push wrote; put the policy over a model of another tool.")
    ] = False,
) -> None:
    """Publish a policy on the Hugging Face hub: model card with scores, replay, configuration and exports, as one commit.

    The token is that of `hf auth login`, or HF_TOKEN.

    Example: rldistill push runs/pong-net2 --repo me/pong-net2 --exports onnx c --dry-run --out pong-hub

    Example: rldistill push runs/pong-net2 --repo me/pong-net2 --exports onnx c --license mit
    """
    with Talking() as progress:
        done = push(policy, repo, config, out=out, files=files, dry_run=dry_run, force=force, progress=progress)
    print_scores(done.scores)
    if done.folder is not None:
        print(f"{done.folder}: {', '.join(done.files)}")
    if done.url is not None:
        print(done.url)


def _dataset_info(
    data: Data,
    verify: Annotated[bool, arg(help="Look at the checksum of every shard.")] = True,
    json: Annotated[Path | None, arg(help="Also write all of it to this file.")] = None,
) -> None:
    """Say what a dataset holds: task, episodes and returns, teacher, how it was recorded, damaged shards.

    Example: rldistill dataset info data/pong --json pong.json
    """
    with Talking() as progress:
        facts = info(data, verify=verify, json=json, progress=progress)
    print_facts(info_lines(facts), stderr=is_output(json))
    if facts.damaged:
        raise UserError(
            f"{len(facts.damaged)} of {facts.shards} shards of {data} are damaged: {', '.join(facts.damaged)}"
        )


def _dataset_head(
    data: Data,
    rows: Annotated[int, arg(aliases=("-n",), help="How many control steps.")] = 10,
    episode: Annotated[int | None, arg(help="Of this episode alone, from 0.")] = None,
    picture: Annotated[Path | None, arg(help="Also draw the observation stacks of a few of them, a PNG file.")] = None,
) -> None:
    """Print the first control steps: episode, step, action, reward, end, the teacher's values.

    Example: rldistill dataset head data/pong -n 20 --episode 3 --picture stacks.png
    """
    table(head_table(head(data, rows=rows, episode=episode, picture=picture)))


def _dataset_merge(
    data: Annotated[Positional[tuple[Path, ...]], arg(metavar="DATA DATA [...]", help="Dataset folders, two or more.")],
    out: Out,
    mixed_teachers: Annotated[bool, arg(help="Several teachers may have labelled them; the card lists them.")] = False,
) -> None:
    """Make one dataset of several of the same task and kind of values. Shards are hard links where that can be.

    Example: rldistill dataset merge data/pong-a data/pong-b --out data/pong
    """
    with Talking() as progress:
        merged = merge(data, out, mixed_teachers=mixed_teachers, progress=progress)
    print(f"{merged.control_steps:,} control steps, {len(merged.shards):,} shards: {out}")


def _dataset_convert(
    source: Annotated[
        Positional[Path], arg(metavar="SOURCE", help="Dataset of rldistill, of Parquet files, or Minari's.")
    ],
    to: Annotated[Target, arg(help="The format.")],
    out: Annotated[Path, arg(help="Folder to make; of Minari its name ends in a version, pong-v0.")],
    options: ForeignFile,
    teacher: Annotated[
        str | None, arg(metavar="REF", help=f"Who labels a Minari dataset without a teacher's values: {REF}.")
    ] = None,
    env: Annotated[str | None, arg(help="What that teacher plays, where its file does not say.")] = None,
) -> None:
    """Write a dataset in another format, with the teacher's values; there and back nothing changes.

    Example: rldistill dataset convert data/pong --to minari --out data/pong-v0
    """
    with Talking() as progress:
        done = convert(source, out, to, teacher=teacher, env=env, options=options, progress=progress)
    for note in done.notes:
        print(f"note: {note}")
    print(f"{done.format}: {done.path}")


DATASET_VERBS: dict[str, Callable[..., Any]] = {
    "info": _dataset_info,
    "head": _dataset_head,
    "merge": _dataset_merge,
    "convert": _dataset_convert,
}
_DatasetVerb: TypeAlias = Union[  # type: ignore[valid-type]  # noqa: UP007  # tyro reads it, no value has it
    tuple(Annotated[Any, subcommand(name=name, constructor=verb)] for name, verb in DATASET_VERBS.items())
]


def _dataset(verb: OmitSubcommandPrefixes[OmitArgPrefixes[Annotated[_DatasetVerb, arg(name="")]]]) -> None:
    """Look into a recorded dataset, merge several, convert to and from Parquet and Minari.

    Example: rldistill dataset info data/pong
    """


def _watch(
    policies: Annotated[
        Positional[tuple[str, ...]],
        arg(metavar="REF [REF2]", help=f"A policy, or two side by side; each {REF}."),
    ],
    config: OmitArgPrefixes[Annotated[WatchConfig, arg(name="")]],
    options: ForeignFile,
    out: Annotated[Path | None, arg(help="File to write, F.gif or F.mp4; without it a window opens.")] = None,
    force: Annotated[bool, arg(help="Replace a file that exists.")] = False,
) -> None:
    """Watch a policy play, or two side by side: the game, and what the policy thinks of its actions.

    In the window space pauses, the right arrow key goes a step, q or escape quits.

    Example: rldistill watch policies/pong

    Example: rldistill watch policies/pong runs/pong-net2 --out pong.mp4
    """
    with Talking() as progress:
        done = watch(policies, config, out=out, force=force, options=options, progress=progress)
    table(watched_table(done))
    if out is not None and not is_output(out):
        print(out)


def _study(
    what: Annotated[
        Positional[tuple[str, ...]],
        arg(
            metavar="NAME|FILE.toml",
            help=f"A built-in study ({', '.join(builtin_studies())}) or a file of your own. `work DIR` computes cells of "
            "the study in DIR beside other workers; `status DIR` says how far it is.",
        ),
    ],
    config: OmitArgPrefixes[Annotated[StudyConfig, arg(name="")]],
    out: Annotated[Path | None, arg(help="Folder of the study; one that is there is taken up where it stands.")] = None,
) -> None:
    """Run a grid of runs in one folder and write its tables: settings against each other and against their teachers.

    Example: rldistill study losses --tier minatar --seeds 5 --out studies/losses

    Example: rldistill study my-grid.toml --jobs 2 --out studies/mine

    Example: rldistill study work studies/losses

    Example: rldistill study status studies/losses
    """
    with Talking() as progress:
        if what[0] in ("work", "status"):
            folder = _study_folder(what, config, out)
            state = work(folder, progress=progress) if what[0] == "work" else study_status(folder)
        elif len(what) > 1 or out is None:
            problem = "needs a folder: add --out DIR" if out is None else f"is one, not {' '.join(what)}"
            raise UserError(f"a study {problem}")
        else:
            state = study(what[0], out, config, progress=progress)
    rows = state_table(state)
    if rows:
        table(rows)
    print(f"{state.plan}: {state_in_words(state)}: {state.folder}")
    if what[0] != "status" and (state.folder / "table.md").is_file():
        print(f"tables: {state.folder / 'index.html'}")
    if state.failed:
        sys.exit(1)


def _study_folder(what: Sequence[str], config: StudyConfig, out: Path | None) -> Path:
    """The folder behind `work` and `status`, which take nothing else."""
    if len(what) != 2 or out is not None or config != StudyConfig():
        raise UserError(f"`rldistill study {what[0]} DIR` takes the study's folder and nothing else")
    return Path(what[1])


VERBS: dict[str, Callable[..., Any]] = {
    "demo": _demo,
    "train": _train,
    "record": _record,
    "dataset": _dataset,
    "distill": _distill_with(DistillConfig()),
    "inspect": _inspect,
    "evaluate": _evaluate,
    "starts": _starts,
    "report": _report,
    "split": _split,
    "study": _study,
    "export": _export,
    "watch": _watch,
    "push": _push,
}


def main() -> None:
    """Runs a verb. Exit status 2 and one line for a wrong input or a system that refuses, 130 for Ctrl-C."""
    try:
        preset = preset_in(sys.argv)
        check_lists(sys.argv)
        tyro.extras.subcommand_cli_from_dict(
            VERBS if preset == "none" else {**VERBS, "distill": _distill_with(DistillConfig.of(preset))},
            description="Policy distillation for reinforcement learning: a trained policy becomes a smaller one. "
            "`rldistill --version` says which rldistill this is.",
        )
        sys.stdout.flush()  # only here a full disk or a closed pipe may show
    except UserError as error:
        _complain(f"error: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        verb = sys.argv[1] if len(sys.argv) > 1 else ""
        way = {
            "train": "continue with the same command and --resume",
            "distill": "continue with the same command and --resume",
            "record": "what was recorded is kept; add the rest with --append",
            "demo": "run it again to continue",
            "study": "what is finished is kept; run it again to continue",
            "report": "the page was not written; scores that were measured are in RUN/scores.json",
            "push": "the hub has the whole commit or nothing of it; run it again",
        }.get(verb, "nothing was written")
        _complain(f"interrupted; {way}")
        sys.exit(130)
    except BrokenPipeError:  # `| head` has read enough
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "DefaultCPUAllocator" not in str(error):  # PyTorch's way of saying it
            raise
        _complain(
            "error: the machine has no memory left for this: take fewer environments, smaller batches or a smaller network"
        )
        sys.exit(2)
    except OSError as error:  # a folder that may not be entered, a name too long, a disk that goes away
        place = f"{error.filename}: " if error.filename is not None else ""
        _complain(f"error: {place}{error.strerror or error}")
        sys.exit(2)
    finally:
        settle()


def _complain(line: str) -> None:
    with suppress(OSError):
        print(f"rldistill: {line}", file=sys.stderr)
