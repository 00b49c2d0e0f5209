"""``prompt`` against a real broker and device: whoever cannot answer is named at once, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.config import AgentConfig
from agent.mqtt.settings import BrokerSettings
from contract.mqtt.device import Status
from contract.system.command_line import main
from edge_bundle import parse_broker
from edge_bundle.broker_session import BrokerSession
from edge_bundle.request_session import Action, RequestSession
from packager.cli import COMMANDS
from tests.agent.device import Device, sealed
from tests.agent.worker.double import FakeWorkers
from tests.broker import Broker

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    made = Broker(tmp_path_factory.mktemp("broker"))
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def device(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    directory: Path = tmp_path_factory.mktemp("box")
    settings = BrokerSettings(host="127.0.0.1", port=broker.port)
    config = AgentConfig(device="kitchen-1", state_dir=directory, broker=settings)
    made = Device(config, directory / "state.db", FakeWorkers(slots=1)).start(sealed())
    with BrokerSession(parse_broker(broker.url), "attic") as session:
        session.publish("edge/v1/d/attic-1/status", msgspec.json.encode(Status(False, "boot")), retain=True)
    yield made
    made.stop()


def prompt(broker: Broker, *arguments: str) -> int:
    return main("edge-packager", "", COMMANDS, ["prompt", "--broker", broker.url, *arguments])


def test_an_answer(broker: Broker, device: Device, capsys: pytest.CaptureFixture[str]) -> None:
    assert prompt(broker, "count 3", "--device", "kitchen-1") == 0
    assert capsys.readouterr().out == "0 1 2 \n"
    assert prompt(broker, "count 3", "--device", "kitchen-1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["text"] == "0 1 2 "


@pytest.mark.parametrize(
    ("where", "words"),
    [
        (["--device", "kitchen1"], "no device kitchen1 is known to this broker; did you mean kitchen-1?"),
        (["--device", "attic-1"], "the device attic-1 is offline"),
        (["--group", "kitchens"], "no device of a group kitchens is known to this broker"),
    ],
)
def test_whoever_cannot_answer_is_named(
    broker: Broker, device: Device, capsys: pytest.CaptureFixture[str], where: list[str], words: str
) -> None:
    assert prompt(broker, "count 3", *where) == 4
    assert capsys.readouterr().err == f"edge-packager: {words} [source_unavailable]\n"


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a device has said something of a request, its time is over."""
    actions = RequestSession.actions

    def hurried(self: RequestSession, now: float) -> list[Action]:
        if self._reassembly.shown or self._position is not None:
            self._deadline = now
        return actions(self, now)

    monkeypatch.setattr(RequestSession, "actions", hurried)


@pytest.mark.usefixtures("late")
def test_how_else_it_ends(broker: Broker, device: Device, capsys: pytest.CaptureFixture[str]) -> None:
    assert prompt(broker, "count 3", "--device", "kitchen-1", "--temperature", "9") == 2
    assert prompt(broker, "reject", "--device", "kitchen-1") == 2
    capsys.readouterr()
    assert prompt(broker, "hold 3", "--device", "kitchen-1", "--timeout", "600") == 4
    said = capsys.readouterr()
    assert said.out == "0 "
    assert "the answer of kitchen-1 was not complete within 600 s: 2 characters had come" in said.err
    device.until(lambda: device.serving.active == 0)


@pytest.mark.usefixtures("late")
def test_who_waits_in_the_queue_is_told(broker: Broker, device: Device, capsys: pytest.CaptureFixture[str]) -> None:
    with BrokerSession(parse_broker(broker.url), "busy") as session:
        session.publish("edge/v1/d/kitchen-1/generate/busy", b'{"id": "busy", "prompt": "wait 1"}')
        device.until(lambda: device.serving.active == 1)
        assert prompt(broker, "count 1", "--device", "kitchen-1", "--timeout", "600") == 4
        said = capsys.readouterr().err
        assert "requests that come first: 1; it may begin in" in said
        assert "kitchen-1 had not begun to answer within 600 s" in said
        session.publish("edge/v1/d/kitchen-1/control/busy", b'{"id": "busy", "op": "cancel"}')
    device.until(lambda: device.serving.active == 0)
