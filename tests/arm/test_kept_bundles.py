"""The bundles that all tests share are made before a processor is emulated, which would take an hour over them."""

from __future__ import annotations

from pathlib import Path

from contract.bundle.manifest import MANIFEST_FILE
from tests.kept import CACHE


def test_what_this_machine_made_is_found_by_every_other(
    tiny_bundle: Path,
    tiny_slots_bundle: Path,
    tiny_adapter_bundles: dict[str, Path],
    seeing_bundle: Path,
    smollm2_bundle: Path,
) -> None:
    """They lie in the cache under a name that the sources and versions decide, not the processor."""
    for bundle in (tiny_bundle, tiny_slots_bundle, *tiny_adapter_bundles.values(), seeing_bundle, smollm2_bundle):
        assert bundle.is_relative_to(CACHE / "test-bundles")
        assert (bundle / MANIFEST_FILE).is_file()
