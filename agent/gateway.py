"""Between the broker's topics and the rooms of the agent: who gets which message, and what we say of ourselves.

Retained documents (reported, info, health) are kept here and published again after every reconnect: a broker that
lost its store must not leave a device that seems to have none.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable
from typing import Any

from agent.config import AgentConfig
from agent.mqtt import Connection, Received, Will
from agent.serving.serving import Arrival, Serving
from contract.mqtt import messages
from contract.mqtt.messages import Event, Health, Reported, Status
from contract.mqtt.topics import EventType

log = logging.getLogger("edge_agent.mqtt")


class Gateway:
    """Owns the connection; ``serving`` is set once it is made, before :meth:`run`.

    ``on_desired`` gets the payload of every desired document, ``on_change`` is called when the connection came or
    went.
    """

    serving: Serving

    def __init__(
        self,
        config: AgentConfig,
        boot_id: str,
        *,
        on_desired: Callable[[bytes], None],
        on_change: Callable[[bool], None] = lambda _up: None,
    ) -> None:
        self._topics = config.topics
        self._boot_id = boot_id
        self._on_desired = on_desired
        self._on_change = on_change
        self._retained: dict[str, bytes] = {}
        self.connection = Connection(
            config.broker,
            config.broker.client_id or f"edge-{config.device}",
            will=Will(self._topics.status, messages.encode(Status(online=False, boot_id=boot_id))),
            subscriptions=[self._topics.generate_filter, self._topics.control_filter, self._topics.desired],
            on_message=self._on_message,
            on_up=self._on_up,
            on_down=self._on_down,
            on_delivered=lambda number: self.serving.on_delivered(number),  # noqa: PLW0108 # serving is set later
            on_writable=lambda: self.serving.on_writable(),  # noqa: PLW0108
        )

    async def run(self) -> None:
        """Keep the connection; until cancelled."""
        await self.connection.run()

    async def close(self) -> None:
        """Say that we go, and go."""
        self._retain(self._topics.status, messages.encode(Status(online=False, boot_id=self._boot_id)))
        await self.connection.close()

    # -- in ------------------------------------------------------------------------------------------------------------

    def _on_message(self, received: Received) -> None:
        def settle() -> None:
            self.connection.acknowledge(received)

        inbound = self._topics.parse(received.topic)
        if inbound is None:
            settle()
        elif inbound.kind == "desired":
            # The coordinator stores it; a crash before that is healed by the retained message itself.
            self._on_desired(received.payload)
            settle()
        elif inbound.client is None or received.retained:
            # A retained request would come again at every reconnect, for ever.
            log.warning("ignored a retained request on %s; publish requests without retain", received.topic)
            settle()
        elif inbound.kind == "control":
            self.serving.control(inbound.client, received.payload)
            settle()
        else:
            self.serving.request(
                Arrival(
                    client=inbound.client,
                    payload=received.payload,
                    settle=settle,
                    response_topic=received.response_topic,
                    correlation=received.correlation,
                    expiry_seconds=received.expiry_seconds,
                )
            )

    # -- out -----------------------------------------------------------------------------------------------------------

    def _on_up(self, _session_present: bool) -> None:
        self._retain(self._topics.status, messages.encode(Status(online=True, boot_id=self._boot_id)))
        for topic, payload in self._retained.items():
            self.connection.publish(topic, payload, retain=True)
        self.serving.on_writable()
        self._on_change(True)

    def _on_down(self, _why: str) -> None:
        self._on_change(False)

    def _retain(self, topic: str, payload: bytes) -> None:
        self.connection.publish(topic, payload, retain=True)

    def _keep(self, topic: str, payload: bytes) -> None:
        if self._retained.get(topic) != payload:
            self._retained[topic] = payload
            self._retain(topic, payload)

    def reported(self, reported: Reported) -> None:
        """What the device does about the desired bundle."""
        self._keep(self._topics.reported, messages.encode(reported))

    def info(self, info: messages.Info) -> None:
        """What the device is and can do."""
        self._keep(self._topics.info, messages.encode(info))

    def health(self, health: Health) -> None:
        """Whether prompts are answered now."""
        self._keep(self._topics.health, messages.encode(health))

    def event(self, kind: EventType, detail: dict[str, Any]) -> None:
        """Something happened; delivered once the broker is there."""
        at = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        self.connection.publish(self._topics.event(kind), messages.encode(Event(at=at, detail=detail)))

    def telemetry(self, system: bytes | None, llm: bytes | None) -> None:
        """One sample of each; gone if nobody can be told now."""
        if self.connection.writable:
            if system is not None:
                self.connection.publish_once(self._topics.telemetry_system, system)
            if llm is not None:
                self.connection.publish_once(self._topics.telemetry_llm, llm)
