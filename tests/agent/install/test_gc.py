"""What is kept of the bundles before: as many as are wanted, the right ones, and never one that is needed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.install.desired import rollback_target
from agent.install.download import pipeline as download_pipeline
from agent.install.gc import collect_bundles, used_bytes
from agent.install.ports import SealedBundle, ServingCounters
from agent.install.settings import InstallSettings
from agent.install.update.step_reporter import StepReporter
from agent.install.verify.bundle_verifier import verify_bundle
from contract.errors import EdgeBundleError, StoreBroken, StoreFull, UsageError
from contract.reasons import Reason
from contract.system.durable import Disk
from contract.trust.store import TrustStore
from tests.agent.install.market import Device, Market
from tests.agent.install.stage import Stage, desired
from tests.agent.install.test_reconciler import active, failed
from tests.agent.waiting import until

VERSIONS = ("1.0.0", "1.1.0", "1.2.0", "1.3.0", "1.4.0")
MIB = 1 << 20


def publish(market: Market, *versions: str) -> None:
    for version in versions:
        market.publish(version, {"README.md": version.encode()})


def stage_for(market: Market, device: Device, **settings: Any) -> Stage:
    own = InstallSettings(probation_seconds=0, retry_first_seconds=0.01, retry_longest_seconds=0.02, swap="drain")
    stage = Stage(device.directory, {"main": market.location}, msgspec.structs.replace(own, **settings))
    TrustStore(device.directory.trust, Disk()).provision(market.root_json.read_bytes(), device.state())
    return stage


def here(device: Device) -> set[str]:
    """The versions on the disk; every record has its directory, and every directory its record."""
    found = {bundle.digest: bundle.version for bundle in device.state().bundles()}
    assert sorted(found) == device.names(lambda place: place.bundles)
    return set(found.values())


async def follow(stage: Stage, reconciler: Any, *versions: str) -> None:
    for version in versions:
        stage.reported.clear()
        reconciler.set_desired(desired(version, f"{version}-{len(stage.events)}"))
        await stage.until(active(version))


async def go_back(stage: Stage, reconciler: Any) -> str:
    outcome = await reconciler.execute(rollback_target(stage.state, stage.settings, allow_epoch=False))
    assert outcome.kind == "active"
    now = stage.serving.bundle
    assert now is not None
    return str(now.manifest.version)


@pytest.mark.parametrize("keep", [0, 1, 2, 3])
async def test_as_many_are_kept_as_are_wanted(market: Market, device: Device, keep: int) -> None:
    publish(market, *VERSIONS)
    stage = stage_for(market, device, keep_previous=keep)
    async with stage.agent() as reconciler:
        for number, version in enumerate(VERSIONS):
            await follow(stage, reconciler, version)
            first = max(0, number - keep)
            assert here(device) == set(VERSIONS[first : number + 1])


async def test_each_rollback_goes_one_further_back(market: Market, device: Device) -> None:
    publish(market, *VERSIONS)
    stage = stage_for(market, device, keep_previous=3)
    async with stage.agent() as reconciler:
        await follow(stage, reconciler, *VERSIONS[:4])
        assert [await go_back(stage, reconciler) for _ in range(3)] == ["1.2.0", "1.1.0", "1.0.0"]
        assert here(device) == set(VERSIONS[:4]), "what was gone back from is kept as long as there is room"
        assert await go_back(stage, reconciler) == "1.1.0", "nothing is before it: where it came from"
        await follow(stage, reconciler, "1.4.0")
        assert await go_back(stage, reconciler) == "1.1.0"
        assert await go_back(stage, reconciler) == "1.0.0", "also after an update in between"


async def test_a_candidate_that_answers_already_is_what_a_rollback_leads_away_from(
    market: Market, device: Device
) -> None:
    """Whoever sees it misbehave in its probation wants the one before it, not the one before that."""
    publish(market, *VERSIONS)
    stage = stage_for(market, device, keep_previous=3)
    for before in (VERSIONS[:2], ()):
        async with stage.agent() as reconciler:
            await follow(stage, reconciler, *before)
            stage.reported.clear()
            reconciler.set_desired(desired("1.2.0", f"try {before}", policy={"probation_seconds": 1000}))
            await stage.until(lambda reported: reported.phase == "PROBATION")
            assert await go_back(stage, reconciler) == "1.1.0"
            now = stage.reported[-1]
            assert now.phase == "IDLE"
            assert now.active is not None
            assert now.active.version == "1.1.0"
            await until(lambda: len(device.names(lambda place: place.bundles)) <= 2)
        # It stays there: the wish is overridden.
        stage.restart()
        async with stage.agent() as reconciler:
            assert stage.state.snapshot().overridden
            assert stage.serving.bundle is not None
            assert stage.serving.bundle.manifest.version == "1.1.0"
            assert reconciler.reported.revision is None, "what is active is nobody's answer to it"


async def test_a_rollback_that_is_cut_off_while_it_is_committed_stays_one(
    market: Market, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(market, *VERSIONS)
    stage = stage_for(market, device, keep_previous=3)
    async with stage.agent() as reconciler:
        await follow(stage, reconciler, *VERSIONS[:3])

        def cut_off(*_: object, **__: object) -> None:
            raise StoreBroken("the power is gone")

        with monkeypatch.context() as patched:
            patched.setattr(StepReporter, "committed", cut_off)
            outcome = await reconciler.execute(rollback_target(stage.state, stage.settings, allow_epoch=False))
            assert outcome.kind == "later"
    stage.restart()
    async with stage.agent() as reconciler:
        assert stage.serving.bundle is not None
        assert stage.serving.bundle.manifest.version == "1.1.0"
        assert await go_back(stage, reconciler) == "1.0.0", "and not to what was gone back from"


async def test_what_was_wished_for_again_is_no_rollback(market: Market, device: Device) -> None:
    publish(market, *VERSIONS)
    stage = stage_for(market, device, keep_previous=3)
    async with stage.agent() as reconciler:
        await follow(stage, reconciler, "1.0.0", "1.1.0", "1.2.0", "1.1.0")
        assert [await go_back(stage, reconciler) for _ in range(3)] == ["1.2.0", "1.1.0", "1.0.0"]


async def test_with_one_kept_the_way_leads_there_and_back(market: Market, device: Device) -> None:
    publish(market, *VERSIONS)
    stage = stage_for(market, device, keep_previous=1)
    async with stage.agent() as reconciler:
        await follow(stage, reconciler, *VERSIONS[:3])
        assert [await go_back(stage, reconciler) for _ in range(2)] == ["1.1.0", "1.2.0"]


async def test_with_none_kept_there_is_no_way_back(market: Market, device: Device) -> None:
    publish(market, *VERSIONS)
    stage = stage_for(market, device, keep_previous=0)
    async with stage.agent() as reconciler:
        await follow(stage, reconciler, "1.0.0", "1.1.0")
        with pytest.raises(UsageError, match="no previous bundle"):
            rollback_target(stage.state, stage.settings, allow_epoch=False)


async def test_a_restart_forgets_nothing_of_the_way_back(market: Market, device: Device) -> None:
    publish(market, *VERSIONS)
    stage = stage_for(market, device, keep_previous=3)
    async with stage.agent() as reconciler:
        await follow(stage, reconciler, *VERSIONS[:4])
        assert await go_back(stage, reconciler) == "1.2.0"
    stage.restart()
    async with stage.agent() as reconciler:
        assert await go_back(stage, reconciler) == "1.1.0"


async def test_one_that_failed_takes_no_good_ones_place(market: Market, device: Device) -> None:
    publish(market, *VERSIONS)
    stage = stage_for(market, device, keep_previous=2)
    async with stage.agent() as reconciler:
        await follow(stage, reconciler, "1.0.0", "1.1.0", "1.2.0")
        stage.serving.after_swap = ServingCounters(5, 2, 0, None)
        reconciler.set_desired(desired("1.3.0"))
        await stage.until(failed(Reason.PROBATION_ERRORS))
        assert here(device) == {"1.0.0", "1.1.0", "1.2.0"}
        assert [await go_back_failing(stage, reconciler)] == ["1.1.0"]


async def go_back_failing(stage: Stage, reconciler: Any) -> str:
    stage.serving.after_swap = ServingCounters(5, 0, 0, None)
    return await go_back(stage, reconciler)


# Under the quota, while another one is on its way.


def install(market: Market, device: Device, *versions: str) -> dict[str, SealedBundle]:
    sealed = {}
    for version in versions:
        market.publish(version, {"extra.bin": os.urandom(MIB)})
        sealed[version] = device.install(market.job(device.directory.root, version))
        device.activate(sealed[version])
    return sealed


def test_an_installation_that_needs_room_takes_the_oldest_and_no_more(market: Market, device: Device) -> None:
    sealed = install(market, device, *VERSIONS[:4])
    market.publish("1.4.0", {"extra.bin": os.urandom(MIB)})
    quota = used_bytes(device.directory) + MIB // 2
    newest = device.install(market.job(device.directory.root, "1.4.0", quota_bytes=quota))
    assert here(device) == {"1.1.0", "1.2.0", "1.3.0", "1.4.0"}
    for bundle in (sealed["1.2.0"], sealed["1.3.0"], newest):
        verify_bundle(bundle.directory, bundle.digest)
    assert used_bytes(device.directory) <= quota


def derive_for(device: Device, bundle: SealedBundle) -> Path:
    """Stands in for prepacked weights."""
    place = device.directory.derived_of(bundle.digest) / "this-cpu"
    place.mkdir(parents=True)
    (place / "model.onnx.data").write_bytes(b"x" * MIB)
    return place


def test_prepacked_weights_of_what_does_not_serve_make_room_for_an_update(market: Market, device: Device) -> None:
    sealed = install(market, device, "1.0.0", "1.1.0")
    old, new = (derive_for(device, bundle) for bundle in sealed.values())
    market.publish("1.2.0", {"extra.bin": os.urandom(MIB)})
    quota = used_bytes(device.directory) + MIB // 2
    device.install(market.job(device.directory.root, "1.2.0", quota_bytes=quota))
    assert (old.exists(), new.exists()) == (False, True)
    assert here(device) == {"1.0.0", "1.1.0", "1.2.0"}
    assert used_bytes(device.directory) <= quota


@pytest.mark.parametrize("short_of", ["prepacked weights", "kept bundles"])
def test_a_full_disk_is_made_room_on_as_under_a_quota(
    market: Market, device: Device, short_of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed = install(market, device, "1.0.0", "1.1.0", "1.2.0")
    if short_of == "prepacked weights":
        derive_for(device, sealed["1.1.0"])
    capacity = used_bytes(device.directory) + MIB // 2
    # A disk of that size with nothing else on it.
    monkeypatch.setattr(download_pipeline, "disk_available", lambda root: capacity - used_bytes(device.directory))
    market.publish("1.3.0", {"extra.bin": os.urandom(MIB)})
    device.install(market.job(device.directory.root, "1.3.0"))
    assert here(device) == {"1.1.0", "1.2.0", "1.3.0"} | ({"1.0.0"} if short_of == "prepacked weights" else set())


def test_the_quota_costs_neither_active_nor_previous_nor_what_has_arrived(market: Market, device: Device) -> None:
    sealed = install(market, device, *VERSIONS[:4])
    manifest = market.publish("1.4.0", {"extra.bin": os.urandom(MIB), "more.bin": os.urandom(MIB)})
    away = market.object(manifest, "more.bin").rename(market.root / "away")
    job = market.job(device.directory.root, "1.4.0")
    with pytest.raises(EdgeBundleError):
        device.install(job)
    parts = device.names(lambda place: place.inbox)
    assert parts, "it is on its way"
    with pytest.raises(StoreFull, match="quota"):
        device.install(msgspec.structs.replace(job, quota_bytes=4 * MIB))
    assert here(device) == {"1.2.0", "1.3.0"}, "all that may go is gone, and it is not enough"
    for version in ("1.2.0", "1.3.0"):
        verify_bundle(sealed[version].directory, sealed[version].digest)
    away.rename(market.object(manifest, "more.bin"))
    device.install(job)
    assert here(device) == {"1.2.0", "1.3.0", "1.4.0"}


def test_a_sealed_candidate_and_what_is_protected_stay_under_any_quota(market: Market, device: Device) -> None:
    sealed = install(market, device, *VERSIONS[:4])
    market.publish("1.4.0", {"extra.bin": os.urandom(MIB)})
    candidate = device.install(market.job(device.directory.root, "1.4.0"))
    device.state().enter("CANARY", candidate.digest)
    part = device.directory.inbox / f"{'a' * 64}.part"
    part.write_bytes(b"x" * MIB)
    protected = sealed["1.0.0"].digest
    removed = collect_bundles(
        device.state(), device.directory, Disk(), keep_previous=9, quota_bytes=1, protected=[protected]
    )
    assert removed == [sealed["1.1.0"].digest]
    assert here(device) == {"1.0.0", "1.2.0", "1.3.0", "1.4.0"}
    assert part.exists()
