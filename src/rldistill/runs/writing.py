"""The run folder as the process that works on it sees it: held, logged to, and saved in."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from io import RawIOBase
from pathlib import Path
from typing import Any, TypeVar

from rldistill.files import load_state, replace_file, save_state, sweep
from rldistill.holding import held_file
from rldistill.play.envs import EnvironmentFailed
from rldistill.play.replay import FILES
from rldistill.runs.folder import RunFolder, with_defaults
from rldistill.runs.provenance import made_by
from rldistill.runs.records import Evaluation, FinalScore, Record, Train, written
from rldistill.types import UserError

Result = TypeVar("Result")

ENVIRONMENT_ERROR = "environment-error.txt"
"""File of a run folder: the traceback of an environment's last failure."""
CHECKPOINT_FORMAT = 4
"""One more whenever something in a checkpoint gets another name or meaning, so that an older version refuses it in one line."""
READABLE_FORMATS = (3, 4)
"""Of checkpoints. In 3 a distillation has the state of its one `update`, in 4 that of its `fitting` with several lessons."""

MAY_CHANGE = frozenset(
    {
        "final_episodes",
        "evaluate_episodes",
        "evaluate_every",
        "evaluate_epsilon",
        "snapshots",
        "checkpoint_seconds",
        "tensorboard",
    }
)
"""Options that change no weights, so that a run may be resumed with other ones: games played for scores, and what is kept."""
_IN_CHECKPOINT = re.compile(rf"lock|state|{FILES}|\.state\.([0-9a-f]{{8}}|[0-9]{{1,7}})\.tmp")
"""All that runs put into `checkpoint/`: nothing else in it is ever removed."""
_EVENTS = "events.out.tfevents.*"
"""What TensorBoard writes, the same for `tensorboard/`."""


class Run:
    """A run folder, held by this process alone.

    `config.json` is complete and resolved; `metrics.jsonl` has a line an event; `checkpoint/state` is replaced as a
    whole; `policy/` is there when the run is finished.

    Args:
        out: the folder.
        config: the resolved configuration, plain JSON data.
        defaults: of the options, for those that an older folder lacks.
        removed: options that older folders have and this version has not, with the values that change nothing.
        resume: go on where the run in the folder stands, if there is one.
        tensorboard: also write what is logged as TensorBoard events, to `tensorboard/`.

    Raises:
        UserError: the folder exists and `resume` is not set, it is no run folder, its configuration is another one in what
            `MAY_CHANGE` does not list (the message names the field), or another process works on it.
    """

    def __init__(
        self,
        out: Path,
        config: Mapping[str, Any],
        *,
        resume: bool,
        defaults: Mapping[str, Any] | None = None,
        removed: Mapping[str, Sequence[Any]] | None = None,
        tensorboard: bool = False,
    ) -> None:
        if tensorboard:
            _summary_writer()  # where it is missing no folder is made
        config, defaults, removed = (json.loads(json.dumps(part or {})) for part in (config, defaults, removed))
        self.folder = RunFolder(out)
        self.path, self.policy_path, self._state_path = out, self.folder.policy_path, self.folder.state_path
        self.remarks: list[str] = []
        """What the user should know of the state that the folder is in."""
        self._check_place(resume)
        self._is_changed(config, defaults, removed)
        self._fresh = False
        with ExitStack() as held:
            self._hold(held, resume)
            held.callback(lambda: self._leave_no_trace() if self._fresh else None)
            # Once more: another process may have begun a run meanwhile.
            changed = self._is_changed(config, defaults, removed)
            for name in ("config.json", "checkpoint/state"):
                sweep(out / name, held=True)
            self.state = self._last_checkpoint()
            """The last checkpoint, None at the beginning."""
            if not self.folder.exists or (changed and not self.folder.scored):
                replace_file(self.folder.config_path, json.dumps(config, indent=2).encode() + b"\n")
            self._metrics = self._opened_metrics()
            self._events = Events(out / "tensorboard", self.folder.records()[0]) if tensorboard else NoEvents()
            held.pop_all()

    def _check_place(self, resume: bool) -> None:
        out = self.path
        if out.is_symlink() and not out.exists():
            raise UserError(f"{out} is a link to nothing: remove it, or choose another --out")
        if out.exists() and not self.folder.exists:
            alien = self._aliens()
            if alien:
                holds = f"; it holds {alien[0]}" if alien[0] else ""
                raise UserError(f"{out} is no run folder (it has no config.json{holds}): choose another --out")
        if out.exists() and not resume:
            raise UserError(f"{out} exists: continue it with --resume, or choose another --out")

    def _aliens(self) -> list[str]:
        """What lies in a folder without config.json and is of no run.

        A run that was killed so early leaves a checkpoint folder without a state, and perhaps half a file.
        """
        if not self.path.is_dir():
            return [""]
        names = [
            path.name
            for path in self.path.iterdir()
            if path.name != "checkpoint" and not re.fullmatch(r"\.config\.json\.\w+\.tmp", path.name)
        ]
        checkpoint = self.path / "checkpoint"
        if not names and checkpoint.exists():
            names = [
                f"checkpoint/{path.name}"
                for path in (checkpoint.iterdir() if checkpoint.is_dir() else ())
                if path.name == "state" or not _IN_CHECKPOINT.fullmatch(path.name)
            ]
        return sorted(names)

    def _is_changed(
        self, config: Mapping[str, Any], defaults: Mapping[str, Any], removed: Mapping[str, Sequence[Any]]
    ) -> bool:
        """Whether options differ that may; False where there is no run yet."""
        if not self.folder.exists:
            return False
        changed = differences(self.folder.config(), config, defaults, removed)
        for name, (before, now) in changed.items():
            if name not in MAY_CHANGE:
                raise UserError(
                    f"{self.path} was begun with {name} = {json.dumps(before)}, not {json.dumps(now)}: resume with the same "
                    "configuration, or choose another --out"
                )
        return bool(changed)

    def _hold(self, held: ExitStack, resume: bool) -> None:
        """Makes the folder where there is none, and a lock file in it that this process alone holds until `close`."""
        exists = UserError(f"{self.path} exists: continue it with --resume, or choose another --out")
        made = False
        try:
            self.path.mkdir(parents=True)
            made = True
        except FileExistsError:
            if not resume:
                raise exists from None
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {error.strerror}") from None
        checkpoint = self.path / "checkpoint"
        try:
            checkpoint.mkdir(exist_ok=True)
            self._lock = held.enter_context(ExitStack())
            self._lock.enter_context(held_file(checkpoint / "lock", self.path))
        except OSError as error:
            for folder in (checkpoint, self.path) if made else ():
                with suppress(OSError):
                    folder.rmdir()
            raise UserError(f"cannot write to {self.path}: {error.strerror}") from None
        # Between making the folder and holding it another process may have come and gone.
        self._fresh = made and not (self.path / "config.json").exists()
        if not resume and not self._fresh:
            raise exists

    def _last_checkpoint(self) -> dict[str, Any] | None:
        if not self._state_path.exists():
            return None
        state = load_state(self._state_path)
        if state.get("format") not in READABLE_FORMATS:
            before = state.get("made_by", made_by())
            version = before if before != made_by() else "another version of rldistill"
            raise UserError(
                f"{self.path} was begun by {version}, whose checkpoints this version does not read: finish it with that one, or "
                "start anew with another --out"
            )
        return state

    def _opened_metrics(self) -> RawIOBase:
        """`metrics.jsonl`, at the place of the last checkpoint."""
        metrics = self.folder.metrics_path
        if metrics.exists() and not metrics.is_file():
            raise UserError(f"{metrics} is no file: remove it")
        metrics.touch()
        there = metrics.stat().st_size
        if (
            not self.folder.scored and self.state is not None
        ):  # lines written after the checkpoint will be written again
            kept = int(self.state["metrics_bytes"])
            if there < kept:
                self.remarks.append(f"warning: {metrics} has lost lines, so the curve of this run will have a gap")
            os.truncate(metrics, min(kept, there))
        elif not self.folder.finished and there:
            # Killed before its first checkpoint, or somebody took that away: it may be hours of records.
            aside = next(path for n in itertools.count(1) if not (path := self.path / f"metrics.{n}.jsonl").exists())
            metrics.rename(aside)
            self.remarks.append(
                f"{self.path} has no checkpoint: it begins anew, and what it logged before is kept in {aside}"
            )
        return open(metrics, "ab", buffering=0)

    @property
    def scratch(self) -> Path:
        """A folder for large files that a resumed run needs; removed by `clean`."""
        return self.path / "checkpoint"

    def log(self, record: Record) -> None:
        """Adds a line to `metrics.jsonl`.

        Raises:
            UserError: the disk is full; the last checkpoint is untouched.
        """
        line = written(record)
        try:
            while line:  # a disk that is nearly full takes a part of it
                line = line[self._metrics.write(line) :]
        except OSError as error:
            raise self._cannot_go_on("metrics.jsonl", error) from None
        self._events.add(record)

    def checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replaces the checkpoint. A run killed at any moment goes on from the last whole one.

        Raises:
            UserError: the disk is full; the last checkpoint is untouched.
        """
        try:
            os.fsync(self._metrics.fileno())
        except OSError as error:
            raise self._cannot_go_on("metrics.jsonl", error) from None
        try:
            own = {"metrics_bytes": self._metrics.tell(), "format": CHECKPOINT_FORMAT, "made_by": made_by()}
            save_state(self._state_path, {**state, **own})
        except UserError as error:
            raise UserError(f"{error}; go on with --resume") from None

    def _cannot_go_on(self, name: str, error: OSError) -> UserError:
        way = "the last checkpoint is untouched, go on with --resume"
        return UserError(f"cannot write {self.path / name}: {error.strerror}; {way}")

    def clean(self) -> None:
        """Removes what only a resumed run needs. What others have put beside it stays."""
        for lesson in (self.path / "checkpoint").glob(
            "lesson-*"
        ):  # each of several has its replay in a folder of its own
            remove_own(lesson, lambda path: re.fullmatch(FILES, path.name) is not None)
        remove_own(self.path / "checkpoint", lambda path: _IN_CHECKPOINT.fullmatch(path.name) is not None)

    def result(self, load: Callable[[Path], Result], say: Callable[[str], object], *, games: int = 0) -> Result | None:
        """What the run made, if it is there; if nothing of it is missing, its checkpoint goes.

        Args:
            load: reads `policy_path`.
            say: takes the remarks, and a line if the run is finished, only its score is missing, or its policy is damaged
                and made again from the checkpoint.
            games: how many are to be played for its score. With some, the caller adds a missing score.

        Raises:
            UserError: the policy is damaged, and there is no checkpoint any more.
        """
        for remark in self.remarks:
            say(remark)
        if not self.folder.finished:
            return None
        try:
            made = load(self.policy_path)
        except UserError as error:
            if self.state is None:
                raise
            say(f"{error}: made again from the last checkpoint")
            return None
        if games and not self.folder.scored:
            say(f"{self.path} has its policy, {self.policy_path}: its score is missing")
            return made
        say(f"{self.path} is finished already: its policy is {self.policy_path}")
        self.clean()
        return made

    def close(self) -> None:
        """Lets others work on the folder."""
        self._metrics.close()
        self._events.close()
        self._lock.close()

    def _leave_no_trace(self) -> None:
        """Removes a folder that was made here, but for what others have put into it."""
        self.clean()
        remove_own(self.path / "tensorboard", lambda path: path.match(_EVENTS))
        remove_own(self.path, lambda path: path.name in ("config.json", "metrics.jsonl"))

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        """Closes. A folder made here for a command that fails at once goes away with it, so that it can be given again.

        The traceback of an environment that failed is kept in a folder that stays, and named in the error's text.
        """
        empty = not self._state_path.exists() and self._metrics.tell() == 0
        if isinstance(error, Exception) and self._fresh and empty:
            self._events.close()
            self._leave_no_trace()
        elif isinstance(error, EnvironmentFailed):
            error.args = (f"{error}{self._kept(error)}",)
        self.close()

    def _kept(self, error: EnvironmentFailed) -> str:
        """What the user can do after an environment has failed: the end of the message."""
        way = "go on with --resume" if self._state_path.exists() else "begin it anew with --resume"
        if not error.details:
            return f"; {way}"
        try:
            (self.path / ENVIRONMENT_ERROR).write_text(error.details, errors="backslashreplace")
        except OSError:
            return f"; {way}"
        return f"; the traceback is in {self.path / ENVIRONMENT_ERROR}; {way}"


class Events:
    """A run's records as TensorBoard events: a curve a figure, over control steps (over updates where nothing is played).

    Args:
        folder: its events are written anew: earlier processes of the run may have logged beyond its last checkpoint.
        records: of the run so far.

    Raises:
        UserError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, records: Iterable[Record]) -> None:
        remove_own(folder, lambda path: path.match(_EVENTS))
        self._writer = _summary_writer()(str(folder))
        self._step = 0
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        """Adds a point for each number of a record and for the mean of its returns. One without a step has the step of the last."""
        figures = record.as_json()
        self._step = figures.get("control_steps") or figures.get("updates") or self._step
        if isinstance(record, Train | Evaluation | FinalScore) and record.returns:
            figures["return"] = sum(record.returns) / len(record.returns)
        prefix = "/".join(filter(None, [record.event, figures.get("lesson")]))
        for name, value in figures.items():
            if isinstance(value, int | float) and name not in ("control_steps", "updates"):
                self._writer.add_scalar(f"{prefix}/{name}", value, self._step)

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()


class NoEvents:
    """Events of a run without TensorBoard."""

    def add(self, record: Record) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def differences(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    defaults: Mapping[str, Any],
    removed: Mapping[str, Sequence[Any]],
    within: str = "",
) -> dict[str, tuple[Any, Any]]:
    """Options that differ between two configurations, as `group.name`, with both values.

    Args:
        before: of an older run.
        now: of this one.
        defaults: for what `before` lacks and `now` has.
        removed: full names of options that `now` lacks, with the values that change nothing.
        within: name of the group with a dot, for the full names.
    """
    before = with_defaults(before, {name: value for name, value in defaults.items() if name in now})
    differ: dict[str, tuple[Any, Any]] = {}
    for name in {**now, **before}:
        full, one, other, default = f"{within}{name}", before.get(name), now.get(name), defaults.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            differ |= differences(one, other, default if isinstance(default, dict) else {}, removed, f"{full}.")
        elif one != other and not (name not in now and one in removed.get(full, ())):
            differ[full] = (one, other)
    return differ


def older_defaults(
    defaults: Mapping[str, Any], given: Mapping[str, Any], resolved: Mapping[str, Any]
) -> dict[str, Any]:
    """What an older run is taken to have had where its configuration lacks an option.

    That is the option's default. Where the user leaves a default that depends on the rest, it is what follows from it now.
    """
    return {name: resolved.get(name, value) if given.get(name) == value else value for name, value in defaults.items()}


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError:
        raise UserError("TensorBoard is not installed: pip install 'rldistill[tensorboard]'") from None
    return SummaryWriter


def remove_own(folder: Path, own: Callable[[Path], bool]) -> None:
    """Removes the files of a folder that are our own, and the folder if nothing else is in it."""
    if not folder.is_dir():
        return
    for path in list(folder.iterdir()):
        if own(path) and not path.is_dir():
            path.unlink()
    with suppress(OSError):
        folder.rmdir()
