"""The Python client asks a real model in a real worker: types, calls, conversations, several answers and time-outs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from msgspec import Struct

from contract.errors import RequestInvalid, SourceUnavailable
from edge_bundle import BrokerAddress, Client
from tests.agent.device import Device
from tests.agent.serving.test_real_model import serve
from tests.agent.serving.test_tools import READ
from tests.broker import Broker
from tests.chat_templates import TEMPLATES

pytestmark = pytest.mark.broker

ASKED = [{"role": "user", "content": "Say hello."}]


class Room(Struct):
    name: str
    floor: int
    kind: Literal["kitchen", "cellar"]
    doors: list[str] = []
    above: Room | None = None


@dataclass
class Reading:
    value: float
    good: bool


@pytest.fixture(scope="module")
def device(shared_broker: Broker, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    directory = tmp_path_factory.mktemp("asked")
    bundle = shutil.copytree(tiny_bundle, directory / "bundle")
    (bundle / "chat_template.jinja").unlink(missing_ok=True)
    (bundle / "chat_template.jinja").write_text(TEMPLATES["qwen2.5"])
    made = serve(shared_broker, directory, bundle, "asked", threads=1, max_bytes=8 << 20)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def client(shared_broker: Broker, device: Device) -> Iterator[Client]:
    with Client(BrokerAddress("127.0.0.1", shared_broker.port)) as connected:
        yield connected


@pytest.mark.parametrize("type_", [Reading, list[bool], Literal["on", "off"], int, dict[str, bool] | None])
def test_an_answer_is_a_value_of_the_type(client: Client, type_: type[object]) -> None:
    whole = 0
    for seed in range(30):
        try:
            done = client.complete(device="asked", messages=ASKED, parse=type_, temperature=1.5, seed=seed, timeout=120)
        except RequestInvalid as broken:  # a key of a dict may be of any length, and a model of random words goes on
            assert "broke off at max_tokens" in broken.message
            continue
        whole += 1
        assert done.choices[0].finish_reason == "stop"
        assert done.parsed == type_ or isinstance(done.parsed, Reading | list | str | int | dict | None)
        assert json.loads(done.choices[0].message.content) is not None or done.parsed is None
        if whole == 3:
            break
    assert whole == 3


def test_a_type_that_holds_itself_is_filled_or_says_that_it_broke_off(client: Client) -> None:
    for seed in range(4):
        try:
            done = client.complete(device="asked", messages=ASKED, parse=Room, temperature=0.7, seed=seed, timeout=120)
        except RequestInvalid as broken:
            assert "broke off at max_tokens" in broken.message
            continue
        assert isinstance(done.parsed, Room)
        assert done.parsed.kind in ("kitchen", "cellar")
    with pytest.raises(RequestInvalid, match="broke off at max_tokens before it was a whole Room"):
        client.complete(device="asked", messages=ASKED, parse=Room, max_tokens=3)


def test_a_call_comes_in_pieces_and_goes_back(client: Client) -> None:
    asked = {"device": "asked", "tools": [READ], "parallel_tool_calls": False}
    done = client.complete(messages=ASKED, tool_choice="required", **asked)  # type: ignore[call-overload]
    [call] = done.choices[0].message.tool_calls
    assert call.function.name == "read"
    assert 0 <= json.loads(call.function.arguments)["n"] <= 99
    arguments, ends = "", []
    for chunk in client.stream(messages=ASKED, tool_choice="required", **asked):  # type: ignore[arg-type]
        for delta in chunk.choices[0].delta.tool_calls or []:
            arguments += delta.function.arguments or ""
        ends.append(chunk.choices[0].finish_reason)
    assert (json.loads(arguments), ends[-1]) == (json.loads(call.function.arguments), "tool_calls")


def test_a_conversation_holds_what_was_said(client: Client) -> None:
    chat = client.chat(device="asked", max_tokens=6)
    first = chat.ask("Say hello.")
    second = chat.ask("Say hello.")
    assert [each["role"] for each in chat.messages] == ["user", "assistant", "user", "assistant"]
    assert second.usage.prompt_tokens > first.usage.prompt_tokens


def test_several_answers_are_apart(client: Client) -> None:
    done = client.complete(device="asked", messages=ASKED, n=3, temperature=1.5, seed=5, max_tokens=12)
    assert [choice.index for choice in done.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in done.choices}) > 1


def test_a_time_out_ends_it_in_the_worker(client: Client, device: Device) -> None:
    # 7,200 tokens: seconds of work, for any machine.
    with pytest.raises(SourceUnavailable, match=r"within 0\.1 s"):
        client.complete(device="asked", prompt="All work and no play.", min_tokens=450, n=16, timeout=0.1)
    device.until(lambda: device.serving.active == 0)
