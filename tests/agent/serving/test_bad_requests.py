"""Whatever is sent, the agent says what is wrong with it and goes on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from contract.mqtt.requests import MAX_REQUEST_BYTES
from tests.agent.device import sealed
from tests.agent.serving.conftest import MakeDevice
from tests.agent.worker.double import FakeWorkers
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
    ("seed", {"prompt": "a", "seed": 0.5}, "seed"),
    ("priority", {"prompt": "a", "priority": 10}, "priority"),
    ("deadline", {"prompt": "a", "deadline_ms": 0}, "deadline_ms"),
    ("logit_bias", {"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias.x"),
    ("NaN", b'{"id": "bad", "prompt": "a", "temperature": NaN}', "temperature"),
    ("infinity", b'{"id": "bad", "prompt": "a", "stop": ["a", -Infinity]}', "stop[1]"),
    ("1e400", b'{"prompt": "a", "temperature": 1e400, "id": "bad"}', "temperature"),
    ("big integer", b'{"id": "bad", "prompt": "a", "seed": 9999999999999999999999}', "seed"),
    ("nested", b'{"id":"bad","prompt":"a","response_format":' + b"[" * 40 + b"]" * 40 + b"}", "response_format"),
    ("nested before", b'{"response_format":' + b"[" * 40 + b"]" * 40 + b',"id":"bad","prompt":"a"}', "response_format"),
    ("endless", b'{"id":"bad","prompt":"a","stop":' + b"[" * 100_000, "stop"),
    ("trailing NUL", b'{"id": "bad", "prompt": "a"}\0', None),
    ("BOM", b'\xef\xbb\xbf{"id": "bad", "prompt": "a"}', None),
    ("UTF-16", '{"id": "bad", "prompt": "a"}'.encode("utf-16"), None),
    ("latin-1", '{"id": "bad", "prompt": "für"}'.encode("latin-1"), "prompt"),
    ("CESU-8", b'{"id": "bad", "prompt": "\xed\xa0\xbd\xed\xb8\x80"}', "prompt"),
    ("half a pair", b'{"prompt": "nice \\ud83d", "id": "bad"}', "prompt"),
    ("trailing comma", b'{"id": "bad", "prompt": "a",}', None),
    ("truncated", b'{"id": "bad", "prompt": "once upon a', None),
    ("truncated after it", b'{"prompt": "a", "id": "bad"', None),
    ("single quotes", b"{'id': 'bad', 'prompt': 'a'}", None),
    ("names without quotes", b'{id: "bad", prompt: "a"}', None),
    ("encoded twice", json.dumps(json.dumps({"id": "bad", "prompt": "a"})).encode(), None),
    ("in a list", b'[{"id": "bad", "prompt": "a"}]', None),
    ("two documents", b'{"id": "bad", "prompt": "a"}{"id": "other"}', None),
    ("escaped name", b'{"\\u0069d": "b\\u0061d", "prompt": "a", "x": 1}', "x"),
    ("two ids", b'{"id": "first", "prompt": "a", "id": "bad"}', "id"),
    ("a good one of two", b'{"id": "bad", "prompt": "a", "id": "a/b"}', "id"),
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
    request = "-" if name in ("not JSON", "an array", "no id") else "bad"
    client.answers[request] = Answer(0.0)
    client.publish(f"edge/v1/d/{client.device}/generate/{client.name}", payload)
    error = client.wait_answer(request).lasts[0]["error"]
    assert error["code"] == 400
    assert error["type"] == "invalid_request"
    assert error.get("field") == field
    assert error["message"]


def test_ten_megabytes_are_refused_and_the_next_request_works(make_device: MakeDevice, client: RawClient) -> None:
    make_device().start(sealed())
    client.answers["huge"] = Answer(0.0)
    huge = json.dumps({"id": "huge", "prompt": "x" * (10 << 20)}).encode()
    client.publish(f"edge/v1/d/{client.device}/generate/{client.name}", huge)
    assert client.wait_answer("huge").lasts[0]["error"]["code"] == 413
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


HERE = "edge/v1/c/{client.name}/r/{client.device}"


@pytest.mark.parametrize(
    ("correlation", "topic", "found"),
    [
        (b"c1", None, "c1"),
        (b"c1", f"{HERE}/c2", "c1"),
        (None, f"{HERE}/c2", "c2"),
        (b"a/b", f"{HERE}/c2", "c2"),
        (b"\xff", None, "-"),
        (None, f"{HERE}/a/b", "-"),
        (None, f"{HERE}/", "-"),
        (None, "edge/v1/c/somebody/r/{client.device}/c2", "-"),
        (None, "edge/v1/c/{client.name}/r/elsewhere/c2", "-"),
    ],
)
def test_the_properties_of_a_broken_request_say_where_to_answer_but_only_its_own_client(
    make_device: MakeDevice, client: RawClient, correlation: bytes | None, topic: str | None, found: str
) -> None:
    make_device().start(sealed())
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    if correlation is not None:
        properties.CorrelationData = correlation
    if topic is not None:
        properties.ResponseTopic = topic.format(client=client)
    generate = f"edge/v1/d/{client.device}/generate/{client.name}"
    client._client.publish(generate, b'{"prompt": ', qos=1, properties=properties).wait_for_publish(120)
    request, frame = client.next_frame()
    assert (request, frame["error"]["code"]) == (found, 400)


def test_all_faults_of_a_request_are_told_at_once(make_device: MakeDevice, client: RawClient) -> None:
    make_device().start(sealed())
    body = (
        b'{"id": "bad", "messages": [{"role": "usr", "content": "a"}, {"role": "user", "contents": "b"}],'
        b'"temprature": 1, "top_p": 7, "seed": 99999999999999999999, "num_beams": 2,'
        b'"response_format": {"type": "regex"}}'
    )
    client.answers["bad"] = Answer(0.0)
    client.publish(f"edge/v1/d/{client.device}/generate/{client.name}", body)
    error = client.wait_answer("bad").lasts[0]["error"]
    found = {each["field"]: each.get("suggestion") for each in error["details"]}
    assert found == {
        "seed": None,
        "messages[0].role": "user",
        "messages[1].contents": "content",
        "messages[1].content": None,
        "temprature": "temperature",
        "top_p": None,
        "response_format.regex": None,
    }
    assert (error["field"], error["code"]) == ("seed", 400)
    assert error["message"].endswith("(and 6 more)")
    (unknown,) = (each for each in error["details"] if each["field"] == "temprature")
    assert unknown["message"].endswith("did you mean `temperature`?")


def test_all_faults_of_a_control_message_are_told_at_once(make_device: MakeDevice, client: RawClient) -> None:
    make_device().start(sealed())
    body = b'{"id": "x", "op": "update", "why": 1, "set": {"temprature": 1, "top_p": 7, "seed": 1}}'
    client.publish(f"edge/v1/d/{client.device}/control/{client.name}", body)
    request, frame = client.next_frame()
    details = frame["control"]["error"]["details"]
    assert request == "x"
    assert {each["field"]: each.get("suggestion") for each in details} == {
        "why": None,
        "set.temprature": "temperature",
        "set.seed": None,
        "set.top_p": None,
    }


def test_what_is_told_of_a_body_is_bounded(make_device: MakeDevice, client: RawClient) -> None:
    make_device().start(sealed())
    body = {"id": "bad", "prompt": "a", **{f"{number}{'x' * 5000}": 1 for number in range(100)}}
    client.answers["bad"] = Answer(0.0)
    client.publish(f"edge/v1/d/{client.device}/generate/{client.name}", json.dumps(body).encode())
    error = client.wait_answer("bad").lasts[0]["error"]
    assert len(error["details"]) == 16
    assert len(json.dumps(error)) < 30_000


def test_resume_of_an_unknown_request_is_a_404(make_device: MakeDevice, client: RawClient) -> None:
    make_device().start(sealed())
    client.answers["ghost"] = Answer(0.0)
    client.publish(f"edge/v1/d/{client.device}/control/{client.name}", b'{"id": "ghost", "op": "resume"}')
    assert client.wait_answer("ghost").lasts[0]["error"]["code"] == 404


def test_resume_gives_all_text_so_far(make_device: MakeDevice, client: RawClient) -> None:
    device = make_device().start(sealed())
    client.ask("long", "hold 3")
    assert client.next_frame()[1]["d"] == "0 "
    client.publish(f"edge/v1/d/{client.device}/control/{client.name}", b'{"id": "long", "op": "resume"}')
    again = client.next_frame()[1]
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
    assert not client.answers["tuned"].lasts
    device.call(device.workers.current.let_go)
    # By its end all that was said before has come, too.
    answer = client.wait_answer("tuned")
    faults = [frame["control"] for frame in answer.frames if "control" in frame]
    assert [(fault["op"], fault["error"]["field"]) for fault in faults] == [
        ("update", "set.temperature"),
        ("update", "set.seed"),
    ]
    assert answer.lasts[0]["finish_reason"] == "stop"


def test_update_of_a_waiting_request_holds_when_it_runs(make_device: MakeDevice, client: RawClient) -> None:
    device = make_device(workers=FakeWorkers(slots=1)).start(sealed())
    client.ask("running", "hold 2")
    client.ask("waiting", "count 9")
    device.until(lambda: device.serving.active == 1 and device.serving.queued == 1)
    # It waits in the queue, and not for the result store: an update would be kept back until it runs.
    device.run(device.result_store.flush())
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
        (b'{"id": "x", "op": "cancel", }', "x", "cancel", 400, None),
        (b'{"id": "x", "op": "cancle"}', "x", "cancle", 400, "op"),
        (b'{"id": "x", "op": "update", "set": {"top_p": 1e400}}', "x", "update", 400, "set.top_p"),
        (b'\xef\xbb\xbf{"id": "x", "op": "update", "set": {}}', "x", "update", 400, None),
    ],
)
def test_wrong_control_messages_are_answered(
    make_device: MakeDevice, client: RawClient, payload: bytes, request_id: str, op: str, code: int, field: str | None
) -> None:
    make_device().start(sealed())
    client.publish(f"edge/v1/d/{client.device}/control/{client.name}", payload)
    found, body = client.next_frame()
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
    while client.next_frame()[0] != "other":
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
    device.call(device.serving.startup_finished)
    assert other.wait_answer("small").lasts[0]["finish_reason"]
    for number in range(16):
        assert client.wait_answer(f"q{number}").lasts[0]["finish_reason"]
    other.close()
