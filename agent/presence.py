"""What the agent says of itself: ``health`` and ``info``, published where they changed, and the page of metrics."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
from collections.abc import Mapping
from functools import cache

from msgspec import UNSET

from agent.config import AgentConfig
from agent.host import facts as host
from agent.host import memory
from agent.parts import Parts
from agent.serving.requests import STORE_READ_ONLY, STORE_UNAVAILABLE, UNLOADED
from agent.state import result_store
from agent.systemd.notify import Notifier
from agent.telemetry import metrics
from contract.errors import StoreBroken, StoreFull, printable
from contract.mqtt.device import BrokerState, EngineInfo, Health, Info, Limits
from contract.mqtt.faults import MAX_MESSAGE
from contract.mqtt.reports import BundleState
from contract.mqtt.requests import MAX_REQUEST_BYTES

COUNTS_SECONDS = 1.0
"""``health`` is published at most this often when only its counts changed: how many wait, how many are answered."""


class Presence:
    """Of one agent; all methods run in the event loop."""

    def __init__(self, config: AgentConfig, parts: Parts, notifier: Notifier) -> None:
        self._config = config
        self._gateway = parts.frontend.gateway
        self._serving = parts.frontend.serving
        self._result_store = parts.frontend.result_store
        self._parts = parts
        self._notifier = notifier
        self._published_at = float("-inf")
        self._counts_due: asyncio.TimerHandle | None = None
        self._trust_reported: tuple[Mapping[str, int], bool] = {}, False
        self.published: Health | None = None
        """What was published last, without its counts."""

    def publish(self) -> None:
        """Publish ``health`` and ``info`` where they changed."""
        self._published_at = asyncio.get_running_loop().time()
        self.close()
        health = self.health()
        self._gateway.health(health)
        self._gateway.info(self.info())
        ready, reasons = health.ready, health.reasons
        if reasons != (self.published.reasons if self.published else None):
            state = "ready" if ready else "not ready"
            self._notifier.status(f"{state}: {', '.join(reasons)}" if reasons else state)
        self.published = Health(ready, reasons, 0, 0)

    def note_limit(self, _detail: object) -> None:
        """A strained box puts another limit on us."""
        self.publish()

    def note_load(self, _queued: int) -> None:
        """Requests came or went: publish that, though not for each."""
        if self._counts_due is None:
            loop = asyncio.get_running_loop()
            wait = max(0.0, self._published_at + COUNTS_SECONDS - loop.time())
            self._counts_due = loop.call_later(wait, self.publish)

    def close(self) -> None:
        """Publish no counts any more that are due."""
        if self._counts_due is not None:
            self._counts_due.cancel()
            self._counts_due = None

    def health(self) -> Health:
        """Whether prompts are answered now, and why not."""
        serving = self._serving.reasons
        if self._result_store.holding and STORE_UNAVAILABLE not in serving:
            serving.append(STORE_UNAVAILABLE)
        ready = not serving
        # A throttled device answers, only fewer at once; one whose model was unloaded answers once it is loaded; one
        # that cannot write its state answers and keeps the results in memory.
        unwritable = self._parts.state.unwritable is not None
        reasons = [
            *serving,
            *([UNLOADED] if self._serving.unloaded else []),
            *([STORE_READ_ONLY] if unwritable else []),
            *self._parts.telemetry.limit.reasons,
        ]
        warnings = self._parts.reconciler.warnings or UNSET
        message = printable(self._serving.problem[:MAX_MESSAGE]) or UNSET
        return Health(ready, reasons, self._serving.queued, self._serving.active, warnings, message=message)

    def engine(self) -> EngineInfo | None:
        """Of the model that is loaded, if one is."""
        replica = self._serving.replica
        return None if replica is None else replica.engine

    def broker(self) -> BrokerState:
        """The broker as it is found now."""
        return self._gateway.broker

    def info(self) -> Info:
        """What the device is and can do."""
        config = self._config
        replica = self._serving.replica
        bundle = replica.bundle if replica is not None else None
        return Info(
            device=config.device,
            api=config.topic_root,
            groups=list(config.groups),
            versions=versions(),
            host={
                "arch": platform.machine(),
                "cores": len(os.sched_getaffinity(0)),
                "ram_bytes": memory.total_memory(),
                "system": platform.system(),
                "kernel": platform.release(),
            },
            limits=Limits(
                max_request_bytes=MAX_REQUEST_BYTES,
                queue=config.serving.queue_limit,
                queue_per_client=config.serving.client_queue_limit,
                max_priority=config.serving.max_priority,
                stream_interval_ms=config.serving.stream_interval_ms,
                results_kept_seconds=result_store.KEEP_SECONDS,
                results_kept_bytes=result_store.KEEP_BYTES,
                default_max_tokens=config.serving.default_max_tokens,
                max_tokens=config.serving.max_tokens_limit,
            ),
            bundle=None
            if bundle is None
            else BundleState(
                bundle.manifest.name, bundle.manifest.version, bundle.digest, bundle.manifest.security_epoch
            ),
            engine=self.engine(),
        )

    def metrics_page(self, content_type: str) -> str:
        """For Prometheus."""
        reconciler, telemetry = self._parts.reconciler, self._parts.telemetry
        # Where the store cannot be read, health says so; what it said last stands.
        with contextlib.suppress(StoreBroken, StoreFull):
            self._trust_reported = reconciler.expiry, reconciler.revoked
        expiry, revoked = self._trust_reported
        state = metrics.AgentState(
            health=self.health(),
            info=self.info(),
            phase=reconciler.phase.value,
            installs=reconciler.meter,
            expiry=expiry,
            revoked=revoked,
            broker=self._gateway.broker,
            connections=self._gateway.connections,
            undelivered=self._gateway.connection.undelivered,
            throttle_level=telemetry.limit.level,
        )
        return metrics.page(self._config.device, state, telemetry.system, telemetry.llm(), content_type)


@cache
def versions() -> dict[str, str]:
    """Of what runs here."""
    found = {"python": platform.python_version()}
    for package, name in (("edge-bundle", "agent"), ("onnxruntime", ""), ("onnxruntime-genai", "")):
        version = host.installed_version(package)
        if version is not None:
            found[name or package] = version
    return found
