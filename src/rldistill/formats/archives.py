"""Reading members of a stranger's zip file: every size is checked as declared and again as it streams in.

Nothing is unpacked to disk. Links, climbing paths and the like are refused all the same, since a file that holds them was made
to harm whoever unpacks it.
"""

from __future__ import annotations

import io
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from rldistill.files import open_regular
from rldistill.types import UserError
from rldistill.types import printable as printable  # the readers of files take it from here

MIB = 2**20
MOST_BYTES = 256 * MIB
"""Of a policy file, and of all its tensors together: some 60 million parameters, the copies of target networks among them."""


class Limits(NamedTuple):
    """What an archive may hold at most. Published policies hold far less."""

    members: int = 10_000
    total: int = 2048 * MIB
    """Sum of the declared sizes of all members, whether they are read or not."""
    member: int = MOST_BYTES
    """Size of a member that is read."""
    ratio: int = 200
    """Of size to compressed size, for members above `ratio_from`. (JSON has some 10; a bomb has 1000.)"""
    ratio_from: int = MIB
    directory: int = 4 * MIB
    """Size of the list of members, which is read before anything in it can be checked."""


DEFAULT_LIMITS = Limits()
_CHUNK = MIB
# What zipfile and zlib are known to raise at damaged or hostile input; a closed list would need their source.
_DAMAGE = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    struct.error,
    EOFError,
    RuntimeError,  # NotImplementedError too, at a compression that zipfile does not know
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    TypeError,
    MemoryError,
    OSError,
)


def read_file(path: Path, limit: int, *, what: str) -> bytes:
    """The bytes of a regular file.

    Args:
        path: the file; a link to one will do, a pipe or a device will not (its end may never come).
        limit: bytes.
        what: names the kind of file in messages, such as "statistics file".

    Raises:
        UserError: it is missing, no regular file, unreadable or longer than `limit`.
    """
    if not path.exists():
        raise UserError(f"no {what} at {path}")
    if not path.is_file():
        raise UserError(f"{path} is no file; name the {what} itself")
    try:
        with open_regular(path) as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > limit:
        raise UserError(f"{path} is longer than the {_size(limit)} that a {what} may have; it is something else")
    return data


def read_policy(path: Path) -> bytes:
    """A policy file as a whole.

    Raises:
        UserError: it is missing, empty, absurdly large, or no plain file.
    """
    data = read_file(path, MOST_BYTES, what="policy file")
    if not data:
        raise UserError(f"{path} is empty; get the file anew")
    return data


def read_members(
    source: Path | bytes,
    wanted: Callable[[str], int | None],
    *,
    name: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> dict[str, bytes]:
    """The wanted members of a zip archive, each as a whole.

    Args:
        source: a file, or the bytes of an archive that was a member itself.
        wanted: maps a member's name to the most bytes that it may have, None for members that are not read.
        name: of the archive in messages; the path where it is left out.
        limits: what all members together and each alone may have.

    Returns:
        Members by name, in the order of the archive; those that are not there are left out.

    Raises:
        UserError: the archive is missing, damaged, encrypted, too big as declared or as read, or holds links,
            duplicate names or names that climb out. The message names the archive and the member.
    """
    title = str(name if name is not None else source if isinstance(source, Path) else "the archive")
    if isinstance(source, Path):
        if not source.exists():
            raise UserError(f"no file at {title}")
        if not source.is_file():
            raise UserError(f"{title} is no file; name the zip file itself")
    try:
        with open_regular(source) if isinstance(source, Path) else io.BytesIO(source) as file:
            bounded = _Bounded(file, limits.directory)
            with zipfile.ZipFile(bounded) as archive:
                infos = archive.infolist()
                _check_directory(infos, title, limits)
                members = {}
                left = limits.total
                for info in infos:
                    most = wanted(info.filename)
                    if most is None or info.is_dir():
                        continue
                    most = min(most, limits.member, left)
                    members[info.filename] = _read(archive, info, most, title, limits)
                    left -= info.file_size
                return members
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {title}: {error.strerror or printable(error)}") from None
    except _DAMAGE as error:
        reason = printable(error) or type(error).__name__
        raise UserError(f"{title} is damaged or no zip file ({reason}); get it anew") from None


def _check_directory(infos: list[zipfile.ZipInfo], title: str, limits: Limits) -> None:
    if len(infos) > limits.members:
        raise UserError(f"{title} lists {len(infos)} members, more than {limits.members}; it is no policy")
    names = set()
    total = 0
    for info in infos:
        member = info.orig_filename
        unsafe = _unsafe(info)
        if unsafe:
            raise UserError(f"{title} is refused: its member {printable(member)!r} {unsafe}")
        if member in names:
            raise UserError(f"{title} is refused: it has two members {printable(member)!r}")
        names.add(member)
        total += info.file_size
    if total > limits.total:
        raise UserError(
            f"{title} is refused: unpacked it would be {_size(total)}, more than the {_size(limits.total)} allowed"
        )


def _unsafe(info: zipfile.ZipInfo) -> str | None:
    """What is wrong with a member, as the end of a sentence."""
    member = info.orig_filename
    mode = info.external_attr >> 16
    kind = stat.S_IFMT(mode)
    if not member or "\0" in member:
        return "has no proper name"
    if member.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", member):
        return "has an absolute path"
    if ".." in re.split(r"[/\\]", member):
        return "climbs out of the archive"
    if stat.S_ISLNK(mode):
        return "is a link"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is no regular file"
    if info.flag_bits & 0x41:
        return "is encrypted; unpack it and zip it again without a password"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is packed in an unusual way; unpack it and zip it again"
    return None


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int, title: str, limits: Limits) -> bytes:
    member = printable(info.filename)
    if info.file_size > most:
        raise UserError(
            f"{title} is refused: its member {member!r} would be {_size(info.file_size)}, more than {_size(most)}"
        )
    if info.file_size > limits.ratio_from and info.file_size > limits.ratio * max(info.compress_size, 1):
        raise UserError(f"{title} is refused: its member {member!r} is packed as only a zip bomb is")
    # A lying header must not matter, so what comes is counted.
    chunks = []
    length = 0
    try:
        with archive.open(info) as stream:
            while chunk := stream.read(_CHUNK):
                length += len(chunk)
                if length > info.file_size:
                    raise UserError(f"{title} is refused: its member {member!r} is longer than it says")
                chunks.append(chunk)
    except UserError:
        raise
    except _DAMAGE as error:
        reason = printable(error) or type(error).__name__
        raise UserError(f"{title} is damaged: its member {member!r} cannot be read ({reason}); get it anew") from None
    if length != info.file_size:
        raise UserError(f"{title} is damaged: its member {member!r} is shorter than it says; get it anew")
    return b"".join(chunks)


class _Bounded:
    """A file that refuses long reads, since zipfile reads the whole list of members before anybody can check it."""

    def __init__(self, file: BinaryIO, most: int) -> None:
        self._file = file
        self._most = most

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size if 0 <= size <= self._most else self._most + 1)
        if len(data) > self._most:
            raise zipfile.BadZipFile("its list of members is too long")
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True


def _size(count: int) -> str:
    return f"{count / MIB:,.0f} MiB" if count >= MIB else f"{count:,} bytes"
