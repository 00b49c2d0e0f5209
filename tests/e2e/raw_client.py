"""An MQTT client that knows the documented topics and nothing of our code: what a stranger's program would be."""

from __future__ import annotations

import json
import queue
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import paho.mqtt.client as mqtt

SECONDS = 120.0
"""Until something that takes milliseconds counts as not happening: a machine may be busy with other things."""


@dataclass
class Answer:
    """All frames that came for one request id, in order of arrival; ``lasts`` are those that end it."""

    asked_at: float
    frames: list[dict[str, Any]] = field(default_factory=list)
    lasts: list[dict[str, Any]] = field(default_factory=list)
    ended_at: float | None = None

    @property
    def text(self) -> str:
        return str(self.lasts[0].get("text", "")) if self.lasts else ""

    @property
    def bundle(self) -> str:
        return str(self.lasts[0].get("bundle", "")) if self.lasts else ""

    @property
    def seconds(self) -> float:
        return (self.ended_at or time.monotonic()) - self.asked_at


class RawClient:
    """Asks devices over MQTT 5 (or 3.1.1) and keeps what arrives; also records ``reported``, telemetry and events."""

    def __init__(self, port: int, name: str, device: str, host: str = "127.0.0.1", protocol: str = "5") -> None:
        self.name = name
        self.device = device
        self.answers: dict[str, Answer] = {}
        self.frames: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()
        self.device_messages: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()
        self._changed = threading.Condition()
        self._ready = threading.Event()
        version = mqtt.MQTTv5 if protocol == "5" else mqtt.MQTTv311
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=name, protocol=version)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.on_message = self._on_message
        self._client.connect(host, port)
        self._client.loop_start()
        if not self._ready.wait(SECONDS):
            raise TimeoutError("the broker did not answer")

    def _on_connect(self, client: mqtt.Client, *_: Any) -> None:
        device = f"edge/v1/d/{self.device}"
        wanted = {
            f"edge/v1/c/{self.name}/r/+/+": 1,
            f"{device}/reported": 1,
            f"{device}/status": 1,
            f"{device}/info": 1,
            f"{device}/health": 1,
            f"{device}/telemetry/+": 0,
            f"{device}/event/+": 1,
        }
        if client.protocol == mqtt.MQTTv5:
            client.subscribe([(topic, mqtt.SubscribeOptions(qos=qos)) for topic, qos in wanted.items()])
        else:
            client.subscribe(list(wanted.items()))

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        body = json.loads(message.payload) if message.payload else {}
        if not message.topic.startswith(f"edge/v1/c/{self.name}/r/"):
            self.device_messages.put((message.topic.partition(f"/d/{self.device}/")[2], body))
            return
        request = message.topic.rsplit("/", 1)[1]
        with self._changed:
            answer = self.answers.setdefault(request, Answer(time.monotonic()))
            if "finish_reason" in body or "error" in body:
                answer.lasts.append(body)
                answer.ended_at = answer.ended_at or time.monotonic()
            else:
                answer.frames.append(body)
            self._changed.notify_all()
        self.frames.put((request, body))

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish at QoS 1 and wait for the broker's acknowledgement."""
        self._client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(SECONDS)

    def ask(self, request: str, text: str, **fields: Any) -> None:
        """Send one chat question; the answer collects in ``answers[request]``."""
        body = {"id": request, "messages": [{"role": "user", "content": text}], **fields}
        with self._changed:
            self.answers[request] = Answer(time.monotonic())
        self.publish(f"edge/v1/d/{self.device}/generate/{self.name}", json.dumps(body).encode())

    def send(self, request: str, text: str, **fields: Any) -> None:
        """Like :meth:`ask`, without waiting for the broker."""
        body = {"id": request, "messages": [{"role": "user", "content": text}], **fields}
        with self._changed:
            self.answers[request] = Answer(time.monotonic())
        self._client.publish(f"edge/v1/d/{self.device}/generate/{self.name}", json.dumps(body).encode(), qos=1)

    def next_frame(self) -> tuple[str, dict[str, Any]]:
        """The next frame of any answer, with the id of its request.

        Raises:
            queue.Empty: none within ``SECONDS``.
        """
        return self.frames.get(timeout=SECONDS)

    def unanswered(self) -> list[str]:
        """Ids of requests that have no last frame yet."""
        with self._changed:
            return [request for request, answer in self.answers.items() if not answer.lasts]

    def wait_until_fewer(self, outstanding: int, seconds: float = SECONDS) -> None:
        """Wait until fewer than ``outstanding`` requests are unanswered.

        Raises:
            TimeoutError: not within ``seconds``.
        """
        with self._changed:
            done = self._changed.wait_for(
                lambda: sum(not answer.lasts for answer in self.answers.values()) < outstanding, seconds
            )
        if not done:
            raise TimeoutError(f"still unanswered after {seconds:.0f} s: {self.unanswered()}")

    def wait_answer(self, request: str, seconds: float = SECONDS) -> Answer:
        """The answer, complete.

        Raises:
            TimeoutError: not within ``seconds``.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: bool(self.answers[request].lasts), seconds):
                raise TimeoutError(f"no answer to {request} within {seconds:.0f} s")
            return self.answers[request]

    def next_device_message(self, kind: str, seconds: float = SECONDS) -> dict[str, Any]:
        """The next message below the device's topic whose rest of the topic is ``kind``; others are dropped.

        Raises:
            TimeoutError: none within ``seconds``.
        """
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            try:
                found, body = self.device_messages.get(timeout=left)
            except queue.Empty:
                break
            if found == kind:
                return body
        raise TimeoutError(f"no {kind} within {seconds:.0f} s")

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
