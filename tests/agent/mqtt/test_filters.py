"""Brokers that end the connection instead of refusing: a subscription, or an acknowledgement."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from agent.mqtt.filters import ALONE_LOSSES, FilterSuspicion
from agent.mqtt.outbox import LOSSES
from tests.agent.device import Device
from tests.agent.test_bad_brokers import GOOD, PUBLISH, SUBACK, SUBSCRIBE, Liar, packet

CONNACK, PUBACK = 2, 4


class Strict(Liar):
    """Ends the connection at a packet that ``forbids``; ``delivers`` is sent after each SUBACK."""

    def __init__(self, forbids: Callable[[int, bytes], bool], delivers: bytes = b"") -> None:
        self._forbids = forbids
        self._delivers = delivers
        super().__init__((packet(CONNACK, GOOD), True))

    def _answer(self, connection: socket.socket, kind: int, flags: int, body: bytes) -> None:
        if self._forbids(kind, body):
            connection.shutdown(socket.SHUT_RDWR)
            return
        super()._answer(connection, kind, flags, body)
        if kind == SUBSCRIBE and self._delivers:
            connection.sendall(self._delivers)


def test_a_subscription_that_ends_the_connection_is_left_out_and_the_others_are_kept(
    connect: Callable[..., Device], said: Callable[[], str]
) -> None:
    liar = Strict(lambda kind, body: kind == SUBSCRIBE and b"/control/" in body)
    device = connect(liar.port, protocol="5")
    connection = device.gateway.connection
    device.until(lambda: connection.subscribed and connection.undelivered == 0)
    control = "edge/v1/d/box/control/+"
    assert "when we subscribe" in device.call(lambda: connection.refused)[control]
    assert f"the broker ends the connection when we subscribe to {control}" in said()
    assert liar.connections <= LOSSES + ALONE_LOSSES + 2
    liar.close()


class Moody(Liar):
    """Refuses the first subscriptions that name ``topic``, and grants what comes later."""

    def __init__(self, topic: bytes) -> None:
        self._topic = topic
        self.refusals = 2
        super().__init__((packet(CONNACK, GOOD), True))

    def _answer(self, connection: socket.socket, kind: int, flags: int, body: bytes) -> None:
        if kind != SUBSCRIBE or self._topic not in body or not self.refusals:
            super()._answer(connection, kind, flags, body)
            return
        self.refusals -= 1
        filters = body[3:].split(b"edge/v1")[1:]
        codes = bytes(0x80 if self._topic in each else 1 for each in filters)
        connection.sendall(packet(SUBACK, body[:2] + b"\0" + codes))


def test_a_subscription_that_was_refused_in_a_bad_moment_is_asked_for_again(
    connect: Callable[..., Device], said: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by nodes of NATS that have just lost another one."""
    monkeypatch.setattr("agent.mqtt.subscriber.ASK_AGAIN_SECONDS", 0.0)
    moody = Moody(b"/control/")
    device = connect(moody.port, protocol="5", keepalive=5)
    connection = device.gateway.connection
    control = "edge/v1/d/box/control/+"
    device.until(lambda: moody.refusals == 0 and connection.subscribed and control not in connection.refused)
    assert said().count(f"the broker refuses the subscription to {control}") == 1
    assert f"the broker grants the subscription to {control} now" in said()
    assert moody.connections == 1
    moody.close()


def test_a_broker_that_ends_the_connection_at_an_acknowledgement_is_left_in_peace_ever_longer(
    connect: Callable[..., Device], said: Callable[[], str]
) -> None:
    """Nothing can be given up there: the message comes again, and only the waits keep it from being a storm."""
    request = b'{"id":"q","prompt":"x"}'
    topic = b"edge/v1/d/box/generate/me"
    delivery = packet(PUBLISH, len(topic).to_bytes(2, "big") + topic + b"\0\7" + b"\0" + request, 2)
    liar = Strict(lambda kind, _body: kind == PUBACK, delivery)
    device = connect(liar.port, protocol="5")
    device.until(lambda: liar.connections >= 6)
    failures = device.call(lambda: device.gateway.connection._backoff._failures)
    assert failures >= liar.connections - 1, "none of them lasted"
    assert "after we acknowledged a message on edge/v1/d/box/generate/me" in said()
    assert device.call(lambda: device.gateway.connection.rival) == ""
    assert device.call(lambda: device.gateway.connection.limit) is None
    liar.close()


def test_filters_go_one_by_one_after_three_losses_and_one_that_is_lost_alone_twice_is_left_out() -> None:
    filters = FilterSuspicion()
    assert filters.next(["a", "b", "c"]) == ["a", "b", "c"]
    for _ in range(LOSSES):
        assert filters.lost(["a", "b", "c"]) == []
    assert filters.next(["a", "b", "c"]) == ["a"]
    filters.answered("a")
    assert filters.next(["b", "c"]) == ["b"]
    assert filters.lost(["b"]) == []
    assert filters.lost(["b"]) == ["b"]
    assert filters.next(["a", "b", "c"]) == ["a"]
    assert filters.next(["b", "c"]) == ["c"]
    filters.complete()
    assert not filters.suspicious
    assert filters.next(["a", "b", "c"]) == ["a", "c"]
