"""Whether the broker can be reached, lets this device in, and really delivers.

A broker's answer to a subscription proves nothing: mosquitto grants what its rules forbid and then delivers nothing.
So a message goes there and has to come back, on a topic that only this device may use.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable

from agent.broker_settings import BrokerSettings
from agent.diagnosis.finding import Finding
from agent.mqtt import Connection, Received
from contract.mqtt.topics import Topics

CONNECT_SECONDS = 20.0
ROUND_TRIP_SECONDS = 10.0


def round_trip(settings: BrokerSettings, topics: Topics) -> list[Finding]:
    """Connect as this device (beside a running agent) and send ourselves a message."""
    return asyncio.run(_round_trip(settings, topics))


async def _round_trip(settings: BrokerSettings, topics: Topics) -> list[Finding]:
    token = os.urandom(12).hex().encode()
    came = asyncio.Event()
    answered = asyncio.Event()

    def take(received: Received) -> None:
        if received.payload == token:
            came.set()
        connection.acknowledge(received)

    connection = Connection(
        settings, f"{topics.device}-doctor-{os.getpid()}", subscriptions=[topics.doctor], clean=True,
        on_message=take, on_delivered=lambda number: answered.set(),
    )  # fmt: skip
    task = asyncio.create_task(connection.run())
    try:
        if not await _until(lambda: connection.subscribed or bool(connection.problem), CONNECT_SECONDS) or (
            not connection.subscribed
        ):
            why = connection.problem or "it does not answer"
            return [Finding("broker", "bad", f"{settings.address}: {why}", _mend(settings, why))]
        how = "TLS" if settings.tls is not None else "without TLS"
        reached = Finding("broker", "ok", f"{settings.address}, MQTT {settings.protocol}, {how}")
        since = time.monotonic()
        connection.publish(topics.doctor, token)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(came.wait(), ROUND_TRIP_SECONDS)
        if came.is_set():
            took = (time.monotonic() - since) * 1000
            return [reached, Finding("access", "ok", f"a message came back in {took:.1f} ms")]
        return [reached, _silence(connection, topics, published=answered.is_set())]
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await connection.close()


def _silence(connection: Connection, topics: Topics, *, published: bool) -> Finding:
    rule = f"grant {topics.device!r} what systemd/mosquitto/devices.acl grants: readwrite {topics.doctor}, and the rest"
    if topics.doctor in connection.refused:
        return Finding("access", "bad", f"it refuses {topics.doctor}: {connection.refused[topics.doctor]}", rule)
    if published:
        return Finding(
            "access", "bad", "it accepted a message and delivered nothing: its rules forbid it silently", rule
        )
    return Finding("access", "bad", "it takes no message from this device", rule)


async def _until(holds: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if holds():
            return True
        await asyncio.sleep(0.02)
    return False


def _mend(settings: BrokerSettings, why: str) -> str:
    text = why.lower()
    if "certificate" in text or "ssl" in text or "tls" in text:
        return "check broker.tls.ca, the certificate's dates and names, and this device's clock"
    if "authori" in text or "password" in text or "refused the connection" in text:
        return "check broker.username and the password file, and the broker's account for this device"
    if "connect call failed" in text:
        return f"is a broker running there? check broker.host and broker.port ({settings.address})"
    return "check broker.host, broker.port and the network between"
