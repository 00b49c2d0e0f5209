"""What a build writes while it runs: said beforehand from the shape, and little."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from packager.build.disk import build_disk_bytes, can_link
from packager.build.estimate import estimate_build
from packager.build.plan import BuildPlan
from packager.sources.shape import ModelShape
from tests.packager.quantize.test_single_pass import shape_of

PLAN = BuildPlan("source", "size", "1.0.0", quantizer="gptq-fast")
STORED = 1000


@pytest.mark.parametrize("quantizer", ["gptq-fast", "gptq", "rtn"])
@pytest.mark.parametrize("linked", [True, False])
def test_phi_is_built_in_twelve_gigabytes(quantizer: str, linked: bool) -> None:
    shape = shape_of("phi-3.5-mini")
    needed = estimate_build(msgspec.structs.replace(PLAN, quantizer=quantizer), shape, linked=linked)
    assert needed.disk_bytes - needed.bundle_bytes < 12e9
    assert (needed.bundle_bytes > 0) is not linked


def test_two_layers_computed_twice_are_counted_where_that_is_done() -> None:
    # A model of 627 million parameters with 128,256 words: 0.62 GiB were promised, and 2.35 GB written.
    shape = ModelShape(
        627_000_000, layer=60_821_504, matrix=262_668_288, vocabulary=128_256, hidden=2048, half=True, family="llama"
    )
    needed = estimate_build(msgspec.structs.replace(PLAN, quantizer="rtn", kv="float"), shape, linked=True)
    assert needed.disk_bytes < 0.8e9
    assert 2.3e9 < needed.within(8 << 30).disk_bytes < 2.5e9
    assert needed.within(needed.proof_bytes - 1).disk_bytes == needed.disk_bytes, "it is left out there"
    rounded = estimate_build(msgspec.structs.replace(PLAN, quantizer="gptq", kv="float"), shape, linked=True)
    assert 5.7e9 < rounded.within(8 << 30).disk_bytes < 6.3e9, "6.17 GB were measured"


@pytest.mark.parametrize("quantizer", ["gptq-fast", "gptq", "rtn"])
def test_phi_is_proved_in_twelve_gigabytes_too(quantizer: str) -> None:
    needed = estimate_build(msgspec.structs.replace(PLAN, quantizer=quantizer), shape_of("phi-3.5-mini"), linked=True)
    assert needed.within(8 << 30).disk_bytes < 12e9


def in_cache(plan: BuildPlan, shape: ModelShape) -> int:
    return build_disk_bytes(plan, shape, STORED, linked=True)[0]


def test_weights_that_two_graphs_have_lie_there_once() -> None:
    rtn = msgspec.structs.replace(PLAN, quantizer="rtn")
    shape = ModelShape(10**6, family="phi3")
    assert in_cache(rtn, shape) == STORED
    assert in_cache(msgspec.structs.replace(rtn, kv="int8"), shape) == STORED
    tables = msgspec.structs.replace(shape, rope_bytes=7, switches_at=1, vocabulary=10)
    assert in_cache(rtn, tables) == STORED + 7 + 2 * 1024 * 10, "kv auto; and what the source says"
    assert in_cache(msgspec.structs.replace(rtn, kv="float"), tables) == STORED + 2 * 1024 * 10
    assert in_cache(msgspec.structs.replace(rtn, kv="int8", sees=True), shape) == 2 * STORED
    assert build_disk_bytes(rtn, shape, STORED, linked=False) == (STORED, 2 * STORED), "kv auto tries both"
    assert build_disk_bytes(msgspec.structs.replace(rtn, kv="float"), shape, STORED, linked=False) == (STORED, STORED)


def test_a_checkpoint_with_zero_points_is_packed_and_others_are_as_wide_as_their_source() -> None:
    shape = ModelShape(10**9, vocabulary=1000, hidden=1000, family="llama")
    assert in_cache(PLAN, shape) < 10**9
    asked = 2 * 1024 * shape.vocabulary
    assert in_cache(msgspec.structs.replace(PLAN, adapter_slots=True), shape) == STORED + asked + 2 * 10**9
    phi = msgspec.structs.replace(shape, family="phi3")
    assert in_cache(PLAN, phi) == STORED + asked + 2 * 10**9
    assert in_cache(PLAN, msgspec.structs.replace(phi, half=False)) == STORED + asked + 4 * 10**9


def test_whether_files_can_be_shared_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert can_link(tmp_path / "not" / "there", tmp_path)
    assert list(tmp_path.iterdir()) == []

    def refuse(source: str, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    assert not can_link(tmp_path, tmp_path / "not" / "there")
    assert list(tmp_path.iterdir()) == []
