"""From verified parts to a sealed bundle: put together beside its final place, made read-only, renamed.

The type of the argument is the proof that the manifest was signed; the digests of the parts were checked by the
caller in this same process.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from agent.install.ports import SealedBundle
from agent.install.verify.adapters import check_fits
from agent.install.verify.content_policy import check_contents
from agent.state.layout import StateDirectory
from contract.bundle import verifier
from contract.bundle.manifest import MANIFEST_FILE, Manifest
from contract.bundle.verifier import VerifiedDirectory
from contract.errors import BundleRefused
from contract.identifiers import Digest
from contract.system.durable import Disk
from contract.trust.verified import TrustedManifest

FILE_MODE = 0o444
DIRECTORY_MODE = 0o555


def salvage_parts(directory: StateDirectory, digest: Digest, manifest: Manifest, disk: Disk) -> None:
    """Undo a sealing that was interrupted: what was moved out of the inbox goes back there.

    Raises:
        StoreBroken, StoreFull.
    """
    sealing = directory.sealing(digest)
    if not sealing.exists():
        return
    for parent in {(sealing / entry.path).parent for entry in manifest.files} | {sealing}:
        if parent.is_dir():
            disk.set_mode(parent, 0o700)
    for entry in manifest.files:
        path, part = sealing / entry.path, directory.part(entry.sha256)
        # A file with a second name belongs to another bundle too and must never become writable.
        if path.is_file() and path.stat().st_nlink == 1 and not part.exists():
            disk.set_mode(path, 0o600)
            disk.rename(path, part)
    disk.remove(sealing)


def seal_bundle(
    trusted: TrustedManifest,
    parts: Mapping[str, Path],
    linked: Mapping[str, Path],
    directory: StateDirectory,
    disk: Disk,
) -> SealedBundle:
    """Move ``parts`` (by SHA-256), and give ``linked`` files of other bundles a second name, into ``bundles/``.

    Raises:
        BundleRefused: what the files say is not allowed; nothing of the bundle is left then.
        StoreBroken, StoreFull: what was done is undone by :func:`salvage_parts` at the next attempt.
    """
    manifest, digest = trusted.manifest, trusted.digest
    sealing, final = directory.sealing(digest), directory.bundle(digest)
    disk.remove(sealing)
    disk.make_directory(sealing, 0o700)
    placed: dict[str, Path] = {}
    for entry in manifest.files:
        target = sealing / entry.path
        disk.make_directory(target.parent, 0o700)
        if entry.sha256 in placed:
            disk.link(placed[entry.sha256], target)
        elif entry.sha256 in linked:
            disk.link(linked[entry.sha256], target)
        else:
            disk.set_mode(parts[entry.sha256], FILE_MODE)
            disk.rename(parts[entry.sha256], target)
        placed[entry.sha256] = target
    try:
        check_contents(manifest, lambda path: sealing / path)
        check_fits(manifest, lambda path: sealing / path, directory)
    except BundleRefused:
        disk.remove(sealing)
        raise
    disk.write_file(sealing / MANIFEST_FILE, trusted.stored, FILE_MODE)
    inner = {parent for entry in manifest.files for parent in (sealing / entry.path).parents if parent != sealing}
    for parent in sorted((each for each in inner if each.is_relative_to(sealing)), reverse=True):
        disk.set_mode(parent, DIRECTORY_MODE)
    disk.set_mode(sealing, DIRECTORY_MODE)
    # A damaged bundle of the same digest makes room for the sound one.
    disk.remove(final)
    disk.rename(sealing, final)
    return SealedBundle(VerifiedDirectory(verifier._GUARD, final, digest, manifest))
