"""From a batch of messages to rows, and these into the database in one transaction."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from contract.errors import BundleRefused, RequestInvalid
from contract.mqtt.encoding import encode
from fleet.ingest import reading
from fleet.ingest.inbox import Batch, Heard
from fleet.ingest.reading import Kind
from fleet.rollout.counters import Reading
from fleet.store import counters, devices
from fleet.store.counters import Sample
from fleet.store.database import Database, Transaction
from fleet.store.devices import UNTRUE_COUNTERS, DeviceUpdate, Event

log = logging.getLogger("edge_fleet.ingest")

MAX_DEVICES = 100_000
"""In the registry. Names beyond are not added; devices that are known go on."""


class Rows(Struct):
    """What a batch says."""

    updates: list[DeviceUpdate] = []
    samples: list[Sample] = []
    events: list[Event] = []
    refused: dict[str, str] = {}

    def of(self, device: str) -> Rows:
        """What one device says."""
        return Rows(
            [each for each in self.updates if each.device == device],
            [each for each in self.samples if each.device == device],
            [each for each in self.events if each.device == device],
        )


def collect(batch: Batch, now: float) -> Rows:
    """Read ``batch``; what cannot be read is left out and told of the device that sent it."""
    rows = Rows()
    for device, kinds in batch.messages.items():
        faults: list[str] = []
        if device in batch.oversized:
            faults.append(
                f"its {batch.oversized[device]} has more than {reading.MAX_BYTES[batch.oversized[device]]} bytes"
            )
        _read_device(rows, device, kinds, faults, now)
        if faults:
            rows.refused[device] = faults[0]
    return rows


def _read_device(rows: Rows, device: str, kinds: dict[Kind, list[Heard]], faults: list[str], now: float) -> None:
    values: dict[str, Any] = {}
    boots: list[str] = []

    def attempt(read: Callable[[], None]) -> None:
        try:
            read()
        except BundleRefused as refused:
            faults.append(refused.message)

    def status(heard: Heard) -> None:
        found = reading.read_status(heard.payload)
        values["online"] = found.online
        if found.online:
            boots.append(found.boot_id)

    def document(kind: Kind) -> None:
        payload = kinds[kind][-1].payload
        if kind == "info":
            values["info"] = encode(reading.read_info(payload, device)).decode()
        elif kind == "health":
            values["health"] = encode(reading.read_health(payload)).decode()
        elif kind == "reported":
            values["reported"] = encode(reading.read_reported(payload)).decode()
        else:
            values["desired"] = reading.read_desired(payload)

    for heard in kinds.get("status", []):
        if heard.payload:
            attempt(lambda heard=heard: status(heard))  # type: ignore[misc]
        else:
            values["online"] = False
    for kind in ("info", "health", "reported", "desired"):
        # An empty retained document was removed by somebody: what was known of the device stays. A wish is withdrawn.
        if kind in kinds and (kinds[kind][-1].payload or kind == "desired"):
            attempt(lambda kind=kind: document(kind))  # type: ignore[misc]
    attempt(lambda: _read_samples(rows, device, kinds))
    for heard in kinds.get("event", []):
        attempt(lambda heard=heard: _read_event(rows, device, heard))  # type: ignore[misc]
    # A wish is not said by the device.
    live = [heard.at for kind, all_ in kinds.items() if kind != "desired" for heard in all_ if not heard.retained]
    if live:
        values["seen_at"] = max(live)
    trouble = faults[0] if faults else ""
    rows.updates.append(DeviceUpdate(device=device, at=now, boots=tuple(boots), unreadable=trouble, **values))


def _read_samples(rows: Rows, device: str, kinds: dict[Kind, list[Heard]]) -> None:
    """Counters and memory; a retained sample is of nobody knows when."""
    llm = [heard for heard in kinds.get("telemetry/llm", []) if not heard.retained]
    system = [heard for heard in kinds.get("telemetry/system", []) if not heard.retained]
    if not llm and not system:
        return
    found: Reading | None = reading.read_llm(llm[-1].payload) if llm else None
    machine = reading.read_system(system[-1].payload) if system else reading.SystemReading()
    at = max(heard.at for heard in (*llm, *system))
    rows.samples.append(Sample(device, at, found, machine.memory_available, machine.thermal))


def _read_event(rows: Rows, device: str, heard: Heard) -> None:
    if not heard.retained:
        found = reading.read_event(heard.payload)
        rows.events.append(Event(heard.at, device, heard.detail, encode(found).decode()))


class Collector:
    """Writes batches; a batch that cannot be written is the database's fault, and is told to the caller. ``fence``
    raises, in the transaction, where somebody else writes.
    """

    def __init__(self, database: Database, fence: Callable[[Transaction], object] = lambda _: None) -> None:
        self._database = database
        self._fence = fence
        self._told: dict[str, str] = {}

    def store(self, batch: Batch, now: float) -> int:
        """Write ``batch``; how many devices it was about.

        Raises:
            StoreBroken, StoreFull, SourceUnavailable: it could not be written, none of it.
        """
        rows = collect(batch, now)
        if batch.dropped:
            log.warning("%d messages were left out: more devices or events than there is room for", batch.dropped)
        for device, fault in rows.refused.items():
            if self._told.get(device) != fault and len(self._told) < MAX_DEVICES:
                self._told[device] = fault
                log.warning("%s: %s", device, fault)
        if not rows.updates:
            return 0
        try:
            self._write(rows)
        except RequestInvalid:
            self._write_each(rows)
        return len(rows.updates)

    def _write_each(self, rows: Rows) -> None:
        """Something in ``rows`` cannot be a record: what nobody else shall wait for, or go without."""
        for each in rows.updates:
            try:
                self._write(rows.of(each.device))
            except RequestInvalid as refused:
                log.warning("%s: nothing that it said lately can be kept: %s", each.device, refused.message)

    def _write(self, rows: Rows) -> None:
        with self._database.write() as connection:
            self._fence(connection)
            devices.take(connection, rows.updates, most=MAX_DEVICES)
            false = counters.take(connection, rows.samples)
            devices.mark_unreliable(connection, false, UNTRUE_COUNTERS)
            devices.note_events(connection, rows.events)
