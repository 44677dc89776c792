"""Files that are written completely or not at all, and read only where they are regular files."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import re
import secrets
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias, cast

import numpy as np
import torch

from rldistill.types import UserError

Place: TypeAlias = Literal["free", "file", "folder", "stream"]
"""What is at a path, links followed: a stream is a pipe, a character device, or what standard output is sent to."""

_READER_SECONDS = 10.0
"""For which a named pipe may be without anybody who reads it."""
_TOKEN = "[0-9a-f]{8}"
_TOKEN_OF_PROCESS = "[0-9]{1,7}"
"""In half files of versions before 2026-12, which have no lock: the number of their process in place of the token."""


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a regular file for reading, through links. Pipes and devices, whose end may never come, are refused at once.

    Raises:
        OSError: as `open`, or there is something else than a regular file.
    """
    if _is_special(os.stat(path).st_mode):  # some devices act when they are opened
        raise OSError(errno.EINVAL, "it is a pipe, a device or a socket, not a file", os.fspath(path))
    opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    mode = os.fstat(opened).st_mode
    if stat.S_ISREG(mode):
        return open(opened, "rb")
    os.close(opened)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    raise OSError(errno.EINVAL, "it is a pipe, a device or a socket, not a file", os.fspath(path))


def read_regular(path: str | os.PathLike[str], most: int = -1) -> bytes:
    """The bytes of a regular file, or the first `most` of them.

    Raises:
        OSError: as `open_regular`.
    """
    with open_regular(path) as file:
        return file.read(most)


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raises OSError where there is no regular file that can be read, for readers that open a path themselves."""
    open_regular(path).close()


def place_at(path: Path) -> Place:
    """What is at a path that is to be written.

    Raises:
        UserError: a disk, a socket, or a path that cannot be looked at.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "free"
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    if stat.S_ISDIR(mode):
        return "folder"
    if stat.S_ISCHR(mode) or stat.S_ISFIFO(mode) or _standard(path) is not None:
        return "stream"
    if stat.S_ISREG(mode):
        return "file"
    raise UserError(f"{path} is a disk or a socket: name a file")


def is_standard_output(path: Path) -> bool:
    """Whether a path is where `print` prints to: /dev/stdout, or the file that it is sent to."""
    return _standard(path) == 1


@contextmanager
def replacing(path: Path, *, new: bool = False) -> Iterator[BinaryIO]:
    """A file to write to, aside; it is synced to disk and renamed when the block ends, and removed if anything ends it early.

    A reader sees the old file or the new one, and so does a power cut. A link stays, and what it leads to is replaced. A pipe or
    a character device is written to when the block ends.

    Args:
        path: of the file.
        new: whether a file that is there when the block ends is an error instead of being replaced.

    Raises:
        UserError: the disk is full or the place cannot be written; the old file is untouched.
    """
    try:
        stream = _opened_stream(path)
        if stream is not None:
            with stream:
                whole = io.BytesIO()
                yield whole
                stream.write(whole.getbuffer())
                return
        target = Path(os.path.realpath(path))
        sweep(target)
        aside, file = _begun(target)
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                # The file's lock is held until it has its name: whoever sweeps takes an unlocked one for dead.
                put_in_place(aside, target, new=new)
        except BaseException:  # Ctrl-C too
            with suppress(OSError):
                aside.unlink()
            raise
        sync(target.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; what was there before is untouched") from None


def replace_file(path: Path, data: bytes, *, new: bool = False) -> None:
    """Writes a whole file as `replacing` does.

    Raises:
        UserError: the disk is full or the place cannot be written; the old file is untouched.
    """
    with replacing(path, new=new) as file:
        file.write(data)


def put_in_place(made: Path, path: Path, *, new: bool = False) -> None:
    """Gives a whole file its name, on the same file system.

    Args:
        made: the file; gone then.
        path: what it is to be called.
        new: whether a file of that name is an error instead of being replaced.

    Raises:
        UserError: there is one, and `new` is set.
        OSError: it cannot be renamed.
    """
    if not new:
        os.replace(made, path)
        return
    exists = UserError(f"{path} exists: another process has made it meanwhile; choose another name")
    try:
        os.link(made, path)
    except FileExistsError:
        raise exists from None
    except OSError:  # a file system without links
        if path.exists():
            raise exists from None
        os.replace(made, path)
    else:
        made.unlink()


def sweep(path: Path, *, held: bool = False) -> None:
    """Removes the half files that killed processes have left of a file; those of living ones, which are locked, stay.

    Args:
        path: of the file, not of its halves.
        held: whether nobody else can be writing it. Then halves without a lock, of earlier versions, go too.
    """
    token = f"(?:{_TOKEN}|{_TOKEN_OF_PROCESS})" if held else _TOKEN
    half = re.compile(rf"\.{re.escape(path.name)}\.{token}\.tmp")
    with suppress(OSError):
        for name in os.listdir(path.parent):
            if half.fullmatch(name):
                _remove_dead(path.with_name(name))


def name_aside(path: Path, ending: str = "tmp") -> Path:
    """A name beside a path that no other process has, be its number the same (in containers that share a disk)."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{ending}")


def lock(opened: int) -> Literal["held", "taken", "none"]:
    """Locks an open file or folder against other processes until it is closed; `none` where its file system has no locks."""
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "taken"
    except OSError:
        return "none"
    return "held"


def check_new_file(path: Path, *, force: bool, flag: str = "--out") -> None:
    """Whether a file may be written there, asked before the work. Pipes and character devices may.

    Raises:
        UserError: its folder is missing, it is a folder itself, or it exists and `force` is not set.
    """
    place = place_at(path)
    if not Path(os.path.realpath(path)).parent.is_dir():
        raise UserError(f"cannot write {path}: there is no folder {path.parent}")
    if place == "folder":
        raise UserError(f"{path} is a folder: name a file with {flag}")
    if place == "file" and not force:
        raise UserError(f"{path} exists: replace it with --force, or choose another {flag}")


def free_path(path: Path, flag: str = "--out") -> None:
    """Raises UserError where there is something already."""
    if path.exists() or path.is_symlink():
        raise UserError(f"{path} exists: choose another {flag}")


def sync(path: Path) -> None:
    """To disk: a file, or the names in a folder."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _is_special(mode: int) -> bool:
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _begun(target: Path) -> tuple[Path, BinaryIO]:
    """A new locked file beside the target."""
    while True:
        aside = name_aside(target)
        with suppress(FileExistsError):
            file = open(aside, "xb")  # noqa: SIM115 (whoever asked closes it)
            # Another process may sweep between these lines: then the lock is taken, or the file has no name any more.
            if lock(file.fileno()) != "taken" and os.fstat(file.fileno()).st_nlink:
                return aside, file
            file.close()


def _remove_dead(half: Path) -> None:
    with suppress(OSError):
        opened = os.open(half, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            if stat.S_ISREG(os.fstat(opened).st_mode) and lock(opened) == "held":
                half.unlink()
        finally:
            os.close(opened)


def _standard(path: Path) -> int | None:
    """1 or 2 where a path is what standard output or standard error goes to."""
    with suppress(OSError):
        there = os.stat(path)
        for number in (1, 2):
            with suppress(OSError):
                if os.path.samestat(there, os.fstat(number)) and not stat.S_ISDIR(there.st_mode):
                    return number
    return None


def _opened_stream(path: Path) -> BinaryIO | None:
    """The pipe or device to write to, None where there is none."""
    standard = _standard(path)
    if standard is not None:
        # Standard output that goes to a file: a file in its place would take what is printed later with it.
        for printed in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):
                printed.flush()
        return os.fdopen(os.dup(standard), "wb", buffering=0)
    if place_at(path) != "stream":
        return None
    began = time.monotonic()
    while True:
        try:
            opened = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as error:
            if error.errno != errno.ENXIO or time.monotonic() - began > _READER_SECONDS:
                reason = "nobody reads this pipe" if error.errno == errno.ENXIO else error.strerror
                raise UserError(f"cannot write {path}: {reason}") from None
            time.sleep(0.05)
        else:
            os.set_blocking(opened, True)
            return os.fdopen(opened, "wb")


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Nested dicts and lists of plain values, tensors and arrays, with a checksum at the end of the file.

    Raises:
        UserError: the disk is full; the last state is untouched.
    """
    buffer = io.BytesIO()
    torch.save(_plain(state), buffer)
    data = buffer.getvalue()
    replace_file(path, data + hashlib.sha256(data).digest())


def load_state(path: Path) -> dict[str, Any]:
    """The inverse of `save_state`, arrays as tensors. Nothing in the file is executed.

    Raises:
        UserError: it is missing, truncated or altered.
    """
    try:
        data = read_regular(path)
    except OSError as error:
        raise UserError(f"cannot read the checkpoint {path}: {error.strerror}") from None
    if len(data) < 32 or hashlib.sha256(data[:-32]).digest() != data[-32:]:
        raise UserError(f"the checkpoint {path} is damaged (its checksum does not fit); start anew with another --out")
    return cast(dict[str, Any], torch.load(io.BytesIO(data[:-32]), weights_only=True))


def generator_state(generator: np.random.Generator) -> str:
    """A NumPy generator's state as text."""
    return json.dumps(generator.bit_generator.state)


def load_generator_state(generator: np.random.Generator, state: str) -> None:
    """Puts back what `generator_state` gave."""
    generator.bit_generator.state = json.loads(state)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, torch.Tensor):
        return value.cpu()  # a checkpoint of a GPU is read where there is none
    if isinstance(value, np.generic):
        return value.item()
    return value
