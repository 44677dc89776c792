"""The verb `push`: a policy with its model card, scores, replay and exports as a repository of the Hugging Face hub."""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from json import dumps
from pathlib import Path
from typing import Any, NamedTuple

import rldistill
from rldistill.arguments import checked_arguments
from rldistill.files import read_regular, replace_file
from rldistill.formats.c.rendering import render
from rldistill.formats.hub.upload import check_hub, check_repo, upload
from rldistill.formats.note import Note
from rldistill.holding import new_folder
from rldistill.machine import check_packages, usual_torch
from rldistill.play.envs import confirm, unlike
from rldistill.play.envs.declared import decisions_per_second
from rldistill.policies import KeptPolicy, MultiTaskPolicy, NamedPolicy, SavedPolicy, name_of, named, named_heads
from rldistill.progress import Progress, Silent
from rldistill.runs.scores import Score, Scores, read_scores, write_scores
from rldistill.teachers import TeacherOptions, load_own, load_policy, load_several, note_in, teacher_beside
from rldistill.teachers.detect import kind_of
from rldistill.types import MOST_ENVIRONMENTS, UserError, check_boolean, check_numbers
from rldistill.verbs.export.checks import ROWS, Bound, ExportConfig, Format, compare, played_states, refuse_beyond
from rldistill.verbs.export.heads import holds_heads, make_heads_export
from rldistill.verbs.export.making import Checks, make_export, output_files
from rldistill.verbs.push.card import CardFacts, Shipped, card
from rldistill.verbs.push.folder import (
    POLICY_FILES,
    check_own,
    policy_bytes,
    run_files,
    target_folder,
    temporary_folder,
    warn_of_paths,
)
from rldistill.verbs.scoring import Conditions, score, score_loaded, score_tasks
from rldistill.verbs.spectator import undrawable
from rldistill.verbs.watch.playing import WatchConfig, play_drawn

STATES = 1_000
"""On which an export made before is compared with the policy."""
LEAST = Bound(agreement=0.95)
"""Of the coarsest format: a file does not say whether it is an int8 one."""
NAMES: dict[Format, str] = {
    "onnx": "policy.onnx",
    "onnx-int8": "policy-int8.onnx",
    "c": "policy.c",
    "c-int8": "policy-int8.c",
    "torchscript": "policy.pt",
    "sb3": "policy-sb3.zip",
}


@dataclass(frozen=True)
class PushConfig:
    """What goes along with the policy, and how the repository is made."""

    scores: Path | None = None
    """Scores that `evaluate --json` wrote, this policy's among them; by default it plays now, beside its teacher."""
    teacher: str | None = None
    """The teacher, if it is no longer where the run or the policy says; `none` leaves it out."""
    env: str | None = None
    """The policy's own environment id, to confirm it where it is written module:Id: the module is imported only then."""
    episodes: int = 30
    """Full games of policy and teacher."""
    epsilon: float = 0.05
    """Probability of a random action, in the games and in the replay."""
    seed: int = 0
    """Of games, replay and exports."""
    num_envs: int = 15
    """Games played side by side."""
    seconds: float = 30.0
    """Length of the replay, in seconds of the game; 0 leaves it out."""
    exports: tuple[Format, ...] = ()
    """Formats to export to now, each checked as `export` does."""
    private: bool = False
    """A repository made here is private. One that is there already and public is refused."""
    message: str | None = None
    """Of the commit."""
    license: str | None = None
    """Of the policy, as the hub writes it: mit, apache-2.0, cc-by-4.0 ..."""


@dataclass(frozen=True)
class Pushed:
    """Files that were written, and where they are."""

    folder: Path | None
    """None where no folder was asked for and the hub has it all."""
    url: str | None
    """Of the repository; None of a dry run."""
    files: tuple[str, ...]
    """Paths in the folder, and in the repository."""
    scores: tuple[Score, ...]


@usual_torch()
@checked_arguments
def push(
    policy: str | os.PathLike[str] | SavedPolicy | MultiTaskPolicy,
    repo: str,
    config: PushConfig | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    files: Sequence[str | os.PathLike[str]] = (),
    dry_run: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Pushed:
    """Writes a policy as a folder of the hub's layout, with a model card, and uploads it as one commit.

    The token is the one of `hf auth login` or of `HF_TOKEN`, the place that of `HF_ENDPOINT` or the hub itself.

    Args:
        policy: a policy or run folder, `hf://owner/name`, or a loaded policy.
        repo: `owner/name`; made if it is not there.
        config: see `PushConfig`.
        out: folder to write; without it one is made aside, which goes when the hub has it.
        files: exports of this policy that were made before.
        dry_run: only write `out`.
        force: replace a folder that push wrote before, and put the policy over a model of another tool.
        progress: notified of each step.

    Raises:
        UserError: a wrong configuration, a policy of another tool, files that are no exports of this policy, a missing
            package (the message names the extra), no token, no network, or a hub that refuses. Once the folder is written
            it stays, and the message names it.
    """
    check_boolean("dry_run", dry_run)
    check_boolean("force", force)
    config, progress = config or PushConfig(), progress or Silent()
    _check(config)
    check_repo(repo)
    if dry_run and out is None:
        raise UserError("--dry-run needs --out: the folder to write")
    target = target_folder(Path(out), _is_export, force=force) if out is not None else None
    source = _source(policy, config)
    checked = _check_exports(source, [Path(file) for file in files])
    scores = _given_scores(config.scores, source) if config.scores is not None else None
    settings, curve = run_files(policy, source)
    if not dry_run:
        check_hub(repo, private=config.private, force=force)
    contents = _Publication(repo, source, settings, curve, checked, scores, *_teachers(source, settings, config))

    kept = target if target is not None else temporary_folder() / repo.split("/")[1]
    try:
        replaceable = (lambda there: check_own(there, kept, _is_export)) if force else None
        with new_folder(kept, replaceable=replaceable) as folder:
            table = _fill(folder, contents, config, progress)
        written = tuple(sorted(str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file()))
        if dry_run:
            return Pushed(kept, None, written, tuple(table))
        tasks = [source.task] if isinstance(source, SavedPolicy) else source.tasks.values()
        games = " and ".join(task.env for task in tasks)
        message = config.message or f"{source.name} for {games}, by rldistill {rldistill.__version__}"
        url = upload(kept, repo, private=config.private, message=message, progress=progress)
    except BaseException as error:
        # A folder that is written outlives a hub that refuses it; the message of `upload` names it.
        if target is None and (isinstance(error, KeyboardInterrupt) or not kept.is_dir()):
            shutil.rmtree(kept.parent, ignore_errors=True)
        raise
    if target is None:
        shutil.rmtree(kept.parent, ignore_errors=True)
    return Pushed(target, url, written, tuple(table))


def _source(
    policy: str | os.PathLike[str] | SavedPolicy | MultiTaskPolicy, config: PushConfig
) -> SavedPolicy | MultiTaskPolicy:
    """The policy, with all its heads."""
    whole = load_several(policy)
    if whole is not None or isinstance(policy, MultiTaskPolicy):
        assert whole is not None
        return whole
    own = load_own(policy, verb="push")
    if own.path is None and not isinstance(policy, SavedPolicy):
        raise UserError(f"{os.fspath(policy)} is one head of a policy: make it a folder with split, and push that")
    confirm(config.env, own.task)
    return own


class _Publication(NamedTuple):
    """What a folder is written from, checked before anything is played."""

    repo: str
    source: SavedPolicy | MultiTaskPolicy
    settings: Mapping[str, Any]
    """The configuration of the run, empty where there is none."""
    curve: bytes
    exports: Sequence[tuple[Path, str, Note]]
    """Made before; as `_check_exports` gives them."""
    scores: Scores | None
    """Made before, this policy's among them."""
    teachers: Sequence[str | None]
    """Of each task the teacher's name in the scores."""
    taught: bool
    """Whether the policy was distilled from them."""


def _teachers(
    source: SavedPolicy | MultiTaskPolicy, settings: Mapping[str, Any], config: PushConfig
) -> tuple[list[str | None], bool]:
    """Of each task the teacher's name, and whether the policy was distilled from them.

    Raises:
        UserError: one teacher is named for several tasks.
    """
    recorded = settings.get("teacher") or source.provenance.get("teacher")
    if isinstance(source, MultiTaskPolicy):
        if config.teacher not in (None, "none"):
            raise UserError("--teacher names one teacher, and this policy has several tasks: leave it out, or none")
        taught = isinstance(recorded, list) and len(recorded) == len(source.tasks)
        places = recorded if taught and isinstance(recorded, list) else [None] * len(source.tasks)
        return [name_of(place) if isinstance(place, str) else None for place in places], taught
    taught = isinstance(recorded, str)  # else `--teacher` names a policy to compare with, and no origin
    chosen = config.teacher if config.teacher not in (None, "none") else recorded if taught else None
    return [None if chosen is None else name_of(chosen)], taught


def _fill(folder: Path, contents: _Publication, config: PushConfig, progress: Progress) -> list[Score]:
    """Writes all files of a folder; gives the scores."""
    repo, source, settings = contents.repo, contents.source, contents.settings
    for name in POLICY_FILES:
        replace_file(folder / name, policy_bytes(source, name))
    if settings:
        replace_file(folder / "config.json", dumps(settings, indent=2).encode() + b"\n")
    if contents.curve:
        replace_file(folder / "curve.csv", contents.curve)
    shipped = _exports(source, contents.exports, folder / "exports", config, progress)
    scores = contents.scores or _played(source, contents.teachers, settings, config, progress)
    scores, own = _published(scores, source, repo)
    write_scores(folder / "scores.json", scores)
    replay = _replay(source, folder, config, progress)
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    teachers = [name for name in contents.teachers if name is not None] if contents.taught else []
    facts = CardFacts(repo, source, scores, own, teachers, shipped, names, replay, config.license)
    replace_file(folder / "README.md", card(facts).encode(errors="backslashreplace"))
    warn_of_paths(folder, progress)
    return scores


def _published(scores: Scores, source: SavedPolicy | MultiTaskPolicy, repo: str) -> tuple[Scores, list[int]]:
    """The scores with the policy's rows under the repository's name, because a folder of this machine is nobody else's; and
    the places of those that count, of each task the first where it was played from several starts."""
    names = {sha256(view.weights()).hexdigest(): f"{repo}#{name}" if name else repo for name, view in _heads(source)}
    places = {
        (score.weights_sha256, str(score.starts)): place
        for place, score in enumerate(scores)
        if score.weights_sha256 in names
    }
    rows = [
        replace(score, policy=names[score.weights_sha256]) if place in places.values() else score
        for place, score in enumerate(scores)
    ]
    first = {weights: place for (weights, _), place in reversed(places.items())}
    return Scores(rows, (mean._replace(policy=repo) for mean in scores.across_tasks)), sorted(first.values())


def _heads(source: SavedPolicy | MultiTaskPolicy) -> list[tuple[str, SavedPolicy]]:
    """The policy of each task by its name; that of the only task has none."""
    if isinstance(source, SavedPolicy):
        return [("", source)]
    return [(name, source.view(name)) for name in source.tasks]


def _check(config: PushConfig) -> None:
    within = {"seconds": (0, 600), "num_envs": (1, MOST_ENVIRONMENTS)}
    check_numbers(config, least={"episodes": 1, "seed": 0}, shares=["epsilon"], within=within)
    if config.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]{0,40}", config.license):
        raise UserError(f"--license is a name of the hub's list, such as mit or apache-2.0, not {config.license!r}")


def _given_scores(path: Path, source: SavedPolicy | MultiTaskPolicy) -> Scores:
    """The scores in a file, those of the policy among them."""
    scores = read_scores(path)
    there = {score.weights_sha256 for score in scores}
    if any(sha256(view.weights()).hexdigest() not in there for _, view in _heads(source)):
        raise UserError(f"{path} has no scores of this policy (by the checksum of its weights): evaluate it anew")
    return scores


def _played(
    source: SavedPolicy | MultiTaskPolicy,
    names: Sequence[str | None],
    settings: Mapping[str, Any],
    config: PushConfig,
    progress: Progress,
) -> Scores:
    """Scores of games played now: of each task the teacher's first, if it is there, and the policy's last."""
    options = TeacherOptions.from_dict(settings.get("teacher_options", {}))
    teachers: list[NamedPolicy] = []
    for name, (_, own) in zip(names, _heads(source), strict=True):
        teacher = teacher_beside(name, like=own.task, chosen=config.teacher, options=options, say=progress.say)
        if teacher is None:
            continue
        if unlike(teacher.task, own.task) is None:  # the student's environment is played by both
            teachers.append(NamedPolicy(name or name_of(teacher), replace(teacher, task=own.task), own.task.env))
        else:
            progress.say("the teacher plays another environment than the policy: the table goes without it")
    games = Conditions(config.episodes, config.epsilon, config.seed, config.num_envs)
    if isinstance(source, MultiTaskPolicy):
        return score_tasks([*teachers, *named_heads(source, source)], None, games, progress)
    return Scores(score([*teachers, named(source)], source.task, games, progress))


def _exports(
    source: SavedPolicy | MultiTaskPolicy,
    checked: Sequence[tuple[Path, str, Note]],
    folder: Path,
    config: PushConfig,
    progress: Progress,
) -> list[Shipped]:
    if not (config.exports or checked):
        return []
    folder.mkdir()
    alone = config.num_envs == 1
    made = _make_exports(source, config.exports, folder, config.seed, progress, alone=alone)
    if isinstance(source, MultiTaskPolicy):
        return made
    return made + _copy_exports(source, checked, folder, config.seed, progress, alone=alone)


def _replay(source: SavedPolicy | MultiTaskPolicy, folder: Path, config: PushConfig, progress: Progress) -> str | None:
    """The hub's page shows a `replay.mp4` by itself; without the package that writes it there is a GIF for the card."""
    if not config.seconds:
        return None
    heads = [named(view) for _, view in _heads(source)]
    for head in heads:
        reason = undrawable(head.policy.task)
        if reason is not None:
            progress.say(f"there is no replay: {head.env} cannot be drawn here ({reason})")
            return None
    name = "replay.mp4"
    try:
        check_packages("av", extra="video", what="a replay.mp4, which the hub shows,")
    except UserError as missing:
        name = "replay.gif"
        progress.say(f"{missing}; this one is a GIF")
    steps = math.ceil(config.seconds * decisions_per_second(heads[0].policy.task) / len(heads))
    film = WatchConfig(episodes=steps, max_steps=steps, epsilon=config.epsilon, seed=config.seed)
    play_drawn([([head], head.policy.task) for head in heads], film, folder / name, progress=progress)
    return name


def _make_exports(
    policy: SavedPolicy | MultiTaskPolicy,
    formats: Sequence[Format],
    folder: Path,
    seed: int,
    progress: Progress,
    *,
    alone: bool = False,
) -> list[Shipped]:
    """Exports a policy to each format, as `export` does with its own defaults; `alone` plays in one environment at a time.

    Raises:
        UserError: as `export`.
    """
    shipped, config = [], ExportConfig(seed=seed, teacher="none")
    config = replace(config, num_envs=1) if alone else config
    games = Conditions(config.episodes, config.epsilon, config.seed, config.num_envs)

    def play(players: Sequence[KeptPolicy]) -> list[Score]:
        return score_loaded(players, games, progress)

    for format in dict.fromkeys(formats):
        # An unknown format has no name here: `output_files` refuses it.
        files = output_files(folder / NAMES.get(format, "policy"), format, config, force=False)
        if isinstance(policy, MultiTaskPolicy):
            done = make_heads_export(policy, files, format, config, play, force=False, report=None, progress=progress)
        else:
            done = make_export(policy, files, format, config, Checks(load_policy, play), progress=progress)
        file = done.files[0]
        shipped.append(Shipped(file.name, format, file.stat().st_size, done.compared.agreement, done.compared.states))
    return shipped


def _check_exports(policy: SavedPolicy | MultiTaskPolicy, files: Sequence[Path]) -> list[tuple[Path, str, Note]]:
    """Each file's kind and description, checked before anything is played.

    Raises:
        UserError: one is not there, no export, an export of another policy, or of the name of another one.
    """
    if files and isinstance(policy, MultiTaskPolicy):
        raise UserError("--with takes exports of a policy of one task: of several, --exports makes those of all heads")
    checked: list[tuple[Path, str, Note]] = []
    names: set[str] = set()
    for file in files:
        if file.suffix == ".h":
            raise UserError(f"{file} is a header: name the C file, its header comes along")
        if not file.is_file():
            raise UserError(f"no file at {file}")
        kind = kind_of(file)
        note = note_in(kind, file)
        if note is None:
            raise UserError(f"{file} was not written by rldistill export: --with takes exports of the policy")
        if note.facts.get("policy_sha256") != policy.sha256:
            raise UserError(f"{file} is an export of another policy: export this one (or leave the file out)")
        if note.contents is not None:
            header = file.with_name(str(note.contents.description["header"]))
            if header.name != file.with_suffix(".h").name or _text(header) != render(note.contents)[1]:
                raise UserError(
                    f"{file} is without its header {header.name} as export wrote it: export the policy to C anew"
                )
            names.add(header.name)
        if file.name in names:
            raise UserError(f"two exports are called {file.name}: rename one")
        names.add(file.name)
        checked.append((file, kind, note))
    return checked


def _is_export(file: Path) -> bool:
    """Whether `export` wrote a file, a C file's header among them."""
    if file.is_symlink() or not file.is_file():
        return False
    if file.suffix == ".h":
        file = file.with_suffix(".c")
    try:
        return holds_heads(file) or note_in(kind_of(file), file) is not None
    except UserError:
        return False


def _copy_exports(
    policy: SavedPolicy,
    checked: Sequence[tuple[Path, str, Note]],
    folder: Path,
    seed: int,
    progress: Progress,
    *,
    alone: bool = False,
) -> list[Shipped]:
    """Copies what `_check_exports` gave, and compares the copies with the policy.

    What a file says of itself can be wrong, so that each is asked for its actions on `STATES` states too; `alone`
    plays for them in one environment.

    Raises:
        UserError: a file that cannot be loaded, that plays otherwise, or whose name is taken by an export made now.
    """
    shipped = []
    for file, kind, note in checked:
        target = folder / file.name
        if target.exists():
            raise UserError(f"--exports makes a {file.name} already: rename {file}, or leave one out")
        replace_file(target, read_regular(file))
        if note.contents is not None:
            replace_file(target.with_suffix(".h"), read_regular(file.with_suffix(".h")))
        made = load_policy(target)
        compared = compare(
            policy, made, played_states(policy, STATES, seed, num_envs=1 if alone else ROWS), STATES, progress
        )
        refuse_beyond(LEAST, compared, file.name)
        shipped.append(Shipped(file.name, kind, target.stat().st_size, compared.agreement, compared.states))
    return shipped


def _text(path: Path) -> str | None:
    return read_regular(path).decode("ascii", "replace") if path.is_file() else None
