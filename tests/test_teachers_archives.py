"""Zip archives from strangers."""

import io
import stat
import zipfile
from pathlib import Path

import pytest

from hostile_files import raw_zip, zeros
from rldistill.formats.archives import DEFAULT_LIMITS, printable, read_file, read_members
from rldistill.types import UserError


def everything(name: str) -> int:
    return 2**28


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_only_wanted_members_are_read(tmp_path: Path, method: int) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(zipped({"data": b"{}", "other": b"x" * 1000, "folder/": b""}, method))
    assert read_members(path, {"data": 10, "absent": 10}.get) == {"data": b"{}"}


def test_an_archive_may_be_bytes() -> None:
    assert read_members(zipped({"a": b"1", "b": b"2"}), everything) == {"a": b"1", "b": b"2"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"/etc/passwd", "absolute"),
        (b"C:/data", "absolute"),
        (b"\\data", "absolute"),
        (b"../data", "climbs out"),
        (b"a/../../b", "climbs out"),
        (b"a\\..\\b", "climbs out"),
        (b"data\0.txt", "no proper name"),
        (b"", "no proper name"),
    ],
)
def test_names_that_lead_elsewhere_are_refused(name: bytes, text: str) -> None:
    with pytest.raises(UserError, match=text):
        read_members(raw_zip(name, b"{}", declared=2, method=0), everything, name="x.zip")


@pytest.mark.parametrize(("mode", "text"), [(stat.S_IFLNK | 0o777, "is a link"), (stat.S_IFIFO, "no regular file")])
def test_links_and_pipes_are_refused(mode: int, text: str) -> None:
    with pytest.raises(UserError, match=text):
        read_members(raw_zip(b"data", b"/etc/passwd", declared=11, method=0, mode=mode), everything)


def test_what_is_not_read_is_checked_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", "{}")
        link = zipfile.ZipInfo("elsewhere")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc")
    with pytest.raises(UserError, match=f"{path} is refused: its member 'elsewhere' is a link"):
        read_members(path, {"data": 10}.get)


def test_encrypted_members_are_refused() -> None:
    with pytest.raises(UserError, match="encrypted"):
        read_members(raw_zip(b"data", b"{}", declared=2, method=0, flags=1), everything)


@pytest.mark.parametrize("method", [12, 14, 99])
def test_unusual_packing_is_refused(method: int) -> None:
    with pytest.raises(UserError, match="unusual way"):
        read_members(raw_zip(b"data", b"{}", declared=2, method=method), everything)


def test_two_members_of_one_name_are_refused() -> None:
    with pytest.raises(UserError, match="two members 'data'"):
        read_members(raw_zip(b"data", b"{}", declared=2, method=0, entries=2), everything)


def test_a_bomb_is_refused_by_what_it_declares() -> None:
    with pytest.raises(UserError, match="zip bomb"):
        read_members(raw_zip(b"data", zeros(64), declared=64 << 20), everything)


def test_a_bomb_is_refused_by_its_total() -> None:
    small = DEFAULT_LIMITS._replace(total=1000)
    with pytest.raises(UserError, match="1,100 bytes, more than the 1,000 bytes"):
        read_members(zipped({f"m{n}": bytes(100) for n in range(11)}), {}.get, limits=small)


@pytest.mark.parametrize("declared", [1000, 2**20, 10 << 20])
def test_a_bomb_whose_header_lies_is_refused_without_unpacking_it(declared: int) -> None:
    with pytest.raises(UserError, match="'data' cannot be read|zip bomb|more than"):
        read_members(raw_zip(b"data", zeros(64), declared=declared), everything)


def test_a_member_longer_than_wanted_is_refused() -> None:
    with pytest.raises(UserError, match="'data' would be 1,000 bytes, more than 999 bytes"):
        read_members(zipped({"data": b"x" * 1000}), {"data": 999}.get)


def test_a_member_shorter_than_it_says_is_refused() -> None:
    with pytest.raises(UserError, match="shorter than it says|cannot be read"):
        read_members(raw_zip(b"data", b"abc", declared=30, method=0), everything)


def test_too_many_members_are_refused() -> None:
    few = DEFAULT_LIMITS._replace(members=3)
    with pytest.raises(UserError, match="lists 4 members"):
        read_members(zipped({f"m{n}": b"" for n in range(4)}), {}.get, limits=few)


def test_an_endless_list_of_members_is_not_even_read() -> None:
    with pytest.raises(UserError, match="list of members is too long"):
        read_members(raw_zip(b"data", b"{}", declared=2, method=0, entries=100_000), everything)


@pytest.mark.parametrize("keep", [0, 1, 10, 50, 100])
def test_a_truncated_archive_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(zipped({"data": b"{}" * 100})[:keep])
    with pytest.raises(UserError, match="damaged or no zip"):
        read_members(path, everything)


def test_a_flipped_bit_is_noticed() -> None:
    data = zipped({"data": b"0" * 100})
    at = data.index(b"0" * 100)
    with pytest.raises(UserError, match="'data' cannot be read"):
        read_members(data[: at + 5] + b"1" + data[at + 6 :], everything)


def test_a_missing_archive_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file at"):
        read_members(tmp_path / "none.zip", everything)
    with pytest.raises(UserError, match="is no file"):
        read_members(tmp_path, everything)


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 10)
    assert read_file(path, 10, what="thing") == b"x" * 10
    with pytest.raises(UserError, match="longer than the 9 bytes that a thing may have"):
        read_file(path, 9, what="thing")
    with pytest.raises(UserError, match="is no file"):
        read_file(Path("/dev/zero"), 9, what="thing")


def test_a_strangers_text_is_shown_on_one_line() -> None:
    assert printable("a\nb\x1b[31m" + "c" * 100, 12) == "a?b?[31mccc…"
