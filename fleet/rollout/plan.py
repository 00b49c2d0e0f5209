"""From a specification and the devices that it selects to a draft: what is shown before is what is stored."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from contract.errors import RequestInvalid
from contract.reasons import Reason
from contract.windows import next_opening
from fleet.rollout.durations import describe_duration
from fleet.rollout.model import CONTROL_WAVE, HELD_OUT, Bundle, Rollout, Target, Wave
from fleet.rollout.selector import Traits, parse_selector
from fleet.rollout.spec import Spec
from fleet.rollout.states import TargetState
from fleet.rollout.waves import Candidate, assign

MAX_TARGETS = 100_000
"""Ten times the largest fleet that this is meant for."""


class Needs(NamedTuple):
    """What the bundle's signed manifest asks of a device."""

    arch: tuple[str, ...]
    ram: int

    def unmet(self, traits: Traits) -> str | None:
        """The reason code for a device that cannot run it. What it does not say it has to find out itself."""
        if traits.arch and traits.arch not in self.arch:
            return Reason.REQUIRES_ARCH
        return Reason.REQUIRES_RAM if traits.ram is not None and traits.ram < self.ram else None


def draft(
    spec: Spec,
    devices: Sequence[Traits],
    *,
    number: int,
    bundle: Bundle,
    by: str,
    now: float,
    needs: Needs | None = None,
) -> Rollout:
    """The rollout ``number`` as it would be; its targets are frozen here.

    Who is in which wave depends on the bundle and the selection, not on the number: what was shown is what happens.

    Raises:
        RequestInvalid: the selection is empty, or larger than a fleet.
    """
    opens = next_opening(spec.windows, now)
    if opens is None or opens >= now + spec.expires:
        raise RequestInvalid(
            f"no maintenance window opens within {describe_duration(spec.expires)}, when the rollout expires: "
            "widen a window, or raise expires",
            field="windows",
        )
    chosen = parse_selector(spec.where).select(devices)
    if not chosen:
        raise RequestInvalid(
            f"the selection {spec.where!r} matches none of the {len(devices)} devices that are known; "
            "`edge-fleet devices` shows them",
            field="where",
        )
    if len(chosen) > MAX_TARGETS:
        raise RequestInvalid(f"{len(chosen):,} devices are selected, {MAX_TARGETS:,} at most", field="where")
    by_name = {each.device: each for each in chosen}
    unfit = {each.device: why for each in chosen if needs is not None and (why := needs.unmet(each)) is not None}
    candidates = [Candidate(each.device, each.hardware, each.site) for each in chosen if each.device not in unfit]
    if not candidates:
        raise RequestInvalid(
            f"none of the {len(chosen)} devices that are selected can run {spec.bundle}: "
            f"{', '.join(sorted(set(unfit.values())))}",
            field="where",
        )
    assigned = assign(f"{spec.bundle}\0{spec.where}", candidates, spec.waves, spec.holdout)
    targets = {
        device: Target(device=device, wave=wave, hardware=by_name[device].hardware, site=by_name[device].site)
        for wave, members in enumerate(assigned.waves, 1)
        for device in members
    }
    for device, reason in {**dict.fromkeys(assigned.holdout, HELD_OUT), **unfit}.items():
        targets[device] = Target(
            device=device,
            wave=CONTROL_WAVE,
            hardware=by_name[device].hardware,
            site=by_name[device].site,
            state=TargetState.SKIPPED,
            reason=reason,
        )
    waves = tuple(Wave(wave) for wave in range(1, len(assigned.waves) + 1))
    return Rollout(id=number, bundle=bundle, spec=spec, created_by=by, created_at=now, waves=waves, targets=targets)


class WavePlan(NamedTuple):
    """``bytes``: at most, since devices fetch only what they have not; None where the bundle's size is not known.
    ``hours``: of baking alone, and at most, when every device takes its whole deadline. ``prompts``: of the quality
    canary, before and after.
    """

    number: int
    devices: tuple[str, ...]
    sites: Mapping[str, int]
    hardware: Mapping[str, int]
    offline: int
    bytes: int | None
    hours_least: float
    hours_most: float
    prompts: int = 0


def describe(rollout: Rollout, devices: Mapping[str, Traits], bundle_bytes: int | None) -> list[WavePlan]:
    """Every wave of ``rollout``."""
    spec = rollout.spec
    prompts = 0 if spec.canary is None else 2 * spec.canary.requests(spec.gates.min_requests)
    found = []
    for wave in rollout.waves:
        members = list(rollout.wave_targets(wave.number))
        sites = Counter(target.site for target in members)
        rounds = math.ceil(len(members) / spec.max_in_progress)
        if spec.slots_per_site:
            rounds = max(rounds, math.ceil(max(sites.values()) / spec.slots_per_site))
        found.append(
            WavePlan(
                wave.number,
                tuple(target.device for target in members),
                sites,
                Counter(target.hardware for target in members),
                sum(not devices[target.device].online for target in members if target.device in devices),
                None if bundle_bytes is None else bundle_bytes * len(members),
                spec.bake / 3600,
                (rounds * spec.deadline + spec.bake) / 3600,
                prompts * len(members),
            )
        )
    return found
