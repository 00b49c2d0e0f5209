"""Connects simulated devices to a broker, each by a connection of its own, since wills are, all in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from paho.mqtt.client import Client, MQTTMessage, MQTTv5, MQTTv311
from paho.mqtt.enums import CallbackAPIVersion

from contract.mqtt.topics import DEFAULT_ROOT, Topics, make_client_id
from edge_bundle.broker import BrokerAddress
from tests.fleet.simulate.device import Message, SimulatedDevice

TELEMETRY_SECONDS = 0.5
LOOK_SECONDS = 1.0
"""Between two looks at a connection's keep-alive."""


@dataclass(frozen=True)
class Faults:
    """Of connections: how often an hour each of them breaks without a word, and for how long it is away."""

    breaks_per_hour: float = 0.0
    away_seconds: float = 5.0


NONE = Faults()


class Link:
    """One device's connection. ``sent`` counts its samples that were handed to the broker."""

    def __init__(
        self,
        device: SimulatedDevice,
        address: BrokerAddress,
        telemetry: float,
        faults: Faults = NONE,
        root: str = DEFAULT_ROOT,
    ) -> None:
        self.device = device
        self.sent = 0
        self.connected = False
        self._address = address
        self._telemetry = telemetry
        self._faults = faults
        self._protocol = MQTTv311 if address.protocol == "3.1.1" else MQTTv5
        self._topics = Topics(device.name, root)
        self._base = f"{root}/d/{device.name}"
        self._client_id = make_client_id(f"sim-{root.replace('/', '-')}-{device.name}")
        self._random = random.Random(device.name)
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()
        self._client: Client | None = None
        self._attempts = 0
        # Samples of a thousand devices do not come at the same moment.
        self._sample_at = time.time() + self._random.uniform(0, telemetry)

    async def run(self) -> None:
        """Until it is cancelled; comes back by itself."""
        while True:
            with contextlib.suppress(OSError):
                await self._connected()
            self.connected = False
            await asyncio.sleep(0.2)

    def _make_client(self, gone: asyncio.Event) -> Client:
        client = Client(CallbackAPIVersion.VERSION2, self._client_id, protocol=self._protocol)
        if self._address.username:
            client.username_pw_set(self._address.username, self._address.password)
        will = self.device.will()
        client.will_set(f"{self._base}/{will.topic}", will.payload, qos=1, retain=True)
        client.on_connect = lambda _client, _data, _flags, reason, _properties: self._welcome(client, reason)
        client.on_message = lambda _client, _data, message: self._hear(message)
        client.on_socket_open = lambda _client, _data, sock: self._loop.add_reader(sock, client.loop_read)
        client.on_socket_register_write = lambda _client, _data, sock: self._loop.add_writer(sock, client.loop_write)
        client.on_socket_unregister_write = lambda _client, _data, sock: self._loop.remove_writer(sock)

        def closed(_client: Client, _data: Any, sock: Any) -> None:
            self._loop.remove_reader(sock)
            gone.set()
            self._woken.set()

        client.on_socket_close = closed
        return client

    async def _connected(self) -> None:
        gone = asyncio.Event()
        self._client = client = self._make_client(gone)
        endpoints = self._address.endpoints
        self._attempts += 1
        client.connect(*endpoints[(self._attempts - 1) % len(endpoints)], keepalive=60)
        sock = client.socket()
        if sock is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        rate = self._faults.breaks_per_hour / 3600
        breaks_at = time.time() + self._random.expovariate(rate) if rate else float("inf")
        while not gone.is_set():
            client.loop_misc()
            now = time.time()
            if now >= breaks_at:
                self.vanish()
                await asyncio.sleep(self._faults.away_seconds)
                return
            self._publish(self.device.tick(now))
            if now >= self._sample_at:
                self._sample_at += self._telemetry * (1 + (now - self._sample_at) // self._telemetry)
                if self.connected:
                    self._publish(self.device.telemetry(now))
                    self.sent += 1
            due = min(self._sample_at, breaks_at, self.device.due or float("inf"), now + LOOK_SECONDS)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.005, due - time.time())):
                    await self._woken.wait()
            self._woken.clear()

    def _welcome(self, client: Client, reason: Any) -> None:
        if reason.is_failure:
            if self._address.protocol == "auto":
                # It knows no newer one.
                self._protocol = MQTTv311
            return
        self.connected = True
        client.subscribe([(self._topics.desired, 1), (self._topics.generate_filter, 1)])
        self._publish(self.device.birth(time.time()))

    def _hear(self, message: MQTTMessage) -> None:
        heard = self._topics.parse(message.topic)
        if heard is None or self._client is None:
            return
        if heard.kind == "desired":
            self._publish(self.device.wish(bytes(message.payload), time.time()))
            self._woken.set()
        elif heard.kind == "generate" and heard.client is not None and not message.retain:
            request_id, frame = self.device.answer(bytes(message.payload))
            self._client.publish(self._topics.reply(heard.client, request_id), frame, qos=1)

    def _publish(self, messages: Sequence[Message]) -> None:
        if self._client is not None:
            for message in messages:
                qos = 0 if message.topic.startswith("telemetry/") else 1
                self._client.publish(f"{self._base}/{message.topic}", message.payload, qos=qos, retain=message.retain)

    def vanish(self) -> None:
        """The plug is pulled: the broker says so in its stead."""
        if self._client is not None and (sock := self._client.socket()) is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


async def serve(
    devices: Sequence[SimulatedDevice],
    address: BrokerAddress,
    root: str = DEFAULT_ROOT,
    *,
    telemetry: float = TELEMETRY_SECONDS,
    faults: Faults = NONE,
    links: list[Link] | None = None,
) -> None:
    """Connect ``devices`` and let them live until this is cancelled; ``links`` is filled with their connections."""
    links = [] if links is None else links
    async with asyncio.TaskGroup() as group:
        for number, device in enumerate(devices):
            links.append(Link(device, address, telemetry, faults, root))
            group.create_task(links[-1].run(), name=device.name)
            if number % 50 == 49:
                # A broker's queue of connections that wait has a hundred places.
                await asyncio.sleep(0.02)


@contextmanager
def living(
    devices: Sequence[SimulatedDevice],
    address: BrokerAddress,
    root: str = DEFAULT_ROOT,
    *,
    telemetry: float = TELEMETRY_SECONDS,
    faults: Faults = NONE,
) -> Iterator[list[Link]]:
    """The same, in a thread of its own; their connections."""
    started = threading.Event()
    held: dict[str, Any] = {}
    links: list[Link] = []

    async def main() -> None:
        held["loop"] = asyncio.get_running_loop()
        held["task"] = asyncio.current_task()
        started.set()
        await serve(devices, address, root, telemetry=telemetry, faults=faults, links=links)

    def run() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(main())

    thread = threading.Thread(target=run, name="simulated devices", daemon=True)
    thread.start()
    started.wait()
    try:
        yield links
    finally:
        held["loop"].call_soon_threadsafe(held["task"].cancel)
        thread.join(30)
