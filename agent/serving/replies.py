"""What leaves: pieces, last frames and errors, each on the reply topic of its request."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from agent.serving import requests
from agent.serving.active_request import ActiveRequest
from agent.serving.settlement import FAULT
from agent.state.result_store import Key
from agent.state.result_writer import ResultWriter
from agent.telemetry.llm import LlmMeter
from contract.mqtt import reading
from contract.mqtt.answers import ControlFault, ControlRefused, Frame
from contract.mqtt.encoding import encode
from contract.mqtt.topics import NO_ID, Topics


class Undelivered(Protocol):
    """A message that the broker does not take."""

    @property
    def why(self) -> str:
        """One clause for people."""
        ...


class Outlet(Protocol):
    """Where frames go; the connection to the broker is one."""

    @property
    def writable(self) -> bool:
        """Whether a frame would leave at once."""
        ...

    @property
    def full(self) -> bool:
        """Whether so much waits for the broker that what nobody was promised should not be added."""
        ...

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        correlation: bytes | None = None,
        on_answer: Callable[[Undelivered | None], None] | None = None,
    ) -> None:
        """At least once; ``on_answer`` is called later, with None once the broker has it."""
        ...

    def publish_once(self, topic: str, payload: bytes, *, correlation: bytes | None = None) -> None: ...


class _Delivery:
    """A last frame on its way to the broker; each is another, whatever it says."""

    def __init__(self, key: Key, correlation: bytes | None) -> None:
        self.key = key
        self.correlation = correlation


class Replies:
    """Publishes, and notes in the result store what the broker has taken over."""

    def __init__(self, outlet: Outlet, topics: Topics, result_store: ResultWriter, meter: LlmMeter) -> None:
        self._outlet = outlet
        self._topics = topics
        self._result_store = result_store
        self._meter = meter
        self._newest: dict[Key, _Delivery] = {}

    @property
    def writable(self) -> bool:
        return self._outlet.writable

    def topic(self, key: Key) -> str:
        return self._topics.reply(key.client, key.id)

    def id_in(self, client: str, topic: str | None) -> str | None:
        """The last level of ``topic`` if it is a reply topic of ``client`` from this device."""
        prefix = self._topics.reply(client, "")
        return topic[len(prefix) :] if topic is not None and topic.startswith(prefix) else None

    def piece(self, request: ActiveRequest, frame: Frame) -> None:
        """Send a piece at QoS 0: the last frame repeats it."""
        self._meter.frames += 1
        self._outlet.publish_once(self.topic(request.key), encode(frame), correlation=request.correlation)

    def deliver(self, key: Key, last: bytes, correlation: bytes | None) -> None:
        """Send a stored last frame, at least once."""
        self._newest[key] = delivery = _Delivery(key, correlation)
        on_answer = partial(self._on_answer, delivery)
        self._outlet.publish(self.topic(key), last, correlation=correlation, on_answer=on_answer)

    def repeat(self, key: Key, last: bytes, correlation: bytes | None) -> None:
        """Send a last frame to a client that asks again."""
        on_its_way = key in self._newest
        if not (on_its_way and self._outlet.full):
            self.deliver(key, last, correlation)

    def _on_answer(self, delivery: _Delivery, undelivered: Undelivered | None) -> None:
        """The broker has a last frame; or it does not take it, and its client gets an error in its place, whenever it
        asks.
        """
        key = delivery.key
        # An older delivery does not confirm the newest: it may have rejected the request, and this be the answer.
        if self._newest.get(key) is delivery:
            del self._newest[key]
            self._result_store.delivered(key)
        if undelivered is not None:
            why = f"the answer was not delivered: {undelivered.why}"
            text = f"{why}; ask under another id for fewer tokens or log-probabilities"
            self.error(key, requests.Refusal(500, requests.ANSWER_TOO_LARGE, text), delivery.correlation)

    def refuse_control(self, key: Key, op: str, refusal: requests.Refusal) -> None:
        """Say why a control message did nothing; at QoS 0, as nothing was promised."""
        self._meter.refuse("control")
        body = requests.error_body(refusal)
        self._outlet.publish_once(self.topic(key), encode(ControlRefused(ControlFault(op, body))))

    def report_fault(
        self, client: str, payload: bytes, correlation: bytes | None, response_topic: str | None, *, control: bool
    ) -> None:
        """Tell the sender of a message, of which nothing is kept, that the device failed at it."""
        if control:
            op, request_id = reading.salvage_control(payload)
            self.refuse_control(Key(client, request_id), op, FAULT)
        else:
            reply_id = self.id_in(client, response_topic)
            request_id = reading.salvage_request_id(payload, correlation, reply_id) or NO_ID
            self.error(Key(client, request_id), FAULT, correlation)

    def error(self, key: Key, refusal: requests.Refusal, correlation: bytes | None) -> None:
        """Send an error that is nobody's stored result; nothing while the broker takes nothing: a client
        without a reply asks again.
        """
        self._meter.refuse(refusal.kind)
        if self._outlet.full:
            return
        payload = encode(requests.error_frame(0, refusal))
        self._outlet.publish(self.topic(key), payload, correlation=correlation)
