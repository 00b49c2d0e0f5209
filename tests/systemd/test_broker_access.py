"""The example broker configuration as shipped, on a real mosquitto with TLS: who may say and hear what.

mosquitto grants subscriptions that it then delivers nothing on, so every "cannot" is shown by a round trip: something
that may pass is sent after what may not, on the same way, and only that arrives.
"""

from __future__ import annotations

import os
import queue
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.broker import find_mosquitto, free_port

EXAMPLE = Path(__file__).resolve().parents[2] / "systemd" / "mosquitto"
SECONDS = 120.0
NOT_AUTHORIZED = 135

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]


class Fleet:
    """A running broker with the example's files, and the accounts of two devices and three programs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.device_port, self.program_port = free_port(), free_port()
        self._certificate()
        for door, users in (("devices", ("d1", "d2")), ("programs", ("alice", "bob", "rollout"))):
            (directory / f"{door}.passwd").touch(mode=0o600)
            for user in users:
                self._run("mosquitto_passwd", "-b", str(directory / f"{door}.passwd"), user, f"secret of {user}")
        self._rules("devices", ("#user kitchen-1", "user d1"), ("#topic read edge/v1/g", "topic read edge/v1/g"))
        self._rules("programs", ("#user", "user"), ("#topic", "topic"))
        config = (EXAMPLE / "edge.conf").read_text()
        config = config.replace("/etc/mosquitto/edge", str(directory)).replace("/var/lib/mosquitto", str(directory))
        config = config.replace("8883\n", f"{self.device_port} 127.0.0.1\n")
        config = config.replace("8884\n", f"{self.program_port} 127.0.0.1\n")
        assert config.count(" 127.0.0.1") == 2
        if os.geteuid() == 0:
            config = f"user root\n{config}"
        (directory / "mosquitto.conf").write_text(config)
        with (directory / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [str(find_mosquitto()), "-c", str(directory / "mosquitto.conf")], stdout=log, stderr=log
            )
        deadline = time.monotonic() + SECONDS
        while any(self._closed(port) for port in (self.device_port, self.program_port)):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                raise RuntimeError((directory / "log").read_text())
            time.sleep(0.02)

    def _certificate(self) -> None:
        self._run(
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1",
            "-keyout", str(self.directory / "server.key"), "-out", str(self.directory / "server.crt"),
        )  # fmt: skip

    def _rules(self, door: str, *changes: tuple[str, str]) -> None:
        text = (EXAMPLE / f"{door}.acl").read_text()
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = self.directory / f"{door}.acl"
        path.write_text(text)
        path.chmod(0o600)

    @staticmethod
    def _run(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True, timeout=120)

    @staticmethod
    def _closed(port: int) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) != 0

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(SECONDS)


class Account:
    """One logged-in user, MQTT 5; ``heard`` are (topic, payload) in the order of arrival."""

    def __init__(
        self, fleet: Fleet, user: str, *, port: int | None = None, password: str | None = None,
        client_id: str = "", session: bool = False, tls: bool = True,
    ) -> None:  # fmt: skip
        self.heard: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self._answers: queue.Queue[int] = queue.Queue()
        self._published: dict[int, int] = {}
        self._changed = threading.Condition()
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=client_id, protocol=mqtt.MQTTv5)
        self._client.username_pw_set(user, password or f"secret of {user}")
        if tls:
            self._client.tls_set(str(fleet.directory / "server.crt"), tls_version=ssl.PROTOCOL_TLS_CLIENT)
        self._client.on_connect = lambda _c, _d, _f, code, _p: self._answers.put(code.value)
        self._client.on_subscribe = lambda *_: self._answers.put(0)
        self._client.on_message = lambda _c, _d, message: self.heard.put((message.topic, message.payload))
        self._client.on_publish = self._on_publish
        properties = Properties(PacketTypes.CONNECT)
        if session:
            properties.SessionExpiryInterval = 3600
        is_device = re.fullmatch(r"d\d", user) is not None
        self._client.connect(
            "127.0.0.1", port or (fleet.device_port if is_device else fleet.program_port),
            clean_start=not session, properties=properties,
        )  # fmt: skip
        self._client.loop_start()
        self.connected = self._answers.get(timeout=SECONDS)

    def _on_publish(self, _client: Any, _data: Any, mid: int, code: Any, _properties: Any) -> None:
        with self._changed:
            self._published[mid] = code.value
            self._changed.notify_all()

    def subscribe(self, *filters: str) -> Account:
        self._client.subscribe([(name, mqtt.SubscribeOptions(qos=1)) for name in filters])
        self._answers.get(timeout=SECONDS)
        return self

    def publish(self, topic: str, payload: str = "hello") -> int:
        """Publish at QoS 1; the broker's reason code."""
        mid = self._client.publish(topic, payload, qos=1).mid
        with self._changed:
            assert self._changed.wait_for(lambda: mid in self._published, SECONDS)
            return self._published[mid]

    def next(self) -> tuple[str, bytes]:
        return self.heard.get(timeout=SECONDS)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


Login = Callable[..., Account]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    if shutil.which("mosquitto_passwd") is None:
        pytest.skip("mosquitto_passwd is not installed")
    running = Fleet(tmp_path_factory.mktemp("fleet"))
    yield running
    running.stop()


@pytest.fixture
def login(fleet: Fleet) -> Iterator[Login]:
    accounts: list[Account] = []

    def enter(user: str, **options: Any) -> Account:
        accounts.append(Account(fleet, user, **options))
        return accounts[-1]

    yield enter
    for account in accounts:
        account.close()


def test_a_prompt_goes_there_and_the_answer_comes_back(login: Login) -> None:
    device = login("d1").subscribe("edge/v1/d/d1/generate/+", "edge/v1/d/d1/control/+", "edge/v1/d/d1/desired")
    alice = login("alice").subscribe("edge/v1/c/alice/r/+/+", "edge/v1/d/+/status")
    assert alice.publish("edge/v1/d/d1/generate/alice", "prompt") == 0
    assert device.next() == ("edge/v1/d/d1/generate/alice", b"prompt")
    device.publish("edge/v1/c/alice/r/d1/1", "answer")
    assert alice.next() == ("edge/v1/c/alice/r/d1/1", b"answer")
    alice.publish("edge/v1/d/d1/control/alice", "cancel")
    assert device.next() == ("edge/v1/d/d1/control/alice", b"cancel")


def test_a_picture_goes_to_its_device_in_parts_in_its_senders_name_only(login: Login) -> None:
    device = login("d1").subscribe("edge/v1/d/d1/picture/+/+/+")
    other = login("d2").subscribe("edge/v1/d/d1/picture/+/+/+", "edge/v1/d/d2/picture/+/+/+")
    alice, bob = login("alice"), login("bob")
    part = f"{'0f' * 32}/1-2"
    assert bob.publish(f"edge/v1/d/d1/picture/alice/{part}", "forged") == NOT_AUTHORIZED
    assert alice.publish(f"edge/v1/d/d1/picture/alice/{part}", "her own") == 0
    assert device.next() == (f"edge/v1/d/d1/picture/alice/{part}", b"her own")
    alice.publish(f"edge/v1/d/d2/picture/alice/{part}", "for the second")
    assert other.next()[1] == b"for the second"


def test_a_device_cannot_read_anothers_prompts(login: Login) -> None:
    first = login("d1").subscribe("edge/v1/d/d1/generate/+")
    second = login("d2").subscribe("#", "edge/v1/#", "edge/v1/d/d1/generate/+", "edge/v1/d/+/generate/+")
    alice = login("alice")
    alice.publish("edge/v1/d/d1/generate/alice", "for the first")
    assert first.next()[1] == b"for the first"
    alice.publish("edge/v1/d/d2/generate/alice", "for the second")
    assert second.next()[1] == b"for the second"


def test_a_program_cannot_read_anothers_answers(login: Login) -> None:
    bob = login("bob").subscribe("#", "edge/v1/c/alice/r/+/+", "edge/v1/c/+/r/+/+")
    device = login("d1")
    device.publish("edge/v1/c/alice/r/d1/1", "private")
    device.publish("edge/v1/c/bob/r/d1/1", "bob's own")
    assert bob.next()[1] == b"bob's own"


def test_a_program_cannot_publish_what_is_wanted(login: Login) -> None:
    device = login("d1").subscribe("edge/v1/d/d1/desired")
    assert login("alice").publish("edge/v1/d/d1/desired", "evil") == NOT_AUTHORIZED
    assert login("rollout").publish("edge/v1/d/d1/desired", "good") == 0
    assert device.next()[1] == b"good"


def test_a_device_cannot_publish_what_is_wanted_nor_prompts(login: Login) -> None:
    first = login("d1").subscribe("edge/v1/d/d1/desired", "edge/v1/d/d1/generate/+")
    second = login("d2")
    assert second.publish("edge/v1/d/d1/desired", "evil") == NOT_AUTHORIZED
    assert second.publish("edge/v1/d/d1/generate/alice", "evil") == NOT_AUTHORIZED
    assert second.publish("edge/v1/d/d2/desired", "evil") == NOT_AUTHORIZED
    login("alice").publish("edge/v1/d/d1/generate/alice", "good")
    assert first.next()[1] == b"good"


@pytest.mark.parametrize("kind", ["generate", "control"])
def test_a_program_cannot_use_anothers_name(login: Login, kind: str) -> None:
    device = login("d1").subscribe(f"edge/v1/d/d1/{kind}/+")
    assert login("bob").publish(f"edge/v1/d/d1/{kind}/alice", "forged") == NOT_AUTHORIZED
    login("alice").publish(f"edge/v1/d/d1/{kind}/alice", "real")
    assert device.next()[1] == b"real"


def test_nobody_answers_for_a_device(login: Login) -> None:
    alice = login("alice").subscribe("edge/v1/c/alice/r/+/+", "edge/v1/d/+/status")
    bob, second = login("bob"), login("d2")
    for impostor in (alice, bob, second):
        assert impostor.publish("edge/v1/c/alice/r/d1/1", "forged") == NOT_AUTHORIZED
        assert impostor.publish("edge/v1/d/d1/status", "forged") == NOT_AUTHORIZED
    # Not even for a device of its own name: programs are no devices.
    assert bob.publish("edge/v1/c/alice/r/bob/1", "forged") == NOT_AUTHORIZED
    assert bob.publish("edge/v1/d/bob/status", "forged") == NOT_AUTHORIZED
    login("d1").publish("edge/v1/c/alice/r/d1/1", "real")
    assert alice.next()[1] == b"real"


def test_a_group_reaches_its_members_only(login: Login) -> None:
    member = login("d1").subscribe("$share/kitchen/edge/v1/g/kitchen/generate/+")
    alice = login("alice")
    alice.publish("edge/v1/g/kitchen/generate/alice", "one")
    assert member.next()[1] == b"one"
    stranger = login("d2").subscribe("edge/v1/g/kitchen/generate/+", "edge/v1/d/d2/generate/+")
    alice.publish("edge/v1/g/kitchen/generate/alice", "two")
    assert member.next()[1] == b"two"
    alice.publish("edge/v1/d/d2/generate/alice", "own")
    assert stranger.next()[1] == b"own"


def test_a_taken_over_client_id_brings_no_prompts_of_its_owner(login: Login) -> None:
    owner = login("d1", client_id="edge-d1", session=True).subscribe("edge/v1/d/d1/generate/+")
    owner.close()
    alice = login("alice")
    alice.publish("edge/v1/d/d1/generate/alice", "queued while away")
    thief = login("d2", client_id="edge-d1", session=True).subscribe("edge/v1/d/d2/generate/+")
    alice.publish("edge/v1/d/d2/generate/alice", "own")
    assert thief.next()[1] == b"own"


def test_only_accounts_of_a_door_pass_it(login: Login, fleet: Fleet) -> None:
    assert login("d1", password="wrong").connected == NOT_AUTHORIZED
    assert login("mallory").connected == NOT_AUTHORIZED
    assert login("alice", port=fleet.device_port).connected == NOT_AUTHORIZED
    assert login("d1", port=fleet.program_port).connected == NOT_AUTHORIZED


def test_there_is_no_door_without_tls(fleet: Fleet) -> None:
    for port in (fleet.device_port, fleet.program_port):
        with socket.create_connection(("127.0.0.1", port), SECONDS) as plain:
            plain.sendall(b"\x10\x0d\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x00")
            try:
                answer = plain.recv(16)
            except ConnectionResetError:
                answer = b""
            assert not answer.startswith(b"\x20")  # no CONNACK
