"""Whether the disk of the state directory can take anything, and what is behind an error where it cannot."""

from __future__ import annotations

import os
from pathlib import Path

from agent.host import facts as host
from contract.errors import StoreBroken, StoreFull
from contract.mqtt.requests import MAX_REQUEST_BYTES

MIN_FREE_BYTES = MAX_REQUEST_BYTES
"""With less than one request fits into, the disk counts as full."""


def check_free_space(root: Path) -> None:
    """Raises StoreFull when the disk has no room for a request; StoreBroken."""
    if host.disk_available(root) < MIN_FREE_BYTES:
        raise StoreFull(f"the disk of {root} is full")
    facts = os.statvfs(root)
    if facts.f_files and not facts.f_favail:
        raise StoreFull(f"the disk of {root} has no inodes left")


def explain(root: Path, error: StoreFull | StoreBroken) -> StoreFull | StoreBroken:
    """What is behind ``error``: SQLite calls most of it a disk I/O error."""
    try:
        check_free_space(root)
        if os.statvfs(root).f_flag & os.ST_RDONLY:
            return StoreBroken(f"the disk of {root} can only be read")
    except StoreFull as full:
        return full
    except (StoreBroken, OSError):
        pass
    return error
