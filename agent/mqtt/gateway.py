"""Between the broker's topics and the rooms of the agent: who gets which message, and what we say of ourselves.

Retained documents (reported, info, health) are kept here and published again after every reconnect: a broker that
lost its store must not leave a device that seems to have none.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any

import msgspec

from agent.clock import utc_now
from agent.config import AgentConfig
from agent.mqtt import Connection, FoundLimit, Handler, Received, Sender, Session, Undeliverable, Will
from agent.mqtt.broker_health import BrokerHealth, another_at_work
from agent.mqtt.group_probe import GroupVerdict, probe_groups
from agent.observers import Observers
from agent.serving.intake import IncomingRequest
from agent.serving.serving import Serving
from agent.serving.settlement import Settlement
from agent.state.broker_memory import BrokerMemory
from agent.telemetry.samples import LlmSample, SystemSample
from contract.mqtt.device import BrokerState, Event, Health, Info, Status
from contract.mqtt.encoding import encode
from contract.mqtt.reports import Reported
from contract.mqtt.topics import EventType, make_client_id
from contract.reasons import BrokerReason

PROBE_PAUSE_SECONDS = 30.0
PROBE_SECONDS = 3600.0
"""Between two looks whether the broker delivers to groups, while the connection lasts."""

log = logging.getLogger("edge_agent.mqtt")


class Gateway(Handler):
    """Owns the connection: what arrives goes to ``serving`` and :attr:`on_desired`.

    ``on_desired`` hears of the payload of every desired document and whether it is the broker's retained copy,
    ``on_broker`` when :attr:`broker` may have changed; ``memory`` keeps what was found out about the broker; ``now``
    gives the time in UTC.
    """

    def __init__(
        self,
        config: AgentConfig,
        sender: Sender,
        serving: Serving,
        *,
        boot_id: str,
        memory: BrokerMemory,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._now = now
        self.on_desired: Observers[[bytes, bool]] = Observers()
        self.on_broker: Observers[[]] = Observers()
        self._config = config
        self._topics = config.topics
        self._serving = serving
        self._boot_id = boot_id
        self._memory = memory
        self._broker_health = BrokerHealth(config.topics, time.monotonic)
        self._retained: dict[str, bytes] = {}
        self._group_filters = [config.topics.group_filter(group) for group in config.groups]
        self._high_mark = config.serving.group_high_mark
        self._busy = False
        self.connections = 0
        """How often a broker accepted us."""
        self._ready = False
        topics = self._topics
        self._filters = (topics.generate_filter, topics.control_filter, topics.picture_filter, topics.desired)
        client_id = config.broker.client_id or make_client_id(f"edge-{config.device}")
        self._group_up = asyncio.Event()
        self.group_connection: Connection | None = None
        if self._group_filters:
            # A session of its own that ends with the connection: a broker goes on feeding a member that is away.
            handler = _GroupHandler(self.on_message, self._group_up)
            self.group_connection = Connection(config.broker, Session(f"{client_id}-groups", clean=True), handler)
        will = Will(self._topics.status, encode(Status(online=False, boot_id=boot_id)))
        self.connection = Connection(config.broker, Session(client_id, will, self._filters), self, sender)
        sender.on_given_up.add(self._on_given_up)
        sender.on_limit.add(self._on_limit)
        serving.on_load.add(self._on_load)

    @property
    def broker(self) -> BrokerState:
        """The broker as we find it now."""
        return self._broker_health.state(self.connection)

    async def is_rival_at_work(self) -> bool | None:
        client_id = f"{self.connection.client_id}-{self._boot_id[:8]}"
        payloads = {self._topics.doctor: encode(Status(online=False, boot_id=self._boot_id))}
        if not self.connection.rival:
            detail = {"reason": BrokerReason.CLIENT_ID_TAKEN, "message": self.connection.rival_text("")}
            payloads[self._topics.event("broker")] = encode(self._event(detail))
        try:
            return await another_at_work(self._config.broker, client_id, self._topics, self._boot_id, payloads)
        except Exception:
            log.exception("could not determine whether another client uses our client id")
            return None

    def on_rivalry(self) -> None:
        # Whoever stays away because of us says so there.
        if self.connection.contested and self._topics.doctor not in self.connection.filters:
            self.connection.listen([*self._filters, self._topics.doctor])
        self.on_broker.notify()

    def _on_rival_status(self, payload: bytes) -> None:
        with contextlib.suppress(msgspec.MsgspecError):
            if msgspec.json.decode(payload, type=Status).boot_id != self._boot_id:
                self.connection.note_rival()

    def _on_given_up(self, given_up: Undeliverable) -> None:
        detail = self._broker_health.given_up(given_up)
        # One that tells of itself would never end.
        if detail is not None:
            self.event("broker", detail)
        self.on_broker.notify()

    def _on_limit(self, limit: FoundLimit | None) -> None:
        self._memory.save(*((None,) if limit is None else (limit.refused_bytes, limit.found_at, limit.times)))
        self.on_broker.notify()

    async def run(self) -> None:
        """Keep the connection; until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.connection.run())
            if self.group_connection is not None:
                group.create_task(self.group_connection.run())
                group.create_task(self._watch_groups(f"{self.group_connection.client_id}-{self._boot_id[:8]}"))

    async def _watch_groups(self, client_id: str) -> None:
        """Find out after a connect, and every hour, whether a request to a group would arrive."""
        while True:
            await self._group_up.wait()
            self._group_up.clear()
            try:
                verdict = await probe_groups(self._config.broker, client_id, self._topics)
            except Exception:
                # A question that fails must not end what it asks about.
                log.exception("could not determine whether requests to groups arrive")
                verdict = GroupVerdict(reached=False)
            if verdict.reached and verdict.why != self._broker_health.groups:
                self._broker_health.groups = verdict.why
                if verdict.why:
                    log.error("%s", verdict.why)
                else:
                    log.info("the broker delivers to shared subscriptions")
                self.on_broker.notify()
            # Not at every connect of a broker that comes and goes.
            await asyncio.sleep(PROBE_PAUSE_SECONDS)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PROBE_SECONDS):
                    await self._group_up.wait()
            self._group_up.set()

    async def close(self) -> None:
        """Say that we go, and go."""
        if self.group_connection is not None:
            await self.group_connection.close()
        self._retain(self._topics.status, encode(Status(online=False, boot_id=self._boot_id)))
        await self.connection.close()

    # -- in ------------------------------------------------------------------------------------------------------------

    def _on_load(self, queued: int) -> None:
        """So many requests wait: above the high mark other members of our groups are the better choice."""
        # Half of it to come back, so that the subscription does not flap with every request.
        self._busy = queued > (self._high_mark // 2 if self._busy else self._high_mark)
        self._choose_groups()

    def _choose_groups(self) -> None:
        connection = self.group_connection
        if connection is not None:
            wanted = self._group_filters if self._ready and not self._busy else []
            if connection.filters != wanted:
                connection.listen(wanted)

    def on_message(self, received: Received, acknowledge: Callable[[], None]) -> None:
        settlement = Settlement(acknowledge=acknowledge, answer=partial(self._report_fault, received))
        settlement.guarded(self._handle)(received, settlement)

    def _handle(self, received: Received, settlement: Settlement) -> None:
        inbound = self._topics.parse(received.topic)
        if inbound is None:
            if received.topic == self._topics.doctor:
                self._on_rival_status(received.payload)
            settlement.settle()
        elif inbound.kind == "desired":
            # The reconciler stores it; a crash before that is healed by the retained message itself.
            self.on_desired.notify(received.payload, received.retained)
            settlement.settle()
        elif inbound.client is None or received.retained:
            # A retained request would come again at every reconnect, for ever.
            log.warning("ignored a retained request on %s; publish requests without retain", received.topic)
            settlement.settle()
        elif inbound.kind == "picture":
            self._serving.intake.pictures.receive(inbound.client, inbound.part, received.payload)
            settlement.settle()
        elif inbound.kind == "control":
            self._serving.controls.receive(inbound.client, received.payload, settlement)
            settlement.settle()
        else:
            self._serving.intake.receive(
                IncomingRequest(
                    client=inbound.client,
                    payload=received.payload,
                    settlement=settlement,
                    response_topic=received.response_topic,
                    correlation=received.correlation,
                    expiry_seconds=received.expiry_seconds,
                )
            )

    def _report_fault(self, received: Received) -> None:
        """Tell the sender of a message that we failed at it."""
        inbound = self._topics.parse(received.topic)
        if inbound is not None and inbound.client is not None and not received.retained:
            self._serving.replies.report_fault(
                inbound.client,
                received.payload,
                received.correlation,
                received.response_topic,
                control=inbound.kind == "control",
            )

    # -- out -----------------------------------------------------------------------------------------------------------

    def on_up(self, session_present: bool) -> None:
        self.connections += 1
        self._retain(self._topics.status, encode(Status(online=True, boot_id=self._boot_id)))
        for topic, payload in self._retained.items():
            self.connection.publish(topic, payload, retain=True)
        self.on_writable()

    def on_writable(self) -> None:
        self._serving.loop.on_writable()

    def _retain(self, topic: str, payload: bytes) -> None:
        self.connection.publish(topic, payload, retain=True)

    def _keep(self, topic: str, payload: bytes) -> None:
        if self._retained.get(topic) != payload:
            self._retained[topic] = payload
            self._retain(topic, payload)

    def reported(self, reported: Reported) -> None:
        """What the device does about the desired bundle."""
        self._keep(self._topics.reported, encode(reported))

    def info(self, info: Info) -> None:
        """What the device is and can do."""
        self._keep(self._topics.info, encode(info))

    def health(self, health: Health) -> None:
        """Whether prompts are answered now; only then do our groups get us. ``broker`` is added here."""
        warned = [each.reason for each in self.broker.warnings]
        if warned:
            health = msgspec.structs.replace(health, warnings=[*(health.warnings or []), *warned])
        if self.connection.connected:
            health = msgspec.structs.replace(health, broker=self.broker)
        self._ready = health.ready
        self._choose_groups()
        self._keep(self._topics.health, encode(health))

    def announce(self, documents: dict[str, bytes]) -> None:
        """Retained documents for others than our clients, by topic."""
        for topic, payload in documents.items():
            self._keep(topic, payload)

    def _event(self, detail: dict[str, Any]) -> Event:
        return Event(at=self._now().strftime("%Y-%m-%dT%H:%M:%S.%fZ"), detail=detail)

    @property
    def all_delivered(self) -> bool:
        """The broker has everything that was published."""
        return self.connection.connected and not self.connection.undelivered

    def event(self, kind: EventType, detail: dict[str, Any]) -> None:
        """Something happened; delivered once the broker is there."""
        self.connection.publish(self._topics.event(kind), encode(self._event(detail)))

    def samples(self, system: SystemSample, llm: LlmSample) -> None:
        """What the telemetry loop has measured."""
        self.telemetry(msgspec.json.encode(system), msgspec.json.encode(llm))

    def telemetry(self, system: bytes | None, llm: bytes | None) -> None:
        """One sample of each; gone if nobody can be told now."""
        if self.connection.writable:
            if system is not None:
                self.connection.publish_once(self._topics.telemetry_system, system)
            if llm is not None:
                self.connection.publish_once(self._topics.telemetry_llm, llm)


class _GroupHandler(Handler):
    """Of the connection on which requests to our groups come."""

    def __init__(self, on_message: Callable[[Received, Callable[[], None]], None], up: asyncio.Event) -> None:
        self._on_message = on_message
        self._up = up

    def on_message(self, received: Received, acknowledge: Callable[[], None]) -> None:
        self._on_message(received, acknowledge)

    def on_up(self, session_present: bool) -> None:
        self._up.set()


def known_limit(memory: BrokerMemory) -> FoundLimit | None:
    """The smallest message that this broker was found not to take before."""
    facts = memory.load()
    return None if facts.refused_bytes is None else FoundLimit(facts.refused_bytes, facts.found_at, facts.times)
