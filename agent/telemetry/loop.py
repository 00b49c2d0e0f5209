"""Samples at an interval, for whoever wants them, and the limit that a strained box puts on us."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import Any

import msgspec
from msgspec import UNSET

from agent.host.throttling import Limit, Throttle, evaluate_strain
from agent.observers import Observers
from agent.serving.serving import Serving
from agent.telemetry.llm import LlmMeter
from agent.telemetry.samples import LlmSample, SystemSample
from agent.telemetry.settings import TelemetrySettings
from agent.telemetry.system import SelfReported, SystemSampler

log = logging.getLogger("edge_agent.telemetry_loop")

UNSENT_SECONDS = 10.0
"""Between samples that nobody gets: throttling needs them."""


class TelemetryLoop:
    """``on_sample`` is notified of each pair of samples, ``on_limit`` of every new limit with what the event says about
    it, ``on_turn`` of every round.
    """

    def __init__(self, settings: TelemetrySettings, sampler: SystemSampler, meter: LlmMeter, serving: Serving) -> None:
        self.on_sample: Observers[[SystemSample, LlmSample]] = Observers()
        self.on_limit: Observers[[dict[str, Any]]] = Observers()
        self.on_turn: Observers[[]] = Observers()
        self._settings = settings
        self._sampler = sampler
        self._meter = meter
        self._serving = serving
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
                self._sampler.sample, named_processes(self._serving), self_reported(self._serving)
            )
            if self._settings.throttle:
                self.react(sample, time.monotonic())
            if self._settings.interval_seconds:
                self.on_sample.notify(sample, self.llm())
            self.on_turn.notify()

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
        self.on_limit.notify(detail)

    @property
    def _slots(self) -> int:
        replica = self._serving.replica
        return 1 if replica is None or replica.worker is None else replica.worker.facts.slots


def named_processes(serving: Serving) -> dict[int, str]:
    """The agent's processes by id, each with what to call it."""
    found = {os.getpid(): "agent"}
    for replica in serving.replicas:
        if replica.worker is not None:
            found[replica.worker.pid] = f"worker {replica.bundle.manifest.reference}"
    return found


def self_reported(serving: Serving) -> dict[int, SelfReported]:
    """Workers in an account of their own, which only they themselves can look at."""
    found = {}
    for replica in serving.replicas:
        if replica.worker is not None and replica.worker.usage is not None:
            usage, at = replica.worker.usage
            name = f"worker {replica.bundle.manifest.reference}"
            found[usage.pid] = SelfReported(name, usage.rss_bytes, usage.pss_bytes, usage.cpu_seconds, at)
    return found
