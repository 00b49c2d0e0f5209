"""The running agent: puts the rooms together, keeps them going, and ends them in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import signal
import time
import uuid
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET

from agent.clock import steady_clock
from agent.config import AgentConfig
from agent.host import facts as host
from agent.host import memory
from agent.install.gc import used_bytes
from agent.install.prepack import WeightPrepacker
from agent.install.reconciler import Reconciler
from agent.mqtt import MAX_TURN_SECONDS
from agent.mqtt.gateway import Gateway
from agent.operator.control import ControlServer
from agent.serving.loop import Observers
from agent.serving.requests import STORE_READ_ONLY, STORE_UNAVAILABLE, UNLOADED
from agent.serving.serving import Dependencies, Serving
from agent.state import result_store
from agent.state.broker_memory import BrokerMemory
from agent.state.installation import InstallationState
from agent.state.layout import StateDirectory, make_private
from agent.state.lock import FileLock
from agent.state.opening import State
from agent.state.result_writer import ResultWriter
from agent.systemd.journal import fields
from agent.systemd.liveness import LAG_SECONDS, Liveness
from agent.systemd.notify import Notifier
from agent.telemetry import home_assistant, metrics
from agent.telemetry.announcer import Announcer
from agent.telemetry.llm import LlmMeter
from agent.telemetry.loop import TelemetryLoop
from agent.telemetry.prometheus import PrometheusEndpoint
from agent.telemetry.samples import LlmSample, SystemSample
from agent.telemetry.system import SelfReported, SystemSampler
from agent.worker.ports import OnEvent, Worker, WorkerStarter
from agent.worker.supervisor import WorkerProcess
from contract.errors import StoreBroken, StoreFull
from contract.mqtt.messages import (
    MAX_REQUEST_BYTES,
    BundleState,
    EngineInfo,
    Health,
    Info,
    Limits,
)
from contract.system.durable import Disk

log = logging.getLogger("edge_agent")

TURNS_MISSED = 3
"""So many rounds of a part may fail to come before it counts as stalled."""

STALLS_MISSED = 2.0
"""A worker silent for so many times what it is allowed was not ended by whoever watches it: then we are at fault."""

NO_TRUST = (
    "no root of trust is provisioned, so nothing can be installed: edge-agent trust provision ROOT_JSON --config FILE"
)
MEANWHILE = "what is active serves, results are kept in memory only and nothing is installed until that is resolved"

SAMPLE_SECONDS = 20.0
"""A sample on a box that swaps."""

HEARTBEAT_SECONDS = 10.0
"""The watchdog is fed at least this often."""

COUNTS_SECONDS = 1.0
"""``health`` is published at most this often when only its counts changed: how many wait, how many are answered."""


class Service:
    """One agent on one state directory. ``run`` does everything; ``stop`` may be called at any time.

    Raises (from ``run``): StoreBroken, StoreFull, and STATE_LOCKED when another agent runs here.
    """

    def __init__(self, config: AgentConfig, workers: WorkerStarter = WorkerProcess.start) -> None:
        self._config = config
        self._workers = workers
        self._directory = StateDirectory(config.state_dir)
        self._stopped = asyncio.Event()
        self._notifier = Notifier.from_environment()
        self._published_health: Health | None = None
        self._health_at = float("-inf")
        self._counts_due: asyncio.TimerHandle | None = None
        self._trust_reported: tuple[Mapping[str, int], bool] = {}, False
        self._restoring: asyncio.Task[None] | None = None
        self._progress = Liveness()

    def stop(self) -> None:
        """End in order: finish or keep what runs, say goodbye, end the workers."""
        self._stopped.set()

    async def run(self) -> None:
        """Serve until :meth:`stop`."""
        disk = Disk()
        make_private(self._directory, disk)
        with FileLock(self._directory.lock, "another agent or command"):
            log.info("device %s starts", self._config.device, extra=fields(version=_versions().get("agent")))
            if not self._directory.is_trust_provisioned:
                log.warning(NO_TRUST)
            self._state = State(self._directory, disk.effects)
            if self._state.unwritable is not None:
                log.warning("%s: %s", self._state.unwritable.message, MEANWHILE)
            try:
                await self._assemble(disk)
                await self._serve()
            finally:
                self._state.close()

    async def _assemble(self, disk: Disk) -> None:
        config = self._config
        self._meter = LlmMeter(round(time.time(), 3))
        clock = steady_clock()
        self._result_store = ResultWriter(
            self._state.answering, clock, keep_text=config.serving.store_results == "text"
        )
        self._gateway = Gateway(
            config, uuid.uuid4().hex, on_desired=self._on_desired, on_broker=self._publish_health,
            memory=BrokerMemory(self._directory.broker, config.broker.identity, disk),
        )  # fmt: skip
        self._serving = Serving(
            config.serving,
            Dependencies(
                topics=config.topics,
                outlet=self._gateway.connection.outlet,
                result_store=self._result_store,
                load=self._load,
                meter=self._meter,
                now_unix=clock,
            ),
            Observers(on_health=self._publish_health, on_load=self._on_load),
        )
        self._gateway.serving = self._serving
        self._telemetry_loop = TelemetryLoop(
            config.telemetry,
            SystemSampler(self._directory.root, bundle_bytes=lambda: used_bytes(self._directory)),
            self._meter,
            self._serving,
            processes=self._processes,
            self_reported=self._self_reported,
            publish=self._publish_telemetry,
            on_limit=self._publish_limit,
            on_turn=self._on_turn,
        )
        self._announcer = Announcer(
            config.telemetry.home_assistant,
            config.device,
            config.topics,
            version=_versions().get("agent", "0"),
            record=self._directory.announced,
            disk=disk,
            publish=self._gateway.announce,
            delivered=lambda: self._gateway.connection.connected and not self._gateway.connection.undelivered,
        )
        self._prometheus = PrometheusEndpoint(config.telemetry.prometheus, self._page)
        state = InstallationState(self._state.installing)
        self._reconciler = Reconciler(
            directory=self._directory,
            state=state,
            settings=config.install,
            sources=config.sources,
            serving=self._serving,
            workers=self._workers,
            worker_settings=config.worker,
            on_reported=self._gateway.reported,
            on_event=self._gateway.event,
            disk=disk,
            prepacker=WeightPrepacker(
                self._directory,
                disk,
                config.worker,
                quota_bytes=config.install.quota_bytes,
                allowed_bytes=config.install.prepacked_bytes,
            ),
        )
        self._control = ControlServer(
            self._directory,
            self._reconciler,
            state,
            config.install,
            engine=self._engine,
            broker=lambda: self._gateway.broker,
            health=self._health,
        )

    def _on_desired(self, payload: bytes, retained: bool) -> None:
        self._reconciler.set_desired(payload, repeated=retained)

    async def _load(
        self,
        bundle_dir: Path,
        *,
        derived_dir: Path | None,
        adapters: Mapping[str, Path],
        reclaimable_bytes: int,
        on_event: OnEvent,
    ) -> Worker:
        return await self._workers(
            self._config.worker,
            bundle_dir,
            derived_dir=derived_dir,
            adapters=adapters,
            reclaimable_bytes=reclaimable_bytes,
            on_event=on_event,
        )

    async def _serve(self) -> None:
        await self._serving.recover()
        self._gateway.reported(self._reconciler.reported)
        self._publish_health()
        await self._serve_control()
        await self._prometheus.start()
        now = asyncio.get_running_loop().time()
        self._progress.expect("mqtt", TURNS_MISSED * MAX_TURN_SECONDS, now)
        self._progress.expect("telemetry", TURNS_MISSED * (self._telemetry_loop.interval + SAMPLE_SECONDS), now)
        tasks = [
            asyncio.create_task(self._gateway.run(), name="mqtt"),
            asyncio.create_task(self._install(), name="installation"),
            asyncio.create_task(self._telemetry_loop.run(), name="telemetry"),
            asyncio.create_task(self._beat(), name="heartbeat"),
            asyncio.create_task(self._stopped.wait(), name="stop"),
        ]
        self._notifier.ready(f"device {self._config.device}")
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await self._end(tasks)

    async def _end(self, tasks: Sequence[asyncio.Task[object]]) -> None:
        self._notifier.stopping()
        log.info("stopping")
        # Before the installation is cut off: while it loads a model, requests wait for that model.
        self._serving.begin_shutdown()
        mqtt, *others = tasks
        if self._restoring is not None:
            # What runs in its thread ends by itself, with the file or with the copy.
            await asyncio.gather(self._restoring, return_exceptions=True)
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._serving.shutdown()
        # What the disk does not take is answered after the next start.
        with contextlib.suppress(StoreBroken, StoreFull):
            await self._result_store.flush()
        await self._gateway.close()
        mqtt.cancel()
        await asyncio.gather(mqtt, return_exceptions=True)
        if self._counts_due is not None:
            self._counts_due.cancel()
        await self._prometheus.close()
        await self._control.close()
        await self._result_store.close()

    async def _install(self) -> None:
        """Serve the active bundle, then follow what is desired."""
        try:
            await self._reconciler.start_active()
        finally:
            self._serving.startup_finished()
        await self._reconciler.run()

    async def _beat(self) -> None:
        """Feed the watchdog, but only while every part of us goes on."""
        period = min(HEARTBEAT_SECONDS, (self._notifier.watchdog_seconds or 2 * HEARTBEAT_SECONDS) / 2)
        clock = asyncio.get_running_loop().time
        turns, due = -1, clock()
        while True:
            if clock() - due > LAG_SECONDS:
                log.warning("the event loop was held up for %.1f s", clock() - due)
            if self._gateway.connection.turns != turns:
                turns = self._gateway.connection.turns
                self._note("mqtt")
            stalled = self._progress.stalled(clock()) + self._stalled_workers()
            if stalled:
                log.error("%s made no progress; the watchdog is not fed", " and ".join(stalled))
            else:
                self._notifier.progress()
            self._probe_store()
            self._publish_health()
            due = clock() + period
            await asyncio.sleep(period)

    async def _serve_control(self) -> None:
        """Open the operator's door; what keeps it shut (a full disk, a directory of its name) keeps nobody from being
        served.
        """
        try:
            await self._control.start()
        except StoreBroken as error:
            log.warning("commands on this device cannot reach the agent for now: %s", error.message)

    def _probe_store(self) -> None:
        """A store that failed is tried again once a request fits."""
        if self._state.unwritable is not None:
            if self._restoring is None or self._restoring.done():
                # Not in this task: a disk that hangs must not keep the watchdog from being fed.
                self._restoring = asyncio.create_task(self._restore_state(), name="restoring the state")
            return
        with contextlib.suppress(StoreBroken):
            if host.disk_available(self._directory.root) >= MAX_REQUEST_BYTES:
                self._serving.probe_store()

    async def _restore_state(self) -> None:
        """Record everything again, if that is possible now."""
        try:
            await asyncio.to_thread(self._state.restore)
        except (StoreBroken, StoreFull) as error:
            log.debug("the state cannot be written yet: %s", error.message)
            return
        log.info("the state can be written again: results are stored and the desired state is followed as usual")
        if not self._control.listening:
            await self._control.start()
        await self._serving.recover_rest()
        self._reconciler.recovered()
        self._publish_health()

    def _note(self, part: str) -> None:
        self._progress.beat(part, asyncio.get_running_loop().time())

    def _publish_telemetry(self, system: SystemSample, llm: LlmSample) -> None:
        self._gateway.telemetry(msgspec.json.encode(system), msgspec.json.encode(llm))

    def _on_turn(self) -> None:
        """The telemetry loop went round."""
        self._note("telemetry")
        if self._telemetry_loop.system is not None:
            interval = self._config.telemetry.interval_seconds
            found = home_assistant.components(self._config.topics, self._telemetry_loop.system, interval=interval)
            self._announcer.announce(found)

    def _publish_limit(self, detail: dict[str, Any]) -> None:
        self._gateway.event("throttle", detail)
        self._publish_health()

    def _page(self, content_type: str) -> str:
        # Where the store cannot be read, health says so; what it said last stands.
        with contextlib.suppress(StoreBroken, StoreFull):
            self._trust_reported = self._reconciler.expiry, self._reconciler.revoked
        expiry, revoked = self._trust_reported
        state = metrics.AgentState(
            health=self._health(),
            info=self._info(),
            phase=self._reconciler.phase.value,
            installs=self._reconciler.meter,
            expiry=expiry,
            revoked=revoked,
            broker=self._gateway.broker,
            connections=self._gateway.connections,
            undelivered=self._gateway.connection.undelivered,
            throttle_level=self._telemetry_loop.limit.level,
        )
        return metrics.page(
            self._config.device, state, self._telemetry_loop.system, self._telemetry_loop.llm(), content_type
        )

    def _processes(self) -> dict[int, str]:
        found = {os.getpid(): "agent"}
        for replica in self._serving.replicas:
            if replica.worker is not None:
                found[replica.worker.pid] = f"worker {replica.bundle.manifest.reference}"
        return found

    def _self_reported(self) -> dict[int, SelfReported]:
        """Workers in an account of their own, which only they themselves can look at."""
        found = {}
        for replica in self._serving.replicas:
            if replica.worker is not None and replica.worker.usage is not None:
                usage, at = replica.worker.usage
                name = f"worker {replica.bundle.manifest.reference}"
                found[usage.pid] = SelfReported(name, usage.rss_bytes, usage.pss_bytes, usage.cpu_seconds, at)
        return found

    def _stalled_workers(self) -> list[str]:
        """Those that should have been ended for their silence long ago, and were not."""
        return [
            f"the worker of {replica.bundle.manifest.reference}"
            for replica in self._serving.replicas
            if replica.worker is not None and replica.worker.silence > STALLS_MISSED
        ]

    def _on_load(self, queued: int) -> None:
        """Requests came or went: let others of our groups know, and whoever reads ``health``."""
        self._gateway.on_load(queued)
        if self._counts_due is None:
            loop = asyncio.get_running_loop()
            wait = max(0.0, self._health_at + COUNTS_SECONDS - loop.time())
            self._counts_due = loop.call_later(wait, self._publish_health)

    def _health(self) -> Health:
        serving = self._serving.reasons
        if self._result_store.holding and STORE_UNAVAILABLE not in serving:
            serving.append(STORE_UNAVAILABLE)
        ready = not serving
        # A throttled device answers, only fewer at once; one whose model was unloaded answers once it is loaded; one
        # that cannot write its state answers and keeps the results in memory.
        unwritable = self._state.unwritable is not None
        reasons = [
            *serving,
            *([UNLOADED] if self._serving.unloaded else []),
            *([STORE_READ_ONLY] if unwritable else []),
            *self._telemetry_loop.limit.reasons,
        ]
        warnings = self._reconciler.warnings or UNSET
        return Health(ready, reasons, self._serving.queued, self._serving.active, warnings)

    def _publish_health(self) -> None:
        """Publish ``health`` and ``info`` where they changed."""
        self._health_at = asyncio.get_running_loop().time()
        if self._counts_due is not None:
            self._counts_due.cancel()
            self._counts_due = None
        health = self._health()
        self._gateway.health(health)
        self._gateway.info(self._info())
        ready, reasons = health.ready, health.reasons
        if reasons != (self._published_health.reasons if self._published_health else None):
            state = "ready" if ready else "not ready"
            self._notifier.status(f"{state}: {', '.join(reasons)}" if reasons else state)
        self._published_health = Health(ready, reasons, 0, 0)

    def _engine(self) -> EngineInfo | None:
        """Of the model that is loaded, if one is."""
        replica = self._serving.replica
        return None if replica is None else replica.engine

    def _info(self) -> Info:
        config = self._config
        replica = self._serving.replica
        bundle = replica.bundle if replica is not None else None
        return Info(
            device=config.device,
            api=config.topic_root,
            groups=list(config.groups),
            versions=_versions(),
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
            engine=self._engine(),
        )


@cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package, name in (("edge-bundle", "agent"), ("onnxruntime", ""), ("onnxruntime-genai", "")):
        version = host.installed_version(package)
        if version is not None:
            found[name or package] = version
    return found


def run_service(config: AgentConfig) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        StoreBroken, StoreFull: the state directory cannot be used, or another agent uses it.
    """

    async def main() -> None:
        service = Service(config)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, service.stop)
        await service.run()

    asyncio.run(main())
