"""Looks a bundle up in its repository, as a device would: signed, fresh, listed, not revoked."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from contract.errors import UsageError
from contract.source.opening import open_source
from contract.trust.resolve import resolve
from contract.trust.rollback_floor import MemoryRollbackFloor
from contract.trust.store import TrustStore
from fleet.rollout.model import Bundle
from fleet.rollout.plan import Needs

MAX_ROOT_BYTES = 1 << 20
"""A root of trust has a few kilobytes."""


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
    try:
        with root.open("rb") as file:
            root_json = file.read(MAX_ROOT_BYTES)
    except OSError as error:
        raise UsageError(f"the root of trust {root} cannot be read: {error.strerror}") from error
    with tempfile.TemporaryDirectory(prefix="edge-fleet-trust-") as directory:
        store, floor = TrustStore(Path(directory)), MemoryRollbackFloor()
        store.provision(root_json, floor)
        trusted = resolve(
            store=store,
            source=open_source(depot),
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
