"""Which device answers: a ready one that has the beginning cached or is least busy, and can do what is asked. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from contract.errors import SourceUnavailable
from edge_bundle.presence import Device
from fleet.gateway.models import Wanted

SLACK = 1.0
"""How much fuller, in turns of all its slots, a device may be than the emptiest one and still be asked for what it has
cached: reading a long beginning again takes about as long as one answer."""

MAX_NAMED = 8
"""Devices that an error names."""

_LATER = ("loading", "swapping", "engine_unavailable", "store_unavailable", "stopping")


def load_of(device: Device, in_flight: int) -> float:
    """Turns of all slots before a new request. ``in_flight``: what we asked it, which it says a second later."""
    load = max(device.active + device.queue, in_flight) / device.slots
    # One that is hot answers fewer at a time; one that is unloaded first loads its model.
    hot = sum(each.startswith("throttled") for each in device.reasons)
    return load + 0.5 * hot + (0.25 if "unloaded" in device.reasons else 0.0)


def is_able(device: Device) -> bool:
    return device.online and device.ready and device.has_model


def choose(
    devices: Mapping[str, Device],
    *,
    in_flight: Mapping[str, int],
    cached: str | None,
    needs: frozenset[str],
    excluded: Collection[str] = (),
    wanted: Wanted,
) -> str:
    """The device to ask.

    Raises:
        SourceUnavailable: none of them can answer now; says why.
    """
    able = {name: each for name, each in devices.items() if is_able(each) and name not in excluded}
    if not able:
        raise nobody(devices, wanted)
    # Whoever cannot is asked where no other can: it says what is missing.
    fit = {name: each for name, each in able.items() if each.capabilities is None or needs <= each.capabilities}
    loads = {name: load_of(each, in_flight.get(name, 0)) for name, each in (fit or able).items()}
    least = min(loads.values())
    if cached is not None and cached in loads and loads[cached] <= least + SLACK:
        return cached
    # Equal ones take turns by what we have asked them, then by name.
    return min(loads, key=lambda name: (loads[name], in_flight.get(name, 0), name))


def nobody(devices: Mapping[str, Device], wanted: Wanted) -> SourceUnavailable:
    """Why no device can be asked now."""
    if wanted.kind == "device":
        (device,) = devices.values()
        return SourceUnavailable(f"the device {wanted.name} {_why(device)}", retry_after=_wait(devices))
    whose = f"the group {wanted.name}" if wanted.kind == "group" else f"those that run {wanted.name}"
    listed = [f"{name} {_why(each)}" for name, each in sorted(devices.items())[:MAX_NAMED]]
    more = f", and {len(devices) - MAX_NAMED} more" if len(devices) > MAX_NAMED else ""
    return SourceUnavailable(
        f"no device of {whose} can answer now: {', '.join(listed)}{more}", retry_after=_wait(devices)
    )


def _why(device: Device) -> str:
    if not device.online:
        return "is offline"
    if not device.has_model:
        return "has no model"
    if not device.ready:
        return f"is not ready ({', '.join(device.reasons[:4]) or 'it does not say why'})"
    return "is busy"


def _wait(devices: Mapping[str, Device]) -> float:
    """Seconds until asking again is worth it: loading takes seconds, being away takes longer."""
    soon = any(each.online and any(reason in _LATER for reason in each.reasons) for each in devices.values())
    return 2.0 if soon or any(is_able(each) for each in devices.values()) else 15.0
