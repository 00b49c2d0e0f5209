"""The device's pulse: samples at an interval, told to whoever listens, and the limit that a strained box puts on us."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from msgspec import UNSET

from agent.host.throttling import Limit, Throttle, evaluate_strain
from agent.serving.serving import Serving
from agent.telemetry.llm import LlmMeter
from agent.telemetry.samples import LlmSample, SystemSample
from agent.telemetry.settings import TelemetrySettings
from agent.telemetry.system import SelfReported, SystemSampler

log = logging.getLogger("edge_agent.telemetry_loop")

UNSENT_SECONDS = 10.0
"""Between samples that nobody gets: throttling needs them."""


class TelemetryLoop:
    """``publish`` gets each pair of samples, ``on_limit`` every new limit with what the event says about it."""

    def __init__(
        self,
        settings: TelemetrySettings,
        sampler: SystemSampler,
        meter: LlmMeter,
        serving: Serving,
        *,
        processes: Callable[[], Mapping[int, str]],
        self_reported: Callable[[], Mapping[int, SelfReported]] = lambda: {},
        publish: Callable[[SystemSample, LlmSample], None],
        on_limit: Callable[[dict[str, Any]], None],
        on_turn: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._sampler = sampler
        self._meter = meter
        self._serving = serving
        self._processes = processes
        self._self_reported = self_reported
        self._publish = publish
        self._on_limit = on_limit
        self._on_turn = on_turn
        self._throttle = Throttle()
        self._throttled: int | None = None
        self.system: SystemSample | None = None

    @property
    def interval(self) -> float:
        return self._settings.interval_seconds or UNSENT_SECONDS

    @property
    def limit(self) -> Limit:
        """What a strained box allows now."""
        return self._throttle.limit

    def llm(self) -> LlmSample:
        """The model's counts at this moment."""
        return self._meter.sample(self._serving.queued, self._serving.active, self._serving.generating)

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            await asyncio.sleep(self.interval)
            # In a thread: the kernel walks all pages of a process for its PSS, and frames must not wait for that.
            self.system = sample = await asyncio.to_thread(
                self._sampler.sample, self._processes(), self._self_reported()
            )
            if self._settings.throttle:
                self.react(sample, time.monotonic())
            if self._settings.interval_seconds:
                self._publish(sample, self.llm())
            self._on_turn()

    def react(self, sample: SystemSample, now: float) -> None:
        """Limit serving as ``sample`` demands."""
        before = self.limit
        after = self._throttle.update(evaluate_strain(sample, self._throttled), now)
        self._throttled = self._throttled if sample.throttled is UNSET else sample.throttled
        most = after.concurrency(self._slots) if after.level else None
        self._serving.limit_concurrency(most)
        if after == before:
            return
        detail = {"level": after.level, "reasons": list(after.reasons), "active_limit": most}
        for name in ("temperatures", "pressure", "memory", "frequency_mhz", "throttling"):
            if (value := getattr(sample, name)) is not UNSET:
                detail[name] = msgspec.to_builtins(value)
        if after.level > before.level:
            log.warning("%s: answering at most %s at once", ", ".join(after.reasons), most)
        else:
            log.info("the box has recovered: answering %s at once", "at most " + str(most) if most else "all places")
        self._on_limit(detail)

    @property
    def _slots(self) -> int:
        replica = self._serving.replica
        return 1 if replica is None or replica.worker is None else replica.worker.facts.slots
