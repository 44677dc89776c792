"""The command with standard streams that are closed, full, or of another encoding: results are never lost to them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import rldistill
from rldistill import __main__ as command
from rldistill import terminal
from rldistill.play.envs import make_task
from rldistill.policies import save_policy
from rldistill.progress import Talking
from rldistill.runs.scores import read_scores
from rldistill.students.networks import Architecture, build
from rldistill.verbs.record import RecordConfig, record

SOURCE = Path(rldistill.__file__).parents[1]
CARTPOLE = make_task("CartPole-v1")
GAMES = ["--episodes", "2", "--num-envs", "2"]
SMALL = ["--student", "mlp:4", "--num-envs", "4", "--warmup", "60", "--evaluate-episodes", "1", "--evaluate-every", "0"]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy whose name is not ASCII, and a dataset."""
    folder = tmp_path_factory.mktemp("shelf")
    made = build(Architecture("mlp:4", CARTPOLE.observation_shape, CARTPOLE.num_actions), 0)
    save_policy(folder / "Übung µ", made, CARTPOLE, {})
    record(folder / "Übung µ", folder / "data", RecordConfig(steps=60, num_envs=2))
    return folder


def closed_pipe() -> int:
    there, here = os.pipe()
    os.close(there)
    return here


def forked(words: list[str], prepare: Callable[[], None], encoding: str = "utf-8") -> int:
    """The command in a fork of this process, after `prepare` has changed its descriptors; its exit status."""
    child = os.fork()
    if child == 0:
        status: object = 99
        try:
            prepare()
            for number, name in ((1, "stdout"), (2, "stderr")):
                is_open = os.path.exists(f"/proc/self/fd/{number}")
                stream = open(number, "w", encoding=encoding, closefd=False) if is_open else None  # noqa: SIM115
                setattr(sys, name, stream)
            sys.argv = ["rldistill", *words]
            command.main()
        except SystemExit as ended:
            status = ended.code
        finally:
            os._exit(status if isinstance(status, int) else 98)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def to(number: int, place: str | int) -> Callable[[], None]:
    def prepare() -> None:
        os.dup2(os.open(place, os.O_WRONLY | os.O_CREAT) if isinstance(place, str) else place, number)

    return prepare


@pytest.mark.parametrize(
    ("prepare", "encoding", "status"),
    [
        (to(1, "/dev/full"), "utf-8", 2),
        (lambda: to(1, closed_pipe())(), "utf-8", 1),
        (to(1, "/dev/null"), "ascii", 0),
        (lambda: os.close(1), "utf-8", 0),
        (lambda: os.close(2), "utf-8", 0),
        (lambda: os.closerange(0, 3), "utf-8", 0),
        (to(2, "/dev/full"), "utf-8", 0),
        (lambda: to(2, closed_pipe())(), "utf-8", 0),
    ],
    ids=["full", "pipe", "ascii", "no output", "no error", "none", "full error", "error pipe"],
)
@pytest.mark.slow
def test_scores_are_in_their_file_whatever_becomes_of_the_table(
    tmp_path: Path, shelf: Path, prepare: Callable[[], None], encoding: str, status: int
) -> None:
    target = tmp_path / "scores.json"
    words = ["evaluate", str(shelf / "Übung µ"), *GAMES, "--json", str(target)]
    assert forked(words, prepare, encoding) == status
    assert [len(score.returns) for score in read_scores(target)] == [2]
    assert os.listdir(tmp_path) == ["scores.json"]


def test_a_full_disk_costs_the_file_and_not_the_table(tmp_path: Path, shelf: Path) -> None:
    words = ["evaluate", str(shelf / "Übung µ"), *GAMES, "--json", "/dev/full"]
    assert forked(words, to(1, str(tmp_path / "printed"))) == 2
    assert "Übung µ" in (tmp_path / "printed").read_text()


def test_scores_on_standard_output_stand_there_alone(tmp_path: Path, shelf: Path) -> None:
    words = ["evaluate", str(shelf / "Übung µ"), *GAMES, "--json", "/dev/stdout"]
    assert forked(words, to(1, str(tmp_path / "printed"))) == 0
    assert len(json.loads((tmp_path / "printed").read_text())) == 1


def test_what_an_encoding_lacks_is_printed_as_an_escape(tmp_path: Path, shelf: Path) -> None:
    assert forked(["dataset", "info", str(shelf / "data")], to(1, str(tmp_path / "printed")), "ascii") == 0
    printed = (tmp_path / "printed").read_bytes()
    assert b"\\xdcbung" in printed
    assert printed.isascii()


def test_closed_descriptors_are_open_before_any_file_is(tmp_path: Path) -> None:
    def prepare() -> None:
        os.closerange(0, 3)

    child = os.fork()
    if child == 0:
        prepare()
        sys.stdin = sys.stdout = sys.stderr = None  # type: ignore[assignment]  # as Python has it then
        terminal.open_standard_streams()
        with open(tmp_path / "file", "w") as file:
            os.write(2, b"a signal's text")
            print("a line")
            os._exit(file.fileno() if file.fileno() > 2 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) > 2
    assert (tmp_path / "file").read_bytes() == b""


def test_progress_that_nobody_can_read_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("/dev/full", closed_pipe()):
        stream = open(place, "w", buffering=1)  # noqa: SIM115 (closed where it can be)
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(Talking, "PLAIN_SECONDS", 0.0)
        with Talking() as progress:
            progress.start("work", 10, "steps")
            progress.update(5)
            progress.say("halfway")
            progress.update(10)
        monkeypatch.undo()
        to(stream.fileno(), "/dev/null")()
        stream.close()


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}


def started(words: list[str], environment: dict[str, str], **streams: object) -> subprocess.Popen[bytes]:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return subprocess.Popen([sys.executable, "-m", "rldistill", *words], env=environment, **streams)  # type: ignore[call-overload,no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["inspect", "{shelf}/Übung µ"],
        ["dataset", "info", "{shelf}/data", "--json", "{out}/info.json"],
        ["dataset", "head", "{shelf}/data"],
        [
            "export",
            "{shelf}/Übung µ",
            "--format",
            "torchscript",
            "--out",
            "{out}/policy.pt",
            "--states",
            "50",
            "--episodes",
            "0",
        ],
        ["evaluate", "{shelf}/Übung µ", *GAMES, "--json", "{out}/scores.json"],
        ["--help"],
        ["--version"],
    ],
    ids=lambda words: words[0] + "-" + words[-1].rsplit("/", 1)[-1],
)
def test_no_stream_brings_a_traceback(
    tmp_path: Path, shelf: Path, environment: dict[str, str], words: list[str]
) -> None:
    words = [word.format(shelf=shelf, out=tmp_path) for word in words]
    with open("/dev/full", "wb") as full:
        ended = started(words, environment, stdout=full)
        assert b"Traceback" not in ended.communicate()[1]
        assert ended.returncode in (1, 2)
    for made in tmp_path.iterdir():
        assert made.stat().st_size
        made.unlink()
    ended = started(words, environment | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
    output, errors = ended.communicate()
    assert (ended.returncode, b"Traceback" in errors) == (0, False)
    assert output.isascii()


@pytest.mark.slow
@pytest.mark.parametrize("words", [["inspect", "{shelf}/Übung µ"], ["--help"]], ids=lambda words: words[0])
def test_commands_end_without_any_stream(shelf: Path, environment: dict[str, str], words: list[str]) -> None:
    words = [word.format(shelf=shelf) for word in words]
    with open("/dev/full", "wb") as full:
        assert started(words, environment, stdout=full, stderr=full).wait() in (1, 2)
    line = f"exec {sys.executable} -m rldistill " + " ".join(f"'{word}'" for word in words) + " 0<&- 1>&- 2>&-"
    assert subprocess.run(["sh", "-c", line], env=environment).returncode == 0


@pytest.mark.slow
def test_a_signal_without_standard_error_leaves_the_curve_whole(
    tmp_path: Path, shelf: Path, environment: dict[str, str]
) -> None:
    out = tmp_path / "run"
    words = ["distill", "--teacher", str(shelf / "Übung µ"), "--out", str(out), "--steps", "2000000", *SMALL]
    line = f"exec {sys.executable} -m rldistill " + " ".join(f"'{word}'" for word in words) + " 2>&-"
    running = subprocess.Popen(["sh", "-c", line], env=environment)
    for _ in wait_for(lambda: (out / "metrics.jsonl").is_file() and (out / "metrics.jsonl").stat().st_size > 400):
        assert running.poll() is None
    running.send_signal(signal.SIGINT)
    assert running.wait(120) == 130
    for record_line in (out / "metrics.jsonl").read_text().splitlines():
        json.loads(record_line)
    assert (out / "checkpoint" / "lock").read_bytes() == b""
    assert (out / "checkpoint" / "state").is_file()


def wait_for(is_so: Callable[[], bool], seconds: float = 120) -> Iterator[None]:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        yield
        time.sleep(0.05)
