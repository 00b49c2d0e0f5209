"""From settings to a connection that the broker has accepted: which host, which version of MQTT, and why not."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from agent.mqtt.link import Link, lacks
from agent.mqtt.settings import BrokerSettings, Endpoint, Protocol
from agent.mqtt.sockets import Stream, WrongProtocol, open_socket
from contract.errors import SourceUnavailable
from contract.mqtt.protocol_detection import Spoken, find_out

log = logging.getLogger("edge_agent.mqtt")

CONNECT_SECONDS = 15.0
"""TCP, TLS and CONNACK together; a mobile link takes seconds, a dead broker must not hold us for ever."""

ASK_SECONDS = 600.0
"""Between two questions what speaks at an address that does not answer as a broker does."""

UNANSWERED_CONNECTS = 3
"""MQTT 5 was spoken so often and the connection closed without a word: old brokers do that."""

UNSUPPORTED_PROTOCOL_VERSION = 0x84
CLIENT_IDENTIFIER_NOT_VALID = 0x85


class Connected(Struct, frozen=True):
    """A connection that was accepted; ``properties`` of CONNACK."""

    link: Link
    session_present: bool
    properties: Any


class Connector:
    """Remembers which host answered, and which version of MQTT each speaks."""

    def __init__(self, settings: BrokerSettings, make_link: Callable[[Stream, Protocol], Link]) -> None:
        self._settings = settings
        self._make_link = make_link
        self._endpoints = settings.endpoints
        self._at = 0
        self._protocols: dict[Endpoint, Protocol] = {}
        self._closed: dict[Endpoint, int] = {}
        self._guessed: set[Endpoint] = set()
        self._falling_back = False
        self._asked: dict[Endpoint, tuple[float, Spoken]] = {}

    @property
    def endpoint(self) -> Endpoint:
        """Where we are connected, or what is tried next."""
        return self._endpoints[self._at]

    @property
    def protocol(self) -> Protocol:
        """The version of MQTT that is spoken there."""
        return self._protocol_of(self.endpoint)

    @property
    def trying_versions(self) -> bool:
        """A host closed the connection without a word, and may yet accept it in another version of MQTT."""
        return self._falling_back or any(
            self._before_fallback(endpoint) > 0 for endpoint in self._closed if self._may_fall_back(endpoint)
        )

    def turn(self) -> None:
        """The present host is no good: begin with the next one."""
        self._at = (self._at + 1) % len(self._endpoints)

    def lost(self) -> None:
        """The connection is gone: a version that was only guessed is guessed anew."""
        if self.endpoint in self._guessed:
            self._protocols.pop(self.endpoint, None)

    async def open(self, on_turn: Callable[[], None]) -> Connected:
        """Connect to the first host that accepts us, each tried once; ``on_turn`` is called before each.

        Raises:
            SourceUnavailable: none does. ConfigInvalid: a file of ours cannot be read now.
        """
        reasons: list[tuple[Endpoint, str]] = []
        for _ in self._endpoints:
            on_turn()
            endpoint = self.endpoint
            try:
                return await self._open(endpoint)
            except (SourceUnavailable, OSError) as error:
                reasons.append((endpoint, str(error)))
                self.turn()
        reasons.sort(key=lambda reason: self._endpoints.index(reason[0]))
        if len(reasons) == 1:
            raise SourceUnavailable(reasons[0][1])
        raise SourceUnavailable("; ".join(f"{endpoint.address}: {why}" for endpoint, why in reasons))

    async def _open(self, endpoint: Endpoint) -> Connected:
        try:
            try:
                return await self._attempt(endpoint)
            except _OldBroker as old:
                self._protocols[endpoint] = "3.1.1"
                self._falling_back = True
                try:
                    opened = await self._attempt(endpoint)
                finally:
                    self._falling_back = False
                if old.guessed:
                    self._guessed.add(endpoint)
                log.info("the broker %s does not know MQTT 5: taking 3.1.1", endpoint.address)
                return opened
        except WrongProtocol as error:
            spoken = await self._ask(endpoint)
            why = explain(self._settings, spoken) if spoken is not None else ""
            raise SourceUnavailable(why or str(error)) from error

    async def _attempt(self, endpoint: Endpoint) -> Connected:
        link: Link | None = None
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                link = self._make_link(await open_socket(self._settings, endpoint), self._protocol_of(endpoint))
                present, reason, properties = await self._await_connack(link, endpoint)
        except TimeoutError as error:
            _close(link)
            raise WrongProtocol(f"no answer within {CONNECT_SECONDS:.0f} s") from error
        except BaseException:
            _close(link)
            raise
        try:
            if reason.is_failure:
                if self._may_fall_back(endpoint) and reason.value == UNSUPPORTED_PROTOCOL_VERSION:
                    raise _OldBroker
                raise SourceUnavailable(f"it refused the connection: {reason}{self._hint(reason)}")
            missing = lacks(properties)
            if missing:
                raise SourceUnavailable(f"it offers no {missing}, which the device needs")
        except BaseException:
            link.close()
            raise
        self._closed.pop(endpoint, None)
        return Connected(link, present, properties)

    async def _await_connack(self, link: Link, endpoint: Endpoint) -> tuple[bool, Any, Any]:
        waited: list[asyncio.Future[Any]] = [link.connack, link.lost]
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if link.connack.done():
            return link.connack.result()
        loss = link.lost.result()
        if loss.kind == "closed" and self._may_fall_back(endpoint):
            self._closed[endpoint] = self._closed.get(endpoint, 0) + 1
            if self._before_fallback(endpoint) == 0:
                raise _OldBroker(guessed=True)
        elif loss.kind == "closed" and self._settings.protocol == "auto":
            # It was not the version.
            self._protocols.pop(endpoint, None)
        raise WrongProtocol(f"{loss.why} instead of answering" if loss.kind == "closed" else loss.why)

    def _before_fallback(self, endpoint: Endpoint) -> int:
        """How many connections in MQTT 5 it may still close before 3.1.1 is tried."""
        most = 1 if endpoint in self._guessed else UNANSWERED_CONNECTS
        return most - self._closed.get(endpoint, 0) % (most + 1)

    def _protocol_of(self, endpoint: Endpoint) -> Protocol:
        configured = self._settings.protocol
        return self._protocols.get(endpoint, "5") if configured == "auto" else configured

    def _may_fall_back(self, endpoint: Endpoint) -> bool:
        return self._settings.protocol == "auto" and self._protocol_of(endpoint) == "5"

    def _hint(self, reason: Any) -> str:
        if reason.value == UNSUPPORTED_PROTOCOL_VERSION and self._settings.protocol == "5":
            return ': set broker.protocol = "auto" or "3.1.1"'
        if reason.value == CLIENT_IDENTIFIER_NOT_VALID and self._settings.client_id is not None:
            return ": leave broker.client_id out, or write it with letters, digits, - and _ alone"
        return ""

    async def _ask(self, endpoint: Endpoint) -> Spoken | None:
        at, spoken = self._asked.get(endpoint, (None, None))
        if at is None or time.monotonic() - at > ASK_SECONDS:
            spoken = await asyncio.to_thread(find_out, endpoint.host, endpoint.port, self._settings.path)
            self._asked[endpoint] = (time.monotonic(), spoken)
        return spoken


class _OldBroker(Exception):
    """It does not know MQTT 5, says it, or (``guessed``) seems so."""

    def __init__(self, *, guessed: bool = False) -> None:
        super().__init__()
        self.guessed = guessed


def _close(link: Link | None) -> None:
    if link is not None:
        link.close()


def explain(settings: BrokerSettings, spoken: Spoken) -> str:
    """What is there instead of what the settings say, and what to set; empty if they agree or nothing is known."""
    tls, websockets = settings.tls is not None, settings.transport == "websockets"
    if not spoken.name or (spoken.tls == tls and spoken.tongue == ("websockets" if websockets else "mqtt")):
        return ""
    if spoken.tls and not tls:
        fix = "add a [broker.tls] table"
    elif tls and not spoken.tls:
        fix = "take its port with TLS (often 8883), or remove [broker.tls]"
    else:
        fix = ""
    if spoken.tongue == "websockets" and not websockets:
        also = 'set broker.transport = "websockets"'
    elif spoken.tongue == "mqtt" and websockets:
        also = 'set broker.transport = "tcp"'
    elif spoken.tongue in ("", "mqtt", "websockets"):
        also = ""
    else:
        fix, also = "", "check broker.port" + (" and broker.path" if websockets else "")
    return f"that port speaks {spoken.name}: {' and '.join(filter(None, (fix, also))) or 'check broker.port'}"
