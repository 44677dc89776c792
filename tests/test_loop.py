"""The one loop: what happens between two items, in which order, and how it ends."""

import os
import signal
from collections.abc import Callable, Sequence

import pytest

from rldistill.progress import Silent
from rldistill.runs.loop import Pace, Stop, say_once, work_through
from rldistill.runs.records import Record, Train


class Counting:
    """Counts to its total by twos, and asks to be saved at some counts."""

    unit = "steps"

    def __init__(self, total: int, done: int = 0, save_at: Sequence[int] = ()) -> None:
        self.total, self.done, self.save_at = total, done, save_at
        self.during: Callable[[int], object] = lambda done: None

    @property
    def must_save(self) -> bool:
        return self.done in self.save_at

    def advance(self) -> Sequence[Record]:
        self.done += 2
        self.during(self.done)
        return [Train(updates=self.done)]

    def figures(self) -> dict[str, float]:
        return {"loss": float(self.done)}


class Kept:
    """What the loop calls, in order."""

    def __init__(self, work: Counting) -> None:
        self.work = work
        self.calls: list[tuple[str, int]] = []

    def log(self, record: Record) -> None:
        assert isinstance(record, Train)
        self.calls.append(("log", record.updates or 0))

    def save(self) -> None:
        self.calls.append(("save", self.work.done))

    def hook(self, stop_if_asked: Stop) -> bool:
        if self.work.done != 4:
            return False
        self.calls.append(("hook", self.work.done))
        stop_if_asked()
        return True


def work_on(work: Counting, kept: Kept, **options: float) -> None:
    work_through(work, "count", Silent(), save=kept.save, log=kept.log, hooks=[kept.hook], pace=Pace(**options))


def test_work_is_logged_and_saved_when_it_must_be_after_a_hook_and_at_the_end() -> None:
    work = Counting(7, save_at=[2])
    kept = Kept(work)
    work_on(work, kept)
    assert kept.calls == [
        ("log", 2),
        ("save", 2),
        ("log", 4),
        ("hook", 4),
        ("save", 4),
        ("log", 6),
        ("log", 8),
        ("save", 8),
    ]


def test_a_hook_that_is_due_where_the_work_goes_on_comes_before_the_next_item() -> None:
    work = Counting(5, done=4)
    kept = Kept(work)
    work_on(work, kept)
    assert kept.calls == [("hook", 4), ("save", 4), ("log", 6), ("save", 6)]


def test_finished_work_is_only_saved() -> None:
    work = Counting(6, done=6)
    kept = Kept(work)
    work_on(work, kept)
    assert kept.calls == [("save", 6)]


def test_with_a_pace_of_no_seconds_each_item_is_saved() -> None:
    work = Counting(4)
    kept = Kept(work)
    work_on(work, kept, saving=0.0)
    assert [call for call in kept.calls if call[0] == "save"] == [("save", 2), ("save", 4), ("save", 4)]


@pytest.mark.parametrize(("at", "logged"), [(2, [2]), (6, [2, 4, 6]), (8, [2, 4, 6, 8])])
def test_a_signal_ends_the_work_after_its_item_and_it_is_saved(at: int, logged: list[int]) -> None:
    work = Counting(7)
    kept = Kept(work)
    work.during = lambda done: os.kill(os.getpid(), signal.SIGINT) if done == at else None
    stopped: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        work_through(work, "count", Silent(), save=kept.save, log=kept.log, on_stop=lambda: stopped.append("stopped"))
    assert [number for name, number in kept.calls if name == "log"] == logged
    assert kept.calls[-1] == ("save", at)
    assert stopped == ["stopped"]


def test_a_signal_in_the_middle_of_a_hook_ends_it_where_it_asks() -> None:
    work = Counting(7)
    kept = Kept(work)
    work.during = lambda done: os.kill(os.getpid(), signal.SIGTERM) if done == 4 else None
    with pytest.raises(KeyboardInterrupt):
        work_on(work, kept)
    assert kept.calls == [("log", 2), ("log", 4), ("hook", 4), ("save", 4)]


def test_progress_is_shown_with_the_figures_of_the_item() -> None:
    class Showing(Silent):
        def __init__(self) -> None:
            self.calls: list[tuple[object, ...]] = []

        def start(self, what: str, total: int, unit: str, *, done: int = 0) -> None:
            self.calls.append((what, total, unit, done))

        def update(self, done: int, **figures: float) -> None:
            self.calls.append((done, figures))

    progress, work = Showing(), Counting(4, done=1)
    work_through(work, "count", progress, save=lambda: None, pace=Pace(showing=0.0))
    assert progress.calls == [("count", 4, "steps", 1), (3, {"loss": 3.0}), (5, {"loss": 5.0})]
    progress, work = Showing(), Counting(40)
    work_through(work, "count", progress, save=lambda: None, pace=Pace(showing=3600.0))
    assert progress.calls == [("count", 40, "steps", 0)]


def test_a_remark_is_made_once() -> None:
    lines: list[str] = []
    work = Counting(9)
    hook = say_once(lambda: work.done > 3, lambda: f"above three at {work.done}", lines.append)
    work_through(work, "count", Silent(), save=lambda: None, hooks=[hook])
    assert lines == ["above three at 4"]
