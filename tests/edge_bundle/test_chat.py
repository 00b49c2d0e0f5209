"""Conversations: turns are kept, what is not answered leaves no trace; against a real device."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.config import AgentConfig
from agent.mqtt.settings import BrokerSettings
from contract.errors import RequestInvalid, UsageError
from contract.mqtt.tools import CallFragment, ToolCallDelta
from edge_bundle import AsyncClient, ChatMessage, Chunk, Client, ToolCall
from edge_bundle.chat import StreamedMessage, Turns
from edge_bundle.completion import ChunkChoice, Delta, FunctionCall
from tests.agent.device import Device, sealed
from tests.broker import Broker

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    made = Broker(tmp_path_factory.mktemp("broker"))
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def device(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    directory: Path = tmp_path_factory.mktemp("box")
    settings = BrokerSettings(host="127.0.0.1", port=broker.port)
    made = Device(AgentConfig(device="box", state_dir=directory, broker=settings), directory / "state.db")
    yield made.start(sealed())
    made.stop()


def sent(device: Device) -> list[tuple[Any, Any]]:
    messages = device.workers.current.admitted[-1].messages
    assert messages is not None
    return [(each["role"], each["content"]) for each in messages]


def test_every_turn_is_sent_with_those_before(device: Device, broker: Broker) -> None:
    with Client(broker.url) as client:
        chat = client.chat(device="box", system="Be brief.", max_tokens=5)
        assert chat.ask("count 2").choices[0].message.content == "0 1 "
        text = "".join(chunk.choices[0].delta.content for chunk in chat.stream("count 3"))
        assert text == "0 1 2 "
        assert chat.ask("count 9").choices[0].message.content == "0 1 2 3 4 ", "max_tokens holds for every turn"
    assert sent(device) == [
        ("system", "Be brief."), ("user", "count 2"), ("assistant", "0 1 "), ("user", "count 3"),
        ("assistant", "0 1 2 "), ("user", "count 9"),
    ]  # fmt: skip


def test_a_turn_that_is_refused_can_be_said_again(device: Device, broker: Broker) -> None:
    async def scenario() -> None:
        async with AsyncClient(broker.url) as client:
            chat = client.chat(device="box")
            with pytest.raises(RequestInvalid):
                await chat.ask("count 1", temperature=99)
            assert chat.messages == []
            assert (await chat.ask("count 1", parse=int)).choices[0].message.content == "0 "
            assert [chunk.choices[0].delta.content async for chunk in chat.stream("count 1")] == ["0 ", ""]
            assert [each["role"] for each in chat.messages] == ["user", "assistant", "user", "assistant"]

    asyncio.run(scenario())


def test_an_answer_is_parsed_as_the_type_that_was_asked_for(device: Device, broker: Broker) -> None:
    with Client(broker.url) as client:
        done = client.complete(device="box", prompt="count 1", parse=int)
    assert done.parsed == 0
    grammar = device.workers.current.admitted[-1].grammar
    assert grammar is not None
    assert "integer" in grammar[1]


def test_calls_and_results_go_back_as_they_came() -> None:
    turns = Turns(None, {})
    call = ToolCall("c1", FunctionCall("weather", '{"city": "Kyoto"}'))
    turns.answered(turns.asking("How warm is it?"), ChatMessage("", reasoning_content="hm", tool_calls=[call]))
    assert call.arguments == {"city": "Kyoto"}
    turns.tool_result("c1", "21 °C")
    assert turns.asking(None) == [
        {"role": "user", "content": "How warm is it?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city": "Kyoto"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "21 °C"},
    ]


def test_a_streamed_turn_is_remembered_with_its_calls_and_without_its_thoughts() -> None:
    answer = StreamedMessage()
    head = ToolCallDelta(0, CallFragment("weather", '{"city"'), "c1", "function")
    for delta in (
        Delta("gone"),
        Delta("", "hm"),
        Delta("", None, [head]),
        Delta("", None, [ToolCallDelta(0, CallFragment(arguments=': "Kyoto"}'))]),
    ):
        answer.add(Chunk("q", [ChunkChoice(0, delta)], restart=delta.reasoning_content is not None))
    assert answer.message.reasoning_content == "hm"
    call = ToolCall("c1", FunctionCall("weather", '{"city": "Kyoto"}'))
    assert (answer.message.content, answer.message.tool_calls) == ("", [call])
    assert "reasoning_content" not in answer.message.to_dict()


def test_a_chat_makes_its_messages_itself() -> None:
    with pytest.raises(UsageError, match="system="):
        Turns(None, {"messages": []})
