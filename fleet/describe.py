"""From what is stored to the documents that are shown. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import msgspec
from msgspec import structs

from fleet.documents import (
    AttemptDocument,
    BundleDocument,
    DeviceDetailDocument,
    DeviceDocument,
    EventDocument,
    GateDocument,
    PlanDocument,
    PointDocument,
    RolloutDetailDocument,
    RolloutDocument,
    TargetDocument,
    WaveDocument,
    WavePlanDocument,
)
from fleet.rollout.counters import Counters
from fleet.rollout.evidence import judge_targets
from fleet.rollout.facts import Facts
from fleet.rollout.model import CONTROL_WAVE, Rollout
from fleet.rollout.plan import WavePlan
from fleet.rollout.states import TargetState, WaveState
from fleet.store.catalogue import CatalogueEntry
from fleet.store.devices import DeviceRow, Event


def state_of(row: DeviceRow) -> str:
    """Online and ready, or why not."""
    if not row.traits.online:
        return "offline"
    if row.health is None:
        return "online"
    return "ready" if row.health.ready else ", ".join(row.health.reasons) or "not ready"


def describe_device(row: DeviceRow) -> DeviceDocument:
    return DeviceDocument(**_device(row))


def _device(row: DeviceRow) -> dict[str, Any]:
    traits = row.traits
    return {
        "device": traits.device,
        "online": traits.online,
        "state": state_of(row),
        "bundle": traits.bundle or None,
        "site": traits.site or None,
        "hardware": traits.hardware or None,
        "arch": traits.arch or None,
        "agent": traits.agent or None,
        "cores": traits.cores,
        "ram": traits.ram,
        "groups": list(traits.groups),
        "labels": dict(traits.labels),
        "pinned": traits.pinned,
        "reliable": row.reliable,
        "trouble": row.trouble or None,
        "desired": row.desired or None,
        "seen_at": row.seen_at,
    }


def describe_device_wholly(
    row: DeviceRow, attempts: Sequence[Mapping[str, Any]], events: Sequence[Event]
) -> DeviceDetailDocument:
    """With what it reports, what it was asked and what happened."""
    reported = row.reported
    error = None if reported is None else reported.error
    return DeviceDetailDocument(
        **_device(row),
        phase=None if reported is None else reported.phase,
        error=None if error is None else f"{error.message} [{error.reason}]",
        attempts=[
            AttemptDocument(**{name: each[name] for name in AttemptDocument.__struct_fields__}) for each in attempts
        ],
        events=[EventDocument(**structs.asdict(each)) for each in events],
    )


def describe_points(totals: Sequence[tuple[int, Counters]]) -> list[PointDocument]:
    """Rates by the minute of totals by the minute; a minute without a total had no increase."""
    found = []
    for (earlier, was), (minute, now) in pairwise(totals):
        rise = now.minus(was)
        minutes = minute - earlier
        found.append(
            PointDocument(
                minute * 60.0,
                None if rise is None else round(rise.requests / minutes, 3),
                None if rise is None else _rounded(rise.error_rate),
                None if rise is None else _rounded(rise.tokens_per_second),
                None if rise is None else _rounded(rise.first_token_quantile(0.95)),
            )
        )
    return found


def describe_sample(
    before: tuple[float, Counters, float | None], now: tuple[float, Counters, float | None]
) -> PointDocument:
    """Rates between two samples of one device."""
    rise = now[1].minus(before[1])
    minutes = max(now[0] - before[0], 1e-3) / 60
    return PointDocument(
        now[0],
        None if rise is None else _rounded(rise.requests / minutes),
        None if rise is None else _rounded(rise.error_rate),
        None if rise is None else _rounded(rise.tokens_per_second),
        None if rise is None else _rounded(rise.first_token_quantile(0.95)),
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def describe_bundles(
    entries: Sequence[CatalogueEntry], running: Mapping[str, int], *, configured: bool
) -> list[BundleDocument]:
    """What the repository lists, and what runs somewhere; ``configured``: whether there is a repository."""
    known = {entry.reference: entry for entry in entries}
    found = [_bundle(entry, running.get(entry.reference, 0)) for entry in entries]
    for reference in sorted(set(running) - set(known)):
        found.append(
            BundleDocument(
                bundle=reference,
                digest=None,
                listed=False if configured and entries else None,
                revoked=False,
                bytes=None,
                family=None,
                precision=None,
                license=None,
                created=None,
                quality={},
                devices=running[reference],
                read_at=None,
            )
        )
    return found


def _bundle(entry: CatalogueEntry, devices: int) -> BundleDocument:
    manifest = entry.manifest
    return BundleDocument(
        bundle=manifest.reference,
        digest=entry.digest,
        listed=not entry.revoked,
        revoked=entry.revoked,
        bytes=manifest.total_bytes,
        family=manifest.model.family,
        precision=manifest.model.precision,
        license=manifest.license.spdx,
        created=manifest.created,
        quality=manifest.quality,
        devices=devices,
        read_at=entry.read_at,
    )


_JUDGED = (WaveState.OPEN, WaveState.BAKING, WaveState.INCONCLUSIVE, WaveState.FAILED)


Counts = Mapping[int, Counter[str]]
"""How many targets of each wave are in which state."""


def count_targets(found: Rollout) -> Counts:
    counts: dict[int, Counter[str]] = {}
    for target in found.targets.values():
        counts.setdefault(target.wave, Counter())[str(target.state)] += 1
    return counts


def describe_rollout(found: Rollout, counts: Counts, facts: Facts | None = None) -> RolloutDocument:
    """A rollout; with ``facts`` also how the gates of its waves stand."""
    return RolloutDocument(**_rollout(found, counts, facts))


def _rollout(found: Rollout, counts: Counts, facts: Facts | None) -> dict[str, Any]:
    everything: Counter[str] = sum((each for wave, each in counts.items() if wave != CONTROL_WAVE), Counter())
    return {
        "rollout": found.id,
        "bundle": found.bundle.reference,
        "digest": found.bundle.digest or None,
        "where": found.spec.where,
        "state": str(found.state),
        "reason": found.reason,
        "created_by": found.created_by,
        "approved_by": found.approved_by or None,
        "created_at": found.created_at,
        "started_at": found.started_at,
        "devices": dict(sorted(everything.items())),
        "waves": [
            WaveDocument(
                number=wave.number,
                state=str(wave.state),
                verdict=wave.verdict,
                opened=wave.opened,
                bake_until=wave.bake_until,
                targets=dict(sorted(counts.get(wave.number, Counter()).items())),
                gates=[] if facts is None or wave.state not in _JUDGED else _gates(found, wave.number, facts),
            )
            for wave in found.waves
        ],
    }


def _gates(found: Rollout, number: int, facts: Facts) -> list[GateDocument]:
    judged = [target for target in found.wave_targets(number) if target.state is TargetState.ACTIVE]
    if not judged:
        return []
    return [
        GateDocument(value.name, str(value.outcome), value.before, value.now, value.allowed, value.text)
        for value in judge_targets(found, facts, judged).values
    ]


def describe_rollout_wholly(found: Rollout, facts: Facts | None = None) -> RolloutDetailDocument:
    """With every device."""
    return RolloutDetailDocument(
        **_rollout(found, count_targets(found), facts),
        spec=msgspec.to_builtins(found.spec),
        targets=[
            TargetDocument(
                device=each.device,
                wave=each.wave,
                state=str(each.state),
                reason=each.reason or None,
                message=each.message or None,
                attempt=each.attempt,
                turn_back=None if each.turn_back is None else str(each.turn_back),
            )
            for each in found.targets.values()
        ],
    )


def describe_plan(made: Rollout, waves: Sequence[WavePlan], *, looked_up: bool, started: bool) -> PlanDocument:
    """What was planned, or begun."""
    return PlanDocument(
        rollout=made.id if started else None,
        state=str(made.state) if started else "planned",
        bundle=made.bundle.reference,
        digest=made.bundle.digest or None,
        looked_up=looked_up,
        devices=sum(target.wave != CONTROL_WAVE for target in made.targets.values()),
        left_out={t.device: t.reason for t in made.targets.values() if t.wave == CONTROL_WAVE},
        waves=[
            WavePlanDocument(
                number=wave.number,
                devices=list(wave.devices),
                sites=dict(wave.sites),
                hardware=dict(wave.hardware),
                offline=wave.offline,
                bytes=wave.bytes,
                hours_least=wave.hours_least,
                hours_most=wave.hours_most,
                prompts=wave.prompts,
            )
            for wave in waves
        ],
        hours_least=sum(wave.hours_least for wave in waves),
        hours_most=sum(wave.hours_most for wave in waves),
    )
