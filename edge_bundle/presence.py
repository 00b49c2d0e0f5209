"""What devices say of themselves, from their retained documents, and why one of them cannot be asked now. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

import msgspec
from msgspec import Struct

from contract.mqtt.device import Health, Status
from contract.mqtt.reports import BundleState
from contract.schema_faults import nearest

T = TypeVar("T")

MAX_DEVICES = 10_000
"""Whoever may publish here could otherwise fill our memory with names."""

DOCUMENTS = ("status", "health", "info")
"""Kinds that are read, below ``d/DEVICE/``."""


class Engine(Struct, frozen=True):
    """What is read of ``info.engine``."""

    slots: int = 1
    capabilities: list[str] = []


class Information(Struct, frozen=True):
    """What is read of ``info``."""

    groups: list[str] = []
    bundle: BundleState | None = None
    engine: Engine | None = None


class Device(Struct, frozen=True):
    """``online`` by its birth and last will; ``ready``: it answers prompts now, else ``reasons`` says why not.

    ``active`` requests are answered and ``queue`` wait; ``slots`` are answered at a time. ``capabilities`` are those of
    the engine, None where no model is loaded that says so.
    """

    online: bool
    ready: bool
    reasons: tuple[str, ...]
    active: int
    groups: tuple[str, ...]
    queue: int = 0
    bundle: BundleState | None = None
    slots: int = 1
    capabilities: frozenset[str] | None = None

    @property
    def has_model(self) -> bool:
        return self.ready or "no_model" not in self.reasons

    @property
    def references(self) -> tuple[str, ...]:
        """What its active bundle is called: NAME and NAME@VERSION."""
        return () if self.bundle is None else (self.bundle.name, f"{self.bundle.name}@{self.bundle.version}")


class _Documents:
    def __init__(self) -> None:
        self.status: Status | None = None
        self.health: Health | None = None
        self.info: Information | None = None
        self.view = _view(self)


class _Index:
    """Devices by something that they have."""

    def __init__(self) -> None:
        self._devices: dict[str, set[str]] = {}

    def move(self, device: str, before: tuple[str, ...], now: tuple[str, ...]) -> None:
        """``device`` had ``before``, and has ``now``."""
        if before == now:
            return
        for each in before:
            devices = self._devices.get(each, set())
            devices.discard(device)
            if not devices:
                self._devices.pop(each, None)
        for each in now:
            self._devices.setdefault(each, set()).add(device)

    def find(self, name: str) -> list[str]:
        return sorted(self._devices.get(name, ()))

    def names(self) -> list[str]:
        return sorted(self._devices)


class Presence:
    """Devices by name, as their last documents have them."""

    def __init__(self) -> None:
        self._devices: dict[str, _Documents] = {}
        self._members = _Index()
        self._running = _Index()

    def hear(self, device: str, kind: str, payload: bytes) -> None:
        """A document of ``device``; an empty one takes back what it said."""
        known = self._devices.get(device)
        if known is None:
            if not payload or len(self._devices) >= MAX_DEVICES:
                return
            known = self._devices[device] = _Documents()
        match kind:
            case "status":
                known.status = _read(payload, Status)
            case "health":
                known.health = _read(payload, Health)
            case "info":
                known.info = _read(payload, Information)
        before, known.view = known.view, _view(known)
        self._members.move(device, before.groups, known.view.groups)
        self._running.move(device, before.references, known.view.references)
        if known.status is None and known.health is None and known.info is None:
            del self._devices[device]

    def device(self, name: str) -> Device | None:
        """What is known of a device; None where it never said anything."""
        known = self._devices.get(name)
        return None if known is None else known.view

    def devices(self) -> dict[str, Device]:
        """Every device that is known."""
        return {name: known.view for name, known in sorted(self._devices.items())}

    def members(self, group: str) -> dict[str, Device]:
        """Devices that say they belong to ``group``."""
        return {name: self._devices[name].view for name in self._members.find(group)}

    def groups(self) -> list[str]:
        """Groups that have a member."""
        return self._members.names()

    def running(self, bundle: str) -> dict[str, Device]:
        """Devices whose active bundle is ``bundle``, NAME or NAME@VERSION."""
        return {name: self._devices[name].view for name in self._running.find(bundle)}

    def bundles(self) -> list[str]:
        """What :meth:`running` finds somebody for."""
        return self._running.names()

    def may_answer(self, *, device: str | None, group: str | None) -> bool:
        """Whether what is known is enough to ask at once: that it is online, and that it has a model."""
        names = [device] if device is not None else self.members(group or "")
        heard = (self._devices[name] for name in names if name in self._devices)
        return any(each.view.online and each.health is not None and each.view.has_model for each in heard)

    def objection(self, *, device: str | None, group: str | None) -> str | None:
        """Why ``device`` or ``group`` cannot be asked now, as a sentence; None if it can."""
        return self._of_device(device) if device is not None else self._of_group(group or "")

    def _of_device(self, name: str) -> str | None:
        found = self.device(name)
        if found is None:
            return self.unknown("device", name, self._devices)
        if not found.online:
            return f"the device {name} is offline"
        return None if found.has_model else f"the device {name} has no model"

    def _of_group(self, name: str) -> str | None:
        members = self.members(name)
        online = [device for device in members.values() if device.online]
        if not members:
            return self.unknown("group", name, self.groups())
        if any(device.has_model for device in online):
            return None
        if online:
            return f"no device of the group {name} that is online has a model"
        return f"every device of the group {name} is offline: {', '.join(list(members)[:8])}"

    def unknown(self, what: str, name: str, known: Collection[str]) -> str:
        """That no device or group of this name is known, and which one was probably meant."""
        if not self._devices:
            return f"the {what} {name} is not known: no device has reported to this broker where this user may read it"
        near = nearest(name, sorted(known))
        hint = "" if near is None else f"; did you mean {near}?"
        missing = f"no device {name} is known" if what == "device" else f"no device of a group {name} is known"
        return f"{missing} to this broker{hint}"


def _view(known: _Documents) -> Device:
    status, health, info = known.status, known.health, known.info
    return Device(
        online=status is not None and status.online,
        # Without a health document nobody says that it cannot answer.
        ready=health is None or health.ready,
        reasons=() if health is None else tuple(health.reasons),
        active=0 if health is None else health.active,
        groups=() if info is None else tuple(info.groups),
        queue=0 if health is None else health.queue,
        bundle=None if info is None else info.bundle,
        slots=1 if info is None or info.engine is None else max(1, info.engine.slots),
        capabilities=None if info is None or info.engine is None else frozenset(info.engine.capabilities),
    )


def _read(payload: bytes, type_: type[T]) -> T | None:
    """None for what cannot be read: a device of another version, or no device of ours."""
    try:
        return msgspec.json.decode(payload, type=type_) if payload else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
