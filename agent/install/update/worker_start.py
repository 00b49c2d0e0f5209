"""A worker with a bundle in it: with its prepacked weights where they still are what was verified, else without."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from agent.install.ports import SealedBundle
from agent.install.verify.bundle_verifier import StatFingerprint
from agent.worker.ports import Worker
from contract.errors import EngineFailed

log = logging.getLogger("edge_agent.install")


class Start(Protocol):
    """Starts a worker; settings and listeners are bound already. Raises EngineFailed."""

    async def __call__(self, bundle_dir: Path, *, derived_dir: Path | None, adapters: Mapping[str, Path]) -> Worker: ...


def fingerprint_tree(directory: Path) -> StatFingerprint | None:
    """What changes when a file in ``directory`` is written, replaced, added or removed; None when it cannot be read.

    It costs a look at a handful of names, so it is taken at every start of a worker, where hashing would take seconds.
    """
    try:
        found = [directory.lstat(), *(path.lstat() for path in sorted(directory.iterdir()))]
    except OSError:
        return None
    return tuple((each.st_dev, each.st_ino, each.st_size, each.st_mtime_ns, each.st_ctime_ns) for each in found)


async def load_bundle(bundle: SealedBundle, start: Start) -> Worker:
    """A worker with ``bundle`` loaded. Prepacked weights are a convenience: whatever is wrong with them, it goes
    without.

    Raises:
        EngineFailed: it does not load from its own files, either.
    """
    derived = bundle.derived
    if derived is not None and fingerprint_tree(derived) != bundle.derived_fingerprint:
        log.warning("the prepacked weights of %s were touched and are not used", bundle.manifest.reference)
        derived = None
    if derived is not None:
        try:
            return await start(bundle.directory, derived_dir=derived, adapters=bundle.adapter_files)
        except EngineFailed as error:
            log.warning(
                "%s does not load with its prepacked weights, trying without: %s",
                bundle.manifest.reference,
                error.message,
            )
    return await start(bundle.directory, derived_dir=None, adapters=bundle.adapter_files)
