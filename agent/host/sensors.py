"""Temperatures, frequency, throttling and supply voltage from ``/sys``: PCs have hwmon, boards have thermal zones, most
have both, many VMs neither.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from msgspec import UNSET

from agent.telemetry.samples import Frequency

COLDEST, HOTTEST = -60.0, 200.0
"""°C; what says more is broken or not connected (boards report -273 or 255 then)."""

PI_UNDERVOLTAGE = 0b0001
PI_SLOWED = 0b1110
"""Raspberry Pi firmware, at this moment: frequency capped, throttled, soft temperature limit (not: history)."""

PI_FIRMWARE = "soc*/soc*:firmware/get_throttled"
"""``soc/soc:firmware`` up to the Pi 4, ``soc@107c000000/soc@107c000000:firmware`` on a Pi 5."""

MAX_SENSORS = 64
"""A server board has dozens; a sample stays a few kilobytes."""


class Sensors:
    """Reads below ``root`` (``/sys``). None means: this machine does not say."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def temperatures(self) -> dict[str, float] | None:
        """°C by sensor: ``chip.label`` of hwmon, ``type.number`` of thermal zones; twins have hwmon's name."""
        return {name: value for name, value, _ in self._thermometers()} or None

    def limits(self) -> dict[str, float] | None:
        """°C at which each sensor's maker calls it too hot, where it says so; the lower of hwmon's and the zone's."""
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
        found += [bool(word & PI_SLOWED) for word in self._firmware()]
        return any(found) if found else None

    def undervoltage(self) -> bool | None:
        """Whether the supply's voltage is too low now: a Raspberry Pi's firmware, or its kernel's ``rpi_volt``."""
        found = [bool(word & PI_UNDERVOLTAGE) for word in self._firmware()]
        for chip in _listed(self._root / "class/hwmon", "hwmon*"):
            alarm = _number(chip / "in0_lcrit_alarm")
            if _text(chip / "name") == "rpi_volt" and alarm is not None:
                found.append(alarm > 0)
        return any(found) if found else None

    def _firmware(self) -> Iterator[int]:
        for file in _listed(self._root / "devices/platform", PI_FIRMWARE):
            with contextlib.suppress(ValueError):
                yield int(_text(file), 16)

    def _cores(self) -> list[Path]:
        return _listed(self._root / "devices/system/cpu", "cpu[0-9]*")

    def _thermometers(self) -> Iterator[tuple[str, float, float | None]]:
        """Zones first, since a board's limits are theirs and the list is bounded."""
        chips = list(self._chips())
        twins: dict[str, float | None] = {}
        found = []
        for kind, number, value, limit in self._zones():
            twin = f"{kind.replace('-', '_')}.temp"  # the kernel shows some zones as a chip too, named like this
            names = [name for name, _, _ in chips if name.startswith(twin)]
            if not names:
                found.append((f"{kind}.{number}", value, limit))
            for name in names:
                twins[name] = _lower(twins.get(name), limit)
        found += [(name, value, _lower(limit, twins.get(name))) for name, value, limit in chips]
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

    def _zones(self) -> Iterator[tuple[str, str, float, float | None]]:
        for zone in _listed(self._root / "class/thermal", "thermal_zone*"):
            value = _degrees(zone / "temp")
            if value is None:
                continue
            limit = None
            for trip in _listed(zone, "trip_point_*_type"):
                if _text(trip) in ("passive", "hot"):
                    limit = limit or _limit(trip.with_name(trip.name.replace("_type", "_temp")))
            yield _text(zone / "type") or "zone", zone.name.removeprefix("thermal_zone"), value, limit


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


def _lower(one: float | None, other: float | None) -> float | None:
    known = [limit for limit in (one, other) if limit is not None]
    return min(known) if known else None


def _limit(file: Path) -> float | None:
    """A limit of 0 or less is a register that nobody set."""
    value = _degrees(file)
    return value if value is not None and value > 0 else None
