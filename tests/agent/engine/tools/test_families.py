"""Every family's template on a real engine with random weights: functions are rendered, calls are held to their
schemas, read while they are written, and go back into the history with their results."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from agent.engine.engine_selection import open_engine
from agent.engine.interface import Engine, Generation, Tools
from tests.agent.engine.driving import Outcome, answer
from tests.agent.engine.tools.generated import make_function
from tests.agent.engine.tools.test_forms import FAMILIES
from tests.chat_templates import TEMPLATES


@pytest.fixture(scope="module", params=[*FAMILIES, "smollm2", "smollm3", "llama-2"])
def family(
    request: pytest.FixtureRequest, long_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    bundle = shutil.copytree(long_bundle, tmp_path_factory.mktemp("family") / "bundle")
    (bundle / "chat_template.jinja").unlink(missing_ok=True)
    (bundle / "chat_template.jinja").write_text(TEMPLATES[request.param])
    engine = open_engine(bundle, engine="batched", threads=1)
    yield engine
    engine.release()


def calls(outcome: Outcome) -> list[dict[str, Any]]:
    """What a client joins from the pieces."""
    assert outcome.finish is not None, outcome.reject
    found: list[dict[str, Any]] = []
    for event in [*outcome.tokens, outcome.finish]:
        for delta in event.calls:
            if delta.name:
                assert delta.index == len(found)
                found.append({"id": delta.id, "name": delta.name, "arguments": ""})
            found[delta.index]["arguments"] += delta.arguments
    return found


ASKED = [{"role": "user", "content": "Do it."}]


def test_calls_are_valid_and_come_in_pieces_and_go_back(family: Engine) -> None:
    made = [make_function(seed) for seed in (11, 12)]
    judges = {tool["function"]["name"]: judge for tool, judge in made}
    tools = Tools([tool for tool, _ in made], "required", parallel=False)
    plain = Generation(1, "client", messages=ASKED, max_tokens=1)
    called: list[dict[str, Any]] = []
    for seed in range(3):
        asked = structs.replace(plain, tools=tools, max_tokens=400, temperature=1.0, seed=seed)
        outcome = answer(family, asked)
        assert (outcome.reason, outcome.text) == ("tool_calls", "")
        called = calls(outcome)
        assert len(called) == 1
        assert judges[called[0]["name"]](json.loads(called[0]["arguments"])), called
        with_calls = [event for event in [*outcome.tokens, outcome.finish] if event is not None and event.calls]
        assert len(with_calls) > 1, "streamed, not handed over at the end"
    told = answer(family, structs.replace(plain, tools=Tools(tools.definitions)))
    untold = answer(family, plain)
    assert told.finish is not None and untold.finish is not None
    assert told.finish.prompt_tokens > untold.finish.prompt_tokens + 20, "the functions are in the prompt"
    history = [
        *ASKED,
        {"role": "assistant", "content": "", "tool_calls": [
            {"id": each["id"], "name": each["name"], "arguments": json.loads(each["arguments"])} for each in called]},
        {"role": "tool", "content": "It was done. " * 5, "tool_call_id": called[0]["id"], "name": called[0]["name"]},
    ]  # fmt: skip
    back = answer(family, structs.replace(plain, messages=history, tools=Tools(tools.definitions)))
    assert back.finish is not None, back.reject
    assert back.finish.prompt_tokens > told.finish.prompt_tokens + 20, "call and result are in the prompt"
