"""Requests in, one answer each out: result store, queue, worker, frames.

The order of things is what the guarantee rests on: a request is committed to the result store, then acknowledged to
the broker, then queued; pieces of the answer leave only once the result store knows that they may have; the last frame
leaves only once its bytes are committed. Whatever is cut in between, the next start or redelivery goes on from there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from msgspec import UNSET

from agent.install.ports import Footprint, SealedBundle, ServingCounters, SwapMode, SwapReport
from agent.serving import requests
from agent.serving.active_request import ActiveRequest
from agent.serving.admission import Admission
from agent.serving.completion import Completion
from agent.serving.controls import Controls
from agent.serving.dispatch import Dispatch
from agent.serving.frames import FrameStream
from agent.serving.intake import AcceptedRequest, IncomingRequest, Intake
from agent.serving.queue import RequestQueue
from agent.serving.recovery import PendingRequest, pending_requests, recover
from agent.serving.replica import LoadWorker, Replica
from agent.serving.replies import Outlet, Replies
from agent.serving.request_log import RequestLog
from agent.serving.requests import Refusal
from agent.serving.settings import ServingSettings
from agent.serving.settlement import FAULT, Settlement
from agent.serving.store_health import StoreHealth
from agent.serving.stream_sender import StreamSender
from agent.state.answer_writer import AnswerWriter
from agent.state.answers import Key
from agent.telemetry.llm import LlmMeter
from contract.mqtt import reading
from contract.mqtt.messages import GenerateRequest
from contract.mqtt.topics import NO_ID, Topics


class Serving:
    """Implements :class:`agent.install.ports.Serving`. All methods run in the event loop; none blocks."""

    def __init__(
        self,
        settings: ServingSettings,
        topics: Topics,
        outlet: Outlet,
        *,
        result_store: AnswerWriter,
        load: LoadWorker,
        meter: LlmMeter,
        on_health: Callable[[], None] = lambda: None,
        on_load: Callable[[int], None] = lambda _queued: None,
        now_unix: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._result_store = result_store
        self._on_health = on_health
        self._now_unix = now_unix
        self._now = now = asyncio.get_running_loop().time
        self._requests: dict[Key, ActiveRequest] = {}
        self._queue: RequestQueue[ActiveRequest] = RequestQueue(settings.queue_limit, settings.client_queue_limit)
        self._replies = replies = Replies(outlet, topics, result_store, meter)
        self._store_health = health = StoreHealth(on_health)
        self._log = RequestLog(prompts=settings.log_prompts)
        self._completion = Completion(
            self._requests, result_store, replies, meter, health=health, now=now, request_log=self._log
        )
        self._sender = StreamSender(
            self._queue,
            result_store,
            replies,
            health,
            replicas=lambda: self._switchover.replicas,
            estimate=lambda ahead: self._admission.estimate(ahead),  # noqa: PLW0108 # made below
            on_deadline=lambda request: self._end_early(request, "deadline"),
        )
        self._dispatch = Dispatch(
            settings,
            load,
            self._queue,
            self._completion,
            self._sender,
            request_log=self._log,
            closed=lambda: self._admission.closed(),  # noqa: PLW0108 # made below
            on_health=on_health,
            on_load=on_load,
            now=now,
        )
        self._switchover = self._dispatch.switchover
        self._admission = Admission(
            self._queue,
            self._switchover,
            lambda: self._completion.statistics,
            lambda client: self._intake.reserved(client),  # noqa: PLW0108 # made below
        )
        self._intake = Intake(
            result_store,
            replies,
            meter,
            refusal=self._admission.refusal,
            knows=lambda key: key in self._requests,
            on_accepted=self._on_accepted,
            on_failed=self._on_failed,
            on_store=health.note,
            now_unix=now_unix,
            request_log=self._log,
        )
        self._controls = Controls(
            self._requests,
            self._intake,
            result_store,
            replies,
            cancel=lambda request: self._end_early(request, "cancelled"),
            update=self._update,
            now=now,
        )

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
        return len(self._queue) + len(self._intake)

    @property
    def active(self) -> int:
        return self._dispatch.active

    @property
    def generating(self) -> int:
        """Tokens so far of the answers that are under way."""
        return sum(
            request.frames.tokens for replica in self._switchover.replicas for request in replica.running.values()
        )

    @property
    def reasons(self) -> list[str]:
        """Why requests are not being answered now; empty when they are."""
        found = []
        replica = self._switchover.replica
        if replica is None:
            waiting = self._admission.starting or self._switchover.paused
            missing = requests.ENGINE_UNAVAILABLE if self._admission.unavailable else requests.NO_MODEL
            found.append("loading" if waiting else missing)
        elif replica.worker is None and not replica.unloaded:
            found.append("swapping" if self._switchover.paused else requests.ENGINE_UNAVAILABLE)
        if self._store_health.failing:
            found.append(requests.STORE_UNAVAILABLE)
        if self._dispatch.stopping:
            found.append("stopping")
        return found

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
        return self._completion.statistics.counters(self._now())

    # -- starting and stopping -----------------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Take up what an earlier run of the agent left behind; before the first request comes in."""
        self._resume_pending(await recover(self._result_store, self._replies))

    async def recover_rest(self) -> None:
        """Answers can be stored again: take up what had to wait for that."""
        self._resume_pending(
            [left for left in await pending_requests(self._result_store) if left.of.key not in self._requests]
        )
        self._dispatch.dispatch_waiting()

    def _resume_pending(self, found: list[PendingRequest]) -> None:
        for left in found:
            request = self._make_request(left.of.key, left.request, left.of.correlation)
            request.attempt, request.size = left.of.attempt, len(left.of.request or b"")
            if left.of.deadline_at is not None:
                # Never longer than it was: the clock may have been set back.
                left_seconds = left.of.deadline_at - max(self._now_unix(), left.of.accepted_at)
                request.deadline = self._now() + left_seconds
            self._requests[request.key] = request
            if left.refusal is None:
                self._dispatch.enqueue(request)
            else:
                request.frames.attempt = request.attempt
                self._completion.fail(request, left.refusal)
        self._sender.schedule()

    def startup_finished(self) -> None:
        """Start-up is over: without a model, requests are turned away from now on."""
        self._admission.starting = False
        self._dispatch.dispatch_waiting()
        self._on_health()

    def begin_shutdown(self) -> None:
        """Nothing is begun any more, nor turned away for want of a model: what waits is for the next start."""
        self._dispatch.stopping = self._admission.stopping = True
        self._on_health()

    async def shutdown(self) -> None:
        """Let running answers finish for a while, then end the workers; the result store keeps what is left."""
        self.begin_shutdown()
        await self._switchover.finish_running(self._settings.stop_seconds)
        self._sender.close()
        await self._switchover.close()

    # -- requests ------------------------------------------------------------------------------------------------------

    def request(self, incoming: IncomingRequest) -> None:
        """A request came in from the broker."""
        self._intake.take(incoming)

    def control(self, client: str, payload: bytes, settlement: Settlement) -> None:
        """A client acts on one of its requests."""
        self._controls.take(client, payload, settlement)

    def report_fault(
        self, client: str, payload: bytes, correlation: bytes | None, response_topic: str | None, *, control: bool
    ) -> None:
        """Tell the sender of a message, of which nothing is kept, that the device failed at it."""
        if control:
            op, request_id = reading.salvage_control(payload)
            self._replies.refuse_control(Key(client, request_id), op, FAULT)
        else:
            reply_id = self._replies.id_in(client, response_topic)
            request_id = reading.salvage_request_id(payload, correlation, reply_id) or NO_ID
            self._replies.error(Key(client, request_id), FAULT, correlation)

    def _on_failed(self, accepted: AcceptedRequest, refusal: Refusal) -> None:
        """A committed request could not be taken over: it ends here, with ``refusal`` for its one result."""
        request = self._requests.get(accepted.key)
        if request is None:
            request = self._requests[accepted.key] = self._make_request(
                accepted.key, accepted.request, accepted.correlation
            )
        if request.ended:
            return
        self._queue.remove(request.number)
        if (replica := self._dispatch.replica_of(request)) is not None:
            if replica.worker is not None:
                replica.worker.cancel(request.number)
            replica.release(request.number)
        self._completion.fail(request, refusal)

    def _on_accepted(self, accepted: AcceptedRequest) -> None:
        request = self._make_request(accepted.key, accepted.request, accepted.correlation)
        request.size = accepted.size
        if accepted.deadline_seconds is not None:
            request.deadline = request.accepted + accepted.deadline_seconds
        self._log.accepted(request)
        self._supersede(request)
        self._requests[accepted.key] = request
        self._dispatch.enqueue(request)
        self._dispatch.dispatch_waiting()
        # Nothing is active any more, perhaps: then it was ended at once.
        if not request.running and not request.ended and self._requests.get(request.key) is request:
            self._sender.send_position(request)

    def _make_request(self, key: Key, params: GenerateRequest, correlation: bytes | None) -> ActiveRequest:
        now = self._now()
        frames = FrameStream(self._settings.stream_interval_ms / 1000, stream=params.stream, now=now)
        return ActiveRequest(key, params, frames, accepted=now, deadline=None, correlation=correlation)

    def _supersede(self, newer: ActiveRequest) -> None:
        """The newer request with the same key wins over older ones of its client."""
        name = newer.params.supersede_key
        if name is UNSET:
            return
        for request in list(self._requests.values()):
            if request.key.client == newer.key.client and request.params.supersede_key == name:
                self._end_early(request, "cancelled")

    def _end_early(self, request: ActiveRequest, why: str) -> None:
        """End ``job`` wherever it is; ``why`` is ``cancelled`` or ``deadline``."""
        if request.ending is not None or request.ended:
            return
        request.ending = "deadline" if why == "deadline" else "cancelled"
        if not request.running:
            self._queue.remove(request.number)
            self._completion.end_early(request, "" if self.bundle is None else self.bundle.manifest.reference)
        elif (replica := self._dispatch.replica_of(request)) is not None and replica.worker is not None:
            replica.worker.cancel(request.number)

    def _update(self, request: ActiveRequest, changes: dict[str, Any]) -> None:
        request.changes |= changes
        if (
            request.running
            and (replica := self._dispatch.replica_of(request)) is not None
            and replica.worker is not None
        ):
            replica.worker.update(request.number, changes)

    def limit_concurrency(self, most: int | None) -> None:
        """At most so many answers at once from now on (None: as many as there are slots); running ones go on."""
        self._dispatch.limit_concurrency(most)

    def on_writable(self) -> None:
        """The connection takes frames again."""
        self._sender.on_writable()

    def on_delivered(self, number: int) -> None:
        """The broker has what :meth:`Outlet.publish` numbered."""
        self._replies.delivered(number)

    def on_oversized(self, number: int, why: str) -> None:
        """The broker does not take what :meth:`Outlet.publish` numbered; ``why`` is a clause about it."""
        self._replies.oversized(number, why)

    # -- swapping ------------------------------------------------------------------------------------------------------

    async def swap(self, bundle: SealedBundle, mode: SwapMode) -> SwapReport:
        """Serve ``bundle`` from now on, losing no accepted request; on failure the old one serves on.

        Raises:
            EngineFailed: the new model does not load or crashed while loading.
        """
        try:
            hold = await self._switchover.swap(bundle, mode, self._dispatch.requeue)
            self._completion.start_new_statistics()
            self._admission.unavailable = False
            return SwapReport(mode, self._longest_wait(hold))
        finally:
            self._dispatch.dispatch_waiting()
            self._on_health()

    async def suspend(self) -> None:
        """Give the model's memory back for a candidate; requests wait until :meth:`swap` or :meth:`resume`."""
        await self._switchover.suspend(self._dispatch.requeue)

    async def resume(self) -> float | None:
        """Serve again what was suspended; the longest time in ms that requests waited, None if nothing had."""
        try:
            hold = await self._switchover.resume()
            return None if hold is None else self._longest_wait(hold)
        finally:
            self._dispatch.dispatch_waiting()
            self._on_health()

    def _longest_wait(self, hold: float | None) -> float:
        """Milliseconds that those who wait now have waited since ``hold`` (None: nobody had to)."""
        if hold is None:
            return 0.0
        waited = max((self._now() - max(hold, request.accepted) for request in self._queue), default=0.0)
        return round(waited * 1000, 3)

    async def stop(self) -> None:
        """Serve nothing from now on; running answers may finish, those that wait are turned away."""
        await self._switchover.stop(self._dispatch.requeue)
        self._admission.unavailable = False
        self._dispatch.dispatch_waiting()
        self._on_health()

    def mark_unavailable(self) -> None:
        """A bundle is active and cannot be loaded for now; that is over with the next :meth:`swap` or withdrawal."""
        self._admission.unavailable = True
        self._dispatch.dispatch_waiting()
        self._on_health()
