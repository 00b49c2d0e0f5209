"""Watches a bundle in probation until there is a verdict, and keeps how fast it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from msgspec import UNSET

from agent.host.cpu_contention import CpuContention
from agent.install.ports import SealedBundle, Serving, Speed
from agent.install.settings import InstallSettings
from agent.install.update.probation import evaluate_probation, measured_speed
from agent.state.installation import Failure, InstallationState
from contract.mqtt.reports import Probation

WATCH_SECONDS = 0.25
"""How often probation looks at the counters."""


def record_baseline(serving: Serving, store: InstallationState, bundle: SealedBundle | None) -> Speed | None:
    """How fast ``bundle``, which serves now, is on this device: as it was just measured, else as it was known before.

    Raises:
        StoreBroken, StoreFull.
    """
    if bundle is None:
        return None
    speed = measured_speed(serving.counters())
    if speed is not None:
        store.record_speed(bundle.digest, speed.aggregate, speed.per_stream)
        return speed
    known = store.bundle(bundle.digest)
    if known is None or known.tokens_per_second is None:
        return None
    return Speed(known.tokens_per_second, known.tokens_per_second_each or known.tokens_per_second)


async def watch_probation(
    serving: Serving,
    settings: InstallSettings,
    predecessor: Speed | None,
    on_progress: Callable[[Probation], None] = lambda _: None,
) -> Failure | None:
    """Wait until probation is over; how it failed, if it did. ``on_progress`` hears how far it is at every look."""
    clock = asyncio.get_running_loop().time
    started, contention = clock(), CpuContention(clock)
    while True:
        counters, elapsed = serving.counters(), clock() - started
        verdict = evaluate_probation(counters, elapsed, settings, predecessor, contention.share())
        if verdict == "held":
            return None
        if isinstance(verdict, Failure):
            return verdict
        of_requests = settings.probation_requests or UNSET
        on_progress(Probation(round(elapsed, 1), settings.probation_seconds, counters.finished, of_requests))
        await asyncio.sleep(WATCH_SECONDS)
