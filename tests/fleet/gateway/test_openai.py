"""The openai package against the gateway: real HTTP, real broker, real devices with fake workers."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from tests.fleet.gateway.stage import Stage

pytestmark = pytest.mark.broker


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def client(stage: Stage) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=stage.url, api_key="none", max_retries=0, timeout=60) as made:
        yield made


def test_a_whole_answer(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(model="device:kitchen-1", messages=user("count 3"))
    assert done.object == "chat.completion"
    assert done.model == "toy@1.0.0"
    assert done.id.startswith("chatcmpl-")
    assert done._request_id == done.id
    assert done.created > 1_600_000_000
    assert done.system_fingerprint.startswith("fp_")
    (choice,) = done.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "0 1 2 ", "stop")
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.total_tokens) == (2, 3, 5)
    assert done.usage.prompt_tokens_details.cached_tokens == 0


def test_a_stream_has_everything_in_every_chunk(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="toy", messages=user("count 3"), stream=True))
    assert len({each.id for each in chunks}) == 1
    assert {each.object for each in chunks} == {"chat.completion.chunk"}
    assert {each.model for each in chunks} == {"toy@1.0.0"}
    assert len({(each.created, each.system_fingerprint) for each in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(each.choices[0].delta.role is None for each in chunks[1:])
    assert "".join(each.choices[0].delta.content or "" for each in chunks) == "0 1 2 "
    assert [each.choices[0].finish_reason for each in chunks if each.choices[0].finish_reason] == ["stop"]
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(each.usage is None for each in chunks)


def test_usage_comes_in_a_chunk_of_its_own(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="group:kitchens", messages=user("count 3"), stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 3
    assert all(each.usage is None and each.choices for each in chunks[:-1])


def test_several_answers(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(model="toy", messages=user("count 2"), n=2)
    assert [each.index for each in done.choices] == [0, 1]
    assert done.choices[0].message.content == "0 1 "
    assert done.choices[1].message.content == "0.1 1.1 !"
    texts = {0: "", 1: ""}
    ends = {}
    roles = []
    for chunk in client.chat.completions.create(model="toy", messages=user("count 2"), n=2, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            roles += [choice.index] if choice.delta.role else []
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
    assert texts == {0: "0 1 ", 1: "0.1 1.1 !"}
    assert ends == {0: "stop", 1: "stop"}
    assert sorted(roles) == [0, 1]


TOOLS = [{"type": "function", "function": {"name": "read_sensor", "parameters": {"type": "object", "properties": {}}}}]


def test_tools(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(model="toy", messages=user("how warm cellar"), tools=TOOLS)
    (choice,) = done.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name, call.function.arguments) == ("function", "read_sensor", '{"word": "cellar"}')
    assert choice.message.reasoning_content == "Hm, well."
    with client.chat.completions.stream(model="toy", messages=user("how warm cellar"), tools=TOOLS) as stream:
        events = list(stream)
        whole = stream.get_final_completion()
    (streamed,) = whole.choices[0].message.tool_calls
    assert (streamed.id, streamed.function.arguments) == (call.id, call.function.arguments)
    assert any(each.type == "tool_calls.function.arguments.done" for each in events)


def test_completions(client: openai.OpenAI) -> None:
    done = client.completions.create(model="device:kitchen-2", prompt="count 2", max_tokens=2)
    assert (done.object, done.choices[0].text, done.choices[0].finish_reason) == ("text_completion", "0 1 ", "stop")
    several = client.completions.create(model="toy", prompt=["count 1", "count 2"])
    assert [(each.index, each.text) for each in several.choices] == [(0, "0 "), (1, "0 1 ")]
    assert several.usage.completion_tokens == 3
    texts = ["", ""]
    for chunk in client.completions.create(model="toy", prompt=["count 1", "count 2"], stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == ["0 ", "0 1 "]


def test_models(client: openai.OpenAI) -> None:
    found = {each.id: each for each in client.models.list()}
    names = {"toy", "toy@1.0.0", "other", "device:kitchen-1", "group:kitchens", "device:desk-1"}
    assert names <= set(found)
    assert found["toy"].object == "model"
    assert found["toy"].owned_by == "edge-bundle"
    assert found["toy"].created > 1_600_000_000
    assert client.models.retrieve("device:kitchen-1").id == "device:kitchen-1"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("device:kitchen-7")
