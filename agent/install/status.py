"""The installation status of this device, read from ``state.db``, whether or not an agent runs."""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from agent.install.gc import used_bytes
from agent.state.installation import InstallationState, InstalledBundle, Quarantined
from agent.state.layout import StateDirectory
from contract.mqtt.device import BrokerState, EngineInfo, Health
from contract.mqtt.reports import Reported


class BundleStatus(Struct, frozen=True):
    """One bundle. ``state``: active, previous, adapter (of the active one), candidate, kept or quarantined;
    ``present``: it is on this disk. Of one that is being downloaded only the digest is recorded: ``name`` and
    ``version`` are empty.
    """

    name: str
    version: str
    digest: str
    state: str
    present: bool
    bytes: int | None = None
    security_epoch: int | None = None
    installed_at: int | None = None
    tokens_per_second: float | None = None
    reason: str | None = None
    message: str | None = None


class InstallStatus(Struct, frozen=True):
    """``running``: an agent answered; ``reported`` is its report, or what was recorded last.

    ``desired``: NAME@VERSION of the document that was accepted last; ``overridden``: it is not followed any more, since
    this device's operator chose another bundle after it. ``engine``: of the model that an agent has loaded,
    ``broker``: as it finds it, ``health``: whether it answers prompts.
    """

    running: bool
    reported: Reported
    security_epoch: int
    used_bytes: int
    bundles: list[BundleStatus]
    desired: str | None = None
    overridden: bool = False
    engine: EngineInfo | None = None
    broker: BrokerState | None = None
    health: Health | None = None


class LiveStatus(Protocol):
    """What only a running agent knows of itself; :class:`agent.presence.Presence` is one."""

    def engine(self) -> EngineInfo | None:
        """What it is of the model that is loaded."""
        ...

    def broker(self) -> BrokerState | None:
        """The broker as it is found now."""
        ...

    def health(self) -> Health | None:
        """Whether prompts are answered now, and why not."""
        ...


def collect_status(
    state: InstallationState,
    directory: StateDirectory,
    reported: Reported,
    *,
    running: bool,
    live: LiveStatus | None = None,
) -> InstallStatus:
    """Put together what is recorded; ``live``: what a running agent knows besides."""
    snapshot = state.snapshot()
    accepted = snapshot.accepted
    return InstallStatus(
        running=running,
        reported=reported,
        security_epoch=state.epoch(),
        used_bytes=used_bytes(directory),
        bundles=bundle_statuses(state, directory),
        desired=None if accepted is None else f"{accepted.name}@{accepted.version}",
        overridden=snapshot.overridden,
        engine=None if live is None else live.engine(),
        broker=None if live is None else live.broker(),
        health=None if live is None else live.health(),
    )


def bundle_statuses(state: InstallationState, directory: StateDirectory) -> list[BundleStatus]:
    """Every bundle that is present, being downloaded, or that failed here; the newest first."""
    snapshot = state.snapshot()
    failed = {entry.digest: entry for entry in state.quarantined()}
    adapters = {bundle.digest for bundle in state.adapters_of(snapshot.active)}

    def state_of(bundle: InstalledBundle) -> str:
        for name, digest in (
            ("active", snapshot.active),
            ("candidate", snapshot.candidate),
            ("quarantined", bundle.digest if bundle.digest in failed else None),
            ("previous", snapshot.previous),
            ("adapter", bundle.digest if bundle.digest in adapters else None),
        ):
            if bundle.digest == digest:
                return name
        return "kept"

    def line(bundle: InstalledBundle) -> BundleStatus:
        entry = failed.get(bundle.digest)
        return BundleStatus(
            name=bundle.name,
            version=bundle.version,
            digest=bundle.digest,
            state=state_of(bundle),
            present=directory.bundle(bundle.digest).is_dir(),
            bytes=bundle.bytes,
            security_epoch=bundle.security_epoch,
            installed_at=bundle.installed_at,
            tokens_per_second=bundle.tokens_per_second,
            reason=None if entry is None else entry.reason,
            message=None if entry is None else entry.message,
        )

    lines = [line(bundle) for bundle in state.bundles()]
    known = {each.digest for each in lines}
    arriving = []
    if snapshot.candidate is not None and snapshot.candidate not in known | failed.keys():
        arriving = [BundleStatus(name="", version="", digest=snapshot.candidate, state="candidate", present=False)]
    return arriving + lines + [_quarantined_only(entry) for entry in failed.values() if entry.digest not in known]


def _quarantined_only(entry: Quarantined) -> BundleStatus:
    return BundleStatus(
        name=entry.name,
        version=entry.version,
        digest=entry.digest,
        state="quarantined",
        present=False,
        reason=entry.reason,
        message=entry.message,
    )
