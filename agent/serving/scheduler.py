"""Who runs where and when, and how each request ends: takes events, returns commands. Pure: no I/O, no clock, no tasks.

Every accepted request is in :attr:`Scheduler.requests` from its acceptance until its result is stored, and leaves it by
exactly one of the commands ``Finish``, ``EndEarly`` and ``Fail``. It waits in the queue while it is queued, and is in
the slots of exactly one replica while it runs.
"""

from __future__ import annotations

import itertools

from msgspec import UNSET

from agent.engine.interface import FinishEvent, RejectEvent, TokenEvent
from agent.serving import events, requests
from agent.serving.active_request import ActiveRequest, EarlyEnd, State, Step
from agent.serving.frames import FrameStream
from agent.serving.queue import RequestQueue, Reservation, Waiting
from agent.serving.requests import Refusal
from agent.serving.settings import ServingSettings
from agent.serving.slots import Slots
from agent.serving.statistics import Statistics
from agent.state.result_store import Key
from contract.mqtt.requests import GenerateRequest

REQUEUED_PRIORITY = 10
"""Above every priority that a client can ask for: it had its turn already and lost it through no fault of its own."""

RETRY_ENGINE_MS = 10_000
RETRY_NO_MODEL_MS = 30_000
SHORTEST_RETRY_SECONDS = 0.5

NO_MODEL = Refusal(503, requests.NO_MODEL, "no model is installed on this device", retry_after_ms=RETRY_NO_MODEL_MS)


def engine_unavailable(problem: str = "") -> Refusal:
    """``problem``: what its process last said."""
    text = "the model cannot be loaded at the moment" + (f": {problem}" if problem else "")
    return Refusal(503, requests.ENGINE_UNAVAILABLE, text, retry_after_ms=RETRY_ENGINE_MS)


class Scheduler:
    """``handle`` gets the time of every event, on a clock that never goes back."""

    def __init__(self, settings: ServingSettings) -> None:
        self.settings = settings
        self.queue: RequestQueue[ActiveRequest] = RequestQueue(settings.queue_limit, settings.client_queue_limit)
        self.requests: dict[Key, ActiveRequest] = {}
        """The accepted requests without a stored result."""
        self.statistics = Statistics()
        self.current: Slots | None = None
        """The replica that takes new requests."""
        self.draining: list[Slots] = []
        self.paused_since: float | None = None
        self.starting = True
        """Start-up is not over: a model may still come."""
        self.stopping = False
        self.unavailable = False
        """A bundle is active, and does not load for now."""
        self._most_active: int | None = None
        self._numbers = itertools.count(1)
        self._now = 0.0
        self._commands: list[events.Command] = []

    # -- what is asked of it -------------------------------------------------------------------------------------------

    @property
    def replicas(self) -> list[Slots]:
        """The current one and those that finish their last answers."""
        return [*([] if self.current is None else [self.current]), *self.draining]

    @property
    def running(self) -> list[ActiveRequest]:
        return [request for slots in self.replicas for request in slots.running.values()]

    @property
    def active(self) -> int:
        """How many requests run."""
        return sum(len(slots.running) for slots in self.replicas)

    def closed(self) -> Refusal | None:
        """Why nobody's request can be answered now; None where it can, or will be after a swap or the next start."""
        if self.stopping or self.paused_since is not None:
            return None
        if self.current is None:
            return None if self.starting else engine_unavailable() if self.unavailable else NO_MODEL
        return engine_unavailable(self.current.problem) if self.current.unavailable else None

    def refusal(self, client: str, size: int, *, reserved: Reservation, own: Reservation) -> Refusal | None:
        """Why a new request of ``client`` with ``size`` bytes cannot be taken now, beside all that is ``reserved`` and
        its ``own`` among that.
        """
        closed = self.closed()
        if closed is None and not self.queue.has_room(client, size, reserved=reserved, own=own):
            # By then about half of them are through.
            wait = max(SHORTEST_RETRY_SECONDS, self.estimate(len(self.queue) // 2))
            text = "too many requests wait; try again later"
            return Refusal(429, requests.QUEUE_FULL, text, retry_after_ms=int(1000 * wait))
        return closed

    def refusal_of_model(self, params: GenerateRequest) -> Refusal | None:
        """Why the current bundle is not the one that ``params`` names; None where there is none yet."""
        return None if self.current is None else requests.model_fault(params, self.current.reference, self.settings)

    def estimate(self, ahead: int) -> float:
        """Seconds until a request begins that ``ahead`` others of the queue come before."""
        slots = sum(slots.capacity for slots in self.replicas) or 1
        return self.statistics.seconds_each * (ahead + 1) / slots

    def longest_wait(self, since: float | None, now: float) -> float:
        """Seconds that those who wait now have waited since ``since`` (None: nobody had to)."""
        if since is None:
            return 0.0
        return max((now - max(since, request.accepted) for request in self.queue), default=0.0)

    def new_request(self, key: Key, params: GenerateRequest, correlation: bytes | None, now: float) -> ActiveRequest:
        """What was accepted now; the caller fills in the rest, and sends ``RequestAccepted``."""
        frames = FrameStream(self.settings.stream_interval_ms / 1000, stream=params.stream, now=now, choices=params.n)
        return ActiveRequest(key, params, frames, accepted=now, deadline=None, correlation=correlation)

    def next_deadline(self) -> float | None:
        """The earliest deadline of all that wait and run."""
        times = [request.deadline for request in self.running if request.ending is None]
        return min((each for each in (*times, self.queue.next_deadline()) if each is not None), default=None)

    # -- what happens --------------------------------------------------------------------------------------------------

    def add_tokens(self, slots: Slots, event: TokenEvent, now: float) -> ActiveRequest | None:
        """New text of a request; which one, unless it is over. The way of every token: it changes nobody's turn."""
        request = slots.running.get(event.request)
        if request is None:
            return None
        request.frames.feed(
            event.text,
            event.tokens,
            now,
            thought=event.thought,
            calls=event.calls,
            choice=event.choice,
            logprobs=event.logprobs,
        )
        if request.statistics is not None:
            request.statistics.record_tokens(request.number, request.frames.tokens, now)
        return request

    def handle(self, event: events.Event, now: float) -> list[events.Command]:
        """What has to be done now that ``event`` happened. What it ordered before it failed comes with the next one."""
        self._now = now
        if isinstance(event, events.RunEnded):
            self._end_run(event.slots, event.event)
        elif isinstance(event, events.TimePassed):
            self._expire()
        elif isinstance(event, events.RequestEvent):
            self._change_request(event)
        elif isinstance(event, events.ReplicaEvent):
            self._change_replica(event)
        elif isinstance(event, events.RouteEvent):
            self._change_route(event)
        else:
            self._change_device(event)
        commands, self._commands = self._commands, []
        return commands

    def _change_request(self, event: events.RequestEvent) -> None:
        match event:
            case events.RequestAccepted(request):
                self._accept(request)
            case events.RequestRecovered(request, refusal):
                self._recover(request, refusal)
            case events.CancelRequested(request):
                self._end_early(request, "cancelled")
            case events.UpdateRequested(request, changes):
                request.changes |= changes
                if (slots := self._slots_of(request)) is not None:
                    self._order(events.UpdateRun(slots, request.number, changes))
            case events.RequestFailed(request, refusal):
                self._abort(request, refusal)
            case events.ResultStored(request):
                request.advance(Step.STORE)
                if self.requests.get(request.key) is request:
                    del self.requests[request.key]

    def _change_device(self, event: events.DeviceEvent) -> None:
        match event:
            case events.ConcurrencyLimited(most):
                self._most_active = most
            case events.StartupFinished():
                self.starting = False
            case events.ShutdownBegun():
                self.stopping = True
            case events.ModelUnavailable():
                self.unavailable = True
        self._dispatch()
        if not isinstance(event, events.ConcurrencyLimited):
            self._order(events.ReportHealth())

    def _expire(self) -> None:
        for request in (*self.queue.expired(self._now), *self.running):
            if request.deadline is not None and request.deadline <= self._now:
                self._end_early(request, "deadline")

    def _order(self, command: events.Command) -> None:
        self._commands.append(command)

    def _accept(self, request: ActiveRequest) -> None:
        self._supersede(request)
        self.requests[request.key] = request
        self._enqueue(request)
        self._dispatch()
        if request.state is State.QUEUED:
            self._order(events.SendPosition(request))

    def _supersede(self, newer: ActiveRequest) -> None:
        """The newer request with the same key wins over older ones of its client."""
        name = newer.params.supersede_key
        if name is UNSET:
            return
        for request in list(self.requests.values()):
            if request.key.client == newer.key.client and request.params.supersede_key == name:
                self._end_early(request, "cancelled")

    def _recover(self, request: ActiveRequest, refusal: Refusal | None) -> None:
        self.requests[request.key] = request
        if refusal is None:
            self._enqueue(request)
            self._dispatch()
        else:
            request.frames.attempt = request.attempt
            self._fail(request, refusal)

    def _enqueue(self, request: ActiveRequest) -> None:
        request.number = next(self._numbers)
        priority = self.settings.priority_of(request.key.client, request.params.priority)
        if request.attempt > 1:
            priority = REQUEUED_PRIORITY
        self.queue.put(
            Waiting(
                request.key.client, request, priority, request.accepted, request.number, request.deadline, request.size
            )
        )
        request.frames.position = self.queue.position(request.number, self._now) + self.active

    # -- turns ---------------------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        """Give free slots to those who wait, or fail all of them if there will be none."""
        closed = self.closed()
        if closed is not None:
            for waiting in list(self.queue):
                self.queue.remove(waiting.number)
                self._fail(waiting, closed)
        slots = self.current
        if slots is None or self.paused_since is not None or self.stopping:
            return
        if slots.unloaded and len(self.queue):
            slots.unloaded = False
            self._order(events.LoadModel(slots))
            self._order(events.ReportHealth())
        while (request := self._next(slots)) is not None:
            try:
                self._start(request, slots)
            except Exception as error:  # one request must not keep the others waiting
                self._order(events.ReportFault(request, error))

    def _next(self, slots: Slots) -> ActiveRequest | None:
        """The next to run, if it may run now."""
        first = self.queue.peek(self._now)
        if first is None or not slots.takes(first):
            return None
        running = sum(each.answers for each in self.replicas)
        if self._most_active is not None and running and running + slots.weight(first) > self._most_active:
            return None
        return self.queue.take(self._now)

    def _start(self, request: ActiveRequest, slots: Slots) -> None:
        if (refusal := requests.model_fault(request.params, slots.reference, self.settings)) is not None:
            # The bundle is another one than when it came in.
            self._fail(request, refusal, ours=False)
            return
        request.advance(Step.START)
        slots.running[request.number] = request
        request.statistics = self.statistics
        request.frames.begin(request.attempt, slots.reference, self._now)
        self._order(events.Start(request, slots))

    def _slots_of(self, request: ActiveRequest) -> Slots | None:
        """Where ``request`` runs."""
        return next((slots for slots in self.replicas if request.number in slots.running), None)

    def _release(self, slots: Slots, number: int) -> ActiveRequest | None:
        request = slots.running.pop(number, None)
        if request is not None and not slots.running:
            self._order(events.NoteIdle(slots))
        return request

    # -- ends ----------------------------------------------------------------------------------------------------------

    def _end_run(self, slots: Slots, event: FinishEvent | RejectEvent) -> None:
        request = self._release(slots, event.request)
        if request is None:
            return
        if isinstance(event, RejectEvent):
            # The client is to blame.
            self._fail(request, Refusal(event.code, event.kind, event.message, event.field), ours=False)
        else:
            if event.text or event.thought or event.calls:
                tokens = None if event.reasons else event.completion_tokens
                request.frames.feed(
                    event.text,
                    tokens,
                    self._now,
                    thought=event.thought,
                    calls=event.calls,
                    choice=event.choice,
                )
            started, _ = request.frames.times()
            if request.statistics is not None:
                request.statistics.record_end(request.number, self._now, event.completion_tokens)
                request.statistics.finished += 1
            self.statistics.record_duration(self._now - started)
            request.advance(Step.COMPLETE)
            self._order(events.Finish(request, event))
        self._dispatch()

    def _end_early(self, request: ActiveRequest, why: EarlyEnd) -> None:
        """End ``request`` wherever it is."""
        if request.ending is not None or request.completed:
            return
        request.ending = why
        if request.state is State.QUEUED:
            self.queue.remove(request.number)
            self._complete_early(request, "" if self.current is None else self.current.reference)
        elif (slots := self._slots_of(request)) is not None:
            request.advance(Step.CANCEL)
            self._order(events.CancelRun(slots, request.number))

    def _complete_early(self, request: ActiveRequest, reference: str) -> None:
        """``request`` ends for the reason it names, with no engine at work on it."""
        assert request.ending is not None
        request.frames.bundle = request.frames.bundle or reference
        request.advance(Step.COMPLETE)
        self._order(events.EndEarly(request, request.ending))

    def _abort(self, request: ActiveRequest, refusal: Refusal) -> None:
        if request.completed:
            return
        self.requests.setdefault(request.key, request)
        self.queue.remove(request.number)
        if (slots := self._slots_of(request)) is not None:
            self._order(events.CancelRun(slots, request.number))
            self._release(slots, request.number)
        self._fail(request, refusal)
        self._dispatch()

    def _fail(self, request: ActiveRequest, refusal: Refusal, *, ours: bool = True) -> None:
        """End ``request`` with an error; ``ours`` when the client is not to blame."""
        self._stop_counting(request)
        (request.statistics or self.statistics).failed += ours
        request.advance(Step.COMPLETE)
        self._order(events.Fail(request, refusal))

    def _stop_counting(self, request: ActiveRequest) -> None:
        """No worker is at work on it any more."""
        if request.statistics is not None:
            request.statistics.record_end(request.number, self._now)

    def _requeue(self, request: ActiveRequest, slots: Slots) -> None:
        """It lost its worker, or did not finish in time: another attempt, unless it is to end anyway."""
        if request.ending is not None:
            self._complete_early(request, slots.reference)
            return
        request.advance(Step.REQUEUE)
        self._enqueue(request)

    # -- replicas ------------------------------------------------------------------------------------------------------

    def _change_replica(self, event: events.ReplicaEvent) -> None:
        slots = event.slots
        if isinstance(event, events.ReplicaReady):
            slots.capacity, slots.failures, slots.problem = event.capacity, 0, ""
            if slots.lost:
                slots.lost = False
                self._order(events.CountRestart())
        else:
            slots.capacity = 0
        match event:
            case events.ReplicaLost(_, why, load_failed):
                slots.failures += load_failed
                slots.problem = why
                self._lose(slots, why)
            case events.ReplicaUnloading():
                slots.unloaded = True
                return
            case events.ReplicaClosed():
                return
        self._dispatch()
        self._order(events.ReportHealth())

    def _lose(self, slots: Slots, why: str) -> None:
        """A worker ended: requests of which no text went out get one more attempt."""
        slots.lost = True
        self.statistics.crashes += slots is self.current
        self._order(events.CountCrash())
        for number in list(slots.running):
            request = self._release(slots, number)
            assert request is not None
            self._order(events.LogLost(request))
            self._stop_counting(request)
            request.crashes += 1
            if request.ending is None and request.crashes > 1:
                text = f"the model's process ended twice while it answered ({why})"
                self._fail(request, Refusal(500, requests.ENGINE_FAILED, text))
            elif request.ending is None and request.frames.begun:
                # As after a restart of the device: a text that changes half-way would be worse.
                text = f"the model's process ended while it answered ({why}); ask again with another id"
                self._fail(request, Refusal(503, requests.INTERRUPTED, text))
            else:
                self._requeue(request, slots)

    # -- switchover ----------------------------------------------------------------------------------------------------

    def _change_route(self, event: events.RouteEvent) -> None:
        match event:
            case events.Paused():
                if self.paused_since is None:
                    self.paused_since = self._now
            case events.Switched(current, draining):
                self._route(current, draining)
                self.statistics = Statistics(seconds_each=self.statistics.seconds_each)
                self.unavailable = False
            case events.Resumed(current):
                self._route(current)
            case events.Stopped(draining):
                self._route(None, draining)
                self.unavailable = False
            case events.DrainTimedOut(slots):
                for number in list(slots.running):
                    self._order(events.CancelRun(slots, number))
                    request = self._release(slots, number)
                    assert request is not None
                    self._stop_counting(request)
                    self._requeue(request, slots)
            case events.DrainEnded(slots):
                self.draining = [each for each in self.draining if each is not slots]
                return
        self._dispatch()
        self._order(events.ReportHealth())

    def _route(self, current: Slots | None, draining: Slots | None = None) -> None:
        self.current, self.paused_since = current, None
        if draining is not None:
            self.draining.append(draining)
