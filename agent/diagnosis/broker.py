"""Whether the broker can be reached, lets this device in, and really delivers.

A broker's answer to a subscription proves nothing: mosquitto grants what its rules forbid and then delivers nothing.
So a message goes there and has to come back, on a topic that only this device may use.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from typing import Literal

from agent.diagnosis.finding import Finding
from agent.mqtt import Connection, Handler, Received, Session, Undeliverable
from agent.mqtt.group_probe import probe_groups
from agent.mqtt.settings import BrokerSettings
from agent.operator.control import Order, call_agent
from agent.state.layout import StateDirectory
from contract.mqtt.topics import Topics, make_client_id
from contract.reasons import BrokerReason

CONNECT_SECONDS = 20.0
ROUND_TRIP_SECONDS = 10.0
GLANCE_SECONDS = 0.02

GENEROUS_BYTES = 64 << 10
"""An answer of 2,000 tokens with log-probabilities; a broker that takes as much is not asked for more."""

TIGHT_BYTES = 16 << 10
"""An answer of 2,000 tokens without; what takes less loses ordinary answers."""

CLOSE_ENOUGH_BYTES = 256
"""To the limit that is looked for."""


def round_trip(settings: BrokerSettings, topics: Topics) -> list[Finding]:
    """Connect as this device (beside a running agent) and send ourselves messages."""
    return asyncio.run(_round_trip(settings, topics))


async def _round_trip(settings: BrokerSettings, topics: Topics) -> list[Finding]:
    async with _Visit(settings, topics) as visit:
        if not await visit.arrive():
            why = visit.connection.problem or "it does not answer"
            return [Finding("broker", "bad", f"{settings.address}: {why}", _fix(settings.address, why))]
        how = ("TLS" if settings.tls is not None else "without TLS") + (
            ", websockets" if settings.transport == "websockets" else ""
        )
        reached = Finding("broker", "ok", f"{visit.connection.address}, MQTT {visit.connection.protocol}, {how}")
        since = time.monotonic()
        fate = await visit.send(0, ROUND_TRIP_SECONDS)
        if fate != "came":
            return [reached, _silence(visit.connection, topics, published=fate == "swallowed")]
        took = time.monotonic() - since
        access = Finding("access", "ok", f"a message came back in {took * 1000:.1f} ms")
        fate = await visit.send(GENEROUS_BYTES, max(2.0, 20 * took))
    return [reached, access, *(await _limit(settings, topics, fate, took) if fate != "came" else [])]


def group_round_trip(settings: BrokerSettings, topics: Topics, groups: Sequence[str]) -> list[Finding]:
    """Whether requests to this device's groups arrive."""
    if not groups:
        return []
    verdict = asyncio.run(probe_groups(settings, f"{topics.device}-doctor-{os.getpid()}-groups", topics))
    if not verdict.reached:
        return [Finding("groups", "note", "cannot be determined without a broker")]
    if verdict.why:
        return [Finding("groups", "bad", verdict.why, _FIXES[BrokerReason.GROUPS_NOT_DELIVERED])]
    return [Finding("groups", "ok", f"a message came back through a shared subscription ({', '.join(groups)})")]


Fate = Literal["came", "swallowed", "refused", "cut", "nothing"]


class _Visit(Handler):
    """A connection beside the agent's, and one message at a time on a topic that only this device uses."""

    def __init__(self, settings: BrokerSettings, topics: Topics) -> None:
        self._topic = topics.doctor
        self._token = b""
        self._came = asyncio.Event()
        self._answered = asyncio.Event()
        self._refused = False
        self._cut = False
        client_id = make_client_id(f"{topics.device}-doctor-{os.getpid()}")
        session = Session(client_id, subscriptions=(topics.doctor,), clean=True, quiet=True)
        self.connection = Connection(settings, session, self)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> _Visit:
        self._task = asyncio.create_task(self.connection.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.connection.close()

    def on_message(self, received: Received, acknowledge: Callable[[], None]) -> None:
        if received.payload[: len(self._token)] == self._token:
            self._came.set()
        acknowledge()

    def on_down(self, why: str) -> None:
        self._cut = True

    def _on_answer(self, given_up: Undeliverable | None) -> None:
        if given_up is None:
            self._answered.set()
        else:
            self._refused = True

    async def arrive(self) -> bool:
        """Whether the broker lets us in."""
        connection = self.connection
        await _until(lambda: connection.subscribed or connection.unreachable, CONNECT_SECONDS)
        return connection.subscribed

    async def send(self, size: int, seconds: float) -> Fate:
        """What becomes of a message of at least ``size`` bytes, ``seconds`` after the broker has it."""
        self._token = os.urandom(12).hex().encode()
        self._came.clear()
        self._answered.clear()
        self._refused = self._cut = False
        self.connection.publish(self._topic, self._token.ljust(size, b"."), on_answer=self._on_answer)
        over = self._came.is_set
        await _until(lambda: over() or self._refused or self._cut or self._answered.is_set(), ROUND_TRIP_SECONDS)
        await _until(lambda: over() or self._refused or self._cut or not self._answered.is_set(), seconds)
        if self._came.is_set():
            return "came"
        if self._refused or self._cut:
            return "refused" if self._refused else "cut"
        return "swallowed" if self._answered.is_set() else "nothing"


async def _limit(settings: BrokerSettings, topics: Topics, fate: Fate, took: float) -> list[Finding]:
    """How large a message may be, and what the broker does with larger ones."""
    seconds = min(ROUND_TRIP_SECONDS, max(0.5, 20 * took))
    taken, lost = 0, GENEROUS_BYTES
    while lost - taken > CLOSE_ENOUGH_BYTES:
        size = (taken + lost) // 2
        async with _Visit(settings, topics) as visit:
            if not await visit.arrive():
                break
            found = await visit.send(size, seconds)
        taken, lost, fate = (size, lost, fate) if found == "came" else (taken, size, found)
    does = {
        "cut": "ends the connection at larger ones", "refused": "rejects larger ones as too large",
        "swallowed": "acknowledges larger ones and delivers nothing", "nothing": "does not answer larger ones",
    }.get(fate, "")  # fmt: skip
    text = f"the broker takes messages of {taken:,} bytes and {does}: longer answers are lost"
    fix = "raise its limit (mosquitto: message_size_limit, max_packet_size) or a proxy's to 1 MiB"
    return [Finding("messages", "bad" if taken < TIGHT_BYTES else "note", text, fix)]


def reported_by_agent(directory: StateDirectory) -> list[Finding]:
    """What the running agent says of its broker; nothing while none runs."""
    overview = call_agent(directory, Order(op="status"), lambda _reported: None)
    if overview is None or overview.broker is None:
        return []
    broker = overview.broker
    if not broker.connected:
        why = broker.problem or "it has not been reached yet"
        text = f"the agent has no connection to the broker {broker.address}: {why}"
        return [Finding("connection", "bad", text, _fix(broker.address, why))]
    found = [
        Finding("connection", "bad", f"{warning.message} [{warning.reason}]", _FIXES.get(warning.reason, ""))
        for warning in broker.warnings
    ]
    return found or [Finding("connection", "ok", f"the agent is connected to {broker.address}, MQTT {broker.protocol}")]


_FIXES: dict[str, str] = {
    BrokerReason.MESSAGE_TOO_LARGE: "raise the broker's limit (mosquitto: message_size_limit, max_packet_size)",
    BrokerReason.CLIENT_ID_TAKEN: "give each device a device (and broker.client_id, if set) of its own",
    BrokerReason.GROUPS_NOT_DELIVERED: "take a broker with shared subscriptions, or ask devices by their names",
}


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
    """Whether it does within ``seconds``, counted in looks: who gets no core for them has not looked."""
    for _ in range(round(seconds / GLANCE_SECONDS)):
        if holds():
            return True
        await asyncio.sleep(GLANCE_SECONDS)
    return holds()


def _fix(address: str, why: str) -> str:
    text = why.lower()
    if "that port speaks" in text:
        return "see above; `edge-agent check-config` looks at the keys, not at the network"
    if "certificate" in text or "ssl" in text or "tls" in text:
        return "check broker.tls.ca, the certificate's dates and names, and this device's clock"
    if "authori" in text or "password" in text or "refused the connection" in text:
        return "check broker.username and the password file, and the broker's account for this device"
    if "connection refused" in text:
        return f"is a broker running there? check broker.host and broker.port ({address})"
    return "check broker.host, broker.port and the network between"
