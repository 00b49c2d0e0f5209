"""What must hold after a restart, whatever happened before it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from agent.install.download.fetch_plan import matches, plan_ranges, slices_of, unique_files
from agent.install.prepack import is_intact
from agent.install.verify.bundle_verifier import verify_bundle
from agent.state.database import Database
from agent.state.installation import InstallationState
from agent.state.layout import StateDirectory
from agent.state.schema import SCHEMA
from contract.bundle.manifest import Manifest
from contract.errors import BundleRefused
from contract.identifiers import Digest
from contract.system.durable import Disk
from contract.trust.store import TrustStore
from tests.crash.scenarios import Scenario
from tests.crash.world import CPU, Life

KNOWN = frozenset(
    {"trust", "inbox", "bundles", "derived", "state.db", "state.db-wal", "state.db-shm", "audit.jsonl", "lock"}
    | {"installer.lock"}
)
"""What a state directory holds."""


def after_restart(scenario: Scenario, life: Life) -> Iterator[str]:
    """Faults found when the agent has started again and nothing has been asked of it."""
    directory = life.directory
    state = InstallationState(Database(directory.database, SCHEMA))
    snapshot = state.snapshot()
    active = state.bundle(snapshot.active)
    if (active and active.version) not in scenario.may_be:
        yield f"active is {active}"
    if active is not None:
        yield from _sound(directory, active.digest)
        served = life.serving.bundle
        if served is None or served.digest != active.digest:
            yield f"{served and served.digest} is served, {active.digest} is active"
        beside = {bundle.digest for bundle in state.adapters_of(active.digest)}
        if served is not None and {each.digest for each in served.adapters} != beside:
            yield f"{len(served.adapters)} adapters are served, {len(beside)} are in force"
    elif life.serving.bundle is not None:
        yield "something is served though nothing is active"
    if snapshot.epoch < (active.security_epoch if active else scenario.epoch if scenario.before else 0):
        yield f"the epoch fell to {snapshot.epoch}"
    strangers = {path.name.strip(".").removesuffix(".sealing") for path in _children(directory.bundles)}
    strangers -= {snapshot.active, snapshot.previous}
    known = {bundle.digest for bundle in state.bundles()}
    if len(strangers - known) > 1:
        yield f"more than one candidate: {strangers - known}"
    yield from _trusting(scenario, directory, state)
    last = life.reported[-1] if life.reported else None
    if last is not None:
        told = last.active and last.active.digest
        if told != snapshot.active:
            yield f"reported says that {told} is active"
        if last.phase != snapshot.phase:
            yield f"reported says {last.phase}, recorded is {snapshot.phase}"
    if snapshot.phase != "IDLE":
        yield f"the phase after a restart is {snapshot.phase}"


def at_the_end(scenario: Scenario, life: Life, missing: int) -> Iterator[str]:
    """Faults found when the interrupted deed has been completed; ``missing``: bytes that had to be fetched."""
    directory = life.directory
    state = InstallationState(Database(directory.database, SCHEMA))
    snapshot = state.snapshot()
    active = state.bundle(snapshot.active)
    if active is None or active.version != scenario.after:
        yield f"active is {active and active.version} in the end"
        return
    beside = [bundle.reference for bundle in state.adapters_of(active.digest)]
    if beside != [each for each in (scenario.adapter,) if each is not None]:
        yield f"beside it are {beside} in the end"
    yield from _sound(directory, active.digest)
    kept = {bundle.digest for bundle in state.bundles()}
    for path in _children(directory.bundles):
        if path.name not in kept:
            yield f"stray {path.name} in bundles"
    for digest in kept:
        yield from _sound(directory, digest)
    for path in _children(directory.inbox):
        yield f"stray {path.name} in inbox"
    for path in _children(directory.derived):
        if path.name not in kept:
            yield f"stray {path.name} in derived"
        for made in _children(path):
            if made.name != CPU or not is_intact(made):
                yield f"unsound {made.name} derived for {path.name[:12]}"
    derived = (directory.derived_of(active.digest) / CPU).is_dir()
    if state.adapters_of(active.digest):
        if derived:
            yield "something is derived for a bundle that is served with adapters, and no worker maps it"
    elif not derived:
        yield "nothing is derived for the active bundle"
    for path in _children(directory.trust):
        if path.name != "trusted.json":
            yield f"stray {path.name} in trust"
    for path in _children(directory.root):
        if path.name not in KNOWN:
            yield f"stray {path.name} in the state directory"
    if life.fetched > missing:
        yield f"{life.fetched} bytes were fetched, {missing} were missing"
    last = life.reported[-1]
    if last.active is None or last.active.digest != active.digest or last.phase != "IDLE":
        yield f"reported ends with {last}"


def _trusting(scenario: Scenario, directory: StateDirectory, state: InstallationState) -> Iterator[str]:
    """Trust is whole and not below what was seen; on a device that has just come to trust somebody, or has not yet."""
    before = state.role_versions()
    if not (before or scenario.provisioned):
        return
    try:
        TrustStore(directory.trust, Disk()).load(state)
    except BundleRefused as lost:
        yield f"trust: {lost.message}"


def missing_bytes(directory: StateDirectory, wanted: Manifest, digest: Digest, others: list[Manifest]) -> int:
    """What has to be fetched for ``wanted``: what is in no part, in no other bundle and not sealed yet.

    With the small gaps between such pieces: lost writes leave some, and fetching them again saves a request.
    """
    if directory.bundle(digest).exists():
        return 0
    here = {piece.sha256 for each in others for entry in each.files for piece in slices_of(entry)}
    total = 0
    for entry in unique_files(wanted):
        places = [directory.part(entry.sha256), directory.sealing(digest) / entry.path]
        data = next((place.read_bytes() for place in places if place.is_file()), b"")
        pieces = list(slices_of(entry))
        missing = {
            piece.offset
            for piece in pieces
            if piece.sha256 not in here and not matches(data[piece.offset : piece.end], piece)
        }
        total += sum(run.length for run in plan_ranges(pieces, missing))
    return total


def _sound(directory: StateDirectory, digest: Digest) -> Iterator[str]:
    try:
        verify_bundle(directory.bundle(digest), digest)
    except BundleRefused as fault:
        yield f"bundle {digest[:12]}: {fault.message}"


def _children(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.exists() else []
