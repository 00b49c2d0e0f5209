"""Pictures in parts: what is put together, what is bounded, and requests that name them, over a real broker."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest

from agent.serving.picture_parts import CLIENT_BYTES, CLIENT_PICTURES, KEEP_SECONDS, TOTAL_BYTES, PictureParts
from contract.errors import RequestInvalid
from contract.mqtt.pictures import (
    MAX_PART_BYTES,
    MAX_PICTURE_BYTES,
    PicturePart,
    picture_digest,
    picture_url,
    split_picture,
)
from tests.agent.device import Device, sealed
from tests.agent.serving.conftest import MakeDevice
from tests.e2e.raw_client import Answer, RawClient
from tests.seeing import png

RED = png(255, 0, 0) + Random(1).randbytes(700_000)
GREEN = png(0, 255, 0) + Random(2).randbytes(300_000)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def add(parts: PictureParts, data: bytes, client: str = "anna") -> str:
    for part, piece in split_picture(data):
        parts.add(client, part, piece)
    return picture_digest(data)


def test_parts_come_in_any_order_and_more_than_once() -> None:
    parts = PictureParts(Clock())
    pieces = [*split_picture(RED), *split_picture(RED)[:2]]
    Random(3).shuffle(pieces)
    for part, piece in pieces:
        parts.add("anna", part, piece)
    assert parts.find("anna", picture_digest(RED)) == RED
    assert parts.find("ben", picture_digest(RED)) is None
    assert parts.size == len(RED)


def test_what_is_missing_is_told() -> None:
    parts = PictureParts(Clock())
    digest = picture_digest(RED)
    assert parts.lacking("anna", digest) == "is not here"
    part, piece = split_picture(RED)[1]
    parts.add("anna", part, piece)
    assert parts.lacking("anna", digest) == "is not whole: part 1, 3 of 3 is missing"
    assert parts.find("anna", digest) is None


def test_what_is_another_picture_than_its_name_is_forgotten() -> None:
    parts = PictureParts(Clock())
    pieces = split_picture(RED)
    for part, piece in pieces[:-1]:
        parts.add("anna", part, piece)
    with pytest.raises(RequestInvalid, match="have another digest: send them again"):
        parts.add("anna", pieces[-1][0], b"something else")
    assert len(parts) == 0
    add(parts, RED)
    assert parts.find("anna", picture_digest(RED)) == RED


def test_another_count_of_parts_begins_again() -> None:
    parts = PictureParts(Clock())
    parts.add("anna", PicturePart(picture_digest(RED), 1, 9), RED[:100])
    add(parts, RED)
    assert parts.find("anna", picture_digest(RED)) == RED


def test_empty_and_huge_parts_are_refused() -> None:
    parts = PictureParts(Clock())
    with pytest.raises(RequestInvalid, match="it is empty"):
        parts.add("anna", PicturePart("0" * 64, 1, 2), b"")
    with pytest.raises(RequestInvalid, match="6,291,456 bytes: make it smaller"):
        for number in range(1, 9):
            parts.add("anna", PicturePart("0" * 64, number, 9), bytes(MAX_PICTURE_BYTES // 7))
    assert (len(parts), parts.size) == (0, 0)


def test_a_part_of_more_than_a_mebibyte_is_refused_and_the_others_are_kept() -> None:
    parts = PictureParts(Clock())
    part, piece = split_picture(RED)[1]
    parts.add("anna", part, piece)
    refused = f"part 2-3 of sha256:{part.digest}: it has 1,048,577 bytes, a part 1,048,576 at most: send smaller parts"
    with pytest.raises(RequestInvalid, match=f"^{refused}$") as error:
        parts.add("anna", part, bytes(MAX_PART_BYTES + 1))
    assert error.value.field == "picture"
    assert parts.size == len(piece)
    parts.add("ben", part, bytes(MAX_PART_BYTES))
    assert parts.size == len(piece) + MAX_PART_BYTES
    add(parts, RED)
    assert parts.find("anna", picture_digest(RED)) == RED


def test_they_are_forgotten_after_a_while_without_use() -> None:
    clock = Clock()
    parts = PictureParts(clock)
    red, green = add(parts, RED), add(parts, GREEN)
    clock.now = KEEP_SECONDS - 1
    assert parts.find("anna", red) == RED
    clock.now = KEEP_SECONDS
    assert parts.find("anna", green) is None
    assert parts.find("anna", red) == RED
    clock.now = 2 * KEEP_SECONDS + 1
    parts.sweep()
    assert (len(parts), parts.size) == (0, 0)


def test_whoever_sends_more_than_fits_loses_his_own_oldest() -> None:
    parts = PictureParts(Clock())
    other = add(parts, GREEN, "ben")
    digests = [add(parts, large(number)) for number in range(9)]
    assert parts.find("anna", digests[0]) is None
    assert parts.find("anna", digests[-1]) is not None
    assert parts.find("ben", other) == GREEN
    assert parts.size <= CLIENT_BYTES + len(GREEN)
    for number in range(3 * CLIENT_PICTURES):
        parts.add("anna", PicturePart(f"{number:064x}", 1, 2), b"x")
    assert len(parts) == CLIENT_PICTURES + 1
    for number in range(40):
        add(parts, large(number), f"client-{number}")
    assert parts.size <= TOTAL_BYTES


def large(number: int) -> bytes:
    return bytes([number]) * (MAX_PICTURE_BYTES // 3)


@pytest.fixture
def device(make_device: MakeDevice) -> Device:
    return make_device().start(sealed())


def send(client: RawClient, data: bytes, *, leave: int | None = None) -> None:
    for part, piece in split_picture(data):
        if part.number != leave:
            client.publish(f"edge/v1/d/{client.device}/picture/{client.name}/{part.digest}/{part.level}", piece)


def named(data: bytes) -> str:
    return f"sha256:{picture_digest(data)}"


def ask(client: RawClient, request: str, text: str, *urls: str) -> Answer:
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    body = {"id": request, "messages": [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]}
    client.answers[request] = Answer(0.0)
    client.publish(f"edge/v1/d/{client.device}/generate/{client.name}", json.dumps(body).encode())
    return client.answers[request]


def last(client: RawClient, request: str) -> dict[str, Any]:
    return client.wait_answer(request).lasts[0]


def admitted(device: Device) -> list[list[bytes]]:
    return device.call(lambda: [each.pictures for each in device.workers.current.admitted])


@pytest.mark.broker
def test_a_request_gets_the_pictures_that_it_names(device: Device, client: RawClient) -> None:
    send(client, RED)
    ask(client, "q1", "count 2", named(RED), picture_url(png(1, 2, 3)), named(RED))
    assert last(client, "q1")["finish_reason"] == "stop"
    assert admitted(device) == [[RED, png(1, 2, 3), RED]]


@pytest.mark.broker
def test_what_is_not_here_is_said_and_the_id_stays_free(device: Device, client: RawClient) -> None:
    send(client, RED, leave=2)
    ask(client, "q1", "count 2", named(GREEN), named(RED))
    error = last(client, "q1")["error"]
    assert (error["code"], error["type"]) == (404, "picture_missing")
    assert error["field"] == "messages[0].content[0].image_url.url"
    assert [each["message"] for each in error["details"]] == [
        f"the picture {named(GREEN)} is not here", f"the picture {named(RED)} is not whole: part 2 of 3 is missing"
    ]  # fmt: skip
    send(client, GREEN)
    send(client, RED)
    ask(client, "q1", "count 2", named(GREEN), named(RED))
    assert last(client, "q1")["finish_reason"] == "stop"
    assert admitted(device) == [[GREEN, RED]]


@pytest.mark.broker
def test_an_answered_request_is_known_again_without_its_pictures(make_device: MakeDevice, client: RawClient) -> None:
    """Neither a restart nor a picture that is gone makes another request of it."""
    first = make_device().start(sealed())
    send(client, RED)
    ask(client, "q1", "count 2", named(RED))
    told = last(client, "q1")
    first.kill()
    second = make_device().start(sealed())
    ask(client, "q1", "count 2", named(RED))
    assert last(client, "q1") == told
    ask(client, "q1", "count 2", picture_url(RED))
    assert last(client, "q1") == told
    assert admitted(second) == []
    ask(client, "q2", "count 2", named(RED))
    assert last(client, "q2")["error"]["type"] == "picture_missing", "parts are kept in memory"


@pytest.mark.broker
def test_an_accepted_request_keeps_its_pictures_over_a_restart(make_device: MakeDevice, client: RawClient) -> None:
    first = make_device().start(settle=False)
    send(client, RED)
    ask(client, "q1", "count 2", named(RED))
    first.until(lambda: len(first.serving.scheduler.queue) == 1)
    first.kill()
    second = make_device().start(sealed())
    assert last(client, "q1")["finish_reason"] == "stop"
    assert admitted(second) == [[RED]]


@pytest.mark.broker
def test_bad_parts_are_answered_and_cost_nothing(device: Device, client: RawClient) -> None:
    base = f"edge/v1/d/{client.device}/picture/{client.name}"
    wrong = {
        f"{base}/{'0' * 64}/1-1": b"another digest",
        f"{base}/{'0' * 64}/0-1": b"x",
        f"{base}/{'0' * 64}/1-99": b"x",
        f"{base}/nothing/1-1": b"x",
        f"{base}/{'1' * 64}/1-2": b"",
        f"{base}/{'2' * 64}/1-1": bytes(MAX_PICTURE_BYTES + 1),
    }
    client.answers["-"] = Answer(0.0)
    for topic, payload in wrong.items():
        client.publish(topic, payload)
    client.publish(f"{base}/{'3' * 64}/1-2", b"kept for ever", retain=True)
    ask(client, "q1", "count 2")
    assert last(client, "q1")["finish_reason"] == "stop"
    errors = [each["error"] for each in client.answers["-"].lasts]
    assert [(error["code"], error["field"]) for error in errors] == [(400, "picture")] * len(wrong)
    assert errors[0]["message"].endswith("have another digest: send them again")
    assert "64 digits 0-9 a-f, and 1-1 to 32-32" in errors[1]["message"]
    client.publish(f"{base}/{'3' * 64}/1-2", b"", retain=True)


@pytest.mark.broker
def test_pictures_of_a_request_have_a_limit_together(device: Device, client: RawClient) -> None:
    halves = [png(number, 0, 0) + bytes(MAX_PICTURE_BYTES // 2) for number in range(2)]
    for each in halves:
        send(client, each)
    ask(client, "q1", "count 2", *map(named, halves))
    error = last(client, "q1")["error"]
    assert (error["code"], error["field"]) == (413, "messages")
    assert "6,291,456 bytes together at most" in error["message"]
