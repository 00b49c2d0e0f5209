"""A candidate's time in service before it is committed: how it takes its predecessor's place, what speed it has to hold
against, and the watch over it.
"""

from __future__ import annotations

import asyncio

from agent.host import available_memory
from agent.install.crowding import Crowding
from agent.install.ports import SealedBundle, Serving, Speed, SwapMode
from agent.install.probation import judge, measured_speed
from agent.install.settings import InstallSettings
from agent.state.installation import Failure, InstallationState

WATCH_SECONDS = 0.25
"""How often probation looks at the counters."""


def swap_mode(settings: InstallSettings, need_bytes: int) -> SwapMode:
    """Whether a candidate that takes ``need_bytes`` runs beside its predecessor now, or after it."""
    if settings.swap == "drain":
        return "drain"
    return "overlap" if available_memory() >= need_bytes + settings.reserve_bytes else "drain"


def remember_speed(serving: Serving, store: InstallationState, bundle: SealedBundle | None) -> Speed | None:
    """How fast ``bundle``, which serves now, is on this device: as it was just measured, else as it was known before.

    Raises:
        StoreBroken, StoreFull.
    """
    if bundle is None:
        return None
    speed = measured_speed(serving.counters())
    if speed is not None:
        store.measured(bundle.digest, speed.together, speed.each)
        return speed
    known = store.bundle(bundle.digest)
    if known is None or known.tokens_per_second is None:
        return None
    return Speed(known.tokens_per_second, known.tokens_per_second_each or known.tokens_per_second)


async def watch(serving: Serving, settings: InstallSettings, predecessor: Speed | None) -> Failure | None:
    """Wait until probation is over; how it failed, if it did."""
    clock = asyncio.get_running_loop().time
    started, crowding = clock(), Crowding(clock)
    while True:
        verdict = judge(serving.counters(), clock() - started, settings, predecessor, crowding.share())
        if verdict == "held":
            return None
        if isinstance(verdict, Failure):
            return verdict
        await asyncio.sleep(WATCH_SECONDS)
