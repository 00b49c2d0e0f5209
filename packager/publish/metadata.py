"""What a repository says now: the newest root, and what its timestamp leads to."""

from __future__ import annotations

import re
from pathlib import Path

from contract.bundle.layout import METADATA_DIR
from contract.errors import BuildRefused
from contract.trust.signing import listing_of, referenced, state_of
from contract.trust.targets_index import TargetsIndex

_ROOT = re.compile(r"([1-9][0-9]{0,9})\.root\.json")


class PublishedMetadata:
    """Reads ``metadata/`` of the repository at ``path``; nothing is cached, readers see each other's changes."""

    def __init__(self, path: Path) -> None:
        self._directory = path / METADATA_DIR

    @property
    def root_versions(self) -> list[int]:
        """All root versions, ascending."""
        found = (_ROOT.fullmatch(entry.name) for entry in self._directory.glob("*.root.json"))
        return sorted(int(match[1]) for match in found if match)

    @property
    def root(self) -> bytes | None:
        """The newest root, None before the first."""
        versions = self.root_versions
        return self._read(f"{versions[-1]}.root.json") if versions else None

    @property
    def timestamp(self) -> bytes | None:
        """None before anything was published."""
        path = self._directory / "timestamp.json"
        return path.read_bytes() if path.exists() else None

    @property
    def snapshot(self) -> bytes | None:
        timestamp = self.timestamp
        return None if timestamp is None else self._read(f"{referenced(timestamp, 'timestamp')}.snapshot.json")

    @property
    def targets(self) -> bytes | None:
        snapshot = self.snapshot
        return None if snapshot is None else self._read(f"{referenced(snapshot, 'snapshot')}.targets.json")

    @property
    def listing(self) -> TargetsIndex:
        """What is listed.

        Raises:
            BuildRefused: nothing was ever published here.
        """
        targets = self.targets
        if targets is None:
            raise BuildRefused(
                f"{self._directory.parent} is not a finished repository; make one with `edge-packager repo init`"
            )
        return listing_of(targets)

    def files(self) -> list[str]:
        """Names of what a client needs now: every root, then the other three."""
        timestamp, snapshot = self.timestamp, self.snapshot
        if timestamp is None or snapshot is None:
            raise BuildRefused(f"{self._directory.parent} is not a finished repository")
        return [
            *(f"{version}.root.json" for version in self.root_versions),
            "timestamp.json",
            f"{referenced(timestamp, 'timestamp')}.snapshot.json",
            f"{referenced(snapshot, 'snapshot')}.targets.json",
        ]

    def _read(self, name: str) -> bytes:
        try:
            return (self._directory / name).read_bytes()
        except OSError as error:
            raise BuildRefused(f"{self._directory / name} cannot be read: {error.strerror}") from error


def version_of(document: bytes | None, what: str) -> int:
    """The version of a document, 0 for none."""
    return 0 if document is None else state_of(document, what).version
