"""Looks a bundle up in its repository, as a device would: signed, fresh, listed, not revoked."""

from __future__ import annotations

import tempfile
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from contract.bundle.manifest import Manifest
from contract.errors import UsageError
from contract.identifiers import parse_reference
from contract.source.opening import open_source
from contract.trust.resolve import fetch_manifest, refresh, resolve
from contract.trust.rollback_floor import MemoryRollbackFloor
from contract.trust.store import TrustStore
from fleet.rollout.model import Bundle
from fleet.rollout.plan import Needs

MAX_ROOT_BYTES = 1 << 20
"""A root of trust has a few kilobytes."""

MAX_BUNDLES = 2000
"""Of a repository that are shown."""


class Listed(NamedTuple):
    """A bundle that is listed now; ``bytes`` of all its files, of which a device fetches what it has not."""

    bundle: Bundle
    bytes: int
    needs: Needs


def look_up(name: str, version: str, *, depot: str, root: Path) -> Listed:
    """Ask ``depot`` (a directory, an ``.edgebundle`` file or a URL) with the root of trust that devices have.

    Raises:
        BundleRefused: it is not listed, revoked, or the repository is not to be trusted. SourceUnavailable: it cannot
            be read. UsageError: the root cannot.
    """
    root_json = _read_root(root)
    with (
        tempfile.TemporaryDirectory(prefix="edge-fleet-trust-") as directory,
        closing(open_source(depot)) as source,
    ):
        store, floor = TrustStore(Path(directory)), MemoryRollbackFloor()
        store.provision(root_json, floor)
        trusted = resolve(
            store=store,
            source=source,
            name=name,
            version=version,
            floor=floor,
            clock=lambda: datetime.now(UTC),
            offline_grace=True,
        )
    manifest = trusted.manifest
    return Listed(
        Bundle(name, version, trusted.digest),
        sum(file.size for file in manifest.files),
        Needs(tuple(manifest.requires.arch), manifest.requires.min_ram_bytes),
    )


class Catalogue(NamedTuple):
    """Manifests of all that is listed, by digest, and NAME@VERSION of what was revoked."""

    listed: dict[str, Manifest]
    revoked: frozenset[str]


def read_catalogue(depot: str, root: Path) -> Catalogue:
    """All that ``depot`` lists now, with manifests that were verified as a device verifies them.

    Raises:
        BundleRefused: the repository is not to be trusted. SourceUnavailable: it cannot be read. UsageError: the root
            cannot.
    """
    root_json = _read_root(root)
    with (
        tempfile.TemporaryDirectory(prefix="edge-fleet-trust-") as directory,
        closing(open_source(depot)) as source,
    ):
        store, floor = TrustStore(Path(directory)), MemoryRollbackFloor()
        store.provision(root_json, floor)
        index = refresh(store=store, source=source, floor=floor, clock=lambda: datetime.now(UTC), offline_grace=True)
        listed = {}
        for reference in sorted(set(index.bundles) - set(index.revoked))[:MAX_BUNDLES]:
            trusted = fetch_manifest(index, source, *parse_reference(reference), floor)
            listed[str(trusted.digest)] = trusted.manifest
        return Catalogue(listed, frozenset(index.revoked))


def _read_root(root: Path) -> bytes:
    try:
        with root.open("rb") as file:
            return file.read(MAX_ROOT_BYTES)
    except OSError as error:
        raise UsageError(f"the root of trust {root} cannot be read: {error.strerror}") from error
