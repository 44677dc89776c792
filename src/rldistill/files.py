"""Files that are there as a whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch

from rldistill.types import UserError


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, aside; it is synced to disk and renamed when the block ends, and removed if anything ends it early.

    A reader sees the old file or the new one, and so does a power cut.

    Raises:
        UserError: the disk is full or the place cannot be written; the old file is untouched.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        _sync(path.parent)
    except BaseException as error:  # Ctrl-C too
        with suppress(OSError):
            aside.unlink()
        if isinstance(error, OSError):
            raise UserError(
                f"cannot write {path}: {error.strerror or error}; what was there before is untouched"
            ) from None
        raise


def replace_file(path: Path, data: bytes) -> None:
    """Writes a whole file as `replacing` does.

    Raises:
        UserError: the disk is full or the place cannot be written; the old file is untouched.
    """
    with replacing(path) as file:
        file.write(data)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """No other process that asks works on the folder while the block runs.

    Raises:
        UserError: another one does, or the folder cannot be opened.
    """
    try:
        opened = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"cannot open {folder}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another process works on {folder}: wait for it or choose another --out") from None
        yield
    finally:
        os.close(opened)


def check_new_file(path: Path, *, force: bool) -> None:
    """Told before the work, not after: whether a file may be written there.

    Raises:
        UserError: its folder is missing, it is a folder itself, or it exists and `force` is not set.
    """
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file with --out")
    if path.exists() and not force:
        raise UserError(f"{path} exists: replace it with --force, or choose another --out")


@contextmanager
def new_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder that is there as a whole or not at all.

    The block fills the folder that it is given, `.NAME.PID.tmp` beside `path`. When it ends, that is synced to disk and takes
    the name `path`; when it fails, Ctrl-C included, nothing is left, or what was there before. (A process that is killed
    leaves the one with the dot.)

    Args:
        path: of the folder; folders above it are made.
        replace: an earlier folder there goes once the new one is whole; without it, one that exists is an error.

    Raises:
        UserError: `path` exists, cannot be made, or the disk is full.
    """
    if not replace:
        free_path(path)
    aside, before = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    parents = [parent for parent in path.parents if not parent.exists()]
    done = False
    try:
        aside.mkdir(parents=True)
        yield aside
        for file in aside.rglob("*"):
            _sync(file)
        _sync(aside)
        if not replace:
            free_path(path)
        elif path.exists():
            path.rename(before)
        aside.rename(path)
        done = True
        _sync(path.parent)
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise UserError(f"cannot write {path}: {reason}; what was there before is untouched") from None
    finally:
        if before.exists() and not path.exists():  # stopped between the two renames
            before.rename(path)
        for folder in (aside, before):
            shutil.rmtree(folder, ignore_errors=True)
        if not done:
            for parent in parents:
                with suppress(OSError):
                    parent.rmdir()


def free_path(path: Path, flag: str = "--out") -> None:
    """Raises UserError where there is something already."""
    if path.exists() or path.is_symlink():
        raise UserError(f"{path} exists: choose another {flag}")


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # the latter of lists in lists in lists
        raise UserError(f"{path} is damaged: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object")
    return data


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
        data = path.read_bytes()
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
