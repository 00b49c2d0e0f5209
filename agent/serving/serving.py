"""Requests in, one answer each out: result store, queue, worker, frames.

The order of things is what the guarantee rests on: a request is committed to the result store, then acknowledged to
the broker, then queued; pieces of the answer leave only once the result store knows that they may have; the last frame
leaves only once its bytes are committed. Whatever is cut in between, the next start or redelivery goes on from there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from msgspec import Struct

from agent.install.ports import Footprint, SealedBundle, ServingCounters, SwapMode, SwapReport
from agent.observers import Observers
from agent.serving import requests
from agent.serving.completion import Completion
from agent.serving.controls import Controls
from agent.serving.events import (
    ConcurrencyLimited,
    ModelUnavailable,
    RequestRecovered,
    ShutdownBegun,
    StartupFinished,
)
from agent.serving.intake import Intake
from agent.serving.loop import Instruments, Loop
from agent.serving.recovery import PendingRequest, pending_requests, recover
from agent.serving.replica import LoadWorker, Replica
from agent.serving.replies import Outlet, Replies
from agent.serving.request_log import RequestLog
from agent.serving.scheduler import Scheduler
from agent.serving.settings import ServingSettings
from agent.serving.store_health import StoreHealth
from agent.serving.stream_sender import StreamSender
from agent.serving.switchover import Switchover
from agent.state.result_writer import ResultWriter
from agent.telemetry.llm import LlmMeter
from contract.mqtt.topics import Topics


class Dependencies(Struct, frozen=True):
    """What serving is given: where frames go and under which topics, where results are stored, how a worker is loaded,
    and the clock that deadlines over restarts go by.
    """

    topics: Topics
    outlet: Outlet
    result_store: ResultWriter
    load: LoadWorker
    meter: LlmMeter
    now_unix: Callable[[], float] = time.time


class Serving:
    """Implements :class:`agent.install.ports.Serving`. All methods run in the event loop; none blocks.

    Messages go straight to :attr:`intake` and :attr:`controls`. ``on_health`` is notified when readiness or its reasons
    may have changed, ``on_load`` of the number of requests that wait.
    """

    def __init__(self, settings: ServingSettings, dependencies: Dependencies) -> None:
        self.on_health: Observers[[]] = Observers()
        self.on_load: Observers[[int]] = Observers()
        result_store = dependencies.result_store
        self._settings = settings
        self._result_store = result_store
        self._now_unix = dependencies.now_unix
        self._now = asyncio.get_running_loop().time
        self._store_health = StoreHealth(self.on_health.notify)
        log = RequestLog(prompts=settings.log_prompts)
        instruments = Instruments(dependencies.meter, log, self._store_health)
        self._meter = dependencies.meter
        self.scheduler = Scheduler(settings)
        self.replies = Replies(dependencies.outlet, dependencies.topics, result_store, dependencies.meter)
        completion = Completion(result_store, self.replies, dependencies.meter, log)
        sender = StreamSender(self.scheduler, result_store, self.replies, self._store_health)
        self.loop = Loop(
            self.scheduler, completion, sender, instruments, on_health=self.on_health, on_load=self.on_load
        )
        self.intake = Intake(
            self.loop, self.scheduler, result_store, self.replies, instruments, now_unix=dependencies.now_unix
        )
        self.controls = Controls(self.loop, self.scheduler, self.intake, result_store, self.replies)
        self._switchover = Switchover(settings, self.loop, self.scheduler, dependencies.load)

    # -- what others see -----------------------------------------------------------------------------------------------

    @property
    def bundle(self) -> SealedBundle | None:
        replica = self._switchover.replica
        return None if replica is None else replica.bundle

    @property
    def footprint(self) -> Footprint:
        replica = self._switchover.replica
        return Footprint() if replica is None else replica.footprint

    @property
    def replica(self) -> Replica | None:
        return self._switchover.replica

    @property
    def replicas(self) -> list[Replica]:
        """Every replica: the current one, and one that finishes its last answers."""
        return self._switchover.replicas

    @property
    def queued(self) -> int:
        return len(self.scheduler.queue) + len(self.intake)

    @property
    def active(self) -> int:
        return self.scheduler.active

    @property
    def generating(self) -> int:
        """Tokens so far of the answers that are in progress."""
        return sum(request.frames.tokens for request in self.scheduler.running)

    @property
    def reasons(self) -> list[str]:
        """Why requests are not being answered now; empty when they are."""
        found = []
        scheduler, replica = self.scheduler, self._switchover.replica
        paused = scheduler.paused_since is not None
        if replica is None:
            missing = requests.ENGINE_UNAVAILABLE if scheduler.unavailable else requests.NO_MODEL
            found.append("loading" if scheduler.starting or paused else missing)
        elif replica.worker is None and not replica.unloaded:
            found.append("swapping" if paused else requests.ENGINE_UNAVAILABLE)
        if self._store_health.failing:
            found.append(requests.STORE_UNAVAILABLE)
        if scheduler.stopping:
            found.append("stopping")
        return found

    @property
    def problem(self) -> str:
        """How the model's process ended or why it does not load; empty where one is loaded."""
        return "" if self.scheduler.current is None else self.scheduler.current.problem

    @property
    def unloaded(self) -> bool:
        """The model was idle for long and is not in memory; the next request loads it."""
        replica = self._switchover.replica
        return replica is not None and replica.unloaded and replica.worker is None

    def probe_store(self) -> None:
        """After a failure: try whether it works again, since nobody asks a device that is not ready."""
        if self._store_health.failing:
            self._result_store.probe().add_done_callback(lambda done: self._store_health.note(done.exception()))

    def counters(self) -> ServingCounters:
        return self.scheduler.statistics.counters(self._now())

    # -- starting and stopping -----------------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Take up what an earlier run of the agent left behind; before the first request comes in."""
        self._resume_pending(await recover(self._result_store, self.replies))

    async def recover_rest(self) -> None:
        """Answers can be stored again: take up what had to wait for that."""
        self._resume_pending(await pending_requests(self._result_store))

    def _resume_pending(self, found: list[PendingRequest]) -> None:
        for left in found:
            if left.of.key in self.scheduler.requests:
                continue
            now = self._now()
            request = self.scheduler.new_request(left.of.key, left.params, left.of.correlation, now)
            request.attempt, request.size = left.of.attempt, len(left.of.request or b"")
            if left.of.deadline_at is not None:
                # Never longer than it was: the clock may have been set back.
                request.deadline = now + left.of.deadline_at - max(self._now_unix(), left.of.accepted_at)
            self.loop.handle(RequestRecovered(request, left.refusal))

    def startup_finished(self) -> None:
        """Without a model, requests are rejected from now on."""
        self.loop.handle(StartupFinished())

    def begin_shutdown(self) -> None:
        """Nothing is started any more, nor rejected for want of a model: what waits is for the next start."""
        self.loop.handle(ShutdownBegun())

    async def shutdown(self) -> None:
        """Let running answers finish for a while, then end the workers; the result store keeps what is left."""
        self.begin_shutdown()
        await self._switchover.finish_running(self._settings.stop_seconds)
        self.loop.close()
        await self._switchover.close()

    def limit_concurrency(self, most: int | None) -> None:
        """At most so many answers at once from now on (None: as many as there are slots); running ones go on."""
        self.loop.handle(ConcurrencyLimited(most))

    # -- the model -----------------------------------------------------------------------------------------------------

    async def swap(self, bundle: SealedBundle, mode: SwapMode) -> SwapReport:
        """Serve ``bundle`` from now on, losing no accepted request; on failure the old one serves on.

        Raises:
            EngineFailed: the new model does not load or crashed while loading.
        """
        report = await self._switchover.swap(bundle, mode)
        self._meter.swaps += 1
        return report

    async def suspend(self) -> None:
        """Give the model's memory back for a candidate; requests wait until :meth:`swap` or :meth:`resume`."""
        await self._switchover.suspend()

    async def resume(self) -> float | None:
        """Serve again what was suspended; the longest time in ms that requests waited, None if nothing had."""
        return await self._switchover.resume()

    async def stop(self) -> None:
        """Serve nothing from now on; running answers may finish, those that wait are rejected."""
        await self._switchover.stop()

    def mark_unavailable(self) -> None:
        """A bundle is active and cannot be loaded for now; that is over with the next :meth:`swap` or stop."""
        self.loop.handle(ModelUnavailable())
