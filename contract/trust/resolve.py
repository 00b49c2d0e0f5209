"""From NAME@VERSION and a source to a :class:`TrustedManifest`: refresh trust, look it up, check its manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from contract.bundle.layout import manifest_path, target_name
from contract.bundle.manifest import MAX_MANIFEST_BYTES, parse_manifest
from contract.errors import BundleRefused, EdgeBundleError, SourceUnavailable
from contract.identifiers import Digest, check_digest
from contract.reasons import Reason
from contract.source import BundleSource
from contract.source.tar import TarSource
from contract.trust import verified
from contract.trust.clock import effective_time
from contract.trust.refresh import Refresh, Trusted
from contract.trust.rollback_floor import RollbackFloor
from contract.trust.store import TrustStore
from contract.trust.targets_index import SIGNED_FIELD, TargetsIndex
from contract.trust.verified import TrustedManifest

OFFLINE_GRACE = timedelta(days=30)
"""What timestamp and snapshot of an ``.edgebundle`` file are forgiven: a stick takes that long to reach a box."""


def refresh(
    *,
    store: TrustStore,
    source: BundleSource,
    floor: RollbackFloor,
    clock: Callable[[], datetime],
    offline_grace: bool,
    synchronised: Callable[[], bool] = lambda: False,
) -> TargetsIndex:
    """Bring the device's trust up to date with ``source`` and say what it lists; durable when it returns.

    ``offline_grace`` forgives timestamp and snapshot of a tar 30 days; it has no effect on other sources.

    Raises:
        BundleRefused: with the reason; SourceUnavailable, StoreBroken, StoreFull.
    """
    at = effective_time(clock, floor, synchronised)
    grace = OFFLINE_GRACE if offline_grace and isinstance(source, TarSource) else timedelta()
    run = Refresh(store.load(floor), source, at=at, grace=grace, scratch=store.scratch)
    try:
        trusted = run.run()
    except EdgeBundleError:
        if run.newer_root is not None:
            store.keep_root(run.newer_root, floor)
        raise
    store.keep(trusted.files, floor)
    _raise_clock(trusted, floor)
    return TargetsIndex(trusted.targets)


def resolve(
    *,
    store: TrustStore,
    source: BundleSource,
    name: str,
    version: str,
    floor: RollbackFloor,
    clock: Callable[[], datetime],
    offline_grace: bool,
    synchronised: Callable[[], bool] = lambda: False,
) -> TrustedManifest:
    """The manifest of ``name@version``, proved to be listed by current metadata and to be exactly what was published.

    Raises:
        BundleRefused: with the reason; SourceUnavailable, StoreBroken, StoreFull.
    """
    target_name(name, version)  # refuse bad names before anything is fetched
    listing = refresh(
        store=store, source=source, floor=floor, clock=clock, offline_grace=offline_grace, synchronised=synchronised
    )
    return fetch_manifest(listing, source, name, version, floor)


def fetch_manifest(
    listing: TargetsIndex, source: BundleSource, name: str, version: str, floor: RollbackFloor | None = None
) -> TrustedManifest:
    """The manifest of ``name@version`` as ``listing`` has it; its date raises the clock floor.

    Raises:
        BundleRefused: NOT_LISTED, REVOKED, or what is wrong with the manifest; SourceUnavailable.
    """
    entry = listing.entry(name, version)
    path = manifest_path(name, version, entry.digest)
    if entry.size > MAX_MANIFEST_BYTES:
        raise BundleRefused(
            Reason.TOO_LARGE, f"the manifest of {name}@{version} is larger than any manifest", signed=True
        )
    stored = source.read(path, entry.size)
    if stored is None:
        if isinstance(source, TarSource):
            raise BundleRefused(Reason.FILE_MISSING, f"{source.description} has no manifest of {name}@{version}")
        raise SourceUnavailable(f"{source.description} has no {path}")
    if len(stored) != entry.size:
        raise BundleRefused(Reason.SIZE_MISMATCH, f"the manifest of {name}@{version} has not the size that is listed")
    if hashlib.sha256(stored).hexdigest() != entry.digest:
        raise BundleRefused(Reason.DIGEST_MISMATCH, f"the manifest of {name}@{version} is not the one that is listed")
    try:
        manifest = parse_manifest(stored)
    except BundleRefused as refused:
        # These bytes are what was signed, by whichever way they came.
        refused.signed = True
        raise
    if (manifest.name, manifest.version) != (name, version):
        raise BundleRefused(
            Reason.METADATA_MIXED,
            f"the manifest listed as {name}@{version} calls itself {manifest.reference}",
            signed=True,
        )
    if floor is not None:
        floor.raise_clock_floor(_seconds(manifest.created))
    return TrustedManifest(verified._GUARD, manifest, stored)


def listed_digest(store: TrustStore, floor: RollbackFloor, name: str, version: str) -> Digest:
    """The manifest digest of ``name@version`` in the trust this device has now, without asking any source.

    Raises:
        BundleRefused: NOT_LISTED, REVOKED, TRUST_STATE_LOST.
    """
    files = store.load(floor)
    if "targets" not in files:
        raise BundleRefused(Reason.NOT_LISTED, f"{name}@{version} is not listed: this device has seen no list yet")
    return check_digest(TargetsIndex.of(files["targets"]).entry(name, version).digest)


def _raise_clock(trusted: Trusted, floor: RollbackFloor) -> None:
    """Learn the time from what people signed; a stolen timestamp key alone must not move clocks."""
    for signed in (trusted.root, trusted.targets):
        text = signed.unrecognized_fields.get(SIGNED_FIELD)
        if isinstance(text, str):
            floor.raise_clock_floor(_seconds(text))


def _seconds(text: str) -> int:
    try:
        return int(datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp())
    except (ValueError, OverflowError):
        return 0
