"""What is known of the devices, from their messages alone. Pure: time is handed in, nothing is asked."""

from __future__ import annotations

import json
from collections import deque
from typing import Any

import msgspec
from msgspec import UNSET, Struct

from contract.identifiers import is_identifier
from contract.mqtt.device import Event, Health, Info, Status
from contract.mqtt.reports import Reported
from edge_bundle.broker_session import Message
from packager.watch.samples import LlmReading, SystemReading
from packager.watch.series import Series, Speed

MAX_DEVICES = 2000
"""More than a person watches; whoever may publish here could otherwise fill our memory with names."""

MAX_EVENTS = 200
MAX_HELD = 16
"""Messages of a device that has not said its groups yet: one of each kind, and a few events."""

MAX_BOOTS = 8
"""Restarts that are remembered, to know one that comes back."""

CONTESTED = "two devices are connected under this name in turn: give each a name of its own"

MAX_TEXT = 400

FETCHES = ("RESOLVE", "CHECK", "RESERVE", "FETCH", "VERIFY", "SEAL")
"""The phases of which the bytes of the bundle are the progress."""

DOCUMENTS = ("status", "health", "reported", "info")
"""What a broker keeps of a device. Where all of it was removed, nothing is left of the device."""


class DeviceEvent(Struct, frozen=True):
    """``at`` as the device wrote it, ``what`` the type of event, ``text`` for people."""

    at: str
    device: str
    what: str
    text: str


class DeviceView:
    """The last that a device said of each thing; None until it did. ``heard``: when it last said anything live.

    ``contested``: an earlier ``boot_id`` came online again, which no restart brings about: two devices have this name.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.status: Status | None = None
        self.health: Health | None = None
        self.reported: Reported | None = None
        self.info: Info | None = None
        self.system: SystemReading | None = None
        self.llm: LlmReading | None = None
        self.heard: float | None = None
        self.boots: deque[str] = deque(maxlen=MAX_BOOTS)
        self.contested = False
        self.speed = Speed()
        self.queue = Series()
        self.temperature = Series()
        self.memory = Series()
        self.cpu = Series()

    @property
    def online(self) -> bool:
        return self.status is not None and self.status.online


class Fleet:
    """Devices by name, and what happened to them. With ``group``, only devices whose ``info`` names it."""

    def __init__(self, root: str, group: str | None = None) -> None:
        self._prefix = f"{root}/d/"
        self._group = group
        self._held: dict[str, list[Message]] = {}
        self._others: set[str] = set()
        self.devices: dict[str, DeviceView] = {}
        self.events: deque[DeviceEvent] = deque(maxlen=MAX_EVENTS)
        self.contested: list[str] = []
        """Devices of which that became known, until it is taken note of."""
        self.unreadable = 0

    def feed(self, message: Message, now: float) -> list[Message]:
        """Take what came in; the messages that count, in order: none for devices of other groups, and more than one
        when a device turns out to belong to ours.
        """
        device, _, kind = message.topic.removeprefix(self._prefix).partition("/")
        if not message.topic.startswith(self._prefix) or not is_identifier(device):
            return []
        found = self._admit(device, kind, message)
        for each in found:
            self._take(device, each.topic.removeprefix(f"{self._prefix}{device}/"), each, now)
        return found

    def _admit(self, device: str, kind: str, message: Message) -> list[Message]:
        if self._group is None or (device in self.devices and kind != "info"):
            return [message]
        if kind == "info":
            info = _decode(message.payload, Info)
            if info is None or self._group not in info.groups:
                if len(self._others) < MAX_DEVICES:
                    self._others.add(device)
                self._held.pop(device, None)
                self.devices.pop(device, None)
                return []
            self._others.discard(device)
            return [*self._held.pop(device, []), message]
        if device not in self._others and (device in self._held or len(self._held) < MAX_DEVICES):
            held = self._held.setdefault(device, [])
            if len(held) < MAX_HELD:
                held.append(message)
        return []

    def _take(self, device: str, kind: str, message: Message, now: float) -> None:
        view = self.devices.get(device)
        if view is None:
            if len(self.devices) >= MAX_DEVICES:
                return
            view = self.devices[device] = DeviceView(device)
        if not message.retained:
            view.heard = now
        if kind.startswith("event/"):
            self._happen(device, kind.removeprefix("event/"), message.payload)
            return
        if kind in DOCUMENTS and not message.payload:
            setattr(view, kind, None)
            if all(getattr(view, each) is None for each in DOCUMENTS):
                del self.devices[device]
            return
        contested = view.contested
        taken = _take_document(view, kind, message.payload) or _take_sample(view, kind, message.payload, now)
        if message.payload and not taken:
            self.unreadable += 1
        if view.contested and not contested:
            self.contested.append(device)
            self.events.append(DeviceEvent("", device, "broker", CONTESTED))

    def _happen(self, device: str, what: str, payload: bytes) -> None:
        event = _decode(payload, Event)
        if event is None:
            self.unreadable += 1
        else:
            self.events.append(
                DeviceEvent(printable(event.at), device, printable(what), describe_event(what, event.detail))
            )


def _take_document(view: DeviceView, kind: str, payload: bytes) -> bool:
    if kind == "status" and (status := _decode(payload, Status)) is not None:
        view.status = status
        if status.online:
            _note_boot(view, status.boot_id)
    elif kind == "health" and (health := _decode(payload, Health)) is not None:
        view.health = health
    elif kind == "reported" and (reported := _decode(payload, Reported)) is not None:
        view.reported = reported
    elif kind == "info" and (info := _decode(payload, Info)) is not None:
        view.info = info
    else:
        return False
    return True


def _note_boot(view: DeviceView, boot_id: str) -> None:
    if view.boots and boot_id == view.boots[-1]:
        return
    view.contested = view.contested or boot_id in view.boots
    view.boots.append(boot_id)


def _take_sample(view: DeviceView, kind: str, payload: bytes, now: float) -> bool:
    if kind == "telemetry/system" and (system := _decode(payload, SystemReading)) is not None:
        view.system = system
        view.cpu.add(None if system.cpu is UNSET else system.cpu.percent)
        view.temperature.add(None if system.hottest is None else system.hottest[1])
        memory = system.memory
        used = None if memory is UNSET or not memory.total else 100 * (1 - memory.available / memory.total)
        view.memory.add(used)
    elif kind == "telemetry/llm" and (llm := _decode(payload, LlmReading)) is not None:
        view.llm = llm
        view.speed.read(llm.tokens, now, llm.start)
        view.queue.add(llm.queue)
    else:
        return False
    return True


def _decode(payload: bytes, type_: type[Any]) -> Any:
    """None for what cannot be read: a device of another version, or no device of ours."""
    try:
        return msgspec.json.decode(payload, type=type_)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def describe_event(what: str, detail: dict[str, Any]) -> str:
    """One line for people."""
    known = {
        "install": lambda: f"{detail['bundle']} is installed",
        "swap": lambda: (
            f"{detail['from'] or 'nothing'} → {detail['bundle']}, {detail['mode']}, "
            f"requests waited {detail['queue_pause_ms']:.0f} ms"
        ),
        "rollback": lambda: f"{detail['from']} → {detail['to'] or 'nothing'}: {detail['message']} [{detail['reason']}]",
        "refused": lambda: f"{detail.get('bundle', 'the desired bundle')}: {detail['message']} [{detail['reason']}]",
        "broker": lambda: (
            f"{detail['topic'] + ': ' if 'topic' in detail else ''}{detail['message']} [{detail['reason']}]"
        ),
        "throttle": lambda: (
            f"at most {detail['active_limit']} at once: {', '.join(detail['reasons'])}"
            if detail["level"]
            else "recovered, all places are open again"
        ),
    }
    try:
        text = known[what]()
    except (KeyError, TypeError, ValueError):
        # Another version's event, or none of ours.
        text = json.dumps(detail, ensure_ascii=False)
    return printable(text)[:MAX_TEXT]


def printable(text: str) -> str:
    """Without control characters: what a device says must not steer the terminal."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def reference(bundle: Any) -> str:
    """NAME@VERSION of a bundle state, ``-`` for none."""
    return "-" if bundle is None else printable(f"{bundle.name}@{bundle.version}")
