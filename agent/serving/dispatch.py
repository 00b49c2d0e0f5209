"""Between the queue and the places: gives free ones to those who wait, and takes what comes back from the workers."""

from __future__ import annotations

import itertools
import logging
import weakref
from collections.abc import Callable

from agent.engine.stepping import FinishEvent, RejectEvent, StepEvent, TokenEvent
from agent.install.ports import SealedBundle
from agent.serving import requests
from agent.serving.jobs import QUEUED_AGAIN, Job
from agent.serving.outcomes import Outcomes
from agent.serving.queue import RequestQueue, Waiting
from agent.serving.request_log import RequestLog
from agent.serving.requests import Refusal
from agent.serving.seat import LoadWorker, Seat
from agent.serving.settings import ServingSettings
from agent.serving.settlement import FAULT
from agent.serving.streams import Streams
from agent.serving.swapping import Swapping

log = logging.getLogger("edge_agent.serving")


class Dispatch:
    """``closed`` says why nothing can be answered now, if so; ``on_health`` hears when that may have changed,
    ``on_load`` how many wait. ``stopping``: nothing is begun any more.
    """

    def __init__(
        self,
        settings: ServingSettings,
        load: LoadWorker,
        queue: RequestQueue[Job],
        outcomes: Outcomes,
        streams: Streams,
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
        self._outcomes = outcomes
        self._streams = streams
        self._log = request_log
        self._closed = closed
        self._on_health = on_health
        self._on_load = on_load
        self._now = now
        self._numbers = itertools.count(1)
        self._most_active: int | None = None
        self._vacated: weakref.WeakSet[Seat] = weakref.WeakSet()
        self.swapping = Swapping(self._make_seat, settings.drain_seconds, now, on_health)
        self.stopping = False

    @property
    def active(self) -> int:
        return sum(len(seat.jobs) for seat in self.swapping.seats)

    def seat_of(self, job: Job) -> Seat | None:
        """Where ``job`` runs."""
        return next((seat for seat in self.swapping.seats if job.number in seat.jobs), None)

    def enqueue(self, job: Job) -> None:
        """Let ``job`` wait for its turn."""
        job.number = next(self._numbers)
        priority = self._settings.priority_of(job.key.client, job.request.priority)
        if job.attempt > 1:
            priority = QUEUED_AGAIN
        self._queue.put(Waiting(job.key.client, job, priority, job.accepted, job.number, job.deadline, job.size))
        job.frames.position = self._queue.position(job.number, self._now()) + self.active
        self._on_load(len(self._queue))

    def run_again(self, job: Job) -> None:
        """Let a request wait for another attempt: it lost its worker, or did not finish in time for a draining swap."""
        self._outcomes.stopped(job)
        job.begin_again()
        self.enqueue(job)

    def pump(self) -> None:
        """Give free places to those who wait."""
        closed = self._closed()
        if closed is not None:
            for waiting in list(self._queue):
                self._queue.remove(waiting.number)
                self._outcomes.fail(waiting, closed)
        seat = self.swapping.seat
        if seat is None or self.swapping.holding:
            return
        if seat.asleep and len(self._queue) and not self.stopping:
            seat.wake()
            self._on_health()
        while not self.stopping and (job := self._next(seat)) is not None:
            try:
                self._begin(job, seat)
            except Exception:
                # Whoever gives places away does it for all: one request must not keep the others waiting.
                log.exception("a request could not be begun")
                seat.release(job.number)
                self._outcomes.fail(job, FAULT)
        self._on_load(len(self._queue))
        self._streams.schedule()

    def _begin(self, job: Job, seat: Seat) -> None:
        """Give ``job`` a place at ``seat``."""
        job.running = True
        self._outcomes.began(job)
        job.frames.begin(job.attempt, seat.bundle.manifest.reference, self._now())
        self._log.began(job, 0 if seat.worker is None else seat.worker.pid, seat.bundle.manifest.reference)
        behaviour = seat.bundle.manifest.behaviour
        seat.admit(job, requests.to_generation(job.number, job.key.client, job.request, job.changes, behaviour))

    def limit_active(self, most: int | None) -> None:
        """At most so many answers at once from now on (None: as many as there are places); running ones go on."""
        self._most_active = most
        self.pump()

    def _next(self, seat: Seat) -> Job | None:
        """The next to run, if it may run now."""
        if self._most_active is not None and self.active >= self._most_active:
            return None
        first = self._queue.peek(self._now())
        return self._queue.take(self._now()) if first is not None and seat.takes(first) else None

    def _make_seat(self, bundle: SealedBundle) -> Seat:
        return Seat(
            bundle,
            self._load,
            on_event=self._on_event,
            on_lost=self._on_lost,
            on_ready=self._on_ready,
            on_asleep=lambda _seat: self._come_round(),
            idle_unload=self._settings.idle_unload,
        )

    def _on_ready(self, seat: Seat) -> None:
        if seat in self._vacated:
            self._vacated.discard(seat)
            self._outcomes.restarted()
        self._come_round()

    def _come_round(self) -> None:
        self.pump()
        self._on_health()

    def _on_lost(self, seat: Seat, why: str) -> None:
        """A worker died (or its heir does not load): requests of which no text went out get one more attempt."""
        lost = [job for number in list(seat.jobs) if (job := seat.release(number)) is not None]
        self._outcomes.crashed(current=seat is self.swapping.seat)
        self._vacated.add(seat)
        for job in lost:
            self._log.lost(job)
            self._outcomes.stopped(job)
            job.crashes += 1
            if job.ending is not None:
                self._outcomes.end_early(job, seat.bundle.manifest.reference)
            elif job.crashes > 1:
                text = f"the model's process ended twice while it answered ({why})"
                self._outcomes.fail(job, Refusal(500, requests.ENGINE_FAILED, text))
            elif job.frames.begun:
                # As after a restart of the device: a text that changes half-way would be worse.
                text = f"the model's process ended while it answered ({why}); ask again with another id"
                self._outcomes.fail(job, Refusal(503, requests.INTERRUPTED, text))
            else:
                self.run_again(job)
        self.pump()
        self._on_health()

    def _on_event(self, seat: Seat, event: StepEvent) -> None:
        job = seat.jobs.get(event.request)
        if job is None:
            return
        if isinstance(event, TokenEvent):
            self._outcomes.heard(job, event.tokens)
            job.frames.feed(event.text, event.tokens, self._now())
            if event.logprobs:
                job.logprobs.extend(event.logprobs)
            self._streams.flush(job)
            return
        seat.release(event.request)
        if isinstance(event, FinishEvent):
            self._outcomes.finish(job, event)
        elif isinstance(event, RejectEvent):
            self._outcomes.fail(job, Refusal(event.code, event.kind, event.message, event.field), ours=False)
        self.pump()
