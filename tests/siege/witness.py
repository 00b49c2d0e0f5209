"""Hears everything that the device says, and keeps count of what it owes."""

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

from tests.siege.grammar import DEVICE, FORGER, ROOT
from tests.siege.gunners import REPLIES, make_client
from tests.siege.shots import Shot

NO_RESULT = frozenset({404, 409, 410})
"""Answers to somebody else's use of an id."""

Key = tuple[str, str]


@dataclass
class Account:
    """``lasts``: the distinct last frames for one id, those left out that turn a request away for a while."""

    lasts: set[bytes] = field(default_factory=set)
    turned_away: int = 0

    @property
    def settled(self) -> bool:
        return bool(self.lasts or self.turned_away)


class Witness:
    """Its session outlives its connections."""

    def __init__(self, port: int) -> None:
        self.retained: dict[str, dict[str, Any]] = {}
        """The last ``reported``, ``health`` and ``status``."""
        self.outcomes: Counter[str] = Counter()
        self.frames = 0
        self.nonsense: list[str] = []
        """What the device said and cannot be read."""
        self.open: dict[Key, Shot] = {}
        """Owed and not settled yet."""
        self.failed: dict[Key, Shot] = {}
        """Answered with a 500."""
        self.internal: list[str] = []
        self._fired: dict[Key, float] = {}
        self._owed: dict[Key, Shot] = {}
        self._accounts: dict[Key, Account] = {}
        self._lock = threading.Lock()
        self._client = make_client("5", "witness")
        self._client.on_connect = self._on_connect
        self._client.on_message = self._on_message
        self.subscribed = threading.Event()
        self._client.on_subscribe = lambda *_: self.subscribed.set()
        session = Properties(PacketTypes.CONNECT)
        session.SessionExpiryInterval = 3600
        self._client.connect("127.0.0.1", port, clean_start=False, properties=session)
        self._client.loop_start()

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """At QoS 1, on the connection that hears the answers."""
        self._client.publish(topic, payload, 1, retain)

    def expect(self, shot: Shot) -> None:
        """It is about to be sent."""
        if shot.owed:
            with self._lock:
                key = (shot.client, shot.id)
                self.open[key] = self._owed[key] = shot
                self._fired[key] = time.monotonic()

    def outstanding(self, seconds: float) -> int:
        """Answers that are owed since less than ``seconds``."""
        since = time.monotonic() - seconds
        with self._lock:
            return sum(self._fired[key] > since for key in self.open)

    def account(self, key: Key) -> Account:
        with self._lock:
            return self._accounts.setdefault(key, Account())

    def judge(self) -> list[str]:
        """What is wrong with the results of all that was sent so far, which is then forgotten."""
        with self._lock:
            wrong = [f"{key} was never answered ({shot.what})" for key, shot in self.open.items()]
            wrong += self.nonsense + self.internal
            for key, account in self._accounts.items():
                whole = [last for last in account.lasts if b'"finish_reason":' in last]
                if len(whole) > 1 or (key in self._owed and len(account.lasts) > 1):
                    wrong.append(f"{key} has {len(account.lasts)} results: {sorted(account.lasts)}"[:2000])
            self._accounts.clear()
            self._owed.clear()
            self._fired.clear()
            self.open.clear()
            self.nonsense.clear()
            self.internal.clear()
        return wrong

    def _on_connect(self, client: mqtt.Client, *_: Any) -> None:
        base = f"{ROOT}/d/{DEVICE}"
        client.subscribe([(REPLIES, 1), *((f"{base}/{kind}", 1) for kind in ("reported", "health", "status"))])

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        levels = message.topic.split("/")
        if levels[3] == FORGER:
            return
        try:
            body = json.loads(message.payload)
            if levels[2] == "d":
                self.retained[levels[-1]] = body
            else:
                self._hear((levels[3], levels[6]), body, bytes(message.payload))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            self.nonsense.append(f"{message.topic} says {message.payload[:200]!r}: {error!r}")

    def _hear(self, key: Key, frame: dict[str, Any], payload: bytes) -> None:
        self.frames += 1
        error = frame.get("error")
        if error is None and "finish_reason" not in frame:
            return
        self.outcomes[error["type"] if error else frame["finish_reason"]] += 1
        if key[1] == "-" or (error and error["code"] in NO_RESULT):
            return
        with self._lock:
            account = self._accounts.setdefault(key, Account())
            if error and "retry_after_ms" in error:
                account.turned_away += 1
            else:
                account.lasts.add(payload)
            shot = self.open.pop(key, None) or self._owed.get(key)
            if error and error["code"] == 500:
                if shot is not None and error["type"] == "engine_failed":
                    self.failed[key] = shot
                elif error["type"] == "internal_error":
                    self.internal.append(f"{key}: {payload!r}")
