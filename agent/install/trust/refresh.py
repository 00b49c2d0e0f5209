"""Asking trust which bundle NAME@VERSION is, and whether what is installed may still be.

tuf is loaded when that is asked, which happens in the installer process alone: it costs 32 MB.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from agent.install.download.mirrors import Mirrors
from agent.install.process.messages import InstallJob
from agent.install.verify.bundle_verifier import verify_bundle
from agent.state.audit import AuditLog
from agent.state.installation import InstallationState
from agent.state.layout import StateDirectory
from agent.state.warnings import Warned
from contract.bundle.layout import target_name
from contract.errors import BundleRefused, EdgeBundleError, UsageError
from contract.reasons import Reason
from contract.source import BundleSource
from contract.system.durable import Disk
from contract.trust.clock import effective_time, kernel_clock_synchronised
from contract.trust.verified import TrustedManifest

if TYPE_CHECKING:
    from contract.trust.store import TrustStore
    from contract.trust.targets_index import TargetsIndex


def now() -> datetime:
    """The system clock; one name, so that a test can set it."""
    return datetime.now(UTC)


class TrustRefresh:
    """The trust of one device, while one job is done.

    Raises:
        StoreFull, StoreBroken: from every method.
    """

    def __init__(self, directory: StateDirectory, state: InstallationState, disk: Disk) -> None:
        self._directory = directory
        self._state = state
        self._disk = disk
        self._problem: EdgeBundleError | None = None
        self._refreshed = False

    def resolve(self, job: InstallJob, mirrors: Mirrors) -> TrustedManifest:
        """The manifest that current, signed metadata lists as the job's bundle.

        Raises:
            BundleRefused, SourceUnavailable.
            UsageError: the job brings a root, and the device trusts another repository.
        """
        from contract.trust.resolve import fetch_manifest

        store = self._store()
        target_name(job.name, job.version)  # a bad name is refused before anything is fetched
        if job.root is not None:
            self._provision(store, Path(job.root))
        try:
            return mirrors.first_working(
                lambda source: fetch_manifest(
                    self._refresh(store, source, job.offline_grace), source, job.name, job.version, floor=self._state
                )
            )
        finally:
            self._update_warnings(store)

    def refresh(self, mirrors: Mirrors, *, offline_grace: bool) -> None:
        """Bring trust up to date and note what it says of the bundles that are installed.

        Raises:
            BundleRefused, SourceUnavailable: it could not be brought up to date; what it says is noted all the same.
        """
        store = self._store()
        try:
            mirrors.first_working(lambda source: self._refresh(store, source, offline_grace))
        finally:
            self._update_warnings(store)

    def check_not_revoked(self, name: str, version: str) -> None:
        """Look the bundle up in the trust that this device has now; its publisher may have dropped it, not revoked it.

        Raises:
            BundleRefused: REVOKED, TRUST_STATE_LOST.
        """
        from contract.trust.resolve import listed_digest

        try:
            listed_digest(self._store(), self._state, name, version)
        except BundleRefused as refused:
            if refused.reason is not Reason.NOT_LISTED:
                raise

    def _provision(self, store: TrustStore, path: Path) -> None:
        """Trust the root at ``path`` where nothing is trusted yet.

        Raises:
            BundleRefused, UsageError.
        """
        trusts_already = bool(self._state.role_versions())
        version = store.provision(_read_root(path), self._state)
        if not trusts_already:
            AuditLog(self._directory.audit, self._disk, "operator").record(
                "provisioned", message=f"{path} (root version {version})"
            )

    def _store(self) -> TrustStore:
        from contract.trust.store import TrustStore

        return TrustStore(self._directory.trust, self._disk)

    def _refresh(self, store: TrustStore, source: BundleSource, offline_grace: bool) -> TargetsIndex:
        from contract.trust.resolve import refresh

        try:
            listing = refresh(
                store=store,
                source=source,
                floor=self._state,
                clock=now,
                offline_grace=offline_grace,
                synchronised=kernel_clock_synchronised,
            )
        except EdgeBundleError as error:
            self._problem = error
            raise
        self._refreshed = True
        return listing

    def _update_warnings(self, store: TrustStore) -> None:
        """Compare what is installed with the trust there is now, and write down what is new."""
        problem = None if self._refreshed or not isinstance(self._problem, BundleRefused) else self._problem
        found = list(self._warnings(store, problem))
        fresh = self._state.warning_store.replace(found)
        audit = AuditLog(self._directory.audit, self._disk, "installer")
        for each in fresh:
            bundle = self._state.bundle(each.digest)
            audit.note(
                "warned",
                bundle=bundle and bundle.reference,
                digest=each.digest,
                reason=str(each.reason),
                message=each.message,
            )

    def _warnings(self, store: TrustStore, problem: BundleRefused | None) -> list[Warned]:
        from contract.trust.targets_index import TargetsIndex

        found: dict[tuple[Reason, str | None], Warned] = {}

        def warn(warned: Warned) -> None:
            found.setdefault((warned.reason, warned.digest), warned)

        if problem is not None:
            warn(Warned(problem.reason, None, problem.message))
        damage = self._damage()
        if damage is not None:
            warn(damage)
        try:
            files = store.load(self._state)
        except BundleRefused as lost:
            warn(Warned(lost.reason, None, lost.message))
            # What was revoked stays revoked.
            for each in self._state.warning_store.warnings():
                if each.reason is Reason.REVOKED:
                    warn(each)
            return list(found.values())
        if "targets" in files:
            revoked = set(TargetsIndex.of(files["targets"]).revoked)
            for bundle in self._state.bundles():
                if bundle.reference in revoked:
                    warn(Warned(Reason.REVOKED, bundle.digest, f"{bundle.reference} was revoked by its publisher"))
        self._state.warning_store.note_expiry(expiry_times(files))
        expired = self._expired(files)
        if expired:
            warn(
                Warned(
                    Reason.EXPIRED,
                    None,
                    f"the {' and '.join(expired)} metadata is expired: nothing new is installed until the repository "
                    "is refreshed; what is installed serves on",
                )
            )
        return list(found.values())

    def _damage(self) -> Warned | None:
        """What is wrong with the bytes of the active bundle, each of which is hashed."""
        active = self._state.bundle(self._state.snapshot().active)
        if active is None:
            return None
        try:
            verify_bundle(self._directory.bundle(active.digest), active.digest)
        except BundleRefused as fault:
            return Warned(fault.reason, active.digest, f"{active.reference} was changed on this disk: {fault.message}")
        return None

    def _expired(self, files: dict[str, bytes]) -> list[str]:
        from contract.trust.resolve import OFFLINE_GRACE
        from contract.trust.signing import state_of

        at = effective_time(now, self._state, kernel_clock_synchronised)
        return [
            role
            for role, data in files.items()
            # A device without a network is not warned of what a stick would be forgiven.
            if state_of(data, role).expires
            + (OFFLINE_GRACE if role in ("timestamp", "snapshot") else OFFLINE_GRACE * 0)
            <= at
        ]


def expiry_times(files: Mapping[str, bytes]) -> dict[str, int]:
    """When the metadata of each role in ``files`` expires, Unix seconds."""
    from contract.trust.signing import state_of

    return {role: int(state_of(data, role).expires.timestamp()) for role, data in files.items()}


def _read_root(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
