"""Requests for any free device of a group."""

from __future__ import annotations

import json

import pytest

from tests.agent.device import Device, sealed
from tests.agent.serving.conftest import MakeDevice
from tests.agent.worker.double import FakeWorkers
from tests.e2e.raw_client import Answer, RawClient

pytestmark = pytest.mark.broker


def member(make_device: MakeDevice, group: str, name: str, *, slots: int = 2) -> Device:
    device = make_device(groups=(group,), name=name, workers=FakeWorkers(slots=slots), group_high_mark=1)
    device.start(sealed())
    listening(device, True)
    return device


def listening(device: Device, wanted: bool) -> None:
    connection = device.gateway.group_connection
    assert connection is not None
    device.until(lambda: bool(connection.filters) == wanted and (connection.subscribed or not wanted))


def ask(client: RawClient, group: str, request: str, prompt: str) -> None:
    client.answers[request] = Answer(0.0)
    body = json.dumps({"id": request, "prompt": prompt}).encode()
    client.publish(f"edge/v1/g/{group}/generate/{client.name}", body)


def test_each_request_is_answered_by_one_member(make_device: MakeDevice, client: RawClient) -> None:
    group = client.device[:60]
    devices = [member(make_device, group, name) for name in ("1", "2")]
    for number in range(10):
        ask(client, group, f"g{number}", "count 2")
    client.wait_until_fewer(1)
    assert all(len(answer.lasts) == 1 for answer in client.answers.values())
    shares = [sum(len(worker.admitted) for worker in device.workers.started) for device in devices]
    assert sum(shares) == 10
    assert min(shares) > 0


def test_busy_member_leaves_requests_to_the_others_and_comes_back(make_device: MakeDevice, client: RawClient) -> None:
    group = client.device[:60]
    busy = member(make_device, group, "1", slots=1)
    own = f"edge/v1/d/{busy.config.device}/generate/{client.name}"
    for number in range(3):
        client.publish(own, json.dumps({"id": f"own{number}", "prompt": "hold 2"}).encode())
    listening(busy, False)
    free = member(make_device, group, "2")
    for number in range(4):
        ask(client, group, f"g{number}", "count 1")
    for number in range(4):
        client.wait_answer(f"g{number}")
    assert len(free.workers.current.admitted) == 4
    busy.call(busy.workers.current.let_go)
    listening(busy, True)


def test_member_that_was_away_gets_nothing_that_was_sent_meanwhile(make_device: MakeDevice, client: RawClient) -> None:
    """Its session ends with its connection: a broker that kept feeding it would starve the askers."""
    group = client.device[:60]
    member(make_device, group, "1").kill()
    ask(client, group, "missed", "count 1")
    back = member(make_device, group, "1")
    ask(client, group, "heard", "count 2")
    assert client.wait_answer("heard").text == "0 1 "
    assert len(back.workers.current.admitted) == 1
    # Whoever heard nothing asks again, with the same id.
    ask(client, group, "missed", "count 1")
    assert client.wait_answer("missed").text == "0 "


def test_device_without_a_model_takes_none(make_device: MakeDevice, client: RawClient) -> None:
    device = make_device(groups=("g",)).start()
    listening(device, False)
