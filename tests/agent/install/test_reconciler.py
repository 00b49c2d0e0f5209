"""The coordinator with a real repository, trust, disk and state; workers and serving are stand-ins."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from agent.install.desired import Install, OperatorOrder
from agent.install.ports import ServingCounters, Speed
from agent.install.prepack import DiskLimits, WeightPrepacker
from agent.install.process.messages import InstallJob, Job, Line, Reached, Resolved
from agent.install.settings import InstallSettings
from agent.install.update import canary_run, probation_watch
from agent.install.update.state_machine import Event, State
from agent.state.installation import Failure
from contract.errors import SourceUnavailable
from contract.mqtt.desired import BundleReference
from contract.mqtt.reports import Reported
from contract.reasons import Reason
from contract.system.durable import Disk
from tests.agent.install.market import Device, Market
from tests.agent.install.stage import Stage, desired
from tests.agent.waiting import until

YEAR = 365 * 86400.0
SETTINGS = InstallSettings(probation_seconds=0, retry_first_seconds=0.01, retry_longest_seconds=0.02, swap="drain")


CANARY_SECONDS = 1234.0
"""No other time-out has this many."""


@pytest.fixture
def no_time_left(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Ends the canary that runs as if its time were over now; without it no canary ends for want of time."""
    bounds: list[asyncio.Timeout] = []
    timeout = asyncio.timeout

    def watched(seconds: float | None) -> asyncio.Timeout:
        bound = timeout(seconds)
        if seconds == CANARY_SECONDS:
            bounds.append(bound)
        return bound

    monkeypatch.setattr(asyncio, "timeout", watched)
    return lambda: bounds[-1].reschedule(0.0)


def stage_for(market: Market, device: Device, **settings: Any) -> Stage:
    stage = Stage(device.directory, {"main": market.location}, msgspec.structs.replace(SETTINGS, **settings))
    from contract.trust.store import TrustStore

    TrustStore(device.directory.trust, Disk()).provision(market.root_json.read_bytes(), device.state())
    return stage


def active(version: str) -> Callable[[Reported], bool]:
    return lambda reported: (
        reported.phase == "IDLE" and reported.active is not None and reported.active.version == version
    )


def failed(reason: Reason) -> Callable[[Reported], bool]:
    return lambda reported: reported.phase == "IDLE" and reported.error is not None and reported.error.reason == reason


async def test_a_desired_bundle_becomes_active_phase_by_phase(market: Market, device: Device) -> None:
    market.publish("1.0.0", security_epoch=2)
    stage = stage_for(market, device)
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.0.0"))
        reported = await stage.until(active("1.0.0"))
    assert reported.revision == "r1.0.0"
    assert reported.queue_pause_ms == 12.5
    assert stage.phases == ["IDLE", *list(State)[1:11], "IDLE"]
    assert stage.serving.swaps == [("1.0.0", "drain")]
    assert stage.workers.niceness == [19]
    assert all(worker.closed for worker in stage.workers.started)
    assert device.state().epoch() == 2
    assert [kind for kind, _ in stage.events] == ["swap", "install"]


async def test_an_update_keeps_the_bundle_before_it_and_no_other(market: Market, device: Device) -> None:
    stage = stage_for(market, device)
    async with stage.agent() as reconciler:
        for version in ("1.0.0", "1.1.0", "1.2.0"):
            market.publish(version, {"README.md": version.encode()})
            reconciler.set_desired(desired(version))
            reported = await stage.until(active(version))
    assert reported.previous is not None
    assert reported.previous.version == "1.1.0"
    assert len(device.names(lambda place: place.bundles)) == 2
    assert device.names(lambda place: place.inbox) == []


async def test_only_what_serves_keeps_prepacked_weights(market: Market, device: Device) -> None:
    """Until the commit the predecessor's stay: it may have to serve again at once."""
    for version in ("1.0.0", "1.1.0"):
        market.publish(version)
    stage = stage_for(market, device)
    stage.prepacker = WeightPrepacker(device.directory, Disk(), limits=DiskLimits(spare_bytes=0))
    async with stage.agent() as reconciler:
        for version in ("1.0.0", "1.1.0"):
            reconciler.set_desired(desired(version))
            reported = await stage.until(active(version))
    assert reported.active is not None and reported.previous is not None
    assert device.names(lambda place: place.bundles) == sorted([reported.active.digest, reported.previous.digest])
    assert device.names(lambda place: place.derived) == [reported.active.digest]
    stage.restart()
    async with stage.agent():
        assert stage.serving.bundle is not None
        assert stage.serving.bundle.derived is not None
    assert device.names(lambda place: place.derived) == [reported.active.digest]


async def test_the_retained_document_again_changes_nothing(market: Market, device: Device) -> None:
    market.publish("1.0.0")
    stage = stage_for(market, device)
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.0.0"))
        await stage.until(active("1.0.0"))
        said = len(stage.reported)
        reconciler.set_desired(desired("1.0.0"))
        await asyncio.sleep(0.5)
        assert len(stage.reported) == said
        reconciler.set_desired(desired("1.0.0", "another-revision"))
        await stage.until(lambda reported: reported.revision == "another-revision" and reported.phase == "IDLE")
    assert len(stage.serving.swaps) == 1


async def test_after_a_restart_the_active_bundle_is_verified_and_served(market: Market, device: Device) -> None:
    market.publish("1.0.0")
    stage = stage_for(market, device)
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.0.0"))
        await stage.until(active("1.0.0"))
    stage.restart()
    async with stage.agent():
        assert stage.serving.swaps == [("1.0.0", "drain")]
        await stage.until(lambda reported: reported.revision == "r1.0.0" and active("1.0.0")(reported))
    assert "RESOLVE" not in stage.phases


async def test_a_damaged_active_bundle_is_not_served_but_mended(market: Market, device: Device) -> None:
    market.publish("1.0.0")
    stage = stage_for(market, device)
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.0.0"))
        reported = await stage.until(active("1.0.0"))
    assert reported.active is not None
    victim = device.directory.bundles / reported.active.digest / "tokenizer.json"
    victim.chmod(0o644)
    victim.write_bytes(b"?" * victim.stat().st_size)
    stage.restart()
    async with stage.agent():
        assert stage.serving.swaps == []
        await stage.until(lambda each: each.error is not None and each.error.reason == Reason.DIGEST_MISMATCH)
        await stage.until(lambda each: active("1.0.0")(each) and each.error is None and "COMMIT" in stage.phases)
        assert stage.serving.swaps == [("1.0.0", "drain")]


# Documents that cannot be followed.


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"not json", Reason.DESIRED_INVALID),
        (b'{"revision": "r", "bundle": {"name": "tiny", "version": "one"}}', Reason.DESIRED_INVALID),
        (b'{"revision": "r", "bundle": {"name": "tiny", "version": "1.0.0"}, "extra": 1}', Reason.DESIRED_INVALID),
        (b"{" * 20_000, Reason.DESIRED_INVALID),
        (desired("1.0.0", source="elsewhere"), Reason.SOURCE_NOT_CONFIGURED),
        (desired("1.0.0", policy={"swap": "overlap"}), Reason.POLICY_LOOSER),
        (desired("9.9.9"), Reason.NOT_LISTED),
    ],
)
async def test_a_document_that_cannot_be_followed_is_reported(
    market: Market, device: Device, payload: bytes, reason: Reason
) -> None:
    market.publish("1.0.0")
    stage = stage_for(market, device)
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.0.0"))
        await stage.until(active("1.0.0"))
        reconciler.set_desired(payload)
        reported = await stage.until(failed(reason))
        assert reported.active is not None, "what was active stays so"
    assert [detail["reason"] for kind, detail in stage.events if kind == "refused"] == [reason]
    assert len(stage.serving.swaps) == 1


async def test_an_empty_document_withdraws_the_wish(market: Market, device: Device) -> None:
    market.publish("1.0.0")
    stage = stage_for(market, device)
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.0.0"))
        await stage.until(active("1.0.0"))
        reconciler.set_desired(b"")
        await stage.until(lambda reported: reported.revision is None and active("1.0.0")(reported))
    assert device.state().snapshot().desired is None


async def test_what_a_withdrawn_wish_left_is_removed(market: Market, device: Device) -> None:
    """Bytes on their way, and a bundle that is sealed and was never in service; nothing else would ask for the room."""
    for version in ("1.0.0", "1.1.0"):
        market.publish(version, {"README.md": version.encode()})
    manifest = market.publish("1.2.0", {"extra.bin": os.urandom(1 << 20), "more.bin": os.urandom(1000)})
    market.object(manifest, "more.bin").unlink()
    stage = stage_for(market, device)
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.0.0"))
        await stage.until(active("1.0.0"))
        stage.workers.hang, stage.workers.begun = True, asyncio.Event()
        reconciler.set_desired(desired("1.1.0"))
        await asyncio.wait_for(stage.workers.begun.wait(), 120)
        stage.workers.hang = False
        reconciler.set_desired(b"")
        await stage.until(lambda reported: reported is stage.reported[-1] and active("1.0.0")(reported))
        await until(lambda: len(device.names(lambda place: place.bundles)) == 1)
        reconciler.set_desired(desired("1.2.0"))
        await stage.until(failed(Reason.SOURCE_UNAVAILABLE))
        assert device.names(lambda place: place.inbox), "kept for the next attempt"
        reconciler.set_desired(b"")
        await until(lambda: not device.names(lambda place: place.inbox))


async def test_wishes_that_change_their_mind_do_not_use_up_a_candidates_attempts(
    market: Market, device: Device
) -> None:
    for version in ("1.0.0", "1.1.0"):
        market.publish(version, {"README.md": version.encode()})
    stage = stage_for(market, device, max_attempts=2)
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.0.0"))
        await stage.until(active("1.0.0"))
        for turn in range(3):
            stage.reported.clear()
            reconciler.set_desired(desired("1.1.0", f"there {turn}", policy={"probation_seconds": 1000}))
            await stage.until(lambda reported: reported.phase == "PROBATION")
            reconciler.set_desired(desired("1.0.0", f"back {turn}"))
            await stage.until(lambda reported: reported is stage.reported[-1] and active("1.0.0")(reported))
        stage.reported.clear()
        reconciler.set_desired(desired("1.1.0", "at last"))
        await stage.until(active("1.1.0"))
    assert device.state().quarantined() == []


# Candidates that do not hold.


def spoil(stage: Stage, how: str) -> None:
    match how:
        case "load":
            stage.workers.failure = "the model does not load"
        case "not finite":
            stage.workers.finite = False
        case "drift":
            stage.workers.drift = 3.0
        case "nan":
            stage.workers.drift = float("nan")
        case "endless":
            stage.workers.stops = False
        case "memory":
            stage.workers.peak = 2**60
        case "hang":
            stage.workers.hang = True
        case "swap":
            stage.serving.refuses.add("1.1.0")
        case "crash":
            stage.serving.after_swap = ServingCounters(5, 0, 1, None)
        case "errors":
            stage.serving.after_swap = ServingCounters(5, 2, 0, None)
        case "slow":
            stage.serving.after_swap = ServingCounters(5, 0, 0, Speed(1.0, 1.0), 5.0)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("load", Reason.CANARY_LOAD_FAILED),
        ("not finite", Reason.CANARY_NOT_FINITE),
        ("drift", Reason.CANARY_DRIFT),
        ("nan", Reason.CANARY_DRIFT),
        ("endless", Reason.CANARY_NO_STOP),
        ("memory", Reason.CANARY_MEMORY),
        ("hang", Reason.CANARY_TIMEOUT),
        ("swap", Reason.ENGINE_FAILED),
        ("crash", Reason.PROBATION_CRASHED),
        ("errors", Reason.PROBATION_ERRORS),
        ("slow", Reason.PROBATION_TOO_SLOW),
    ],
)
async def test_a_candidate_that_does_not_hold_is_rolled_back_and_not_tried_again(
    market: Market, device: Device, how: str, reason: Reason, no_time_left: Callable[[], None]
) -> None:
    market.publish("1.0.0", security_epoch=1)
    bad = market.publish("1.1.0", {"README.md": b"bad"}, security_epoch=2)
    stage = stage_for(market, device, canary_seconds=CANARY_SECONDS)
    stage.workers.on_hang = no_time_left
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.0.0"))
        await stage.until(active("1.0.0"))
        stage.serving.seen = ServingCounters(9, 0, 0, Speed(100.0, 100.0), 9.0)
        spoil(stage, how)
        reconciler.set_desired(desired("1.1.0"))
        reported = await stage.until(failed(reason))
        assert reported.active is not None
        assert reported.active.version == "1.0.0"
        assert stage.serving.bundle is not None
        assert stage.serving.bundle.manifest.version == "1.0.0", "the old one answers"
        assert "ROLLBACK" in stage.phases
        assert device.state().epoch() == 1
        assert [entry.reason for entry in device.state().quarantined()] == [reason]
        rollback = next(detail for kind, detail in stage.events if kind == "rollback")
        assert (rollback["from"], rollback["to"], rollback["reason"]) == ("tiny@1.1.0", "tiny@1.0.0", reason)
        tried = len(stage.workers.niceness)
        reconciler.set_desired(desired("1.1.0", "once more"))
        await stage.until(failed(Reason.QUARANTINED))
        assert len(stage.workers.niceness) == tried
    assert bad.version == "1.1.0"


@pytest.mark.parametrize(
    ("contention", "hangs_above", "niceness"),
    [(0.9, 0, [19, 19, 0]), (0.9, -1, [19, 19, 0]), (0.1, 0, [19, 19])],
    ids=["starved", "hanging", "hanging on an idle device"],
)
async def test_a_canary_that_got_nothing_of_a_busy_device_is_tried_as_an_equal(
    market: Market,
    device: Device,
    monkeypatch: pytest.MonkeyPatch,
    no_time_left: Callable[[], None],
    contention: float,
    hangs_above: int,
    niceness: list[int],
) -> None:
    monkeypatch.setattr(canary_run.CpuContention, "share", lambda self: contention)
    for version in ("1.0.0", "1.1.0"):
        market.publish(version, {"README.md": version.encode()})
    stage = stage_for(market, device, canary_seconds=CANARY_SECONDS)
    stage.workers.on_hang = no_time_left
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.0.0"))
        await stage.until(active("1.0.0"))
        stage.workers.hang_above = hangs_above
        reconciler.set_desired(desired("1.1.0"))
        comes_through = contention > canary_run.CONTENDED_SHARE and hangs_above == 0
        await stage.until(active("1.1.0") if comes_through else failed(Reason.CANARY_TIMEOUT))
    assert stage.workers.niceness == niceness


async def test_a_first_bundle_that_fails_leaves_nothing_served(market: Market, device: Device) -> None:
    market.publish("1.0.0")
    stage = stage_for(market, device)
    stage.serving.after_swap = ServingCounters(0, 0, 2, None)
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.0.0"))
        reported = await stage.until(failed(Reason.PROBATION_CRASHED))
        assert reported.active is None
        assert stage.serving.bundle is None


async def test_the_operator_may_try_again_what_failed(market: Market, device: Device) -> None:
    market.publish("1.0.0")
    stage = stage_for(market, device)
    stage.workers.failure = "not today"
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.0.0"))
        await stage.until(failed(Reason.CANARY_LOAD_FAILED))
        stage.workers.failure = None
        target = Install("tiny", "1.0.0", stage.settings, sources=(market.location,), origin=OperatorOrder())
        outcome = await reconciler.execute(target)
        assert outcome.kind == "active"
    assert device.state().quarantined() == []


async def test_swaps_per_hour_are_limited(market: Market, device: Device) -> None:
    market.publish("1.0.0")
    market.publish("1.1.0", {"README.md": b"1.1.0"})
    stage = stage_for(market, device, swaps_per_hour=1)
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.0.0"))
        await stage.until(active("1.0.0"))
        reconciler.set_desired(desired("1.1.0"))
        await stage.until(failed(Reason.SWAP_LIMIT))
    assert stage.serving.swaps == [("1.0.0", "drain")]


# Interruptions.


async def test_an_unavailable_source_is_tried_again(market: Market, device: Device) -> None:
    market.publish("1.0.0")
    stage = stage_for(market, device)
    real, calls = stage.installer, 0

    async def flaky(job: Job, on_line: Callable[[Line], None]) -> None:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise SourceUnavailable("the cable is out")
        await real(job, on_line)

    stage.installer = flaky
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.0.0"))
        await stage.until(failed(Reason.SOURCE_UNAVAILABLE))
        reported = await stage.until(active("1.0.0"))
        assert reported.error is None
    assert calls == 3


@pytest.mark.parametrize("where", ["installer", "canary", "probation"])
async def test_the_latest_wish_wins(market: Market, device: Device, where: str) -> None:
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        market.publish(version, {"README.md": version.encode()})
    stage = stage_for(market, device)
    real, fetching = stage.installer, asyncio.Event()

    async def stuck(job: Job, on_line: Callable[[Line], None]) -> None:
        # Trust may be refreshed in between.
        if isinstance(job, InstallJob) and job.version == "1.1.0" and where == "installer":
            on_line(Resolved("a" * 64, job.name, job.version, 0, 10))
            on_line(Reached(Event.CHECKED))
            on_line(Reached(Event.RESERVED))
            fetching.set()
            await asyncio.Event().wait()
        await real(job, on_line)

    stage.installer = stuck
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.0.0"))
        await stage.until(active("1.0.0"))
        if where == "canary":
            stage.workers.hang, stage.workers.begun = True, asyncio.Event()
            fetching = stage.workers.begun
        if where == "probation":
            fetching = stage.serving.swapped = asyncio.Event()
        policy = {"policy": {"probation_seconds": 1000}} if where == "probation" else {}
        reconciler.set_desired(desired("1.1.0", **policy))
        await asyncio.wait_for(fetching.wait(), 120)
        stage.workers.hang = False
        reconciler.set_desired(desired("1.2.0"))
        reported = await stage.until(active("1.2.0"))
        assert reported.previous is not None
        assert reported.previous.version == "1.0.0"
    assert device.state().quarantined() == [], "being superseded is no fault"


async def test_a_flood_of_documents_ends_with_the_last(market: Market, device: Device) -> None:
    for version in ("1.0.0", "1.1.0"):
        market.publish(version, {"README.md": version.encode()})
    stage = stage_for(market, device)
    async with stage.agent() as reconciler:
        for number in range(500):
            reconciler.set_desired(desired("1.0.0" if number % 2 else "1.1.0", f"flood-{number}"))
            if number % 50 == 0:
                await asyncio.sleep(0)
        reconciler.set_desired(desired("1.1.0", "last"))
        await stage.until(lambda reported: reported.revision == "last" and active("1.1.0")(reported))
    assert len(stage.reported) < 100


@pytest.mark.parametrize("phase", ["RESOLVE", "FETCH", "SEAL", "CANARY", "SWITCH", "PROBATION", "COMMIT", "ROLLBACK"])
async def test_a_restart_in_any_phase_ends_with_the_wished_bundle(market: Market, device: Device, phase: str) -> None:
    """The record of an agent that was killed in ``phase`` is found by the next one."""
    market.publish("1.0.0")
    market.publish("1.1.0", {"README.md": b"1.1.0"})
    stage = stage_for(market, device)
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.0.0"))
        await stage.until(active("1.0.0"))
    candidate = device.install(market.job(device.directory.root, "1.1.0", root=None))
    state = device.state()
    state.record_desired(desired("1.1.0"))
    if phase == "COMMIT":
        # Recorded and committed in one transaction.
        state.enter_commit(phase, candidate.digest, back=False)
    else:
        state.enter(phase, candidate.digest)
    stage.restart()
    async with stage.agent():
        assert stage.serving.swaps[0][0] == ("1.1.0" if phase == "COMMIT" else "1.0.0")
        await stage.until(active("1.1.0"))
    assert device.state().quarantined() == []


async def test_a_record_of_a_commit_that_did_not_happen_commits_nothing(market: Market, device: Device) -> None:
    market.publish("1.0.0")
    market.publish("1.1.0", {"README.md": b"1.1.0"})
    stage = stage_for(market, device)
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.0.0"))
        await stage.until(active("1.0.0"))
    candidate = device.install(market.job(device.directory.root, "1.1.0", root=None))
    device.state().enter("COMMIT", candidate.digest)
    stage.restart()
    async with stage.agent() as reconciler:
        assert stage.serving.swaps == [("1.0.0", "drain")], "1.1.0 has passed neither canary nor probation"
        assert reconciler.reported.phase == "IDLE"


async def test_a_candidate_in_probation_when_the_power_went_is_not_fetched_again(
    market: Market, device: Device
) -> None:
    for version in ("1.0.0", "1.1.0"):
        market.publish(version, {"README.md": version.encode()})
    stage = stage_for(market, device)
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.0.0"))
        await stage.until(active("1.0.0"))
        stage.reported.clear()
        reconciler.set_desired(desired("1.1.0", policy={"probation_seconds": 1000}))
        await stage.until(lambda reported: reported.phase == "PROBATION")
    stage.restart()
    async with stage.agent() as reconciler:
        await stage.until(lambda reported: reported.phase == "PROBATION")
        assert "FETCH" not in stage.phases
        # Nobody wants it any more: then it goes.
        reconciler.set_desired(b"")
        await until(lambda: len(device.names(lambda place: place.bundles)) == 1)


async def test_a_candidate_that_takes_the_device_down_is_given_up(market: Market, device: Device) -> None:
    market.publish("1.0.0")
    stage = stage_for(market, device, max_attempts=2)
    stage.workers.hang = True
    for _ in range(2):
        async with stage.agent() as reconciler:
            reconciler.set_desired(desired("1.0.0"))
            await asyncio.wait_for(stage.workers.begun.wait(), 120)
        stage.restart()
        stage.workers.hang = True
    async with stage.agent():
        await stage.until(failed(Reason.ATTEMPTS_EXHAUSTED))
    assert [entry.reason for entry in device.state().quarantined()] == [Reason.ATTEMPTS_EXHAUSTED]


async def test_a_rollback_that_was_interrupted_keeps_its_reason(market: Market, device: Device) -> None:
    market.publish("1.0.0")
    market.publish("1.1.0", {"README.md": b"1.1.0"})
    stage = stage_for(market, device)
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.0.0"))
        await stage.until(active("1.0.0"))
    candidate = device.install(market.job(device.directory.root, "1.1.0", root=None))
    device.state().enter("ROLLBACK", candidate.digest, Failure(Reason.PROBATION_ERRORS, "it failed"))
    stage.restart()
    async with stage.agent():
        reported = await stage.until(failed(Reason.PROBATION_ERRORS))
        assert reported.active is not None
        assert reported.active.version == "1.0.0"
    assert [entry.reason for entry in device.state().quarantined()] == [Reason.PROBATION_ERRORS]


async def test_a_rollback_to_what_does_not_load_just_now_is_tried_again(
    market: Market, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.install.reconciler.RESTORE_RETRY_SECONDS", 0.05)
    market.publish("1.0.0")
    market.publish("1.1.0", {"README.md": b"1.1.0"})
    stage = stage_for(market, device)
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.0.0"))
        await stage.until(active("1.0.0"))
        stage.serving.after_swap = ServingCounters(5, 2, 0, None)
        stage.serving.refuses.add("1.0.0")
        reconciler.set_desired(desired("1.1.0"))
        await stage.until(failed(Reason.ENGINE_FAILED))
        stage.serving.refuses.clear()
        await until(lambda: stage.serving.swaps[-1][0] == "1.0.0")
        assert stage.serving.bundle is not None
        assert stage.serving.bundle.manifest.version == "1.0.0", "the old one answers again"


@pytest.mark.parametrize("jumps", [(YEAR, -2 * YEAR), (-2 * YEAR, YEAR)])
async def test_a_clock_that_is_set_forward_or_back_neither_ends_probation_nor_keeps_it_going(
    market: Market, device: Device, monkeypatch: pytest.MonkeyPatch, jumps: tuple[float, float]
) -> None:
    monkeypatch.setattr(probation_watch, "WATCH_SECONDS", 0.005)
    market.publish("1.0.0")
    market.publish("1.1.0", {"README.md": b"1.1.0"})
    stage = stage_for(market, device, probation_requests=7)
    looked = 0
    real_time = time.time
    ahead = 0.0
    monkeypatch.setattr(time, "time", lambda: real_time() + ahead)

    def look() -> ServingCounters:
        nonlocal looked
        looked += 1
        return stage.serving.seen

    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.0.0"))
        await stage.until(active("1.0.0"))
        monkeypatch.setattr(stage.serving, "counters", look)
        stage.serving.swapped.clear()
        reconciler.set_desired(desired("1.1.0", policy={"probation_seconds": 100_000}))
        await asyncio.wait_for(stage.serving.swapped.wait(), 120)
        for jump in jumps:
            ahead += jump
            seen = looked
            await until(lambda: looked >= seen + 5)  # noqa: B023 # awaited at once
            assert stage.reported[-1].phase == "PROBATION"
        stage.serving.seen = ServingCounters(7, 0, 0, None)
        await stage.until(active("1.1.0"))
        # The log of swaps has times of three years now: that blocks nothing.
        reconciler.set_desired(desired("1.0.0", "back"))
        await stage.until(lambda each: each.revision == "back" and active("1.0.0")(each))


async def test_what_is_followed_is_reported_by_name(market: Market, device: Device) -> None:
    market.publish("1.0.0")
    market.publish("1.1.0", {"README.md": b"1.1.0"})
    stage = stage_for(market, device)
    async with stage.agent() as reconciler:
        assert reconciler.reported.desired is UNSET
        reconciler.set_desired(desired("1.0.0"))
        reported = await stage.until(active("1.0.0"))
        assert reported.desired == BundleReference("tiny", "1.0.0")
        stage.workers.drift = 9.0
        reconciler.set_desired(desired("1.1.0"))
        reported = await stage.until(failed(Reason.CANARY_DRIFT))
        assert reported.desired == BundleReference("tiny", "1.1.0"), "it is still what somebody wants"
        stage.workers.drift = 0.0
        outcome = await reconciler.execute(
            Install("tiny", "1.1.0", stage.settings, sources=(market.location,), origin=OperatorOrder())
        )
        assert outcome.kind == "active"
        await until(lambda: reconciler.reported.desired is UNSET)
        reconciler.set_desired(desired("1.0.0", "another"))
        await stage.until(lambda each: each.revision == "another" and active("1.0.0")(each))
        reconciler.set_desired(b"")
        await stage.until(lambda each: each.revision is None and each.desired is UNSET and each.active is not None)
