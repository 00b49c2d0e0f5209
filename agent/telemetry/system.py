"""What the machine has left: one sample of processors, memory, disk, network, sensors and our own processes.

A sensor that is not there is absent from the sample, never zero. Counters are given as they are, with ``boot`` beside
them, and as rates since the sample before. Read straight from ``/proc`` and ``/sys``: a few milliseconds, no library.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from msgspec import UNSET, UnsetType

from agent.host import kernel, sensors
from agent.telemetry.rates import Rates
from agent.telemetry.samples import Cpu, DiskUse, Memory, NetworkInterface, Pressure, Process, Swap, SystemSample

PROC = Path("/proc")
SYS = Path("/sys")

_T = TypeVar("_T")


class SelfReported(NamedTuple):
    """What a process that we may not look into said of itself, ``at`` seconds of the sampler's clock."""

    name: str
    rss: int
    pss: int
    cpu_seconds: float
    at: float


class SystemSampler:
    """Remembers what it needs for rates; the first sample has none.

    ``bundle_bytes`` says what bundles take of the disk; ``proc`` and ``sys`` are where the kernel shows itself,
    ``clock`` never goes back, ``wall`` is Unix time.
    """

    def __init__(
        self,
        directory: Path,
        *,
        bundle_bytes: Callable[[], int | None] = lambda: None,
        proc: Path = PROC,
        sys: Path = SYS,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._directory = directory
        self._bundle_bytes = bundle_bytes
        self._proc = proc
        self._sys = sys
        self._clock = clock
        self._wall = wall
        self._rates = Rates()
        self._sensors = sensors.Sensors(sys)
        self._page = os.sysconf("SC_PAGE_SIZE")
        self._tick = os.sysconf("SC_CLK_TCK")
        _or_unset(self._cpu)
        self._rates.end_round()

    def sample(self, pids: Mapping[int, str], self_reported: Mapping[int, SelfReported] | None = None) -> SystemSample:
        """Everything that this machine offers; ``pids`` names our processes, ``self_reported`` is what
        processes report of themselves.

        The kernel's figures of a process take precedence over its own.
        """
        now = self._clock()
        found = SystemSample(
            at=round(self._wall(), 3),
            boot=_or_unset(lambda: kernel.boot_time(self._read("stat"))),
            cpu=_or_unset(self._cpu),
            load=_or_unset(lambda: [float(value) for value in self._read("loadavg").split()[:3]]),
            memory=_or_unset(self._memory),
            swap=_or_unset(lambda: self._swap(now)),
            disk=_or_unset(lambda: self._disk(now)),
            network=_or_unset(lambda: self._network(now)),
            pressure=_or_unset(self._pressure),
            temperatures=_or_unset(self._sensors.temperatures),
            temperature_limits=_or_unset(self._sensors.limits),
            frequency_mhz=_or_unset(self._sensors.frequency),
            throttled=_or_unset(self._sensors.throttled),
            throttling=_or_unset(self._sensors.throttling),
            undervoltage=_or_unset(self._sensors.undervoltage),
            processes=self._ours(pids, self_reported or {}, now),
        )
        self._rates.end_round()
        return found

    def _read(self, name: str) -> str:
        return (self._proc / name).read_text()

    def _rate(self, key: object, value: float, now: float) -> float | UnsetType:
        found = self._rates.rate(key, value, now)
        return UNSET if found is None else round(found, 1)

    def _cpu(self) -> Cpu | None:
        shares = {
            name: self._rates.share(name, busy, whole)
            for name, (busy, whole) in kernel.cpu_times(self._read("stat")).items()
        }
        total = shares.pop("cpu", None)
        if total is None:
            return None
        # A core that went offline has no line, one that stood still since the sample before no share.
        return Cpu(round(total, 1), [round(share, 1) for share in shares.values() if share is not None])

    def _memory(self) -> Memory:
        found = kernel.memory(self._read("meminfo"))
        return Memory(found["MemTotal"], found["MemAvailable"])

    def _swap(self, now: float) -> Swap | None:
        found = kernel.memory(self._read("meminfo"))
        if not found.get("SwapTotal"):
            return None
        came, went = kernel.swapped(self._read("vmstat"), self._page)
        return Swap(
            found["SwapTotal"],
            found["SwapTotal"] - found["SwapFree"],
            came,
            went,
            self._rate("swap in", came, now),
            self._rate("swap out", went, now),
        )

    def _disk(self, now: float) -> DiskUse:
        space = shutil.disk_usage(self._directory)
        moved = None
        with contextlib.suppress(OSError, ValueError, IndexError):
            whole = {entry.name for entry in (self._sys / "block").iterdir()}
            moved = kernel.disk_bytes(self._read("diskstats"), whole)
        bundles = _or_unset(self._bundle_bytes)
        if moved is None:
            return DiskUse(space.total, space.free, bundles)
        read, written = moved
        return DiskUse(
            space.total, space.free, bundles, read, written,
            self._rate("disk read", read, now), self._rate("disk write", written, now),
        )  # fmt: skip

    def _network(self, now: float) -> dict[str, NetworkInterface] | None:
        return {
            name: NetworkInterface(
                sent, received, self._rate(("sent", name), sent, now), self._rate(("got", name), received, now)
            )
            for name, (sent, received) in kernel.network_bytes(self._read("net/dev")).items()
        } or None

    def _pressure(self) -> dict[str, Pressure] | None:
        found = {}
        for resource in ("cpu", "memory", "io"):
            # Kernels without PSI have no folder; with it switched off, reading fails.
            with contextlib.suppress(OSError, ValueError, KeyError):
                kinds = kernel.pressure(self._read(f"pressure/{resource}"))
                found[resource] = Pressure(kinds.get("some", UNSET), kinds.get("full", UNSET))
        return found or None

    def _ours(self, pids: Mapping[int, str], self_reported: Mapping[int, SelfReported], now: float) -> list[Process]:
        seen = list(self._own(pids, now))
        for pid in self_reported.keys() - {process.pid for process in seen}:
            name, rss, pss, seconds, at = self_reported[pid]
            used = self._rates.rate(("told", pid), seconds, at)
            seen.append(Process(name, pid, rss, pss or UNSET, UNSET if used is None else round(100 * used, 1)))
        return seen

    def _own(self, pids: Mapping[int, str], now: float) -> Iterator[Process]:
        for pid, name in pids.items():
            # It may end while we look, and a worker in an account of its own does not show its maps.
            with contextlib.suppress(OSError, ValueError, IndexError):
                ticks, started = kernel.process_ticks(self._read(f"{pid}/stat"))
                used = self._rates.rate(("ticks", pid, started), ticks / self._tick, now)
                yield Process(
                    name,
                    pid,
                    kernel.resident_pages(self._read(f"{pid}/statm")) * self._page,
                    _or_unset(lambda: kernel.proportional_bytes(self._read(f"{pid}/smaps_rollup"))),  # noqa: B023 # at once
                    UNSET if used is None else round(100 * used, 1),
                )


def _or_unset(read: Callable[[], _T | None]) -> _T | UnsetType:
    """What ``read`` finds; UNSET for None and for what this kernel does not show or writes in another way."""
    try:
        found = read()
    except (OSError, ValueError, KeyError, IndexError, StopIteration):
        return UNSET
    return UNSET if found is None else found
