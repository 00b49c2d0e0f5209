"""What is wrong between this device and its broker although they are connected, for ``health``, events and doctor."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from agent.mqtt import Connection, Handler, Received, Session, Undeliverable
from agent.mqtt.settings import BrokerSettings
from contract.mqtt.device import BrokerState, Status
from contract.mqtt.faults import ReportedError
from contract.mqtt.topics import Topics
from contract.reasons import BrokerReason

REPORTED_SECONDS = 3600.0
"""A message that was given up is reported for so long; a limit that was found, as long as it is believed."""

MAX_TOPICS = 16
"""That are named; all of them stand in the log."""

LOOK_SECONDS = 10.0
"""To connect beside whoever has our name; a quarter of it to hear the retained ``status``."""

GLANCE_SECONDS = 0.1


class BrokerHealth:
    """Remembers what was given up; all else the connection knows."""

    def __init__(self, topics: Topics, clock: Callable[[], float]) -> None:
        self._topics = topics
        self._clock = clock
        self._given_up: OrderedDict[str, tuple[float, Undeliverable]] = OrderedDict()
        self.groups = ""
        """Why requests to our groups do not arrive; empty while nothing speaks against it."""

    def given_up(self, message: Undeliverable) -> dict[str, Any] | None:
        """Note it; the detail of the event that tells of it, None for one that has been told or cannot be."""
        now = self._clock()
        known = self._given_up.get(message.topic)
        if known is not None and now - known[0] < REPORTED_SECONDS:
            # A document that grows with what it says of itself must come to rest, and one event is enough.
            return None
        self._given_up[message.topic] = (now, message)
        self._given_up.move_to_end(message.topic)
        while len(self._given_up) > MAX_TOPICS:
            self._given_up.popitem(last=False)
        if message.topic == self._topics.event("broker"):
            return None
        return {
            "reason": BrokerReason.MESSAGE_TOO_LARGE, "topic": message.topic,
            "bytes": message.size, "message": message.why,
        }  # fmt: skip

    def state(self, connection: Connection) -> BrokerState:
        """Now."""
        return BrokerState(
            address=connection.address,
            protocol=connection.protocol,
            connected=connection.connected,
            problem=connection.problem,
            warnings=[*self._sizes(connection), *_rival(connection), *self._groups()],
        )

    def _groups(self) -> list[ReportedError]:
        return [ReportedError(BrokerReason.GROUPS_NOT_DELIVERED, self.groups)] if self.groups else []

    def _sizes(self, connection: Connection) -> list[ReportedError]:
        now = self._clock()
        recent = [message for at, message in self._given_up.values() if now - at < REPORTED_SECONDS]
        parts = []
        if connection.limit is not None:
            parts.append(
                f"the broker ends the connection at messages of {connection.limit.refused_bytes:,} bytes, "
                "so that larger ones are not sent: raise its limit"
            )
        if recent:
            last = recent[-1]
            more = f" ({len(recent) - 1} more)" if len(recent) > 1 else ""
            parts.append(f"{last.topic} was not delivered: {last.why}{more}")
        return [ReportedError(BrokerReason.MESSAGE_TOO_LARGE, "; ".join(parts))] if parts else []


def _rival(connection: Connection) -> list[ReportedError]:
    return [ReportedError(BrokerReason.CLIENT_ID_TAKEN, connection.rival)] if connection.rival else []


class _StatusReader(Handler):
    """Waits for a ``status``."""

    def __init__(self) -> None:
        self.found: asyncio.Future[Status] = asyncio.get_running_loop().create_future()

    def on_message(self, received: Received, acknowledge: Callable[[], None]) -> None:
        acknowledge()
        with contextlib.suppress(msgspec.MsgspecError):
            status = msgspec.json.decode(received.payload, type=Status)
            if not self.found.done():
                self.found.set_result(status)


async def another_at_work(
    settings: BrokerSettings, client_id: str, topics: Topics, boot_id: str, announcement: Mapping[str, bytes]
) -> bool | None:
    """Whether somebody else is online under our name, as the retained ``status`` says; asked with a client id that
    nobody else has, so that nobody is pushed out. None: it cannot be found out, where the broker's rules keep
    ``status`` from us. If so, ``announcement`` (payloads by topic) is published: the other one knows nothing of us.
    """
    reader = _StatusReader()
    found = reader.found
    session = Session(client_id, subscriptions=(topics.status,), clean=True, quiet=True)
    connection = Connection(settings, session, reader)
    task = asyncio.create_task(connection.run())
    try:
        looks = 0
        while not found.done() and not connection.problem and looks < LOOK_SECONDS / GLANCE_SECONDS:
            await asyncio.wait([found], timeout=GLANCE_SECONDS)
            # A retained document comes at once.
            looks += 4 if connection.subscribed else 1
        if not found.done():
            return None
        status = found.result()
        seen = status.online and status.boot_id != boot_id
        for topic, payload in announcement.items() if seen else ():
            connection.publish(topic, payload)
        return seen
    finally:
        await connection.close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
