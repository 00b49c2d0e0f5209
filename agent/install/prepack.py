"""Prepacked weights of a sealed bundle for this processor: made once, hashed, shared read-only, never taken on trust.

They lie in ``derived/<manifest-sha256>/<cpu-id>/``, apart from what was signed, and go with their bundle. Another
processor or another runtime has another id, so what was made for the old one is made again and the old one removed.
Nothing depends on them: without room or memory, or when making them fails, the model is loaded from the bundle itself.

Only what a worker maps is made or kept. Where the batched engine does not serve a bundle (``[worker] engine``,
adapters, a graph that it declines) there is none; where its self-test declines this processor, that is found out before
anything is written, and remembered as a record without files until processor, runtime or settings change. What the
self-test found otherwise is kept beside the weights, and without them where disk or memory have no room for these: no
load after has to measure it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec
from msgspec import Struct

from agent.engine.batched.graph import read_decoder
from agent.engine.config import read_config
from agent.engine.runtime_errors import Declined
from agent.host.facts import disk_available, installed_version
from agent.host.isa import read_cpuinfo
from agent.host.memory import available_memory
from agent.host.process_effort import Effort, effort_of
from agent.install.gc import used_bytes
from agent.install.ports import SealedBundle
from agent.state.layout import StateDirectory
from agent.worker.prepacking import DECLINED, GRAPH_FILE
from agent.worker.protocol import MAX_LOADS
from agent.worker.settings import WorkerSettings, usable_threads
from contract.bundle.device_plan import PREPACKED_BYTES, SPARE_DISK_BYTES, WORKER_BYTES, prepacked_allowed, size_text
from contract.bundle.footprint import Footprint, measure_footprint
from contract.errors import EdgeBundleError, EngineFailed
from contract.onnx.wire import read_graph_file
from contract.system.durable import Disk

log = logging.getLogger("edge_agent.install")

COMMAND = (sys.executable, "-P", "-m", "agent.worker.prepacking")
RECORD_FILE = "derived.json"

ROUNDING = 16
"""Tensors begin at their own boundaries, and the graph lies beside them: room for a sixteenth more must be there."""

MEMORY_GROWTH = 2
"""Making them was measured to take 1.8 times what the weights take in a worker, in memory that is not shared."""

WEIGHTS = GRAPH_FILE
"""Is there where weights are."""

ADAPTERS = "it is served with adapters, which another engine switches between"

SECONDS = 900.0
"""Making them takes about as long as loading the model; one that is at work then has as long again."""


class Prepacker(Protocol):
    """Makes or finds the derived weights of a bundle; :class:`WeightPrepacker` is one."""

    async def __call__(self, bundle: SealedBundle) -> Path | None:
        """Where they lie, verified, or None when there are none; never raises an error of ours."""
        ...

    def discard(self, bundle: SealedBundle, why: str) -> None:
        """Give back the room of what no worker maps any more. Raises StoreBroken, StoreFull."""
        ...


class DerivedFile(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    size: int
    sha256: str


class Derived(Struct, frozen=True, forbid_unknown_fields=True):
    """What was made for workers of this mode; without files, ``declined`` says why no worker would use any."""

    reproducible: bool
    threads: int = 0
    files: list[DerivedFile] = []
    declined: str = ""

    @property
    def has_weights(self) -> bool:
        return any(file.name == WEIGHTS for file in self.files)


def cpu_id(cpuinfo: str | None = None) -> str:
    """Names this machine's instruction sets and this runtime: what prepacked weights are specific to.

    ``cpuinfo``: what ``/proc/cpuinfo`` says. All cores count, since boards have two kinds and the kernel may start on
    either; how many there are does not.
    """
    facts = [platform.machine(), installed_version("onnxruntime") or ""]
    cpuinfo = read_cpuinfo() if cpuinfo is None else cpuinfo
    for key in ("flags", "Features", "model name", "CPU part"):
        found = {" ".join(sorted(text.split())) for text in re.findall(rf"^{key}[ \t]*: (.*)$", cpuinfo, re.MULTILINE)}
        facts.append("; ".join(sorted(found)))
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


class DiskLimits(Struct, frozen=True):
    """What prepacked weights may take of the disk. ``quota_bytes`` is for all that is installed (0: as much as the disk
    has), ``allowed_bytes`` for the prepacked weights of one bundle, if that is more than six tenths of it;
    ``spare_bytes`` stay free.
    """

    quota_bytes: int = 0
    allowed_bytes: int = PREPACKED_BYTES
    spare_bytes: int = SPARE_DISK_BYTES


class WeightPrepacker:
    """For workers of these settings. ``identity`` names the processor and the runtime."""

    def __init__(
        self,
        directory: StateDirectory,
        disk: Disk,
        worker: WorkerSettings | None = None,
        limits: DiskLimits | None = None,
        *,
        identity: str | None = None,
    ) -> None:
        self._directory = directory
        self._disk = disk
        self._worker = worker or WorkerSettings()
        self._limits = limits or DiskLimits()
        self._identity = identity or cpu_id()

    async def __call__(self, bundle: SealedBundle) -> Path | None:
        directory = self._directory.derived_of(bundle.digest) / self._identity
        try:
            if (why := await asyncio.to_thread(self._unused, bundle)) is not None:
                await asyncio.to_thread(self.discard, bundle, why)
                return None
            record = await asyncio.to_thread(intact_record, directory)
            known = record is not None and (record.reproducible, record.threads) == self._mode
            if known and record is not None and (record.declined or record.has_weights):
                return None if record.declined else directory
            weights = await asyncio.to_thread(self._has_room, bundle)
            if known and not weights:
                return directory
            await asyncio.to_thread(self._clear, directory.parent)
            if not await asyncio.to_thread(can_be_loaded, bundle):
                log.info("no memory to try %s in before it is loaded", bundle.manifest.reference)
                return None
            return await self._make(bundle, directory, weights=weights)
        except (EdgeBundleError, OSError) as error:
            log.warning("no prepacked weights for %s: %s", bundle.manifest.reference, error)
            return None

    def discard(self, bundle: SealedBundle, why: str) -> None:
        """Give back the room of what no worker maps any more.

        Raises:
            StoreBroken, StoreFull.
        """
        derived = self._directory.derived_of(bundle.digest)
        if derived.exists():
            log.info("the prepacked weights of %s are removed: %s", bundle.manifest.reference, why)
            self._clear(derived)

    def _unused(self, bundle: SealedBundle) -> str | None:
        """Why no worker would map any, as far as that is known without loading the model."""
        if self._worker.engine == "genai":
            return "the genai engine was asked for"
        if bundle.adapters:
            return ADAPTERS
        try:
            read_decoder(bundle.directory, read_config(bundle.directory))
        except Declined as declined:
            return str(declined)
        return None

    def _clear(self, derived: Path) -> None:
        """Give back the room of what was made for another processor or runtime, is damaged, or was never finished:
        also where there is none to make it again.
        """
        if derived.exists():
            self._disk.remove(derived)

    def _has_room(self, bundle: SealedBundle) -> bool:
        """Whether they can be made, and there is room for the result."""
        footprint = read_footprint(bundle)
        most = prepacked_allowed(bundle.manifest.total_bytes, self._limits.allowed_bytes)
        if footprint.prepacked > most:
            log.info(
                "no prepacked weights of %s: they would take %s of disk, and [install] prepacked_bytes allows %s",
                *(bundle.manifest.reference, size_text(footprint.prepacked), size_text(most)),
            )
            return False
        if WORKER_BYTES + MEMORY_GROWTH * footprint.weights > available_memory():
            log.info("no memory to make prepacked weights of %s in", bundle.manifest.reference)
            return False
        needed = footprint.prepacked + footprint.prepacked // ROUNDING
        if needed + self._limits.spare_bytes > disk_available(self._directory.root):
            log.info("no room for prepacked weights of %s", bundle.manifest.reference)
            return False
        if self._limits.quota_bytes and used_bytes(self._directory) + needed > self._limits.quota_bytes:
            log.info("the quota has no room for prepacked weights of %s", bundle.manifest.reference)
            return False
        return True

    @property
    def _mode(self) -> tuple[bool, int]:
        """What a verdict depends on beside processor and runtime."""
        return self._worker.reproducible, usable_threads(self._worker)

    async def _make(self, bundle: SealedBundle, directory: Path, *, weights: bool) -> Path | None:
        staging = directory.with_name(f".{directory.name}.making")
        await asyncio.to_thread(self._disk.make_directory, staging)
        declined = ""
        try:
            try:
                await _run(bundle.directory, staging, self._worker, weights)
            except Declined as found:
                declined = str(found)
                log.info("no prepacked weights of %s, since none would be used: %s", bundle.manifest.reference, found)
            await asyncio.to_thread(self._seal, staging, directory, declined)
        except BaseException:
            # The next attempt removes it otherwise; an update that was cancelled stays cancelled.
            with contextlib.suppress(EdgeBundleError):
                self._disk.remove(staging)
            raise
        return None if declined else directory

    def _seal(self, staging: Path, directory: Path, declined: str) -> None:
        files = []
        for path in sorted(staging.iterdir()):
            files.append(DerivedFile(path.name, path.stat().st_size, _digest(path)))
            self._disk.set_mode(path, 0o444)
        record = Derived(*self._mode, files, declined)
        self._disk.write_file(staging / RECORD_FILE, msgspec.json.encode(record), 0o444)
        self._disk.rename(staging, directory)
        self._disk.set_mode(directory, 0o555)


def can_be_loaded(bundle: SealedBundle) -> bool:
    """Whether memory has room for the model once more, in a process that tries it."""
    return WORKER_BYTES + read_footprint(bundle).weights <= available_memory()


def read_footprint(bundle: SealedBundle) -> Footprint:
    """What the model takes, from the headers of its graphs."""
    facts = read_config(bundle.directory)
    return measure_footprint(facts, lambda name: read_graph_file(bundle.directory / name))


async def _run(bundle_dir: Path, target: Path, worker: WorkerSettings, weights: bool) -> None:
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *(str(bundle_dir), str(target), "--threads", str(usable_threads(worker))),
        *(["--reproducible"] if worker.reproducible else []),
        *([] if weights else ["--verdict-only"]),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
    )
    try:
        stderr = await _hear(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        last_line = stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no output"]
        if process.returncode == DECLINED:
            raise Declined(last_line[0][:300])
        raise EngineFailed(f"prepacking ended with status {process.returncode}: {last_line[0][:300]}")


async def _hear(process: asyncio.subprocess.Process, effort: Callable[[int], Effort] = effort_of) -> bytes:
    """What it said until it ended; it has its time again for as long as it is at work.

    Raises:
        EngineFailed: it was not, or took too long all the same.
    """
    ending = asyncio.ensure_future(process.communicate())
    before = effort(process.pid)
    try:
        for _ in range(MAX_LOADS):
            await asyncio.wait([ending], timeout=SECONDS)
            if ending.done():
                return ending.result()[1]
            after = effort(process.pid)
            if not after.advanced(before, SECONDS):
                raise EngineFailed(f"prepacking did nothing for {SECONDS:g} s")
            before = after
        raise EngineFailed(f"prepacking did not finish within {MAX_LOADS * SECONDS:g} s")
    finally:
        ending.cancel()


def is_intact(directory: Path) -> bool:
    """Whether ``directory`` holds exactly what its record says, every byte read; anything else is as good as absent."""
    return intact_record(directory) is not None


def intact_weights(directory: Path) -> Path | None:
    """``directory``, if it is intact and a worker has something to read there."""
    record = intact_record(directory)
    return directory if record is not None and record.files else None


def intact_record(directory: Path) -> Derived | None:
    """The record of ``directory``, if that holds exactly what it says, every byte read."""
    try:
        record = msgspec.json.decode((directory / RECORD_FILE).read_bytes(), type=Derived)
        names = {path.name for path in directory.iterdir()} - {RECORD_FILE}
        sound = names == {file.name for file in record.files} and all(
            (directory / file.name).lstat().st_size == file.size and _digest(directory / file.name) == file.sha256
            for file in record.files
        )
    except (OSError, msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return record if sound else None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
