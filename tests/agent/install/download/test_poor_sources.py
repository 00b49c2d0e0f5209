"""What stands between a device and its source: captive portals, error pages, stale caches. Nothing of it is final."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import UNSET

from agent.install.process.client import run_installer
from agent.install.process.messages import Job, Line, Progressed
from contract.errors import BundleRefused, SourceInvalid, SourceUnavailable
from contract.reasons import Reason
from contract.system.durable import Disk
from contract.trust.store import TrustStore
from tests.agent.install.market import Device, Market
from tests.agent.install.stage import Stage, desired
from tests.agent.install.test_reconciler import SETTINGS, active, stage_for
from tests.agent.waiting import until
from tests.contract.source.servers import WRONGS, Connections, RangeHandler, answer, serve, troubled

PLACES = ("metadata", "manifests", "objects")


@pytest.fixture(scope="module")
def published(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Market:
    market = Market(tmp_path_factory.mktemp("market") / "market", tiny_bundle)
    market.publish("1.0.0")
    return market


@pytest.mark.parametrize("kind", WRONGS)
def test_whatever_is_sent_for_a_while_is_no_verdict_on_the_bundle(published: Market, device: Device, kind: str) -> None:
    """On metadata, then on the manifest, then on an object: each attempt says so, and the next one goes on."""
    with serve(Path(published.location), troubled({place: [WRONGS[kind]] for place in PLACES})) as url:
        job = published.job(device.directory.root, "1.0.0", sources=[url])
        failures = []
        while len(failures) < 20:
            try:
                device.install(job)
            except SourceUnavailable as error:
                failures.append(error)
            else:
                break
    assert len(failures) == 3, failures
    assert all(url.removeprefix("http://") in failure.message for failure in failures)


@pytest.mark.parametrize("kind", ["portal", "long page", "login redirect", "log in first", "empty", "unavailable"])
def test_what_answers_for_everything_is_no_verdict_either(published: Market, device: Device, kind: str) -> None:
    """A root of the next generation, which there is not, is the first thing that a device asks for."""
    with serve(Path(published.location), troubled({"": [WRONGS[kind]] * 3})) as url:
        job = published.job(device.directory.root, "1.0.0", sources=[url])
        for _ in range(3):
            with pytest.raises(SourceUnavailable):
                device.install(job)
        device.install(job)


@pytest.mark.parametrize("place", PLACES)
async def test_a_captive_portal_is_reported_and_waited_out(market: Market, device: Device, place: str) -> None:
    """With the real installer process."""
    market.publish("1.0.0")
    with serve(Path(market.location), troubled({place: [WRONGS["portal"]] * 2})) as url:
        stage = stage_for(market, device)
        stage.sources, stage.installer = {"main": url}, run_installer
        async with stage.agent() as reconciler:
            reconciler.set_desired(desired("1.0.0"))
            reported = await stage.until(lambda each: each.error is not None)
            assert reported.error is not None
            assert reported.phase == "IDLE"
            assert reported.error.reason == (Reason.NOT_JSON if place == "metadata" else reported.error.reason)
            assert "; retrying in 0 s" in reported.error.message
            assert reported.error.retry_in_seconds == pytest.approx(0.0, abs=0.1)
            reported = await stage.until(active("1.0.0"))
            assert reported.error is None
    again = [each.error for each in stage.reported if each.error is not None and each.phase == "RESOLVE"]
    assert again, "why the last attempt failed stands there while the next one is made"
    assert again[0] is not None
    assert again[0].message.endswith("; retrying now")


async def test_metadata_that_a_cache_sends_from_yesterday_is_waited_out(
    market: Market, device: Device, tmp_path: Path
) -> None:
    market.publish("1.0.0")
    stale = shutil.copytree(market.location, tmp_path / "stale")
    market.publish("1.1.0", {"README.md": b"1.1.0"})
    stage = stage_for(market, device)
    device.install(market.job(device.directory.root, "1.1.0"))
    fresh = Path(market.location)
    away = fresh.rename(fresh.with_name("away"))
    stale.rename(fresh)
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.1.0"))
        reported = await stage.until(
            lambda each: each.error is not None and each.error.reason == Reason.METADATA_ROLLBACK
        )
        assert reported.error is not None
        assert "retrying in" in reported.error.message
        fresh.rename(stale)
        away.rename(fresh)
        await stage.until(active("1.1.0"))


async def test_the_same_document_again_is_a_reason_to_try_now(market: Market, device: Device) -> None:
    market.publish("1.0.0")
    stage = stage_for(market, device, retry_first_seconds=3600.0, retry_longest_seconds=3600.0)
    with serve(Path(market.location), troubled({"metadata": [WRONGS["portal"]]})) as url:
        stage.sources = {"main": url}
        async with stage.agent() as reconciler:
            reconciler.set_desired(desired("1.0.0"))
            reported = await stage.until(lambda each: each.error is not None and each.phase == "IDLE")
            assert reported.error is not None
            assert "retrying in" in reported.error.message
            assert reported.error.message.endswith("min")
            # What the broker repeats after a lost connection is nobody's wish to hurry.
            reconciler.set_desired(desired("1.0.0"), repeated=True)
            await asyncio.sleep(0.5)
            assert stage.reported[-1].error is not None
            reconciler.set_desired(desired("1.0.0"))
            await stage.until(active("1.0.0"))


async def test_the_same_document_again_asks_once_more_for_what_was_refused(market: Market, device: Device) -> None:
    market.publish("1.0.0")
    stage = stage_for(market, device)
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.1.0"))
        reported = await stage.until(lambda each: each.error is not None and each.phase == "IDLE")
        assert reported.error is not None
        assert reported.error.reason == Reason.NOT_LISTED
        market.publish("1.1.0", {"README.md": b"1.1.0"})
        reconciler.set_desired(desired("1.1.0"))
        await stage.until(active("1.1.0"))


@pytest.mark.parametrize("advances", [True, False])
async def test_waits_grow_unless_there_was_progress(market: Market, device: Device, advances: bool) -> None:
    """Bytes that come again are none: a source that is wrong in one place would be asked every few seconds for ever."""
    market.publish("1.0.0")
    stage = stage_for(market, device, retry_first_seconds=0.1, retry_longest_seconds=100.0)
    attempts = 0

    async def broken(job: Job, on_line: Callable[[Line], None]) -> None:
        nonlocal attempts
        attempts += 1
        on_line(Progressed(done=100 * attempts if advances else 100, total=10_000, reused=0, fetched=100))
        raise SourceUnavailable("it broke off")

    stage.installer = broken
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.0.0"))
        await until(lambda: attempts == 5)
    waits = [each.error.retry_in_seconds for each in stage.reported if each.error and each.phase == "IDLE"]
    assert (max(wait for wait in waits if wait is not UNSET) > 0.1) is not advances


async def test_a_server_that_asks_to_be_left_alone_is(market: Market, device: Device) -> None:
    market.publish("1.0.0")
    stage = stage_for(market, device)
    with serve(Path(market.location), troubled({"objects": [answer(503, b"", Retry_After="120")] * 9})) as url:
        stage.sources = {"main": url}
        async with stage.agent() as reconciler:
            reconciler.set_desired(desired("1.0.0"))
            reported = await stage.until(lambda each: each.error is not None and each.phase == "IDLE")
    assert reported.error is not None
    assert 120.0 <= float(reported.error.retry_in_seconds or 0) <= 132.0
    assert reported.error.message.endswith("; retrying in 2 min")


async def test_what_a_cache_has_not_yet_is_looked_for_again(market: Market, device: Device, tmp_path: Path) -> None:
    """Published a moment ago, and the device is served what was valid before."""
    market.publish("1.0.0")
    stale = shutil.copytree(market.location, tmp_path / "stale")
    market.publish("1.1.0", {"README.md": b"1.1.0"})
    fresh = Path(market.location)
    stage = stage_for(market, device)
    stage.sources = {"main": str(stale)}
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.1.0"))
        reported = await stage.until(lambda each: each.error is not None and each.phase == "IDLE")
        assert reported.error is not None
        assert reported.error.reason == Reason.NOT_LISTED
        assert reported.error.retry_in_seconds is UNSET
        shutil.rmtree(stale)
        fresh.rename(stale)
        await stage.until(active("1.1.0"))
    stale.rename(fresh)


async def test_a_device_that_trusts_nobody_yet_begins_when_it_is_provisioned(market: Market, device: Device) -> None:
    market.publish("1.0.0")
    stage = Stage(device.directory, {"main": market.location}, SETTINGS)
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.0.0"))
        reported = await stage.until(lambda each: each.error is not None and each.phase == "IDLE")
        assert reported.error is not None
        assert reported.error.reason == Reason.TRUST_STATE_LOST
        assert reported.error.retry_in_seconds is not UNSET
        TrustStore(device.directory.trust, Disk()).provision(market.root_json.read_bytes(), device.state())
        await stage.until(active("1.0.0"))


async def test_a_source_that_lies_is_passed_over_for_one_that_does_not(
    market: Market, device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    market.publish("1.0.0")
    lying = troubled({place: [WRONGS["one byte"]] * 1000 for place in PLACES})
    with serve(Path(market.location), lying) as first, serve(Path(market.location)) as second:
        device.install(market.job(device.directory.root, "1.0.0", sources=[first, second]))
    told = [record.message for record in caplog.records]
    assert any(first.removeprefix("http://") in text and text.endswith("; another source is used") for text in told)


def test_what_is_signed_and_refused_is_final_from_every_source(market: Market, device: Device) -> None:
    with serve(Path(market.location)) as url, pytest.raises(BundleRefused) as refused:
        device.install(market.job(device.directory.root, "9.9.9", sources=[url, market.location]))
    assert refused.value.reason is Reason.NOT_LISTED


def test_the_worst_of_several_sources_is_what_is_said(market: Market, device: Device) -> None:
    market.publish("1.0.0")
    lying = troubled({"metadata": [WRONGS["portal"]] * 9})
    with serve(Path(market.location), lying) as url, pytest.raises(SourceInvalid) as failed:
        device.install(market.job(device.directory.root, "1.0.0", sources=["/nowhere", url]))
    assert failed.value.reason is Reason.NOT_JSON
    assert "/nowhere does not exist" in failed.value.message


def test_an_installation_leaves_no_connection_open(published: Market, device: Device) -> None:
    """Neither when it is over, nor that of who asked for metadata while somebody else fetches."""
    open_now, alone = Connections(), []

    class Looking(RangeHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/objects/"):
                alone.append(open_now.until(1))
            super().do_GET()

    with serve(Path(published.location), Looking, connections=open_now) as url:
        device.install(published.job(device.directory.root, "1.0.0", sources=[url], parallel_fetches=1))
        assert open_now.until(0)
    assert alone
    assert all(alone)
