"""What ``health`` says while the device runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent import heartbeat
from tests.agent.device import sealed
from tests.agent.running_service import running, settings
from tests.broker import Broker
from tests.e2e.raw_client import RawClient

pytestmark = pytest.mark.broker


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    made = Broker(tmp_path / "broker")
    made.start()
    yield made
    made.stop()


def next_health(client: RawClient, **wanted: Any) -> dict[str, Any]:
    """The next ``health`` in which ``wanted`` stands."""
    while True:
        found: dict[str, Any] = client.next_device_message("health")
        if wanted.items() <= found.items():
            return found


def test_its_counts_are_current_without_waiting_for_the_heartbeat(
    tmp_path: Path, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 3600.0)
    with running(settings(tmp_path / "state", broker.port)) as found:
        client = RawClient(broker.port, "me", "box")
        next_health(client, reasons=["no_model"])
        found.run(found.service.parts.frontend.serving.swap(sealed(), "drain"))
        next_health(client, ready=True, active=0)
        client.send("one", "hold")
        next_health(client, active=1, queue=0)
        client.send("two", "hold")
        client.send("three", "hold")
        next_health(client, active=2, queue=1)
        client.publish("edge/v1/d/box/control/me", b'{"id": "one", "op": "cancel"}')
        next_health(client, active=2, queue=0)
        found.call(found.workers.started[-1].let_go)
        next_health(client, active=0, queue=0)
        client.close()


def test_an_active_bundle_that_does_not_load_is_no_missing_model(tmp_path: Path, broker: Broker) -> None:
    with running(settings(tmp_path / "state", broker.port)) as found:
        client = RawClient(broker.port, "me", "box")
        next_health(client, reasons=["no_model"])
        found.call(found.service.parts.frontend.serving.mark_unavailable)
        next_health(client, ready=False, reasons=["engine_unavailable"])
        client.ask("q", "count 1")
        assert client.wait_answer("q").lasts[0]["error"]["type"] == "engine_unavailable"
        found.run(found.service.parts.frontend.serving.swap(sealed(), "drain"))
        next_health(client, ready=True, reasons=[])
        found.run(found.service.parts.frontend.serving.stop())
        next_health(client, ready=False, reasons=["no_model"])
        client.close()
