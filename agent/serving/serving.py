"""Requests in, one answer each out: ledger, queue, worker, frames.

The order of things is what the guarantee rests on: a request is committed to the ledger, then acknowledged to the
broker, then queued; pieces of the answer leave only once the ledger knows that they may have; the last frame leaves
only once its bytes are committed. Whatever is cut in between, the next start or redelivery goes on from there.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from msgspec import UNSET

from agent.engine.stepping import FinishEvent, RejectEvent, StepEvent, TokenEvent
from agent.install.ports import SealedBundle, ServingCounters, SwapMode, SwapReport
from agent.serving import requests
from agent.serving.counting import Counting
from agent.serving.frames import FrameStream
from agent.serving.intake import GONE, Accepted, Arrival, Intake
from agent.serving.jobs import QUEUED_AGAIN, Job
from agent.serving.queue import RequestQueue, Waiting
from agent.serving.replies import Outlet, Replies
from agent.serving.requests import Refusal
from agent.serving.seat import LoadWorker, Seat
from agent.serving.settings import ServingSettings
from agent.serving.swapping import Swapping
from agent.state.answer_writer import AnswerWriter
from agent.state.answers import Key, Unfinished, Verdict
from agent.telemetry.llm import LlmMeter
from contract.errors import EdgeBundleError, RequestInvalid
from contract.mqtt import messages
from contract.mqtt.messages import ErrorFrame, GenerateRequest, LastFrame
from contract.mqtt.topics import Topics

log = logging.getLogger("edge_agent.serving")

MAX_ATTEMPTS = 3
"""Restarts that a request may survive: one that takes the agent down with it must not do so for ever."""

RETRY_ENGINE_MS = 10_000
RETRY_NO_MODEL_MS = 30_000

NO_MODEL = Refusal(503, requests.NO_MODEL, "no model is installed on this device", retry_after_ms=RETRY_NO_MODEL_MS)
ENGINE_UNAVAILABLE = Refusal(
    503, requests.ENGINE_UNAVAILABLE, "the model cannot be loaded at the moment", retry_after_ms=RETRY_ENGINE_MS
)
UNKNOWN = Refusal(404, requests.UNKNOWN_REQUEST, "no request with this id is known", "id")


class Serving:
    """Implements :class:`agent.install.ports.Serving`. All methods run in the event loop; none blocks."""

    def __init__(
        self,
        settings: ServingSettings,
        topics: Topics,
        outlet: Outlet,
        *,
        ledger: AnswerWriter,
        load: LoadWorker,
        meter: LlmMeter,
        on_health: Callable[[], None] = lambda: None,
        on_load: Callable[[int], None] = lambda _queued: None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._replies = Replies(outlet, topics, ledger, meter)
        self._ledger = ledger
        self._meter = meter
        self._on_health = on_health
        self._on_load = on_load
        self._wall = wall
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        self._queue: RequestQueue[Job] = RequestQueue(settings.queue_limit, settings.client_queue_limit)
        self._jobs: dict[Key, Job] = {}
        self._numbers = itertools.count(1)
        self._timer: asyncio.TimerHandle | None = None
        self._starting = True
        self._stopping = False
        self._store_failing = False
        self._counting = Counting()
        self._intake = Intake(
            ledger,
            self._replies,
            meter,
            refusal=self._refusal,
            knows=lambda key: key in self._jobs,
            on_accepted=self._on_accepted,
            on_store=self._note_store,
            wall=wall,
        )
        self._swapping = Swapping(self._make_seat(load), settings.drain_seconds, self._now)

    # -- what others see -----------------------------------------------------------------------------------------------

    @property
    def bundle(self) -> SealedBundle | None:
        seat = self._swapping.seat
        return None if seat is None else seat.bundle

    @property
    def seat(self) -> Seat | None:
        return self._swapping.seat

    @property
    def seats(self) -> list[Seat]:
        """Every place with a worker: the current one, and one that finishes its last answers."""
        return self._swapping.seats

    @property
    def queued(self) -> int:
        return len(self._queue) + len(self._intake)

    @property
    def active(self) -> int:
        return sum(len(seat.jobs) for seat in self._swapping.seats)

    @property
    def reasons(self) -> list[str]:
        """Why requests are not being answered now; empty when they are."""
        found = []
        seat = self._swapping.seat
        if seat is None:
            found.append("loading" if self._starting or self._swapping.holding else requests.NO_MODEL)
        elif seat.worker is None:
            found.append("swapping" if self._swapping.holding else requests.ENGINE_UNAVAILABLE)
        if self._store_failing:
            found.append(requests.STORE_UNAVAILABLE)
        if self._stopping:
            found.append("stopping")
        return found

    def counters(self) -> ServingCounters:
        return self._counting.counters()

    # -- starting and stopping -----------------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Take up what an earlier run of the agent left behind; before the first request comes in."""
        for key, last, correlation in await self._ledger.undelivered():
            self._replies.deliver(key, last, correlation)
        for left in await self._ledger.unfinished():
            self._take_up(left)
        self._schedule()

    def _take_up(self, left: Unfinished) -> None:
        unreadable: RequestInvalid | None = None
        try:
            _, request = messages.parse_request(left.request, left.correlation)
        except RequestInvalid as error:
            # An older agent accepted what this one does not.
            request, unreadable = GenerateRequest(), error
        job = self._make_job(left.key, request, left.correlation, attempt=left.attempt)
        if left.deadline_at is not None:
            job.deadline = self._now() + left.deadline_at - self._wall()
        self._jobs[left.key] = job
        if unreadable is not None:
            self._fail(job, Refusal(unreadable.code, unreadable.kind, unreadable.message, unreadable.field))
        elif left.streamed or left.attempt > MAX_ATTEMPTS:
            job.frames.attempt = left.attempt
            why = "the device restarted while it answered" if left.streamed else "the device restarted too often"
            self._fail(job, Refusal(503, requests.INTERRUPTED, f"{why}; ask again with another id"))
        else:
            self._enqueue(job)

    def settled(self) -> None:
        """Start-up is over: without a model, requests are turned away from now on."""
        self._starting = False
        self._pump()
        self._on_health()

    async def stop(self) -> None:
        """Let running answers finish for a while, then end the workers; the ledger keeps what is left."""
        self._stopping = True
        self._on_health()
        await self._swapping.finish_running(self._settings.stop_seconds)
        if self._timer is not None:
            self._timer.cancel()
        await self._swapping.close()

    # -- requests ------------------------------------------------------------------------------------------------------

    def request(self, arrival: Arrival) -> None:
        """A request came in from the broker."""
        self._intake.take(arrival)

    def _refusal(self, client: str) -> Refusal | None:
        """Why a new request cannot be taken now."""
        seat = self._swapping.seat
        # While we stop, requests are still accepted: they run at the next start.
        if seat is None and not self._starting and not self._swapping.holding:
            return NO_MODEL
        if seat is not None and seat.hopeless and not self._swapping.holding:
            return ENGINE_UNAVAILABLE
        if not self._queue.has_room(client, len(self._intake)):
            wait = self._retry_after_ms()
            return Refusal(429, requests.QUEUE_FULL, "too many requests wait; try again later", retry_after_ms=wait)
        return None

    def _retry_after_ms(self) -> int:
        slots = sum(seat.worker.facts.slots for seat in self._swapping.seats if seat.worker is not None) or 1
        return int(1000 * max(0.5, self._counting.seconds_each * (len(self._queue) / 2 + 1) / slots))

    def _on_accepted(self, accepted: Accepted) -> None:
        job = self._make_job(accepted.key, accepted.request, accepted.correlation)
        if accepted.deadline_seconds is not None:
            job.deadline = job.accepted + accepted.deadline_seconds
        self._supersede(job)
        self._jobs[accepted.key] = job
        self._enqueue(job)
        self._pump()

    def _make_job(self, key: Key, request: GenerateRequest, correlation: bytes | None, attempt: int = 1) -> Job:
        now = self._now()
        frames = FrameStream(self._settings.stream_interval_ms / 1000, stream=request.stream, now=now)
        return Job(key, request, frames, accepted=now, deadline=None, correlation=correlation, attempt=attempt)

    def _enqueue(self, job: Job) -> None:
        job.number = next(self._numbers)
        priority = self._settings.priority_of(job.key.client, job.request.priority)
        if job.attempt > 1:
            priority = QUEUED_AGAIN
        self._queue.put(Waiting(job.key.client, job, priority, job.accepted, job.number, job.deadline))
        job.frames.position = self._queue.position(job.number, self._now()) + self.active
        self._on_load(len(self._queue))

    def _supersede(self, newer: Job) -> None:
        """The newer request with the same key wins over older ones of its client."""
        name = newer.request.supersede_key
        if name is UNSET:
            return
        for job in list(self._jobs.values()):
            if job.key.client == newer.key.client and job.request.supersede_key == name:
                self._end_early(job, "cancelled")

    # -- control -------------------------------------------------------------------------------------------------------

    def control(self, client: str, payload: bytes) -> None:
        """A client acts on a request of its own; on anybody else's it has no effect, as its name is in the key."""
        try:
            control = messages.parse_control(payload)
            changes = {} if control.set is UNSET else requests.check_changes(control.set)
        except RequestInvalid as error:
            self._meter.refuse("control")
            log.info("a control message of %s is not valid: %s", client, error.message)
            return
        key = Key(client, control.id)
        act = partial(self._act, key, control, changes)
        if not self._intake.defer(key, act):
            act()

    def _act(self, key: Key, control: messages.ControlRequest, changes: dict[str, Any]) -> None:
        job = self._jobs.get(key)
        if control.op == "resume":
            self._resume(key, job)
        elif job is None:
            return
        elif control.op == "cancel":
            self._end_early(job, "cancelled")
        elif job.running and (seat := self._seat_of(job)) is not None and seat.worker is not None:
            seat.worker.update(job.number, changes)

    def _resume(self, key: Key, job: Job | None) -> None:
        if job is not None:
            if job.running and job.marked == "yes" and job.frames.text and self._replies.writable:
                self._replies.piece(job, job.frames.snapshot(self._now()))
            return
        future = self._ledger.look_up(key)

        def found(done: asyncio.Future[Verdict]) -> None:
            if done.exception() is not None:
                return
            verdict = done.result()
            if verdict.last is not None:
                self._replies.deliver(key, verdict.last, None)
            elif verdict.kind == "gone":
                self._replies.error(key, GONE, None)
            elif verdict.kind == "refused":
                self._replies.error(key, UNKNOWN, None)

        future.add_done_callback(found)

    def _end_early(self, job: Job, why: str) -> None:
        """Cancel ``job`` wherever it is; ``why`` is ``cancelled`` or ``deadline``."""
        if job.ending is not None:
            return
        job.ending = "deadline" if why == "deadline" else "cancelled"
        if not job.running:
            self._queue.remove(job.number)
            job.frames.bundle = job.frames.bundle or self._reference()
            self._finish(job, job.frames.last(job.ending, self._now()))
        elif (seat := self._seat_of(job)) is not None and seat.worker is not None:
            seat.worker.cancel(job.number)

    def _reference(self) -> str:
        return "" if self.bundle is None else self.bundle.manifest.reference

    def _seat_of(self, job: Job) -> Seat | None:
        return next((seat for seat in self._swapping.seats if job.number in seat.jobs), None)

    # -- running -------------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Give free places to those who wait."""
        seat = self._swapping.seat
        if seat is None or self._swapping.holding:
            if seat is None and not self._starting and not self._swapping.holding:
                self._turn_out_waiting(NO_MODEL)
            return
        if seat.hopeless:
            self._turn_out_waiting(ENGINE_UNAVAILABLE)
        while not self._stopping and seat.free and (job := self._queue.take(self._now())) is not None:
            job.running = True
            job.frames.begin(job.attempt, seat.bundle.manifest.reference, self._now())
            seat.admit(job, requests.to_generation(job.number, job.key.client, job.request))
        self._on_load(len(self._queue))
        self._schedule()

    def _turn_out_waiting(self, refusal: Refusal) -> None:
        for job in list(self._queue):
            self._queue.remove(job.number)
            self._fail(job, refusal)

    def _make_seat(self, load: LoadWorker) -> Callable[[SealedBundle], Seat]:
        return lambda bundle: Seat(
            bundle, load, on_event=self._on_event, on_lost=self._on_lost, on_ready=self._on_ready
        )  # fmt: skip

    def _on_ready(self, _seat: Seat) -> None:
        self._pump()
        self._on_health()

    def _on_lost(self, seat: Seat, why: str) -> None:
        """A worker died (or its heir does not load): its requests get one more attempt each."""
        lost = [job for number in list(seat.jobs) if (job := seat.release(number)) is not None]
        self._counting.crashes += 1
        self._meter.crashes += 1
        for job in lost:
            job.lost_its_worker()
            if job.ending is not None:
                self._finish(job, job.frames.last(job.ending, self._now()))
            elif job.crashes > 1:
                text = f"the model's process ended twice while it answered ({why})"
                self._fail(job, Refusal(500, requests.ENGINE_FAILED, text))
            else:
                self._enqueue(job)
        self._pump()
        self._on_health()

    def _on_event(self, seat: Seat, event: StepEvent) -> None:
        job = seat.jobs.get(event.request)
        if job is None:
            return
        if isinstance(event, TokenEvent):
            job.frames.feed(event.text, event.tokens, self._now())
            if event.logprobs:
                job.logprobs.extend(event.logprobs)
            self._flush(job)
            return
        seat.release(event.request)
        if isinstance(event, FinishEvent):
            self._on_finish(job, event)
        elif isinstance(event, RejectEvent):
            self._fail(job, Refusal(event.code, event.kind, event.message, event.field), ours=False)
        self._pump()

    def _on_finish(self, job: Job, event: FinishEvent) -> None:
        now = self._now()
        if event.text:
            job.frames.feed(event.text, event.completion_tokens, now)
        reason = job.ending if job.ending is not None and event.reason == "cancelled" else event.reason
        last = job.frames.last(
            reason,
            now,
            prompt_tokens=event.prompt_tokens,
            completion_tokens=event.completion_tokens,
            cached_tokens=event.cached_tokens,
            logprobs=list(job.logprobs) if job.request.logprobs else None,
        )
        started, first = job.frames.times()
        decode = None if first is None else now - first
        self._counting.finish(event.completion_tokens, decode, now - started)
        self._meter.finish(
            reason,
            prompt_tokens=event.prompt_tokens,
            completion_tokens=event.completion_tokens,
            cached_tokens=event.cached_tokens,
            queue_seconds=started - job.accepted,
            first_token_seconds=None if first is None else first - job.accepted,
            decode_seconds=decode,
            total_seconds=now - job.accepted,
        )
        self._finish(job, last)

    # -- frames --------------------------------------------------------------------------------------------------------

    def _flush(self, job: Job) -> None:
        """Send what is due of ``job``, or see to it that it is sent when it is."""
        due = job.frames.due_at()
        if due is None or not job.running:
            return
        if job.marked == "no":
            job.marked = "asked"
            future = self._ledger.streaming(job.key, job.attempt)
            future.add_done_callback(partial(self._marked, job, job.number))
        elif job.marked == "yes" and self._replies.writable:
            frame = job.frames.take(self._now())
            if frame is None:
                self._schedule(due)
            else:
                self._replies.piece(job, frame)

    def _marked(self, job: Job, number: int, future: asyncio.Future[None]) -> None:
        self._note_store(future.exception())
        # Without the note no piece may leave; the last frame still will.
        if future.exception() is None and job.number == number:
            job.marked = "yes"
            self._flush(job)

    def on_writable(self) -> None:
        """The connection takes frames again."""
        for seat in self._swapping.seats:
            for job in seat.jobs.values():
                self._flush(job)

    def on_delivered(self, number: int) -> None:
        """The broker has what :meth:`Outlet.publish` numbered."""
        self._replies.delivered(number)

    # -- ends ----------------------------------------------------------------------------------------------------------

    def _fail(self, job: Job, refusal: Refusal, *, ours: bool = True) -> None:
        """End ``job`` with an error; ``ours`` when the client is not to blame."""
        self._counting.failed += ours
        self._meter.finish(refusal.kind, total_seconds=self._now() - job.accepted)
        self._finish(job, requests.error_frame(job.frames.sequence, refusal, job.attempt))

    def _finish(self, job: Job, last: LastFrame | ErrorFrame) -> None:
        """Commit the one result of ``job``, then send it."""
        job.running = False
        payload = messages.encode(last)
        future = self._ledger.answered(job.key, payload)

        def stored(done: asyncio.Future[bytes]) -> None:
            self._note_store(done.exception())
            if self._jobs.get(job.key) is job:
                del self._jobs[job.key]
            # An answer that cannot be stored is still better sent than kept.
            self._replies.deliver(job.key, payload if done.exception() else done.result(), job.correlation)

        future.add_done_callback(stored)

    def _note_store(self, error: BaseException | None) -> None:
        failing = error is not None
        if failing and not isinstance(error, EdgeBundleError):
            log.error("the ledger failed", exc_info=error)
        if failing != self._store_failing:
            self._store_failing = failing
            self._on_health()

    # -- time ----------------------------------------------------------------------------------------------------------

    def _schedule(self, at: float | None = None) -> None:
        """Wake up for the next frame or deadline."""
        times = [self._queue.next_deadline(), at]
        for seat in self._swapping.seats:
            for job in seat.jobs.values():
                times.append(job.deadline if job.ending is None else None)
                if job.marked == "yes" and self._replies.writable:
                    times.append(job.frames.due_at())
        due = min((when for when in times if when is not None), default=None)
        if due is None:
            return
        if self._timer is not None:
            if not self._timer.cancelled() and self._now() < self._timer.when() <= due:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self._now()
        for job in self._queue.expired(now):
            self._end_early(job, "deadline")
        for seat in self._swapping.seats:
            for job in list(seat.jobs.values()):
                if job.deadline is not None and job.deadline <= now:
                    self._end_early(job, "deadline")
                else:
                    self._flush(job)
        self._schedule()

    # -- swapping ------------------------------------------------------------------------------------------------------

    async def swap(self, bundle: SealedBundle, mode: SwapMode) -> SwapReport:
        """Serve ``bundle`` from now on, losing no accepted request; on failure the old one serves on.

        Raises:
            EngineFailed: the new model does not load or crashed while loading.
        """
        self._on_health()
        try:
            hold = await self._swapping.swap(bundle, mode, self._run_again)
            self._counting = Counting(seconds_each=self._counting.seconds_each)
            self._meter.swaps += 1
            waited = max((self._now() - max(hold, job.accepted) for job in self._queue), default=0.0) if hold else 0.0
            return SwapReport(mode, round(waited * 1000, 3))
        finally:
            self._pump()
            self._on_health()

    async def withdraw(self) -> None:
        """Serve nothing from now on; running answers may finish, those that wait are turned away."""
        await self._swapping.withdraw(self._run_again)
        self._pump()
        self._on_health()

    def _run_again(self, job: Job) -> None:
        """A running request did not finish in time for a draining swap: the new model answers it."""
        job.attempt += 1
        job.running = False
        job.marked = "no"
        job.logprobs.clear()
        self._enqueue(job)
