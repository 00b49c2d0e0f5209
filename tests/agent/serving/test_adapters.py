"""The field ``adapter`` from the broker to a real worker and back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.config import AgentConfig
from agent.install.ports import SealedBundle
from agent.mqtt.settings import BrokerSettings
from agent.serving.settings import ServingSettings
from agent.worker.settings import WorkerSettings
from agent.worker.supervisor import WorkerProcess
from contract.bundle.manifest import MANIFEST_FILE, manifest_digest, parse_manifest
from tests.agent.device import Device
from tests.broker import Broker
from tests.e2e.raw_client import RawClient
from tests.proofs import pretend_verified

pytestmark = pytest.mark.broker


def sealed(directory: Path) -> SealedBundle:
    stored = (directory / MANIFEST_FILE).read_bytes()
    return SealedBundle(pretend_verified(directory, manifest_digest(stored), parse_manifest(stored)))


@pytest.fixture
def client(
    shared_broker: Broker, tiny_slots_bundle: Path, tiny_adapter_bundles: dict[str, Path], tmp_path: Path
) -> Iterator[RawClient]:
    config = AgentConfig(
        device="switch",
        state_dir=tmp_path,
        broker=BrokerSettings(host="127.0.0.1", port=shared_broker.port),
        worker=WorkerSettings(threads=1, max_bytes=16 << 20),
        serving=ServingSettings(stop_seconds=0, stream_interval_ms=0),
    )
    workers: Any = WorkerProcess.start
    adapters = tuple(sealed(place) for place in tiny_adapter_bundles.values())
    device = Device(config, tmp_path / "state.db", workers)
    device.start(msgspec.structs.replace(sealed(tiny_slots_bundle), adapters=adapters))
    connected = RawClient(shared_broker.port, "asker", "switch")
    yield connected
    connected.close()
    device.stop()


def ask(client: RawClient, number: int, adapter: str | None) -> str:
    from tests.e2e.raw_client import Answer

    request = f"q{number}"
    client.answers[request] = Answer(0.0)
    body = {"id": request, "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 16}
    payload = json.dumps({**body, **({} if adapter is None else {"adapter": adapter})}).encode()
    client.publish(f"edge/v1/d/{client.device}/generate/{client.name}", payload)
    return request


def test_every_request_gets_the_adapter_that_it_names(client: RawClient) -> None:
    wanted = [None, "one", "two", "one@1.0.0", None, "two@1.0.0"]
    asked = [ask(client, number, name) for number, name in enumerate(wanted)]
    texts = [client.wait_answer(request).lasts[0]["text"] for request in asked]
    assert texts[0] == texts[4]
    assert "Hello" in texts[0]
    assert texts[1] == texts[3]
    assert texts[2] == texts[5]
    assert len({texts[0], texts[1], texts[2]}) == 3


def test_one_that_is_not_there_is_refused_by_field(client: RawClient) -> None:
    for number, name in enumerate(["three", "one@9.0.0", "One", "one@"]):
        error = client.wait_answer(ask(client, number, name)).lasts[0]["error"]
        assert (error["code"], error["field"]) == (400, "adapter")
