"""One verifier for what lies on a device, what is checked after a build and what is published; its proof."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.install.ports import SealedBundle
from contract.bundle.manifest import MANIFEST_FILE
from contract.bundle.verifier import (
    VerifiedDirectory,
    find_faults,
    find_listing_faults,
    read_manifest,
    verify_directory,
)
from contract.errors import BundleRefused, StoreBroken
from contract.identifiers import Digest
from contract.reasons import Reason
from tests.contract.trust.samples import make_bundle
from tests.proofs import pretend_verified

ROOT = Path(__file__).resolve().parents[3]
TOKENIZER = "tokenizer/tokenizer.json"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle", weights=50_000)


def to_link(path: Path) -> None:
    path.symlink_to(path.rename(path.parent.parent / "away"))


def change(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_what_is_whole_is_proved_and_every_byte_of_it_was_read(bundle: Path) -> None:
    listed = read_manifest(bundle)
    read: list[int] = []
    proof = verify_directory(bundle, listed.digest, read.append)
    assert (proof.path, proof.digest, proof.manifest) == (bundle, listed.digest, listed.manifest)
    assert sum(read) == listed.manifest.total_bytes
    assert proof == verify_directory(bundle, listed.digest)


@pytest.mark.parametrize(
    ("damage", "reasons", "without_reading"),
    [
        (lambda place: (place / "model.onnx").unlink(), [Reason.FILE_MISSING], True),
        (lambda place: (place / "extra").write_bytes(b"x"), [Reason.FILE_EXTRA], True),
        (lambda place: (place / "empty").mkdir(), [Reason.FILE_EXTRA], True),
        (lambda place: (place / "model.onnx").rename(place / "m"), [Reason.FILE_MISSING, Reason.FILE_EXTRA], True),
        (lambda place: os.truncate(place / TOKENIZER, 10), [Reason.SIZE_MISMATCH], True),
        (lambda place: to_link(place / TOKENIZER), [Reason.UNSAFE_PATH, Reason.FILE_EXTRA], True),
        (lambda place: (place / "more").symlink_to(place.parent), [Reason.UNSAFE_PATH], True),
        (lambda place: os.mkfifo(place / "pipe"), [Reason.UNSAFE_PATH], True),
        (lambda place: change(place / TOKENIZER, 10), [Reason.DIGEST_MISMATCH], False),
    ],
    ids=["missing", "extra", "empty", "renamed", "shorter", "link", "linked directory", "pipe", "changed"],
)
def test_every_fault_is_found(
    bundle: Path, damage: Callable[[Path], None], reasons: list[Reason], without_reading: bool
) -> None:
    listed = read_manifest(bundle)
    damage(bundle)
    assert [fault.reason for fault in find_faults(bundle, listed.manifest)] == reasons
    expected = reasons if without_reading else []
    assert [fault.reason for fault in find_listing_faults(bundle, listed.manifest)] == expected
    with pytest.raises(BundleRefused) as refused:
        verify_directory(bundle, listed.digest)
    assert refused.value.reason is reasons[0]


def test_a_changed_byte_is_located_by_its_chunk(bundle: Path) -> None:
    listed = read_manifest(bundle)
    (weights,) = [entry for entry in listed.manifest.files if entry.path == "model.onnx.data"]
    change(bundle / weights.path, weights.size - 1)
    (fault,) = find_faults(bundle, listed.manifest)
    begin = weights.size - weights.chunks[-1].size
    assert f"it was changed between byte {begin} and byte {weights.size}" in fault.message


def test_what_is_in_place_of_a_renamed_file_is_named(bundle: Path) -> None:
    listed = read_manifest(bundle)
    (bundle / "model.onnx").rename(bundle / "model2.onnx")
    fault = next(find_faults(bundle, listed.manifest))
    assert fault.message == "model.onnx is missing; model2.onnx is there instead"


def test_another_manifest_than_the_recorded_one_is_refused(bundle: Path) -> None:
    with pytest.raises(BundleRefused) as refused:
        verify_directory(bundle, Digest("0" * 64))
    assert refused.value.reason is Reason.DIGEST_MISMATCH
    (bundle / MANIFEST_FILE).unlink()
    with pytest.raises(BundleRefused) as refused:
        read_manifest(bundle)
    assert refused.value.reason is Reason.FILE_MISSING


def test_a_directory_that_is_not_there_is_no_bundle_of_nothing(bundle: Path) -> None:
    listed = read_manifest(bundle)
    with pytest.raises(StoreBroken):
        list(find_faults(bundle / "nowhere", listed.manifest))


def test_nobody_else_can_make_the_proof(bundle: Path) -> None:
    listed = read_manifest(bundle)
    with pytest.raises(TypeError, match="made by verifying"):
        VerifiedDirectory(object(), bundle, listed.digest, listed.manifest)
    proof = pretend_verified(bundle, listed.digest, listed.manifest)
    assert SealedBundle(proof).directory == bundle
    with pytest.raises(AttributeError):
        proof.digest = Digest("0" * 64)  # type: ignore[misc]


def test_the_guards_of_proofs_are_named_where_proofs_are_made_and_nowhere_else() -> None:
    found = {}
    for package in ("agent", "contract", "packager", "fleet", "edge_bundle"):
        for file in (ROOT / package).rglob("*.py"):
            for name in set(re.findall(r"\b(verifier|verified)\._GUARD\b", file.read_text("utf-8"))):
                found.setdefault(name, []).append(file.relative_to(ROOT).as_posix())
    assert found == {"verified": ["contract/trust/resolve.py"], "verifier": ["agent/install/download/seal.py"]}
