"""Which bundles a repository lists, and which it has revoked, read from verified targets metadata."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import NamedTuple

from tuf.api.metadata import Metadata, Targets

from contract.bundle.layout import target_name
from contract.errors import BundleRefused
from contract.identifiers import Digest, check_digest
from contract.reasons import Reason

REVOKED_FIELD = "x-edge-revoked"
"""A list of NAME@VERSION in the signed part of targets metadata; TUF clients ignore fields that they do not know."""

SIGNED_FIELD = "x-edge-signed"
"""When people signed it (UTC): TUF itself records only when it expires."""

TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"

_TARGET = re.compile(r"manifests/([^/]+)/([^/]+)\.json")


class Entry(NamedTuple):
    """Digest and size of a manifest."""

    digest: Digest
    size: int


class TargetsIndex:
    """What verified ``targets`` say; never constructed from unverified metadata outside the trust room."""

    def __init__(self, targets: Targets) -> None:
        self._targets = targets

    @classmethod
    def of(cls, verified_targets: bytes) -> TargetsIndex:
        """From the bytes of targets metadata that was verified before."""
        return cls(Metadata[Targets].from_bytes(verified_targets).signed)

    @property
    def revoked(self) -> list[str]:
        """NAME@VERSION of every revoked bundle."""
        found = self._targets.unrecognized_fields.get(REVOKED_FIELD, [])
        return [text for text in found if isinstance(text, str)] if isinstance(found, list) else []

    @property
    def signed(self) -> datetime | None:
        """When people signed this list, None if they did not say."""
        text = self._targets.unrecognized_fields.get(SIGNED_FIELD)
        try:
            return datetime.strptime(text, TIME_FORMAT).replace(tzinfo=UTC) if isinstance(text, str) else None
        except ValueError:
            return None

    @property
    def bundles(self) -> dict[str, Entry]:
        """Every listed NAME@VERSION."""
        found: dict[str, Entry] = {}
        for path in self._targets.targets:
            match = _TARGET.fullmatch(path)
            if match is not None:
                found[f"{match[1]}@{match[2]}"] = self.entry(match[1], match[2])
        return found

    def entry(self, name: str, version: str) -> Entry:
        """Digest and size of the manifest of ``name@version``.

        Raises:
            BundleRefused: REVOKED, NOT_LISTED; METADATA_INVALID when it is listed without a SHA-256.
        """
        reference = f"{name}@{version}"
        if reference in self.revoked:
            raise BundleRefused(Reason.REVOKED, f"{reference} was revoked by its publisher")
        target = self._targets.targets.get(target_name(name, version))
        if target is None:
            raise BundleRefused(Reason.NOT_LISTED, f"{reference} is not listed in the repository's signed metadata")
        if set(target.hashes) != {"sha256"}:
            raise BundleRefused(
                Reason.METADATA_INVALID, f"{reference} is listed without a SHA-256, or with other hashes", signed=True
            )
        return Entry(check_digest(target.hashes["sha256"]), target.length)
