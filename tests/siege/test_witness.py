"""The witness notices what a broken device would do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from tests.broker import Broker
from tests.siege.grammar import DEVICE, ROOT
from tests.siege.shots import Shot
from tests.siege.witness import Witness

pytestmark = pytest.mark.broker

SECONDS = 120.0


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[Witness]:
    broker = Broker(tmp_path / "broker")
    broker.start()
    made = Witness(broker.port)
    yield made
    made.close()
    broker.stop()


def until(holds: Callable[[], bool]) -> None:
    deadline = monotonic() + SECONDS
    while not holds():
        assert monotonic() < deadline
        sleep(0.01)


def tell(witness: Witness, *frames: tuple[str, dict[str, Any] | bytes]) -> None:
    """Say ``frames`` as a device would, to the ids named, and wait until the last one was heard."""
    ended: dict[str, Any] = {"finish_reason": "stop"}
    for request_id, frame in (*frames, ("end", ended)):
        payload = frame if isinstance(frame, bytes) else json.dumps(frame).encode()
        witness.publish(f"{ROOT}/c/c0/r/{DEVICE}/{request_id}", payload)
    until(lambda: witness.account(("c0", "end")).settled)


def expect(witness: Witness, request_id: str) -> None:
    shot = Shot(0, f"{ROOT}/d/{DEVICE}/generate/c0", b"{}", client="c0", id=request_id, owed=True, what="plain")
    until(witness.subscribed.is_set)
    witness.expect(shot)


def error(code: int, kind: str, **more: object) -> dict[str, Any]:
    return {"s": 0, "error": {"code": code, "type": kind, "message": "", **more}}


def test_one_result_however_often_it_comes_is_right(witness: Witness) -> None:
    expect(witness, "a")
    full = error(429, "queue_full", retry_after_ms=5)
    last = {"s": 1, "text": "x", "finish_reason": "stop"}
    tell(witness, ("a", full), ("a", {"s": 0, "d": "x", "n": 1}), ("a", last), ("a", last))
    assert not witness.open
    assert witness.judge() == []


def test_an_answer_that_never_came_is_missed(witness: Witness) -> None:
    expect(witness, "a")
    tell(witness, ("a", {"s": 0, "d": "x", "n": 1}), ("a", error(404, "unknown_request")))
    assert witness.judge() == ["('c0', 'a') was never answered (plain)"]
    assert witness.judge() == []


@pytest.mark.parametrize("second", [{"s": 1, "text": "y", "finish_reason": "stop"}, error(500, "engine_failed")])
def test_two_results_are_one_too_many(witness: Witness, second: dict[str, Any]) -> None:
    expect(witness, "a")
    tell(witness, ("a", {"s": 1, "text": "x", "finish_reason": "stop"}), ("a", second))
    (wrong,) = witness.judge()
    assert wrong.startswith("('c0', 'a') has 2 results")


@pytest.mark.parametrize("frame", [b"[", b"[]", b"\xff", b'{"finish_reason": "stop", "error": 7}'])
def test_what_cannot_be_read_is_told(witness: Witness, frame: bytes) -> None:
    until(witness.subscribed.is_set)
    tell(witness, ("a", frame))
    (wrong,) = witness.judge()
    assert f"r/{DEVICE}/a says" in wrong


def test_a_fault_of_the_device_is_told_though_it_was_caught(witness: Witness) -> None:
    expect(witness, "a")
    tell(witness, ("a", error(500, "internal_error")))
    (wrong,) = witness.judge()
    assert "internal_error" in wrong
