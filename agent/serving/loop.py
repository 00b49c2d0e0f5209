"""The one loop of serving: hands events to the scheduler and carries out its commands."""

from __future__ import annotations

import asyncio
import logging

from msgspec import Struct

from agent.engine.interface import StepEvent, TokenEvent
from agent.observers import Observers
from agent.serving import events, requests
from agent.serving.active_request import ActiveRequest
from agent.serving.completion import Completion, Stored
from agent.serving.replica import Replica
from agent.serving.request_log import RequestLog
from agent.serving.scheduler import Scheduler
from agent.serving.settlement import FAULT
from agent.serving.slots import Slots
from agent.serving.store_health import StoreHealth
from agent.serving.stream_sender import StreamSender
from agent.telemetry.llm import LlmMeter

log = logging.getLogger("edge_agent.serving")

POSITION_UPDATE_INTERVAL = 3.0
"""Seconds between two position updates of a waiting request: often enough for a person, and 128 cost hardly a thing."""


class Instruments(Struct, frozen=True):
    """Where it is written down what happens to requests."""

    meter: LlmMeter
    request_log: RequestLog
    store_health: StoreHealth


class Loop:
    """All methods run in the event loop; none blocks."""

    def __init__(
        self,
        scheduler: Scheduler,
        completion: Completion,
        sender: StreamSender,
        instruments: Instruments,
        *,
        on_health: Observers[[]],
        on_load: Observers[[int]],
    ) -> None:
        self._scheduler = scheduler
        self._completion = completion
        self._sender = sender
        self._meter = instruments.meter
        self._log = instruments.request_log
        self._store_health = instruments.store_health
        self._on_health = on_health
        self._on_load = on_load
        self._replicas: dict[Slots, Replica] = {}
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        self._timer: asyncio.TimerHandle | None = None
        self._next_positions: float | None = None

    # -- events --------------------------------------------------------------------------------------------------------

    def handle(self, event: events.Event) -> None:
        """``event`` happened: carry out the scheduler's commands."""
        for command in self._scheduler.handle(event, self._now()):
            try:
                self._carry_out(command)
            except Exception:
                # One request must not keep the others waiting.
                log.exception("a request could not be dealt with")
                self._give_up(command)
        self.note_load()
        self._schedule()

    def note_load(self) -> None:
        """How many wait or run may have changed."""
        self._on_load.notify(len(self._scheduler.queue))

    def on_worker_event(self, replica: Replica, event: StepEvent) -> None:
        """The worker of ``replica`` sent an event of a request."""
        if not isinstance(event, TokenEvent):
            self.handle(events.RunEnded(replica.slots, event))
            return
        now = self._now()
        request = self._scheduler.add_tokens(replica.slots, event, now)
        if request is not None:
            due = self._sender.flush(request, now)
            if due is not None:
                self._schedule_wakeup(due)

    def on_writable(self) -> None:
        """The connection takes frames again."""
        for request in self._scheduler.running:
            self._sender.flush(request, self._now())
        if any(request.frames.last_position is None for request in self._scheduler.queue):
            self._sender.send_positions()
        self._schedule()

    def attach(self, replica: Replica) -> None:
        """Commands for the slots of ``replica`` go to it from now on."""
        self._replicas[replica.slots] = replica

    def detach(self, replica: Replica) -> None:
        """It is closed."""
        self._replicas.pop(replica.slots, None)

    # -- commands ------------------------------------------------------------------------------------------------------

    def _carry_out(self, command: events.Command) -> None:
        if isinstance(command, events.RunCommand):
            self._send_to_replica(command)
        elif isinstance(command, events.EndCommand):
            self._complete(command)
        else:
            self._report(command)

    def _send_to_replica(self, command: events.RunCommand) -> None:
        replica = self._replicas.get(command.slots)
        if replica is None:
            # Closed: what ran there is elsewhere, or over.
            if isinstance(command, events.Start):
                raise LookupError(f"{command.slots.reference} is closed")
            return
        match command:
            case events.Start(request):
                self._start(request, replica)
            case events.CancelRun(_, number):
                if replica.worker is not None:
                    replica.worker.cancel(number)
            case events.UpdateRun(_, number, changes):
                if replica.worker is not None:
                    replica.worker.update(number, changes)
            case events.LoadModel():
                replica.load()
            case events.NoteIdle():
                replica.note_idle()

    def _complete(self, command: events.EndCommand) -> None:
        match command:
            case events.Finish(request, event):
                stored = self._completion.finish(request, event)
            case events.EndEarly(request, reason):
                stored = self._completion.end_early(request, reason)
            case events.Fail(request, refusal):
                stored = self._completion.fail(request, refusal)
        self._when_stored(request, stored)

    def _report(self, command: events.Report) -> None:
        match command:
            case events.SendPosition(request):
                self._sender.send_position(request)
            case events.ReportFault(request, error):
                log.error("a request could not be started", exc_info=error)
                self.handle(events.RequestFailed(request, FAULT))
            case events.LogLost(request):
                self._log.lost(request)
            case events.CountCrash():
                self._meter.crashes += 1
            case events.CountRestart():
                self._meter.restarts += 1
            case events.ReportHealth():
                self._on_health.notify()

    def _start(self, request: ActiveRequest, replica: Replica) -> None:
        """Give ``request`` to the worker of ``replica``."""
        assert replica.worker is not None
        manifest = replica.bundle.manifest
        self._log.began(request, replica.worker.pid, manifest.reference)
        replica.note_busy()
        replica.worker.admit(
            requests.to_generation(
                request.number,
                request.key.client,
                request.params,
                request.changes,
                manifest.behaviour,
                settings=self._scheduler.settings,
                deadline_seconds=None if request.deadline is None else max(0.0, request.deadline - self._now()),
            )
        )

    def _give_up(self, command: events.Command) -> None:
        """``command`` could not be carried out: the request that it is about fails."""
        match command:
            case events.Finish(request) | events.EndEarly(request) | events.Fail(request):
                # Its end is decided already; what failed is how it was to be sent.
                self._when_stored(request, self._completion.fail(request, FAULT))
            case events.Start(request) | events.SendPosition(request):
                self.handle(events.RequestFailed(request, FAULT))

    def _when_stored(self, request: ActiveRequest, stored: Stored) -> None:
        def on_stored(done: Stored) -> None:
            self._store_health.note(done.exception())
            self.handle(events.ResultStored(request))

        stored.add_done_callback(on_stored)

    # -- time ----------------------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        """Wake up for the next frame, position or deadline."""
        if len(self._scheduler.queue) and self._next_positions is None:
            self._next_positions = self._now() + POSITION_UPDATE_INTERVAL
        times = (self._scheduler.next_deadline(), self._sender.next_due(), self._next_positions)
        due = min((when for when in times if when is not None), default=None)
        if due is not None:
            self._schedule_wakeup(due)

    def _schedule_wakeup(self, due: float) -> None:
        timer = self._timer
        if timer is not None:
            if timer.when() <= due:
                return
            timer.cancel()
        self._timer = self._loop.call_at(due, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.handle(events.TimePassed())
        for request in self._scheduler.running:
            self._sender.flush(request, self._now())
        if self._next_positions is not None and self._now() >= self._next_positions:
            self._next_positions = None
            self._sender.send_positions()
        self._schedule()

    def close(self) -> None:
        """Wake up no more."""
        if self._timer is not None:
            self._timer.cancel()
