"""Whether the broker really gives messages to shared subscriptions: some grant them and deliver nothing.

A message to ourselves goes through a shared subscription of our own, on the topic that only this device uses, so that
no member of any group sees it. If it does not come, the same is tried without sharing: only then is sharing at fault.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from msgspec import Struct

from agent.mqtt import Connection, Handler, Received, Session
from agent.mqtt.settings import BrokerSettings
from contract.mqtt.topics import Topics

CONNECT_SECONDS = 20.0
DELIVERY_SECONDS = 10.0
"""Through a broker far away, over a mobile link."""

GLANCE_SECONDS = 0.05


class GroupVerdict(Struct, frozen=True):
    """``why`` is a sentence if requests to groups do not arrive, or that cannot be found out; empty if they do.

    ``reached``: the broker could be asked at all.
    """

    why: str = ""
    reached: bool = True


class _Probe(Handler):
    """Waits for the message with this ``token``."""

    def __init__(self, token: bytes) -> None:
        self.token = token
        self.came = asyncio.Event()

    def on_message(self, received: Received, acknowledge: Callable[[], None]) -> None:
        acknowledge()
        if received.payload == self.token:
            self.came.set()


async def probe_groups(settings: BrokerSettings, client_id: str, topics: Topics) -> GroupVerdict:
    """Ask the broker, beside all other connections of this device; takes half a minute at most."""
    # A name that nobody else has: agent and doctor may ask at the same time, and would take each other's messages.
    name = f"{topics.device}-{os.urandom(4).hex()}"
    shared = await _comes_back(settings, client_id, topics, f"$share/{name}/{topics.doctor}")
    if shared in ("", "unreached"):
        return GroupVerdict("", reached=not shared)
    if shared != "nothing":
        return GroupVerdict(f"the broker has no shared subscriptions ({shared}): requests to groups do not arrive")
    plain = await _comes_back(settings, client_id, topics, topics.doctor)
    if plain == "":
        return GroupVerdict(
            "the broker grants shared subscriptions and delivers nothing to them: requests to groups do not arrive"
        )
    return GroupVerdict(
        f"cannot determine whether requests to groups arrive: the broker does not deliver {topics.doctor} to us"
    )


async def _comes_back(settings: BrokerSettings, client_id: str, topics: Topics, topic: str) -> str:
    """Empty if a message came back over a subscription to ``topic``; ``unreached``, ``nothing``, or a refusal."""
    probe = _Probe(os.urandom(12).hex().encode())
    session = Session(client_id, subscriptions=(topic,), clean=True, quiet=True)
    connection = Connection(settings, session, probe)
    task, waiting = asyncio.create_task(connection.run()), asyncio.create_task(probe.came.wait())
    loop = asyncio.get_running_loop()
    try:
        end = loop.time() + CONNECT_SECONDS
        while not connection.subscribed and not connection.unreachable and loop.time() < end:
            await asyncio.wait([waiting], timeout=GLANCE_SECONDS)
        if not connection.subscribed:
            return "unreached"
        if topic in connection.refused:
            return connection.refused[topic]
        connection.publish(topics.doctor, probe.token)
        await asyncio.wait([waiting], timeout=DELIVERY_SECONDS)
        return "" if probe.came.is_set() else "nothing"
    finally:
        await connection.close()
        for each in (task, waiting):
            each.cancel()
        await asyncio.gather(task, waiting, return_exceptions=True)
