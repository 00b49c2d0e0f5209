"""Frames become the same answer in every client: one table, which each of them is held against."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_bundle.replies import Answer, Found, Piece, Queued, Reassembly, Refused

CASES = json.loads(Path(__file__).with_name("reassembly.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_frames_become_what_the_table_says(case: dict[str, Any]) -> None:
    reassembly = Reassembly()
    frames = [frame if isinstance(frame, str) else json.dumps(frame) for frame in case["frames"]]
    assert [short(each) for frame in frames for each in reassembly.feed(frame.encode())] == case["found"]


def short(found: Found) -> dict[str, Any]:
    match found:
        case Piece():
            more = {
                "index": found.index,
                "reasoning": found.reasoning,
                "calls": list(msgspec.to_builtins(found.tool_calls)),
            }
            return {
                "restart" if found.restart else "text": found.text,
                **{key: each for key, each in more.items() if each},
            }
        case Queued():
            return {"queued": found.position}
        case Refused():
            return {"refused": found.op}
        case Answer(last=None, error=error):
            assert error is not None
            return {"error": error.type}
        case Answer(last=last):
            assert last is not None
            return {"end": last.text}
