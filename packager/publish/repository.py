"""Changing a repository so that a reader at any instant sees the old or the new one.

Order of every change: objects, manifest, targets, snapshot – all under names nobody refers to yet – and then the
timestamp, replaced by one rename. What still lacks signatures waits in ``staged/``; an interrupted change is taken up
by the next command. Rotated keys sign together with the old ones where those are at hand, and the new root comes
last: so there is no instant at which the metadata fits neither root.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from contract.bundle.layout import ROLES, manifest_path, object_path, target_name
from contract.bundle.manifest import Manifest
from contract.errors import BuildRefused, StoreBroken
from contract.reasons import Reason
from contract.source import BundleSource
from contract.system.durable import Disk, translate
from contract.system.file_lock import open_lock, take_lock
from contract.trust import signing
from contract.trust.signing import RoleKeys
from contract.trust.targets_index import Entry, TargetsIndex
from packager.publish import archive
from packager.publish.bundle_directory import BundleDirectory, copy_checked, file_digest, read_bundle_directory
from packager.publish.clock import check_publishers_clock
from packager.publish.keyring import KeyRing
from packager.publish.metadata import PublishedMetadata, version_of
from packager.publish.staging import STAGED_DIR, Expiries, Outcome, StagedChange

LOCK_FILE = ".lock"


def _now() -> datetime:
    return datetime.now(UTC)


class Repository:
    """The repository at ``path``, changed with the keys of ``keys``.

    Raises:
        StoreBroken: STATE_LOCKED, from every change, when another publisher is at work.
        StoreFull, BuildRefused.
    """

    def __init__(
        self,
        path: Path,
        keys: KeyRing,
        *,
        expiries: Expiries | None = None,
        clock: Callable[[], datetime] = _now,
        disk: Disk | None = None,
        clock_is_right: bool = False,
    ) -> None:
        self.path = path
        self._keys = keys
        self._clock = clock
        self._clock_is_right = clock_is_right
        self._disk = disk or Disk()
        self._change = StagedChange(path, keys, expiries or Expiries(), clock, self._disk)
        self.metadata = PublishedMetadata(path)

    @classmethod
    def init(
        cls,
        path: Path,
        keys_dir: Path,
        *,
        passphrase: str | None = None,
        root_keys: int = 1,
        root_threshold: int = 1,
        targets_keys: int = 1,
        targets_threshold: int = 1,
        others: Mapping[str, Sequence[str]] | None = None,
        expiries: Expiries | None = None,
        clock: Callable[[], datetime] = _now,
        disk: Disk | None = None,
    ) -> Repository:
        """Make keys and a first, empty repository; see :meth:`create` for the case of keys elsewhere.

        ``others`` are public keys of people who sign on other machines, by role, beyond the keys made here.
        """
        ring = KeyRing(keys_dir, None if passphrase is None else lambda: passphrase, disk)
        repository = cls(path, ring, expiries=expiries, clock=clock, disk=disk)
        counts = {"root": root_keys, "targets": targets_keys, "snapshot": 1, "timestamp": 1}
        thresholds = {"root": root_threshold, "targets": targets_threshold, "snapshot": 1, "timestamp": 1}
        repository.create(counts, thresholds, others or {})
        return repository

    def create(
        self, counts: Mapping[str, int], thresholds: Mapping[str, int], others: Mapping[str, Sequence[str]]
    ) -> Outcome:
        """Make ``counts`` keys for each role beside ``others``, and the first root and empty targets.

        Raises:
            BuildRefused: there is a repository already, or a threshold nobody can meet.
        """
        for role in ROLES:
            available = counts[role] + len(others.get(role, ()))
            if not 1 <= thresholds[role] <= available:
                raise BuildRefused(f"{role} gets {available} keys, so {thresholds[role]} signatures cannot be required")
        self._disk.make_directory(self.path)
        with self._locked(signing_now=False):
            if self.metadata.root is not None or self._change.staged("root").exists():
                unfinished = "" if self.metadata.root is not None else "; `edge-packager repo sign` finishes it"
                raise BuildRefused(f"{self.path} is a repository already{unfinished}")
            self._check_clock()
            roles = {
                role: RoleKeys(
                    (*(self._keys.generate(role).public for _ in range(counts[role])), *others.get(role, ())),
                    thresholds[role],
                )
                for role in ROLES
            }
            # The root last: it is what makes this a repository, that `sign` can finish.
            self._change.stage_targets({}, [], 1)
            self._change.stage_root(roles, 1)
            return self._change.advance()

    def publish(self, bundle_dir: Path, on_bytes: Callable[[int], None] = lambda count: None) -> Outcome:
        """Publish a bundle directory; doing it again, or after an interruption, is fine.

        Raises:
            BundleRefused: the directory is not exactly what its manifest lists.
            BuildRefused: that NAME@VERSION is published with other contents, or revoked.
        """
        bundle = read_bundle_directory(bundle_dir)
        name, version = bundle.manifest.name, bundle.manifest.version
        reference = f"{name}@{version}"
        with self._locked():
            listing = self._listing_to_change(reference, bundle)
            if reference in listing.revoked:
                raise BuildRefused(f"{reference} was revoked and cannot be published again; use a new version")
            known = listing.bundles.get(reference)
            if known is not None and known.digest != bundle.digest:
                raise BuildRefused(f"{reference} is published with other contents; use a new version")
            self._store(bundle, on_bytes)
            if known is None:
                bundles = self._targets_of(listing)
                bundles[target_name(name, version)] = Entry(bundle.digest, len(bundle.stored))
                self._change.stage_targets(bundles, listing.revoked)
            return self._change.advance()

    def revoke(self, reference: str) -> Outcome:
        """Take NAME@VERSION off the list for ever; devices that have it report it and refuse to go back to it.

        Raises:
            BuildRefused: it is not listed.
        """
        with self._locked():
            listing = self._listing_to_change(reference, None)
            if reference in listing.revoked:
                return self._change.advance()
            bundles = self._targets_of(listing)
            name, _, version = reference.partition("@")
            if bundles.pop(target_name(name, version), None) is None:
                raise BuildRefused(f"{reference} is not published here")
            self._change.stage_targets(bundles, [*listing.revoked, reference])
            return self._change.advance()

    def rotate(
        self, role: str, *, keys: int | None = None, threshold: int | None = None, others: Sequence[str] = ()
    ) -> Outcome:
        """Give ``role`` new keys; the old ones count for nothing once the new root is out.

        ``keys`` are made here (as many as before, less ``others``, when not given).
        """
        with self._locked():
            self._change.finish()
            root = self._change.root()
            roles = signing.role_keys(root)
            count = max(0, len(roles[role].publics) - len(others)) if keys is None else keys
            needed = roles[role].threshold if threshold is None else threshold
            if not 1 <= needed <= count + len(others):
                raise BuildRefused(f"{role} gets {count + len(others)} keys, so {needed} signatures cannot be required")
            publics = (*(self._keys.generate(role).public for _ in range(count)), *others)
            self._change.stage_root({**roles, role: RoleKeys(publics, needed)}, version_of(root, "root") + 1)
            if role == "targets":
                listing = self.metadata.listing
                self._change.stage_targets(self._targets_of(listing), listing.revoked)
            return self._change.advance()

    def renew_root(self) -> Outcome:
        """A new root with the same keys and a later expiry."""
        with self._locked():
            self._change.finish()
            root = self._change.root()
            self._change.stage_root(signing.role_keys(root), version_of(root, "root") + 1)
            return self._change.advance()

    def renew_targets(self) -> Outcome:
        """The same list with a later expiry."""
        with self._locked():
            self._change.finish()
            listing = self.metadata.listing
            self._change.stage_targets(self._targets_of(listing), listing.revoked)
            return self._change.advance()

    def refresh(self) -> Outcome:
        """New snapshot and timestamp over the same targets; what a cron job does every day."""
        with self._locked():
            targets = self.metadata.targets
            if targets is None:
                raise BuildRefused(f"{self.path} is not a finished repository")
            missing = self._change.publish_online(targets, [self._change.root()])
            return Outcome(missing)

    def sign(self) -> Outcome:
        """Add the signatures of the keys at hand to what is staged, and publish it once there are enough.

        Raises:
            BuildRefused: nothing waits for signatures.
        """
        with self._locked():
            if not any(self._change.staged(role).exists() for role in ("root", "targets")):
                raise BuildRefused("nothing waits for signatures")
            return self._change.advance()

    def export(
        self, name: str, version: str, out: Path, on_bytes: Callable[[int], None] = lambda count: None
    ) -> Manifest:
        """Write ``name@version`` to an ``.edgebundle`` file; see :func:`packager.publish.archive.export`."""
        return archive.export(self.path, name, version, out, on_bytes=on_bytes)

    def receive(
        self, source: BundleSource, root: bytes | None = None, on_bytes: Callable[[int], None] = lambda count: None
    ) -> list[str]:
        """Take over what ``source`` holds, as a mirror without keys does; the NAME@VERSIONs received.

        ``root`` is needed only by an empty mirror.

        Raises:
            BundleRefused, SourceUnavailable, StoreFull, StoreBroken.
            BuildRefused: an empty mirror without ``root``.
        """
        self._disk.make_directory(self.path)
        with self._locked(signing_now=False):
            trusted = self.metadata.root or root
            if trusted is None:
                raise BuildRefused("an empty mirror needs the root that it shall trust: give it with --root")
            return archive.receive(self.path, source, trusted, self._clock, disk=self._disk, on_bytes=on_bytes)

    def discard(self) -> None:
        """Throw away what is staged."""
        with self._locked(signing_now=False):
            self._disk.remove(self.path / STAGED_DIR)

    # How changes are made.

    @contextlib.contextmanager
    def _locked(self, *, signing_now: bool = True) -> Iterator[None]:
        try:
            handle = open_lock(self.path / LOCK_FILE, 0o644)
        except OSError as error:
            raise BuildRefused(f"{self.path} is not a repository that can be changed: {error.strerror}") from error
        try:
            if not take_lock(handle):
                raise StoreBroken(
                    f"another publisher is changing {self.path}; try again when it is done", reason=Reason.STATE_LOCKED
                )
            if signing_now:
                self._check_clock()
            yield
        finally:
            os.close(handle)

    def _check_clock(self) -> None:
        if not self._clock_is_right:
            check_publishers_clock(self._clock(), self.metadata)

    def _listing_to_change(self, reference: str, bundle: BundleDirectory | None) -> TargetsIndex:
        """The list a change starts from; an interrupted change of the very same bundle is simply taken up."""
        staged = self._change.read_staged("targets")
        if staged is not None and self.metadata.root is not None:
            listing = signing.listing_of(staged)
            same = listing.bundles.get(reference)
            if (bundle and same and same.digest == bundle.digest) or (not bundle and reference in listing.revoked):
                return listing
        self._change.finish()
        return self.metadata.listing

    @staticmethod
    def _targets_of(listing: TargetsIndex) -> dict[str, Entry]:
        return {target_name(*text.split("@", 1)): entry for text, entry in listing.bundles.items()}

    def _store(self, bundle: BundleDirectory, on_bytes: Callable[[int], None]) -> None:
        for entry in bundle.manifest.files:
            target = self.path / object_path(entry.sha256)
            # Where the object is here already, the bundle's own file must still be what is listed.
            if target.exists() and {file_digest(target), file_digest(bundle.path / entry.path)} == {entry.sha256}:
                on_bytes(entry.size)
                continue
            self._disk.make_directory(target.parent)
            part = target.with_name(f".{target.name}.part")
            try:
                copy_checked(bundle.path / entry.path, entry, part, on_bytes)
                self._disk.sync_file(part)
                self._disk.rename(part, target)
            except OSError as error:
                raise translate(error, f"copying {entry.path}") from error
            finally:
                part.unlink(missing_ok=True)
        manifest = bundle.manifest
        target = self.path / manifest_path(manifest.name, manifest.version, bundle.digest)
        self._disk.make_directory(target.parent)
        self._disk.write_file(target, bundle.stored)
