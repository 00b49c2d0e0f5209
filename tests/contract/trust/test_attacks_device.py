"""Attacks and accidents on the device: its disk, its clock, its power supply, and old sticks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import pytest

from contract.errors import BundleRefused, SourceUnavailable, UsageError
from contract.reasons import Reason
from contract.system.durable import Disk, Effects
from contract.trust.clock import EARLIEST, effective_time
from contract.trust.resolve import listed_digest
from contract.trust.rollback_floor import MemoryRollbackFloor
from contract.trust.signing import SigningKey
from contract.trust.store import FILE, TrustStore
from contract.trust.verified import TrustedManifest
from tests.contract.trust.publisher import Device, Publisher
from tests.contract.trust.samples import NOW

T = TypeVar("T")


# The trust store.


def test_attack_emptied_trust_file_with_an_old_stick(publisher: Publisher, device: Device, tmp_path: Path) -> None:
    stick = publisher.tar(tmp_path / "old.edgebundle")
    publisher.keys["timestamp"] = [SigningKey.generate()]
    publisher.write_root()
    publisher.publish("demo@1.1.0")
    device.resolve(publisher.source, "demo@1.1.0")
    (device.path / FILE).write_bytes(b"")
    assert device.refused(stick) is Reason.TRUST_STATE_LOST
    assert device.refused(publisher.source) is Reason.TRUST_STATE_LOST


@pytest.mark.parametrize("cut", [1, 100, -1])
def test_attack_truncated_trust_file(publisher: Publisher, device: Device, cut: int) -> None:
    device.resolve(publisher.source)
    whole = (device.path / FILE).read_bytes()
    (device.path / FILE).write_bytes(whole[:cut])
    assert device.refused(publisher.source) is Reason.TRUST_STATE_LOST
    (device.path / FILE).write_bytes(whole)
    device.resolve(publisher.source)


def test_attack_missing_trust_file_is_never_rebuilt(publisher: Publisher, device: Device) -> None:
    device.resolve(publisher.source)
    (device.path / FILE).unlink()
    assert device.refused(publisher.source) is Reason.TRUST_STATE_LOST
    with pytest.raises(BundleRefused) as caught:
        device.store.provision(publisher.files["metadata/1.root.json"], device.floor)
    assert caught.value.reason is Reason.TRUST_STATE_LOST
    assert list(device.path.iterdir()) == []


def test_attack_trust_file_of_last_month(publisher: Publisher, device: Device) -> None:
    device.resolve(publisher.source)
    old = (device.path / FILE).read_bytes()
    publisher.publish("demo@1.1.0")
    device.resolve(publisher.source)
    (device.path / FILE).write_bytes(old)
    assert device.refused(publisher.source) is Reason.TRUST_STATE_LOST


def test_attack_one_role_taken_out_of_the_trust_file(publisher: Publisher, device: Device) -> None:
    device.resolve(publisher.source)
    document = json.loads((device.path / FILE).read_text())
    for role in list(document["metadata"]):
        changed = json.loads(json.dumps(document))
        del changed["metadata"][role]
        (device.path / FILE).write_text(json.dumps(changed))
        assert device.refused(publisher.source) is Reason.TRUST_STATE_LOST


def test_reprovisioning_is_explicit(publisher: Publisher, device: Device) -> None:
    device.resolve(publisher.source)
    first = publisher.files["metadata/1.root.json"]
    assert device.store.provision(first, device.floor) == 1, "the same root again changes nothing"
    other = Publisher()
    other.publish("demo@1.0.0", contents=b"other")
    with pytest.raises(UsageError):
        device.store.provision(other.root, device.floor)
    device.store.reprovision(other.root, device.floor)
    device.resolve(other.source)
    assert device.refused(publisher.source) is Reason.SIGNATURE_INVALID


def test_provisioning_accepts_only_a_root_that_holds_by_itself(publisher: Publisher, tmp_path: Path) -> None:
    root = publisher.root
    for bad, reason in (
        (b"", Reason.NOT_JSON),
        (b"{}", Reason.METADATA_INVALID),
        (root.replace(b'"version":1', b'"version":2', 1), Reason.SIGNATURE_INVALID),
        (publisher.files["metadata/timestamp.json"], Reason.METADATA_INVALID),
    ):
        with pytest.raises(BundleRefused) as caught:
            TrustStore(tmp_path / "t").provision(bad, MemoryRollbackFloor())
        assert caught.value.reason is reason
    assert not (tmp_path / "t").exists()


def test_a_device_that_trusts_nobody_says_so(publisher: Publisher, tmp_path: Path) -> None:
    device = Device(tmp_path / "a", publisher.root)
    device.store, device.floor = TrustStore(tmp_path / "b"), MemoryRollbackFloor()
    assert device.refused(publisher.source) is Reason.TRUST_STATE_LOST


class PowerCut(Exception):
    """The end of a process, as far as the code under test can tell."""


class CuttingEffects(Effects):
    """Cuts the power before (even numbers) or after (odd numbers) the n-th half-effect."""

    def __init__(self) -> None:
        self.left = 10**9

    def step(self, action: Callable[[], T]) -> T:
        self._count()
        result = action()
        self._count()
        return result

    def perform(self, kind: str, target: str, action: Callable[[], T]) -> T:
        return self.step(action)

    def _count(self) -> None:
        if self.left == 0:
            raise PowerCut
        self.left -= 1


class CuttingFloor(MemoryRollbackFloor):
    """A floor whose commits are effects too."""

    def __init__(self, effects: CuttingEffects) -> None:
        super().__init__()
        self._effects = effects

    def raise_role_versions(self, versions: Mapping[str, int], /) -> None:
        self._effects.step(lambda: super(CuttingFloor, self).raise_role_versions(versions))

    def reset_role_versions(self) -> None:
        self._effects.step(super().reset_role_versions)

    def raise_clock_floor(self, seconds: int, /) -> None:
        self._effects.step(lambda: super(CuttingFloor, self).raise_clock_floor(seconds))


@pytest.mark.parametrize("operation", ["refresh", "rotation", "provision", "reprovision"])
def test_power_may_be_cut_at_any_instant(tmp_path: Path, operation: str) -> None:
    cuts = 0
    while True:
        publisher = Publisher()
        publisher.publish()
        effects = CuttingEffects()
        device = Device(tmp_path / f"{cuts}", publisher.root)
        floor = CuttingFloor(effects)
        device.floor = floor
        device.store = TrustStore(tmp_path / f"{cuts}" / "trust", Disk(effects))
        other = Publisher()
        other.publish()

        def act(publisher: Publisher = publisher, device: Device = device, other: Publisher = other) -> None:
            if operation == "provision":
                device.store.provision(publisher.files["metadata/1.root.json"], device.floor)
            elif operation == "reprovision":
                device.store.reprovision(other.root, device.floor)
            else:
                device.resolve(publisher.source)

        if operation != "provision":
            device.store.provision(publisher.files["metadata/1.root.json"], floor)
            device.resolve(publisher.source)
        if operation == "rotation":
            publisher.keys["timestamp"] = [SigningKey.generate()]
            publisher.write_root()
        if operation != "provision":
            publisher.publish("demo@1.1.0")
        effects.left = cuts
        try:
            act()
            finished = True
        except PowerCut:
            finished = False
        effects.left = 10**9
        act()
        device.resolve(other.source if operation == "reprovision" else publisher.source)
        if finished:
            break
        cuts += 1
    assert cuts >= 4, "nothing was cut"


def test_a_scratch_left_by_a_power_cut_is_removed(publisher: Publisher, device: Device) -> None:
    left = device.path / "work-abc"
    left.mkdir()
    (left / "timestamp.json").write_bytes(b"half")
    device.resolve(publisher.source)
    assert sorted(entry.name for entry in device.path.iterdir()) == [FILE]


def test_attack_only_resolve_makes_a_trusted_manifest(publisher: Publisher, device: Device) -> None:
    trusted = device.resolve(publisher.source)
    with pytest.raises(TypeError):
        TrustedManifest(object(), trusted.manifest, trusted.stored)
    with pytest.raises(AttributeError):
        trusted.manifest = trusted.manifest  # type: ignore[misc]


def test_what_is_listed_can_be_asked_without_a_source(publisher: Publisher, device: Device) -> None:
    with pytest.raises(BundleRefused) as caught:
        listed_digest(device.store, device.floor, "demo", "1.0.0")
    assert caught.value.reason is Reason.NOT_LISTED
    trusted = device.resolve(publisher.source)
    assert listed_digest(device.store, device.floor, "demo", "1.0.0") == trusted.digest


# Older and newer tars.


def test_an_older_tar_supplies_manifests_that_current_trust_lists(
    publisher: Publisher, device: Device, tmp_path: Path
) -> None:
    stick = publisher.tar(tmp_path / "old.edgebundle")
    publisher.publish("demo@1.1.0")
    device.resolve(publisher.source)
    versions = device.floor.role_versions()
    assert device.resolve(stick, "demo@1.0.0").manifest.version == "1.0.0"
    assert device.floor.role_versions() == versions


def test_attack_older_tar_with_a_bundle_delisted_since(publisher: Publisher, device: Device, tmp_path: Path) -> None:
    stick = publisher.tar(tmp_path / "old.edgebundle")
    del publisher.targets["manifests/demo/1.0.0.json"]
    publisher.publish("demo@1.1.0")
    device.resolve(publisher.source, "demo@1.1.0")
    assert device.refused(stick, "demo@1.0.0") is Reason.NOT_LISTED


def test_attack_older_tar_with_a_bundle_revoked_since(publisher: Publisher, device: Device, tmp_path: Path) -> None:
    stick = publisher.tar(tmp_path / "old.edgebundle")
    publisher.write_targets(lambda signed: signed.update({"x-edge-revoked": ["demo@1.0.0"]}))
    publisher.write_online()
    assert device.refused(publisher.source) is Reason.REVOKED
    assert device.refused(stick) is Reason.REVOKED


def test_an_older_tar_without_the_manifest_says_so(publisher: Publisher, device: Device, tmp_path: Path) -> None:
    stick = publisher.tar(tmp_path / "old.edgebundle")
    publisher.publish("demo@1.1.0")
    device.resolve(publisher.source)
    assert device.refused(stick, "demo@1.1.0") is Reason.FILE_MISSING


def test_an_older_tar_cannot_stand_in_for_what_neither_has(
    publisher: Publisher, device: Device, tmp_path: Path
) -> None:
    stick = publisher.tar(tmp_path / "old.edgebundle")
    publisher.publish("demo@1.1.0")
    device.resolve(publisher.source)
    files = device.store.load(device.floor)
    # A refresh that broke off after the timestamp would leave this; the store never does, so it is made by hand.
    device.store.keep({role: files[role] for role in ("root", "timestamp")}, MemoryRollbackFloor())
    device.floor.reset_role_versions()
    assert device.refused(stick) is Reason.SOURCE_OLDER


def test_a_newer_tar_brings_roots_and_metadata(publisher: Publisher, device: Device, tmp_path: Path) -> None:
    device.resolve(publisher.source)
    for role in ("root", "timestamp", "targets"):
        old = publisher.keys[role]
        publisher.keys[role] = [SigningKey.generate()]
        publisher.write_root(keys=[*publisher.keys["root"], *(old if role == "root" else [])])
    publisher.publish("demo@2.0.0")
    device.resolve(publisher.tar(tmp_path / "new.edgebundle"), "demo@2.0.0")
    assert device.floor.role_versions()["root"] == 4


def test_attack_older_directory_or_server_is_a_rollback(publisher: Publisher, device: Device) -> None:
    old = publisher.source
    publisher.publish("demo@1.1.0")
    device.resolve(publisher.source)
    assert device.refused(old) is Reason.METADATA_ROLLBACK


def test_attack_tar_of_another_publisher(publisher: Publisher, device: Device, tmp_path: Path) -> None:
    stranger = Publisher()
    stranger.publish()
    assert device.refused(stranger.tar(tmp_path / "x.edgebundle")) is Reason.SIGNATURE_INVALID


def test_attack_older_tar_with_a_forged_newer_timestamp(publisher: Publisher, device: Device, tmp_path: Path) -> None:
    device.resolve(publisher.source)
    publisher.versions["timestamp"] = 50
    publisher.write_timestamp(keys=[SigningKey.generate()])
    assert device.refused(publisher.tar(tmp_path / "x.edgebundle")) is Reason.SIGNATURE_INVALID


# Grace and clocks.


def test_grace_covers_timestamp_and_snapshot_of_a_tar_only(
    publisher: Publisher, device: Device, tmp_path: Path
) -> None:
    stick = publisher.tar(tmp_path / "t.edgebundle")
    device.now = NOW + timedelta(days=36, hours=23)
    assert device.refused(publisher.source) is Reason.EXPIRED
    assert device.refused(stick, grace=False) is Reason.EXPIRED
    device.resolve(stick)
    device.now = NOW + timedelta(days=37)
    assert device.refused(stick) is Reason.EXPIRED


def test_expired_trust_and_an_older_tar_is_expired_not_older(
    publisher: Publisher, device: Device, tmp_path: Path
) -> None:
    stick = publisher.tar(tmp_path / "t.edgebundle")
    publisher.publish("demo@1.1.0")
    device.resolve(publisher.source)
    device.now = NOW + timedelta(days=60)
    assert device.refused(stick) is Reason.EXPIRED


def test_attack_clock_at_1970_accepts_nothing_expired(publisher: Publisher, tmp_path: Path) -> None:
    past = Publisher(datetime(2026, 9, 1, tzinfo=UTC))
    past.publish()
    device = Device(tmp_path / "trust", past.root)
    device.now = datetime(1970, 1, 1, tzinfo=UTC)
    assert device.refused(past.source) is Reason.EXPIRED


def test_the_clock_floor_learns_from_what_people_signed(publisher: Publisher, device: Device) -> None:
    later = NOW + timedelta(days=3)
    publisher.write_targets(lambda signed: signed.update({"x-edge-signed": later.strftime("%Y-%m-%dT%H:%M:%SZ")}))
    publisher.write_online()
    device.now = datetime(1970, 1, 1, tzinfo=UTC)
    device.resolve(publisher.source)
    assert device.floor.clock_floor() == int(later.timestamp())


def test_attack_a_stolen_timestamp_key_cannot_move_the_clock(publisher: Publisher, device: Device) -> None:
    publisher.write_timestamp(lambda signed: signed.update({"x-edge-signed": "2099-01-01T00:00:00Z"}))
    device.resolve(publisher.source)
    assert device.floor.clock_floor() < NOW.timestamp()


def test_attack_clock_years_ahead_once_then_right_again(publisher: Publisher, device: Device) -> None:
    device.now = NOW + timedelta(days=4000)
    assert device.refused(publisher.source) is Reason.EXPIRED
    device.now = NOW
    device.resolve(publisher.source)


def test_only_a_synchronised_clock_raises_the_floor() -> None:
    floor = MemoryRollbackFloor()
    ahead = NOW + timedelta(days=4000)
    assert effective_time(lambda: ahead, floor) == ahead
    assert floor.clock_floor() == 0
    assert effective_time(lambda: NOW, floor) == NOW
    assert effective_time(lambda: NOW, floor, lambda: True) == NOW
    assert effective_time(lambda: datetime(1970, 1, 1, tzinfo=UTC), floor) == NOW
    assert effective_time(lambda: datetime(1970, 1, 1, tzinfo=UTC), MemoryRollbackFloor()).timestamp() == EARLIEST


def test_attack_source_that_breaks_off_leaves_trust_as_it_was(publisher: Publisher, device: Device) -> None:
    device.resolve(publisher.source)
    before = (device.path / FILE).read_bytes()
    publisher.publish("demo@1.1.0")
    source = publisher.source
    del source.files["metadata/2.targets.json"]
    with pytest.raises(SourceUnavailable):
        device.resolve(source, "demo@1.1.0")
    assert (device.path / FILE).read_bytes() == before
