"""The whole way with the real model, a real broker and real processes, as one story."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from agent.engine.engine_selection import open_engine
from tests.e2e.narrator import Quiet
from tests.e2e.raw_client import RawClient
from tests.e2e.story import NAME, Story

CACHE = Path(os.environ.get("EDGE_CACHE", ".cache")).resolve()


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    told = Story(tmp_path / "story", CACHE, Quiet())
    yield told
    told.close()


@pytest.mark.broker
@pytest.mark.timeout(1800)
def test_from_a_gguf_file_to_answers_a_swap_and_a_refusal(story: Story) -> None:
    # An engineer builds, proves, signs and publishes the first version.
    first = story.build("1.0.0")
    manifest = json.loads((first / "manifest.json").read_bytes())
    assert manifest["schema"] == "edge-bundle/1"
    assert (manifest["model"]["precision"], manifest["model"]["quantizer"]) == ("int4", "gptq-fast")
    assert manifest["budget"]["tokens_per_second"] > 0
    assert "Paris" in manifest["canary"][0]["expected_text"]
    story.create_repository()
    story.publish(first)

    # An operator starts a box that has never seen a model, and deploys to it.
    story.start_broker()
    story.start_agent()
    phases, report = story.deploy_first()
    assert report["error"] is None
    assert report["active"]["version"] == "1.0.0"
    expected = ["RESOLVE", "CHECK", "RESERVE", "FETCH", "VERIFY", "SEAL", "CANARY", "SWITCH", "PROBATION", "COMMIT"]
    assert [phase for phase in phases if phase in expected] == [phase for phase in expected if phase in phases]
    assert {"FETCH", "SEAL", "CANARY", "SWITCH", "IDLE"} <= set(phases)

    # A program asks a question and reads the tokens as they come.
    answer = story.ask_capital()
    assert "Paris" in answer.text
    assert answer.text == "".join(frame["d"] for frame in answer.frames) or len(answer.frames) < len(answer.text)
    assert answer.bundle == f"{NAME}@1.0.0"
    assert len(answer.lasts) == 1

    # Whoever comes by is told which engine serves the model, why that one, and how far it is locked in.
    passer_by = RawClient(story.broker_port, "passer-by", story.device, story.broker_host)
    engine = passer_by.next_device_message("info")["engine"]
    passer_by.close()
    assert "chat" in engine["capabilities"]
    assert engine["isolation"]
    # What this processor allows was measured there as it is here.
    measured = open_engine(first, threads=len(os.sched_getaffinity(0)))
    measured.release()
    here = measured.facts
    assert (engine["engine"], engine["why"]) == (here.engine, here.why)
    assert (engine["reproducible"], engine["reproducible_why"]) == (
        here.independence.reproducible,
        here.independence.why,
    )
    assert ("deviation" in engine) == (not here.independence.reproducible)
    assert here.engine == "batched" or "x86" not in platform.machine(), here.why

    # So is the operator of the box: by its status, its doctor and its log.
    for told in (story.on_device("status"), story.on_device("doctor"), story.agent_log()):
        assert re.search(rf"engine +{here.engine}, \d at once \({re.escape(here.why)}\)", told), told
        assert here.independence.why in told

    # A worker is shot in the middle of an answer: that request is retried or told so, the next one works.
    story.client.ask("shot", "Count from one to fifty in words.", max_tokens=200)
    while story.client.next_frame()[0] != "shot":
        pass
    worker = next(
        child
        for child in psutil.Process(story.agent_pid).children(recursive=True)
        if "agent.worker.main" in child.cmdline()
    )
    worker.send_signal(signal.SIGKILL)
    shot = story.client.wait_answer("shot")
    assert len(shot.lasts) == 1
    assert "error" in shot.lasts[0] or shot.lasts[0]["attempt"] == 2
    story.client.ask("after", "Say hello.", max_tokens=16)
    assert story.client.wait_answer("after").text

    # The second version arrives while questions keep coming.
    second = story.build("1.1.0", "--quantizer", "rtn", "--block-size", "16")
    story.publish(second)
    swap = story.swap_under_load()
    assert (swap.lost, swap.duplicated, swap.failed) == (0, 0, 0)
    assert set(swap.bundles) == {f"{NAME}@1.0.0", f"{NAME}@1.1.0"}

    # The device says how it fares, and a bundle with one flipped bit does not get in.
    assert story.telemetry()
    third = story.pack("1.2.0", second)
    story.publish(third)
    story.corrupt(third)
    refusal = story.refuse_corrupted()
    assert refusal.reason == "digest_mismatch"
    assert refusal.still_active == f"{NAME}@1.1.0"
    assert "Paris" in refusal.answer
