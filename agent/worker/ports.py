"""What serving and installation know of a worker, and nothing more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from agent.engine.interface import CanaryScore, Facts, Generation, StepEvent
from agent.worker.protocol import Usage
from agent.worker.settings import WorkerSettings

OnEvent = Callable[[StepEvent], None]


class Worker(Protocol):
    """A loaded model, as serving and installation see it."""

    @property
    def facts(self) -> Facts: ...

    @property
    def isolation(self) -> str: ...

    @property
    def pid(self) -> int: ...

    @property
    def usage(self) -> tuple[Usage, float] | None: ...

    @property
    def silence(self) -> float: ...

    @property
    def peak_rss_bytes(self) -> int: ...

    def admit(self, generation: Generation) -> None: ...

    def cancel(self, request: int) -> None: ...

    def update(self, request: int, changes: dict[str, Any]) -> None: ...

    async def score(
        self, prompt: str, text: str, adapter: str | None = None, picture: bytes | None = None
    ) -> CanaryScore: ...

    async def wait_closed(self) -> str: ...

    async def close(self) -> None: ...

    def kill(self) -> None: ...


class WorkerStarter(Protocol):
    """How a worker is started; :meth:`WorkerProcess.start` is one."""

    async def __call__(
        self,
        settings: WorkerSettings,
        bundle_dir: Path,
        *,
        derived_dir: Path | None = None,
        adapters: Mapping[str, Path] | None = None,
        nice: int = 0,
        reclaimable_bytes: int = 0,
        on_event: OnEvent,
    ) -> Worker: ...
