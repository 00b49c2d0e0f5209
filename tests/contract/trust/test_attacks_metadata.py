"""Attacks on metadata by a hostile repository or mirror; each fails if its check is removed."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from contract.causes import Cause
from contract.errors import BundleRefused, SourceUnavailable
from contract.reasons import Reason
from contract.trust.signing import SigningKey
from tests.contract.trust.publisher import Change, Device, Publisher
from tests.contract.trust.samples import NOW

TIMESTAMP = "metadata/timestamp.json"


def test_an_honest_repository_is_accepted(publisher: Publisher, device: Device) -> None:
    trusted = device.resolve(publisher.source)
    assert trusted.manifest.reference == "demo@1.0.0"
    assert publisher.files[f"manifests/demo/{trusted.digest}.1.0.0.json"] == trusted.stored


def test_attack_arbitrary_installation_with_foreign_keys(publisher: Publisher, device: Device) -> None:
    stranger = Publisher()
    stranger.publish("demo@6.6.6")
    assert device.refused(stranger.source, "demo@6.6.6") is Reason.SIGNATURE_INVALID


def test_attack_arbitrary_manifest(publisher: Publisher, device: Device) -> None:
    for path in [path for path in publisher.files if path.startswith("manifests/")]:
        publisher.files[path] = publisher.files[path].replace(b"SmolLM", b"EvilLM").replace(b"rtn", b"evl")
    assert device.refused(publisher.source) is Reason.DIGEST_MISMATCH


def test_attack_manifest_of_the_wrong_size(publisher: Publisher, device: Device) -> None:
    for path in [path for path in publisher.files if path.startswith("manifests/")]:
        publisher.files[path] = publisher.files[path][:-1]
    assert device.refused(publisher.source) is Reason.SIZE_MISMATCH


@pytest.mark.parametrize("prefix", ["metadata/timestamp", "metadata/1.snapshot", "metadata/1.targets", "manifests/"])
def test_attack_endless_data_in_every_document(publisher: Publisher, device: Device, prefix: str) -> None:
    (path,) = [path for path in publisher.files if path.startswith(prefix)]
    publisher.files[path] += b" " * 6_000_000
    assert device.refused(publisher.source) is Reason.TOO_LARGE


def test_attack_endless_root(publisher: Publisher, device: Device) -> None:
    publisher.write_root()
    publisher.files["metadata/2.root.json"] += b" " * 6_000_000
    assert device.refused(publisher.source) is Reason.TOO_LARGE


def test_attack_endless_roots_end(publisher: Publisher, device: Device) -> None:
    for _ in range(300):
        publisher.write_root()
    device.resolve(publisher.source)
    assert device.floor.role_versions()["root"] == 257
    device.resolve(publisher.source)
    assert device.floor.role_versions()["root"] == 301


def test_attack_endless_lengths_signed_by_a_stolen_timestamp_key(publisher: Publisher, device: Device) -> None:
    def claim(signed: dict[str, Any]) -> None:
        signed["meta"]["snapshot.json"]["length"] = 10**15

    publisher.write_timestamp(claim)
    publisher.files["metadata/1.snapshot.json"] += b" " * 3_000_000
    assert device.refused(publisher.source) is Reason.TOO_LARGE


def test_attack_metadata_rollback(publisher: Publisher, device: Device) -> None:
    old = dict(publisher.files)
    publisher.publish("demo@1.1.0")
    device.resolve(publisher.source, "demo@1.1.0")
    publisher.files[TIMESTAMP] = old[TIMESTAMP]
    assert device.refused(publisher.source) is Reason.METADATA_ROLLBACK


def test_attack_rollback_of_the_snapshot_version(publisher: Publisher, device: Device) -> None:
    publisher.publish("demo@1.1.0")
    device.resolve(publisher.source, "demo@1.1.0")
    publisher.versions["snapshot"] = 1
    publisher.write_timestamp()
    assert device.refused(publisher.source) is Reason.METADATA_ROLLBACK


def test_attack_rollback_of_targets_by_stolen_online_keys(publisher: Publisher, device: Device) -> None:
    publisher.publish("demo@1.1.0")
    device.resolve(publisher.source, "demo@1.1.0")
    publisher.versions["targets"] = 1
    publisher.write_online()
    assert device.refused(publisher.source) is Reason.METADATA_ROLLBACK


def test_attack_targets_left_out_of_the_snapshot(publisher: Publisher, device: Device) -> None:
    device.resolve(publisher.source)
    publisher.write_snapshot(lambda signed: signed.update(meta={}))
    publisher.write_timestamp()
    assert device.refused(publisher.source) is Reason.METADATA_ROLLBACK


def test_attack_mix_and_match_of_snapshot(publisher: Publisher, device: Device) -> None:
    first = publisher.files["metadata/1.snapshot.json"]
    publisher.publish("demo@1.1.0")
    publisher.files["metadata/2.snapshot.json"] = first
    assert device.refused(publisher.source) is Reason.METADATA_MIXED


def test_attack_mix_and_match_of_targets(publisher: Publisher, device: Device) -> None:
    first = publisher.files["metadata/1.targets.json"]
    publisher.publish("demo@1.1.0")
    publisher.files["metadata/2.targets.json"] = first
    assert device.refused(publisher.source) is Reason.METADATA_MIXED


def test_attack_mix_without_hashes(publisher: Publisher, device: Device) -> None:
    first = publisher.files["metadata/1.targets.json"]
    publisher.publish("demo@1.1.0")
    publisher.files["metadata/2.targets.json"] = first

    def forget(signed: dict[str, Any]) -> None:
        signed["meta"]["targets.json"] = {"version": 2}

    publisher.write_snapshot(forget)
    publisher.write_timestamp()
    assert device.refused(publisher.source) is Reason.METADATA_MIXED


def test_attack_one_role_in_place_of_another(publisher: Publisher, device: Device) -> None:
    publisher.files[TIMESTAMP] = publisher.files["metadata/1.snapshot.json"]
    assert device.refused(publisher.source) is Reason.METADATA_INVALID


def test_attack_freeze(publisher: Publisher, device: Device) -> None:
    device.now = NOW + timedelta(days=6, hours=23)
    device.resolve(publisher.source)
    device.now = NOW + timedelta(days=7)
    assert device.refused(publisher.source) is Reason.EXPIRED


def test_attack_freeze_of_the_snapshot(publisher: Publisher, device: Device) -> None:
    publisher.now += timedelta(days=25)
    publisher.write_timestamp()
    device.now = NOW + timedelta(days=30)
    assert device.refused(publisher.source) is Reason.EXPIRED


@pytest.mark.parametrize("role", ["root", "targets"])
def test_attack_expired_root_and_targets_are_never_forgiven(tmp_path: Path, role: str) -> None:
    publisher = Publisher()
    soon = (NOW + timedelta(days=2)).strftime("%Y-%m-%dT%H:%M:%SZ")

    def hurry(signed: dict[str, Any]) -> None:
        signed["expires"] = soon

    publisher.add("demo@1.0.0")
    if role == "root":
        publisher.write_root(hurry)
    publisher.write_targets(hurry if role == "targets" else lambda signed: None)
    publisher.write_online()
    device = Device(tmp_path / "trust", publisher.files["metadata/1.root.json"])
    tar = publisher.tar(tmp_path / "t.edgebundle")
    device.now = NOW + timedelta(days=1)
    device.resolve(tar)
    device.now = NOW + timedelta(days=3)
    assert device.refused(tar) is Reason.EXPIRED
    assert device.refused(publisher.source) is Reason.EXPIRED


def test_attack_key_compromise_below_the_threshold(tmp_path: Path) -> None:
    publisher = Publisher()
    stolen = publisher.keys["targets"][0]
    publisher.keys["targets"].append(SigningKey.generate())
    publisher.thresholds["targets"] = 2
    publisher.write_root()
    publisher.publish()
    device = Device(tmp_path / "trust", publisher.root)
    device.resolve(publisher.source)
    publisher.add("demo@6.6.6")
    publisher.write_targets(keys=[stolen])
    publisher.write_online()
    assert device.refused(publisher.source, "demo@6.6.6") is Reason.THRESHOLD_NOT_MET


def test_attack_one_key_counted_twice_by_two_signatures(tmp_path: Path) -> None:
    publisher = Publisher()
    stolen = publisher.keys["targets"][0]
    publisher.keys["targets"].append(SigningKey.generate())
    publisher.thresholds["targets"] = 2
    publisher.write_root()
    device = Device(tmp_path / "trust", publisher.root)
    publisher.add("demo@1.0.0")
    publisher.write_targets(keys=[stolen, stolen])
    publisher.write_online()
    assert device.refused(publisher.source) is Reason.METADATA_INVALID


def test_attack_one_key_counted_twice_under_two_names(tmp_path: Path) -> None:
    publisher = Publisher()

    def twin(signed: dict[str, Any]) -> None:
        key = publisher.keys["targets"][0]
        signed["keys"]["twin"] = signed["keys"][key.keyid]
        signed["roles"]["targets"] = {"keyids": [key.keyid, "twin"], "threshold": 2}

    publisher.write_root(twin)
    with pytest.raises(BundleRefused) as caught:
        Device(tmp_path / "trust", publisher.root)
    assert caught.value.reason is Reason.KEY_REFUSED


def test_attack_new_root_signed_only_by_new_keys(publisher: Publisher, device: Device) -> None:
    publisher.keys["root"] = [SigningKey.generate()]
    publisher.write_root()
    assert device.refused(publisher.source) is Reason.SIGNATURE_INVALID


def test_attack_new_root_signed_only_by_old_keys(publisher: Publisher, device: Device) -> None:
    old = publisher.keys["root"]
    publisher.keys["root"] = [SigningKey.generate()]
    publisher.write_root(keys=old)
    assert device.refused(publisher.source) is Reason.SIGNATURE_INVALID


def test_attack_a_root_skipped_or_repeated(publisher: Publisher, device: Device) -> None:
    publisher.write_root()
    publisher.write_root()
    skipped = publisher.source
    skipped.files["metadata/2.root.json"] = skipped.files.pop("metadata/3.root.json")
    assert device.refused(skipped) in (Reason.METADATA_MIXED, Reason.METADATA_ROLLBACK)
    repeated = publisher.source
    repeated.files["metadata/2.root.json"] = repeated.files["metadata/1.root.json"]
    assert device.refused(repeated) in (Reason.METADATA_MIXED, Reason.METADATA_ROLLBACK)


def test_attack_revoked_timestamp_key_is_used_again(publisher: Publisher, device: Device) -> None:
    stolen = publisher.keys["timestamp"]
    publisher.keys["timestamp"] = [SigningKey.generate()]
    publisher.write_root()
    publisher.write_timestamp()
    device.resolve(publisher.source)
    publisher.write_timestamp(keys=stolen)
    assert device.refused(publisher.source) is Reason.SIGNATURE_INVALID
    del publisher.files["metadata/2.root.json"]
    assert device.refused(publisher.source) is Reason.SIGNATURE_INVALID


def test_a_newer_root_is_kept_even_when_the_rest_of_the_refresh_fails(publisher: Publisher, device: Device) -> None:
    old = dict(publisher.files)
    publisher.keys["timestamp"] = [SigningKey.generate()]
    publisher.write_root()
    assert device.refused(publisher.source) is Reason.SIGNATURE_INVALID
    publisher.files = old
    assert device.refused(publisher.source) is Reason.SIGNATURE_INVALID, "the revoked key was accepted again"


def test_attack_fast_forward_is_undone_by_rotating_the_keys(publisher: Publisher, device: Device) -> None:
    publisher.versions["timestamp"] = publisher.versions["snapshot"] = 9_999_999_998
    publisher.write_online()
    device.resolve(publisher.source)
    publisher.versions["timestamp"] = publisher.versions["snapshot"] = 1
    publisher.write_online()
    assert device.refused(publisher.source) is Reason.METADATA_ROLLBACK
    publisher.keys["timestamp"] = [SigningKey.generate()]
    publisher.keys["snapshot"] = [SigningKey.generate()]
    publisher.write_root()
    publisher.write_online()
    device.resolve(publisher.source)
    device.resolve(publisher.source)


def test_attack_fast_forward_beyond_what_any_reader_holds(publisher: Publisher, device: Device) -> None:
    publisher.versions["timestamp"] = 2**63
    publisher.write_timestamp()
    assert device.refused(publisher.source) is Reason.NUMBER_RANGE


def test_attack_missing_digest_is_not_unchecked(publisher: Publisher, device: Device) -> None:
    for hashes in ({}, {"sha512": "0" * 128}, {"md5": "0" * 32}, {"sha256": ""}, {"sha256": "0" * 40}):
        publisher.targets["manifests/demo/1.0.0.json"]["hashes"] = hashes
        publisher.write_targets()
        publisher.write_online()
        assert device.refused(publisher.source) in (Reason.METADATA_INVALID, Reason.SCHEMA_INVALID), hashes


def test_attack_unlisted_bundle(publisher: Publisher, device: Device) -> None:
    assert device.refused(publisher.source, "demo@2.0.0") is Reason.NOT_LISTED
    assert device.refused(publisher.source, "other@1.0.0") is Reason.NOT_LISTED


def test_attack_revoked_bundle(publisher: Publisher, device: Device) -> None:
    device.resolve(publisher.source)

    def revoke(signed: dict[str, Any]) -> None:
        signed["x-edge-revoked"] = ["demo@1.0.0"]

    publisher.write_targets(revoke)
    publisher.write_online()
    assert device.refused(publisher.source) is Reason.REVOKED


def test_attack_manifest_that_names_another_bundle(publisher: Publisher, device: Device) -> None:
    (stored,) = [data for path, data in publisher.files.items() if path.startswith("manifests/")]
    publisher.add("demo@9.0.0", stored=stored)
    publisher.write_targets()
    publisher.write_online()
    assert device.refused(publisher.source, "demo@9.0.0") is Reason.METADATA_MIXED


def test_attack_delegation_is_refused(publisher: Publisher, device: Device) -> None:
    role = {"name": "../../x", "keyids": [], "threshold": 1, "terminating": False, "paths": ["*"]}
    publisher.write_targets(lambda signed: signed.update(delegations={"keys": {}, "roles": [role]}))
    publisher.write_online()
    assert device.refused(publisher.source) is Reason.METADATA_INVALID


@pytest.mark.parametrize("name", ["../x", "a/b", "/etc", "con", "A", "", "x" * 65, "a..b", "a\0b", "a\nb"])
def test_attack_names_are_refused_before_anything_is_fetched(publisher: Publisher, device: Device, name: str) -> None:
    source = publisher.source
    with pytest.raises(BundleRefused) as caught:
        device.resolve(source, f"{name}@1.0.0")
    assert caught.value.reason is Reason.UNSAFE_NAME
    assert source.asked == []


@pytest.mark.parametrize("path", ["metadata/timestamp.json", "metadata/1.snapshot.json", "metadata/1.targets.json"])
def test_an_incomplete_mirror_is_worth_another_try(publisher: Publisher, device: Device, path: str) -> None:
    source = publisher.source
    del source.files[path]
    with pytest.raises(SourceUnavailable):
        device.resolve(source)


def _nested(signed: dict[str, Any]) -> None:
    deep: Any = 1
    for _ in range(40):
        deep = [deep]
    signed["x"] = deep


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda signed: signed.update(version=-1), Reason.METADATA_INVALID),
        (lambda signed: signed.update(version=True), Reason.METADATA_INVALID),
        (lambda signed: signed.update(version="2"), Reason.METADATA_INVALID),
        (lambda signed: signed.update(x=2**64), Reason.NUMBER_RANGE),
        (_nested, Reason.TOO_DEEP),
        (lambda signed: signed.update(spec_version="2.0.0"), Reason.METADATA_INVALID),
        (lambda signed: signed.update(expires="soon"), Reason.METADATA_INVALID),
        (lambda signed: signed.update(meta={}), Reason.METADATA_INVALID),
        (lambda signed: signed["meta"]["snapshot.json"].update(length=-5), Reason.METADATA_INVALID),
        (lambda signed: signed["meta"]["snapshot.json"].update(hashes={"crc32": "0"}), Reason.METADATA_MIXED),
    ],
)  # fmt: skip
def test_attack_properly_signed_nonsense(publisher: Publisher, device: Device, change: Change, reason: Reason) -> None:
    publisher.write_timestamp(change)
    assert device.refused(publisher.source) is reason


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda text: text.replace('"version":1', '"version":1,"version":1', 1), Reason.DUPLICATE_KEY),
        (lambda text: text.replace('"signed":{', '"signed":{"x":NaN,', 1), Reason.NOT_FINITE),
        (lambda text: text.replace('"signed":{', '"signed":{"x":-Infinity,', 1), Reason.NOT_FINITE),
        (lambda text: text.replace('"signed":{', '"signed":{"x":1e999,', 1), Reason.NOT_FINITE),
        (lambda text: text.replace('"signed":{', '"signed":{"x":' + "9" * 5000 + ",", 1), Reason.NUMBER_RANGE),
        (lambda text: "[" * 10_000, Reason.TOO_DEEP),
        (lambda text: "[" * 10_000_000, Reason.TOO_LARGE),
        (lambda text: text + "\udcff", Reason.NOT_UTF8),
        (lambda text: text + "x", Reason.NOT_JSON),
        (lambda text: "", Reason.NOT_JSON),
        (lambda text: "[]", Reason.METADATA_INVALID),
        (lambda text: "{}", Reason.METADATA_INVALID),
        (lambda text: '{"signed":{},"signatures":[]}', Reason.METADATA_INVALID),
    ],
)  # fmt: skip
def test_attack_json_that_two_readers_read_differently(
    publisher: Publisher, device: Device, damage: Any, reason: Reason
) -> None:
    for path in (TIMESTAMP, "metadata/1.snapshot.json", "metadata/1.targets.json"):
        source = publisher.source
        source.files[path] = damage(source.files[path].decode()).encode("utf-8", "surrogateescape")
        expected = reason
        if path != TIMESTAMP and len(source.files[path]) > len(publisher.files[path]):
            expected = Reason.TOO_LARGE  # the exact length is signed
        assert device.refused(source) is expected, path


def test_attack_signature_tampering(publisher: Publisher, device: Device) -> None:
    def with_signature(text: str) -> Reason:
        document = json.loads(publisher.files[TIMESTAMP])
        document["signatures"][0]["sig"] = text
        source = publisher.source
        source.files[TIMESTAMP] = json.dumps(document).encode()
        return device.refused(source)

    good: str = json.loads(publisher.files[TIMESTAMP])["signatures"][0]["sig"]
    order = 2**252 + 27742317777372353535851937790883648493
    doubled = int.from_bytes(bytes.fromhex(good)[32:], "little") + order
    for bad in (
        good[:-2],
        good + "00",
        "",
        good.upper(),
        "zz" * 64,
        "00" * 64,
        good[:64] + doubled.to_bytes(32, "little").hex(),
        good[:64] + "ff" * 32,
    ):
        assert with_signature(bad) is Reason.SIGNATURE_INVALID
    device.resolve(publisher.source)


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        (b"<html>", Reason.NOT_JSON),
        (b'{"a": 1, "a": 2}', Reason.DUPLICATE_KEY),
        (b'{"schema": "edge-bundle/1"}', Reason.SCHEMA_INVALID),
    ],
)
def test_a_signed_manifest_that_is_refused_is_refused_for_good(
    publisher: Publisher, device: Device, stored: bytes, reason: Reason
) -> None:
    """The same bytes that nobody signed may be a captive portal's, and come right another time."""
    publisher.add("demo@9.0.0", stored=stored)
    publisher.write_targets()
    publisher.write_online()
    with pytest.raises(BundleRefused) as caught:
        device.resolve(publisher.source, "demo@9.0.0")
    assert (caught.value.reason, caught.value.cause) == (reason, Cause.SIGNED)
    publisher.files["metadata/timestamp.json"] = stored
    with pytest.raises(BundleRefused) as caught:
        device.resolve(publisher.source, "demo@9.0.0")
    assert caught.value.cause is Cause.DELIVERY
