"""Thoughts and calls go out in pieces that join to what the last frame has, whenever pieces leave."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from agent.engine.interface import CallDelta
from agent.serving.frames import FrameStream
from contract.mqtt.encoding import encode

pieces = st.text(alphabet='ab"{é', min_size=1, max_size=3)
made = st.lists(st.lists(pieces, min_size=1, max_size=4), max_size=3)


def deltas(calls: list[list[str]]) -> list[CallDelta]:
    found = []
    for index, arguments in enumerate(calls):
        found.append(CallDelta(index, f"call_{index}", f"f{index}"))
        found += [CallDelta(index, arguments=piece) for piece in arguments]
    return found


@given(st.lists(pieces, max_size=5), made, st.lists(st.booleans(), min_size=40, max_size=40))
def test_pieces_join_to_the_whole(thoughts: list[str], calls: list[list[str]], leaves: list[bool]) -> None:
    frames = FrameStream(0.0, stream=True, now=0.0)
    frames.begin(1, "toy@1.0.0", 0.0)
    sent = []
    steps = [(thought, []) for thought in thoughts] + [("", [delta]) for delta in deltas(calls)]
    for count, ((thought, call), leave) in enumerate(zip(steps, leaves, strict=False), 1):
        frames.feed("", count, float(count), thought=thought, calls=call)
        if leave and (frame := frames.take(float(count))) is not None:
            sent.append(json.loads(encode(frame)))
    if (frame := frames.take(99.0)) is not None:
        sent.append(json.loads(encode(frame)))
    last = json.loads(encode(frames.last("tool_calls", 99.0)))
    assert "".join(frame.get("reasoning_content", "") for frame in sent) == last.get("reasoning_content", "")
    joined: list[dict[str, str]] = []
    for delta in (delta for frame in sent for delta in frame.get("tool_calls", [])):
        if "id" in delta:
            assert delta["index"] == len(joined) and delta["type"] == "function"
            joined.append({"id": delta["id"], "name": delta["function"]["name"], "arguments": ""})
        joined[delta["index"]]["arguments"] += delta["function"]["arguments"]
    assert joined == [{"id": call["id"], **call["function"]} for call in last.get("tool_calls", [])]
    assert [call["arguments"] for call in joined] == ["".join(arguments) for arguments in calls]


def test_all_so_far_begins_every_call_again() -> None:
    frames = FrameStream(0.0, stream=True, now=0.0)
    frames.begin(1, "toy@1.0.0", 0.0)
    frames.feed("a", 1, 0.0, thought="Hm.", calls=deltas([["{", "}"]]))
    frames.take(0.0)
    [frame] = frames.snapshot(1.0)
    found = json.loads(encode(frame))
    assert (found["d"], found["reasoning_content"]) == ("a", "Hm.")
    [call] = found["tool_calls"]
    assert (call["id"], call["function"]) == ("call_0", {"name": "f0", "arguments": "{}"})


def test_another_attempt_forgets_what_came_before() -> None:
    frames = FrameStream(0.0, stream=True, now=0.0)
    frames.begin(1, "toy@1.0.0", 0.0)
    frames.feed("", 1, 0.0, thought="Hm.", calls=deltas([["{"]]))
    frames.begin(2, "toy@1.0.0", 1.0)
    last = json.loads(encode(frames.last("stop", 2.0)))
    assert "tool_calls" not in last and "reasoning_content" not in last
