"""A bundle that lies on this device already, verified once more: the way back to it."""

from __future__ import annotations

from collections.abc import Callable

from agent.install.ports import SealedBundle
from agent.install.process.messages import OnLine, Reached, Resolved, ReverifyJob
from agent.install.update.state_machine import Event
from agent.install.verify.bundle_verifier import verify_bundle
from agent.state.installation import InstallationState
from agent.state.layout import StateDirectory
from contract.bundle.manifest import Manifest
from contract.errors import BundleRefused
from contract.reasons import Reason


def check_epoch(manifest: Manifest, floor: int) -> None:
    """Refuse a bundle whose security epoch lies below what was committed here.

    Raises:
        BundleRefused: EPOCH_ROLLBACK.
    """
    if manifest.security_epoch < floor:
        raise BundleRefused(
            Reason.EPOCH_ROLLBACK,
            f"{manifest.reference} has security epoch {manifest.security_epoch}, this device has seen {floor}",
            field="security_epoch",
        )


def reverify_bundle(
    job: ReverifyJob,
    directory: StateDirectory,
    state: InstallationState,
    report: OnLine,
    check_not_revoked: Callable[[], None],
) -> SealedBundle:
    """The bundle, every byte of it verified.

    Raises:
        BundleRefused, StoreFull, StoreBroken.
    """
    bundle = state.bundle(job.digest)
    if bundle is None:
        raise BundleRefused(Reason.NOT_LISTED, f"{job.reference} is not on this device")
    report(Resolved(bundle.digest, bundle.name, bundle.version, bundle.security_epoch, bundle.bytes))
    if not job.allow_epoch:
        check_not_revoked()
    sealed = verify_bundle(directory.bundle(bundle.digest), bundle.digest)
    if not job.allow_epoch:
        check_epoch(sealed.manifest, state.epoch())
    for event in (Event.PRESENT, Event.VERIFIED, Event.SEALED):
        report(Reached(event))
    return sealed
