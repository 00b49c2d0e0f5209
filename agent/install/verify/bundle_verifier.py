"""Re-checking bundles that lie on this device, and noticing that a file was touched since.

The anchor is the manifest's digest as ``state.db`` recorded it at sealing; the manifest then names the rest.
"""

from __future__ import annotations

from pathlib import Path

from agent.install.ports import SealedBundle
from contract.bundle.manifest import MANIFEST_FILE, Manifest
from contract.bundle.verifier import OnBytes, verify_directory
from contract.errors import BundleRefused, StoreBroken
from contract.identifiers import Digest
from contract.reasons import Reason

StatFingerprint = tuple[tuple[int, ...], ...]
"""What changes when a file is written or replaced."""


def verify_bundle(directory: Path, digest: Digest, on_bytes: OnBytes | None = None) -> SealedBundle:
    """Verify a bundle completely; the proof is the return type.

    Raises:
        BundleRefused: the first fault found.
        StoreBroken: the disk does not let us look.
    """
    return SealedBundle(verify_directory(directory, digest, on_bytes))


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
