"""Bundles that are fetched now and activated when it is time. Repository, trust, disk and state are real; the clock is
handed in.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from msgspec import UNSET

from agent.install.desired import Activates, Install, OperatorOrder
from agent.install.process.messages import Job, Line
from agent.install.update.gate import waits
from contract.mqtt.reports import Reported
from contract.reasons import Reason
from contract.system.command_line import main
from contract.trust.clock import EARLIEST
from contract.utc import format_utc
from contract.windows import Window
from packager.cli import COMMANDS
from tests.agent.device import Device as Connected
from tests.agent.install.market import Device, Market
from tests.agent.install.stage import Stage, desired, install_in_thread
from tests.agent.install.test_reconciler import active, stage_for
from tests.broker import Broker
from tests.e2e.raw_client import RawClient

HOUR = 3600.0
SUNDAY = datetime(2026, 12, 6, 12, tzinfo=UTC).timestamp()
NIGHT = Window(22 * 60, 5 * 60, "Europe/Oslo")


# What it waits for.
@pytest.mark.parametrize(
    ("activates", "reason", "until"),
    [
        (Activates(), None, None),
        (Activates(SUNDAY - 1), None, None),
        (Activates(windows=(Window(11 * 60, 14 * 60, "UTC"),)), None, None),
        (Activates(SUNDAY + 60), "waiting_for_not_before", SUNDAY + 60),
        (Activates(windows=(NIGHT,)), "waiting_for_window", SUNDAY + 9 * HOUR),
        (Activates(windows=(NIGHT, Window(13 * 60, 14 * 60, "UTC"))), "waiting_for_window", SUNDAY + HOUR),
        (Activates(SUNDAY + 10 * HOUR, (NIGHT,)), "waiting_for_not_before", SUNDAY + 10 * HOUR),
        (Activates(SUNDAY + 20 * HOUR, (NIGHT,)), "waiting_for_window", SUNDAY + 33 * HOUR),
    ],
)
def test_it_waits_until_both_allow_it(activates: Activates, reason: str | None, until: float | None) -> None:
    found = waits(activates, SUNDAY, EARLIEST)
    assert (None if found is None else found.reason) == reason
    if found is not None and until is not None:
        assert found.until == format_utc(until)
        assert format_utc(until) in found.message


def test_a_clock_that_is_certainly_wrong_is_none() -> None:
    """A box without a battery begins in 1970; no window of that year is meant."""
    found = waits(Activates(windows=(Window(0, 24 * 60, "UTC"),)), 3600.0, EARLIEST)
    assert found is not None
    assert (found.reason, found.until) == ("clock_not_set", UNSET)
    assert "1970-01-01T01:00:00Z" in found.message
    assert waits(Activates(), 3600.0, EARLIEST) is None, "what has no time needs no clock"


# On a device.
class Clock:
    """Shows what it is set to."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self) -> float:
        return self.seconds


def waiting(*, prefetched: bool, revision: str | None = None) -> Callable[[Reported], bool]:
    return lambda reported: (
        reported.phase == "IDLE"
        and reported.waiting is not UNSET
        and reported.waiting.prefetched is prefetched
        and revision in (None, reported.revision)
    )


class Scene:
    """1.0.0 is active; the clock stands a moment before 1.1.0 may become so."""

    def __init__(self, market: Market, device: Device) -> None:
        market.publish("1.1.0", {"README.md": b"1.1.0"})
        self.market, self.device = market, device
        self.stage: Stage = stage_for(market, device)
        # What is published now was made at what the machine says that it is.
        self.opens = float(int(time.time()) + 86400)
        self.clock = Clock(self.opens - 0.2)
        self.stage.now = self.clock
        self.jobs: list[Job] = []
        self.stage.installer = self._install

    async def _install(self, job: Job, on_line: Callable[[Line], None]) -> None:
        self.jobs.append(job)
        await install_in_thread(job, on_line)

    def wish(self, version: str = "1.1.0", revision: str | None = None, *, prefetch: bool = True) -> bytes:
        policy = {"not_before": format_utc(self.opens), "prefetch": prefetch}
        return desired(version, revision, policy=policy)

    async def begin(self, *more: str) -> None:
        for version in ("1.0.0", *more):
            self.market.publish(version, {"README.md": version.encode()})
        async with self.stage.agent() as reconciler:
            reconciler.set_desired(desired("1.0.0"))
            await self.stage.until(active("1.0.0"))
        self.restart()

    def restart(self) -> None:
        self.stage.restart()
        self.jobs.clear()

    @property
    def swaps(self) -> list[str]:
        return [version for version, _ in self.stage.serving.swaps]


@pytest.fixture
def scene(market: Market, device: Device) -> Scene:
    return Scene(market, device)


async def test_it_is_fetched_at_once_and_activated_when_it_is_time(scene: Scene) -> None:
    await scene.begin()
    async with scene.stage.agent() as reconciler:
        reconciler.set_desired(scene.wish())
        found = await scene.stage.until(waiting(prefetched=True))
        assert found.waiting is not UNSET
        assert (found.waiting.reason, found.waiting.until) == ("waiting_for_not_before", format_utc(scene.opens))
        assert (found.revision, found.error) == ("r1.1.0", None)
        assert scene.stage.phases[-2:] == ["SEAL", "IDLE"], "nothing was tried"
        assert len(scene.device.names(lambda place: place.bundles)) == 2
        # The same document, published again, hurries nothing.
        reconciler.set_desired(scene.wish())
        await scene.stage.until(waiting(prefetched=True))
        assert scene.swaps == ["1.0.0"]
        scene.clock.seconds = scene.opens
        reported = await scene.stage.until(active("1.1.0"))
    assert reported.waiting is UNSET
    assert scene.swaps == ["1.0.0", "1.1.0"]
    assert "FETCH" not in scene.stage.phases[scene.stage.phases.index("SEAL") :], "its bytes were here"


async def test_without_prefetch_nothing_is_done_before(scene: Scene) -> None:
    await scene.begin()
    async with scene.stage.agent() as reconciler:
        reconciler.set_desired(scene.wish(prefetch=False))
        await scene.stage.until(waiting(prefetched=False))
        assert scene.jobs == []
        assert len(scene.device.names(lambda place: place.bundles)) == 1
        scene.clock.seconds = scene.opens
        await scene.stage.until(active("1.1.0"))


async def test_it_waits_on_after_a_restart(scene: Scene) -> None:
    await scene.begin()
    async with scene.stage.agent() as reconciler:
        reconciler.set_desired(scene.wish())
        await scene.stage.until(waiting(prefetched=True))
    scene.restart()
    async with scene.stage.agent():
        await scene.stage.until(waiting(prefetched=True))
        assert scene.swaps == ["1.0.0"]
        assert "FETCH" not in scene.stage.phases
        scene.clock.seconds = scene.opens
        await scene.stage.until(active("1.1.0"))


async def test_a_newer_document_supersedes_it_while_it_waits(scene: Scene) -> None:
    await scene.begin("1.2.0")
    async with scene.stage.agent() as reconciler:
        reconciler.set_desired(scene.wish())
        await scene.stage.until(waiting(prefetched=True))
        reconciler.set_desired(desired("1.2.0"))
        await scene.stage.until(active("1.2.0"))
        scene.clock.seconds = scene.opens
        reconciler.set_desired(desired("1.2.0", "later"))
        await scene.stage.until(lambda reported: reported.revision == "later" and reported.phase == "IDLE")
    assert scene.swaps == ["1.0.0", "1.2.0"]
    assert len(scene.device.names(lambda place: place.bundles)) == 2, "what was fetched ahead is not kept"


async def test_what_is_withdrawn_while_it_waits_leaves_nothing(scene: Scene) -> None:
    await scene.begin()
    async with scene.stage.agent() as reconciler:
        reconciler.set_desired(scene.wish())
        await scene.stage.until(waiting(prefetched=True))
        scene.stage.reported.clear()
        reconciler.set_desired(b"")
        await scene.stage.until(lambda reported: reported.revision is None and reported.waiting is UNSET)
        reconciler.set_desired(desired("1.0.0", "again"))
        await scene.stage.until(lambda reported: reported.revision == "again")
    assert len(scene.device.names(lambda place: place.bundles)) == 1


async def test_what_is_revoked_while_it_waits_is_refused(scene: Scene) -> None:
    await scene.begin()
    async with scene.stage.agent() as reconciler:
        reconciler.set_desired(scene.wish())
        await scene.stage.until(waiting(prefetched=True))
        scene.market.repository.revoke("tiny@1.1.0")
        scene.clock.seconds = scene.opens
        reported = await scene.stage.until(lambda each: each.phase == "IDLE" and each.error is not None)
    assert reported.error is not None
    assert reported.error.reason in (Reason.REVOKED, Reason.NOT_LISTED)
    assert scene.swaps == ["1.0.0"]


async def test_a_document_that_is_refused_does_not_end_the_wait(scene: Scene) -> None:
    await scene.begin()
    async with scene.stage.agent() as reconciler:
        reconciler.set_desired(scene.wish())
        await scene.stage.until(waiting(prefetched=True))
        policy = {"window": {"from": "22:00", "until": "05:00", "zone": "Europe/Olso"}}
        reconciler.set_desired(desired("1.2.0", "bad", policy=policy))
        found = await scene.stage.until(lambda each: each.error is not None)
        assert found.error is not None
        assert (found.error.reason, found.error.field) == (Reason.DESIRED_INVALID, "policy.window.zone")
        assert "did you mean `Europe/Oslo`?" in found.error.message
        assert found.waiting is not UNSET
        scene.clock.seconds = scene.opens
        await scene.stage.until(active("1.1.0"))


async def test_an_order_of_the_operator_does_not_wait(scene: Scene) -> None:
    await scene.begin("1.2.0")
    async with scene.stage.agent() as reconciler:
        reconciler.set_desired(scene.wish())
        await scene.stage.until(waiting(prefetched=True))
        order = Install("tiny", "1.2.0", scene.stage.settings, sources=(scene.market.location,), origin=OperatorOrder())
        assert (await reconciler.execute(order)).kind == "active"
        await scene.stage.until(active("1.2.0"))
    assert scene.swaps == ["1.0.0", "1.2.0"]


async def test_what_was_fetched_ahead_outlives_an_order_that_failed(scene: Scene) -> None:
    await scene.begin("1.2.0")
    async with scene.stage.agent() as reconciler:
        reconciler.set_desired(scene.wish())
        await scene.stage.until(waiting(prefetched=True))
        scene.stage.serving.refuses.add("1.2.0")
        order = Install("tiny", "1.2.0", scene.stage.settings, sources=(scene.market.location,), origin=OperatorOrder())
        assert (await reconciler.execute(order)).kind == "refused"
        scene.clock.seconds = scene.opens
        before = len(scene.stage.reported)
        await scene.stage.until(active("1.1.0"))
    assert all(reported.phase != "FETCH" for reported in scene.stage.reported[before:])


async def test_a_device_that_does_not_know_the_time_waits(scene: Scene) -> None:
    await scene.begin()
    scene.clock.seconds = 3600.0
    async with scene.stage.agent() as reconciler:
        reconciler.set_desired(scene.wish(prefetch=False))
        found = await scene.stage.until(waiting(prefetched=False))
        assert found.waiting is not UNSET
        assert found.waiting.reason == "clock_not_set"
        assert scene.swaps == ["1.0.0"]
        scene.clock.seconds = scene.opens
        reconciler.set_desired(scene.wish(prefetch=False))
        await scene.stage.until(active("1.1.0"))


async def test_a_download_that_ends_after_the_window_waits_for_the_next(scene: Scene) -> None:
    await scene.begin()
    day = datetime.fromtimestamp(scene.opens, UTC)
    after = (day.hour * 60 + day.minute + 1) % 1440
    window = {"from": day.strftime("%H:%M"), "until": f"{after // 60:02}:{after % 60:02}", "zone": "UTC"}

    async def slow(job: Job, on_line: Callable[[Line], None]) -> None:
        await install_in_thread(job, on_line)
        scene.clock.seconds = scene.opens + HOUR

    scene.stage.installer = slow
    scene.clock.seconds = scene.opens
    async with scene.stage.agent() as reconciler:
        reconciler.set_desired(desired("1.1.0", policy={"window": window}))
        found = await scene.stage.until(waiting(prefetched=True))
        assert found.waiting is not UNSET
        assert found.waiting.reason == "waiting_for_window"
        assert scene.swaps == ["1.0.0"]


# Over a broker.
@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    made = Broker(tmp_path / "broker")
    made.start()
    yield made
    made.stop()


@pytest.mark.broker
def test_deployed_for_a_time_it_is_fetched_waits_and_is_activated(
    scene: Scene, broker: Broker, connect: Callable[..., Connected], capsys: pytest.CaptureFixture[str]
) -> None:
    connected, client = connect(broker.port), RawClient(broker.port, "me", "box")
    scene.stage.hearers.append(connected.gateway.reported)
    agent = contextlib.AsyncExitStack()
    reconciler = connected.run(agent.enter_async_context(scene.stage.agent()))
    try:
        connected.gateway.on_desired.add(reconciler.set_desired)
        assert client.next_device_message("status")["online"] is True
        command = ["deploy", "--broker", broker.url, "tiny@1.1.0", "--device", "box", "--revision", "r1"]
        command += ["--not-before", format_utc(scene.opens), "--prefetch"]
        assert main("edge-packager", "", COMMANDS, [*command, "--wait", "--timeout", "0"]) == 4
        report = client.next_device_message("reported")
        while "waiting" not in report or not report["waiting"]["prefetched"]:
            report = client.next_device_message("reported")
        assert (report["phase"], report["revision"], report["active"]) == ("IDLE", "r1", None)
        assert report["waiting"]["until"] == format_utc(scene.opens)
        scene.clock.seconds = scene.opens
        while report["active"] is None or report["phase"] != "IDLE":
            report = client.next_device_message("reported")
        assert (report["active"]["version"], "waiting" in report) == ("1.1.0", False)
    finally:
        connected.run(agent.aclose())
        client.close()
    assert "box: asked" in capsys.readouterr().out
