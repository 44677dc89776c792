"""The one loop of `train`, `distill` and `record`: work is done item by item, and everything else happens between two items."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from rldistill.interrupts import deferred_interrupt
from rldistill.progress import Progress
from rldistill.runs.records import Record


class Work(Protocol):
    """What the loop drives to its end. Whoever starts the loop saves it between two items."""

    @property
    def total(self) -> int:
        """Units of the whole work."""

    @property
    def done(self) -> int:
        """Units that are behind it, those of earlier processes included."""

    @property
    def unit(self) -> str:
        """What is counted, such as `steps`."""

    @property
    def must_save(self) -> bool:
        """Whether the work must be saved before the next item."""

    def advance(self) -> Sequence[Record]:
        """Does one item, and returns what is to be logged of it."""

    def figures(self) -> Mapping[str, float]:
        """What the progress shows of the last item."""


Stop: TypeAlias = Callable[[], None]
"""Call it where work can be left: it saves and raises KeyboardInterrupt if the user has asked for that."""
Hook: TypeAlias = Callable[[Stop], bool]
"""Called between two items. Whether it took the progress for itself, and the work should be saved."""


@dataclass(frozen=True)
class Pace:
    """Seconds between two of what the loop does by the clock."""

    saving: float = math.inf
    showing: float = 0.5


def work_through(
    work: Work,
    title: str,
    progress: Progress,
    *,
    save: Callable[[], None],
    log: Callable[[Record], None] = lambda record: None,
    hooks: Sequence[Hook] = (),
    on_stop: Callable[[], None] = lambda: None,
    pace: Pace = Pace(),
) -> None:
    """Does the work from where it stands to its end, and saves it there.

    Args:
        work: what is done.
        title: for the progress.
        progress: shows how far the work is.
        save: keeps the state of the work; called when the pace or `Work.must_save` asks for it, and at the end.
        log: takes each record.
        hooks: evaluations, snapshots and the like, called in this order between two items, before the first and after the last.
        on_stop: called before a KeyboardInterrupt, when the work is saved.
        pace: how often the work is saved, and its progress shown.

    Raises:
        KeyboardInterrupt: the user asked to stop, and the work is saved.
    """
    with deferred_interrupt() as interrupted:

        def stop_if_asked() -> None:
            if interrupted():
                save()
                on_stop()
                raise KeyboardInterrupt

        def pause() -> bool:
            busy = [hook(stop_if_asked) for hook in hooks]
            if any(busy):
                progress.start(title, work.total, work.unit, done=work.done)
            return any(busy)

        progress.start(title, work.total, work.unit, done=work.done)
        saved = last_update = time.monotonic()
        if pause():
            save()
            saved = time.monotonic()
        while work.done < work.total:
            stop_if_asked()
            for record in work.advance():
                log(record)
            now = time.monotonic()
            if now - last_update >= pace.showing:
                progress.update(work.done, **work.figures())
                last_update = now
            if pause() or work.must_save or now - saved >= pace.saving:
                save()
                saved = time.monotonic()
        stop_if_asked()
    save()


class Clock:
    """Seconds that a run has taken, those of earlier processes included."""

    def __init__(self) -> None:
        self._seconds, self._began = 0.0, time.monotonic()
        self._cpu_seconds, self._cpu_began = 0.0, time.process_time()

    @property
    def seconds(self) -> float:
        """By the clock on the wall."""
        return self._seconds + time.monotonic() - self._began

    @property
    def cpu_seconds(self) -> float:
        """Of all cores together."""
        return self._cpu_seconds + time.process_time() - self._cpu_began

    def state_dict(self) -> dict[str, float]:
        """Both."""
        return {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave."""
        self._seconds, self._cpu_seconds = float(state["seconds"]), float(state.get("cpu_seconds", 0.0))


def say_once(holds: Callable[[], bool], line: Callable[[], str], say: Callable[[str], object]) -> Hook:
    """A hook that says a line as soon as something holds."""
    waiting = True

    def hook(stop_if_asked: Stop) -> bool:
        nonlocal waiting
        if waiting and holds():
            waiting = False
            say(line())
        return False

    return hook
