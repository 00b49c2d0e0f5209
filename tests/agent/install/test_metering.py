"""What the coordinator counts for those who watch a fleet: installations, failures and rollbacks by reason, expiry."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

from agent.install.desired import Rollback
from agent.install.process.installer import run_job
from agent.install.process.messages import Job, Line
from agent.install.settings import InstallSettings
from contract.errors import SourceUnavailable
from contract.reasons import Reason
from contract.system.durable import Disk
from tests.agent.install.market import Device, Market
from tests.agent.install.stage import desired
from tests.agent.install.test_reconciler import active, failed, spoil, stage_for


async def test_installations_and_rollbacks_are_counted_by_reason(market: Market, device: Device) -> None:
    market.publish("1.0.0")
    market.publish("1.1.0", {"README.md": b"bad"})
    stage = stage_for(market, device)
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.0.0"))
        await stage.until(active("1.0.0"))
        assert (reconciler.meter.installs, reconciler.meter.failures, reconciler.meter.rollbacks) == (1, {}, {})
        spoil(stage, "drift")
        reconciler.set_desired(desired("1.1.0"))
        await stage.until(failed(Reason.CANARY_DRIFT))
        reconciler.set_desired(desired("1.1.0", "once more"))
        await stage.until(failed(Reason.QUARANTINED))
        reconciler.set_desired(b'{"revision": 7}')
        await stage.until(failed(Reason.DESIRED_INVALID))
        assert reconciler.meter.installs == 1
        assert reconciler.meter.failures == {"canary_drift": 1, "quarantined": 1, "desired_invalid": 1}
        assert reconciler.meter.rollbacks == {"canary_drift": 1}


async def test_every_try_that_failed_is_counted(market: Market, device: Device) -> None:
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
        await stage.until(active("1.0.0"))
        assert reconciler.meter.retries == {"source_unavailable": 2}
        assert reconciler.meter.failures == {}
        assert reconciler.meter.installs == 1


async def test_a_revoked_bundle_that_is_replaced_counts_as_rolled_back(market: Market, device: Device) -> None:
    market.publish("1.0.0")
    market.publish("1.1.0", {"README.md": b"1.1.0"})
    stage = stage_for(market, device)
    async with stage.agent() as reconciler:
        for version in ("1.0.0", "1.1.0"):
            reconciler.set_desired(desired(version))
            await stage.until(active(version))
        assert not reconciler.revoked
    market.repository.revoke("tiny@1.1.0")
    stage.restart()
    stage.settings = InstallSettings(probation_seconds=0, trust_refresh_seconds=3600, on_revoked="keep")
    device.refresh(market.job(device.directory.root, "1.1.0"))
    async with stage.agent() as reconciler:
        assert reconciler.revoked
        reconciler.set_desired(desired("1.1.0", policy={"on_revoked": "replace"}))
        await stage.until(lambda each: active("1.0.0")(each) and each.error is not None)
        assert reconciler.meter.rollbacks == {"revoked": 1}
        assert not reconciler.revoked


def expiry_of(market: Market, role: str) -> int:
    metadata = market.root / "repository" / "metadata"
    file = max(metadata.glob(f"*{role}.json"), key=lambda path: path.stat().st_mtime_ns)
    expires = json.loads(file.read_bytes())["signed"]["expires"]
    return int(datetime.fromisoformat(expires).timestamp())


def test_expiry_of_every_role_is_known_after_a_refresh_and_moves_with_it(market: Market, device: Device) -> None:
    market.publish("1.0.0")
    assert device.state().warning_store.expiry() == {}
    job = market.job(device.directory.root, "1.0.0")
    run_job(job, Disk(), lambda line: None)
    found = device.state().warning_store.expiry()
    assert found == {role: expiry_of(market, role) for role in ("root", "timestamp", "snapshot", "targets")}
    market.publish("1.1.0", {"README.md": b"1.1.0"}, security_epoch=1)
    device.refresh(job)
    assert device.state().warning_store.expiry() == {
        role: expiry_of(market, role) for role in ("root", "timestamp", "snapshot", "targets")
    }


def test_expiry_of_a_role_that_nobody_knows_is_left_out(market: Market, device: Device) -> None:
    state: Any = device.state()
    state.warning_store.note_expiry({"root": 5})
    with state._database.transaction("test") as connection:
        connection.execute("INSERT INTO metadata_expiry VALUES ('made\nup', 7), ('targets', -9223372036854775808)")
    assert state.warning_store.expiry() == {"root": 5, "targets": -(1 << 63)}


async def test_a_rollback_by_hand_is_counted_as_the_operators(market: Market, device: Device) -> None:
    market.publish("1.0.0")
    market.publish("1.1.0", {"README.md": b"1.1.0"})
    stage = stage_for(market, device)
    async with stage.agent() as reconciler:
        for version in ("1.0.0", "1.1.0"):
            reconciler.set_desired(desired(version))
            await stage.until(active(version))
        before = stage.state.bundle(stage.state.snapshot().previous)
        assert before is not None
        target = Rollback("tiny", "1.0.0", stage.settings, digest=before.digest)
        assert (await reconciler.execute(target)).kind == "active"
        assert reconciler.meter.rollbacks == {"operator": 1}
        assert (reconciler.meter.installs, reconciler.meter.failures) == (3, {})
