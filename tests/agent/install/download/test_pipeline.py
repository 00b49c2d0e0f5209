"""RESOLVE to SEAL with real repositories, trust and disk, in this process."""

from __future__ import annotations

import os
import platform
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from agent.install.process.messages import Progressed, Resolved
from agent.install.update.state_machine import Event
from agent.install.verify.bundle_verifier import verify_bundle
from contract.bundle.manifest import MANIFEST_FILE, parse_manifest
from contract.bundle.verifier import find_faults
from contract.errors import BundleRefused, SourceInvalid, SourceUnavailable, StoreBroken, StoreFull
from contract.reasons import Reason
from contract.system.durable import Disk, Effects
from packager.publish.archive import export
from tests.agent.install.market import Device, Market

T = TypeVar("T")

OTHER = "x86_64" if platform.machine() == "aarch64" else "aarch64"
"""An architecture that this machine's is not."""

ALL_STEPS = [Event.CHECKED, Event.RESERVED, Event.FETCHED, Event.VERIFIED, Event.SEALED]


def test_a_bundle_arrives_whole_sealed_and_recorded(market: Market, device: Device) -> None:
    manifest = market.publish("1.0.0")
    sealed = device.install(market.job(device.directory.root, "1.0.0"))
    assert device.events == ALL_STEPS
    assert verify_bundle(sealed.directory, sealed.digest) == sealed
    assert sealed.manifest == manifest
    assert sealed.directory == device.directory.bundle(sealed.digest)
    assert [bundle.digest for bundle in device.state().bundles()] == [sealed.digest]
    assert device.names(lambda place: place.inbox) == []
    for path in [sealed.directory, *sealed.directory.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o555 if path.is_dir() else 0o444)


def test_the_lines_name_the_bundle_and_count_its_bytes(market: Market, device: Device) -> None:
    manifest = market.publish("1.0.0")
    sealed = device.install(market.job(device.directory.root, "1.0.0"))
    first = device.lines[0]
    needs = manifest.requires.min_ram_bytes, manifest.budget.peak_rss_bytes
    assert first == Resolved(sealed.digest, "tiny", "1.0.0", manifest.security_epoch, manifest.total_bytes, *needs)
    last = [line for line in device.lines if isinstance(line, Progressed)][-1]
    assert (last.done, last.reused, last.fetched) == (last.total, 0, last.total)


def test_installing_again_fetches_nothing(market: Market, device: Device) -> None:
    market.publish("1.0.0")
    job = market.job(device.directory.root, "1.0.0")
    first = device.install(job)
    assert device.install(job) == first
    assert device.events == [Event.PRESENT, Event.VERIFIED, Event.SEALED]


def test_an_update_fetches_only_what_changed(market: Market, device: Device) -> None:
    old = market.publish("1.0.0")
    device.activate(device.install(market.job(device.directory.root, "1.0.0")))
    tokenizer = (market.base / "tokenizer_config.json").read_bytes()
    new = market.publish("1.1.0", {"tokenizer_config.json": tokenizer + b" "})
    sealed = device.install(market.job(device.directory.root, "1.1.0"))
    verify_bundle(sealed.directory, sealed.digest)
    last = [line for line in device.lines if isinstance(line, Progressed)][-1]
    assert last.fetched == len(tokenizer) + 1
    assert last.reused == last.total - last.fetched
    assert new.total_bytes == old.total_bytes + 1


def test_chunks_are_reused_although_the_file_was_renamed_and_changed(market: Market, device: Device) -> None:
    blob = os.urandom(5 << 20)
    market.publish("1.0.0", {"extra.bin": blob})
    device.activate(device.install(market.job(device.directory.root, "1.0.0")))
    changed = blob[: 3 << 20] + os.urandom(1 << 20) + blob[4 << 20 :]
    market.publish("1.1.0", {"renamed.bin": changed})
    sealed = device.install(market.job(device.directory.root, "1.1.0"))
    verify_bundle(sealed.directory, sealed.digest)
    last = [line for line in device.lines if isinstance(line, Progressed)][-1]
    assert last.fetched == 1 << 20


def test_a_rotten_file_of_the_active_bundle_is_fetched_and_not_copied(market: Market, device: Device) -> None:
    market.publish("1.0.0", {"extra.bin": os.urandom(3 << 20)})
    first = device.install(market.job(device.directory.root, "1.0.0"))
    device.activate(first)
    rotten = first.directory / "extra.bin"
    rotten.chmod(0o644)
    with rotten.open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"rot")
    market.publish("1.1.0", {"extra.bin": (market.root / "built-1.0.0" / "extra.bin").read_bytes()})
    sealed = device.install(market.job(device.directory.root, "1.1.0"))
    verify_bundle(sealed.directory, sealed.digest)
    last = [line for line in device.lines if isinstance(line, Progressed)][-1]
    assert last.fetched == 1 << 20, "only the chunk that rotted"


def test_a_damaged_bundle_is_mended_from_the_source(market: Market, device: Device) -> None:
    market.publish("1.0.0")
    job = market.job(device.directory.root, "1.0.0")
    sealed = device.install(job)
    device.activate(sealed)
    victim = sealed.directory / "tokenizer.json"
    victim.chmod(0o644)
    victim.write_bytes(b"{}")
    with pytest.raises(BundleRefused):
        verify_bundle(sealed.directory, sealed.digest)
    assert device.install(job) == sealed
    assert device.events == ALL_STEPS
    verify_bundle(sealed.directory, sealed.digest)


class RottingEffects(Effects):
    """A disk that changes a byte of ``victim`` in the moment it says that everything is safe."""

    def __init__(self, victim: Path) -> None:
        self._victim = victim

    def perform(self, kind: str, target: str, action: Callable[[], T]) -> T:
        result = action()
        if kind == "fsync" and target == str(self._victim):
            with self._victim.open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                last = file.read(1)[0]
                file.seek(-1, os.SEEK_END)
                file.write(bytes([last ^ 1]))
        return result


def test_what_the_disk_gives_back_is_held_against_what_was_written(market: Market, device: Device) -> None:
    manifest = market.publish("1.0.0", {"extra.bin": os.urandom(3 << 20)})
    entry = next(entry for entry in manifest.files if entry.path == "extra.bin")
    part = device.directory.part(entry.sha256)
    job = market.job(device.directory.root, "1.0.0")
    with pytest.raises(StoreBroken, match=r"other bytes of extra\.bin"):
        device.install(job, Disk(RottingEffects(part)))
    assert not part.exists()
    device.install(job)


def test_a_file_listed_twice_is_fetched_once(market: Market, device: Device) -> None:
    blob = os.urandom(100_000)
    market.publish("1.0.0", {"one.bin": blob, "deep/er/two.bin": blob})
    sealed = device.install(market.job(device.directory.root, "1.0.0"))
    verify_bundle(sealed.directory, sealed.digest)
    last = [line for line in device.lines if isinstance(line, Progressed)][-1]
    assert last.total == sealed.manifest.total_bytes - len(blob)


def test_an_empty_file_arrives_empty(market: Market, device: Device) -> None:
    market.publish("1.0.0", {"empty.txt": b""})
    sealed = device.install(market.job(device.directory.root, "1.0.0"))
    assert (sealed.directory / "empty.txt").read_bytes() == b""


# Bundles that are not as they should be.


def test_a_changed_object_is_refused_and_nothing_of_it_kept(market: Market, device: Device) -> None:
    manifest = market.publish("1.0.0")
    victim = market.object(manifest, "tokenizer.json")
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.chmod(0o644)
    victim.write_bytes(data)
    with pytest.raises(SourceInvalid) as refused:
        device.install(market.job(device.directory.root, "1.0.0"))
    assert refused.value.reason is Reason.DIGEST_MISMATCH
    assert refused.value.field == "tokenizer.json"
    assert device.names(lambda place: place.bundles) == []
    assert all(name.endswith(".part") for name in device.names(lambda place: place.inbox))


def test_a_missing_object_is_unavailable_and_resumes_when_it_is_back(market: Market, device: Device) -> None:
    manifest = market.publish("1.0.0")
    victim = market.object(manifest, "tokenizer.json")
    away = victim.rename(victim.with_name("away"))
    job = market.job(device.directory.root, "1.0.0")
    with pytest.raises(SourceUnavailable):
        device.install(job)
    done = [line for line in device.lines if isinstance(line, Progressed)][-1].done
    away.rename(victim)
    device.install(job)
    last = [line for line in device.lines if isinstance(line, Progressed)][-1]
    assert last.fetched == last.total - done, "what had arrived was not fetched again"


@pytest.mark.parametrize("cut", [12_000, 300_000])  # a tar is padded with up to 10 kB of nothing
def test_a_truncated_edgebundle_is_refused(market: Market, device: Device, tmp_path: Path, cut: int) -> None:
    market.publish("1.0.0")
    file = tmp_path / "tiny.edgebundle"
    export(market.repository.path, "tiny", "1.0.0", file)
    with file.open("r+b") as handle:
        handle.truncate(file.stat().st_size - cut)
    with pytest.raises(SourceInvalid) as refused:
        device.install(market.job(device.directory.root, "1.0.0", sources=[str(file)]))
    assert refused.value.reason is Reason.TAR_INVALID
    assert device.names(lambda place: place.bundles) == []


def test_an_unlisted_bundle_is_refused(market: Market, device: Device) -> None:
    market.publish("1.0.0")
    with pytest.raises(BundleRefused) as refused:
        device.install(market.job(device.directory.root, "9.9.9"))
    assert refused.value.reason is Reason.NOT_LISTED


def test_a_configuration_that_would_load_code_is_refused_and_not_left_behind(market: Market, device: Device) -> None:
    config = msgspec.json.decode((market.base / "genai_config.json").read_bytes())
    config["model"]["decoder"]["session_options"]["custom_ops_library"] = "evil.so"
    market.publish("1.0.0", {"genai_config.json": msgspec.json.encode(config)})
    with pytest.raises(BundleRefused) as refused:
        device.install(market.job(device.directory.root, "1.0.0"))
    assert refused.value.reason is Reason.CONFIG_NOT_ALLOWED
    assert device.names(lambda place: place.bundles) == []


def test_a_broken_graph_is_refused(market: Market, device: Device) -> None:
    market.publish("1.0.0", {"model.onnx": b"\x08\x07junk"})
    with pytest.raises(BundleRefused) as refused:
        device.install(market.job(device.directory.root, "1.0.0"))
    assert refused.value.reason is Reason.GRAPH_INVALID


def test_a_bundle_without_configuration_is_refused(market: Market, device: Device) -> None:
    market.publish("1.0.0", {"genai_config.json": None})
    with pytest.raises(BundleRefused) as refused:
        device.install(market.job(device.directory.root, "1.0.0"))
    assert refused.value.reason is Reason.MODEL_INCOMPLETE


@pytest.mark.parametrize(
    ("requires", "reason"),
    [
        ({"arch": [OTHER]}, Reason.REQUIRES_ARCH),
        ({"isa_any": ["a_set_of_the_future"]}, Reason.REQUIRES_ISA),
        ({"min_ram_bytes": 2**50}, Reason.REQUIRES_RAM),
        ({"min_disk_bytes": 2**52}, Reason.REQUIRES_DISK),
        ({"onnxruntime": ">=99"}, Reason.REQUIRES_RUNTIME),
        ({"onnxruntime_genai": ">=99"}, Reason.REQUIRES_RUNTIME),
        ({"agent": ">=99"}, Reason.REQUIRES_AGENT),
    ],
)
def test_what_the_device_lacks_is_refused_before_anything_is_fetched(
    market: Market, device: Device, requires: dict[str, object], reason: Reason
) -> None:
    base = parse_manifest((market.base / MANIFEST_FILE).read_bytes()).requires
    market.publish("1.0.0", requires=msgspec.structs.replace(base, **requires))
    with pytest.raises(BundleRefused) as refused:
        device.install(market.job(device.directory.root, "1.0.0"))
    assert refused.value.reason is reason
    assert device.names(lambda place: place.inbox) == []


@pytest.mark.parametrize("provider", ["cuda", "dml", "webgpu"])
def test_a_bundle_for_a_provider_that_does_not_run_here_is_refused(
    market: Market, device: Device, provider: str
) -> None:
    base = parse_manifest((market.base / MANIFEST_FILE).read_bytes()).model
    market.publish("1.0.0", model=msgspec.structs.replace(base, ep=provider))
    with pytest.raises(BundleRefused) as refused:
        device.install(market.job(device.directory.root, "1.0.0"))
    assert (refused.value.reason, refused.value.field) == (Reason.REQUIRES_EP, "model.ep")
    assert device.names(lambda place: place.inbox) == []


def test_a_requirement_that_is_not_understood_is_refused(market: Market, device: Device) -> None:
    market.publish("1.0.0")
    (stored,) = (market.root / "repository/manifests/tiny").iterdir()
    document = msgspec.json.decode(stored.read_bytes())
    document["requires"]["npu"] = True
    with pytest.raises(BundleRefused) as refused:
        parse_manifest(msgspec.json.encode(document))
    assert (refused.value.reason, refused.value.field) == (Reason.REQUIRES_UNKNOWN, "requires.npu")
    base = parse_manifest(stored.read_bytes()).requires
    market.publish("1.1.0", requires=msgspec.structs.replace(base, onnxruntime="~=1.31"))
    with pytest.raises(BundleRefused) as refused:
        device.install(market.job(device.directory.root, "1.1.0"))
    assert refused.value.reason is Reason.REQUIRES_UNKNOWN


def test_an_epoch_below_the_committed_one_is_refused(market: Market, device: Device) -> None:
    market.publish("1.0.0", security_epoch=5)
    market.publish("2.0.0", security_epoch=4)
    device.activate(device.install(market.job(device.directory.root, "1.0.0")))
    with pytest.raises(BundleRefused) as refused:
        device.install(market.job(device.directory.root, "2.0.0"))
    assert refused.value.reason is Reason.EPOCH_ROLLBACK


def test_a_bundle_beyond_the_quota_is_refused_before_anything_is_fetched(market: Market, device: Device) -> None:
    market.publish("1.0.0", {"extra.bin": os.urandom(1 << 20)})
    manifest = parse_manifest((market.root / "built-1.0.0" / MANIFEST_FILE).read_bytes())
    with pytest.raises((BundleRefused, StoreFull)) as refused:
        device.install(market.job(device.directory.root, "1.0.0", quota_bytes=manifest.total_bytes // 2))
    assert refused.value.reason in (Reason.REQUIRES_DISK, Reason.STORE_FULL)
    assert device.names(lambda place: place.inbox) == []


# A bundle on this device that was tampered with.


@pytest.mark.parametrize(
    ("tamper", "reasons"),
    [
        (lambda place: (place / "tokenizer.json").unlink(), [Reason.FILE_MISSING]),
        (lambda place: (place / "extra").write_bytes(b"x"), [Reason.FILE_EXTRA]),
        (lambda place: (place / "empty").mkdir(), [Reason.FILE_EXTRA]),
        (
            lambda place: (place / "tokenizer.json").rename(place / "renamed.json"),
            [Reason.FILE_MISSING, Reason.FILE_EXTRA],
        ),
        (lambda place: _overwrite(place / "tokenizer.json", 10, b"!"), [Reason.DIGEST_MISMATCH]),
        (lambda place: os.truncate(place / "tokenizer.json", 10), [Reason.SIZE_MISMATCH]),
        (lambda place: _to_link(place / "tokenizer.json"), [Reason.UNSAFE_PATH]),
    ],
    ids=["missing", "extra", "extra directory", "renamed", "changed", "truncated", "link"],
)
def test_tampering_is_found(market: Market, device: Device, tamper: object, reasons: list[Reason]) -> None:
    market.publish("1.0.0")
    sealed = device.install(market.job(device.directory.root, "1.0.0"))
    for path in [sealed.directory, *sealed.directory.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    assert callable(tamper)
    tamper(sealed.directory)
    assert [fault.reason for fault in find_faults(sealed.directory, sealed.manifest)] == reasons
    with pytest.raises(BundleRefused):
        verify_bundle(sealed.directory, sealed.digest)


def _overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def _to_link(path: Path) -> None:
    away = path.rename(path.parent.parent / "away.json")
    path.symlink_to(away)
