"""A broker that stops reading: frames merge, and decoding never waits for the network."""

from __future__ import annotations

import json
import queue
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.config import AgentConfig
from agent.mqtt.link import MAX_BACKED_UP
from agent.mqtt.settings import BrokerSettings
from agent.serving.settings import ServingSettings
from tests.agent.device import Device, sealed

TOKENS = 20_000
FLOOD = 10_000
GENERATE = "edge/v1/d/d/generate/c"
LONG = json.dumps({"id": "long", "prompt": f"count {TOKENS}"}).encode()
CONNECT, PUBLISH, PUBACK, SUBSCRIBE = 1, 3, 4, 8


class Staller:
    """Enough of an MQTT 3.1.1 broker for one client, which reads only while it wants to."""

    def __init__(self) -> None:
        self._server = socket.socket()
        self._server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        self._server.bind(("127.0.0.1", 0))
        self._server.listen(1)
        self.port: int = self._server.getsockname()[1]
        self.reading = threading.Event()
        self.reading.set()
        self.published: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self._peer: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def publish(self, topic: str, payload: bytes, qos: int = 1) -> None:
        assert self._peer is not None
        body = len(topic).to_bytes(2, "big") + topic.encode() + b"\0\1" * qos + payload
        length = bytes([len(body) % 128 | (128 if len(body) > 127 else 0), *([len(body) // 128] * (len(body) > 127))])
        self._peer.sendall(bytes([PUBLISH << 4 | qos << 1]) + length + body)

    def close(self) -> None:
        self._server.close()
        if self._peer is not None:
            self._peer.close()
        self.reading.set()
        self._thread.join(120)

    def _serve(self) -> None:
        try:
            self._peer, _ = self._server.accept()
            while True:
                kind, flags, body = self._read()
                if kind == CONNECT:
                    self._peer.sendall(b"\x20\x02\x00\x00")
                elif kind == SUBSCRIBE:
                    self._peer.sendall(b"\x90\x05" + body[:2] + b"\x01\x01\x01")
                elif kind == PUBLISH:
                    self._take(flags, body)
        except OSError:
            pass

    def _take(self, flags: int, body: bytes) -> None:
        assert self._peer is not None
        end = 2 + int.from_bytes(body[:2], "big")
        start = end
        if flags & 6:
            self._peer.sendall(bytes([PUBACK << 4, 2]) + body[end : end + 2])
            start += 2
        self.published.put((body[2:end].decode(), body[start:]))

    def _read(self) -> tuple[int, int, bytes]:
        first = self._exactly(1)[0]
        length, shift = 0, 0
        while True:
            byte = self._exactly(1)[0]
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        return first >> 4, first & 15, self._exactly(length)

    def _exactly(self, count: int) -> bytes:
        assert self._peer is not None
        data = b""
        while len(data) < count:
            self.reading.wait()
            more = self._peer.recv(count - len(data))
            if not more:
                raise OSError("closed")
            data += more
        return data


@pytest.fixture
def staller() -> Iterator[Staller]:
    made = Staller()
    yield made
    made.close()


@pytest.fixture
def device(staller: Staller, tmp_path: Path) -> Iterator[Device]:
    config = AgentConfig(
        device="d",
        state_dir=tmp_path,
        broker=BrokerSettings(host="127.0.0.1", port=staller.port, protocol="3.1.1"),
        serving=ServingSettings(
            stream_interval_ms=0, stop_seconds=0, default_max_tokens=TOKENS, max_tokens_limit=TOKENS
        ),
    )
    made = Device(config, tmp_path / "state.db").start(sealed())
    yield made
    made.stop()


def back_up(staller: Staller, device: Device) -> None:
    """The broker reads no more, and a long answer fills all there is between it and the device."""
    staller.reading.clear()
    staller.publish(GENERATE, LONG)
    device.until(lambda: device.meter.requests == {"stop": 1})
    device.until(lambda: not device.gateway.connection.writable)


def frames_until(staller: Staller, request: str) -> list[tuple[str, dict[str, Any]]]:
    """What clients get, by request, up to the end of ``request``."""
    found: list[tuple[str, dict[str, Any]]] = []
    while not found or found[-1][0] != request or "finish_reason" not in found[-1][1]:
        topic, payload = staller.published.get(timeout=120)
        if topic.startswith("edge/v1/c/"):
            found.append((topic.rpartition("/")[2], json.loads(payload)))
    return found


def test_answer_is_decoded_while_the_broker_reads_nothing(staller: Staller, device: Device) -> None:
    back_up(staller, device)
    # The whole answer was decoded, and most of its 20,000 pieces were merged instead of waiting in a buffer.
    assert device.meter.frames < TOKENS / 2
    assert staller.published.qsize() < TOKENS / 2

    staller.reading.set()
    *pieces, last = (frame for request, frame in frames_until(staller, "long") if request == "long")
    assert last["text"] == "".join(f"{number} " for number in range(TOKENS))
    assert last["text"].startswith("".join(frame["d"] for frame in pieces))
    assert [frame["s"] for frame in [*pieces, last]] == list(range(len(pieces) + 1))


def test_refused_control_messages_do_not_pile_up(staller: Staller, device: Device) -> None:
    back_up(staller, device)
    for number in range(FLOOD):
        staller.publish("edge/v1/d/d/control/c", json.dumps({"id": f"x{number}", "op": "explode"}).encode(), qos=0)
    device.until(lambda: device.meter.refused.get("control") == FLOOD)
    staller.reading.set()
    frames_until(staller, "long")
    staller.publish(GENERATE, b'{"id": "next", "prompt": "count 2"}')
    refusals = [frame for _, frame in frames_until(staller, "next") if "control" in frame]
    assert 0 < len(refusals) <= MAX_BACKED_UP


def test_errors_and_repeated_answers_do_not_pile_up(staller: Staller, device: Device) -> None:
    back_up(staller, device)
    for number in range(FLOOD):
        staller.publish(GENERATE, json.dumps({"id": f"x{number}", "prompt": 7}).encode(), qos=0)
    device.until(lambda: device.meter.refused.get("invalid_request") == FLOOD)
    waiting = device.call(lambda: device.gateway.connection.undelivered)
    assert waiting < FLOOD / 2
    for _ in range(50):
        staller.publish(GENERATE, LONG, qos=0)
    device.until(lambda: device.meter.redelivered == 50)
    assert device.call(lambda: device.gateway.connection.undelivered) == waiting
    # Nothing that was promised is left out: an answer waits behind all that.
    staller.publish(GENERATE, b'{"id": "next", "prompt": "count 2"}', qos=0)
    device.until(lambda: device.meter.requests == {"stop": 2})
    staller.reading.set()
    assert frames_until(staller, "next")[-1][1]["text"] == "0 1 "
    device.until(lambda: device.gateway.connection.undelivered == 0)
