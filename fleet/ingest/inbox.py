"""Takes messages as fast as a broker sends them: of each device and kind the last one is kept, so that a device that
floods costs no more than one that does not. What would not fit is left out, and counted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

from msgspec import Struct

from fleet.ingest.reading import MAX_BYTES, Address, Kind, parse_topic

MAX_DEVICES = 20_000
"""That are known at a time; whoever may publish could otherwise fill our memory with names."""

MAX_STATUS = 8
"""Births and wills of a device between two looks: two that take turns under one name must be seen."""

MAX_EVENTS = 16
"""Of a device between two looks."""

STALE_SECONDS = 60.0
"""A retained report that comes so soon after a live one says nothing: a node of NATS that took over was seen to send an
older one, by which a device seemed to have gone back to the bundle before.
"""

_URGENT = ("status", "reported", "desired")


class Heard(NamedTuple):
    """``at``: when it came, in Unix seconds; ``detail``: of an event, its type."""

    payload: bytes
    retained: bool
    at: float
    detail: str = ""


class Batch(Struct):
    """What came since the last look: by device and kind, oldest first. ``dropped``: messages left out."""

    messages: dict[str, dict[Kind, list[Heard]]] = {}
    dropped: int = 0
    oversized: dict[str, Kind] = {}

    def settle(self) -> None:
        """Of what was heard while another process wrote it down, keep what it may not have come to: the last documents
        and the events, which are known again. Samples are repeated; births before the last are no sign of a rival.
        """
        for kinds in self.messages.values():
            kinds.pop("telemetry/llm", None)
            kinds.pop("telemetry/system", None)
            if "status" in kinds:
                del kinds["status"][:-1]


def _kept_of(kind: Kind) -> int:
    return {"status": MAX_STATUS, "event": MAX_EVENTS}.get(kind, 1)


class Inbox:
    """``put`` is called by the connection's thread, ``take`` by whoever writes; ``wake`` when something urgent came."""

    def __init__(self, root: str, wake: Callable[[], object] = lambda: None, *, max_devices: int = MAX_DEVICES) -> None:
        self._root = root
        self._wake = wake
        self._max_devices = max_devices
        self._lock = threading.Lock()
        self._batch = Batch()
        self._reported: dict[str, float] = {}

    def put(self, topic: str, payload: bytes, *, retained: bool, now: float) -> None:
        """Keep a message, or leave it out."""
        address = parse_topic(topic, self._root)
        if address is None:
            return
        if address.kind == "reported" and self._is_stale(address.device, retained, now):
            return
        with self._lock:
            self._keep(address, Heard(payload, retained, now, address.detail))
        if address.kind in _URGENT:
            self._wake()

    def _is_stale(self, device: str, retained: bool, now: float) -> bool:
        if retained:
            return now < self._reported.get(device, -STALE_SECONDS) + STALE_SECONDS
        if device in self._reported or len(self._reported) < self._max_devices:
            self._reported[device] = now
        return False

    def _keep(self, address: Address, heard: Heard) -> None:
        if len(heard.payload) > MAX_BYTES[address.kind]:
            if self._has_room(address.device):
                self._batch.messages.setdefault(address.device, {})
                self._batch.oversized[address.device] = address.kind
        elif self._has_room(address.device):
            kept = self._batch.messages.setdefault(address.device, {}).setdefault(address.kind, [])
            kept.append(heard)
            if len(kept) > _kept_of(address.kind):
                del kept[0]
                self._batch.dropped += address.kind == "event"

    def _has_room(self, device: str) -> bool:
        if device in self._batch.messages or len(self._batch.messages) < self._max_devices:
            return True
        self._batch.dropped += 1
        return False

    def put_back(self, batch: Batch) -> None:
        """What could not be written; what came since is newer."""
        with self._lock:
            newer, self._batch = self._batch, batch
            self._batch.dropped += newer.dropped
            self._batch.oversized |= newer.oversized
            for device, kinds in newer.messages.items():
                for kind, all_ in kinds.items():
                    for heard in all_:
                        self._keep(Address(device, kind, heard.detail), heard)

    def take(self) -> Batch:
        """Everything that came since, and begin anew."""
        with self._lock:
            batch, self._batch = self._batch, Batch()
        return batch
