"""The verb `push`: a policy with its model card, scores, replay and exports as a repository of the Hugging Face hub."""

from __future__ import annotations

import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from json import dumps
from pathlib import Path
from typing import Any

import rldistill
from rldistill.arguments import checked_arguments
from rldistill.documents import read_json
from rldistill.files import read_regular, replace_file
from rldistill.formats.hub.download import PREFIX, read_card
from rldistill.formats.hub.upload import check_hub, check_repo, upload
from rldistill.holding import new_folder
from rldistill.machine import check_packages, usual_torch
from rldistill.play.envs import confirm, decisions_per_second, unlike
from rldistill.policies import SavedPolicy, name_of
from rldistill.progress import Progress, Silent
from rldistill.runs.folder import curve_csv, read_metrics
from rldistill.runs.scores import Score, read_scores, write_scores
from rldistill.teachers import TeacherOptions, load_own, teacher_beside
from rldistill.types import Task, UserError, check_boolean, check_numbers
from rldistill.verbs.evaluate import EvaluateConfig, evaluate
from rldistill.verbs.export import Format
from rldistill.verbs.push.card import Told, card
from rldistill.verbs.push.exports import Shipped, check_exports, copy_exports, is_export, make_exports
from rldistill.verbs.spectator import undrawable
from rldistill.verbs.watch import WatchConfig, watch

_POLICY = ("policy.json", "weights.safetensors")
_FOLDER = {"README.md", *_POLICY, "config.json", "scores.json", "curve.csv", "replay.gif", "replay.mp4", "exports"}
"""All that push writes. A folder with anything else in it is not replaced."""


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
    """What was written, and where it is."""

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
    policy: str | os.PathLike[str] | SavedPolicy,
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
        progress: told how it goes.

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
    target = _target(Path(out), force=force) if out is not None else None
    source = load_own(policy, verb="push")
    confirm(config.env, source.task)
    checked = check_exports(source, [Path(file) for file in files])
    known = _scored(config.scores, source) if config.scores is not None else None
    settings, curve = _of_run(policy, source)
    if not dry_run:
        check_hub(repo, private=config.private, force=force)
    recorded = settings.get("teacher") or source.provenance.get("teacher")
    taught = isinstance(recorded, str)  # else `--teacher` names a policy to compare with, and no origin
    chosen = config.teacher if config.teacher not in (None, "none") else recorded if taught else None
    named = None if chosen is None else name_of(chosen)  # as its scores have it

    kept = target if target is not None else _temporary() / repo.split("/")[1]
    try:
        with new_folder(kept, replaceable=(lambda there: _check_own(there, kept)) if force else None) as folder:
            for name in _POLICY:
                replace_file(folder / name, _bytes_of(source, name))
            for name, data in (
                ("config.json", dumps(settings, indent=2).encode() + b"\n" if settings else b""),
                ("curve.csv", curve),
            ):
                if data:
                    replace_file(folder / name, data)
            shipped = _exports(source, checked, folder / "exports", config, progress)
            scores, own = known or _played(source, named, settings, config, progress)
            scores[own] = replace(scores[own], policy=repo)  # a folder of this machine is nobody else's
            write_scores(folder / "scores.json", scores)
            replay = _replay(source, folder, config, progress)
            names = sorted(path.name for path in folder.iterdir() if path.is_file())
            told = Told(repo, source, scores, own, named if taught else None, shipped, names, replay, config.license)
            replace_file(folder / "README.md", card(told).encode(errors="backslashreplace"))
            _warn_of_paths(folder, progress)
        written = tuple(sorted(str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file()))
    except BaseException:
        if target is None:
            shutil.rmtree(kept.parent, ignore_errors=True)
        raise
    if dry_run:
        return Pushed(kept, None, written, tuple(scores))
    message = config.message or f"{source.name} for {source.task.env}, by rldistill {rldistill.__version__}"
    try:
        url = upload(kept, repo, private=config.private, message=message, progress=progress)
    except KeyboardInterrupt:
        if target is None:
            shutil.rmtree(kept.parent, ignore_errors=True)
        raise
    if target is None:
        shutil.rmtree(kept.parent, ignore_errors=True)
    return Pushed(target, url, written, tuple(scores))


def _check(config: PushConfig) -> None:
    least = {"episodes": 1, "num_envs": 1, "seed": 0}
    check_numbers(config, least=least, shares=["epsilon"], within={"seconds": (0, 600)})
    if config.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]{0,40}", config.license):
        raise UserError(f"--license is a name of the hub's list, such as mit or apache-2.0, not {config.license!r}")


def _target(path: Path, *, force: bool) -> Path:
    """The folder, if it may be written: told before anything is played, not after."""
    if path.name in ("", ".."):  # has no name to write beside
        path = path.resolve()
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: there is no folder {path.parent}")
    if not path.exists():
        return path
    if not path.is_dir():
        raise UserError(f"{path} is a file: name a folder with --out")
    if not force:
        raise UserError(f"{path} exists: replace it with --force, or choose another --out")
    _check_own(path, path)
    return path


def _check_own(folder: Path, path: Path) -> None:
    """Raises UserError where a folder, which the user knows as `path`, holds anything that push did not write."""
    alien = sorted(entry.name for entry in folder.iterdir() if entry.name not in _FOLDER or _is_alien(entry))
    exports = folder / "exports"
    if not alien and exports.is_dir():
        alien = [f"exports/{entry.name}" for entry in sorted(exports.iterdir()) if not is_export(entry)]
    if alien or read_card(folder).tool != "rldistill":
        raise UserError(
            f"{path} is no folder that push wrote ({f'it holds {alien[0]}' if alien else 'it has no card of rldistill'}): "
            "choose another --out"
        )


def _is_alien(entry: Path) -> bool:
    """Whether it is no plain file or folder, as push writes it."""
    return entry.is_symlink() or not (entry.is_dir() if entry.name == "exports" else entry.is_file())


def _temporary() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="rldistill-push-"))
    except OSError as error:
        raise UserError(f"no place for a temporary folder ({error.strerror}): name one with --out") from None


def _of_run(policy: str | os.PathLike[str] | SavedPolicy, source: SavedPolicy) -> tuple[dict[str, Any], bytes]:
    """The configuration of the run that a policy lies in, and its learning curve; empty where there is none."""
    if source.path is None:
        return {}, b""
    beside = source.path / "curve.csv"
    curve = read_regular(beside) if beside.is_file() else b""
    if isinstance(policy, SavedPolicy):
        return {}, curve
    named = os.fspath(policy)
    folder = source.path if named.startswith(PREFIX) else Path(named)
    settings = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if not curve and (folder / "metrics.jsonl").is_file():
        played = [
            record
            for record in read_metrics(folder)
            if record.get("event") == "evaluation" and isinstance(record.get("returns"), list) and record["returns"]
        ]
        if len({record.get("control_steps") for record in played}) > 1:  # a dataset is read without a step
            curve = curve_csv(played, games=len(played[0]["returns"]))
    return settings, curve


def _bytes_of(source: SavedPolicy, name: str) -> bytes:
    if source.path is None:
        raise UserError("this policy was never saved: write it with save_policy, and push its folder")
    return read_regular(source.path / name)


def _scored(path: Path, source: SavedPolicy) -> tuple[list[Score], int]:
    """The scores in a file, and which of them is the policy's."""
    scores = read_scores(path)
    weights = sha256(source.weights()).hexdigest()
    own = [number for number, score in enumerate(scores) if score.weights_sha256 == weights]
    if not own:
        raise UserError(f"{path} has no scores of this policy (told by the checksum of its weights): evaluate it anew")
    for score in scores:
        Task.from_dict(score.task)
    return scores, own[-1]


def _played(
    source: SavedPolicy, named: str | None, settings: Mapping[str, Any], config: PushConfig, progress: Progress
) -> tuple[list[Score], int]:
    """Scores of now: the teacher's first, if it is there, and the policy's last."""
    options = TeacherOptions.from_dict(settings.get("teacher_options", {}))
    teacher = teacher_beside(named, like=source.task, chosen=config.teacher, options=options, say=progress.say)
    if teacher is not None:
        if unlike(teacher.task, source.task) is None:
            teacher = replace(teacher, task=source.task)  # the student's environment is played by both
        else:
            progress.say("the teacher plays another environment than the policy: the table goes without it")
            teacher = None
    games = EvaluateConfig(config.episodes, config.epsilon, config.seed, config.num_envs)
    scores = evaluate([teacher, source] if teacher is not None else [source], games, progress=progress)
    if teacher is not None and named is not None:
        scores[0] = replace(scores[0], policy=named)
    return scores, len(scores) - 1


def _exports(
    source: SavedPolicy, checked: Sequence[Any], folder: Path, config: PushConfig, progress: Progress
) -> list[Shipped]:
    if not (config.exports or checked):
        return []
    folder.mkdir()
    alone = config.num_envs == 1
    made = make_exports(source, config.exports, folder, config.seed, progress, alone=alone)
    return made + copy_exports(source, checked, folder, config.seed, progress, alone=alone)


def _replay(source: SavedPolicy, folder: Path, config: PushConfig, progress: Progress) -> str | None:
    """The hub's page shows a `replay.mp4` by itself; without the package that writes it there is a GIF for the card."""
    if not config.seconds:
        return None
    reason = undrawable(source.task)
    if reason is not None:
        progress.say(f"there is no replay: {source.task.env} cannot be drawn here ({reason})")
        return None
    name = "replay.mp4"
    try:
        check_packages("av", extra="video", what="a replay.mp4, which the hub shows,")
    except UserError as missing:
        name = "replay.gif"
        progress.say(f"{missing}; this one is a GIF")
    steps = math.ceil(config.seconds * decisions_per_second(source.task))
    shown = WatchConfig(episodes=steps, max_steps=steps, epsilon=config.epsilon, seed=config.seed)
    watch(source, shown, out=folder / name, progress=progress)
    return name


def _warn_of_paths(folder: Path, progress: Progress) -> None:
    """Commands and configurations name folders, and a home folder names a person."""
    found: set[str] = set()
    where = []
    for name in ("policy.json", "config.json", "scores.json"):
        text = read_regular(folder / name).decode(errors="replace") if (folder / name).is_file() else ""
        paths = set(re.findall(r"(?<![\w.:/~-])(?:~/|/)(?:[\w.+-]+/)+[\w.+-]*", text))
        where += [name] if paths else []
        found |= paths
    if found:
        shown = ", ".join(sorted(found)[:3]) + (" ..." if len(found) > 3 else "")
        progress.say(
            f"note: folders of this machine stand in {' and '.join(where)}, for all who see the model: {shown}"
        )
