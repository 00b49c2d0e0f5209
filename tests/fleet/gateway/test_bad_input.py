"""What is wrong is answered at once, in OpenAI's shape, with the field and what to do."""

from __future__ import annotations

import json
import socket
from typing import Any

import openai
import pytest

from fleet.http import body as http_body
from tests.fleet.gateway.raw import chat, open_chat, send
from tests.fleet.gateway.stage import Stage
from tests.fleet.waiting import until

pytestmark = pytest.mark.broker

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


def prompt(**more: Any) -> dict[str, Any]:
    return {"model": "toy", "prompt": "count 2", **more}


@pytest.mark.parametrize(
    ("path", "body", "param", "text"),
    [
        (CHAT, chat(temperature="hot"), "temperature", "Expected `float`"),
        (CHAT, chat(temprature=1), "temprature", "did you mean `temperature`?"),
        (CHAT, chat(n=0), "n", "n"),
        (CHAT, chat(max_tokens=-1), "max_tokens", "max_tokens"),
        (CHAT, {"messages": [{"role": "user", "content": "x"}]}, "model", "name a model"),
        (CHAT, chat(""), "model", "name a model"),
        (CHAT, chat(5), "model", "Expected `str`"),  # type: ignore[arg-type]
        (CHAT, {"model": "toy", "messages": []}, "messages", "messages"),
        (CHAT, {"model": "toy", "messages": "hello"}, "messages", "messages"),
        (CHAT, {"model": "toy", "messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "robot"),
        (CHAT, {"model": "toy", "prompt": "x"}, "messages", "/v1/completions"),
        (CHAT, chat(id="mine"), "id", "leave id out"),
        (CHAT, chat(stream_options={"include_usage": True}), "stream_options", "stream: true"),
        (CHAT, chat(stream=True, stream_options={"usage": True}), "stream_options.usage", "usage"),
        (CHAT, chat(response_format={"type": "yaml"}), "response_format.type", "yaml"),
        (CHAT, chat(store=True), "store", "keeps no answers"),
        (TEXT, prompt(echo=True), "echo", "does not repeat"),
        (TEXT, prompt(suffix="x"), "suffix", "fills no gap"),
        (TEXT, prompt(best_of=3), "best_of", "leave best_of out"),
        (TEXT, prompt(prompt=[[1, 2]]), "prompt[0]", "Expected `str`"),
        (TEXT, prompt(prompt=[]), "prompt", "prompt"),
        (TEXT, {"model": "toy"}, "prompt", "prompt"),
        (TEXT, prompt(logprobs=True), "logprobs", "Expected `int`"),
        (TEXT, prompt(messages=[]), "messages", "/v1/chat/completions"),
        (CHAT, chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y"}}]}]),
         "messages[0].content[0].image_url.url", "data:"),
    ],
)  # fmt: skip
def test_a_field_that_is_wrong_is_named(stage: Stage, path: str, body: dict[str, Any], param: str, text: str) -> None:
    reply = send(stage.server.port, path, body)
    assert reply.status == 400, reply
    assert (reply.error["type"], reply.error["param"]) == ("invalid_request_error", param)
    assert text in reply.error["message"]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"\xff\xfe",
        b'{"model": "toy", "model": "other"}',
        b"[" * 100_000,
        b'{"a": NaN}',
    ],
)
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_what_is_no_document_is_refused(stage: Stage, path: str, raw: bytes) -> None:
    reply = send(stage.server.port, path, raw=raw)
    assert reply.status == 400
    assert reply.error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("model", "near"),
    [
        ("device:kitchn-1", "device:kitchen-1"), ("kitchen-1", "device:kitchen-1"), ("kitchens", "group:kitchens"),
        ("toi", "toy"), ("toy@9.9.9", "toy@1.0.0"), ("group:kitchen", "group:kitchens"),
    ],
)  # fmt: skip
def test_a_model_that_is_not_there_is_named_with_the_nearest(stage: Stage, model: str, near: str) -> None:
    reply = send(stage.server.port, CHAT, chat(model))
    assert reply.status == 404
    assert (reply.error["code"], reply.error["param"]) == ("model_not_found", "model")
    assert f"did you mean '{near}'?" in reply.error["message"]


@pytest.mark.parametrize("model", ["gpt-4o", "device:", "group:", ":", "x" * 256, "a/b/../c", "\x00"])
def test_names_of_nobody_are_not_found(stage: Stage, model: str) -> None:
    reply = send(stage.server.port, CHAT, chat(model))
    assert reply.status == 404
    assert "does not exist" in reply.error["message"]


def test_nobody_who_can_answer_is_said_at_once(stage: Stage) -> None:
    for model, why in (
        ("device:empty-1", "the device empty-1 has no model"),
        ("group:nobody-home", "empty-1 has no model"),
    ):
        for stream in (False, True):
            reply = send(stage.server.port, CHAT, chat(model, stream=stream))
            assert reply.status == 503
            assert reply.headers["content-type"] == "application/json"
            assert int(reply.headers["retry-after"]) >= 1
            assert reply.error["code"] == "unavailable"
            assert why in reply.error["message"]


def test_a_body_that_is_too_large_is_refused_before_it_is_read(stage: Stage) -> None:
    size = http_body.MAX_BODY_BYTES
    with socket.create_connection(("127.0.0.1", stage.server.port), timeout=60) as connection:
        connection.sendall(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {size * 1000}\r\n\r\n".encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
    reply = send(stage.server.port, CHAT, raw=json.dumps(chat(text="x" * size)).encode())
    assert reply.status == 413
    assert "shorten it" in reply.error["message"]


def test_a_body_without_a_length_is_bounded(stage: Stage) -> None:
    with socket.create_connection(("127.0.0.1", stage.server.port), timeout=60) as connection:
        head = (
            f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        connection.sendall(head.encode())
        piece = b"40000\r\n" + b" " * 0x40000 + b"\r\n"
        for _ in range(5):
            connection.sendall(piece)
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_a_slow_body_is_given_up(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_body.read_body, "__kwdefaults__", {"max_bytes": 1 << 20, "seconds": 0.3})
    with socket.create_connection(("127.0.0.1", stage.server.port), timeout=60) as connection:
        connection.sendall(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{{".encode())
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"])
def test_a_page_of_another_site_cannot_post_a_form(stage: Stage, kind: str) -> None:
    reply = send(stage.server.port, CHAT, chat(), headers={"content-type": kind, "origin": "https://evil.example"})
    assert reply.status == 415
    assert "send application/json" in reply.error["message"]


def test_other_origins_are_not_let_in(stage: Stage) -> None:
    asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    reply = send(stage.server.port, CHAT, method="OPTIONS", headers=asked)
    assert reply.status == 405
    reply = send(stage.server.port, CHAT, chat(), headers={"origin": "https://evil.example"})
    assert not [name for name in reply.headers if name.startswith("access-control")]


def test_other_paths_and_methods_are_refused(stage: Stage) -> None:
    assert send(stage.server.port, "/v1/nothing").status == 404
    assert send(stage.server.port, CHAT).status == 405
    for path in ("/v1/nothing", CHAT):
        assert "message" in send(stage.server.port, path).error


def test_the_client_that_leaves_ends_it_on_the_device(stage: Stage) -> None:
    """Streams and whole answers; the openai package and a connection that is cut."""
    name = "kitchen-1"
    before = stage.devices[name].meter.requests.get("cancelled", 0)
    with openai.OpenAI(base_url=stage.url, api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(**chat(f"device:{name}", "hold 5"), stream=True)
        assert next(stream).choices[0].delta.role == "assistant"
        stream.close()
    stage.wait_for_cancelled(name, before + 1)
    for stream_it in (True, False):
        admitted = len(stage.devices[name].workers.current.admitted)
        connection = open_chat(stage.server.port, chat(f"device:{name}", "hold 5", stream=stream_it))
        until(lambda a=admitted: len(stage.devices[name].workers.current.admitted) > a, "it to be asked")
        connection.close()
        stage.wait_for_cancelled(name, before + (2 if stream_it else 3))


def test_bytes_that_are_no_http_end_the_connection_and_nothing_else(stage: Stage) -> None:
    for raw in (
        b"\x16\x03\x01\x00\xa5\x01\x00\x00",
        b"GET / HTTP/9.9\r\n\r\n",
        b"A" * 100_000 + b"\r\n\r\n",
        b"\r\n" * 50,
    ):
        with socket.create_connection(("127.0.0.1", stage.server.port), timeout=60) as connection:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(65536)
            assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    assert send(stage.server.port, "/healthz").json["status"] == "ok"


def test_healthz_and_metrics(stage: Stage) -> None:
    assert send(stage.server.port, CHAT, chat()).status == 200
    assert send(stage.server.port, "/healthz").json == {"status": "ok", "problems": {}, "warnings": {}}
    reply = send(stage.server.port, "/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    text = reply.body.decode()
    from prometheus_client.parser import text_string_to_metric_families

    values = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert values["edge_gateway_requests_total", (("path", CHAT), ("status", "200"))] >= 1
    assert values["edge_gateway_tokens_total", (("kind", "answer"),)] >= 2
    assert values["edge_gateway_devices_ready", ()] == 3
    assert values["edge_gateway_requests_in_flight", ()] == 0
    assert (
        values["edge_gateway_request_seconds_count", ()]
        == values["edge_gateway_request_seconds_bucket", (("le", "+Inf"),)]
    )
