"""Bundles of the repository as they were read last, each with its signed manifest."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, delete, select

from contract.bundle.manifest import Manifest
from contract.strict_json import prepare
from fleet.store.schema import bundle
from fleet.store.upsert import upsert

# Read by the service's loop and by whoever answers HTTP.
prepare(Manifest)


class CatalogueEntry(Struct, frozen=True, kw_only=True):
    """``revoked``: its publisher took it back; ``read_at``: when the repository was read."""

    digest: str
    manifest: Manifest
    revoked: bool
    read_at: float

    @property
    def reference(self) -> str:
        return self.manifest.reference


def entries(connection: Connection) -> list[CatalogueEntry]:
    """By name and version."""
    query = select(bundle).order_by(bundle.c.name, bundle.c.version)
    return [
        CatalogueEntry(
            digest=row.digest,
            manifest=msgspec.json.decode(row.manifest, type=Manifest),
            revoked=row.revoked,
            read_at=row.read_at,
        )
        for row in connection.execute(query)
    ]


def replace(connection: Connection, listed: Mapping[str, Manifest], revoked: Collection[str], now: float) -> None:
    """All that the repository lists now, by digest; what it has revoked and was listed before stays, and says so."""
    kept = [each for each in entries(connection) if each.reference in revoked]
    fresh = [
        CatalogueEntry(digest=digest, manifest=manifest, revoked=False, read_at=now)
        for digest, manifest in listed.items()
    ]
    connection.execute(delete(bundle))
    upsert(connection, bundle, [_values(each, each.reference in revoked, now) for each in (*kept, *fresh)])


def _values(each: CatalogueEntry, revoked: bool, now: float) -> dict[str, Any]:
    return {
        "name": each.manifest.name,
        "version": each.manifest.version,
        "digest": each.digest,
        "manifest": _without_chunks(each.manifest),
        "revoked": revoked,
        "read_at": now,
    }


def _without_chunks(manifest: Manifest) -> str:
    """A list of chunks is a megabyte, and nothing here reads it."""
    files = [msgspec.structs.replace(file, chunks=[]) for file in manifest.files]
    return msgspec.json.encode(msgspec.structs.replace(manifest, files=files)).decode()
