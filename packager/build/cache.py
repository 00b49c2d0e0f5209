"""What the packager's cache holds, and how it is emptied without breaking a build that is running."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from contract.errors import UsageError
from packager.build.build_cache import drop, is_entry, is_lock

LOGS = "logs"

_LOG = re.compile(r"(check|.+-\d+\.\d+\.\d+.*)\.log")
"""Of a check, or name and version of a bundle."""

KINDS: dict[str, str] = {
    "checkpoints": "converted GGUF files and merged adapters",
    "calibrated": "checkpoints with calibrated weights, and what an interrupted calibration resumes from",
    "graphs": "graphs of builds that were interrupted or refused",
    "source-views": "what sources answered to the evaluation",
    "picture-views": "what sources answered about pictures",
    "references": "what transformers makes of the small files of sources",
    "logits": "what two layers of sources showed",
    "gguf-headers": "what the headers of GGUF files say",
    LOGS: "logs of builds",
}
"""Folders of the cache, each with what it is for; everything in them can be made again."""


BOUNDED = ("checkpoints", "calibrated")
"""What grows by gigabytes with every source."""

LIMIT_BYTES = 40 * 10**9
"""Of those together: two conversions of a model of 3.8 billion parameters, in fp32."""

SPARED_SECONDS = 24 * 3600
"""An entry that was used within the last day may be under a build that is running."""


class CacheEntry(Struct, frozen=True):
    """``used_unix``: when it was last written, in seconds."""

    kind: str
    name: str
    size: int
    used_unix: float


def list_cache(cache: Path) -> list[CacheEntry]:
    """Every entry, the oldest first; what begins with a dot is being made, or was left by a build that was killed."""
    found = []
    for kind in KINDS:
        for path in _entries(cache, kind):
            # A build beside us may drop its entry while we look.
            with contextlib.suppress(FileNotFoundError):
                found.append(CacheEntry(kind, path.name, _size_of(path), path.lstat().st_mtime))
    return sorted(found, key=lambda entry: entry.used_unix)


def clean_cache(cache: Path, kinds: Sequence[str], *, older_than_unix: float | None = None) -> list[CacheEntry]:
    """Remove the entries of ``kinds`` (none named: all), only those last written before ``older_than_unix``.

    An entry that a build is making or using is waited for. What was removed is returned.

    Raises:
        UsageError: a kind that does not exist.
        OSError: an entry cannot be removed.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise UsageError(f"{kind!r} is not in the cache; choose from {', '.join(KINDS)}", field="kind")
    removed = []
    for entry in list_cache(cache):
        if kinds and entry.kind not in kinds:
            continue
        if older_than_unix is not None and entry.used_unix >= older_than_unix:
            continue
        drop(cache / entry.kind / entry.name)
        removed.append(entry)
    return removed


def bound_cache(cache: Path, now_unix: float, *, limit_bytes: int = LIMIT_BYTES) -> list[CacheEntry]:
    """Remove converted and calibrated checkpoints, those used longest ago first, while there are too many of them.

    None that was used within :data:`SPARED_SECONDS`, or that another build uses. What was removed is returned.
    """
    entries = [entry for entry in list_cache(cache) if entry.kind in BOUNDED]
    size = sum(entry.size for entry in entries)
    removed = []
    for entry in entries:
        if size <= limit_bytes or entry.used_unix > now_unix - SPARED_SECONDS:
            break
        if drop(cache / entry.kind / entry.name, wait=False):
            size -= entry.size
            removed.append(entry)
    return removed


def _entries(cache: Path, kind: str) -> list[Path]:
    """Finished entries, and with a dot before their names those that are being made or never were to their end; nothing
    that no build has made.
    """
    ours = _is_log if kind == LOGS else is_entry
    try:
        return [path for path in (cache / kind).iterdir() if ours(path) and not is_lock(path)]
    except FileNotFoundError:
        return []


def _is_log(path: Path) -> bool:
    return _LOG.fullmatch(path.name) is not None


def _size_of(path: Path) -> int:
    """Bytes of all files in ``path``."""
    if not path.is_dir():
        return path.lstat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink())
