"""Overlapping and draining with real models in real processes: nothing lost, the hold measured, deadlines kept."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from agent.install.ports import SwapMode
from contract.mqtt.pictures import picture_url
from tests.agent.device import SECONDS, sealed
from tests.agent.serving.test_real_model import serve
from tests.broker import Broker
from tests.e2e.raw_client import RawClient
from tests.seeing import png

pytestmark = pytest.mark.broker

WAITING = 4
"""More requests than the worker has places."""


@pytest.mark.parametrize("mode", ["overlap", "drain"])
def test_every_answer_comes_once_while_the_worker_is_replaced(
    shared_broker: Broker, tiny_bundle: Path, tmp_path: Path, names: tuple[str, str], mode: SwapMode
) -> None:
    device = serve(shared_broker, tmp_path, tiny_bundle, names[0], threads=1, max_bytes=8 << 20)
    client = RawClient(shared_broker.port, names[1], names[0])
    try:
        old = device.serving.replica
        assert old is not None
        assert old.worker is not None
        # It stands still until all that was asked is there and the swap has begun.
        os.kill(old.worker.pid, signal.SIGSTOP)
        asked = [f"q{number}" for number in range(old.worker.facts.slots + WAITING)]
        for name in asked:
            client.send(name, "Say hello.", max_tokens=48, min_tokens=48)
        # Those that came first run, the last ones wait: so it must be for either to say anything about the swap.
        device.until(lambda: bool(old.running) and len(device.serving.scheduler.queue) == WAITING)
        client.send("late", "Say hello.", max_tokens=48, min_tokens=48, deadline_ms=1)
        late = client.wait_answer("late")
        newer = sealed(version="2.0.0", directory=tiny_bundle)
        swap = device.begin(device.serving.swap(newer, mode))
        device.until(lambda: mode == "overlap" or device.serving.scheduler.paused_since is not None)
        os.kill(old.worker.pid, signal.SIGCONT)
        report = swap.result(SECONDS)
        client.send("after", "Say hello.", max_tokens=4)
        answers = [client.wait_answer(name) for name in asked]
        after = client.wait_answer("after")
        device.until(lambda: len(device.serving.replicas) == 1)
        [new] = device.serving.replicas
    finally:
        client.close()
        device.stop()
    assert [len(answer.lasts) for answer in [*answers, late]] == [1] * (len(asked) + 1)
    assert {answer.lasts[0].get("finish_reason") for answer in answers} == {"length"}
    assert {answer.lasts[0]["attempt"] for answer in answers} == {1}, "what ran was finished where it ran"
    assert answers[0].bundle == "toy@1.0.0"
    assert after.bundle == "toy@2.0.0"
    assert late.lasts[0]["finish_reason"] == "deadline"
    assert new.bundle.manifest.version == "2.0.0"
    assert report.mode == mode
    if mode == "overlap":
        assert report.queue_pause_ms == 0
    else:
        assert 0 < report.queue_pause_ms < SECONDS * 1000
        assert answers[-1].bundle == "toy@2.0.0", "it waited for the new one"


@pytest.mark.parametrize("mode", ["overlap", "drain"])
def test_no_picture_is_lost_that_is_under_way_or_in_line(
    shared_broker: Broker, seeing_bundle: Path, tmp_path: Path, names: tuple[str, str], mode: SwapMode
) -> None:
    """As many as there are places for are given to the worker, and more wait, when the swap begins."""
    device = serve(shared_broker, tmp_path, seeing_bundle, names[0], threads=1, max_bytes=8 << 20)
    client = RawClient(shared_broker.port, names[1], names[0])
    tokens = 32

    def show(name: str, number: int) -> None:
        image = {"url": picture_url(png(number, 255 - number, 9)), "detail": "low"}
        content = [{"type": "image_url", "image_url": image}, {"type": "text", "text": "Say hello."}]
        messages = [{"role": "user", "content": content}]
        client.send(name, "", messages=messages, max_tokens=tokens, min_tokens=tokens)

    try:
        old = device.serving.replica
        assert old is not None
        assert old.worker is not None
        assert old.worker.facts.engine == "batched"
        # It stands still until all that was asked is there and the swap has begun: then it looks at what it was given.
        os.kill(old.worker.pid, signal.SIGSTOP)
        asked = [f"q{number}" for number in range(old.worker.facts.slots + WAITING)]
        for number, name in enumerate(asked):
            show(name, number)
        device.until(lambda: bool(old.running) and len(device.serving.scheduler.queue) == WAITING)
        swap = device.begin(device.serving.swap(sealed(version="2.0.0", directory=seeing_bundle), mode))
        device.until(lambda: mode == "overlap" or device.serving.scheduler.paused_since is not None)
        os.kill(old.worker.pid, signal.SIGCONT)
        swap.result(SECONDS)
        show("after", 0)
        answers = [client.wait_answer(name) for name in [*asked, "after"]]
        device.until(lambda: len(device.serving.replicas) == 1)
    finally:
        client.close()
        device.stop()
    assert [len(answer.lasts) for answer in answers] == [1] * len(answers)
    lasts = [answer.lasts[0] for answer in answers]
    assert [(last.get("finish_reason"), last["attempt"]) for last in lasts] == [("length", 1)] * len(answers), lasts
    assert {last["usage"]["completion_tokens"] for last in lasts} == {tokens}
    assert len({last["usage"]["prompt_tokens"] for last in lasts}) == 1
    assert (answers[0].bundle, answers[-1].bundle) == ("toy@1.0.0", "toy@2.0.0")
