"""A bundle directory about to be published: exactly the manifest and the files it lists, byte for byte."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from contract.bundle.manifest import (
    MANIFEST_FILE,
    MAX_MANIFEST_BYTES,
    FileEntry,
    Manifest,
    manifest_digest,
    parse_manifest,
)
from contract.errors import BundleRefused
from contract.identifiers import Digest
from contract.reasons import Reason


class BundleDirectory(Struct, frozen=True):
    """Its names and sizes were compared with the manifest; contents are checked while they are copied."""

    path: Path
    manifest: Manifest
    stored: bytes

    @property
    def digest(self) -> Digest:
        return manifest_digest(self.stored)


def read_bundle_directory(path: Path) -> BundleDirectory:
    """Read and compare.

    Raises:
        BundleRefused: FILE_MISSING, FILE_EXTRA (a renamed file is both), SIZE_MISMATCH, UNSAFE_PATH for links and
            other special files, or what is wrong with the manifest.
    """
    file = path / MANIFEST_FILE
    if file.is_symlink() or not file.is_file():
        raise BundleRefused(Reason.FILE_MISSING, f"{path} is not a bundle: it has no {MANIFEST_FILE}")
    if file.stat().st_size > MAX_MANIFEST_BYTES:
        raise BundleRefused(Reason.TOO_LARGE, f"{file} is larger than any manifest")
    stored = file.read_bytes()
    manifest = parse_manifest(stored)
    found = _walk(path)
    listed = {entry.path: entry.size for entry in manifest.files}
    for name in listed:
        if name not in found:
            raise BundleRefused(Reason.FILE_MISSING, f"{name!r} is listed in the manifest but missing", field=name)
    for name, size in found.items():
        if name not in listed:
            raise BundleRefused(Reason.FILE_EXTRA, f"{name!r} is not listed in the manifest", field=name)
        if size != listed[name]:
            raise BundleRefused(
                Reason.SIZE_MISMATCH, f"{name!r} has {size} bytes, the manifest says {listed[name]}", field=name
            )
    return BundleDirectory(path, manifest, stored)


def _walk(path: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for directory, subdirectories, files in os.walk(path):
        for name in (*subdirectories, *files):
            entry = Path(directory, name)
            relative = entry.relative_to(path).as_posix()
            if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
                raise BundleRefused(Reason.UNSAFE_PATH, f"{relative!r} is a link or a special file", field=relative)
            if entry.is_file() and relative != MANIFEST_FILE:
                found[relative] = entry.stat().st_size
    return found


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
