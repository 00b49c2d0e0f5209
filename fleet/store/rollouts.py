"""Rollouts in the database: read as one state, changed in one transaction with the wishes that come of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec import structs
from sqlalchemy import ColumnElement, Connection, bindparam, delete, false, func, insert, select, update

from contract.errors import RequestInvalid
from contract.mqtt.desired import BundleReference, Desired, Policy
from contract.mqtt.encoding import encode
from contract.strict_json import prepare
from contract.windows import write_window
from fleet.rollout.actions import Action, FreeSlot, MoveTarget, Publish, TakeSlot, apply
from fleet.rollout.model import Bundle, Rollout, Target, Wave
from fleet.rollout.operate import start, supersede
from fleet.rollout.spec import Spec
from fleet.rollout.states import ENDED, LIVE, RolloutState, TargetState, WaveState
from fleet.store.schema import attempt, outbox, rollout, slot, target, wave

# Read by the service's loop and by whoever answers HTTP.
prepare(Target, Spec)


def add(connection: Connection, make: Callable[[int], Rollout]) -> Rollout:
    """Store the draft that ``make`` makes for a number: all of it, or nothing."""
    empty = {
        "bundle": "", "spec": "{}", "state": RolloutState.DRAFT, "created_by": "", "created_at": 0.0, "ending": "",
    }  # fmt: skip
    number = connection.execute(insert(rollout).values(**empty).returning(rollout.c.id)).scalar_one()
    made = make(int(number))
    connection.execute(update(rollout).where(rollout.c.id == number).values(**_rollout_values(made)))
    connection.execute(insert(wave), [_wave_values(made, each) for each in made.waves])
    connection.execute(insert(target), [_target_values(made, n, each) for n, each in enumerate(made.targets.values())])
    return made


def load(connection: Connection, number: int, *, lock: bool = False) -> Rollout:
    """The rollout ``number``; with ``lock`` nobody else changes it in the meantime.

    Raises:
        RequestInvalid: there is none.
    """
    query = select(rollout).where(_is(number))
    row = connection.execute(query.with_for_update() if lock else query).first()
    if row is None:
        raise _unknown(number)
    waves = connection.execute(select(wave).where(wave.c.rollout == number).order_by(wave.c.number))
    return _rollout(row, list(waves), _targets(connection, target.c.rollout == number))


def _targets(connection: Connection, where: Any, *, limit: int | None = None, offset: int = 0) -> list[Target]:
    query = select(target.c.record).where(where).order_by(target.c.position).limit(limit).offset(offset)
    return [msgspec.json.decode(record, type=Target) for (record,) in connection.execute(query)]


def _rollout(row: Any, waves: Sequence[Any], targets: Sequence[Target]) -> Rollout:
    name, _, version = row.bundle.partition("@")
    return Rollout(
        id=row.id,
        bundle=Bundle(name, version, row.digest),
        spec=msgspec.json.decode(row.spec, type=Spec),
        state=RolloutState(row.state),
        reason=row.reason,
        created_by=row.created_by,
        approved_by=row.approved_by,
        created_at=row.created_at,
        started_at=row.started_at,
        ending=RolloutState(row.ending),
        waves=tuple(Wave(w.number, WaveState(w.state), w.opened, w.bake_until, w.verdict) for w in waves),
        targets={each.device: each for each in targets},
    )


class Overview(NamedTuple):
    """A rollout without its targets, and how many of each wave are in which state."""

    rollout: Rollout
    counts: dict[int, Counter[str]]


def overviews(connection: Connection, *, before: int | None = None, limit: int = 50) -> list[Overview]:
    """The newest first, from below the number ``before``. No target is read."""
    query = select(rollout).order_by(rollout.c.id.desc()).limit(limit)
    return _overviews(connection, query if before is None else query.where(rollout.c.id < before))


def overview(connection: Connection, number: int) -> Overview:
    """Of one.

    Raises:
        RequestInvalid: there is none.
    """
    found = _overviews(connection, select(rollout).where(_is(number)))
    if not found:
        raise _unknown(number)
    return found[0]


def _overviews(connection: Connection, query: Any) -> list[Overview]:
    rows = connection.execute(query).all()
    numbers = [row.id for row in rows]
    waves: dict[int, list[Any]] = {}
    for each in connection.execute(select(wave).where(wave.c.rollout.in_(numbers)).order_by(wave.c.number)):
        waves.setdefault(each.rollout, []).append(each)
    counts: dict[int, dict[int, Counter[str]]] = {}
    grouped = select(target.c.rollout, target.c.wave, target.c.state, func.count()).where(target.c.rollout.in_(numbers))
    for number, in_wave, state, count in connection.execute(
        grouped.group_by(target.c.rollout, target.c.wave, target.c.state).order_by(target.c.state)
    ):
        counts.setdefault(number, {}).setdefault(in_wave, Counter())[state] = count
    return [Overview(_rollout(row, waves.get(row.id, []), []), counts.get(row.id, {})) for row in rows]


def targets(
    connection: Connection,
    number: int,
    *,
    states: Collection[str] | None = None,
    waves: Collection[int] | None = None,
    limit: int | None = None,
    offset: int = 0,
) -> list[Target]:
    """Those of a rollout that are in one of ``states`` and ``waves``, in their order."""
    where = target.c.rollout == number
    if states is not None:
        where &= target.c.state.in_(list(states))
    if waves is not None:
        where &= target.c.wave.in_(list(waves))
    return _targets(connection, where, limit=limit, offset=offset)


def _is(number: int) -> ColumnElement[bool]:
    """Of the rollout ``number``; one beyond 64 bits is none, and no column could be compared with it."""
    return rollout.c.id == number if abs(number) < 2**63 else false()


def _unknown(number: int) -> RequestInvalid:
    return RequestInvalid(
        f"there is no rollout {number}; `edge-fleet rollout list` shows them", code=404, kind="not_found", field="id"
    )


def numbers(connection: Connection, *, unfinished: bool = False) -> list[int]:
    """Of all rollouts, or of those that have not ended; the oldest first."""
    query = select(rollout.c.id).order_by(rollout.c.id)
    if unfinished:
        query = query.where(rollout.c.state.not_in(list(ENDED)))
    return [int(number) for (number,) in connection.execute(query)]


def save(connection: Connection, before: Rollout, actions: Sequence[Action], now: float) -> Rollout:
    """Carry ``actions`` out, with the wishes that they send, in the transaction in which ``before`` was read.

    Raises:
        IllegalMove: the tables of states do not allow one of them.
    """
    if not actions:
        return before
    after = apply(before, list(actions))
    connection.execute(update(rollout).where(rollout.c.id == after.id).values(**_rollout_values(after)))
    known = {each.number: each for each in before.waves}
    for each in after.waves:
        if each.number not in known:
            connection.execute(insert(wave).values(**_wave_values(after, each)))
        elif each != known[each.number]:
            where = (wave.c.rollout == after.id) & (wave.c.number == each.number)
            connection.execute(update(wave).where(where).values(**_wave_values(after, each)))
    _save_targets(connection, before, after)
    _note_attempts(connection, after, actions, now)
    for action in actions:
        match action:
            case Publish():
                _write_wish(connection, after.id, action, now)
            case TakeSlot(site, device, expires):
                connection.execute(delete(slot).where((slot.c.site == site) & (slot.c.device == device)))
                connection.execute(insert(slot).values(site=site, device=device, expires=expires))
            case FreeSlot(site, device):
                connection.execute(delete(slot).where((slot.c.site == site) & (slot.c.device == device)))
    return after


def begin(
    connection: Connection, number: int, actions: Callable[[Rollout, float], list[Action]], now: float
) -> Rollout:
    """Start or approve a rollout; what runs on its devices already gives them up in the same transaction.

    Raises:
        RequestInvalid: it is in no state for it.
    """
    # In the order of their numbers, as everybody locks them, so that nobody waits for us for whom we wait.
    others = [load(connection, each, lock=True) for each in _live(connection) if each != number]
    draft = load(connection, number, lock=True)
    started = actions(draft, now)
    if apply(draft, started).state is RolloutState.RUNNING:
        devices = frozenset(each.device for each in draft.targets.values() if each.open)
        for older in others:
            save(connection, older, supersede(older, devices, number, now), now)
    return save(connection, draft, started, now)


def start_rollout(connection: Connection, number: int, now: float) -> Rollout:
    """As :func:`begin`, for a draft."""
    return begin(connection, number, start, now)


def slots(connection: Connection, now: float) -> dict[str, dict[str, float]]:
    """Who downloads at each site, and until when; what has expired is removed."""
    connection.execute(delete(slot).where(slot.c.expires <= now))
    return held_slots(connection, now)


def held_slots(connection: Connection, now: float) -> dict[str, dict[str, float]]:
    """The same, only looked at."""
    found: dict[str, dict[str, float]] = {}
    for row in connection.execute(select(slot).where(slot.c.expires > now)):
        found.setdefault(row.site, {})[row.device] = row.expires
    return found


def attempts(connection: Connection, device: str, limit: int = 20) -> list[dict[str, Any]]:
    """What a device was asked lately, the latest first."""
    query = select(attempt).where(attempt.c.device == device).order_by(attempt.c.asked_at.desc()).limit(limit)
    return [dict(row._mapping) for row in connection.execute(query)]


def _live(connection: Connection) -> list[int]:
    query = select(rollout.c.id).where(rollout.c.state.in_(list(LIVE))).order_by(rollout.c.id)
    return [int(number) for (number,) in connection.execute(query)]


def _rollout_values(found: Rollout) -> dict[str, Any]:
    return {
        "bundle": found.bundle.reference,
        "digest": found.bundle.digest,
        "spec": msgspec.json.encode(found.spec).decode(),
        "state": found.state,
        "reason": found.reason,
        "created_by": found.created_by,
        "approved_by": found.approved_by,
        "created_at": found.created_at,
        "started_at": found.started_at,
        "ending": found.ending,
    }


def _wave_values(found: Rollout, each: Wave) -> dict[str, Any]:
    return {"rollout": found.id, **structs.asdict(each)}


def _target_values(found: Rollout, position: int, each: Target) -> dict[str, Any]:
    return {
        "rollout": found.id,
        "device": each.device,
        "position": position,
        "wave": each.wave,
        "state": each.state,
        # A draft holds nobody.
        "open": each.open and found.state in LIVE,
        "record": msgspec.json.encode(each).decode(),
    }


def _save_targets(connection: Connection, before: Rollout, after: Rollout) -> None:
    everything = (before.state in LIVE) != (after.state in LIVE)
    changed, added = [], []
    for position, each in enumerate(after.targets.values()):
        was = before.targets.get(each.device)
        if was is None:
            added.append(_target_values(after, position, each))
        elif everything or was is not each:
            changed.append({f"to_{name}": value for name, value in _target_values(after, position, each).items()})
    if changed:
        statement = (
            update(target)
            .where((target.c.rollout == bindparam("to_rollout")) & (target.c.device == bindparam("to_device")))
            .values(state=bindparam("to_state"), open=bindparam("to_open"), record=bindparam("to_record"))
        )
        # What is given up first makes room for what is taken.
        connection.execute(statement, sorted(changed, key=lambda values: bool(values["to_open"])))
    if added:
        connection.execute(insert(target), added)


def _note_attempts(connection: Connection, after: Rollout, actions: Sequence[Action], now: float) -> None:
    for action in actions:
        if not isinstance(action, MoveTarget):
            continue
        number = after.targets[action.device].attempt
        if action.to is TargetState.ASKED:
            values = {"asked_at": now, "state": action.to, "reason": "", "message": ""}
            key = {"rollout": after.id, "device": action.device, "number": action.changes["attempt"]}
            connection.execute(insert(attempt).values(**key, **values))
        elif number:
            where = (attempt.c.rollout == after.id) & (attempt.c.device == action.device) & (attempt.c.number == number)
            values = {"state": action.to, "reason": action.reason, "message": action.message, "ended_at": now}
            connection.execute(update(attempt).where(where).values(**values))


def write_desired(wish: Publish) -> bytes:
    """The document that a device is sent; empty where the wish is withdrawn."""
    if wish.bundle is None:
        return b""
    document = Desired(wish.revision, BundleReference(wish.bundle.name, wish.bundle.version))
    if wish.source is not None:
        document = structs.replace(document, source=wish.source)
    if wish.windows:
        windows = [write_window(each) for each in wish.windows]
        document = structs.replace(document, policy=Policy(window=windows, prefetch=True))
    return encode(document)


def _write_wish(connection: Connection, number: int, wish: Publish, now: float) -> None:
    """One row a device: an older wish that was not sent yet must not come after this one."""
    payload = write_desired(wish)
    connection.execute(delete(outbox).where(outbox.c.device == wish.device))
    connection.execute(
        insert(outbox).values(
            device=wish.device, revision=wish.revision, payload=payload.decode(), rollout=number, written_at=now
        )
    )
