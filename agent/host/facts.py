"""What this device has, and whether that is what a bundle requires.

``measure_host`` looks; ``check_requires`` compares and touches nothing.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec import Struct

from agent.host import isa
from agent.host.memory import total_memory
from contract.bundle.manifest import Manifest, Requires
from contract.errors import BundleRefused, StoreBroken
from contract.reasons import Reason

PROVIDERS = frozenset({"cpu"})
"""Execution providers that the engines of this agent run; a graph for another one would fail at load or crawl."""


class Host(Struct, frozen=True):
    """Facts about this device; sizes in bytes, ``runtimes`` holds the version of each package that is installed."""

    arch: str
    isa: frozenset[str]
    ram_bytes: int
    disk_bytes: int
    runtimes: dict[str, str]


def measure_host(directory: Path) -> Host:
    """Look at this device; ``directory`` names the file system that bundles go to.

    Raises:
        StoreBroken: something could not be found out, which is never taken for a yes.
    """
    return Host(
        arch=isa.architecture(),
        isa=isa.present_sets(),
        ram_bytes=total_memory(),
        disk_bytes=disk_capacity(directory),
        runtimes={
            name: version
            for name in ("onnxruntime", "onnxruntime-genai", "edge-bundle")
            if (version := installed_version(name)) is not None
        },
    )


def installed_version(package: str) -> str | None:
    """The version of an installed distribution, without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def disk_capacity(directory: Path) -> int:
    """Size of the file system in bytes.

    Raises:
        StoreBroken: it cannot be asked.
    """
    try:
        facts = os.statvfs(directory)
    except OSError as error:
        raise StoreBroken(f"the file system of {directory} cannot be measured: {error.strerror}") from error
    return facts.f_blocks * facts.f_frsize


def disk_available(directory: Path) -> int:
    """Bytes that this user may still write there.

    Raises:
        StoreBroken: it cannot be asked.
    """
    try:
        facts = os.statvfs(directory)
    except OSError as error:
        raise StoreBroken(f"the file system of {directory} cannot be measured: {error.strerror}") from error
    return facts.f_bavail * facts.f_frsize


def check_requires(requires: Requires, host: Host, *, room_bytes: int | None = None) -> None:
    """Refuse a bundle that this device does not fit; ``room_bytes``: what bundles may take here, if limited.

    Raises:
        BundleRefused: REQUIRES_*, with the first requirement that is not met.
    """

    def refuse(reason: Reason, field: str, message: str) -> BundleRefused:
        return BundleRefused(reason, message, field=f"requires.{field}")

    if host.arch not in requires.arch:
        raise refuse(Reason.REQUIRES_ARCH, "arch", f"the bundle is for {_any_of(requires.arch)}, this is {host.arch}")
    if requires.isa_any and not host.isa.intersection(requires.isa_any):
        raise refuse(
            Reason.REQUIRES_ISA, "isa_any", f"the bundle needs {_any_of(requires.isa_any)}, which this CPU lacks"
        )
    if requires.min_ram_bytes > host.ram_bytes:
        raise refuse(
            Reason.REQUIRES_RAM,
            "min_ram_bytes",
            f"the bundle needs {_megabytes(requires.min_ram_bytes)} of RAM, there are {_megabytes(host.ram_bytes)}",
        )
    room = host.disk_bytes if room_bytes is None else min(room_bytes, host.disk_bytes)
    if requires.min_disk_bytes > room:
        raise refuse(
            Reason.REQUIRES_DISK,
            "min_disk_bytes",
            f"the bundle needs {_megabytes(requires.min_disk_bytes)} of disk, it may have {_megabytes(room)}",
        )
    for field, package, bounds, reason in (
        ("onnxruntime", "onnxruntime", requires.onnxruntime, Reason.REQUIRES_RUNTIME),
        ("onnxruntime_genai", "onnxruntime-genai", requires.onnxruntime_genai, Reason.REQUIRES_RUNTIME),
        ("agent", "edge-bundle", requires.agent, Reason.REQUIRES_AGENT),
    ):
        installed = host.runtimes.get(package)
        if not satisfies(installed, bounds):
            raise refuse(reason, field, f"the bundle needs {package} {bounds}, there is {installed or 'none'}")


def check_provider(manifest: Manifest) -> None:
    """Refuse a bundle whose graph was built for an execution provider that does not run here.

    Raises:
        BundleRefused: REQUIRES_EP.
    """
    provider = manifest.model.ep
    if provider not in PROVIDERS:
        raise BundleRefused(
            Reason.REQUIRES_EP,
            f"{manifest.reference} is built for {provider}, this agent runs {_any_of(sorted(PROVIDERS))}",
            field="model.ep",
        )


def _any_of(names: Sequence[str]) -> str:
    return " or ".join(names) if names else "no architecture at all"


def _megabytes(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"


_BOUND = re.compile(r"\s*(>=|<)\s*(\d{1,9}(?:\.\d{1,9}){0,5})\s*")
_RELEASE = re.compile(r"\d{1,9}(?:\.\d{1,9}){0,5}")
_OPERATORS: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    ">=": lambda installed, bound: installed >= bound,
    "<": lambda installed, bound: installed < bound,
}


def satisfies(installed: str | None, bounds: str) -> bool:
    """Whether version ``installed`` lies within ``bounds`` (``>=1.31.0,<2``); empty bounds hold for any version.

    Pre-release and local parts of ``installed`` are left out of account.

    Raises:
        BundleRefused: REQUIRES_UNKNOWN, bounds that are not understood are not met.
    """
    bounds_found: list[tuple[str, tuple[int, ...]]] = []
    for part in bounds.split(",") if bounds.strip() else []:
        match = _BOUND.fullmatch(part)
        if match is None:
            raise BundleRefused(
                Reason.REQUIRES_UNKNOWN, f"the version bound {part.strip()[:80]!r} is not understood", field="requires"
            )
        bounds_found.append((match[1], _numbers(match[2])))
    if not bounds_found:
        return True
    release = _RELEASE.match(installed or "")
    return release is not None and all(_OPERATORS[sign](_numbers(release[0]), bound) for sign, bound in bounds_found)


def _numbers(text: str) -> tuple[int, ...]:
    """Numeric parts without trailing zeros, so that 1.31 and 1.31.0 are equal."""
    numbers = [int(part) for part in text.split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
