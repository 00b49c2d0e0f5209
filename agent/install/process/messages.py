"""The protocol between agent and installer process: one JSON job on stdin, JSON lines on stdout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec
from msgspec import Struct

from agent.install.update.state_machine import Event
from contract.errors import EngineFailed
from contract.identifiers import Digest
from contract.source.access import Source

MAX_LINE_BYTES = 64 << 10
"""The longest line is an error sentence; a job names a handful of sources."""

Fault = Literal["refused", "invalid", "unavailable", "full", "broken", "internal"]


class InstallJob(Struct, frozen=True, tag="install", forbid_unknown_fields=True):
    """Bring ``name@version`` into ``state_dir`` from the first of ``sources`` that can deliver it.

    ``ignore_quarantine``: the operator of this device asks for a bundle that failed here before. ``root``: a
    ``root.json`` to provision trust with where there is none yet. ``suppressed_refusals``: how many decisions were not
    written to ``audit.jsonl`` since the last one that was; None when this job's is not to be written either, unless it
    is the first acceptance of a bundle.
    """

    state_dir: str
    name: str
    version: str
    sources: list[Source]
    quota_bytes: int = 0
    offline_grace: bool = True
    parallel_fetches: int = 1
    bytes_per_second: int = 0
    ignore_quarantine: bool = False
    root: str | None = None
    suppressed_refusals: int | None = 0

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.version}"


class ReverifyJob(Struct, frozen=True, tag="reverify", forbid_unknown_fields=True):
    """Verify ``name@version`` again, which lies in ``state_dir`` as ``digest``; no source is asked.

    ``allow_epoch`` lets it have a security epoch below the committed one, or be revoked. ``suppressed_refusals`` as an
    :class:`InstallJob` has it.
    """

    state_dir: str
    name: str
    version: str
    digest: Digest
    allow_epoch: bool = False
    suppressed_refusals: int | None = 0

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.version}"


class RefreshTrustJob(Struct, frozen=True, tag="refresh_trust", forbid_unknown_fields=True):
    """Refresh the trust of ``state_dir`` from the first of ``sources`` that can deliver it, and check what is installed
    against it.
    """

    state_dir: str
    sources: list[Source]
    offline_grace: bool = True


Job = InstallJob | ReverifyJob | RefreshTrustJob


class Resolved(Struct, frozen=True, tag="resolved"):
    """Trust says which bundle it is; everything after is about this one. ``min_ram_bytes`` and ``peak_rss_bytes`` are
    its manifest's, 0 where that was not read yet.
    """

    digest: str
    name: str
    version: str
    security_epoch: int
    bytes: int
    min_ram_bytes: int = 0
    peak_rss_bytes: int = 0


class Reached(Struct, frozen=True, tag="reached"):
    """A step is over: an event of the state table."""

    event: Event


class Progressed(Struct, frozen=True, tag="progressed"):
    """Bytes of the bundle: ``done`` of ``total`` are on this disk and verified, ``reused`` came from other bundles.

    ``fetched`` counts what was transferred by this process.
    """

    done: int
    total: int
    reused: int
    fetched: int
    seconds_left: float | None = None


class Failed(Struct, frozen=True, tag="failed"):
    """The last line when it did not work out; ``fault`` decides whether a retry makes sense."""

    fault: Fault
    reason: str
    message: str
    field: str | None = None
    retry_after: float | None = None


Line = Resolved | Reached | Progressed | Failed

OnLine = Callable[[Line], None]
"""Hears how a job goes."""

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)
_job_decoder: msgspec.json.Decoder[Job] = msgspec.json.Decoder(Job)


def encode_line(line: Line | Job) -> bytes:
    return _encoder.encode(line) + b"\n"


def parse_line(text: bytes) -> Line:
    """One line of the installer.

    Raises:
        EngineFailed: not one of ours; the installer is broken.
    """
    try:
        return _decoder.decode(text)
    except msgspec.MsgspecError as error:
        raise EngineFailed(f"the installer sent an invalid report: {error}") from error


def parse_job(text: bytes) -> Job:
    """The job on stdin.

    Raises:
        EngineFailed: not one of ours.
    """
    try:
        return _job_decoder.decode(text)
    except msgspec.MsgspecError as error:
        raise EngineFailed(f"the installer received an invalid job: {error}") from error
