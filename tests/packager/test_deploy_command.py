"""``deploy`` on a real broker: who is asked, who is waited for, and how it ends."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from msgspec import UNSET

from contract.mqtt.device import Status
from contract.mqtt.encoding import encode
from contract.mqtt.faults import ReportedError
from contract.mqtt.reading import parse_desired
from contract.mqtt.reports import BundleState, Phase, Reported
from contract.mqtt.topics import Topics
from contract.system.command_line import main
from contract.windows import Window, read_window
from edge_bundle.broker import BrokerAddress
from edge_bundle.broker_session import BrokerSession
from packager.cli import COMMANDS
from packager.watch.deployment import UNHEARD, Deployment
from tests.broker import Broker

pytestmark = pytest.mark.broker
TOPICS = Topics("kitchen-1")
UNREACHABLE = ReportedError("source_unavailable", "depot is away; retrying in 5 s", retry_in_seconds=5.0)
ACTIVE = BundleState(name="tiny", version="1.0.0", digest="0" * 64, security_epoch=0)
OLD = BundleState(name="tiny", version="0.9.0", digest="1" * 64, security_epoch=0)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    made = Broker(tmp_path / "broker")
    made.start()
    yield made
    made.stop()


def say(broker: Broker, topic: str, payload: bytes) -> None:
    with BrokerSession(BrokerAddress("127.0.0.1", broker.port), "says") as session:
        session.publish(topic, payload, retain=True)


def device_that_reports(broker: Broker, *course: tuple[Phase, BundleState | None, ReportedError | None]) -> None:
    """Be online, and answer the next desired document with ``course``."""
    session = BrokerSession(BrokerAddress("127.0.0.1", broker.port), "device")
    session.subscribe(TOPICS.desired)
    session.publish(TOPICS.status, encode(Status(True, "boot")), retain=True)

    def run() -> None:
        with session:
            for message in session.messages(120.0):
                revision = json.loads(message.payload)["revision"]
                for phase, active, error in course:
                    reported = Reported(revision, phase, None, active, None, error)
                    session.publish(TOPICS.reported, encode(reported), retain=True)
                return

    threading.Thread(target=run, daemon=True).start()


def deploy(broker: Broker, *arguments: str) -> int:
    return main("edge-packager", "", COMMANDS, ["deploy", "--broker", broker.url, "tiny@1.0.0", *arguments])


def desired(broker: Broker, device: str) -> bytes | None:
    """What the broker keeps for ``device``."""
    with BrokerSession(BrokerAddress("127.0.0.1", broker.port), "looks") as session:
        session.subscribe(Topics(device).desired)
        # What is kept comes first.
        session.subscribe("looks")
        session.publish("looks", b"")
        found = None
        for message in session.messages(120.0):
            if message.topic == "looks":
                return found
            found = message.payload
    raise TimeoutError("the broker does not answer")


def test_a_device_that_tries_again_is_waited_for(broker: Broker, capsys: pytest.CaptureFixture[str]) -> None:
    device_that_reports(
        broker,
        ("RESOLVE", OLD, None),
        ("IDLE", OLD, UNREACHABLE),
        ("RESOLVE", OLD, UNREACHABLE),
        ("IDLE", ACTIVE, None),
    )
    assert deploy(broker, "--device", "kitchen-1", "--wait", "--timeout", "120") == 0
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "kitchen-1: asked", "kitchen-1: resolve",
        "kitchen-1: waiting: depot is away; retrying in 5 s [source_unavailable]", "kitchen-1: resolve",
        "kitchen-1: active tiny@1.0.0",
    ]  # fmt: skip


def test_what_it_still_waits_for_is_said_in_the_end(
    broker: Broker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report, ahead = Deployment.report, 0.0

    def reported(self: Deployment, device: str, payload: bytes, now: float) -> tuple[Reported, str] | None:
        # Once the device has said it, the time is over.
        nonlocal ahead
        ahead = 600.0
        return report(self, device, payload, now)

    monkeypatch.setattr(Deployment, "report", reported)
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + ahead)
    monkeypatch.setattr("packager.commands.deploy.time", clock)
    device_that_reports(broker, ("IDLE", None, UNREACHABLE))
    assert deploy(broker, "--device", "kitchen-1", "--wait", "--timeout", "600") == 4
    error = capsys.readouterr().err
    assert "kitchen-1: not done within 600 s, it tries again: depot is away" in error
    assert error.count("\n") == 1


def test_a_broker_that_goes_away_meanwhile_is_said_and_waited_for(
    broker: Broker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, hear = threading.Event(), Deployment.broker

    def noticed(self: Deployment, connected: bool, now: float) -> str | None:
        text = hear(self, connected, now)
        if text is not None:
            seen.set()
        return text

    monkeypatch.setattr(Deployment, "broker", noticed)

    def device() -> None:
        with BrokerSession(BrokerAddress("127.0.0.1", broker.port), "device") as session:
            session.subscribe(TOPICS.desired)
            session.publish(TOPICS.status, encode(Status(True, "boot")), retain=True)
            online.set()
            message = session.next_message(120.0)
            assert message is not None
            revision = json.loads(message.payload)["revision"]
            session.publish(TOPICS.reported, encode(Reported(revision, "CANARY", None, None, None, None)), retain=True)
        broker.stop()
        assert seen.wait(120.0)
        broker.start()
        say(broker, TOPICS.reported, encode(Reported(revision, "IDLE", None, ACTIVE, None, None)))

    online = threading.Event()
    thread = threading.Thread(target=device, daemon=True)
    thread.start()
    assert online.wait(120.0)
    assert deploy(broker, "--device", "kitchen-1", "--wait", "--timeout", "120") == 0
    thread.join(120.0)
    said = capsys.readouterr().out.splitlines()
    assert f"broker {BrokerAddress('127.0.0.1', broker.port).name}: {UNHEARD}" in said
    assert said[-1] == "kitchen-1: active tiny@1.0.0"


def test_a_refusal_is_final(broker: Broker, capsys: pytest.CaptureFixture[str]) -> None:
    device_that_reports(broker, ("RESOLVE", OLD, None), ("IDLE", OLD, ReportedError("target_unknown", "not listed")))
    assert deploy(broker, "--device", "kitchen-1", "--wait") == 3
    assert "kitchen-1 refused it: not listed" in capsys.readouterr().err


def test_a_device_that_was_never_seen_is_given_no_wish(broker: Broker, capsys: pytest.CaptureFixture[str]) -> None:
    device_that_reports(broker)
    assert deploy(broker, "--device", "kitchen1") == 4
    assert (
        "no device kitchen1 is known to this broker; did you mean kitchen-1?; --force leaves" in capsys.readouterr().err
    )
    assert deploy(broker, "--device", "kitchen-1", "--device", "kitchen1") == 4
    assert (desired(broker, "kitchen1"), desired(broker, "kitchen-1")) == (None, None), "none of them, if not all"
    assert deploy(broker, "--device", "kitchen1", "--force") == 0
    assert desired(broker, "kitchen1") is not None


def test_a_time_to_activate_at_goes_with_the_wish(broker: Broker) -> None:
    say(broker, TOPICS.status, encode(Status(False, "boot")))
    when = ["--not-before", "2027-01-10T00:00:00Z", "--window", "Sat,sun 22:00-05:00 Europe/Oslo", "--window",
            "02:00-24:00 UTC", "--prefetch"]  # fmt: skip
    assert deploy(broker, "--device", "kitchen-1", *when) == 0
    document = parse_desired(desired(broker, "kitchen-1") or b"")
    assert document is not None and document.policy is not UNSET
    policy = document.policy
    assert (policy.not_before, policy.prefetch) == ("2027-01-10T00:00:00Z", True)
    assert [read_window(each) for each in policy.windows] == [
        Window(22 * 60, 5 * 60, "Europe/Oslo", ("sat", "sun")),
        Window(2 * 60, 24 * 60, "UTC"),
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--window", "always"], "'always' is not a window: write '[DAYS] FROM-UNTIL ZONE'"),
        (["--window", "22:00-05:00 Europe/Olso"], "policy.window[0].zone: 'Europe/Olso' is not a time zone"),
        (["--window", "sta 22:00-05:00 UTC"], "did you mean `sat`?"),
        (["--window", "22:00-25:00 UTC"], "policy.window[0].until: '25:00' is not a time of day"),
        (["--not-before", "tomorrow"], "write it as 2026-12-01T02:00:00Z"),
        (["--prefetch"], "give --not-before or --window, too"),
    ],
)
def test_a_time_that_no_device_would_take_is_sent_to_none(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["deploy", "--broker", "mqtt://127.0.0.1:1", "tiny@1.0.0", "--device", "kitchen-1", *arguments]
    assert main("edge-packager", "", COMMANDS, command) == 2
    assert words in capsys.readouterr().err


def test_a_group_without_members_is_named_at_once(broker: Broker, capsys: pytest.CaptureFixture[str]) -> None:
    info = {"device": "kitchen-1", "groups": ["kitchens"]}
    say(broker, TOPICS.info, json.dumps(info).encode())
    assert deploy(broker, "--group", "kitchen", "--wait") == 4
    assert "no device of a group kitchen is known to this broker; did you mean kitchens?" in capsys.readouterr().err


def test_a_device_that_is_offline_is_asked_and_not_waited_for(
    broker: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    say(broker, TOPICS.status, encode(Status(False, "boot")))
    assert deploy(broker, "--device", "kitchen-1", "--wait", "--timeout", "600") == 4
    said = capsys.readouterr()
    assert said.out == "kitchen-1: asked; it is offline and follows when it is back\n"
    assert "tiny@1.0.0 is not active everywhere: kitchen-1 is offline and follows when it is back" in said.err
    assert desired(broker, "kitchen-1") is not None
    assert deploy(broker, "--device", "kitchen-1") == 0
