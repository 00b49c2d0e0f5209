"""``.edgebundle`` files: one bundle and the metadata that vouches for it, in an uncompressed tar.

The same repository state and bundle always give the same bytes: fixed order, no owners, no times.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, cast

from contract.bundle.layout import METADATA_DIR, manifest_path, object_path
from contract.bundle.manifest import FileEntry, Manifest, parse_manifest
from contract.errors import BuildRefused, BundleRefused
from contract.reasons import Reason
from contract.source import BundleSource
from contract.source.directory import DirectorySource
from contract.system.durable import Disk, translate
from contract.trust.refresh import ROOT_MAX_BYTES
from contract.trust.resolve import fetch_manifest, refresh
from contract.trust.rollback_floor import MemoryRollbackFloor
from contract.trust.signing import state_of
from contract.trust.store import TrustStore
from packager.publish.metadata import PublishedMetadata


def export(
    path: Path, name: str, version: str, out: Path, *, on_bytes: Callable[[int], None] = lambda count: None
) -> Manifest:
    """Write ``name@version`` of the repository at ``path`` to ``out``, which is replaced atomically.

    Raises:
        BuildRefused: it is not published, or the repository lacks a file of it.
        BundleRefused: DIGEST_MISMATCH, an object was damaged; REVOKED, NOT_LISTED.
        StoreFull, StoreBroken.
    """
    metadata = PublishedMetadata(path)
    entry = metadata.listing.entry(name, version)
    manifest_name = manifest_path(name, version, entry.digest)
    stored = _read(path / manifest_name)
    if hashlib.sha256(stored).hexdigest() != entry.digest:
        raise BundleRefused(Reason.DIGEST_MISMATCH, f"{manifest_name} is damaged; publish the bundle again")
    manifest = parse_manifest(stored)
    disk = Disk()
    try:
        with tempfile.NamedTemporaryFile(dir=out.absolute().parent, prefix=f".{out.name}.", delete=False) as raw:
            part = Path(raw.name)
            try:
                with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
                    for file in metadata.files():
                        _add(tar, f"{METADATA_DIR}/{file}", _read(path / METADATA_DIR / file))
                    _add(tar, manifest_name, stored)
                    for digest, size in {file.sha256: file.size for file in manifest.files}.items():
                        _add_object(tar, path, digest, size, on_bytes)
                raw.flush()
                part.chmod(0o644)
                disk.sync_file(part)
                disk.rename(part, out.absolute())
            finally:
                part.unlink(missing_ok=True)
    except OSError as error:
        raise translate(error, f"writing {out}") from error
    return manifest


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BuildRefused(f"{path} cannot be read: {error.strerror}") from error


def _header(name: str, size: int) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.size = size
    header.mode = 0o644
    return header


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    tar.addfile(_header(name, len(data)), io.BytesIO(data))


class _Hashing:
    """What ``tarfile`` reads an object from, so that each byte is read once."""

    def __init__(self, raw: BinaryIO, on_bytes: Callable[[int], None]) -> None:
        self._raw = raw
        self._on_bytes = on_bytes
        self.digest = hashlib.sha256()

    def read(self, size: int) -> bytes:
        piece = self._raw.read(size)
        self.digest.update(piece)
        self._on_bytes(len(piece))
        return piece


def _add_object(tar: tarfile.TarFile, path: Path, digest: str, size: int, on_bytes: Callable[[int], None]) -> None:
    file = path / object_path(digest)
    if not file.is_file() or file.stat().st_size != size:
        raise BuildRefused(f"{object_path(digest)} is missing or has the wrong size; publish the bundle again")
    with file.open("rb") as raw:
        hashing = _Hashing(raw, on_bytes)
        tar.addfile(_header(object_path(digest), size), cast(BinaryIO, hashing))
    if hashing.digest.hexdigest() != digest:
        raise BundleRefused(Reason.DIGEST_MISMATCH, f"{object_path(digest)} is damaged; publish the bundle again")


def receive(
    path: Path,
    source: BundleSource,
    root: bytes,
    clock: Callable[[], datetime],
    *,
    disk: Disk | None = None,
    on_bytes: Callable[[int], None] = lambda count: None,
) -> list[str]:
    """Bring what ``source`` holds into the mirror at ``path``; the NAME@VERSIONs received.

    ``root`` is what the mirror trusts. The metadata of the mirror becomes that of the source, if it is valid now and
    not older; objects come first and the timestamp last, so that readers see the old or the new state.

    Raises:
        BundleRefused, SourceUnavailable, StoreFull, StoreBroken.
    """
    disk = disk or Disk()
    floor = MemoryRollbackFloor()
    with tempfile.TemporaryDirectory() as scratch:
        store = TrustStore(Path(scratch))
        store.provision(root, floor)
        if PublishedMetadata(path).timestamp is not None:
            own = DirectorySource(path)
            refresh(store=store, source=own, floor=floor, clock=_past(clock), offline_grace=False)
        listing = refresh(store=store, source=source, floor=floor, clock=clock, offline_grace=True)
        files = store.load(floor)
    received = []
    for reference, entry in listing.bundles.items():
        name, _, version = reference.partition("@")
        if source.read(manifest_path(name, version, entry.digest), entry.size) is None:
            continue
        trusted = fetch_manifest(listing, source, name, version)
        for file in trusted.manifest.files:
            _receive_object(path, source, file, disk, on_bytes)
        target = path / manifest_path(name, version, entry.digest)
        disk.make_directory(target.parent)
        disk.write_file(target, trusted.stored)
        received.append(reference)
    _receive_metadata(path, source, files, disk)
    return received


def _past(clock: Callable[[], datetime]) -> Callable[[], datetime]:
    # What the mirror has already may have expired; it still guards against older metadata.
    return lambda: clock().replace(year=2000)


def _receive_object(
    path: Path, source: BundleSource, entry: FileEntry, disk: Disk, on_bytes: Callable[[int], None]
) -> None:
    digest, size = entry.sha256, entry.size
    target = path / object_path(digest)
    if target.exists():
        on_bytes(size)
        return
    disk.make_directory(target.parent)
    part = target.with_name(f".{digest}.part")
    whole = hashlib.sha256()
    try:
        with part.open("wb") as file:
            for piece in source.stream(object_path(digest), 0, size):
                whole.update(piece)
                file.write(piece)
                on_bytes(len(piece))
        if whole.hexdigest() != digest:
            raise BundleRefused(Reason.DIGEST_MISMATCH, f"{object_path(digest)} in {source.description} is damaged")
        disk.sync_file(part)
        disk.rename(part, target)
    except OSError as error:
        raise translate(error, f"writing {target}") from error
    finally:
        part.unlink(missing_ok=True)


def _receive_metadata(path: Path, source: BundleSource, files: dict[str, bytes], disk: Disk) -> None:
    directory = path / METADATA_DIR
    disk.make_directory(directory)
    versions = {role: state_of(data, role).version for role, data in files.items()}
    names = {role: f"{versions[role]}.{role}.json" for role in ("targets", "snapshot", "root")} | {
        "timestamp": "timestamp.json"
    }
    for version in range(1, versions["root"]):
        name = f"{METADATA_DIR}/{version}.root.json"
        older = source.read(name, ROOT_MAX_BYTES)
        if older is not None and not (path / name).exists():
            disk.write_file(path / name, older)
    for role in ("targets", "snapshot", "root", "timestamp"):
        disk.write_file(directory / names[role], files[role])
