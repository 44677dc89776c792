"""Tries programs of strangers in another process, under limits of time and memory, before they run in this one.

A damaged file can crash the runtime that reads it, and a hostile one can ask it for years or for terabytes. What a program
does in this process later it has done there already: it is fed in batches of the same sizes (`programs.in_batches`), and one whose
course depends on more than these is refused by its reader. The process is started once and forks for each file, since
starting anew takes seconds.
"""

from __future__ import annotations

import atexit
import json
import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rldistill.formats.foreign import ForeignPolicy
from rldistill.formats.onnx.reading import read_onnx
from rldistill.formats.programs import batch_sizes
from rldistill.formats.torchscript.reading import read_torchscript
from rldistill.types import UserError

SECONDS = 5
"""Of the processor's time that a trial may take."""
CLOCK_SECONDS = 9
"""Of the clock's time. It is more, since an honest file takes longer where other programs use the processor too."""
MEMORY = 1 << 30
"""Bytes that a trial may take beyond what PyTorch takes by itself."""
_IDLE_SECONDS = 60
_START_SECONDS = 120
_READERS: dict[str, Callable[..., ForeignPolicy]] = {"onnx": read_onnx, "torchscript": read_torchscript}
_server: subprocess.Popen[bytes] | None = None


def read_program(kind: str, path: Path, **options: Any) -> ForeignPolicy:
    """Reads an ONNX or TorchScript file here, after another process has read it and run it on batches of all sizes.

    Args:
        kind: `onnx` or `torchscript`.
        path: the file.
        options: of the reader, plain JSON data.

    Raises:
        UserError: the reader refuses it, the program takes more than `SECONDS`, `CLOCK_SECONDS` or `MEMORY`, or crashes.
    """
    answer = ask({"kind": kind, "path": str(path.absolute()), "name": str(path), "options": options})
    if answer["error"] is not None:
        raise UserError(answer["error"])
    return _READERS[kind](path, **options)


def ask(question: dict[str, Any]) -> dict[str, Any]:
    """What the other process says of a file.

    Returns:
        `error`: one line, or None; `peak`: the most memory that the trial took, bytes; `seconds`: of the processor's time.

    Raises:
        UserError: it cannot be started.
    """
    line = json.dumps(question).encode() + b"\n"
    for _ in range(2):  # it may have gone for lack of work just now
        try:
            server = running()
            assert server.stdin is not None
            assert server.stdout is not None
            server.stdin.write(line)
            server.stdin.flush()
            ready, _, _ = select.select([server.stdout], [], [], _START_SECONDS)
            answer = server.stdout.readline() if ready else b""
            if answer:
                return dict(json.loads(answer))
        except OSError:
            pass
        stop()
    raise UserError("cannot start the process in which ONNX and TorchScript are tried; is there memory left?")


def running() -> subprocess.Popen[bytes]:
    """The other process, started where there is none."""
    global _server
    if _server is None:
        _server = _started()
    return _server


def stop() -> None:
    """Ends the other process, if there is one."""
    global _server
    if _server is not None:
        _server.kill()
        _server.communicate()
        _server = None


atexit.register(stop)


def _started() -> subprocess.Popen[bytes]:
    # One thread, so that forking is safe; the same modules as here; and no keyboard, whose interrupts are for us.
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": paths}
    return subprocess.Popen(
        [sys.executable, "-P", "-c", "from rldistill.teachers.trial import serve; serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )


def serve() -> None:
    """Runs the other process: answers each line of its input with a line, and ends after a minute without questions."""
    torch.set_num_threads(1)
    while select.select([sys.stdin], [], [], _IDLE_SECONDS)[0]:
        line = os.read(0, 1 << 20)
        if not line:
            break
        question = json.loads(line)
        there, here = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(there)
            _child(question, here)
        os.close(here)
        with os.fdopen(there, "rb") as pipe:
            text = pipe.read()
        _, status, used = os.wait4(child, 0)
        error = text.decode() if status == 0 else _cause(status, question["name"])
        answer = {
            "error": error or None,
            "peak": used.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
            "seconds": used.ru_utime + used.ru_stime,
        }
        os.write(1, json.dumps(answer).encode() + b"\n")


def _child(question: dict[str, Any], pipe: int) -> None:
    """Writes why the reader refuses a file, or nothing, and ends the process; a limit may end it first. Never returns."""
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(CLOCK_SECONDS)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _limit_memory()
        os.write(pipe, _tried(question).encode())
        os._exit(0)
    finally:
        os._exit(1)


def _limit_memory() -> None:
    try:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (OSError, ValueError):
        return  # no such system keeps to this limit either
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))


def _tried(question: dict[str, Any]) -> str:
    options = question["options"]
    if options.get("observation_shape") is not None:
        options["observation_shape"] = tuple(options["observation_shape"])
    place = question["path"]
    try:
        policy = _READERS[question["kind"]](Path(place), **options)
        space = policy.observation_space
        assert space is not None  # both readers know it
        for size in batch_sizes(space.shape):
            zeros = torch.zeros((size, *space.shape), dtype=torch.uint8 if space.dtype == "uint8" else torch.float32)
            for _ in range(3):  # TorchScript makes its program anew after its first runs
                policy.network(zeros)
    except UserError as error:
        return str(error).replace(place, question["name"])
    except Exception as error:  # of the runtimes
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        return f"{question['name']} does not run on many observations at once: {last[:200]}"
    return ""


def _cause(status: int, name: str) -> str:
    number = os.waitstatus_to_exitcode(status)
    if -number in (signal.SIGXCPU, signal.SIGKILL):
        return f"{name} is refused: its program was tried and took more than {SECONDS} seconds; a policy takes far less"
    if -number == signal.SIGALRM:
        return (
            f"{name} is refused: its program was tried and did not end in {CLOCK_SECONDS} seconds; "
            "try again when the machine has less to do"
        )
    return f"{name} is damaged or refused: its program was tried and crashed or took more than {MEMORY >> 30} GiB"
