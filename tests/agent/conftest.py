"""What tests of the agent share: devices at brokers of any kind, and what the agent logged."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.config import AgentConfig
from agent.mqtt.settings import BrokerSettings
from agent.serving.settings import ServingSettings
from tests.agent.device import Device


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], str]]:
    logger = logging.getLogger("edge_agent")
    before, logger.propagate = logger.propagate, True
    caplog.set_level(logging.INFO, "edge_agent")
    yield lambda: "\n".join(record.getMessage() for record in caplog.records)
    logger.propagate = before


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Callable[..., Device]]:
    made: list[Device] = []

    def start(port: int, **broker: object) -> Device:
        where = {} if "hosts" in broker else {"host": "127.0.0.1", "port": port}
        settings = BrokerSettings(**{**where, **broker})  # type: ignore[arg-type]
        config = AgentConfig(device="box", state_dir=tmp_path, broker=settings, serving=ServingSettings(stop_seconds=0))
        made.append(Device(config, tmp_path / f"state{len(made)}.db"))
        return made[-1].start(connect=False)

    yield start
    for device in made:
        device.stop()
