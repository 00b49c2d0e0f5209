"""What devices count: the last sample of each, running totals that no restart of a device breaks, and a total for every
minute in which something changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct, structs
from sqlalchemy import Connection, delete, func, select

from contract.strict_json import prepare
from fleet.rollout.counters import Counters, Reading, accumulate
from fleet.store.schema import rollup_1m, sample_last
from fleet.store.upsert import upsert

# Read by the service's loop and by whoever answers HTTP.
prepare(Counters)

DAY = 86400.0
KEPT = 2 * DAY
"""Of totals by the minute: gates look one day back."""


class Sample(Struct, frozen=True):
    """A device's counters as they were heard at ``at``. Without a ``reading`` only the machine is told: its memory, and
    ``thermal``, its boot and how often it slowed down since.
    """

    device: str
    at: float
    reading: Reading | None
    memory_available: float | None = None
    thermal: tuple[float, int] | None = None


def encode(counters: Counters) -> str:
    return msgspec.json.encode(counters).decode()


def decode(text: str) -> Counters:
    return msgspec.json.decode(text, type=Counters)


def take(connection: Connection, samples: Sequence[Sample]) -> list[str]:
    """Note ``samples``, one a device; the devices whose counters cannot be true."""
    names = [sample.device for sample in samples]
    before = {row.device: row for row in connection.execute(select(sample_last).where(sample_last.c.device.in_(names)))}
    rows, minutes, false = [], [], []
    for sample in samples:
        last = before.get(sample.device)
        total = Counters() if last is None else decode(last.total)
        previous = None if last is None else Reading(last.era, decode(last.raw))
        reading = sample.reading or previous
        if reading is None:
            continue
        after, known = accumulate(total, previous, reading)
        if not known:
            false.append(sample.device)
        boot, slowed = sample.thermal or ((None, None) if last is None else (last.boot, last.throttled))
        after = structs.replace(after, throttled=total.throttled + _slowed(last, sample.thermal))
        memory = sample.memory_available
        rows.append(
            {
                "device": sample.device,
                "at": sample.at if sample.reading is not None or last is None else last.at,
                "era": reading.era,
                "raw": encode(reading.counters),
                "total": encode(after),
                "boot": boot,
                "throttled": slowed,
                "memory_available": memory if memory is not None or last is None else last.memory_available,
            }
        )
        if last is None or after != total:
            minutes.append({"device": sample.device, "minute": int(sample.at // 60), "total": encode(after)})
    upsert(connection, sample_last, rows)
    upsert(connection, rollup_1m, minutes)
    return false


def _slowed(last: Any, thermal: tuple[float, int] | None) -> int:
    """How often a machine slowed down since the last sample; it counts from its boot."""
    if last is None or last.boot is None or thermal is None:
        return 0
    boot, count = thermal
    return max(0, count - last.throttled) if boot == last.boot else count


def day_before(connection: Connection, now: float) -> dict[str, Counters]:
    """The total of every device a day ago; of one that was not heard yet then, nothing."""
    latest = (
        select(rollup_1m.c.device, func.max(rollup_1m.c.minute).label("minute"))
        .where(rollup_1m.c.minute <= int((now - DAY) // 60))
        .group_by(rollup_1m.c.device)
        .subquery()
    )
    query = select(rollup_1m.c.device, rollup_1m.c.total).join(
        latest, (latest.c.device == rollup_1m.c.device) & (latest.c.minute == rollup_1m.c.minute)
    )
    return {row.device: decode(row.total) for row in connection.execute(query)}


def series(connection: Connection, name: str, since: float) -> list[tuple[int, Counters]]:
    """Totals of a device by the minute, in their order, with the last one before ``since``, from which they rise."""
    table = rollup_1m
    minute = int(since // 60)
    before = select(func.max(table.c.minute)).where((table.c.device == name) & (table.c.minute < minute))
    first = connection.execute(before).scalar()
    query = select(table.c.minute, table.c.total).where(
        (table.c.device == name) & (table.c.minute >= (minute if first is None else first))
    )
    return [(row.minute, decode(row.total)) for row in connection.execute(query.order_by(table.c.minute))]


def latest(connection: Connection, name: str) -> tuple[float, Counters, float | None] | None:
    """When a device's counters were heard last, their total, and its available memory."""
    row = connection.execute(select(sample_last).where(sample_last.c.device == name)).first()
    return None if row is None else (row.at, decode(row.total), row.memory_available)


def prune(connection: Connection, now: float) -> None:
    """Forget totals that nobody looks back to any more, except the last of each device before that."""
    oldest = int((now - KEPT) // 60)
    keep = (
        select(func.max(rollup_1m.c.minute))
        .where(rollup_1m.c.minute < oldest)
        .correlate(None)
        .group_by(rollup_1m.c.device)
    )
    connection.execute(delete(rollup_1m).where((rollup_1m.c.minute < oldest) & rollup_1m.c.minute.not_in(keep)))
