"""A change on its way into a repository: staged, signed – perhaps on several machines – and published in order.

Targets and snapshot are written under names nobody refers to yet, then the timestamp is replaced by one rename, then
a new root is added. Whatever was interrupted is taken up by the next call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from msgspec import Struct

from contract.bundle.layout import METADATA_DIR
from contract.errors import BuildRefused
from contract.system.durable import Disk
from contract.trust import signing
from contract.trust.signing import RoleKeys
from contract.trust.targets_index import Entry
from packager.publish.keyring import KeyRing
from packager.publish.metadata import PublishedMetadata, version_of

STAGED_DIR = "staged"


class Expiries(Struct, frozen=True):
    """Days until each role's signature runs out."""

    root: float = 365
    targets: float = 180
    snapshot: float = 30
    timestamp: float = 7


class Outcome(Struct, frozen=True):
    """``pending`` says which signatures are still missing; empty when the change is published."""

    pending: list[str] = []

    @property
    def published(self) -> bool:
        return not self.pending


class StagedChange:
    """The one change that may be on its way in the repository at ``path``; its owner holds the repository's lock.

    Raises:
        BuildRefused: from every method that needs a finished repository, when there is none.
        StoreFull, StoreBroken.
    """

    def __init__(
        self, path: Path, keys: KeyRing, expiries: Expiries, clock: Callable[[], datetime], disk: Disk
    ) -> None:
        self.path = path
        self.metadata = PublishedMetadata(path)
        self._keys = keys
        self._expiries = expiries
        self._clock = clock
        self._disk = disk

    def stage_root(self, roles: Mapping[str, RoleKeys], version: int) -> None:
        root = signing.make_root(roles, version=version, expires=self._expiry("root"), signed_at=self._clock())
        self._write_staged("root", root)

    def stage_targets(self, bundles: Mapping[str, Entry], revoked: Sequence[str], version: int | None = None) -> None:
        version = version or version_of(self.metadata.targets, "targets") + 1
        expires, now = self._expiry("targets"), self._clock()
        targets = signing.make_targets(bundles, revoked, version=version, expires=expires, signed_at=now)
        self._write_staged("targets", targets)

    def staged(self, role: str) -> Path:
        return self.path / STAGED_DIR / f"{role}.json"

    def read_staged(self, role: str) -> bytes | None:
        path = self.staged(role)
        return path.read_bytes() if path.exists() else None

    def root(self) -> bytes:
        root = self.metadata.root
        if root is None:
            raise BuildRefused(f"{self.path} is not a finished repository; make one with `edge-packager repo init`")
        return root

    def finish(self) -> None:
        outcome = self.advance()
        if outcome.pending:
            raise BuildRefused(
                f"an earlier change still waits for {'; '.join(outcome.pending)}; `edge-packager repo sign` on the "
                "machines with those keys, or `edge-packager repo discard`"
            )

    def advance(self) -> Outcome:
        """Sign what is staged with the keys at hand and publish it if that suffices."""
        current = self.metadata.root
        root = self._sign_staged_root(current)
        roots = [document for document in (current, root) if document is not None]
        if not roots:
            raise BuildRefused(f"{self.path} is not a finished repository; make one with `edge-packager repo init`")
        targets = self._sign_staged_targets(roots)
        if root is None and targets is None:
            # A change that was published and then interrupted leaves its staged documents behind.
            self._disk.remove(self.path / STAGED_DIR)
            return Outcome()
        pending = self._missing(root, targets, current, roots)
        if pending:
            return Outcome(pending)
        body = targets or self.metadata.targets
        assert body is not None, "the first root is staged together with the first targets"
        if targets is not None:
            self._write_metadata(f"{version_of(targets, 'targets')}.targets.json", targets)
        pending = self.publish_online(body, roots)
        if pending:
            return Outcome(pending)
        if root is not None:
            self._write_metadata(f"{version_of(root, 'root')}.root.json", root)
        self._disk.remove(self.path / STAGED_DIR)
        return Outcome()

    def publish_online(self, targets: bytes, roots: Sequence[bytes]) -> list[str]:
        """Snapshot and timestamp over ``targets``; which signatures are missing, if any."""
        before = self.metadata
        snapshot = self._sign_online(
            "snapshot",
            signing.make_snapshot(
                targets, version=version_of(before.snapshot, "snapshot") + 1, expires=self._expiry("snapshot")
            ),
            roots,
        )
        timestamp = self._sign_online(
            "timestamp",
            signing.make_timestamp(
                snapshot, version=version_of(before.timestamp, "timestamp") + 1, expires=self._expiry("timestamp")
            ),
            roots,
        )
        missing = [
            f"the {role} key"
            for role, document in (("snapshot", snapshot), ("timestamp", timestamp))
            if signing.missing_signatures(document, role, roots[-1])
        ]
        if not missing:
            self._write_metadata(f"{version_of(snapshot, 'snapshot')}.snapshot.json", snapshot)
            self._write_metadata("timestamp.json", timestamp)
        return missing

    def _expiry(self, role: str) -> datetime:
        return self._clock().replace(microsecond=0) + timedelta(days=getattr(self._expiries, role))

    def _write_staged(self, role: str, document: bytes) -> None:
        self._make_directory(self.path / STAGED_DIR)
        self._disk.write_file(self.staged(role), document)

    def _sign_staged_root(self, current: bytes | None) -> bytes | None:
        staged = self.read_staged("root")
        if staged is None or version_of(staged, "root") <= version_of(current, "root"):
            return None
        publics = [*signing.role_keys(staged)["root"].publics]
        if current is not None:
            publics += signing.role_keys(current)["root"].publics
        return self._sign_staged("root", staged, publics)

    def _sign_staged_targets(self, roots: Sequence[bytes]) -> bytes | None:
        staged = self.read_staged("targets")
        if staged is None or version_of(staged, "targets") <= version_of(self.metadata.targets, "targets"):
            return None
        return self._sign_staged(
            "targets", staged, [public for root in roots for public in signing.role_keys(root)["targets"].publics]
        )

    def _sign_staged(self, role: str, document: bytes, publics: Sequence[str]) -> bytes:
        signed = signing.sign(document, self._keys.find(dict.fromkeys(publics)))
        if signed != document:
            self._write_staged(role, signed)
        return signed

    def _missing(
        self, root: bytes | None, targets: bytes | None, current: bytes | None, roots: Sequence[bytes]
    ) -> list[str]:
        missing: dict[str, int] = {}
        if root is not None:
            by_old = signing.missing_signatures(root, "root", current) if current is not None else 0
            missing["root"] = max(by_old, signing.missing_signatures(root, "root", root))
        if targets is not None:
            missing["targets"] = signing.missing_signatures(targets, "targets", roots[-1])
        return [f"{count} more signature(s) for {role}" for role, count in missing.items() if count]

    def _sign_online(self, role: str, document: bytes, roots: Sequence[bytes]) -> bytes:
        publics = [public for root in roots for public in signing.role_keys(root)[role].publics]
        return signing.sign(document, self._keys.find(dict.fromkeys(publics)))

    def _write_metadata(self, name: str, document: bytes) -> None:
        self._make_directory(self.path / METADATA_DIR)
        self._disk.write_file(self.path / METADATA_DIR / name, document)

    def _make_directory(self, path: Path) -> None:
        if not path.is_dir():
            self._disk.make_directory(path)
