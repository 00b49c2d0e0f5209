"""What there is to judge the devices of a rollout by."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import structs

from fleet.rollout.canary import BEFORE, Quality, score_of
from fleet.rollout.facts import Facts
from fleet.rollout.gates import Evidence, Verdict, judge
from fleet.rollout.model import HELD_OUT, Rollout, Target


def judge_targets(rollout: Rollout, facts: Facts, judged: Sequence[Target]) -> Verdict:
    """Judge ``judged`` against themselves before, and the control group."""
    control = [evidence_of(target, facts) for target in rollout.targets.values() if target.reason == HELD_OUT]
    quality = {target.device: _quality(rollout, target, facts) for target in judged}
    evidence = [structs.replace(evidence_of(each, facts), quality=quality[each.device]) for each in judged]
    return judge(rollout.spec.gates, evidence, control)


def _quality(rollout: Rollout, target: Target, facts: Facts) -> Quality | None:
    """None where the rollout has no canary."""
    if rollout.spec.canary is None:
        return None
    before = score_of(facts.scores, target.device, BEFORE)
    return Quality(before, score_of(facts.scores, target.device, target.attempt))


def evidence_of(target: Target, facts: Facts) -> Evidence:
    """What one device did before, and since it has the bundle."""
    known = facts.devices.get(target.device)
    if known is None or target.active_at is None:
        return Evidence(target.device, target.baseline, None, heard=False, ready=None)
    after = None
    heard = known.heard_at is not None and known.heard_at > target.active_at
    if known.counters is not None and target.at_active is not None and known.reliable and heard:
        after = known.counters.minus(target.at_active)
    seen = known.seen_at is not None and known.seen_at > target.active_at
    return Evidence(
        target.device,
        target.baseline,
        after,
        heard=seen and known.online,
        ready=known.ready,
        memory_available=known.memory_available,
    )
