"""Places that one process works in: locks, half files of killed processes, folders that appear as a whole."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from rldistill.files import lock, name_aside, replace_file, replacing
from rldistill.holding import alone, claimed, folder_aside, held_file, held_folder, new_folder
from rldistill.types import UserError


def killed(work: Callable[[], object]) -> None:
    """Runs in a process of its own, which kills itself when `work` is done."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def half_file(path: Path) -> None:
    with replacing(path) as file:
        file.write(b"half")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def half_folder(path: Path) -> None:
    with new_folder(path) as folder:
        (folder / "file").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_half_files_of_a_killed_process_go_with_the_next_write_and_those_of_a_living_one_stay(tmp_path: Path) -> None:
    path = tmp_path / "file"
    mine = [tmp_path / name for name in (".file.notes.tmp", ".file.tmp", "file.12345678.tmp", ".other.12345678.tmp")]
    for own in mine:
        own.write_bytes(b"mine")
    killed(lambda: half_file(path))
    assert len(os.listdir(tmp_path)) == len(mine) + 1
    with replacing(path) as living:
        replace_file(path, b"meanwhile")
        assert len(os.listdir(tmp_path)) == len(mine) + 2, "the dead one is gone, the living one is there"
        assert path.read_bytes() == b"meanwhile"
        living.write(b"last")
    assert path.read_bytes() == b"last"
    assert sorted(os.listdir(tmp_path)) == sorted(["file", *(own.name for own in mine)])


def test_names_aside_do_not_follow_from_the_number_of_the_process(tmp_path: Path) -> None:
    names = {name_aside(tmp_path / "file") for _ in range(1000)}
    assert len(names) == 1000
    assert not any(str(os.getpid()) in name.name.split(".") for name in names)


def test_half_folders_of_killed_processes_go_and_one_that_was_to_be_replaced_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "data"
    killed(lambda: half_folder(path))
    with new_folder(path) as folder:
        (folder / "file").write_bytes(b"whole")
    assert os.listdir(tmp_path) == ["data"]

    path.rename(tmp_path / ".data.0123abcd.old")  # killed between the two renames
    (tmp_path / ".data.notes.old").mkdir()
    with folder_aside(path):
        assert (path / "file").read_bytes() == b"whole"
    assert sorted(os.listdir(tmp_path)) == [".data.notes.old", "data"]


def test_a_place_is_claimed_by_one_alone_and_free_again_when_its_holder_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "data"
    with new_folder(path) as folder:
        (folder / "first").touch()
        with pytest.raises(UserError, match="another process works on .*data"), new_folder(path):
            pass
        with pytest.raises(UserError, match="another process works on"), claimed(path):
            pass
    assert os.listdir(tmp_path) == ["data"]
    assert os.listdir(path) == ["first"]

    killed(lambda: claimed(tmp_path / "other").__enter__())
    with claimed(tmp_path / "other"):
        pass
    assert os.listdir(tmp_path) == ["data"]


def test_a_lock_file_of_the_user_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / ".data.lock").write_bytes(b"mine")
    with claimed(tmp_path / "data"):
        pass
    assert (tmp_path / ".data.lock").read_bytes() == b"mine"


def test_a_lock_that_its_holder_removes_is_not_taken_for_one(tmp_path: Path) -> None:
    """Many at once: two are never inside together, and each comes in at last."""
    inside, most, done = 0, 0, 0
    counting = threading.Lock()

    def work() -> None:
        nonlocal inside, most, done
        while True:
            try:
                with claimed(tmp_path / "data"):
                    with counting:
                        inside += 1
                        most = max(most, inside)
                    with counting:
                        inside -= 1
                        done += 1
                    return
            except UserError:
                pass

    workers = [threading.Thread(target=work) for _ in range(20)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert (most, done) == (1, 20)


def test_a_folder_that_is_held_is_made_by_one_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "data"
    with held_folder(path, taken="there already") as made:
        assert made
        with pytest.raises(UserError, match="there already"), held_folder(path, taken="there already"):
            pass
        with pytest.raises(UserError, match="another process works on"), held_folder(path, taken=None):
            pass
    assert os.listdir(tmp_path) == [], "empty, so it goes with the folder above it"
    with held_folder(path, taken=None):
        (path / "file").touch()
    with held_folder(path, taken=None) as made:
        assert not made
    assert os.listdir(path) == ["file"]
    (tmp_path / "plain").touch()
    with pytest.raises(UserError, match="cannot open .*plain"), held_folder(tmp_path / "plain", taken=None):
        pass


def test_a_folder_that_is_moved_away_while_it_is_locked_is_not_the_one_that_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()

    def moved(opened: int) -> str:
        if not (tmp_path / "away").exists():
            (tmp_path / "data").rename(tmp_path / "away")
            (tmp_path / "data").mkdir()
        return lock(opened)

    monkeypatch.setattr("rldistill.holding.lock", moved)
    with alone(tmp_path / "data"):
        with alone(tmp_path / "away"):
            pass
        with pytest.raises(UserError, match="another process"), alone(tmp_path / "data"):
            pass


def test_where_no_file_is_ever_the_same_work_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.samestat", lambda one, other: False)
    with alone(tmp_path), claimed(tmp_path / "data") as locked, new_folder(tmp_path / "more") as folder:
        (folder / "file").touch()
        assert not locked
    assert (tmp_path / "more" / "file").exists()


def test_a_lock_that_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    with pytest.raises(UserError, match="no regular file"), held_file(tmp_path / "lock", tmp_path):
        pass


def test_what_a_user_puts_into_a_folder_that_is_replaced_brings_it_back(tmp_path: Path) -> None:
    def only_file(folder: Path) -> None:
        if os.listdir(folder) != ["file"]:
            raise UserError("it holds what is not ours")

    def replace_it(data: bytes, late: bool) -> None:
        with new_folder(tmp_path / "data", replaceable=only_file) as folder:
            (folder / "file").write_bytes(data)
            if late:
                (tmp_path / "data" / "mine").write_bytes(b"mine")

    replace_it(b"1", False)
    replace_it(b"2", False)
    with pytest.raises(UserError, match="not ours"):
        replace_it(b"3", True)
    assert os.listdir(tmp_path) == ["data"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()} == {"file": b"2", "mine": b"mine"}
