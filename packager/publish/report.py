"""What a repository holds, who signed it, what expires when; and whether all of it is as it should be."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from msgspec import Struct

from contract.bundle.layout import METADATA_DIR, ROLES, object_path
from contract.errors import BuildRefused, BundleRefused
from contract.reasons import Reason
from contract.source.directory import DirectorySource
from contract.trust.resolve import fetch_manifest, refresh
from contract.trust.rollback_floor import MemoryRollbackFloor
from contract.trust.signing import keyid_of, missing_signatures, role_keys, state_of
from contract.trust.store import TrustStore
from packager.publish.bundle_directory import file_digest
from packager.publish.metadata import PublishedMetadata
from packager.publish.staging import STAGED_DIR


class RoleReport(Struct, frozen=True):
    """One document; ``keys`` may sign it, ``threshold`` of them must, ``signed_by`` did."""

    role: str
    version: int
    expires: datetime
    threshold: int
    keys: list[str]
    signed_by: list[str]


class BundleReport(Struct, frozen=True):
    reference: str
    digest: str


class RepositoryReport(Struct, frozen=True):
    """``waiting`` names staged documents and how many signatures each still needs."""

    path: str
    roles: list[RoleReport]
    bundles: list[BundleReport]
    revoked: list[str]
    waiting: dict[str, int]


def show(path: Path) -> RepositoryReport:
    """Read, without verifying.

    Raises:
        BuildRefused: not a finished repository.
    """
    metadata = PublishedMetadata(path)
    documents = {
        "root": metadata.root,
        "targets": metadata.targets,
        "snapshot": metadata.snapshot,
        "timestamp": metadata.timestamp,
    }
    root = documents["root"]
    waiting = _waiting(path, root)
    if root is None:
        fix = "signatures are missing, see `edge-packager repo sign`" if waiting else "see `edge-packager repo init`"
        raise BuildRefused(f"{path} is not a finished repository: {fix}")
    keys = role_keys(root)
    roles = []
    for role in ROLES:
        document = documents[role]
        assert document is not None, "a finished repository has all four"
        state = state_of(document, role)
        roles.append(
            RoleReport(
                role=role,
                version=state.version,
                expires=state.expires,
                threshold=keys[role].threshold,
                keys=[keyid_of(public) for public in keys[role].publics],
                signed_by=state.signed_by,
            )
        )
    listing = metadata.listing
    return RepositoryReport(
        path=str(path),
        roles=roles,
        bundles=[BundleReport(reference, entry.digest) for reference, entry in sorted(listing.bundles.items())],
        revoked=listing.revoked,
        waiting=waiting,
    )


def _waiting(path: Path, root: bytes | None) -> dict[str, int]:
    found: dict[str, int] = {}
    staged_root = path / STAGED_DIR / "root.json"
    if staged_root.exists():
        document = staged_root.read_bytes()
        by_old = missing_signatures(document, "root", root) if root is not None else 0
        found["root"] = max(by_old, missing_signatures(document, "root", document))
        root = document
    staged_targets = path / STAGED_DIR / "targets.json"
    if staged_targets.exists() and root is not None:
        found["targets"] = missing_signatures(staged_targets.read_bytes(), "targets", root)
    return found


def verify(path: Path, clock: Callable[[], datetime], on_bytes: Callable[[int], None] = lambda count: None) -> int:
    """Check everything a device would, from the first root to the last byte; how many bundles are listed.

    Raises:
        BundleRefused: the first fault found.
        BuildRefused: not a finished repository.
    """
    roots = PublishedMetadata(path).root_versions
    if not roots:
        raise BuildRefused(f"{path} is not a finished repository")
    source, floor = DirectorySource(path), MemoryRollbackFloor()
    with tempfile.TemporaryDirectory() as scratch:
        store = TrustStore(Path(scratch))
        store.provision((path / METADATA_DIR / f"{roots[0]}.root.json").read_bytes(), floor)
        listing = refresh(store=store, source=source, floor=floor, clock=clock, offline_grace=False)
    checked: set[str] = set()
    for reference in listing.bundles:
        name, _, version = reference.partition("@")
        for entry in fetch_manifest(listing, source, name, version).manifest.files:
            if entry.sha256 in checked:
                continue
            file = path / object_path(entry.sha256)
            if not file.is_file():
                raise BundleRefused(Reason.FILE_MISSING, f"{reference} lacks {object_path(entry.sha256)}")
            if file_digest(file) != entry.sha256:
                raise BundleRefused(Reason.DIGEST_MISMATCH, f"{object_path(entry.sha256)} of {reference} is damaged")
            checked.add(entry.sha256)
            on_bytes(entry.size)
    return len(listing.bundles)
