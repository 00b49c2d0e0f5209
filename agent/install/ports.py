"""What installation and serving know of each other, and nothing more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

from msgspec import Struct

from contract.bundle.manifest import Manifest
from contract.bundle.verifier import VerifiedDirectory
from contract.identifiers import Digest

SwapMode = Literal["overlap", "drain"]

Clock = Callable[[], float]
"""Seconds: monotonic ones as ``clock``, Unix seconds as ``now``."""

Uniform = Callable[[float, float], float]
"""A random number between two."""


class SealedBundle(Struct, frozen=True):
    """A bundle on disk whose every byte was verified against a trusted manifest, which ``verified`` proves.

    ``directory`` is read-only and named after ``digest``; ``derived`` holds prepacked weights of this CPU, if any;
    ``derived_fingerprint`` tells whether they were touched since they were verified
    (:mod:`agent.install.update.worker_start`).
    ``adapters`` are bundles for this one that are loaded beside it, one of each name.
    """

    verified: VerifiedDirectory
    derived: Path | None = None
    derived_fingerprint: tuple[tuple[int, ...], ...] | None = None
    adapters: tuple[SealedBundle, ...] = ()

    @property
    def digest(self) -> Digest:
        return self.verified.digest

    @property
    def directory(self) -> Path:
        return self.verified.path

    @property
    def manifest(self) -> Manifest:
        return self.verified.manifest

    @property
    def adapter_files(self) -> dict[str, Path]:
        """The adapters' files by NAME@VERSION."""
        return {
            each.manifest.reference: each.directory / each.manifest.adapter_path
            for each in self.adapters
            if each.manifest.adapter_path is not None
        }


class SwapReport(Struct, frozen=True):
    """How a swap went: ``queue_pause_ms`` is the longest time that accepted requests had to wait because of it."""

    mode: SwapMode
    queue_pause_ms: float


class Footprint(Struct, frozen=True):
    """What a worker has in memory: ``anonymous_bytes`` are free once it ends; ``mapped_bytes`` are weights that it
    reads for every token, though the kernel counts them as available.
    """

    anonymous_bytes: int = 0
    mapped_bytes: int = 0


class Speed(Struct, frozen=True):
    """Tokens per second while at least one answer was being generated: ``aggregate`` over all answers, and of each
    (``per_stream``).

    An engine that batches has a higher aggregate and a lower rate per stream the more answers it generates at once.
    """

    aggregate: float
    per_stream: float


class ServingCounters(Struct, frozen=True):
    """Of what is served since the last swap, answers of its predecessor left out; what probation looks at.

    ``speed`` is None before any decode; ``busy_seconds`` is the time that it was measured over.
    """

    finished: int
    failed: int
    crashes: int
    speed: Speed | None
    busy_seconds: float = 0.0


class Serving(Protocol):
    """The side that answers requests. Implemented by ``agent.serving``; a bare stand-in serves the command line."""

    @property
    def bundle(self) -> SealedBundle | None:
        """What is being served now."""
        ...

    @property
    def footprint(self) -> Footprint:
        """What it takes, as far as it is known; nothing without a model in memory."""
        ...

    async def swap(self, bundle: SealedBundle, mode: SwapMode) -> SwapReport:
        """Serve ``bundle`` from now on, losing no accepted request; on failure the old one serves on.

        Raises:
            EngineFailed: the new model does not load or crashed while loading.
        """
        ...

    async def suspend(self) -> None:
        """Give the model's memory back for a candidate that would not fit beside it; accepted requests wait until
        :meth:`swap` or :meth:`resume`. Cancelled halfway, it needs :meth:`resume` as well.
        """
        ...

    async def resume(self) -> float | None:
        """Serve again what stepped aside; the longest time in ms that a request waited, None if nothing had."""
        ...

    async def stop(self) -> None:
        """Serve nothing from now on: the first bundle did not hold and there is none to go back to."""
        ...

    def mark_unavailable(self) -> None:
        """A bundle is active and cannot be loaded for now; that is over with the next :meth:`swap` or withdrawal."""
        ...

    def counters(self) -> ServingCounters: ...
