"""Whatever fails between taking a message and settling it: its sender hears of it, it is acknowledged, and the next
message is dealt with.

The steps are found by watching: a message is followed through the threads that deal with it, and every function of ours
that was called on the way is made to fail, one after the other. A step that is added tomorrow is among them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import CodeType, FrameType
from typing import Any

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.mqtt import Received
from agent.mqtt.connection import Connection
from agent.mqtt.gateway import Gateway
from agent.serving.intake import AcceptedRequest
from agent.serving.settlement import Settlement
from agent.state import result_writer
from agent.state.result_store import Key
from contract.mqtt import reading
from tests.agent.device import Device, sealed
from tests.agent.serving.conftest import MakeDevice
from tests.e2e.raw_client import Answer, RawClient

pytestmark = pytest.mark.broker

SUPERVISOR = {
    *(code for code in Settlement.guarded.__code__.co_consts if isinstance(code, CodeType)),
    Settlement.__init__.__code__,
    Settlement.guarded.__code__,
    Settlement.fail.__code__,
    Settlement.settle.__code__,
    Connection.acknowledge.__code__,
    Gateway.on_message.__code__,
    result_writer._resolve.__code__,
}
"""Who catches what the others raise: nobody stands behind these."""


class Injected(Exception):
    """What a step is made to raise."""


class Watcher:
    """A trace function for the threads of a device: remembers the steps of a message, and makes one of them fail."""

    def __init__(self) -> None:
        self.steps: dict[CodeType, None] = {}
        self.watching = False
        self.victim: CodeType | None = None

    def __call__(self, frame: FrameType, event: str, _argument: Any) -> Watcher | None:
        code = frame.f_code
        if code is Gateway.on_message.__code__:
            self.watching = True
        if self.watching and frame.f_globals.get("__name__", "").startswith(("agent.", "contract.")):
            self.steps[code] = None
            if code is self.victim:
                self.victim = None
                # The interpreter takes the trace function away from a thread where it raises.
                raise Injected(code.co_qualname)
        if code is Connection.acknowledge.__code__:
            self.watching = False
        return None


def trace(device: Device, function: Watcher | None) -> None:
    """In both threads that deal with messages: the event loop's, and the one that writes answers."""

    def set_in_writer(_connection: object) -> None:
        sys.settrace(function)

    async def set_in_both() -> None:
        sys.settrace(function)
        await device.result_store._submit(set_in_writer)

    device.run(set_in_both())


@contextmanager
def watched(device: Device, watcher: Watcher) -> Iterator[Watcher]:
    trace(device, watcher)
    try:
        yield watcher
    finally:
        watcher.watching = False
        trace(device, None)


def settled(device: Device) -> bool:
    """Whether the broker has an acknowledgement of everything it sent."""
    link = device.gateway.connection._link
    return link is not None and link.subscribed and not link.ack_order._open


def steps_of(device: Device, send: Callable[[], None]) -> list[CodeType]:
    with watched(device, Watcher()) as watcher:
        send()
        device.until(lambda: len(watcher.steps) > 0 and not watcher.watching and settled(device))
    return [code for code in watcher.steps if code not in SUPERVISOR]


def next_request_is_answered(client: RawClient, name: str) -> None:
    client.ask(name, "count 2")
    assert client.wait_answer(name).lasts[0]["text"] == "0 1 "


ATTEMPTS = 5
"""To have a step of a loop fail that runs beside the requests."""


def test_a_request_is_answered_and_acknowledged_whichever_step_fails(
    make_device: MakeDevice, client: RawClient, caplog: pytest.LogCaptureFixture
) -> None:
    device = make_device().start(sealed())

    def ask_and_wait() -> None:
        client.ask("first", "count 1")
        client.wait_answer("first")

    steps = steps_of(device, ask_and_wait)
    names = {code.co_qualname for code in steps}
    assert {
        "parse_request",
        "Intake.receive",
        "Intake._on_recorded",
        "accept",
        "Intake._accept",
        "Loop.handle",
        "Scheduler.handle",
        "Scheduler._dispatch",
    } <= names
    for number, step in enumerate(steps):
        # The writer may have begun the round that a request joins before the step was told to fail: the next one fails.
        for attempt in range(ATTEMPTS):
            caplog.clear()
            with watched(device, Watcher()) as watcher:
                watcher.victim = step
                client.ask(f"q{number}-{attempt}", "count 1")
                (last, *others) = client.wait_answer(f"q{number}-{attempt}").lasts
                device.until(lambda: settled(device))
            found = last.get("text") or (last["error"]["code"], last["error"]["type"])
            assert found in ("0 ", (500, "internal_error")), step.co_qualname
            if watcher.victim is None:
                break
        assert watcher.victim is None, f"{step.co_qualname} was not called"
        assert all(other == last for other in others), f"another result after {step.co_qualname} failed"
        logged = [record for record in caplog.records if record.exc_info and record.levelno == logging.ERROR]
        assert any("Injected" in repr(record.exc_info) for record in logged), step.co_qualname
        next_request_is_answered(client, f"n{number}")
    # Only where giving room back was what failed, a place is lost.
    device.until(lambda: device.serving.queued <= 1 and device.serving.active == 0)


def test_a_control_message_is_answered_and_acknowledged_whichever_step_fails(
    make_device: MakeDevice, client: RawClient
) -> None:
    device = make_device().start(sealed())
    topic = f"edge/v1/d/{client.device}/control/{client.name}"

    def send(request: str) -> None:
        client.publish(topic, json.dumps({"id": request, "op": "cancel"}).encode())
        while client.next_frame()[0] != request:
            pass

    steps = steps_of(device, lambda: send("first"))
    assert {"parse_control", "Controls.receive", "Controls._act"} <= {code.co_qualname for code in steps}
    for number, step in enumerate(steps):
        with watched(device, Watcher()) as watcher:
            watcher.victim = step
            send(f"c{number}")
            device.until(lambda: settled(device))
    next_request_is_answered(client, "last")


def test_a_desired_document_is_acknowledged_whichever_step_fails(make_device: MakeDevice, client: RawClient) -> None:
    device = make_device().start(sealed())
    topic = f"edge/v1/d/{client.device}/desired"

    def send(number: int) -> None:
        client.publish(topic, b'{"number": %d}' % number)

    for number, step in enumerate(steps_of(device, lambda: send(-1))):
        with watched(device, Watcher()) as watcher:
            watcher.victim = step
            send(number)
            device.until(lambda watcher=watcher: watcher.victim is None and settled(device))  # type: ignore[misc]
    next_request_is_answered(client, "last")


def test_a_deferred_control_message_that_fails_takes_nobody_with_it(
    make_device: MakeDevice, client: RawClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for the ledger's verdict on its request, and is done in the event loop's callback."""
    device = make_device().start(sealed())

    def fail(*_: object) -> None:
        raise Injected("cancel")

    async def deliver_together() -> None:
        topics = device.config.topics
        for topic, body in (
            (topics.generate(client.name), {"id": "held", "prompt": "count 2"}),
            (topics.control(client.name), {"id": "held", "op": "cancel"}),
        ):
            received = Received(topic, json.dumps(body).encode(), False, (None, 0))
            device.gateway.on_message(received, partial(device.gateway.connection.acknowledge, received))

    monkeypatch.setattr(device.serving.scheduler, "_end_early", fail)
    client.answers["held"] = Answer(0.0)
    device.run(deliver_together())
    assert client.wait_answer("held").lasts[0]["text"] == "0 1 "
    faults = [frame["control"] for frame in client.answers["held"].frames if "control" in frame]
    assert [(fault["op"], fault["error"]["type"]) for fault in faults] == [("cancel", "internal_error")]


def test_an_acknowledgement_that_fails_is_made_good_on_a_new_connection(
    make_device: MakeDevice, client: RawClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = make_device().start(sealed())
    link = device.gateway.connection._link
    assert link is not None

    def fail(_packet_id: int, _qos: int) -> None:
        raise Injected("ack")

    monkeypatch.setattr(link.client, "ack", fail)
    client.ask("once", "count 2")
    device.until(lambda: device.gateway.connection._link not in (None, link) and settled(device))
    next_request_is_answered(client, "next")
    assert {answer["text"] for answer in client.wait_answer("once").lasts} == {"0 1 "}
    assert len(device.workers.current.admitted) == 2


def test_a_poisoned_operation_of_a_group_commit_fails_alone(make_device: MakeDevice, client: RawClient) -> None:
    device = make_device().start(sealed())
    result_store = device.result_store

    def poison(connection: Any) -> None:
        connection.execute("INSERT INTO answers (client) VALUES (?)", ("\ud83d",))

    def fault(_connection: object) -> None:
        raise StopIteration

    async def submit_together() -> list[object]:
        futures = [
            result_store.accept(Key("c", "1"), "f", b"", deadline_at=None, correlation=None, may_insert=True),
            result_store._submit(poison),
            result_store._submit(fault),
            result_store.answered(Key("c", "1"), b"{}"),
            result_store.accept(Key("c", "2"), "f", b"", deadline_at=None, correlation=None, may_insert=True),
        ]
        return list(await asyncio.gather(*futures, return_exceptions=True))

    first, encoding, own, answered, second = device.run(submit_together())
    assert isinstance(encoding, UnicodeEncodeError)
    assert isinstance(own, RuntimeError)
    assert (first.kind, answered, second.kind) == ("new", b"{}", "new")  # type: ignore[attr-defined]
    next_request_is_answered(client, "next")


HALF = "nice \\ud83d"


def test_half_an_emoji_is_a_400_however_often_it_comes(make_device: MakeDevice, client: RawClient) -> None:
    """More of them than a broker sends ahead of acknowledgements, so that the last would not be heard."""
    device = make_device().start(sealed())
    for number in range(120):
        body = f'{{"id":"p{number}","prompt":"{HALF}","max_tokens":5}}'.encode()
        client.publish(f"edge/v1/d/{client.device}/generate/{client.name}", body)
    for number in range(120):
        request, frame = client.next_frame()
        error = frame["error"]
        assert request == f"p{number}"
        assert (error["code"], error["type"], error["field"]) == (400, "invalid_request", "prompt")
    device.until(lambda: settled(device))
    next_request_is_answered(client, "next")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (f'{{"id":"p","messages":[{{"role":"user","content":"{HALF}"}}]}}', "messages[0].content"),
        (f'{{"id":"p","prompt":"x","stop":["a","{HALF}"]}}', "stop[1]"),
        (f'{{"id":"p","prompt":"x","logit_bias":{{"{HALF}":1}}}}', f"logit_bias.{HALF}"),
        (f'{{"id":"p","prompt":"x","{HALF}":1}}', HALF),
        (f'{{"id":"p","prompt":"x","{HALF}":1,"{HALF}":1}}', "nice \\ud83d"),
        ('{"id":"p","prompt":"\\ude00\\ud83d","response_format":null}', "prompt"),
    ],
)
def test_half_a_character_is_found_wherever_it_stands(
    make_device: MakeDevice, client: RawClient, body: str, field: str | None
) -> None:
    device = make_device().start(sealed())
    client.publish(f"edge/v1/d/{client.device}/generate/{client.name}", body.encode())
    request, frame = client.next_frame()
    assert (request, frame["error"]["code"], frame["error"].get("field")) == ("p", 400, field)
    device.until(lambda: settled(device))


TEXTS = ["\ufeff", "before\ufeffafter", "\U0001f600", "x" * 60_000]


@pytest.mark.parametrize("text", TEXTS, ids=["BOM", "inner BOM", "emoji", "long"])
def test_properties_that_paho_does_not_read_cut_nobody_off(
    make_device: MakeDevice, client: RawClient, text: str
) -> None:
    """MQTT 5 allows U+FEFF in a text (1.5.4-3), and a broker passes it on."""
    device = make_device().start(sealed())
    client.answers |= {"p1": Answer(0.0), "p2": Answer(0.0)}
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.UserProperty = [("note", text)]
    properties.CorrelationData = b"p1"
    topic = f"edge/v1/d/{client.device}/generate/{client.name}"
    client._client.publish(topic, b'{"prompt":"count 2"}', qos=1, properties=properties).wait_for_publish(120)
    assert client.wait_answer("p1").lasts[0]["text"] == "0 1 "
    properties.ResponseTopic = f"edge/v1/c/{client.name}/r/{client.device}/p2{text[:100]}"
    properties.CorrelationData = b"p2"
    client._client.publish(topic, b'{"prompt":"count 2"}', qos=1, properties=properties).wait_for_publish(120)
    assert client.wait_answer("p2").lasts[0]["error"]["field"] == "response_topic"
    device.until(lambda: settled(device))
    assert device.gateway.connection.problem == ""


def test_a_request_that_is_accepted_as_the_model_goes_is_told_so_and_nothing_fails(
    make_device: MakeDevice, client: RawClient, caplog: pytest.LogCaptureFixture
) -> None:
    device = make_device().start()
    client.answers["late"] = Answer(0.0)
    request_id, request = reading.parse_request(b'{"id": "late", "prompt": "count 3"}')
    accepted = AcceptedRequest(Key(client.name, request_id), request, None, None, 30)
    # Its acceptance was on its way through the ledger while the last bundle was withdrawn.
    device.call(lambda: device.serving.intake._accept(accepted))
    assert client.wait_answer("late").lasts[0]["error"]["type"] == "no_model"
    assert "Traceback" not in caplog.text
