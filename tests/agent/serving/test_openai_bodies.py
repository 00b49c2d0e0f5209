"""What programs that were written for OpenAI ask for besides text: several answers, a model by name, a limit."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.state import result_writer
from tests.agent.device import Device, sealed
from tests.agent.serving.conftest import MakeDevice
from tests.agent.serving.test_interop import tool
from tests.agent.worker.double import FakeWorkers
from tests.broker import Broker
from tests.e2e.raw_client import Answer, RawClient

pytestmark = pytest.mark.broker


def joined(answer: Answer) -> dict[int, str]:
    """The text of each answer as whoever only adds up pieces has it."""
    found: dict[int, str] = {}
    for frame in answer.frames:
        if "position" not in frame or frame["d"]:
            found[frame.get("index", 0)] = found.get(frame.get("index", 0), "") + frame["d"]
    return found


def test_several_answers_have_pieces_and_a_result_with_an_index_each(
    make_device: MakeDevice, client: RawClient
) -> None:
    device = make_device(workers=FakeWorkers(slots=8)).start(sealed())
    client.ask("three", "count 4", n=3)
    answer = client.wait_answer("three")
    (last,) = answer.lasts
    assert [(each["index"], each["text"], each["finish_reason"]) for each in last["choices"]] == [
        (0, "0 1 2 3 ", "stop"),
        (1, "0.1 1.1 2.1 3.1 ", "stop"),
        (2, "0.2 1.2 2.2 3.2 !", "stop"),
    ]
    assert (last["text"], last["finish_reason"]) == ("0 1 2 3 ", "stop")
    assert last["usage"] == {"prompt_tokens": 2, "completion_tokens": 12, "total_tokens": 14, "cached_tokens": 0}
    assert joined(answer) == {each["index"]: each["text"] for each in last["choices"]}
    begun = {frame["index"] for frame in answer.frames if "attempt" in frame}
    assert begun == {0, 1, 2}, "each text has a piece that begins it"
    assert len(device.workers.current.admitted) == 1, "one request of the worker, so one reading of the prompt"


def test_one_answer_looks_as_ever(make_device: MakeDevice, client: RawClient) -> None:
    make_device().start(sealed())
    client.ask("one", "count 4", n=1)
    answer = client.wait_answer("one")
    assert "choices" not in answer.lasts[0]
    assert not any("index" in frame for frame in answer.frames)


@pytest.mark.parametrize("interval", [0, 10_000])
def test_pieces_add_up_to_the_whole_text(make_device: MakeDevice, client: RawClient, interval: int) -> None:
    make_device(stream_interval_ms=interval).start(sealed())
    client.ask("long", "count 40")
    answer = client.wait_answer("long")
    (last,) = answer.lasts
    assert joined(answer) == {0: last["text"]}
    assert [frame["s"] for frame in [*answer.frames, last]] == list(range(len(answer.frames) + 1))


def test_pieces_of_a_cancelled_answer_add_up_too(make_device: MakeDevice, client: RawClient) -> None:
    device = make_device(stream_interval_ms=10_000, workers=FakeWorkers(slots=8)).start(sealed())
    client.ask("some", "hold 9", n=2)
    device.until(lambda: device.serving.generating == 2)
    client.publish(f"edge/v1/d/{client.device}/control/{client.name}", b'{"id": "some", "op": "cancel"}')
    answer = client.wait_answer("some")
    (last,) = answer.lasts
    assert [each["finish_reason"] for each in last["choices"]] == ["cancelled", "cancelled"]
    assert joined(answer) == {each["index"]: each["text"] for each in last["choices"]}


def test_resume_gives_every_answer_again(make_device: MakeDevice, client: RawClient) -> None:
    device = make_device(workers=FakeWorkers(slots=8)).start(sealed())
    client.ask("two", "hold 3", n=2)
    device.until(lambda: len(client.answers["two"].frames) == 2)
    client.publish(f"edge/v1/d/{client.device}/control/{client.name}", b'{"id": "two", "op": "resume"}')
    device.until(lambda: len(client.answers["two"].frames) == 4)
    again = client.answers["two"].frames[2:]
    assert [(frame["index"], frame["d"], frame["attempt"]) for frame in again] == [(0, "0 ", 1), (1, "0.1 ", 1)]
    device.call(device.workers.current.let_go)
    client.wait_answer("two")


def test_many_answers_take_as_many_slots(make_device: MakeDevice, client: RawClient) -> None:
    device = make_device(workers=FakeWorkers(slots=4)).start(sealed())
    client.ask("many", "hold 2", n=3)
    device.until(lambda: device.serving.active == 1)
    client.ask("fits", "hold 2")
    device.until(lambda: device.serving.active == 2)
    client.ask("waits", "hold 2", n=16)
    device.until(lambda: device.serving.queued == 1)
    device.call(device.workers.current.let_go)
    assert len(client.wait_answer("waits").lasts[0]["choices"]) == 16


def test_a_model_is_ignored_unless_the_device_looks_at_it(make_device: MakeDevice, client: RawClient) -> None:
    make_device().start(sealed())
    client.ask("any", "count 1", model="gpt-4o-mini")
    assert client.wait_answer("any").text == "0 "


@pytest.mark.parametrize(
    ("model", "taken"),
    [("toy", True), ("toy@1.0.0", True), ("gpt-4o-mini", True), (None, True), ("toy@2.0.0", False), ("gpt-4o", False)],
)
def test_a_model_is_the_active_bundle_or_one_of_its_aliases(
    make_device: MakeDevice, client: RawClient, model: str | None, taken: bool
) -> None:
    make_device(check_model=True, model_aliases=["gpt-4o-mini"]).start(sealed())
    client.ask("named", "count 1", model=model)
    last = client.wait_answer("named").lasts[0]
    if taken:
        assert last["text"] == "0 "
        return
    error = last["error"]
    assert (error["code"], error["type"], error["field"]) == (404, "model_not_found", "model")
    assert error["details"][0]["suggestion"] in ("toy@1.0.0", "gpt-4o-mini")
    client.ask("named", "count 1", model="toy")
    assert client.wait_answer("named").lasts[0]["text"] == "0 ", "its id is still free"


def test_a_model_that_was_taken_and_is_another_by_its_turn_is_not_asked(
    make_device: MakeDevice, client: RawClient
) -> None:
    device = make_device(workers=FakeWorkers(slots=1), check_model=True).start(sealed())
    client.ask("first", "hold 2")
    device.until(lambda: device.serving.active == 1)
    client.ask("second", "count 1", model="toy@1.0.0")
    device.until(lambda: device.serving.queued == 1)
    before = device.workers.current
    device.run(device.serving.swap(sealed(version="1.1.0"), "overlap"))
    assert client.wait_answer("second").lasts[0]["error"]["type"] == "model_not_found"
    device.call(before.let_go)
    client.wait_answer("first")


def test_the_device_bounds_what_nobody_asked_for_and_what_anybody_asks_for(
    make_device: MakeDevice, client: RawClient
) -> None:
    device = make_device(default_max_tokens=7, max_tokens_limit=9).start(sealed())
    for name, asked in (("open", None), ("asked", 8), ("much", 1000)):
        client.ask(name, "count 1", max_completion_tokens=asked)
        client.wait_answer(name)
    found = [(each.max_tokens, each.max_tokens_limit) for each in device.workers.current.admitted]
    assert found == [(None, 7), (8, 9), (1000, 9)]


def ask_at(client: RawClient, topic: str, body: dict[str, Any]) -> None:
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.ResponseTopic = topic
    generate = f"edge/v1/d/{client.device}/generate/{client.name}"
    client._client.publish(generate, json.dumps(body), qos=1, properties=properties).wait_for_publish(120)


def test_a_wrong_response_topic_is_told_where_its_client_listens(make_device: MakeDevice, client: RawClient) -> None:
    make_device().start(sealed())
    ask_at(client, f"edge/v1/c/{client.name}/r/{client.device}/other", {"id": "mine", "prompt": "count 1"})
    found = dict([client.next_frame(), client.next_frame()])
    assert {name: frame["error"]["field"] for name, frame in found.items()} == {
        "other": "response_topic",
        "mine": "response_topic",
    }
    assert f"/r/{client.device}/mine" in found["other"]["error"]["message"]


@pytest.mark.parametrize("topic", ["edge/v1/c/somebody/r/{device}/x", "elsewhere", "edge/v1/d/{device}/desired"])
def test_a_foreign_response_topic_is_told_at_the_right_one_alone(
    make_device: MakeDevice, client: RawClient, topic: str
) -> None:
    device = make_device().start(sealed())
    ask_at(client, topic.format(device=client.device), {"id": "mine", "prompt": "count 1"})
    assert client.next_frame()[1]["error"]["field"] == "response_topic"
    client.ask("next", "count 1")
    client.wait_answer("next")
    assert device.desired == []


@pytest.mark.skipif(shutil.which("mosquitto_rr") is None, reason="mosquitto-clients is not installed")
def test_a_body_without_an_id_is_answered_at_its_response_topic(
    make_device: MakeDevice, shared_broker: Broker, names: tuple[str, str]
) -> None:
    """As a program writes it for OpenAI, through ``mosquitto_rr``."""
    device, client = names
    make_device().start(sealed())
    out = tool(
        "mosquitto_rr", shared_broker, "-V", "mqttv5", "-W", "20",
        "-t", f"edge/v1/d/{device}/generate/{client}", "-e", f"edge/v1/c/{client}/r/{device}/q1",
        "-m", '{"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "count 3"}], "stream": false}',
    )  # fmt: skip
    assert json.loads(out)["text"] == "0 1 2 "


@pytest.mark.parametrize("hours", [24, 23], ids=["a day later", "on the day with 23 hours"])
def test_an_id_may_be_used_at_the_same_time_every_day(
    make_device: MakeDevice, client: RawClient, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    monkeypatch.setattr(result_writer, "SWEEP_SECONDS", 0.0)
    now = 1e9
    device = make_device(clock=lambda: now).start(sealed())
    for count in (1, 2, 3):
        client.ask("daily", f"count {count}")
        last = client.wait_answer("daily").lasts[0]
        assert last["text"] == "".join(f"{number} " for number in range(count))
        sweep(device)
        now += 16 * 60
        sweep(device)
        now += hours * 3600 - 16 * 60
        sweep(device)


def sweep(device: Device) -> None:
    device.run(device.result_store.flush())
    device.run(device.result_store.flush())


def test_what_the_store_turns_away_leaves_no_count_behind(make_device: MakeDevice, client: RawClient) -> None:
    device = make_device().start(sealed())
    client.ask("same", "count 1")
    client.wait_answer("same")
    device.queued_last = 1
    client.ask("same", "count 2")
    assert client.wait_answer("same").lasts[0]["error"]["code"] == 409
    device.until(lambda: device.queued_last == 0)
