"""Asking trust which bundle NAME@VERSION is.

tuf is loaded when that is asked, which happens in the installer process alone: it costs 32 MB.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from agent.install.job import Job
from agent.install.sources import Mirrors
from agent.state.installation import InstallationState
from agent.state.layout import StateDirectory
from contract.durable import Disk
from contract.errors import BundleRefused, UsageError
from contract.reasons import Reason
from contract.trust.clock import kernel_clock_synchronised
from contract.trust.verified import TrustedManifest


def resolve_bundle(
    job: Job, mirrors: Mirrors, directory: StateDirectory, state: InstallationState, disk: Disk
) -> TrustedManifest:
    """The manifest that current, signed metadata lists as the job's bundle.

    Raises:
        BundleRefused, SourceUnavailable, StoreFull, StoreBroken.
        UsageError: the job brings a root, and the device trusts another repository.
    """
    from contract.trust.resolve import resolve
    from contract.trust.store import TrustStore

    store = TrustStore(directory.trust, disk)
    if job.root is not None:
        store.provision(_read_root(Path(job.root)), state)
    return mirrors.first_working(
        lambda source: resolve(
            store=store,
            source=source,
            name=job.name,
            version=job.version,
            floor=state,
            clock=lambda: datetime.now(UTC),
            offline_grace=job.offline_grace,
            synchronised=kernel_clock_synchronised,
        )
    )


def check_not_revoked(job: Job, directory: StateDirectory, state: InstallationState, disk: Disk) -> None:
    """Look the bundle up in the trust that this device has now; its publisher may have dropped it, not revoked it.

    Raises:
        BundleRefused: REVOKED, TRUST_STATE_LOST.
    """
    from contract.trust.resolve import listed_digest
    from contract.trust.store import TrustStore

    try:
        listed_digest(TrustStore(directory.trust, disk), state, job.name, job.version)
    except BundleRefused as refused:
        if refused.reason is not Reason.NOT_LISTED:
            raise


def _read_root(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
