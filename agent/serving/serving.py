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
from typing import Any, Protocol

import msgspec
from msgspec import UNSET

from agent.engine.stepping import FinishEvent, RejectEvent, StepEvent, TokenEvent
from agent.install.ports import SealedBundle, ServingCounters, SwapMode, SwapReport
from agent.serving import requests
from agent.serving.frames import FrameStream
from agent.serving.jobs import QUEUED_AGAIN, Job
from agent.serving.queue import RequestQueue, Waiting
from agent.serving.seat import LoadWorker, Seat
from agent.serving.settings import ServingSettings
from agent.serving.swapping import Swapping
from agent.state.answer_writer import AnswerWriter
from agent.state.answers import Key, Unfinished, Verdict
from agent.telemetry.llm import LlmMeter
from contract.errors import EdgeBundleError, RequestInvalid
from contract.mqtt import messages
from contract.mqtt.messages import ErrorFrame, GenerateRequest, LastFrame
from contract.mqtt.topics import NO_ID, Topics

log = logging.getLogger("edge_agent.serving")

MAX_ATTEMPTS = 3
"""Restarts that a request may survive: one that takes the agent down with it must not do so for ever."""

RETRY_STORE_MS = 5_000
RETRY_NO_MODEL_MS = 30_000
RETRY_ENGINE_MS = 10_000

DEFAULT_SECONDS_EACH = 2.0
"""Assumed for a request until some were answered, for ``retry_after_ms``."""


class Outlet(Protocol):
    """Where frames go; the connection to the broker is one."""

    @property
    def writable(self) -> bool:
        """Whether a frame would leave at once."""
        ...

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, correlation: bytes | None = None) -> int: ...

    def publish_once(self, topic: str, payload: bytes, *, correlation: bytes | None = None) -> None: ...


class Arrival(msgspec.Struct, frozen=True):
    """A request as it came in; ``settle`` acknowledges it to the broker."""

    client: str
    payload: bytes
    settle: Callable[[], None]
    response_topic: str | None = None
    correlation: bytes | None = None
    expiry_seconds: int | None = None


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
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._topics = topics
        self._outlet = outlet
        self._ledger = ledger
        self._meter = meter
        self._on_health = on_health
        self._wall = wall
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        self._queue: RequestQueue[Job] = RequestQueue(settings.queue_limit, settings.client_queue_limit)
        self._jobs: dict[Key, Job] = {}
        self._arriving: dict[Key, _Arriving] = {}
        self._numbers = itertools.count(1)
        self._deliveries: dict[int, Key] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._starting = True
        self._stopping = False
        self._store_failing = False
        self._counted = _Counted()
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
        return len(self._queue) + len(self._arriving)

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
        counted = self._counted
        speed = counted.decode_tokens / counted.decode_seconds if counted.decode_seconds > 0 else None
        return ServingCounters(counted.finished, counted.failed, counted.crashes, speed)

    # -- starting and stopping -----------------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Take up what an earlier run of the agent left behind; before the first request comes in."""
        for key, last, correlation in await self._ledger.undelivered():
            self._deliver(key, last, correlation)
        for left in await self._ledger.unfinished():
            self._take_up(left)
        self._schedule()

    def _take_up(self, left: Unfinished) -> None:
        try:
            _, request = messages.parse_request(left.request, left.correlation)
        except RequestInvalid:  # an older agent accepted what this one does not
            request = GenerateRequest(prompt=" ")
        job = self._make_job(left.key, request, left.correlation, attempt=left.attempt)
        if left.deadline_at is not None:
            job.deadline = self._now() + left.deadline_at - self._wall()
        self._jobs[left.key] = job
        if left.streamed or left.attempt > MAX_ATTEMPTS:
            job.frames.attempt = left.attempt
            why = "the device restarted while it answered" if left.streamed else "the device restarted too often"
            self._fail(job, 503, requests.INTERRUPTED, f"{why}; ask again with another id")
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
        try:
            request_id, request = messages.parse_request(arrival.payload, arrival.correlation)
            reply = self._topics.reply(arrival.client, request_id)
            if arrival.response_topic not in (None, "", reply):
                raise RequestInvalid(f"the Response Topic must be {reply}", field="response_topic")
        except RequestInvalid as error:
            request_id = messages.salvage_request_id(arrival.payload, arrival.correlation) or NO_ID
            self._refuse(Key(arrival.client, request_id), arrival, error.code, error.kind, error.message, error.field)
            return
        key = Key(arrival.client, request_id)
        deadline = self._deadline_seconds(request, arrival)
        future = self._ledger.accept(
            key,
            messages.request_fingerprint(arrival.payload),
            arrival.payload,
            deadline_at=None if deadline is None else self._wall() + deadline,
            correlation=arrival.correlation,
            may_insert=self._turned_away(arrival.client) is None,
        )
        self._arriving.setdefault(key, _Arriving()).count += 1
        future.add_done_callback(partial(self._decided, key, request, arrival, deadline))

    @staticmethod
    def _deadline_seconds(request: GenerateRequest, arrival: Arrival) -> float | None:
        limits = [] if request.deadline_ms is UNSET else [request.deadline_ms / 1000]
        if arrival.expiry_seconds is not None:
            limits.append(float(arrival.expiry_seconds))
        return min(limits, default=None)

    def _turned_away(self, client: str) -> tuple[int, str, str, int] | None:
        """Why a new request cannot be taken now: code, type, message, when to try again (ms)."""
        seat = self._swapping.seat
        if self._stopping:
            return 503, "stopping", "the device is stopping; try again", RETRY_ENGINE_MS
        if seat is None and not self._starting and not self._swapping.holding:
            return 503, requests.NO_MODEL, "no model is installed on this device yet", RETRY_NO_MODEL_MS
        if seat is not None and seat.hopeless and not self._swapping.holding:
            return 503, requests.ENGINE_UNAVAILABLE, "the model cannot be loaded at the moment", RETRY_ENGINE_MS
        if not self._queue.has_room(client, len(self._arriving)):
            return 429, requests.QUEUE_FULL, "too many requests wait; try again later", self._retry_after_ms()
        return None

    def _retry_after_ms(self) -> int:
        slots = sum(seat.worker.facts.slots for seat in self._swapping.seats if seat.worker is not None) or 1
        return int(1000 * max(0.5, self._counted.seconds_each * (len(self._queue) / 2 + 1) / slots))

    def _decided(
        self,
        key: Key,
        request: GenerateRequest,
        arrival: Arrival,
        deadline: float | None,
        future: asyncio.Future[Verdict],
    ) -> None:
        self._judge(key, request, arrival, deadline, future)
        arriving = self._arriving[key]
        arriving.count -= 1
        if not arriving.count:
            del self._arriving[key]
            for control in arriving.controls:
                control()

    def _judge(
        self,
        key: Key,
        request: GenerateRequest,
        arrival: Arrival,
        deadline: float | None,
        future: asyncio.Future[Verdict],
    ) -> None:
        """Do what the ledger's verdict on a request asks for."""
        if (error := future.exception()) is not None:
            self._note_store(error)
            text = "the device cannot store requests at the moment; try again later"
            self._refuse(key, arrival, 503, requests.STORE_UNAVAILABLE, text, retry_after_ms=RETRY_STORE_MS)
            return
        self._note_store(None)
        verdict = future.result()
        if verdict.kind == "answered" and verdict.last is not None:
            self._meter.redelivered += 1
            self._deliver(key, verdict.last, arrival.correlation)
        elif verdict.kind == "conflict":
            self._refuse(key, arrival, 409, requests.ID_CONFLICT, "this id belongs to another request", "id")
            return
        elif verdict.kind == "gone":
            text = "this request was answered, and its answer is no longer kept"
            self._refuse(key, arrival, 410, requests.EXPIRED, text, "id")
            return
        elif verdict.kind == "refused":
            code, kind, text, retry = self._turned_away(key.client) or (
                429, requests.QUEUE_FULL, "too many requests wait; try again later", self._retry_after_ms(),
            )  # fmt: skip
            self._refuse(key, arrival, code, kind, text, retry_after_ms=retry)
            return
        elif key in self._jobs:
            self._meter.redelivered += 1
        else:
            # New; or known to the ledger only, because its answer could not be stored: then it is run again.
            job = self._make_job(key, request, arrival.correlation)
            job.deadline = None if deadline is None else job.accepted + deadline
            self._supersede(job)
            self._jobs[key] = job
            self._enqueue(job)
        arrival.settle()
        self._pump()

    def _make_job(self, key: Key, request: GenerateRequest, correlation: bytes | None, attempt: int = 1) -> Job:
        now = self._now()
        frames = FrameStream(self._settings.stream_interval_ms / 1000, stream=request.stream, now=now)
        return Job(
            key, request, frames, accepted=now, deadline=None, correlation=correlation, attempt=attempt,
        )  # fmt: skip

    def _enqueue(self, job: Job) -> None:
        job.number = next(self._numbers)
        priority = self._settings.priority_of(job.key.client, job.request.priority)
        if job.attempt > 1:
            priority = QUEUED_AGAIN
        self._queue.put(Waiting(job.key.client, job, priority, job.accepted, job.number, job.deadline))
        job.frames.position = self._queue.position(job.number, self._now()) + self.active

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
        if key in self._arriving:
            # It is on its way through the ledger: it is acted upon when it is here.
            self._arriving[key].controls.append(partial(self._act, key, control, changes))
        else:
            self._act(key, control, changes)

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
            if job.running and job.marked == "yes" and job.frames.text and self._outlet.writable:
                self._send_frame(job, job.frames.snapshot(self._now()))
            return
        future = self._ledger.look_up(key)

        def found(done: asyncio.Future[Verdict]) -> None:
            if done.exception() is not None:
                return
            verdict = done.result()
            if verdict.last is not None:
                self._deliver(key, verdict.last, None)
            elif verdict.kind == "gone":
                self._send_error(key, 410, requests.EXPIRED, "its answer is no longer kept", "id")
            elif verdict.kind == "refused":
                self._send_error(key, 404, requests.UNKNOWN_REQUEST, "no request with this id is known", "id")

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
                self._turn_out_waiting(requests.NO_MODEL, "no model is installed on this device", RETRY_NO_MODEL_MS)
            return
        if seat.hopeless:
            text = "the model cannot be loaded at the moment"
            self._turn_out_waiting(requests.ENGINE_UNAVAILABLE, text, RETRY_ENGINE_MS)
        while not self._stopping and seat.free and (job := self._queue.take(self._now())) is not None:
            job.running = True
            job.frames.begin(job.attempt, seat.bundle.manifest.reference, self._now())
            seat.admit(job, requests.to_generation(job.number, job.key.client, job.request))
        self._schedule()

    def _turn_out_waiting(self, kind: str, text: str, retry_after_ms: int) -> None:
        for job in list(self._queue):
            self._queue.remove(job.number)
            self._fail(job, 503, kind, text, retry_after_ms=retry_after_ms)

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
        self._counted.crashes += 1
        self._meter.crashes += 1
        for job in lost:
            job.lost_its_worker()
            if job.ending is not None:
                self._finish(job, job.frames.last(job.ending, self._now()))
            elif job.crashes > 1:
                text = f"the model's process ended twice while it answered ({why})"
                self._fail(job, 500, requests.ENGINE_FAILED, text)
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
            self._fail(job, event.code, event.kind, event.message, field=event.field, ours=False)
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
        self._counted.finish(event.completion_tokens, decode, now - started)
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
        elif job.marked == "yes" and self._outlet.writable:
            frame = job.frames.take(self._now())
            if frame is None:
                self._schedule(due)
            else:
                self._send_frame(job, frame)

    def _marked(self, job: Job, number: int, future: asyncio.Future[None]) -> None:
        self._note_store(future.exception())
        # Without the note no piece may leave; the last frame still will.
        if future.exception() is None and job.number == number:
            job.marked = "yes"
            self._flush(job)

    def _send_frame(self, job: Job, frame: messages.Frame) -> None:
        self._meter.frames += 1
        topic = self._topics.reply(job.key.client, job.key.id)
        self._outlet.publish_once(topic, messages.encode(frame), correlation=job.correlation)

    def on_writable(self) -> None:
        """The connection takes frames again."""
        for seat in self._swapping.seats:
            for job in seat.jobs.values():
                self._flush(job)

    def on_delivered(self, number: int) -> None:
        """The broker has what :meth:`Outlet.publish` numbered."""
        key = self._deliveries.pop(number, None)
        if key is not None:
            self._ledger.delivered(key)

    # -- ends ----------------------------------------------------------------------------------------------------------

    def _fail(
        self,
        job: Job,
        code: int,
        kind: str,
        text: str,
        *,
        field: str | None = None,
        retry_after_ms: int | None = None,
        ours: bool = True,
    ) -> None:
        self._counted.failed += ours
        self._meter.finish(kind, total_seconds=self._now() - job.accepted)
        frame = requests.error_frame(
            job.frames.sequence, code, kind, text, field=field, retry_after_ms=retry_after_ms, attempt=job.attempt
        )
        self._finish(job, frame)

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
            self._deliver(job.key, payload if done.exception() else done.result(), job.correlation)

        future.add_done_callback(stored)

    def _deliver(self, key: Key, last: bytes, correlation: bytes | None) -> None:
        topic = self._topics.reply(key.client, key.id)
        self._deliveries[self._outlet.publish(topic, last, correlation=correlation)] = key

    def _refuse(  # noqa: PLR0917 # code, type, text and field belong together
        self,
        key: Key,
        arrival: Arrival,
        code: int,
        kind: str,
        text: str,
        field: str | None = None,
        retry_after_ms: int | None = None,
    ) -> None:
        """Turn a request away; nothing of it is kept, so that it may come again."""
        self._send_error(key, code, kind, text, field, retry_after_ms, arrival.correlation)
        # On one connection the error frame goes out before the acknowledgement: it cannot be lost alone.
        arrival.settle()

    def _send_error(  # noqa: PLR0917 # as above
        self,
        key: Key,
        code: int,
        kind: str,
        text: str,
        field: str | None = None,
        retry_after_ms: int | None = None,
        correlation: bytes | None = None,
    ) -> None:
        self._meter.refuse(kind)
        frame = requests.error_frame(0, code, kind, text, field=field, retry_after_ms=retry_after_ms)
        self._outlet.publish(self._topics.reply(key.client, key.id), messages.encode(frame), correlation=correlation)

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
                if job.marked == "yes" and self._outlet.writable:
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
            self._counted = _Counted(seconds_each=self._counted.seconds_each)
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


class _Arriving:
    """Deliveries of one request that the ledger has not judged yet, and what its client wants done with it."""

    def __init__(self) -> None:
        self.count = 0
        self.controls: list[Callable[[], None]] = []


class _Counted:
    """Since the last swap. ``seconds_each`` is a moving average of how long a request ran."""

    def __init__(self, seconds_each: float = DEFAULT_SECONDS_EACH) -> None:
        self.finished = 0
        self.failed = 0
        self.crashes = 0
        self.decode_tokens = 0
        self.decode_seconds = 0.0
        self.seconds_each = seconds_each

    def finish(self, tokens: int, decode_seconds: float | None, run_seconds: float) -> None:
        self.finished += 1
        self.seconds_each += 0.1 * (run_seconds - self.seconds_each)
        if decode_seconds is not None and tokens > 1:
            self.decode_tokens += tokens - 1
            self.decode_seconds += decode_seconds
