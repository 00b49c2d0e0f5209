"""A bundle directory about to be published: exactly the manifest and the files it lists, byte for byte."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from contract.bundle.manifest import FileEntry, Manifest
from contract.bundle.verifier import StoredManifest, find_listing_faults, read_manifest
from contract.errors import BundleRefused
from contract.identifiers import Digest
from contract.reasons import Reason


class BundleDirectory(Struct, frozen=True):
    """Its names and sizes were compared with the manifest; contents are checked while they are copied."""

    path: Path
    listed: StoredManifest

    @property
    def manifest(self) -> Manifest:
        return self.listed.manifest

    @property
    def stored(self) -> bytes:
        return self.listed.stored

    @property
    def digest(self) -> Digest:
        return self.listed.digest


def read_bundle_directory(path: Path) -> BundleDirectory:
    """Read and compare.

    Raises:
        BundleRefused: FILE_MISSING, FILE_EXTRA (a renamed file is both), SIZE_MISMATCH, UNSAFE_PATH for links and
            other special files, or what is wrong with the manifest.
        StoreBroken: it cannot be read.
    """
    listed = read_manifest(path)
    for fault in find_listing_faults(path, listed.manifest):
        raise fault
    return BundleDirectory(path, listed)


def copy_checked(source: Path, entry: FileEntry, target: Path, on_bytes: Callable[[int], None]) -> None:
    """Copy a file, comparing every chunk and the whole with the manifest; ``target`` is not flushed.

    Raises:
        BundleRefused: DIGEST_MISMATCH, SIZE_MISMATCH.
    """
    whole = hashlib.sha256()
    with source.open("rb") as read, target.open("wb") as write:
        for chunk in entry.chunks:
            piece = read.read(chunk.size)
            if hashlib.sha256(piece).hexdigest() != chunk.sha256:
                raise BundleRefused(Reason.DIGEST_MISMATCH, f"{entry.path!r} is not what the manifest lists")
            whole.update(piece)
            write.write(piece)
            on_bytes(len(piece))
        if read.read(1):
            raise BundleRefused(Reason.SIZE_MISMATCH, f"{entry.path!r} is longer than the manifest says")
    if whole.hexdigest() != entry.sha256:
        raise BundleRefused(Reason.DIGEST_MISMATCH, f"{entry.path!r} is not what the manifest lists")


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
