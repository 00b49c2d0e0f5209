"""Who listens to the story: a person at a terminal, or a test that only wants the facts."""

from __future__ import annotations

import sys
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn


class Narrator(Protocol):
    """Told what happens, as it happens."""

    verbose: bool

    def chapter(self, number: int, title: str) -> None: ...

    def say(self, text: str) -> None: ...

    def token(self, text: str) -> None:
        """A piece of an answer, to be shown where the last one ended."""

    def progress(self, phase: str, done: int, total: int) -> None:
        """A phase of the installation with its bytes (0 of 0 when it has none)."""

    def end_progress(self) -> None: ...


class Quiet:
    """Says nothing."""

    verbose = False

    def chapter(self, number: int, title: str) -> None: ...

    def say(self, text: str) -> None: ...

    def token(self, text: str) -> None: ...

    def progress(self, phase: str, done: int, total: int) -> None: ...

    def end_progress(self) -> None: ...


class Teller:
    """Tells it on a terminal, with a bar for bytes; plain lines elsewhere."""

    verbose = True

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._phase = ""

    def chapter(self, number: int, title: str) -> None:
        self._console.print(f"\n[bold]{number}. {title}[/bold]")

    def say(self, text: str) -> None:
        self._console.print(f"   {text}", markup=False)

    def token(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def progress(self, phase: str, done: int, total: int) -> None:
        if not self._console.is_terminal:
            if phase != self._phase:
                self.say(phase + (f" {total / 1e6:.1f} MB" if total else ""))
            self._phase = phase
            return
        if self._bar is None:
            self._bar = Progress(
                TextColumn("   {task.description:10}"), BarColumn(40), DownloadColumn(), console=self._console
            )
            self._task = self._bar.add_task(phase, total=None)
            self._bar.start()
        assert self._task is not None
        self._bar.update(self._task, description=phase, completed=done, total=total or None)

    def end_progress(self) -> None:
        self._phase = ""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
