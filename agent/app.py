"""The composition root: puts the parts of the agent together, runs them, and ends them in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import uuid
from collections.abc import Sequence
from functools import partial

from agent.clock import steady_clock
from agent.config import AgentConfig
from agent.frontend import make_frontend
from agent.heartbeat import Heartbeat
from agent.install.compose import make_reconciler
from agent.install.gc import used_bytes
from agent.install.prepack import DiskLimits, WeightPrepacker
from agent.operator.control import ControlServer
from agent.parts import Parts
from agent.presence import Presence, versions
from agent.state.broker_memory import BrokerMemory
from agent.state.installation import InstallationState
from agent.state.layout import StateDirectory, make_private
from agent.state.lock import FileLock
from agent.state.opening import State
from agent.systemd.journal import fields
from agent.systemd.notify import Notifier
from agent.telemetry import home_assistant
from agent.telemetry.announcer import AnnouncementRecord, Announcer, Identity
from agent.telemetry.loop import TelemetryLoop
from agent.telemetry.prometheus import PrometheusEndpoint
from agent.telemetry.system import SystemSampler
from agent.worker.ports import WorkerStarter
from agent.worker.supervisor import WorkerProcess
from contract.errors import StoreBroken, StoreFull
from contract.system.durable import Disk

log = logging.getLogger("edge_agent")

NO_TRUST = (
    "no root of trust is provisioned, so nothing can be installed: edge-agent trust provision ROOT_JSON --config FILE"
)
MEANWHILE = "what is active serves, results are kept in memory only and nothing is installed until that is resolved"


class Service:
    """One agent on one state directory. ``run`` does everything; ``stop`` may be called at any time.

    Raises (from ``run``): StoreBroken, StoreFull, and STATE_LOCKED when another agent runs here.
    """

    parts: Parts
    presence: Presence

    def __init__(self, config: AgentConfig, workers: WorkerStarter = WorkerProcess.start) -> None:
        self._config = config
        self._workers = workers
        self._directory = StateDirectory(config.state_dir)
        self._stopped = asyncio.Event()
        self._notifier = Notifier.from_environment()

    def stop(self) -> None:
        """End in order: finish or keep what runs, say goodbye, end the workers."""
        self._stopped.set()

    async def run(self) -> None:
        """Serve until :meth:`stop`."""
        disk = Disk()
        make_private(self._directory, disk)
        with FileLock(self._directory.lock, "another agent or command"):
            log.info("device %s starts", self._config.device, extra=fields(version=versions().get("agent")))
            if not self._directory.is_trust_provisioned:
                log.warning(NO_TRUST)
            state = State(self._directory, disk.effects)
            if state.unwritable is not None:
                log.warning("%s: %s", state.unwritable.message, MEANWHILE)
            try:
                self._assemble(state, disk)
                await self._serve()
            finally:
                state.close()

    # -- the parts -----------------------------------------------------------------------------------------------------

    def _assemble(self, state: State, disk: Disk) -> None:
        config, directory = self._config, self._directory
        frontend = make_frontend(
            config,
            state.answering,
            BrokerMemory(directory.broker, config.broker.identity, disk),
            self._workers,
            boot_id=uuid.uuid4().hex,
            clock=steady_clock(),
        )
        gateway, serving = frontend.gateway, frontend.serving
        sampler = SystemSampler(directory.root, bundle_bytes=partial(used_bytes, directory))
        telemetry = TelemetryLoop(config.telemetry, sampler, frontend.meter, serving)
        installation = InstallationState(state.installing)
        disk_limits = DiskLimits(config.install.quota_bytes, config.install.prepacked_bytes)
        reconciler = make_reconciler(
            directory=directory,
            state=installation,
            settings=config.install,
            sources=config.sources,
            serving=serving,
            workers=self._workers,
            worker_settings=config.worker,
            on_reported=gateway.reported,
            on_event=gateway.event,
            disk=disk,
            prepacker=WeightPrepacker(directory, disk, config.worker, disk_limits),
        )
        self.parts = Parts(frontend, telemetry, reconciler, state)
        self.presence = Presence(config, self.parts, self._notifier)
        identity = Identity(config.device, config.topics, versions().get("agent", "0"))
        announcer = Announcer(
            config.telemetry.home_assistant, identity, AnnouncementRecord(directory.announced, disk), gateway
        )
        self._prometheus = PrometheusEndpoint(config.telemetry.prometheus, self.presence.metrics_page)
        self._control = ControlServer(directory, reconciler, installation, config.install, self.presence)
        self._heartbeat = Heartbeat(self.parts, self.presence, self._control, directory, self._notifier)
        self._connect(announcer)

    def _connect(self, announcer: Announcer) -> None:
        """Say who hears of what, from part to part."""
        frontend, telemetry, presence = self.parts.frontend, self.parts.telemetry, self.presence
        gateway = frontend.gateway
        gateway.on_desired.add(self.parts.reconciler.set_desired)
        gateway.on_broker.add(presence.publish)
        frontend.serving.on_health.add(presence.publish)
        frontend.serving.on_load.add(presence.note_load)
        telemetry.on_sample.add(gateway.samples)
        telemetry.on_limit.add(partial(gateway.event, "throttle"))
        telemetry.on_limit.add(presence.note_limit)
        telemetry.on_turn.add(partial(self._heartbeat.note, "telemetry"))
        telemetry.on_turn.add(partial(self._announce, announcer))

    def _announce(self, announcer: Announcer) -> None:
        system = self.parts.telemetry.system
        if system is not None:
            interval = self._config.telemetry.interval_seconds
            announcer.announce(home_assistant.components(self._config.topics, system, interval=interval))

    # -- the run -------------------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        frontend, reconciler = self.parts.frontend, self.parts.reconciler
        await frontend.serving.recover()
        frontend.gateway.reported(reconciler.reported)
        self.presence.publish()
        await self._serve_control()
        await self._prometheus.start()
        self._heartbeat.expect()
        tasks = [
            asyncio.create_task(frontend.gateway.run(), name="mqtt"),
            asyncio.create_task(self._install(), name="installation"),
            asyncio.create_task(self.parts.telemetry.run(), name="telemetry"),
            asyncio.create_task(self._heartbeat.run(), name="heartbeat"),
            asyncio.create_task(self._stopped.wait(), name="stop"),
        ]
        self._notifier.ready(f"device {self._config.device}")
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await self._end(tasks)

    async def _serve_control(self) -> None:
        """Open the operator's door; what keeps it shut (a full disk, a directory of its name) keeps nobody from being
        served.
        """
        try:
            await self._control.start()
        except StoreBroken as error:
            log.warning("commands on this device cannot reach the agent for now: %s", error.message)

    async def _install(self) -> None:
        """Serve the active bundle, then follow what is desired."""
        try:
            await self.parts.reconciler.start_active()
        finally:
            self.parts.frontend.serving.startup_finished()
        await self.parts.reconciler.run()

    async def _end(self, tasks: Sequence[asyncio.Task[object]]) -> None:
        frontend = self.parts.frontend
        self._notifier.stopping()
        log.info("stopping")
        # Before the installation is cut off: while it loads a model, requests wait for that model.
        frontend.serving.begin_shutdown()
        mqtt, *others = tasks
        await self._heartbeat.restored()
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await frontend.serving.shutdown()
        # What the disk does not take is answered after the next start.
        with contextlib.suppress(StoreBroken, StoreFull):
            await frontend.result_store.flush()
        await frontend.gateway.close()
        mqtt.cancel()
        await asyncio.gather(mqtt, return_exceptions=True)
        self.presence.close()
        await self._prometheus.close()
        await self._control.close()
        await frontend.result_store.close()


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
