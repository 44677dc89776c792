"""Places that one process alone works in, and folders that are there as a whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rldistill.files import free_path, lock, name_aside, sync
from rldistill.types import UserError

_ATTEMPTS = 50
"""To lock what has the name that was asked for. (Some network file systems never tell that two files are the same.)"""


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """No other process that asks works on the folder while the block runs.

    Raises:
        UserError: another one does, or the folder cannot be opened.
    """
    for attempt in range(_ATTEMPTS):
        try:
            opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise UserError(f"cannot open {folder}: {error.strerror}") from None
        try:
            if lock(opened) == "taken":
                raise _is_taken(folder)
            if _is_still(opened, folder) or attempt == _ATTEMPTS - 1:
                yield
                return
        finally:
            os.close(opened)


@contextmanager
def held_folder(path: Path, *, taken: str | None) -> Iterator[bool]:
    """A folder that this process alone works in while the block runs, made where there is none.

    One that is made here goes away with the folders above it if it is empty when the block ends.

    Args:
        path: of the folder.
        taken: what to say where there is something already; None accepts a folder.

    Yields:
        Whether it was made here.

    Raises:
        UserError: there is something already, another process works on it, or it cannot be made.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True)
        made = True
    except FileExistsError:
        if taken is not None:
            raise UserError(taken) from None
        made = False
    except OSError as error:
        raise UserError(f"cannot make {path}: {error.strerror}") from None
    try:
        with alone(path):
            if made and taken is not None and any(path.iterdir()):  # another process came between the two lines
                raise UserError(taken)
            yield made
    finally:
        if made:
            for folder in missing:
                with suppress(OSError):
                    folder.rmdir()


@contextmanager
def held_file(path: Path, place: Path) -> Iterator[bool]:
    """A lock file that this process alone holds while the block runs, made where there is none; it stays.

    Args:
        path: of the lock file.
        place: what it stands for, for the message.

    Yields:
        Whether the file system has locks. Where it has none, nobody knows of others.

    Raises:
        UserError: another process holds it.
        OSError: it cannot be made.
    """
    for attempt in range(_ATTEMPTS):
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(opened).st_mode):
                raise UserError(f"{path} is no regular file: remove it")
            locked = lock(opened)
            if locked == "taken":
                raise _is_taken(place)
            is_still = _is_still(opened, path)  # else its holder has just finished and removed it
            if is_still or attempt == _ATTEMPTS - 1:
                yield is_still and locked == "held"
                return
        finally:
            os.close(opened)


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """No other process makes the file or folder at a path while the block runs; the lock is a file `.NAME.lock` beside it.

    Yields:
        Whether the file system has locks.

    Raises:
        UserError: another process makes it.
        OSError: the lock cannot be made.
    """
    beside = path.with_name(f".{path.name}.lock")
    with held_file(beside, path) as locked:
        try:
            yield locked
        finally:
            with suppress(OSError):
                if beside.stat().st_size == 0:  # ours are empty
                    beside.unlink()


@contextmanager
def folder_aside(path: Path) -> Iterator[Path]:
    """An empty folder beside a path, to make in it what will be there. It is removed when the block ends.

    No other process makes something at the path meanwhile. What killed ones have left goes, or comes back where it had been moved
    away to be replaced.

    Raises:
        UserError: another process makes it.
        OSError: the folder cannot be made.
    """
    with claimed(path) as locked:
        if locked:
            _sweep_folders(path)
        aside = name_aside(path)
        try:
            aside.mkdir()
            yield aside
        finally:
            shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def new_folder(path: Path, *, replaceable: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """A folder that is there as a whole or not at all.

    The block fills the folder that it is given, `.NAME.TOKEN.tmp` beside `path`. When it ends, that is synced to disk and takes
    the name `path`; when it fails, Ctrl-C included, nothing is left, or what was there before. (A process that is killed
    leaves the one with the dot, which the next command for this path removes.)

    Args:
        path: of the folder; folders above it are made.
        replaceable: an earlier folder goes once the new one is whole, if this raises no UserError for it; without it, one that
            exists is an error.

    Raises:
        UserError: `path` exists, cannot be made, or the disk is full, or another process makes it.
    """
    if replaceable is None:
        free_path(path)
    parents = [parent for parent in path.parents if not parent.exists()]
    done = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with folder_aside(path) as aside:
            yield aside
            for file in aside.rglob("*"):
                sync(file)
            sync(aside)
            if replaceable is not None and path.exists():
                _exchange(aside, path, replaceable)
            else:
                free_path(path)
                aside.rename(path)
        done = True
        sync(path.parent)
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise UserError(f"cannot write {path}: {reason}; what was there before is untouched") from None
    finally:
        if not done:
            for parent in parents:
                with suppress(OSError):
                    parent.rmdir()


def _exchange(aside: Path, path: Path, replaceable: Callable[[Path], None]) -> None:
    before = name_aside(path, "old")
    path.rename(before)
    try:
        replaceable(before)  # under a name that nobody else writes to
        aside.rename(path)
    except BaseException:
        if not path.exists():
            before.rename(path)
        raise
    shutil.rmtree(before, ignore_errors=True)


def _sweep_folders(path: Path) -> None:
    """Of killed processes: half folders, and an earlier folder that was to be replaced."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.(tmp|old)")
    for name in os.listdir(path.parent):
        found = pattern.fullmatch(name)
        folder = path.with_name(name)
        if found is None or folder.is_symlink() or not folder.is_dir():
            continue
        if found[1] == "old" and not path.exists():
            folder.rename(path)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _is_still(opened: int, path: Path) -> bool:
    """Whether an open file or folder has this name (still)."""
    try:
        return os.path.samestat(os.fstat(opened), os.stat(path))
    except OSError:
        return False


def _is_taken(place: Path) -> UserError:
    return UserError(f"another process works on {place}: wait for it or choose another --out")
