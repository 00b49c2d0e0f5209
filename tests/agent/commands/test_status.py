"""What ``edge-agent status`` shows a person, of a device in the middle of an update."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.commands.status import show
from agent.install.process.messages import Job, Line, Progressed, Reached, Resolved
from agent.install.status import collect_status
from agent.install.update.state_machine import Event
from agent.state.installation import Quarantined
from contract.identifiers import Digest
from contract.mqtt.reports import Reported, Waiting
from contract.reasons import Reason
from tests.agent.commands.test_device_commands import edge_agent
from tests.agent.install.market import Device, Market
from tests.agent.install.stage import desired
from tests.agent.install.test_reconciler import active, stage_for

IN_FLIGHT = Digest("d" * 64)


@pytest.fixture
def market(tmp_path: Path, tiny_bundle: Path) -> Market:
    return Market(tmp_path / "market", tiny_bundle)


def rows(text: str) -> dict[str, list[str]]:
    """Lines by their first word."""
    return {line.split()[0]: line.split() for line in text.splitlines() if line}


def test_a_device_in_the_middle_of_an_update(
    market: Market, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for version in ("1.0.0", "1.1.0"):
        market.publish(version, {"README.md": version.encode(), "extra.bin": os.urandom(1 << 20)}, security_epoch=2)
    device = Device(tmp_path / "device")
    stage = stage_for(market, device)
    real, fetching = stage.installer, asyncio.Event()

    async def stuck(job: Job, on_line: Callable[[Line], None]) -> None:
        if job.version != "1.2.0":
            await real(job, on_line)
            return
        on_line(Resolved(IN_FLIGHT, job.name, job.version, 2, 4 << 20))
        for event in (Event.CHECKED, Event.RESERVED):
            on_line(Reached(event))
        on_line(Progressed(3 << 20, 4 << 20, 1 << 20, 2 << 20, 12.0))
        fetching.set()
        await asyncio.Event().wait()

    stage.installer = stuck

    async def scenario() -> None:
        async with stage.agent() as reconciler:
            for version in ("1.0.0", "1.1.0"):
                reconciler.set_desired(desired(version))
                await stage.until(active(version))
            failed = Quarantined(Digest("b" * 64), "tiny", "1.0.9", Reason.CANARY_DRIFT.value, "it drifted", 1)
            stage.state.quarantine(failed)
            stage.state.record_speed(stage.state.snapshot().active or Digest(""), 41.25, 10.5)
            reconciler.set_desired(desired("1.2.0", "r7"))
            await asyncio.wait_for(fetching.wait(), 120)
            show(collect_status(stage.state, stage.directory, reconciler.reported, running=True))

    asyncio.run(scenario())
    text = capsys.readouterr().out
    print(text)
    head, _, table = text.partition("\n\n")
    assert [line.split()[0] for line in head.splitlines()] == [
        "agent", "phase", "progress", "desired", "epoch", "disk",
    ]  # fmt: skip
    assert "phase     FETCH" in head
    assert "progress  75 % (3.1 MB of 4.2 MB, 1.0 MB reused, 12 s left)" in head
    assert "desired   tiny@1.2.0, revision r7" in head
    lines = table.splitlines()
    assert lines[0].split() == ["BUNDLE", "STATE", "SIZE", "EPOCH", "SPEED", "DIGEST", "REASON"]
    assert lines[1].split() == ["(downloading)", "candidate", "-", "-", "-", IN_FLIGHT[:12]]
    found = rows(table)
    assert found["tiny@1.1.0"][1] == "active" and "41.2" in " ".join(found["tiny@1.1.0"])
    assert found["tiny@1.0.0"][1] == "previous"
    assert found["tiny@1.0.9"][1:] == ["quarantined", "gone", "-", "-", "b" * 12, "canary_drift"]
    starts = {line.index(word) for line, word in zip(lines[1:], ("cand", "active", "prev", "quar"), strict=True)}
    assert starts == {lines[0].index("STATE")}, "the columns stand below each other"

    # The same from its records, once the agent was killed.
    recorded = edge_agent("status", "--state-dir", tmp_path / "device").stdout
    assert "agent     not running" in recorded
    assert "phase     FETCH" in recorded
    assert "(downloading)" in recorded
    told: dict[str, Any] = json.loads(edge_agent("status", "--state-dir", tmp_path / "device", "--json").stdout)
    assert (told["desired"], told["overridden"]) == ("tiny@1.2.0", False)
    device.state().override_desired()
    recorded = edge_agent("status", "--state-dir", tmp_path / "device").stdout
    assert "desired   tiny@1.2.0, revision r7 (overridden: another bundle was chosen on this device since)" in recorded


@pytest.mark.parametrize(("prefetched", "here"), [(True, "fetched and verified"), (False, "not fetched yet")])
def test_a_device_that_waits_for_its_time_says_for_what(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], prefetched: bool, here: str
) -> None:
    device = Device(tmp_path / "device")
    message = "its maintenance window opens at 2026-12-05T22:00:00Z"
    waiting = Waiting("waiting_for_window", message, prefetched, "2026-12-05T22:00:00Z")
    reported = Reported("r8", "IDLE", None, None, None, None, waiting=waiting)
    show(collect_status(device.state(), device.directory, reported, running=True))
    assert f"waiting   {message} ({here})" in capsys.readouterr().out.splitlines()
