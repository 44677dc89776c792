import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rldistill.documents import read_json
from rldistill.files import (
    check_new_file,
    generator_state,
    is_standard_output,
    load_generator_state,
    load_state,
    open_regular,
    place_at,
    read_regular,
    replace_file,
    replacing,
    save_state,
)
from rldistill.holding import new_folder
from rldistill.types import UserError

STATE = {
    "weights": {"a": torch.arange(6, dtype=torch.float32).reshape(2, 3)},
    "list": [1, 2.5, "three", None, True],
    "pair": (1, 2),
    "array": np.arange(4, dtype=np.int64)[::2],
    "scalar": np.float64(0.25),
}


def test_a_replaced_file_holds_the_new_bytes_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    replace_file(path, b"old")
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o400


def test_a_write_that_fails_halfway_leaves_the_old_file_and_says_why(tmp_path: Path, full_disk: Any) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    says = r"cannot write .*file: File too large; what was there before is untouched"
    with full_disk(4096), pytest.raises(UserError, match=says):
        replace_file(path, bytes(1_000_000))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_in_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    with pytest.raises(UserError, match="cannot write .*No such file or directory"):
        replace_file(tmp_path / "missing" / "file", b"data")
    with pytest.raises(UserError, match="cannot write .*Not a directory"):
        replace_file(tmp_path / "plain" / "file", b"data")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_file_that_is_not_written_to_its_end_is_not_there(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "old").write_bytes(b"old")

    def write_half(path: Path) -> None:
        with replacing(path) as file:
            file.write(b"half")
            assert len(os.listdir(tmp_path)) == 2, "it is written aside"
            raise error

    for name in ("old", "new"):
        with pytest.raises(error):
            write_half(tmp_path / name)
    assert os.listdir(tmp_path) == ["old"]
    assert (tmp_path / "old").read_bytes() == b"old"


def test_a_place_for_a_new_file_is_checked_before_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    check_new_file(tmp_path / "new", force=False)
    check_new_file(tmp_path / "old", force=True)
    with pytest.raises(UserError, match="old exists: replace it with --force"):
        check_new_file(tmp_path / "old", force=False)
    with pytest.raises(UserError, match="is a folder: name a file with --out"):
        check_new_file(tmp_path, force=True)
    with pytest.raises(UserError, match="there is no folder"):
        check_new_file(tmp_path / "missing" / "new", force=True)
    assert os.listdir(tmp_path) == ["old"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_process_killed_while_writing_leaves_the_old_file(
    tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(os, call, lambda *arguments: os.kill(os.getpid(), signal.SIGKILL))
        try:
            replace_file(path, b"new" * 1000)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[1, 2]", b'{"a": 1', b"\xff\xfe", b"null", b"[" * 10**5, b'{"a":' * 10**5],
    ids=lambda data: str(data[:10]),
)
def test_what_is_no_json_object_is_refused_by_name(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "card.json"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"card\.json is damaged"):
        read_json(path)


def test_a_missing_json_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*card\.json: No such file"):
        read_json(tmp_path / "card.json")


def test_a_state_comes_back_with_arrays_as_tensors(tmp_path: Path) -> None:
    save_state(tmp_path / "state", STATE)
    back = load_state(tmp_path / "state")
    assert torch.equal(back["weights"]["a"], STATE["weights"]["a"])  # type: ignore[index]  # a dict of many kinds
    assert back["list"] == [1, 2.5, "three", None, True]
    assert back["pair"] == [1, 2]
    assert torch.equal(back["array"], torch.tensor([0, 2]))
    assert back["scalar"] == 0.25
    assert type(back["scalar"]) is float


@pytest.fixture(scope="module")
def saved() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        save_state(Path(folder) / "state", STATE)
        return (Path(folder) / "state").read_bytes()


@given(data=st.data())
def test_a_truncated_or_altered_state_is_refused(saved: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(saved) - 1))
    bits = data.draw(st.integers(1, 255))
    altered = saved[:at] + bytes([saved[at] ^ bits]) + saved[at + 1 :]
    for wrong in (altered, saved[:at], saved + b"\0"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "state"
            path.write_bytes(wrong)
            with pytest.raises(UserError, match=r"the checkpoint .*state is damaged"):
                load_state(path)


def test_a_missing_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the checkpoint"):
        load_state(tmp_path / "state")


@given(seed=st.integers(0, 2**32), drawn=st.integers(0, 7))
def test_a_generator_put_back_draws_the_same_numbers(seed: int, drawn: int) -> None:
    generator = np.random.default_rng(seed)
    generator.integers(5, size=drawn, dtype=np.uint32)  # an odd number of 32-bit draws leaves half a word over
    other = np.random.default_rng(0)
    load_generator_state(other, generator_state(generator))
    assert np.array_equal(
        generator.integers(1000, size=9, dtype=np.uint32), other.integers(1000, size=9, dtype=np.uint32)
    )
    assert np.array_equal(generator.normal(size=9), other.normal(size=9))


def test_a_new_folder_takes_the_place_of_another_when_it_is_whole(tmp_path: Path) -> None:
    with new_folder(tmp_path / "a") as folder:
        (folder / "file").write_text("1")
        assert not (tmp_path / "a").exists()
    with new_folder(tmp_path / "a", replaceable=lambda folder: None) as folder:
        (folder / "other").write_text("2")
        assert (tmp_path / "a" / "file").read_text() == "1"
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["a", "a/other"]


def test_a_folder_that_fails_halfway_leaves_what_it_should_have_replaced(tmp_path: Path) -> None:
    def half(path: Path, error: BaseException) -> None:
        with new_folder(path, replaceable=lambda folder: None) as folder:
            (folder / "file").write_text("half")
            raise error

    with new_folder(tmp_path / "a") as folder:
        (folder / "file").write_text("whole")
    for path in (tmp_path / "a", tmp_path / "b"):
        with pytest.raises(KeyboardInterrupt):
            half(path, KeyboardInterrupt())
        with pytest.raises(
            UserError, match="cannot write .*: No space left on device; what was there before is untouched"
        ):
            half(path, OSError(28, "No space left on device"))
    assert (tmp_path / "a" / "file").read_text() == "whole"
    assert os.listdir(tmp_path) == ["a"]


def test_a_new_folder_is_there_as_a_whole(tmp_path: Path) -> None:
    with new_folder(tmp_path / "deep" / "new") as aside:
        (aside / "part").mkdir()
        (aside / "part" / "file").write_bytes(b"data")
        assert not (tmp_path / "deep" / "new").exists(), "not before it is whole"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["new"]
    assert (tmp_path / "deep" / "new" / "part" / "file").read_bytes() == b"data"


def fill(path: Path, error: BaseException | None = None, taken: Path | None = None) -> None:
    with new_folder(path) as aside:
        (aside / "file").write_bytes(b"data")
        if error is not None:
            raise error
        if taken is not None:
            taken.mkdir()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (UserError("no"), UserError),
        (OSError(28, "No space left on device"), UserError),
    ],
)
def test_a_new_folder_that_fails_leaves_nothing_nor_the_folders_above_it(
    tmp_path: Path, error: BaseException, expected: type[BaseException]
) -> None:
    with pytest.raises(expected, match="No space left" if isinstance(error, OSError) else None):
        fill(tmp_path / "deep" / "er" / "new", error)
    assert os.listdir(tmp_path) == []


def test_a_new_folder_takes_no_place_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("there", "link"):
        with pytest.raises(UserError, match="exists: choose another --out"):
            fill(tmp_path / name)
    with pytest.raises(UserError, match="exists"):
        fill(tmp_path / "late", taken=tmp_path / "late")
    assert sorted(os.listdir(tmp_path)) == ["late", "link", "there"]
    assert os.listdir(tmp_path / "late") == []


def test_links_stay_and_what_they_lead_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_bytes(b"old")
    for name, leads in [("link", "there/file"), ("second", "link"), ("nothing", "there/new")]:
        (tmp_path / name).symlink_to(leads)
    replace_file(tmp_path / "second", b"new")
    assert (tmp_path / "there" / "file").read_bytes() == b"new"
    replace_file(tmp_path / "nothing", b"made")
    assert (tmp_path / "there" / "new").read_bytes() == b"made"
    assert all((tmp_path / name).is_symlink() for name in ("link", "second", "nothing"))
    assert sorted(os.listdir(tmp_path / "there")) == ["file", "new"]
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(UserError, match="cannot write .*round"):
        replace_file(tmp_path / "round", b"data")


def test_a_new_file_takes_no_name_that_another_process_has_taken_meanwhile(tmp_path: Path) -> None:
    def write_late() -> None:
        with replacing(tmp_path / "file", new=True) as file:
            file.write(b"late")
            (tmp_path / "file").write_bytes(b"early")

    with pytest.raises(UserError, match="exists"):
        write_late()
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"early"
    replace_file(tmp_path / "other", b"data", new=True)
    assert (tmp_path / "other").read_bytes() == b"data"
    assert sorted(os.listdir(tmp_path)) == ["file", "other"]


def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert place_at(pipe) == "stream"
    check_new_file(pipe, force=False)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
    reader.start()
    data = bytes(range(256)) * 1000  # more than a pipe holds
    replace_file(pipe, data)
    reader.join(10)
    assert received == [data]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_pipe_that_nobody_reads_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rldistill.files._READER_SECONDS", 0.1)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="nobody reads this pipe"):
        replace_file(tmp_path / "pipe", b"data")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def device(path: Path, like: str) -> Path:
    """A node of our own: what goes wrong must not end the system's."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.stat(like).st_rdev)
        open(path, "wb").close()
    except OSError:
        pytest.skip("device nodes are for root alone")
    return path


def test_a_device_is_written_to_and_stays_one(tmp_path: Path) -> None:
    null, full = device(tmp_path / "null", "/dev/null"), device(tmp_path / "full", "/dev/full")
    replace_file(null, b"data")
    with pytest.raises(UserError, match="cannot write .*full: No space left"):
        replace_file(full, b"data")
    assert all(stat.S_ISCHR(path.stat().st_mode) for path in (null, full))
    assert sorted(os.listdir(tmp_path)) == ["full", "null"]


def test_a_socket_is_neither_written_nor_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind("socket")
        with pytest.raises(UserError, match="name a file"):
            replace_file(Path("socket"), b"data")
        with pytest.raises(OSError, match="a socket, not a file"):
            open_regular("socket")


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
@pytest.mark.slow
def test_standard_output_is_written_to_wherever_it_goes(tmp_path: Path, name: str) -> None:
    program = (
        "import sys; from pathlib import Path; from rldistill.files import *; print('first');"
        f"assert place_at(Path({name!r})) == 'stream' and is_standard_output(Path({name!r}));"
        f"replace_file(Path({name!r}), b'second\\n'); print('third')"
    )
    into_pipe = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True)
    assert into_pipe.stdout == b"first\nsecond\nthird\n"
    with open(tmp_path / "file", "wb") as file:
        subprocess.run([sys.executable, "-c", program], stdout=file, check=True)
    assert (tmp_path / "file").read_bytes() == b"first\nsecond\nthird\n"
    assert not is_standard_output(tmp_path / "file")


def test_what_is_no_regular_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"data")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link") == b"data"
    assert read_regular(tmp_path / "link", 2) == b"da"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to pipe").symlink_to("pipe")
    for path in (tmp_path / "pipe", tmp_path / "to pipe", Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(OSError, match="not a file"):
            open_regular(path)
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "nothing")
