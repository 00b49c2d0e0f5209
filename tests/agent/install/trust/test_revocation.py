"""Bundles revoked, and metadata expired, while they are installed: noticed, reported, kept or replaced."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agent.install.settings import InstallSettings
from agent.install.trust import refresh as trust_refresh
from agent.state import audit
from agent.state.warnings import Warned
from contract.bundle.verifier import find_faults
from contract.errors import BundleRefused, EdgeBundleError
from contract.mqtt.reports import Reported
from contract.reasons import Reason
from tests.agent.install.market import Device, Market
from tests.agent.install.stage import Stage, desired
from tests.agent.install.test_reconciler import active, stage_for

SOON = 0.05


def warns(reason: Reason) -> Any:
    def holds(reported: Reported) -> bool:
        return any(each.reason == reason for each in reported.warnings or [])

    return holds


async def settle(stage: Stage, market: Market, *versions: str) -> None:
    """Publish and install ``versions``, one after the other."""
    async with stage.agent() as reconciler:
        for version in versions:
            market.publish(version, {"README.md": version.encode()}, security_epoch=1)
            reconciler.set_desired(desired(version))
            await stage.until(active(version))
    stage.restart()


async def test_a_revoked_bundle_is_reported_and_serves_on_where_policy_keeps_it(market: Market, device: Device) -> None:
    stage = stage_for(market, device)
    await settle(stage, market, "1.0.0", "1.1.0")
    market.repository.revoke("tiny@1.1.0")
    stage.settings = InstallSettings(trust_refresh_seconds=SOON, on_revoked="keep")
    installs, refreshed = stage.installer, asyncio.Semaphore(0)

    async def install(job: Any, on_line: Any) -> None:
        refreshed.release()
        await installs(job, on_line)

    stage.installer = install
    async with stage.agent():
        reported = await stage.until(warns(Reason.REVOKED))
        while not refreshed.locked():
            await refreshed.acquire()
        for _ in range(2):
            # Whatever is done about the warning is done before trust is refreshed again.
            await refreshed.acquire()
    assert reported.active is not None
    assert reported.active.version == "1.1.0"
    assert stage.serving.swaps == [("1.1.0", "drain")]
    told = [detail for kind, detail in stage.events if kind == "refused"]
    assert [(detail["bundle"], detail["reason"]) for detail in told] == [("tiny@1.1.0", Reason.REVOKED)]
    warned = [entry for entry in device.audit() if entry.decision == "warned"]
    assert [(entry.bundle, entry.reason) for entry in warned] == [("tiny@1.1.0", "revoked")]


async def test_what_was_revoked_is_still_known_after_a_restart(market: Market, device: Device) -> None:
    stage = stage_for(market, device)
    await settle(stage, market, "1.0.0")
    market.repository.revoke("tiny@1.0.0")
    device.refresh(market.job(device.directory.root, "1.0.0"))
    async with stage.agent():
        await stage.until(warns(Reason.REVOKED))
    assert [kind for kind, _ in stage.events] == [], "an event is for news"


@pytest.mark.parametrize("by", ["configuration", "desired"])
async def test_a_revoked_bundle_is_replaced_by_the_one_before_it(market: Market, device: Device, by: str) -> None:
    stage = stage_for(market, device)
    await settle(stage, market, "1.0.0", "1.1.0")
    market.repository.revoke("tiny@1.1.0")
    stage.settings = InstallSettings(
        probation_seconds=0, trust_refresh_seconds=SOON, on_revoked="replace" if by == "configuration" else "keep"
    )
    async with stage.agent() as reconciler:
        if by == "desired":
            reconciler.set_desired(desired("1.1.0", policy={"on_revoked": "replace"}))
        reported = await stage.until(active("1.0.0"))
        reported = await stage.until(lambda each: active("1.0.0")(each) and each.error is not None)
        assert reported.error is not None
        assert reported.error.reason == Reason.REVOKED
        assert stage.serving.bundle is not None
        assert stage.serving.bundle.manifest.version == "1.0.0"
    assert "CANARY" in stage.phases, "the way back is tried like any other"
    rollback = next(detail for kind, detail in stage.events if kind == "rollback")
    assert (rollback["from"], rollback["to"], rollback["reason"]) == ("tiny@1.1.0", "tiny@1.0.0", Reason.REVOKED)
    assert "replaced" in [entry.decision for entry in device.audit()]


@pytest.mark.parametrize("why", ["alone", "all revoked", "lower epoch"])
async def test_with_nothing_acceptable_to_go_back_to_nothing_is_served(
    market: Market, device: Device, why: str
) -> None:
    stage = stage_for(market, device)
    versions = ["1.1.0"] if why == "alone" else ["1.0.0", "1.1.0"]
    await settle(stage, market, *versions)
    market.repository.revoke("tiny@1.1.0")
    if why == "all revoked":
        market.repository.revoke("tiny@1.0.0")
    if why == "lower epoch":
        with device.state()._database.transaction("test") as connection:
            connection.execute("UPDATE installation SET epoch = 7")
    stage.settings = InstallSettings(trust_refresh_seconds=SOON, on_revoked="replace")
    async with stage.agent():
        reported = await stage.until(lambda each: each.active is None and each.error is not None)
        assert stage.serving.bundle is None
    assert reported.error is not None
    assert reported.error.reason == Reason.REVOKED
    stage.restart()
    async with stage.agent():
        assert stage.serving.bundle is None, "also after a restart"


async def test_a_damaged_bundle_does_not_fall_back_to_a_revoked_one(market: Market, device: Device) -> None:
    stage = stage_for(market, device)
    await settle(stage, market, "1.0.0", "1.1.0")
    market.repository.revoke("tiny@1.0.0")
    device.refresh(market.job(device.directory.root, "1.0.0"))
    current = device.state().snapshot().active
    assert current is not None
    victim = device.directory.bundle(current) / "tokenizer.json"
    victim.parent.chmod(0o755)
    victim.unlink()  # the bundle before it has the same file under another name, and must stay whole
    victim.write_bytes(b"?")
    stage.sources = {}
    async with stage.agent():
        assert stage.serving.swaps == []


@pytest.mark.parametrize("days", [10, 400])  # the timestamp only; everything, root included
async def test_expired_metadata_is_reported_and_stops_installing_not_serving(
    market: Market, device: Device, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    stage = stage_for(market, device)
    await settle(stage, market, "1.0.0")
    market.publish("1.1.0", {"README.md": b"1.1.0"}, security_epoch=1)
    ahead = timedelta(days=days)
    monkeypatch.setattr(trust_refresh, "now", lambda: datetime.now(UTC) + ahead)
    monkeypatch.setattr(trust_refresh, "kernel_clock_synchronised", lambda: False)
    stage.settings = InstallSettings(probation_seconds=0, trust_refresh_seconds=SOON)
    async with stage.agent() as reconciler:
        await stage.until(warns(Reason.EXPIRED))
        reconciler.set_desired(desired("1.1.0"))
        await stage.until(lambda each: each.error is not None and each.error.reason == Reason.EXPIRED)
        assert stage.serving.bundle is not None
        assert stage.serving.bundle.manifest.version == "1.0.0"
        # The clock is right again: what it did leaves no trace.
        ahead = timedelta()
        await stage.until(lambda each: each.phase == "IDLE" and not each.warnings and each is stage.reported[-1])
        reconciler.set_desired(desired("1.1.0", "again"))
        await stage.until(active("1.1.0"))


def test_expiry_is_noticed_without_a_source(market: Market, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    market.publish("1.0.0")
    job = market.job(device.directory.root, "1.0.0")
    device.install(job)
    (market.root / "repository").rename(market.root / "away")
    monkeypatch.setattr(trust_refresh, "now", lambda: datetime.now(UTC) + timedelta(days=200))
    with pytest.raises(EdgeBundleError):
        device.refresh(job)
    [warned] = device.state().warning_store.warnings()
    assert (warned.reason, warned.digest) == (Reason.EXPIRED, None)
    assert "targets" in warned.message


def test_a_clock_at_1970_installs_and_makes_nothing_expired_valid(
    market: Market, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    market.publish("1.0.0")
    monkeypatch.setattr(trust_refresh, "now", lambda: datetime(1970, 1, 1, tzinfo=UTC))
    device.install(market.job(device.directory.root, "1.0.0"))
    assert device.state().clock_floor() > datetime(2026, 1, 1, tzinfo=UTC).timestamp()


async def test_lost_trust_is_reported_and_mended_by_provisioning_again(market: Market, device: Device) -> None:
    stage = stage_for(market, device)
    await settle(stage, market, "1.0.0")
    (device.directory.trust / "trusted.json").write_bytes(b"")
    stage.settings = InstallSettings(probation_seconds=0, trust_refresh_seconds=SOON)
    async with stage.agent():
        reported = await stage.until(warns(Reason.TRUST_STATE_LOST))
        assert reported.active is not None
        assert stage.serving.bundle is not None, "it serves on"
        from contract.system.durable import Disk
        from contract.trust.store import TrustStore

        TrustStore(device.directory.trust, Disk()).reprovision(market.root_json.read_bytes(), device.state())
        await stage.until(lambda each: each is stage.reported[-1] and not each.warnings)


def test_every_decision_of_the_installer_is_written_down(market: Market, device: Device) -> None:
    market.publish("1.0.0", security_epoch=3)
    sealed = device.install(market.job(device.directory.root, "1.0.0"))
    with pytest.raises(BundleRefused):
        device.install(market.job(device.directory.root, "9.9.9"))
    provisioned, accepted, refused = device.audit()
    assert (provisioned.by, provisioned.decision) == ("operator", "provisioned")
    assert (accepted.by, accepted.decision, accepted.digest, accepted.security_epoch) == (
        "installer",
        "accepted",
        sealed.digest,
        3,
    )
    assert (refused.decision, refused.bundle, refused.reason) == ("refused", "tiny@9.9.9", "not_listed")


async def test_every_decision_of_the_agent_is_written_down(market: Market, device: Device) -> None:
    stage = stage_for(market, device)
    market.publish("1.0.0")
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.0.0", source="elsewhere"))
        await stage.until(lambda each: each.error is not None)
        reconciler.set_desired(desired("1.0.0"))
        await stage.until(active("1.0.0"))
        stage.workers.drift = 9.0
        market.publish("1.1.0", {"README.md": b"1.1.0"})
        reconciler.set_desired(desired("1.1.0"))
        await stage.until(lambda each: each.error is not None and each.error.reason == Reason.CANARY_DRIFT)
    by_agent = [(entry.decision, entry.reason) for entry in device.audit() if entry.by == "agent"]
    assert by_agent == [
        ("refused", "source_not_configured"),
        ("committed", None),
        ("refused", "canary_drift"),
        ("rolled_back", "canary_drift"),
    ]


async def test_a_flood_of_bad_documents_does_not_wash_the_log_out(
    market: Market, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "AUDITED_REFUSALS", 2)
    stage = stage_for(market, device)
    market.publish("1.0.0")
    async with stage.agent() as reconciler:
        for number in range(4):
            # Half of them are turned away by the agent, half by the installer.
            elsewhere = {"source": "elsewhere"} if number % 2 else {}
            reconciler.set_desired(desired("9.9.9", f"flood-{number}", **elsewhere))
            await stage.until(
                lambda each, wanted=f"flood-{number}": (
                    each.revision == wanted and each.phase == "IDLE" and each.error is not None
                )
            )
        reconciler.set_desired(desired("1.0.0"))
        await stage.until(active("1.0.0"))
    refused = [entry for entry in device.audit() if entry.decision == "refused"]
    assert [entry.reason for entry in refused] == ["not_listed", "source_not_configured"], "the ration is two"
    assert [entry.decision for entry in device.audit()][-1] == "committed"


async def test_flapping_between_good_bundles_does_not_wash_the_log_out(
    market: Market, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "AUDITED_REFUSALS", 2)
    stage = stage_for(market, device)
    stage.settings = InstallSettings(probation_seconds=0, swaps_per_hour=1)
    market.publish("1.0.0")
    market.publish("1.1.0", {"README.md": b"1.1.0"})
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.0.0"))
        await stage.until(active("1.0.0"))
        for number in range(4):
            reconciler.set_desired(desired("1.1.0", f"flap-{number}"))
            await stage.until(
                lambda each, wanted=f"flap-{number}": (
                    each.revision == wanted and each.error is not None and each.error.reason == Reason.SWAP_LIMIT
                )
            )
    accepted = [entry.bundle for entry in device.audit() if entry.decision == "accepted"]
    assert accepted == ["tiny@1.0.0", "tiny@1.1.0"], "each once, though the installer ran five times"


def test_warnings_are_news_once(device: Device) -> None:
    standing = device.state().warning_store
    first = Warned(Reason.EXPIRED, None, "expired")
    assert standing.replace([first]) == [first]
    assert standing.replace([first]) == []
    assert standing.replace([]) == []
    assert standing.warnings() == []
    assert standing.replace([first]) == [first]


# Bytes that change on this disk.


async def test_attack_a_byte_of_the_active_bundle_changed_while_it_serves(market: Market, device: Device) -> None:
    stage = stage_for(market, device)
    market.publish("1.0.0")
    stage.settings = InstallSettings(probation_seconds=0, trust_refresh_seconds=SOON)
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.0.0"))
        reported = await stage.until(active("1.0.0"))
        assert reported.active is not None
        victim = device.directory.bundle(reported.active.digest) / "model.onnx.data"
        original = victim.read_bytes()
        victim.chmod(0o644)
        with victim.open("r+b") as file:
            file.seek(len(original) // 2)
            file.write(bytes([original[len(original) // 2] ^ 1]))
        await stage.until(warns(Reason.DIGEST_MISMATCH))
        assert stage.serving.bundle is not None, "it serves on meanwhile"
        await stage.until(lambda each: each is stage.reported[-1] and not each.warnings and each.phase == "IDLE")
    assert victim.read_bytes() == original, "obtained again"
    assert [version for version, _ in stage.serving.swaps] == ["1.0.0", "1.0.0"]
    assert stage.reported[-1].revision == "r1.0.0"
    told = [detail["reason"] for kind, detail in stage.events if kind == "refused"]
    assert told == [Reason.DIGEST_MISMATCH]
    assert [entry.reason for entry in device.audit() if entry.decision == "warned"] == ["digest_mismatch"]


async def test_damage_that_cannot_be_mended_is_reported_and_serves_on(market: Market, device: Device) -> None:
    stage = stage_for(market, device)
    await settle(stage, market, "1.0.0")
    market.repository.revoke("tiny@1.0.0")
    stage.settings = InstallSettings(probation_seconds=0, trust_refresh_seconds=SOON)
    async with stage.agent():
        current = device.state().snapshot().active
        assert current is not None
        victim = device.directory.bundle(current) / "tokenizer.json"
        victim.chmod(0o644)
        victim.write_bytes(b"?")
        await stage.until(lambda each: warns(Reason.SIZE_MISMATCH)(each) and each.error is not None)
        assert stage.serving.bundle is not None


@pytest.mark.parametrize("when", ["before the canary", "after it"])
async def test_attack_a_file_swapped_between_verification_and_use(market: Market, device: Device, when: str) -> None:
    stage = stage_for(market, device)
    market.publish("1.0.0")
    installs, loads = stage.installer, stage.workers
    swapped: list[str] = []

    def swap() -> None:
        if swapped:
            return
        (place,) = device.directory.bundles.iterdir()
        place.chmod(0o755)
        other = place.parent.parent / "evil.json"
        other.write_bytes((place / "tokenizer.json").read_bytes())
        if when == "before the canary":
            other.write_bytes(b"?" * other.stat().st_size)
        other.rename(place / "tokenizer.json")
        place.chmod(0o555)
        swapped.append(str(place))

    async def install(job: Any, on_line: Any) -> None:
        await installs(job, on_line)
        if when == "before the canary":
            swap()

    async def load(*words: Any, **more: Any) -> Any:
        worker = await loads(*words, **more)
        if when == "after it":
            swap()
        return worker

    stage.installer, stage.workers = install, load
    stage.settings = InstallSettings(probation_seconds=0, retry_first_seconds=0.05)
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.0.0"))
        await stage.until(lambda each: each.error is not None and each.error.reason == Reason.DIGEST_MISMATCH)
        assert stage.serving.bundle is None, "nothing was served that nobody verified"
        await stage.until(active("1.0.0"))
    sealed = stage.serving.bundle
    assert sealed is not None
    assert list(find_faults(sealed.directory, sealed.manifest)) == []
    assert len(loads.started) == (1 if when == "before the canary" else 2)


async def test_attack_a_file_swapped_while_the_new_model_loads(market: Market, device: Device) -> None:
    stage = stage_for(market, device)
    await settle(stage, market, "1.0.0")
    market.publish("1.1.0", {"README.md": b"1.1.0"}, security_epoch=1)
    swaps = stage.serving.swap

    async def swap(bundle: Any, mode: Any) -> Any:
        report = await swaps(bundle, mode)
        if bundle.manifest.version == "1.1.0":
            victim = bundle.directory / "README.md"
            victim.chmod(0o644)
            victim.write_bytes(b"9.9.9")
        return report

    stage.serving.swap = swap  # type: ignore[method-assign]
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.1.0"))
        await stage.until(lambda each: each.error is not None and each.error.reason == Reason.DIGEST_MISMATCH)
        reported = await stage.until(lambda each: each is stage.reported[-1] and each.phase == "IDLE")
    assert reported.active is not None
    assert reported.active.version == "1.0.0"
    assert [version for version, _ in stage.serving.swaps][-1] == "1.0.0"
    rolled_back = [entry for entry in device.audit() if entry.decision == "rolled_back"]
    assert [(entry.bundle, entry.reason) for entry in rolled_back] == [("tiny@1.0.0", "digest_mismatch")]
