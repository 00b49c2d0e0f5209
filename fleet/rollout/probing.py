"""Who has to answer the quality canary now. Pure, and level-triggered, as what is decided by the answers."""

from __future__ import annotations

from typing import NamedTuple

from fleet.rollout.canary import BEFORE, RETRY_SECONDS, Canary, score_of
from fleet.rollout.facts import Facts
from fleet.rollout.model import Rollout
from fleet.rollout.states import Deferral, RolloutState, TargetState


class Probe(NamedTuple):
    """One device to ask: ``requests`` in turns of all prompts. ``attempt``: see :data:`fleet.rollout.canary.BEFORE`."""

    rollout: int
    device: str
    attempt: int
    canary: Canary
    requests: int


def due(rollout: Rollout, facts: Facts, now: float) -> list[Probe]:
    """Those that wait for it before they are asked for the bundle, and those that run it and were not asked yet."""
    canary = rollout.spec.canary
    if canary is None or rollout.state is not RolloutState.RUNNING:
        return []
    requests = canary.requests(rollout.spec.gates.min_requests)
    found = []
    for target in rollout.targets.values():
        if target.state is TargetState.DEFERRED and target.reason == Deferral.CANARY:
            attempt = BEFORE
        elif target.state is TargetState.ACTIVE:
            attempt = target.attempt
        else:
            continue
        known = facts.devices.get(target.device)
        score = score_of(facts.scores, target.device, attempt)
        asked = score is not None and (score.is_enough or attempt == BEFORE or now < score.at + RETRY_SECONDS)
        if known is not None and known.online and known.ready and not asked:
            found.append(Probe(rollout.id, target.device, attempt, canary, requests))
    return found
