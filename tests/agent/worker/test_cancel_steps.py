"""Cancel takes one step at most, in every phase, through the product's worker loop around the real engine."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.engine.engine_selection import open_engine
from agent.engine.interface import FinishEvent, Generation, StepEvent, TokenEvent
from agent.worker import protocol
from agent.worker.main import serve

PATIENCE = 120.0


class Gated:
    """The real engine, whose every step waits for the test's permission."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._allowed = threading.Semaphore(0)
        self._changed = threading.Condition()
        self._entered = 0
        self.steps = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def step(self) -> list[StepEvent]:
        with self._changed:
            self._entered += 1
            self._changed.notify_all()
        assert self._allowed.acquire(timeout=PATIENCE)
        events: list[StepEvent] = self._engine.step()
        with self._changed:
            self.steps += 1
            self._changed.notify_all()
        return events

    def allow(self, steps: int) -> None:
        """Let so many more happen, and wait until the next one is under way."""
        goal = self.steps + steps
        for _ in range(steps):
            self._allowed.release()
        with self._changed:
            assert self._changed.wait_for(lambda: self.steps >= goal and self._entered > goal, PATIENCE)

    def allow_last(self) -> None:
        """Let the one that is under way happen; nothing may be left to do then."""
        self._allowed.release()


class Line:
    """The agent's end of the socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._unframer = protocol.Unframer()
        self._replies: list[protocol.Reply] = []

    def send(self, *commands: protocol.Command) -> None:
        self._connection.sendall(b"".join(protocol.frame(command) for command in commands))

    def receive(self) -> protocol.Reply:
        while not self._replies:
            data = self._connection.recv(1 << 16)
            assert data
            self._replies += [protocol.parse_reply(body) for body in self._unframer.feed(data)]
        return self._replies.pop(0)


@pytest.fixture
def gated(tiny_bundle: Path) -> Iterator[tuple[Gated, Line]]:
    engine = Gated(open_engine(tiny_bundle, engine="batched", threads=1, max_bytes=1 << 20))
    assert engine.facts.slots == 1
    ours, theirs = socket.socketpair()
    ours.settimeout(PATIENCE)
    worker = threading.Thread(target=serve, args=(theirs, lambda _load, _progress: engine), daemon=True)
    worker.start()
    line = Line(ours)
    line.send(protocol.Load("", 1))
    assert isinstance(line.receive(), protocol.Loaded)
    yield engine, line
    ours.close()
    engine._allowed.release()
    worker.join(PATIENCE)
    theirs.close()


def generation(number: int, prompt: str) -> Generation:
    return Generation(number, "c", prompt=prompt, max_tokens=200, min_tokens=200)


def test_a_slot_is_free_one_step_after_cancel_in_every_phase(gated: tuple[Gated, Line]) -> None:
    engine, line = gated

    # In prefill: 400 tokens are 25 slices; the fourth is under way when the client changes its mind.
    line.send(protocol.Admit(generation(1, "~" * 400)))
    engine.allow(3)
    line.send(protocol.Cancel(1), protocol.Admit(generation(2, "~~")))
    engine.allow(1)
    end = line.receive()
    assert isinstance(end, FinishEvent)
    assert (end.request, end.reason, end.completion_tokens) == (1, "cancelled", 0)
    assert engine.steps == 4

    # In decode: the only slot went to the next request at once.
    engine.allow(1)
    token = line.receive()
    assert isinstance(token, TokenEvent)
    assert token.request == 2
    line.send(protocol.Admit(generation(3, "~~~")), protocol.Admit(generation(4, "~~~~")))
    line.send(protocol.Cancel(3), protocol.Cancel(2))
    before = engine.steps
    engine.allow(1)
    ends: list[FinishEvent] = []
    while len(ends) < 2:
        event = line.receive()
        if isinstance(event, FinishEvent):
            ends.append(event)
    # Waiting in the engine: gone without having had a slot.
    assert [(event.request, event.reason) for event in ends] == [(3, "cancelled"), (2, "cancelled")]
    assert engine.steps == before + 1

    engine.allow(1)
    token = line.receive()
    assert isinstance(token, TokenEvent)
    assert token.request == 4
    line.send(protocol.Cancel(4))
    engine.allow_last()
    while isinstance(event := line.receive(), TokenEvent):
        assert event.request == 4
    assert isinstance(event, FinishEvent)
    assert (event.request, event.reason, engine.steps) == (4, "cancelled", before + 3)
