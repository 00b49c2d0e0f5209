"""One progress display for a whole build, whoever makes the noise underneath.

A build has stages; a stage may know how much of it is done. On a terminal that is a bar, elsewhere one line at the
start and one at the end of each stage, so that logs stay readable.
"""

from __future__ import annotations

import sys
import time
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class BuildProgress(Protocol):
    """What a build reports to. Calls come from one thread, in order: ``stage``, ``advance`` …, ``stage``, ``close``."""

    def stage(self, number: int, of: int, title: str) -> None:
        """A new stage begins; the one before is done."""

    def advance(self, done: float, total: float) -> None:
        """``done`` of ``total`` of this stage, in whatever unit the stage counts."""

    def say(self, line: str) -> None:
        """A fact worth a line."""

    def close(self) -> None:
        """The build is over, well or not."""


class SilentProgress:
    """For scripts and tests."""

    def stage(self, number: int, of: int, title: str) -> None: ...

    def advance(self, done: float, total: float) -> None: ...

    def say(self, line: str) -> None: ...

    def close(self) -> None: ...


class LineProgress:
    """A line when a stage ends, with the seconds it took."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._title: str | None = None
        self._since = 0.0

    def _finish(self) -> None:
        if self._title is not None:
            print(f"{self._title} ({time.monotonic() - self._since:.1f} s)", file=self._stream, flush=True)
        self._title = None

    def stage(self, number: int, of: int, title: str) -> None:
        self._finish()
        self._title, self._since = f"[{number}/{of}] {title}", time.monotonic()

    def advance(self, done: float, total: float) -> None: ...

    def say(self, line: str) -> None:
        self._finish()
        print(f"      {line}", file=self._stream, flush=True)

    def close(self) -> None:
        self._finish()


class BarProgress:
    """A bar a stage, on a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(file=stream),
        )
        self._bars.start()
        self._task: int | None = None

    def _finish(self) -> None:
        if self._task is not None:
            task = next(task for task in self._bars.tasks if task.id == self._task)
            self._bars.update(task.id, total=task.total or 1, completed=task.total or 1)
        self._task = None

    def stage(self, number: int, of: int, title: str) -> None:
        self._finish()
        self._task = self._bars.add_task(f"[{number}/{of}] {title}".replace("[", r"\["), total=None)

    def advance(self, done: float, total: float) -> None:
        for task in self._bars.tasks:
            if task.id == self._task:
                self._bars.update(task.id, completed=done, total=total)

    def say(self, line: str) -> None:
        self._finish()
        self._bars.console.print(f"      {line}", markup=False, highlight=False)

    def close(self) -> None:
        self._task = None
        self._bars.stop()


def choose_progress(*, quiet: bool = False) -> BuildProgress:
    """Bars on a terminal, lines elsewhere, nothing when ``quiet``; always on stderr, so stdout stays the result's."""
    if quiet:
        return SilentProgress()
    return BarProgress(sys.stderr) if sys.stderr.isatty() else LineProgress(sys.stderr)
