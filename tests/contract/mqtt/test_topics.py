"""Topics: what is built is what is parsed, and nothing else is ours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import ConfigInvalid
from contract.mqtt.pictures import PicturePart
from contract.mqtt.topics import Inbound, Topics, make_client_id

identifiers = st.from_regex(r"[A-Za-z0-9_.\-]{1,64}", fullmatch=True)


@given(identifiers, identifiers, identifiers)
def test_topics_that_clients_publish_are_parsed_back(device: str, client: str, group: str) -> None:
    topics = Topics(device)
    assert topics.parse(topics.generate(client)) == Inbound("generate", client)
    assert topics.parse(topics.control(client)) == Inbound("control", client)
    assert topics.parse(topics.group_generate(group, client)) == Inbound("group_generate", client, group)
    assert topics.parse(topics.desired) == Inbound("desired")
    part = PicturePart("0f" * 32, 2, 3)
    assert topics.parse(topics.picture(client, part)) == Inbound("picture", client, part=part)


@pytest.mark.parametrize(
    "levels",
    ["0f" * 32, f"{'0f' * 31}0/1-1", f"{'0F' * 32}/1-1", *(f"{'0f' * 32}/{part}" for part in (
        "", "1", "0-1", "2-1", "1-33", "01-2", "1-2-3", "１-1", "-1", "1-1\n",
    ))],
)  # fmt: skip
def test_parts_of_pictures_that_are_none_are_the_clients_to_hear_of(levels: str) -> None:
    found = Topics("d1").parse(f"edge/v1/d/d1/picture/me/{levels}")
    assert found in (Inbound("picture", "me"), None)
    assert (found is None) == ("/" not in levels)


@given(st.text(max_size=60))
def test_other_topics_are_none_of_ours(text: str) -> None:
    topics = Topics("d1")
    found = topics.parse(text)
    assert found is None or text.startswith("edge/v1/")


@pytest.mark.parametrize(
    "topic",
    [
        "edge/v1/d/other/generate/c",
        "edge/v1/d/d1/generate/",
        "edge/v1/d/d1/generate/a/b",
        "edge/v1/d/d1/generate/a b",
        "edge/v1/d/d1/reported",
        "edge/v2/d/d1/desired",
        "edge/v1/g//generate/c",
        "edge/v1/g/a/b/generate/c",
    ],
)
def test_near_misses_are_none_of_ours(topic: str) -> None:
    assert Topics("d1").parse(topic) is None


def test_the_topics_are_the_frozen_ones() -> None:
    topics = Topics("box-7")
    assert topics.generate("app") == "edge/v1/d/box-7/generate/app"
    assert topics.group_filter("hall") == "$share/hall/edge/v1/g/hall/generate/+"
    assert topics.reply("app", "r1") == "edge/v1/c/app/r/box-7/r1"
    assert topics.telemetry_llm == "edge/v1/d/box-7/telemetry/llm"
    assert topics.event("refused") == "edge/v1/d/box-7/event/refused"
    assert topics.client_replies_filter("app") == "edge/v1/c/app/r/+/+"


@pytest.mark.parametrize("device", ["", "a/b", "+", "#", "a" * 65, "ä"])
def test_a_device_id_that_cannot_stand_in_a_topic_is_refused(device: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        Topics(device)
    assert caught.value.field == "device"


@pytest.mark.parametrize("root", ["", "/", "a/", "/a", "a//b", "$SYS", "a/+"])
def test_a_topic_root_with_wildcards_or_empty_levels_is_refused(root: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        Topics("d1", root)
    assert caught.value.field == "root"


def test_client_ids_have_no_dots_and_differ_as_names_do() -> None:
    names = ["a.b", "a-b", "a_b", "ab", ".ab", "ab."]
    found = [make_client_id(name) for name in names]
    assert found[0] == "a:b"
    assert not any("." in each for each in found)
    assert len(set(found)) == len(names)
