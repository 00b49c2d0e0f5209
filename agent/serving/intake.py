"""From a message to an accepted request: parsed, judged by the ledger, acknowledged, in this order."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from functools import partial

from msgspec import UNSET, Struct

from agent.serving import requests
from agent.serving.queue import Room
from agent.serving.replies import Replies
from agent.serving.request_log import RequestLog
from agent.serving.requests import Refusal
from agent.serving.settlement import FAULT, Settlement
from agent.state.answer_writer import AnswerWriter
from agent.state.answers import Key, Verdict
from agent.telemetry.llm import LlmMeter
from contract.errors import EdgeBundleError, RequestInvalid
from contract.mqtt import reading
from contract.mqtt.messages import GenerateRequest
from contract.mqtt.topics import NO_ID

RETRY_STORE_MS = 5_000

RETRY_FULL_MS = 100
"""Where there is room again by the time a request is turned away: soon, but a crowd must not come back at once."""

CONFLICT = Refusal(409, requests.ID_CONFLICT, "this id belongs to another request", "id")
STORE = Refusal(
    503,
    requests.STORE_UNAVAILABLE,
    "the device cannot store requests at the moment; try again later",
    retry_after_ms=RETRY_STORE_MS,
)


class Arrival(Struct, frozen=True):
    """A request as it came in; ``settlement`` acknowledges it to the broker, whatever happens on its way."""

    client: str
    payload: bytes
    settlement: Settlement
    response_topic: str | None = None
    correlation: bytes | None = None
    expiry_seconds: int | None = None


class Accepted(Struct, frozen=True):
    """A request that is ours now; ``deadline_seconds`` counts from its acceptance, ``size`` in bytes as it came."""

    key: Key
    request: GenerateRequest
    correlation: bytes | None
    deadline_seconds: float | None
    size: int


class Intake:
    """``refusal`` says why a new request of a client cannot be taken now, ``knows`` whether a request is here already;
    ``on_accepted`` takes over what is committed, ``on_failed`` ends what is committed and could not be taken over,
    ``on_store`` hears how the ledger fares.
    """

    def __init__(
        self,
        ledger: AnswerWriter,
        replies: Replies,
        meter: LlmMeter,
        *,
        refusal: Callable[[str, int], Refusal | None],
        knows: Callable[[Key], bool],
        on_accepted: Callable[[Accepted], None],
        on_failed: Callable[[Accepted, Refusal], None],
        on_store: Callable[[BaseException | None], None],
        wall: Callable[[], float],
        request_log: RequestLog,
    ) -> None:
        self._ledger = ledger
        self._replies = replies
        self._meter = meter
        self._refusal = refusal
        self._knows = knows
        self._on_accepted = on_accepted
        self._on_failed = on_failed
        self._on_store = on_store
        self._wall = wall
        self._log = request_log
        self._arriving: dict[Key, _Arriving] = {}
        # Places in the queue that arrivals may take; one that will be turned away must not keep others out.
        self._claims: Counter[str] = Counter()
        self._claimed_bytes: Counter[str] = Counter()

    def __len__(self) -> int:
        """Requests that the ledger has not judged yet."""
        return len(self._arriving)

    def arriving(self, client: str | None) -> Room:
        """Those of them that may take a place in the queue, of ``client`` only unless it is None."""
        if client is None:
            return Room(self._claims.total(), self._claimed_bytes.total())
        return Room(self._claims[client], self._claimed_bytes[client])

    def take(self, arrival: Arrival) -> None:
        """A request came in from the broker."""
        try:
            request_id, request = reading.parse_request(arrival.payload, arrival.correlation)
            key = Key(arrival.client, request_id)
            reply = self._replies.topic(key)
            if arrival.response_topic not in (None, "", reply):
                raise RequestInvalid(f"the Response Topic must be {reply}", field="response_topic")
        except RequestInvalid as error:
            reply_id = self._replies.id_in(arrival.client, arrival.response_topic)
            request_id = reading.salvage_request_id(arrival.payload, arrival.correlation, reply_id) or NO_ID
            self._refuse(Key(arrival.client, request_id), arrival, requests.refusal_of(error))
            return
        seconds = _deadline_seconds(request, arrival)
        may_insert = self._refusal(arrival.client, len(arrival.payload)) is None
        future = self._ledger.accept(
            key,
            reading.request_fingerprint(arrival.payload),
            arrival.payload,
            deadline_at=None if seconds is None else self._wall() + seconds,
            correlation=arrival.correlation,
            may_insert=may_insert,
        )
        arriving = self._arriving.setdefault(key, _Arriving())
        arriving.count += 1
        if may_insert and not arriving.claims:
            arriving.claims = len(arrival.payload)
            self._claims[key.client] += 1
            self._claimed_bytes[key.client] += arriving.claims
        accepted = Accepted(key, request, arrival.correlation, seconds, len(arrival.payload))
        future.add_done_callback(arrival.settlement.guarded(partial(self._judged, accepted, arrival)))
        # On its own, so that its room is given back whatever becomes of the verdict.
        future.add_done_callback(arrival.settlement.guarded(partial(self._arrived, key)))

    def defer(self, key: Key, action: Callable[[], None]) -> bool:
        """If ``key`` is on its way through the ledger, do ``action`` when it is here; whether it is."""
        arriving = self._arriving.get(key)
        if arriving is None:
            return False
        arriving.controls.append(action)
        return True

    def _judged(self, accepted: Accepted, arrival: Arrival, future: asyncio.Future[Verdict]) -> None:
        error = future.exception()
        self._on_store(error)
        if isinstance(error, EdgeBundleError):
            self._refuse(accepted.key, arrival, STORE)
        else:
            self._obey(future.result(), accepted, arrival)

    def _arrived(self, key: Key, _future: asyncio.Future[Verdict]) -> None:
        """One delivery of ``key`` was judged; after the last one, what its client wants done with it is done."""
        arriving = self._arriving[key]
        arriving.count -= 1
        if not arriving.count:
            del self._arriving[key]
            if arriving.claims:
                self._claims -= Counter((key.client,))
                self._claimed_bytes -= Counter({key.client: arriving.claims})
            for control in arriving.controls:
                control()

    def _obey(self, verdict: Verdict, accepted: Accepted, arrival: Arrival) -> None:
        """Do what the ledger's verdict asks for."""
        if verdict.kind == "conflict":
            self._refuse(accepted.key, arrival, CONFLICT)
        elif verdict.kind == "gone":
            self._refuse(accepted.key, arrival, requests.GONE)
        elif verdict.kind == "refused":
            # What kept it out may have passed meanwhile.
            again = Refusal(429, requests.QUEUE_FULL, "too many requests wait; try again", retry_after_ms=RETRY_FULL_MS)
            self._refuse(accepted.key, arrival, self._refusal(arrival.client, len(arrival.payload)) or again)
        else:
            if verdict.kind == "answered" and verdict.last is not None:
                self._meter.redelivered += 1
                self._replies.repeat(accepted.key, verdict.last, arrival.correlation)
            elif self._knows(accepted.key):
                self._meter.redelivered += 1
            else:
                # New; or known to the ledger only, because its answer could not be stored: then it is run again.
                failed = partial(self._on_failed, accepted, FAULT)
                arrival.settlement.guarded(self._on_accepted, failed)(accepted)
            arrival.settlement.settle()

    def _refuse(self, key: Key, arrival: Arrival, refusal: Refusal) -> None:
        """Turn a request away; nothing of it is kept, so that it may come again."""
        self._log.refused(key, refusal)
        self._replies.error(key, refusal, arrival.correlation)
        # On one connection the error frame goes out before the acknowledgement: it cannot be lost alone.
        arrival.settlement.settle()


class _Arriving:
    """Deliveries of one request that the ledger has not judged yet, and what its client wants done with it; ``claims``
    are the bytes that it may bring into the queue.
    """

    def __init__(self) -> None:
        self.count = 0
        self.claims = 0
        self.controls: list[Callable[[], None]] = []


def _deadline_seconds(request: GenerateRequest, arrival: Arrival) -> float | None:
    limits = [] if request.deadline_ms is UNSET else [request.deadline_ms / 1000]
    if arrival.expiry_seconds is not None:
        limits.append(float(arrival.expiry_seconds))
    return min(limits, default=None)
