"""Garbage collection: orphans of interrupted work, and bundles beyond those to be kept.

Never touched: the active and the previous bundle, the candidate, and partial downloads in progress.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from agent.state.installation import InstallationState
from agent.state.layout import StateDirectory
from contract.bundle.manifest import Manifest
from contract.bundle.verifier import read_manifest
from contract.errors import BundleRefused, StoreBroken
from contract.identifiers import Digest
from contract.system.durable import Disk


def tree_bytes(path: Path) -> int:
    """What a tree takes on this disk, every file counted under its first name only; 0 when it is missing."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for file in [path, *path.rglob("*")] if path.exists() else []:
        facts = file.lstat()
        if (facts.st_dev, facts.st_ino) not in seen:
            seen.add((facts.st_dev, facts.st_ino))
            total += facts.st_blocks * 512
    return total


def _children(directory: Path) -> Iterator[Path]:
    try:
        yield from sorted(directory.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreBroken(f"{directory} cannot be listed: {error.strerror}") from error


def known_bundles(state: InstallationState, directory: StateDirectory) -> list[tuple[Path, Manifest]]:
    """Sealed bundles whose chunks may be reused, those that matter most first; damaged manifests are left out."""
    snapshot = state.snapshot()
    order = {snapshot.active: 0, snapshot.previous: 1}
    found: list[tuple[Path, Manifest]] = []
    for bundle in sorted(state.bundles(), key=lambda bundle: order.get(bundle.digest, 2)):
        try:
            path = directory.bundle(bundle.digest)
            found.append((path, read_manifest(path, bundle.digest).manifest))
        except BundleRefused:
            continue
    return found


def collect_orphans(
    state: InstallationState, directory: StateDirectory, disk: Disk, *, parts_kept: Collection[str] | None
) -> None:
    """Remove what has no record; ``parts_kept``: digests of files being downloaded (None keeps all parts).

    Raises:
        StoreBroken, StoreFull.
    """
    # The candidate may be sealed and not recorded yet, if the power went in between.
    known = {bundle.digest for bundle in state.bundles()} | {state.snapshot().candidate}
    for path in _children(directory.bundles):
        if path.name not in known and not _is_sealing(path.name, parts_kept is None):
            disk.remove(path)
    for path in _children(directory.derived):
        if path.name not in known:
            disk.remove(path)
    for path in _children(directory.inbox):
        if parts_kept is None and path.suffix == ".part":
            continue
        if path.suffix != ".part" or path.stem not in (parts_kept or ()):
            disk.remove(path)


def _is_sealing(name: str, keep: bool) -> bool:
    return keep and name.startswith(".") and name.endswith(".sealing")


def collect_bundles(
    state: InstallationState,
    directory: StateDirectory,
    disk: Disk,
    *,
    keep_previous: int,
    quota_bytes: int,
    protected: Collection[Digest] = (),
) -> list[Digest]:
    """Remove sealed bundles beyond the ``keep_previous`` that were active last, and those that never were; then the
    oldest while the quota is exceeded.

    Returns what was removed. ``protected`` are digests in flight.

    Raises:
        StoreBroken, StoreFull.
    """
    snapshot = state.snapshot()
    untouchable = {snapshot.active, snapshot.candidate, *protected}
    if keep_previous:
        untouchable.add(snapshot.previous)
    adapters = state.adapters()
    before = [digest for digest in state.history.once_active() if digest not in untouchable]
    kept = before[: max(0, keep_previous - (snapshot.previous is not None))]
    removed = [
        bundle.digest
        for bundle in state.bundles()
        if bundle.digest not in {*untouchable, *kept} and bundle.digest not in adapters
    ]
    # An adapter stays as long as it is in force and its base is here.
    removed += [
        digest
        for digest, (base, committed) in adapters.items()
        if digest not in untouchable and not (committed and base in {*untouchable, *kept})
    ]
    for digest in removed:
        _remove_bundle(state, directory, disk, digest)
    while kept and quota_bytes and used_bytes(directory) > quota_bytes:
        digest = kept.pop()
        _remove_bundle(state, directory, disk, digest)
        removed.append(digest)
    return removed


def collect_derived(
    state: InstallationState, directory: StateDirectory, disk: Disk, *, kept: Collection[Digest] = ()
) -> None:
    """Remove the prepacked weights of all bundles but the active one and ``kept``; they are made again when one of the
    others is to be served.

    Raises:
        StoreBroken, StoreFull.
    """
    active = state.snapshot().active
    for path in _children(directory.derived):
        if path.name != active and path.name not in kept:
            disk.remove(path)


def collect_parts(directory: StateDirectory, disk: Disk) -> None:
    """Remove every partial download: it can be fetched again.

    Raises:
        StoreBroken, StoreFull.
    """
    for path in _children(directory.inbox):
        disk.remove(path)


def used_bytes(directory: StateDirectory) -> int:
    """What the quota counts: sealed bundles, derived weights and partial downloads."""
    return sum(tree_bytes(path) for path in (directory.bundles, directory.derived, directory.inbox))


def _remove_bundle(state: InstallationState, directory: StateDirectory, disk: Disk, digest: Digest) -> None:
    # The record goes first: a directory without a record is an orphan, a record without a directory would be wrong.
    state.forget_bundle(digest)
    disk.remove(directory.derived_of(digest))
    disk.remove(directory.bundle(digest))
