"""One progress display for a whole build, whoever makes the noise underneath.

A build has stages; a stage may know how much of it is done and where its bytes go. On a terminal that is a bar,
elsewhere one line at the end of each stage and one every minute of a long one, so that logs stay readable.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TextIO

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

WORD_SECONDS = 60.0
"""Where nobody sees a bar, a stage that takes longer says so often how far it is."""


class BuildProgress(Protocol):
    """What a build reports to. Calls come from one thread, in order: ``stage``, ``advance`` …, ``stage``, ``close``."""

    def stage(self, number: int, of: int, title: str, output: Path | None = None) -> None:
        """A new stage begins; the one before is done. What grows below ``output`` is what it writes."""

    def advance(self, done: float, total: float) -> None:
        """``done`` of ``total`` of this stage, in whatever unit the stage counts."""

    def message(self, line: str) -> None:
        """A fact worth a line."""

    def close(self) -> None:
        """The build is over, well or not."""


class SilentProgress:
    """For scripts and tests."""

    def stage(self, number: int, of: int, title: str, output: Path | None = None) -> None: ...

    def advance(self, done: float, total: float) -> None: ...

    def message(self, line: str) -> None: ...

    def close(self) -> None: ...


def written_bytes(output: Path | None) -> int:
    """Bytes of all files below ``output``, which may change meanwhile or not be there yet."""
    total = 0
    waiting = [] if output is None else [os.fspath(output)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
        except OSError:
            # Renamed or removed while we looked: it counts elsewhere, or not at all.
            continue
    return total


class LineProgress:
    """A line when a stage ends, with the seconds it took and the bytes it wrote; a word every minute until then."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._title: str | None = None
        self._output: Path | None = None
        self._before = 0
        self._since = 0.0
        self._printed_at = 0.0
        self._part = (0.0, 0.0)
        self._share = 0.0

    def _finish(self) -> None:
        if self._title is not None:
            self._print(f"{self._title} ({', '.join([f'{self._clock() - self._since:.1f} s', *self._bytes()])})")
        self._title = None

    def _bytes(self) -> list[str]:
        size = written_bytes(self._output) - self._before
        return [decimal(size)] if size > 0 else []

    def _print(self, line: str) -> None:
        print(line, file=self._stream, flush=True)

    def stage(self, number: int, of: int, title: str, output: Path | None = None) -> None:
        self._finish()
        self._title, self._output, self._before = f"[{number}/{of}] {title}", output, written_bytes(output)
        self._since = self._printed_at = self._clock()
        self._part, self._share = (self._since, 0.0), 0.0

    def advance(self, done: float, total: float) -> None:
        now = self._clock()
        before, self._share = self._share, done / total if total else 0.0
        if self._share < before:  # the stage's next piece of work, which goes at a pace of its own
            self._part = (now, self._share)
        if now - self._printed_at < WORD_SECONDS or self._title is None:
            return
        self._printed_at = now
        share = [f"{done / total:.0%}"] if total else []
        since, share_then = self._part
        if self._share > share_then:
            minutes = (now - since) * (1 - self._share) / (self._share - share_then) / 60
            time_word = f"{minutes:.0f} min left"
        else:
            time_word = f"{(now - self._since) / 60:.0f} min so far"
        self._print(f"{self._title}: {', '.join([*share, *self._bytes(), time_word])}")

    def message(self, line: str) -> None:
        self._finish()
        self._print(f"      {line}")

    def close(self) -> None:
        self._finish()


class WrittenColumn(ProgressColumn):
    """Bytes that a stage has written: what came to those that were below its ``output`` ``before``."""

    max_refresh = 1.0

    def render(self, task: Task) -> Text:
        size = task.fields["size"] if task.finished else _grown(task)
        return Text(decimal(size) if size > 0 else "", style="progress.download", justify="right")


def _grown(task: Task) -> int:
    return written_bytes(task.fields["output"]) - int(task.fields["before"])


class BarProgress:
    """A bar a stage, on a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            WrittenColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(file=stream),
        )
        self._bars.start()
        self._task: int | None = None

    def _finish(self) -> None:
        if self._task is not None:
            task = next(task for task in self._bars.tasks if task.id == self._task)
            # Looked up now: the next stage may move what this one wrote.
            self._bars.update(task.id, total=task.total or 1, completed=task.total or 1, size=_grown(task))
        self._task = None

    def stage(self, number: int, of: int, title: str, output: Path | None = None) -> None:
        self._finish()
        name = f"[{number}/{of}] {title}".replace("[", r"\[")
        self._task = self._bars.add_task(name, total=None, output=output, before=written_bytes(output), size=0)

    def advance(self, done: float, total: float) -> None:
        for task in self._bars.tasks:
            if task.id == self._task:
                self._bars.update(task.id, completed=done, total=total)

    def message(self, line: str) -> None:
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
