"""The folder that an experiment leaves: its configuration, metrics, checkpoint and what came of it."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from io import RawIOBase
from pathlib import Path
from typing import Any, TypeVar

from rldistill.documents import parse_json, read_json
from rldistill.files import load_state, read_regular, replace_file, save_state, sweep
from rldistill.holding import held_file
from rldistill.play.envs import EnvironmentFailed
from rldistill.play.replay import FILES
from rldistill.stats import figure
from rldistill.types import UserError

Result = TypeVar("Result")

ENVIRONMENT_ERROR = "environment-error.txt"
"""File of a run folder: the traceback of an environment's last failure."""
CHECKPOINT_FORMAT = 3
"""One more whenever something in a checkpoint gets another name or meaning, so that an older one is refused in one line."""

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
_IN_CHECKPOINT = re.compile(rf"lock|state|{'|'.join(FILES)}|\.state\.([0-9a-f]{{8}}|[0-9]{{1,7}})\.tmp")
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
        defaults: of the options, for those that a folder from before them lacks.
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
        tensorboard: bool = False,
    ) -> None:
        if tensorboard:
            _summary_writer()  # told before there is a folder
        config = json.loads(json.dumps(config))
        self.path = out
        self.policy_path = out / "policy"
        self._state_path = out / "checkpoint" / "state"
        self.remarks: list[str] = []
        """What the user should hear of the folder as it was found."""
        self._check_place(resume)
        defaults = json.loads(json.dumps(defaults or {}))
        self._changed(config, defaults)
        self._fresh = False
        with ExitStack() as held:
            self._hold(held, resume)
            held.callback(lambda: self._leave_no_trace() if self._fresh else None)
            changed = self._changed(config, defaults)  # once more: another process may have begun a run meanwhile
            for name in ("config.json", "checkpoint/state"):
                sweep(out / name, held=True)
            self.state = self._last_checkpoint()
            """The last checkpoint, None at the beginning."""
            if not (out / "config.json").is_file() or (changed and not self.scored):
                replace_file(out / "config.json", json.dumps(config, indent=2).encode() + b"\n")
            self._metrics = self._opened_metrics()
            self._events = Events(out / "tensorboard", read_metrics(out)) if tensorboard else NoEvents()
            held.pop_all()

    def _check_place(self, resume: bool) -> None:
        out = self.path
        if out.is_symlink() and not out.exists():
            raise UserError(f"{out} is a link to nothing: remove it, or choose another --out")
        if out.exists() and not (out / "config.json").is_file():
            alien = self._aliens()
            if alien:
                holds = f"; it holds {alien[0]}" if alien[0] else ""
                raise UserError(f"{out} is no run folder (it has no config.json{holds}): choose another --out")
        if out.exists() and not resume:
            raise UserError(f"{out} exists: continue it with --resume, or choose another --out")

    def _aliens(self) -> list[str]:
        """What no run leaves that was killed before its config.json was there: that has a checkpoint folder without a state, and
        perhaps half a file."""
        if not self.path.is_dir():
            return [""]
        found = [
            path.name
            for path in self.path.iterdir()
            if path.name != "checkpoint" and not re.fullmatch(r"\.config\.json\.\w+\.tmp", path.name)
        ]
        checkpoint = self.path / "checkpoint"
        if not found and checkpoint.exists():
            found = [
                f"checkpoint/{path.name}"
                for path in (checkpoint.iterdir() if checkpoint.is_dir() else ())
                if path.name == "state" or not _IN_CHECKPOINT.fullmatch(path.name)
            ]
        return sorted(found)

    def _changed(self, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> bool:
        """Whether options differ that may; False where there is no run yet."""
        if not (self.path / "config.json").is_file():
            return False
        before = _with_defaults(read_json(self.path / "config.json"), config, defaults)
        changed = [name for name in {**config, **before} if before.get(name) != config.get(name)]
        for name in changed:
            if name not in MAY_CHANGE:
                raise UserError(
                    f"{self.path} was begun with {_difference(name, before.get(name), config.get(name))}: resume with the same "
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
        if state.get("format") != CHECKPOINT_FORMAT:
            raise UserError(
                f"{self.path} was begun by another version of rldistill, whose checkpoints this one does not read: finish it with "
                "that one, or start anew with another --out"
            )
        return state

    def _opened_metrics(self) -> RawIOBase:
        """`metrics.jsonl`, at the place of the last checkpoint."""
        metrics = self.path / "metrics.jsonl"
        if metrics.exists() and not metrics.is_file():
            raise UserError(f"{metrics} is no file: remove it")
        metrics.touch()
        there = metrics.stat().st_size
        if not self.scored and self.state is not None:  # lines written after the checkpoint will be written again
            kept = int(self.state["metrics_bytes"])
            if there < kept:
                self.remarks.append(f"warning: {metrics} has lost lines, so the curve of this run will have a gap")
            os.truncate(metrics, min(kept, there))
        elif not self.finished and there:
            # Killed before its first checkpoint, or somebody took that away: hours of records are not thrown away unsaid.
            aside = next(path for n in itertools.count(1) if not (path := self.path / f"metrics.{n}.jsonl").exists())
            metrics.rename(aside)
            self.remarks.append(
                f"{self.path} has no checkpoint: it begins anew, and what it logged before is kept in {aside}"
            )
        return open(metrics, "ab", buffering=0)

    @property
    def finished(self) -> bool:
        """Whether the result is there."""
        return (self.policy_path / "policy.json").is_file()

    @property
    def scored(self) -> bool:
        """Whether the result says how it plays; that is the last thing that a run does."""
        if not self.finished:
            return False
        try:
            made = read_json(self.policy_path / "policy.json").get("provenance")
        except UserError:
            return False  # damaged: `result` says so
        return isinstance(made, dict) and "score" in made

    @property
    def scratch(self) -> Path:
        """A folder for large files that a resumed run needs; removed by `clean`."""
        return self.path / "checkpoint"

    def log(self, **record: Any) -> None:
        """One line of `metrics.jsonl`.

        Raises:
            UserError: the disk is full; the last checkpoint is untouched.
        """
        line = json.dumps(record).encode() + b"\n"
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
            save_state(self._state_path, {**state, "metrics_bytes": self._metrics.tell(), "format": CHECKPOINT_FORMAT})
        except UserError as error:
            raise UserError(f"{error}; go on with --resume") from None

    def _cannot_go_on(self, name: str, error: OSError) -> UserError:
        way = "the last checkpoint is untouched, go on with --resume"
        return UserError(f"cannot write {self.path / name}: {error.strerror}; {way}")

    def clean(self) -> None:
        """Removes what only a resumed run needs. What others have put beside it stays."""
        remove_own(self.path / "checkpoint", lambda path: _IN_CHECKPOINT.fullmatch(path.name) is not None)

    def result(self, load: Callable[[Path], Result], say: Callable[[str], object], *, games: int = 0) -> Result | None:
        """What the run made, if it is there; if nothing of it is missing, its checkpoint goes.

        Args:
            load: reads `policy_path`.
            say: told the remarks, and that the run is finished, that only its score is missing, or that its policy is damaged and
                made again from the checkpoint.
            games: how many are to be played for its score. With some, the caller adds a missing score.

        Raises:
            UserError: the policy is damaged, and there is no checkpoint any more.
        """
        for remark in self.remarks:
            say(remark)
        if not self.finished:
            return None
        try:
            made = load(self.policy_path)
        except UserError as error:
            if self.state is None:
                raise
            say(f"{error}: made again from the last checkpoint")
            return None
        if games and not self.scored:
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
    """A run's metrics as TensorBoard events: a curve a figure, over control steps (over updates where nothing is played).

    Args:
        folder: its events are written anew: earlier processes of the run may have logged beyond its last checkpoint.
        records: of the run so far.

    Raises:
        UserError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, records: Iterable[Mapping[str, Any]]) -> None:
        remove_own(folder, lambda path: path.match(_EVENTS))
        self._writer = _summary_writer()(str(folder))
        self._step = 0
        for record in records:
            self.add(record)

    def add(self, record: Mapping[str, Any]) -> None:
        """One curve's point for each number in a record, and the mean of its `returns`; what tells no step has the last one."""
        self._step = record.get("control_steps") or record.get("updates") or self._step
        figures = dict(record)
        if figures.get("returns"):
            figures["return"] = sum(figures["returns"]) / len(figures["returns"])
        for name, value in figures.items():
            if isinstance(value, int | float) and name not in ("control_steps", "updates"):
                self._writer.add_scalar(f"{record.get('event', 'train')}/{name}", value, self._step)

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()


class NoEvents:
    """For a run that nobody watches in TensorBoard."""

    def add(self, record: Mapping[str, Any]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def _with_defaults(before: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration, with the defaults of what it lacks and the one of now has, inside fields too."""
    filled = {**{name: defaults[name] for name in now if name in defaults}, **before}
    for name, inner in defaults.items():
        parts = filled.get(name), now.get(name), inner
        if all(isinstance(part, Mapping) for part in parts):
            filled[name] = _with_defaults(*parts)  # type: ignore[arg-type]  # all are mappings
    return filled


def _difference(name: str, before: Any, now: Any) -> str:
    """The first field that differs, inside fields too."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for inner in [*now, *before]:
            if before.get(inner) != now.get(inner):
                return _difference(f"{name}.{inner}", before.get(inner), now.get(inner))
    return f"{name} = {json.dumps(before)}, not {json.dumps(now)}"


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError:
        raise UserError("TensorBoard is not installed: pip install 'rldistill[tensorboard]'") from None
    return SummaryWriter


def begun_with(out: Path) -> dict[str, Any]:
    """The configuration of the run in a folder; empty where there is none."""
    return read_json(out / "config.json") if (out / "config.json").is_file() else {}


def remove_own(folder: Path, own: Callable[[Path], bool]) -> None:
    """Removes the files of a folder that are our own, and the folder if nothing else is in it."""
    if not folder.is_dir():
        return
    for path in list(folder.iterdir()):
        if own(path) and not path.is_dir():
            path.unlink()
    with suppress(OSError):
        folder.rmdir()


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """The records of a run's `metrics.jsonl`; a last line cut off by a kill is left out."""
    records = []
    for line in read_regular(out / "metrics.jsonl").decode(errors="replace").splitlines():
        try:
            record = parse_json(line, "metrics.jsonl")
        except UserError:  # cut off, or of a stranger
            break
        if isinstance(record, dict):  # the file may be a stranger's
            records.append({name: value for name, value in record.items() if _is_figure(name, value)})
    return records


def _is_figure(name: str, value: Any) -> bool:
    """Whether a field of a record is of its kind: `event` a text, some a list of numbers, any other a number."""
    if name == "event":
        return isinstance(value, str)
    if name in ("returns", "shift", "scale"):
        return isinstance(value, list) and all(_is_number(item) for item in value)
    return value is None or _is_number(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def curve_csv(records: Iterable[Mapping[str, Any]], *, points: int = 200, games: int = 100) -> bytes:
    """A learning curve: the columns `control_steps` and `mean_return`, the mean of the last `games` games ended by then.

    Args:
        records: of `read_metrics`; those without `control_steps` and `returns` are passed over.
        points: at most so many rows, evenly spaced; the last record is always there.
        games: how many, with exploration as it was then.
    """
    recent: deque[float] = deque(maxlen=games)
    curve = []
    for record in records:
        if "control_steps" in record and "returns" in record:
            recent.extend(record["returns"])
            if recent:
                curve.append(f"{record['control_steps']},{figure(sum(recent) / len(recent), least=3)}")
    every = max(-(-len(curve) // points), 1)
    return "\n".join(["control_steps,mean_return", *curve[::-1][::every][::-1], ""]).encode()


def command_line() -> str:
    """The command as it was typed, for provenance; `python -m rldistill` is `rldistill`."""
    program = Path(sys.argv[0])
    return shlex.join([program.parent.name if program.name == "__main__.py" else program.name, *sys.argv[1:]])
