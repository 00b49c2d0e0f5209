"""Connects simulated devices to a broker: one connection each, all in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from paho.mqtt.client import Client, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion

from tests.fleet.simulate.device import Message, SimulatedDevice

ROOT = "edge/v1"
TELEMETRY_SECONDS = 0.5


class Link:
    """One device's connection."""

    def __init__(self, device: SimulatedDevice, host: str, port: int, telemetry: float) -> None:
        self.device = device
        self._host, self._port = host, port
        self._telemetry = telemetry
        self._base = f"{ROOT}/d/{device.name}"
        self._loop = asyncio.get_running_loop()
        self._client: Client | None = None

    async def run(self) -> None:
        """Until it is cancelled; comes back by itself."""
        while True:
            with contextlib.suppress(OSError):
                await self._connected()
            await asyncio.sleep(0.2)

    async def _connected(self) -> None:
        gone = asyncio.Event()
        client = Client(CallbackAPIVersion.VERSION2, f"sim-{self.device.name}", protocol=MQTTv5)
        self._client = client
        will = self.device.will()
        client.will_set(f"{self._base}/{will.topic}", will.payload, qos=1, retain=True)
        client.on_connect = lambda *_: self._welcome(client)
        client.on_message = lambda _client, _data, message: self._publish(
            self.device.wish(bytes(message.payload), time.time())
        )
        client.on_socket_open = lambda _client, _data, sock: self._loop.add_reader(sock, client.loop_read)
        client.on_socket_close = lambda _client, _data, sock: (self._loop.remove_reader(sock), gone.set())
        client.on_socket_register_write = lambda _client, _data, sock: self._loop.add_writer(sock, client.loop_write)
        client.on_socket_unregister_write = lambda _client, _data, sock: self._loop.remove_writer(sock)
        client.connect(self._host, self._port, keepalive=30)
        sock = client.socket()
        if sock is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sample_at = time.time() + self._telemetry
        while not gone.is_set():
            client.loop_misc()
            now = time.time()
            self._publish(self.device.tick(now))
            if now >= sample_at:
                sample_at = now + self._telemetry
                self._publish(self.device.telemetry(now))
            due = min(sample_at, self.device.due or sample_at)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.005, min(due - time.time(), 0.1))):
                    await gone.wait()

    def _welcome(self, client: Client) -> None:
        client.subscribe(f"{self._base}/desired", qos=1)
        self._publish(self.device.birth(time.time()))
        self._publish(self.device.telemetry(time.time()))

    def _publish(self, messages: Sequence[Message]) -> None:
        if self._client is not None:
            for message in messages:
                qos = 1 if message.retain else 0
                self._client.publish(f"{self._base}/{message.topic}", message.payload, qos=qos, retain=message.retain)

    def vanish(self) -> None:
        """The plug is pulled: the broker says so in its stead."""
        if self._client is not None and (sock := self._client.socket()) is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


async def serve(
    devices: Sequence[SimulatedDevice], host: str, port: int, *, telemetry: float = TELEMETRY_SECONDS
) -> None:
    """Connect ``devices`` and let them live until this is cancelled."""
    async with asyncio.TaskGroup() as group:
        for device in devices:
            group.create_task(Link(device, host, port, telemetry).run(), name=device.name)


@contextmanager
def living(devices: Sequence[SimulatedDevice], port: int, *, telemetry: float = TELEMETRY_SECONDS) -> Iterator[None]:
    """The same, in a thread of its own."""
    started = threading.Event()
    held: dict[str, Any] = {}

    async def main() -> None:
        held["loop"] = asyncio.get_running_loop()
        held["task"] = asyncio.current_task()
        started.set()
        await serve(devices, "127.0.0.1", port, telemetry=telemetry)

    def run() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(main())

    thread = threading.Thread(target=run, name="simulated devices", daemon=True)
    thread.start()
    started.wait()
    try:
        yield
    finally:
        held["loop"].call_soon_threadsafe(held["task"].cancel)
        thread.join(30)
