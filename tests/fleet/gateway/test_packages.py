"""Other people's packages against the gateway, each in an environment of its own (`make gateway-clients`)."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.gateway.stage import Stage

pytestmark = [pytest.mark.broker, pytest.mark.clients]

PACKAGES = Path(__file__).parent / "packages"
SECONDS = 180.0


def run(stage: Stage, *command: str) -> dict[str, Any]:
    ended = subprocess.run(
        [*command, stage.url, "none"], capture_output=True, text=True, timeout=SECONDS, check=False, cwd=PACKAGES
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def python(stage: Stage, script: str) -> dict[str, Any]:
    return run(stage, os.environ["EDGE_CLIENTS_PYTHON"], script)


def test_langchain(stage: Stage) -> None:
    found = python(stage, "ask_langchain.py")
    assert found.pop("pieces") > 2
    assert found == {
        "whole": ["0 1 2 ", 3, "stop"],
        "model": "toy@1.0.0",
        "streamed": ["0 1 2 ", 3],
        "called": [["say", {"word": "cellar"}]],
        "typed": {"word": "attic"},
        "batch": ["0 ", "0 1 "],
    }


def test_llama_index(stage: Stage) -> None:
    assert python(stage, "ask_llamaindex.py") == {
        "whole": "0 1 2 ",
        "streamed": "0 1 2 ",
        "astreamed": "0 1 2 ",
        "text": "0 1 ",
        "text_streamed": "0 1 ",
        "called": [["say", {"word": "cellar"}]],
    }


def test_openai_for_node(stage: Stage) -> None:
    before = stage.devices["kitchen-1"].meter.requests.get("cancelled", 0)
    found = run(stage, "node", "ask_node.mjs")
    assert {"toy", "group:kitchens", "device:kitchen-1"} <= set(found.pop("models"))
    assert found == {
        "whole": "0 1 2 ",
        "streamed": "0 1 2 ",
        "usage": 3,
        "called": [["say", '{"word": "cellar"}']],
        "reason": "tool_calls",
        "error": [404, "model_not_found", "model"],
    }
    stage.wait_for_cancelled("kitchen-1", before + 1)
