"""The desired state: checked ``desired`` documents and orders of the operator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, assert_never

from msgspec import UNSET, Struct

from agent.install.settings import InstallSettings, tighten
from agent.install.update.state_machine import State
from agent.state.installation import InstallationState
from contract.errors import BundleRefused, UsageError
from contract.identifiers import Digest
from contract.mqtt.desired import Desired
from contract.mqtt.reading import parse_desired, salvage_revision
from contract.reasons import Reason
from contract.source.access import Source
from contract.utc import parse_utc
from contract.windows import Window, read_window

RequestedBy = Literal["operator", "desired", "automatic"]


class _Named(Struct, frozen=True):
    """A bundle to be run, under ``settings``."""

    name: str
    version: str
    settings: InstallSettings

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.version}"


class DesiredDocument(Struct, frozen=True):
    """Whoever publishes ``desired`` wants it; ``revision`` is echoed in the report."""

    revision: str


class OperatorOrder(Struct, frozen=True):
    """This device's own operator wants it, who may try again what failed; ``root`` provisions trust where there is
    none.
    """

    root: str | None = None


class Activates(Struct, frozen=True):
    """When it may be made active: not before a time in Unix seconds, and while one of ``windows`` is open. It may be
    fetched before, with ``prefetch``.
    """

    not_before: float | None = None
    windows: tuple[Window, ...] = ()
    prefetch: bool = False


class Install(_Named, frozen=True, kw_only=True):
    """From the first of ``sources`` that can deliver it."""

    sources: tuple[Source, ...]
    origin: DesiredDocument | OperatorOrder
    activates: Activates = Activates()


class Rollback(_Named, frozen=True, kw_only=True):
    """Back to ``digest``, which was active before and is on this disk: an order of this device's operator, who may
    allow a lower security epoch.
    """

    digest: Digest
    allow_epoch: bool = False


class Repair(_Named, frozen=True, kw_only=True):
    """What is active once more: its bytes on this disk are not those that were installed."""

    sources: tuple[Source, ...]
    revision: str | None = None


class ReplaceRevoked(_Named, frozen=True, kw_only=True):
    """``digest``, which is on this disk, instead of what is active and was revoked."""

    digest: Digest
    revision: str | None = None


DesiredBundle = Install | Rollback | Repair | ReplaceRevoked
"""What the update runner is asked to make active."""


def requested_by(target: DesiredBundle) -> RequestedBy:
    """Who wants it: this device's operator, whoever publishes ``desired``, or the agent of itself."""
    match target:
        case Install():
            return "desired" if isinstance(target.origin, DesiredDocument) else "operator"
        case Rollback():
            return "operator"
        case Repair() | ReplaceRevoked():
            return "automatic"
        case _:
            assert_never(target)


def revision_of(target: DesiredBundle) -> str | None:
    """The revision that is reported while it is the target."""
    match target:
        case Install():
            return target.origin.revision if isinstance(target.origin, DesiredDocument) else None
        case Repair() | ReplaceRevoked():
            return target.revision
        case Rollback():
            return None
        case _:
            assert_never(target)


def read_desired(payload: bytes, settings: InstallSettings, sources: Mapping[str, Source]) -> Install | None:
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
    return Install(
        desired.bundle.name,
        desired.bundle.version,
        tighten(settings, desired.policy),
        sources=locations,
        origin=DesiredDocument(desired.revision),
        activates=activates_of(desired),
    )


def activates_of(desired: Desired) -> Activates:
    """When the bundle of ``desired`` may be made active: at any time, without a policy."""
    policy = desired.policy
    if policy is UNSET:
        return Activates()
    not_before = None if policy.not_before is UNSET else parse_utc(policy.not_before)
    return Activates(not_before, tuple(read_window(each) for each in policy.windows), policy.prefetch)


def rollback_target(state: InstallationState, settings: InstallSettings, *, allow_epoch: bool) -> Rollback:
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
    return Rollback(previous.name, previous.version, settings, digest=previous.digest, allow_epoch=allow_epoch)


def revision_in(payload: bytes) -> str | None:
    """The revision of a document that was refused, if it can be read; it is echoed in the report."""
    try:
        desired = parse_desired(payload)
    except BundleRefused:
        return salvage_revision(payload)
    return None if desired is None else desired.revision
