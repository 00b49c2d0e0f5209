"""How a device leaves its broker: what it says last, or what is said for it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.agent.device import Device
from tests.broker import Broker, find_mosquitto
from tests.e2e.raw_client import RawClient

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]


def test_who_cannot_say_that_it_goes_leaves_that_to_the_last_will(
    tmp_path: Path, connect: Callable[..., Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a busy machine takes longer than the agent waits, ``status`` went on saying that the device is online."""
    monkeypatch.setattr("agent.mqtt.connection.FLUSH_SECONDS", 0.01)
    broker = Broker(tmp_path / "busy", settings="max_inflight_messages 1\n")
    broker.start()
    device = connect(broker.port)
    connection = device.gateway.connection
    device.until(lambda: connection.subscribed and connection.undelivered == 0)
    os.kill(broker.pid, signal.SIGSTOP)
    try:
        device.call(lambda: device.gateway.event("install", {"bundle": "m@1.0.0"}))
        device.stop()
    finally:
        os.kill(broker.pid, signal.SIGCONT)
    client = RawClient(broker.port, "me", "box")
    try:
        online = True
        while online:
            topic, body = client.device_messages.get(timeout=120)
            online = body["online"] if topic == "status" else online
    finally:
        client.close()
        broker.stop()
