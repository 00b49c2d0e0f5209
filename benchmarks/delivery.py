"""Bytes that an update fetches, against a plain download and against deduplication of whole files.

    python -m benchmarks.delivery BUNDLE [--other BUNDLE] [--adapter BASE ADAPTER]

``BUNDLE`` is a finished bundle directory; ``--other`` the same model from another quantizer; ``--adapter`` a bundle
with places for adapters and an adapter bundle for it, counted of what the device has in the end, which is both. Every
update is really published, installed and counted.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from agent.install.ports import SealedBundle
from agent.install.process.messages import InstallJob, Progressed
from contract.bundle.manifest import MANIFEST_FILE, Chunk, FileEntry, Manifest, encode_manifest, parse_manifest
from tests.agent.install.market import Device, Market, make_variant

WEIGHTS = "model.onnx.data"


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
    if other is not None:
        make_variant(other, market.root / "other", "1.4.0", None, name="tiny")
        assert market.repository.publish(market.root / "other").published
        yield "another quantizer", "1.4.0"


def fetch(device: Device, job: InstallJob) -> tuple[SealedBundle, int]:
    """The bundle that ``job`` names, and how many bytes it took to get it."""
    sealed = device.install(job)
    return sealed, [line for line in device.lines if isinstance(line, Progressed)][-1].fetched


def print_line(what: str, fetched: int, whole: int, total: int) -> None:
    print(f"{what:<20} {fetched:>12,} {fetched / total:>10.2%} {whole / total:>12.2%} {1:>7.0%}", flush=True)


def measure_adapter(root: Path, base: Path, adapter: Path) -> None:
    """An adapter joins its base: of the bytes of both, what is fetched."""
    market = Market(root / "market-adapter", base)
    names = []
    for place in (base, adapter):
        assert market.repository.publish(place).published
        manifest = parse_manifest((place / MANIFEST_FILE).read_bytes())
        names.append((manifest.name, manifest.version))
    device = Device(root / "device-adapter")
    before, last = (
        msgspec.structs.replace(market.job(device.directory.root, version), name=name) for name, version in names
    )
    first = device.install(before)
    device.activate(first)
    sealed, fetched = fetch(device, last)
    known = {entry.sha256 for entry in first.manifest.files}
    whole = sum(entry.size for entry in sealed.manifest.files if entry.sha256 not in known)
    total = first.manifest.total_bytes + sealed.manifest.total_bytes
    print_line("adapter only", fetched, whole, total)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.delivery", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--other", type=Path)
    parser.add_argument("--adapter", type=Path, nargs=2, metavar=("BASE", "ADAPTER"))
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
            sealed, fetched = fetch(device, market.job(device.directory.root, version))
            known = {entry.sha256 for entry in first.files}
            whole = sum(entry.size for entry in sealed.manifest.files if entry.sha256 not in known)
            print_line(what, fetched, whole, sealed.manifest.total_bytes)
        if arguments.adapter is not None:
            measure_adapter(root, *arguments.adapter)


if __name__ == "__main__":
    main()
