"""Ctrl-C wherever the interpreter may hear it while the sync client works for a caller: the request ends on the device,
the client goes on, and nothing is said but ``KeyboardInterrupt``. Against a real broker and agent."""

from __future__ import annotations

import concurrent.futures._base
import dis
import functools
import gc
import itertools
import sys
import threading
from asyncio import base_events, selector_events
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

from agent.config import AgentConfig
from agent.mqtt.settings import BrokerSettings
from agent.serving.settings import ServingSettings
from edge_bundle import BrokerAddress, Client, event_loop
from edge_bundle import client as sync_client
from tests.agent.device import Device, sealed
from tests.agent.worker.double import FakeWorkers
from tests.broker import Broker

pytestmark = pytest.mark.broker

OURS = {
    module.__file__
    for module in (sync_client, event_loop, base_events, selector_events, threading, concurrent.futures._base)
}
"""Where a caller's thread may be when the signal comes; calls into C are no place of their own."""


@functools.cache
def handling(code: CodeType) -> frozenset[int]:
    """Offsets of the instructions before which CPython runs the handlers of signals: behind a call, a jump back, and at
    the beginning of a function."""
    found = list(dis.get_instructions(code))
    return frozenset(
        after.offset
        for before, after in itertools.pairwise(found)
        if before.opname.startswith(("CALL", "RESUME", "JUMP_BACKWARD"))
    )


class Instructions:
    """Counts the places in :data:`OURS` where this thread handles signals, and interrupts the one numbered ``at``."""

    def __init__(self, at: int | None) -> None:
        self.count = 0
        self._at = at

    def __enter__(self) -> Instructions:
        sys.settrace(self._enter)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename not in OURS:
            return None
        frame.f_trace_opcodes = True
        return self._step

    def _step(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "opcode" and frame.f_lasti in handling(frame.f_code):
            self.count += 1
            if self.count == self._at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._step


def stream_and_close(client: Client) -> None:
    stream = client.stream(device="box", prompt="hold 9")
    next(stream)
    stream.close()


def cancel(client: Client) -> None:
    client.cancel("box", "nothing")


@pytest.mark.parametrize("way", [stream_and_close, cancel], ids=lambda way: way.__name__)
def test_an_interrupt_at_any_instruction_ends_the_request_and_nothing_else(
    way: Callable[[Client], None],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broker = Broker(tmp_path)
    broker.start()
    config = AgentConfig(
        device="box", state_dir=tmp_path, broker=BrokerSettings(host="127.0.0.1", port=broker.port),
        serving=ServingSettings(stop_seconds=0, stream_interval_ms=0),
    )  # fmt: skip
    device = Device(config, tmp_path / "state.db", FakeWorkers(slots=2)).start(sealed())
    unraisable: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    try:
        with Client(BrokerAddress("127.0.0.1", broker.port)) as client:
            way(client)
            with Instructions(None) as all_of_them:
                way(client)
            assert all_of_them.count > 20
            for number in range(1, all_of_them.count + 1):
                _interrupt(way, client, number)
                device.until(lambda: device.serving.active == 0)
            gc.collect()
            assert client.complete(device="box", prompt="count 2").choices[0].message.content == "0 1 "
    finally:
        device.stop()
        broker.stop()
    assert unraisable == []
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


def _interrupt(way: Callable[[Client], None], client: Client, number: int) -> None:
    with Instructions(number) as counted:
        try:
            way(client)
        except KeyboardInterrupt:
            return
    # How often a thread looks at a lock is not always the same.
    assert counted.count < number
