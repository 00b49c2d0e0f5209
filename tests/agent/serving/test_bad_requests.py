"""Whatever is sent, the agent says what is wrong with it and goes on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from contract.mqtt.messages import MAX_REQUEST_BYTES
from tests.agent.device import sealed
from tests.agent.fake_worker import FakeWorkers
from tests.agent.serving.conftest import MakeDevice
from tests.broker import Broker
from tests.e2e.raw_client import Answer, RawClient

pytestmark = pytest.mark.broker

BAD: list[tuple[str, Any, str | None]] = [
    ("not JSON", b"\xff\x00 not json", None),
    ("an array", [], None),
    ("no id", {"prompt": "count 1"}, "id"),
    ("empty prompt", {"prompt": ""}, "prompt"),
    ("blank prompt", {"prompt": "  \n"}, "prompt"),
    ("no prompt", {}, "messages"),
    ("both", {"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "messages"),
    ("wrong type", {"prompt": 7}, "prompt"),
    ("unknown field", {"prompt": "a", "max_token": 3}, "max_token"),
    ("unknown nested field", {"messages": [{"role": "user", "content": "a", "colour": 1}]}, "messages[0].colour"),
    ("unknown role", {"messages": [{"role": "boss", "content": "a"}]}, "messages[0].role"),
    ("temperature", {"prompt": "a", "temperature": 9}, "temperature"),
    ("max_tokens", {"prompt": "a", "max_tokens": 0}, "max_tokens"),
    ("top_p", {"prompt": "a", "top_p": 0}, "top_p"),
    ("seed", {"prompt": "a", "seed": -1}, "seed"),
    ("priority", {"prompt": "a", "priority": 10}, "priority"),
    ("deadline", {"prompt": "a", "deadline_ms": 0}, "deadline_ms"),
    ("logit_bias", {"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias.x"),
    ("NaN", b'{"id": "bad", "prompt": "a", "temperature": NaN}', None),
    ("twice", b'{"id": "bad", "prompt": "a", "prompt": "b"}', "prompt"),
]


@pytest.mark.parametrize(("name", "body", "field"), BAD, ids=[name for name, _, _ in BAD])
def test_bad_request_gets_an_error_that_names_the_field(
    make_device: MakeDevice, client: RawClient, name: str, body: Any, field: str | None
) -> None:
    make_device().start(sealed())
    if isinstance(body, dict) and name != "no id":
        body = {"id": "bad", **body}
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    readable = isinstance(body, dict) and name != "no id"
    request = "bad" if readable else "-"
    client.answers[request] = Answer(0.0)
    client.publish(f"edge/v1/d/{client.device}/generate/{client.name}", payload)
    error = client.wait_answer(request).lasts[0]["error"]
    assert error["code"] == 400
    assert error["type"] == "invalid_request"
    assert error.get("field") == field
    assert error["message"]


def test_ten_megabytes_are_refused_and_the_next_request_works(make_device: MakeDevice, client: RawClient) -> None:
    make_device().start(sealed())
    client.answers["-"] = Answer(0.0)
    huge = json.dumps({"id": "huge", "prompt": "x" * (10 << 20)}).encode()
    client.publish(f"edge/v1/d/{client.device}/generate/{client.name}", huge)
    assert client.wait_answer("-").lasts[0]["error"]["code"] == 413
    client.ask("next", "count 1")
    assert client.wait_answer("next").lasts[0]["text"] == "0 "


def test_bad_request_with_a_good_id_may_be_corrected(make_device: MakeDevice, client: RawClient) -> None:
    make_device().start(sealed())
    client.ask("fix", "count 2", temperature=7)
    assert client.wait_answer("fix").lasts[0]["error"]["field"] == "temperature"
    client.ask("fix", "count 2")
    assert client.wait_answer("fix").lasts[0]["text"] == "0 1 "


def test_topics_and_control_messages_of_any_kind_do_no_harm(make_device: MakeDevice, client: RawClient) -> None:
    device = make_device().start(sealed())
    base = f"edge/v1/d/{client.device}"
    client.publish(f"{base}/generate/söme body", b'{"id": "x", "prompt": "a"}')
    client.publish(f"{base}/generate/{client.name}", b'{"id": "kept", "prompt": "a"}', retain=True)
    for payload in (b"", b"{", b"[]", b'{"id": "x", "op": "explode"}', b'{"id": "x", "op": "update"}'):
        client.publish(f"{base}/control/{client.name}", payload)
    client.publish(f"{base}/generate/{client.name}", b"", retain=True)
    client.ask("next", "count 1")
    assert client.wait_answer("next").lasts[0]["text"] == "0 "
    assert device.gateway.connection.connected


def test_resume_of_an_unknown_request_is_a_404(make_device: MakeDevice, client: RawClient) -> None:
    make_device().start(sealed())
    client.answers["ghost"] = Answer(0.0)
    client.publish(f"edge/v1/d/{client.device}/control/{client.name}", b'{"id": "ghost", "op": "resume"}')
    assert client.wait_answer("ghost").lasts[0]["error"]["code"] == 404


def test_resume_gives_all_text_so_far(make_device: MakeDevice, client: RawClient) -> None:
    device = make_device().start(sealed())
    client.ask("long", "hold 3")
    assert client.frames.get(timeout=20)[1]["d"] == "0 "
    client.publish(f"edge/v1/d/{client.device}/control/{client.name}", b'{"id": "long", "op": "resume"}')
    again = client.frames.get(timeout=20)[1]
    assert (again["s"], again["d"], again["attempt"]) == (1, "0 ", 1)
    device.call(device.workers.current.let_go)
    client.wait_answer("long")


def test_update_reaches_the_running_request_only_with_known_parameters(
    make_device: MakeDevice, client: RawClient
) -> None:
    device = make_device().start(sealed())
    client.ask("tuned", "hold 3")
    device.until(lambda: device.serving.active == 1)
    control = f"edge/v1/d/{client.device}/control/{client.name}"
    client.publish(control, b'{"id": "tuned", "op": "update", "set": {"temperature": 99}}')
    client.publish(control, b'{"id": "tuned", "op": "update", "set": {"seed": 1}}')
    client.publish(control, b'{"id": "tuned", "op": "update", "set": {"temperature": 0.5}}')
    device.until(lambda: bool(device.workers.current.updates))
    assert [changes for _, changes in device.workers.current.updates] == [{"temperature": 0.5}]
    answer = client.answers["tuned"]
    faults = [frame["control"] for frame in answer.frames if "control" in frame]
    assert [(fault["op"], fault["error"]["field"]) for fault in faults] == [
        ("update", "set.temperature"),
        ("update", "set.seed"),
    ]
    assert not answer.lasts
    device.call(device.workers.current.let_go)
    assert client.wait_answer("tuned").lasts[0]["finish_reason"] == "stop"


def test_update_of_a_waiting_request_holds_when_it_runs(make_device: MakeDevice, client: RawClient) -> None:
    device = make_device(workers=FakeWorkers(slots=1)).start(sealed())
    client.ask("running", "hold 2")
    client.ask("waiting", "count 9")
    device.until(lambda: device.serving.active == 1 and device.serving.queued == 1)
    control = f"edge/v1/d/{client.device}/control/{client.name}"
    client.publish(control, b'{"id": "waiting", "op": "update", "set": {"max_tokens": 4, "stop": ["x"]}}')
    client.publish(control, b'{"id": "running", "op": "cancel"}')
    assert client.wait_answer("waiting").lasts[0]["text"] == "0 1 2 3 "
    assert device.workers.current.admitted[-1].stops == ("x",)


@pytest.mark.parametrize(
    ("payload", "request_id", "op", "code", "field"),
    [
        (b'{"id": "x", "op": "explode"}', "x", "explode", 400, "op"),
        (b'{"id": "x", "op": "update"}', "x", "update", 400, "set"),
        (b'{"id": "x", "op": "cancel", "why": 1}', "x", "cancel", 400, "why"),
        (b'{"id": "x", "op": "cancel"}', "x", "cancel", 404, "id"),
        (b'{"id": "x", "op": "update", "set": {"top_p": 1}}', "x", "update", 404, "id"),
        (b'{"op": "cancel"}', "-", "cancel", 400, "id"),
        (b"{", "-", "", 400, None),
    ],
)
def test_wrong_control_messages_are_answered(
    make_device: MakeDevice, client: RawClient, payload: bytes, request_id: str, op: str, code: int, field: str | None
) -> None:
    make_device().start(sealed())
    client.publish(f"edge/v1/d/{client.device}/control/{client.name}", payload)
    found, body = client.frames.get(timeout=20)
    assert found == request_id
    assert body["control"]["op"] == op
    assert (body["control"]["error"]["code"], body["control"]["error"].get("field")) == (code, field)


def test_cancel_that_comes_too_late_is_no_fault(make_device: MakeDevice, client: RawClient) -> None:
    make_device().start(sealed())
    client.ask("done", "count 1")
    client.wait_answer("done")
    control = f"edge/v1/d/{client.device}/control/{client.name}"
    client.publish(control, b'{"id": "done", "op": "cancel"}')
    client.publish(control, b'{"id": "other", "op": "cancel"}')
    while client.frames.get(timeout=20)[0] != "other":
        pass
    assert len(client.answers["done"].lasts) == 1
    assert not any("control" in frame for frame in client.answers["done"].frames)


def test_large_requests_wait_in_a_bounded_room(
    make_device: MakeDevice, client: RawClient, shared_broker: Broker
) -> None:
    """Half of it is there for one client; others still get in."""
    device = make_device(client_queue_limit=64).start(settle=False)
    text = "count 1 " + "x" * (MAX_REQUEST_BYTES - 200)
    for number in range(20):
        client.ask(f"q{number}", text)
    other = RawClient(shared_broker.port, f"{client.name}-2", client.device)
    other.ask("small", "count 2")
    device.until(lambda: device.serving.queued == 17 and len(client.unanswered()) == 16)
    refused = [answer.lasts[0]["error"] for answer in client.answers.values() if answer.lasts]
    assert {(error["code"], error["type"]) for error in refused} == {(429, "queue_full")}
    assert len(refused) == 4
    device.run(device.serving.swap(sealed(), "drain"))
    device.call(device.serving.settled)
    assert other.wait_answer("small").lasts[0]["finish_reason"]
    for number in range(16):
        assert client.wait_answer(f"q{number}").lasts[0]["finish_reason"]
    other.close()
