"""Bytes that an update fetches, against a plain download and against deduplication of whole files.

    python -m benchmarks.delivery BUNDLE [--other BUNDLE]

``BUNDLE`` is a finished bundle directory; ``--other`` the same model from another quantizer. Every update is really
published, installed and counted.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from agent.install.job import Progressed
from contract.manifest import MANIFEST_FILE, Chunk, FileEntry, Manifest, encode_manifest
from tests.agent.install.market import Device, Market, make_variant

WEIGHTS = "model.onnx.data"
ADAPTER_BYTES = 2 << 20
"""A LoRA adapter of rank 8 on a model of this size."""


def change_layer(base: Path, target: Path, version: str) -> Manifest:
    """One of the model's layers gets other weights: as many bytes in the middle as one layer of 30 has."""
    manifest = make_variant(base, target, version)
    entry = next(entry for entry in manifest.files if entry.path == WEIGHTS)
    share = entry.size // 30
    with (target / WEIGHTS).open("r+b") as file:
        file.seek(entry.size // 2)
        file.write(os.urandom(share))
    changed = rehash(target, entry)
    files = [changed if each is entry else each for each in manifest.files]
    manifest = msgspec.structs.replace(manifest, files=files)
    (target / MANIFEST_FILE).write_bytes(encode_manifest(manifest))
    return manifest


def rehash(directory: Path, entry: FileEntry) -> FileEntry:
    """The entry of a file whose bytes changed and whose tensors stayed where they were."""
    data = (directory / entry.path).read_bytes()
    chunks, offset = [], 0
    for chunk in entry.chunks:
        chunks.append(Chunk(chunk.size, hashlib.sha256(data[offset : offset + chunk.size]).hexdigest()))
        offset += chunk.size
    return msgspec.structs.replace(entry, sha256=hashlib.sha256(data).hexdigest(), chunks=chunks)


def updates(market: Market, other: Path | None) -> Iterator[tuple[str, str]]:
    """(what changed, version), published."""
    base = market.base
    config = (base / "genai_config.json").read_bytes()
    market.publish("1.1.0", {"genai_config.json": config + b"\n"})
    yield "configuration", "1.1.0"
    tokenizer = (base / "tokenizer_config.json").read_bytes()
    market.publish("1.2.0", {"tokenizer_config.json": tokenizer + b"\n"})
    yield "tokenizer settings", "1.2.0"
    change_layer(base, market.root / "layer", "1.3.0")
    assert market.repository.publish(market.root / "layer").published
    yield "one layer", "1.3.0"
    market.publish("1.4.0", {"adapter/adapter.bin": os.urandom(ADAPTER_BYTES)})
    yield "an adapter", "1.4.0"
    if other is not None:
        make_variant(other, market.root / "other", "1.5.0", None, name="tiny")
        assert market.repository.publish(market.root / "other").published
        yield "another quantizer", "1.5.0"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.delivery", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--other", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="delivery-") as scratch:
        root = Path(scratch)
        named = root / "base"
        make_variant(arguments.bundle, named, "1.0.0", None, name="tiny")
        market = Market(root / "market", named)
        first = market.publish("1.0.0")
        print(f"{'what changed':<20} {'fetched':>12} {'of bundle':>10} {'whole files':>12} {'plain':>7}")
        for number, (what, version) in enumerate(updates(market, arguments.other)):
            device = Device(root / f"device-{number}")
            device.activate(device.install(market.job(device.directory.root, "1.0.0")))
            sealed = device.install(market.job(device.directory.root, version))
            assert sealed is not None
            manifest = sealed.manifest
            fetched = [line for line in device.lines if isinstance(line, Progressed)][-1].fetched
            known = {entry.sha256 for entry in first.files}
            whole = sum(entry.size for entry in manifest.files if entry.sha256 not in known)
            total = manifest.total_bytes
            print(f"{what:<20} {fetched:>12,} {fetched / total:>10.2%} {whole / total:>12.2%} {1:>7.0%}", flush=True)


if __name__ == "__main__":
    main()
