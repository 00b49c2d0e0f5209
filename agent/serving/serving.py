"""Requests in, one answer each out: ledger, queue, worker, frames.

The order of things is what the guarantee rests on: a request is committed to the ledger, then acknowledged to the
broker, then queued; pieces of the answer leave only once the ledger knows that they may have; the last frame leaves
only once its bytes are committed. Whatever is cut in between, the next start or redelivery goes on from there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from msgspec import UNSET

from agent.install.ports import Footprint, SealedBundle, ServingCounters, SwapMode, SwapReport
from agent.serving import requests
from agent.serving.admission import Admission
from agent.serving.controls import Controls
from agent.serving.dispatch import Dispatch
from agent.serving.frames import FrameStream
from agent.serving.intake import Accepted, Arrival, Intake
from agent.serving.jobs import Job
from agent.serving.ledger_health import LedgerHealth
from agent.serving.outcomes import Outcomes
from agent.serving.queue import RequestQueue
from agent.serving.recovery import LeftOver, take_up, unfinished
from agent.serving.replies import Outlet, Replies
from agent.serving.request_log import RequestLog
from agent.serving.requests import Refusal
from agent.serving.seat import LoadWorker, Seat
from agent.serving.settings import ServingSettings
from agent.serving.settlement import FAULT, Settlement
from agent.serving.streams import Streams
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
        ledger: AnswerWriter,
        load: LoadWorker,
        meter: LlmMeter,
        on_health: Callable[[], None] = lambda: None,
        on_load: Callable[[int], None] = lambda _queued: None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._on_health = on_health
        self._wall = wall
        self._now = now = asyncio.get_running_loop().time
        self._jobs: dict[Key, Job] = {}
        self._queue: RequestQueue[Job] = RequestQueue(settings.queue_limit, settings.client_queue_limit)
        self._replies = replies = Replies(outlet, topics, ledger, meter)
        self._ledger_health = health = LedgerHealth(on_health)
        self._log = RequestLog(prompts=settings.log_prompts)
        self._outcomes = Outcomes(self._jobs, ledger, replies, meter, health=health, now=now, request_log=self._log)
        self._streams = Streams(
            self._queue,
            ledger,
            replies,
            health,
            seats=lambda: self._swapping.seats,
            estimate=lambda ahead: self._admission.estimate(ahead),  # noqa: PLW0108 # made below
            on_deadline=lambda job: self._end_early(job, "deadline"),
        )
        self._dispatch = Dispatch(
            settings,
            load,
            self._queue,
            self._outcomes,
            self._streams,
            request_log=self._log,
            closed=lambda: self._admission.closed(),  # noqa: PLW0108 # made below
            on_health=on_health,
            on_load=on_load,
            now=now,
        )
        self._swapping = self._dispatch.swapping
        self._admission = Admission(
            self._queue,
            self._swapping,
            lambda: self._outcomes.counting,
            lambda client: self._intake.arriving(client),  # noqa: PLW0108 # made below
        )
        self._intake = Intake(
            ledger,
            replies,
            meter,
            refusal=self._admission.refusal,
            knows=lambda key: key in self._jobs,
            on_accepted=self._on_accepted,
            on_failed=self._on_failed,
            on_store=health.note,
            wall=wall,
            request_log=self._log,
        )
        self._controls = Controls(
            self._jobs,
            self._intake,
            ledger,
            replies,
            cancel=lambda job: self._end_early(job, "cancelled"),
            update=self._update,
            now=now,
        )

    # -- what others see -----------------------------------------------------------------------------------------------

    @property
    def bundle(self) -> SealedBundle | None:
        seat = self._swapping.seat
        return None if seat is None else seat.bundle

    @property
    def footprint(self) -> Footprint:
        seat = self._swapping.seat
        return Footprint() if seat is None else seat.footprint

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
        return self._dispatch.active

    @property
    def generating(self) -> int:
        """Tokens so far of the answers that are under way."""
        return sum(job.frames.tokens for seat in self._swapping.seats for job in seat.jobs.values())

    @property
    def reasons(self) -> list[str]:
        """Why requests are not being answered now; empty when they are."""
        found = []
        seat = self._swapping.seat
        if seat is None:
            waiting = self._admission.starting or self._swapping.holding
            missing = requests.ENGINE_UNAVAILABLE if self._admission.unavailable else requests.NO_MODEL
            found.append("loading" if waiting else missing)
        elif seat.worker is None and not seat.asleep:
            found.append("swapping" if self._swapping.holding else requests.ENGINE_UNAVAILABLE)
        if self._ledger_health.failing:
            found.append(requests.STORE_UNAVAILABLE)
        if self._dispatch.stopping:
            found.append("stopping")
        return found

    @property
    def unloaded(self) -> bool:
        """The model was idle for long and is not in memory; the next request loads it."""
        seat = self._swapping.seat
        return seat is not None and seat.asleep and seat.worker is None

    def look_at_store(self) -> None:
        """After a failure: try whether it works again, since nobody asks a device that is not ready."""
        if self._ledger_health.failing:
            self._ledger.probe().add_done_callback(lambda done: self._ledger_health.note(done.exception()))

    def counters(self) -> ServingCounters:
        return self._outcomes.counting.counters(self._now())

    # -- starting and stopping -----------------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Take up what an earlier run of the agent left behind; before the first request comes in."""
        self._take_up(await take_up(self._ledger, self._replies))

    async def recover_rest(self) -> None:
        """Answers can be stored again: take up what had to wait for that."""
        self._take_up([left for left in await unfinished(self._ledger) if left.of.key not in self._jobs])
        self._dispatch.pump()

    def _take_up(self, found: list[LeftOver]) -> None:
        for left in found:
            job = self._make_job(left.of.key, left.request, left.of.correlation)
            job.attempt, job.size = left.of.attempt, len(left.of.request or b"")
            if left.of.deadline_at is not None:
                # Never longer than it was: the clock may have been set back.
                left_seconds = left.of.deadline_at - max(self._wall(), left.of.accepted_at)
                job.deadline = self._now() + left_seconds
            self._jobs[job.key] = job
            if left.refusal is None:
                self._dispatch.enqueue(job)
            else:
                job.frames.attempt = job.attempt
                self._outcomes.fail(job, left.refusal)
        self._streams.schedule()

    def settled(self) -> None:
        """Start-up is over: without a model, requests are turned away from now on."""
        self._admission.starting = False
        self._dispatch.pump()
        self._on_health()

    def begin_stop(self) -> None:
        """Nothing is begun any more, nor turned away for want of a model: what waits is for the next start."""
        self._dispatch.stopping = self._admission.stopping = True
        self._on_health()

    async def stop(self) -> None:
        """Let running answers finish for a while, then end the workers; the ledger keeps what is left."""
        self.begin_stop()
        await self._swapping.finish_running(self._settings.stop_seconds)
        self._streams.close()
        await self._swapping.close()

    # -- requests ------------------------------------------------------------------------------------------------------

    def request(self, arrival: Arrival) -> None:
        """A request came in from the broker."""
        self._intake.take(arrival)

    def control(self, client: str, payload: bytes, settlement: Settlement) -> None:
        """A client acts on one of its requests."""
        self._controls.take(client, payload, settlement)

    def say_fault(
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

    def _on_failed(self, accepted: Accepted, refusal: Refusal) -> None:
        """A committed request could not be taken over: it ends here, with ``refusal`` for its one result."""
        job = self._jobs.get(accepted.key)
        if job is None:
            job = self._jobs[accepted.key] = self._make_job(accepted.key, accepted.request, accepted.correlation)
        if job.ended:
            return
        self._queue.remove(job.number)
        if (seat := self._dispatch.seat_of(job)) is not None:
            if seat.worker is not None:
                seat.worker.cancel(job.number)
            seat.release(job.number)
        self._outcomes.fail(job, refusal)

    def _on_accepted(self, accepted: Accepted) -> None:
        job = self._make_job(accepted.key, accepted.request, accepted.correlation)
        job.size = accepted.size
        if accepted.deadline_seconds is not None:
            job.deadline = job.accepted + accepted.deadline_seconds
        self._log.accepted(job)
        self._supersede(job)
        self._jobs[accepted.key] = job
        self._dispatch.enqueue(job)
        self._dispatch.pump()
        # Nothing is active any more, perhaps: then it was ended at once.
        if not job.running and not job.ended and self._jobs.get(job.key) is job:
            self._streams.tell_position(job)

    def _make_job(self, key: Key, request: GenerateRequest, correlation: bytes | None) -> Job:
        now = self._now()
        frames = FrameStream(self._settings.stream_interval_ms / 1000, stream=request.stream, now=now)
        return Job(key, request, frames, accepted=now, deadline=None, correlation=correlation)

    def _supersede(self, newer: Job) -> None:
        """The newer request with the same key wins over older ones of its client."""
        name = newer.request.supersede_key
        if name is UNSET:
            return
        for job in list(self._jobs.values()):
            if job.key.client == newer.key.client and job.request.supersede_key == name:
                self._end_early(job, "cancelled")

    def _end_early(self, job: Job, why: str) -> None:
        """End ``job`` wherever it is; ``why`` is ``cancelled`` or ``deadline``."""
        if job.ending is not None or job.ended:
            return
        job.ending = "deadline" if why == "deadline" else "cancelled"
        if not job.running:
            self._queue.remove(job.number)
            self._outcomes.end_early(job, "" if self.bundle is None else self.bundle.manifest.reference)
        elif (seat := self._dispatch.seat_of(job)) is not None and seat.worker is not None:
            seat.worker.cancel(job.number)

    def _update(self, job: Job, changes: dict[str, Any]) -> None:
        job.changes |= changes
        if job.running and (seat := self._dispatch.seat_of(job)) is not None and seat.worker is not None:
            seat.worker.update(job.number, changes)

    def limit_active(self, most: int | None) -> None:
        """At most so many answers at once from now on (None: as many as there are places); running ones go on."""
        self._dispatch.limit_active(most)

    def on_writable(self) -> None:
        """The connection takes frames again."""
        self._streams.on_writable()

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
            hold = await self._swapping.swap(bundle, mode, self._dispatch.run_again)
            self._outcomes.count_anew()
            self._admission.unavailable = False
            return SwapReport(mode, self._longest_wait(hold))
        finally:
            self._dispatch.pump()
            self._on_health()

    async def step_aside(self) -> None:
        """Give the model's memory back for a candidate; requests wait until :meth:`swap` or :meth:`come_back`."""
        await self._swapping.step_aside(self._dispatch.run_again)

    async def come_back(self) -> float | None:
        """Serve again what stepped aside; the longest time in ms that requests waited, None if nothing had."""
        try:
            hold = await self._swapping.come_back()
            return None if hold is None else self._longest_wait(hold)
        finally:
            self._dispatch.pump()
            self._on_health()

    def _longest_wait(self, hold: float | None) -> float:
        """Milliseconds that those who wait now have waited since ``hold`` (None: nobody had to)."""
        if hold is None:
            return 0.0
        waited = max((self._now() - max(hold, job.accepted) for job in self._queue), default=0.0)
        return round(waited * 1000, 3)

    async def withdraw(self) -> None:
        """Serve nothing from now on; running answers may finish, those that wait are turned away."""
        await self._swapping.withdraw(self._dispatch.run_again)
        self._admission.unavailable = False
        self._dispatch.pump()
        self._on_health()

    def unavailable(self) -> None:
        """A bundle is active and cannot be loaded for now; that is over with the next :meth:`swap` or withdrawal."""
        self._admission.unavailable = True
        self._dispatch.pump()
        self._on_health()
