"""What happens to an active bundle that its publisher has revoked."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from agent.install.desired import ReplaceRevoked, read_desired
from agent.install.settings import InstallSettings
from agent.state.installation import InstallationState, InstalledBundle
from contract.errors import BundleRefused
from contract.identifiers import Digest
from contract.source.access import Source


def must_be_replaced(state: InstallationState, settings: InstallSettings, sources: Mapping[str, Source]) -> bool:
    """Whether what is active was revoked, and the policy in force wants it out of service."""
    return state.snapshot().active in state.warning_store.revoked() and _replaces(state, settings, sources)


def adapters_to_drop(
    state: InstallationState, settings: InstallSettings, sources: Mapping[str, Source]
) -> list[InstalledBundle]:
    """Adapters beside the active bundle that were revoked, if the policy in force wants them out of service."""
    revoked = state.warning_store.revoked()
    found = [bundle for bundle in state.adapters_of(state.snapshot().active) if bundle.digest in revoked]
    return found if found and _replaces(state, settings, sources) else []


def _replaces(state: InstallationState, settings: InstallSettings, sources: Mapping[str, Source]) -> bool:
    snapshot, policy = state.snapshot(), settings
    if snapshot.desired is not None and not snapshot.overridden:
        try:
            target = read_desired(snapshot.desired, settings, sources)
        except BundleRefused:
            # Accepted under an older configuration; it does not count any more.
            target = None
        policy = settings if target is None else target.settings
    return policy.on_revoked == "replace"


def find_replacement(state: InstallationState, unfit: Collection[Digest]) -> InstalledBundle | None:
    """The bundle to go back to: the previous one, else the newest on this disk; None when none is acceptable.

    Never one that was revoked, failed here, is in ``unfit`` or lies below the committed security epoch.
    """
    snapshot = state.snapshot()
    excluded = {snapshot.active, *unfit, *state.warning_store.revoked(), *(each.digest for each in state.quarantined())}
    excluded |= state.adapters().keys()
    fit = [
        bundle
        for bundle in state.bundles()
        if bundle.digest not in excluded and bundle.security_epoch >= snapshot.epoch
    ]
    return min(fit, key=lambda bundle: bundle.digest != snapshot.previous, default=None)


def replacement_target(bundle: InstalledBundle, settings: InstallSettings, revision: str | None) -> ReplaceRevoked:
    """The target for a bundle on this disk; the swap limit does not delay a security replacement."""
    return ReplaceRevoked(bundle.name, bundle.version, settings, digest=bundle.digest, revision=revision)
