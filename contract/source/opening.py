"""From what an operator writes to a source: a directory, an ``.edgebundle`` file or an http(s) URL."""

from __future__ import annotations

from pathlib import Path

from contract.errors import SourceUnavailable
from contract.source import BundleSource
from contract.source.access import Source, location_of
from contract.source.directory import PIECE_BYTES, DirectorySource
from contract.source.tar import TarSource


def open_source(source: Source, piece_bytes: int = PIECE_BYTES) -> BundleSource:
    """Open ``source``; a URL is not contacted before the first read. ``piece_bytes`` bounds what a network delivers
    at a time.

    Raises:
        SourceUnavailable: nothing is there, or it is of no known kind.
        BundleRefused: TAR_INVALID, for a file.
    """
    location = location_of(source)
    if "://" in location:
        # http and ssl cost memory that a device reading from a stick has no use for.
        from contract.source.http import HttpSource

        return HttpSource(source, piece_bytes=piece_bytes)
    path = Path(location)
    if path.is_dir():
        return DirectorySource(path)
    if path.exists():
        return TarSource(path)
    raise SourceUnavailable(f"{location} does not exist; give a directory, an .edgebundle file or an http(s) URL")
