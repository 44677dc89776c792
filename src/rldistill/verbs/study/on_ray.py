"""Cells as tasks of Ray.

Where a node does not have the study's folder, what a cell needs and what it leaves go through Ray's object store.
"""

from __future__ import annotations

import io
import os
import secrets
import socket
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from rldistill.files import read_regular, replace_file
from rldistill.machine import check_packages
from rldistill.runs.studies.cells import CELLS, CellFolder
from rldistill.runs.studies.plan import Cell, Plan
from rldistill.teachers.noise import noise_in, with_noise
from rldistill.types import UserError

_LOOKS_SECONDS = 1.0
_ANSWER_SECONDS = 5.0
_RETRIES = 10
"""Of a task whose node or process is lost."""
_WORKER = "rldistill.verbs.study.worker"
"""The module whose `compute` runs on a node. It imports all verbs, which the process that submits the tasks need not."""
_TOKEN = ".ray-token"


@dataclass(frozen=True)
class _Job:
    """A cell and what a node needs for it."""

    cell: Cell
    folder: str
    token: str
    """Content of a file in the folder, by which a node knows that it has the same folder."""
    threads: int
    parts: Mapping[str, Any]
    """References to packed files and folders, by their places in a study's folder."""


def run_on_ray(
    folder: Path, plan: Plan, address: str | None, jobs: int, on_look: Callable[[], None], *, shared: bool = True
) -> None:
    """Computes the cells of a study as tasks of Ray, each with the cores of its threads.

    Tasks of nodes that are lost are computed elsewhere. On a shared disk they go on from the last checkpoint.

    Args:
        folder: of the study.
        plan: of the study.
        address: of a running cluster; None starts one on this machine.
        jobs: cells at a time of a cluster on this machine.
        on_look: called about once a second.
        shared: whether nodes use the study's folder itself if they have it.

    Raises:
        UserError: Ray is missing or does not answer.
        KeyboardInterrupt: Ctrl-C; tasks are cancelled.
    """
    token = secrets.token_hex(8) if shared else ""
    replace_file(folder / _TOKEN, token.encode())
    try:
        with _cluster(address, jobs * plan.threads):
            _Tasks(folder, plan, token).run(on_look)
    finally:
        (folder / _TOKEN).unlink(missing_ok=True)


@contextmanager
def _cluster(address: str | None, cores: int) -> Iterator[None]:
    """A connection to a cluster."""
    if address is None:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # else a token is written to ~/.ray
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # else `uv run` is started again on each node
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    where: dict[str, Any] = {"address": address} if address else {"num_cpus": cores, "include_dashboard": False}
    try:
        ray.init(**quiet, **where)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"--on ray: {str(error).strip().splitlines()[0]}") from None
    try:
        yield
    finally:
        ray.shutdown()


def check_ray(address: str | None) -> None:
    """Raises UserError where Ray is missing, or nothing answers at HOST:PORT. Ray itself waits for minutes."""
    check_packages("ray", extra="ray", what="--on ray")
    if address is None:
        return
    place = address.removeprefix("ray://")
    host, _, port = place.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--on ray:ADDRESS is HOST:PORT or ray://HOST:PORT, not {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"no Ray answers at {address} ({error}): start one with `ray start --head`") from None


class _Tasks:
    """The tasks of a study.

    Args:
        folder: of the study.
        plan: of the study.
        token: empty where nodes use folders of their own.
    """

    def __init__(self, folder: Path, plan: Plan, token: str) -> None:
        self.folder, self.plan, self.token = folder, plan, token
        self._packed: dict[str, Any] = {}
        self._waiting = [cell for cell in plan.cells if not CellFolder(folder, cell).settled]
        self._submitted: dict[Any, Cell] = {}

    def run(self, on_look: Callable[[], None]) -> None:
        """Submits what can begin and takes results, until all cells are finished or failed."""
        import ray

        remote = ray.remote(num_cpus=self.plan.threads, max_retries=_RETRIES)(_compute)
        try:
            while self._waiting or self._submitted:
                self._submit(remote)
                ready, _ = ray.wait(list(self._submitted), timeout=_LOOKS_SECONDS) if self._submitted else ([], [])
                for reference in ready:
                    self._take(reference)
                on_look()
        except BaseException:
            for reference in self._submitted:
                with suppress(Exception):
                    ray.cancel(reference)
            raise

    def _submit(self, remote: Any) -> None:
        waiting, self._waiting = self._waiting, []
        for cell in waiting:
            needed = [CellFolder(self.folder, name) for name in cell.needs]
            failed = next((one for one in needed if one.failure is not None and not one.finished), None)
            if failed is not None:
                CellFolder(self.folder, cell).fail(f"it needs {failed.path.name}, which failed")
            elif all(one.finished for one in needed):
                job = _Job(cell, str(self.folder.resolve()), self.token, self.plan.threads, self._parts(cell))
                self._submitted[remote.remote(job)] = cell
            else:
                self._waiting.append(cell)

    def _parts(self, cell: Cell) -> dict[str, Any]:
        """What the cell needs, packed once for all tasks."""
        places = {f"{CELLS}/{name}": CellFolder(self.folder, name).path for name in cell.needs}
        files = (*(noise_in(path)[1] for path in (cell.policy, *cell.panel)), *_starts_of(cell))
        places |= {_inside(path): Path(path) for path in files if _is_local(path)}
        return {inside: self._reference(place) for inside, place in places.items()}

    def _reference(self, place: Path) -> Any:
        import ray

        if str(place) not in self._packed:
            self._packed[str(place)] = ray.put(packed(place))
        return self._packed[str(place)]

    def _take(self, reference: Any) -> None:
        """Keeps what a task brings, or what became of it."""
        import ray

        cell = self._submitted.pop(reference)
        place = CellFolder(self.folder, cell)
        try:
            brought = ray.get(reference)
        except Exception as error:  # lost too often, or a bug on the node
            lines = str(error).strip().splitlines()
            place.fail(f"{type(error).__name__}: {lines[-1] if lines else ''}", str(error))
            return
        if brought is not None:
            unpack(brought, place.path)
        if not place.settled:  # another worker has it
            self._waiting.append(cell)
            time.sleep(_LOOKS_SECONDS)


def _compute(job: _Job) -> bytes | None:
    """A task: computes a cell in the study's folder, or in one of its own whose content it returns."""
    import ray

    compute = import_module(_WORKER).compute
    folder = Path(job.folder)
    if job.token and _text(folder / _TOKEN) == job.token:
        compute(folder, job.cell, job.threads)
        return None
    with tempfile.TemporaryDirectory(prefix="rldistill-study-") as made:
        place = Path(made)
        for inside, reference in job.parts.items():
            unpack(ray.get(reference), place / inside)
        cell = _moved(job.cell, place)
        compute(place, cell, job.threads)
        return packed(CellFolder(place, cell).path)


def _moved(cell: Cell, place: Path) -> Cell:
    """The cell with its files in another folder."""
    games = dict(cell.games) if cell.games is not None else None
    if games is not None and "starts" in games:
        games["starts"] = [str(place / _inside(path)) for path in games["starts"]]
    panel = tuple(_moved_policy(path, place) for path in cell.panel)
    return replace(cell, policy=_moved_policy(cell.policy, place), panel=panel, games=games)


def _moved_policy(path: str, place: Path) -> str:
    noise, plain = noise_in(path)
    return with_noise(noise, str(place / _inside(plain)) if _is_local(plain) else plain)


def _starts_of(cell: Cell) -> list[str]:
    return list((cell.games or {}).get("starts", []))


def _is_local(path: str) -> bool:
    """Whether it is a file or a folder outside the study's folder."""
    return bool(path) and not path.startswith(("hf://", f"{CELLS}/"))


def _inside(path: str) -> str:
    """The place of a file or folder from elsewhere in a node's own folder."""
    return f"needed/{Path(path).as_posix().strip('/').replace('/', '_')}/{Path(path).name}"


def _text(path: Path) -> str:
    try:
        return read_regular(path).decode()
    except OSError:
        return ""


def packed(place: Path) -> bytes:
    """A file or a folder without locks and checkpoints, as the bytes of a zip file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in [place] if place.is_file() else sorted(place.rglob("*")):
            inside = path.name if path == place else path.relative_to(place).as_posix()
            if path.is_file() and path.name != "lock" and "checkpoint" not in Path(inside).parts:
                archive.write(path, inside)
    return buffer.getvalue()


def unpack(data: bytes, place: Path) -> None:
    """The inverse of `packed`: a folder with its content, or a file in the place of its own name."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        target = place.parent if names == [place.name] else place
        # The result last: a cell that has one is finished.
        for name in sorted(names, key=lambda name: name.startswith("result")):
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, archive.read(name))
