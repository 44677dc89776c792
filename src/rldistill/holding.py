"""Locks on files and folders, and folders that are written completely or not at all."""

from __future__ import annotations

import fcntl
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
"""Attempts to lock the file or folder of a name. On some network file systems no two files ever compare as the same."""


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Locks a folder while the block runs, against other processes that lock it.

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
    """Locks a folder while the block runs, and makes it where there is none.

    A folder that is made here is removed, with the folders made above it, if it is empty when the block ends.

    Args:
        path: of the folder.
        taken: the message where there is something already; None accepts a folder.

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
    """Holds a lock file while the block runs. It is made where there is none, and stays.

    Args:
        path: of the lock file.
        place: the file or folder that it protects, for the message.

    Yields:
        Whether the file system has locks. Where it has none, processes cannot see each other.

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


def is_held(path: Path) -> bool:
    """Whether a process holds a lock file now. Asking makes no file and changes nothing."""
    try:
        opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(opened)
    return False


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Reserves a path for this process while the block runs, by the lock file `.NAME.lock` beside it.

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
    """An empty folder beside a path, in which its new content is made. It is removed when the block ends.

    The path is reserved meanwhile. Half folders of killed processes are removed, and an earlier folder that one of them had moved
    away is moved back.

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
    """Makes a folder that is complete or not there at all.

    The block fills the folder that it is given, `.NAME.TOKEN.tmp` beside `path`. When it ends, that is synced to disk and takes
    the name `path`. When it fails, Ctrl-C included, nothing is left, or what was there before. A process that is killed
    leaves the one with the dot, which the next command for this path removes.

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
        half = pattern.fullmatch(name)
        folder = path.with_name(name)
        if half is None or folder.is_symlink() or not folder.is_dir():
            continue
        if half[1] == "old" and not path.exists():
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
