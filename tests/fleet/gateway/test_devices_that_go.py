"""Devices that go away, have no room or fail: another one is asked where that is safe, and only there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from contract.mqtt.device import Health
from fleet.gateway import asking
from tests.agent.device import Device, sealed
from tests.broker import Broker
from tests.fleet.gateway.raw import chat, open_chat, send, whole_answer
from tests.fleet.gateway.stage import Stage, make_device, serving, tell
from tests.fleet.waiting import until

pytestmark = pytest.mark.broker


@pytest.fixture
def devices(tmp_path: Path, broker: Broker) -> Iterator[dict[str, Device]]:
    made = {name: make_device(tmp_path, broker, name, sealed(), ["pair"], slots=1) for name in ("one", "two")}
    yield made
    for device in made.values():
        device.stop()


@pytest.fixture
def stage(devices: dict[str, Device], broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setattr(asking, "TICK_SECONDS", 0.1)
    monkeypatch.setattr(asking, "GONE_SECONDS", 0.3)
    with serving(devices, broker) as made:
        yield made


@pytest.fixture
def client(stage: Stage) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=stage.url, api_key="none", max_retries=0) as made:
        yield made


def prompts(device: Device) -> int:
    return len(device.workers.current.admitted)


def who_has_it(stage: Stage) -> str:
    def asked() -> str | None:
        return next((name for name, device in stage.devices.items() if prompts(device)), None)

    found = until(asked, "a device to be asked")
    assert found is not None
    return found


def test_nothing_was_shown_so_another_one_answers(stage: Stage) -> None:
    connection = open_chat(stage.server.port, chat("group:pair", "wait 2"))
    first = who_has_it(stage)
    stage.devices[first].kill()
    other = next(name for name in stage.devices if name != first)
    until(lambda: prompts(stage.devices[other]) == 1, "the other one to be asked")
    stage.devices[other].call(stage.devices[other].workers.current.let_go)
    answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200")
    assert f"x-edge-device: {other}".encode() in answer
    connection.close()


def test_what_was_shown_is_not_said_twice(client: openai.OpenAI, stage: Stage) -> None:
    stream = client.chat.completions.create(**chat("group:pair", "hold 3"), stream=True)
    text = ""
    with pytest.raises(openai.APIError, match="went offline before its answer was complete") as told:
        for chunk in stream:
            text += chunk.choices[0].delta.content or ""
            if text:
                stage.devices[who_has_it(stage)].kill()
    assert text == "0 "
    assert told.value.code == "device_gone"
    assert sum(map(prompts, stage.devices.values())) == 1


def test_a_request_that_takes_devices_along_is_given_up(stage: Stage) -> None:
    connection = open_chat(stage.server.port, chat("group:pair", "wait 2"))
    first = who_has_it(stage)
    stage.devices[first].kill()
    other = next(name for name in stage.devices if name != first)
    until(lambda: prompts(stage.devices[other]) == 1, "the other one to be asked")
    stage.devices[other].kill()
    answer = whole_answer(connection)
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"device_gone" in answer
    connection.close()


def test_a_device_that_says_that_the_request_is_wrong_is_believed(client: openai.OpenAI, stage: Stage) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="the prompt is too long") as told:
            client.chat.completions.create(**chat("group:pair", "reject"), stream=stream)
        assert told.value.param == "messages"
    assert sum(map(prompts, stage.devices.values())) == 2


def test_a_group_with_nobody_in_it_that_can_answer_says_who_there_is(stage: Stage) -> None:
    for device in stage.devices.values():
        tell(device, sealed(), health=Health(False, ["swapping"], 0, 0))

    def told() -> str | None:
        reply = send(stage.server.port, "/v1/chat/completions", chat("group:pair"))
        return reply.error["message"] if reply.status == 503 else None

    message = until(told, "the devices to be known as not ready")
    assert (
        message
        == "no device of the group pair can answer now: one is not ready (swapping), two is not ready (swapping)"
    )
    for device in stage.devices.values():
        device.stop()
    until(lambda: "one is offline, two is offline" in str(told()), "the devices to be known as offline")
    assert "device:one" not in [each["id"] for each in send(stage.server.port, "/v1/models").json["data"]]
    assert send(stage.server.port, "/v1/models/device:one").status == 200


def test_work_is_spread_by_what_is_under_way(stage: Stage) -> None:
    connections = [open_chat(stage.server.port, chat("group:pair", f"hold {number}")) for number in (2, 3)]
    until(lambda: all(prompts(device) == 1 for device in stage.devices.values()), "each to have one")
    for connection in connections:
        connection.close()
    for name in stage.devices:
        stage.wait_for_cancelled(name)


def test_a_chat_goes_back_to_the_device_that_knows_its_beginning(client: openai.OpenAI, stage: Stage) -> None:
    """Eight chats at turns; each stays where it began, although the devices are equal."""
    homes: dict[int, set[str]] = {}
    histories: dict[int, list[dict[str, str]]] = {number: [] for number in range(8)}
    for _turn in range(3):
        for number, history in histories.items():
            history.append({"role": "user", "content": f"count {number + 1}"})
            raw = client.chat.completions.with_raw_response.create(model="toy", messages=history)
            homes.setdefault(number, set()).add(raw.headers["x-edge-device"])
            history.append({"role": "assistant", "content": raw.parse().choices[0].message.content})
    assert all(len(home) == 1 for home in homes.values())


def test_a_broker_that_is_away_is_said_and_comes_back(stage: Stage) -> None:
    stage.broker.kill()
    until(lambda: send(stage.server.port, "/healthz").status == 503, "the broker to be missed")
    reply = send(stage.server.port, "/v1/chat/completions", chat())
    assert reply.status == 503
    assert "the broker" in reply.error["message"]
    assert "retry-after" in reply.headers
    stage.broker.start()
    until(lambda: send(stage.server.port, "/v1/chat/completions", chat()).status == 200, "an answer again")


def test_time_is_bounded(devices: dict[str, Device], broker: Broker) -> None:
    with serving(devices, broker, seconds=1.0) as stage:
        reply = send(stage.server.port, "/v1/chat/completions", chat("group:pair", "wait 1"))
        assert reply.status == 504
        assert reply.error["code"] == "timeout"
        stage.wait_for_cancelled(who_has_it(stage))
