"""What the machine has left: one sample of processors, memory, disk, network, sensors and our own processes.

A sensor that is not there is absent from the sample, never zero. Counters (bytes, switches) are given as they are,
with ``boot`` beside them, so that a reader can take differences and notice a restart.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil

PRESSURE = Path("/proc/pressure")
THROTTLE = Path("/sys/devices/system/cpu")


class SystemSampler:
    """Remembers what it needs for rates; ``sample`` takes a few milliseconds and must not run in a hot loop."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._processes: dict[int, psutil.Process] = {}
        # The first call has nothing to compare with and would say 0.
        psutil.cpu_percent(percpu=True)

    def sample(self, pids: Mapping[int, str]) -> dict[str, Any]:
        """Everything that this machine offers; ``pids`` names our processes."""
        cores = psutil.cpu_percent(percpu=True)
        found: dict[str, Any] = {
            "at": round(time.time(), 3),
            "boot": psutil.boot_time(),
            "cpu": {"percent": round(sum(cores) / max(1, len(cores)), 1), "cores": cores},
            "memory": _memory(),
            "processes": self._own(pids),
        }
        with contextlib.suppress(OSError):
            found["load"] = [round(value, 2) for value in os.getloadavg()]
        for name, read in (
            ("swap", _swap),
            ("disk", self._disk),
            ("network", _network),
            ("pressure", _pressure),
            ("temperatures", _temperatures),
            ("frequency_mhz", _frequency),
            ("throttled", _throttled),
        ):
            # /proc and /sys differ between kernels and containers: what cannot be read is not there.
            with contextlib.suppress(OSError, ValueError, AttributeError, NotImplementedError, RuntimeError):
                value = read()
                if value is not None:
                    found[name] = value
        return found

    def _disk(self) -> dict[str, Any]:
        usage = psutil.disk_usage(str(self._directory))
        found: dict[str, Any] = {"total": usage.total, "free": usage.free}
        counters = psutil.disk_io_counters()
        if counters is not None:
            found["read_bytes"] = counters.read_bytes
            found["write_bytes"] = counters.write_bytes
        return found

    def _own(self, pids: Mapping[int, str]) -> list[dict[str, Any]]:
        self._processes = {pid: self._processes.get(pid) or process for pid, process in _open(pids)}
        found = []
        for pid, process in self._processes.items():
            with contextlib.suppress(psutil.Error):
                entry: dict[str, Any] = {"name": pids[pid], "pid": pid, "cpu_percent": process.cpu_percent()}
                entry["rss"] = process.memory_info().rss
                with contextlib.suppress(psutil.Error, OSError):
                    # PSS shares mapped weights fairly between processes; reading it costs the kernel a walk.
                    entry["pss"] = process.memory_full_info().pss
                found.append(entry)
        return found


def _open(pids: Iterable[int]) -> Iterable[tuple[int, psutil.Process]]:
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            yield pid, psutil.Process(pid)


def _memory() -> dict[str, Any]:
    memory = psutil.virtual_memory()
    return {"total": memory.total, "available": memory.available}


def _swap() -> dict[str, Any] | None:
    swap = psutil.swap_memory()
    if not swap.total:
        return None
    return {"total": swap.total, "used": swap.used, "in_bytes": swap.sin, "out_bytes": swap.sout}


def _network() -> dict[str, Any] | None:
    cards = {name: card for name, card in psutil.net_io_counters(pernic=True).items() if name != "lo"}
    if not cards:
        return None
    return {name: {"sent_bytes": card.bytes_sent, "received_bytes": card.bytes_recv} for name, card in cards.items()}


def _pressure() -> dict[str, Any] | None:
    """Share of the last 10 s in which something (``some``) or everything (``full``) waited, in percent (kernel PSI)."""
    found: dict[str, Any] = {}
    for resource in ("cpu", "memory", "io"):
        with contextlib.suppress(OSError):
            for line in (PRESSURE / resource).read_text().splitlines():
                kind, *fields = line.split()
                values = dict(field.split("=", 1) for field in fields)
                found.setdefault(resource, {})[kind] = float(values["avg10"])
    return found or None


def _temperatures() -> dict[str, Any] | None:
    found = {
        f"{chip}.{reading.label or index}": reading.current
        for chip, readings in psutil.sensors_temperatures().items()
        for index, reading in enumerate(readings)
        if reading.current is not None
    }
    return found or None


def _frequency() -> dict[str, Any] | None:
    frequency = psutil.cpu_freq()
    if frequency is None or not frequency.current:
        return None
    found = {"current": round(frequency.current)}
    if frequency.max:
        found["max"] = round(frequency.max)
    return found


def _throttled() -> int | None:
    """How often the processors slowed down to cool, since boot (x86 only)."""
    files = list(THROTTLE.glob("cpu[0-9]*/thermal_throttle/core_throttle_count"))
    if not files:
        return None
    return sum(int(file.read_text()) for file in files)
