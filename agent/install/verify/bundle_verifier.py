"""Re-checking bundles that lie on this device: every byte, every name, nothing missing and nothing extra.

The anchor is the manifest's digest as ``state.db`` recorded it at sealing; the manifest then names the rest.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from agent.install.ports import SealedBundle
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
StatFingerprint = tuple[tuple[int, ...], ...]
"""What changes when a file is written or replaced."""


def read_manifest(directory: Path, digest: Digest) -> Manifest:
    """The manifest of a bundle on this device, which must be the one that was recorded.

    Raises:
        BundleRefused: FILE_MISSING, DIGEST_MISMATCH, TOO_LARGE.
        StoreBroken: it cannot be read.
    """
    with _opened(directory / MANIFEST_FILE, MANIFEST_FILE) as file:
        stored = file.read(MAX_MANIFEST_BYTES + 1)
    if manifest_digest(stored) != digest:
        raise BundleRefused(
            Reason.DIGEST_MISMATCH, f"{MANIFEST_FILE} of {digest[:12]} was changed on this disk", field=MANIFEST_FILE
        )
    return parse_manifest(stored)


def find_faults(directory: Path, manifest: Manifest, on_bytes: OnBytes | None = None) -> Iterator[BundleRefused]:
    """Everything that is not as the manifest says; hashes every file.

    Raises:
        StoreBroken: the disk does not let us look.
    """
    entries = {entry.path: entry for entry in manifest.files}
    yield from _extra_names(directory, {MANIFEST_FILE, *entries})
    for entry in manifest.files:
        try:
            check_file(directory / entry.path, entry, on_bytes)
        except BundleRefused as fault:
            yield fault


def check_file(path: Path, entry: FileEntry, on_bytes: OnBytes | None = None) -> None:
    """Hash one file and hold it against its entry.

    Raises:
        BundleRefused: FILE_MISSING, SIZE_MISMATCH, DIGEST_MISMATCH, UNSAFE_PATH.
        StoreBroken: it cannot be read.
    """
    with _opened(path, entry.path) as file:
        size = file.size
        if size != entry.size:
            raise BundleRefused(
                Reason.SIZE_MISMATCH, f"{entry.path} has {size} bytes instead of {entry.size}", field=entry.path
            )
        digest = hashlib.sha256()
        while piece := file.read(READ_BYTES):
            digest.update(piece)
            if on_bytes is not None:
                on_bytes(len(piece))
    if digest.hexdigest() != entry.sha256:
        raise BundleRefused(
            Reason.DIGEST_MISMATCH, f"{entry.path} does not have the content that was signed", field=entry.path
        )


def verify_bundle(directory: Path, digest: Digest, on_bytes: OnBytes | None = None) -> SealedBundle:
    """Verify a bundle completely; the proof is the return type.

    Raises:
        BundleRefused: the first fault found.
        StoreBroken: the disk does not let us look.
    """
    manifest = read_manifest(directory, digest)
    for fault in find_faults(directory, manifest, on_bytes):
        raise fault
    return SealedBundle(digest=digest, directory=directory, manifest=manifest)


def fingerprint_files(directory: Path, manifest: Manifest) -> StatFingerprint:
    """What changes when a file of the bundle is written, replaced or renamed over: inode, size, times of change.

    Taken before a verification and compared after a use, it proves that what was used is what was verified, against
    anybody but root: nobody else can set the time of a file's last change (ctime).

    Raises:
        BundleRefused: FILE_MISSING.
        StoreBroken: the disk does not let us look.
    """
    stat_fingerprint = []
    for name in (MANIFEST_FILE, *(entry.path for entry in manifest.files)):
        try:
            found = (directory / name).lstat()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise BundleRefused(Reason.FILE_MISSING, f"{name} is missing", field=name) from error
        except OSError as error:
            raise StoreBroken(f"{directory / name} cannot be read: {error.strerror}") from error
        stat_fingerprint.append((found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))
    return tuple(stat_fingerprint)


def check_unchanged(directory: Path, manifest: Manifest, expected: StatFingerprint) -> None:
    """Refuse a bundle of which a file was touched since ``expected`` were taken.

    Raises:
        BundleRefused: DIGEST_MISMATCH, FILE_MISSING.
        StoreBroken: the disk does not let us look.
    """
    if fingerprint_files(directory, manifest) != expected:
        raise BundleRefused(
            Reason.DIGEST_MISMATCH, f"a file of {manifest.reference} was swapped between its verification and its use"
        )


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
                raise self._not_regular() from error
            raise StoreBroken(f"{self._path} cannot be opened: {error.strerror}") from error
        found = os.fstat(self._handle)
        if not stat.S_ISREG(found.st_mode):
            os.close(self._handle)
            raise self._not_regular()
        self.size = found.st_size
        return self

    def _not_regular(self) -> BundleRefused:
        return BundleRefused(Reason.UNSAFE_PATH, f"{self._name} is not a regular file", field=self._name)

    def read(self, count: int) -> bytes:
        try:
            return os.read(self._handle, count)
        except OSError as error:
            raise StoreBroken(f"{self._path} cannot be read: {error.strerror}") from error

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)


def _extra_names(directory: Path, expected: set[str]) -> Iterator[BundleRefused]:
    wanted_directories = {str(parent) for name in expected for parent in Path(name).parents} - {"."}

    def broken(error: OSError) -> None:
        raise StoreBroken(f"{error.filename} cannot be listed: {error.strerror}") from error

    for where, directories, files in os.walk(directory, onerror=broken):
        base = Path(where).relative_to(directory)
        for name in files:
            if str(base / name) not in expected:
                yield _extra(str(base / name))
        for name in directories:
            if (Path(where) / name).is_symlink() or str(base / name) not in wanted_directories:
                yield _extra(str(base / name))


def _extra(name: str) -> BundleRefused:
    return BundleRefused(Reason.FILE_EXTRA, f"{name} does not belong to the bundle", field=name)
