"""Asks, disturbs, asks again, and counts the distinct results of each request: there must be one."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import psutil
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.engine.engine_selection import open_engine
from agent.engine.interface import Engine, FinishEvent, Generation, TokenEvent
from tests.agent.worker.double import ScriptedEngine
from tests.broker import Broker
from tests.chaos.device import NAME, reference

CLIENT = "stormer"
WINDOW = 48
"""Requests outstanding; more than the device's queue holds, so that some are turned away, too."""

AGAIN_SECONDS = 3.0
"""A client that heard nothing for so long asks again, with the same bytes."""

STUCK_SECONDS = 300.0
"""No result at all for so long: something is lost."""

KINDS = (
    "worker killed", "swap: overlap", "agent killed", "client cut", "swap: drain", "broker killed", "agent restarted",
)  # fmt: skip
KILL_AGENT = KINDS.index("agent killed")

PROMPTS = 24
AUDITED = 200


@dataclass
class Request:
    """``results`` are the distinct last frames; errors that turn a request away before it is accepted are none."""

    body: bytes
    prompt: int
    cancelled: bool
    due: float = 0.0
    results: set[bytes] = field(default_factory=set)
    deliveries: int = 0


@dataclass
class Report:
    """``broken`` says what did not hold; empty when all did.

    ``bundles``: how many each bundle answered; ``again``: answers that took more than one attempt.
    """

    requests: int
    outcomes: Counter[str]
    bundles: Counter[str]
    again: int
    disturbances: Counter[str]
    asked: int
    delivered: int
    seconds: float
    broken: list[str]


class Storm:
    """One device, one broker, one client.

    Without ``bundles`` the workers hold a quick engine without a model, and the device swaps between two names for it.
    """

    def __init__(
        self,
        root: Path,
        requests: int,
        seed: int,
        every: int,
        say: Callable[[str], None],
        bundles: Sequence[Path] = (),
    ) -> None:
        self._random = random.Random(seed)
        self._say = say
        self._every = every
        self._root = root
        self._real = bool(bundles)
        self._bundles = list(bundles) or [root / name for name in ("bundle", "other-bundle")]
        self._requests = {f"r{number}": self._make(number) for number in range(requests)}
        self._lock = threading.Lock()
        self._answered = 0
        self._asked = 0
        self._heard = time.monotonic()
        self._done: Counter[str] = Counter()
        self._broker = Broker(root / "broker")
        self._agent: subprocess.Popen[bytes] | None = None
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=CLIENT, protocol=mqtt.MQTTv5)
        self._client.on_connect = lambda client, *_: client.subscribe(f"edge/v1/c/{CLIENT}/r/+/+", qos=1)
        self._client.on_message = self._on_message
        self._client.reconnect_delay_set(1, 1)

    def _make(self, number: int) -> Request:
        prompt = self._random.randrange(PROMPTS)
        body = {
            "id": f"r{number}",
            "prompt": f"prompt {prompt}",
            "max_tokens": 6,
            "stream": self._random.random() < 0.5,
            "priority": self._random.randrange(10),
        }
        return Request(json.dumps(body).encode(), prompt, self._random.random() < 0.03)

    # -- the world -----------------------------------------------------------------------------------------------------

    def run(self) -> Report:
        """Ask everything; returns when each request has a result and a sample was asked once more."""
        started = time.monotonic()
        try:
            self._broker.start()
            self._start_agent()
            session = Properties(PacketTypes.CONNECT)
            session.SessionExpiryInterval = 3600
            self._client.connect("127.0.0.1", self._broker.port, clean_start=False, properties=session)
            self._client.loop_start()
            stuck = self._ask_everything()
            if not stuck:
                stuck = self._audit()
        finally:
            self._client.disconnect()
            self._client.loop_stop()
            self._end_agent(kill=True)
            self._broker.stop()
        return self._judge(stuck, time.monotonic() - started)

    def _start_agent(self) -> None:
        (self._root / "state").mkdir(exist_ok=True)
        with (self._root / "agent.log").open("ab") as log:
            self._agent = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.device",
                 str(self._broker.port), str(self._root / "state"), *map(str, self._bundles),
                 *(["--real"] if self._real else [])],
                stdout=log, stderr=log,
            )  # fmt: skip

    def _end_agent(self, *, kill: bool) -> None:
        assert self._agent is not None
        (self._agent.kill if kill else self._agent.terminate)()
        self._agent.wait(120)

    def _disturb(self, number: int) -> None:
        kind = KINDS[number % len(KINDS)]
        self._done[kind] += 1
        self._say(f"{self._answered} answered; {kind}")
        if kind == "worker killed":
            assert self._agent is not None
            for child in psutil.Process(self._agent.pid).children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
        elif kind.startswith("swap"):
            self._client.publish(f"edge/v1/d/{NAME}/desired", kind.removeprefix("swap: ").encode(), qos=1)
        elif kind == "client cut":
            with contextlib.suppress(OSError, AttributeError):
                self._client.socket().shutdown(socket.SHUT_RDWR)
        elif kind == "broker killed":
            self._broker.kill()
            self._broker.start()
        else:
            self._end_agent(kill=kind == "agent killed")
            self._start_agent()

    # -- asking --------------------------------------------------------------------------------------------------------

    def _ask_everything(self) -> list[str]:
        disturbances = 0
        waiting = list(self._requests)
        open_: set[str] = set()
        while waiting or open_:
            open_ = {name for name in open_ if not self._requests[name].results}
            while waiting and len(open_) < WINDOW:
                name = waiting.pop(0)
                open_.add(name)
                self._ask(name)
                if self._random.random() < 0.1:
                    self._ask(name)
                if self._requests[name].cancelled:
                    self._control({"id": name, "op": "cancel"})
            if self._agent is not None and self._agent.poll() is not None:
                raise RuntimeError(f"the agent ended by itself: {(self._root / 'agent.log').read_text()[-1000:]}")
            now = time.monotonic()
            for name in open_:
                if self._requests[name].due <= now:
                    self._ask(name)
            if self._answered >= (disturbances + 1) * self._every and waiting:
                self._disturb(disturbances)
                disturbances += 1
                self._heard = time.monotonic()
            if now - self._heard > STUCK_SECONDS:
                return sorted(open_)
            time.sleep(0.01)
        return []

    def _audit(self) -> list[str]:
        """After one more restart: the same bytes again."""
        self._disturb(KILL_AGENT)
        names = self._random.sample(sorted(self._requests), min(AUDITED, len(self._requests)))
        before = {name: self._requests[name].deliveries for name in names}
        self._heard = time.monotonic()
        open_ = set(names)
        for name in names:
            self._requests[name].due = 0.0
        while open_:
            now = time.monotonic()
            # No more than the device settles at once: what is stored is answered whatever waits.
            for name in sorted(open_)[:WINDOW]:
                if self._requests[name].due <= now:
                    self._ask(name)
            open_ = {name for name in open_ if self._requests[name].deliveries == before[name]}
            if now - self._heard > STUCK_SECONDS:
                return sorted(open_)
            time.sleep(0.01)
        return []

    def _ask(self, name: str) -> None:
        self._asked += 1
        self._requests[name].due = time.monotonic() + AGAIN_SECONDS
        self._client.publish(f"edge/v1/d/{NAME}/generate/{CLIENT}", self._requests[name].body, qos=1)

    def _control(self, body: dict[str, Any]) -> None:
        self._client.publish(f"edge/v1/d/{NAME}/control/{CLIENT}", json.dumps(body).encode(), qos=1)

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        frame = json.loads(message.payload)
        request = self._requests.get(message.topic.rpartition("/")[2])
        if request is None or not ("finish_reason" in frame or "error" in frame):
            return
        again = frame.get("error", {}).get("retry_after_ms")
        if again is not None:
            request.due = time.monotonic() + min(again / 1000, AGAIN_SECONDS)
            self._done["turned away"] += 1
            return
        with self._lock:
            self._answered += not request.results
            request.results.add(bytes(message.payload))
            request.deliveries += 1
            self._heard = time.monotonic()

    # -- counting ------------------------------------------------------------------------------------------------------

    def _judge(self, stuck: list[str], seconds: float) -> Report:
        broken = [f"{name} has no result" for name in stuck if not self._requests[name].results]
        broken += [f"{name} was not answered again" for name in stuck if self._requests[name].results]
        expected = {reference(index): self._expect(directory) for index, directory in enumerate(self._bundles)}
        outcomes: Counter[str] = Counter()
        bundles: Counter[str] = Counter()
        again = 0
        for name, request in self._requests.items():
            if len(request.results) > 1:
                broken.append(f"{name} has {len(request.results)} results: {sorted(request.results)}")
            for result in request.results:
                frame = json.loads(result)
                kind = frame.get("finish_reason") or frame["error"]["type"]
                outcomes[kind] += 1
                if kind in ("stop", "length"):
                    bundles[frame["bundle"]] += 1
                    again += frame["attempt"] > 1
                    right = expected[frame["bundle"]][request.prompt]
                    if frame["text"] != right:
                        broken.append(f"{name} got {frame['text']!r} for {right!r}")
                if kind == "cancelled" and not request.cancelled:
                    broken.append(f"{name} was cancelled by nobody")
        delivered = sum(request.deliveries for request in self._requests.values())
        return Report(
            len(self._requests), outcomes, bundles, again, self._done, self._asked, delivered, seconds, broken
        )

    def _expect(self, directory: Path) -> list[str]:
        """The answer to each prompt, asked alone in this process."""
        engine: Engine = open_engine(directory, threads=2, max_bytes=64 << 20) if self._real else ScriptedEngine()
        answers = []
        for number in range(PROMPTS):
            engine.admit(Generation(1, CLIENT, prompt=f"prompt {number}", max_tokens=6))
            text = ""
            while engine.busy:
                for event in engine.step():
                    if isinstance(event, TokenEvent | FinishEvent):
                        text += event.text
            answers.append(text)
        engine.release()
        return answers
