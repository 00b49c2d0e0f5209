"""From a message to an accepted request: parsed, judged by the result store, acknowledged, in this order."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from functools import partial

from msgspec import UNSET, Struct

from agent.serving import requests
from agent.serving.active_request import ActiveRequest
from agent.serving.events import RequestAccepted, RequestFailed
from agent.serving.loop import Instruments, Loop
from agent.serving.picture_intake import PictureIntake
from agent.serving.queue import Reservation
from agent.serving.replies import Replies
from agent.serving.requests import Refusal
from agent.serving.scheduler import Scheduler
from agent.serving.settlement import FAULT, Settlement
from agent.state.result_store import Key, Verdict
from agent.state.result_writer import ResultWriter
from contract.errors import EdgeBundleError, RequestInvalid
from contract.identifiers import is_identifier
from contract.mqtt import reading
from contract.mqtt.requests import GenerateRequest
from contract.mqtt.topics import NO_ID

RETRY_STORE_MS = 5_000

RETRY_FULL_MS = 100
"""Where there is room again by the time a request is rejected: soon, but a crowd must not retry at once."""

CONFLICT = Refusal(409, requests.ID_CONFLICT, "this id belongs to another request", "id")
STORE = Refusal(
    503,
    requests.STORE_UNAVAILABLE,
    "the device cannot store requests at the moment; try again later",
    retry_after_ms=RETRY_STORE_MS,
)


class IncomingRequest(Struct, frozen=True):
    """A request as it came in; ``settlement`` acknowledges it to the broker, whatever happens on its way."""

    client: str
    payload: bytes
    settlement: Settlement
    response_topic: str | None = None
    correlation: bytes | None = None
    expiry_seconds: int | None = None


class AcceptedRequest(Struct, frozen=True):
    """A request that is ours now; ``deadline_seconds`` counts from its acceptance, ``size`` in bytes with its pictures;
    ``missing``: it names some that are not here.
    """

    key: Key
    params: GenerateRequest
    correlation: bytes | None
    deadline_seconds: float | None
    size: int
    missing: Refusal | None = None


class Intake:
    """Asks the scheduler for room, the result store to record a request, and hands over to the loop what is recorded;
    ``now_unix`` is the clock that deadlines over restarts go by. ``pictures`` are those that came before, in parts.
    """

    def __init__(
        self,
        loop: Loop,
        scheduler: Scheduler,
        result_store: ResultWriter,
        replies: Replies,
        instruments: Instruments,
        *,
        now_unix: Callable[[], float],
    ) -> None:
        self.pictures = PictureIntake(replies)
        self._loop = loop
        self._scheduler = scheduler
        self._result_store = result_store
        self._replies = replies
        self._meter = instruments.meter
        self._log = instruments.request_log
        self._store_health = instruments.store_health
        self._now_unix = now_unix
        self._now = asyncio.get_running_loop().time
        self._pending: dict[Key, _Pending] = {}
        # Slots of the queue that incoming requests may take; one that will be rejected must not keep others out.
        self._reserved_count: Counter[str] = Counter()
        self._reserved_bytes: Counter[str] = Counter()

    def __len__(self) -> int:
        """Requests that the result store has not judged yet."""
        return len(self._pending)

    def _refusal(self, client: str, size: int) -> Refusal | None:
        """Why a new request cannot be taken now, beside those that the result store has not judged yet."""
        return self._scheduler.refusal(
            client,
            size,
            reserved=Reservation(self._reserved_count.total(), self._reserved_bytes.total()),
            own=Reservation(self._reserved_count[client], self._reserved_bytes[client]),
        )

    def receive(self, incoming: IncomingRequest) -> None:
        """A request came in from the broker."""
        reply_id = self._replies.id_in(incoming.client, incoming.response_topic)
        try:
            request_id, request = reading.parse_request(incoming.payload, incoming.correlation, reply_id)
            key = Key(incoming.client, request_id)
            reply = self._replies.topic(key)
            fingerprint = reading.request_fingerprint(request)
            request, stored = self.pictures.expand(incoming.client, request, incoming.payload)
        except RequestInvalid as error:
            request_id = reading.salvage_request_id(incoming.payload, incoming.correlation, reply_id) or NO_ID
            self._refuse(Key(incoming.client, request_id), incoming, requests.refusal_of(error))
            return
        if incoming.response_topic not in (None, "", reply):
            self._refuse_topic(key, reply, incoming)
            return
        if (refusal := self._scheduler.refusal_of_model(request)) is not None:
            self._refuse(key, incoming, refusal)
            return
        seconds = _deadline_seconds(request, incoming)
        missing = self.pictures.missing(incoming.client, request)
        may_insert = missing is None and self._refusal(incoming.client, len(stored)) is None
        future = self._result_store.accept(
            key,
            fingerprint,
            stored,
            deadline_at=None if seconds is None else self._now_unix() + seconds,
            correlation=incoming.correlation,
            may_insert=may_insert,
        )
        pending = self._pending.setdefault(key, _Pending())
        pending.count += 1
        if may_insert and not pending.claims:
            pending.claims = len(stored)
            self._reserved_count[key.client] += 1
            self._reserved_bytes[key.client] += pending.claims
        accepted = AcceptedRequest(key, request, incoming.correlation, seconds, len(stored), missing)
        future.add_done_callback(incoming.settlement.guarded(partial(self._on_recorded, accepted, incoming)))
        # On its own, so that its room is given back whatever becomes of the verdict.
        future.add_done_callback(incoming.settlement.guarded(partial(self._release_reservation, key)))

    def _refuse_topic(self, key: Key, reply: str, incoming: IncomingRequest) -> None:
        """Say which Response Topic it must be: there, and also at the one it has, if it is a reply topic of this client
        and device. Nowhere else: who may publish to a device must not make it publish for him.
        """
        error = RequestInvalid(f"the Response Topic must be {reply}", field="response_topic")
        heard = self._replies.id_in(incoming.client, incoming.response_topic)
        if heard is not None and is_identifier(heard):
            self._replies.error(Key(incoming.client, heard), requests.refusal_of(error), incoming.correlation)
        self._refuse(key, incoming, requests.refusal_of(error))

    def defer(self, key: Key, action: Callable[[], None]) -> bool:
        """If ``key`` is on its way through the result store, do ``action`` when it is here; whether it is."""
        pending = self._pending.get(key)
        if pending is None:
            return False
        pending.controls.append(action)
        return True

    def _on_recorded(
        self, accepted: AcceptedRequest, incoming: IncomingRequest, future: asyncio.Future[Verdict]
    ) -> None:
        error = future.exception()
        self._store_health.note(error)
        if isinstance(error, EdgeBundleError):
            self._refuse(accepted.key, incoming, STORE)
        else:
            self._apply_verdict(future.result(), accepted, incoming)

    def _release_reservation(self, key: Key, _future: asyncio.Future[Verdict]) -> None:
        """One delivery of ``key`` was judged; after the last one, what its client wants done with it is done."""
        pending = self._pending[key]
        pending.count -= 1
        if not pending.count:
            del self._pending[key]
            if pending.claims:
                self._reserved_count -= Counter((key.client,))
                self._reserved_bytes -= Counter({key.client: pending.claims})
            for control in pending.controls:
                control()
            self._loop.note_load()

    def _apply_verdict(self, verdict: Verdict, accepted: AcceptedRequest, incoming: IncomingRequest) -> None:
        """Do what the result store's verdict asks for."""
        if verdict.kind == "conflict":
            self._refuse(accepted.key, incoming, CONFLICT)
        elif verdict.kind == "gone":
            self._refuse(accepted.key, incoming, requests.GONE)
        elif verdict.kind == "refused":
            # What kept it out may have passed meanwhile.
            again = Refusal(
                429, requests.QUEUE_FULL, "too many requests are waiting; try again", retry_after_ms=RETRY_FULL_MS
            )
            self._refuse(
                accepted.key, incoming, accepted.missing or self._refusal(incoming.client, accepted.size) or again
            )
        else:
            if verdict.kind == "answered" and verdict.last is not None:
                self._meter.redelivered += 1
                self._replies.repeat(accepted.key, verdict.last, incoming.correlation)
            elif accepted.key in self._scheduler.requests:
                self._meter.redelivered += 1
            elif accepted.missing is not None:
                self._refuse(accepted.key, incoming, accepted.missing)
            else:
                # New; or known to the result store only, because its answer could not be stored: then it is run again.
                accept = incoming.settlement.guarded(self._accept, partial(self._abort, accepted))
                accept(accepted)
            incoming.settlement.settle()

    def _accept(self, accepted: AcceptedRequest) -> None:
        request = self._make_request(accepted)
        self._log.accepted(request)
        self._loop.handle(RequestAccepted(request))

    def _abort(self, accepted: AcceptedRequest) -> None:
        """A stored request could not be taken over: it ends here, with that for its one result."""
        request = self._scheduler.requests.get(accepted.key) or self._make_request(accepted)
        self._loop.handle(RequestFailed(request, FAULT))

    def _make_request(self, accepted: AcceptedRequest) -> ActiveRequest:
        now = self._now()
        request = self._scheduler.new_request(accepted.key, accepted.params, accepted.correlation, now)
        request.size = accepted.size
        if accepted.deadline_seconds is not None:
            request.deadline = now + accepted.deadline_seconds
        return request

    def _refuse(self, key: Key, incoming: IncomingRequest, refusal: Refusal) -> None:
        """Reject a request; nothing of it is kept, so that it may be sent again."""
        self._log.refused(key, refusal)
        self._replies.error(key, refusal, incoming.correlation)
        # On one connection the error frame goes out before the acknowledgement: it cannot be lost alone.
        incoming.settlement.settle()


class _Pending:
    """Deliveries of one request that the result store has not judged yet, and what its client wants done with it;
    ``claims`` are the bytes that it may bring into the queue.
    """

    def __init__(self) -> None:
        self.count = 0
        self.claims = 0
        self.controls: list[Callable[[], None]] = []


def _deadline_seconds(request: GenerateRequest, incoming: IncomingRequest) -> float | None:
    limits = [] if request.deadline_ms is UNSET else [request.deadline_ms / 1000]
    if incoming.expiry_seconds is not None:
        limits.append(float(incoming.expiry_seconds))
    return min(limits, default=None)
