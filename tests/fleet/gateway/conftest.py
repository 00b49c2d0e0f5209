"""One gateway, one broker and three devices for all tests of a module that only ask."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.agent.device import Device, sealed
from tests.broker import Broker, find_mosquitto
from tests.fleet.gateway.stage import Stage, make_device, serving


@pytest.fixture(scope="session")
def shared_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    made = Broker(tmp_path_factory.mktemp("gateway-broker"))
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="session")
def shared_devices(tmp_path_factory: pytest.TempPathFactory, shared_broker: Broker) -> Iterator[dict[str, Device]]:
    """``kitchen-1`` and ``kitchen-2`` run toy@1.0.0, ``desk-1`` runs other@2.0.0, ``empty-1`` nothing."""
    directory = tmp_path_factory.mktemp("gateway-devices")
    made = {
        "kitchen-1": make_device(directory, shared_broker, "kitchen-1", sealed(), ["kitchens"]),
        "kitchen-2": make_device(directory, shared_broker, "kitchen-2", sealed(), ["kitchens"]),
        "desk-1": make_device(directory, shared_broker, "desk-1", sealed("other", "2.0.0"), ["desks"]),
        "empty-1": make_device(directory, shared_broker, "empty-1", None, ["nobody-home"]),
    }
    yield made
    for device in made.values():
        device.stop()


@pytest.fixture(scope="session")
def stage(shared_devices: dict[str, Device], shared_broker: Broker) -> Iterator[Stage]:
    with serving(shared_devices, shared_broker) as made:
        yield made
