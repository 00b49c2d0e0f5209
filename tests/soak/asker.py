"""A client that asks without pause, asks again when it hears nothing, and keeps every result it was ever given."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.soak.world import NAME
from tests.tiny import ANSWERS

CLIENT = "asker"
QUESTIONS = tuple(ANSWERS)[:4]
WINDOW = 6
"""Requests outstanding."""

AGAIN_SECONDS = 4.0
"""A client that heard nothing for so long asks again, with the same bytes."""


@dataclass
class Request:
    """``results``: the distinct last frames; being turned away before it is accepted is none."""

    question: str
    body: bytes
    due: float = 0.0
    results: set[bytes] = field(default_factory=set)


class Asker:
    """``step`` asks what is due; the rest happens in the client's own thread."""

    def __init__(self, port: int) -> None:
        self.requests: dict[str, Request] = {}
        self.open: set[str] = set()
        self.swaps = 0
        self.rollbacks: Counter[str] = Counter()
        """By their reasons."""
        self.last_swap: dict[str, Any] = {}
        self.reported: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=CLIENT, protocol=mqtt.MQTTv5)
        self._client.on_connect = self._on_connect
        self._client.on_message = self._on_message
        self._client.reconnect_delay_set(1, 1)
        session = Properties(PacketTypes.CONNECT)
        session.SessionExpiryInterval = 3600
        self._client.connect("127.0.0.1", port, clean_start=False, properties=session)
        self._client.loop_start()

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def desire(self, version: str, **more: object) -> None:
        """What the device is to run."""
        wanted = {"revision": f"r{version}", "bundle": {"name": "tiny", "version": version}, **more}
        self._client.publish(f"edge/v1/d/{NAME}/desired", json.dumps(wanted).encode(), qos=1, retain=True)

    def step(self, *, more: bool) -> None:
        """Ask what is due and, with ``more``, what is new."""
        now = time.monotonic()
        with self._lock:
            due = [name for name in self.open if self.requests[name].due <= now]
            while more and len(self.open) + len(due) < WINDOW and len(due) < WINDOW:
                name = f"q{len(self.requests)}"
                self.requests[name] = self._make(name)
                self.open.add(name)
                due.append(name)
            for name in due:
                self.requests[name].due = now + AGAIN_SECONDS
        for name in due:
            self._client.publish(f"edge/v1/d/{NAME}/generate/{CLIENT}", self.requests[name].body, qos=1)

    def _make(self, name: str) -> Request:
        number = len(self.requests)
        question = QUESTIONS[number % len(QUESTIONS)]
        body = {
            "id": name,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": 64,
            "temperature": 0,
            "stream": number % 3 == 0,
        }
        return Request(question, json.dumps(body).encode())

    def _on_connect(self, client: mqtt.Client, *_: Any) -> None:
        client.subscribe(
            [(f"edge/v1/c/{CLIENT}/r/+/+", 1), (f"edge/v1/d/{NAME}/event/+", 1), (f"edge/v1/d/{NAME}/reported", 1)]
        )

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        last = message.topic.rpartition("/")[2]
        body = json.loads(message.payload)
        if message.topic == f"edge/v1/d/{NAME}/reported":
            self.reported = body
        elif "/event/" in message.topic:
            if last == "swap":
                self.swaps += 1
                self.last_swap = body["detail"]
            if last == "rollback":
                self.rollbacks[body["detail"]["reason"]] += 1
        elif last in self.requests and ("finish_reason" in body or "error" in body):
            self._settle(last, body, bytes(message.payload))

    def _settle(self, name: str, body: dict[str, Any], payload: bytes) -> None:
        error = body.get("error", {})
        again = error.get("retry_after_ms")
        with self._lock:
            request = self.requests[name]
            # It was turned away and may come again: that is no result.
            if again is not None:
                request.due = time.monotonic() + min(again / 1000, AGAIN_SECONDS)
                return
            request.results.add(payload)
            self.open.discard(name)
