"""The openai package, the gateway and a real agent with a real (tiny) model: what a fake worker cannot show."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.agent.telemetry.running import running_agent, scrape_until_ready
from tests.fleet.gateway.stage import serving
from tests.fleet.waiting import until

pytestmark = pytest.mark.broker

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."


@pytest.fixture(scope="module")
def client(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    with running_agent(tmp_path_factory.mktemp("device"), tiny_bundle) as (broker, page):
        scrape_until_ready(page, seconds=240)
        with serving({}, broker) as stage, openai.OpenAI(base_url=stage.url, api_key="none", max_retries=0) as made:
            until(lambda: "tiny" in [each.id for each in made.models.list()], "the device to be known")
            yield made


def test_answers_streams_and_cached_beginnings(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(model="tiny", messages=QUESTION)
    assert done.choices[0].message.content == ANSWER
    assert done.model == "tiny@1.0.0"
    chunks = list(
        client.chat.completions.create(
            model="device:box.7", messages=QUESTION, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(each.choices[0].delta.content or "" for each in chunks if each.choices) == ANSWER
    assert {each.model for each in chunks} == {"tiny@1.0.0"}
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens > 0
    assert chunks[-1].usage.completion_tokens == done.usage.completion_tokens


def test_log_probabilities_are_openais(client: openai.OpenAI) -> None:
    asked = {"model": "tiny", "messages": QUESTION, "max_tokens": 4, "logprobs": True, "top_logprobs": 2}
    done = client.chat.completions.create(**asked)
    content = done.choices[0].logprobs.content
    assert len(content) == 4
    assert all(len(each.top_logprobs) == 2 and each.logprob <= 0 for each in content)
    assert "".join(each.token for each in content) == done.choices[0].message.content
    assert done.choices[0].finish_reason == "length"
    streamed = [each for each in client.chat.completions.create(**asked, stream=True) if each.choices[0].logprobs]
    assert [each.token for each in streamed[-1].choices[0].logprobs.content] == [each.token for each in content]
    text = client.completions.create(model="tiny", prompt="The capital", max_tokens=3, logprobs=2)
    logprobs = text.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) == 3
    assert all(len(each) == 2 for each in logprobs.top_logprobs)


def test_formats_stops_and_several_answers(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": schema}}
    done = client.chat.completions.create(model="tiny", messages=QUESTION, response_format=form, max_tokens=64)
    assert set(json.loads(done.choices[0].message.content)) == {"ok"}
    done = client.chat.completions.create(model="tiny", messages=QUESTION, stop=["France"])
    assert done.choices[0].message.content == "The capital of "
    done = client.chat.completions.create(model="tiny", messages=QUESTION, n=2)
    assert [each.message.content for each in done.choices] == [ANSWER, ANSWER]


def test_what_the_model_cannot_do_is_said_by_the_device(client: openai.OpenAI) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    with pytest.raises(openai.BadRequestError) as told:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": [picture]}])
    assert told.value.param == "messages"
    assert "takes no pictures" in told.value.message
    with pytest.raises(openai.BadRequestError) as told:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "word " * 40_000}])
    assert told.value.type == "invalid_request_error"
