"""Whether a directory is the bundle that its manifest lists: every byte and name, nothing missing and nothing extra."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import final

from msgspec import Struct

from contract.bundle.manifest import (
    MANIFEST_FILE,
    MAX_MANIFEST_BYTES,
    FileEntry,
    Manifest,
    manifest_digest,
    parse_manifest,
)
from contract.errors import BundleRefused, StoreBroken
from contract.identifiers import Digest
from contract.reasons import Reason

READ_BYTES = 1 << 20

OnBytes = Callable[[int], None]

_GUARD = object()


class StoredManifest(Struct, frozen=True):
    """A manifest as it lies in a bundle directory; nothing of the directory was compared with it yet."""

    stored: bytes
    manifest: Manifest

    @property
    def digest(self) -> Digest:
        return manifest_digest(self.stored)


@final
class VerifiedDirectory:
    """A directory that was exactly what ``manifest``, the one of ``digest``, lists.

    Made by :func:`verify_directory`, and by :mod:`agent.install.download.seal`, which puts a directory together of
    files that were verified one by one.
    """

    __slots__ = ("_digest", "_manifest", "_path")

    def __init__(self, guard: object, path: Path, digest: Digest, manifest: Manifest) -> None:
        if guard is not _GUARD:
            raise TypeError("a VerifiedDirectory is made by verifying a directory and in no other way")
        self._path = path
        self._digest = digest
        self._manifest = manifest

    @property
    def path(self) -> Path:
        return self._path

    @property
    def digest(self) -> Digest:
        return self._digest

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VerifiedDirectory) and (self._path, self._digest) == (other._path, other._digest)

    def __hash__(self) -> int:
        return hash((self._path, self._digest))

    def __repr__(self) -> str:
        return f"VerifiedDirectory({self._manifest.reference}, {self._digest[:12]})"


def read_manifest(directory: Path, digest: Digest | None = None) -> StoredManifest:
    """The manifest of the bundle in ``directory``, which must be the one of ``digest`` if that is given.

    Raises:
        BundleRefused: FILE_MISSING, UNSAFE_PATH, DIGEST_MISMATCH, TOO_LARGE, or what is wrong with it.
        StoreBroken: it cannot be read.
    """
    if not os.path.lexists(directory / MANIFEST_FILE):
        raise BundleRefused(Reason.FILE_MISSING, f"there is no {MANIFEST_FILE} in {directory}", field=MANIFEST_FILE)
    with _opened(directory / MANIFEST_FILE, MANIFEST_FILE) as file:
        stored = file.read(MAX_MANIFEST_BYTES + 1)
    if digest is not None and manifest_digest(stored) != digest:
        raise BundleRefused(
            Reason.DIGEST_MISMATCH, f"{MANIFEST_FILE} of {digest[:12]} was changed on this disk", field=MANIFEST_FILE
        )
    return StoredManifest(stored, parse_manifest(stored))


def verify_directory(directory: Path, digest: Digest, on_bytes: OnBytes | None = None) -> VerifiedDirectory:
    """Verify the bundle of ``digest`` in ``directory`` completely; the proof is the return type.

    Raises:
        BundleRefused: the first fault found.
        StoreBroken: the disk does not let us look.
    """
    manifest = read_manifest(directory, digest).manifest
    for fault in find_faults(directory, manifest, on_bytes):
        raise fault
    return VerifiedDirectory(_GUARD, directory, digest, manifest)


def find_faults(directory: Path, manifest: Manifest, on_bytes: OnBytes | None = None) -> Iterator[BundleRefused]:
    """Everything that is not as the manifest says; hashes every file. ``on_bytes`` is called with the bytes just read.

    Raises:
        StoreBroken: the disk does not let us look.
    """
    faulty = set()
    for fault in find_listing_faults(directory, manifest):
        faulty.add(fault.field)
        yield fault
    for entry in manifest.files:
        if entry.path not in faulty:
            try:
                check_file(directory / entry.path, entry, on_bytes)
            except BundleRefused as fault:
                yield fault


def find_listing_faults(directory: Path, manifest: Manifest) -> Iterator[BundleRefused]:
    """What is wrong with the names, kinds and sizes; no content is read.

    Raises:
        StoreBroken: the disk does not let us look.
    """
    listed = {entry.path: entry for entry in manifest.files}
    found, directories = _walk(directory)
    found.pop(MANIFEST_FILE, None)
    needed = {str(parent) for name in listed for parent in Path(name).parents}
    special = sorted(name for name, status in found.items() if not stat.S_ISREG(status.st_mode))
    extra = sorted((found.keys() - listed.keys() - set(special)) | (directories - needed))
    for name in special:
        yield _not_regular(name)
    for name in listed:
        if name not in found:
            instead = f"; {extra[0]} is there instead" if extra else ""
            yield BundleRefused(Reason.FILE_MISSING, f"{name} is missing{instead}", field=name)
    for name in extra:
        yield BundleRefused(Reason.FILE_EXTRA, f"{name} does not belong to the bundle", field=name)
    for name, entry in listed.items():
        if name in found and name not in special and found[name].st_size != entry.size:
            yield _wrong_size(entry, found[name].st_size)


def check_file(path: Path, entry: FileEntry, on_bytes: OnBytes | None = None) -> None:
    """Hash one file and hold it against its entry.

    Raises:
        BundleRefused: FILE_MISSING, SIZE_MISMATCH, DIGEST_MISMATCH, UNSAFE_PATH.
        StoreBroken: it cannot be read.
    """
    with _opened(path, entry.path) as file:
        if file.size != entry.size:
            raise _wrong_size(entry, file.size)
        digest = hashlib.sha256()
        while piece := file.read(READ_BYTES):
            digest.update(piece)
            if on_bytes is not None:
                on_bytes(len(piece))
    if digest.hexdigest() != entry.sha256:
        raise BundleRefused(
            Reason.DIGEST_MISMATCH,
            f"{entry.path} does not have the content that was signed{_where_changed(path, entry)}",
            field=entry.path,
        )


def _where_changed(path: Path, entry: FileEntry) -> str:
    """Which chunk is the first that is not what is listed, read again; nothing where all are."""
    begin = 0
    with _opened(path, entry.path) as file:
        for chunk in entry.chunks:
            digest, left = hashlib.sha256(), chunk.size
            while left and (piece := file.read(min(left, READ_BYTES))):
                digest.update(piece)
                left -= len(piece)
            if digest.hexdigest() != chunk.sha256:
                return f": it was changed between byte {begin} and byte {begin + chunk.size}"
            begin += chunk.size
    return ""


def _wrong_size(entry: FileEntry, size: int) -> BundleRefused:
    return BundleRefused(
        Reason.SIZE_MISMATCH, f"{entry.path} has {size} bytes instead of {entry.size}", field=entry.path
    )


def _not_regular(name: str) -> BundleRefused:
    return BundleRefused(Reason.UNSAFE_PATH, f"{name} is not a regular file", field=name)


class _opened:
    """A regular file, read without following links; only our errors come out."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name

    def __enter__(self) -> _opened:
        try:
            self._handle = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise BundleRefused(Reason.FILE_MISSING, f"{self._name} is missing", field=self._name) from error
        except OSError as error:
            if self._path.is_symlink():
                raise _not_regular(self._name) from error
            raise StoreBroken(f"{self._path} cannot be opened: {error.strerror}") from error
        found = os.fstat(self._handle)
        if not stat.S_ISREG(found.st_mode):
            os.close(self._handle)
            raise _not_regular(self._name)
        self.size = found.st_size
        return self

    def read(self, count: int) -> bytes:
        try:
            return os.read(self._handle, count)
        except OSError as error:
            raise StoreBroken(f"{self._path} cannot be read: {error.strerror}") from error

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)


def _walk(directory: Path) -> tuple[dict[str, os.stat_result], set[str]]:
    """What is not a directory below ``directory``, links not followed, and the directories; paths from there."""

    def broken(error: OSError) -> None:
        raise StoreBroken(f"{error.filename} cannot be listed: {error.strerror}") from error

    found: dict[str, os.stat_result] = {}
    directories: set[str] = set()
    for where, inner, files in os.walk(directory, onerror=broken):
        for name in (*inner, *files):
            path = Path(where, name)
            try:
                status = path.lstat()
            except OSError as error:
                raise StoreBroken(f"{path} cannot be read: {error.strerror}") from error
            relative = path.relative_to(directory).as_posix()
            if stat.S_ISDIR(status.st_mode):
                directories.add(relative)
            else:
                found[relative] = status
    return found, directories
