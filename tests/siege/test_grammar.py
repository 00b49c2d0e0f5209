"""The messages of a siege are those that were meant, every time; readers in this process withstand them."""

from __future__ import annotations

from collections import Counter
from functools import cache

import msgspec
import pytest

from contract.errors import BundleRefused, RequestInvalid
from contract.mqtt import reading
from contract.mqtt.requests import GenerateRequest
from tests.siege.bodies import RANGES
from tests.siege.grammar import DEVICE, ROOT, Grammar
from tests.siege.shots import Blow, Shot, read_step
from tests.siege.shrinking import shrink
from tests.siege.values import DAMAGE, READABLE, Pairs, Raw, write

MESSAGES = 1500


@cache
def messages() -> tuple[Shot, ...]:
    grammar = Grammar(20)
    return tuple(grammar.shot(number) for number in range(MESSAGES))


def test_every_message_comes_from_the_seed_and_its_number_alone() -> None:
    again = Grammar(20)
    for number in (1499, 7, 1345, 0):
        assert again.shot(number) == messages()[number]
    assert Grammar(21).shot(7) != messages()[7]


def test_what_was_written_down_is_sent_again() -> None:
    for shot in messages()[:500]:
        assert read_step(shot.line()) == shot
    assert read_step(Blow("worker killed").line()) == Blow("worker killed")


def test_every_field_of_a_request_gets_values_in_and_out_of_range() -> None:
    fields = {field.name for field in msgspec.structs.fields(GenerateRequest)}
    assert set(RANGES) == fields - {"id", "prompt", "messages", "response_format"}


def test_a_siege_sends_everything_that_it_knows() -> None:
    kinds = Counter(shot.what for shot in messages())
    for kind in (
        "plain",
        "twin",
        "control",
        "desired",
        "odd client",
        "odd topic",
        "retained",
        "picture",
        *READABLE,
        *DAMAGE,
    ):
        assert kinds[kind], kind
    assert {shot.qos for shot in messages()} == {0, 1, 2}
    assert {shot.protocol for shot in messages()} == {"5", "3.1.1"}
    assert {name for shot in messages() for name in shot.properties} == {
        "PayloadFormatIndicator", "ContentType", "UserProperty", "TopicAlias", "ResponseTopic", "CorrelationData",
        "MessageExpiryInterval",
    }  # fmt: skip
    assert MESSAGES / 4 < sum(shot.owed for shot in messages()) < MESSAGES * 3 / 4
    owed = Counter((shot.client, shot.id) for shot in messages() if shot.owed)
    used = Counter((shot.client, shot.id) for shot in messages() if "/control/" not in shot.topic)
    assert all(used[key] == 1 for key in owed)


def test_an_id_is_found_wherever_an_answer_is_owed() -> None:
    lost = []
    for shot in messages():
        if shot.owed:
            found = reading.salvage_request_id(shot.payload, shot.properties.get("CorrelationData"))
            if found != shot.id:
                lost.append((shot.what, shot.payload[:200]))
    assert lost == []


def test_nothing_that_is_sent_gets_past_the_readers_in_another_way_than_they_promise() -> None:
    accepted = 0
    for shot in messages():
        correlation = shot.properties.get("CorrelationData")
        reading.salvage_control(shot.payload)
        try:
            reading.parse_control(shot.payload)
        except RequestInvalid as error:
            error.message.encode()
        try:
            request_id, _ = reading.parse_request(shot.payload, correlation)
            accepted += 1
            request_id.encode("ascii")
        except RequestInvalid as error:
            f"{error.message} {error.field}".encode()
        try:
            desired = reading.parse_desired(shot.payload)
            assert desired is None or desired.revision.encode()
        except BundleRefused as error:
            f"{error.message} {error.field}".encode()
    assert accepted > MESSAGES / 8


def test_json_that_no_library_writes() -> None:
    assert write(Pairs([("a", Raw("NaN")), ("a", [1, "\ud83d"])])) == '{"a": NaN, "a": [1, "\\ud83d"]}'


@pytest.mark.parametrize("guilty", [{3}, {0, 19}, {5, 6, 7}, set(range(20))])
def test_shrinking_leaves_what_breaks_something(guilty: set[int]) -> None:
    assert shrink(list(range(20)), lambda steps: guilty <= set(steps)) == sorted(guilty)


def test_shrinking_leaves_alone_what_breaks_nothing() -> None:
    assert shrink([1, 2, 3], lambda _steps: False) == [1, 2, 3]


def test_messages_go_to_the_device() -> None:
    assert sum(shot.topic.startswith(f"{ROOT}/d/{DEVICE}/") for shot in messages()) > MESSAGES / 2
