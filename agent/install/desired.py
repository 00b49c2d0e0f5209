"""The desired state: checked ``desired`` documents and orders of the operator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import UNSET, Struct

from agent.install.settings import InstallSettings, tighten
from agent.install.update.state_machine import State
from agent.state.installation import InstallationState
from contract.errors import BundleRefused, UsageError
from contract.identifiers import Digest
from contract.mqtt.reading import parse_desired, salvage_revision
from contract.reasons import Reason
from contract.source.access import Source

RequestedBy = Literal["operator", "desired", "automatic"]


class DesiredBundle(Struct, frozen=True):
    """A bundle to be run, from the first of ``sources`` that can deliver it, under ``settings``.

    ``digest`` names a bundle on this disk (a rollback); then no source is asked. ``operator``: the order
    came from this device's own operator, who may try again what failed. ``root`` provisions trust where there is none.
    ``urgent``: swaps per hour do not count. ``is_rollback``: it was active before what is active now.
    """

    name: str
    version: str
    sources: tuple[Source, ...]
    settings: InstallSettings
    revision: str | None = None
    digest: Digest | None = None
    operator: bool = False
    allow_epoch: bool = False
    root: str | None = None
    urgent: bool = False
    is_rollback: bool = False

    @property
    def requested_by(self) -> RequestedBy:
        """Who wants it: this device's operator, whoever publishes ``desired``, or the agent of itself."""
        if self.operator:
            return "operator"
        return "automatic" if self.urgent or self.revision is None else "desired"

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.version}"


def read_desired(payload: bytes, settings: InstallSettings, sources: Mapping[str, Source]) -> DesiredBundle | None:
    """The target in a ``desired`` document; None when it withdraws the one before.

    Raises:
        BundleRefused: DESIRED_INVALID, SOURCE_NOT_CONFIGURED, POLICY_LOOSER.
    """
    try:
        desired = parse_desired(payload)
    except BundleRefused as refused:
        raise BundleRefused(
            Reason.DESIRED_INVALID,
            f"{refused.message} ({refused.reason})",
            field=refused.field,
            details=refused.details,
        ) from refused
    if desired is None:
        return None
    if desired.source is UNSET:
        locations = tuple(sources.values())
        if not locations:
            raise BundleRefused(Reason.SOURCE_NOT_CONFIGURED, "this device has no source configured", field="source")
    else:
        location = sources.get(desired.source)
        if location is None:
            known = ", ".join(sorted(sources)) or "none"
            raise BundleRefused(
                Reason.SOURCE_NOT_CONFIGURED,
                f"the source {desired.source!r} is not configured on this device (configured: {known})",
                field="source",
            )
        locations = (location,)
    return DesiredBundle(
        name=desired.bundle.name,
        version=desired.bundle.version,
        sources=locations,
        settings=tighten(settings, desired.policy),
        revision=desired.revision,
    )


def rollback_target(state: InstallationState, settings: InstallSettings, *, allow_epoch: bool) -> DesiredBundle:
    """Back to the bundle that was active before this one; its bytes are here. Again, and it is the one before that,
    as long as one is here; then the one that was gone back from last. While a candidate answers already, what is gone
    back from is the candidate.

    Raises:
        UsageError: there is none.
    """
    snapshot = state.snapshot()
    if State(snapshot.phase) in (State.SWITCH, State.PROBATION):
        previous = state.bundle(snapshot.active)
    else:
        previous = state.bundle(state.history.before(snapshot.active) or snapshot.previous)
    if previous is None:
        raise UsageError("there is no previous bundle on this device to go back to")
    return DesiredBundle(
        name=previous.name,
        version=previous.version,
        sources=(),
        settings=settings,
        digest=previous.digest,
        operator=True,
        allow_epoch=allow_epoch,
        is_rollback=True,
    )


def revision_of(payload: bytes) -> str | None:
    """The revision of a document that was refused, if it can be read; it is echoed in the report."""
    try:
        desired = parse_desired(payload)
    except BundleRefused:
        return salvage_revision(payload)
    return None if desired is None else desired.revision
