"""What is on this device, for people and scripts: read from ``state.db``, whether or not an agent runs."""

from __future__ import annotations

from msgspec import Struct

from agent.install.collection import used_bytes
from agent.state.installation import InstallationState, InstalledBundle, Quarantined
from agent.state.layout import StateDirectory
from contract.mqtt.messages import BrokerState, EngineInfo, Health, Reported


class BundleLine(Struct, frozen=True):
    """One bundle. ``place``: active, previous, adapter (of the active one), candidate, kept or quarantined; ``here``:
    it lies on this disk. Of one whose bytes are on their way only the digest is recorded: ``name`` and ``version`` are
    empty.
    """

    name: str
    version: str
    digest: str
    place: str
    here: bool
    bytes: int | None = None
    security_epoch: int | None = None
    installed_at: int | None = None
    tokens_per_second: float | None = None
    reason: str | None = None
    message: str | None = None


class Overview(Struct, frozen=True):
    """``running``: an agent answered; ``reported`` is what it says, or what was recorded last.

    ``desired``: NAME@VERSION of the document that was accepted last; ``overridden``: it is not followed any more, since
    this device's operator chose another bundle after it. ``engine``: of the model that an agent has loaded,
    ``broker``: as it finds it, ``health``: whether it answers prompts.
    """

    running: bool
    reported: Reported
    security_epoch: int
    used_bytes: int
    bundles: list[BundleLine]
    desired: str | None = None
    overridden: bool = False
    engine: EngineInfo | None = None
    broker: BrokerState | None = None
    health: Health | None = None


def survey(
    state: InstallationState,
    directory: StateDirectory,
    reported: Reported,
    *,
    running: bool,
    engine: EngineInfo | None = None,
    broker: BrokerState | None = None,
    health: Health | None = None,
) -> Overview:
    """Put together what is recorded."""
    snapshot = state.snapshot()
    wanted = snapshot.accepted
    return Overview(
        running=running,
        reported=reported,
        security_epoch=state.epoch(),
        used_bytes=used_bytes(directory),
        bundles=bundle_lines(state, directory),
        desired=None if wanted is None else f"{wanted.name}@{wanted.version}",
        overridden=snapshot.overridden,
        engine=engine,
        broker=broker,
        health=health,
    )


def bundle_lines(state: InstallationState, directory: StateDirectory) -> list[BundleLine]:
    """Every bundle that is here, on its way, or that failed here; the newest first."""
    snapshot = state.snapshot()
    failed = {entry.digest: entry for entry in state.quarantined()}
    adapters = {bundle.digest for bundle in state.adapters_of(snapshot.active)}

    def place(bundle: InstalledBundle) -> str:
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

    def line(bundle: InstalledBundle) -> BundleLine:
        entry = failed.get(bundle.digest)
        return BundleLine(
            name=bundle.name,
            version=bundle.version,
            digest=bundle.digest,
            place=place(bundle),
            here=directory.bundle(bundle.digest).is_dir(),
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
        arriving = [BundleLine(name="", version="", digest=snapshot.candidate, place="candidate", here=False)]
    return arriving + lines + [_gone(entry) for entry in failed.values() if entry.digest not in known]


def _gone(entry: Quarantined) -> BundleLine:
    return BundleLine(
        name=entry.name,
        version=entry.version,
        digest=entry.digest,
        place="quarantined",
        here=False,
        reason=entry.reason,
        message=entry.message,
    )
