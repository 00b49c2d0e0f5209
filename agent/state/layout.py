"""Where things lie in the state directory (``/var/lib/edge-agent``), and that nobody else looks into it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from contract.errors import StoreBroken, StoreFull
from contract.identifiers import Digest, check_digest
from contract.system.durable import Disk


class StateDirectory:
    """Paths below the state directory; makes none of them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def trust(self) -> Path:
        return self.root / "trust"

    @property
    def is_trust_provisioned(self) -> bool:
        """Whether this device was given a root of trust; whether that is whole is for the installer to say."""
        try:
            return any(self.trust.iterdir())
        except OSError:
            return False

    @property
    def inbox(self) -> Path:
        """Files on their way: ``<sha256 of the file>.part``, allocated to full size, resumed by re-verifying."""
        return self.root / "inbox"

    @property
    def bundles(self) -> Path:
        return self.root / "bundles"

    @property
    def derived(self) -> Path:
        return self.root / "derived"

    @property
    def database(self) -> Path:
        return self.root / "state.db"

    @property
    def announced(self) -> Path:
        """What Home Assistant was told of: it has to be told when that is gone."""
        return self.root / "announced.json"

    @property
    def audit(self) -> Path:
        return self.root / "audit.jsonl"

    @property
    def broker(self) -> Path:
        """What was found out about the broker."""
        return self.root / "broker.json"

    @property
    def lock(self) -> Path:
        """Held (flock) by the one process that may change this directory."""
        return self.root / "lock"

    @property
    def installer_lock(self) -> Path:
        """Held by the installer process: one that outlived its agent must end before the next one starts."""
        return self.root / "installer.lock"

    @property
    def control_socket(self) -> Path:
        return self.root / "control.sock"

    def part(self, sha256: str) -> Path:
        return self.inbox / f"{check_digest(sha256)}.part"

    def bundle(self, digest: Digest) -> Path:
        return self.bundles / check_digest(digest)

    def sealing(self, digest: Digest) -> Path:
        """Where a bundle is put together; beside its final place, so that sealing it is one rename."""
        return self.bundles / f".{check_digest(digest)}.sealing"

    def derived_of(self, digest: Digest) -> Path:
        return self.derived / check_digest(digest)


def make_private(directory: StateDirectory, disk: Disk) -> None:
    """Make the state directory, open to nobody else: prompts and answers lie in it. Of one that is there only what it
    grants to everybody is taken back; its group may be that of the workers.

    Raises:
        StoreBroken, StoreFull: it is not there and cannot be made.
    """
    disk.make_directory(directory.root, 0o700)
    facts = directory.root.stat()
    if facts.st_mode & 0o007 and facts.st_uid == os.geteuid():
        # A disk that cannot be written keeps its permissions; doctor says so.
        with contextlib.suppress(StoreBroken, StoreFull):
            disk.set_mode(directory.root, facts.st_mode & 0o7770)
