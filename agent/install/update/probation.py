"""Whether a bundle that answers prompts may stay: a verdict on counters. Pure."""

from __future__ import annotations

from typing import Literal

from agent.install.ports import ServingCounters, Speed
from agent.install.settings import InstallSettings
from agent.state.installation import Failure
from contract.reasons import Reason

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
