"""Between queue and replicas: gives free slots to requests that wait, and takes what comes back from the workers."""

from __future__ import annotations

import itertools
import logging
import weakref
from collections.abc import Callable

from agent.engine.stepping import FinishEvent, RejectEvent, StepEvent, TokenEvent
from agent.install.ports import SealedBundle
from agent.serving import requests
from agent.serving.active_request import REQUEUED_PRIORITY, ActiveRequest
from agent.serving.completion import Completion
from agent.serving.queue import RequestQueue, Waiting
from agent.serving.replica import LoadWorker, Replica
from agent.serving.request_log import RequestLog
from agent.serving.requests import Refusal
from agent.serving.settings import ServingSettings
from agent.serving.settlement import FAULT
from agent.serving.stream_sender import StreamSender
from agent.serving.switchover import Switchover

log = logging.getLogger("edge_agent.serving")


class Dispatch:
    """``closed`` says why nothing can be answered now, if so; ``on_health`` hears when that may have changed,
    ``on_load`` how many wait. ``stopping``: nothing is begun any more.
    """

    def __init__(
        self,
        settings: ServingSettings,
        load: LoadWorker,
        queue: RequestQueue[ActiveRequest],
        completion: Completion,
        sender: StreamSender,
        *,
        request_log: RequestLog,
        closed: Callable[[], Refusal | None],
        on_health: Callable[[], None],
        on_load: Callable[[int], None],
        now: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._load = load
        self._queue = queue
        self._completion = completion
        self._sender = sender
        self._log = request_log
        self._closed = closed
        self._on_health = on_health
        self._on_load = on_load
        self._now = now
        self._numbers = itertools.count(1)
        self._most_active: int | None = None
        self._vacated: weakref.WeakSet[Replica] = weakref.WeakSet()
        self.switchover = Switchover(self._make_replica, settings.drain_seconds, now, on_health)
        self.stopping = False

    @property
    def active(self) -> int:
        return sum(len(replica.running) for replica in self.switchover.replicas)

    def replica_of(self, request: ActiveRequest) -> Replica | None:
        """Where ``job`` runs."""
        return next((replica for replica in self.switchover.replicas if request.number in replica.running), None)

    def enqueue(self, request: ActiveRequest) -> None:
        """Let ``job`` wait for its turn."""
        request.number = next(self._numbers)
        priority = self._settings.priority_of(request.key.client, request.params.priority)
        if request.attempt > 1:
            priority = REQUEUED_PRIORITY
        self._queue.put(
            Waiting(
                request.key.client, request, priority, request.accepted, request.number, request.deadline, request.size
            )
        )
        request.frames.position = self._queue.position(request.number, self._now()) + self.active
        self._on_load(len(self._queue))

    def requeue(self, request: ActiveRequest) -> None:
        """Let a request wait for another attempt: it lost its worker, or did not finish in time for a draining swap."""
        self._completion.stopped(request)
        request.prepare_retry()
        self.enqueue(request)

    def dispatch_waiting(self) -> None:
        """Give free slots to requests that wait."""
        closed = self._closed()
        if closed is not None:
            for waiting in list(self._queue):
                self._queue.remove(waiting.number)
                self._completion.fail(waiting, closed)
        replica = self.switchover.replica
        if replica is None or self.switchover.paused:
            return
        if replica.unloaded and len(self._queue) and not self.stopping:
            replica.load()
            self._on_health()
        while not self.stopping and (request := self._next(replica)) is not None:
            try:
                self._begin(request, replica)
            except Exception:
                # Whoever gives slots away does it for all: one request must not keep the others waiting.
                log.exception("a request could not be begun")
                replica.release(request.number)
                self._completion.fail(request, FAULT)
        self._on_load(len(self._queue))
        self._sender.schedule()

    def _begin(self, request: ActiveRequest, replica: Replica) -> None:
        """Give ``job`` a place at ``replica``."""
        request.running = True
        self._completion.began(request)
        request.frames.begin(request.attempt, replica.bundle.manifest.reference, self._now())
        self._log.began(request, 0 if replica.worker is None else replica.worker.pid, replica.bundle.manifest.reference)
        behaviour = replica.bundle.manifest.behaviour
        replica.admit(
            request,
            requests.to_generation(request.number, request.key.client, request.params, request.changes, behaviour),
        )

    def limit_concurrency(self, most: int | None) -> None:
        """At most so many answers at once from now on (None: as many as there are slots); running ones go on."""
        self._most_active = most
        self.dispatch_waiting()

    def _next(self, replica: Replica) -> ActiveRequest | None:
        """The next to run, if it may run now."""
        if self._most_active is not None and self.active >= self._most_active:
            return None
        first = self._queue.peek(self._now())
        return self._queue.take(self._now()) if first is not None and replica.takes(first) else None

    def _make_replica(self, bundle: SealedBundle) -> Replica:
        return Replica(
            bundle,
            self._load,
            on_event=self._on_event,
            on_lost=self._on_lost,
            on_ready=self._on_ready,
            on_unloaded=lambda _replica: self._on_capacity(),
            idle_unload=self._settings.idle_unload,
        )

    def _on_ready(self, replica: Replica) -> None:
        if replica in self._vacated:
            self._vacated.discard(replica)
            self._completion.restarted()
        self._on_capacity()

    def _on_capacity(self) -> None:
        self.dispatch_waiting()
        self._on_health()

    def _on_lost(self, replica: Replica, why: str) -> None:
        """A worker died (or its heir does not load): requests of which no text went out get one more attempt."""
        lost = [request for number in list(replica.running) if (request := replica.release(number)) is not None]
        self._completion.crashed(current=replica is self.switchover.replica)
        self._vacated.add(replica)
        for request in lost:
            self._log.lost(request)
            self._completion.stopped(request)
            request.crashes += 1
            if request.ending is not None:
                self._completion.end_early(request, replica.bundle.manifest.reference)
            elif request.crashes > 1:
                text = f"the model's process ended twice while it answered ({why})"
                self._completion.fail(request, Refusal(500, requests.ENGINE_FAILED, text))
            elif request.frames.begun:
                # As after a restart of the device: a text that changes half-way would be worse.
                text = f"the model's process ended while it answered ({why}); ask again with another id"
                self._completion.fail(request, Refusal(503, requests.INTERRUPTED, text))
            else:
                self.requeue(request)
        self.dispatch_waiting()
        self._on_health()

    def _on_event(self, replica: Replica, event: StepEvent) -> None:
        request = replica.running.get(event.request)
        if request is None:
            return
        if isinstance(event, TokenEvent):
            self._completion.record_tokens(request, event.tokens)
            request.frames.feed(event.text, event.tokens, self._now())
            if event.logprobs:
                request.logprobs.extend(event.logprobs)
            self._sender.flush(request)
            return
        replica.release(event.request)
        if isinstance(event, FinishEvent):
            self._completion.finish(request, event)
        elif isinstance(event, RejectEvent):
            self._completion.fail(request, Refusal(event.code, event.kind, event.message, event.field), ours=False)
        self.dispatch_waiting()
