"""Temperatures, frequency and throttling from ``/sys``: PCs have hwmon, boards have thermal zones, many VMs neither."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from msgspec import UNSET

from agent.telemetry.samples import Frequency

COLDEST, HOTTEST = -60.0, 200.0
"""°C; what says more is broken or not connected (boards report -273 or 255 then)."""

PI_NOW = 0b0111
"""Raspberry Pi firmware: undervoltage, frequency capped, throttled at this moment; higher bits are history."""

MAX_SENSORS = 64
"""A server board has dozens; a sample stays a few kilobytes."""


class Sensors:
    """Reads below ``root`` (``/sys``). None means: this machine does not say."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def temperatures(self) -> dict[str, float] | None:
        """°C by sensor: ``chip.label`` of hwmon, else ``zone type`` of thermal zones."""
        return {name: value for name, value, _ in self._thermometers()} or None

    def hot(self) -> dict[str, float] | None:
        """°C at which each sensor's maker calls it too hot, where it says so."""
        return {name: limit for name, _, limit in self._thermometers() if limit is not None} or None

    def frequency(self) -> Frequency | None:
        """Mean over the cores."""
        current, highest = [], []
        for core in self._cores():
            value = _number(core / "cpufreq/scaling_cur_freq")
            if value:
                current.append(value)
                highest.append(_number(core / "cpufreq/cpuinfo_max_freq") or 0)
        if not current:
            return None
        top = round(sum(highest) / len(highest) / 1000)
        return Frequency(round(sum(current) / len(current) / 1000), top or UNSET)

    def throttled(self) -> int | None:
        """How often the cores slowed down to cool, since boot."""
        counts = [_number(core / "thermal_throttle/core_throttle_count") for core in self._cores()]
        known = [count for count in counts if count is not None]
        return sum(known) if known else None

    def throttling(self) -> bool | None:
        """Whether the cores are slowed down now: cooling devices of the processors, or a Raspberry Pi's firmware."""
        found: list[bool] = []
        for device in _listed(self._root / "class/thermal", "cooling_device*"):
            if "cpufreq" in _text(device / "type") and (state := _number(device / "cur_state")) is not None:
                found.append(state > 0)
        with contextlib.suppress(ValueError):
            firmware = _text(self._root / "devices/platform/soc/soc:firmware/get_throttled")
            found.append(bool(int(firmware, 16) & PI_NOW))
        return any(found) if found else None

    def _cores(self) -> list[Path]:
        return _listed(self._root / "devices/system/cpu", "cpu[0-9]*")

    def _thermometers(self) -> Iterator[tuple[str, float, float | None]]:
        found = [*self._chips()] or [*self._zones()]
        yield from found[:MAX_SENSORS]

    def _chips(self) -> Iterator[tuple[str, float, float | None]]:
        seen: set[str] = set()
        for chip in _listed(self._root / "class/hwmon", "hwmon*"):
            for file in _listed(chip, "temp*_input"):
                stem = file.name.removesuffix("_input")
                value = _degrees(file)
                name = f"{_text(chip / 'name') or chip.name}.{_text(chip / f'{stem}_label') or stem}"
                # Two disks are two chips of one name.
                name = f"{name}.{chip.name}" if name in seen else name
                seen.add(name)
                if value is not None:
                    yield name, value, _limit(chip / f"{stem}_max") or _limit(chip / f"{stem}_crit")

    def _zones(self) -> Iterator[tuple[str, float, float | None]]:
        for zone in _listed(self._root / "class/thermal", "thermal_zone*"):
            value = _degrees(zone / "temp")
            if value is None:
                continue
            limit = None
            for trip in _listed(zone, "trip_point_*_type"):
                if _text(trip) in ("passive", "hot"):
                    limit = limit or _limit(trip.with_name(trip.name.replace("_type", "_temp")))
            yield f"{_text(zone / 'type') or 'zone'}.{zone.name.removeprefix('thermal_zone')}", value, limit


def _listed(folder: Path, pattern: str) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(folder.glob(pattern))
    return []


def _text(file: Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return file.read_text().strip()
    return ""


def _number(file: Path) -> int | None:
    with contextlib.suppress(ValueError):
        return int(_text(file))
    return None


def _degrees(file: Path) -> float | None:
    value = _number(file)
    if value is None or not COLDEST < value / 1000 < HOTTEST:
        return None
    return round(value / 1000, 1)


def _limit(file: Path) -> float | None:
    """A limit of 0 or less is a register that nobody set."""
    value = _degrees(file)
    return value if value is not None and value > 0 else None
