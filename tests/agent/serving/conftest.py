"""Devices with fake workers on a real broker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.config import AgentConfig
from agent.mqtt.settings import BrokerSettings
from agent.serving.settings import ServingSettings
from tests.agent.device import Device
from tests.agent.worker.double import FakeWorkers
from tests.broker import Broker
from tests.e2e.raw_client import RawClient


@pytest.fixture(scope="session")
def shared_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    broker = Broker(tmp_path_factory.mktemp("broker"))
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def names(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A device and a client name of the test's own, so that tests can share a broker."""
    base = "".join(c if c.isalnum() else "-" for c in request.node.name)[-40:]
    return f"d-{base}", f"c-{base}"


MakeDevice = Callable[..., Device]


@pytest.fixture
def make_device(shared_broker: Broker, names: tuple[str, str], tmp_path: Path) -> Iterator[MakeDevice]:
    made: list[Device] = []

    def make(
        *,
        broker: Broker | None = None,
        protocol: str = "5",
        workers: FakeWorkers | None = None,
        groups: tuple[str, ...] = (),
        name: str = "",
        clock: Callable[[], float] = time.time,
        **serving: Any,
    ) -> Device:
        config = AgentConfig(
            device=names[0] + name,
            state_dir=tmp_path,
            groups=list(groups),
            broker=BrokerSettings(host="127.0.0.1", port=(broker or shared_broker).port, protocol=protocol),  # type: ignore[arg-type]
            serving=ServingSettings(**{"stop_seconds": 0, **serving}),
        )
        device = Device(config, tmp_path / f"state{name}.db", workers, clock)
        made.append(device)
        return device

    yield make
    for device in made:
        device.stop()


@pytest.fixture
def client(shared_broker: Broker, names: tuple[str, str]) -> Iterator[RawClient]:
    connected = RawClient(shared_broker.port, names[1], names[0])
    yield connected
    connected.close()
