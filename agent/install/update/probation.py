"""Whether a bundle that answers prompts may stay: a verdict on counters (pure), and the watch over them until there is
one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal

from msgspec import UNSET

from agent.host.cpu_contention import CpuContention
from agent.install.ports import SealedBundle, Serving, ServingCounters, Speed
from agent.install.settings import InstallSettings
from agent.state.installation import Failure, InstallationState
from contract.mqtt.messages import Probation
from contract.reasons import Reason

WATCH_SECONDS = 0.25
"""How often probation looks at the counters."""

REQUESTS_FOR_SPEED = 3
SECONDS_FOR_SPEED = 0.5
"""A speed measured over fewer answers, or less time, says more about them and what else ran than about the model."""


def measured_speed(counters: ServingCounters) -> Speed | None:
    """How fast the bundle is, once that can be said."""
    enough = counters.finished >= REQUESTS_FOR_SPEED and counters.busy_seconds >= SECONDS_FOR_SPEED
    return counters.speed if enough else None


def evaluate_probation(
    counters: ServingCounters,
    elapsed_seconds: float,
    settings: InstallSettings,
    predecessor: Speed | None,
    contention: float = 0.0,
) -> Failure | Literal["held", "watching"]:
    """``predecessor``: the speed of the bundle before, on this device, if it is known.

    Who asks may ask for more or fewer answers at once than before. More at once may make each slower and not all
    together, fewer the other way round: only what is slower in both respects is slower. The operator's floor is for
    all together.

    ``contention``: the part of the time in which something waited for a core. A bundle that waited all of it would be
    that much faster alone, so that much less than its predecessor's speed is asked of it; the operator's floor stands.
    """
    if counters.crashes:
        return Failure(Reason.PROBATION_CRASHED, f"its worker ended {counters.crashes} times in probation")
    if counters.failed > settings.probation_failures:
        return Failure(
            Reason.PROBATION_ERRORS,
            f"{counters.failed} of {counters.failed + counters.finished} requests failed in probation",
        )
    speed = measured_speed(counters)
    if speed is not None:
        floor = _floor(speed, predecessor, settings.speed_ratio * (1.0 - contention), settings.min_tokens_per_second)
        if speed.aggregate < floor:
            return Failure(
                Reason.PROBATION_TOO_SLOW,
                f"it decodes {speed.aggregate:.1f} tokens per second, at least {floor:.1f} are required",
            )
    enough = settings.probation_requests and counters.finished >= settings.probation_requests
    return "held" if enough or elapsed_seconds >= settings.probation_seconds else "watching"


def _floor(speed: Speed, predecessor: Speed | None, ratio: float, minimum: float) -> float:
    """What is asked of all answers together."""
    if predecessor is None or speed.per_stream >= ratio * predecessor.per_stream:
        return minimum
    return max(minimum, ratio * predecessor.aggregate)


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
