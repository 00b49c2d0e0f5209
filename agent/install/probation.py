"""Whether a bundle that answers prompts may stay: a verdict on counters (pure)."""

from __future__ import annotations

from typing import Literal

from agent.install.ports import ServingCounters
from agent.install.settings import InstallSettings
from agent.state.installation import Failure
from contract.reasons import Reason

REQUESTS_FOR_SPEED = 3
"""A speed measured over fewer answers says more about them than about the model."""


def judge(
    counters: ServingCounters,
    elapsed_seconds: float,
    settings: InstallSettings,
    predecessor_speed: float | None,
    crowded: float = 0.0,
) -> Failure | Literal["held", "watching"]:
    """``predecessor_speed``: tokens per second of the bundle before, on this device, if it is known.

    ``crowded``: the part of the time in which something waited for a core. A bundle that waited all of it would be
    that much faster alone, so that much less than its predecessor's speed is asked of it; the operator's floor stands.
    """
    if counters.crashes:
        return Failure(Reason.PROBATION_CRASHED, f"its worker ended {counters.crashes} times in probation")
    if counters.failed > settings.probation_failures:
        return Failure(
            Reason.PROBATION_ERRORS,
            f"{counters.failed} of {counters.failed + counters.finished} requests failed in probation",
        )
    speed = counters.tokens_per_second
    fair = settings.speed_ratio * (predecessor_speed or 0.0) * (1.0 - crowded)
    floor = max(settings.min_tokens_per_second, fair)
    if speed is not None and counters.finished >= REQUESTS_FOR_SPEED and speed < floor:
        return Failure(
            Reason.PROBATION_TOO_SLOW, f"it decodes {speed:.1f} tokens per second, at least {floor:.1f} are asked for"
        )
    enough = settings.probation_requests and counters.finished >= settings.probation_requests
    return "held" if enough or elapsed_seconds >= settings.probation_seconds else "watching"
