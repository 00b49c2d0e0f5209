"""The registry: what every device said last, what operators say of it, and both as traits and facts."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType, structs
from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from contract.errors import RequestInvalid
from contract.mqtt.device import Health, Info
from contract.mqtt.faults import MAX_MESSAGE
from contract.mqtt.reports import BundleState, Reported
from contract.strict_json import prepare
from fleet.rollout.counters import Counters
from fleet.rollout.facts import DeviceFacts, Report
from fleet.rollout.model import Bundle
from fleet.rollout.selector import Traits
from fleet.store import counters
from fleet.store.schema import device, event_log, sample_last

# Read by the service's loop and by whoever answers HTTP.
prepare(Info, Health, Reported)

MAX_BOOTS = 8
"""Restarts that are remembered, to know one that comes back: then two devices share one name."""

CONTESTED = "two devices are connected under this name in turn: give each a name of its own"
UNTRUE_COUNTERS = "its counters fell without a restart, or contradict each other"

MAX_EVENTS = 200_000
"""That are kept, the newest, of all devices together."""

MAX_HEARD_AGAIN = 32
"""Events of a device among which one that comes again is looked for."""

FEW = 500
"""Devices that are asked for by name; beyond, reading them all is as fast."""

_M = TypeVar("_M", bound=Struct)


class DeviceUpdate(Struct, frozen=True, kw_only=True):
    """What was heard of a device since the last update; documents as they came, read and found right before.

    ``desired``: the revision that the broker holds, "" for a withdrawn one. ``seen_at``: when it last said something
    live. ``boots``: boot ids of births, in their order. ``unreadable``: what it sent that could not be read.
    """

    device: str
    at: float
    info: str | UnsetType = UNSET
    health: str | UnsetType = UNSET
    reported: str | UnsetType = UNSET
    desired: str | UnsetType = UNSET
    online: bool | UnsetType = UNSET
    seen_at: float | UnsetType = UNSET
    boots: tuple[str, ...] = ()
    unreadable: str = ""


class Event(Struct, frozen=True):
    """Something that happened on a device; ``detail`` is JSON."""

    at: float
    device: str
    kind: str
    detail: str


def hardware_class(info: Info) -> str:
    """What boxes are alike: architecture, cores and memory, such as ``x86_64 4c 8G``."""
    arch, cores, ram = info.host.get("arch"), info.host.get("cores"), info.host.get("ram_bytes")
    parts = [str(arch)[:32] if isinstance(arch, str) else ""]
    if _is_count(cores):
        parts.append(f"{cores}c")
    if _is_count(ram):
        parts.append(f"{max(1, round(ram / 2**30))}G")
    return " ".join(part for part in parts if part)


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**53


def take(connection: Connection, updates: Sequence[DeviceUpdate], *, most: int = 100_000) -> None:
    """Note what was heard, one update a device; new devices are added while there are fewer than ``most``."""
    names = [each.device for each in updates]
    known = {row.id: row for row in connection.execute(select(device).where(device.c.id.in_(names)))}
    room = most - (connection.execute(select(func.count()).select_from(device)).scalar() or 0)
    statements: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for each in sorted(updates, key=lambda update_: update_.device):
        values = _changes(each, known.get(each.device))
        if each.device not in known:
            room -= 1
            if room < 0:
                continue
            values["first_seen"] = each.at
        if values:
            # Rows that have the same columns go in one statement.
            statements.setdefault(tuple(sorted(values)), []).append({"id_": each.device, **values})
    for columns, found in statements.items():
        if "first_seen" in columns:
            connection.execute(insert(device), [{"id": row.pop("id_"), **row} for row in found])
        else:
            changed = update(device).where(device.c.id == bindparam("id_"))
            connection.execute(changed.values({name: bindparam(name) for name in columns}), found)


def _changes(each: DeviceUpdate, row: Any) -> dict[str, Any]:
    fields = ("info", "health", "reported", "desired", "online", "seen_at")
    values = {name: getattr(each, name) for name in fields if getattr(each, name) is not UNSET}
    if "info" in values:
        info = msgspec.json.decode(values["info"], type=Info)
        arch, cores, ram = info.host.get("arch"), info.host.get("cores"), info.host.get("ram_bytes")
        values |= {
            "hardware": hardware_class(info),
            "arch": arch if isinstance(arch, str) else "",
            "agent": info.versions.get("agent", ""),
            "cores": cores if _is_count(cores) else None,
            "ram": ram if _is_count(ram) else None,
            "groups": json.dumps(list(info.groups)),
        }
    if "reported" in values:
        active = msgspec.json.decode(values["reported"], type=Reported).active
        values["bundle"] = "" if active is None else f"{active.name}@{active.version}"
    if "seen_at" in values and row is not None and row.seen_at is not None:
        values["seen_at"] = max(values["seen_at"], row.seen_at)
    trouble = ""
    if each.boots:
        boots = [] if row is None else json.loads(row.boots)
        for boot in each.boots:
            if boot in boots[:-1]:
                trouble = CONTESTED
            elif boot not in boots:
                boots = [*boots, boot][-MAX_BOOTS:]
        values["boots"] = json.dumps(boots)
    if trouble:
        values |= {"reliable": False, "trouble": trouble}
    elif each.unreadable and (row is None or row.reliable):
        values["trouble"] = each.unreadable
    return values


def note_events(connection: Connection, events: Sequence[Event]) -> None:
    """Append ``events`` and forget the oldest beyond :data:`MAX_EVENTS`. One that is known was heard before: its
    ``detail`` has the device's own time.
    """
    names = {each.device for each in events}
    of_these = event_log.c.device.in_(names)
    lately = select(event_log.c.device, event_log.c.kind, event_log.c.detail).where(of_these)
    newest_first = lately.order_by(event_log.c.id.desc()).limit(MAX_HEARD_AGAIN * len(names))
    known = {tuple(row) for row in connection.execute(newest_first)} if names else set()
    new = [each for each in events if (each.device, each.kind, each.detail) not in known]
    if not new:
        return
    connection.execute(insert(event_log), [structs.asdict(each) for each in new])
    newest = connection.execute(select(func.max(event_log.c.id))).scalar() or 0
    connection.execute(delete(event_log).where(event_log.c.id <= newest - MAX_EVENTS))


def events(connection: Connection, name: str, limit: int = 20) -> list[Event]:
    """The last of one device, the newest first."""
    query = select(event_log).where(event_log.c.device == name).order_by(event_log.c.id.desc()).limit(limit)
    return [Event(row.at, row.device, row.kind, row.detail) for row in connection.execute(query)]


def last_event_id(connection: Connection) -> int:
    """Of all devices; 0 where there is none."""
    return connection.execute(select(func.max(event_log.c.id))).scalar() or 0


def events_after(connection: Connection, number: int, name: str, limit: int) -> list[tuple[int, Event]]:
    """What happened on one device after the event ``number``, with their numbers, the oldest first."""
    query = select(event_log).where((event_log.c.device == name) & (event_log.c.id > number))
    rows = connection.execute(query.order_by(event_log.c.id).limit(limit))
    return [(row.id, Event(row.at, row.device, row.kind, row.detail)) for row in rows]


def mark_unreliable(connection: Connection, names: Collection[str], trouble: str) -> None:
    """What these say is not judged by until an operator says otherwise."""
    if names:
        changed = update(device).where(device.c.id.in_(names)).values(reliable=False, trouble=trouble)
        connection.execute(changed)


class DeviceRow(Struct, frozen=True, kw_only=True):
    """A device with everything that is known of it."""

    traits: Traits
    reliable: bool
    trouble: str
    desired: str | None
    seen_at: float | None
    first_seen: float
    info: Info | None
    health: Health | None
    reported: Reported | None


def rows(connection: Connection, name: str | None = None) -> list[DeviceRow]:
    """Every device, or one of them, by name."""
    query = select(device).order_by(device.c.id)
    if name is not None:
        query = query.where(device.c.id == name)
    return [_row(row) for row in connection.execute(query)]


_TRAITS = (
    "id", "site", "hardware", "arch", "agent", "bundle", "cores", "ram", "online", "pinned", "groups", "labels",
)  # fmt: skip


def traits(connection: Connection) -> list[Traits]:
    """What can be asked of every device, by name: none of the documents is read, so that a page of a large fleet can
    be chosen while a person waits.
    """
    query = select(*(device.c[name] for name in _TRAITS)).order_by(device.c.id)
    # Groups and labels are the same few texts again and again; a page waits for this.
    read: dict[str, Any] = {"[]": (), "{}": {}}
    found = []
    for name, site, hardware, arch, agent, bundle, cores, ram, online, pinned, groups, labels in connection.execute(
        query
    ):
        for text in (groups, labels):
            if text not in read:
                read[text] = tuple(json.loads(text)) if text.startswith("[") else json.loads(text)
        values = (name, site, hardware, arch, agent, bundle, cores, ram, online, pinned)
        found.append(Traits(*values, read[groups], read[labels]))
    return found


def _traits(row: Any) -> Traits:
    return Traits(
        device=row.id,
        site=row.site,
        hardware=row.hardware,
        arch=row.arch,
        agent=row.agent,
        bundle=row.bundle,
        cores=row.cores,
        ram=row.ram,
        online=row.online,
        pinned=row.pinned,
        groups=() if row.groups == "[]" else tuple(json.loads(row.groups)),
        labels={} if row.labels == "{}" else json.loads(row.labels),
    )


def named(connection: Connection, names: Collection[str]) -> list[DeviceRow]:
    """Those of ``names`` that are known, by name."""
    query = select(device).where(device.c.id.in_(list(names))).order_by(device.c.id)
    return [_row(row) for row in connection.execute(query)]


def running(connection: Connection) -> dict[str, int]:
    """How many devices run which bundle."""
    query = select(device.c.bundle, func.count()).where(device.c.bundle != "").group_by(device.c.bundle)
    return {bundle: int(count) for bundle, count in connection.execute(query)}


class StateCounts(NamedTuple):
    """Of all devices; ``troubled``: of which something is wrong with what they send."""

    known: int
    online: int
    troubled: int
    pinned: int


def count_states(connection: Connection) -> StateCounts:
    """How many there are of which kind."""
    query = select(
        func.count(),
        func.count().filter(device.c.online),
        func.count().filter(device.c.trouble != ""),
        func.count().filter(device.c.pinned),
    )
    return StateCounts(*(int(value) for value in connection.execute(query).one()))


def find(connection: Connection, name: str) -> DeviceRow:
    """The device ``name``.

    Raises:
        RequestInvalid: it was never heard.
    """
    found = rows(connection, name)
    if not found:
        raise RequestInvalid(
            f"no device {name!r} was heard yet; `edge-fleet devices` shows those that were",
            code=404,
            kind="not_found",
            field="device",
        )
    return found[0]


def _row(row: Any) -> DeviceRow:
    info = _decode(row.info, Info)
    reported = _decode(row.reported, Reported)
    return DeviceRow(
        traits=_traits(row),
        reliable=row.reliable,
        trouble=row.trouble,
        desired=row.desired,
        seen_at=row.seen_at,
        first_seen=row.first_seen,
        info=info,
        health=_decode(row.health, Health),
        reported=reported,
    )


def _decode(text: str | None, type_: type[_M]) -> _M | None:
    """None for what was never said."""
    return None if text is None else msgspec.json.decode(text, type=type_)


def facts(
    connection: Connection, now: float, names: Collection[str] | None = None, *, look_back: bool = True
) -> dict[str, DeviceFacts]:
    """What is known of every device, or of ``names``, for a decision. Read at every turn, so only what decides; without
    ``look_back`` nothing of the day before, which those that were asked have in their targets.
    """
    query, samples_query = select(device), select(sample_last)
    if names is not None and len(names) <= FEW:
        query = query.where(device.c.id.in_(names))
        samples_query = samples_query.where(sample_last.c.device.in_(names))
    samples = {row.device: row for row in connection.execute(samples_query)}
    before = counters.day_before(connection, now) if look_back else {}
    found = {}
    for row in connection.execute(query):
        if names is not None and row.id not in names:
            continue
        sample = samples.get(row.id)
        reported, health = _decode(row.reported, Reported), _decode(row.health, Health)
        found[row.id] = DeviceFacts(
            device=row.id,
            online=row.online,
            seen_at=row.seen_at,
            pinned=row.pinned,
            report=None if reported is None else as_report(reported),
            ready=None if health is None else health.ready,
            counters=None if sample is None else counters.decode(sample.total),
            heard_at=None if sample is None else sample.at,
            day_before=None if sample is None or not look_back else before.get(row.id, Counters()),
            memory_available=None if sample is None else sample.memory_available,
            desired=row.desired,
            reliable=row.reliable,
        )
    return found


def as_report(reported: Reported) -> Report:
    """What of a report decides."""
    error, followed, waiting = reported.error, reported.desired, reported.waiting
    report = Report(
        revision=reported.revision,
        phase=reported.phase,
        active=_bundle(reported.active),
        previous=_bundle(reported.previous),
        error="" if error is None else error.reason,
        message="" if error is None else error.message,
        retries=error is not None and error.retry_in_seconds is not UNSET,
        followed="" if followed is UNSET else f"{followed.name}@{followed.version}",
    )
    if waiting is UNSET or error is not None:
        return report
    return structs.replace(
        report, waiting=waiting.reason, prefetched=waiting.prefetched, message=waiting.message[:MAX_MESSAGE]
    )


def _bundle(state: BundleState | None) -> Bundle | None:
    return None if state is None else Bundle(state.name, state.version, state.digest)


def change(
    connection: Connection,
    name: str,
    *,
    labels: Mapping[str, str] | None = None,
    pinned: bool | None = None,
    reliable: bool | None = None,
) -> None:
    """What an operator says of a device. The label ``site`` is where it stands; an empty value takes a label away.

    Raises:
        RequestInvalid: it was never heard.
    """
    before = find(connection, name)
    values: dict[str, Any] = {}
    if labels is not None:
        after = {key: value for key, value in {**before.traits.labels, **labels}.items() if value}
        values |= {"labels": json.dumps(after), "site": after.get("site", "")}
    if pinned is not None:
        values["pinned"] = pinned
    if reliable:
        # Nothing of before is held against it.
        values |= {"reliable": True, "trouble": "", "boots": "[]"}
    if values:
        connection.execute(update(device).where(device.c.id == name).values(**values))
