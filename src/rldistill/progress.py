"""Live progress: a bar with rate and time left on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """An error like others: rich would end the program."""
        raise BrokenPipeError


class Progress(Protocol):
    """How a verb reports its progress. Use it as a context manager."""

    def start(self, what: str, total: int, unit: str, *, done: int = 0) -> None:
        """Begins a stage of `total` units, of which an earlier process has done `done`."""

    def update(self, done: int, **figures: float) -> None:
        """Reports how many units are done. Figures are displayed until later ones replace them; NaN removes one."""

    def say(self, line: str) -> None:
        """Prints a line that stays."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Removes the bar from the terminal."""


class Silent:
    """Reports nothing: the default of the library's functions."""

    def start(self, what: str, total: int, unit: str, *, done: int = 0) -> None:
        """Nothing."""

    def update(self, done: int, **figures: float) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class Talking:
    """Reports progress to people, on stderr, so that what a verb prints can be piped. A closed or full stderr stops no work."""

    PLAIN_SECONDS = 5.0
    """Between two lines where the output is no terminal."""

    def __init__(self) -> None:
        self._console = _Console(stderr=True, highlight=False, emoji=False)
        self._bar: Bar | None = None
        self._figures: dict[str, float] = {}
        self._what, self._total, self._unit, self._first = "", 0, "", 0
        self._began = self._last_print = time.monotonic()

    def start(self, what: str, total: int, unit: str, *, done: int = 0) -> None:
        """Begins a stage."""
        self._stop()
        self._what, self._total, self._unit, self._first = what, total, unit, done
        self._began = self._last_print = time.monotonic()
        self._figures = {}
        if self._console.is_terminal:
            self._bar = Bar(
                TextColumn("{task.description}", style="bold", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[unit]}", markup=False),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}", markup=False),
                console=self._console,
                transient=True,
            )
            with self._if_possible():
                self._bar.start()
            self._task = self._bar.add_task(what, total=total, completed=done, unit=unit, figures="")

    def update(self, done: int, **figures: float) -> None:
        """Moves the bar, or prints a line if the last one is some seconds old."""
        self._figures = {name: value for name, value in (self._figures | figures).items() if not math.isnan(value)}
        now = time.monotonic()
        rate = (done - self._first) / max(now - self._began, 1e-9)
        text = f"{rate:,.{0 if rate >= 10 else 2}f} {self._unit}/s  " + "  ".join(
            f"{name} {f'{value:,}' if isinstance(value, int) else f'{value:.4g}'}"
            for name, value in self._figures.items()
        )
        if self._bar is not None:
            with self._if_possible():
                self._bar.update(self._task, completed=done, figures=text)
        elif now - self._last_print >= self.PLAIN_SECONDS:
            self._last_print = now
            left = clock(max(self._total - done, 0) / rate) if rate else "unknown"
            with suppress(OSError):
                print(
                    f"{self._what}: {done:,} of {self._total:,} {self._unit}  {text}  left {left}",
                    file=sys.stderr,
                    flush=True,
                )

    def say(self, line: str) -> None:
        """Prints the line above the bar."""
        with self._if_possible():
            self._console.print(line, markup=False, soft_wrap=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    @contextmanager
    def _if_possible(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self._console.quiet = True

    def _stop(self) -> None:
        if self._bar is not None:
            with self._if_possible():
                self._bar.stop()
            self._bar = None


def clock(seconds: float) -> str:
    """As 1:02:03 or 2:03."""
    whole = int(min(seconds, 359_999))
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def table(rows: Sequence[Mapping[str, str]], *, stderr: bool = False) -> None:
    """Prints rows of equal keys as a table, their text as it is: brackets in a path are no markup."""
    from rich.table import Table

    drawn = Table()
    for number, name in enumerate(rows[0] if rows else {}):
        drawn.add_column(escape(name), justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        drawn.add_row(*map(escape, row.values()))
    console = _Console(stderr=stderr, highlight=False, emoji=False)
    # A pipe has no width: let the table have the one it needs.
    (console if console.is_terminal else _Console(stderr=stderr, highlight=False, emoji=False, width=200)).print(drawn)
