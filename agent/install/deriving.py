"""Prepacked weights of a sealed bundle for this processor: made once, hashed, shared read-only, never taken on trust.

They lie in ``derived/<manifest-sha256>/<cpu-id>/``, apart from what was signed, and go with their bundle. Another
processor or another runtime has another id, so what was made for the old one is made anew and the old one removed.
Nothing depends on them: without room or memory, or when making them fails, the model is loaded from the bundle itself.
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
from pathlib import Path
from typing import Protocol

import msgspec
from msgspec import Struct

from agent.engine.config import read_config
from agent.host import disk_available, installed_version
from agent.install.collection import used_bytes
from agent.install.ports import SealedBundle
from agent.memory import available_memory
from agent.state.layout import StateDirectory
from contract.durable import Disk
from contract.errors import EdgeBundleError, EngineFailed

log = logging.getLogger("edge_agent.install")

COMMAND = (sys.executable, "-P", "-m", "agent.worker.prepacking")
RECORD_FILE = "derived.json"

GROWTH = 3
"""Prepacked INT4 weights were measured at 2.3 times the bytes of the bundle's; room for this much must be there."""

SPARE_BYTES = 256 << 20
"""What must stay free on the disk beside them: they are a convenience."""

MEMORY_GROWTH = 2
"""Making them was measured to take 1.8 times the bytes of the weights, in memory that nobody shares."""

SECONDS = 900.0
"""Making them takes about as long as loading the model."""


class Deriver(Protocol):
    """Makes or finds the derived weights of a bundle; :class:`Deriving` is one."""

    async def __call__(self, bundle: SealedBundle) -> Path | None:
        """Where they lie, verified, or None when there are none; never raises an error of ours."""
        ...


class DerivedFile(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    size: int
    sha256: str


def cpu_id() -> str:
    """Names this processor's instruction sets and this runtime: what prepacked weights are specific to."""
    facts = [platform.machine(), installed_version("onnxruntime") or ""]
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        text = ""
    for key in ("flags", "Features", "model name", "CPU part"):
        found = re.search(rf"^{key}\s*: (.*)$", text, re.MULTILINE)
        facts.append(" ".join(sorted(found[1].split())) if found else "")
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


class Deriving:
    """``quota_bytes`` 0: as much as the disk has. ``identity`` names the processor and the runtime."""

    def __init__(
        self,
        directory: StateDirectory,
        disk: Disk,
        *,
        quota_bytes: int = 0,
        spare_bytes: int = SPARE_BYTES,
        identity: str | None = None,
    ) -> None:
        self._directory = directory
        self._disk = disk
        self._quota = quota_bytes
        self._spare = spare_bytes
        self._identity = identity or cpu_id()

    async def __call__(self, bundle: SealedBundle) -> Path | None:
        place = self._directory.derived_of(bundle.digest) / self._identity
        try:
            if await asyncio.to_thread(is_sound, place):
                return place
            await asyncio.to_thread(self._clear, place.parent)
            graph = await asyncio.to_thread(self._find_graph, bundle)
            if graph is None:
                return None
            await self._make(graph, place)
        except (EdgeBundleError, OSError) as error:
            log.warning("no prepacked weights for %s: %s", bundle.manifest.reference, error)
            return None
        return place

    def _clear(self, derived: Path) -> None:
        """Give back the room of what was made for another processor or runtime, is damaged, or was never finished:
        also where there is none to make it anew.
        """
        if derived.exists():
            self._disk.remove(derived)

    def _find_graph(self, bundle: SealedBundle) -> Path | None:
        """The one graph of the bundle, if prepacking it makes sense and there is room for the result."""
        facts = read_config(bundle.directory)
        if facts.graphs != (facts.filename,) or facts.provider != "cpu":
            return None
        weights = sum(entry.size for entry in bundle.manifest.files if entry.role == "model")
        if MEMORY_GROWTH * weights > available_memory():
            log.info("no memory to make prepacked weights of %s in", bundle.manifest.reference)
            return None
        needed = GROWTH * weights
        if needed + self._spare > disk_available(self._directory.root):
            log.info("no room for prepacked weights of %s", bundle.manifest.reference)
            return None
        if self._quota and used_bytes(self._directory) + needed > self._quota:
            log.info("the quota has no room for prepacked weights of %s", bundle.manifest.reference)
            return None
        return bundle.directory / facts.filename

    async def _make(self, graph: Path, place: Path) -> None:
        making = place.with_name(f".{place.name}.making")
        await asyncio.to_thread(self._disk.make_directory, making)
        try:
            await _run(graph, making)
            await asyncio.to_thread(self._seal, making, place)
        except BaseException:
            # The next attempt removes it otherwise; a wish that was withdrawn stays withdrawn.
            with contextlib.suppress(EdgeBundleError):
                self._disk.remove(making)
            raise

    def _seal(self, making: Path, place: Path) -> None:
        files = []
        for path in sorted(making.iterdir()):
            files.append(DerivedFile(path.name, path.stat().st_size, _digest(path)))
            self._disk.set_mode(path, 0o444)
        self._disk.write_file(making / RECORD_FILE, msgspec.json.encode(files), 0o444)
        self._disk.rename(making, place)
        self._disk.set_mode(place, 0o555)


async def _run(graph: Path, target: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        str(graph),
        str(target),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
    )
    try:
        async with asyncio.timeout(SECONDS):
            _, said = await process.communicate()
    except TimeoutError as error:
        raise EngineFailed(f"prepacking was not over within {SECONDS:g} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        words = said.decode("utf-8", "replace").strip().splitlines()[-1:] or ["it said nothing"]
        raise EngineFailed(f"prepacking ended with status {process.returncode}: {words[0][:300]}")


def is_sound(place: Path) -> bool:
    """Whether ``place`` holds exactly what its record says, every byte read; anything else is as good as absent."""
    try:
        files = msgspec.json.decode((place / RECORD_FILE).read_bytes(), type=list[DerivedFile])
        names = {path.name for path in place.iterdir()} - {RECORD_FILE}
        return names == {file.name for file in files} and all(
            (place / file.name).lstat().st_size == file.size and _digest(place / file.name) == file.sha256
            for file in files
        )
    except (OSError, msgspec.MsgspecError):
        return False


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
