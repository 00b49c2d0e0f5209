"""Why a device or group cannot be asked now: from documents alone (pure), and at once against a real broker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.config import AgentConfig
from agent.mqtt.settings import BrokerSettings
from contract.errors import SourceUnavailable
from contract.mqtt.device import Health, Status
from edge_bundle import AsyncClient, BrokerAddress, Client, request_session
from edge_bundle.broker_session import BrokerSession
from edge_bundle.presence import MAX_DEVICES, Presence
from tests.agent.device import Device, sealed
from tests.broker import Broker


def status(*, online: bool = True) -> bytes:
    return msgspec.json.encode(Status(online, "boot"))


def health(*reasons: str) -> bytes:
    return msgspec.json.encode(Health(not reasons, list(reasons), 0, 0))


def info(*groups: str) -> bytes:
    return msgspec.json.encode({"groups": groups})


@pytest.fixture
def presence() -> Presence:
    made = Presence()
    for name, documents in {
        "kitchen-1": (status(), health(), info("kitchens", "all")),
        "kitchen-2": (status(online=False), health(), info("kitchens")),
        "empty": (status(), health("no_model"), info("spare")),
        "loading": (status(), health("loading"), info()),
        "gone": (status(online=False), health(), info("attic")),
    }.items():
        for kind, payload in zip(("status", "health", "info"), documents, strict=True):
            made.hear(name, kind, payload)
    return made


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        ("kitchen-1", None),
        ("loading", None),
        ("kitchen1", "no device kitchen1 is known to this broker; did you mean kitchen-1?"),
        ("Kitchen-1", "no device Kitchen-1 is known to this broker; did you mean kitchen-1?"),
        ("xyz", "no device xyz is known to this broker"),
        ("kitchen-2", "the device kitchen-2 is offline"),
        ("empty", "the device empty has no model"),
    ],
)
def test_devices(presence: Presence, device: str, reason: str | None) -> None:
    assert presence.objection(device=device, group=None) == reason
    assert presence.may_answer(device=device, group=None) == (reason is None)


@pytest.mark.parametrize(
    ("group", "reason"),
    [
        ("kitchens", None),
        ("kitchen", "no device of a group kitchen is known to this broker; did you mean kitchens?"),
        ("spare", "no device of the group spare that is online has a model"),
        ("attic", "every device of the group attic is offline: gone"),
    ],
)
def test_groups(presence: Presence, group: str, reason: str | None) -> None:
    assert presence.objection(device=None, group=group) == reason


def test_a_device_whose_documents_were_removed_is_unknown(presence: Presence) -> None:
    for kind in ("status", "health", "info"):
        presence.hear("kitchen-1", kind, b"")
    assert "kitchen-1" not in presence.devices()
    assert presence.objection(device="kitchen-1", group=None) is not None


def test_a_device_is_asked_at_once_only_when_its_health_is_known(presence: Presence) -> None:
    presence.hear("new", "status", status())
    assert not presence.may_answer(device="new", group=None)
    assert presence.objection(device="new", group=None) is None
    presence.hear("new", "health", health())
    assert presence.may_answer(device="new", group=None)


def test_nonsense_and_floods_change_nothing() -> None:
    presence = Presence()
    for payload in (b"\xff", b"[" * 10_000, b"{}", b'{"online": "yes", "boot_id": 1}'):
        presence.hear("box", "status", payload)
    assert presence.devices() == {}
    for number in range(MAX_DEVICES + 5):
        presence.hear(f"d{number}", "status", status())
    assert len(presence.devices()) == MAX_DEVICES


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
    config = AgentConfig(device="kitchen-1", state_dir=directory, broker=settings, groups=["kitchens"])
    made = Device(config, directory / "state.db").start(sealed())
    with BrokerSession(BrokerAddress("127.0.0.1", broker.port), "others") as session:
        session.publish("edge/v1/d/attic-1/status", status(online=False), retain=True)
        session.publish("edge/v1/d/empty-1/status", status(), retain=True)
        session.publish("edge/v1/d/empty-1/health", health("no_model"), retain=True)
    yield made
    made.stop()


def why(client: Client, **where: str) -> str:
    began = time.monotonic()
    with pytest.raises(SourceUnavailable) as caught:
        client.complete(prompt="count 1", timeout=600, **where)
    assert time.monotonic() - began < 60, "at once, not after the time-out"
    return caught.value.message


@pytest.mark.broker
def test_whoever_cannot_answer_is_named_at_once(broker: Broker, device: Device) -> None:
    with Client(broker.url) as client:
        assert why(client, device="kitchen1") == "no device kitchen1 is known to this broker; did you mean kitchen-1?"
        assert why(client, device="attic-1") == "the device attic-1 is offline"
        assert why(client, device="empty-1") == "the device empty-1 has no model"
        assert why(client, group="kitchen") == (
            "no device of a group kitchen is known to this broker; did you mean kitchens?"
        )
        assert client.complete(device="kitchen-1", prompt="count 1").choices[0].message.content == "0 "
        assert client.complete(group="kitchens", prompt="count 1").choices[0].message.content == "0 "
        found = client.devices()
        assert {name: (each.online, each.has_model) for name, each in found.items()} == {
            "attic-1": (False, True), "empty-1": (True, False), "kitchen-1": (True, True),
        }  # fmt: skip


@pytest.mark.broker
def test_a_device_that_is_awaited_answers_once_it_is_there(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A device that no broker knows yet hears what is asked again, not what was asked first.
    monkeypatch.setattr(request_session, "SILENCE_SECONDS", 0.2)
    settings = BrokerSettings(host="127.0.0.1", port=broker.port)
    late = Device(AgentConfig(device="late", state_dir=tmp_path, broker=settings), tmp_path / "state.db")

    async def scenario() -> str:
        async with AsyncClient(broker.url) as client:
            asked = asyncio.create_task(client.complete(device="late", prompt="count 2", offline="wait"))
            await asyncio.to_thread(late.start, sealed())
            return (await asked).choices[0].message.content

    try:
        assert asyncio.run(scenario()) == "0 1 "
    finally:
        late.stop()


@pytest.mark.broker
def test_a_broker_that_knows_no_device_says_so(tmp_path: Path) -> None:
    broker = Broker(tmp_path / "broker")
    broker.start()
    with Client(broker.url) as client:
        assert why(client, device="box") == (
            "the device box is not known: no device has reported to this broker where this user may read it"
        )
        assert client.devices() == {}
    broker.stop()
