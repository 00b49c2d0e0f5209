"""``forget`` on a real broker: what it keeps of a device that is gone is removed, and only that."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.system.command_line import main
from edge_bundle import parse_broker
from edge_bundle.broker_session import BrokerSession
from packager.cli import COMMANDS
from tests.broker import Broker

pytestmark = pytest.mark.broker

ONLINE, OFFLINE = (f'{{"online": {word}, "boot_id": "b"}}'.encode() for word in ("true", "false"))


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    made = Broker(tmp_path / "broker")
    made.start()
    with BrokerSession(parse_broker(made.url), "devices") as session:
        for device, status in (("gone", OFFLINE), ("here", ONLINE), ("gone-2", OFFLINE)):
            session.publish(f"edge/v1/d/{device}/status", status, retain=True)
            session.publish(f"edge/v1/d/{device}/desired", b"{}", retain=True)
    yield made
    made.stop()


def kept(broker: Broker) -> set[str]:
    with BrokerSession(parse_broker(broker.url), "looks") as session:
        session.subscribe("edge/v1/d/+/+")
        # What is kept comes first.
        session.subscribe("looks")
        session.publish("looks", b"")
        found = set()
        for message in session.messages(120.0):
            if message.topic == "looks":
                return found
            found.add(message.topic.removeprefix("edge/v1/d/"))
    raise TimeoutError("the broker does not answer")


def forget(broker: Broker, *devices: str) -> int:
    return main("edge-packager", "", COMMANDS, ["forget", "--broker", broker.url, *devices])


def test_gone_devices_are_forgotten(broker: Broker, capsys: pytest.CaptureFixture[str]) -> None:
    assert forget(broker, "gone", "never") == 0
    assert capsys.readouterr().out == "gone: forgotten\nnever: nothing was kept of it\n"
    assert kept(broker) == {"here/status", "here/desired", "gone-2/status", "gone-2/desired"}


def test_a_device_that_is_there_is_not(broker: Broker, capsys: pytest.CaptureFixture[str]) -> None:
    assert forget(broker, "gone", "here") == 2
    assert "here is online" in capsys.readouterr().err
    assert len(kept(broker)) == 6
    assert forget(broker, "a b") == 2


def test_a_broker_that_does_not_let_us_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = tmp_path / "acl"
    rules.write_text("topic read edge/v1/#\npattern write edge/v1/d/%c/+\n")
    # A mosquitto that root starts would change to an account that cannot read the rules.
    user = "user root\n" if os.geteuid() == 0 else ""
    broker = Broker(tmp_path / "broker", settings=f"{user}acl_file {rules}\n")
    broker.start()
    with BrokerSession(parse_broker(broker.url), "gone") as session:
        session.publish("edge/v1/d/gone/status", OFFLINE, retain=True)
    assert forget(broker, "gone") == 4
    assert "the broker still keeps edge/v1/d/gone/status" in capsys.readouterr().err
    broker.stop()
